// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit

import (
	"context"
	"errors"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/outbox"
)

// Relay makes a span "send <topic>" of kind producer for each attempt of an outbox's relay, as a child of the
// request that enqueued the message, and measures how long messages wait. With [Kit.Inject] in
// outbox.Config the trace goes on from the row, in whatever process the relay runs, and after whatever crash.
// A relay that has these hooks needs no [Kit.Publisher] around its own.
func (k *Kit) Relay(also ...outbox.Hooks) outbox.Hooks {
	return outbox.Hooks{
		Confirmed: join(func(c outbox.Confirmed) {
			ctx := k.Extract(context.Background(), c.Message.Header)
			now, began := k.past(c.Took)
			ctx, span := k.startMessage(ctx, opSend, trace.SpanKindProducer, c.Message, began, trace.WithAttributes(keyLag.Float64(c.Lag.Seconds())))
			span.End(trace.WithTimestamp(now))
			k.relayLag.Record(ctx, c.Lag.Seconds(), metric.WithAttributes(semconv.MessagingDestinationName(k.cfg.Destination(c.Message.Topic))))
		}, also, func(h outbox.Hooks) func(outbox.Confirmed) { return h.Confirmed }),
		Failed: join(func(f outbox.AttemptFailed) {
			ctx := k.Extract(context.Background(), f.Message.Header)
			ctx, span := k.startMessage(ctx, opSend, trace.SpanKindProducer, f.Message, trace.WithAttributes(keyDelay.Float64(f.RetryIn.Seconds())))
			end(span, f.Err)
			k.relayFailed.Add(ctx, 1, metric.WithAttributes(semconv.MessagingDestinationName(k.cfg.Destination(f.Message.Topic)), errorType(f.Err)))
		}, also, func(h outbox.Hooks) func(outbox.AttemptFailed) { return h.Failed }),
		Parked: join(func(p outbox.ParkedMessage) {
			ctx := k.Extract(context.Background(), p.Message.Header)
			ctx, span := k.startMessage(ctx, opSend, trace.SpanKindProducer, p.Message, trace.WithAttributes(keyAttempt.Int(p.Attempts), keyAction.String("parked")))
			span.SetStatus(codes.Error, p.Reason)
			span.End()
			k.relayPark.Add(ctx, 1, metric.WithAttributes(semconv.MessagingDestinationName(k.cfg.Destination(p.Message.Topic))))
		}, also, func(h outbox.Hooks) func(outbox.ParkedMessage) { return h.Parked }),
		Leased: join(func(l outbox.Leased) {
			reason := l.Why
			if l.Held {
				reason = "gained"
			}
			k.relayLeases.Add(context.Background(), 1, metric.WithAttributes(keyReason.String(reason)))
		}, also, func(h outbox.Hooks) func(outbox.Leased) { return h.Leased }),
	}
}

// Inbox counts the messages that come to an inbox, and marks the span of one that was there before.
func (k *Kit) Inbox(next idempotency.Inbox) idempotency.Inbox { return &inbox{next, k} }

type inbox struct {
	idempotency.Inbox
	kit *Kit
}

// Once implements [idempotency.Inbox].
func (i *inbox) Once(ctx context.Context, tx idempotency.Tx, consumer, id string) (first bool, err error) {
	first, err = i.Inbox.Once(ctx, tx, consumer, id)
	i.count(ctx, consumer, err, first)
	return first, err
}

// OnceMany implements [idempotency.Inbox].
func (i *inbox) OnceMany(ctx context.Context, tx idempotency.Tx, consumer string, ids []string) (first []bool, err error) {
	first, err = i.Inbox.OnceMany(ctx, tx, consumer, ids)
	i.count(ctx, consumer, err, first...)
	return first, err
}

func (i *inbox) count(ctx context.Context, consumer string, err error, first ...bool) {
	if err != nil {
		if errors.Is(err, idempotency.ErrInProgress) {
			event(ctx, "inbox: in progress elsewhere")
		}
		return
	}
	again := 0
	for _, f := range first {
		if !f {
			again++
		}
	}
	count := func(n int, duplicate bool) {
		if n > 0 {
			i.kit.inbox.Add(ctx, int64(n), metric.WithAttributes(keyConsumer.String(consumer), keyDuplicate.Bool(duplicate)))
		}
	}
	count(len(first)-again, false)
	count(again, true)
	if again > 0 {
		trace.SpanFromContext(ctx).SetAttributes(keyDuplicate.Bool(true))
	}
}

// Idempotency marks the spans of requests that were answered with a stored answer, and counts those. It
// goes around the middleware of [idempotency.HTTP].
func (k *Kit) Idempotency(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r)
		if w.Header().Get(idempotency.HeaderReplayed) != "true" {
			return
		}
		attrs := []attribute.KeyValue{semconv.HTTPRequestMethodKey.String(r.Method)}
		if r.Pattern != "" {
			attrs = append(attrs, semconv.HTTPRoute(route(r.Pattern)))
		}
		k.replayed.Add(r.Context(), 1, metric.WithAttributes(attrs...))
		trace.SpanFromContext(r.Context()).SetAttributes(keyReplayed.Bool(true))
	})
}
