// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package breaker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

// ErrOpen is the reason of every refusal. It comes wrapped in a *fault.Rejection whose
// RetryAfter is the rest of the open time.
var ErrOpen = errors.New("circuit breaker is open")

// Config configures a [Breaker]. The zero value is a sound default.
type Config struct {
	// Name appears in refusals, hooks and Stats. It may be empty.
	Name string

	// Consecutive opens the breaker after so many failures in a row. Zero means 5, or
	// off where a rate is set; negative means off.
	Consecutive int
	// FailureRate opens it when this share of the calls in the window failed, above 0
	// and up to 1. Zero means off.
	FailureRate float64
	// SlowRate opens it when this share of the calls in the window took SlowAfter or
	// longer, above 0 and up to 1. Zero means off.
	SlowRate float64
	// SlowAfter is when a call is slow. It is also how long a call must have been given
	// for its caller's deadline to count against the callee. Zero means 1 s.
	SlowAfter time.Duration
	// Window is the time over which rates are taken. Zero means 10 s.
	Window time.Duration
	// Calls makes the window the last so many calls instead of a time. Zero means by time.
	Calls int
	// MinCalls is the number of calls in the window below which no rate opens the
	// breaker. Zero means 20, or Calls where that is less.
	MinCalls int

	// OpenFor is how long the breaker stays open at first. It doubles each time the
	// dependency proves still broken, and up to half of it is added at random so that
	// many clients do not probe together. Zero means 1 s.
	OpenFor time.Duration
	// OpenMax bounds the doubling. Zero means 60 s, or OpenFor where that is longer.
	OpenMax time.Duration
	// Probes is how many calls half-open admits at a time, and how many of them must
	// succeed to close the breaker; one failure opens it again. Zero means 1.
	Probes int
	// ProbeTimeout is when a probe that has not ended loses its place to another. It should
	// be longer than the slowest good call. Zero means 30 s.
	ProbeTimeout time.Duration

	// Mode is the mode to start in; see Force. Reconfigure leaves the mode as it is.
	Mode Mode
	// Classify judges a call's error. Nil means fault.Judge.
	Classify func(ctx context.Context, err error) fault.Verdict
	// Hooks observe.
	Hooks Hooks
}

// complete returns c with its defaults, or an error that names the wrong field.
func (c Config) complete() (Config, error) {
	for _, f := range []struct {
		name string
		rate float64
	}{{"FailureRate", c.FailureRate}, {"SlowRate", c.SlowRate}} {
		if !(f.rate >= 0 && f.rate <= 1) {
			return c, fmt.Errorf("breaker: Config.%s is %v, want 0 to 1", f.name, f.rate)
		}
	}
	for _, f := range []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{
		{"SlowAfter", &c.SlowAfter, time.Second},
		{"Window", &c.Window, 10 * time.Second},
		{"OpenFor", &c.OpenFor, time.Second},
		{"OpenMax", &c.OpenMax, max(time.Minute, c.OpenFor)},
		{"ProbeTimeout", &c.ProbeTimeout, 30 * time.Second},
	} {
		if *f.value < 0 {
			return c, fmt.Errorf("breaker: Config.%s is %v, want 0 or more", f.name, *f.value)
		}
		if *f.value == 0 {
			*f.value = f.zero
		}
	}
	if c.Window < time.Millisecond {
		return c, fmt.Errorf("breaker: Config.Window is %v, want at least 1ms", c.Window)
	}
	if c.OpenMax < c.OpenFor {
		return c, fmt.Errorf("breaker: Config.OpenMax is %v, want at least OpenFor, %v", c.OpenMax, c.OpenFor)
	}
	for _, f := range []struct {
		name  string
		value int
	}{{"Calls", c.Calls}, {"MinCalls", c.MinCalls}, {"Probes", c.Probes}} {
		if f.value < 0 {
			return c, fmt.Errorf("breaker: Config.%s is %d, want 0 or more", f.name, f.value)
		}
	}
	if c.MinCalls == 0 {
		c.MinCalls = 20
		if c.Calls > 0 {
			c.MinCalls = min(c.MinCalls, c.Calls)
		}
	}
	if c.Calls > 0 && c.MinCalls > c.Calls {
		return c, fmt.Errorf("breaker: Config.MinCalls is %d, want at most Calls, %d", c.MinCalls, c.Calls)
	}
	if c.Probes == 0 {
		c.Probes = 1
	}
	rated := c.FailureRate > 0 || c.SlowRate > 0
	switch {
	case c.Consecutive < 0 && !rated:
		return c, fmt.Errorf("breaker: Config.Consecutive is %d and no rate is set, want a condition to open", c.Consecutive)
	case c.Consecutive < 0, c.Consecutive == 0 && rated:
		c.Consecutive = math.MaxInt
	case c.Consecutive == 0:
		c.Consecutive = 5
	}
	if c.Mode > Shadow {
		return c, fmt.Errorf("breaker: Config.Mode is %v, want Auto, ForcedOpen, Disabled or Shadow", c.Mode)
	}
	return c, nil
}

