// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// OpenTransport makes a transport that retries on base, three attempts at most with short delays.
type OpenTransport = func(base http.RoundTripper) (http.RoundTripper, error)

// RunTransport holds retrying HTTP clients to their promises.
func RunTransport(t *testing.T, open OpenTransport) { run(t, transportPromises, open) }

// network is a base that answers as a script says, and notes what it sees.
type network struct {
	t        *testing.T
	statuses []int // of the n-th response; the last one for all that follow
	header   http.Header
	err      error // instead of responses
	bodies   []string
	times    []time.Time
	sent     []*response
}

// response is the body of one response.
type response struct {
	ctx    context.Context
	text   *strings.Reader
	closed bool
}

func (b *response) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err // as net/http does when the request's context has ended
	}
	return b.text.Read(p)
}

func (b *response) Close() error { b.closed = true; return nil }

func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	body := []byte(nil)
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			n.t.Errorf("reading the request's body: %v", err)
		}
		r.Body.Close()
	}
	n.bodies, n.times = append(n.bodies, string(body)), append(n.times, time.Now())
	if n.err != nil {
		return nil, n.err
	}
	i := len(n.sent)
	b := &response{ctx: r.Context(), text: strings.NewReader(fmt.Sprint("answer ", i+1))}
	n.sent = append(n.sent, b)
	h := n.header.Clone()
	if h == nil {
		h = http.Header{}
	}
	status := n.statuses[min(i, len(n.statuses)-1)]
	return &http.Response{StatusCode: status, Status: fmt.Sprint(status, " ", http.StatusText(status)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: b, ContentLength: b.text.Size(), Request: r}, nil
}

// roundTrip sends a request and returns the status and body that came back.
func (n *network) roundTrip(open OpenTransport, method string, body io.Reader, header ...string) (status int, text string, err error) {
	n.t.Helper()
	rt, err := open(n)
	rt = made(n.t, rt, err)
	r, err := http.NewRequestWithContext(n.t.Context(), method, "http://shop.example/orders", body)
	if err != nil {
		n.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := rt.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Errorf("reading the body: %v", err)
	}
	return resp.StatusCode, string(b), nil
}

// sends returns a check of how many requests a method makes when the server always fails.
func sends(want int, method, body string, header ...string) func(*testing.T, OpenTransport) {
	return virtual(func(t *testing.T, open OpenTransport) {
		n := &network{t: t, statuses: []int{503}}
		var r io.Reader
		if body != "" {
			r = bytes.NewReader([]byte(body))
		}
		_, _, _ = n.roundTrip(open, method, r, header...)
		if len(n.bodies) != want {
			t.Errorf("%d requests, want %d", len(n.bodies), want)
		}
		for _, got := range n.bodies {
			if got != body {
				t.Errorf("body %q, want %q", got, body)
			}
		}
	})
}

// comesBack returns a check of when the second request is sent after a Retry-After.
func comesBack(after func() string, low, high time.Duration) func(*testing.T, OpenTransport) {
	return virtual(func(t *testing.T, open OpenTransport) {
		n := &network{t: t, statuses: []int{503, 200}, header: http.Header{"Retry-After": {after()}}}
		if status, _, err := n.roundTrip(open, http.MethodGet, nil); err != nil || status != 200 || len(n.times) != 2 {
			t.Fatalf("status %d, %v after %d requests, want 200 after 2", status, err, len(n.times))
		}
		if d := n.times[1].Sub(n.times[0]); d < low || d > high {
			t.Errorf("came back after %v, want %v to %v", d, low, high)
		}
	})
}

// short is more than the short delays of OpenTransport.
const short = 5 * time.Second

