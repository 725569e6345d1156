// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit

import (
	"context"

	"go.opentelemetry.io/otel/metric"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

// Retry counts retries and the calls that were given up, and marks both on the caller's span.
func (k *Kit) Retry(also ...retry.Hooks) retry.Hooks {
	return retry.Hooks{
		Retry: join(func(r retry.Retrying) {
			ctx := alive(r.Context)
			k.retries.Add(ctx, 1, metric.WithAttributes(keyName.String(r.Name)))
			event(ctx, "retry", keyName.String(r.Name), keyAttempt.Int(r.Attempt), keyDelay.Float64(r.Delay.Seconds()), errorType(r.Err))
		}, also, func(h retry.Hooks) func(retry.Retrying) { return h.Retry }),
		GiveUp: join(func(g retry.GaveUp) {
			ctx := alive(g.Context)
			k.gaveUp.Add(ctx, 1, metric.WithAttributes(keyName.String(g.Name)))
			event(ctx, "retry given up", keyName.String(g.Name), keyAttempt.Int(g.Err.Attempts), errorType(g.Err.Last))
		}, also, func(h retry.Hooks) func(retry.GaveUp) { return h.GiveUp }),
	}
}

// Breaker counts changes and refusals, and marks the refusals on the caller's span.
func (k *Kit) Breaker(also ...breaker.Hooks) breaker.Hooks {
	return breaker.Hooks{
		Change: join(func(c breaker.Change) {
			k.breakerChanges.Add(context.Background(), 1, metric.WithAttributes(keyName.String(c.Name), keyState.String(c.To.String())))
		}, also, func(h breaker.Hooks) func(breaker.Change) { return h.Change }),
		Reject: join(func(r breaker.Rejected) {
			ctx := alive(r.Context)
			k.breakerRejects.Add(ctx, 1, metric.WithAttributes(keyName.String(r.Name), keyState.String(r.State.String())))
			event(ctx, "breaker rejected", keyName.String(r.Name), keyState.String(r.State.String()), keyDelay.Float64(r.RetryAfter.Seconds()))
		}, also, func(h breaker.Hooks) func(breaker.Rejected) { return h.Reject }),
	}
}

// Bulkhead counts refusals and marks them on the caller's span.
func (k *Kit) Bulkhead(also ...bulkhead.Hooks) bulkhead.Hooks {
	return bulkhead.Hooks{Reject: join(func(r bulkhead.Rejected) {
		ctx := alive(r.Context)
		k.bulkheadRejects.Add(ctx, 1, metric.WithAttributes(keyName.String(r.Name), keyReason.String(r.Reason)))
		event(ctx, "bulkhead rejected", keyName.String(r.Name), keyReason.String(r.Reason))
	}, also, func(h bulkhead.Hooks) func(bulkhead.Rejected) { return h.Reject })}
}

// RateLimit counts refusals and marks them on the caller's span.
func (k *Kit) RateLimit(also ...ratelimit.Hooks) ratelimit.Hooks {
	return ratelimit.Hooks{Reject: join(func(r ratelimit.Rejected) {
		ctx := alive(r.Context)
		k.limiterRejects.Add(ctx, 1, metric.WithAttributes(keyName.String(r.Name)))
		event(ctx, "rate limit rejected", keyName.String(r.Name), keyDelay.Float64(r.Result.RetryAfter.Seconds()))
	}, also, func(h ratelimit.Hooks) func(ratelimit.Rejected) { return h.Reject })}
}

// Hedge counts further calls and marks them on the caller's span.
func (k *Kit) Hedge(also ...resilience.HedgeHooks) resilience.HedgeHooks {
	return resilience.HedgeHooks{
		Start: join(func(h resilience.Hedging) {
			ctx := alive(h.Context)
			k.hedges.Add(ctx, 1, metric.WithAttributes(keyName.String(h.Name)))
			event(ctx, "hedge started", keyName.String(h.Name), keyAttempt.Int(h.Call), keyDelay.Float64(h.Delay.Seconds()))
		}, also, func(h resilience.HedgeHooks) func(resilience.Hedging) { return h.Start }),
		Lost: join(func(p resilience.LostPanic) {
			k.lostPanics.Add(context.Background(), 1, metric.WithAttributes(keyName.String(p.Name)))
		}, also, func(h resilience.HedgeHooks) func(resilience.LostPanic) { return h.Lost }),
	}
}

// Adaptive shows the limit, counts what is shed, and marks it on the caller's span.
func (k *Kit) Adaptive(also ...resilience.AdaptiveHooks) resilience.AdaptiveHooks {
	return resilience.AdaptiveHooks{
		Reject: join(func(s resilience.Shed) {
			ctx, how := alive(s.Context), keyCriticality.String(s.Criticality.String())
			k.shed.Add(ctx, 1, metric.WithAttributes(keyName.String(s.Name), how))
			event(ctx, "shed", keyName.String(s.Name), how)
		}, also, func(h resilience.AdaptiveHooks) func(resilience.Shed) { return h.Reject }),
		Change: join(func(c resilience.LimitChange) {
			k.adaptiveLimit.Record(context.Background(), int64(c.To), metric.WithAttributes(keyName.String(c.Name)))
		}, also, func(h resilience.AdaptiveHooks) func(resilience.LimitChange) { return h.Change }),
	}
}