// Breaker is a circuit breaker. It is safe for concurrent use.
type Breaker struct {
	base     time.Time            // now is measured from here, monotonic
	view     atomic.Pointer[view] // replaced under mu
	rejected atomic.Uint64

	mu         sync.Mutex
	opened     uint64        // changes to open
	streak     int           // openings since the dependency last proved well
	openFor    time.Duration // the last open time, without its jitter
	leases     uint64        // numbers the probes
	changes    []Change      // not delivered yet
	delivering bool
}

// New returns a closed Breaker, or an error that names the wrong field.
func New(cfg Config) (*Breaker, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	b := &Breaker{base: time.Now().Add(-1)} // now is never zero, which a Ticket reads as not measured
	b.view.Store(newView(&cfg, cfg.Mode, Closed, b.now()))
	return b, nil
}

// now returns monotonic nanoseconds, always positive.
func (b *Breaker) now() int64 { return int64(time.Since(b.base)) }

// Do calls fn if b admits it, and otherwise returns a *fault.Rejection of [ErrOpen].
func Do[T any](ctx context.Context, b *Breaker, fn func(context.Context) (T, error)) (v T, err error) {
	t, err := b.Acquire(ctx)
	if err != nil {
		return v, err
	}
	returned := false
	defer func() {
		if !returned {
			t.Settle(ctx, panicked)
		}
	}()
	v, err = fn(ctx)
	returned = true
	t.Done(ctx, err)
	return v, err
}

// Do is the package's Do for functions without a result.
func (b *Breaker) Do(ctx context.Context, fn func(context.Context) error) error {
	t, err := b.Acquire(ctx)
	if err != nil {
		return err
	}
	returned := false
	defer func() {
		if !returned {
			t.Settle(ctx, panicked)
		}
	}()
	err = fn(ctx)
	returned = true
	t.Done(ctx, err)
	return err
}

// panicked is the verdict on a call that did not return: it panicked, or called runtime.Goexit.
var panicked = fault.Verdict{Outcome: fault.Failure}

// Acquire admits a call in the form without a closure, for streams, or returns a
// *fault.Rejection of [ErrOpen]. Exactly one Done or Settle must follow. It never waits.
func (b *Breaker) Acquire(ctx context.Context) (Ticket, error) {
	v := b.view.Load()
	if !v.admits {
		return b.acquire(ctx)
	}
	t := Ticket{b: b, gen: v.gen}
	if v.gen.timed.Load() > 0 {
		t.start = b.now()
	}
	return t, nil
}

// Ticket is an admitted call. The zero Ticket is of no breaker, and its Done does nothing.
type Ticket struct {
	b     *Breaker
	gen   *generation // nil when the result is not to be counted
	start int64       // when the call began; zero when not measured
	lease uint64      // a probe's number; zero when it is none
}

// Done reports the result of the call, which was made with ctx.
func (t Ticket) Done(ctx context.Context, err error) {
	if t.gen == nil {
		return
	}
	if err == nil {
		t.settle(fault.Success)
		return
	}
	judge := t.b.view.Load().cfg.Classify
	if judge == nil {
		judge = fault.Judge
	}
	t.Settle(ctx, judge(ctx, err))
}

// Settle is Done for a caller who has judged the result already.
func (t Ticket) Settle(ctx context.Context, v fault.Verdict) {
	if t.gen == nil {
		return
	}
	outcome := v.Outcome
	if outcome == fault.Neutral && v.Unknown && ctx.Err() == context.DeadlineExceeded {
		outcome = t.expired()
	}
	t.settle(outcome)
}

