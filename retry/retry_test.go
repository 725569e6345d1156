// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package retry_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/retry"
)

var errDown = errors.New("down")

func newRetrier(t testing.TB, cfg retry.Config) *retry.Retrier {
	t.Helper()
	r, err := retry.New(cfg)
	if err != nil {
		t.Fatalf("New = %v, want nil", err)
	}
	return r
}

// failing returns a function that fails with err and counts its calls.
func failing(calls *int, err error) func(context.Context) error {
	return func(context.Context) error { *calls++; return err }
}

func TestNewNamesTheWrongField(t *testing.T) {
	for want, cfg := range map[string]retry.Config{
		"retry: Config.Base is -1ns, want 0 or more":                {Base: -1},
		"retry: Config.Max is -1ns, want 0 or more":                 {Max: -1},
		"retry: Config.Elapsed is -1ns, want 0 or more":             {Elapsed: -1},
		"retry: Config.AfterMax is -1ns, want 0 or more":            {AfterMax: -1},
		"retry: Config.Max is 1s, want at least Base, 1m0s":         {Base: time.Minute, Max: time.Second},
		"retry: Config.Jitter is retry.Jitter(9), want FullJitter,": {Jitter: 9},
	} {
		if _, err := retry.New(cfg); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("New(%+v) = %v, want %q", cfg, err, want)
		}
	}
	for want, cfg := range map[string]retry.BudgetConfig{
		"retry: BudgetConfig.Ratio is NaN, want 0 to 10":          {Ratio: math.NaN()},
		"retry: BudgetConfig.Ratio is -1, want 0 to 10":           {Ratio: -1},
		"retry: BudgetConfig.MinPerSecond is +Inf, want a number": {MinPerSecond: math.Inf(1)},
		"retry: BudgetConfig.Window is -1ns, want 0 or more":      {Window: -1},
	} {
		if _, err := retry.NewBudget(cfg); err == nil || err.Error() != want {
			t.Errorf("NewBudget(%+v) = %v, want %q", cfg, err, want)
		}
	}
}

