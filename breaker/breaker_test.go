// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/fault"
)

var errDown = errors.New("down")

func newBreaker(t testing.TB, cfg breaker.Config) *breaker.Breaker {
	t.Helper()
	b, err := breaker.New(cfg)
	if err != nil {
		t.Fatalf("New = %v, want nil", err)
	}
	return b
}

func succeed(context.Context) error { return nil }
func fail(context.Context) error    { return errDown }

// repeat calls b n times with fn.
func repeat(ctx context.Context, b *breaker.Breaker, n int, fn func(context.Context) error) {
	for range n {
		b.Do(ctx, fn)
	}
}

func wantState(t *testing.T, b *breaker.Breaker, want breaker.State) {
	t.Helper()
	if got := b.State(); got != want {
		t.Errorf("State = %v, want %v (%+v)", got, want, b.Stats())
	}
}

// opened returns a breaker that has just opened, and sleeps until it is half-open if asked.
func opened(t *testing.T, cfg breaker.Config, halfOpen bool) *breaker.Breaker {
	t.Helper()
	b := newBreaker(t, cfg)
	for i := 0; b.State() == breaker.Closed && i < 1000; i++ {
		b.Do(t.Context(), fail)
	}
	wantState(t, b, breaker.Open)
	if halfOpen {
		time.Sleep(b.Stats().RetryAfter)
		wantState(t, b, breaker.HalfOpen)
	}
	return b
}

func TestNewNamesTheWrongField(t *testing.T) {
	for want, cfg := range map[string]breaker.Config{
		"breaker: Config.FailureRate is 1.4, want 0 to 1":                                    {FailureRate: 1.4},
		"breaker: Config.SlowRate is NaN, want 0 to 1":                                       {SlowRate: math.NaN()},
		"breaker: Config.Window is -1s, want 0 or more":                                      {Window: -time.Second},
		"breaker: Config.Window is 1µs, want at least 1ms":                                   {Window: time.Microsecond},
		"breaker: Config.OpenMax is 1s, want at least OpenFor, 1m0s":                         {OpenFor: time.Minute, OpenMax: time.Second},
		"breaker: Config.Probes is -1, want 0 or more":                                       {Probes: -1},
		"breaker: Config.MinCalls is 20, want at most Calls, 10":                             {FailureRate: 0.5, Calls: 10, MinCalls: 20},
		"breaker: Config.Consecutive is -1 and no rate is set, want a condition to open":     {Consecutive: -1},
		"breaker: Config.Mode is breaker.Mode(9), want Auto, ForcedOpen, Disabled or Shadow": {Mode: 9},
		"breaker: Config.ProbeTimeout is -1ns, want 0 or more":                               {ProbeTimeout: -1},
		"breaker: Config.SlowAfter is -1ns, want 0 or more":                                  {SlowAfter: -1},
		"breaker: Config.OpenFor is -1ns, want 0 or more":                                    {OpenFor: -1},
	} {
		if _, err := breaker.New(cfg); err == nil || err.Error() != want {
			t.Errorf("New = %v, want %q", err, want)
		}
		if err := newBreaker(t, breaker.Config{}).Reconfigure(cfg); err == nil || err.Error() != want {
			t.Errorf("Reconfigure = %v, want %q", err, want)
		}
	}
}

