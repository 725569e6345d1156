// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resilience_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/resilience"
)

func newAdaptive(t testing.TB, cfg resilience.AdaptiveConfig) *resilience.Adaptive {
	t.Helper()
	a, err := resilience.NewAdaptive(cfg)
	if err != nil {
		t.Fatalf("NewAdaptive = %v, want nil", err)
	}
	return a
}

func TestNewAdaptiveNamesTheWrongField(t *testing.T) {
	for want, cfg := range map[string]resilience.AdaptiveConfig{
		"resilience: AdaptiveConfig.Min is -1, want 0 or more":                 {Min: -1},
		"resilience: AdaptiveConfig.Max is 3, want at least Min, 5":            {Min: 5, Max: 3},
		"resilience: AdaptiveConfig.Initial is 50, want Min to Max, 5 to 10":   {Min: 5, Max: 10, Initial: 50},
		"resilience: AdaptiveConfig.Window is -1ns, want 0 or more":            {Window: -1},
		"resilience: AdaptiveConfig.Tolerance is 0.5, want 1 to 100":           {Tolerance: 0.5},
		"resilience: AdaptiveConfig.Tolerance is NaN, want 1 to 100":           {Tolerance: math.NaN()},
		"resilience: AdaptiveConfig.Shares[critical] is 2, want a criticality": {Shares: map[resilience.Criticality]float64{resilience.Critical: 2}},
		"resilience: AdaptiveConfig.Shares[resilience.Criticality(9)] is 1":    {Shares: map[resilience.Criticality]float64{9: 1}},
	} {
		if _, err := resilience.NewAdaptive(cfg); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("NewAdaptive = %v, want %q", err, want)
		}
	}
}

// server is a callee with a number of workers and a queue without bound.
type server struct {
	mu      sync.Mutex
	service time.Duration
	noise   *rand.Rand  // nil: every call takes service; else exponential with that mean
	free    []time.Time // when each worker is free
}

func newServer(workers int, service time.Duration) *server {
	return &server{service: service, free: make([]time.Time, workers)}
}

func (s *server) call(context.Context) error {
	s.mu.Lock()
	w := 0
	for i := range s.free {
		if s.free[i].Before(s.free[w]) {
			w = i
		}
	}
	if now := time.Now(); s.free[w].Before(now) {
		s.free[w] = now
	}
	took := s.service
	if s.noise != nil {
		took = time.Duration(s.noise.ExpFloat64() * float64(took))
	}
	s.free[w] = s.free[w].Add(took)
	end := s.free[w]
	s.mu.Unlock()
	time.Sleep(time.Until(end))
	return nil
}

// load offers calls at a rate for a time and returns what became of them.
func load(ctx context.Context, a *resilience.Adaptive, s *server, perSecond int, d time.Duration) (done int, latencies []time.Duration) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := time.Now()
	for i := 0; time.Since(start) < d; i++ {
		wg.Go(func() {
			begun := time.Now()
			if a.Do(ctx, s.call) == nil {
				mu.Lock()
				latencies = append(latencies, time.Since(begun))
				mu.Unlock()
			}
		})
		time.Sleep(time.Second / time.Duration(perSecond))
	}
	wg.Wait()
	slices.Sort(latencies)
	return len(latencies), latencies
}

// limits returns a configuration that notes the limit's changes, and the middle of the notes since
// it was last asked: a single look may fall into a probe of the baseline.
func limits(cfg resilience.AdaptiveConfig) (resilience.AdaptiveConfig, func() int) {
	var mu sync.Mutex
	var seen []int
	cfg.Hooks.Change = func(c resilience.LimitChange) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, c.To)
	}
	return cfg, func() int {
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(seen)
		middle := seen[len(seen)/2]
		seen = nil
		return middle
	}
}

