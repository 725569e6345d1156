// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/fault"
)

// Caller calls the other services of the shop.
type Caller struct {
	// Client resolves http://<service>/ by discovery.
	Client *http.Client
	// Guards are those on the way of Client. Nil if there are none.
	Guards *Guarded
	// RPC is the way to services that speak gRPC. Nil if there is none.
	RPC *RPC
	// Instances are those of the services that were called so far, as they are seen from here. Nil if nobody knows.
	Instances func() []balance.View
	// Below makes a call to one instance by its address. Nil leaves the choice of the instance to Client.
	Below http.RoundTripper
	// Token is the shared service token.
	Token string
}

// KeyFor is a secret made of the service token for one purpose, such as what a stranger knows the shop by: it
// tells nobody the token.
func (c *Caller) KeyFor(purpose string) ([]byte, error) {
	return hkdf.Key(sha256.New, []byte(c.Token), nil, purpose, 32)
}

// ProviderKey is the purpose of the key by which the payment provider knows the shop.
const ProviderKey = "shop payment provider"

// Known are the instances of the services that were called so far, by service.
func (c *Caller) Known() map[string][]balance.InstanceView {
	known := make(map[string][]balance.InstanceView)
	if c.Instances != nil {
		for _, view := range c.Instances() {
			known[view.Service] = view.Instances
		}
	}
	return known
}

// Do sends in as JSON, if it is not nil, and decodes the answer into out, if that is
// not nil. Prepare may set headers before the request leaves; nil leaves it as it is.
//
// An answer of 4xx is an [*Error] and permanent, so that nothing tries it again, unless it
// carries a Retry-After; an answer of 5xx is an [*Error] that may be tried again. Anything
// else brought no answer, and its effect is unknown.
func (c *Caller) Do(ctx context.Context, method, url string, prepare func(http.Header), in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, url, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, url, err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if prepare != nil {
		prepare(req.Header)
	}
	resp, err := c.Client.Do(req)
	if err != nil {
		err = fmt.Errorf("%s %s: %w", method, url, err)
		if rejection := (*fault.Rejection)(nil); errors.As(err, &rejection) {
			return err // a guard of ours: nothing was sent
		}
		return fault.Unknown(err)
	}
	defer func() {
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
		_ = resp.Body.Close()
	}()
	if resp.StatusCode >= http.StatusBadRequest {
		return answerError(method, url, resp)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 8<<20)).Decode(out); err != nil {
		return fault.Unknown(fmt.Errorf("%s %s: answer: %w", method, url, err))
	}
	return nil
}

func answerError(method, url string, resp *http.Response) error {
	var p problem
	_ = json.NewDecoder(io.LimitReader(resp.Body, MaxBody)).Decode(&p) // a body that is no problem leaves the status to speak
	e := &Error{Status: resp.StatusCode, Code: problemCode(p.Type), Field: p.Field, Detail: p.Detail, Err: fmt.Errorf("%s %s", method, url)}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds >= 0 {
		e.RetryAfter = time.Duration(min(seconds, 3600)) * time.Second
		return fault.RetryAfter(e, e.RetryAfter)
	}
	switch {
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusRequestTimeout, resp.StatusCode >= http.StatusInternalServerError:
		return e
	}
	return fault.Permanent(e)
}

func problemCode(uri string) string {
	const prefix = "/problems/"
	if len(uri) > len(prefix) && uri[:len(prefix)] == prefix {
		return uri[len(prefix):]
	}
	return "unexpected-answer"
}
