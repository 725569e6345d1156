// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package breaker

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

// State is what a [Breaker] does with a call.
type State uint8

const (
	// Closed admits every call.
	Closed State = iota
	// Open refuses every call.
	Open
	// HalfOpen admits a few calls as probes.
	HalfOpen
)

// String returns "closed", "open" or "half-open".
func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case Open:
		return "open"
	case HalfOpen:
		return "half-open"
	}
	return fmt.Sprintf("breaker.State(%d)", uint8(s))
}

// Mode is what an operator has ordered.
type Mode uint8

const (
	// Auto lets the calls' results decide.
	Auto Mode = iota
	// ForcedOpen refuses every call.
	ForcedOpen
	// Disabled admits every call and records nothing.
	Disabled
	// Shadow decides and reports as Auto does, but lets every call through. Use it to try
	// a configuration on real traffic.
	Shadow
)

// String returns "auto", "forced-open", "disabled" or "shadow".
func (m Mode) String() string {
	switch m {
	case Auto:
		return "auto"
	case ForcedOpen:
		return "forced-open"
	case Disabled:
		return "disabled"
	case Shadow:
		return "shadow"
	}
	return fmt.Sprintf("breaker.Mode(%d)", uint8(m))
}

// view is what a call sees of a breaker in one load. It is immutable.
type view struct {
	cfg    *Config
	mode   Mode
	state  State
	since  int64 // when this state began
	until  int64 // Open: when it becomes half-open
	admits bool  // the fast path: admit without another look
	window window
	gen    *generation
}

// generation is what is forgotten with the state: a Ticket of another one does not count.
type generation struct {
	fails atomic.Int64 // failures in a row
	timed atomic.Int32 // more than zero: calls read the clock when they begin

	// Of the half-open state, under Breaker.mu.
	leases []lease
	passed int // probes that succeeded
}

// lease is the place of one probe.
type lease struct {
	id    uint64 // zero when free
	until int64
}

// timedAlways is generation.timed where slow calls are counted.
const timedAlways = math.MaxInt32

func newView(cfg *Config, mode Mode, state State, now int64) *view {
	v := &view{cfg: cfg, mode: mode, state: state, since: now, gen: new(generation)}
	v.admits = state == Closed && (mode == Auto || mode == Shadow)
	if v.admits {
		v.window = newWindow(cfg)
	}
	if cfg.SlowRate > 0 {
		v.gen.timed.Store(timedAlways)
	}
	return v
}

// stateAt returns the state that callers see.
func (v *view) stateAt(now int64) State {
	switch {
	case v.mode == ForcedOpen:
		return Open
	case v.mode == Disabled:
		return Closed
	case v.state == Open && now >= v.until:
		return HalfOpen
	}
	return v.state
}

// State returns the present state. An operator's ForcedOpen reads Open, Disabled reads Closed.
func (b *Breaker) State() State { return b.view.Load().stateAt(b.now()) }

// acquire is Acquire where a closed breaker's fast path does not apply.
func (b *Breaker) acquire(ctx context.Context) (Ticket, error) {
	now := b.now()
	v := b.view.Load()
	switch state := v.stateAt(now); {
	case v.mode == Disabled:
		return Ticket{}, nil
	case v.mode == ForcedOpen:
		return b.refuse(ctx, v, state, 0)
	case state == Open:
		return b.refuse(ctx, v, state, time.Duration(v.until-now))
	}
	if ctx.Err() == nil {
		return b.probe(ctx, now)
	}
	// A probe by a caller who has gone would tell nothing.
	if v.mode == Shadow {
		return Ticket{}, nil
	}
	return Ticket{}, fault.Ended(ctx)
}

// probe admits a call in the half-open state, which it enters when the open time is up.
func (b *Breaker) probe(ctx context.Context, now int64) (t Ticket, err error) {
	b.mu.Lock()
	v := b.view.Load()
	if v.stateAt(now) != HalfOpen { // it changed meanwhile
		b.mu.Unlock()
		return b.Acquire(ctx)
	}
	if v.state == Open {
		v = b.change(newView(v.cfg, v.mode, HalfOpen, now), "open time is up")
		v.gen.leases = make([]lease, v.cfg.Probes)
	}
	for i := range v.gen.leases {
		if l := &v.gen.leases[i]; l.id == 0 || now >= l.until {
			b.leases++
			*l = lease{b.leases, now + int64(v.cfg.ProbeTimeout)}
			t = Ticket{b: b, gen: v.gen, start: now, lease: l.id}
			break
		}
	}
	b.mu.Unlock()

	delivered := false
	defer func() {
		if !delivered { // a hook panicked, and the caller will not get the Ticket
			t.settleProbe()
		}
	}()
	b.deliver()
	delivered = true
	if t.lease == 0 {
		return b.refuse(ctx, v, HalfOpen, 0)
	}
	return t, nil
}

func (t Ticket) settleProbe() {
	if t.lease != 0 {
		t.settle(fault.Neutral)
	}
}

func (b *Breaker) refuse(ctx context.Context, v *view, state State, after time.Duration) (Ticket, error) {
	b.rejected.Add(1)
	if hook := v.cfg.Hooks.Reject; hook != nil {
		hook(Rejected{ctx, v.cfg.Name, state, v.mode, after})
	}
	if v.mode == Shadow {
		return Ticket{}, nil
	}
	return Ticket{}, &fault.Rejection{By: "breaker", Name: v.cfg.Name, RetryAfter: after, Err: ErrOpen}
}

