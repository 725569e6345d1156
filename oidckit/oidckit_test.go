// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package oidckit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/oidckit"
)

func TestNewNamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		issuer   string
		audience []string
		cfg      oidckit.Config
		want     string
	}{
		{"login.test", []string{"a"}, oidckit.Config{}, "issuer"},
		{issuerURL, nil, oidckit.Config{}, "audience"},
		{issuerURL, []string{""}, oidckit.Config{}, "audience"},
		{issuerURL, []string{"a"}, oidckit.Config{Algorithms: []string{"none"}}, `"none"`},
		{issuerURL, []string{"a"}, oidckit.Config{Algorithms: []string{"HS256"}}, `"HS256"`},
		{issuerURL, []string{"a"}, oidckit.Config{Algorithms: []string{}}, "Algorithms"},
		{issuerURL, []string{"a"}, oidckit.Config{KeysURL: "/keys"}, "KeysURL"},
		{issuerURL, []string{"a"}, oidckit.Config{Timeout: -1}, "Timeout"},
		{issuerURL, []string{"a"}, oidckit.Config{KeysAge: time.Second}, "KeysMinAge"},
		{issuerURL, []string{"a"}, oidckit.Config{MaxToken: -1}, "MaxToken"},
	} {
		if _, err := oidckit.New(c.issuer, c.audience, c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("New(%q, %q, %+v) = %v, want an error that names %s", c.issuer, c.audience, c.cfg, err, c.want)
		}
	}
}

func TestTokenSaysWhoAndWhat(t *testing.T) {
	i := newIssuer(t)
	expiry := time.Now().Add(time.Hour).Unix()
	got := verify(t, i.verifier(oidckit.Config{}), i.token(map[string]any{
		"aud": []string{"other", "shop"}, "exp": float64(expiry) + 0.5, "jti": "t1", "azp": "web",
	}), nil)
	if got.Subject != "anna" || got.Issuer != issuerURL || len(got.Audience) != 2 || got.ID != "t1" || got.ClientID != "web" || got.Expiry.Unix() != expiry {
		t.Errorf("token = %+v", got)
	}
	if !got.HasScope("orders:write") || got.HasScope("orders") {
		t.Errorf("scopes = %q, want orders:read and orders:write", got.Scopes)
	}
	var c struct{ Role, SUB string }
	if err := got.Claims(&c); err != nil || c.Role != "" || c.SUB != "" {
		t.Errorf("Claims = %v, %+v; want names to match in case too", err, c)
	}
}

func TestVerdicts(t *testing.T) {
	i := newIssuer(t)
	now := time.Now().Unix()
	for _, c := range []struct {
		name    string
		changes map[string]any
		want    error
	}{
		{"good", nil, nil},
		{"expired", map[string]any{"exp": now - 31}, oidckit.ErrExpired},
		{"expired within the leeway", map[string]any{"exp": now - 20}, nil},
		{"no expiry", map[string]any{"exp": nil}, oidckit.ErrExpired},
		{"expiry is null", map[string]any{"exp": json.RawMessage("null")}, oidckit.ErrExpired},
		{"expiry is text", map[string]any{"exp": "tomorrow"}, oidckit.ErrMalformed},
		{"expiry beyond all calendars", map[string]any{"exp": 1e300}, oidckit.ErrMalformed},
		{"not yet valid", map[string]any{"nbf": now + 90}, oidckit.ErrNotYetValid},
		{"not yet valid within the leeway", map[string]any{"nbf": now + 20}, nil},
		{"issued in the future", map[string]any{"iat": now + 90}, oidckit.ErrNotYetValid},
		{"wrong audience", map[string]any{"aud": "other"}, oidckit.ErrAudience},
		{"no audience", map[string]any{"aud": nil}, oidckit.ErrAudience},
		{"client ID but not configured", map[string]any{"aud": nil, "client_id": "shop"}, oidckit.ErrAudience},
		{"wrong issuer", map[string]any{"iss": issuerURL + "/"}, oidckit.ErrIssuer},
		{"no issuer", map[string]any{"iss": nil}, oidckit.ErrIssuer},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := i.verifier(oidckit.Config{})
			verify(t, v, i.token(c.changes), c.want)
			if c.want != nil {
				verify(t, v, i.token(c.changes), c.want) // and again: nothing is remembered of it
			}
		})
	}
}

