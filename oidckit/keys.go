// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package oidckit

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/dovetail-go/dovetail/fault"
)

// keys is one set of the issuer's keys. It never changes.
type keys struct {
	document []byte
	list     []jose.JSONWebKey
}

// verify returns the payload if one of the keys made the signature.
func (k *keys) verify(jws *jose.JSONWebSignature) ([]byte, error) {
	head := jws.Signatures[0].Protected
	err := ErrUnknownKey
	tried := 0
	for i := range k.list {
		key := &k.list[i]
		if head.KeyID != "" && key.KeyID != head.KeyID || !fits(key, head.Algorithm) {
			continue
		}
		if tried++; tried > 4 {
			break // a token without a key ID must not make us try dozens
		}
		payload, verifyErr := jws.Verify(key.Key)
		if verifyErr == nil {
			return payload, nil
		}
		err = ErrSignature
	}
	return nil, err
}

// fits reports whether the key is one for the algorithm.
func fits(key *jose.JSONWebKey, alg string) bool {
	if key.Algorithm != "" && key.Algorithm != alg {
		return false
	}
	switch k := key.Key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")
	case *ecdsa.PublicKey:
		bits := map[string]int{"ES256": 256, "ES384": 384, "ES512": 521}[alg]
		return k.Curve.Params().BitSize == bits
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

// parseKeys returns the public signature keys of a JWK set. Others are left out: an issuer may
// well have keys that we do not understand.
func parseKeys(document []byte) (*keys, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(document, &set); err != nil {
		return nil, errors.New("no JWK set")
	}
	k := &keys{document: document}
	for _, text := range set.Keys {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(text) != nil || !key.Valid() || key.Use != "" && key.Use != "sig" {
			continue
		}
		switch public := key.Key.(type) {
		case *rsa.PublicKey:
			if public.N.BitLen() < 2048 { // RFC 7518, section 3.3
				continue
			}
		case *ecdsa.PublicKey, ed25519.PublicKey:
		default: // a private key or a shared secret has no business here
			continue
		}
		k.list = append(k.list, key)
	}
	if len(k.list) == 0 {
		return nil, errors.New("no key for signatures in the JWK set")
	}
	return k, nil
}

// keySet is the issuer's keys as they change.
type keySet struct {
	issuer string
	cfg    *Config

	mu        sync.Mutex
	keys      *keys
	discovery []byte    // the document that came with them
	at        time.Time // when both were fetched
	flight    chan struct{}
	next      time.Time // no fetch before
	failures  int       // in a row
	err       error     // of the last fetch
}

// current returns the keys. It waits for the issuer only if there are none that may be used.
func (s *keySet) current(ctx context.Context) (*keys, error) {
	s.mu.Lock()
	age := time.Since(s.at)
	usable := s.keys != nil && age < s.cfg.KeysMaxAge
	if usable {
		if age >= s.cfg.KeysAge {
			s.fetch()
		}
		defer s.mu.Unlock()
		return s.keys, nil
	}
	flight := s.fetch()
	s.mu.Unlock()
	if err := wait(ctx, flight); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys != nil && time.Since(s.at) < s.cfg.KeysMaxAge {
		return s.keys, nil
	}
	return nil, s.unknown()
}

// document returns the discovery document that came with the newest keys.
func (s *keySet) document(ctx context.Context) ([]byte, error) {
	if _, err := s.current(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.discovery, nil
}

// fresher returns keys that are newer than those given, or those if there are none or it is not time
// yet to ask for them.
func (s *keySet) fresher(ctx context.Context, than *keys) (*keys, error) {
	s.mu.Lock()
	if s.keys != than {
		defer s.mu.Unlock()
		return s.keys, nil
	}
	flight := s.fetch()
	s.mu.Unlock()
	if err := wait(ctx, flight); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failures > 0 {
		// The key may be new. To call the token invalid would sign somebody out for an
		// outage of the issuer.
		return nil, s.unknown()
	}
	return s.keys, nil
}

// unknown is the error while the issuer cannot be asked. The mutex is held.
func (s *keySet) unknown() error {
	return fault.RetryAfter(fmt.Errorf("%w: %w", ErrKeys, s.err), max(time.Until(s.next), time.Second))
}

func wait(ctx context.Context, flight <-chan struct{}) error {
	if flight == nil {
		return nil
	}
	select {
	case <-flight:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("oidckit: keys: %w", fault.Ended(ctx))
	}
}

// fetch starts a fetch unless it is too early for one, and returns the end of the one that is
// under way, or nil. The mutex is held.
func (s *keySet) fetch() <-chan struct{} {
	if s.flight != nil || time.Now().Before(s.next) {
		return s.flight
	}
	flight := make(chan struct{})
	s.flight = flight
	go func() { // on its own, since it is for all who wait, not for the first of them
		ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Timeout)
		defer cancel()
		began := time.Now()
		fetched, discovery, err := s.load(ctx)
		if err != nil {
			cmp.Or(s.cfg.Logger, slog.Default()).WarnContext(ctx, "keys of the issuer could not be fetched", "issuer", s.issuer, "error", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.flight, s.err = nil, err
		if err == nil {
			s.failures, s.at, s.discovery = 0, began, discovery
			s.next = began.Add(s.cfg.KeysMinAge)
			if s.keys == nil || !bytes.Equal(s.keys.document, fetched.document) {
				s.keys = fetched // the same object stands for the same keys
			}
		} else {
			s.failures++
			s.next = time.Now().Add(min(time.Second<<min(s.failures-1, 6), time.Minute))
		}
		close(flight)
	}()
	return flight
}

// load fetches the keys, after the discovery document unless it is configured where they are.
func (s *keySet) load(ctx context.Context) (k *keys, discovery []byte, err error) {
	from := s.cfg.KeysURL
	if from == "" {
		discovery, err = s.get(ctx, strings.TrimSuffix(s.issuer, "/")+"/.well-known/openid-configuration")
		if err != nil {
			return nil, nil, err
		}
		var d struct {
			Issuer string `json:"issuer"`
			Keys   string `json:"jwks_uri"`
		}
		if err := json.Unmarshal(discovery, &d); err != nil {
			return nil, nil, errors.New("the discovery document is no JSON")
		}
		if d.Issuer != s.issuer { // or it would be another's keys
			return nil, nil, fmt.Errorf("the discovery document is of issuer %.200q, want %q", d.Issuer, s.issuer)
		}
		if err := checkURL("jwks_uri", d.Keys); err != nil {
			return nil, nil, err
		}
		if strings.HasPrefix(s.issuer, "https:") && !strings.HasPrefix(d.Keys, "https:") {
			return nil, nil, fmt.Errorf("jwks_uri is %.200q, want https as of the issuer", d.Keys)
		}
		from = d.Keys
	}
	document, err := s.get(ctx, from)
	if err != nil {
		return nil, nil, err
	}
	if k, err = parseKeys(document); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", from, err)
	}
	return k, discovery, nil
}

// maxDocument bounds what is read from the issuer, in bytes.
const maxDocument = 1 << 20

func (s *keySet) get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := s.cfg.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: status %d, want 200", url, resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	if len(body) > maxDocument {
		return nil, fmt.Errorf("%s: longer than %d bytes", url, maxDocument)
	}
	return body, nil
}
