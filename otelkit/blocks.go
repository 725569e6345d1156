// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/dbconv"
	"go.opentelemetry.io/otel/trace"

	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/eventsource"
)

// EventLog makes a span "append" of kind client for each append of events, as a child of the request
// that made them if [Kit.Inject] is in eventsource.Config, and times appends and loads as operations of a
// database. Streams are named on spans and never in metrics.
func (k *Kit) EventLog(also ...eventsource.Hooks) eventsource.Hooks {
	system := dbconv.SystemNameAttr(k.cfg.DBSystem)
	return eventsource.Hooks{
		Appended: join(func(a eventsource.Appended) {
			ctx := context.Background()
			if len(a.Events) > 0 {
				ctx = k.Extract(ctx, a.Events[0].Header)
			}
			now, began := k.past(a.Took)
			attrs := []attribute.KeyValue{semconv.DBSystemNameKey.String(k.cfg.DBSystem), semconv.DBOperationName("append"), keyStream.String(a.Stream)}
			if len(a.Events) > 1 {
				attrs = append(attrs, semconv.DBOperationBatchSize(len(a.Events)))
			}
			ctx, span := k.tracer.Start(ctx, "append", began, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attrs...))
			span.End(trace.WithTimestamp(now))
			k.appended.Add(ctx, int64(len(a.Events)))
			k.database.Record(ctx, a.Took.Seconds(), system, semconv.DBOperationName("append"))
		}, also, func(h eventsource.Hooks) func(eventsource.Appended) { return h.Appended }),
		Conflicted: join(func(eventsource.Conflicted) {
			k.conflicts.Add(context.Background(), 1)
		}, also, func(h eventsource.Hooks) func(eventsource.Conflicted) { return h.Conflicted }),
		Loaded: join(func(l eventsource.Loaded) {
			k.database.Record(context.Background(), l.Took.Seconds(), system, semconv.DBOperationName("load"))
		}, also, func(h eventsource.Hooks) func(eventsource.Loaded) { return h.Loaded }),
		SnapshotFailed: join(func(eventsource.SnapshotFailed) {
			k.snapshots.Add(context.Background(), 1)
		}, also, func(h eventsource.Hooks) func(eventsource.SnapshotFailed) { return h.SnapshotFailed }),
	}
}

// Projector measures how far a projection is behind, and what it applies.
func (k *Kit) Projector(also ...eventsource.ProjectorHooks) eventsource.ProjectorHooks {
	ctx := context.Background()
	of := func(id eventsource.ProjectionID) metric.MeasurementOption {
		return metric.WithAttributes(keyProjection.String(id.String()))
	}
	return eventsource.ProjectorHooks{
		Applied: join(func(a eventsource.Applied) {
			which := of(a.ID)
			k.applied.Add(ctx, int64(a.Events), which)
			k.applyLag.Record(ctx, a.Lag.Seconds(), which)
			k.applyDuration.Record(ctx, a.Took.Seconds(), which)
		}, also, func(h eventsource.ProjectorHooks) func(eventsource.Applied) { return h.Applied }),
		Failed: join(func(f eventsource.ApplyFailed) {
			k.applyFailed.Add(ctx, 1, metric.WithAttributes(keyProjection.String(f.ID.String()), errorType(f.Err)))
		}, also, func(h eventsource.ProjectorHooks) func(eventsource.ApplyFailed) { return h.Failed }),
		Parked: join(func(p eventsource.Parked) {
			k.applyPark.Add(ctx, 1, of(p.ID))
		}, also, func(h eventsource.ProjectorHooks) func(eventsource.Parked) { return h.Parked }),
		Leased: join(func(eventsource.Leased) {}, also, func(h eventsource.ProjectorHooks) func(eventsource.Leased) { return h.Leased }),
	}
}

// Cache times loads and counts what was served stale or not stored. Keys are never told. A hit calls no
// hook: promkit shows how many there were.
func (k *Kit) Cache(also ...cache.Hooks) cache.Hooks {
	ctx := context.Background()
	return cache.Hooks{
		Loaded: join(func(l cache.Loaded) {
			attrs := []attribute.KeyValue{keyCache.String(l.Cache)}
			if l.Err != nil {
				attrs = append(attrs, errorType(l.Err))
			}
			k.loadDuration.Record(ctx, l.Took.Seconds(), metric.WithAttributes(attrs...))
		}, also, func(h cache.Hooks) func(cache.Loaded) { return h.Loaded }),
		Stale: join(func(s cache.Stale) {
			k.stale.Add(ctx, 1, metric.WithAttributes(keyCache.String(s.Cache)))
		}, also, func(h cache.Hooks) func(cache.Stale) { return h.Stale }),
		Fenced: join(func(f cache.Fenced) {
			k.fenced.Add(ctx, 1, metric.WithAttributes(keyCache.String(f.Cache)))
		}, also, func(h cache.Hooks) func(cache.Fenced) { return h.Fenced }),
		StoreFailed: join(func(s cache.StoreFailed) {
			k.cacheStoreFailures.Add(ctx, 1, metric.WithAttributes(keyCache.String(s.Cache), keyOp.String(s.Op)))
		}, also, func(h cache.Hooks) func(cache.StoreFailed) { return h.StoreFailed }),
	}
}

// Balance counts what a balancer learns of a service's instances. Instances are not named: their IDs
// come and go.
func (k *Kit) Balance(also ...balance.Hooks) balance.Hooks {
	ctx := context.Background()
	return balance.Hooks{
		Change: join(func(c balance.Change) {
			service := keyService.String(c.Set.Service)
			attrs := []attribute.KeyValue{service}
			if c.Err != nil {
				attrs = append(attrs, errorType(c.Err))
			} else {
				k.instances.Record(ctx, int64(len(c.Set.Instances)), metric.WithAttributes(service))
			}
			k.resolutions.Add(ctx, 1, metric.WithAttributes(attrs...))
		}, also, func(h balance.Hooks) func(balance.Change) { return h.Change }),
		Eject: join(func(e balance.Ejection) {
			k.ejections.Add(ctx, 1, metric.WithAttributes(keyService.String(e.Instance.Service), keyReason.String(e.Reason)))
		}, also, func(h balance.Hooks) func(balance.Ejection) { return h.Eject }),
		Return: join(func(r balance.Return) {
			k.returns.Add(ctx, 1, metric.WithAttributes(keyService.String(r.Instance.Service)))
		}, also, func(h balance.Hooks) func(balance.Return) { return h.Return }),
		Panic: join(func(p balance.Panic) {
			if p.On {
				k.panics.Add(ctx, 1, metric.WithAttributes(keyService.String(p.Service)))
			}
		}, also, func(h balance.Hooks) func(balance.Panic) { return h.Panic }),
	}
}
