// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcemem"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/otelkit"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagamem"
)

func TestGuardsMarkTheirCallersSpan(t *testing.T) {
	w := watch(t, otelkit.Config{})
	var own atomic.Int64
	policy := &resilience.Policy{
		Retry: must[*retry.Retrier](t)(retry.New(retry.Config{Name: "payment", Attempts: 3, Base: time.Microsecond, Hooks: w.Retry(retry.Hooks{Retry: func(retry.Retrying) { own.Add(1) }})})),
		Breaker: must[*breaker.Breaker](t)(breaker.New(breaker.Config{Name: "payment", Hooks: w.Breaker(breaker.Hooks{
			Change: func(breaker.Change) { own.Add(1) }, Reject: func(breaker.Rejected) { own.Add(1) },
		})})),
	}
	broken := errors.New("broken")
	for range 2 { // five failures in a row open it
		_, _ = otelkit.Do(t.Context(), w.Kit, "charge", func(ctx context.Context) (int, error) {
			return 0, policy.Do(ctx, func(context.Context) error { return broken })
		})
	}
	spans := w.named("charge")
	if got, want := events(spans[0]), []string{"retry", "retry", "retry given up"}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	if got := events(spans[1]); !slices.Contains(got, "breaker rejected") {
		t.Errorf("events %v, want the breaker's refusal among them", got)
	}
	e := spans[0].Events()[0]
	if of(e.Attributes, "dovetail.attempt") != "1" || of(e.Attributes, "error.type") != "*errors.errorString" || of(e.Attributes, "dovetail.name") != "payment" {
		t.Errorf("the first retry says %v", e.Attributes)
	}
	w.wantPoint(t, "dovetail.breaker.changes dovetail.name=payment dovetail.state=open", 1)
	w.wantPoint(t, "dovetail.retry.given_up dovetail.name=payment", 2)
	if own.Load() < 4 {
		t.Errorf("the caller's own hooks were called %d times, want at least 4", own.Load())
	}

	bulk := must[*bulkhead.Bulkhead](t)(bulkhead.New(1, bulkhead.Config{Name: "b", Hooks: w.Bulkhead()}))
	limit := must[*ratelimit.Limiter](t)(ratelimit.New(ratelimit.PerMinute(1), ratelimit.Config{Name: "l", Hooks: w.RateLimit()}))
	ctx, caller := w.tracer.Start(t.Context(), "refused")
	_ = bulk.Do(ctx, func(ctx context.Context) error {
		return bulk.Do(ctx, func(context.Context) error { return nil })
	})
	nothing := func(context.Context) error { return nil }
	_, _ = limit.Do(ctx, nothing), limit.Do(ctx, nothing)
	caller.End()
	if got, want := events(w.span(t, "refused")), []string{"bulkhead rejected", "rate limit rejected"}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	w.wantPoint(t, "dovetail.bulkhead.rejected dovetail.name=b dovetail.reason=queue is full", 1)
	w.wantPoint(t, "dovetail.ratelimit.rejected dovetail.name=l", 1)
}

func TestHedgeAndAdaptive(t *testing.T) {
	w := watch(t, otelkit.Config{})
	hedge := must[*resilience.Hedge](t)(resilience.NewHedge(resilience.HedgeConfig{Name: "lookup", Delay: time.Millisecond, MinDelay: time.Millisecond, Hooks: w.Hedge()}))
	ctx, caller := w.tracer.Start(t.Context(), "hedged")
	var calls atomic.Int64
	_, err := resilience.DoHedged(ctx, &resilience.Policy{}, hedge, func(ctx context.Context) (int, error) {
		if calls.Add(1) == 1 {
			<-ctx.Done() // until the second has won
		}
		return 1, nil
	})
	caller.End()
	if err != nil {
		t.Fatal(err)
	}
	if got := events(w.span(t, "hedged")); !slices.Equal(got, []string{"hedge started"}) {
		t.Errorf("events %v, want the hedge", got)
	}
	w.wantPoint(t, "dovetail.hedge.started dovetail.name=lookup", 1)

	adaptive := must[*resilience.Adaptive](t)(resilience.NewAdaptive(resilience.AdaptiveConfig{Name: "gateway", Min: 1, Max: 1, Initial: 1, Hooks: w.Adaptive()}))
	policy := &resilience.Policy{Adaptive: adaptive}
	ctx, caller = w.tracer.Start(t.Context(), "shed")
	_ = policy.Do(ctx, func(context.Context) error {
		return policy.Do(ctx, func(context.Context) error { return nil })
	})
	caller.End()
	if got := events(w.span(t, "shed")); !slices.Equal(got, []string{"shed"}) {
		t.Errorf("events %v, want the refusal", got)
	}
	w.wantPoint(t, "dovetail.adaptive.rejected dovetail.criticality=critical dovetail.name=gateway", 1)
	hooks := w.Adaptive()
	hooks.Change(resilience.LimitChange{Name: "gateway", From: 1, To: 7})
	w.wantPoint(t, "dovetail.adaptive.limit dovetail.name=gateway", 7)
}

