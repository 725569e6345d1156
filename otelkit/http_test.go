// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/otelkit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/resilience/resiliencehttp"
	"github.com/dovetail-go/dovetail/retry"
)

func TestEachAttemptIsASpanThatTheServerContinues(t *testing.T) {
	w := watch(t, otelkit.Config{})
	var calls atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders/{id}", func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	// Middleware that hands on copies of the request, as most of it does.
	copies := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { otelkit.Routes(mux).ServeHTTP(rw, r.Clone(r.Context())) })
	server := httptest.NewServer(w.Server()(copies))
	defer server.Close()
	client := &http.Client{Transport: must[*resiliencehttp.Transport](t)(resiliencehttp.NewTransport(resiliencehttp.TransportConfig{
		Base: w.Transport(nil),
		Guards: func(string) resiliencehttp.Guards {
			return resiliencehttp.Guards{Policy: &resilience.Policy{Retry: must[*retry.Retrier](t)(retry.New(retry.Config{Base: time.Microsecond, Hooks: w.Retry()}))}}
		},
	}))}
	ctx, caller := w.tracer.Start(t.Context(), "caller")
	resp, err := client.Do(must[*http.Request](t)(http.NewRequestWithContext(ctx, "GET", server.URL+"/orders/17?secret=1", nil)))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	caller.End()
	client.CloseIdleConnections()
	server.Close() // waits for the handlers

	sent, served := w.named("HTTP GET"), w.named("GET /orders/{id}")
	if len(sent) != 2 || len(served) != 2 {
		t.Fatalf("spans %v, want two of the client and two of the server", w.names())
	}
	for i, s := range sent {
		wantParent(t, s, caller.SpanContext())
		if s.SpanKind() != trace.SpanKindClient {
			t.Errorf("kind %v, want client", s.SpanKind())
		}
		if want := []string{"", "1"}[i]; attr(s, "http.request.resend_count") != want {
			t.Errorf("attempt %d is sent again %q times, want %q", i+1, attr(s, "http.request.resend_count"), want)
		}
		mine := slices.IndexFunc(served, func(o sdktrace.ReadOnlySpan) bool {
			return o.Parent().SpanID() == s.SpanContext().SpanID()
		})
		if mine < 0 {
			t.Errorf("no span of the server continues attempt %d", i+1)
		}
	}
	if sent[0].Status().Code != codes.Error || sent[1].Status().Code == codes.Error {
		t.Errorf("statuses %v and %v, want an error and none", sent[0].Status(), sent[1].Status())
	}
	wantAttrs(t, served[0], map[string]string{"http.route": "/orders/{id}", "http.request.method": "GET"})
	if got := events(w.span(t, "caller")); !slices.Equal(got, []string{"retry"}) {
		t.Errorf("events %v, want the retry", got)
	}
	found := false
	for _, p := range w.points(t) {
		found = found || strings.HasPrefix(p.metric, "http.server.request.duration") && of(p.attrs, "http.route") == "/orders/{id}"
		for _, a := range p.attrs {
			if strings.Contains(a.Value.String(), "17") && a.Key != "server.port" {
				t.Errorf("metric %v tells what was asked for", p)
			}
		}
	}
	if !found {
		t.Error("there is no http.server.request.duration of the route")
	}
}

func TestAPublicEntryBeginsATrace(t *testing.T) {
	w := watch(t, otelkit.Config{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(http.ResponseWriter, *http.Request) {})
	outside, header := messaging.NewTrace(), messaging.Header{}
	outside.Inject(header)
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
	r.Header.Set("Traceparent", header["traceparent"])
	w.Server(otelkit.Public())(mux).ServeHTTP(httptest.NewRecorder(), r)
	s := w.span(t, "GET /")
	if s.SpanContext().TraceID().String() == outside.TraceID.String() || s.Parent().IsValid() {
		t.Errorf("trace %v with parent %v, want a new one", s.SpanContext().TraceID(), s.Parent())
	}
	if len(s.Links()) != 1 || s.Links()[0].SpanContext.TraceID().String() != outside.TraceID.String() {
		t.Errorf("links %v, want to the client's trace", s.Links())
	}
}
