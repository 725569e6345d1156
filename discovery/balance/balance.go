// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/fault"
)

// Both come inside a [*fault.Rejection]: no call was made.
var (
	// ErrNoInstances says that the service is known to have no instances.
	ErrNoInstances = errors.New("no instances")
	// ErrNotReady says that the instances are not known: the resolver has not answered yet
	// or cannot, or nobody runs the balancer.
	ErrNotReady = errors.New("instances not known")
)

// Config configures a [Balancer]. The zero Config is a sound default.
type Config struct {
	// Picker chooses among the instances. Nil means PeakEWMA{}.
	Picker Picker
	// Outlier says when an instance that fails is left out.
	Outlier Outlier
	// Probe checks the instances from here. The zero Probe does not.
	Probe Probe
	// SlowStart is the time in which an instance that is new, or back from ejection,
	// grows from a tenth of its share to the whole. Zero means no slow start.
	SlowStart time.Duration
	// Zone is where this process runs. Instances of the same zone are preferred; as they
	// fall ill, calls spill over to the others. Empty means that zones do not matter.
	Zone string
	// Subset is how many instances this process uses at most, per zone preference and
	// priority. It bounds connections where both sides are many. Zero means all.
	Subset int
	// Client names this process for Subset, and must differ between processes. The
	// choice follows from it and the instances' IDs alone: a change of one instance
	// changes one of the subset at most.
	Client string
	// Wait bounds how long a pick waits for the resolver's first word, where its context
	// does not end earlier. Zero means 5 seconds.
	Wait time.Duration
	// KeepOnEmpty is how long the last instances are used on after the resolver said that
	// there are none. Zero means not at all.
	KeepOnEmpty time.Duration
	// Hooks are told what happens.
	Hooks Hooks
}

// Hooks are called from Run, one at a time, and outside locks, so they may call back. Each
// may be nil.
type Hooks struct {
	// Change is called for every word of the resolver.
	Change func(Change)
	// Eject is called when an instance is left out.
	Eject func(Ejection)
	// Return is called when an instance that was left out is back.
	Return func(Return)
	// Panic is called when so many fail that nobody is left out any more, and when
	// that is over.
	Panic func(Panic)
}

// Change tells what the resolver has said.
type Change struct {
	// Set is the set in use from now on: the new one, or the old one after an error, or the zero
	// Set while nothing is known.
	Set discovery.Set
	// Err tells that the source cannot be asked at present.
	Err error
}

// Ejection tells that an instance is left out.
type Ejection struct {
	// Instance is left out.
	Instance discovery.Instance
	// Reason is "consecutive failures", "success rate" or "probe".
	Reason string
	// For is how long. Zero is until a probe succeeds.
	For time.Duration
}

// Return tells that an instance is back.
type Return struct {
	// Instance takes calls again.
	Instance discovery.Instance
}

// Panic tells that panic began (On) or ended for a service.
type Panic struct {
	// Service is the one concerned, and On is true when panic begins.
	Service string
	On      bool
	// Suspects of Instances fail.
	Suspects, Instances int
}

func (cfg Config) withDefaults() (Config, error) {
	for _, f := range []struct {
		name string
		got  time.Duration
	}{
		{"SlowStart", cfg.SlowStart}, {"Wait", cfg.Wait}, {"KeepOnEmpty", cfg.KeepOnEmpty},
		{"Probe.Every", cfg.Probe.Every}, {"Probe.Timeout", cfg.Probe.Timeout},
	} {
		if f.got < 0 {
			return cfg, fmt.Errorf("balance: Config.%s is %v, want 0 or more", f.name, f.got)
		}
	}
	if cfg.Subset < 0 {
		return cfg, fmt.Errorf("balance: Config.Subset is %d, want 0 or more", cfg.Subset)
	}
	if cfg.Subset > 0 && cfg.Client == "" {
		return cfg, errors.New("balance: Config.Client is empty, want a name of this process for Config.Subset")
	}
	if cfg.Picker == nil {
		cfg.Picker = PeakEWMA{}
	}
	if v, ok := cfg.Picker.(interface{ validate() error }); ok {
		if err := v.validate(); err != nil {
			return cfg, err
		}
	}
	if cfg.Wait == 0 {
		cfg.Wait = 5 * time.Second
	}
	cfg.Probe = cfg.Probe.withDefaults()
	var err error
	cfg.Outlier, err = cfg.Outlier.withDefaults()
	return cfg, err
}

// Balancer spreads the calls to one service over its instances.
type Balancer struct {
	resolver discovery.Resolver
	service  string
	cfg      Config
	decay    float64   // of latencies and failures, in nanoseconds
	epoch    time.Time // zero of now

	snap     atomic.Pointer[snapshot] // nil until the instances are known
	inflight *atomic.Int64            // nil unless the picker needs it
	changed  chan struct{}            // tells Run that an instance has come under suspicion or out of it

	state     atomic.Int32  // idle, running, ended
	firstWord chan struct{} // closed at the resolver's first word, or at the end of Run

	mu       sync.Mutex // guards what follows, and part of each node
	set      discovery.Set
	err      error         // the resolver's, nil while it answers
	empty    discovery.Set // the empty set that is not yet believed
	emptyAt  int64         // when it will be; 0 if there is none
	nodes    map[string]*node
	panicked bool
}

