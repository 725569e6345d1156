// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package guards measures what our guards and their peers cost while nothing is wrong, which is
// what a program pays all day.
package guards

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	avast "github.com/avast/retry-go/v5"
	"github.com/cenkalti/backoff/v7"
	"github.com/failsafe-go/failsafe-go"
	fsbulkhead "github.com/failsafe-go/failsafe-go/bulkhead"
	fsbreaker "github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	"github.com/failsafe-go/failsafe-go/timeout"
	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	sethvargo "github.com/sethvargo/go-retry"
	"github.com/sony/gobreaker/v2"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/dovetail-go/dovetail/bench/internal/run"
	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/rediskit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

// Peers are the modules that are compared with.
var Peers = []string{
	"github.com/sony/gobreaker/v2", "github.com/failsafe-go/failsafe-go", "github.com/cenkalti/backoff/v7", "github.com/avast/retry-go/v5",
	"github.com/sethvargo/go-retry", "golang.org/x/time", "golang.org/x/sync", "github.com/go-redis/redis_rate/v10", "github.com/redis/go-redis/v9",
}

// Report measures the guards beside their peers and writes the tables to w.
func Report(_ context.Context, stdout, w io.Writer, rounds int, each time.Duration) error {
	s := suite()
	results, err := s.Run(stdout, rounds, each)
	if err != nil {
		return err
	}
	s.Report(w, results)
	return nil
}

func suite() run.Suite {
	s := run.Suite{Title: "Guards, success path"}
	for _, cases := range [][]run.Case{breakers(), retries(), bulkheads(), limits(), composed(), withTimeout(), distributed()} {
		s.Cases = append(s.Cases, cases...)
	}
	s.Goals = []run.Goal{
		{What: "breaker, rate window: at most 1/2 of gobreaker", Group: "breaker", Ours: "dovetail_rate_window", Theirs: "gobreaker_rolling_window", Most: 0.5},
		{What: "breaker, consecutive: at most 1/5 of gobreaker", Group: "breaker", Ours: "dovetail_consecutive", Theirs: "gobreaker", Most: 0.2},
		{What: "retry + breaker + bulkhead: at most 1/8 of failsafe-go", Group: "composed", Ours: "dovetail", Theirs: "failsafe", Most: 0.125},
		{What: "the same with a timeout: at most context.WithTimeout + 25 %, 4 allocs", Group: "composed_timeout", Ours: "dovetail", Theirs: "context_WithTimeout_alone", Most: 1.25, Allocs: 4},
		{What: "the same when the caller's deadline is nearer: 0 allocs", Group: "composed_timeout", Ours: "dovetail_caller_deadline_nearer", Theirs: "context_WithTimeout_alone", Most: 1.25},
		{What: "local GCRA: at most 1/2 of x/time/rate", Group: "ratelimit", Ours: "dovetail", Theirs: "x_time_rate", Most: 0.5,
			Why: "one reading of the monotonic clock is most of what ours costs; where the clock is slow, as on this virtual machine, it bounds both"},
		{What: "shared limit, hot key: at most 1/20 of redis_rate (95 % without a round trip)", Group: "shared_limit", Ours: "dovetail_leased", Theirs: "redis_rate", Most: 0.05},
	}
	return s
}

var ctx = context.Background()

func call(context.Context) (int, error) { return 1, nil }

