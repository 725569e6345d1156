// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resilience_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

func newHedge(t testing.TB, cfg resilience.HedgeConfig) *resilience.Hedge {
	t.Helper()
	h, err := resilience.NewHedge(cfg)
	if err != nil {
		t.Fatalf("NewHedge = %v, want nil", err)
	}
	return h
}

// call is how one call of a race behaves.
type call struct {
	after time.Duration
	err   error
	deaf  bool // does not heed its context
}

// closer is a result that must be closed by somebody.
type closer struct {
	name   int
	closed atomic.Bool
}

func (c *closer) Close() error { c.closed.Store(true); return nil }

// script returns a function whose n-th call behaves as calls[n] says, and the results made.
func script(calls ...call) (fn func(context.Context) (*closer, error), started *atomic.Int64, made func() []*closer) {
	var mu sync.Mutex
	var results []*closer
	started = new(atomic.Int64)
	return func(ctx context.Context) (*closer, error) {
			n := int(started.Add(1)) - 1
			c := calls[n]
			if c.deaf {
				time.Sleep(c.after)
			} else {
				select {
				case <-time.After(c.after):
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			if c.err != nil {
				return nil, c.err
			}
			r := &closer{name: n}
			mu.Lock()
			results = append(results, r)
			mu.Unlock()
			return r, nil
		}, started, func() []*closer {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(results)
		}
}

func TestNewHedgeNamesTheWrongField(t *testing.T) {
	for want, cfg := range map[string]resilience.HedgeConfig{
		"resilience: HedgeConfig.Extra is -1, want 0 or more":               {Extra: -1},
		"resilience: HedgeConfig.Quantile is 1, want 0 or more and below 1": {Quantile: 1},
		"resilience: HedgeConfig.MinDelay is -1ns, want 0 or more":          {MinDelay: -1},
		"resilience: HedgeConfig.Delay is -1ns, want 0 or more":             {Delay: -1},
	} {
		if _, err := resilience.NewHedge(cfg); err == nil || err.Error() != want {
			t.Errorf("NewHedge = %v, want %q", err, want)
		}
	}
}

func TestHedge(t *testing.T) {
	none := &resilience.Policy{}
	for _, tt := range []struct {
		name    string
		cfg     resilience.HedgeConfig
		calls   []call
		winner  int // -1: the error
		err     error
		took    time.Duration
		started int64
	}{
		{"a call that is in time runs alone", resilience.HedgeConfig{}, []call{{after: 99 * time.Millisecond}}, 0, nil, 99 * time.Millisecond, 1},
		{"a late call gets a second one, and the first answer wins", resilience.HedgeConfig{},
			[]call{{after: time.Hour}, {after: 30 * time.Millisecond}}, 1, nil, 130 * time.Millisecond, 2},
		{"the first call may still win", resilience.HedgeConfig{},
			[]call{{after: 110 * time.Millisecond}, {after: time.Hour}}, 0, nil, 110 * time.Millisecond, 2},
		{"there are at most Extra further calls", resilience.HedgeConfig{Extra: 2},
			[]call{{after: time.Second}, {after: time.Hour}, {after: time.Hour}}, 0, nil, time.Second, 3},
		{"a failure before the delay is returned at once", resilience.HedgeConfig{},
			[]call{{after: time.Millisecond, err: errDown}}, -1, errDown, time.Millisecond, 1},
		{"a failure waits for the call that still runs", resilience.HedgeConfig{},
			[]call{{after: 110 * time.Millisecond, err: errDown}, {after: 50 * time.Millisecond}}, 1, nil, 150 * time.Millisecond, 2},
		{"of failures the first call's is returned", resilience.HedgeConfig{},
			[]call{{after: 150 * time.Millisecond, err: errDown}, {after: time.Millisecond, err: errors.New("other")}}, -1, errDown, 150 * time.Millisecond, 2},
		{"a final error is an answer", resilience.HedgeConfig{},
			[]call{{after: time.Hour}, {after: time.Millisecond, err: fault.Permanent(errDown)}}, -1, errDown, 101 * time.Millisecond, 2},
		{"a refusal of the second call is not", resilience.HedgeConfig{},
			[]call{{after: 200 * time.Millisecond}, {err: &fault.Rejection{By: "bulkhead", RetryAfter: -1}}}, 0, nil, 200 * time.Millisecond, 2},
		{"MinDelay is the least", resilience.HedgeConfig{MinDelay: time.Second},
			[]call{{after: time.Hour}, {after: 1}}, 1, nil, time.Second + 1, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHedge(t, tt.cfg)
				fn, started, made := script(tt.calls...)
				start := time.Now()
				v, err := resilience.DoHedged(t.Context(), none, h, fn)
				if took := time.Since(start); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) || (v != nil) != (tt.winner >= 0) || v != nil && v.name != tt.winner {
					t.Errorf("DoHedged = %+v, %v, want call %d, %v", v, err, tt.winner, tt.err)
				}
				if started.Load() != tt.started {
					t.Errorf("%d calls, want %d", started.Load(), tt.started)
				}
				synctest.Wait() // losers have ended
				for _, r := range made() {
					if r.closed.Load() == (r == v) {
						t.Errorf("result of call %d closed: %v", r.name, r.closed.Load())
					}
				}
			})
		})
	}
	t.Run("losers are cancelled, and the results of those who do not listen are closed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newHedge(t, resilience.HedgeConfig{})
			fn, _, made := script(call{after: time.Second, deaf: true}, call{after: time.Millisecond})
			v, err := resilience.DoHedged(t.Context(), none, h, fn)
			if err != nil || v.name != 1 {
				t.Fatalf("DoHedged = %+v, %v, want call 1", v, err)
			}
			time.Sleep(time.Hour)
			if results := made(); len(results) != 2 || v.closed.Load() || !results[1].closed.Load() {
				t.Errorf("%d results, winner closed %v, want the loser's closed only", len(results), v.closed.Load())
			}
			if s := h.Stats(); s.Started != 1 || s.Won != 1 {
				t.Errorf("Stats = %+v, want one started, one won", s)
			}
		})
	})
	t.Run("the delay is a live quantile of the latencies", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newHedge(t, resilience.HedgeConfig{Quantile: 0.9, Budget: retry.Unlimited})
			run := func(low, high time.Duration) {
				for i := range 3000 {
					latency := low
					if i%20 == 0 {
						latency = high
					}
					resilience.DoHedged(t.Context(), none, h, func(context.Context) (int, error) { time.Sleep(latency); return 0, nil })
				}
			}
			run(10*time.Millisecond, 50*time.Millisecond)
			if d := h.Stats().Delay; d < 10*time.Millisecond || d > 12*time.Millisecond {
				t.Errorf("Delay = %v, want 10ms and up to an eighth more", d)
			}
			run(40*time.Millisecond, 50*time.Millisecond)
			if d := h.Stats().Delay; d < 40*time.Millisecond || d > 60*time.Millisecond {
				t.Errorf("Delay = %v after the callee became slower, want 40ms to 60ms", d)
			}
			run(5*time.Millisecond, 5*time.Millisecond)
			run(5*time.Millisecond, 5*time.Millisecond)
			if d := h.Stats().Delay; d > 6*time.Millisecond {
				t.Errorf("Delay = %v after it became faster, want about 5ms", d)
			}
		})
	})
	t.Run("the budget bounds further calls, also when everything is slow", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newHedge(t, resilience.HedgeConfig{})
			var calls atomic.Int64
			var wg sync.WaitGroup
			const n = 2000
			for range n {
				wg.Go(func() {
					resilience.DoHedged(t.Context(), none, h, func(ctx context.Context) (int, error) {
						calls.Add(1)
						time.Sleep(10 * time.Second)
						return 0, nil
					})
				})
				time.Sleep(5 * time.Millisecond)
			}
			wg.Wait()
			if extra := float64(calls.Load()-n) / n; extra > 0.13 || extra < 0.05 {
				t.Errorf("%.0f%% further calls, want about the budget's 10%%", 100*extra)
			}
		})
	})
	t.Run("a retry's later attempts are not hedged", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newHedge(t, resilience.HedgeConfig{Delay: time.Millisecond})
			p := &resilience.Policy{Retry: must(retry.New(retry.Config{}))}
			var calls atomic.Int64
			resilience.DoHedged(t.Context(), p, h, func(ctx context.Context) (int, error) {
				calls.Add(1)
				time.Sleep(time.Second)
				return 0, errDown
			})
			if calls.Load() != 2+1+1 {
				t.Errorf("%d calls, want 4: two in the first attempt", calls.Load())
			}
		})
	})
	t.Run("each call passes the guards, and losers are neutral", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &resilience.Policy{
				Bulkhead: must(bulkhead.New(10, bulkhead.Config{})),
				Breaker:  must(breaker.New(breaker.Config{Consecutive: 1})),
			}
			h := newHedge(t, resilience.HedgeConfig{})
			fn, _, _ := script(call{after: time.Hour}, call{after: time.Second})
			go func() {
				time.Sleep(200 * time.Millisecond)
				if n := p.Bulkhead.Stats().InFlight; n != 2 {
					t.Errorf("%d in flight, want 2", n)
				}
			}()
			if _, err := resilience.DoHedged(t.Context(), p, h, fn); err != nil {
				t.Errorf("DoHedged = %v, want nil", err)
			}
			synctest.Wait()
			if p.Bulkhead.Stats().InFlight != 0 || p.Breaker.State() != breaker.Closed {
				t.Errorf("bulkhead %+v, breaker %v, want free and closed", p.Bulkhead.Stats(), p.Breaker.State())
			}
		})
	})
	t.Run("the caller's end ends the race", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			fn, _, _ := script(call{after: time.Hour}, call{after: time.Hour})
			start := time.Now()
			_, err := resilience.DoHedged(ctx, none, newHedge(t, resilience.HedgeConfig{}), fn)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
				t.Errorf("DoHedged = %v after %v, want DeadlineExceeded after 1s", err, time.Since(start))
			}
			cancel()
			p := &resilience.Policy{Retry: must(retry.New(retry.Config{}))}
			if _, err := resilience.DoHedged(ctx, p, newHedge(t, resilience.HedgeConfig{}), fn); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("DoHedged = %v, want DeadlineExceeded", err)
			}
		})
	})
	t.Run("OpenHedged keeps the winner's context until release", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			for _, ctx := range []context.Context{t.Context(), retry.WithAttempt(t.Context(), 2)} {
				got, release, err := resilience.OpenHedged(ctx, newHedge(t, resilience.HedgeConfig{}), func(ctx context.Context) (context.Context, error) {
					return ctx, nil
				})
				if err != nil || got.Err() != nil {
					t.Errorf("OpenHedged = %v, context %v, want it alive", err, got.Err())
				}
				release()
				if got.Err() == nil {
					t.Error("the context lives on")
				}
			}
		})
	})
}