const (
	idle int32 = iota
	running
	ended
)

// New returns a balancer for the service. It knows no instances until Run runs.
func New(resolver discovery.Resolver, service string, cfg Config) (*Balancer, error) {
	if resolver == nil {
		return nil, errors.New("balance: resolver is nil, want one")
	}
	if service == "" {
		return nil, errors.New("balance: service is empty, want a name")
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	b := &Balancer{
		resolver: resolver, service: service, cfg: cfg, decay: float64(10 * time.Second), epoch: time.Now(),
		changed: make(chan struct{}, 1), firstWord: make(chan struct{}), nodes: map[string]*node{},
	}
	if p, ok := cfg.Picker.(PeakEWMA); ok && p.Decay > 0 {
		b.decay = float64(p.Decay)
	}
	if _, ok := cfg.Picker.(ConsistentHash); ok {
		b.inflight = new(atomic.Int64)
	}
	return b, nil
}

// now is the balancer's clock: nanoseconds since New. It reads the monotonic clock only.
func (b *Balancer) now() int64 { return int64(time.Since(b.epoch)) }

// Hint is what a single pick may depend on.
type Hint struct {
	// Key is what [ConsistentHash] hashes. Empty means any instance.
	Key string
	// Skip reports the addresses of instances that cannot take this call, for example because
	// there is no connection to them yet. Such an instance is picked only if none of those
	// that take part at present is another. Nil means none.
	Skip func(addr string) bool

	now   int64
	avoid *node // chosen only if there is no other
}

// unwanted reports whether n is chosen only if there is no other.
func (h *Hint) unwanted(n *node) bool {
	return n == h.avoid || h.Skip != nil && h.Skip(n.info.Load().Addr)
}

// Pick chooses the instance for the next call. Lease.Done must follow.
//
// Until the resolver's first word it waits, for ctx and for Config.Wait at most. The error is a
// [*fault.Rejection] with [ErrNoInstances] or [ErrNotReady], or wraps the cause of
// the end of ctx.
func (b *Balancer) Pick(ctx context.Context) (Lease, error) { return b.PickFor(ctx, Hint{}) }

// PickFor is [Balancer.Pick] with a hint.
func (b *Balancer) PickFor(ctx context.Context, h Hint) (Lease, error) {
	s := b.snap.Load()
	if s == nil {
		var err error
		if s, err = b.await(ctx); err != nil {
			return Lease{}, err
		}
	}
	if len(s.tiers) == 0 {
		return Lease{}, b.reject(ErrNoInstances)
	}
	h.now = b.now()
	n := s.pick(h)
	n.begin(h.now)
	if b.inflight != nil {
		b.inflight.Add(1)
	}
	return Lease{b: b, n: n, start: h.now}, nil
}

// await waits for the first snapshot.
func (b *Balancer) await(ctx context.Context) (*snapshot, error) {
	timer := time.NewTimer(b.cfg.Wait)
	defer timer.Stop()
	select {
	case <-b.firstWord:
	case <-timer.C:
	case <-ctx.Done():
		return nil, fmt.Errorf("balance: instances of %s not known, %w: %w", b.service, b.whyUnknown(), context.Cause(ctx))
	}
	if s := b.snap.Load(); s != nil {
		return s, nil
	}
	return nil, b.reject(fmt.Errorf("%w: %w", ErrNotReady, b.whyUnknown()))
}

// whyUnknown says why there is no snapshot.
func (b *Balancer) whyUnknown() error {
	b.mu.Lock()
	cause := b.err
	b.mu.Unlock()
	switch state := b.state.Load(); {
	case state == idle:
		return errors.New("Run is not running")
	case state == ended:
		return errors.New("Run has ended")
	case cause == nil:
		return errors.New("the resolver has not answered")
	}
	return cause
}

func (b *Balancer) reject(err error) error {
	return &fault.Rejection{By: "balance", Name: b.service, Err: err}
}

// Lease is one call in flight to an instance. Its methods are for one goroutine.
type Lease struct {
	b        *Balancer
	n        *node
	start    int64
	answered bool
}

// Instance returns the instance that takes the call. It is for the time before Done.
func (l *Lease) Instance() discovery.Instance { return *l.n.info.Load() }

// Addr returns the address of the instance that takes the call. It is for the time before Done.
func (l *Lease) Addr() string { return l.n.info.Load().Addr }

// Answered tells that the answer has begun, and how it looks: this is the call's
// latency. It is for answers that go on, such as streams, and may be left out: Done
// includes it.
func (l *Lease) Answered(o fault.Outcome) {
	if l.n == nil || l.answered {
		return
	}
	l.answered = true
	l.n.answered(l.start, l.b.now(), o)
}

// Done ends the call and tells how it went: Neutral where that says nothing about the
// instance, as after the caller's own cancellation. Again it does nothing.
func (l *Lease) Done(o fault.Outcome) {
	if l.n == nil {
		return
	}
	n, b := l.n, l.b
	l.n = nil
	if b.inflight != nil {
		b.inflight.Add(-1)
	}
	if n.done(l.start, b.now(), o, l.answered, &b.cfg.Outlier) {
		select {
		case b.changed <- struct{}{}:
		default: // Run has been told already
		}
	}
}
