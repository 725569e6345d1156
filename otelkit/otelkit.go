// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// Scope is the name of the tracer and of the meter.
const Scope = "github.com/dovetail-go/dovetail/otelkit"

// Config configures a [Kit]. The zero value is a sound default.
type Config struct {
	// TracerProvider makes the spans. Nil means OpenTelemetry's global one at the time of [New].
	TracerProvider trace.TracerProvider
	// MeterProvider makes the metrics. Nil means the global one at the time of [New].
	MeterProvider metric.MeterProvider
	// Propagator writes and reads the context in headers. Nil means [Propagator]: W3C Trace Context and
	// W3C Baggage, and not the global one, which does nothing unless it is set and so would cut every trace at
	// the first message.
	Propagator propagation.TextMapPropagator
	// MessagingSystem is the broker as the semantic conventions call it, such as "rabbitmq" or
	// "kafka". Empty means "dovetail".
	MessagingSystem string
	// DBSystem is the database of event logs as the semantic conventions call it, such as
	// "postgresql". Empty means "other_sql".
	DBSystem string
	// Destination makes of a topic what metrics and names of spans say. It has to have few values: where
	// topics hold IDs, return them without. Nil means the topic itself.
	Destination func(topic string) string
}

// Kit makes hooks and middleware for the blocks. It is safe for concurrent use; one serves a whole
// process, or each of several services in one.
type Kit struct {
	cfg        Config
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	instruments
}

// New returns a Kit, or the error of a meter that refuses an instrument.
func New(cfg Config) (*Kit, error) {
	if cfg.TracerProvider == nil {
		cfg.TracerProvider = otel.GetTracerProvider()
	}
	if cfg.MeterProvider == nil {
		cfg.MeterProvider = otel.GetMeterProvider()
	}
	if cfg.Propagator == nil {
		cfg.Propagator = Propagator()
	}
	if cfg.MessagingSystem == "" {
		cfg.MessagingSystem = "dovetail"
	}
	if cfg.DBSystem == "" {
		cfg.DBSystem = semconv.DBSystemNameOtherSQL.Value.AsString()
	}
	if cfg.Destination == nil {
		cfg.Destination = func(topic string) string { return topic }
	}
	k := &Kit{
		cfg: cfg, propagator: cfg.Propagator,
		tracer: cfg.TracerProvider.Tracer(Scope, trace.WithSchemaURL(semconv.SchemaURL)),
	}
	var err error
	k.instruments, err = newInstruments(cfg.MeterProvider.Meter(Scope, metric.WithSchemaURL(semconv.SchemaURL)))
	if err != nil {
		return nil, fmt.Errorf("otelkit: %w", err)
	}
	return k, nil
}

// Propagator returns the default of Config.Propagator, for what has to agree with it.
func Propagator() propagation.TextMapPropagator {
	return propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
}

// Inject writes the trace and the baggage of ctx into h. It is outbox.Config.Inject and
// eventsource.Config.Inject: a message or an event then continues the trace of the request whose
// transaction wrote it, whoever publishes it, and whenever. A ctx without a trace leaves h as it is.
func (k *Kit) Inject(ctx context.Context, h messaging.Header) { k.propagator.Inject(ctx, h) }

// Extract returns ctx as a part of the trace in h, with its baggage.
func (k *Kit) Extract(ctx context.Context, h messaging.Header) context.Context {
	return k.propagator.Extract(ctx, h)
}

// Do runs fn in a span of its own, and times it. Around a policy it is the place where the retries,
// refusals and hedges of one call are found: guards mark the span of their caller's context. The name has few
// values, such as "charge card". An error that says nothing about the callee (fault.Neutral), such as
// a caller who gave up, is no error of the span.
func Do[T any](ctx context.Context, k *Kit, name string, fn func(ctx context.Context) (T, error)) (v T, err error) {
	ctx, span := k.tracer.Start(ctx, name)
	defer span.End()
	start, returned := time.Now(), false
	defer func() {
		outcome := "panic"
		if returned {
			verdict := fault.Judge(ctx, err)
			outcome = outcomes[verdict.Outcome]
			if verdict.Outcome == fault.Failure {
				fail(span, err)
			}
		} else {
			span.SetStatus(codes.Error, outcome)
		}
		if k.callDuration.Enabled(ctx) {
			k.callDuration.Record(ctx, time.Since(start).Seconds(), metric.WithAttributes(keyName.String(name), keyOutcome.String(outcome)))
		}
	}()
	v, err = fn(ctx)
	returned = true
	return v, err
}

