// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/fault"
)

// TransportConfig configures a [Transport]. The zero TransportConfig is a sound default.
type TransportConfig struct {
	// Base makes the calls. Nil means a clone of http.DefaultTransport that keeps more
	// idle connections per host.
	Base http.RoundTripper
	// Balancer configures the balancer of every service.
	Balancer Config
}

// Transport is an http.RoundTripper that sends http://order/path to an instance of
// the service "order".
type Transport struct {
	resolver discovery.Resolver
	cfg      TransportConfig
	mu       sync.Mutex
	services map[string]*Balancer
	start    func(*Balancer) // nil unless Run runs
	ended    bool
	running  chan struct{} // closed when Run starts
}

var _ http.RoundTripper = (*Transport)(nil)

// NewTransport returns a transport that finds instances with the resolver. It works
// while Run runs.
func NewTransport(resolver discovery.Resolver, cfg TransportConfig) (*Transport, error) {
	if _, err := New(resolver, "any", cfg.Balancer); err != nil {
		return nil, err
	}
	if cfg.Base == nil {
		base := http.DefaultTransport.(*http.Transport).Clone()
		base.MaxIdleConnsPerHost = 128
		base.MaxIdleConns = 0
		cfg.Base = base
	}
	return &Transport{resolver: resolver, cfg: cfg, services: map[string]*Balancer{}, running: make(chan struct{})}, nil
}

// Run watches every service that is called, until ctx is done, then returns nil.
func (t *Transport) Run(ctx context.Context) error {
	var watches sync.WaitGroup
	start := func(b *Balancer) { watches.Go(func() { _ = b.Run(ctx) }) }
	t.mu.Lock()
	if t.start != nil || t.ended {
		t.mu.Unlock()
		return errors.New("balance: Transport.Run may run once only")
	}
	t.start = start
	close(t.running)
	for _, b := range t.services {
		start(b)
	}
	t.mu.Unlock()
	<-ctx.Done()
	t.mu.Lock()
	t.start, t.ended = nil, true
	t.mu.Unlock()
	watches.Wait()
	return nil
}

func (t *Transport) balancer(service string) (*Balancer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b := t.services[service]; b != nil {
		return b, nil
	}
	if t.ended {
		return nil, &fault.Rejection{By: "balance", Name: service, Err: fmt.Errorf("%w: Transport.Run has ended", ErrNotReady)}
	}
	b, err := New(t.resolver, service, t.cfg.Balancer)
	if err != nil {
		return nil, err
	}
	t.services[service] = b
	if t.start != nil {
		t.start(b)
	}
	return b, nil
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	b, err := t.balancer(req.URL.Host)
	var lease Lease
	if err == nil {
		lease, err = b.Pick(req.Context())
	}
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		select {
		case <-t.running:
		default:
			err = fmt.Errorf("%w (Transport.Run is not running)", err)
		}
		return nil, err
	}
	out := req.WithContext(req.Context())
	u := *req.URL
	u.Host = lease.Addr()
	out.URL = &u
	if out.Host == "" {
		out.Host = req.URL.Host
	}
	resp, err := t.cfg.Base.RoundTrip(out)
	if resp != nil {
		resp.Request = req
	}
	return resp, err
}