// One node starts a saga and is gone in the middle of it; another one finishes it, in the same trace.
func TestATraceSurvivesACrashOfItsSaga(t *testing.T) {
	w := watch(t, otelkit.Config{})
	store := sagamem.New()
	type data struct{ Order string }
	var calls atomic.Int64
	arrived := make(chan string, 1)
	def := must[*saga.Definition[data]](t)(saga.New("place-order", 2,
		saga.Call("reserve", func(ctx context.Context, _ saga.Attempt, _ *data) error {
			if calls.Add(1) == 1 {
				arrived <- baggage.FromContext(ctx).Member("order.id").Value()
				<-ctx.Done() // the node is stopped while this is under way
				return ctx.Err()
			}
			if calls.Load() == 2 {
				return errors.New("not now")
			}
			return nil
		}, saga.Undo(func(context.Context, saga.Attempt, *data) error { return nil })),
		saga.Call("pay", func(context.Context, saga.Attempt, *data) error { return saga.Refuse("no money") }, saga.NoUndo[data]()),
	))
	var heard atomic.Int64
	own := saga.Hooks{
		Starting:  func(context.Context, saga.Starting) { heard.Add(1) },
		StepStart: func(ctx context.Context, _ saga.StepStart) context.Context { heard.Add(1); return ctx },
		StepEnd:   func(context.Context, saga.StepEnd) { heard.Add(1) },
	}
	node := func(name string) *saga.Engine {
		return must[*saga.Engine](t)(saga.NewEngine(store, saga.Config{Node: name, Lease: time.Second, Drain: -1, Backoff: saga.Backoff{Base: time.Millisecond}, Hooks: w.Saga(own)}, def))
	}
	run := func(e *saga.Engine) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- e.Run(ctx) }()
		return func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	first := node("a")
	stop := run(first)
	ctx, request := w.tracer.Start(withBaggage(t, t.Context(), "order.id", "s1"), "request")
	if err := saga.Start(ctx, first, nil, def, "s1", data{"s1"}); err != nil {
		t.Fatal(err)
	}
	request.End()
	first.Wake()
	if order := <-arrived; order != "s1" {
		t.Errorf("the step finds order.id %q in its baggage, want s1", order)
	}
	stop()
	second := node("b")
	stop = run(second)
	second.Wake()
	eventually(t, func() error {
		if second.Stats().Compensated == 0 {
			return errors.New("the saga does not end")
		}
		return nil
	})
	stop()
	eventually(t, func() error { // the first node does not wait for its call
		if n := len(w.named("place-order/reserve")); n < 3 {
			return fmt.Errorf("%d attempts have ended, want 3", n)
		}
		return nil
	})

	wantAttrs(t, w.span(t, "request"), map[string]string{"dovetail.saga.id": "s1", "dovetail.saga.name": "place-order"})
	for _, s := range w.spans.Ended() {
		if s.Name() != "request" {
			wantParent(t, s, request.SpanContext())
			wantAttrs(t, s, map[string]string{"dovetail.saga.name": "place-order", "dovetail.saga.version": "2", "dovetail.saga.id": "s1"})
		}
	}
	reserve := w.named("place-order/reserve")
	if len(reserve) != 3 || reserve[0].Status().Description != "abandoned" || reserve[1].Status().Code != codes.Error || reserve[2].Status().Code != codes.Unset {
		t.Errorf("attempts %v, want one abandoned, one failed, one done", reserve)
	}
	refused := w.span(t, "place-order/pay")
	wantAttrs(t, refused, map[string]string{"dovetail.outcome": "refused", "dovetail.saga.step": "pay", "dovetail.saga.op": "do"})
	if refused.Status().Code != codes.Unset {
		t.Errorf("a refusal has status %v, want no error: it is an answer", refused.Status())
	}
	wantAttrs(t, w.span(t, "place-order/undo reserve"), map[string]string{"dovetail.saga.op": "undo"})
	w.wantPoint(t, "dovetail.saga.started dovetail.saga.name=place-order", 1)
	w.wantPoint(t, "dovetail.saga.ended dovetail.saga.name=place-order dovetail.saga.status=compensated", 1)
	w.wantPoint(t, "dovetail.saga.compensating dovetail.saga.cause=refused dovetail.saga.name=place-order", 1)
	p := w.wantPoint(t, "dovetail.saga.step.duration dovetail.outcome=refused dovetail.saga.name=place-order dovetail.saga.op=do dovetail.saga.step=pay", 1)
	if !slices.Contains(p.traces, request.SpanContext().TraceID().String()) {
		t.Errorf("the exemplars lead to %v, want the trace", p.traces)
	}
	if heard.Load() < 6 {
		t.Errorf("the caller's own hooks were called %d times, want at least 6", heard.Load())
	}
}

