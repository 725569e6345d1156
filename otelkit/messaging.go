// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"
	"go.opentelemetry.io/otel/trace"

	"github.com/dovetail-go/dovetail/messaging"
)

// Names of messaging operations.
const (
	opCreate  = "create"
	opSend    = "send"
	opProcess = "process"
)

// Messages measures what the client of a broker does: messages sent and consumed, the time until
// a message is confirmed, and the time in handlers, with exemplars that lead to the traces. Spans are made by
// [Kit.Publisher], [Kit.Relay] and [Kit.Consumer].
func (k *Kit) Messages(also ...messaging.Hooks) messaging.Hooks {
	system := messagingconv.SystemAttr(k.cfg.MessagingSystem)
	return messaging.Hooks{
		Published: join(func(p messaging.Published) {
			ctx := k.Extract(context.Background(), p.Message.Header)
			attrs := []attribute.KeyValue{semconv.MessagingDestinationName(k.cfg.Destination(p.Message.Topic))}
			if p.Err != nil {
				attrs = append(attrs, errorType(p.Err))
			}
			k.sent.Add(ctx, 1, opSend, system, attrs...)
			k.operations.Record(ctx, p.Took.Seconds(), opSend, system, append(attrs, semconv.MessagingOperationTypeSend)...)
		}, also, func(h messaging.Hooks) func(messaging.Published) { return h.Published }),
		Delivered: join(func(d messaging.Delivered) {
			k.consumed.Add(k.Extract(context.Background(), d.Delivery.Message.Header), 1, opProcess, system, k.from(d.Delivery)...)
		}, also, func(h messaging.Hooks) func(messaging.Delivered) { return h.Delivered }),
		Settled: join(func(s messaging.Settled) {
			ctx, attrs := k.Extract(context.Background(), s.Delivery.Message.Header), k.from(s.Delivery)
			k.settled.Add(ctx, 1, metric.WithAttributes(append(attrs, keyAction.String(s.Decision.Action.String()))...))
			if s.Decision.Err != nil {
				attrs = append(attrs, errorType(s.Decision.Err))
			}
			k.process.Record(ctx, s.Took.Seconds(), opProcess, system, attrs...)
		}, also, func(h messaging.Hooks) func(messaging.Settled) { return h.Settled }),
	}
}

// from is where a delivery comes from, as metrics say it.
func (k *Kit) from(d *messaging.Delivery) []attribute.KeyValue {
	return []attribute.KeyValue{
		semconv.MessagingDestinationName(k.cfg.Destination(d.Message.Topic)), semconv.MessagingConsumerGroupName(d.Group),
	}
}

// Publisher returns a publisher that makes spans and sends their context along. A message that already
// has a trace context, as those of an outbox do, keeps it: whoever created it is whom its consumers
// continue. The messages of the caller are not changed.
//
// One message is one span "send <topic>" of kind producer, which is a child of the message's context if it has one, and
// else of the caller's. Several are one span "send" of kind client with links to the contexts of the messages; those that
// had none get a span "create <topic>" each.
//
// It is a [messaging.AsyncPublisher] if next is one: the span of a message then ends when its outcome is known, and one
// that was not taken has none.
func (k *Kit) Publisher(next messaging.Publisher) messaging.Publisher {
	p := &publisher{k, next}
	if async, ok := next.(messaging.AsyncPublisher); ok {
		return &asyncPublisher{p, async}
	}
	return p
}

type publisher struct {
	kit  *Kit
	next messaging.Publisher
}

// Publish implements [messaging.Publisher].
func (p *publisher) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	k := p.kit
	if len(msgs) == 0 || slices.Contains(msgs, nil) {
		return p.next.Publish(ctx, msgs...) // which says what is wrong with that
	}
	if len(msgs) == 1 {
		ctx, span := k.startSend(ctx, msgs[0])
		err := p.next.Publish(ctx, k.carry(ctx, msgs[0]))
		end(span, err)
		return err
	}
	out, links := make([]*messaging.Message, len(msgs)), make([]trace.Link, len(msgs))
	for i, m := range msgs {
		out[i] = m
		if !k.created(m).IsValid() {
			created, span := k.startMessage(ctx, opCreate, trace.SpanKindProducer, m)
			out[i] = k.carry(created, m)
			span.End()
		}
		links[i] = link(k.created(out[i]), m)
	}
	ctx, span := k.tracer.Start(ctx, opSend, trace.WithSpanKind(trace.SpanKindClient), trace.WithLinks(links...), trace.WithAttributes( //nolint:spancheck // end ends it
		semconv.MessagingSystemKey.String(k.cfg.MessagingSystem), semconv.MessagingOperationName(opSend),
		semconv.MessagingOperationTypeSend, semconv.MessagingBatchMessageCount(len(msgs))))
	err := p.next.Publish(ctx, out...)
	end(span, err)
	return err //nolint:spancheck // end has ended it
}

// asyncPublisher is what [Kit.Publisher] makes of a publisher that is one.
type asyncPublisher struct {
	*publisher
	async messaging.AsyncPublisher
}

// PublishAsync implements [messaging.AsyncPublisher].
func (p *asyncPublisher) PublishAsync(ctx context.Context, m *messaging.Message, done func(err error)) bool {
	if m == nil {
		return p.async.PublishAsync(ctx, m, done)
	}
	ctx, span := p.kit.startSend(ctx, m)
	// A span that never ends is never told.
	return p.async.PublishAsync(ctx, p.kit.carry(ctx, m), func(err error) {
		end(span, err)
		done(err)
	})
}

