// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/otelkit"
	"github.com/dovetail-go/dovetail/outbox"
)

// must fails the test for what cannot be made.
func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// eventually waits until check has nothing to say.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(2 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// watched is a kit and what it told.
type watched struct {
	*otelkit.Kit
	spans  *tracetest.SpanRecorder
	reader *metric.ManualReader
	tracer oteltrace.Tracer
}

func watch(t *testing.T, cfg otelkit.Config, opts ...trace.TracerProviderOption) *watched {
	t.Helper()
	w := &watched{spans: tracetest.NewSpanRecorder(), reader: metric.NewManualReader()}
	traces := trace.NewTracerProvider(append(opts, trace.WithSpanProcessor(w.spans))...)
	cfg.TracerProvider, cfg.MeterProvider = traces, metric.NewMeterProvider(metric.WithReader(w.reader))
	w.Kit = must[*otelkit.Kit](t)(otelkit.New(cfg))
	w.tracer = traces.Tracer("test")
	return w
}

// span returns the only ended span of a name.
func (w *watched) span(t *testing.T, name string) trace.ReadOnlySpan {
	t.Helper()
	all := w.named(name)
	if len(all) != 1 {
		t.Fatalf("%d spans %q among %v, want 1", len(all), name, w.names())
	}
	return all[0]
}

// named returns the spans of this name in the order in which they began.
func (w *watched) named(name string) (out []trace.ReadOnlySpan) {
	for _, s := range w.spans.Ended() {
		if s.Name() == name {
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b trace.ReadOnlySpan) int { return a.StartTime().Compare(b.StartTime()) })
	return out
}

func (w *watched) names() (out []string) {
	for _, s := range w.spans.Ended() {
		out = append(out, s.Name())
	}
	return out
}

// attr returns an attribute of a span as text, "" without.
func attr(s trace.ReadOnlySpan, key string) string { return of(s.Attributes(), key) }

func of(attrs []attribute.KeyValue, key string) string {
	for _, a := range attrs {
		if string(a.Key) == key {
			return a.Value.String()
		}
	}
	return ""
}

// wantAttrs compares attributes of a span.
func wantAttrs(t *testing.T, s trace.ReadOnlySpan, want map[string]string) {
	t.Helper()
	for key, value := range want {
		if got := attr(s, key); got != value {
			t.Errorf("span %q: %s is %q, want %q; it has %v", s.Name(), key, got, value, s.Attributes())
		}
	}
}

// wantParent says whose child a span is.
func wantParent(t *testing.T, s trace.ReadOnlySpan, parent oteltrace.SpanContext) {
	t.Helper()
	if s.Parent().SpanID() != parent.SpanID() || s.SpanContext().TraceID() != parent.TraceID() {
		t.Errorf("span %q in trace %v has parent %v, want %v in %v", s.Name(), s.SpanContext().TraceID(), s.Parent().SpanID(), parent.SpanID(), parent.TraceID())
	}
}

// events are the events of a span with their attributes, for comparing.
func events(s trace.ReadOnlySpan) (out []string) {
	for _, e := range s.Events() {
		out = append(out, e.Name)
	}
	return out
}

// point is one series of a metric.
type point struct {
	metric string
	attrs  []attribute.KeyValue
	value  float64 // the count of a histogram
	traces []string
}

// points are all series there are.
func (w *watched) points(t *testing.T) (out []point) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := w.reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					out = append(out, point{m.Name, p.Attributes.ToSlice(), float64(p.Value), nil})
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					out = append(out, point{m.Name, p.Attributes.ToSlice(), float64(p.Value), nil})
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					one := point{m.Name, p.Attributes.ToSlice(), float64(p.Count), nil}
					for _, e := range p.Exemplars {
						one.traces = append(one.traces, fmt.Sprintf("%x", e.TraceID))
					}
					out = append(out, one)
				}
			case metricdata.Histogram[int64]:
				for _, p := range data.DataPoints {
					out = append(out, point{m.Name, p.Attributes.ToSlice(), float64(p.Count), nil})
				}
			default:
				t.Fatalf("metric %s is a %T, which the test does not know", m.Name, data)
			}
		}
	}
	return out
}