func TestEventLog(t *testing.T) {
	w := watch(t, otelkit.Config{DBSystem: "postgresql"})
	store := eventsourcemem.New()
	log := must[*eventsource.Log](t)(eventsource.New(store, eventsource.Config{Inject: w.Inject, Hooks: w.EventLog()}))
	ctx, request := w.tracer.Start(t.Context(), "request")
	tx := store.Begin()
	if err := errors.Join(log.Append(ctx, tx, "order-17", eventsource.None, eventsource.Event{Type: "placed"}, eventsource.Event{Type: "paid"}), tx.Commit()); err != nil {
		t.Fatal(err)
	}
	late := store.Begin()
	if err := log.Append(ctx, late, "order-17", eventsource.None, eventsource.Event{Type: "placed"}); err == nil {
		t.Error("a second beginning of the stream is taken")
	}
	_ = late.Rollback()
	request.End()
	s := w.span(t, "append")
	wantParent(t, s, request.SpanContext())
	wantAttrs(t, s, map[string]string{"db.system.name": "postgresql", "db.operation.name": "append", "db.operation.batch.size": "2", "dovetail.stream": "order-17"})
	if s.SpanKind() != oteltrace.SpanKindClient {
		t.Errorf("kind %v, want client", s.SpanKind())
	}
	w.wantPoint(t, "db.client.operation.duration db.operation.name=append db.system.name=postgresql", 1)
	w.wantPoint(t, "dovetail.eventsource.appended", 2)
	w.wantPoint(t, "dovetail.eventsource.conflicts", 1)
}

func TestProjectorCacheAndBalance(t *testing.T) {
	w := watch(t, otelkit.Config{})
	p, id := w.Projector(), eventsource.ProjectionID{Name: "orders", Revision: 2}
	p.Applied(eventsource.Applied{ID: id, Events: 5, Lag: time.Second, Took: time.Millisecond})
	p.Failed(eventsource.ApplyFailed{ID: id, Err: context.DeadlineExceeded})
	p.Parked(eventsource.Parked{ID: id, Stream: "order-17"})
	w.wantPoint(t, "dovetail.projection.applied dovetail.projection=orders/2", 5)
	w.wantPoint(t, "dovetail.projection.lag dovetail.projection=orders/2", 1)
	w.wantPoint(t, "dovetail.projection.failed dovetail.projection=orders/2 error.type=timeout", 1)
	w.wantPoint(t, "dovetail.projection.parked dovetail.projection=orders/2", 1)

	products := must[*cache.Cache[int]](t)(cache.New("products", cache.Config[int]{Hooks: w.Cache()}))
	_, _ = products.Get(t.Context(), "p-1", func(context.Context, string) (int, error) { return 1, nil })
	_, _ = products.Get(t.Context(), "p-2", func(context.Context, string) (int, error) { return 0, context.DeadlineExceeded })
	w.wantPoint(t, "dovetail.cache.load.duration dovetail.cache=products", 1)
	w.wantPoint(t, "dovetail.cache.load.duration dovetail.cache=products error.type=timeout", 1)

	changed := make(chan struct{}, 1)
	resolver := must[*discovery.Static](t)(discovery.NewStatic(map[string][]discovery.Instance{"order": {{ID: "order-1", Service: "order", Addr: "127.0.0.1:1"}, {ID: "order-2", Service: "order", Addr: "127.0.0.1:2"}}}))
	balancer := must[*balance.Balancer](t)(balance.New(resolver, "order", balance.Config{Hooks: w.Balance(balance.Hooks{Change: func(balance.Change) { changed <- struct{}{} }})}))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- balancer.Run(ctx) }()
	<-changed
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w.wantPoint(t, "dovetail.balance.instances dovetail.service=order", 2)
	w.wantPoint(t, "dovetail.balance.resolutions dovetail.service=order", 1)
	hooks := w.Balance()
	hooks.Eject(balance.Ejection{Instance: discovery.Instance{Service: "order"}, Reason: "probe"})
	hooks.Return(balance.Return{Instance: discovery.Instance{Service: "order"}})
	hooks.Panic(balance.Panic{Service: "order", On: true})
	hooks.Panic(balance.Panic{Service: "order"})
	w.wantPoint(t, "dovetail.balance.ejections dovetail.reason=probe dovetail.service=order", 1)
	w.wantPoint(t, "dovetail.balance.returns dovetail.service=order", 1)
	w.wantPoint(t, "dovetail.balance.panics dovetail.service=order", 1)
}

