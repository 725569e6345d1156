// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command oidc puts verified tokens of an OpenID Connect issuer before a handler. The issuer is a small
// one of its own; with another, such as Keycloak or Cognito, only the URL and the audience change.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/dovetail-go/dovetail/oidckit"
)

type claims struct {
	Role string `json:"role"`
}

func main() {
	issuer, key := newIssuer()
	defer issuer.Close()

	verifier, err := oidckit.New(issuer.URL, []string{"shop"}, oidckit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	signedIn, err := oidckit.Middleware[claims](verifier, oidckit.MiddlewareConfig{Realm: "shop"})
	if err != nil {
		log.Fatal(err)
	}
	orders := signedIn(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := oidckit.TokenOf(r.Context())
		c, _ := oidckit.ClaimsOf[claims](r.Context())
		fmt.Fprintf(w, "orders of %s, who is a %s", token.Subject, c.Role)
	}))

	ask := func(what, token string) {
		r := httptest.NewRequest(http.MethodGet, "/orders", nil)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		w := httptest.NewRecorder()
		orders.ServeHTTP(w, r)
		if w.Code == http.StatusOK {
			fmt.Printf("%s: %d, %s\n", what, w.Code, w.Body)
		} else {
			fmt.Printf("%s: %d, %s\n", what, w.Code, w.Header().Get("WWW-Authenticate"))
		}
	}
	ask("signed in", sign(key, jose.ES256, issuer.URL, time.Hour))
	ask("no token", "")
	ask("expired", sign(key, jose.ES256, issuer.URL, -time.Hour))
	ask("signed with a secret", sign([]byte("a secret that is long enough for it"), jose.HS256, issuer.URL, time.Hour))
	issuer.Close()
	ask("the issuer is out", sign(key, jose.ES256, issuer.URL, time.Hour))
}

func newIssuer() (*httptest.Server, jose.JSONWebKey) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	key := jose.JSONWebKey{Key: private, KeyID: "2026-11", Algorithm: "ES256", Use: "sig"}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": server.URL, "jwks_uri": server.URL + "/keys"})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}})
	})
	return server, key
}

func sign(key any, alg jose.SignatureAlgorithm, issuer string, lifetime time.Duration) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, nil)
	if err != nil {
		log.Fatal(err)
	}
	token, err := jwt.Signed(signer).
		Claims(jwt.Claims{Issuer: issuer, Subject: "ada", Audience: jwt.Audience{"shop"}, Expiry: jwt.NewNumericDate(time.Now().Add(lifetime))}).
		Claims(claims{Role: "customer"}).
		Serialize()
	if err != nil {
		log.Fatal(err)
	}
	return token
}

// Output:
// signed in: 200, orders of ada, who is a customer
// no token: 401, Bearer realm="shop"
// expired: 401, Bearer realm="shop", error="invalid_token", error_description="the token has expired"
// signed with a secret: 401, Bearer realm="shop", error="invalid_token", error_description="the token is not valid"
// the issuer is out: 200, orders of ada, who is a customer
