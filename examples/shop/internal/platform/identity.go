// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"crypto/subtle"
	"errors"
	"net/http"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/oidckit"
)

// Audience is the audience of every token that the shop's issuer signs.
const Audience = "dovetail-shop"

// Roles that a token may carry.
const (
	RoleCustomer = "customer"
	RoleAdmin    = "admin"
	RoleOperator = "operator"
	// roleService is another service of the shop, never a person: no token carries it.
	roleService = "service"
)

// Identity is who makes a request.
type Identity struct {
	// Subject is the customer's ID; empty for a service.
	Subject string
	// Email is the customer's address when it signed in, if it was known.
	Email string
	// Role is one of the Role constants.
	Role string
}

// MaxEmail is the longest mail address in bytes, RFC 5321.
const MaxEmail = 254

type identityKey struct{}

// IdentityOf returns who makes the request with this context.
func IdentityOf(ctx context.Context) Identity {
	id, _ := ctx.Value(identityKey{}).(Identity)
	return id
}

// Who returns who makes a request, in the words that are kept of a decision: another service, or a person by address, which
// people know, and by account, which stays the same.
func Who(ctx context.Context) string {
	id := IdentityOf(ctx)
	switch {
	case id.Subject == "":
		return "service"
	case id.Email == "":
		return id.Subject
	}
	return id.Email + " (" + id.Subject + ")"
}

// Auth tells who makes a request: a person by a signed token of the shop's
// issuer, a service by the shared service token. Each service checks for itself; the gateway's
// word is not enough.
type Auth struct {
	verifier     *oidckit.Verifier
	serviceToken string
}

// NewAuth returns an Auth that fetches the issuer's keys through client when it
// first needs them, and again when an unknown key turns up.
func NewAuth(issuer, keysURL, serviceToken string, client *http.Client) (*Auth, error) {
	v, err := oidckit.New(issuer, []string{Audience}, oidckit.Config{Algorithms: []string{"ES256"}, KeysURL: keysURL, Client: client})
	return &Auth{v, serviceToken}, err
}

// Require admits a request only if its bearer has one of the roles. No role at all
// admits services only.
func (a *Auth) Require(next http.Handler, roles ...string) http.Handler {
	return Handle(func(w http.ResponseWriter, r *http.Request) error {
		id, err := a.identify(r)
		if err != nil {
			return NotIdentified(w, err)
		}
		allowed := id.Role == roleService
		for _, role := range roles {
			allowed = allowed || id.Role == role
		}
		if !allowed {
			return &Error{Status: http.StatusForbidden, Code: "forbidden", Detail: "this needs another role"}
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), identityKey{}, id)))
		return nil
	})
}

func (a *Auth) identify(r *http.Request) (Identity, error) {
	raw, err := oidckit.Bearer(r)
	if err != nil {
		return Identity{}, err
	}
	if subtle.ConstantTimeCompare([]byte(raw), []byte(a.serviceToken)) == 1 {
		return Identity{Role: roleService}, nil
	}
	token, err := a.verifier.Verify(r.Context(), raw)
	if err != nil {
		return Identity{}, err
	}
	var claims struct {
		Email string `json:"email"`
		Role  string `json:"role"`
	}
	if err := token.Claims(&claims); err != nil || claims.Role == roleService {
		return Identity{}, oidckit.ErrClaim
	}
	return Identity{Subject: token.Subject, Email: claims.Email, Role: claims.Role}, nil
}

// NotIdentified says why the bearer of a request was not let in, and challenges it where another token may help.
func NotIdentified(w http.ResponseWriter, err error) error {
	if c := oidckit.Challenge("shop", err); c != "" {
		w.Header().Set("WWW-Authenticate", c)
	}
	switch {
	case errors.Is(err, oidckit.ErrNoToken), errors.Is(err, oidckit.ErrRequest):
		return &Error{Status: http.StatusUnauthorized, Code: "not-signed-in", Detail: "want Authorization: Bearer and a token from POST /api/sessions"}
	case errors.Is(err, oidckit.ErrInvalid):
		return &Error{Status: http.StatusUnauthorized, Code: "bad-token", Detail: "the token is not valid, or no longer; sign in again"}
	}
	after := max(fault.Judge(context.Background(), err).After, time.Second)
	return &Error{Status: http.StatusServiceUnavailable, Code: "unavailable", Detail: "tokens cannot be checked at present; please try again", RetryAfter: after, Err: err}
}
