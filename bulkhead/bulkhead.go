// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package bulkhead

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

// ErrFull is the reason of every refusal. It comes wrapped in a *fault.Rejection.
var ErrFull = errors.New("bulkhead is full")

// Config configures a [Bulkhead]. The zero value refuses what cannot run at once.
type Config struct {
	// Name appears in refusals, hooks and Stats. It may be empty.
	Name string
	// Queue is how many calls may wait for a permit. Zero means none.
	Queue int
	// Wait is the longest wait for a permit. Zero means as long as the caller's context lasts.
	Wait time.Duration
	// LIFO serves the newest waiter first, and when the queue is full the oldest one
	// makes way. Under overload this keeps some calls fast, where FIFO makes
	// every call wait until its caller has given up.
	LIFO bool
	// Priority returns the priority of a call that has to wait: higher ones are served first, and
	// when the queue is full one of the lowest makes way for a higher one. Nil
	// means that all are equal.
	Priority func(ctx context.Context) int
	// Hooks observe.
	Hooks Hooks
}

// Hooks are called outside locks; each may be nil.
type Hooks struct {
	// Reject is called for each refusal.
	Reject func(Rejected)
}

// Rejected is a refusal.
type Rejected struct {
	Context context.Context
	Name    string
	Reason  string // "queue is full", "waited too long" or "made way"
}

// Bulkhead bounds concurrent calls. It is safe for concurrent use.
type Bulkhead struct {
	cfg Config
	max atomic.Uint32
	// state is the number of waiters in the upper half and of permits out in the lower
	// half. While there are waiters only holders of mu change it, so that the lock-free
	// paths can neither overtake nor miss a waiter.
	state    atomic.Uint64
	rejected atomic.Uint64

	mu    sync.Mutex
	queue queue
}

const (
	oneWaiter  = 1 << 32
	lessWaiter = ^uint64(oneWaiter - 1) // to add
	lessPermit = ^uint64(0)
)

func inFlight(state uint64) uint32 { return uint32(state) }
func waiting(state uint64) uint32  { return uint32(state >> 32) }

// New returns a Bulkhead of max concurrent calls, or an error that names what is wrong.
func New(max int, cfg Config) (*Bulkhead, error) {
	if err := checkMax(max); err != nil {
		return nil, err
	}
	if cfg.Queue < 0 || cfg.Queue > math.MaxInt32 {
		return nil, fmt.Errorf("bulkhead: Config.Queue is %d, want 0 to %d", cfg.Queue, math.MaxInt32)
	}
	if cfg.Wait < 0 {
		return nil, fmt.Errorf("bulkhead: Config.Wait is %v, want 0 or more", cfg.Wait)
	}
	b := &Bulkhead{cfg: cfg}
	b.queue.lifo = cfg.LIFO
	b.max.Store(uint32(max))
	return b, nil
}

func checkMax(max int) error {
	if max < 1 || max > math.MaxInt32 {
		return fmt.Errorf("bulkhead: max is %d, want 1 to %d", max, math.MaxInt32)
	}
	return nil
}

// Do calls fn with a permit, and otherwise returns a *fault.Rejection of [ErrFull], or the
// context's error if the caller gave up while waiting.
func Do[T any](ctx context.Context, b *Bulkhead, fn func(context.Context) (T, error)) (v T, err error) {
	p, err := b.Acquire(ctx)
	if err != nil {
		return v, err
	}
	defer p.Release()
	return fn(ctx)
}

// Do is the package's Do for functions without a result.
func (b *Bulkhead) Do(ctx context.Context, fn func(context.Context) error) error {
	p, err := b.Acquire(ctx)
	if err != nil {
		return err
	}
	defer p.Release()
	return fn(ctx)
}

// Permit is the right to make one call. The zero Permit is of no bulkhead.
type Permit struct{ b *Bulkhead }

// Release gives the permit back. It must be called exactly once; it panics where more
// permits are given back than were taken.
func (p Permit) Release() {
	if p.b != nil {
		p.b.release()
	}
}

// Acquire takes a permit in the form without a closure, for streams. It waits as Config
// says, and otherwise returns a *fault.Rejection of [ErrFull], or the context's error if the
// caller gave up while waiting.
func (b *Bulkhead) Acquire(ctx context.Context) (Permit, error) {
	if b.take() {
		return Permit{b}, nil
	}
	return b.wait(ctx)
}

// TryAcquire takes a permit if that is possible at once, without a refusal's cost.
func (b *Bulkhead) TryAcquire() (Permit, bool) {
	if b.take() {
		return Permit{b}, true
	}
	return Permit{}, false
}

