// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package retry

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

// Config configures a [Retrier]. The zero value is a sound default.
type Config struct {
	// Name appears in hooks. It may be empty.
	Name string
	// Attempts is the number of tries in all, the first one included. Zero means 3;
	// one means no retry; negative means no limit but Elapsed, the context and the budget.
	Attempts int
	// Base is the step before the second attempt; every further step doubles. Zero means 50 ms.
	Base time.Duration
	// Max bounds the steps. Zero means 2 s, or Base where that is longer.
	Max time.Duration
	// Jitter spreads a step over time, so that callers do not come back together. Zero
	// means FullJitter.
	Jitter Jitter
	// Elapsed bounds the time from the first attempt's start to the last one's. Zero
	// means no limit but the context's.
	Elapsed time.Duration
	// AfterMax is the longest RetryAfter that is waited for; a longer one ends the
	// retries at once, since coming back earlier would be in vain. Zero means 30 s.
	AfterMax time.Duration
	// Budget bounds the retries over all calls. Nil means one of this Retrier's own, of
	// default size. Share one between the Retriers and hedges of a dependency;
	// Unlimited turns it off.
	Budget *Budget
	// NonIdempotent forbids to repeat a call whose effect is unknown (fault.IsUnknown), such
	// as one that timed out. Errors known to have had no effect are still retried.
	NonIdempotent bool
	// Nested retries even when a layer below has used up its own retries or a layer
	// above is retrying: attempts then multiply.
	Nested bool
	// Classify judges an attempt's error. Nil means fault.Judge.
	Classify func(ctx context.Context, err error) fault.Verdict
	// Hooks observe. They run on the caller's goroutine.
	Hooks Hooks
}

// Hooks are called outside locks; each may be nil.
type Hooks struct {
	// Retry is called before the wait for another attempt, never after the last attempt.
	Retry func(Retrying)
	// GiveUp is called when a call ends with an *Error.
	GiveUp func(GaveUp)
}

// Retrying says that another attempt follows.
type Retrying struct {
	Context context.Context
	Name    string
	Attempt int           // the attempt that failed, from 1
	Err     error         // its error
	Delay   time.Duration // until the next attempt
}

// GaveUp says that a call ended although another attempt might have helped.
type GaveUp struct {
	Context context.Context
	Name    string
	Err     *Error
}

// Retrier repeats calls. It is safe for concurrent use.
type Retrier struct {
	cfg     Config
	retries atomic.Uint64
	gaveUp  atomic.Uint64
}

// New returns a Retrier, or an error that names the wrong field.
func New(cfg Config) (*Retrier, error) {
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"Base", cfg.Base}, {"Max", cfg.Max}, {"Elapsed", cfg.Elapsed}, {"AfterMax", cfg.AfterMax}} {
		if f.value < 0 {
			return nil, fmt.Errorf("retry: Config.%s is %v, want 0 or more", f.name, f.value)
		}
	}
	if cfg.Jitter > NoJitter {
		return nil, fmt.Errorf("retry: Config.Jitter is %v, want FullJitter, EqualJitter, DecorrelatedJitter or NoJitter", cfg.Jitter)
	}
	if cfg.Attempts == 0 {
		cfg.Attempts = 3
	}
	if cfg.Base == 0 {
		cfg.Base = 50 * time.Millisecond
	}
	if cfg.Max == 0 {
		cfg.Max = max(2*time.Second, cfg.Base)
	}
	if cfg.Max < cfg.Base {
		return nil, fmt.Errorf("retry: Config.Max is %v, want at least Base, %v", cfg.Max, cfg.Base)
	}
	if cfg.AfterMax == 0 {
		cfg.AfterMax = 30 * time.Second
	}
	if cfg.Budget == nil {
		budget, err := NewBudget(BudgetConfig{})
		if err != nil {
			return nil, err
		}
		cfg.Budget = budget
	}
	return &Retrier{cfg: cfg}, nil
}

// Do calls fn until it succeeds, until its error is final, or until r gives up, and
// returns the last attempt's results. See the package comment for the error.
// If ctx is done beforehand, fn is not called.
func Do[T any](ctx context.Context, r *Retrier, fn func(context.Context) (T, error)) (T, error) {
	if ctx.Err() != nil {
		var zero T
		return zero, fault.Ended(ctx)
	}
	c := r.Begin(ctx)
	for {
		v, err := fn(c.Context())
		again, err := c.Next(err)
		if !again {
			return v, err
		}
	}
}

// Do is the package's Do for functions without a result.
func (r *Retrier) Do(ctx context.Context, fn func(context.Context) error) error {
	if ctx.Err() != nil {
		return fault.Ended(ctx)
	}
	c := r.Begin(ctx)
	for {
		again, err := c.Next(fn(c.Context()))
		if !again {
			return err
		}
	}
}

// Stats is a snapshot of a [Retrier].
type Stats struct {
	Name    string
	Retries uint64  // attempts after the first
	GaveUp  uint64  // calls that ended with an *Error
	Budget  float64 // retries that the budget would allow now; +Inf when unlimited
}

// Stats returns r's counters since New.
func (r *Retrier) Stats() Stats {
	return Stats{r.cfg.Name, r.retries.Load(), r.gaveUp.Load(), r.cfg.Budget.Balance()}
}

