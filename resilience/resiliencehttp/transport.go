// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencehttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/internal/keyed"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

// TransportConfig configures a [Transport]. The zero value is a sound default.
type TransportConfig struct {
	// Base makes the requests. Nil means http.DefaultTransport.
	Base http.RoundTripper
	// Guards makes the guards of a host when it is first seen. It may be called more than once
	// for a host. Nil means, for each host, retries as of the zero retry.Config and a
	// breaker that opens when half of the requests in ten seconds fail; and no timeout, for
	// which there is http.Client.Timeout.
	Guards func(host string) Guards
	// Key returns what requests are told apart by, and Guards is called with. Nil means the
	// host and port of the URL.
	Key func(*http.Request) string
	// Hosts bounds the guards in memory: what was not used recently is forgotten, preferably
	// what is idle. Zero means 1024.
	Hosts int
	// Repeatable reports whether a request may be sent more than once. Nil means
	// [Idempotent].
	Repeatable func(*http.Request) bool
	// Classify judges a response's status, as [Classify] does, which nil means. An outcome
	// of fault.Success is an answer; anything else is seen by the guards as a *StatusError.
	Classify func(*http.Response) fault.Verdict
	// Drain bounds how much of a response that is not returned is read, so that its connection can
	// be used again, in bytes. Zero means 64 KiB; negative means nothing.
	Drain int64
	// Propagate adds the attempt's number and the criticality to requests, as headers which
	// [MiddlewareConfig].Propagated understands. Use it among services of one owner, so that a
	// retry is not retried again further down.
	Propagate bool
}

// Guards are the guards of one host.
type Guards struct {
	// Policy guards each request. Its Classify is asked about errors, a *StatusError
	// among them. Nil means none.
	Policy *resilience.Policy
	// Hedge starts a second request when the first is late, for GET, HEAD and OPTIONS
	// without a body. Its Discard must be nil. Nil means never.
	Hedge *resilience.Hedge
}

// Transport is an http.RoundTripper with guards for each host. It is safe for concurrent use.
type Transport struct {
	cfg   TransportConfig
	hosts *keyed.Map[string, Guards]
}

// NewTransport returns a Transport, or an error that names the wrong field.
func NewTransport(cfg TransportConfig) (*Transport, error) {
	if cfg.Hosts < 0 {
		return nil, fmt.Errorf("resiliencehttp: TransportConfig.Hosts is %d, want 0 or more", cfg.Hosts)
	}
	if cfg.Hosts == 0 {
		cfg.Hosts = 1024
	}
	if cfg.Base == nil {
		cfg.Base = http.DefaultTransport
	}
	if cfg.Guards == nil {
		cfg.Guards = defaultGuards
	}
	if cfg.Key == nil {
		cfg.Key = func(r *http.Request) string { return strings.ToLower(r.URL.Host) }
	}
	if cfg.Repeatable == nil {
		cfg.Repeatable = Idempotent
	}
	if cfg.Classify == nil {
		cfg.Classify = Classify
	}
	if cfg.Drain == 0 {
		cfg.Drain = 64 << 10
	}
	return &Transport{cfg, keyed.New(cfg.Hosts, cfg.Guards, Guards.idle)}, nil
}

func defaultGuards(host string) Guards {
	r, err := retry.New(retry.Config{Name: host})
	if err != nil {
		panic(err) // the configuration is constant
	}
	b, err := breaker.New(breaker.Config{Name: host, FailureRate: 0.5})
	if err != nil {
		panic(err)
	}
	return Guards{Policy: &resilience.Policy{Retry: r, Breaker: b}}
}

// idle reports whether forgetting g loses nothing that matters.
func (g Guards) idle() bool {
	p := g.Policy
	if p == nil {
		return true
	}
	if p.Breaker != nil {
		if s := p.Breaker.Stats(); s.State != breaker.Closed || s.Consecutive > 0 {
			return false
		}
	}
	if p.RateLimit != nil {
		if s := p.RateLimit.Stats(); s.Remaining < s.Limit.Burst {
			return false
		}
	}
	return (p.Bulkhead == nil || p.Bulkhead.Stats().InFlight == 0) && (p.Adaptive == nil || p.Adaptive.Stats().InFlight == 0)
}

