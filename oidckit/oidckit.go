// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package oidckit

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

// ErrInvalid is what every error unwraps to that says: this token is not accepted. The errors
// below say why.
var ErrInvalid = errors.New("oidckit: token is not valid")

var (
	// ErrMalformed says that it is no signed JWT in compact form, or too long.
	ErrMalformed = fmt.Errorf("%w: malformed", ErrInvalid)
	// ErrAlgorithm says that its algorithm is not in Config.Algorithms.
	ErrAlgorithm = fmt.Errorf("%w: algorithm not allowed", ErrInvalid)
	// ErrType says that its type is not in Config.Types.
	ErrType = fmt.Errorf("%w: type not allowed", ErrInvalid)
	// ErrUnknownKey says that the issuer has no such key for the algorithm.
	ErrUnknownKey = fmt.Errorf("%w: unknown key", ErrInvalid)
	// ErrSignature says that the signature is not the key's.
	ErrSignature = fmt.Errorf("%w: wrong signature", ErrInvalid)
	// ErrIssuer says that another issuer is named.
	ErrIssuer = fmt.Errorf("%w: wrong issuer", ErrInvalid)
	// ErrAudience says that the token is for somebody else.
	ErrAudience = fmt.Errorf("%w: wrong audience", ErrInvalid)
	// ErrExpired says that the token has expired, or does not say when it will.
	ErrExpired = fmt.Errorf("%w: expired", ErrInvalid)
	// ErrNotYetValid says that the token is from the future.
	ErrNotYetValid = fmt.Errorf("%w: not yet valid", ErrInvalid)
	// ErrClaim says that a claim of Config.Require is missing or another.
	ErrClaim = fmt.Errorf("%w: wrong claim", ErrInvalid)
)

// ErrKeys says that it is not known whether the token is valid: the issuer's keys are not known,
// and the issuer cannot be asked. It carries when to come back, see package fault.
var ErrKeys = errors.New("oidckit: the issuer's keys are not known")

// asymmetric are the algorithms that may be configured: those with which the holder of the
// public key cannot sign.
var asymmetric = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// Config configures a [Verifier]. The zero Config is a sound default.
type Config struct {
	// Algorithms are the signature algorithms that are accepted, by their names in JWA
	// (RFC 7518). Nil means RS256, PS256, ES256 and EdDSA.
	Algorithms []string
	// KeysURL is where the issuer's keys are. Empty means what the issuer's discovery
	// document says (OpenID Connect Discovery 1.0, section 4).
	KeysURL string
	// Client asks the issuer. Nil means a client of its own.
	Client *http.Client
	// Timeout bounds one fetch of the keys, discovery included. Zero means 10 seconds.
	Timeout time.Duration
	// KeysAge is the age at which keys are fetched again, behind the back of the request that
	// notices. Zero means 10 minutes.
	KeysAge time.Duration
	// KeysMinAge is the age before which keys are not fetched again, whatever keys
	// tokens name. Zero means 10 seconds.
	KeysMinAge time.Duration
	// KeysMaxAge is the age up to which keys are used when they cannot be fetched again. Zero
	// means 24 hours, negative for ever.
	KeysMaxAge time.Duration
	// Leeway is how far the clocks of issuer and verifier may be apart. Zero means 30
	// seconds, negative none.
	Leeway time.Duration
	// ClientID accepts the claim client_id in place of an audience that is missing.
	ClientID bool
	// Types are the values of the header typ that are accepted, in any case, without
	// "application/": "at+jwt" for access tokens of RFC 9068. Nil means any, or none.
	Types []string
	// Require are claims that have to be there. The value has to be one of those listed, or any if none
	// is; of an array claim, one element has to.
	Require map[string][]string
	// MaxToken is the longest token in bytes. Zero means 16 KiB.
	MaxToken int
	// Remember is how many verified tokens are remembered. Zero means 4096, negative none.
	Remember int
	// Logger receives fetches of keys that failed. Nil means slog.Default().
	Logger *slog.Logger
}

