// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// TestMerchants asks for a charge that is not there, with and without the shop's key.
func TestMerchants(t *testing.T) {
	db, err := platform.OpenSQLite(filepath.Join(t.TempDir(), "provider.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	const token = "the-secret-of-the-shop's-services"
	s, err := New(t.Context(), platform.Env{Name: "provider", DB: db, Caller: &platform.Caller{Token: token}})
	if err != nil {
		t.Fatal(err)
	}
	of := func(token string) string {
		key, err := (&platform.Caller{Token: token}).KeyFor(platform.ProviderKey)
		if err != nil {
			t.Fatal(err)
		}
		return "Bearer " + hex.EncodeToString(key)
	}
	for header, want := range map[string]int{
		of(token): http.StatusNotFound, of("another"): http.StatusUnauthorized, "Bearer " + token: http.StatusUnauthorized, "": http.StatusUnauthorized,
	} {
		for method, path := range map[string]string{http.MethodGet: "/v1/charges/none", http.MethodPost: "/v1/charges/none/capture"} {
			r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
			if header != "" {
				r.Header.Set("Authorization", header)
			}
			w := httptest.NewRecorder()
			if s.Handler().ServeHTTP(w, r); w.Code != want {
				t.Errorf("%s %s with %q = %d %s, want %d", method, path, header, w.Code, w.Body, want)
			}
		}
	}
}
