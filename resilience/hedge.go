// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/retry"
)

// HedgeConfig configures a [Hedge]. The zero value is a sound default.
type HedgeConfig struct {
	// Name appears in hooks and Stats. It may be empty.
	Name string
	// Extra is how many further calls may be started, one after another. Zero means 1.
	Extra int
	// Quantile of the recent latencies is what a call may take before it is late,
	// above 0 and below 1. Zero means 0.95.
	Quantile float64
	// MinDelay is the least time before a further call. Zero means 2 ms.
	MinDelay time.Duration
	// Delay is the time before a further call until enough latencies are known. Zero means 100 ms.
	Delay time.Duration
	// Budget bounds further calls over all calls. Nil means one of this Hedge's own, of
	// default size. Share the Retrier's.
	Budget *retry.Budget
	// Discard is called with each result that nobody will receive. Nil closes an io.Closer.
	Discard func(result any)
	// Hooks observe.
	Hooks HedgeHooks
}

// HedgeHooks are called outside locks; each may be nil.
type HedgeHooks struct {
	// Start is called when a further call is started.
	Start func(Hedging)
	// Lost is called when a call whose race was decided already, or Discard, panicked: the
	// panic has no caller to reach any more.
	Lost func(LostPanic)
}

// Hedging says that a further call is started.
type Hedging struct {
	Context context.Context
	Name    string
	Call    int           // its number, from 2
	Delay   time.Duration // since the last one
}

// LostPanic is the panic of a call that had lost its race.
type LostPanic struct {
	Name  string
	Value any
	Stack []byte
}

// Hedge makes slow calls faster: when a call has taken longer than most do, it
// starts another one and takes the first answer (Dean and Barroso, "The Tail at Scale", CACM
// 56(2), 2013). The delay is a live quantile of the latencies, and a budget bounds the
// additional load. Only idempotent calls may be hedged. It is safe for concurrent use.
//
// The first success wins, or the first error that is final (fault.Permanent). Other failures
// wait for the calls that still run; a failure before the delay is returned at once, since
// repeating is retry's task. The losers' contexts are cancelled and their results discarded.
//
// A retry's second and later attempts (retry.Attempt) are not hedged: they have waited already,
// and the calls would multiply.
type Hedge struct {
	cfg     HedgeConfig
	latency quantile
	started atomic.Uint64
	won     atomic.Uint64
}

// NewHedge returns a Hedge, or an error that names the wrong field.
func NewHedge(cfg HedgeConfig) (*Hedge, error) {
	if cfg.Extra < 0 {
		return nil, fmt.Errorf("resilience: HedgeConfig.Extra is %d, want 0 or more", cfg.Extra)
	}
	if !(cfg.Quantile >= 0 && cfg.Quantile < 1) {
		return nil, fmt.Errorf("resilience: HedgeConfig.Quantile is %v, want 0 or more and below 1", cfg.Quantile)
	}
	for _, f := range []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{{"MinDelay", &cfg.MinDelay, 2 * time.Millisecond}, {"Delay", &cfg.Delay, 100 * time.Millisecond}} {
		if *f.value < 0 {
			return nil, fmt.Errorf("resilience: HedgeConfig.%s is %v, want 0 or more", f.name, *f.value)
		}
		if *f.value == 0 {
			*f.value = f.zero
		}
	}
	if cfg.Extra == 0 {
		cfg.Extra = 1
	}
	if cfg.Quantile == 0 {
		cfg.Quantile = 0.95
	}
	if cfg.Budget == nil {
		budget, err := retry.NewBudget(retry.BudgetConfig{})
		if err != nil {
			return nil, err
		}
		cfg.Budget = budget
	}
	if cfg.Discard == nil {
		cfg.Discard = func(v any) {
			if c, ok := v.(io.Closer); ok {
				c.Close()
			}
		}
	}
	return &Hedge{cfg: cfg, latency: quantile{q: cfg.Quantile}}, nil
}

// DoHedged is Do for idempotent calls: each attempt is a race, and each call of a race passes
// the guards on its own. That it is another function, not a part of the Policy, lets one
// Policy serve reads and writes, and says at the call that it may be made twice.
func DoHedged[T any](ctx context.Context, p *Policy, h *Hedge, fn func(context.Context) (T, error)) (T, error) {
	ctx, cancel := WithTimeout(ctx, p.Total)
	defer cancel()
	race := func(ctx context.Context) (T, fault.Verdict, error) {
		v, verdict, release, err := race(ctx, h, func(ctx context.Context) (T, fault.Verdict, error) { return once(ctx, p, fn) })
		release() // each call has released its own context by now
		return v, verdict, err
	}
	if p.Retry == nil {
		v, _, err := race(ctx)
		return v, err
	}
	if ctx.Err() != nil {
		var zero T
		return zero, fault.Ended(ctx)
	}
	call := p.Retry.Begin(ctx)
	for {
		v, verdict, err := race(call.Context())
		again, err := call.NextJudged(verdict, err)
		if !again {
			return v, err
		}
	}
}

// OpenHedged is one race for results that need their context longer than the call, such as
// streams: the winner's context ends when release is called, which must happen in any case.
func OpenHedged[T any](ctx context.Context, h *Hedge, fn func(context.Context) (T, error)) (v T, release func(), err error) {
	v, _, release, err = race(ctx, h, func(ctx context.Context) (T, fault.Verdict, error) {
		v, err := fn(ctx)
		return v, fault.Judge(ctx, err), err
	})
	return v, release, err
}

