// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit_test

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
	"github.com/dovetail-go/dovetail/otelkit"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxmem"
)

// publisher publishes as the function says.
type publisher func(ctx context.Context, msgs ...*messaging.Message) error

func (p publisher) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	return p(ctx, msgs...)
}

// A request enqueues a message in its transaction; a relay, which knows nothing of the request, publishes
// it; a consumer handles it: one trace, with the request's baggage.
func TestATraceGoesThroughTheOutbox(t *testing.T) {
	w := watch(t, otelkit.Config{MessagingSystem: "rabbitmq"})
	broker := must[*messagingmem.Broker](t)(messagingmem.New(messagingmem.Config{Hooks: w.Messages()}))
	store := outboxmem.New()
	box := must[*outbox.Outbox](t)(outbox.New(store, outbox.Config{Inject: w.Inject}))
	relay := must[*outbox.Relay](t)(outbox.NewRelay(box, broker, outbox.RelayConfig{Hooks: w.Relay()}))

	subscription := messaging.Subscription{Group: "mails", Topics: []string{"order.*"}}
	if err := broker.Declare(t.Context(), subscription); err != nil {
		t.Fatal(err)
	}
	type heard struct {
		order string
		span  oteltrace.SpanContext
	}
	got := make(chan heard, 1)
	handler := messaging.Chain(messaging.HandlerFunc(func(ctx context.Context, _ *messaging.Delivery) error {
		got <- heard{baggage.FromContext(ctx).Member("order.id").Value(), oteltrace.SpanContextFromContext(ctx)}
		return nil
	}), w.Consumer())
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- broker.Subscribe(ctx, subscription, handler) }()
	go func() { ended <- relay.Run(ctx) }()

	server := w.Server()(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		tx := store.Begin()
		if err := box.Enqueue(withBaggage(t, r.Context(), "order.id", "o-17"), tx, &messaging.Message{ID: "m1", Topic: "order.placed", Key: "o-17", Body: []byte("12345")}); err != nil {
			t.Error(err)
		}
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
		box.Wake()
	}))
	server.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "POST", "/orders", nil))

	h := <-got
	if h.order != "o-17" {
		t.Errorf("the handler finds order.id %q in its baggage, want o-17", h.order)
	}
	eventually(t, func() error {
		if len(w.named("send order.placed")) == 0 || len(w.named("process order.placed")) == 0 || broker.Stats().Groups[0].Acked == 0 {
			return errors.New("the message is not on record")
		}
		return nil
	})
	stop()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	request, send, process := w.span(t, "POST"), w.span(t, "send order.placed"), w.span(t, "process order.placed")
	wantParent(t, send, request.SpanContext())
	wantParent(t, process, request.SpanContext())
	if !process.SpanContext().Equal(h.span) {
		t.Errorf("the handler runs in span %v, want %v", h.span.SpanID(), process.SpanContext().SpanID())
	}
	if send.SpanKind() != oteltrace.SpanKindProducer || process.SpanKind() != oteltrace.SpanKindConsumer || request.SpanKind() != oteltrace.SpanKindServer {
		t.Errorf("kinds %v, %v, %v, want server, producer, consumer", request.SpanKind(), send.SpanKind(), process.SpanKind())
	}
	wantAttrs(t, send, map[string]string{
		"messaging.system": "rabbitmq", "messaging.operation.name": "send", "messaging.operation.type": "send",
		"messaging.destination.name": "order.placed", "messaging.message.id": "m1", "messaging.message.body.size": "5", "dovetail.message.key": "o-17",
	})
	wantAttrs(t, process, map[string]string{
		"messaging.operation.type": "process", "messaging.consumer.group.name": "mails", "dovetail.attempt": "1", "messaging.message.id": "m1",
	})
	if send.EndTime().Before(send.StartTime()) {
		t.Errorf("the span of sending ends at %v before it starts at %v", send.EndTime(), send.StartTime())
	}
	const system = " messaging.operation.name=send messaging.system=rabbitmq"
	w.wantPoint(t, "messaging.client.sent.messages messaging.destination.name=order.placed"+system, 1)
	p := w.wantPoint(t, "messaging.client.operation.duration messaging.destination.name=order.placed messaging.operation.name=send messaging.operation.type=send messaging.system=rabbitmq", 1)
	if want := request.SpanContext().TraceID().String(); len(p.traces) != 1 || p.traces[0] != want {
		t.Errorf("the exemplars of publishing lead to %v, want %v", p.traces, want)
	}
	const group = " messaging.consumer.group.name=mails messaging.destination.name=order.placed"
	w.wantPoint(t, "messaging.client.consumed.messages"+group+" messaging.operation.name=process messaging.system=rabbitmq", 1)
	w.wantPoint(t, "messaging.process.duration"+group+" messaging.operation.name=process messaging.system=rabbitmq", 1)
	w.wantPoint(t, "dovetail.messaging.settled dovetail.action=acked"+group, 1)
	w.wantPoint(t, "dovetail.outbox.lag messaging.destination.name=order.placed", 1)
}

