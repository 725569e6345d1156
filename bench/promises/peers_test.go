// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package promises

import (
	"context"
	"errors"
	"net/http"
	"os"
	"testing"
	"time"

	avast "github.com/avast/retry-go/v5"
	"github.com/cenkalti/backoff/v7"
	"github.com/failsafe-go/failsafe-go"
	fsbulkhead "github.com/failsafe-go/failsafe-go/bulkhead"
	fsbreaker "github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/failsafe-go/failsafe-go/ratelimiter"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	"github.com/hashicorp/go-retryablehttp"
	sethvargo "github.com/sethvargo/go-retry"
	"github.com/sony/gobreaker/v2"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/resilience/resiliencehttp"
	"github.com/dovetail-go/dovetail/resilience/resiliencetest"
	"github.com/dovetail-go/dovetail/retry"
)

// TestPromises holds every implementation to the suite of its kind. Peers may fail here, so the
// table's maker runs each promise in a process of its own; only ours must pass in a plain go test.
func TestPromises(t *testing.T) {
	peers := os.Getenv("BENCH_PEERS") != ""
	for _, suite := range []struct {
		suite string
		impls []implementation
	}{
		{"retry", []implementation{
			{"dovetail", func(t *testing.T) { resiliencetest.RunRetry(t, dovetailRetry) }},
			{"failsafe", func(t *testing.T) { resiliencetest.RunRetry(t, failsafeRetry) }},
			{"backoff", func(t *testing.T) { resiliencetest.RunRetry(t, backoffRetry) }},
			{"avast", func(t *testing.T) { resiliencetest.RunRetry(t, avastRetry) }},
			{"sethvargo", func(t *testing.T) { resiliencetest.RunRetry(t, sethvargoRetry) }},
		}},
		{"breaker", []implementation{
			{"dovetail", func(t *testing.T) { resiliencetest.RunBreaker(t, dovetailBreaker) }},
			{"failsafe", func(t *testing.T) { resiliencetest.RunBreaker(t, failsafeBreaker) }},
			{"gobreaker", func(t *testing.T) { resiliencetest.RunBreaker(t, gobreakerBreaker) }},
		}},
		{"bulkhead", []implementation{
			{"dovetail", func(t *testing.T) { resiliencetest.RunBulkhead(t, dovetailBulkhead) }},
			{"failsafe", func(t *testing.T) { resiliencetest.RunBulkhead(t, failsafeBulkhead) }},
			{"x-sync", func(t *testing.T) { resiliencetest.RunBulkhead(t, semaphoreBulkhead) }},
		}},
		{"ratelimit", []implementation{
			{"dovetail", func(t *testing.T) { resiliencetest.RunRateLimit(t, dovetailRate) }},
			{"failsafe", func(t *testing.T) { resiliencetest.RunRateLimit(t, failsafeRate) }},
			{"x-time", func(t *testing.T) { resiliencetest.RunRateLimit(t, standardRate) }},
		}},
		{"keyed", []implementation{
			{"dovetail", func(t *testing.T) { resiliencetest.RunKeyed(t, dovetailKeyed) }},
		}},
		{"transport", []implementation{
			{"dovetail", func(t *testing.T) { resiliencetest.RunTransport(t, dovetailTransport) }},
			{"failsafe", func(t *testing.T) { resiliencetest.RunTransport(t, failsafeTransport) }},
			{"retryablehttp", func(t *testing.T) { resiliencetest.RunTransport(t, retryableTransport) }},
		}},
	} {
		t.Run(suite.suite, func(t *testing.T) {
			for _, impl := range suite.impls {
				if impl.name == "dovetail" || peers {
					t.Run(impl.name, impl.run)
				}
			}
		})
	}
}

type implementation struct {
	name string
	run  func(t *testing.T)
}

// guard makes a function a [Guard].
type guard func(ctx context.Context, fn func(context.Context) error) error

func (g guard) Do(ctx context.Context, fn func(context.Context) error) error { return g(ctx, fn) }

func dovetailRetry(s resiliencetest.RetrySpec) (resiliencetest.Guard, error) {
	cfg := retry.Config{Attempts: s.Attempts, Base: s.Base, Max: s.Max}
	if s.NoJitter {
		cfg.Jitter = retry.NoJitter
	}
	if s.NoBudget {
		cfg.Budget = retry.Unlimited
	}
	r, err := retry.New(cfg)
	return dovetailRetrier{r}, err
}

type dovetailRetrier struct{ *retry.Retrier }

func (dovetailRetrier) Permanent(err error) error              { return fault.Permanent(err) }
func (dovetailRetrier) After(err error, d time.Duration) error { return fault.RetryAfter(err, d) }
func (dovetailRetrier) Rejected(err error, d time.Duration) error {
	return &fault.Rejection{By: "breaker", RetryAfter: d, Err: err}
}

// final is an error that the adapters of failsafe and sethvargo tell their library not to retry.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

func isFinal(err error) bool {
	var f final
	return errors.As(err, &f)
}

// finisher is a guard that can be told so.
type finisher struct{ resiliencetest.Guard }

func (finisher) Permanent(err error) error { return final{err} }