func TestDo(t *testing.T) {
	t.Run("a success is returned at once", func(t *testing.T) {
		r := newRetrier(t, retry.Config{})
		v, err := retry.Do(t.Context(), r, func(context.Context) (int, error) { return 7, nil })
		if v != 7 || err != nil {
			t.Errorf("Do = %v, %v, want 7, nil", v, err)
		}
	})
	t.Run("a passing failure is repeated until it succeeds", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRetrier(t, retry.Config{})
			calls := 0
			v, err := retry.Do(t.Context(), r, func(ctx context.Context) (string, error) {
				if calls++; calls < 3 {
					return "", errDown
				}
				return "up", nil
			})
			if v != "up" || err != nil || calls != 3 {
				t.Errorf("Do = %q, %v after %d calls, want up, nil after 3", v, err, calls)
			}
			if s := r.Stats(); s.Retries != 2 || s.GaveUp != 0 {
				t.Errorf("Stats = %+v, want 2 retries, none given up", s)
			}
		})
	})
	t.Run("after the last attempt it does not sleep, and returns the last error and ErrExhausted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRetrier(t, retry.Config{Attempts: 3, Base: time.Second, Max: time.Hour, Jitter: retry.NoJitter})
			calls, start := 0, time.Now()
			err := r.Do(t.Context(), failing(&calls, errDown))
			var e *retry.Error
			if !errors.As(err, &e) || e.Attempts != 3 || e.Last != errDown || !errors.Is(err, retry.ErrExhausted) || !errors.Is(err, errDown) {
				t.Errorf("Do = %#v, want *Error with 3 attempts, errDown and ErrExhausted", err)
			}
			if want := "retry: gave up after 3 attempts (attempts are used up): down"; err.Error() != want {
				t.Errorf("Error = %q, want %q", err, want)
			}
			if calls != 3 || time.Since(start) != 3*time.Second {
				t.Errorf("%d calls in %v, want 3 in 3s", calls, time.Since(start))
			}
		})
	})
	t.Run("a permanent error is returned as it is, also on a later attempt", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRetrier(t, retry.Config{})
			final := fault.Permanent(errors.New("no such customer"))
			for failures := range 3 {
				calls := 0
				err := r.Do(t.Context(), func(context.Context) error {
					if calls++; calls <= failures {
						return errDown
					}
					return final
				})
				if err != final || calls != failures+1 {
					t.Errorf("Do = %v after %d calls, want the error itself after %d", err, calls, failures+1)
				}
			}
		})
	})
	t.Run("Attempts 1 calls once and returns the error as it is", func(t *testing.T) {
		calls := 0
		err := newRetrier(t, retry.Config{Attempts: 1}).Do(t.Context(), failing(&calls, errDown))
		if err != errDown || calls != 1 {
			t.Errorf("Do = %v after %d calls, want errDown after 1", err, calls)
		}
	})
	t.Run("negative Attempts are bounded by Elapsed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRetrier(t, retry.Config{Attempts: -1, Base: time.Second, Max: time.Second, Jitter: retry.NoJitter, Elapsed: 10 * time.Second, Budget: retry.Unlimited})
			calls, start := 0, time.Now()
			err := r.Do(t.Context(), failing(&calls, errDown))
			if !errors.Is(err, retry.ErrElapsed) || calls != 11 || time.Since(start) != 10*time.Second {
				t.Errorf("Do = %v after %d calls in %v, want ErrElapsed after 11 in 10s", err, calls, time.Since(start))
			}
		})
	})
	t.Run("the last attempt's value is returned beside the error", func(t *testing.T) {
		r := newRetrier(t, retry.Config{Attempts: 1})
		if v, _ := retry.Do(t.Context(), r, func(context.Context) (int, error) { return 3, errDown }); v != 3 {
			t.Errorf("Do = %v, want 3", v)
		}
	})
	t.Run("Classify replaces the judgement", func(t *testing.T) {
		calls := 0
		r := newRetrier(t, retry.Config{Classify: func(context.Context, error) fault.Verdict { return fault.Verdict{Outcome: fault.Failure} }})
		if err := r.Do(t.Context(), failing(&calls, errDown)); err != errDown || calls != 1 {
			t.Errorf("Do = %v after %d calls, want errDown after 1", err, calls)
		}
	})
	t.Run("NonIdempotent does not repeat a call whose effect is unknown", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRetrier(t, retry.Config{NonIdempotent: true})
			calls := 0
			err := r.Do(t.Context(), failing(&calls, fault.Unknown(errDown)))
			if !errors.Is(err, retry.ErrUnknown) || !errors.Is(err, errDown) || !fault.IsUnknown(err) || calls != 1 {
				t.Errorf("Do = %v after %d calls, want ErrUnknown and errDown after 1", err, calls)
			}
			calls = 0
			if err := r.Do(t.Context(), failing(&calls, errDown)); calls != 3 {
				t.Errorf("Do = %v after %d calls, want 3: a plain failure had no effect", err, calls)
			}
		})
	})
	t.Run("a panic passes through", func(t *testing.T) {
		defer func() {
			if p := recover(); p != "boom" {
				t.Errorf("recover = %v, want boom", p)
			}
		}()
		newRetrier(t, retry.Config{}).Do(t.Context(), func(context.Context) error { panic("boom") })
	})
	t.Run("Goexit passes through", func(t *testing.T) {
		ended := make(chan bool)
		go func() {
			defer close(ended)
			newRetrier(t, retry.Config{}).Do(t.Context(), func(context.Context) error { runtime.Goexit(); return nil })
			t.Error("Do returned after Goexit")
		}()
		<-ended
	})
}

