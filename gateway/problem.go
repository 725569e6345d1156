// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

// StatusClientClosed is the status that is recorded when the client has gone before the answer.
// Nobody receives it. The number is nginx's.
const StatusClientClosed = 499

// Problem is a problem detail (RFC 9457).
type Problem struct {
	// Type is a URI that names the kind of problem. Empty means about:blank: no more than
	// the status says.
	Type string `json:"type,omitempty"`
	// Title is the kind of problem in words. Empty means the text of the status.
	Title string `json:"title"`
	// Status is the HTTP status.
	Status int `json:"status"`
	// Detail is what happened this time.
	Detail string `json:"detail,omitempty"`
	// Instance is a URI of this occurrence.
	Instance string `json:"instance,omitempty"`
	// RetryAfter is for the header of that name, in whole seconds, rounded up. Zero means none.
	RetryAfter time.Duration `json:"-"`
	// Members are further members, by name, of values that encoding/json can encode
	// (RFC 9457, section 3.2). Names of the members above do not count.
	Members map[string]any `json:"-"`
}

// MarshalJSON implements json.Marshaler.
func (p Problem) MarshalJSON() ([]byte, error) {
	type standard Problem // without this method
	body, err := json.Marshal(standard(p))
	if err != nil || len(p.Members) == 0 {
		return body, err
	}
	all := maps.Clone(p.Members)
	for _, name := range []string{"type", "title", "status", "detail", "instance"} {
		delete(all, name)
	}
	if len(all) == 0 {
		return body, nil
	}
	more, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	return append(append(body[:len(body)-1], ','), more[1:]...), nil
}

// WriteProblem answers with the problem, as application/problem+json that must not be cached. Members
// that cannot be encoded are left out.
func WriteProblem(w http.ResponseWriter, p Problem) {
	p.Title = cmp.Or(p.Title, http.StatusText(p.Status), "Client Closed Request")
	body, err := json.Marshal(p)
	if err != nil {
		p.Members = nil
		body, _ = json.Marshal(p) // strings and a number
	}
	h := w.Header()
	h.Del("Content-Length")
	h.Del("Content-Encoding")
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((p.RetryAfter+time.Second-1)/time.Second), 10))
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n'))
}

// ProblemOf returns what to answer when a call to the service ended with err; ctx is that of
// the client's request:
//
//   - 413 when the client's body was too large;
//   - 499 when the client has gone;
//   - 503 when a guard refused ([fault.Rejection]) or the error says when to come back;
//   - 504 when time ran out;
//   - 502 else.
func ProblemOf(ctx context.Context, service string, err error) Problem {
	var tooLarge *http.MaxBytesError
	var refused *fault.Rejection
	var network net.Error
	verdict := fault.Judge(context.WithoutCancel(ctx), err)
	switch {
	case errors.As(err, &tooLarge):
		return bodyTooLarge(tooLarge.Limit)
	case errors.Is(ctx.Err(), context.Canceled):
		return Problem{Status: StatusClientClosed}
	case errors.As(err, &refused), verdict.After > 0:
		return Problem{Status: http.StatusServiceUnavailable, Detail: fmt.Sprintf("service %s is not available at present", service), RetryAfter: verdict.After}
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout(), ctx.Err() != nil:
		return Problem{Status: http.StatusGatewayTimeout, Detail: fmt.Sprintf("service %s did not answer in time", service)}
	}
	return Problem{Status: http.StatusBadGateway, Detail: fmt.Sprintf("service %s did not answer", service)}
}

func bodyTooLarge(limit int64) Problem {
	return Problem{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("the body is larger than %d bytes", limit)}
}