func TestConditions(t *testing.T) {
	t.Run("consecutive failures open it, a success in between does not count", func(t *testing.T) {
		b := newBreaker(t, breaker.Config{Consecutive: 3})
		repeat(t.Context(), b, 2, fail)
		repeat(t.Context(), b, 1, succeed)
		repeat(t.Context(), b, 2, fail)
		wantState(t, b, breaker.Closed)
		repeat(t.Context(), b, 1, fail)
		wantState(t, b, breaker.Open)
	})
	t.Run("the zero Config opens after five", func(t *testing.T) {
		b := newBreaker(t, breaker.Config{})
		repeat(t.Context(), b, 4, fail)
		wantState(t, b, breaker.Closed)
		repeat(t.Context(), b, 1, fail)
		wantState(t, b, breaker.Open)
	})
	t.Run("a failure rate opens it from MinCalls on", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, breaker.Config{FailureRate: 0.5, MinCalls: 10})
			repeat(t.Context(), b, 9, fail)
			wantState(t, b, breaker.Closed)
			repeat(t.Context(), b, 1, fail)
			wantState(t, b, breaker.Open)
		})
	})
	t.Run("the rate is compared without rounding", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, breaker.Config{FailureRate: 0.5, MinCalls: 200})
			repeat(t.Context(), b, 101, succeed)
			repeat(t.Context(), b, 99, fail) // 0.495
			wantState(t, b, breaker.Closed)
			repeat(t.Context(), b, 2, fail) // 101 of 202
			wantState(t, b, breaker.Open)

			b = newBreaker(t, breaker.Config{FailureRate: 0.1, MinCalls: 30})
			repeat(t.Context(), b, 27, succeed)
			repeat(t.Context(), b, 3, fail) // 3/30 is 0.1, though 0.1*30 is more than 3
			wantState(t, b, breaker.Open)
		})
	})
	t.Run("results leave the window by time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, breaker.Config{FailureRate: 0.5, MinCalls: 10, Window: 10 * time.Second})
			repeat(t.Context(), b, 9, fail)
			time.Sleep(8 * time.Second)
			if s := b.Stats(); s.Calls != 9 || s.Failures != 9 {
				t.Errorf("Stats = %+v, want 9 calls in the window", s)
			}
			time.Sleep(2 * time.Second)
			if s := b.Stats(); s.Calls != 0 {
				t.Errorf("Stats = %+v, want an empty window", s)
			}
			repeat(t.Context(), b, 9, fail)
			wantState(t, b, breaker.Closed)
			time.Sleep(1000 * time.Hour) // idle, then a burst
			repeat(t.Context(), b, 9, fail)
			wantState(t, b, breaker.Closed)
		})
	})
	t.Run("results leave the window by calls", func(t *testing.T) {
		b := newBreaker(t, breaker.Config{FailureRate: 0.5, Calls: 10})
		for range 10 {
			repeat(t.Context(), b, 4, fail)
			repeat(t.Context(), b, 6, succeed)
		}
		wantState(t, b, breaker.Closed)
		if s := b.Stats(); s.Calls != 10 || s.Failures != 4 {
			t.Errorf("Stats = %+v, want 4 of 10", s)
		}
		repeat(t.Context(), b, 5, fail)
		wantState(t, b, breaker.Open)
	})
	t.Run("slow calls open it although they succeed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, breaker.Config{SlowRate: 0.5, SlowAfter: time.Second, MinCalls: 4, Window: time.Hour})
			repeat(t.Context(), b, 2, succeed)
			slow := func(context.Context) error { time.Sleep(time.Second); return nil }
			repeat(t.Context(), b, 1, slow)
			wantState(t, b, breaker.Closed)
			repeat(t.Context(), b, 1, slow)
			wantState(t, b, breaker.Open)
		})
	})
	t.Run("closing empties the window", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, breaker.Config{FailureRate: 0.5, MinCalls: 10, Window: time.Hour}, true)
			repeat(t.Context(), b, 1, succeed)
			wantState(t, b, breaker.Closed)
			if s := b.Stats(); s.Calls != 0 {
				t.Errorf("Stats = %+v, want an empty window", s)
			}
		})
	})
}

