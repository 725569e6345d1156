// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resilience_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

var errDown = errors.New("down")

// must returns v, for constructors whose configuration is right.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// full returns a policy with every part.
func full() *resilience.Policy {
	return &resilience.Policy{
		Total:     10 * time.Second,
		Retry:     must(retry.New(retry.Config{Budget: retry.Unlimited})),
		RateLimit: must(ratelimit.New(ratelimit.PerSecond(1e9), ratelimit.Config{})),
		Adaptive:  must(resilience.NewAdaptive(resilience.AdaptiveConfig{})),
		Bulkhead:  must(bulkhead.New(10, bulkhead.Config{})),
		Breaker:   must(breaker.New(breaker.Config{Consecutive: 100})),
		Attempt:   time.Second,
	}
}

// wantFree checks that no place is taken.
func wantFree(t *testing.T, p *resilience.Policy) {
	t.Helper()
	if s := p.Bulkhead.Stats(); s.InFlight != 0 {
		t.Errorf("bulkhead = %+v, want none in flight", s)
	}
	if s := p.Adaptive.Stats(); s.InFlight != 0 {
		t.Errorf("adaptive = %+v, want none in flight", s)
	}
}

func TestDo(t *testing.T) {
	t.Run("the zero Policy only calls", func(t *testing.T) {
		v, err := resilience.Do(t.Context(), &resilience.Policy{}, func(ctx context.Context) (int, error) {
			if ctx != t.Context() {
				t.Error("the context is another")
			}
			return 7, errDown
		})
		if v != 7 || err != errDown {
			t.Errorf("Do = %v, %v, want 7, down", v, err)
		}
	})
	t.Run("every part passes a success", func(t *testing.T) {
		p := full()
		if v, err := resilience.Do(t.Context(), p, func(context.Context) (int, error) { return 7, nil }); v != 7 || err != nil {
			t.Errorf("Do = %v, %v, want 7, nil", v, err)
		}
		if err := p.Do(t.Context(), func(context.Context) error { return nil }); err != nil {
			t.Errorf("Do = %v, want nil", err)
		}
		wantFree(t, p)
	})
	t.Run("attempts are repeated, each through all guards", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, calls := full(), 0
			p.RateLimit = must(ratelimit.New(ratelimit.PerHour(100), ratelimit.Config{}))
			err := p.Do(t.Context(), func(context.Context) error { calls++; return errDown })
			var e *retry.Error
			if !errors.As(err, &e) || e.Attempts != 3 || calls != 3 || !errors.Is(err, errDown) {
				t.Errorf("Do = %v after %d calls, want *retry.Error after 3", err, calls)
			}
			if p.Breaker.Stats().Consecutive != 3 || p.RateLimit.Stats().Remaining != 97 {
				t.Errorf("breaker %+v, limiter %+v, want 3 attempts seen", p.Breaker.Stats(), p.RateLimit.Stats())
			}
			wantFree(t, p)
		})
	})
	t.Run("a context that is done beforehand makes no call", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := full().Do(ctx, func(context.Context) error { t.Error("called"); return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("Do = %v, want Canceled", err)
		}
	})
	t.Run("Classify is heard by all parts", func(t *testing.T) {
		p, calls := full(), 0
		p.Classify = func(context.Context, error) fault.Verdict { return fault.Verdict{Outcome: fault.Success} }
		if err := p.Do(t.Context(), func(context.Context) error { calls++; return errDown }); err != errDown || calls != 1 {
			t.Errorf("Do = %v after %d calls, want down after 1", err, calls)
		}
		if s := p.Breaker.Stats(); s.Consecutive != 0 {
			t.Errorf("breaker = %+v, want no failure", s)
		}
	})
}

