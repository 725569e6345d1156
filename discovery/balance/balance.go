// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/fault"
)

var (
	// ErrNoInstances says that the service is known to have no instances.
	ErrNoInstances = errors.New("no instances")
	// ErrNotReady says that the resolver has not yet told any instances.
	ErrNotReady = errors.New("instances not known yet")
)

// Config configures a [Balancer]. The zero Config is a sound default.
type Config struct {
	// Picker chooses among the instances. Nil means RoundRobin.
	Picker Picker
	// Wait is how long a pick waits for the first word of the resolver. Zero means
	// 5 seconds.
	Wait time.Duration
}

// Picker is a way to choose.
type Picker interface {
	build(n int) func() int
}

// RoundRobin takes one instance after the other.
type RoundRobin struct{}

func (RoundRobin) build(n int) func() int {
	var next atomic.Uint64
	next.Store(rand.Uint64N(1 << 32))
	return func() int { return int(next.Add(1) % uint64(n)) }
}

// Balancer spreads the calls to one service over its instances.
type Balancer struct {
	resolver discovery.Resolver
	service  string
	cfg      Config
	snap     atomic.Pointer[snapshot]
	err      atomic.Pointer[error]
	first    chan struct{} // closed at the resolver's first word
	once     sync.Once
}

type snapshot struct {
	set    discovery.Set
	choose func() int
}

// New returns a balancer for the service. It knows nothing until Run runs.
func New(resolver discovery.Resolver, service string, cfg Config) (*Balancer, error) {
	if resolver == nil {
		return nil, errors.New("balance: resolver is nil, want one")
	}
	if service == "" {
		return nil, errors.New("balance: service is empty, want a name")
	}
	if cfg.Wait < 0 {
		return nil, fmt.Errorf("balance: Config.Wait is %v, want 0 or more", cfg.Wait)
	}
	if cfg.Wait == 0 {
		cfg.Wait = 5 * time.Second
	}
	if cfg.Picker == nil {
		cfg.Picker = RoundRobin{}
	}
	return &Balancer{resolver: resolver, service: service, cfg: cfg, first: make(chan struct{})}, nil
}

// Run follows the resolver until ctx is done, then returns nil.
func (b *Balancer) Run(ctx context.Context) error {
	for set, err := range b.resolver.Watch(ctx, b.service) {
		if err != nil {
			b.err.Store(&err)
		}
		if set.Service != "" {
			s := &snapshot{set: set}
			if n := len(set.Instances); n > 0 {
				s.choose = b.cfg.Picker.build(n)
			}
			b.snap.Store(s)
		}
		b.once.Do(func() { close(b.first) })
	}
	return nil
}

// Lease is one call that is in flight to an instance.
type Lease struct{ in *discovery.Instance }

// Instance returns the instance that takes the call.
func (l *Lease) Instance() discovery.Instance { return *l.in }

// Addr returns the address of the instance that takes the call.
func (l *Lease) Addr() string { return l.in.Addr }

// Done ends the call and tells how it went.
func (l *Lease) Done(fault.Outcome) {}

// Pick chooses the instance for the next call.
func (b *Balancer) Pick(ctx context.Context) (Lease, error) {
	s := b.snap.Load()
	if s == nil {
		timer := time.NewTimer(b.cfg.Wait)
		defer timer.Stop()
		select {
		case <-b.first:
		case <-timer.C:
		case <-ctx.Done():
			return Lease{}, fmt.Errorf("balance: waiting for instances of %s: %w", b.service, context.Cause(ctx))
		}
		if s = b.snap.Load(); s == nil {
			err := ErrNotReady
			if cause := b.err.Load(); cause != nil {
				err = fmt.Errorf("%w: %w", ErrNotReady, *cause)
			}
			return Lease{}, &fault.Rejection{By: "balance", Name: b.service, Err: err}
		}
	}
	if s.choose == nil {
		return Lease{}, &fault.Rejection{By: "balance", Name: b.service, Err: ErrNoInstances}
	}
	return Lease{in: &s.set.Instances[s.choose()]}, nil
}