// startSend starts the span of one message that is sent by itself.
func (k *Kit) startSend(ctx context.Context, m *messaging.Message) (context.Context, trace.Span) {
	if k.created(m).IsValid() {
		ctx = k.Extract(ctx, m.Header)
	}
	return k.startMessage(ctx, opSend, trace.SpanKindProducer, m) //nolint:spancheck // the caller ends it
}

// end ends a span whose work returned err. Of several failures the first one's class counts.
func end(span trace.Span, err error) {
	var failures *messaging.PublishError
	if errors.As(err, &failures) && len(failures.Failed) == 1 {
		err = failures.Failed[0].Err
	}
	if err != nil {
		fail(span, err)
	}
	span.End()
}

// created is the context of a message's creation, which is not valid if it has none.
func (k *Kit) created(m *messaging.Message) trace.SpanContext {
	return trace.SpanContextFromContext(k.Extract(context.Background(), m.Header))
}

// carry returns m with the context of ctx, or as it is if it has one.
func (k *Kit) carry(ctx context.Context, m *messaging.Message) *messaging.Message {
	if k.created(m).IsValid() {
		return m
	}
	copied := *m
	copied.Header = maps.Clone(m.Header)
	if copied.Header == nil {
		copied.Header = messaging.Header{}
	}
	k.Inject(ctx, copied.Header)
	return &copied
}

// link leads to the creation of a message.
func link(to trace.SpanContext, m *messaging.Message) trace.Link {
	return trace.Link{SpanContext: to, Attributes: []attribute.KeyValue{semconv.MessagingMessageID(m.ID)}}
}

var operationTypes = map[string]attribute.KeyValue{
	opCreate: semconv.MessagingOperationTypeCreate, opSend: semconv.MessagingOperationTypeSend, opProcess: semconv.MessagingOperationTypeProcess,
}

// startMessage starts a span about one message.
func (k *Kit) startMessage(ctx context.Context, op string, kind trace.SpanKind, m *messaging.Message, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	topic := k.cfg.Destination(m.Topic)
	attrs := []attribute.KeyValue{
		semconv.MessagingSystemKey.String(k.cfg.MessagingSystem), semconv.MessagingOperationName(op), operationTypes[op],
		semconv.MessagingDestinationName(topic), semconv.MessagingMessageID(m.ID), semconv.MessagingMessageBodySize(len(m.Body)),
	}
	if m.Key != "" {
		attrs = append(attrs, keyMessageKey.String(m.Key))
	}
	opts = append(opts, trace.WithSpanKind(kind), trace.WithAttributes(attrs...))
	return k.tracer.Start(ctx, op+" "+topic, opts...) //nolint:spancheck // the caller ends it
}

// Consumer makes a span "process <topic>" of kind consumer around each call of a handler. It is a child of
// the message's context, so the handler continues the trace of whoever created the message, and has the baggage
// that came with it. Put it outside of what retries or refuses, so that each delivery is one span. A
// panic ends the span and passes through.
func (k *Kit) Consumer() messaging.Middleware {
	return func(next messaging.Handler) messaging.Handler {
		return messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
			ctx, span := k.startMessage(k.Extract(ctx, d.Message.Header), opProcess, trace.SpanKindConsumer, d.Message,
				trace.WithAttributes(semconv.MessagingConsumerGroupName(d.Group), keyAttempt.Int(d.Attempt)))
			returned := false
			defer func() {
				if !returned {
					span.SetStatus(codes.Error, "panic")
					span.End()
				}
			}()
			err := next.Handle(ctx, d)
			returned = true
			end(span, err)
			return err
		})
	}
}

// Batch makes one span "process" of kind consumer around each call of a batch handler, with a link to the
// context of each message: a batch has many parents. It is a child of whatever span the batch's own context has, and has
// nobody's baggage.
func (k *Kit) Batch(next messaging.BatchHandler) messaging.BatchHandler {
	return func(ctx context.Context, ds []*messaging.Delivery) []error {
		links := make([]trace.Link, 0, len(ds))
		attrs := []attribute.KeyValue{
			semconv.MessagingSystemKey.String(k.cfg.MessagingSystem), semconv.MessagingOperationName(opProcess),
			semconv.MessagingOperationTypeProcess, semconv.MessagingBatchMessageCount(len(ds)),
		}
		for i, d := range ds {
			if i == 0 {
				attrs = append(attrs, semconv.MessagingConsumerGroupName(d.Group))
			}
			if c := k.created(d.Message); c.IsValid() {
				links = append(links, link(c, d.Message))
			}
		}
		ctx, span := k.tracer.Start(ctx, opProcess, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithLinks(links...), trace.WithAttributes(attrs...))
		returned := false
		defer func() {
			if !returned {
				span.SetStatus(codes.Error, "panic")
			}
			span.End()
		}()
		errs := next(ctx, ds)
		returned = true
		for _, err := range errs {
			if err != nil {
				fail(span, err)
				break
			}
		}
		return errs
	}
}

// past starts a span that began a while ago.
func (k *Kit) past(took time.Duration) (now time.Time, began trace.SpanStartOption) {
	now = time.Now()
	return now, trace.WithTimestamp(now.Add(-took))
}
