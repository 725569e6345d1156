// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package discoverymem is a registry in memory: for tests, and for programs whose services
// live in one process. It behaves as a registry over the network does, outages included.
//
//	registry, err := discoverymem.New(discoverymem.Config{})
//	lease, err := registry.Register(ctx, discovery.Instance{Service: "order", Addr: "127.0.0.1:8081"})
//	for set, err := range registry.Watch(ctx, "order") { … }
//
// # Guarantees
//
// A lease that is not renewed in time is gone from every watch when its time is over, without
// a goroutine: watches wait for that moment. A change reaches every watch at once.
//
// # Caveats
//
// Nothing is shared between processes and nothing survives the process.
package discoverymem

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
)

// Config configures a [Registry]. The zero Config is a sound default.
type Config struct {
	// TTL is how long a registration lives without being renewed. Zero means 15 seconds,
	// negative for ever.
	TTL time.Duration
}

// Registry is a discovery.Registry and a discovery.Resolver in memory.
type Registry struct {
	ttl time.Duration

	mu      sync.Mutex
	entries map[key]*entry
	changed chan struct{} // closed and replaced at each change
	outage  error
}

var (
	_ discovery.Registry = (*Registry)(nil)
	_ discovery.Resolver = (*Registry)(nil)
)

type key struct{ service, id string }

type entry struct {
	instance    discovery.Instance
	expires     time.Time // zero for never
	failing     bool
	maintenance bool
}

// New returns an empty registry.
func New(cfg Config) (*Registry, error) {
	if cfg.TTL == 0 {
		cfg.TTL = 15 * time.Second
	}
	return &Registry{ttl: cfg.TTL, entries: map[key]*entry{}, changed: make(chan struct{})}, nil
}

// Register implements discovery.Registry.
func (r *Registry) Register(ctx context.Context, in discovery.Instance) (discovery.Lease, error) {
	if err := in.Validate(); err != nil {
		return nil, err
	}
	set, err := discovery.NewSet(in.Service, []discovery.Instance{in})
	if err != nil {
		return nil, err
	}
	l := &lease{registry: r, entry: &entry{instance: set.Instances[0]}}
	err = r.request(ctx, func() (bool, error) {
		r.extend(l.entry)
		r.entries[l.key()] = l.entry
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Watch implements discovery.Resolver.
func (r *Registry) Watch(ctx context.Context, service string) iter.Seq2[discovery.Set, error] {
	return func(yield func(discovery.Set, error) bool) {
		feed := discovery.NewFeed(yield)
		for ctx.Err() == nil {
			r.mu.Lock()
			set, next, err := r.look(service)
			changed := r.changed
			r.mu.Unlock()
			goOn := false
			if err != nil {
				goOn = feed.Fail(err)
			} else {
				goOn = feed.Set(set)
			}
			if !goOn {
				return
			}
			r.wait(ctx, changed, next)
		}
	}
}

// wait waits for a change, or for the time when the next lease runs out.
func (r *Registry) wait(ctx context.Context, changed <-chan struct{}, next time.Time) {
	var expiry <-chan time.Time
	if !next.IsZero() {
		timer := time.NewTimer(time.Until(next))
		defer timer.Stop()
		expiry = timer.C
	}
	select {
	case <-ctx.Done():
	case <-changed:
	case <-expiry:
	}
}

// SetOutage makes the registry unreachable with the given error, or with nil reachable again.
// Leases run on meanwhile, as they do in a registry that is cut off.
func (r *Registry) SetOutage(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outage = err
	r.announce()
}

// Forget makes the registry lose all registrations, as one that restarts without its state.
func (r *Registry) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.entries)
	r.announce()
}

// request runs change as one request to the registry; change reports whether watches
// may see it.
func (r *Registry) request(ctx context.Context, change func() (visible bool, err error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.outage != nil {
		return r.outage
	}
	visible, err := change()
	if visible {
		r.announce()
	}
	return err
}

func (r *Registry) announce() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *Registry) extend(e *entry) {
	if r.ttl > 0 {
		e.expires = time.Now().Add(r.ttl)
	}
}

// look returns the visible instances of the service, and when the next lease runs out.
func (r *Registry) look(service string) (set discovery.Set, next time.Time, err error) {
	now := time.Now()
	var instances []discovery.Instance
	for k, e := range r.entries {
		if k.service != service {
			continue
		}
		if !e.expires.IsZero() {
			if !now.Before(e.expires) {
				delete(r.entries, k)
				continue
			}
			if next.IsZero() || e.expires.Before(next) {
				next = e.expires
			}
		}
		if !e.failing && !e.maintenance {
			instances = append(instances, e.instance)
		}
	}
	if r.outage != nil {
		return discovery.Set{}, next, r.outage
	}
	set, err = discovery.NewSet(service, instances)
	return set, next, err
}

// lease is one registration.
type lease struct {
	registry *Registry
	entry    *entry
}

func (l *lease) key() key { return key{l.entry.instance.Service, l.entry.instance.ID} }

// live runs change if the registry still knows this registration.
func (l *lease) live(ctx context.Context, change func() (visible bool)) error {
	return l.registry.request(ctx, func() (bool, error) {
		e := l.entry
		expired := !e.expires.IsZero() && !time.Now().Before(e.expires)
		if expired || l.registry.entries[l.key()] != e {
			return false, fmt.Errorf("discoverymem: %s of %s: %w", e.instance.ID, e.instance.Service, discovery.ErrLeaseLost)
		}
		return change(), nil
	})
}

// Renew implements discovery.Lease.
func (l *lease) Renew(ctx context.Context, h discovery.Health) error {
	return l.live(ctx, func() bool {
		visible := l.entry.failing != h.Failing
		l.entry.failing = h.Failing
		l.registry.extend(l.entry)
		return visible
	})
}

// Maintenance implements discovery.Lease.
func (l *lease) Maintenance(ctx context.Context, on bool, _ string) error {
	return l.live(ctx, func() bool {
		visible := l.entry.maintenance != on
		l.entry.maintenance = on
		return visible
	})
}

// Deregister implements discovery.Lease.
func (l *lease) Deregister(ctx context.Context) error {
	return l.registry.request(ctx, func() (bool, error) {
		known := l.registry.entries[l.key()] == l.entry
		if known {
			delete(l.registry.entries, l.key())
		}
		return known, nil
	})
}
