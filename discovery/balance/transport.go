// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/fault"
)

// TransportConfig configures a [Transport]. The zero TransportConfig is a sound default.
type TransportConfig struct {
	// Base makes the calls. Nil means a clone of http.DefaultTransport that uses no proxy and
	// keeps up to 128 idle connections per instance, instead of 2.
	Base http.RoundTripper
	// Balancer configures the balancer of every service.
	Balancer Config
	// Services configures the balancers of single services otherwise, by name.
	Services map[string]Config
	// Key gives the key for [ConsistentHash]; see [ClientIP]. Nil means the key that
	// [WithKey] put into the request's context.
	Key func(*http.Request) string
	// InstanceHost sends the instance's address in the Host header. By default it is the
	// request's, or the service's name.
	InstanceHost bool
	// NoRetry switches the second try on another instance off.
	NoRetry bool
	// RetryShare bounds second tries to that share of the calls, with a reserve of 10 for
	// bad moments, so that a service that is down does not get double the load. Zero means
	// 0.2.
	RetryShare float64
	// Classify judges an answer, or the error of a call. Nil means [Classify].
	Classify func(*http.Request, *http.Response, error) fault.Outcome
	// SlowAfter is the time from which a call that its deadline cuts off without an answer
	// is a failure of the instance; a shorter one was perhaps given too little time. Zero means 1
	// second, negative never.
	SlowAfter time.Duration
	// OnRetry is told of every second try. It may be nil.
	OnRetry func(Retry)
}

// Retry tells that a call goes to another instance after an error.
type Retry struct {
	Request *http.Request
	// From is the instance that failed, with Err.
	From discovery.Instance
	Err  error
}

// Transport is an http.RoundTripper that sends http://order/path to an instance of
// the service "order".
type Transport struct {
	resolver discovery.Resolver
	cfg      TransportConfig

	mu       sync.Mutex
	services map[string]*balanced
	start    func(*balanced) // nil unless Run runs
	state    int32           // idle, running, ended
}

// balanced is a service that has been asked for.
type balanced struct {
	*Balancer
	tokens atomic.Int64 // thousandths of second tries that may still be made
}

var _ http.RoundTripper = (*Transport)(nil)

// NewTransport returns a transport that finds instances with the resolver. It works
// while Run runs.
func NewTransport(resolver discovery.Resolver, cfg TransportConfig) (*Transport, error) {
	if _, err := New(resolver, "any", cfg.Balancer); err != nil {
		return nil, err
	}
	for service, c := range cfg.Services {
		if _, err := New(resolver, service, c); err != nil {
			return nil, fmt.Errorf("balance: TransportConfig.Services[%q]: %w", service, err)
		}
	}
	if !(cfg.RetryShare >= 0 && cfg.RetryShare <= 1) {
		return nil, fmt.Errorf("balance: TransportConfig.RetryShare is %v, want 0 to 1", cfg.RetryShare)
	}
	cfg.RetryShare = cmp.Or(cfg.RetryShare, 0.2)
	cfg.SlowAfter = cmp.Or(cfg.SlowAfter, time.Second)
	if cfg.Classify == nil {
		cfg.Classify = Classify
	}
	if cfg.Base == nil {
		base := &http.Transport{}
		if d, ok := http.DefaultTransport.(*http.Transport); ok {
			base = d.Clone()
		}
		base.Proxy = nil
		base.MaxIdleConns = 0
		base.MaxIdleConnsPerHost = 128
		cfg.Base = base
	}
	return &Transport{resolver: resolver, cfg: cfg, services: map[string]*balanced{}}, nil
}

// Run watches every service from its first call on, until ctx is done; then it returns nil.
// Calls go on after that with the instances known last. It may run once.
func (t *Transport) Run(ctx context.Context) error {
	var balancers sync.WaitGroup
	start := func(b *balanced) { balancers.Go(func() { _ = b.Run(ctx) }) }
	t.mu.Lock()
	if t.state != idle {
		t.mu.Unlock()
		return errors.New("balance: Transport.Run may run once only")
	}
	t.start, t.state = start, running
	for _, b := range t.services {
		start(b)
	}
	t.mu.Unlock()
	<-ctx.Done()
	t.mu.Lock()
	t.start, t.state = nil, ended
	t.mu.Unlock()
	balancers.Wait()
	return nil
}

