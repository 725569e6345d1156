// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// received are the spans that processes have exported by OTLP.
type received struct {
	mu      sync.Mutex
	byTrace map[string][]platform.Span
	closed  bool
}

// receiveTraces starts a receiver to which every process exports that is started during the test.
func receiveTraces(t *testing.T) *received {
	t.Helper()
	r := &received{byTrace: map[string][]platform.Span{}}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", server.URL+"/v1/traces")
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "200") // milliseconds
	return r
}

// ServeHTTP implements [http.Handler]: OTLP over HTTP.
func (r *received) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var in collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &in)
	}
	if err != nil || req.URL.Path != "/v1/traces" {
		http.Error(w, fmt.Sprint(req.URL.Path, err), http.StatusBadRequest)
		return
	}
	for _, of := range in.GetResourceSpans() {
		resource := values(of.GetResource().GetAttributes())
		for _, scope := range of.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				r.keep(span(s, resource))
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	out, _ := proto.Marshal(&collector.ExportTraceServiceResponse{})
	_, _ = w.Write(out)
}

func span(s *spans.Span, resource map[string]any) platform.Span {
	out := platform.Span{
		TraceID: fmt.Sprintf("%x", s.GetTraceId()), SpanID: fmt.Sprintf("%x", s.GetSpanId()), Name: s.GetName(),
		Service: fmt.Sprint(resource["service.name"]), Instance: fmt.Sprint(resource["service.instance.id"]),
		Status: "unset", Error: s.GetStatus().GetMessage(), Attributes: values(s.GetAttributes()),
	}
	if len(s.GetParentSpanId()) > 0 {
		out.ParentID = fmt.Sprintf("%x", s.GetParentSpanId())
	}
	if s.GetStatus().GetCode() == spans.Status_STATUS_CODE_ERROR {
		out.Status = "error"
	}
	for _, l := range s.GetLinks() {
		out.Links = append(out.Links, platform.SpanLink{TraceID: fmt.Sprintf("%x", l.GetTraceId()), SpanID: fmt.Sprintf("%x", l.GetSpanId())})
	}
	return out
}

// values are the attributes that are texts, which is all that is asked for here.
func values(all []*common.KeyValue) map[string]any {
	out := map[string]any{}
	for _, a := range all {
		out[a.GetKey()] = a.GetValue().GetStringValue()
	}
	return out
}

// keep files a span under its trace and those that it links to.
func (r *received) keep(s platform.Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	traces := map[string]bool{s.TraceID: true}
	for _, l := range s.Links {
		traces[l.TraceID] = true
	}
	for id := range traces {
		r.byTrace[id] = append(r.byTrace[id], s)
	}
}

// stop forgets everything and takes no more.
func (r *received) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byTrace, r.closed = nil, true
}

// of returns the only trace in which a saga was started.
func (r *received) of(saga string) (trace, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []trace
	for id, all := range r.byTrace {
		for _, s := range all {
			if s.TraceID == id && s.ParentID != "" && s.Attributes["dovetail.saga.id"] == saga && !strings.Contains(s.Name, "place-order/") {
				found = append(found, trace{id, append([]platform.Span(nil), all...)})
			}
		}
	}
	if len(found) != 1 {
		return trace{}, fmt.Errorf("%d traces started saga %s, want 1", len(found), saga)
	}
	return found[0], nil
}

// testTraceThroughDeath kills the payment service while an order waits for its answer. The order is
// still one trace, up to its mail: for who receives what is exported, and in the operator's console.
func testTraceThroughDeath(t *testing.T, shop *stackShop, exported *received) {
	const patience = 4 * time.Minute
	defer exported.stop()
	a, operator := shop.seenBy(t).newcomer(), shop.seenBy(t).as("operator@shop.example", "dovetail-operator")
	restarts := shop.restarts.Load()
	payments := []string{"payment-1", "payment-2"}
	for _, p := range payments { // whatever is asked of them now waits
		shop.signal(t, p, syscall.SIGSTOP)
	}
	id := a.place("pm_visa", lineItem{"product_id": "p-007", "quantity": 1})
	eventuallyWithin(t, patience, func() error {
		var view struct{ Saga struct{ Step string } }
		answer := operator.send("GET", "/ops/api/sagas/"+id, nil, nil)
		if answer.status != http.StatusOK {
			return fmt.Errorf("status %d", answer.status)
		}
		operator.want(http.StatusOK, answer, &view)
		if view.Saga.Step != "authorise-payment" {
			return fmt.Errorf("the saga is at %q, want authorise-payment", view.Saga.Step)
		}
		return nil
	})
	for _, p := range payments {
		shop.signal(t, p, syscall.SIGKILL)
	}
	eventuallyWithin(t, patience, func() error {
		var page orderPage
		answer := a.send("GET", "/api/orders/"+id, nil, nil)
		if answer.status != http.StatusOK {
			return fmt.Errorf("status %d", answer.status)
		}
		a.want(http.StatusOK, answer, &page)
		if page.Status != "confirmed" && page.Status != "dispatched" {
			return fmt.Errorf("the order is %s, want confirmed", page.Status)
		}
		return nil
	})
	var whole trace
	eventuallyWithin(t, patience, func() (err error) {
		if whole, err = exported.of(id); err != nil {
			return err
		}
		return errors.Join(entire(whole, 1), interrupted(whole))
	})
	services := map[string]bool{}
	for _, s := range whole.Spans {
		services[s.Service] = true
	}
	t.Logf("%d spans of %d services were exported", len(whole.Spans), len(services))
	eventuallyWithin(t, patience, func() error {
		for _, shown := range operator.tracesOf(id) {
			if shown.TraceID == whole.TraceID {
				return entire(shown, 1)
			}
		}
		return errors.New("the console does not know the trace")
	})
	eventuallyWithin(t, patience, func() error { // before anything else is done to them
		if n := shop.restarts.Load(); n < restarts+int64(len(payments)) {
			return fmt.Errorf("%d processes were started again, want %d", n-restarts, len(payments))
		}
		return nil
	})
	shop.restarts.Add(-int64(len(payments))) // others count theirs
}

// interrupted returns an error unless the payment was tried in vain and then done.
func interrupted(t trace) error {
	var failed, done int
	for _, s := range t.Spans {
		switch {
		case s.Name != "place-order/authorise-payment":
		case s.Status == "error":
			failed++
		default:
			done++
		}
	}
	if failed == 0 || done == 0 {
		return fmt.Errorf("the payment was authorised in %d attempts after %d that failed, want some of both", done, failed)
	}
	return nil
}