// Verifier verifies the tokens of one issuer. It is safe for concurrent use.
type Verifier struct {
	issuer     string
	audience   []string
	cfg        Config
	algorithms []jose.SignatureAlgorithm
	keys       keySet
	verified   cache
}

// New returns a verifier of tokens that the issuer, a URL, made for one of the audience. It asks
// the issuer when the first token comes; see [Verifier.Ready].
func New(issuer string, audience []string, cfg Config) (*Verifier, error) {
	if err := checkURL("issuer", issuer); err != nil {
		return nil, err
	}
	if len(audience) == 0 || slices.Contains(audience, "") {
		return nil, fmt.Errorf("oidckit: audience is %q, want one name or more", audience)
	}
	if cfg.KeysURL != "" {
		if err := checkURL("Config.KeysURL", cfg.KeysURL); err != nil {
			return nil, err
		}
	}
	if cfg.Algorithms == nil {
		cfg.Algorithms = []string{"RS256", "PS256", "ES256", "EdDSA"}
	}
	v := &Verifier{issuer: issuer, audience: slices.Clone(audience)}
	for _, alg := range cfg.Algorithms {
		if !slices.Contains(asymmetric, alg) {
			return nil, fmt.Errorf("oidckit: Config.Algorithms has %q, want some of %s", alg, strings.Join(asymmetric, ", "))
		}
		v.algorithms = append(v.algorithms, jose.SignatureAlgorithm(alg))
	}
	if len(v.algorithms) == 0 {
		return nil, errors.New("oidckit: Config.Algorithms is empty, want nil or some")
	}
	for _, f := range []struct {
		name string
		got  time.Duration
	}{{"Timeout", cfg.Timeout}, {"KeysAge", cfg.KeysAge}, {"KeysMinAge", cfg.KeysMinAge}} {
		if f.got < 0 {
			return nil, fmt.Errorf("oidckit: Config.%s is %v, want 0 or more", f.name, f.got)
		}
	}
	if cfg.MaxToken < 0 {
		return nil, fmt.Errorf("oidckit: Config.MaxToken is %d, want 0 or more", cfg.MaxToken)
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, 10*time.Second)
	cfg.KeysAge = cmp.Or(cfg.KeysAge, 10*time.Minute)
	cfg.KeysMinAge = cmp.Or(cfg.KeysMinAge, 10*time.Second)
	if cfg.KeysMaxAge = cmp.Or(cfg.KeysMaxAge, 24*time.Hour); cfg.KeysMaxAge < 0 {
		cfg.KeysMaxAge = math.MaxInt64
	}
	if cfg.KeysMinAge > cfg.KeysAge || cfg.KeysAge > cfg.KeysMaxAge {
		return nil, fmt.Errorf("oidckit: Config.KeysMinAge, KeysAge and KeysMaxAge are %v, %v and %v, want them to ascend", cfg.KeysMinAge, cfg.KeysAge, cfg.KeysMaxAge)
	}
	cfg.Leeway = max(cmp.Or(cfg.Leeway, 30*time.Second), 0)
	cfg.MaxToken = cmp.Or(cfg.MaxToken, 16<<10)
	cfg.Client = cmp.Or(cfg.Client, &http.Client{})
	v.cfg = cfg
	v.keys = keySet{issuer: issuer, cfg: &v.cfg}
	v.verified.most = cmp.Or(cfg.Remember, 4096)
	return v, nil
}

func checkURL(what, text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Fragment != "" {
		return fmt.Errorf("oidckit: %s is %q, want a URL with https", what, text)
	}
	return nil
}

// Ready returns nil if the issuer's keys are known, after fetching them if need be: a check for
// package health, and a way to fetch them before the first request comes.
func (v *Verifier) Ready(ctx context.Context) error {
	_, err := v.keys.current(ctx)
	return err
}