// View returns the state of every service that has been asked for, sorted by name.
func (t *Transport) View() []View {
	t.mu.Lock()
	all := make([]*balanced, 0, len(t.services))
	for _, b := range t.services {
		all = append(all, b)
	}
	t.mu.Unlock()
	views := make([]View, len(all))
	for i, b := range all {
		views[i] = b.View()
	}
	slices.SortFunc(views, func(x, y View) int { return cmp.Compare(x.Service, y.Service) })
	return views
}

// CloseIdleConnections closes those of Base; http.Client.CloseIdleConnections calls it.
func (t *Transport) CloseIdleConnections() {
	if c, ok := t.cfg.Base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

func (t *Transport) balancer(service string) (*balanced, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b := t.services[service]; b != nil {
		return b, nil
	}
	if service == "" || strings.Contains(service, ":") {
		return nil, fmt.Errorf("balance: the URL's host is %q, want the name of a service, without a port", service)
	}
	if t.state == ended {
		return nil, &fault.Rejection{By: "balance", Name: service, Err: fmt.Errorf("%w: Transport.Run has ended", ErrNotReady)}
	}
	cfg, ok := t.cfg.Services[service]
	if !ok {
		cfg = t.cfg.Balancer
	}
	inner, err := New(t.resolver, service, cfg)
	if err != nil {
		return nil, err
	}
	b := &balanced{Balancer: inner}
	b.tokens.Store(retryReserve)
	t.services[service] = b
	if t.start != nil {
		t.start(b)
	}
	return b, nil
}

// RoundTrip implements http.RoundTripper. The first call to a service starts its watch
// and waits for the first word of the resolver, as [Balancer.Pick] does.
//
// An error of a call that may have reached the instance is unknown in the sense of
// [fault.IsUnknown].
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	b, err := t.balancer(req.URL.Host)
	if err != nil {
		closeBody(req)
		return nil, err
	}
	hint := Hint{Key: keyOf(req.Context())}
	if t.cfg.Key != nil {
		hint.Key = t.cfg.Key(req)
	}
	lease, err := b.PickFor(req.Context(), hint)
	if err != nil {
		closeBody(req)
		return nil, err
	}
	b.earn(t.cfg.RetryShare)

	upload := newUpload(req)
	defer upload.release()
	tried := lease
	resp, err := t.try(req, upload.first(), &lease, upload)
	if err == nil || t.cfg.NoRetry || !mayRepeat(req, err) {
		return resp, err
	}
	again, ok := upload.again()
	if !ok || !b.spend() {
		return nil, err
	}
	hint.avoid = tried.n
	if lease, pickErr := b.PickFor(req.Context(), hint); pickErr == nil {
		if lease.n == tried.n { // there is no other
			lease.Done(fault.Neutral)
			closeReader(again)
			return nil, err
		}
		if t.cfg.OnRetry != nil {
			t.cfg.OnRetry(Retry{Request: req, From: tried.Instance(), Err: err})
		}
		return t.try(req, again, &lease, upload)
	}
	closeReader(again)
	return nil, err
}

