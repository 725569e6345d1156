// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencetest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// BulkheadSpec is the bulkhead to make.
type BulkheadSpec struct {
	Max   int           // calls at once
	Queue int           // calls that may wait
	Wait  time.Duration // the longest wait; zero for as long as the context lasts
}

// OpenBulkhead makes a bulkhead.
type OpenBulkhead = func(BulkheadSpec) (Guard, error)

// RunBulkhead holds bulkheads to their promises.
func RunBulkhead(t *testing.T, open OpenBulkhead) { run(t, bulkheadPromises, open) }

func openBulkhead(t *testing.T, open OpenBulkhead, spec BulkheadSpec) Guard {
	t.Helper()
	g, err := open(spec)
	return made(t, g, err)
}

// waiter is a call in a goroutine of its own.
type waiter struct {
	running chan struct{} // closed when fn is called
	done    chan struct{} // closed when Do has returned
	err     error
	end     func() // ends fn
	cancel  func()
}

func start(t *testing.T, g Guard) *waiter {
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	w := &waiter{running: make(chan struct{}), done: make(chan struct{}), cancel: cancel, end: sync.OnceFunc(func() { close(release) })}
	t.Cleanup(func() { w.cancel(); w.end(); <-w.done })
	go func() {
		defer close(w.done)
		w.err = g.Do(ctx, func(context.Context) error { close(w.running); <-release; return nil })
	}()
	synctest.Wait()
	return w
}

func is(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

var bulkheadPromises = []promise[OpenBulkhead]{
	{"no more than the maximum run at once, whoever races", virtual(func(t *testing.T, open OpenBulkhead) {
		g := openBulkhead(t, open, BulkheadSpec{Max: 3})
		var running, most atomic.Int64
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				_ = g.Do(t.Context(), func(context.Context) error {
					n := running.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					time.Sleep(time.Second)
					running.Add(-1)
					return nil
				})
			})
		}
		wg.Wait()
		if n := most.Load(); n != 3 {
			t.Errorf("%d calls at once, want 3", n)
		}
	})},
	{"without a queue what cannot run is refused at once", virtual(func(t *testing.T, open OpenBulkhead) {
		g := openBulkhead(t, open, BulkheadSpec{Max: 1})
		start(t, g)
		begun := time.Now()
		if called, err := try(t.Context(), g, succeed); called || err == nil || time.Since(begun) != 0 {
			t.Errorf("Do = %v, called %v after %v, want a refusal at once", err, called, time.Since(begun))
		}
	})},
	{"the queue is bounded", virtual(func(t *testing.T, open OpenBulkhead) {
		g := openBulkhead(t, open, BulkheadSpec{Max: 1, Queue: 2, Wait: time.Hour})
		start(t, g)
		first, second, third := start(t, g), start(t, g), start(t, g)
		if is(first.done) || is(second.done) || !is(third.done) || third.err == nil {
			t.Errorf("done: %v %v %v, want two waiting and the third refused", is(first.done), is(second.done), is(third.done))
		}
	})},
	{"waiters are served in order", virtual(func(t *testing.T, open OpenBulkhead) {
		g := openBulkhead(t, open, BulkheadSpec{Max: 1, Queue: 5, Wait: time.Hour})
		current := start(t, g)
		var waiters []*waiter
		for range 5 {
			waiters = append(waiters, start(t, g))
		}
		var order []int
		for range waiters {
			current.end()
			synctest.Wait()
			i := slices.IndexFunc(waiters, func(w *waiter) bool { return is(w.running) && !is(w.done) })
			if i < 0 {
				t.Fatalf("nobody was served after %v", order)
			}
			order = append(order, i)
			current = waiters[i]
		}
		if !slices.IsSorted(order) {
			t.Errorf("served %v, want in order", order)
		}
	})},
	{"a wait ends after Wait", virtual(func(t *testing.T, open OpenBulkhead) {
		g := openBulkhead(t, open, BulkheadSpec{Max: 1, Queue: 1, Wait: time.Second})
		start(t, g)
		begun := time.Now()
		if called, err := try(t.Context(), g, succeed); called || err == nil || time.Since(begun) != time.Second {
			t.Errorf("Do = %v, called %v after %v, want a refusal after 1s", err, called, time.Since(begun))
		}
	})},
	{"the caller's end ends the wait with its error", virtual(func(t *testing.T, open OpenBulkhead) {
		g := openBulkhead(t, open, BulkheadSpec{Max: 1, Queue: 1, Wait: time.Hour})
		start(t, g)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		if err := g.Do(ctx, succeed); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Second {
			t.Errorf("Do = %v after %v, want DeadlineExceeded after 1s", err, time.Since(begun))
		}
	})},
	{"a waiter cancelled in the moment of its grant loses no permit", virtual(func(t *testing.T, open OpenBulkhead) {
		for range 100 {
			g := openBulkhead(t, open, BulkheadSpec{Max: 1, Queue: 2, Wait: time.Hour})
			current, first, second := start(t, g), start(t, g), start(t, g)
			current.end()
			first.cancel()
			synctest.Wait()
			first.end()
			synctest.Wait()
			if !is(second.running) {
				t.Fatal("the permit is lost")
			}
			second.end()
			synctest.Wait()
		}
	})},
	{"a panic in the call gives the permit back", crashReleases("panic")},
	{"Goexit in the call gives the permit back", crashReleases("Goexit")},
	{"a success allocates nothing", func(t *testing.T, open OpenBulkhead) {
		g, ctx := openBulkhead(t, open, BulkheadSpec{Max: 5}), t.Context()
		noAllocations(t, func() { _ = g.Do(ctx, succeed) })
	}},
}

func crashReleases(how string) func(*testing.T, OpenBulkhead) {
	return virtual(func(t *testing.T, open OpenBulkhead) {
		g := openBulkhead(t, open, BulkheadSpec{Max: 1})
		for range 3 {
			if !crash(t.Context(), g, how) {
				t.Errorf("the %s did not come through", how)
			}
		}
		wantCalled(t, g, true, succeed)
	})
}