func TestRelayTellsOfFailures(t *testing.T) {
	w := watch(t, otelkit.Config{})
	store := outboxmem.New()
	box := must[*outbox.Outbox](t)(outbox.New(store, outbox.Config{Inject: w.Inject}))
	refused := publisher(func(context.Context, ...*messaging.Message) error { return messaging.ErrRefused })
	parked := make(chan outbox.ParkedMessage, 1)
	own := outbox.Hooks{Parked: func(p outbox.ParkedMessage) { parked <- p }}
	relay := must[*outbox.Relay](t)(outbox.NewRelay(box, refused, outbox.RelayConfig{MaxAttempts: 2, Backoff: messaging.Backoff{Base: time.Millisecond}, Hooks: w.Relay(own)}))
	ctx, caller := w.tracer.Start(t.Context(), "caller")
	tx := store.Begin()
	if err := errors.Join(box.Enqueue(ctx, tx, &messaging.Message{Topic: "t"}), tx.Commit()); err != nil {
		t.Fatal(err)
	}
	caller.End()
	running, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(running) }()
	if p := <-parked; p.Attempts != 2 {
		t.Errorf("the caller's own hook hears of %d attempts, want 2", p.Attempts)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	failed := 0
	for _, s := range w.named("send t") {
		wantParent(t, s, caller.SpanContext())
		if s.Status().Code != codes.Error {
			t.Errorf("status %v, want an error", s.Status())
		}
		if attr(s, "error.type") == "refused" {
			failed++
		}
	}
	if failed != 2 {
		t.Errorf("%d spans say refused, want one per attempt, 2", failed)
	}
	w.wantPoint(t, "dovetail.outbox.failed error.type=refused messaging.destination.name=t", 2)
	w.wantPoint(t, "dovetail.outbox.parked messaging.destination.name=t", 1)
}

// asyncPublisher keeps what it is given, as long as it has room.
type asyncPublisher struct {
	publisher
	room int
	sent []*messaging.Message
	done []func(error)
}

func (p *asyncPublisher) PublishAsync(_ context.Context, m *messaging.Message, done func(err error)) bool {
	if len(p.sent) >= p.room {
		return false
	}
	p.sent, p.done = append(p.sent, m), append(p.done, done)
	return true
}