func failsafeRetry(s resiliencetest.RetrySpec) (resiliencetest.Guard, error) {
	if !s.NoBudget {
		return nil, resiliencetest.ErrUnsupported
	}
	b := retrypolicy.NewBuilder[any]().WithMaxAttempts(s.Attempts).WithBackoff(s.Base, max(s.Max, s.Base+1))
	if !s.NoJitter {
		b = b.WithJitterFactor(0.5)
	}
	b = b.AbortIf(func(_ any, err error) bool { return isFinal(err) })
	return finisher{failsafeGuard(failsafe.With[any](b.Build()))}, nil
}

func failsafeGuard(exec failsafe.Executor[any]) resiliencetest.Guard {
	return guard(func(ctx context.Context, fn func(context.Context) error) error {
		return exec.WithContext(ctx).Run(func() error { return fn(ctx) })
	})
}

func backoffRetry(s resiliencetest.RetrySpec) (resiliencetest.Guard, error) {
	if !s.NoBudget {
		return nil, resiliencetest.ErrUnsupported
	}
	return backoffGuard{guard(func(ctx context.Context, fn func(context.Context) error) error {
		b := backoff.NewExponentialBackOff()
		b.InitialInterval, b.MaxInterval, b.Multiplier = s.Base, s.Max, 2
		if s.NoJitter {
			b.RandomizationFactor = 0
		}
		_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, fn(ctx) }, backoff.WithBackOff(b), backoff.WithMaxTries(uint(s.Attempts)))
		return err
	})}, nil
}

type backoffGuard struct{ resiliencetest.Guard }

func (backoffGuard) Permanent(err error) error              { return backoff.Permanent(err) }
func (backoffGuard) After(err error, d time.Duration) error { return backoff.RetryAfter(d, err) }

func avastRetry(s resiliencetest.RetrySpec) (resiliencetest.Guard, error) {
	if !s.NoBudget {
		return nil, resiliencetest.ErrUnsupported
	}
	return avastGuard{guard(func(ctx context.Context, fn func(context.Context) error) error {
		opts := []avast.Option{avast.Attempts(uint(s.Attempts)), avast.Delay(s.Base), avast.MaxDelay(s.Max), avast.Context(ctx)}
		if s.NoJitter {
			opts = append(opts, avast.DelayType(avast.BackOffDelay))
		}
		return avast.New(opts...).Do(func() error { return fn(ctx) })
	})}, nil
}

type avastGuard struct{ resiliencetest.Guard }

func (avastGuard) Permanent(err error) error { return avast.Unrecoverable(err) }

func sethvargoRetry(s resiliencetest.RetrySpec) (resiliencetest.Guard, error) {
	if !s.NoBudget {
		return nil, resiliencetest.ErrUnsupported
	}
	return finisher{guard(func(ctx context.Context, fn func(context.Context) error) error {
		b := sethvargo.WithMaxRetries(uint64(s.Attempts-1), sethvargo.WithCappedDuration(s.Max, sethvargo.NewExponential(s.Base)))
		if !s.NoJitter {
			b = sethvargo.WithJitterPercent(50, b)
		}
		return sethvargo.Do(ctx, b, func(ctx context.Context) error {
			err := fn(ctx)
			if isFinal(err) {
				return err
			}
			return sethvargo.RetryableError(err)
		})
	})}, nil
}

func dovetailBreaker(s resiliencetest.BreakerSpec) (resiliencetest.Guard, error) {
	cfg := breaker.Config{Consecutive: s.Consecutive, FailureRate: s.FailureRate, MinCalls: s.MinCalls, OpenFor: s.OpenFor, Probes: s.Probes}
	if s.OnChange != nil {
		cfg.Hooks.Change = func(breaker.Change) { s.OnChange() }
	}
	return breaker.New(cfg)
}

func failsafeBreaker(s resiliencetest.BreakerSpec) (resiliencetest.Guard, error) {
	b := fsbreaker.NewBuilder[any]().WithDelay(s.OpenFor)
	if s.FailureRate > 0 {
		b = b.WithFailureRateThreshold(s.FailureRate, uint(s.MinCalls), 10*time.Second)
	} else {
		b = b.WithFailureThreshold(uint(s.Consecutive))
	}
	if s.Probes > 0 {
		b = b.WithSuccessThreshold(uint(s.Probes))
	}
	if s.OnChange != nil {
		b = b.OnStateChanged(func(fsbreaker.StateChangedEvent) { s.OnChange() })
	}
	return failsafeGuard(failsafe.With[any](b.Build())), nil
}

func gobreakerBreaker(s resiliencetest.BreakerSpec) (resiliencetest.Guard, error) {
	settings := gobreaker.Settings{MaxRequests: uint32(s.Probes), Timeout: s.OpenFor}
	if s.FailureRate > 0 {
		settings.Interval, settings.BucketPeriod = 10*time.Second, time.Second
		settings.ReadyToTrip = func(c gobreaker.Counts) bool {
			return int(c.Requests) >= s.MinCalls && float64(c.TotalFailures) >= s.FailureRate*float64(c.Requests)
		}
	} else {
		settings.ReadyToTrip = func(c gobreaker.Counts) bool { return int(c.ConsecutiveFailures) >= s.Consecutive }
	}
	if s.OnChange != nil {
		settings.OnStateChange = func(string, gobreaker.State, gobreaker.State) { s.OnChange() }
	}
	cb := gobreaker.NewCircuitBreaker[struct{}](settings)
	return guard(func(ctx context.Context, fn func(context.Context) error) error {
		_, err := cb.Execute(func() (struct{}, error) { return struct{}{}, fn(ctx) })
		return err
	}), nil
}

