// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package oidckit

import (
	"crypto/sha256"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4/json"
)

// Token is what a verified token says. It may be shared by many requests and must not be changed.
type Token struct {
	// Issuer and Subject are who speaks, and of whom. A subject is unique within its issuer.
	Issuer  string
	Subject string
	// Audience is for whom the token was made.
	Audience []string
	// ID is the token's own, or empty.
	ID string
	// ClientID is the program that asked for the token: client_id, else azp; or empty.
	ClientID string
	// Scopes are what the token permits: the claim scope, else scp.
	Scopes []string
	// Expiry is when the token ends. IssuedAt and NotBefore may be zero.
	Expiry, IssuedAt, NotBefore time.Time

	payload []byte
	typed   atomic.Pointer[any] // the claims in the type asked for last
}

// Claims decodes all claims into v as encoding/json would, but for names, which have to match in
// case too: a claim "SUB" is not the subject.
func (t *Token) Claims(v any) error {
	if err := json.Unmarshal(t.payload, v); err != nil {
		return fmt.Errorf("oidckit: claims: %w", err)
	}
	return nil
}

// claimsOf is Claims, decoded once for many requests.
func claimsOf[C any](t *Token) (C, error) {
	if v := t.typed.Load(); v != nil {
		if c, ok := (*v).(C); ok {
			return c, nil
		}
	}
	var c C
	if err := t.Claims(&c); err != nil {
		return c, err
	}
	var v any = c
	t.typed.Store(&v)
	return c, nil
}

// HasScope reports whether the token permits the scope.
func (t *Token) HasScope(scope string) bool { return slices.Contains(t.Scopes, scope) }

// has reports whether the claim is there with one of the values, or with any if there are none.
func (t *Token) has(name string, allowed []string) bool {
	var all map[string]any
	if json.Unmarshal(t.payload, &all) != nil {
		return false
	}
	value := all[name]
	if len(allowed) == 0 {
		return value != nil
	}
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	return slices.ContainsFunc(list, func(v any) bool {
		switch v := v.(type) {
		case string:
			return slices.Contains(allowed, v)
		case bool, float64:
			return slices.Contains(allowed, fmt.Sprint(v))
		}
		return false
	})
}

// newToken decodes a payload whose signature was verified.
func newToken(payload []byte) (*Token, error) {
	var c struct {
		Issuer   string      `json:"iss"`
		Subject  string      `json:"sub"`
		Audience list        `json:"aud"`
		ID       string      `json:"jti"`
		ClientID string      `json:"client_id"`
		Party    string      `json:"azp"`
		Scope    list        `json:"scope"`
		Scp      list        `json:"scp"`
		Expiry   numericDate `json:"exp"`
		Issued   numericDate `json:"iat"`
		Before   numericDate `json:"nbf"`
	}
	// The library's json refuses a name that is there twice, of which two readers could take
	// different ones.
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, fmt.Errorf("%w: claims", ErrMalformed)
	}
	t := &Token{
		Issuer: c.Issuer, Subject: c.Subject, Audience: c.Audience, ID: c.ID, ClientID: c.ClientID,
		Expiry: time.Time(c.Expiry), IssuedAt: time.Time(c.Issued), NotBefore: time.Time(c.Before),
		payload: payload,
	}
	if t.ClientID == "" {
		t.ClientID = c.Party
	}
	if c.Scope == nil {
		c.Scope = c.Scp
	}
	for _, s := range c.Scope {
		t.Scopes = append(t.Scopes, strings.Fields(s)...)
	}
	return t, nil
}

// list is a string, or an array of them.
type list []string

// UnmarshalJSON implements json.Unmarshaler.
func (l *list) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return json.Unmarshal(b, (*[]string)(l))
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	*l = list{s}
	return nil
}

// numericDate is a number of seconds since 1970, perhaps with a fraction (RFC 7519, section 2).
type numericDate time.Time

// UnmarshalJSON implements json.Unmarshaler.
func (d *numericDate) UnmarshalJSON(b []byte) error {
	var seconds float64
	if err := json.Unmarshal(b, &seconds); err != nil {
		return err
	}
	if string(b) == "null" {
		return nil
	}
	// Up to the year 9999: what is later overflows somewhere.
	if !(seconds >= 0 && seconds < 253402300800) {
		return fmt.Errorf("%v is no date", seconds)
	}
	whole, fraction := math.Modf(seconds)
	*d = numericDate(time.Unix(int64(whole), int64(fraction*1e9)))
	return nil
}

// cache remembers tokens that were verified. It forgets what was not used lately.
type cache struct {
	most int

	mu          sync.Mutex
	young, aged map[[sha256.Size]byte]remembered // together at most most
}

// remembered is a token and the keys by which it was verified: with others it is forgotten.
type remembered struct {
	token *Token
	keys  *keys
}

func (c *cache) get(id [sha256.Size]byte, keys *keys) *Token {
	if c.most <= 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.young[id]
	if !ok {
		r = c.aged[id]
	}
	if r.keys != keys {
		return nil
	}
	return r.token
}

func (c *cache) put(id [sha256.Size]byte, keys *keys, t *Token) {
	if c.most <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.young[id]; ok && r.keys == keys {
		return
	}
	if half := (c.most + 1) / 2; len(c.young) >= half {
		c.aged, c.young = c.young, nil
	}
	if c.young == nil {
		c.young = map[[sha256.Size]byte]remembered{}
	}
	c.young[id] = remembered{t, keys}
}
