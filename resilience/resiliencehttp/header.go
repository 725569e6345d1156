// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencehttp

import (
	"context"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

// Headers that carry the state of a call between services, see [TransportConfig].Propagate.
const (
	// AttemptHeader is the number of the attempt, from 2; absent from first attempts.
	AttemptHeader = "Dovetail-Attempt"
	// CriticalityHeader is the criticality as its String; absent from critical calls.
	CriticalityHeader = "Dovetail-Criticality"
)

// Classify judges a response by its status.
//
//   - 429 is neutral, to be retried after Retry-After: the quota is the client's matter, the server is well.
//   - 408 is neutral and may be retried.
//   - 5xx is a failure, to be retried after Retry-After; 504 leaves the effect unknown.
//   - Everything else is an answer, 501 and 505 among it: repeating cannot help.
func Classify(r *http.Response) fault.Verdict { return classify(r.StatusCode, r.Header) }

func classify(status int, h http.Header) fault.Verdict {
	switch {
	case status == http.StatusRequestTimeout:
		return fault.Verdict{Outcome: fault.Neutral, Retry: true}
	case status == http.StatusTooManyRequests:
		return fault.Verdict{Outcome: fault.Neutral, Retry: true, After: retryAfter(h)}
	case status == http.StatusNotImplemented, status == http.StatusHTTPVersionNotSupported, status < 500:
		return fault.Verdict{Outcome: fault.Success}
	}
	return fault.Verdict{Outcome: fault.Failure, Retry: true, After: retryAfter(h), Unknown: status == http.StatusGatewayTimeout}
}

// retryAfter returns the wait that a response asks for, zero for none. A date is read by the clock
// of the server that wrote it, where the response tells its time.
func retryAfter(h http.Header) time.Duration {
	now := time.Now()
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	after, _ := ParseRetryAfter(h.Get("Retry-After"), now)
	return after
}

// ParseRetryAfter reads the value of a Retry-After header (RFC 9110, section 10.2.3), a number of
// seconds or a date, and reports whether it is one. Dates in the past are zero; what
// does not fit a time.Duration is the longest one.
func ParseRetryAfter(value string, now time.Time) (time.Duration, bool) {
	if value == "" {
		return 0, false
	}
	digits := true
	for _, c := range []byte(value) {
		digits = digits && '0' <= c && c <= '9'
	}
	if digits {
		seconds, err := strconv.ParseInt(value, 10, 64)
		if err != nil || seconds > math.MaxInt64/int64(time.Second) {
			return math.MaxInt64, true
		}
		return time.Duration(seconds) * time.Second, true
	}
	date, err := http.ParseTime(value)
	if err != nil {
		return 0, false
	}
	return max(0, date.Sub(now)), true // Sub saturates
}

// seconds returns d for a header: whole seconds, upwards, at least one.
func seconds(d time.Duration) string {
	s := int64(d / time.Second)
	if d%time.Second > 0 {
		s++
	}
	return strconv.FormatInt(max(1, s), 10)
}

// propagate writes the state of the call into h.
func propagate(ctx context.Context, h http.Header) {
	h.Del(AttemptHeader)
	h.Del(CriticalityHeader)
	if n := retry.Attempt(ctx); n > 1 {
		h.Set(AttemptHeader, strconv.Itoa(n))
	}
	if c := resilience.CriticalityOf(ctx); c != resilience.Critical {
		h.Set(CriticalityHeader, c.String())
	}
}

// propagated returns ctx with the state of the call in h. What cannot be read is left out.
func propagated(ctx context.Context, h http.Header) context.Context {
	if n, err := strconv.Atoi(h.Get(AttemptHeader)); err == nil && n > 1 {
		ctx = retry.WithAttempt(ctx, n)
	}
	if v := h.Get(CriticalityHeader); v != "" {
		if c, err := resilience.ParseCriticality(v); err == nil {
			ctx = resilience.WithCriticality(ctx, c)
		}
	}
	return ctx
}
