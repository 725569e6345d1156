// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"context"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/retry"
)

// Policy is a set of guards around the calls to one dependency. Each part may be absent; the
// zero Policy only calls. A Policy is safe for concurrent use and must not be changed
// while it is in use.
//
// The parts work in the order of the fields: each one sees what those after it let through.
// In words: within Total, Retry makes attempts. Each attempt takes a token of RateLimit, a place of
// Adaptive and of Bulkhead, and asks Breaker last, right before the call, so that what waited in
// a queue is not sent to a dependency that broke meanwhile, and so that a full
// bulkhead never counts as the dependency's failure. Attempt bounds the call itself.
type Policy struct {
	// Total bounds the whole: all attempts and the waits between them. Zero means no bound
	// but the caller's.
	Total time.Duration
	// Retry repeats attempts. Nil means one attempt.
	Retry *retry.Retrier
	// RateLimit bounds the attempts in a time.
	RateLimit *ratelimit.Limiter
	// Adaptive bounds the attempts that run at once, by what the dependency shows it can take.
	Adaptive *Adaptive
	// Bulkhead bounds the attempts that run at once, by a fixed number.
	Bulkhead *bulkhead.Bulkhead
	// Breaker keeps attempts away from a broken dependency.
	Breaker *breaker.Breaker
	// Attempt bounds each attempt's call. Zero means no bound of its own.
	Attempt time.Duration
	// Classify judges an attempt's error, for all parts alike; Classify functions of their
	// own are not asked. Nil means fault.Judge.
	Classify func(ctx context.Context, err error) fault.Verdict
}

// Do calls fn under p and returns its result, a guard's *fault.Rejection, or a *retry.Error.
// The context that fn receives ends when fn returns. A panic in fn passes through.
func Do[T any](ctx context.Context, p *Policy, fn func(context.Context) (T, error)) (T, error) {
	ctx, cancel := WithTimeout(ctx, p.Total)
	defer cancel()
	if p.Retry == nil {
		v, _, err := once(ctx, p, fn)
		return v, err
	}
	if ctx.Err() != nil {
		var zero T
		return zero, fault.Ended(ctx)
	}
	call := p.Retry.Begin(ctx)
	for {
		v, verdict, err := once(call.Context(), p, fn)
		again, err := call.NextJudged(verdict, err)
		if !again {
			return v, err
		}
	}
}

// Do is the package's Do for functions without a result.
func (p *Policy) Do(ctx context.Context, fn func(context.Context) error) error {
	_, err := Do(ctx, p, func(ctx context.Context) (struct{}, error) { return struct{}{}, fn(ctx) })
	return err
}

// once makes one call through the guards.
func once[T any](ctx context.Context, p *Policy, fn func(context.Context) (T, error)) (v T, verdict fault.Verdict, err error) {
	var t Ticket
	if err := t.acquire(ctx, p); err != nil {
		return v, fault.Judge(ctx, err), err
	}
	returned := false
	defer func() {
		if !returned {
			t.settle(panicked)
		}
		t.Release()
	}()
	v, err = fn(t.ctx)
	returned = true
	return v, t.Settle(err), err
}

// panicked is the verdict on a call that did not return: it panicked, or called runtime.Goexit.
var panicked = fault.Verdict{Outcome: fault.Failure}

// Ticket is one attempt that the guards have admitted. The zero Ticket is of no policy.
type Ticket struct {
	p        *Policy
	caller   context.Context
	ctx      context.Context
	cancel   context.CancelFunc
	adaptive AdaptiveTicket
	permit   bulkhead.Permit
	breaker  breaker.Ticket
}

// Acquire admits one attempt in the form without a closure, for streams: it passes the
// guards from RateLimit to Breaker and starts the Attempt timeout. Total and Retry are the
// caller's to do, see WithTimeout and retry.Retrier.Begin. Exactly one Settle and one Release must
// follow, or one Done for both.
func (p *Policy) Acquire(ctx context.Context) (t Ticket, err error) {
	err = t.acquire(ctx, p)
	return t, err
}

// acquire fills t, or leaves it zero. It does so in place, for a Ticket is not small.
func (t *Ticket) acquire(ctx context.Context, p *Policy) error {
	if err := t.enter(ctx, p); err != nil {
		*t = Ticket{}
		return err
	}
	t.p, t.caller, t.ctx, t.cancel = p, ctx, ctx, keep
	if p.Attempt > 0 {
		t.ctx, t.cancel = WithTimeout(ctx, p.Attempt)
	}
	return nil
}

// enter passes the guards, or none of them.
func (t *Ticket) enter(ctx context.Context, p *Policy) (err error) {
	admitted := false
	defer func() {
		if !admitted { // refused by a later guard, or a hook panicked
			t.adaptive.Settle(ctx, refused)
			t.permit.Release()
		}
	}()
	if p.RateLimit != nil {
		if err := p.RateLimit.Acquire(ctx); err != nil {
			return err
		}
	}
	if p.Adaptive != nil {
		if t.adaptive, err = p.Adaptive.Acquire(ctx); err != nil {
			return err
		}
	}
	if p.Bulkhead != nil {
		if t.permit, err = p.Bulkhead.Acquire(ctx); err != nil {
			return err
		}
	}
	if p.Breaker != nil {
		if t.breaker, err = p.Breaker.Acquire(ctx); err != nil {
			return err
		}
	}
	admitted = true
	return nil
}

// refused is the verdict that a guard hears when a later one refused.
var refused = fault.Verdict{Outcome: fault.Neutral}

// Context returns the context to make the call with. It ends with Release.
func (t *Ticket) Context() context.Context { return t.ctx }

// Settle tells the guards how the call ended, and returns the verdict. For a stream, that
// may be when it has opened.
func (t *Ticket) Settle(err error) fault.Verdict {
	if t.p == nil || err == nil {
		t.settle(fault.Verdict{})
		return fault.Verdict{}
	}
	var v fault.Verdict
	if t.p.Classify != nil {
		v = t.p.Classify(t.caller, err)
	} else {
		v = fault.Judge(t.caller, err)
	}
	t.settle(v)
	return v
}

func (t *Ticket) settle(v fault.Verdict) {
	t.adaptive.Settle(t.caller, v)
	t.breaker.Settle(t.caller, v)
}

// Release gives the places back and ends the call's context. For a stream, that is when it has
// been read.
func (t *Ticket) Release() {
	if t.p == nil {
		return
	}
	t.cancel()
	t.permit.Release()
}

// Done is Settle and Release.
func (t *Ticket) Done(err error) fault.Verdict {
	defer t.Release()
	return t.Settle(err)
}

// WithTimeout is context.WithTimeout where that makes a difference: if ctx ends within d anyway,
// or d is not positive, it returns ctx itself and costs no allocation.
func WithTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return ctx, keep
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return ctx, keep
	}
	return context.WithTimeout(ctx, d)
}

func keep() {}
