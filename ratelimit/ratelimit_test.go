// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/ratelimit"
)

func newLimiter(t testing.TB, limit ratelimit.Limit, cfg ratelimit.Config) *ratelimit.Limiter {
	t.Helper()
	l, err := ratelimit.New(limit, cfg)
	if err != nil {
		t.Fatalf("New = %v, want nil", err)
	}
	return l
}

// admitted counts how many of n immediate calls are allowed.
func admitted(allow func() ratelimit.Result, n int) (ok int) {
	for range n {
		if allow().OK {
			ok++
		}
	}
	return ok
}

func TestNewNamesTheWrongField(t *testing.T) {
	for want, limit := range map[string]ratelimit.Limit{
		"ratelimit: Limit.Rate is 0 in 1s, want 1 to one a nanosecond":          {},
		"ratelimit: Limit.Rate is -1 in 1s, want 1 to one a nanosecond":         ratelimit.PerSecond(-1),
		"ratelimit: Limit.Rate is 2000000000 in 1s, want 1 to one a nanosecond": ratelimit.PerSecond(2e9),
		"ratelimit: Limit.Per is -1s, want 0 or more":                           {Rate: 1, Per: -time.Second},
		"ratelimit: Limit.Burst is -1, want 1 to 2305843009":                    {Rate: 1, Burst: -1},
		"ratelimit: Limit.Burst is 9223372036854775807, want 1 to 2305843009":   {Rate: 1, Burst: math.MaxInt64},
	} {
		if _, err := ratelimit.New(limit, ratelimit.Config{}); err == nil || err.Error() != want {
			t.Errorf("New(%+v) = %v, want %q", limit, err, want)
		}
		if _, err := ratelimit.NewKeyed[int](limit, 0); err == nil || err.Error() != want {
			t.Errorf("NewKeyed(%+v) = %v, want %q", limit, err, want)
		}
		if err := newLimiter(t, ratelimit.PerSecond(1), ratelimit.Config{}).Reconfigure(limit); err == nil || err.Error() != want {
			t.Errorf("Reconfigure(%+v) = %v, want %q", limit, err, want)
		}
	}
	if _, err := ratelimit.New(ratelimit.PerHour(1), ratelimit.Config{Wait: -1}); err == nil {
		t.Error("New with a negative Wait = nil, want an error")
	}
	if _, err := ratelimit.NewKeyed[int](ratelimit.PerHour(1), -1); err == nil {
		t.Error("NewKeyed with negative keys = nil, want an error")
	}
}