var transportPromises = []promise[OpenTransport]{
	{"GET is repeated when the server fails", sends(3, http.MethodGet, "")},
	{"PUT is repeated with its whole body", sends(3, http.MethodPut, "order")},
	{"POST is never repeated", sends(1, http.MethodPost, "order")},
	{"PATCH is never repeated", sends(1, http.MethodPatch, "order")},
	{"POST with an Idempotency-Key is repeated", sends(3, http.MethodPost, "order", "Idempotency-Key", "k")},
	{"a body that can be read once is not repeated", virtual(func(t *testing.T, open OpenTransport) {
		n := &network{t: t, statuses: []int{503}}
		_, _, _ = n.roundTrip(open, http.MethodPut, io.MultiReader(strings.NewReader("order")))
		if !slices.Equal(n.bodies, []string{"order"}) {
			t.Errorf("bodies %q, want the order once", n.bodies)
		}
	})},
	{"POST is not repeated after an error of the network", virtual(func(t *testing.T, open OpenTransport) {
		n := &network{t: t, err: errDown}
		if _, _, err := n.roundTrip(open, http.MethodPost, strings.NewReader("order")); !errors.Is(err, errDown) || len(n.bodies) != 1 {
			t.Errorf("error %v after %d requests, want the network's after 1", err, len(n.bodies))
		}
	})},
	{"an answer is not repeated", virtual(func(t *testing.T, open OpenTransport) {
		for _, status := range []int{200, 301, 400, 404, 409, 501} {
			n := &network{t: t, statuses: []int{status}}
			if got, _, err := n.roundTrip(open, http.MethodGet, nil); err != nil || got != status || len(n.bodies) != 1 {
				t.Errorf("status %d, %v after %d requests, want %d after 1", got, err, len(n.bodies), status)
			}
		}
	})},
	{"when retries end the last response is returned whole", virtual(func(t *testing.T, open OpenTransport) {
		n := &network{t: t, statuses: []int{503}}
		if status, text, err := n.roundTrip(open, http.MethodGet, nil); err != nil || status != 503 || text != "answer 3" {
			t.Errorf("status %d, %q, %v, want 503 and answer 3", status, text, err)
		}
	})},
	{"discarded responses are read to their end and closed", virtual(func(t *testing.T, open OpenTransport) {
		n := &network{t: t, statuses: []int{503}}
		_, _, _ = n.roundTrip(open, http.MethodGet, nil)
		for i, b := range n.sent {
			if b.text.Len() > 0 || !b.closed {
				t.Errorf("response %d: %d bytes left, closed %v, want none and closed", i+1, b.text.Len(), b.closed)
			}
		}
	})},
	{"the response's body can be read after RoundTrip has returned", virtual(func(t *testing.T, open OpenTransport) {
		n := &network{t: t, statuses: []int{503, 200}}
		if status, text, err := n.roundTrip(open, http.MethodGet, nil); err != nil || status != 200 || text != "answer 2" {
			t.Errorf("status %d, %q, %v, want 200 and answer 2", status, text, err)
		}
	})},
	{"the caller's request is not changed and its body is closed", virtual(func(t *testing.T, open OpenTransport) {
		n := &network{t: t, statuses: []int{503}}
		rt, err := open(n)
		rt = made(t, rt, err)
		body := &closing{Reader: strings.NewReader("order")}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://shop.example/orders", body)
		if err != nil {
			t.Fatal(err)
		}
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("order")), nil }
		r.Header.Set("Accept", "text/plain")
		header, before := r.Header.Clone(), *r
		if resp, err := rt.RoundTrip(r); err == nil {
			resp.Body.Close()
		}
		if !maps.EqualFunc(header, r.Header, slices.Equal) || r.Body != before.Body || r.URL != before.URL || r.Context() != before.Context() {
			t.Errorf("the request was changed: %+v", r)
		}
		if !body.closed.Load() {
			t.Error("the request's body was not closed")
		}
	})},
	{"Retry-After in seconds is waited for", comesBack(func() string { return "7" }, 7*time.Second, 7*time.Second+short)},
	{"Retry-After as a date is waited for", comesBack(func() string { return time.Now().Add(10 * time.Second).UTC().Format(http.TimeFormat) }, 9*time.Second, 10*time.Second+short)},
	{"Retry-After that is in the past, negative or nonsense does not matter", virtual(func(t *testing.T, open OpenTransport) {
		for _, value := range []string{"Sun, 06 Nov 1994 08:49:37 GMT", "-1", "soon", ""} {
			comesBackNow := &network{t: t, statuses: []int{503, 200}, header: http.Header{"Retry-After": {value}}}
			begun := time.Now()
			if status, _, err := comesBackNow.roundTrip(open, http.MethodGet, nil); err != nil || status != 200 || time.Since(begun) > short {
				t.Errorf("%q: status %d, %v after %v, want 200 soon", value, status, err, time.Since(begun))
			}
		}
	})},
	{"Retry-After of a day, or of more than fits, does not hold the caller up for an hour, nor is it a hot loop", virtual(func(t *testing.T, open OpenTransport) {
		for _, value := range []string{"86400", "9300000000", "99999999999999999999"} {
			n := &network{t: t, statuses: []int{503, 200}, header: http.Header{"Retry-After": {value}}}
			begun := time.Now()
			_, _, _ = n.roundTrip(open, http.MethodGet, nil)
			if took := time.Since(begun); took > time.Hour || len(n.times) > 1 && took < 10*time.Second {
				t.Errorf("%s: %d requests in %v", value, len(n.times), took)
			}
		}
	})},
	{"Retry-After of an answer does not matter", virtual(func(t *testing.T, open OpenTransport) {
		n := &network{t: t, statuses: []int{200}, header: http.Header{"Retry-After": {"60"}}}
		begun := time.Now()
		if status, _, err := n.roundTrip(open, http.MethodGet, nil); err != nil || status != 200 || time.Since(begun) != 0 {
			t.Errorf("status %d, %v after %v, want 200 at once", status, err, time.Since(begun))
		}
	})},
}

type closing struct {
	io.Reader
	closed atomic.Bool
}

func (c *closing) Close() error { c.closed.Store(true); return nil }