func TestCallerContext(t *testing.T) {
	t.Run("a context that is done beforehand makes no call, and its cause is kept", func(t *testing.T) {
		errShutdown := errors.New("shutting down")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errShutdown)
		calls := 0
		err := newRetrier(t, retry.Config{}).Do(ctx, failing(&calls, nil))
		if !errors.Is(err, context.Canceled) || !errors.Is(err, errShutdown) || calls != 0 {
			t.Errorf("Do = %v after %d calls, want Canceled and its cause after 0", err, calls)
		}
		_, err = retry.Do(ctx, newRetrier(t, retry.Config{}), func(context.Context) (int, error) { return 0, nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Do = %v, want Canceled", err)
		}
	})
	t.Run("a cancel during the wait returns at once with the last error and the cause", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			errShutdown := errors.New("shutting down")
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(errShutdown) })
			r := newRetrier(t, retry.Config{Base: time.Minute, Max: time.Minute, Jitter: retry.NoJitter})
			calls, start := 0, time.Now()
			err := r.Do(ctx, failing(&calls, errDown))
			if !errors.Is(err, errDown) || !errors.Is(err, context.Canceled) || !errors.Is(err, errShutdown) || calls != 1 {
				t.Errorf("Do = %v after %d calls, want errDown, Canceled and the cause after 1", err, calls)
			}
			if time.Since(start) != time.Second {
				t.Errorf("Do took %v, want 1s", time.Since(start))
			}
		})
	})
	t.Run("a deadline during a later attempt keeps the error before it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			calls := 0
			err := newRetrier(t, retry.Config{}).Do(ctx, func(ctx context.Context) error {
				if calls++; calls == 1 {
					return errDown
				}
				<-ctx.Done()
				return fmt.Errorf("get: %w", ctx.Err())
			})
			var e *retry.Error
			if !errors.As(err, &e) || e.Last != errDown || !errors.Is(err, context.DeadlineExceeded) || e.Attempts != 2 {
				t.Errorf("Do = %v, want 2 attempts, errDown and DeadlineExceeded", err)
			}
		})
	})
	t.Run("a failure that arrives after the deadline names both", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err := newRetrier(t, retry.Config{}).Do(ctx, func(ctx context.Context) error {
				<-ctx.Done()
				return errDown
			})
			if !errors.Is(err, errDown) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Do = %v, want errDown and DeadlineExceeded", err)
			}
		})
	})
	t.Run("an answer that arrives after the deadline is returned as it is", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			final := fault.Permanent(errDown)
			err := newRetrier(t, retry.Config{}).Do(ctx, func(ctx context.Context) error {
				<-ctx.Done()
				return final
			})
			if err != final {
				t.Errorf("Do = %v, want the permanent error", err)
			}
		})
	})
	t.Run("the end of the context on the first attempt is returned as it is", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		err := newRetrier(t, retry.Config{}).Do(ctx, func(ctx context.Context) error { cancel(); return ctx.Err() })
		if err != context.Canceled {
			t.Errorf("Do = %v, want Canceled", err)
		}
	})
	t.Run("Canceled from the callee while the caller waits is retried", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			err := newRetrier(t, retry.Config{}).Do(t.Context(), failing(&calls, context.Canceled))
			if calls != 3 {
				t.Errorf("Do = %v after %d calls, want 3", err, calls)
			}
		})
	})
	t.Run("a delay that would cross the deadline is not slept", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			r := newRetrier(t, retry.Config{Base: time.Second, Jitter: retry.NoJitter})
			calls, start := 0, time.Now()
			err := r.Do(ctx, failing(&calls, errDown))
			var e *retry.Error
			if !errors.As(err, &e) || e.Last != errDown || !errors.Is(err, context.DeadlineExceeded) || calls != 1 {
				t.Errorf("Do = %v after %d calls, want errDown and DeadlineExceeded after 1", err, calls)
			}
			if time.Since(start) != 0 {
				t.Errorf("Do slept %v, want no sleep", time.Since(start))
			}
		})
	})
}