func TestOrder(t *testing.T) {
	// Each part in turn refuses; those before it have let the attempt through and
	// get their places back, those after it are not asked.
	var log []string
	reject := func(name string) { log = append(log, name) }
	p := full()
	p.Retry = nil
	p.RateLimit = must(ratelimit.New(ratelimit.PerHour(1), ratelimit.Config{Hooks: ratelimit.Hooks{Reject: func(ratelimit.Rejected) { reject("ratelimit") }}}))
	p.Adaptive = must(resilience.NewAdaptive(resilience.AdaptiveConfig{Min: 1, Max: 1, Hooks: resilience.AdaptiveHooks{Reject: func(resilience.Shed) { reject("adaptive") }}}))
	p.Bulkhead = must(bulkhead.New(1, bulkhead.Config{Hooks: bulkhead.Hooks{Reject: func(bulkhead.Rejected) { reject("bulkhead") }}}))
	p.Breaker = must(breaker.New(breaker.Config{Mode: breaker.ForcedOpen, Hooks: breaker.Hooks{Reject: func(breaker.Rejected) { reject("breaker") }}}))
	call := func() error { return p.Do(t.Context(), func(context.Context) error { t.Error("called"); return nil }) }

	// All four are closed; opening one after the other, from the first on, shows the order.
	p.RateLimit.Allow()
	adaptive := must(p.Adaptive.Acquire(t.Context()))
	permit := must(p.Bulkhead.Acquire(t.Context()))
	for _, step := range []struct {
		want error
		open func()
	}{
		{ratelimit.ErrLimited, func() { p.RateLimit = nil }},
		{resilience.ErrOverload, func() { adaptive.Settle(t.Context(), fault.Verdict{Outcome: fault.Neutral}) }},
		{bulkhead.ErrFull, func() { permit.Release() }},
		{breaker.ErrOpen, func() {}},
	} {
		if err := call(); !errors.Is(err, step.want) {
			t.Errorf("Do = %v, want %v", err, step.want)
		}
		step.open()
	}
	if got := strings.Join(log, " "); got != "ratelimit adaptive bulkhead breaker" {
		t.Errorf("refused by %s, want ratelimit adaptive bulkhead breaker", got)
	}
	wantFree(t, p)
}

func TestTimeouts(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	t.Run("an attempt's timeout is a failure and is retried", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := full()
			p.Total = 0
			start := time.Now()
			err := p.Do(t.Context(), hang)
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, retry.ErrExhausted) || p.Breaker.Stats().Consecutive != 3 {
				t.Errorf("Do = %v, breaker %+v, want three failures", err, p.Breaker.Stats())
			}
			if took := time.Since(start); took < 3*time.Second || took > 4*time.Second {
				t.Errorf("took %v, want 3s and the delays", took)
			}
		})
	})
	t.Run("Total bounds the attempts and the waits, and says nothing about the callee", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := full()
			p.Total = 1500 * time.Millisecond
			p.Breaker = must(breaker.New(breaker.Config{Consecutive: 2}))
			start := time.Now()
			err := p.Do(t.Context(), hang)
			var e *retry.Error
			if !errors.As(err, &e) || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != p.Total {
				t.Errorf("Do = %v after %v, want DeadlineExceeded after 1.5s", err, time.Since(start))
			}
			if s := p.Breaker.Stats(); s.State != breaker.Closed || s.Consecutive != 1 {
				t.Errorf("breaker = %+v, want the first attempt's failure only", s)
			}
			wantFree(t, p)
		})
	})
	t.Run("a dependency that hangs opens the breaker with Total alone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &resilience.Policy{Total: 2 * time.Second, Breaker: must(breaker.New(breaker.Config{}))}
			for range 6 {
				p.Do(t.Context(), hang)
			}
			if s := p.Breaker.State(); s != breaker.Open {
				t.Errorf("State = %v, want open", s)
			}
		})
	})
	t.Run("a late result is returned", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := full()
			v, err := resilience.Do(t.Context(), p, func(context.Context) (int, error) { time.Sleep(5 * time.Second); return 7, nil })
			if v != 7 || err != nil {
				t.Errorf("Do = %v, %v, want 7, nil", v, err)
			}
		})
	})
	t.Run("the call's context ends when the call returns", func(t *testing.T) {
		var state func() error
		full().Do(t.Context(), func(ctx context.Context) error { state = ctx.Err; return nil })
		if state() == nil {
			t.Error("the context lives on")
		}
	})
	t.Run("WithTimeout makes no context where the caller's deadline is nearer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			for d, same := range map[time.Duration]bool{-1: true, 0: true, time.Second: true, time.Minute: true, time.Second - 1: false} {
				got, cancel := resilience.WithTimeout(ctx, d)
				if (got == ctx) != same {
					t.Errorf("WithTimeout(%v): the same context %v, want %v", d, got == ctx, same)
				}
				cancel()
				if ctx.Err() != nil {
					t.Fatal("cancel ended the caller's context")
				}
			}
		})
	})
}