// probed takes the result of a probe.
func (b *Breaker) probed(t Ticket, outcome fault.Outcome) {
	slow := t.slow()
	b.mu.Lock()
	v := b.view.Load()
	if v.gen != t.gen || !t.gen.free(t.lease, b.now()) {
		b.mu.Unlock()
		return
	}
	switch {
	case outcome == fault.Failure:
		b.open(v, "probe failed")
	case outcome == fault.Success && slow && v.cfg.SlowRate > 0:
		b.open(v, "probe was slow")
	case outcome == fault.Success:
		if t.gen.passed++; t.gen.passed >= v.cfg.Probes {
			b.change(newView(v.cfg, v.mode, Closed, b.now()), "probes succeeded")
		}
	}
	b.mu.Unlock()
	b.deliver()
}

// free gives back the probe's place and reports whether it still had one.
func (g *generation) free(id uint64, now int64) bool {
	i := slices.IndexFunc(g.leases, func(l lease) bool { return l.id == id && now < l.until })
	if i < 0 {
		return false
	}
	g.leases[i] = lease{}
	return true
}

// trip opens b if it is still in gen.
func (b *Breaker) trip(gen *generation, reason string) {
	b.mu.Lock()
	if v := b.view.Load(); v.gen == gen {
		b.open(v, reason)
	}
	b.mu.Unlock()
	b.deliver()
}

// open replaces v, with mu held. The open time doubles if the dependency did not stay well
// for as long as the last open time was.
func (b *Breaker) open(v *view, reason string) {
	now := b.now()
	if v.state == Closed && now-v.since >= int64(b.openFor) {
		b.streak = 0
	} else {
		b.streak++
	}
	b.openFor = v.cfg.OpenMax
	if b.streak < 62 && v.cfg.OpenFor <= v.cfg.OpenMax>>b.streak {
		b.openFor = v.cfg.OpenFor << b.streak
	}
	// Half again, so that even at OpenMax clients spread.
	actual := b.openFor + time.Duration(rand.Int64N(int64(b.openFor)/2+1))
	n := newView(v.cfg, v.mode, Open, now)
	n.until = now + int64(actual)
	if n.until < now { // overflow: for ever
		n.until = math.MaxInt64
	}
	b.opened++
	b.change(n, reason)
}

// Force sets the mode. Between Auto and Shadow everything known is kept; coming from
// ForcedOpen or Disabled the breaker starts closed with an empty window.
func (b *Breaker) Force(mode Mode) {
	if mode > Shadow {
		panic("breaker: Force(" + mode.String() + "), want Auto, ForcedOpen, Disabled or Shadow")
	}
	b.mu.Lock()
	v := b.view.Load()
	if mode != v.mode {
		n := newView(v.cfg, mode, Closed, b.now())
		if (v.mode == Auto || v.mode == Shadow) && (mode == Auto || mode == Shadow) {
			*n = *v
			n.mode = mode
		}
		b.change(n, "forced")
	}
	b.mu.Unlock()
	b.deliver()
}

// Reset closes the breaker and forgets all results, in the present mode.
func (b *Breaker) Reset() {
	b.mu.Lock()
	v := b.view.Load()
	b.streak, b.openFor = 0, 0
	b.change(newView(v.cfg, v.mode, Closed, b.now()), "reset")
	b.mu.Unlock()
	b.deliver()
}

// Reconfigure replaces the configuration and keeps the state, the mode and what the window
// knows, as far as the new window reaches; going from a window by time to one by calls or
// back starts an empty one. It returns an error that names the wrong field, and then changes
// nothing.
func (b *Breaker) Reconfigure(cfg Config) error {
	cfg, err := cfg.complete()
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	v := b.view.Load()
	n := *v
	n.cfg = &cfg
	if n.admits {
		n.window = newWindow(&cfg)
		if n.window != nil && v.window != nil {
			n.window.take(v.window, b.now())
		}
	}
	switch timed := n.gen.timed.Load(); {
	case cfg.SlowRate > 0:
		n.gen.timed.Store(timedAlways)
	case timed == timedAlways:
		n.gen.timed.Store(0)
	}
	if n.state == HalfOpen {
		// Beyond a lowered limit the oldest probes lose their place. One whose time is up has none.
		now := b.now()
		out := slices.DeleteFunc(n.gen.leases, func(l lease) bool { return l.id == 0 || now >= l.until })
		slices.SortFunc(out, func(a, b lease) int { return cmp.Compare(b.id, a.id) })
		n.gen.leases = make([]lease, cfg.Probes)
		copy(n.gen.leases, out)
	}
	b.view.Store(&n)
	return nil
}

// change makes n the view and queues the report, with mu held.
func (b *Breaker) change(n *view, reason string) *view {
	v := b.view.Load()
	b.view.Store(n)
	// since is when n began: seen from then, an open breaker whose time is up was half-open
	// already for State, but this report is the first that hooks hear of it.
	from, to := v.stateAt(v.since), n.stateAt(n.since)
	if n.cfg.Hooks.Change != nil && (from != to || v.mode != n.mode) {
		c := Change{Name: n.cfg.Name, From: from, To: to, Mode: n.mode, Reason: reason}
		if n.state == Open {
			c.OpenFor = time.Duration(n.until - n.since)
		}
		b.changes = append(b.changes, c)
	}
	return n
}
