// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package bulkhead_test

import (
	"context"
	"errors"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/fault"
)

func newBulkhead(t testing.TB, max int, cfg bulkhead.Config) *bulkhead.Bulkhead {
	t.Helper()
	b, err := bulkhead.New(max, cfg)
	if err != nil {
		t.Fatalf("New = %v, want nil", err)
	}
	return b
}

func take(t *testing.T, b *bulkhead.Bulkhead) bulkhead.Permit {
	t.Helper()
	p, err := b.Acquire(t.Context())
	if err != nil {
		t.Fatalf("Acquire = %v, want nil", err)
	}
	return p
}

func wantStats(t *testing.T, b *bulkhead.Bulkhead, inFlight, waiting int) {
	t.Helper()
	if s := b.Stats(); s.InFlight != inFlight || s.Waiting != waiting {
		t.Errorf("Stats = %+v, want %d in flight, %d waiting", s, inFlight, waiting)
	}
}

func TestNewNamesWhatIsWrong(t *testing.T) {
	for want, try := range map[string]func() error{
		"bulkhead: max is 0, want 1 to 2147483647":           func() error { _, err := bulkhead.New(0, bulkhead.Config{}); return err },
		"bulkhead: max is 2147483648, want 1 to 2147483647":  func() error { _, err := bulkhead.New(math.MaxInt32+1, bulkhead.Config{}); return err },
		"bulkhead: Config.Queue is -1, want 0 to 2147483647": func() error { _, err := bulkhead.New(1, bulkhead.Config{Queue: -1}); return err },
		"bulkhead: Config.Wait is -1ns, want 0 or more":      func() error { _, err := bulkhead.New(1, bulkhead.Config{Wait: -1}); return err },
		"bulkhead: max is -5, want 1 to 2147483647":          func() error { return newBulkhead(t, 1, bulkhead.Config{}).Resize(-5) },
	} {
		if err := try(); err == nil || err.Error() != want {
			t.Errorf("error = %v, want %q", err, want)
		}
	}
}

func TestLimit(t *testing.T) {
	t.Run("no more than the maximum run, the rest is refused with ErrFull", func(t *testing.T) {
		b := newBulkhead(t, 2, bulkhead.Config{Name: "users"})
		take(t, b)
		p := take(t, b)
		v, err := bulkhead.Do(t.Context(), b, func(context.Context) (int, error) { t.Error("called"); return 1, nil })
		var r *fault.Rejection
		if v != 0 || !errors.Is(err, bulkhead.ErrFull) || !errors.As(err, &r) || r.By != "bulkhead" || r.Name != "users" {
			t.Errorf("Do = %v, %v, want a rejection of ErrFull", v, err)
		}
		if _, ok := b.TryAcquire(); ok {
			t.Error("TryAcquire = true, want false")
		}
		p.Release()
		p, ok := b.TryAcquire()
		if !ok {
			t.Error("TryAcquire = false, want true")
		}
		p.Release()
		if s := b.Stats(); s != (bulkhead.Stats{Name: "users", Max: 2, InFlight: 1, Rejected: 1}) {
			t.Errorf("Stats = %+v, want 1 of 2 in flight, 1 rejected", s)
		}
	})
	t.Run("results and errors pass through", func(t *testing.T) {
		b := newBulkhead(t, 1, bulkhead.Config{})
		errDown := errors.New("down")
		for range 3 {
			if v, err := bulkhead.Do(t.Context(), b, func(context.Context) (int, error) { return 7, errDown }); v != 7 || err != errDown {
				t.Errorf("Do = %v, %v, want 7, down", v, err)
			}
			if err := b.Do(t.Context(), func(context.Context) error { return errDown }); err != errDown {
				t.Errorf("Do = %v, want down", err)
			}
		}
		wantStats(t, b, 0, 0)
	})
	t.Run("a panic gives the permit back and passes through", func(t *testing.T) {
		b := newBulkhead(t, 1, bulkhead.Config{})
		for range 3 {
			func() {
				defer func() {
					if p := recover(); p != "boom" {
						t.Errorf("recover = %v, want boom", p)
					}
				}()
				bulkhead.Do(t.Context(), b, func(context.Context) (int, error) { panic("boom") })
			}()
		}
		wantStats(t, b, 0, 0)
	})
	t.Run("Goexit gives the permit back", func(t *testing.T) {
		b := newBulkhead(t, 1, bulkhead.Config{})
		for range 3 {
			done := make(chan struct{})
			go func() {
				defer close(done)
				b.Do(t.Context(), func(context.Context) error { runtime.Goexit(); return nil })
			}()
			<-done
		}
		wantStats(t, b, 0, 0)
	})
	t.Run("a permit given back twice panics rather than raising the limit", func(t *testing.T) {
		p := take(t, newBulkhead(t, 1, bulkhead.Config{}))
		p.Release()
		defer func() {
			if recover() == nil {
				t.Error("Release did not panic")
			}
		}()
		p.Release()
	})
	t.Run("the zero Permit does nothing", func(t *testing.T) { bulkhead.Permit{}.Release() })
}

