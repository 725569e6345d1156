// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// TestWhoIsLetIn shows tokens of all kinds at a door for operators.
func TestWhoIsLetIn(t *testing.T) {
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ours, another := key(), key()
	keys := httptest.NewServer(Handle(func(w http.ResponseWriter, _ *http.Request) error {
		return WriteJSON(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: ours.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	}))
	defer keys.Close()
	const issuer, secret = "https://shop.example", "the-secret-of-all-services"
	auth, err := NewAuth(issuer, keys.URL, secret, keys.Client())
	if err != nil {
		t.Fatal(err)
	}
	door := auth.Require(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), RoleOperator)
	backDoor := auth.Require(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))

	sign := func(alg jose.SignatureAlgorithm, key any, claims map[string]any) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", "k"))
		if err != nil {
			t.Fatal(err)
		}
		token, err := jwt.Signed(signer).Claims(claims).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	now := time.Now()
	good := map[string]any{"iss": issuer, "aud": Audience, "sub": "o", "role": RoleOperator, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	with := func(name string, value any) string {
		claims := maps.Clone(good)
		if claims[name] = value; value == nil {
			delete(claims, name)
		}
		return sign(jose.ES256, ours, claims)
	}
	public, err := x509.MarshalPKIXPublicKey(ours.Public())
	if err != nil {
		t.Fatal(err)
	}
	signed := with("sub", "o")
	for name, c := range map[string]struct {
		token string
		want  int
	}{
		"an operator's":            {signed, http.StatusOK},
		"a service's":              {secret, http.StatusOK},
		"none":                     {"", http.StatusUnauthorized},
		"a customer's":             {with("role", RoleCustomer), http.StatusForbidden},
		"one of no role":           {with("role", nil), http.StatusForbidden},
		"one that says service":    {with("role", roleService), http.StatusUnauthorized},
		"an old one":               {with("exp", now.Add(-time.Hour).Unix()), http.StatusUnauthorized},
		"one that never ends":      {with("exp", nil), http.StatusUnauthorized},
		"one for later":            {with("nbf", now.Add(time.Hour).Unix()), http.StatusUnauthorized},
		"another issuer's":         {with("iss", "https://elsewhere.example"), http.StatusUnauthorized},
		"one for somebody else":    {with("aud", "another-shop"), http.StatusUnauthorized},
		"one for nobody":           {with("aud", nil), http.StatusUnauthorized},
		"one by another key":       {sign(jose.ES256, another, good), http.StatusUnauthorized},
		"one by the public key":    {sign(jose.HS256, public, good), http.StatusUnauthorized},
		"one without a signature":  {signed[:strings.LastIndexByte(signed, '.')+1], http.StatusUnauthorized},
		"one of a signature begun": {signed[:len(signed)-2], http.StatusUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
			if c.token != "" {
				r.Header.Set("Authorization", "Bearer "+c.token)
			}
			w := httptest.NewRecorder()
			if door.ServeHTTP(w, r); w.Code != c.want {
				t.Errorf("answered %d %s, want %d", w.Code, w.Body, c.want)
			}
			w = httptest.NewRecorder()
			if backDoor.ServeHTTP(w, r); (w.Code == http.StatusOK) != (c.token == secret) {
				t.Errorf("at the door for services: %d, want services only to come in", w.Code)
			}
		})
	}
}