func TestRetryAfter(t *testing.T) {
	t.Run("is never undercut and spread upwards only", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRetrier(t, retry.Config{Attempts: 200, Budget: retry.Unlimited})
			var seen []time.Duration
			last := time.Now()
			r.Do(t.Context(), func(context.Context) error {
				seen = append(seen, time.Since(last))
				last = time.Now()
				return fault.RetryAfter(errDown, 3*time.Second)
			})
			if low, high := slices.Min(seen[1:]), slices.Max(seen[1:]); low < 3*time.Second || high > 5*time.Second || low == high {
				t.Errorf("delays from %v to %v, want spread from 3s to 5s", low, high)
			}
		})
	})
	t.Run("longer than AfterMax ends the retries at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			calls, start := 0, time.Now()
			err := newRetrier(t, retry.Config{}).Do(t.Context(), failing(&calls, fault.RetryAfter(errDown, 24*time.Hour)))
			if !errors.Is(err, retry.ErrAfter) || !errors.Is(err, errDown) || calls != 1 || time.Since(start) != 0 {
				t.Errorf("Do = %v after %d calls, %v, want ErrAfter and errDown after 1, at once", err, calls, time.Since(start))
			}
		})
	})
	t.Run("that fits the deadline gives up its jitter rather than the attempt", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3100*time.Millisecond)
			defer cancel()
			r := newRetrier(t, retry.Config{Base: time.Second, Jitter: retry.NoJitter})
			calls, start := 0, time.Now()
			err := r.Do(ctx, func(context.Context) error {
				if calls++; calls == 1 {
					return fault.RetryAfter(errDown, 3*time.Second)
				}
				return nil
			})
			if err != nil || time.Since(start) != 3*time.Second {
				t.Errorf("Do = %v after %v, want nil after 3s", err, time.Since(start))
			}
		})
	})
	t.Run("of a rejection that fits is waited for", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRetrier(t, retry.Config{Attempts: 2})
			calls, start := 0, time.Now()
			r.Do(t.Context(), failing(&calls, &fault.Rejection{By: "breaker", RetryAfter: time.Second, Err: errDown}))
			if calls != 2 || time.Since(start) < time.Second {
				t.Errorf("%d calls in %v, want 2 in 1s or more", calls, time.Since(start))
			}
		})
	})
	t.Run("of a rejection that does not fit is not", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			rejection := &fault.Rejection{By: "breaker", RetryAfter: time.Hour, Err: errDown}
			for _, ctx := range []context.Context{ctx, t.Context()} {
				calls, start := 0, time.Now()
				err := newRetrier(t, retry.Config{}).Do(ctx, failing(&calls, rejection))
				if calls != 1 || time.Since(start) != 0 || !errors.Is(err, errDown) {
					t.Errorf("Do = %v after %d calls and %v, want the rejection after 1, at once", err, calls, time.Since(start))
				}
			}
		})
	})
	t.Run("of a rejection that never passes is not retried", func(t *testing.T) {
		calls := 0
		newRetrier(t, retry.Config{}).Do(t.Context(), failing(&calls, &fault.Rejection{By: "ratelimit", RetryAfter: -1}))
		if calls != 1 {
			t.Errorf("%d calls, want 1", calls)
		}
	})
}

func TestJitter(t *testing.T) {
	delays := func(t *testing.T, cfg retry.Config) []time.Duration {
		cfg.Attempts = 12
		return slices.Collect(newRetrier(t, cfg).Delays())
	}
	t.Run("none doubles from Base to Max", func(t *testing.T) {
		got := delays(t, retry.Config{Base: time.Second, Max: 10 * time.Second, Jitter: retry.NoJitter})
		want := []time.Duration{1e9, 2e9, 4e9, 8e9, 1e10, 1e10, 1e10, 1e10, 1e10, 1e10, 1e10}
		if !slices.Equal(got, want) {
			t.Errorf("Delays = %v, want %v", got, want)
		}
	})
	// Each kind's range, and that both ends of it are approached.
	for _, tt := range []struct {
		jitter    retry.Jitter
		low, high float64 // of the step
	}{{retry.FullJitter, 0, 1}, {retry.EqualJitter, 0.5, 1}} {
		t.Run(tt.jitter.String(), func(t *testing.T) {
			low, high := math.Inf(1), 0.0
			for range 500 {
				for i, d := range delays(t, retry.Config{Base: time.Second, Max: 8 * time.Second, Jitter: tt.jitter}) {
					share := d.Seconds() / min(8, math.Pow(2, float64(i)))
					low, high = min(low, share), max(high, share)
				}
			}
			if low < tt.low || low > tt.low+0.05 || high > tt.high || high < tt.high-0.05 {
				t.Errorf("delays are %.3f to %.3f of the step, want %v to %v", low, high, tt.low, tt.high)
			}
		})
	}
	t.Run("DecorrelatedJitter stays between Base and three times the delay before", func(t *testing.T) {
		for range 500 {
			prev := time.Second
			for _, d := range delays(t, retry.Config{Base: time.Second, Max: 8 * time.Second, Jitter: retry.DecorrelatedJitter}) {
				if d < time.Second || d > min(3*prev, 8*time.Second) {
					t.Fatalf("delay %v after %v, want 1s to %v", d, prev, min(3*prev, 8*time.Second))
				}
				prev = d
			}
		}
	})
	t.Run("no configuration overflows", func(t *testing.T) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		for range 2000 {
			base := time.Duration(rng.Int64N(math.MaxInt64)>>rng.IntN(63)) + 1
			limit := base + time.Duration(rng.Int64N(math.MaxInt64-int64(base)+1))
			r := newRetrier(t, retry.Config{Attempts: 200, Base: base, Max: limit, Jitter: retry.Jitter(rng.IntN(4))})
			for d := range r.Delays() {
				if d < 0 || d > limit {
					t.Fatalf("base %v, max %v: delay %v", base, limit, d)
				}
			}
		}
	})
	t.Run("Delays can be stopped", func(t *testing.T) {
		n := 0
		for range newRetrier(t, retry.Config{Attempts: -1}).Delays() {
			if n++; n == 100 {
				break
			}
		}
	})
}