func TestOpen(t *testing.T) {
	t.Run("refuses with ErrOpen and the rest of the open time, and calls nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, breaker.Config{Name: "users", OpenFor: 10 * time.Second}, false)
			left := b.Stats().RetryAfter
			if left < 10*time.Second || left > 15*time.Second {
				t.Errorf("RetryAfter = %v, want 10s to 15s", left)
			}
			time.Sleep(time.Second)
			v, err := breaker.Do(t.Context(), b, func(context.Context) (int, error) { t.Error("called"); return 1, nil })
			var r *fault.Rejection
			if v != 0 || !errors.Is(err, breaker.ErrOpen) || !errors.As(err, &r) {
				t.Fatalf("Do = %v, %v, want a rejection of ErrOpen", v, err)
			}
			if r.By != "breaker" || r.Name != "users" || r.RetryAfter != left-time.Second {
				t.Errorf("rejection = %+v, want RetryAfter %v", r, left-time.Second)
			}
		})
	})
	t.Run("State is computed from the clock though nobody calls", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, breaker.Config{}, false)
			time.Sleep(b.Stats().RetryAfter)
			wantState(t, b, breaker.HalfOpen)
			if s := b.Stats(); s.State != breaker.HalfOpen || s.RetryAfter != 0 {
				t.Errorf("Stats = %+v, want half-open", s)
			}
		})
	})
	t.Run("the open time doubles up to OpenMax, spreads upwards, and starts again after a time of health", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, breaker.Config{OpenFor: time.Second, OpenMax: 5 * time.Second}, false)
			for _, want := range []time.Duration{1, 2, 4, 5, 5} {
				got := b.Stats().RetryAfter
				if want *= time.Second; got < want || got > want+want/2 {
					t.Errorf("open for %v, want %v to %v", got, want, want+want/2)
				}
				time.Sleep(got)
				repeat(t.Context(), b, 1, fail)
			}
			time.Sleep(b.Stats().RetryAfter)
			repeat(t.Context(), b, 1, succeed)
			wantState(t, b, breaker.Closed)
			repeat(t.Context(), b, 5, fail) // at once: it was not well yet
			if got := b.Stats().RetryAfter; got < 5*time.Second {
				t.Errorf("open for %v after a short health, want 5s or more", got)
			}
			time.Sleep(b.Stats().RetryAfter)
			repeat(t.Context(), b, 1, succeed)
			time.Sleep(5 * time.Second)
			repeat(t.Context(), b, 5, fail)
			if got := b.Stats().RetryAfter; got > 1500*time.Millisecond {
				t.Errorf("open for %v after a time of health, want 1s to 1.5s", got)
			}
		})
	})
	t.Run("many breakers do not probe together", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			seen := map[time.Duration]bool{}
			for range 50 {
				seen[opened(t, breaker.Config{}, false).Stats().RetryAfter] = true
			}
			if len(seen) < 40 {
				t.Errorf("%d different open times of 50 breakers", len(seen))
			}
		})
	})
	t.Run("an endless open time does not overflow", func(t *testing.T) {
		b := newBreaker(t, breaker.Config{OpenFor: math.MaxInt64})
		repeat(t.Context(), b, 5, fail)
		wantState(t, b, breaker.Open)
	})
}

func TestHalfOpen(t *testing.T) {
	cfg := breaker.Config{Probes: 3, ProbeTimeout: 30 * time.Second}

	t.Run("admits exactly Probes at a time, whoever races", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, cfg, true)
			var admitted, refused atomic.Int64
			var wg sync.WaitGroup
			release := make(chan struct{})
			for range 100 {
				wg.Go(func() {
					if err := b.Do(t.Context(), func(context.Context) error { admitted.Add(1); <-release; return nil }); err != nil {
						refused.Add(1)
					}
				})
			}
			synctest.Wait()
			if admitted.Load() != 3 || refused.Load() != 97 || b.Stats().Probes != 3 {
				t.Errorf("%d admitted, %d refused, want 3 and 97", admitted.Load(), refused.Load())
			}
			close(release)
			wg.Wait()
			wantState(t, b, breaker.Closed)
		})
	})
	t.Run("closes after Probes successes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, cfg, true)
			repeat(t.Context(), b, 2, succeed)
			wantState(t, b, breaker.HalfOpen)
			repeat(t.Context(), b, 1, succeed)
			wantState(t, b, breaker.Closed)
		})
	})
	t.Run("one failure opens it again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, cfg, true)
			repeat(t.Context(), b, 2, succeed)
			repeat(t.Context(), b, 1, fail)
			wantState(t, b, breaker.Open)
		})
	})
	t.Run("a slow probe opens it again where slow calls count", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, breaker.Config{Consecutive: 5, SlowRate: 0.5, SlowAfter: time.Second}, true)
			b.Do(t.Context(), func(context.Context) error { time.Sleep(2 * time.Second); return nil })
			wantState(t, b, breaker.Open)
		})
	})
	t.Run("a hung probe loses its place, and its late result is ignored", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, breaker.Config{ProbeTimeout: 30 * time.Second}, true)
			hung, err := b.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(29 * time.Second)
			if err := b.Do(t.Context(), succeed); !errors.Is(err, breaker.ErrOpen) {
				t.Errorf("Do = %v while the probe is out, want ErrOpen", err)
			}
			time.Sleep(time.Second)
			second, err := b.Acquire(t.Context())
			if err != nil {
				t.Fatalf("Acquire = %v after ProbeTimeout, want nil", err)
			}
			hung.Done(t.Context(), nil)
			wantState(t, b, breaker.HalfOpen)
			hung.Done(t.Context(), errDown)
			wantState(t, b, breaker.HalfOpen)
			second.Done(t.Context(), nil)
			wantState(t, b, breaker.Closed)
		})
	})
	t.Run("a neutral probe gives its place back and counts for nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, breaker.Config{}, true)
			for _, err := range []error{
				&fault.Rejection{By: "bulkhead", Err: errDown},
				fault.Permanent(errDown),
			} {
				if got := b.Do(t.Context(), func(context.Context) error { return err }); got != err {
					t.Fatalf("Do = %v, want %v", got, err)
				}
				wantState(t, b, breaker.HalfOpen)
			}
			ctx, cancel := context.WithCancel(t.Context())
			b.Do(ctx, func(ctx context.Context) error { cancel(); return ctx.Err() })
			if s := b.Stats(); s.State != breaker.HalfOpen || s.Probes != 0 {
				t.Errorf("Stats = %+v, want half-open with no probe out", s)
			}
		})
	})
	t.Run("a caller who has gone is not sent as a probe", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, breaker.Config{}, true)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := b.Do(ctx, succeed); !errors.Is(err, context.Canceled) {
				t.Errorf("Do = %v, want Canceled", err)
			}
			wantState(t, b, breaker.HalfOpen)
		})
	})
}