func TestRequiredClaims(t *testing.T) {
	i := newIssuer(t)
	for _, c := range []struct {
		name    string
		require map[string][]string
		want    error
	}{
		{"one of the values", map[string][]string{"role": {"admin", "customer"}}, nil},
		{"another value", map[string][]string{"role": {"admin"}}, oidckit.ErrClaim},
		{"any value", map[string][]string{"role": nil}, nil},
		{"missing", map[string][]string{"email": nil}, oidckit.ErrClaim},
		{"missing, with values", map[string][]string{"email": {""}}, oidckit.ErrClaim},
		{"element of an array", map[string][]string{"groups": {"b"}}, nil},
		{"no element of the array", map[string][]string{"groups": {"c"}}, oidckit.ErrClaim},
		{"bool", map[string][]string{"email_verified": {"true"}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			verify(t, i.verifier(oidckit.Config{Require: c.require}), i.token(map[string]any{
				"groups": []string{"a", "b"}, "email_verified": true,
			}), c.want)
		})
	}
	t.Run("Cognito's access token", func(t *testing.T) {
		v := i.verifier(oidckit.Config{ClientID: true, Require: map[string][]string{"token_use": {"access"}}})
		verify(t, v, i.token(map[string]any{"aud": nil, "client_id": "shop", "token_use": "access"}), nil)
		verify(t, v, i.token(map[string]any{"aud": nil, "client_id": "other", "token_use": "access"}), oidckit.ErrAudience)
		verify(t, v, i.token(map[string]any{"token_use": "id"}), oidckit.ErrClaim)
		// An audience that is there decides, or a client could take another's place.
		verify(t, v, i.token(map[string]any{"aud": "other", "client_id": "shop", "token_use": "access"}), oidckit.ErrAudience)
	})
	t.Run("types", func(t *testing.T) {
		v := i.verifier(oidckit.Config{Types: []string{"at+jwt"}})
		typed := func(typ string) string {
			return sign(t, i.key(), jose.ES256, claims(nil), map[jose.HeaderKey]any{"typ": typ})
		}
		verify(t, v, typed("AT+JWT"), nil)
		verify(t, v, typed("application/at+jwt"), nil)
		verify(t, v, typed("JWT"), oidckit.ErrType)
	})
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// The attacks on JWT libraries that everybody has read about.
func TestForgeries(t *testing.T) {
	i := newIssuer(t)
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("a secret that the issuer published by mistake")
	i.keys = append([]jose.JSONWebKey{
		{Key: private, KeyID: "rsa", Use: "sig"},
		{Key: weak, KeyID: "weak", Use: "sig"},
		{Key: edwards, KeyID: "ed", Use: "sig"},
		{Key: private, KeyID: "enc", Use: "enc"},
		{Key: secret, KeyID: "oct", Use: "sig"},
	}, i.keys...)
	der, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	kid := func(id string) map[jose.HeaderKey]any { return map[jose.HeaderKey]any{"kid": id} }
	good := i.token(nil)
	parts := strings.Split(good, ".")
	stranger := newKey(t, "first")

	all := []string{"RS256", "PS256", "ES256", "ES384", "EdDSA"}
	for _, c := range []struct {
		name, token string
		want        error
	}{
		{"RSA", sign(t, private, jose.RS256, claims(nil), kid("rsa")), nil},
		{"RSA-PSS with the same key", sign(t, private, jose.PS256, claims(nil), kid("rsa")), nil},
		{"Ed25519", sign(t, edwards, jose.EdDSA, claims(nil), kid("ed")), nil},
		{"alg none", b64(`{"alg":"none","kid":"first"}`) + "." + parts[1] + ".", oidckit.ErrAlgorithm},
		{"alg NONE with a signature", b64(`{"alg":"NONE","kid":"first"}`) + "." + parts[1] + "." + parts[2], oidckit.ErrAlgorithm},
		{"HMAC with the public key", sign(t, text, jose.HS256, claims(nil), kid("rsa")), oidckit.ErrAlgorithm},
		{"HMAC with the DER of the public key", sign(t, der, jose.HS256, claims(nil), kid("rsa")), oidckit.ErrAlgorithm},
		{"HMAC with a published secret", sign(t, secret, jose.HS256, claims(nil), kid("oct")), oidckit.ErrAlgorithm},
		{"algorithm that is not allowed", sign(t, private, jose.RS512, claims(nil), kid("rsa")), oidckit.ErrAlgorithm},
		{"another algorithm than the key's", sign(t, edwards, jose.EdDSA, claims(nil), kid("first")), oidckit.ErrUnknownKey},
		{"key for encryption", sign(t, private, jose.RS256, claims(nil), kid("enc")), oidckit.ErrUnknownKey},
		{"key too short", sign(t, weak, jose.RS256, claims(nil), kid("weak")), oidckit.ErrUnknownKey},
		{"stranger's key under the same ID", sign(t, stranger, jose.ES256, claims(nil), nil), oidckit.ErrSignature},
		{"stranger's key inside of the token", sign(t, stranger.Key, jose.ES256, claims(nil), map[jose.HeaderKey]any{"kid": "x", "jwk": stranger.Public()}), oidckit.ErrUnknownKey},
		{"key to be fetched from the stranger", sign(t, stranger.Key, jose.ES256, claims(nil), map[jose.HeaderKey]any{"kid": "x", "jku": "https://evil.test/keys"}), oidckit.ErrUnknownKey},
		{"changed claims", parts[0] + "." + b64(`{"iss":"`+issuerURL+`","sub":"root","aud":"shop","exp":9999999999}`) + "." + parts[2], oidckit.ErrSignature},
		{"no signature", parts[0] + "." + parts[1] + ".", oidckit.ErrSignature},
		{"signature of zeros", parts[0] + "." + parts[1] + "." + b64(strings.Repeat("\x00", 64)), oidckit.ErrSignature},
		{"critical header", sign(t, i.key(), jose.ES256, claims(nil), map[jose.HeaderKey]any{"crit": []string{"b64"}, "b64": true}), oidckit.ErrMalformed},
		{"name that is there twice", signRaw(t, i.key(), `{"iss":"`+issuerURL+`","aud":"shop","exp":9999999999,"sub":"a","sub":"b"}`), oidckit.ErrMalformed},
		{"no object", signRaw(t, i.key(), `"anna"`), oidckit.ErrMalformed},
		{"two parts", parts[0] + "." + parts[1], oidckit.ErrMalformed},
		{"five parts", good + ".a.b", oidckit.ErrMalformed},
		{"JSON", `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, oidckit.ErrMalformed},
		{"empty", "", oidckit.ErrMalformed},
		{"too long", strings.Repeat("a", 16<<10+1), oidckit.ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := i.verifier(oidckit.Config{Algorithms: all}).Verify(t.Context(), c.token)
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Fatalf("Verify = %v, want %v", err, c.want)
			}
			if err != nil && !errors.Is(err, oidckit.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			for part := range strings.SplitSeq(c.token, ".") {
				if err != nil && len(part) > 8 && strings.Contains(err.Error(), part) {
					t.Errorf("error %q quotes the token", err)
				}
			}
		})
	}
}

func signRaw(t testing.TB, key jose.JSONWebKey, payload string) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	compact, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t)
		v := i.verifier(oidckit.Config{})
		old := i.token(nil)
		verify(t, v, old, nil)

		time.Sleep(10 * time.Second)
		i.rotate("second")
		fresh := i.token(nil)
		verify(t, v, fresh, nil) // at the first token
		if got := i.asked(); got != 2 {
			t.Errorf("asked %d times, want 2", got)
		}
		verify(t, v, old, oidckit.ErrUnknownKey) // also though it was remembered

		i.rotate("third")
		verify(t, v, i.token(nil), oidckit.ErrUnknownKey) // too soon to ask
		time.Sleep(10 * time.Second)
		verify(t, v, i.token(nil), nil)
	})
}

func TestKeyThatWasTakenBackIsRefusedAfterKeysAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t)
		v := i.verifier(oidckit.Config{KeysAge: time.Minute})
		token := i.token(nil)
		verify(t, v, token, nil)
		i.rotate("second")
		time.Sleep(59 * time.Second)
		verify(t, v, token, nil)
		time.Sleep(time.Second)
		verify(t, v, token, nil) // notices, and does not wait
		synctest.Wait()
		verify(t, v, token, oidckit.ErrUnknownKey)
	})
}

func TestKeysWithoutNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t)
		i.rotate("")
		v := i.verifier(oidckit.Config{})
		verify(t, v, i.token(nil), nil)
		time.Sleep(10 * time.Second)
		i.rotate("")
		verify(t, v, i.token(nil), nil)
	})
}

func TestStormOfForgedKeyIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t)
		i.set(false, 100*time.Millisecond)
		v := i.verifier(oidckit.Config{})
		good := i.token(nil)
		verify(t, v, good, nil)
		stranger := newKey(t, "")
		var forgers sync.WaitGroup
		for n := range 50 {
			stranger.KeyID = fmt.Sprint("forged-", n)
			token := sign(t, stranger, jose.ES256, claims(nil), nil)
			forgers.Go(func() {
				for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
					if _, err := v.Verify(t.Context(), token); !errors.Is(err, oidckit.ErrUnknownKey) {
						t.Errorf("Verify = %v, want %v", err, oidckit.ErrUnknownKey)
					}
				}
			})
		}
		for range 600 {
			start := time.Now()
			verify(t, v, good, nil)
			if waited := time.Since(start); waited > 0 {
				t.Fatalf("a good token waited %v", waited)
			}
			time.Sleep(100 * time.Millisecond)
		}
		forgers.Wait()
		if got := i.asked(); got > 8 {
			t.Errorf("60,000 forged tokens in a minute made %d fetches, want at most one in ten seconds", got)
		}
		if i.most != 1 {
			t.Errorf("%d fetches at once, want 1", i.most)
		}
		// A rotation in the middle of it is noticed all the same.
		i.rotate("second")
		time.Sleep(10 * time.Second)
		verify(t, v, i.token(nil), nil)
	})
}

func TestOutageOfTheIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		i := newIssuer(t)
		i.set(true, 0)
		v := i.verifier(oidckit.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil)), KeysMaxAge: time.Hour})
		token := i.token(map[string]any{"exp": time.Now().Add(8 * time.Hour).Unix()})

		// Before the keys were ever known: nobody can tell, and the issuer is not stormed.
		for range 100 {
			verify(t, v, token, oidckit.ErrKeys)
		}
		_, err := v.Verify(t.Context(), token)
		if errors.Is(err, oidckit.ErrInvalid) || fault.Judge(t.Context(), err).After <= 0 {
			t.Errorf("Verify = %v, want an error that says when to come back and is not %v", err, oidckit.ErrInvalid)
		}
		if n := strings.Count(logged.String(), "could not be fetched"); n != 1 {
			t.Errorf("%d fetches within no time, want 1", n)
		}
		if err := v.Ready(t.Context()); !errors.Is(err, oidckit.ErrKeys) {
			t.Errorf("Ready = %v, want %v", err, oidckit.ErrKeys)
		}

		i.set(false, 0)
		time.Sleep(2 * time.Second)
		if err := v.Ready(t.Context()); err != nil {
			t.Fatalf("Ready = %v, want nil", err)
		}
		verify(t, v, token, nil)

		i.set(true, 0)
		for range 59 { // every minute of the outage, also after KeysAge
			time.Sleep(time.Minute)
			verify(t, v, token, nil)
			synctest.Wait()
		}
		stranger := newKey(t, "forged")
		verify(t, v, sign(t, stranger, jose.ES256, claims(nil), nil), oidckit.ErrKeys) // may be a new key
		time.Sleep(2 * time.Minute)
		verify(t, v, token, oidckit.ErrKeys) // an hour is over

		i.set(false, 0)
		time.Sleep(time.Minute)
		verify(t, v, token, nil)
		if strings.Contains(logged.String(), strings.Split(token, ".")[2]) {
			t.Error("the log has the token")
		}
	})
}

func TestSlowIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t)
		v := i.verifier(oidckit.Config{})
		token := i.token(nil)
		i.set(false, time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := v.Verify(ctx, token); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Verify = %v, want %v", err, context.DeadlineExceeded)
		}
		start := time.Now()
		verify(t, v, token, oidckit.ErrKeys)
		if got := time.Since(start); got != 9*time.Second {
			t.Errorf("waited %v, want the rest of Config.Timeout, 9s", got)
		}
		// Who gives up does not take the fetch away from the others.
		i.set(false, 2*time.Second)
		time.Sleep(2 * time.Second)
		var both sync.WaitGroup
		both.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, _ = v.Verify(ctx, token)
		})
		synctest.Wait()
		verify(t, v, token, nil)
		both.Wait()

		i.set(false, time.Minute)
		time.Sleep(11 * time.Minute)
		start = time.Now()
		verify(t, v, token, nil)
		if got := time.Since(start); got != 0 {
			t.Errorf("a token with a known key waited %v for a slow issuer", got)
		}
		time.Sleep(time.Minute) // the fetch ends
	})
}

func TestRememberedTokensAreBoundedAndStillChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t)
		v := i.verifier(oidckit.Config{Remember: 4})
		first := i.token(map[string]any{"exp": time.Now().Add(time.Minute).Unix()})
		a := verify(t, v, first, nil)
		if b := verify(t, v, first, nil); a != b {
			t.Error("the second time it was decoded again")
		}
		for n := range 10 {
			verify(t, v, i.token(map[string]any{"sub": fmt.Sprint(n)}), nil)
		}
		if b := verify(t, v, first, nil); a == b {
			t.Error("remembered more than 4 tokens")
		}
		time.Sleep(time.Minute + 30*time.Second)
		verify(t, v, first, oidckit.ErrExpired)
	})
}

func TestDiscoveryOfAnotherIssuerIsRefused(t *testing.T) {
	for name, document := range map[string]string{
		"another issuer": `{"issuer":"https://evil.test","jwks_uri":"https://evil.test/keys"}`,
		"no keys":        `{"issuer":"` + issuerURL + `"}`,
		"keys by http":   `{"issuer":"` + issuerURL + `","jwks_uri":"http://login.test/keys"}`,
		"no JSON":        `<html>`,
		"endless":        strings.Repeat(" ", 1<<20+1),
	} {
		t.Run(name, func(t *testing.T) {
			client := &http.Client{Transport: roundTrip(func(r *http.Request) *http.Response {
				w := httptest.NewRecorder()
				_, _ = w.WriteString(document)
				return w.Result()
			})}
			v, err := oidckit.New(issuerURL, []string{"shop"}, oidckit.Config{Client: client, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Ready(t.Context()); !errors.Is(err, oidckit.ErrKeys) {
				t.Errorf("Ready = %v, want %v", err, oidckit.ErrKeys)
			}
		})
	}
}

func TestDiscovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t)
		i.set(true, 0)
		v := i.verifier(oidckit.Config{Logger: slog.New(slog.DiscardHandler)})
		var found struct {
			Authorize string `json:"authorization_endpoint"`
			Other     string `json:"Issuer"`
		}
		if err := v.Discovery(t.Context(), &found); !errors.Is(err, oidckit.ErrKeys) || fault.Judge(t.Context(), err).After <= 0 {
			t.Errorf("Discovery without the issuer = %v, want %v and when to come back", err, oidckit.ErrKeys)
		}
		i.set(false, 0)
		time.Sleep(2 * time.Second)
		for range 2 {
			if err := v.Discovery(t.Context(), &found); err != nil || found.Authorize != issuerURL+"/authorize" || found.Other != "" {
				t.Errorf("Discovery = %+v, %v; want the endpoint, and no name in another case", found, err)
			}
		}
		if n := i.asked(); n != 1 {
			t.Errorf("the issuer was asked %d times, want 1", n)
		}
		i.set(true, 0)
		time.Sleep(time.Hour)
		if err := v.Discovery(t.Context(), &found); err != nil {
			t.Errorf("Discovery in an outage = %v, want what is known", err)
		}
		synctest.Wait()

		var list []string
		if err := v.Discovery(t.Context(), &list); err == nil {
			t.Error("Discovery into something else = nil, want an error")
		}
		v = i.verifier(oidckit.Config{KeysURL: issuerURL + "/keys"})
		if err := v.Discovery(t.Context(), &found); err == nil || !strings.Contains(err.Error(), "KeysURL") {
			t.Errorf("Discovery = %v, want an error that names KeysURL", err)
		}
	})
}

type roundTrip func(*http.Request) *http.Response

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

// An answer without a single good key must not replace the good ones.
func TestBrokenKeySetDoesNotReplaceTheKnownKeys(t *testing.T) {
	for name, document := range map[string]string{
		"empty":       `{"keys":[]}`,
		"none usable": `{"keys":[{"kty":"oct","k":"c2VjcmV0"},{"kty":"unheard-of"}]}`,
		"cut off":     `{"keys":[{"kty":"EC",`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := newIssuer(t)
				broken := false
				client := &http.Client{Transport: roundTrip(func(r *http.Request) *http.Response {
					w := httptest.NewRecorder()
					if broken {
						_, _ = w.WriteString(document)
					} else {
						i.ServeHTTP(w, r)
					}
					return w.Result()
				})}
				v, err := oidckit.New(issuerURL, []string{"shop"}, oidckit.Config{
					Client: client, KeysURL: issuerURL + "/keys", KeysAge: 10 * time.Second, Logger: slog.New(slog.DiscardHandler),
				})
				if err != nil {
					t.Fatal(err)
				}
				token := i.token(nil)
				verify(t, v, token, nil)
				broken = true
				time.Sleep(10 * time.Second)
				verify(t, v, token, nil)
				synctest.Wait()
				verify(t, v, token, nil)
			})
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	i := newIssuer(b)
	token := i.token(nil)
	for name, remember := range map[string]int{"remembered": 0, "every time": -1} {
		b.Run(name, func(b *testing.B) {
			v := i.verifier(oidckit.Config{Remember: remember})
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// FuzzVerify: whatever comes, it is refused without a panic.
func FuzzVerify(f *testing.F) {
	i := newIssuer(f)
	v := i.verifier(oidckit.Config{})
	good := i.token(nil)
	parts := strings.Split(good, ".")
	f.Add(parts[0], parts[1], parts[2])
	f.Add(b64(`{"alg":"none"}`), parts[1], "")
	f.Add(b64(`{"alg":"ES256","kid":7}`), parts[1], parts[2])
	f.Add(b64(`{"alg":"ES256","crit":["b64"],"b64":false}`), parts[1], parts[2])
	f.Add(b64(`{"alg":"ES256","jwk":{"kty":"EC"},"x5c":["AA=="]}`), parts[1], parts[2])
	f.Fuzz(func(t *testing.T, header, payload, signature string) {
		raw := header + "." + payload + "." + signature
		if _, err := v.Verify(t.Context(), raw); err == nil && (header != parts[0] || payload != parts[1]) {
			t.Errorf("Verify(%q) = nil, want an error", raw)
		} else if err != nil && !errors.Is(err, oidckit.ErrInvalid) {
			t.Errorf("Verify(%q) = %v, want %v", raw, err, oidckit.ErrInvalid)
		}
	})
}