// Hosts iterates over a snapshot of the guards by key, for their Stats.
func (t *Transport) Hosts() iter.Seq2[string, Guards] { return t.hosts.All() }

// CloseIdleConnections closes Base's idle connections.
func (t *Transport) CloseIdleConnections() {
	if c, ok := t.cfg.Base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// Idempotent reports whether r may be repeated by RFC 9110, section 9.2.2, or says so
// itself by an Idempotency-Key or X-Idempotency-Key header.
func Idempotent(r *http.Request) bool {
	switch r.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return r.Header.Get("Idempotency-Key") != "" || r.Header.Get("X-Idempotency-Key") != ""
}

// StatusError is what a response that is not an answer looks like to the guards and their
// hooks. RoundTrip does not return it.
type StatusError struct {
	// StatusCode is the response's.
	StatusCode int
}

// Error returns the status code and text.
func (e *StatusError) Error() string {
	return strings.TrimSpace(strconv.Itoa(e.StatusCode) + " " + http.StatusText(e.StatusCode))
}

// RoundTrip makes the request under the guards of its host. It returns the last response,
// whatever its status, or the last error: Base's, a *fault.Rejection or a *retry.Error.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	c := &roundTrip{t: t, req: req, guards: t.hosts.Get(t.cfg.Key(req))}
	if c.guards.Policy == nil {
		c.guards.Policy = &resilience.Policy{}
	}
	defer c.closeBody()
	p := c.guards.Policy
	ctx, cancel := resilience.WithTimeout(req.Context(), p.Total)
	x, err := c.attempts(ctx)
	if x == nil {
		cancel()
		return nil, err
	}
	return x.response(cancel), nil
}

// roundTrip is one call of RoundTrip.
type roundTrip struct {
	t      *Transport
	req    *http.Request
	guards Guards
	used   bool // req.Body was given to Base, which closes it
}

func (c *roundTrip) bodyless() bool { return c.req.Body == nil || c.req.Body == http.NoBody }

// closeBody closes the request's body if no attempt got as far, as RoundTripper demands.
func (c *roundTrip) closeBody() {
	if !c.used && c.req.Body != nil {
		c.req.Body.Close()
	}
}

// attempts returns the exchange whose response is to be returned, or an error.
func (c *roundTrip) attempts(ctx context.Context) (*exchange, error) {
	p := c.guards.Policy
	if p.Retry == nil || !c.t.cfg.Repeatable(c.req) || !c.bodyless() && c.req.GetBody == nil {
		x, _, err := c.attempt(ctx)
		return x, c.final(x, err)
	}
	if ctx.Err() != nil {
		return nil, fault.Ended(ctx)
	}
	call := p.Retry.Begin(ctx)
	for {
		x, verdict, err := c.attempt(call.Context())
		again, err := call.Decide(verdict, err)
		if !again {
			return x, c.final(x, err)
		}
		if x != nil {
			x.discard(c.t.cfg.Drain)
		}
		if again, err = call.Wait(); !again {
			return nil, err
		}
	}
}

// final drops a status's error: the caller gets the response instead.
func (c *roundTrip) final(x *exchange, err error) error {
	if x != nil {
		return nil
	}
	return err
}