// waiter is a call that waits in its own goroutine.
type waiter struct {
	name   string
	err    error
	done   chan struct{}
	permit bulkhead.Permit
	cancel context.CancelFunc
}

func (w *waiter) ended() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

type priorityKey struct{}

// wait starts a call with a priority and lets it come to rest.
func wait(t *testing.T, b *bulkhead.Bulkhead, name string, priority int) *waiter {
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), priorityKey{}, priority))
	w := &waiter{name: name, done: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(w.done)
		w.permit, w.err = b.Acquire(ctx)
	}()
	synctest.Wait()
	return w
}

func byPriority(ctx context.Context) int { p, _ := ctx.Value(priorityKey{}).(int); return p }

// serve gives back p, and then each permit that the waiters get, and returns the order.
func serve(p bulkhead.Permit, waiters ...*waiter) (order []string) {
	seen := map[*waiter]bool{}
	for {
		p.Release()
		synctest.Wait()
		at := slices.IndexFunc(waiters, func(w *waiter) bool { return w.ended() && w.err == nil && !seen[w] })
		if at < 0 {
			return order
		}
		seen[waiters[at]] = true
		order = append(order, waiters[at].name)
		p = waiters[at].permit
	}
}

func TestQueue(t *testing.T) {
	t.Run("calls wait for a permit and are served in order", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBulkhead(t, 1, bulkhead.Config{Queue: 3})
			p := take(t, b)
			waiters := []*waiter{wait(t, b, "a", 0), wait(t, b, "b", 0), wait(t, b, "c", 0)}
			wantStats(t, b, 1, 3)
			if order := serve(p, waiters...); !slices.Equal(order, []string{"a", "b", "c"}) {
				t.Errorf("served %v, want a b c", order)
			}
			wantStats(t, b, 0, 0)
		})
	})
	t.Run("LIFO serves the newest first, and the oldest makes way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBulkhead(t, 1, bulkhead.Config{Queue: 3, LIFO: true})
			p := take(t, b)
			a, bb, c, d := wait(t, b, "a", 0), wait(t, b, "b", 0), wait(t, b, "c", 0), wait(t, b, "d", 0)
			if !a.ended() || !errors.Is(a.err, bulkhead.ErrFull) {
				t.Errorf("the oldest: ended %v with %v, want ErrFull", a.ended(), a.err)
			}
			if order := serve(p, a, bb, c, d); !slices.Equal(order, []string{"d", "c", "b"}) {
				t.Errorf("served %v, want d c b", order)
			}
			wantStats(t, b, 0, 0)
		})
	})
	t.Run("a full queue refuses", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBulkhead(t, 1, bulkhead.Config{Queue: 1})
			p := take(t, b)
			a, bb := wait(t, b, "a", 0), wait(t, b, "b", 0)
			if a.ended() || !errors.Is(bb.err, bulkhead.ErrFull) {
				t.Errorf("a ended %v, b = %v, want a waiting, b ErrFull", a.ended(), bb.err)
			}
			serve(p, a)
		})
	})
	t.Run("higher priorities are served first, and push out the newest of the lowest", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBulkhead(t, 1, bulkhead.Config{Queue: 4, Priority: byPriority})
			p := take(t, b)
			low1, high1, low2, mid := wait(t, b, "low1", 1), wait(t, b, "high1", 3), wait(t, b, "low2", 1), wait(t, b, "mid", 2)
			high2, low3 := wait(t, b, "high2", 3), wait(t, b, "low3", 1)
			if !errors.Is(low2.err, bulkhead.ErrFull) || !errors.Is(low3.err, bulkhead.ErrFull) {
				t.Errorf("low2 = %v, low3 = %v, want ErrFull", low2.err, low3.err)
			}
			if order := serve(p, low1, high1, mid, high2); !slices.Equal(order, []string{"high1", "high2", "mid", "low1"}) {
				t.Errorf("served %v, want high1 high2 mid low1", order)
			}
		})
	})
	t.Run("nobody overtakes a waiter", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBulkhead(t, 1, bulkhead.Config{Queue: 2})
			p := take(t, b)
			a := wait(t, b, "a", 0)
			p.Release() // a has the permit now, though it may not have run yet
			if _, ok := b.TryAcquire(); ok {
				t.Error("TryAcquire overtook a waiter")
			}
			synctest.Wait()
			a.permit.Release()
		})
	})
	t.Run("Wait ends the wait with ErrFull", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBulkhead(t, 1, bulkhead.Config{Queue: 1, Wait: time.Second})
			take(t, b)
			start := time.Now()
			if _, err := b.Acquire(t.Context()); !errors.Is(err, bulkhead.ErrFull) || time.Since(start) != time.Second {
				t.Errorf("Acquire = %v after %v, want ErrFull after 1s", err, time.Since(start))
			}
			wantStats(t, b, 1, 0)
		})
	})
	t.Run("the caller's end ends the wait with its error and cause", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBulkhead(t, 1, bulkhead.Config{Queue: 1})
			take(t, b)
			errShutdown := errors.New("shutting down")
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(errShutdown) })
			err := b.Do(ctx, func(context.Context) error { t.Error("called"); return nil })
			if !errors.Is(err, context.Canceled) || !errors.Is(err, errShutdown) || errors.Is(err, bulkhead.ErrFull) {
				t.Errorf("Do = %v, want Canceled and its cause", err)
			}
			wantStats(t, b, 1, 0)
		})
	})
	t.Run("a waiter cancelled in the moment of its grant passes the permit on", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			for range 200 { // both orders of the select occur
				b := newBulkhead(t, 1, bulkhead.Config{Queue: 2})
				p := take(t, b)
				a, next := wait(t, b, "a", 0), wait(t, b, "next", 0)
				p.Release()
				a.cancel()
				synctest.Wait()
				if a.err == nil {
					a.permit.Release()
					synctest.Wait()
				}
				if !next.ended() || next.err != nil {
					t.Fatal("the permit was lost")
				}
				next.permit.Release()
				wantStats(t, b, 0, 0)
			}
		})
	})
}

