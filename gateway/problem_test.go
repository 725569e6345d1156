// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway_test

import (
	"net/http/httptest"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/gateway"
)

func TestWriteProblem(t *testing.T) {
	for _, c := range []struct {
		name    string
		problem gateway.Problem
		want    string
	}{
		{"least", gateway.Problem{Status: 404}, `{"title":"Not Found","status":404}`},
		{"members", gateway.Problem{Status: 422, Detail: "is 0", Members: map[string]any{"field": "items[0]", "want": 1}}, `{"title":"Unprocessable Entity","status":422,"detail":"is 0","field":"items[0]","want":1}`},
		{"members in place of standard ones", gateway.Problem{Status: 400, Members: map[string]any{"status": 200, "type": "x"}}, `{"title":"Bad Request","status":400}`},
		{"members that cannot be encoded", gateway.Problem{Status: 400, Members: map[string]any{"field": func() {}}}, `{"title":"Bad Request","status":400}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			gateway.WriteProblem(w, c.problem)
			if got := w.Body.String(); got != c.want+"\n" || w.Code != c.problem.Status {
				t.Errorf("WriteProblem = %d %s, want %s", w.Code, got, c.want)
			}
		})
	}
	w := httptest.NewRecorder()
	gateway.WriteProblem(w, gateway.Problem{Status: 503, RetryAfter: 1200 * time.Millisecond})
	if got := w.Header().Get("Retry-After"); got != "2" {
		t.Errorf("Retry-After = %q, want 2: never too early", got)
	}
}