// Discovery decodes the issuer's discovery document (OpenID Connect Discovery 1.0, section 3) into out as
// encoding/json would, but for names, which have to match in case too: it says where people sign in and where a code is
// exchanged. The document is as old as the keys; it is fetched with them, and fails with them. Its URLs are the issuer's
// word: only its issuer and its jwks_uri are checked. With Config.KeysURL there is none.
func (v *Verifier) Discovery(ctx context.Context, out any) error {
	if v.cfg.KeysURL != "" {
		return errors.New("oidckit: Config.KeysURL is set, want it empty for discovery")
	}
	document, err := v.keys.document(ctx)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(document, out); err != nil {
		return fmt.Errorf("oidckit: discovery document: %w", err)
	}
	return nil
}

// Verify returns what the token says, or an error that unwraps to [ErrInvalid], [ErrKeys], or
// the end of ctx. The Token is shared: it must not be changed.
func (v *Verifier) Verify(ctx context.Context, raw string) (*Token, error) {
	if len(raw) > v.cfg.MaxToken {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrMalformed, v.cfg.MaxToken)
	}
	keys, err := v.keys.current(ctx)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256([]byte(raw))
	t := v.verified.get(id, keys)
	if t == nil {
		if t, keys, err = v.decode(ctx, raw, keys); err != nil {
			return nil, err
		}
		if err := v.check(t); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	switch {
	case t.Expiry.IsZero():
		return nil, fmt.Errorf("%w: no exp", ErrExpired)
	case !now.Before(t.Expiry.Add(v.cfg.Leeway)):
		return nil, ErrExpired
	case now.Add(v.cfg.Leeway).Before(t.NotBefore), now.Add(v.cfg.Leeway).Before(t.IssuedAt):
		return nil, ErrNotYetValid
	}
	v.verified.put(id, keys, t)
	return t, nil
}

// decode returns the token if its signature is the issuer's, and the keys that said so.
func (v *Verifier) decode(ctx context.Context, raw string, keys *keys) (*Token, *keys, error) {
	jws, err := jose.ParseSignedCompact(raw, v.algorithms)
	if err != nil {
		// The library's error is left out: it may quote the token.
		if _, ok := errors.AsType[*jose.ErrUnexpectedSignatureAlgorithm](err); ok {
			return nil, nil, ErrAlgorithm
		}
		return nil, nil, ErrMalformed
	}
	head := jws.Signatures[0].Protected
	if _, ok := head.ExtraHeaders["crit"]; ok {
		return nil, nil, fmt.Errorf("%w: critical header", ErrMalformed) // we know of none (RFC 7515, section 4.1.11)
	}
	if !v.allowsType(head.ExtraHeaders[jose.HeaderType]) {
		return nil, nil, ErrType
	}
	payload, err := keys.verify(jws)
	if errors.Is(err, ErrUnknownKey) || err != nil && head.KeyID == "" {
		// A key that is new, or the new one of an issuer whose keys have no names.
		fresher, fetchErr := v.keys.fresher(ctx, keys)
		if fetchErr != nil {
			return nil, nil, fetchErr
		}
		if fresher != keys {
			keys = fresher
			payload, err = keys.verify(jws)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	t, err := newToken(payload)
	return t, keys, err
}

func (v *Verifier) allowsType(typ any) bool {
	if v.cfg.Types == nil {
		return true
	}
	name, _ := typ.(string)
	if len(name) > len("application/") && strings.EqualFold(name[:len("application/")], "application/") {
		name = name[len("application/"):] // RFC 7515, section 4.1.9
	}
	return slices.ContainsFunc(v.cfg.Types, func(allowed string) bool { return strings.EqualFold(name, allowed) })
}

// check checks what does not depend on the time.
func (v *Verifier) check(t *Token) error {
	if t.Issuer != v.issuer {
		return ErrIssuer
	}
	audience := t.Audience
	if len(audience) == 0 && v.cfg.ClientID && t.ClientID != "" {
		audience = []string{t.ClientID}
	}
	if !slices.ContainsFunc(audience, func(name string) bool { return slices.Contains(v.audience, name) }) {
		return ErrAudience
	}
	for name, allowed := range v.cfg.Require {
		if !t.has(name, allowed) {
			return fmt.Errorf("%w: %s", ErrClaim, name)
		}
	}
	return nil
}
