// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package oidckit_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/dovetail-go/dovetail/oidckit"
)

const issuerURL = "https://login.test"

// issuer is an OpenID Connect issuer within the test: a transport answers for it, so that it lives
// in the test's own time.
type issuer struct {
	t testing.TB

	mu      sync.Mutex
	keys    []jose.JSONWebKey // the last one signs
	down    bool
	slow    time.Duration
	fetches int
	most    int // at once
	running int
}

func newIssuer(t testing.TB) *issuer {
	i := &issuer{t: t}
	i.rotate("first")
	return i
}

// newKey returns a new private key.
func newKey(t testing.TB, kid string) jose.JSONWebKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return jose.JSONWebKey{Key: key, KeyID: kid, Algorithm: "ES256", Use: "sig"}
}

// rotate makes the issuer sign with a new key, the only one it publishes from now on.
func (i *issuer) rotate(kid string) {
	key := newKey(i.t, kid)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = []jose.JSONWebKey{key}
}

func (i *issuer) set(down bool, slow time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down, i.slow = down, slow
}

// asked returns how often the keys were asked for.
func (i *issuer) asked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

func (i *issuer) key() jose.JSONWebKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[len(i.keys)-1]
}

// claims are those of a good token, with changes; nil takes one away.
func claims(changes map[string]any) map[string]any {
	c := map[string]any{
		"iss": issuerURL, "sub": "anna", "aud": "shop", "iat": time.Now().Unix(),
		"exp": time.Now().Add(time.Hour).Unix(), "scope": "orders:read orders:write", "role": "customer",
	}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// token returns a token with the changed claims.
func (i *issuer) token(changes map[string]any) string {
	i.t.Helper()
	return sign(i.t, i.key(), jose.ES256, claims(changes), nil)
}

func sign(t testing.TB, key any, alg jose.SignatureAlgorithm, claims any, header map[jose.HeaderKey]any) string {
	t.Helper()
	opts := (&jose.SignerOptions{}).WithType("JWT")
	for k, v := range header {
		opts.WithHeader(k, v)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

// ServeHTTP answers for the issuer.
func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]string{
			"issuer": issuerURL, "jwks_uri": issuerURL + "/keys", "authorization_endpoint": issuerURL + "/authorize",
		})
	case "/keys":
		i.mu.Lock()
		i.fetches++
		set := jose.JSONWebKeySet{}
		for _, k := range i.keys {
			if _, secret := k.Key.([]byte); !secret {
				k = k.Public()
			}
			set.Keys = append(set.Keys, k)
		}
		i.mu.Unlock()
		_ = json.NewEncoder(w).Encode(set)
	default:
		http.NotFound(w, r)
	}
}

// RoundTrip implements http.RoundTripper.
func (i *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	i.mu.Lock()
	down, slow := i.down, i.slow
	i.running++
	i.most = max(i.most, i.running)
	i.mu.Unlock()
	defer func() {
		i.mu.Lock()
		i.running--
		i.mu.Unlock()
	}()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	if down {
		return nil, errors.New("connection refused")
	}
	w := httptest.NewRecorder()
	i.ServeHTTP(w, r)
	return w.Result(), nil
}

func (i *issuer) verifier(cfg oidckit.Config) *oidckit.Verifier {
	i.t.Helper()
	cfg.Client = &http.Client{Transport: i}
	v, err := oidckit.New(issuerURL, []string{"shop"}, cfg)
	if err != nil {
		i.t.Fatal(err)
	}
	return v
}

// verify fails the test unless the token's verdict is want.
func verify(t testing.TB, v *oidckit.Verifier, token string, want error) *oidckit.Token {
	t.Helper()
	got, err := v.Verify(context.Background(), token)
	if !errors.Is(err, want) || want == nil && err != nil {
		t.Fatalf("Verify = %v, want %v", err, want)
	}
	return got
}
