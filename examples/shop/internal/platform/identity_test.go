// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestWho(t *testing.T) {
	for want, id := range map[string]Identity{
		"7":                   {Subject: "7", Role: RoleOperator},
		"op@shop.example (7)": {Subject: "7", Email: "op@shop.example", Role: RoleOperator},
	} {
		if got := Who(context.WithValue(t.Context(), identityKey{}, id)); got != want {
			t.Errorf("%+v is %q, want %q", id, got, want)
		}
	}

	auth, err := NewAuth("http://shop.example", "http://shop.example/keys", "secret", http.DefaultClient)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer secret")
	var got string
	auth.Require(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = Who(r.Context()) })).ServeHTTP(httptest.NewRecorder(), r)
	if got != "service" {
		t.Errorf("who comes with the service token is %q, want a service", got)
	}
}