// attempt makes one attempt: a request, or a race of requests. The error is a *StatusError where
// there is an exchange.
func (c *roundTrip) attempt(ctx context.Context) (x *exchange, verdict fault.Verdict, err error) {
	hedged := false
	switch c.req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions:
		hedged = c.guards.Hedge != nil && c.bodyless()
	}
	if !hedged {
		return c.once(ctx)
	}
	x, release, err := resilience.OpenHedged(ctx, c.guards.Hedge, func(ctx context.Context) (*exchange, error) {
		x, verdict, err := c.once(ctx)
		if x == nil {
			return nil, fault.Judged(err, verdict)
		}
		// A response is a result to the race even if its status is not an answer: the
		// first one that arrives says how the host is.
		x.verdict, x.err = verdict, err
		return x, nil
	})
	if err != nil {
		release()
		return nil, fault.Judge(ctx, err), err
	}
	x.onRelease(release)
	return x, x.verdict, x.err
}

var errPanicked = errors.New("resiliencehttp: Base panicked")

// once makes one request through the guards.
func (c *roundTrip) once(ctx context.Context) (x *exchange, verdict fault.Verdict, err error) {
	ticket, err := c.guards.Policy.Acquire(ctx)
	if err != nil {
		return nil, fault.Judge(ctx, err), err
	}
	ctx, cancel := context.WithCancel(ticket.Context())
	x = &exchange{release: sync.OnceFunc(func() { cancel(); ticket.Release() })}
	settled := false
	defer func() {
		if !settled {
			x.release()
			ticket.Settle(errPanicked)
		}
	}()
	req, err := c.request(ctx)
	if err != nil {
		settled = true
		x.release()
		err = fault.Permanent(fmt.Errorf("resiliencehttp: GetBody: %w", err))
		return nil, ticket.Settle(err), err
	}
	x.resp, err = c.t.cfg.Base.RoundTrip(req) //nolint:bodyclose // the exchange is discarded or returned
	settled = true
	if err != nil {
		x.release()
		return nil, ticket.Settle(err), err
	}
	if v := c.t.cfg.Classify(x.resp); v.Outcome != fault.Success {
		err = fault.Judged(&StatusError{x.resp.StatusCode}, v)
	}
	return x, ticket.Settle(err), err
}

// request returns the request of one attempt.
func (c *roundTrip) request(ctx context.Context) (*http.Request, error) {
	req := c.req.WithContext(ctx) // a copy
	if !c.bodyless() {
		if c.used {
			body, err := c.req.GetBody()
			if err != nil {
				return nil, err
			}
			req.Body = body
		}
		c.used = true
	}
	if c.t.cfg.Propagate {
		req.Header = req.Header.Clone()
		if req.Header == nil {
			req.Header = http.Header{}
		}
		propagate(ctx, req.Header)
	}
	return req, nil
}

// exchange is a response and what it holds on to.
type exchange struct {
	resp    *http.Response
	release func()        // may be called again
	verdict fault.Verdict // of a race
	err     error
}

func (x *exchange) onRelease(f func()) {
	before := x.release
	x.release = func() { before(); f() }
}

// Close discards the loser of a race. Its context has ended, so there is nothing to read.
func (x *exchange) Close() error {
	defer x.release()
	return x.resp.Body.Close()
}

// drainTime bounds how long a response that is not returned may take to end.
const drainTime = 500 * time.Millisecond

// discard reads the rest of the response if it is short, so that the connection can be used
// again, and closes it.
func (x *exchange) discard(most int64) {
	defer x.release()
	if x.resp.ContentLength <= most {
		timer := time.AfterFunc(drainTime, x.release)
		defer timer.Stop()
		io.CopyN(io.Discard, x.resp.Body, most+1) //nolint:errcheck // what cannot be read is closed
	}
	x.resp.Body.Close()
}

// response returns the response, with what it holds on to freed at the end of its body.
func (x *exchange) response(cancel func()) *http.Response {
	x.onRelease(cancel)
	if x.resp.Body == nil || x.resp.Body == http.NoBody {
		x.release()
		return x.resp
	}
	b := &body{ReadCloser: x.resp.Body, release: x.release}
	x.resp.Body = b
	if w, ok := b.ReadCloser.(io.Writer); ok { // 101 Switching Protocols
		x.resp.Body = &duplex{b, w}
	}
	return x.resp
}
