// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/fault"
)

// TestEverywhere asks services of which one is away, one has nothing of the kind, and one will not say.
func TestEverywhere(t *testing.T) {
	services := roundTripper(func(r *http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		switch r.URL.Host {
		case "away":
			return nil, errors.New("connection refused")
		case "without":
			http.NotFound(w, r)
		case "busy":
			platform.WriteProblem(w, &platform.Error{Status: http.StatusServiceUnavailable, Code: "busy"})
		default:
			_ = platform.WriteJSON(w, http.StatusOK, map[string]any{"service": r.URL.Host, "waiting": 3})
		}
		return w.Result(), nil
	})
	s := &Service{services: []string{"order", "away", "without", "busy", "payment"}, env: platform.Env{Caller: &platform.Caller{Client: &http.Client{Transport: services}}}}
	w := httptest.NewRecorder()
	platform.Handle(s.everywhere("/ops/outbox")).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil))
	type item struct {
		Service string
		Waiting int
		Error   string
	}
	var got struct{ Items []item }
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("%s: %v", w.Body, err)
	}
	const away = "does not answer"
	if want := []item{{"order", 3, ""}, {"away", 0, away}, {"busy", 0, away}, {"payment", 3, ""}}; !slices.Equal(got.Items, want) {
		t.Errorf("%+v, want %+v", got.Items, want)
	}
}

// TestAway has each kind of route need a service that does not answer: who asks is told which, and when to come back.
func TestAway(t *testing.T) {
	open := fmt.Errorf("calls: %w", &fault.Rejection{By: "breaker", Name: "order", RetryAfter: 2578552724, Err: breaker.ErrOpen})
	for _, tt := range []struct {
		name string
		err  error
		want string
		wait string
	}{
		{"nobody is there", errors.New("connection refused"), "service order did not answer; please try again in 1 s", "1"},
		{"it is late", context.DeadlineExceeded, "service order did not answer in time; please try again in 1 s", "1"},
		{"its breaker is open", open, "service order is not available at present; please try again in 3 s", "3"},
	} {
		s := &Service{env: platform.Env{Caller: &platform.Caller{Client: &http.Client{Transport: roundTripper(func(*http.Request) (*http.Response, error) { return nil, tt.err })}}, Log: slog.New(slog.DiscardHandler)}}
		for route, h := range map[string]http.Handler{
			"passed on": s.proxy("order", "/api"),
			"composed":  s.orderPage(),
			"asked":     platform.Handle(func(_ http.ResponseWriter, r *http.Request) error { return away(r.Context(), "order", tt.err) }),
		} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/orders/o-1", nil)
			r.SetPathValue("id", "o-1")
			says(t, tt.name+", "+route, h, r, tt.want, tt.wait)
		}
	}

	// A service that answers, and has too much to do, says itself when to come back.
	busy := roundTripper(func(*http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		platform.WriteProblem(w, &platform.Error{Status: http.StatusServiceUnavailable, Code: "overloaded", Detail: "please try again", RetryAfter: 7 * time.Second})
		return w.Result(), nil
	})
	s := &Service{env: platform.Env{Caller: &platform.Caller{Client: &http.Client{Transport: busy}}, Log: slog.New(slog.DiscardHandler)}}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/orders/o-1", nil)
	r.SetPathValue("id", "o-1")
	says(t, "it is busy, composed", s.orderPage(), r, "order is not available at present; please try again in 7 s", "7")
}

// says wants a handler to answer that a service cannot be had.
func says(t *testing.T, name string, h http.Handler, r *http.Request, want, wait string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var got struct{ Detail string }
	_ = json.Unmarshal(w.Body.Bytes(), &got)
	if w.Code != http.StatusServiceUnavailable || got.Detail != want || w.Header().Get("Retry-After") != wait {
		t.Errorf("%s: %d %q, to come back after %q; want 503 %q and %q", name, w.Code, got.Detail, w.Header().Get("Retry-After"), want, wait)
	}
}