func TestPanicAndGoexit(t *testing.T) {
	panics := func(t *testing.T, b *breaker.Breaker) {
		defer func() {
			if p := recover(); p != "boom" {
				t.Errorf("recover = %v, want boom", p)
			}
		}()
		breaker.Do(t.Context(), b, func(context.Context) (int, error) { panic("boom") })
	}
	exits := func(t *testing.T, b *breaker.Breaker) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			b.Do(t.Context(), func(context.Context) error { runtime.Goexit(); return nil })
			t.Error("Do returned after Goexit")
		}()
		<-done
	}
	for name, crash := range map[string]func(*testing.T, *breaker.Breaker){"a panic": panics, "Goexit": exits} {
		t.Run(name+" is a failure and passes through", func(t *testing.T) {
			b := newBreaker(t, breaker.Config{Consecutive: 3})
			for range 3 {
				crash(t, b)
			}
			wantState(t, b, breaker.Open)
		})
		t.Run(name+" in a probe gives its place back", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := opened(t, breaker.Config{}, true)
				crash(t, b)
				wantState(t, b, breaker.Open)
				time.Sleep(b.Stats().RetryAfter)
				if err := b.Do(t.Context(), succeed); err != nil {
					t.Errorf("Do = %v, want nil", err)
				}
				wantState(t, b, breaker.Closed)
			})
		})
	}
}

func TestGenerations(t *testing.T) {
	t.Run("late results from the closed state say nothing about half-open", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, breaker.Config{})
			var late []breaker.Ticket
			for range 20 {
				ticket, err := b.Acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				late = append(late, ticket)
			}
			repeat(t.Context(), b, 5, fail)
			time.Sleep(b.Stats().RetryAfter)
			probe, err := b.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for i, ticket := range late {
				ticket.Done(t.Context(), []error{nil, errDown}[i%2])
			}
			if s := b.Stats(); s.State != breaker.HalfOpen || s.Probes != 1 {
				t.Errorf("Stats = %+v, want half-open with the probe out", s)
			}
			probe.Done(t.Context(), nil)
			wantState(t, b, breaker.Closed)
		})
	})
	t.Run("a late failure does not count against the next closed state", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, breaker.Config{Consecutive: 1})
			late, _ := b.Acquire(t.Context())
			b.Do(t.Context(), fail)
			time.Sleep(b.Stats().RetryAfter)
			b.Do(t.Context(), succeed)
			late.Done(t.Context(), errDown)
			wantState(t, b, breaker.Closed)
		})
	})
	t.Run("the zero Ticket does nothing", func(t *testing.T) {
		breaker.Ticket{}.Done(t.Context(), errDown)
		breaker.Ticket{}.Settle(t.Context(), fault.Verdict{})
	})
}