func TestNested(t *testing.T) {
	t.Run("the innermost retries and the layers around it pass its error on", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			outer, inner := newRetrier(t, retry.Config{}), newRetrier(t, retry.Config{})
			err := outer.Do(t.Context(), func(ctx context.Context) error {
				return fmt.Errorf("layer: %w", inner.Do(ctx, failing(&calls, errDown)))
			})
			if calls != 3 || !errors.Is(err, errDown) {
				t.Errorf("Do = %v after %d calls, want 3", err, calls)
			}
		})
	})
	t.Run("where the error is hidden, later attempts of the outer layer try once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			outer, inner := newRetrier(t, retry.Config{}), newRetrier(t, retry.Config{})
			err := outer.Do(t.Context(), func(ctx context.Context) error {
				if inner.Do(ctx, failing(&calls, errDown)) != nil {
					return errors.New("something went wrong")
				}
				return nil
			})
			if calls != 3+2 {
				t.Errorf("Do = %v after %d calls, want 5, not 9", err, calls)
			}
		})
	})
	t.Run("Nested multiplies", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			outer, inner := newRetrier(t, retry.Config{Nested: true}), newRetrier(t, retry.Config{Nested: true})
			outer.Do(t.Context(), func(ctx context.Context) error { return inner.Do(ctx, failing(&calls, errDown)) })
			if calls != 9 {
				t.Errorf("%d calls, want 9", calls)
			}
		})
	})
	t.Run("the context tells the attempt", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var seen []int
			newRetrier(t, retry.Config{}).Do(t.Context(), func(ctx context.Context) error {
				seen = append(seen, retry.Attempt(ctx))
				return errDown
			})
			if !slices.Equal(seen, []int{1, 2, 3}) {
				t.Errorf("Attempt = %v, want 1 2 3", seen)
			}
		})
	})
}

func TestCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		call := newRetrier(t, retry.Config{}).Begin(t.Context())
		for want := 1; want <= 3; want++ {
			if call.Attempt() != want || retry.Attempt(call.Context()) != want {
				t.Errorf("Attempt = %d, want %d", call.Attempt(), want)
			}
			again, err := call.Next(errDown)
			if again != (want < 3) || (err != nil) == again {
				t.Errorf("Next = %v, %v after attempt %d", again, err, want)
			}
		}
		call = newRetrier(t, retry.Config{}).Begin(t.Context())
		if again, err := call.Next(nil); again || err != nil {
			t.Errorf("Next(nil) = %v, %v, want false, nil", again, err)
		}
	})
}

func TestHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r *retry.Retrier
		var log []string
		r = newRetrier(t, retry.Config{Name: "users", Hooks: retry.Hooks{
			Retry: func(e retry.Retrying) {
				r.Stats() // may call back
				log = append(log, fmt.Sprint(e.Name, " retry ", e.Attempt, " ", e.Err))
			},
			GiveUp: func(e retry.GaveUp) { log = append(log, fmt.Sprint(e.Name, " ", e.Err.Attempts, " ", e.Err.Last)) },
		}})
		r.Do(t.Context(), failing(new(int), errDown))
		want := []string{"users retry 1 down", "users retry 2 down", "users 3 down"}
		if !slices.Equal(log, want) {
			t.Errorf("hooks = %q, want %q: one Retry for each retry that follows, one GiveUp", log, want)
		}
	})
}

func TestSuccessDoesNotAllocate(t *testing.T) {
	r := newRetrier(t, retry.Config{})
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		retry.Do(ctx, r, func(context.Context) (int, error) { return 1, nil })
	}); n != 0 {
		t.Errorf("Do[T] allocates %v times, want 0", n)
	}
	if n := testing.AllocsPerRun(1000, func() { r.Do(ctx, func(context.Context) error { return nil }) }); n != 0 {
		t.Errorf("Do allocates %v times, want 0", n)
	}
}

func BenchmarkDo(b *testing.B) {
	r := newRetrier(b, retry.Config{})
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		retry.Do(ctx, r, func(context.Context) (int, error) { return 1, nil })
	}
}
