// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package ratelimit

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

// Config configures a [Limiter]. The zero value is a sound default.
type Config struct {
	// Name appears in refusals, hooks and Stats. It may be empty.
	Name string
	// Wait is how long Do and Acquire may wait for a token. Zero means not at all.
	Wait time.Duration
	// Hooks observe.
	Hooks Hooks
}

// Hooks are called outside locks; each may be nil.
type Hooks struct {
	// Reject is called for each refusal by Do, Acquire and Wait. Allow says no by
	// its Result alone.
	Reject func(Rejected)
}

// Rejected is a refusal.
type Rejected struct {
	Context context.Context
	Name    string
	Result  Result
}

// Limiter is a rate limiter for one process. It is safe for concurrent use.
type Limiter struct {
	base  time.Time
	limit atomic.Pointer[gcra]
	tat   atomic.Int64 // see gcra; waiters have their events counted in
	cfg   Config

	rejected atomic.Uint64

	mu      sync.Mutex
	waiters []*waiter // in order of their turns
}

// New returns a Limiter with a full burst, or an error that names the wrong field.
func New(limit Limit, cfg Config) (*Limiter, error) {
	g, err := newGCRA(limit)
	if err != nil {
		return nil, err
	}
	if cfg.Wait < 0 {
		return nil, fmt.Errorf("ratelimit: Config.Wait is %v, want 0 or more", cfg.Wait)
	}
	l := &Limiter{base: time.Now(), cfg: cfg}
	l.limit.Store(g)
	return l, nil
}

// now returns monotonic nanoseconds.
func (l *Limiter) now() int64 { return int64(time.Since(l.base)) }

// Allow takes one token if there is one. It never waits.
func (l *Limiter) Allow() Result { return l.AllowN(1) }

// AllowN takes n tokens if there are so many, or none. It never waits.
// It panics if n is negative.
func (l *Limiter) AllowN(n int) Result {
	g, now := l.limit.Load(), l.now()
	for {
		tat := l.tat.Load()
		if uint(n) > uint(g.limit.Burst) {
			return g.tooMany(n, tat, now)
		}
		next, early := g.take(tat, now, n)
		if early > 0 {
			return g.result(tat, now, early)
		}
		if l.tat.CompareAndSwap(tat, next) {
			return g.result(next, now, early)
		}
	}
}

func (g *gcra) tooMany(n int, tat, now int64) Result {
	if n < 0 {
		panic(fmt.Sprintf("ratelimit: %d tokens, want 0 or more", n))
	}
	return g.never(tat, now)
}

// Wait takes one token, as soon as there is one. See WaitN.
func (l *Limiter) Wait(ctx context.Context) error { return l.WaitN(ctx, 1) }

// WaitN takes n tokens, as soon as there are so many. It returns a *fault.Rejection at once,
// and takes nothing, if that would be after ctx's deadline or if n exceeds the burst;
// and ctx's error, giving the tokens back, if ctx ends meanwhile.
func (l *Limiter) WaitN(ctx context.Context, n int) error { return l.wait(ctx, n, math.MaxInt64) }

// Acquire takes one token, waiting for it no longer than Config.Wait.
func (l *Limiter) Acquire(ctx context.Context) error { return l.wait(ctx, 1, int64(l.cfg.Wait)) }

// Do calls fn when Acquire has got a token.
func (l *Limiter) Do(ctx context.Context, fn func(context.Context) error) error {
	if err := l.Acquire(ctx); err != nil {
		return err
	}
	return fn(ctx)
}

// Do calls fn when l's Acquire has got a token.
func Do[T any](ctx context.Context, l *Limiter, fn func(context.Context) (T, error)) (T, error) {
	if err := l.Acquire(ctx); err != nil {
		var zero T
		return zero, err
	}
	return fn(ctx)
}

// waiter is a call whose tokens are taken in advance. It is under Limiter.mu.
type waiter struct {
	cost  int64 // of its tokens
	tat   int64 // the bucket behind it: its turn is one tolerance before
	timer *time.Timer
}