var outcomes = map[fault.Outcome]string{fault.Success: "success", fault.Failure: "failure", fault.Neutral: "neutral"}

// Attributes that are dovetail's own, beside those of the semantic conventions.
const (
	keyName        = attribute.Key("dovetail.name")
	keyOutcome     = attribute.Key("dovetail.outcome")
	keyReason      = attribute.Key("dovetail.reason")
	keyState       = attribute.Key("dovetail.state")
	keyAttempt     = attribute.Key("dovetail.attempt")
	keyDelay       = attribute.Key("dovetail.delay_seconds")
	keyLag         = attribute.Key("dovetail.outbox.lag_seconds")
	keyAction      = attribute.Key("dovetail.action")
	keyMessageKey  = attribute.Key("dovetail.message.key")
	keyDuplicate   = attribute.Key("dovetail.inbox.duplicate")
	keyReplayed    = attribute.Key("dovetail.idempotency.replayed")
	keyConsumer    = attribute.Key("dovetail.consumer")
	keyCriticality = attribute.Key("dovetail.criticality")

	keySaga        = attribute.Key("dovetail.saga.name")
	keySagaID      = attribute.Key("dovetail.saga.id")
	keySagaVersion = attribute.Key("dovetail.saga.version")
	keyStep        = attribute.Key("dovetail.saga.step")
	keyOp          = attribute.Key("dovetail.saga.op")
	keyStatus      = attribute.Key("dovetail.saga.status")
	keyCause       = attribute.Key("dovetail.saga.cause")

	keyStream     = attribute.Key("dovetail.stream")
	keyProjection = attribute.Key("dovetail.projection")
	keyCache      = attribute.Key("dovetail.cache")
	keyService    = attribute.Key("dovetail.service")
)

// fail marks a span as failed. The text of err goes to the span, never to a metric.
func fail(span trace.Span, err error) {
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(errorType(err))
	span.SetStatus(codes.Error, err.Error())
}

// errorType is the class of an error, of which there are few: how it was judged where that is a
// sentence of dovetail's, and its Go type else.
func errorType(err error) attribute.KeyValue {
	var rejection *fault.Rejection
	switch {
	case errors.Is(err, messaging.ErrUnroutable):
		return semconv.ErrorTypeKey.String("unroutable")
	case errors.Is(err, messaging.ErrBlocked):
		return semconv.ErrorTypeKey.String("blocked")
	case errors.Is(err, messaging.ErrRefused):
		return semconv.ErrorTypeKey.String("refused")
	case errors.As(err, &rejection):
		return semconv.ErrorTypeKey.String("rejected." + rejection.By)
	case errors.Is(err, context.DeadlineExceeded):
		return semconv.ErrorTypeKey.String("timeout")
	case errors.Is(err, context.Canceled):
		return semconv.ErrorTypeKey.String("canceled")
	case fault.IsUnknown(err):
		return semconv.ErrorTypeKey.String("unknown_outcome")
	}
	return semconv.ErrorType(err)
}

// event marks the span of ctx, if it is recorded.
func event(ctx context.Context, name string, attrs ...attribute.KeyValue) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.AddEvent(name, trace.WithAttributes(attrs...))
	}
}

// alive returns ctx, or one that is not nil: hooks may have none to tell.
func alive(ctx context.Context) context.Context {
	if ctx == nil {
		return context.Background()
	}
	return ctx
}

// join returns a hook that calls own and then what of finds in each of also.
func join[E, H any](own func(E), also []H, of func(H) func(E)) func(E) {
	all := []func(E){own}
	for _, h := range also {
		if fn := of(h); fn != nil {
			all = append(all, fn)
		}
	}
	if len(all) == 1 {
		return own
	}
	return func(e E) {
		for _, fn := range all {
			fn(e)
		}
	}
}