func dovetailBulkhead(s resiliencetest.BulkheadSpec) (resiliencetest.Guard, error) {
	return bulkhead.New(s.Max, bulkhead.Config{Queue: s.Queue, Wait: s.Wait})
}

// failsafeBulkhead waits without a bound on the queue.
func failsafeBulkhead(s resiliencetest.BulkheadSpec) (resiliencetest.Guard, error) {
	b := fsbulkhead.NewBuilder[any](uint(s.Max))
	if s.Queue > 0 {
		b = b.WithMaxWaitTime(max(s.Wait, time.Hour))
		if s.Wait > 0 {
			b = b.WithMaxWaitTime(s.Wait)
		}
	}
	return failsafeGuard(failsafe.With[any](b.Build())), nil
}

func semaphoreBulkhead(s resiliencetest.BulkheadSpec) (resiliencetest.Guard, error) {
	sem := semaphore.NewWeighted(int64(s.Max))
	return guard(func(ctx context.Context, fn func(context.Context) error) error {
		if s.Queue == 0 {
			if !sem.TryAcquire(1) {
				return bulkhead.ErrFull
			}
		} else {
			wait, cancel := ctx, context.CancelFunc(func() {})
			if s.Wait > 0 {
				wait, cancel = context.WithTimeout(ctx, s.Wait)
			}
			err := sem.Acquire(wait, 1)
			cancel()
			if err != nil {
				return err
			}
		}
		defer sem.Release(1)
		return fn(ctx)
	}), nil
}

func dovetailRate(s resiliencetest.RateSpec) (resiliencetest.RateLimiter, error) {
	l, err := ratelimit.New(ratelimit.Limit{Rate: s.Rate, Burst: s.Burst}, ratelimit.Config{})
	return ours{l}, err
}

type ours struct{ *ratelimit.Limiter }

func (o ours) Allow() bool                           { return o.Limiter.Allow().OK }
func (o ours) Wait(ctx context.Context, n int) error { return o.WaitN(ctx, n) }

func standardRate(s resiliencetest.RateSpec) (resiliencetest.RateLimiter, error) {
	return standard{rate.NewLimiter(rate.Limit(s.Rate), s.Burst)}, nil
}

type standard struct{ *rate.Limiter }

func (o standard) Wait(ctx context.Context, n int) error { return o.WaitN(ctx, n) }

// failsafeRate is the bursty kind, which the suite's specification is nearest to.
func failsafeRate(s resiliencetest.RateSpec) (resiliencetest.RateLimiter, error) {
	return failsafeLimiter{ratelimiter.NewBursty[any](uint(s.Burst), time.Duration(s.Burst)*time.Second/time.Duration(s.Rate))}, nil
}

type failsafeLimiter struct{ ratelimiter.RateLimiter[any] }

func (o failsafeLimiter) Allow() bool { return o.TryAcquirePermit() }
func (o failsafeLimiter) Wait(ctx context.Context, n int) error {
	return o.AcquirePermits(ctx, uint(n))
}

func dovetailKeyed(s resiliencetest.KeyedSpec) (resiliencetest.KeyedLimiter, error) {
	k, err := ratelimit.NewKeyed[string](ratelimit.Limit{Rate: s.Rate, Burst: s.Burst}, s.Keys)
	return keyed{k}, err
}

type keyed struct{ *ratelimit.Keyed[string] }

func (k keyed) Allow(key string) bool { return k.Keyed.Allow(key).OK }

func dovetailTransport(base http.RoundTripper) (http.RoundTripper, error) {
	r, err := retry.New(retry.Config{Attempts: 3, Base: time.Millisecond})
	if err != nil {
		return nil, err
	}
	return resiliencehttp.NewTransport(resiliencehttp.TransportConfig{
		Base:   base,
		Guards: func(string) resiliencehttp.Guards { return resiliencehttp.Guards{Policy: &resilience.Policy{Retry: r}} },
	})
}

func failsafeTransport(base http.RoundTripper) (http.RoundTripper, error) {
	policy := failsafehttp.NewRetryPolicyBuilder().WithMaxAttempts(3).WithBackoff(time.Millisecond, 10*time.Millisecond).Build()
	return failsafehttp.NewRoundTripper(base, policy), nil
}

func retryableTransport(base http.RoundTripper) (http.RoundTripper, error) {
	c := retryablehttp.NewClient()
	c.HTTPClient.Transport, c.Logger, c.RetryMax, c.RetryWaitMin, c.RetryWaitMax = base, nil, 2, time.Millisecond, 10*time.Millisecond
	return &retryablehttp.RoundTripper{Client: c}, nil
}
