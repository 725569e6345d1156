// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
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
