// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package oidckit

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/gateway"
)

var (
	// ErrNoToken says that a request has no bearer token.
	ErrNoToken = errors.New("oidckit: no bearer token")
	// ErrRequest says that the way a request carries its token is not RFC 6750's.
	ErrRequest = errors.New("oidckit: malformed Authorization header")
	// ErrScope says that the token is valid, but permits too little.
	ErrScope = errors.New("oidckit: insufficient scope")
)

// Bearer returns the token of the request's Authorization header, unverified, or [ErrNoToken],
// or [ErrRequest].
func Bearer(r *http.Request) (string, error) {
	values := r.Header["Authorization"]
	switch {
	case len(values) == 0:
		return "", ErrNoToken
	case len(values) > 1: // two readers could take different ones
		return "", fmt.Errorf("%w: more than one", ErrRequest)
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", ErrNoToken
	}
	token = strings.Trim(token, " ")
	body := strings.TrimRight(token, "=")
	if body == "" {
		return "", fmt.Errorf("%w: no token", ErrRequest)
	}
	for _, c := range []byte(body) { // token68, RFC 9110, section 11.2
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~+/", c) >= 0:
		default:
			return "", fmt.Errorf("%w: no token", ErrRequest)
		}
	}
	return token, nil
}

// MiddlewareConfig configures a [Middleware]. The zero MiddlewareConfig is a sound default.
type MiddlewareConfig struct {
	// Realm names what is protected, in WWW-Authenticate. Empty leaves it out.
	Realm string
	// Scopes are what a token has to permit, all of them; or it is 403.
	Scopes []string
	// Optional lets requests without a token pass, without claims. One with a bad token does
	// not.
	Optional bool
	// Refuse answers a request that does not pass: p says with what, err why, and
	// WWW-Authenticate is set already. Nil means gateway.WriteProblem(w, p).
	Refuse func(w http.ResponseWriter, r *http.Request, p gateway.Problem, err error)
}

// Middleware returns a middleware that lets requests pass whose bearer token v accepts and whose
// claims decode into a C. What they say is in the request's context, see [ClaimsOf] and
// [TokenOf].
//
// The answers to others are problem details as package gateway writes them, with WWW-Authenticate
// by RFC 6750: 400 for a malformed header, 401 without a valid token, 403 for one that permits too
// little; 503 with Retry-After when the issuer's keys cannot be had.
func Middleware[C any](v *Verifier, cfg MiddlewareConfig) (func(http.Handler) http.Handler, error) {
	if v == nil {
		return nil, errors.New("oidckit: verifier is nil, want one")
	}
	if !quotable(cfg.Realm) {
		return nil, fmt.Errorf("oidckit: MiddlewareConfig.Realm is %q, want printable ASCII without quotes and backslashes", cfg.Realm)
	}
	for i, s := range cfg.Scopes {
		if s == "" || !quotable(s) || strings.Contains(s, " ") {
			return nil, fmt.Errorf("oidckit: MiddlewareConfig.Scopes[%d] is %q, want the name of a scope", i, s)
		}
	}
	if cfg.Refuse == nil {
		cfg.Refuse = func(w http.ResponseWriter, _ *http.Request, p gateway.Problem, _ error) { gateway.WriteProblem(w, p) }
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a, err := admit[C](v, &cfg, r)
			switch {
			case err == nil:
				next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), admitted{}, a)))
			case cfg.Optional && errors.Is(err, ErrNoToken):
				next.ServeHTTP(w, r)
			default:
				if c := Challenge(cfg.Realm, err, cfg.Scopes...); c != "" {
					w.Header().Set("WWW-Authenticate", c)
				}
				cfg.Refuse(w, r, ProblemOf(r.Context(), err), err)
			}
		})
	}, nil
}

// admitted is the key, and admission the value, of what the context says.
type (
	admitted  struct{}
	admission struct {
		token  *Token
		claims any
	}
)

func admit[C any](v *Verifier, cfg *MiddlewareConfig, r *http.Request) (*admission, error) {
	raw, err := Bearer(r)
	if err != nil {
		return nil, err
	}
	t, err := v.Verify(r.Context(), raw)
	if err != nil {
		return nil, err
	}
	claims, err := claimsOf[C](t)
	if err != nil {
		return nil, ErrClaim // the error may quote the claims
	}
	for _, scope := range cfg.Scopes {
		if !t.HasScope(scope) {
			return nil, ErrScope
		}
	}
	return &admission{t, claims}, nil
}

// ClaimsOf returns the claims that [Middleware] found, and false if there are none, or of another
// type. They may be shared by requests of the same token: do not change what they point to.
func ClaimsOf[C any](ctx context.Context) (C, bool) {
	var none C
	a, ok := ctx.Value(admitted{}).(*admission)
	if !ok {
		return none, false
	}
	c, ok := a.claims.(C)
	return c, ok
}

// TokenOf returns the token that [Middleware] found, and false if there is none.
func TokenOf(ctx context.Context) (*Token, bool) {
	a, ok := ctx.Value(admitted{}).(*admission)
	if !ok {
		return nil, false
	}
	return a.token, true
}

// Challenge returns the value of WWW-Authenticate (RFC 6750, section 3) for an error of [Bearer],
// [Verifier.Verify] or [ErrScope]; empty where the error is not about the request.
func Challenge(realm string, err error, scopes ...string) string {
	var code, description string
	switch {
	case errors.Is(err, ErrNoToken): // no code: the client may just not have known
	case errors.Is(err, ErrRequest):
		code, description = "invalid_request", "want one bearer token"
	case errors.Is(err, ErrScope):
		code, description = "insufficient_scope", "the token permits too little"
	case errors.Is(err, ErrExpired):
		code, description = "invalid_token", "the token has expired"
	case errors.Is(err, ErrInvalid):
		code, description = "invalid_token", "the token is not valid"
	default:
		return ""
	}
	var params []string
	add := func(name, value string) {
		if value != "" {
			params = append(params, name+`="`+value+`"`)
		}
	}
	add("realm", realm)
	add("error", code)
	add("error_description", description)
	if code == "" || code == "insufficient_scope" {
		add("scope", strings.Join(scopes, " "))
	}
	return strings.TrimSpace("Bearer " + strings.Join(params, ", "))
}

// ProblemOf returns what to answer for an error of [Bearer], [Verifier.Verify] or [ErrScope]; ctx
// is the request's.
func ProblemOf(ctx context.Context, err error) gateway.Problem {
	switch {
	case errors.Is(err, ErrNoToken):
		return gateway.Problem{Status: http.StatusUnauthorized, Detail: "a bearer token is wanted"}
	case errors.Is(err, ErrRequest):
		return gateway.Problem{Status: http.StatusBadRequest, Detail: "the Authorization header is malformed"}
	case errors.Is(err, ErrScope):
		return gateway.Problem{Status: http.StatusForbidden, Detail: "the token permits too little"}
	case errors.Is(err, ErrExpired):
		return gateway.Problem{Status: http.StatusUnauthorized, Detail: "the token has expired"}
	case errors.Is(err, ErrInvalid):
		return gateway.Problem{Status: http.StatusUnauthorized, Detail: "the token is not valid"}
	case errors.Is(err, ErrKeys):
		after := fault.Judge(context.WithoutCancel(ctx), err).After
		return gateway.Problem{Status: http.StatusServiceUnavailable, Detail: "tokens cannot be verified at present", RetryAfter: after}
	}
	return gateway.ProblemOf(ctx, "issuer", err)
}

// quotable reports whether s may stand between quotes as it is.
func quotable(s string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }) < 0
}