// What need not wait for each message still need not, and a span ends with its message's outcome.
func TestPublisherKeepsPublishAsync(t *testing.T) {
	w := watch(t, otelkit.Config{})
	if _, ok := w.Publisher(publisher(nil)).(messaging.AsyncPublisher); ok {
		t.Error("a publisher without PublishAsync has got one")
	}
	broker := &asyncPublisher{room: 2}
	p, ok := w.Publisher(broker).(messaging.AsyncPublisher)
	if !ok {
		t.Fatal("a publisher's PublishAsync is lost")
	}
	ctx, caller := w.tracer.Start(t.Context(), "caller")
	defer caller.End()
	var outcomes []error
	publish := func(id string) bool {
		return p.PublishAsync(ctx, &messaging.Message{ID: id, Topic: "t"}, func(err error) { outcomes = append(outcomes, err) })
	}
	if !publish("m1") || !publish("m2") || publish("m3") {
		t.Fatalf("%d messages were taken, want the first two of three", len(broker.sent))
	}
	if n := len(w.spans.Ended()); n != 0 || len(outcomes) != 0 {
		t.Fatalf("%d spans have ended and %d outcomes are told before there are any", n, len(outcomes))
	}
	broker.done[1](messaging.ErrRefused)
	broker.done[0](nil)
	if len(outcomes) != 2 || !errors.Is(outcomes[0], messaging.ErrRefused) || outcomes[1] != nil {
		t.Errorf("outcomes are %v, want refused and nil", outcomes)
	}
	spans := w.spans.Ended()
	if len(spans) != 2 {
		t.Fatalf("spans %v have ended, want those of two messages", w.names())
	}
	for i, id := range []string{"m2", "m1"} {
		s, m := spans[i], broker.sent[1-i]
		wantParent(t, s, caller.SpanContext())
		wantAttrs(t, s, map[string]string{"messaging.message.id": id, "messaging.operation.name": "send"})
		if tc, ok := messaging.TraceFrom(m.Header); !ok || tc.SpanID.String() != s.SpanContext().SpanID().String() {
			t.Errorf("message %s carries %v, want %v", m.ID, m.Header, s.SpanContext().SpanID())
		}
	}
	if spans[0].Status().Code != codes.Error || spans[1].Status().Code == codes.Error {
		t.Errorf("statuses are %v and %v, want an error of what was refused", spans[0].Status(), spans[1].Status())
	}
}

// A relay with it publishes that way.
func TestRelayPublishesAsyncThroughTheKit(t *testing.T) {
	w := watch(t, otelkit.Config{})
	broker := &confirming{}
	store := outboxmem.New()
	box := must[*outbox.Outbox](t)(outbox.New(store, outbox.Config{Inject: w.Inject}))
	relay := must[*outbox.Relay](t)(outbox.NewRelay(box, w.Publisher(broker), outbox.RelayConfig{}))
	tx := store.Begin()
	if err := box.Enqueue(t.Context(), tx, &messaging.Message{ID: "m1", Topic: "t"}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(ctx) }()
	eventually(t, func() error {
		if relay.Stats().Confirmed != 1 {
			return errors.New("the message is not confirmed")
		}
		return nil
	})
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := broker.async.Load(); n != 1 || len(w.named("send t")) != 1 {
		t.Errorf("%d messages were published by PublishAsync with spans %v, want one", n, w.names())
	}
}

// confirming confirms everything at once, and counts what came by PublishAsync.
type confirming struct{ async atomic.Int64 }

func (*confirming) Publish(context.Context, ...*messaging.Message) error { return nil }

func (c *confirming) PublishAsync(_ context.Context, _ *messaging.Message, done func(err error)) bool {
	c.async.Add(1)
	done(nil)
	return true
}

