// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencetest_test

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/resilience/resiliencehttp"
	"github.com/dovetail-go/dovetail/resilience/resiliencetest"
	"github.com/dovetail-go/dovetail/retry"
)

// retrier adapts a *retry.Retrier.
type retrier struct{ *retry.Retrier }

func (retrier) Permanent(err error) error              { return fault.Permanent(err) }
func (retrier) After(err error, d time.Duration) error { return fault.RetryAfter(err, d) }
func (retrier) Rejected(err error, d time.Duration) error {
	return &fault.Rejection{By: "breaker", RetryAfter: d, Err: err}
}

func openRetry(s resiliencetest.RetrySpec) (resiliencetest.Guard, error) {
	cfg := retry.Config{Attempts: s.Attempts, Base: s.Base, Max: s.Max}
	if s.NoJitter {
		cfg.Jitter = retry.NoJitter
	}
	if s.NoBudget {
		cfg.Budget = retry.Unlimited
	}
	r, err := retry.New(cfg)
	return retrier{r}, err
}

func openBreaker(s resiliencetest.BreakerSpec) (resiliencetest.Guard, error) {
	cfg := breaker.Config{Consecutive: s.Consecutive, FailureRate: s.FailureRate, MinCalls: s.MinCalls, OpenFor: s.OpenFor, Probes: s.Probes}
	if s.OnChange != nil {
		cfg.Hooks.Change = func(breaker.Change) { s.OnChange() }
	}
	return breaker.New(cfg)
}

func openBulkhead(s resiliencetest.BulkheadSpec) (resiliencetest.Guard, error) {
	return bulkhead.New(s.Max, bulkhead.Config{Queue: s.Queue, Wait: s.Wait})
}

// limiter adapts a *ratelimit.Limiter.
type limiter struct{ *ratelimit.Limiter }

func (l limiter) Allow() bool                           { return l.Limiter.Allow().OK }
func (l limiter) Wait(ctx context.Context, n int) error { return l.WaitN(ctx, n) }

func openRate(s resiliencetest.RateSpec) (resiliencetest.RateLimiter, error) {
	l, err := ratelimit.New(ratelimit.Limit{Rate: s.Rate, Burst: s.Burst}, ratelimit.Config{})
	return limiter{l}, err
}

// keyed adapts a *ratelimit.Keyed.
type keyed struct{ *ratelimit.Keyed[string] }

func (k keyed) Allow(key string) bool { return k.Keyed.Allow(key).OK }

func openKeyed(s resiliencetest.KeyedSpec) (resiliencetest.KeyedLimiter, error) {
	k, err := ratelimit.NewKeyed[string](ratelimit.Limit{Rate: s.Rate, Burst: s.Burst}, s.Keys)
	return keyed{k}, err
}

func openTransport(base http.RoundTripper) (http.RoundTripper, error) {
	return resiliencehttp.NewTransport(resiliencehttp.TransportConfig{Base: base})
}

func TestDovetail(t *testing.T) {
	t.Run("retry", func(t *testing.T) { resiliencetest.RunRetry(t, openRetry) })
	t.Run("breaker", func(t *testing.T) { resiliencetest.RunBreaker(t, openBreaker) })
	t.Run("bulkhead", func(t *testing.T) { resiliencetest.RunBulkhead(t, openBulkhead) })
	t.Run("ratelimit", func(t *testing.T) { resiliencetest.RunRateLimit(t, openRate) })
	t.Run("keyed", func(t *testing.T) { resiliencetest.RunKeyed(t, openKeyed) })
	t.Run("transport", func(t *testing.T) { resiliencetest.RunTransport(t, openTransport) })
	t.Run("store", func(t *testing.T) {
		resiliencetest.RunStore(t, func(*testing.T) ratelimit.Store { return &memory{tat: map[string]time.Time{}} })
	})
}

// TestPolicy holds whole policies to the promises of their parts: composing breaks none.
func TestPolicy(t *testing.T) {
	t.Run("retry", func(t *testing.T) {
		resiliencetest.RunRetry(t, func(s resiliencetest.RetrySpec) (resiliencetest.Guard, error) {
			r, err := openRetry(s)
			return &resilience.Policy{Retry: r.(retrier).Retrier}, err
		})
	})
	t.Run("breaker", func(t *testing.T) {
		resiliencetest.RunBreaker(t, func(s resiliencetest.BreakerSpec) (resiliencetest.Guard, error) {
			b, err := openBreaker(s)
			return &resilience.Policy{Breaker: b.(*breaker.Breaker)}, err
		})
	})
	t.Run("bulkhead", func(t *testing.T) {
		resiliencetest.RunBulkhead(t, func(s resiliencetest.BulkheadSpec) (resiliencetest.Guard, error) {
			b, err := openBulkhead(s)
			return &resilience.Policy{Bulkhead: b.(*bulkhead.Bulkhead)}, err
		})
	})
}

// memory is a ratelimit.Store.
type memory struct {
	mu  sync.Mutex
	tat map[string]time.Time
}

func (m *memory) Take(ctx context.Context, key string, need, want int, limit ratelimit.Limit) (int, ratelimit.Result, error) {
	if err := ctx.Err(); err != nil {
		return 0, ratelimit.Result{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now, interval := time.Now(), limit.Interval()
	tat := m.tat[key]
	if tat.Before(now) {
		tat = now
	}
	room := interval*time.Duration(limit.Burst) - tat.Sub(now)
	taken := min(want, int(room/interval))
	r := ratelimit.Result{OK: taken >= need, Limit: limit.Burst}
	if !r.OK {
		taken, r.RetryAfter = 0, interval*time.Duration(need)-room
	}
	m.tat[key] = tat.Add(interval * time.Duration(taken))
	r.Remaining, r.ResetAfter = int(room/interval)-taken, m.tat[key].Sub(now)
	return taken, r, nil
}

// TestSuitesCanFail runs each promise against guards that break it, each in a process of its
// own, since some of them hang.
func TestSuitesCanFail(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	for _, p := range resiliencetest.Promises() {
		t.Run(p.Suite+"/"+p.Text, func(t *testing.T) {
			t.Parallel()
			for variant := range broken[p.Suite] {
				name := strings.ReplaceAll(p.Suite+"/"+variant+"/"+p.Text, " ", "_")
				pattern := "^TestBroken$/^" + strings.ReplaceAll(regexp.QuoteMeta(name), "/", "$/^") + "$"
				cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run="+pattern, "-test.timeout=8s", "-test.v")
				cmd.Env = append(os.Environ(), "RESILIENCETEST_BROKEN=1")
				out, err := cmd.CombinedOutput()
				if !bytes.Contains(out, []byte("=== RUN   TestBroken/"+name)) {
					t.Fatalf("%s was not run:\n%s", name, out)
				}
				if err != nil {
					return
				}
			}
			t.Errorf("every broken %s keeps the promise", p.Suite)
		})
	}
}

func TestBroken(t *testing.T) {
	if os.Getenv("RESILIENCETEST_BROKEN") == "" {
		t.Skip("broken on purpose; TestSuitesCanFail runs it")
	}
	for suite, variants := range broken {
		for variant, run := range variants {
			t.Run(suite+"/"+variant, run)
		}
	}
}

func TestUnsupportedIsSkipped(t *testing.T) {
	resiliencetest.RunBreaker(t, func(resiliencetest.BreakerSpec) (resiliencetest.Guard, error) {
		return nil, resiliencetest.ErrUnsupported
	})
}