func (b *Bulkhead) take() bool {
	for {
		s := b.state.Load()
		if waiting(s) != 0 || inFlight(s) >= b.max.Load() {
			return false
		}
		if b.state.CompareAndSwap(s, s+1) {
			return true
		}
	}
}

func (b *Bulkhead) release() {
	for {
		s := b.state.Load()
		if inFlight(s) == 0 {
			panic("bulkhead: Release without Acquire")
		}
		if waiting(s) != 0 {
			break
		}
		if b.state.CompareAndSwap(s, s-1) {
			return
		}
	}
	b.mu.Lock()
	b.state.Add(lessPermit)
	b.grant()
	b.mu.Unlock()
}

// grant hands free permits to waiters, with mu held.
func (b *Bulkhead) grant() {
	for {
		s := b.state.Load()
		if waiting(s) == 0 || inFlight(s) >= b.max.Load() {
			return
		}
		b.state.Add(lessWaiter + 1) // one waiter less, one permit more
		b.queue.next().end(granted)
	}
}

// wait is Acquire where there is no permit at once.
func (b *Bulkhead) wait(ctx context.Context) (Permit, error) {
	if b.cfg.Queue == 0 {
		return b.refuse(ctx, "queue is full")
	}
	priority := 0
	if b.cfg.Priority != nil {
		priority = b.cfg.Priority(ctx)
	}
	b.mu.Lock()
	if b.enter() {
		b.mu.Unlock()
		return Permit{b}, nil
	}
	if int(waiting(b.state.Load())) > b.cfg.Queue {
		loser := b.queue.loser(priority)
		b.state.Add(lessWaiter)
		if loser == nil {
			b.mu.Unlock()
			return b.refuse(ctx, "queue is full")
		}
		loser.end(displaced)
	}
	w := &waiter{ready: make(chan struct{})}
	b.queue.add(w, priority)
	b.mu.Unlock()
	return b.await(ctx, w)
}

// enter takes a permit after all, or else counts one more waiter, with mu held.
func (b *Bulkhead) enter() (admitted bool) {
	for {
		s := b.state.Load()
		if waiting(s) == 0 && inFlight(s) < b.max.Load() {
			if b.state.CompareAndSwap(s, s+1) {
				return true
			}
		} else if b.state.CompareAndSwap(s, s+oneWaiter) {
			return false
		}
	}
}

func (b *Bulkhead) await(ctx context.Context, w *waiter) (Permit, error) {
	var timeout <-chan time.Time
	if b.cfg.Wait > 0 {
		timer := time.NewTimer(b.cfg.Wait)
		defer timer.Stop()
		timeout = timer.C
	}
	gone := false
	select {
	case <-w.ready:
	case <-timeout:
	case <-ctx.Done():
		gone = true
	}
	b.mu.Lock()
	how := w.how
	if how == 0 {
		b.queue.remove(w)
		b.state.Add(lessWaiter)
	}
	b.mu.Unlock()
	switch {
	case how == granted && gone: // the grant raced: it is somebody else's now
		b.release()
		return Permit{}, fault.Ended(ctx)
	case how == granted:
		return Permit{b}, nil
	case gone:
		return Permit{}, fault.Ended(ctx)
	case how == displaced:
		return b.refuse(ctx, "made way")
	}
	return b.refuse(ctx, "waited too long")
}

func (b *Bulkhead) refuse(ctx context.Context, reason string) (Permit, error) {
	b.rejected.Add(1)
	if hook := b.cfg.Hooks.Reject; hook != nil {
		hook(Rejected{ctx, b.cfg.Name, reason})
	}
	return Permit{}, &fault.Rejection{By: "bulkhead", Name: b.cfg.Name, Err: ErrFull}
}

// Resize changes the maximum. A higher one admits waiters at once; under a lower one the
// calls that run are left to end.
func (b *Bulkhead) Resize(max int) error {
	if err := checkMax(max); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.max.Store(uint32(max))
	b.grant()
	return nil
}

// Stats is a snapshot of a [Bulkhead].
type Stats struct {
	Name     string
	Max      int
	InFlight int
	Waiting  int
	Rejected uint64 // since New
}

// Stats returns a snapshot.
func (b *Bulkhead) Stats() Stats {
	s := b.state.Load()
	return Stats{b.cfg.Name, int(b.max.Load()), int(inFlight(s)), int(waiting(s)), b.rejected.Load()}
}