func TestCallerContext(t *testing.T) {
	t.Run("cancellation opens nothing", func(t *testing.T) {
		b := newBreaker(t, breaker.Config{Consecutive: 1})
		for range 100 {
			ctx, cancel := context.WithCancel(t.Context())
			b.Do(ctx, func(ctx context.Context) error { cancel(); return ctx.Err() })
		}
		wantState(t, b, breaker.Closed)
	})
	t.Run("Canceled from the callee while the caller waits is a failure", func(t *testing.T) {
		b := newBreaker(t, breaker.Config{Consecutive: 1})
		b.Do(t.Context(), func(context.Context) error { return context.Canceled })
		wantState(t, b, breaker.Open)
	})
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	hangFor := func(t *testing.T, b *breaker.Breaker, d time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		b.Do(ctx, hang)
	}
	t.Run("a dependency that hangs opens the breaker although only its callers have deadlines", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, breaker.Config{Consecutive: 3})
			hangFor(t, b, 2*time.Second) // makes the next calls be timed
			for range 2 {
				hangFor(t, b, 2*time.Second)
			}
			wantState(t, b, breaker.Closed)
			hangFor(t, b, 2*time.Second)
			wantState(t, b, breaker.Open)
		})
	})
	t.Run("a deadline sooner than SlowAfter says nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, breaker.Config{Consecutive: 3})
			for range 50 {
				hangFor(t, b, 999*time.Millisecond)
			}
			wantState(t, b, breaker.Closed)
		})
	})
	t.Run("calls are timed no longer once they go well", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, breaker.Config{Consecutive: 1})
			hangFor(t, b, 2*time.Second)
			repeat(t.Context(), b, 64, succeed)
			hangFor(t, b, 2*time.Second) // not timed again
			wantState(t, b, breaker.Closed)
			hangFor(t, b, 2*time.Second)
			wantState(t, b, breaker.Open)
		})
	})
	t.Run("a probe that its caller's deadline cut off late has failed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, breaker.Config{}, true)
			hangFor(t, b, 2*time.Second)
			wantState(t, b, breaker.Open)
		})
	})
}

func TestModes(t *testing.T) {
	t.Run("ForcedOpen refuses every call until Auto, and then starts closed", func(t *testing.T) {
		b := newBreaker(t, breaker.Config{})
		b.Force(breaker.ForcedOpen)
		wantState(t, b, breaker.Open)
		err := b.Do(t.Context(), succeed)
		var r *fault.Rejection
		if !errors.As(err, &r) || !errors.Is(err, breaker.ErrOpen) || r.RetryAfter != 0 {
			t.Errorf("Do = %v, want ErrOpen without a time", err)
		}
		b.Force(breaker.Auto)
		if err := b.Do(t.Context(), succeed); err != nil {
			t.Errorf("Do = %v, want nil", err)
		}
	})
	t.Run("Disabled admits every call and records nothing", func(t *testing.T) {
		b := newBreaker(t, breaker.Config{Mode: breaker.Disabled})
		repeat(t.Context(), b, 100, fail)
		wantState(t, b, breaker.Closed)
		b.Force(breaker.Auto)
		repeat(t.Context(), b, 4, fail)
		wantState(t, b, breaker.Closed)
	})
	t.Run("Shadow decides and reports but lets every call through", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var rejected []breaker.Rejected
			b := newBreaker(t, breaker.Config{Mode: breaker.Shadow, Hooks: breaker.Hooks{
				Reject: func(r breaker.Rejected) { rejected = append(rejected, r) },
			}})
			repeat(t.Context(), b, 5, fail)
			wantState(t, b, breaker.Open)
			calls := 0
			for range 3 {
				if err := b.Do(t.Context(), func(context.Context) error { calls++; return errDown }); err != errDown {
					t.Errorf("Do = %v, want errDown", err)
				}
			}
			if calls != 3 || len(rejected) != 3 || rejected[0].Mode != breaker.Shadow || b.Stats().Rejected != 3 {
				t.Errorf("%d calls, %d reported, want 3 and 3", calls, len(rejected))
			}
			time.Sleep(b.Stats().RetryAfter)
			gone, cancel := context.WithCancel(t.Context())
			cancel()
			if err := b.Do(gone, succeed); err != nil {
				t.Errorf("Do = %v, want every call let through", err)
			}
			b.Do(t.Context(), succeed)
			wantState(t, b, breaker.Closed)
		})
	})
	t.Run("Shadow and Auto share what is known", func(t *testing.T) {
		b := newBreaker(t, breaker.Config{Mode: breaker.Shadow})
		late, _ := b.Acquire(t.Context())
		repeat(t.Context(), b, 4, fail)
		b.Force(breaker.Auto)
		wantState(t, b, breaker.Closed)
		late.Done(t.Context(), errDown)
		wantState(t, b, breaker.Open)
	})
	t.Run("Reset closes and forgets", func(t *testing.T) {
		b := newBreaker(t, breaker.Config{})
		repeat(t.Context(), b, 9, fail)
		b.Reset()
		repeat(t.Context(), b, 4, fail)
		wantState(t, b, breaker.Closed)
	})
}