func TestAdaptive(t *testing.T) {
	const workers, service = 20, 20 * time.Millisecond // 1000 a second
	percentile := func(l []time.Duration, p int) time.Duration { return l[len(l)*p/100] }

	t.Run("finds what the callee can take, from either side", func(t *testing.T) {
		for _, initial := range []int{2, 20, 500} {
			synctest.Test(t, func(t *testing.T) {
				cfg, limitSince := limits(resilience.AdaptiveConfig{Initial: initial, Shares: map[resilience.Criticality]float64{resilience.Critical: 1}})
				a := newAdaptive(t, cfg)
				s := newServer(workers, service)
				load(t.Context(), a, s, 2000, 15*time.Second)
				limitSince()
				done, latencies := load(t.Context(), a, s, 2000, 20*time.Second)
				limit := limitSince()
				t.Logf("from %d: limit %d, %d of 20000 possible, p50 %v, p99 %v", initial, limit, done, percentile(latencies, 50), percentile(latencies, 99))
				if limit < workers || limit > 3*workers {
					t.Errorf("limit %d, want %d to %d", limit, workers, 3*workers)
				}
				if done < 19_000 {
					t.Errorf("%d calls done at twice the load, want 95%% of the 20000 possible", done)
				}
				if p := percentile(latencies, 99); p > 4*service {
					t.Errorf("p99 %v, want at most four times the service time", p)
				}
			})
		}
	})
	t.Run("finds it in noise", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			cfg, limitSince := limits(resilience.AdaptiveConfig{})
			a := newAdaptive(t, cfg)
			s := newServer(workers, service)
			s.noise = rand.New(rand.NewPCG(1, 2))
			load(t.Context(), a, s, 2000, 30*time.Second)
			limitSince()
			done, latencies := load(t.Context(), a, s, 2000, 20*time.Second)
			limit := limitSince()
			t.Logf("limit %d, %d of 20000 possible, p50 %v, p99 %v", limit, done, percentile(latencies, 50), percentile(latencies, 99))
			if limit < workers || limit > 3*workers || done < 18_000 {
				t.Errorf("limit %d, %d done, want %d to %d and 90%% of 20000", limit, done, workers, 3*workers)
			}
		})
	})
	t.Run("a callee with a single worker", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			cfg, limitSince := limits(resilience.AdaptiveConfig{})
			a := newAdaptive(t, cfg)
			s := newServer(1, 5*time.Millisecond)
			load(t.Context(), a, s, 400, 60*time.Second)
			limitSince()
			done, _ := load(t.Context(), a, s, 400, 20*time.Second)
			if limit := limitSince(); limit > 8 || done < 3800 {
				t.Errorf("limit %d, %d of 4000 done, want at most 8 and 95%%", limit, done)
			}
		})
	})
	t.Run("does not drift upwards under steady overload", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			cfg, limitSince := limits(resilience.AdaptiveConfig{})
			a := newAdaptive(t, cfg)
			s := newServer(workers, service)
			for range 4 {
				load(t.Context(), a, s, 1200, 30*time.Second)
				if limit := limitSince(); limit > 3*workers {
					t.Fatalf("limit %d, want at most %d", limit, 3*workers)
				}
			}
		})
	})
	t.Run("follows a callee that becomes slower, and faster again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAdaptive(t, resilience.AdaptiveConfig{})
			s := newServer(workers, service)
			for _, d := range []time.Duration{service, 4 * service, service} {
				s.mu.Lock()
				s.service = d
				s.mu.Unlock()
				load(t.Context(), a, s, 1500, 35*time.Second)
				done, latencies := load(t.Context(), a, s, 1500, 10*time.Second)
				possible := int(10 * time.Second / d * workers)
				t.Logf("service %v: limit %d, %d of %d possible, p99 %v, baseline %v", d, a.Stats().Limit, done, possible, percentile(latencies, 99), a.Stats().Baseline)
				if done < possible*9/10 {
					t.Errorf("service time %v: %d done, want 90%% of %d", d, done, possible)
				}
			}
		})
	})
	t.Run("does not grow while it is not used", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAdaptive(t, resilience.AdaptiveConfig{})
			load(t.Context(), a, newServer(workers, service), 50, time.Minute)
			if limit := a.Stats().Limit; limit > 20 {
				t.Errorf("limit %d, want the first 20", limit)
			}
		})
	})
	t.Run("timeouts and wishes to come later are overload, other failures say nothing", func(t *testing.T) {
		for _, tt := range []struct {
			name  string
			err   error
			falls bool
		}{
			{"timeout", context.DeadlineExceeded, true},
			{"retry after", fault.RetryAfter(errDown, time.Second), true},
			{"failure", errDown, false},
			{"permanent", fault.Permanent(errDown), false},
		} {
			synctest.Test(t, func(t *testing.T) {
				a := newAdaptive(t, resilience.AdaptiveConfig{Initial: 100})
				for range 200 {
					a.Do(t.Context(), func(context.Context) error { time.Sleep(10 * time.Millisecond); return tt.err })
				}
				if limit := a.Stats().Limit; (limit < 100) != tt.falls || limit > 100 {
					t.Errorf("%s: limit %d from 100, falls: want %v", tt.name, limit, tt.falls)
				}
			})
		}
	})
	t.Run("the caller's deadline is overload", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAdaptive(t, resilience.AdaptiveConfig{Initial: 100})
			for range 100 {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
				a.Do(ctx, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
				cancel()
			}
			if limit := a.Stats().Limit; limit >= 100 {
				t.Errorf("limit %d, want less than 100", limit)
			}
		})
	})
	t.Run("panic and Goexit free the place", func(t *testing.T) {
		a := newAdaptive(t, resilience.AdaptiveConfig{})
		for _, crash := range []func(){func() { panic("boom") }, runtime.Goexit} {
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer func() { recover() }()
				a.Do(t.Context(), func(context.Context) error { crash(); return nil })
			}()
			<-done
		}
		if s := a.Stats(); s.InFlight != 0 {
			t.Errorf("Stats = %+v, want none in flight", s)
		}
	})
	t.Run("reports its changes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var a *resilience.Adaptive
			var last resilience.LimitChange
			a = newAdaptive(t, resilience.AdaptiveConfig{Name: "users", Hooks: resilience.AdaptiveHooks{Change: func(c resilience.LimitChange) {
				if last.Name != "" && c.From != last.To {
					t.Errorf("change from %d after one to %d", c.From, last.To)
				}
				a.Stats()
				last = c
			}}})
			load(t.Context(), a, newServer(workers, service), 2000, 2*time.Second)
			if last.Name != "users" || last.To != a.Stats().Limit {
				t.Errorf("last change %+v, want to %d", last, a.Stats().Limit)
			}
		})
	})
}