// run is one race.
type run[T any] struct {
	h       *Hedge
	fn      func(context.Context) (T, fault.Verdict, error)
	results chan answer[T]

	mu      sync.Mutex
	decided bool
	cancels []context.CancelFunc
}

// answer is how one call ended.
type answer[T any] struct {
	call    int
	value   T
	verdict fault.Verdict
	err     error
	goexit  bool
	panic   any
	stack   []byte
}

// final reports whether a ends the race.
func (a *answer[T]) final() bool {
	if a.err == nil || a.goexit || a.panic != nil {
		return true
	}
	return !a.verdict.Retry && !refusal(a.err)
}

// race makes one race. release ends the context of the call whose answer it is.
func race[T any](ctx context.Context, h *Hedge, fn func(context.Context) (T, fault.Verdict, error)) (v T, verdict fault.Verdict, release func(), err error) {
	if retry.Attempt(ctx) > 1 {
		ctx, cancel := context.WithCancel(ctx)
		returned := false
		defer func() {
			if !returned {
				cancel()
			}
		}()
		v, verdict, err = fn(ctx)
		returned = true
		return v, verdict, cancel, err
	}
	h.cfg.Budget.Deposit()
	r := &run[T]{h: h, fn: fn, results: make(chan answer[T], h.cfg.Extra+1)}
	start := time.Now()
	best := answer[T]{call: -1}
	defer func() {
		if best.call < 0 { // a hook panicked
			r.decide(-1)
		}
	}()
	best = r.race(ctx)
	r.decide(best.call)
	if best.call > 0 {
		h.won.Add(1)
	}
	// The first call's latency, or what it had taken when it was cut off: to leave the slow
	// ones out would make the delay shrink.
	if best.err == nil {
		h.latency.record(time.Since(start))
	}
	release = r.cancels[best.call]
	if best.panic != nil || best.goexit {
		release()
		if best.goexit {
			runtime.Goexit()
		}
		panic(best.panic)
	}
	return best.value, best.verdict, release, best.err
}

// race starts calls until one has the answer.
func (r *run[T]) race(ctx context.Context) (best answer[T]) {
	r.start(ctx)
	running, failed := 1, false
	delay := r.h.delay()
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for {
		select {
		case a := <-r.results:
			running--
			if a.final() {
				return a
			}
			if !failed || a.call == 0 { // of the failures, the first call's tells most
				best, failed = a, true
			}
			if running == 0 {
				return best
			}
		case <-timer.C:
			if len(r.cancels) > r.h.cfg.Extra || failed || ctx.Err() != nil || !r.h.cfg.Budget.Withdraw() {
				continue // the timer is spent: only wait
			}
			r.h.started.Add(1)
			if hook := r.h.cfg.Hooks.Start; hook != nil {
				hook(Hedging{ctx, r.h.cfg.Name, len(r.cancels) + 1, delay})
			}
			r.start(ctx)
			running++
			timer.Reset(delay)
		}
	}
}

// start starts another call.
func (r *run[T]) start(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	a := answer[T]{call: len(r.cancels)}
	r.cancels = append(r.cancels, cancel)
	go func() {
		returned := false
		defer func() {
			if !returned {
				if a.panic = recover(); a.panic != nil {
					a.stack = debug.Stack()
				} else {
					a.goexit = true
				}
			}
			r.ended(a)
		}()
		a.value, a.verdict, a.err = r.fn(ctx)
		returned = true
	}()
}

// ended takes the answer of a call: for the race, or to discard if that is decided.
func (r *run[T]) ended(a answer[T]) {
	r.mu.Lock()
	if !r.decided {
		r.results <- a // never blocks: there is room for all
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	r.discard(a)
}

// decide cancels the losers.
func (r *run[T]) decide(winner int) {
	r.mu.Lock()
	r.decided = true
	close(r.results)
	r.mu.Unlock()
	for i, cancel := range r.cancels {
		if i != winner {
			cancel()
		}
	}
	for a := range r.results { // came in at the same moment
		r.discard(a)
	}
}

func (r *run[T]) discard(a answer[T]) {
	switch {
	case a.panic != nil:
		if hook := r.h.cfg.Hooks.Lost; hook != nil {
			hook(LostPanic{r.h.cfg.Name, a.panic, a.stack})
		}
	case a.err == nil && !a.goexit:
		defer func() { // Close of a nil pointer, say: it must not end the program
			if v := recover(); v != nil {
				r.discard(answer[T]{panic: v, stack: debug.Stack()})
			}
		}()
		r.h.cfg.Discard(a.value)
	}
}

// minLatencies is how many latencies make a quantile.
const minLatencies = 32

func (h *Hedge) delay() time.Duration {
	d, n := h.latency.value()
	if n < minLatencies {
		d = h.cfg.Delay
	}
	return max(d, h.cfg.MinDelay)
}

// HedgeStats is a snapshot of a [Hedge].
type HedgeStats struct {
	Name    string
	Delay   time.Duration // before the next call's hedge
	Started uint64        // further calls since NewHedge
	Won     uint64        // of these answered first
}

// Stats returns a snapshot.
func (h *Hedge) Stats() HedgeStats {
	return HedgeStats{h.cfg.Name, h.delay(), h.started.Load(), h.won.Load()}
}