func TestAllow(t *testing.T) {
	t.Run("admits the burst, and then the rate", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, ratelimit.Limit{Rate: 10, Burst: 5}, ratelimit.Config{})
			if n := admitted(l.Allow, 100); n != 5 {
				t.Errorf("%d at once, want 5", n)
			}
			n := 0
			for range 10_000 {
				time.Sleep(time.Millisecond)
				n += admitted(l.Allow, 3)
			}
			if n != 100 {
				t.Errorf("%d in 10s, want 100", n)
			}
			time.Sleep(time.Hour)
			if n := admitted(l.Allow, 100); n != 5 {
				t.Errorf("%d at once after an hour, want 5", n)
			}
		})
	})
	t.Run("the zero Burst is the rate, the zero Per a second", func(t *testing.T) {
		l := newLimiter(t, ratelimit.Limit{Rate: 7}, ratelimit.Config{})
		if s := l.Stats(); s.Limit != (ratelimit.Limit{Rate: 7, Per: time.Second, Burst: 7}) || s.Remaining != 7 {
			t.Errorf("Stats = %+v, want 7 in 1s, burst 7", s)
		}
	})
	t.Run("the Result says how much is left and when to come back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, ratelimit.Limit{Rate: 1, Burst: 3}, ratelimit.Config{})
			for _, want := range []ratelimit.Result{
				{OK: true, Limit: 3, Remaining: 2, ResetAfter: 1 * time.Second},
				{OK: true, Limit: 3, Remaining: 1, ResetAfter: 2 * time.Second},
				{OK: true, Limit: 3, Remaining: 0, ResetAfter: 3 * time.Second},
				{OK: false, Limit: 3, Remaining: 0, ResetAfter: 3 * time.Second, RetryAfter: time.Second},
			} {
				if got := l.Allow(); got != want {
					t.Errorf("Allow = %+v, want %+v", got, want)
				}
			}
			time.Sleep(2500 * time.Millisecond)
			if got, want := l.AllowN(3), (ratelimit.Result{Limit: 3, Remaining: 2, ResetAfter: 500 * time.Millisecond, RetryAfter: 500 * time.Millisecond}); got != want {
				t.Errorf("AllowN(3) = %+v, want %+v", got, want)
			}
			if got := l.AllowN(2); !got.OK {
				t.Errorf("AllowN(2) = %+v, want OK: a refusal takes nothing", got)
			}
		})
	})
	t.Run("Err is a rejection with RetryAfter", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, ratelimit.PerSecond(1), ratelimit.Config{})
			if err := l.Allow().Err(); err != nil {
				t.Errorf("Err = %v, want nil", err)
			}
			var r *fault.Rejection
			if err := l.Allow().Err(); !errors.Is(err, ratelimit.ErrLimited) || !errors.As(err, &r) || r.RetryAfter != time.Second || r.By != "ratelimit" {
				t.Errorf("Err = %v, want ErrLimited after 1s", err)
			}
		})
	})
	t.Run("more than the burst is an error, not a time", func(t *testing.T) {
		l := newLimiter(t, ratelimit.PerSecond(3), ratelimit.Config{})
		r := l.AllowN(4)
		if r.OK || r.RetryAfter >= 0 || r.Remaining != 3 || !errors.Is(r.Err(), ratelimit.ErrBurst) || fault.Judge(t.Context(), r.Err()).Retry {
			t.Errorf("AllowN(4) = %+v, %v, want ErrBurst, not to be retried", r, r.Err())
		}
		if err := l.WaitN(t.Context(), 4); !errors.Is(err, ratelimit.ErrBurst) {
			t.Errorf("WaitN(4) = %v, want ErrBurst", err)
		}
		if r := l.AllowN(3); !r.OK {
			t.Errorf("AllowN(3) = %+v, want OK: nothing was taken", r)
		}
	})
	t.Run("a negative number panics", func(t *testing.T) {
		defer func() {
			if p := recover(); p != "ratelimit: -1 tokens, want 0 or more" {
				t.Errorf("recover = %v", p)
			}
		}()
		newLimiter(t, ratelimit.PerSecond(3), ratelimit.Config{}).AllowN(-1)
	})
	t.Run("the rate is never exceeded though intervals are whole nanoseconds", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, ratelimit.Limit{Rate: 3, Burst: 1}, ratelimit.Config{})
			n := 0
			for range 30_000 {
				n += admitted(l.Allow, 2)
				time.Sleep(time.Millisecond)
			}
			if n != 90 {
				t.Errorf("%d in 30s, want 90", n)
			}
		})
	})
	t.Run("many goroutines get no more than there is", func(t *testing.T) {
		l := newLimiter(t, ratelimit.Limit{Rate: 1, Per: time.Hour, Burst: 1000}, ratelimit.Config{})
		var ok atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { ok.Add(int64(admitted(l.Allow, 1000))) })
		}
		wg.Wait()
		if ok.Load() != 1000 {
			t.Errorf("%d admitted, want 1000", ok.Load())
		}
	})
}

// waiting is a Wait in its own goroutine.
type waiting struct {
	err    error
	took   time.Duration
	done   chan struct{}
	cancel context.CancelFunc
}

func startWait(t *testing.T, l *ratelimit.Limiter, n int) *waiting {
	ctx, cancel := context.WithCancel(t.Context())
	w := &waiting{done: make(chan struct{}), cancel: cancel}
	start := time.Now()
	go func() {
		defer close(w.done)
		w.err = l.WaitN(ctx, n)
		w.took = time.Since(start)
	}()
	synctest.Wait()
	return w
}

