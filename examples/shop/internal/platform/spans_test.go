// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"errors"
	"math"
	"slices"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// TestSpanStore has spans found by their order, their trace and what they link to, and the oldest forgotten.
func TestSpanStore(t *testing.T) {
	store := NewSpanStore("payment", "payment-1")
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(store)).Tracer("test")

	ctx, root := tracer.Start(WithOrder(t.Context(), "o-1"), "authorise", trace.WithSpanKind(trace.SpanKindServer))
	_, child := tracer.Start(ctx, "ask", trace.WithAttributes(attribute.Int("attempt", 2), attribute.StringSlice("tried", []string{"a", "b"})))
	child.AddEvent("retry", trace.WithAttributes(attribute.Bool("late", true)))
	child.RecordError(errors.New("not seen: an event of its own"))
	child.SetStatus(codes.Error, "declined")
	child.End()
	root.End()
	_, linking := tracer.Start(t.Context(), "batch", trace.WithLinks(trace.LinkFromContext(ctx)), trace.WithAttributes(attribute.Float64("ratio", math.NaN())))
	linking.End()
	_, message := tracer.Start(t.Context(), "publish", trace.WithAttributes(attribute.String("dovetail.message.key", "o-1")))
	message.End()

	of := root.SpanContext().TraceID().String()
	if got := store.TracesOf("o-1"); len(got) != 2 {
		t.Errorf("traces of the order = %v, want that of its spans and that of its message", got)
	}
	spans := map[string]Span{}
	for _, s := range store.Of(of) {
		spans[s.Name] = s
	}
	if len(spans) != 3 {
		t.Fatalf("spans = %+v, want two and the one that links to them", spans)
	}
	got := spans["ask"]
	if got.TraceID != of || got.ParentID != root.SpanContext().SpanID().String() || got.SpanID != child.SpanContext().SpanID().String() ||
		got.Service != "payment" || got.Instance != "payment-1" || got.Kind != "internal" || got.Status != "error" || got.Error != "declined" ||
		got.End.Before(got.Start) || got.Start.IsZero() || got.Attributes["attempt"] != 2.0 || len(got.Attributes["tried"].([]any)) != 2 || got.Attributes[OrderMember] != "o-1" {
		t.Errorf("span = %+v", got)
	}
	if len(got.Events) != 2 || got.Events[0].Name != "retry" || got.Events[0].Attributes["late"] != true {
		t.Errorf("events = %+v, want the retry first", got.Events)
	}
	if b := spans["batch"]; len(b.Links) != 1 || b.Links[0].TraceID != of || b.Attributes["not shown"] == nil {
		t.Errorf("span = %+v, want its link, and that its attributes cannot be shown", b)
	}

	other := func(n int, attributes ...attribute.KeyValue) {
		for range n {
			_, s := tracer.Start(t.Context(), "other", trace.WithAttributes(attributes...))
			s.End()
		}
	}
	kept := func(wantSpans, wantReads int, names ...string) {
		t.Helper()
		for _, s := range store.Of(of) {
			names = slices.DeleteFunc(names, func(name string) bool { return name == s.Name })
		}
		if len(names) > 0 {
			t.Errorf("%v are not kept", names)
		}
		if len(store.kept.spans) != wantSpans || len(store.reads.spans) != wantReads {
			t.Errorf("%d spans and %d of reading requests are kept, want %d and %d", len(store.kept.spans), len(store.reads.spans), wantSpans, wantReads)
		}
	}
	other(keptReads+10, attribute.String("http.request.method", "GET"))
	kept(4, keptReads, "ask", "authorise", "batch")
	other(keptSpans-3, attribute.String("http.request.method", "POST")) // as many as there is room for, and one
	kept(keptSpans, keptReads, "authorise", "batch")
	for _, s := range store.Of(of) {
		if s.Name == "ask" {
			t.Error("the oldest span is still kept")
		}
	}
}