func TestPanicAndGoexit(t *testing.T) {
	for name, crash := range map[string]func(){"panic": func() { panic("boom") }, "Goexit": runtime.Goexit} {
		t.Run(name+" frees every place, is a failure, and passes through", func(t *testing.T) {
			p := full()
			done := make(chan any)
			for range 3 {
				go func() {
					defer func() { done <- recover() }()
					resilience.Do(t.Context(), p, func(context.Context) (int, error) { crash(); return 0, nil })
					t.Error("Do returned")
				}()
				if r := <-done; name == "panic" && r != "boom" {
					t.Errorf("recover = %v, want boom", r)
				}
			}
			wantFree(t, p)
			if s := p.Breaker.Stats(); s.Consecutive != 3 {
				t.Errorf("breaker = %+v, want 3 failures", s)
			}
		})
	}
	t.Run("a hook that panics while entering leaves no place taken", func(t *testing.T) {
		p := full()
		p.Breaker = must(breaker.New(breaker.Config{Mode: breaker.ForcedOpen, Hooks: breaker.Hooks{Reject: func(breaker.Rejected) { panic("hook") }}}))
		func() {
			defer func() { recover() }()
			p.Do(t.Context(), func(context.Context) error { return nil })
		}()
		wantFree(t, p)
	})
}

func TestRejections(t *testing.T) {
	t.Run("a full bulkhead is no failure of the dependency", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := full()
			p.Bulkhead = must(bulkhead.New(1, bulkhead.Config{}))
			permit := must(p.Bulkhead.Acquire(t.Context()))
			if err := p.Do(t.Context(), func(context.Context) error { return nil }); !errors.Is(err, bulkhead.ErrFull) {
				t.Errorf("Do = %v, want ErrFull", err)
			}
			if s := p.Breaker.Stats(); s.Consecutive != 0 {
				t.Errorf("breaker = %+v, want no failure", s)
			}
			permit.Release()
		})
	})
	t.Run("a retry waits for an open breaker only if that fits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := full()
			p.Breaker = must(breaker.New(breaker.Config{Consecutive: 1, OpenFor: time.Hour}))
			calls, start := 0, time.Now()
			err := p.Do(t.Context(), func(context.Context) error { calls++; return errDown })
			if !errors.Is(err, breaker.ErrOpen) || calls != 1 || time.Since(start) > time.Second {
				t.Errorf("Do = %v after %d calls and %v, want ErrOpen soon", err, calls, time.Since(start))
			}
			p.Breaker = must(breaker.New(breaker.Config{Consecutive: 1, OpenFor: time.Second}))
			calls = 0
			err = p.Do(t.Context(), func(context.Context) error {
				if calls++; calls == 1 {
					return errDown
				}
				return nil
			})
			if err != nil || calls != 2 {
				t.Errorf("Do = %v after %d calls, want nil after 2", err, calls)
			}
		})
	})
}

func TestAcquire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := full()
		ticket, err := p.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if deadline, ok := ticket.Context().Deadline(); !ok || time.Until(deadline) != time.Second {
			t.Errorf("deadline in %v, want the attempt's 1s", time.Until(deadline))
		}
		if v := ticket.Settle(errDown); v.Outcome != fault.Failure || p.Breaker.Stats().Consecutive != 1 {
			t.Errorf("Settle = %+v, want a failure, heard by the breaker", v)
		}
		if ticket.Context().Err() != nil || p.Bulkhead.Stats().InFlight != 1 {
			t.Error("Settle released the stream")
		}
		ticket.Release()
		if ticket.Context().Err() == nil {
			t.Error("the context lives on")
		}
		wantFree(t, p)

		ticket = must(p.Acquire(t.Context()))
		if v := ticket.Done(nil); v.Outcome != fault.Success {
			t.Errorf("Done = %+v, want a success", v)
		}
		wantFree(t, p)
		var zero resilience.Ticket
		zero.Done(errDown)
	})
}