func TestReconfigure(t *testing.T) {
	t.Run("keeps the state and the failures in a row", func(t *testing.T) {
		b := newBreaker(t, breaker.Config{Consecutive: 10})
		repeat(t.Context(), b, 4, fail)
		late, _ := b.Acquire(t.Context())
		if err := b.Reconfigure(breaker.Config{Consecutive: 5}); err != nil {
			t.Fatal(err)
		}
		late.Done(t.Context(), errDown) // admitted before, still valid
		wantState(t, b, breaker.Open)
		if err := b.Reconfigure(breaker.Config{Consecutive: 7}); err != nil {
			t.Fatal(err)
		}
		wantState(t, b, breaker.Open)
	})
	for name, windows := range map[string][2]breaker.Config{
		"wider by time":   {{Window: 10 * time.Second}, {Window: time.Minute}},
		"shorter by time": {{Window: time.Minute}, {Window: 20 * time.Second}},
		"more calls":      {{Calls: 20}, {Calls: 50}},
		"fewer calls":     {{Calls: 50}, {Calls: 20}},
	} {
		t.Run("keeps the window: "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				before, after := windows[0], windows[1]
				before.FailureRate, after.FailureRate = 0.9, 0.5
				before.MinCalls, after.MinCalls = 20, 20
				b := newBreaker(t, before)
				time.Sleep(time.Hour)
				repeat(t.Context(), b, 8, succeed)
				time.Sleep(time.Second)
				repeat(t.Context(), b, 11, fail)
				if err := b.Reconfigure(after); err != nil {
					t.Fatal(err)
				}
				if s := b.Stats(); s.Calls != 19 || s.Failures != 11 {
					t.Errorf("Stats = %+v, want 11 of 19", s)
				}
				repeat(t.Context(), b, 1, fail)
				wantState(t, b, breaker.Open)
			})
		})
	}
	t.Run("a shorter window by calls keeps the last ones", func(t *testing.T) {
		b := newBreaker(t, breaker.Config{FailureRate: 1, Calls: 30})
		repeat(t.Context(), b, 20, fail)
		b = newBreaker(t, breaker.Config{FailureRate: 1, Calls: 30})
		repeat(t.Context(), b, 10, fail)
		repeat(t.Context(), b, 5, succeed)
		if err := b.Reconfigure(breaker.Config{FailureRate: 1, Calls: 7}); err != nil {
			t.Fatal(err)
		}
		if s := b.Stats(); s.Calls != 7 || s.Failures != 2 {
			t.Errorf("Stats = %+v, want 2 of 7", s)
		}
	})
	t.Run("keeps the probes that are out", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, breaker.Config{Probes: 3}, true)
			var probes []breaker.Ticket
			for range 3 {
				p, err := b.Acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				probes = append(probes, p)
			}
			if err := b.Reconfigure(breaker.Config{Probes: 2}); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Acquire(t.Context()); !errors.Is(err, breaker.ErrOpen) {
				t.Errorf("Acquire = %v, want ErrOpen", err)
			}
			for _, p := range probes {
				p.Done(t.Context(), nil)
			}
			wantState(t, b, breaker.Closed)
		})
	})
	t.Run("a probe whose time is up takes no place from one that is out", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := opened(t, breaker.Config{Probes: 2, ProbeTimeout: time.Minute}, true)
			older, err := b.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Reconfigure(breaker.Config{Probes: 2, ProbeTimeout: time.Second}); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Acquire(t.Context()); err != nil { // hangs, and is given up
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			if err := b.Reconfigure(breaker.Config{Probes: 1}); err != nil {
				t.Fatal(err)
			}
			if n := b.Stats().Probes; n != 1 {
				t.Errorf("%d probes out, want the older one", n)
			}
			older.Done(t.Context(), nil)
			wantState(t, b, breaker.Closed)
		})
	})
	t.Run("a call from before, cut off by its deadline, does not stop the timing of slow calls", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, breaker.Config{})
			late, _ := b.Acquire(t.Context())
			if err := b.Reconfigure(breaker.Config{SlowRate: 1, MinCalls: 100, Calls: 100}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 0)
			defer cancel()
			late.Done(ctx, context.DeadlineExceeded)
			repeat(t.Context(), b, 100, func(context.Context) error { time.Sleep(time.Second); return nil })
			wantState(t, b, breaker.Open)
		})
	})
	t.Run("adds and removes the slow-call rate", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, breaker.Config{})
			slow := func(context.Context) error { time.Sleep(time.Second); return nil }
			for _, want := range []breaker.State{breaker.Open, breaker.Closed} {
				cfg := breaker.Config{}
				if want == breaker.Open {
					cfg = breaker.Config{SlowRate: 1, MinCalls: 3}
				}
				b.Reset()
				if err := b.Reconfigure(cfg); err != nil {
					t.Fatal(err)
				}
				repeat(t.Context(), b, 3, slow)
				wantState(t, b, want)
			}
		})
	})
}