// What is told of many customers is told in as many series as what is told of one. One more would show:
// DOVETAIL_CUSTOMERS makes them 100,000, or as many as it says.
func TestSeriesDoNotGrowWithCustomers(t *testing.T) {
	w := watch(t, otelkit.Config{}, sdktrace.WithSampler(sdktrace.NeverSample()))
	messages, relay, sagas, log := w.Messages(), w.Relay(), w.Saga(), w.EventLog()
	projector, caches, balancers, breakers, retries := w.Projector(), w.Cache(), w.Balance(), w.Breaker(), w.Retry()
	tell := func(customer int) {
		id := fmt.Sprintf("customer-%d", customer)
		failed := fmt.Errorf("%s: %w", id, errors.New(id))
		m := &messaging.Message{ID: id, Topic: "order.placed", Key: id}
		d := &messaging.Delivery{Message: m, Group: "mails"}
		messages.Published(messaging.Published{Message: m, Err: failed})
		messages.Delivered(messaging.Delivered{Delivery: d})
		messages.Settled(messaging.Settled{Delivery: d, Decision: messaging.Decision{Err: failed, Reason: id}})
		relay.Confirmed(outbox.Confirmed{Message: m})
		relay.Failed(outbox.AttemptFailed{Message: m, Err: failed})
		relay.Parked(outbox.ParkedMessage{Message: m, Reason: id})
		header := messaging.Header{}
		sagas.Starting(t.Context(), saga.Starting{Saga: id, Name: "place-order", Header: header})
		ctx := sagas.StepStart(t.Context(), saga.StepStart{Attempt: saga.Attempt{Saga: id, Step: "pay"}, Name: "place-order", Header: header})
		sagas.StepEnd(ctx, saga.StepEnd{Attempt: saga.Attempt{Saga: id, Step: "pay"}, Name: "place-order", Outcome: "failed", Err: failed})
		sagas.Ended(saga.Ended{End: saga.End{Saga: id, Reason: id}, Name: "place-order"})
		sagas.Stuck(saga.Stuck{Saga: id, Name: "place-order", Step: "pay", Reason: id})
		sagas.Compensating(saga.Turned{Saga: id, Name: "place-order", Reason: id})
		sagas.TakenOver(saga.TakenOver{Saga: id, Name: "place-order"})
		log.Appended(eventsource.Appended{Stream: id, Events: []eventsource.Event{{ID: id}}})
		log.Conflicted(eventsource.Conflicted{Stream: id})
		log.Loaded(eventsource.Loaded{Stream: id})
		log.SnapshotFailed(eventsource.SnapshotFailed{Stream: id, Err: failed})
		projector.Failed(eventsource.ApplyFailed{Err: failed})
		projector.Parked(eventsource.Parked{Stream: id, Event: id, Reason: id})
		caches.Loaded(cache.Loaded{Cache: "products", Key: id, Err: failed})
		caches.Stale(cache.Stale{Cache: "products", Key: id, Err: failed})
		caches.Fenced(cache.Fenced{Cache: "products", Key: id})
		caches.StoreFailed(cache.StoreFailed{Cache: "products", Key: id, Op: "put", Err: failed})
		balancers.Change(balance.Change{Err: failed})
		balancers.Eject(balance.Ejection{Instance: discovery.Instance{ID: id, Addr: id, Service: "order"}, Reason: "probe"})
		breakers.Reject(breaker.Rejected{Context: t.Context(), Name: "payment"})
		retries.Retry(retry.Retrying{Context: t.Context(), Name: "payment", Err: failed})
		_, _ = otelkit.Do(t.Context(), w.Kit, "charge", func(context.Context) (int, error) { return 0, fault.Permanent(failed) })
	}
	tell(0)
	one := len(w.points(t))
	customers := 3000
	if text := os.Getenv("DOVETAIL_CUSTOMERS"); text != "" {
		customers = must[int](t)(strconv.Atoi(text))
	}
	for i := range customers {
		tell(i + 1)
	}
	if many := len(w.points(t)); many != one || one == 0 {
		t.Errorf("%d series after %d customers, %d after the first; want the same", many, customers+1, one)
	}
}