func TestFallback(t *testing.T) {
	second := func(v int, err error) func(context.Context, error) (int, error) {
		return func(context.Context, error) (int, error) { return v, err }
	}
	failing := func(err error) func(context.Context) (int, error) {
		return func(context.Context) (int, error) { return 1, err }
	}
	p := &resilience.Policy{}
	t.Run("is not used after a success", func(t *testing.T) {
		if v, err := resilience.Fallback(t.Context(), p, failing(nil), second(2, nil)); v != 1 || err != nil {
			t.Errorf("Fallback = %v, %v, want 1, nil", v, err)
		}
	})
	t.Run("answers after a failure and after a refusal", func(t *testing.T) {
		for _, err := range []error{errDown, &fault.Rejection{By: "breaker", Err: breaker.ErrOpen}, context.DeadlineExceeded} {
			if v, err := resilience.Fallback(t.Context(), p, failing(err), second(2, nil)); v != 2 || err != nil {
				t.Errorf("Fallback = %v, %v, want 2, nil", v, err)
			}
		}
	})
	t.Run("is not used for an answer, nor when the caller has gone", func(t *testing.T) {
		final := fault.Permanent(errDown)
		if v, err := resilience.Fallback(t.Context(), p, failing(final), second(2, nil)); v != 1 || err != final {
			t.Errorf("Fallback = %v, %v, want 1 and the permanent error", v, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := resilience.Fallback(ctx, p, func(context.Context) (int, error) { cancel(); return 1, errDown }, second(2, nil)); err != errDown {
			t.Errorf("Fallback = %v, want down", err)
		}
	})
	t.Run("that fails too leaves both errors", func(t *testing.T) {
		errCache := errors.New("not cached")
		_, err := resilience.Fallback(t.Context(), p, failing(errDown), second(0, errCache))
		if !errors.Is(err, errDown) || !errors.Is(err, errCache) {
			t.Errorf("Fallback = %v, want both errors", err)
		}
		_, err = resilience.Fallback(t.Context(), p, failing(errDown), func(_ context.Context, err error) (int, error) { return 0, err })
		if err != errDown {
			t.Errorf("Fallback = %v, want down once", err)
		}
	})
	t.Run("asks Classify", func(t *testing.T) {
		p := &resilience.Policy{Classify: func(context.Context, error) fault.Verdict { return fault.Verdict{Outcome: fault.Neutral} }}
		if v, err := resilience.Fallback(t.Context(), p, failing(errDown), second(2, nil)); v != 1 || err != errDown {
			t.Errorf("Fallback = %v, %v, want 1, down", v, err)
		}
	})
	t.Run("has the caller's time, not what the policy left", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &resilience.Policy{Total: time.Second}
			v, err := resilience.Fallback(t.Context(), p, func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() },
				func(ctx context.Context, _ error) (int, error) { return 2, ctx.Err() })
			if v != 2 || err != nil {
				t.Errorf("Fallback = %v, %v, want 2, nil", v, err)
			}
		})
	})
}

func TestAllocations(t *testing.T) {
	p := full()
	p.Total, p.Attempt = 0, 0
	p.Breaker = must(breaker.New(breaker.Config{FailureRate: 0.5, SlowRate: 0.5}))
	near, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	timed := *p
	timed.Total, timed.Attempt = time.Hour, time.Hour
	one := timed
	one.Total = 0
	for _, tt := range []struct {
		name string
		ctx  context.Context
		p    *resilience.Policy
		most float64
	}{
		{"without timeouts", t.Context(), p, 0},
		{"with timeouts later than the caller's", near, &timed, 0},
		{"with one timeout", t.Context(), &one, 4},
	} {
		if n := testing.AllocsPerRun(1000, func() {
			resilience.Do(tt.ctx, tt.p, func(context.Context) (int, error) { return 1, nil })
		}); n > tt.most {
			t.Errorf("%s: Do[T] allocates %v times, want at most %v", tt.name, n, tt.most)
		}
		if n := testing.AllocsPerRun(1000, func() { tt.p.Do(tt.ctx, func(context.Context) error { return nil }) }); n > tt.most {
			t.Errorf("%s: Do allocates %v times, want at most %v", tt.name, n, tt.most)
		}
	}
}

func BenchmarkDo(b *testing.B) {
	stack := &resilience.Policy{
		Retry:    must(retry.New(retry.Config{})),
		Bulkhead: must(bulkhead.New(10, bulkhead.Config{})),
		Breaker:  must(breaker.New(breaker.Config{})),
	}
	rate := *stack
	rate.Breaker = must(breaker.New(breaker.Config{FailureRate: 0.5}))
	timeout := rate
	timeout.Attempt = time.Second
	all := timeout
	all.Attempt = 0
	all.RateLimit = must(ratelimit.New(ratelimit.PerSecond(1e9), ratelimit.Config{}))
	all.Adaptive = must(resilience.NewAdaptive(resilience.AdaptiveConfig{}))
	near, cancel := context.WithTimeout(b.Context(), 500*time.Millisecond)
	defer cancel()
	for _, bb := range []struct {
		name string
		ctx  context.Context
		p    *resilience.Policy
	}{
		{"retry+bulkhead+breaker", b.Context(), stack},
		{"retry+bulkhead+rateBreaker", b.Context(), &rate},
		{"retry+bulkhead+rateBreaker+timeout", b.Context(), &timeout},
		{"the same, caller's deadline nearer", near, &timeout},
		{"everything but timeouts", b.Context(), &all},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				resilience.Do(bb.ctx, bb.p, func(context.Context) (int, error) { return 1, nil })
			}
		})
	}
}