func (l *Limiter) wait(ctx context.Context, n int, longest int64) error {
	r := l.AllowN(n)
	switch {
	case r.OK:
		return nil
	case ctx.Err() != nil:
		return fault.Ended(ctx)
	case r.RetryAfter < 0 || longest == 0:
		return l.refuse(ctx, r)
	}
	if deadline, ok := ctx.Deadline(); ok {
		longest = min(longest, int64(time.Until(deadline))-1) // a turn at the deadline is too late
	}
	w, r := l.reserve(n, longest)
	if !r.OK {
		return l.refuse(ctx, r)
	}
	if w == nil {
		return nil
	}
	select {
	case <-w.timer.C:
		l.leave(w)
		return nil
	case <-ctx.Done():
		l.cancel(w)
		return fault.Ended(ctx)
	}
}

// reserve takes n tokens in advance. The waiter is nil if there is no need to wait.
func (l *Limiter) reserve(n int, longest int64) (*waiter, Result) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, now := l.limit.Load(), l.now()
	for {
		tat := l.tat.Load()
		if n > g.limit.Burst { // it was lowered meanwhile
			return nil, g.never(tat, now)
		}
		next, early := g.take(tat, now, n)
		if early > longest {
			return nil, g.result(tat, now, early)
		}
		if !l.tat.CompareAndSwap(tat, next) {
			continue
		}
		if early <= 0 {
			return nil, Result{OK: true}
		}
		w := &waiter{cost: int64(n) * g.interval, tat: next, timer: time.NewTimer(time.Duration(early))}
		l.waiters = append(l.waiters, w)
		return w, Result{OK: true}
	}
}

// leave takes out a waiter whose turn has come.
func (l *Limiter) leave(w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.waiters, w); i >= 0 {
		l.waiters = slices.Delete(l.waiters, i, i+1)
	}
}

// cancel takes out a waiter who has given up. If its turn had not come yet, its tokens go back
// and everybody behind it moves up. Afterwards they are spent: events since then were
// counted on top of them, and giving them back could exceed the burst.
func (l *Limiter) cancel(w *waiter) {
	w.timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.waiters, w)
	l.waiters = slices.Delete(l.waiters, i, i+1)
	g, now := l.limit.Load(), l.now()
	if w.tat-g.tolerance <= now {
		return
	}
	l.tat.Add(-w.cost)
	for _, behind := range l.waiters[i:] {
		behind.tat -= w.cost
		behind.timer.Reset(time.Duration(behind.tat - g.tolerance - now))
	}
}

func (l *Limiter) refuse(ctx context.Context, r Result) error {
	l.rejected.Add(1)
	if hook := l.cfg.Hooks.Reject; hook != nil {
		hook(Rejected{ctx, l.cfg.Name, r})
	}
	return r.err(l.cfg.Name)
}

// Reconfigure changes the limit. What is used up stays used up, and waiters are served
// by the new rate.
func (l *Limiter) Reconfigure(limit Limit) error {
	to, err := newGCRA(limit)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	from, now := l.limit.Load(), l.now()
	l.limit.Store(to)
	for {
		tat := l.tat.Load()
		if l.tat.CompareAndSwap(tat, from.rescale(tat, now, to)) {
			break
		}
	}
	for _, w := range l.waiters {
		w.tat = from.rescale(w.tat, now, to)
		w.cost = w.cost / from.interval * to.interval
		w.timer.Reset(time.Duration(w.tat - to.tolerance - now))
	}
	return nil
}

// Stats is a snapshot of a [Limiter].
type Stats struct {
	Name      string
	Limit     Limit
	Remaining int    // tokens available now
	Waiting   int    // calls waiting
	Rejected  uint64 // refusals by Do, Acquire and Wait since New
}

// Stats returns a snapshot.
func (l *Limiter) Stats() Stats {
	l.mu.Lock()
	waiting := len(l.waiters)
	l.mu.Unlock()
	g := l.limit.Load()
	return Stats{l.cfg.Name, g.limit, g.result(l.tat.Load(), l.now(), 0).Remaining, waiting, l.rejected.Load()}
}