func TestShedding(t *testing.T) {
	a := newAdaptive(t, resilience.AdaptiveConfig{Initial: 20, Max: 20, Min: 20})
	take := func(c resilience.Criticality) (n int) {
		for {
			if _, err := a.Acquire(resilience.WithCriticality(t.Context(), c)); err != nil {
				var r *fault.Rejection
				if !errors.Is(err, resilience.ErrOverload) || !errors.As(err, &r) || r.By != "adaptive" {
					t.Errorf("Acquire = %v, want a rejection of ErrOverload", err)
				}
				return n
			}
			n++
		}
	}
	// Each level may fill its share only; what is above it is left to the levels above.
	for _, tt := range []struct {
		c    resilience.Criticality
		want int
	}{{resilience.Sheddable, 10}, {resilience.SheddablePlus, 5}, {resilience.Critical, 3}, {resilience.CriticalPlus, 2}, {resilience.Sheddable, 0}} {
		if n := take(tt.c); n != tt.want {
			t.Errorf("%v: %d more admitted, want %d", tt.c, n, tt.want)
		}
	}
	if s := a.Stats(); s.Rejected != 5 || s.InFlight != 20 {
		t.Errorf("Stats = %+v, want 5 refused, 20 in flight", s)
	}
}

func TestCriticality(t *testing.T) {
	if c := resilience.CriticalityOf(t.Context()); c != resilience.Critical {
		t.Errorf("CriticalityOf = %v, want critical", c)
	}
	for c := resilience.Sheddable; c <= resilience.CriticalPlus; c++ {
		if got := resilience.CriticalityOf(resilience.WithCriticality(t.Context(), c)); got != c {
			t.Errorf("CriticalityOf = %v, want %v", got, c)
		}
		if got, err := resilience.ParseCriticality(c.String()); got != c || err != nil {
			t.Errorf("ParseCriticality(%v) = %v, %v", c, got, err)
		}
	}
	if _, err := resilience.ParseCriticality("urgent"); err == nil {
		t.Error("ParseCriticality = nil, want an error")
	}
	defer func() {
		if recover() == nil {
			t.Error("WithCriticality(9) does not panic")
		}
	}()
	resilience.WithCriticality(t.Context(), 9)
}
