// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/dovetail-go/dovetail/oidckit"
)

func oldOrdersOf(handler http.Handler) http.Handler {
	// snippet: oidc/before
	mux := http.NewServeMux()
	mux.Handle("GET /orders", handler) // whoever reaches the port
	// end
	return mux
}

// snippet: oidc/after
type Claims struct {
	Role string `json:"role"`
}

func newOrdersOf(issuer string) (http.Handler, error) {
	verifier, err := oidckit.New(issuer, []string{"shop"}, oidckit.Config{})
	if err != nil {
		return nil, err
	}
	signedIn, err := oidckit.Middleware[Claims](verifier, oidckit.MiddlewareConfig{Realm: "shop"})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /orders", signedIn(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := oidckit.TokenOf(r.Context())
		claims, _ := oidckit.ClaimsOf[Claims](r.Context())
		fmt.Fprintf(w, "orders of %s, a %s", token.Subject, claims.Role)
	})))
	return mux, nil
}

// end

// snippet: oidc/test
// issue starts an issuer and returns its address and a function that signs people in.
func issue(t *testing.T) (string, func(subject, role string) string) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := jose.JSONWebKey{Key: private, KeyID: "k-1", Algorithm: "ES256", Use: "sig"}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": server.URL, "jwks_uri": server.URL + "/keys"})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}})
	})
	return server.URL, func(subject, role string) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
		if err != nil {
			t.Fatal(err)
		}
		token, err := jwt.Signed(signer).Claims(Claims{Role: role}).Claims(jwt.Claims{
			Issuer: server.URL, Subject: subject, Audience: jwt.Audience{"shop"}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour)),
		}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
}

func TestOrdersAreForTheSignedIn(t *testing.T) {
	issuer, signIn := issue(t)
	handler, err := newOrdersOf(issuer)
	if err != nil {
		t.Fatal(err)
	}
	for header, want := range map[string]int{
		"": http.StatusUnauthorized,
		"Bearer " + signIn("ada", "customer")[1:]: http.StatusUnauthorized,
		"Bearer " + signIn("ada", "customer"):     http.StatusOK,
	} {
		r := httptest.NewRequest(http.MethodGet, "/orders", nil)
		r.Header.Set("Authorization", header)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%.20s...: %d %s, want %d", header, w.Code, w.Body, want)
		}
	}
}

// end

func TestOrdersForEverybody(t *testing.T) {
	w := httptest.NewRecorder()
	oldOrdersOf(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/orders", nil))
	if w.Code != http.StatusOK {
		t.Errorf("answered %d", w.Code)
	}
}