// try makes one call. The lease is done when it fails, or when its answer has been read.
func (t *Transport) try(req *http.Request, body io.ReadCloser, lease *Lease, upload *upload) (*http.Response, error) {
	outcome := fault.Neutral               // of a panic: it is ours, not the instance's
	defer func() { lease.Done(outcome) }() // nothing, once the answer's body owns the lease

	out := req.WithContext(req.Context()) // a copy: the caller's request must not change
	u := *req.URL
	u.Host = lease.Addr()
	out.URL = &u
	out.Body = body
	if t.cfg.InstanceHost {
		out.Host = u.Host
	} else if out.Host == "" {
		out.Host = req.URL.Host
	}
	start := time.Now()
	resp, err := t.cfg.Base.RoundTrip(out)
	if err != nil {
		outcome = t.judge(req, err, start, upload)
		if req.Context().Err() != nil {
			return nil, err
		}
		return nil, &callError{err, lease.b.service, u.Host}
	}
	resp.Request = req // or a relative Location would lead to the instance
	verdict := t.cfg.Classify(req, resp, nil)
	if resp.Body == nil || resp.Body == http.NoBody {
		outcome = verdict
		return resp, nil
	}
	lease.Answered(verdict)
	resp.Body = newDownload(resp.Body, lease, verdict, req)
	return resp, nil
}

// judge returns the outcome of a call that ended with an error.
func (t *Transport) judge(req *http.Request, err error, start time.Time, upload *upload) fault.Outcome {
	if upload.broken() {
		return fault.Neutral // the caller's own body could not be read
	}
	if req.Context().Err() == nil {
		return t.cfg.Classify(req, nil, err)
	}
	slow := t.cfg.SlowAfter > 0 && time.Since(start) >= t.cfg.SlowAfter
	if slow && errors.Is(req.Context().Err(), context.DeadlineExceeded) {
		return fault.Failure
	}
	return fault.Neutral
}

// Classify is the default of TransportConfig.Classify: errors and 5xx are failures, except 501
// and 505, which are about the request; 429 is neutral.
func Classify(_ *http.Request, resp *http.Response, err error) fault.Outcome {
	switch {
	case err != nil:
		return fault.Failure
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusNotImplemented, resp.StatusCode == http.StatusHTTPVersionNotSupported:
		return fault.Neutral
	case resp.StatusCode >= 500:
		return fault.Failure
	}
	return fault.Success
}

// mayRepeat reports whether the request that ended with err can be sent once more and still have
// its effect only once: nothing was sent, or repeating it is harmless.
func mayRepeat(req *http.Request, err error) bool {
	if req.Context().Err() != nil {
		return false
	}
	if neverSent(err) {
		return true
	}
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return req.Header.Get("Idempotency-Key") != ""
}

// neverSent reports whether err tells that no connection was made.
func neverSent(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// callError tells which instance a call failed at.
type callError struct {
	err           error
	service, addr string
}

func (e *callError) Error() string {
	return fmt.Sprintf("balance: %s at %s: %v", e.service, e.addr, e.err)
}

// Unwrap says that the outcome is unknown, unless nothing was sent.
func (e *callError) Unwrap() error {
	if neverSent(e.err) {
		return e.err
	}
	return fault.Unknown(e.err)
}

// Timeout is there for url.Error, which asks the outermost error only.
func (e *callError) Timeout() bool {
	t, ok := errors.AsType[net.Error](e.err)
	return ok && t.Timeout()
}

// Second tries are paid for by calls. A token is a thousandth of one.
const retryReserve = 10_000

func (b *balanced) earn(share float64) {
	if b.tokens.Load() < retryReserve {
		b.tokens.Add(int64(share * 1000))
	}
}

func (b *balanced) spend() bool {
	if b.tokens.Add(-1000) >= 0 {
		return true
	}
	b.tokens.Add(1000)
	return false
}

type keyInContext struct{}

// WithKey returns a context whose requests have that key for [ConsistentHash].
func WithKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, keyInContext{}, key)
}

func keyOf(ctx context.Context) string {
	key, _ := ctx.Value(keyInContext{}).(string)
	return key
}

// ClientIP is a key for [ConsistentHash]: the address of the client, from the request's RemoteAddr.
// It fits requests that are forwarded, which have one. Of an IPv6 address it is the
// network of 64 bits, since clients change the rest at will.
func ClientIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return ""
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		return netip.PrefixFrom(addr, 64).Masked().Addr().String()
	}
	return addr.String()
}