// Begin starts a call in the form without a closure, for streams and for loops of
// one's own:
//
//	call := r.Begin(ctx)
//	for {
//		stream, err := open(call.Context())
//		again, err := call.Next(err)
//		if !again {
//			return stream, err
//		}
//	}
func (r *Retrier) Begin(ctx context.Context) Call {
	c := Call{r: r, parent: ctx, ctx: ctx, attempt: 1}
	if r.cfg.Elapsed > 0 {
		c.start = time.Now()
	}
	return c
}

// Call is one call and its attempts. It is for one goroutine.
type Call struct {
	r       *Retrier
	parent  context.Context // the caller's
	ctx     context.Context // the current attempt's
	attempt int
	start   time.Time     // zero unless Elapsed needs it
	prev    time.Duration // decorrelated jitter's memory
	next    time.Duration // until the next attempt
	last    error         // the last error that was not merely the end of parent
}

// Context returns the context for the current attempt: the caller's own for the
// first one, and one marked with the attempt's number later. See [Attempt].
func (c *Call) Context() context.Context { return c.ctx }

// Attempt returns the number of the current attempt, from 1.
func (c *Call) Attempt() int { return c.attempt }

// Next takes the current attempt's error. When another attempt is due it waits for
// its time and returns true; otherwise it returns false and the error to return,
// which is nil if err is nil.
func (c *Call) Next(err error) (again bool, result error) {
	if err == nil || c.r.cfg.Classify == nil {
		return c.NextJudged(fault.Judge(c.parent, err), err)
	}
	return c.NextJudged(c.r.cfg.Classify(c.parent, err), err)
}

// NextJudged is Next for a caller who has judged err already.
func (c *Call) NextJudged(v fault.Verdict, err error) (again bool, result error) {
	again, result = c.Decide(v, err)
	if !again {
		return false, result
	}
	return c.Wait()
}

// Decide is the first half of NextJudged, for a caller who has something to free before the
// wait: it decides whether another attempt is due. If so, Wait must follow.
func (c *Call) Decide(v fault.Verdict, err error) (again bool, result error) {
	if err == nil {
		if c.attempt == 1 {
			c.r.cfg.Budget.Deposit()
		}
		return false, nil
	}
	return c.failed(v, err)
}

// Wait is the second half of NextJudged: it waits until the next attempt is due and returns
// true, or false and the error to return if the caller's context ends before.
func (c *Call) Wait() (again bool, result error) {
	if !sleep(c.parent, c.next) {
		return false, c.giveUp(c.last, fault.Ended(c.parent))
	}
	c.attempt++
	c.ctx = WithAttempt(c.parent, c.attempt)
	return true, nil
}

func (c *Call) failed(v fault.Verdict, err error) (bool, error) {
	cfg := &c.r.cfg
	outer := Attempt(c.parent)
	if c.attempt == 1 && outer == 1 {
		cfg.Budget.Deposit()
	}
	if c.parent.Err() != nil {
		return false, c.ended(v, err)
	}
	if !v.Retry || cfg.Attempts == 1 {
		return false, err
	}
	if !cfg.Nested {
		var spent *Error
		if outer > 1 || errors.As(err, &spent) {
			return false, err
		}
	}
	if cfg.NonIdempotent && v.Unknown {
		return false, c.giveUp(err, ErrUnknown)
	}
	if cfg.Attempts > 0 && c.attempt >= cfg.Attempts {
		return false, c.giveUp(err, ErrExhausted)
	}
	if v.After > cfg.AfterMax {
		return false, c.giveUp(err, ErrAfter)
	}
	delay, cause := c.delay(v.After)
	if cause != nil {
		return false, c.giveUp(err, cause)
	}
	if !cfg.Budget.Withdraw() {
		return false, c.giveUp(err, ErrBudget)
	}
	c.last, c.next = err, delay
	c.r.retries.Add(1)
	if hook := cfg.Hooks.Retry; hook != nil {
		hook(Retrying{c.parent, cfg.Name, c.attempt, err, delay})
	}
	return true, nil
}

// delay returns the time to wait before the next attempt, or why there is none.
func (c *Call) delay(after time.Duration) (time.Duration, error) {
	cfg := &c.r.cfg
	jittered := cfg.jittered(c.attempt, &c.prev)
	delay := after + jittered
	if cfg.Elapsed > 0 {
		left := cfg.Elapsed - time.Since(c.start)
		if after > 0 && delay > left {
			delay = after // the jitter may be given up, the callee's wish may not
		}
		if delay > left {
			return 0, ErrElapsed
		}
	}
	if deadline, ok := c.parent.Deadline(); ok {
		left := time.Until(deadline)
		if after > 0 && delay >= left {
			delay = after
		}
		if delay >= left {
			return 0, errDeadline
		}
	}
	return delay, nil
}

// ended returns the error of a call whose caller's context ended during an attempt.
func (c *Call) ended(v fault.Verdict, err error) error {
	if v.Outcome == fault.Neutral && !v.Unknown {
		return err // permanent: an answer, late or not
	}
	if v.Unknown && v.Outcome == fault.Neutral {
		// err is only the context's end. What went wrong before is worth more.
		if c.last == nil {
			return err
		}
		return c.giveUp(c.last, err)
	}
	return c.giveUp(err, fault.Ended(c.parent))
}

func (c *Call) giveUp(last, cause error) error {
	e := &Error{Attempts: c.attempt, Last: last, Cause: cause}
	c.r.gaveUp.Add(1)
	if hook := c.r.cfg.Hooks.GiveUp; hook != nil {
		hook(GaveUp{c.parent, c.r.cfg.Name, e})
	}
	return e
}

// sleep waits for d and reports whether ctx outlived it.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
