// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// keptSpans is how many spans a service keeps, a megabyte or two: those of the last sixty orders or more. keptReads is
// how many there are beside them of requests that only read, and that no order is known of: they are most of all, and
// would leave no room for the others.
const (
	keptSpans = 1536
	keptReads = 512
)

// keptSpan is what a span is found by, and all of it as JSON, which takes a fourth of the memory.
type keptSpan struct {
	trace  trace.TraceID
	linked []trace.TraceID
	about  []string // keys, one of which may be the order's
	whole  []byte
}

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

	mu          sync.Mutex
	kept, reads ring
}

// ring has the last of what was put into it.
type ring struct {
	spans []keptSpan
	next  int
}

func (r *ring) put(k keptSpan, size int) {
	if len(r.spans) < size {
		r.spans = append(r.spans, k)
		return
	}
	r.spans[r.next] = k
	r.next = (r.next + 1) % size
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
	k := s.keep(span)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(k.about) == 0 && slices.ContainsFunc(span.Attributes(), reads) {
		s.reads.put(k, keptReads)
	} else {
		s.kept.put(k, keptSpans)
	}
}

// reads reports whether a span with this attribute is of a request that changes nothing.
func reads(a attribute.KeyValue) bool {
	return a.Key == semconv.HTTPRequestMethodKey && a.Value.AsString() == http.MethodGet
}

// Shutdown implements [sdktrace.SpanProcessor].
func (s *SpanStore) Shutdown(context.Context) error { return nil }

// ForceFlush implements [sdktrace.SpanProcessor].
func (s *SpanStore) ForceFlush(context.Context) error { return nil }

func (s *SpanStore) keep(span sdktrace.ReadOnlySpan) keptSpan {
	k := keptSpan{trace: span.SpanContext().TraceID()}
	for _, l := range span.Links() {
		k.linked = append(k.linked, l.SpanContext.TraceID())
	}
	for _, a := range span.Attributes() {
		switch a.Key {
		case orderKey, "dovetail.message.key", "dovetail.saga.id":
			if about := a.Value.AsString(); !slices.Contains(k.about, about) {
				k.about = append(k.about, about)
			}
		}
	}
	v := s.view(span)
	var err error
	if k.whole, err = json.Marshal(v); err != nil { // a number that JSON has no word for
		v.Attributes, v.Events = map[string]any{"not shown": err.Error()}, nil
		k.whole, _ = json.Marshal(v)
	}
	return k
}

func (s *SpanStore) snapshot() []keptSpan {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Concat(s.kept.spans, s.reads.spans)
}

// TracesOf returns the IDs of the traces with a span about an order: one that says so, or that carried a message
// with its key, or that started its saga.
func (s *SpanStore) TracesOf(order string) []string {
	found := map[trace.TraceID]bool{}
	for _, span := range s.snapshot() {
		if slices.Contains(span.about, order) {
			found[span.trace] = true
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
		if wanted[span.trace] || slices.ContainsFunc(span.linked, func(id trace.TraceID) bool { return wanted[id] }) {
			var v Span
			if json.Unmarshal(span.whole, &v) == nil { // it was made here
				out = append(out, v)
			}
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