// timedCalls is how many successful calls after one that its deadline cut off are timed.
const timedCalls = 64

// expired returns the outcome of a call that its caller's deadline cut off: a failure
// if it was given enough time.
func (t Ticket) expired() fault.Outcome {
	if t.start == 0 {
		if n := t.gen.timed.Load(); n < timedCalls {
			t.gen.timed.CompareAndSwap(n, timedCalls)
		}
		return fault.Neutral
	}
	if t.slow() {
		return fault.Failure
	}
	return fault.Neutral
}

func (t Ticket) slow() bool {
	return t.start != 0 && t.b.now()-t.start >= int64(t.b.view.Load().cfg.SlowAfter)
}

func (t Ticket) settle(outcome fault.Outcome) {
	b, gen := t.b, t.gen
	if t.lease != 0 {
		b.probed(t, outcome)
		return
	}
	v := b.view.Load()
	if v.gen != gen || outcome == fault.Neutral {
		return
	}
	if outcome == fault.Success && t.start == 0 && v.window == nil {
		// The common case. Reading before writing keeps the cache line shared.
		if gen.fails.Load() != 0 {
			gen.fails.Store(0)
		}
		return
	}
	b.record(v, t, outcome == fault.Failure)
}

// record counts a result in the closed state, and opens the breaker when that is one too many.
func (b *Breaker) record(v *view, t Ticket, failed bool) {
	cfg, gen := v.cfg, v.gen
	var now int64
	if t.start != 0 || cfg.Calls == 0 && v.window != nil {
		now = b.now()
	}
	slow := cfg.SlowRate > 0 && t.start != 0 && now-t.start >= int64(cfg.SlowAfter)
	if v.window != nil {
		v.window.add(now, failed, slow)
	}
	if !failed {
		if gen.fails.Load() != 0 {
			gen.fails.Store(0)
		}
		if n := gen.timed.Load(); t.start != 0 && n > 0 && n < timedAlways {
			gen.timed.CompareAndSwap(n, n-1)
		}
		if !slow {
			return
		}
	} else if gen.fails.Add(1) >= int64(cfg.Consecutive) {
		b.trip(gen, "consecutive failures")
		return
	}
	if v.window == nil {
		return
	}
	c := v.window.sum(now)
	if c.calls < int64(cfg.MinCalls) {
		return
	}
	// Division, not multiplication: 3 of 30 is exactly the float 0.1, 30*0.1 is not 3.
	switch calls := float64(c.calls); {
	case cfg.FailureRate > 0 && float64(c.failures)/calls >= cfg.FailureRate:
		b.trip(gen, "failure rate")
	case cfg.SlowRate > 0 && float64(c.slow)/calls >= cfg.SlowRate:
		b.trip(gen, "slow-call rate")
	}
}

// Stats is a snapshot of a [Breaker].
type Stats struct {
	Name        string
	State       State         // computed from the clock
	Mode        Mode          // the operator's order
	Consecutive int           // failures in a row
	Calls       int64         // calls in the window; zero without a rate
	Failures    int64         // of these failed
	Slow        int64         // of these slow
	Probes      int           // probes out
	Opened      uint64        // how often it opened since New
	Rejected    uint64        // refusals since New; in Shadow what would have been refused
	RetryAfter  time.Duration // the rest of the open time
}

// Stats returns a snapshot.
func (b *Breaker) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	now, v := b.now(), b.view.Load()
	s := Stats{
		Name:        v.cfg.Name,
		State:       v.stateAt(now),
		Mode:        v.mode,
		Consecutive: int(v.gen.fails.Load()),
		Opened:      b.opened,
		Rejected:    b.rejected.Load(),
	}
	if v.window != nil {
		c := v.window.sum(now)
		s.Calls, s.Failures, s.Slow = c.calls, c.failures, c.slow
	}
	for _, l := range v.gen.leases {
		if l.id != 0 && now < l.until {
			s.Probes++
		}
	}
	if s.State == Open && v.state == Open {
		s.RetryAfter = time.Duration(v.until - now)
	}
	return s
}