func TestWait(t *testing.T) {
	t.Run("takes a token as soon as there is one, in order", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, ratelimit.Limit{Rate: 1, Burst: 1}, ratelimit.Config{})
			var waits []*waiting
			for range 4 {
				waits = append(waits, startWait(t, l, 1))
			}
			if s := l.Stats(); s.Waiting != 3 || s.Remaining != 0 {
				t.Errorf("Stats = %+v, want 3 waiting", s)
			}
			for i, w := range waits {
				<-w.done
				if w.err != nil || w.took != time.Duration(i)*time.Second {
					t.Errorf("wait %d = %v after %v, want nil after %ds", i, w.err, w.took, i)
				}
			}
		})
	})
	t.Run("fails at once and takes nothing when its turn would be after the deadline", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, ratelimit.Limit{Rate: 1, Burst: 1}, ratelimit.Config{Name: "mail"})
			l.Allow()
			for _, limit := range []time.Duration{500 * time.Millisecond, time.Second} {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				start := time.Now()
				err := l.Wait(ctx)
				var r *fault.Rejection
				if !errors.Is(err, ratelimit.ErrLimited) || !errors.As(err, &r) || r.RetryAfter != time.Second || r.Name != "mail" || time.Since(start) != 0 {
					t.Errorf("Wait = %v after %v, want a rejection by mail at once, to retry after 1s", err, time.Since(start))
				}
			}
			time.Sleep(time.Second)
			if !l.Allow().OK {
				t.Error("the failed Wait took a token")
			}
		})
	})
	t.Run("nobody overtakes a waiter", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, ratelimit.Limit{Rate: 1, Burst: 1}, ratelimit.Config{})
			l.Allow()
			w := startWait(t, l, 1)
			time.Sleep(time.Second)
			if l.Allow().OK {
				t.Error("Allow took the waiter's token")
			}
			<-w.done
		})
	})
	t.Run("a cancelled one gives its tokens back and those behind it move up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, ratelimit.Limit{Rate: 1, Burst: 2}, ratelimit.Config{})
			l.AllowN(2)
			first, second, third, fourth := startWait(t, l, 1), startWait(t, l, 2), startWait(t, l, 1), startWait(t, l, 1)
			time.Sleep(500 * time.Millisecond)
			second.cancel()
			<-second.done
			if !errors.Is(second.err, context.Canceled) {
				t.Errorf("Wait = %v, want Canceled", second.err)
			}
			for i, w := range []*waiting{first, third, fourth} {
				<-w.done
				if want := time.Duration(i+1) * time.Second; w.err != nil || w.took != want {
					t.Errorf("wait %d = %v after %v, want nil after %v", i, w.err, w.took, want)
				}
			}
			if s := l.Stats(); s.Waiting != 0 {
				t.Errorf("Stats = %+v, want nobody waiting", s)
			}
		})
	})
	t.Run("cancelling in the moment of the turn never admits more than the limit", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			for range 100 { // both orders of the select occur
				l := newLimiter(t, ratelimit.Limit{Rate: 1, Burst: 1}, ratelimit.Config{})
				l.Allow()
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Second, cancel)
				l.Wait(ctx)
				if n := admitted(l.Allow, 5); n > 1 {
					t.Fatalf("%d admitted at once, want at most the burst of 1", n)
				}
			}
		})
	})
	t.Run("the caller's end before the call is its error and cause", func(t *testing.T) {
		l := newLimiter(t, ratelimit.PerHour(1), ratelimit.Config{})
		l.Allow()
		errShutdown := errors.New("shutting down")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errShutdown)
		if err := l.Wait(ctx); !errors.Is(err, context.Canceled) || !errors.Is(err, errShutdown) {
			t.Errorf("Wait = %v, want Canceled and its cause", err)
		}
	})
}

func TestDo(t *testing.T) {
	t.Run("refuses at once without Config.Wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, ratelimit.PerSecond(1), ratelimit.Config{})
			calls := 0
			fn := func(context.Context) error { calls++; return nil }
			for _, want := range []error{nil, ratelimit.ErrLimited} {
				if err := l.Do(t.Context(), fn); !errors.Is(err, want) {
					t.Errorf("Do = %v, want %v", err, want)
				}
			}
			v, err := ratelimit.Do(t.Context(), l, func(context.Context) (int, error) { calls++; return 1, nil })
			if v != 0 || !errors.Is(err, ratelimit.ErrLimited) || calls != 1 {
				t.Errorf("Do = %v, %v after %d calls, want ErrLimited after 1", v, err, calls)
			}
			time.Sleep(time.Second)
			if v, err := ratelimit.Do(t.Context(), l, func(context.Context) (int, error) { return 7, nil }); v != 7 || err != nil {
				t.Errorf("Do = %v, %v, want 7, nil", v, err)
			}
			if s := l.Stats(); s.Rejected != 2 {
				t.Errorf("Stats = %+v, want 2 rejected", s)
			}
		})
	})
	t.Run("waits no longer than Config.Wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, ratelimit.PerSecond(1), ratelimit.Config{Wait: time.Second})
			start := time.Now()
			for i, want := range []error{nil, nil, nil} {
				if err := l.Do(t.Context(), func(context.Context) error { return nil }); !errors.Is(err, want) {
					t.Errorf("Do %d = %v, want %v", i, err, want)
				}
			}
			if time.Since(start) != 2*time.Second {
				t.Errorf("took %v, want 2s", time.Since(start))
			}
			startWait(t, l, 1)
			if err := l.Acquire(t.Context()); !errors.Is(err, ratelimit.ErrLimited) {
				t.Errorf("Acquire = %v, want ErrLimited: its turn is in 2s", err)
			}
		})
	})
	t.Run("hooks may call back and may panic", func(t *testing.T) {
		var l *ratelimit.Limiter
		var log []string
		l = newLimiter(t, ratelimit.PerHour(1), ratelimit.Config{Name: "mail", Hooks: ratelimit.Hooks{Reject: func(r ratelimit.Rejected) {
			log = append(log, fmt.Sprint(r.Name, " ", l.Stats().Remaining, " ", r.Result.Limit))
			panic("hook")
		}}})
		l.Allow()
		func() {
			defer func() {
				if p := recover(); p != "hook" {
					t.Errorf("recover = %v, want hook", p)
				}
			}()
			l.Acquire(t.Context())
		}()
		if !slices.Equal(log, []string{"mail 0 1"}) {
			t.Errorf("log = %q", log)
		}
	})
}

