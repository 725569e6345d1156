// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/otelkit"
	"github.com/dovetail-go/dovetail/retry"
)

// A call and its retry are found on one span.
func Example() {
	spans := tracetest.NewSpanRecorder()
	kit, err := otelkit.New(otelkit.Config{TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))})
	if err != nil {
		fmt.Println(err)
		return
	}
	retrier, err := retry.New(retry.Config{Name: "payment", Base: time.Millisecond, Hooks: kit.Retry()})
	if err != nil {
		fmt.Println(err)
		return
	}
	attempts := 0
	charge := func(context.Context) (string, error) {
		if attempts++; attempts == 1 {
			return "", errors.New("connection reset")
		}
		return "charged", nil
	}
	result, err := otelkit.Do(context.Background(), kit, "charge card", func(ctx context.Context) (string, error) {
		return retry.Do(ctx, retrier, charge)
	})
	fmt.Println(result, err)
	for _, s := range spans.Ended() {
		fmt.Println(s.Name(), s.Events()[0].Name)
	}
	// Output:
	// charged <nil>
	// charge card retry
}

// A consumer continues the trace of whoever published.
func ExampleKit_Consumer() {
	spans := tracetest.NewSpanRecorder()
	kit, err := otelkit.New(otelkit.Config{TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)), MessagingSystem: "rabbitmq"})
	if err != nil {
		fmt.Println(err)
		return
	}
	handler := messaging.Chain(messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error {
		return nil
	}), kit.Consumer())
	var broker wire // stands for a real one
	broker.deliver = func(m *messaging.Message) error {
		return handler.Handle(context.Background(), &messaging.Delivery{Message: m, Group: "mails", Attempt: 1})
	}
	if err := kit.Publisher(broker).Publish(context.Background(), &messaging.Message{ID: "m1", Topic: "order.placed"}); err != nil {
		fmt.Println(err)
		return
	}
	process, send := spans.Ended()[0], spans.Ended()[1]
	fmt.Println(send.Name(), send.SpanKind())
	fmt.Println(process.Name(), process.SpanKind(), process.Parent().SpanID() == send.SpanContext().SpanID())
	// Output:
	// send order.placed producer
	// process order.placed consumer true
}

// wire delivers what it is given at once.
type wire struct {
	deliver func(*messaging.Message) error
}

func (w wire) Publish(_ context.Context, msgs ...*messaging.Message) error {
	return w.deliver(msgs[0])
}

// What is logged within a span tells which.
func ExampleLogHandler() {
	noTime := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	log := slog.New(otelkit.LogHandler(slog.NewJSONHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: noTime})))
	ctx := trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2},
	}))
	log.InfoContext(ctx, "charged", "amount", 300)
	// Output:
	// {"level":"INFO","msg":"charged","amount":300,"trace_id":"01000000000000000000000000000000","span_id":"0200000000000000"}
}