func TestResize(t *testing.T) {
	t.Run("up admits waiters at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBulkhead(t, 1, bulkhead.Config{Queue: 5})
			p := take(t, b)
			a, bb, c := wait(t, b, "a", 0), wait(t, b, "b", 0), wait(t, b, "c", 0)
			if err := b.Resize(3); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if !a.ended() || !bb.ended() || c.ended() {
				t.Errorf("ended: %v %v %v, want a and b admitted", a.ended(), bb.ended(), c.ended())
			}
			for _, permit := range []bulkhead.Permit{p, a.permit, bb.permit} {
				permit.Release()
			}
			synctest.Wait()
			c.permit.Release()
			wantStats(t, b, 0, 0)
		})
	})
	t.Run("down lets running calls end and admits nobody before", func(t *testing.T) {
		b := newBulkhead(t, 3, bulkhead.Config{})
		permits := []bulkhead.Permit{take(t, b), take(t, b), take(t, b)}
		if err := b.Resize(1); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			permits[0].Release()
			permits = permits[1:]
			if _, ok := b.TryAcquire(); ok {
				t.Errorf("TryAcquire = true with %d of 1 in flight", b.Stats().InFlight)
			}
		}
		permits[0].Release()
		if _, ok := b.TryAcquire(); !ok {
			t.Error("TryAcquire = false, want true")
		}
	})
}

func TestHooks(t *testing.T) {
	var b *bulkhead.Bulkhead
	var log []string
	b = newBulkhead(t, 1, bulkhead.Config{Name: "users", Queue: 1, Wait: time.Millisecond, Hooks: bulkhead.Hooks{Reject: func(r bulkhead.Rejected) {
		b.Stats()
		log = append(log, r.Name+": "+r.Reason)
		panic("hook")
	}}})
	p := take(t, b)
	func() {
		defer func() { recover() }()
		b.Acquire(t.Context())
	}()
	if !slices.Equal(log, []string{"users: waited too long"}) {
		t.Errorf("log = %v", log)
	}
	p.Release()
	wantStats(t, b, 0, 0)
}

// TestRace checks the bound with everything running at once.
func TestRace(t *testing.T) {
	t.Parallel()
	for _, lifo := range []bool{false, true} {
		const highest = 4
		var running, served, gone atomic.Int64
		b := newBulkhead(t, highest, bulkhead.Config{Queue: 8, LIFO: lifo, Priority: byPriority})
		var wg sync.WaitGroup
		for g := range 16 {
			wg.Go(func() {
				for i := range 1500 {
					if g == 0 && i%10 == 0 {
						b.Resize(1 + i/10%highest)
					}
					ctx, cancel := context.WithCancel(context.WithValue(t.Context(), priorityKey{}, g%3))
					if i%7 == 0 {
						go cancel()
					}
					err := b.Do(ctx, func(context.Context) error {
						if n := running.Add(1); n > highest {
							t.Errorf("%d calls run, want at most %d", n, highest)
						}
						runtime.Gosched()
						running.Add(-1)
						return nil
					})
					if err == nil {
						served.Add(1)
					} else {
						gone.Add(1)
					}
					cancel()
				}
			})
		}
		wg.Wait()
		wantStats(t, b, 0, 0)
		if served.Load() == 0 || gone.Load() == 0 {
			t.Errorf("%d served, %d refused: the test shows nothing", served.Load(), gone.Load())
		}
	}
}

func TestSuccessDoesNotAllocate(t *testing.T) {
	b, ctx := newBulkhead(t, 1, bulkhead.Config{Queue: 1, Wait: time.Second}), t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		bulkhead.Do(ctx, b, func(context.Context) (int, error) { return 1, nil })
		b.Do(ctx, func(context.Context) error { return nil })
	}); n != 0 {
		t.Errorf("Do allocates %v times, want 0", n)
	}
}

func BenchmarkDo(b *testing.B) {
	bh := newBulkhead(b, 10, bulkhead.Config{})
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		bulkhead.Do(ctx, bh, func(context.Context) (int, error) { return 1, nil })
	}
}
