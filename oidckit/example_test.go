// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package oidckit_test

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/dovetail-go/dovetail/oidckit"
)

func Example() {
	issuer, sign := exampleIssuer()
	defer issuer.Close()

	verifier, err := oidckit.New(issuer.URL, []string{"shop"}, oidckit.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	type Claims struct {
		Role string `json:"role"`
	}
	signedIn, err := oidckit.Middleware[Claims](verifier, oidckit.MiddlewareConfig{Realm: "shop"})
	if err != nil {
		fmt.Println(err)
		return
	}
	orders := signedIn(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := oidckit.TokenOf(r.Context())
		claims, _ := oidckit.ClaimsOf[Claims](r.Context())
		fmt.Fprintf(w, "orders of %s, %s", token.Subject, claims.Role)
	}))

	for _, token := range []string{sign("anna", time.Hour), sign("anna", -time.Hour)} {
		r := httptest.NewRequest(http.MethodGet, "/orders", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		orders.ServeHTTP(w, r)
		fmt.Println(w.Code, w.Body.String())
		if c := w.Header().Get("WWW-Authenticate"); c != "" {
			fmt.Println(c)
		}
	}
	// Output:
	// 200 orders of anna, customer
	// 401 {"title":"Unauthorized","status":401,"detail":"the token has expired"}
	//
	// Bearer realm="shop", error="invalid_token", error_description="the token has expired"
}

// exampleIssuer is a small issuer, and how it signs.
func exampleIssuer() (*httptest.Server, func(subject string, lifetime time.Duration) string) {
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	key := jose.JSONWebKey{Key: private, KeyID: "1", Algorithm: "EdDSA", Use: "sig"}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, nil)
	if err != nil {
		panic(err)
	}
	var server *httptest.Server
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": server.URL, "jwks_uri": server.URL + "/keys"})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}})
	})
	server = httptest.NewServer(mux)
	return server, func(subject string, lifetime time.Duration) string {
		token, err := jwt.Signed(signer).
			Claims(jwt.Claims{Issuer: server.URL, Subject: subject, Audience: jwt.Audience{"shop"}, Expiry: jwt.NewNumericDate(time.Now().Add(lifetime))}).
			Claims(map[string]any{"role": "customer"}).
			Serialize()
		if err != nil {
			panic(err)
		}
		return token
	}
}