func TestHooks(t *testing.T) {
	t.Run("report every change once, in order", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var log []string
			b := newBreaker(t, breaker.Config{Name: "users", Hooks: breaker.Hooks{Change: func(c breaker.Change) {
				log = append(log, fmt.Sprintf("%s %v-%v %v: %s", c.Name, c.From, c.To, c.Mode, c.Reason))
				if (c.OpenFor > 0) != (c.To == breaker.Open && c.Mode == breaker.Auto) {
					t.Errorf("OpenFor = %v to %v", c.OpenFor, c.To)
				}
			}}})
			repeat(t.Context(), b, 5, fail)
			time.Sleep(b.Stats().RetryAfter)
			repeat(t.Context(), b, 1, fail)
			time.Sleep(b.Stats().RetryAfter)
			repeat(t.Context(), b, 1, succeed)
			b.Reset()
			b.Force(breaker.ForcedOpen)
			b.Force(breaker.ForcedOpen)
			b.Force(breaker.Auto)
			want := []string{
				"users closed-open auto: consecutive failures",
				"users open-half-open auto: open time is up",
				"users half-open-open auto: probe failed",
				"users open-half-open auto: open time is up",
				"users half-open-closed auto: probes succeeded",
				"users closed-open forced-open: forced",
				"users open-closed auto: forced",
			}
			if !slices.Equal(log, want) {
				t.Errorf("changes:\n%s\nwant:\n%s", strings.Join(log, "\n"), strings.Join(want, "\n"))
			}
		})
	})
	t.Run("may call the breaker", func(t *testing.T) {
		var b *breaker.Breaker
		var log []string
		b = newBreaker(t, breaker.Config{Hooks: breaker.Hooks{
			Change: func(c breaker.Change) {
				b.State()
				b.Stats()
				log = append(log, c.To.String()+" "+c.Mode.String())
				if c.To == breaker.Open && c.Mode == breaker.Auto {
					b.Force(breaker.Disabled) // reported after this one
					b.Do(t.Context(), fail)
					log = append(log, "end")
				}
			},
			Reject: func(breaker.Rejected) { b.Stats() },
		}})
		repeat(t.Context(), b, 5, fail)
		if want := []string{"open auto", "end", "closed disabled"}; !slices.Equal(log, want) {
			t.Errorf("changes = %v, want %v", log, want)
		}
	})
	t.Run("may panic: the panic passes through, nothing is lost or blocked", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var log []breaker.State
			b := newBreaker(t, breaker.Config{Consecutive: 1, Hooks: breaker.Hooks{Change: func(c breaker.Change) {
				log = append(log, c.To)
				panic("hook")
			}}})
			do := func(fn func(context.Context) error) (p any) {
				defer func() { p = recover() }()
				b.Do(t.Context(), fn)
				return nil
			}
			if p := do(fail); p != "hook" {
				t.Errorf("recover = %v, want hook", p)
			}
			time.Sleep(b.Stats().RetryAfter)
			if p := do(succeed); p != "hook" { // on becoming half-open, before the call
				t.Errorf("recover = %v, want hook", p)
			}
			if s := b.Stats(); s.State != breaker.HalfOpen || s.Probes != 0 {
				t.Errorf("Stats = %+v, want half-open, the probe's place free", s)
			}
			do(succeed)
			wantState(t, b, breaker.Closed)
			if want := []breaker.State{breaker.Open, breaker.HalfOpen, breaker.Closed}; !slices.Equal(log, want) {
				t.Errorf("changes = %v, want %v", log, want)
			}
		})
	})
	t.Run("a change that waits behind a panicking hook is still reported", func(t *testing.T) {
		var b *breaker.Breaker
		var log []breaker.Mode
		b = newBreaker(t, breaker.Config{Hooks: breaker.Hooks{Change: func(c breaker.Change) {
			if log = append(log, c.Mode); c.Mode == breaker.ForcedOpen {
				b.Force(breaker.Disabled)
				panic("hook")
			}
		}}})
		func() {
			defer func() { recover() }()
			b.Force(breaker.ForcedOpen)
		}()
		if want := []breaker.Mode{breaker.ForcedOpen, breaker.Disabled}; !slices.Equal(log, want) {
			t.Errorf("changes = %v, want %v", log, want)
		}
	})
	t.Run("a slow hook does not block traffic", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBreaker(t, breaker.Config{Consecutive: 1, Hooks: breaker.Hooks{Change: func(breaker.Change) { time.Sleep(time.Hour) }}})
			go b.Do(t.Context(), fail)
			synctest.Wait()
			start := time.Now()
			if err := b.Do(t.Context(), succeed); !errors.Is(err, breaker.ErrOpen) || time.Since(start) != 0 {
				t.Errorf("Do = %v after %v, want ErrOpen at once", err, time.Since(start))
			}
			time.Sleep(2 * time.Hour)
		})
	})
}

