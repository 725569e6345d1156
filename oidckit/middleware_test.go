// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package oidckit_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/oidckit"
)

type shopClaims struct {
	Role string `json:"role"`
}

func guarded(t testing.TB, v *oidckit.Verifier, cfg oidckit.MiddlewareConfig) http.Handler {
	t.Helper()
	m, err := oidckit.Middleware[shopClaims](v, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, ok := oidckit.ClaimsOf[shopClaims](r.Context())
		token, tokenOK := oidckit.TokenOf(r.Context())
		if ok != tokenOK {
			t.Error("claims without a token")
		}
		if _, wrong := oidckit.ClaimsOf[string](r.Context()); wrong {
			t.Error("claims of another type")
		}
		if ok {
			_, _ = io.WriteString(w, token.Subject+" is "+claims.Role)
		} else {
			_, _ = io.WriteString(w, "nobody")
		}
	}))
}

func TestMiddleware(t *testing.T) {
	i := newIssuer(t)
	h := guarded(t, i.verifier(oidckit.Config{}), oidckit.MiddlewareConfig{Realm: "shop", Scopes: []string{"orders:read"}})
	for _, c := range []struct {
		name      string
		header    []string
		status    int
		challenge string
		body      string
	}{
		{"good", []string{"Bearer " + i.token(nil)}, 200, "", "anna is customer"},
		{"scheme in any case", []string{"bearer " + i.token(nil)}, 200, "", "anna is customer"},
		{"none", nil, 401, `Bearer realm="shop", scope="orders:read"`, `"a bearer token is wanted"`},
		{"another scheme", []string{"Basic YTpi"}, 401, `Bearer realm="shop", scope="orders:read"`, ""},
		{"empty", []string{"Bearer "}, 400, `Bearer realm="shop", error="invalid_request", error_description="want one bearer token"`, ""},
		{"two words", []string{"Bearer a b"}, 400, `Bearer realm="shop", error="invalid_request", error_description="want one bearer token"`, ""},
		{"two headers", []string{"Bearer " + i.token(nil), "Bearer x"}, 400, `Bearer realm="shop", error="invalid_request", error_description="want one bearer token"`, ""},
		{"no JWT", []string{"Bearer x"}, 401, `Bearer realm="shop", error="invalid_token", error_description="the token is not valid"`, `"the token is not valid"`},
		{"expired", []string{"Bearer " + i.token(map[string]any{"exp": 1})}, 401, `Bearer realm="shop", error="invalid_token", error_description="the token has expired"`, ""},
		{"scope", []string{"Bearer " + i.token(map[string]any{"scope": "orders:write"})}, 403, `Bearer realm="shop", error="insufficient_scope", error_description="the token permits too little", scope="orders:read"`, ""},
		{"scp as an array", []string{"Bearer " + i.token(map[string]any{"scope": nil, "scp": []string{"orders:read"}})}, 200, "", ""},
		{"claims of another type", []string{"Bearer " + i.token(map[string]any{"role": 7})}, 401, `Bearer realm="shop", error="invalid_token", error_description="the token is not valid"`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.Header["Authorization"] = c.header
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != c.status || w.Header().Get("WWW-Authenticate") != c.challenge || !strings.Contains(w.Body.String(), c.body) {
				t.Errorf("answer = %d %q %s, want %d %q %s", w.Code, w.Header().Get("WWW-Authenticate"), w.Body, c.status, c.challenge, c.body)
			}
			if c.status != 200 && (w.Header().Get("Content-Type") != "application/problem+json" || w.Header().Get("Cache-Control") != "no-store") {
				t.Errorf("header = %v, want a problem that is not stored", w.Header())
			}
		})
	}
}

func TestMiddlewareOptional(t *testing.T) {
	i := newIssuer(t)
	h := guarded(t, i.verifier(oidckit.Config{}), oidckit.MiddlewareConfig{Optional: true})
	for header, want := range map[string]int{"": 200, "Bearer x": 401, "Bearer " + i.token(nil): 200} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if header != "" {
			r.Header.Set("Authorization", header)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("answer to %.10q = %d, want %d", header, w.Code, want)
		}
	}
}

// An outage of the issuer must sign nobody out.
func TestMiddlewareWithoutKeys(t *testing.T) {
	i := newIssuer(t)
	i.set(true, 0)
	h := guarded(t, i.verifier(oidckit.Config{Logger: slog.New(slog.DiscardHandler)}), oidckit.MiddlewareConfig{})
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer "+i.token(nil))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 503 || w.Header().Get("Retry-After") == "" || w.Header().Get("WWW-Authenticate") != "" {
		t.Errorf("answer = %d %v, want 503 with Retry-After and no challenge", w.Code, w.Header())
	}
}

func TestMiddlewareNamesWhatIsWrong(t *testing.T) {
	v := newIssuer(t).verifier(oidckit.Config{})
	if _, err := oidckit.Middleware[any](nil, oidckit.MiddlewareConfig{}); err == nil || !strings.Contains(err.Error(), "verifier") {
		t.Errorf("Middleware = %v, want an error that names the verifier", err)
	}
	for want, cfg := range map[string]oidckit.MiddlewareConfig{
		"Realm": {Realm: "a\"b"}, "Scopes[1]": {Scopes: []string{"a", "b c"}},
	} {
		if _, err := oidckit.Middleware[any](v, cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Middleware = %v, want an error that names %s", err, want)
		}
	}
}

// Over a real connection, as it runs.
func TestAgainstARealServer(t *testing.T) {
	i := newIssuer(t)
	server := httptest.NewTLSServer(i)
	defer server.Close()
	v, err := oidckit.New(issuerURL, []string{"shop"}, oidckit.Config{Client: server.Client(), KeysURL: server.URL + "/keys", Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	verify(t, v, i.token(nil), nil)
}

func FuzzBearer(f *testing.F) {
	for _, s := range []string{"Bearer abc", "bearer  a==", "Bearer", "Bearer a,b", "Basic YTpi", "Bearer \x00", "Bearer ===", "Bearer a=b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		token, err := oidckit.Bearer(&http.Request{Header: http.Header{"Authorization": {header}}})
		if err == nil && (token == "" || strings.ContainsAny(token, " ,\"\r\n\t\x00") || !strings.Contains(header, token)) {
			t.Errorf("Bearer(%q) = %q", header, token)
		}
		if err != nil && token != "" {
			t.Errorf("Bearer(%q) = %q, %v; want no token with an error", header, token, err)
		}
		if c := oidckit.Challenge("", err); err != nil && !strings.HasPrefix(c, "Bearer") {
			t.Errorf("Challenge of %v = %q", err, c)
		}
	})
}
