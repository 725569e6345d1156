// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package grpckit

import (
	"context"
	"strconv"

	"google.golang.org/grpc/metadata"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

// Metadata that carries the state of a call between services, see [ClientConfig].Propagate. The
// first two are those of package resiliencehttp.
const (
	attemptKey     = "dovetail-attempt"
	criticalityKey = "dovetail-criticality"
	traceParentKey = "traceparent"
	traceStateKey  = "tracestate"
	baggageKey     = "baggage"
)

// IdempotencyKey is the metadata that names a command, see [WithIdempotencyKey].
const IdempotencyKey = "idempotency-key"

// maxBaggage is what the standard wants to be passed on at least (W3C Baggage, section 3.3.2).
const maxBaggage = 8192

type (
	traceKey  struct{}
	baggageIn struct{}
)

// WithTrace returns ctx for calls that belong to the trace.
func WithTrace(ctx context.Context, t messaging.TraceContext) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// TraceOf returns the trace that ctx belongs to: that of the call which a server handles, or
// what [WithTrace] set; and false if there is none.
func TraceOf(ctx context.Context) (messaging.TraceContext, bool) {
	t, ok := ctx.Value(traceKey{}).(messaging.TraceContext)
	return t, ok
}

// WithIdempotencyKey returns ctx for a call that is made once for the key, however often it is
// repeated: see [Idempotency]. It makes the call repeatable for [Client].
func WithIdempotencyKey(ctx context.Context, key string) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx)
	md = md.Copy()
	md.Set(IdempotencyKey, key)
	return metadata.NewOutgoingContext(ctx, md)
}

// propagate returns ctx with the state of the call in the outgoing metadata. A trace that another
// tool has put there stays.
func propagate(ctx context.Context) context.Context {
	attempt := retry.Attempt(ctx)
	criticality := resilience.CriticalityOf(ctx)
	trace, traced := TraceOf(ctx)
	baggage, _ := ctx.Value(baggageIn{}).(string)
	if attempt <= 1 && criticality == resilience.Critical && !traced && baggage == "" {
		return ctx
	}
	md, _ := metadata.FromOutgoingContext(ctx)
	md = md.Copy()
	if attempt > 1 {
		md.Set(attemptKey, strconv.Itoa(attempt))
	}
	if criticality != resilience.Critical {
		md.Set(criticalityKey, criticality.String())
	}
	if traced && len(md.Get(traceParentKey)) == 0 {
		h := messaging.Header{}
		trace.Child().Inject(h)
		for k, v := range h {
			md.Set(k, v)
		}
	}
	if baggage != "" && len(md.Get(baggageKey)) == 0 {
		md.Set(baggageKey, baggage)
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// propagated returns ctx with the state of the call in the incoming metadata. What cannot be read is
// left out.
func propagated(ctx context.Context) context.Context {
	md, ok := metadata.FromIncomingContext(ctx)
	if !ok {
		return ctx
	}
	first := func(key string) string {
		if values := md.Get(key); len(values) == 1 {
			return values[0]
		}
		return ""
	}
	if n, err := strconv.Atoi(first(attemptKey)); err == nil && n > 1 {
		ctx = retry.WithAttempt(ctx, n)
	}
	if v := first(criticalityKey); v != "" {
		if c, err := resilience.ParseCriticality(v); err == nil {
			ctx = resilience.WithCriticality(ctx, c)
		}
	}
	if v := first(traceParentKey); v != "" {
		if t, ok := messaging.TraceFrom(messaging.Header{traceParentKey: v, traceStateKey: first(traceStateKey)}); ok {
			ctx = WithTrace(ctx, t)
		}
	}
	if v := first(baggageKey); v != "" && len(v) <= maxBaggage {
		ctx = context.WithValue(ctx, baggageIn{}, v)
	}
	return ctx
}