func TestPublisher(t *testing.T) {
	w := watch(t, otelkit.Config{Destination: func(topic string) string { return strings.SplitN(topic, ".", 2)[0] }})
	var sent []*messaging.Message
	var result error
	p := w.Publisher(publisher(func(_ context.Context, msgs ...*messaging.Message) error { sent = msgs; return result }))
	ctx, caller := w.tracer.Start(t.Context(), "caller")
	defer caller.End()
	created := messaging.NewTrace()

	t.Run("one message carries its own span", func(t *testing.T) {
		w.spans.Reset()
		shared := messaging.Header{"x": "y"}
		m := &messaging.Message{ID: "m1", Topic: "order.4711", Header: shared}
		if err := p.Publish(ctx, m); err != nil {
			t.Fatal(err)
		}
		s := w.span(t, "send order")
		wantParent(t, s, caller.SpanContext())
		if tc, ok := messaging.TraceFrom(sent[0].Header); !ok || tc.SpanID.String() != s.SpanContext().SpanID().String() {
			t.Errorf("the message carries %v, want %v", sent[0].Header, s.SpanContext().SpanID())
		}
		if !maps.Equal(shared, messaging.Header{"x": "y"}) || m.Header["traceparent"] != "" {
			t.Errorf("the caller's header became %v", shared)
		}
	})
	t.Run("a message keeps the context of its creation", func(t *testing.T) {
		w.spans.Reset()
		m := &messaging.Message{ID: "m1", Topic: "t", Header: messaging.Header{}}
		created.Inject(m.Header)
		if err := p.Publish(ctx, m); err != nil {
			t.Fatal(err)
		}
		s := w.span(t, "send t")
		if s.Parent().SpanID().String() != created.SpanID.String() || s.SpanContext().TraceID().String() != created.TraceID.String() {
			t.Errorf("parent %v, want the creation %v", s.Parent(), created)
		}
		if tc, _ := messaging.TraceFrom(sent[0].Header); tc.SpanID != created.SpanID {
			t.Errorf("the message carries %v, want %v", tc, created)
		}
	})
	t.Run("several are one operation with links", func(t *testing.T) {
		w.spans.Reset()
		old := &messaging.Message{ID: "m1", Topic: "t", Header: messaging.Header{}}
		created.Inject(old.Header)
		result = &messaging.PublishError{Failed: []messaging.Failed{{Index: 1, ID: "m2", Err: messaging.ErrUnroutable}}}
		defer func() { result = nil }()
		if err := p.Publish(ctx, old, &messaging.Message{ID: "m2", Topic: "u"}); !errors.Is(err, messaging.ErrUnroutable) {
			t.Fatalf("Publish = %v, want the publisher's error", err)
		}
		send, create := w.span(t, "send"), w.span(t, "create u")
		wantParent(t, create, caller.SpanContext())
		wantParent(t, send, caller.SpanContext())
		if send.SpanKind() != oteltrace.SpanKindClient || create.SpanKind() != oteltrace.SpanKindProducer {
			t.Errorf("kinds %v and %v, want client and producer", send.SpanKind(), create.SpanKind())
		}
		wantAttrs(t, send, map[string]string{"messaging.batch.message_count": "2", "error.type": "unroutable"})
		links := send.Links()
		if len(links) != 2 || links[0].SpanContext.SpanID().String() != created.SpanID.String() || links[1].SpanContext.SpanID() != create.SpanContext().SpanID() {
			t.Errorf("links %v, want to %v and %v", links, created, create.SpanContext().SpanID())
		}
		if of(links[1].Attributes, "messaging.message.id") != "m2" {
			t.Errorf("the second link says %v, want m2", links[1].Attributes)
		}
	})
	t.Run("nothing is no span", func(t *testing.T) {
		w.spans.Reset()
		if err := p.Publish(ctx); err != nil || len(w.spans.Ended()) != 0 {
			t.Errorf("Publish = %v with spans %v, want nil and none", err, w.names())
		}
	})
}

func TestConsumer(t *testing.T) {
	w := watch(t, otelkit.Config{})
	delivery := &messaging.Delivery{Message: &messaging.Message{ID: "m1", Topic: "t"}, Group: "g", Attempt: 3}
	failing := messaging.Chain(messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { return context.DeadlineExceeded }), w.Consumer())
	if err := failing.Handle(t.Context(), delivery); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Handle = %v, want the handler's error", err)
	}
	s := w.span(t, "process t")
	wantAttrs(t, s, map[string]string{"error.type": "timeout", "dovetail.attempt": "3"})
	if s.Status().Code != codes.Error || s.Parent().IsValid() {
		t.Errorf("status %v, parent %v; want an error, and the root of a trace", s.Status(), s.Parent())
	}
	w.spans.Reset()
	func() {
		defer func() { _ = recover() }()
		_ = messaging.Chain(messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { panic("oh") }), w.Consumer()).Handle(t.Context(), delivery)
	}()
	if s := w.span(t, "process t"); s.Status().Code != codes.Error {
		t.Errorf("after a panic the status is %v, want an error", s.Status())
	}
}

