// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// trace is one as the operator's console gets it.
type trace struct {
	TraceID string `json:"trace_id"`
	Spans   []platform.Span
}

// tracesOf returns the traces that the shop knows of an order.
func (a *api) tracesOf(order string) []trace {
	a.t.Helper()
	return a.traces("order=" + order)
}

// traces returns none while the shop is too busy to say.
func (a *api) traces(query string) []trace {
	a.t.Helper()
	var found struct{ Items []trace }
	if answer := a.send("GET", "/ops/api/traces?"+query, nil, nil); answer.status != http.StatusServiceUnavailable {
		a.want(http.StatusOK, answer, &found)
	}
	return found.Items
}

// whole returns what is wrong with the spans of one trace: none may hang in the air.
func whole(traceID string, spans []platform.Span) error {
	known, roots := map[string]bool{}, []string{}
	for _, s := range spans {
		known[s.SpanID] = true
	}
	for _, s := range spans {
		linked := slices.ContainsFunc(s.Links, func(l platform.SpanLink) bool { return l.TraceID == traceID })
		for _, l := range s.Links {
			if l.TraceID == traceID && !known[l.SpanID] {
				return fmt.Errorf("%s of %s has a link to span %s, which is not there", s.Name, s.Service, l.SpanID)
			}
		}
		switch {
		case s.TraceID != traceID && !linked:
			return fmt.Errorf("%s of %s is of trace %s and has no link to this one", s.Name, s.Service, s.TraceID)
		case s.TraceID != traceID: // a batch's, whose parents are elsewhere
		case s.ParentID == "":
			roots = append(roots, s.Service+" "+s.Name)
		case !known[s.ParentID]:
			return fmt.Errorf("%s of %s has parent %s, which is not there", s.Name, s.Service, s.ParentID)
		}
	}
	if want := []string{"gateway POST /api/orders"}; !slices.Equal(roots, want) {
		return fmt.Errorf("the trace begins with %q, want %q", roots, want)
	}
	return nil
}

// entire returns what the trace of an order that was confirmed lacks, if so many mails were to be written.
func entire(t trace, written int) error {
	if err := whole(t.TraceID, t.Spans); err != nil {
		return err
	}
	services := map[string]bool{}
	var mails, steps int
	for _, s := range t.Spans {
		services[s.Service] = true
		if s.Service == "notification" && strings.HasPrefix(s.Name, "process ") && s.Status != "error" {
			mails++
		}
		if strings.HasPrefix(s.Name, "place-order/") && s.Attributes["dovetail.outcome"] == "done" {
			steps++
		}
	}
	for _, want := range []string{"gateway", "order", "catalog", "customer", "inventory", "payment", "provider", "shipping", "notification", "reporting"} {
		if !services[want] {
			return fmt.Errorf("no span of %s; there are %v", want, services)
		}
	}
	if mails < written || steps < 7 {
		return fmt.Errorf("%d mails and %d steps, want at least %d and 7", mails, steps, written)
	}
	return nil
}

// TestTrace follows one order from the click to the third mail, as the operator's console shows it.
func TestTrace(t *testing.T) {
	testTrace(t, openShopWith(t, embedded.Config{Data: t.TempDir(), Packing: time.Millisecond}).stocked())
}

func testTrace(t *testing.T, shop *api) {
	ada, operator := shop.seenBy(t).newcomer(), shop.seenBy(t).as("operator@shop.example", "dovetail-operator")
	id := ada.place("pm_visa", lineItem{"product_id": "p-001", "quantity": 1})
	ada.ends(id, "dispatched")
	var last trace
	eventually(t, func() error {
		traces := operator.tracesOf(id)
		if len(traces) != 1 {
			return fmt.Errorf("%d traces know of the order, want 1", len(traces))
		}
		last = traces[0]
		return entire(last, 3)
	})
	for i := range last.Spans[1:] {
		if last.Spans[i+1].Start.Before(last.Spans[i].Start) {
			t.Errorf("span %d begins before the one before it", i+1)
		}
	}
	t.Logf("%d spans", len(last.Spans))
	eventually(t, func() error {
		if one := operator.traces("trace=" + last.TraceID); len(one) != 1 || len(one[0].Spans) < len(last.Spans) {
			return fmt.Errorf("asked for by its ID there are %d traces, want one with all %d spans", len(one), len(last.Spans))
		}
		return nil
	})
	operator.wantProblem(http.StatusUnprocessableEntity, "invalid-input", "order", operator.send("GET", "/ops/api/traces", nil, nil))
	operator.wantProblem(http.StatusUnprocessableEntity, "invalid-input", "trace", operator.send("GET", "/ops/api/traces?trace=x", nil, nil))
	if a := ada.send("GET", "/ops/api/traces?order="+id, nil, nil); a.status != http.StatusForbidden {
		t.Errorf("a customer who asks for traces gets %d, want 403", a.status)
	}
}