// must ends the run if a case cannot be set up.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// loop measures fn.
func loop(fn func() (int, error)) func(b *testing.B) {
	return func(b *testing.B) {
		for range b.N {
			if _, err := fn(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func breakers() []run.Case {
	consecutive := must(breaker.New(breaker.Config{Consecutive: 5}))
	window := must(breaker.New(breaker.Config{FailureRate: 0.5, Window: 10 * time.Second}))
	plain := gobreaker.NewCircuitBreaker[int](gobreaker.Settings{})
	rolling := gobreaker.NewCircuitBreaker[int](gobreaker.Settings{Interval: 10 * time.Second, BucketPeriod: time.Second})
	fs := failsafe.With(fsbreaker.NewBuilder[int]().WithFailureRateThreshold(0.5, 20, 10*time.Second).Build())
	return []run.Case{
		{Group: "breaker", Name: "direct_call", Bench: loop(func() (int, error) { return call(ctx) })},
		{Group: "breaker", Name: "dovetail_consecutive", Bench: loop(func() (int, error) { return breaker.Do(ctx, consecutive, call) })},
		{Group: "breaker", Name: "gobreaker", Bench: loop(func() (int, error) { return plain.Execute(func() (int, error) { return call(ctx) }) })},
		{Group: "breaker", Name: "dovetail_rate_window", Bench: loop(func() (int, error) { return breaker.Do(ctx, window, call) })},
		{Group: "breaker", Name: "gobreaker_rolling_window", Bench: loop(func() (int, error) { return rolling.Execute(func() (int, error) { return call(ctx) }) })},
		{Group: "breaker", Name: "failsafe_rate_window", Bench: loop(func() (int, error) { return fs.Get(func() (int, error) { return call(ctx) }) })},
	}
}

func retries() []run.Case {
	r := must(retry.New(retry.Config{}))
	fs := failsafe.With(retrypolicy.NewBuilder[int]().WithMaxAttempts(3).WithBackoff(50*time.Millisecond, 2*time.Second).Build())
	reused := avast.NewWithData[int](avast.Attempts(3))
	return []run.Case{
		{Group: "retry", Name: "dovetail", Bench: loop(func() (int, error) { return retry.Do(ctx, r, call) })},
		{Group: "retry", Name: "backoff_v7", Bench: loop(func() (int, error) { return backoff.Retry(ctx, func() (int, error) { return call(ctx) }) })},
		{Group: "retry", Name: "avast_reused_without_context", Bench: loop(func() (int, error) { return reused.Do(func() (int, error) { return call(ctx) }) })},
		{Group: "retry", Name: "avast_context_per_call", Bench: loop(func() (int, error) {
			return avast.NewWithData[int](avast.Attempts(3), avast.Context(ctx)).Do(func() (int, error) { return call(ctx) })
		})},
		{Group: "retry", Name: "sethvargo", Bench: loop(func() (int, error) {
			return sethvargo.DoValue(ctx, sethvargo.WithMaxRetries(3, sethvargo.NewExponential(50*time.Millisecond)), call)
		})},
		{Group: "retry", Name: "failsafe", Bench: loop(func() (int, error) { return fs.Get(func() (int, error) { return call(ctx) }) })},
	}
}

func bulkheads() []run.Case {
	b := must(bulkhead.New(10, bulkhead.Config{}))
	sem := semaphore.NewWeighted(10)
	fs := failsafe.With(fsbulkhead.New[int](10))
	return []run.Case{
		{Group: "bulkhead", Name: "dovetail", Bench: loop(func() (int, error) { return bulkhead.Do(ctx, b, call) })},
		{Group: "bulkhead", Name: "x_sync_semaphore", Bench: loop(func() (int, error) {
			if err := sem.Acquire(ctx, 1); err != nil {
				return 0, err
			}
			defer sem.Release(1)
			return call(ctx)
		})},
		{Group: "bulkhead", Name: "failsafe", Bench: loop(func() (int, error) { return fs.Get(func() (int, error) { return call(ctx) }) })},
	}
}

// A limit that never refuses: what is measured is the decision.
const unlimited = 1_000_000_000

func limits() []run.Case {
	l := must(ratelimit.New(ratelimit.PerSecond(unlimited), ratelimit.Config{}))
	keyed := must(ratelimit.NewKeyed[string](ratelimit.PerSecond(unlimited), 1024))
	std := rate.NewLimiter(unlimited, unlimited)
	keys := make([]string, 64)
	for i := range keys {
		keys[i] = fmt.Sprintf("customer-%d", i)
	}
	i := 0
	return []run.Case{
		{Group: "ratelimit", Name: "dovetail", Bench: loop(func() (int, error) {
			if !l.Allow().OK {
				return 0, ratelimit.ErrLimited
			}
			return 0, nil
		})},
		{Group: "ratelimit", Name: "x_time_rate", Bench: loop(func() (int, error) {
			if !std.Allow() {
				return 0, ratelimit.ErrLimited
			}
			return 0, nil
		})},
		{Group: "ratelimit", Name: "dovetail_keyed_64_keys", Bench: loop(func() (int, error) { i++; return 0, keyed.Allow(keys[i&63]).Err() })},
	}
}

func composed() []run.Case {
	p := policy(0)
	fs := failsafe.With(
		retrypolicy.NewBuilder[int]().WithMaxAttempts(3).WithBackoff(50*time.Millisecond, 2*time.Second).Build(),
		fsbreaker.NewBuilder[int]().WithFailureRateThreshold(0.5, 20, 10*time.Second).Build(),
		fsbulkhead.New[int](10),
	)
	br, sem := gobreaker.NewCircuitBreaker[int](gobreaker.Settings{Interval: 10 * time.Second, BucketPeriod: time.Second}), semaphore.NewWeighted(10)
	return []run.Case{
		{Group: "composed", Name: "dovetail", Bench: loop(func() (int, error) { return resilience.Do(ctx, p, call) })},
		{Group: "composed", Name: "failsafe", Bench: loop(func() (int, error) { return fs.Get(func() (int, error) { return call(ctx) }) })},
		{Group: "composed", Name: "by_hand_backoff_gobreaker_semaphore", Bench: loop(func() (int, error) {
			return backoff.Retry(ctx, func() (int, error) {
				return br.Execute(func() (int, error) {
					if err := sem.Acquire(ctx, 1); err != nil {
						return 0, err
					}
					defer sem.Release(1)
					return call(ctx)
				})
			})
		})},
	}
}

func policy(attempt time.Duration) *resilience.Policy {
	return &resilience.Policy{
		Retry:    must(retry.New(retry.Config{})),
		Bulkhead: must(bulkhead.New(10, bulkhead.Config{})),
		Breaker:  must(breaker.New(breaker.Config{FailureRate: 0.5})),
		Attempt:  attempt,
	}
}

func withTimeout() []run.Case {
	p := policy(time.Second)
	near, cancel := context.WithTimeout(ctx, time.Hour)
	_ = cancel // ends with the process
	far := policy(2 * time.Hour)
	fs := failsafe.With(
		retrypolicy.NewBuilder[int]().WithMaxAttempts(3).WithBackoff(50*time.Millisecond, 2*time.Second).Build(),
		fsbreaker.NewBuilder[int]().WithFailureRateThreshold(0.5, 20, 10*time.Second).Build(),
		fsbulkhead.New[int](10), timeout.New[int](time.Second),
	)
	return []run.Case{
		{Group: "composed_timeout", Name: "context_WithTimeout_alone", Bench: loop(func() (int, error) {
			c, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return call(c)
		})},
		{Group: "composed_timeout", Name: "dovetail", Bench: loop(func() (int, error) { return resilience.Do(ctx, p, call) })},
		{Group: "composed_timeout", Name: "dovetail_caller_deadline_nearer", Bench: loop(func() (int, error) { return resilience.Do(near, far, call) })},
		{Group: "composed_timeout", Name: "failsafe", Bench: loop(func() (int, error) { return fs.Get(func() (int, error) { return call(ctx) }) })},
	}
}

// distributed compares a limit shared through Redis, on the server that DOVETAIL_REDIS_URL names.
func distributed() []run.Case {
	cases := []run.Case{{Group: "shared_limit", Name: "dovetail_leased"}, {Group: "shared_limit", Name: "redis_rate"}}
	url := os.Getenv("DOVETAIL_REDIS_URL")
	if url == "" {
		for i := range cases {
			cases[i].Skip = "DOVETAIL_REDIS_URL is not set"
		}
		return cases
	}
	client := redis.NewClient(must(redis.ParseURL(url)))
	buckets := must(rediskit.NewBuckets(client, rediskit.Config{Prefix: "bench"}))
	// As much as a process could ask for, and leases of a thousandth of it.
	leased := must(ratelimit.NewLeased(buckets, ratelimit.Limit{Rate: 50_000_000}, ratelimit.LeasedConfig{Lease: 50_000}))
	peer := redis_rate.NewLimiter(client)
	limit := redis_rate.PerSecond(50_000_000)
	cases[0].Bench = loop(func() (int, error) { return 0, leased.Allow(ctx, "hot").Err() })
	cases[1].Bench = loop(func() (int, error) {
		r, err := peer.Allow(ctx, "hot", limit)
		if err != nil {
			return 0, err
		}
		return r.Allowed, nil
	})
	return cases
}