func TestClassify(t *testing.T) {
	errNotFound := errors.New("not found")
	b := newBreaker(t, breaker.Config{Consecutive: 1, Classify: func(ctx context.Context, err error) fault.Verdict {
		if errors.Is(err, errNotFound) {
			return fault.Verdict{Outcome: fault.Success}
		}
		return fault.Judge(ctx, err)
	}})
	repeat(t.Context(), b, 10, func(context.Context) error { return errNotFound })
	wantState(t, b, breaker.Closed)
	repeat(t.Context(), b, 1, fail)
	wantState(t, b, breaker.Open)
}

// TestRace lets everything run against everything, for the race detector.
func TestRace(t *testing.T) {
	t.Parallel()
	b := newBreaker(t, breaker.Config{Consecutive: 3, FailureRate: 0.5, MinCalls: 5, Window: 20 * time.Millisecond, OpenFor: time.Microsecond, Probes: 2,
		Hooks: breaker.Hooks{Change: func(breaker.Change) {}, Reject: func(breaker.Rejected) {}}})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 3000 {
				switch {
				case g == 0 && i%100 == 0:
					b.Reconfigure(breaker.Config{Consecutive: 3 + i%2, FailureRate: 0.5, MinCalls: 5, OpenFor: time.Microsecond, Probes: 2, Calls: 10 * (i % 300 / 100)})
				case g == 1 && i%300 == 0:
					b.Force(breaker.Mode(i / 300 % 4))
				case g == 2 && i%50 == 0:
					b.Stats()
				}
				b.Do(t.Context(), func(context.Context) error {
					if i%3 == 0 {
						return errDown
					}
					return nil
				})
			}
		})
	}
	wg.Wait()
	b.Force(breaker.Auto)
	b.Reset()
	if err := b.Do(t.Context(), succeed); err != nil {
		t.Errorf("Do = %v afterwards, want nil", err)
	}
}

func TestSuccessDoesNotAllocate(t *testing.T) {
	for name, cfg := range map[string]breaker.Config{
		"consecutive": {}, "rate": {FailureRate: 0.5}, "slow": {SlowRate: 0.5}, "calls": {FailureRate: 0.5, Calls: 10},
	} {
		b, ctx := newBreaker(t, cfg), t.Context()
		if n := testing.AllocsPerRun(1000, func() {
			breaker.Do(ctx, b, func(context.Context) (int, error) { return 1, nil })
			b.Do(ctx, succeed)
			ticket, _ := b.Acquire(ctx)
			ticket.Done(ctx, nil)
		}); n != 0 {
			t.Errorf("%s: Do allocates %v times, want 0", name, n)
		}
	}
}

func TestStrings(t *testing.T) {
	for want, got := range map[string]fmt.Stringer{
		"closed": breaker.Closed, "open": breaker.Open, "half-open": breaker.HalfOpen, "breaker.State(9)": breaker.State(9),
		"auto": breaker.Auto, "forced-open": breaker.ForcedOpen, "disabled": breaker.Disabled, "shadow": breaker.Shadow, "breaker.Mode(9)": breaker.Mode(9),
	} {
		if got.String() != want {
			t.Errorf("String = %q, want %q", got, want)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("Force(9) does not panic")
		}
	}()
	newBreaker(t, breaker.Config{}).Force(9)
}