func TestReconfigure(t *testing.T) {
	t.Run("what is used up stays used up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, ratelimit.Limit{Rate: 10, Burst: 10}, ratelimit.Config{})
			l.AllowN(6)
			if err := l.Reconfigure(ratelimit.Limit{Rate: 1, Burst: 10}); err != nil {
				t.Fatal(err)
			}
			if s := l.Stats(); s.Remaining != 4 {
				t.Errorf("Stats = %+v, want 4 remaining", s)
			}
			time.Sleep(time.Second)
			if s := l.Stats(); s.Remaining != 5 {
				t.Errorf("Stats = %+v, want 5 remaining", s)
			}
		})
	})
	t.Run("waiters are served by the new rate", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLimiter(t, ratelimit.PerMinute(1), ratelimit.Config{})
			l.Allow()
			a, b := startWait(t, l, 1), startWait(t, l, 1)
			if err := l.Reconfigure(ratelimit.Limit{Rate: 1, Burst: 1}); err != nil {
				t.Fatal(err)
			}
			for i, w := range []*waiting{a, b} {
				<-w.done
				if want := time.Duration(i+1) * time.Second; w.err != nil || w.took != want {
					t.Errorf("wait %d = %v after %v, want nil after %v", i, w.err, w.took, want)
				}
			}
			if s := l.Stats(); s.Remaining != 0 {
				t.Errorf("Stats = %+v, want 0 remaining", s)
			}
		})
	})
}

// TestRace lets everything run against everything, for the race detector.
func TestRace(t *testing.T) {
	t.Parallel()
	l := newLimiter(t, ratelimit.Limit{Rate: 100_000, Burst: 10}, ratelimit.Config{Wait: time.Millisecond})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				ctx, cancel := context.WithCancel(t.Context())
				if i%3 == 0 {
					go cancel()
				}
				switch {
				case g == 0 && i%20 == 0:
					if err := l.Reconfigure(ratelimit.Limit{Rate: 100_000 + i, Burst: 5 + i%10}); err != nil {
						t.Error(err)
					}
				case g%2 == 0:
					l.WaitN(ctx, 1+i%3)
				default:
					l.Allow()
					l.Stats()
					runtime.Gosched()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if s := l.Stats(); s.Waiting != 0 {
		t.Errorf("Stats = %+v, want nobody waiting", s)
	}
}

func TestSuccessDoesNotAllocate(t *testing.T) {
	l, ctx := newLimiter(t, ratelimit.PerSecond(1e9), ratelimit.Config{}), t.Context()
	keyed := newKeyed[string](t, ratelimit.PerSecond(1e9), 0)
	host := fmt.Sprint("host ", 1)
	keyed.Allow(host)
	if n := testing.AllocsPerRun(1000, func() {
		l.Allow()
		l.Wait(ctx)
		ratelimit.Do(ctx, l, func(context.Context) (int, error) { return 1, nil })
		keyed.Allow(host)
	}); n != 0 {
		t.Errorf("allocates %v times, want 0", n)
	}
}

func BenchmarkAllow(b *testing.B) {
	l := newLimiter(b, ratelimit.PerSecond(1e9), ratelimit.Config{})
	b.ReportAllocs()
	for b.Loop() {
		l.Allow()
	}
}

func BenchmarkAllowRefused(b *testing.B) {
	l := newLimiter(b, ratelimit.PerHour(1), ratelimit.Config{})
	b.ReportAllocs()
	for b.Loop() {
		l.Allow()
	}
}

func BenchmarkKeyed(b *testing.B) {
	k := newKeyed[string](b, ratelimit.PerSecond(1e9), 0)
	keys := make([]string, 64)
	for i := range keys {
		keys[i] = fmt.Sprint("client ", i)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		k.Allow(keys[i%64])
		i++
	}
}