func TestHedgePanics(t *testing.T) {
	none := &resilience.Policy{}
	t.Run("a call's panic reaches the caller", func(t *testing.T) {
		defer func() {
			if p := recover(); p != "boom" {
				t.Errorf("recover = %v, want boom", p)
			}
		}()
		resilience.DoHedged(t.Context(), none, newHedge(t, resilience.HedgeConfig{}), func(context.Context) (int, error) { panic("boom") })
	})
	t.Run("a call's Goexit ends the caller's goroutine", func(t *testing.T) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			resilience.DoHedged(t.Context(), none, newHedge(t, resilience.HedgeConfig{}), func(context.Context) (int, error) { runtime.Goexit(); return 0, nil })
			t.Error("DoHedged returned")
		}()
		<-done
	})
	t.Run("a panic in a later attempt of a retry releases its context", func(t *testing.T) {
		var state func() error
		func() {
			defer func() { recover() }()
			resilience.DoHedged(retry.WithAttempt(t.Context(), 2), none, newHedge(t, resilience.HedgeConfig{}), func(ctx context.Context) (int, error) {
				state = ctx.Err
				panic("boom")
			})
		}()
		if state() == nil {
			t.Error("the context lives on")
		}
	})
	t.Run("a loser's panic goes to Lost", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			lost := make(chan any, 1)
			h := newHedge(t, resilience.HedgeConfig{Hooks: resilience.HedgeHooks{Lost: func(l resilience.LostPanic) {
				if len(l.Stack) == 0 {
					t.Error("no stack")
				}
				lost <- l.Value
			}}})
			var calls atomic.Int64
			_, err := resilience.DoHedged(t.Context(), none, h, func(ctx context.Context) (int, error) {
				if calls.Add(1) == 1 {
					<-ctx.Done()
					panic("boom")
				}
				return 0, nil
			})
			if v := <-lost; err != nil || v != "boom" {
				t.Errorf("DoHedged = %v, lost %v, want nil and boom", err, v)
			}
		})
	})
	t.Run("Discard may panic", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var lost atomic.Int64
			h := newHedge(t, resilience.HedgeConfig{Discard: func(any) { panic("discard") }, Hooks: resilience.HedgeHooks{Lost: func(resilience.LostPanic) { lost.Add(1) }}})
			fn, _, _ := script(call{after: time.Second, deaf: true}, call{})
			if _, err := resilience.DoHedged(t.Context(), none, h, fn); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			if lost.Load() != 1 {
				t.Errorf("%d lost, want 1", lost.Load())
			}
		})
	})
	t.Run("a hook's panic cancels the calls", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newHedge(t, resilience.HedgeConfig{Hooks: resilience.HedgeHooks{Start: func(resilience.Hedging) { panic("hook") }}})
			func() {
				defer func() { recover() }()
				resilience.DoHedged(t.Context(), none, h, func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() })
			}()
			synctest.Wait() // synctest fails if the call were still waiting at the end
		})
	})
}

// TestHedgeTail shows what hedging is for.
func TestHedgeTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex
		calls := 0
		call := func(ctx context.Context) (int, error) {
			mu.Lock()
			calls++
			latency := time.Duration(5+rng.ExpFloat64()*2) * time.Millisecond
			if rng.IntN(50) == 0 {
				latency = time.Second
			}
			mu.Unlock()
			select {
			case <-time.After(latency):
			case <-ctx.Done():
			}
			return 0, ctx.Err()
		}
		measure := func(do func()) (p50, p99 time.Duration) {
			var took []time.Duration
			for range 5000 {
				start := time.Now()
				do()
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			return took[2500], took[4950]
		}
		_, plain := measure(func() { call(t.Context()) })
		calls = 0
		h := newHedge(t, resilience.HedgeConfig{})
		_, hedged := measure(func() { resilience.DoHedged(t.Context(), &resilience.Policy{}, h, call) })
		t.Logf("p99 without %v, with %v, at %.1f%% more calls", plain, hedged, float64(calls)/50-100)
		if hedged > plain/10 || calls > 5000*115/100 {
			t.Errorf("p99 %v instead of %v with %d calls, want a tenth with at most 15%% more", hedged, plain, calls)
		}
	})
}