func TestABatchLinksToItsMessages(t *testing.T) {
	w := watch(t, otelkit.Config{})
	broken := errors.New("broken")
	handler := w.Batch(func(_ context.Context, ds []*messaging.Delivery) []error { return []error{nil, broken, nil} })
	var ds []*messaging.Delivery
	var want []string
	for _, id := range []string{"a", "b"} {
		created, header := messaging.NewTrace(), messaging.Header{}
		created.Inject(header)
		ds = append(ds, &messaging.Delivery{Group: "figures", Message: &messaging.Message{ID: id, Header: header}})
		want = append(want, created.SpanID.String())
	}
	ds = append(ds, &messaging.Delivery{Group: "figures", Message: &messaging.Message{ID: "c"}}) // by somebody who does not trace
	if errs := handler(t.Context(), ds); len(errs) != 3 || !errors.Is(errs[1], broken) {
		t.Errorf("errors %v, want the handler's", errs)
	}
	s := w.span(t, "process")
	if s.SpanKind() != oteltrace.SpanKindConsumer || s.Status().Code != codes.Error || s.Parent().IsValid() {
		t.Errorf("kind %v, status %v, parent %v; want a consumer, an error, and none", s.SpanKind(), s.Status(), s.Parent())
	}
	wantAttrs(t, s, map[string]string{"messaging.batch.message_count": "3", "messaging.consumer.group.name": "figures"})
	if len(s.Links()) != 2 {
		t.Fatalf("%d links, want 2", len(s.Links()))
	}
	for i, l := range s.Links() {
		if l.SpanContext.SpanID().String() != want[i] {
			t.Errorf("link %d leads to %v, want %v", i, l.SpanContext.SpanID(), want[i])
		}
	}
}

func TestInboxAndIdempotency(t *testing.T) {
	w := watch(t, otelkit.Config{})
	store := idempotencymem.New()
	db := store.OpenDB()
	defer func() { _ = db.Close() }()
	applied := 0
	handler := messaging.Chain(idempotency.Consumer(db, w.Inbox(store), func(context.Context, *sql.Tx, *messaging.Delivery) error { applied++; return nil }), w.Consumer())
	for range 2 {
		if err := handler.Handle(t.Context(), &messaging.Delivery{Group: "g", Message: &messaging.Message{ID: "m1", Topic: "t"}}); err != nil {
			t.Fatal(err)
		}
	}
	if spans := w.named("process t"); applied != 1 || len(spans) != 2 || attr(spans[0], "dovetail.inbox.duplicate") != "" || attr(spans[1], "dovetail.inbox.duplicate") != "true" {
		t.Errorf("applied %d times with spans %v, want once, and the second marked", applied, spans)
	}
	batch := idempotency.BatchConsumer(db, w.Inbox(store), func(context.Context, *sql.Tx, *messaging.Delivery) error { return nil })
	batch(t.Context(), []*messaging.Delivery{{Group: "g", Message: &messaging.Message{ID: "m1"}}, {Group: "g", Message: &messaging.Message{ID: "m2"}}})
	w.wantPoint(t, "dovetail.inbox.messages dovetail.consumer=g dovetail.inbox.duplicate=false", 2)
	w.wantPoint(t, "dovetail.inbox.messages dovetail.consumer=g dovetail.inbox.duplicate=true", 2)

	protect := must[func(http.Handler) http.Handler](t)(idempotency.HTTP(store, idempotency.HTTPConfig{Scope: idempotency.AnyClient}))
	mux := http.NewServeMux()
	mux.Handle("POST /orders/{customer}", w.Idempotency(protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }))))
	server := w.Server()(mux)
	for range 2 {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/orders/17", nil)
		r.Header.Set("Idempotency-Key", "k1")
		server.ServeHTTP(httptest.NewRecorder(), r)
	}
	spans := w.named("POST /orders/{customer}")
	if len(spans) != 2 || attr(spans[0], "dovetail.idempotency.replayed") != "" || attr(spans[1], "dovetail.idempotency.replayed") != "true" {
		t.Errorf("spans %v, want the second marked", spans)
	}
	w.wantPoint(t, "dovetail.idempotency.replayed http.request.method=POST http.route=/orders/{customer}", 1)
}