// wantPoint looks for a series by its name and all of its attributes, as "name a=b c=d" in the order of keys.
func (w *watched) wantPoint(t *testing.T, want string, value float64) point {
	t.Helper()
	var have []string
	for _, p := range w.points(t) {
		text := p.String()
		if text == want {
			if p.value != value {
				t.Errorf("%s is %v, want %v", want, p.value, value)
			}
			return p
		}
		have = append(have, text)
	}
	t.Errorf("there is no %q among\n%s", want, strings.Join(have, "\n"))
	return point{}
}

func (p point) String() string {
	text := p.metric
	for _, a := range p.attrs { // sorted by key
		text += " " + string(a.Key) + "=" + a.Value.String()
	}
	return text
}

func TestDo(t *testing.T) {
	w := watch(t, otelkit.Config{})
	ctx, caller := w.tracer.Start(t.Context(), "caller")
	n, err := otelkit.Do(ctx, w.Kit, "charge", func(ctx context.Context) (int, error) {
		if !oteltrace.SpanContextFromContext(ctx).IsValid() {
			t.Error("fn has no span in its context")
		}
		return 7, nil
	})
	if n != 7 || err != nil {
		t.Errorf("Do = %v, %v, want 7, nil", n, err)
	}
	broken := errors.New("broken")
	if _, err := otelkit.Do(ctx, w.Kit, "charge", func(context.Context) (int, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Errorf("Do = %v, want %v", err, broken)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_, _ = otelkit.Do(gone, w.Kit, "charge", func(ctx context.Context) (int, error) { return 0, ctx.Err() })
	func() {
		defer func() {
			if v := recover(); v != "oh" {
				t.Errorf("recovered %v, want the panic of fn", v)
			}
		}()
		_, _ = otelkit.Do(ctx, w.Kit, "charge", func(context.Context) (int, error) { panic("oh") })
	}()
	caller.End()
	var status []codes.Code
	for _, s := range w.named("charge") {
		wantParent(t, s, caller.SpanContext())
		status = append(status, s.Status().Code)
	}
	if want := []codes.Code{codes.Unset, codes.Error, codes.Unset, codes.Error}; !slices.Equal(status, want) {
		t.Errorf("statuses %v, want %v: the end of the caller is no failure", status, want)
	}
	for _, outcome := range []string{"success", "failure", "neutral", "panic"} {
		p := w.wantPoint(t, "dovetail.call.duration dovetail.name=charge dovetail.outcome="+outcome, 1)
		if want := caller.SpanContext().TraceID().String(); !slices.Contains(p.traces, want) {
			t.Errorf("the exemplars of %s lead to %v, want %v", outcome, p.traces, want)
		}
	}
}

func TestErrorsHaveFewTypes(t *testing.T) {
	w := watch(t, otelkit.Config{})
	relay := w.Relay()
	for want, err := range map[string]error{
		"timeout":             fmt.Errorf("customer 17: %w", context.DeadlineExceeded),
		"canceled":            fmt.Errorf("customer 17: %w", context.Canceled),
		"unknown_outcome":     fault.Unknown(errors.New("customer 17: cut off")),
		"blocked":             fmt.Errorf("customer 17: %w", messaging.ErrBlocked),
		"*errors.errorString": errors.New("customer 17"),
		"rejected.breaker":    fmt.Errorf("customer 17: %w", &fault.Rejection{By: "breaker"}),
	} {
		relay.Failed(outbox.AttemptFailed{Message: &messaging.Message{Topic: want}, Err: err})
		wantAttrs(t, w.span(t, "send "+want), map[string]string{"error.type": want})
	}
}

// withBaggage returns ctx with one member of baggage.
func withBaggage(t *testing.T, ctx context.Context, key, value string) context.Context {
	t.Helper()
	m := must[baggage.Member](t)(baggage.NewMemberRaw(key, value))
	return baggage.ContextWithBaggage(ctx, must[baggage.Baggage](t)(baggage.New(m)))
}
