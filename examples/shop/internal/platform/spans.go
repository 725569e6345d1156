// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// keptSpans is how many spans a service keeps: some megabytes, and the last few hundred orders.
const keptSpans = 4096

// Span is one span as an operator sees it.
type Span struct {
	TraceID  string `json:"trace_id"`
	SpanID   string `json:"span_id"`
	ParentID string `json:"parent_id,omitempty"`
	// Links lead to spans, mostly of other traces.
	Links      []SpanLink     `json:"links,omitempty"`
	Name       string         `json:"name"`
	Kind       string         `json:"kind"`
	Service    string         `json:"service"`
	Instance   string         `json:"instance"`
	Start      time.Time      `json:"start"`
	End        time.Time      `json:"end"`
	Status     string         `json:"status"`
	Error      string         `json:"error,omitempty"`
	Events     []SpanEvent    `json:"events,omitempty"`
	Attributes map[string]any `json:"attributes"`
}

// SpanLink names a span.
type SpanLink struct {
	TraceID string `json:"trace_id"`
	SpanID  string `json:"span_id"`
}

// SpanEvent is something that happened during a span, such as a retry.
type SpanEvent struct {
	At         time.Time      `json:"at"`
	Name       string         `json:"name"`
	Attributes map[string]any `json:"attributes"`
}

// SpanStore keeps the last spans of one instance of a service in memory, for the console of who has nothing to
// export them to.
type SpanStore struct {
	service, instance string

	mu   sync.Mutex
	kept []sdktrace.ReadOnlySpan // a ring, once it is full
	next int
}

// NewSpanStore returns an empty store.
func NewSpanStore(service, instance string) *SpanStore {
	return &SpanStore{service: service, instance: instance}
}

// orderKey names the order that a span is about.
const orderKey = attribute.Key(OrderMember)

// OnStart implements [sdktrace.SpanProcessor]: a span says which order it is about.
func (s *SpanStore) OnStart(parent context.Context, span sdktrace.ReadWriteSpan) {
	if order := baggage.FromContext(parent).Member(OrderMember).Value(); order != "" {
		span.SetAttributes(orderKey.String(order))
	}
}

// OnEnd implements [sdktrace.SpanProcessor].
func (s *SpanStore) OnEnd(span sdktrace.ReadOnlySpan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) < keptSpans {
		s.kept = append(s.kept, span)
		return
	}
	s.kept[s.next] = span
	s.next = (s.next + 1) % keptSpans
}

// Shutdown implements [sdktrace.SpanProcessor].
func (s *SpanStore) Shutdown(context.Context) error { return nil }

// ForceFlush implements [sdktrace.SpanProcessor].
func (s *SpanStore) ForceFlush(context.Context) error { return nil }

func (s *SpanStore) snapshot() []sdktrace.ReadOnlySpan {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.kept)
}

// TracesOf returns the IDs of the traces with a span about an order: one that says so, or that carried a message
// with its key, or that started its saga.
func (s *SpanStore) TracesOf(order string) []string {
	found := map[trace.TraceID]bool{}
	for _, span := range s.snapshot() {
		for _, a := range span.Attributes() {
			switch a.Key {
			case orderKey, "dovetail.message.key", "dovetail.saga.id":
				if a.Value.AsString() == order {
					found[span.SpanContext().TraceID()] = true
				}
			}
		}
	}
	ids := []string{}
	for id := range found {
		ids = append(ids, id.String())
	}
	slices.Sort(ids)
	return ids
}

// Of returns the spans of the traces, and those of others that link to them.
func (s *SpanStore) Of(traces ...string) []Span {
	wanted := map[trace.TraceID]bool{}
	for _, text := range traces {
		if id, err := trace.TraceIDFromHex(text); err == nil {
			wanted[id] = true
		}
	}
	out := []Span{}
	for _, span := range s.snapshot() {
		if wanted[span.SpanContext().TraceID()] || slices.ContainsFunc(span.Links(), func(l sdktrace.Link) bool { return wanted[l.SpanContext.TraceID()] }) {
			out = append(out, s.view(span))
		}
	}
	return out
}

func (s *SpanStore) view(span sdktrace.ReadOnlySpan) Span {
	v := Span{
		TraceID: span.SpanContext().TraceID().String(), SpanID: span.SpanContext().SpanID().String(),
		Name: span.Name(), Kind: span.SpanKind().String(), Service: s.service, Instance: s.instance,
		Start: span.StartTime().UTC(), End: span.EndTime().UTC(),
		Status: strings.ToLower(span.Status().Code.String()), Attributes: attributes(span.Attributes()),
	}
	if span.Status().Code == codes.Error {
		v.Error = span.Status().Description
	}
	if parent := span.Parent(); parent.IsValid() {
		v.ParentID = parent.SpanID().String()
	}
	for _, l := range span.Links() {
		v.Links = append(v.Links, SpanLink{l.SpanContext.TraceID().String(), l.SpanContext.SpanID().String()})
	}
	for _, e := range span.Events() {
		v.Events = append(v.Events, SpanEvent{e.Time.UTC(), e.Name, attributes(e.Attributes)})
	}
	return v
}

func attributes(all []attribute.KeyValue) map[string]any {
	out := map[string]any{}
	for _, a := range all {
		out[string(a.Key)] = a.Value.AsInterface()
	}
	return out
}

// FoundSpans are what one instance knows of some traces.
type FoundSpans struct {
	// Traces are those about the order that was asked for.
	Traces []string `json:"traces"`
	Spans  []Span   `json:"spans"`
}

// Look answers for which traces an order is known here, or with the spans of traces.
func (s *SpanStore) Look(order string, traces []string) FoundSpans {
	found := FoundSpans{Traces: []string{}, Spans: []Span{}}
	if s == nil {
		return found
	}
	if order != "" {
		found.Traces = s.TracesOf(order)
	}
	if len(traces) > 0 {
		found.Spans = s.Of(traces...)
	}
	return found
}

// showSpans tells operators of the spans that are kept here.
func showSpans(mux *http.ServeMux, env Env) {
	if env.Telemetry == nil {
		return
	}
	mux.Handle("GET /ops/spans", env.Auth.Require(Handle(func(w http.ResponseWriter, r *http.Request) error {
		q := r.URL.Query()
		return WriteJSON(w, http.StatusOK, env.Telemetry.Spans.Look(q.Get("order"), q["trace"]))
	}), RoleOperator))
}
