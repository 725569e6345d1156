// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/mail"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/dovetail-go/dovetail/oidckit"
)

// Algorithms are those that another issuer may sign with.
var Algorithms = []string{"RS256", "PS256", "ES256", "EdDSA"}

// signatures are the same, as they are read.
var signatures = func() (list []jose.SignatureAlgorithm) {
	for _, name := range Algorithms {
		list = append(list, jose.SignatureAlgorithm(name))
	}
	return list
}()

// IssuerConfig names an OpenID Connect issuer whose people may use the shop, such as a user pool of Amazon
// Cognito. The zero value names none.
type IssuerConfig struct {
	// URL is the issuer, as in the claim iss of its tokens.
	URL string
	// Name is what people know it by. Empty means the host of URL.
	Name string
	// ClientID is the shop's there. ClientSecret is empty for a public client.
	ClientID, ClientSecret string
	// Audience are for whom access tokens may be made that the API accepts, as aud or, where that is missing, as
	// client_id. Nil means ClientID.
	Audience []string
	// Scopes are asked for at sign-in. Nil means openid, email and profile.
	Scopes []string
	// RolesClaim is the claim of a person's groups, a name or a list of them. Empty means groups.
	RolesClaim string
	// Roles tells which group has which role; the first that fits counts. Others are customers.
	Roles []GroupRole
}

// GroupRole is the role of a group's members.
type GroupRole struct{ Group, Role string }

// Issuer verifies what another issuer says of people. It is safe for concurrent use.
type Issuer struct {
	IssuerConfig
	// Client asks the issuer. It follows no redirects: they could lead secrets elsewhere.
	Client     *http.Client
	access, id *oidckit.Verifier
}

// NewIssuer returns the issuer of a configuration, nil if that names none. It is asked when somebody comes, so the
// shop opens without it.
func NewIssuer(cfg IssuerConfig, log *slog.Logger) (*Issuer, error) {
	if cfg.URL == "" {
		return nil, nil
	}
	if cfg.Name == "" {
		_, rest, _ := strings.Cut(cfg.URL, "://")
		cfg.Name, _, _ = strings.Cut(rest, "/")
	}
	if cfg.Audience == nil {
		cfg.Audience = []string{cfg.ClientID}
	}
	if cfg.Scopes == nil {
		cfg.Scopes = []string{"openid", "email", "profile"}
	}
	if cfg.RolesClaim == "" {
		cfg.RolesClaim = "groups"
	}
	client := &http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	i := &Issuer{IssuerConfig: cfg, Client: client}
	var err error
	if i.access, err = oidckit.New(cfg.URL, cfg.Audience, oidckit.Config{Algorithms: Algorithms, ClientID: true, Client: client, Logger: log}); err != nil {
		return nil, err
	}
	i.id, err = oidckit.New(cfg.URL, []string{cfg.ClientID}, oidckit.Config{Algorithms: Algorithms, Client: client, Logger: log})
	return i, err
}

// Person is somebody as the issuer knows them. Subject stays the same for ever; everything else may change.
type Person struct {
	Subject string
	// Name and Email may be empty. An Email is one that the issuer has verified.
	Name, Email string
	// Username is what the issuer calls them, for want of a name. It is empty where that is the Subject once more, as in
	// Cognito's pools whose people sign in by their address.
	Username string
	Role     string
	// Expiry is when the token ends that says so.
	Expiry time.Time
}

// claims are those of access tokens, ID tokens and answers of userinfo that the shop looks at.
type claims struct {
	Subject           string `json:"sub"`
	Name              string `json:"name"`
	PreferredUsername string `json:"preferred_username"`
	CognitoUsername   string `json:"cognito:username"`
	Username          string `json:"username"`
	Email             string `json:"email"`
	EmailVerified     any    `json:"email_verified"` // Cognito's userinfo says "true"
	Nonce             string `json:"nonce"`
	AuthorizedParty   string `json:"azp"`
	TokenUse          string `json:"token_use"` // Cognito
	Type              string `json:"typ"`       // Keycloak
	AccessTokenHash   string `json:"at_hash"`
}

// Issued reports whether a token says of itself that it is the issuer's: that decides who is asked
// about it, and nothing else.
func (i *Issuer) Issued(raw string) bool {
	if i == nil {
		return false
	}
	token, err := jwt.ParseSigned(raw, signatures)
	if err != nil {
		return false
	}
	var said jwt.Claims
	return token.UnsafeClaimsWithoutVerification(&said) == nil && said.Issuer == i.URL
}

// Access returns whose access token it is. An ID token is none, though it has the same issuer and may have the
// same audience: it was made for the shop to read, and not to be sent around.
func (i *Issuer) Access(ctx context.Context, raw string) (Person, error) {
	token, err := i.access.Verify(ctx, raw)
	if err != nil {
		return Person{}, err
	}
	p, c, err := i.person(token)
	if err != nil {
		return Person{}, err
	}
	if c.TokenUse != "" && c.TokenUse != "access" || c.Type == "ID" || c.Nonce != "" || c.AccessTokenHash != "" {
		return Person{}, fmt.Errorf("%w: an ID token is no access token", oidckit.ErrClaim)
	}
	return p, nil
}

// ID returns whose ID token it is, if it answers the sign-in with this nonce.
func (i *Issuer) ID(ctx context.Context, raw, nonce string) (Person, error) {
	token, err := i.id.Verify(ctx, raw)
	if err != nil {
		return Person{}, err
	}
	p, c, err := i.person(token)
	switch {
	case err != nil:
		return Person{}, err
	case nonce == "" || c.Nonce != nonce:
		return Person{}, fmt.Errorf("%w: nonce", oidckit.ErrClaim)
	case c.TokenUse != "" && c.TokenUse != "id":
		return Person{}, fmt.Errorf("%w: token_use", oidckit.ErrClaim)
	case c.AuthorizedParty != "" && c.AuthorizedParty != i.ClientID, c.AuthorizedParty == "" && len(token.Audience) > 1:
		return Person{}, fmt.Errorf("%w: azp", oidckit.ErrClaim) // OpenID Connect Core 1.0, section 3.1.3.7
	}
	return p, nil
}

func (i *Issuer) person(token *oidckit.Token) (Person, claims, error) {
	var c claims
	var all map[string]any
	if token.Claims(&c) != nil || token.Claims(&all) != nil {
		return Person{}, c, oidckit.ErrClaim // the error may quote the claims
	}
	if token.Subject == "" || len(token.Subject) > 255 {
		return Person{}, c, fmt.Errorf("%w: sub", oidckit.ErrClaim)
	}
	p := c.profile()
	p.Subject, p.Role, p.Expiry = token.Subject, i.role(all[i.RolesClaim]), token.Expiry
	return p, c, nil
}

// profile is a name that fits a customer and an address that may be written to, as far as they are known.
func (c claims) profile() (p Person) {
	p.Name = firstName(c.Name, c.PreferredUsername)
	if p.Username = firstName(c.CognitoUsername, c.Username); p.Username == c.Subject {
		p.Username = ""
	}
	email := strings.ToLower(strings.TrimSpace(c.Email))
	addr, err := mail.ParseAddress(email)
	if verified := c.EmailVerified == true || c.EmailVerified == "true"; verified && err == nil && addr.Address == email && len(email) <= MaxEmail {
		p.Email = email
	}
	return p
}

// firstName is the first that is a name, as long as a customer's may be.
func firstName(names ...string) string {
	for _, name := range names {
		if name = strings.TrimSpace(name); name != "" && utf8.ValidString(name) {
			return string([]rune(name)[:min(utf8.RuneCountInString(name), 100)])
		}
	}
	return ""
}

// role is the shop's for the groups of a person.
func (i *Issuer) role(groups any) string {
	list, ok := groups.([]any)
	if !ok {
		list = []any{groups}
	}
	for _, r := range i.Roles {
		for _, group := range list {
			if group == r.Group {
				return r.Role
			}
		}
	}
	return RoleCustomer
}

// Endpoints are where the issuer does its part in a sign-in (OpenID Connect Discovery 1.0, section 3).
type Endpoints struct {
	Authorize string `json:"authorization_endpoint"`
	Token     string `json:"token_endpoint"`
	UserInfo  string `json:"userinfo_endpoint"`    // or empty
	SignOut   string `json:"end_session_endpoint"` // or empty
}

// Endpoints asks the issuer where they are. An issuer by https that names one without is refused.
func (i *Issuer) Endpoints(ctx context.Context) (e Endpoints, err error) {
	if err := i.id.Discovery(ctx, &e); err != nil {
		return e, err
	}
	for _, endpoint := range []struct {
		name, url string
		needed    bool
	}{{"authorization_endpoint", e.Authorize, true}, {"token_endpoint", e.Token, true}, {"userinfo_endpoint", e.UserInfo, false}, {"end_session_endpoint", e.SignOut, false}} {
		if endpoint.url == "" && !endpoint.needed {
			continue
		}
		u, err := url.Parse(endpoint.url)
		if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || strings.HasPrefix(i.URL, "https:")) {
			return e, fmt.Errorf("issuer %s: %s is %.200q, want a URL as safe as the issuer's", i.URL, endpoint.name, endpoint.url)
		}
	}
	return e, nil
}

// Complete adds to a person what its token does not say, from the issuer's userinfo. Name and address are a
// courtesy, so it leaves out what it cannot have.
func (i *Issuer) Complete(ctx context.Context, p *Person, accessToken string) {
	if p.Name != "" && p.Email != "" || accessToken == "" {
		return
	}
	where, err := i.Endpoints(ctx)
	if err != nil || where.UserInfo == "" {
		return
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where.UserInfo, nil)
	if err != nil {
		return
	}
	req.Header.Set("Authorization", "Bearer "+accessToken)
	resp, err := i.Client.Do(req)
	if err != nil {
		return
	}
	defer func() { _ = resp.Body.Close() }()
	var c claims
	if resp.StatusCode != http.StatusOK || json.NewDecoder(http.MaxBytesReader(nil, resp.Body, MaxBody)).Decode(&c) != nil || c.Subject != p.Subject {
		return // another's answer must not be taken for this one's: OpenID Connect Core 1.0, section 5.3.2
	}
	more := c.profile()
	p.Name, p.Username, p.Email = cmp.Or(p.Name, more.Name), cmp.Or(p.Username, more.Username), cmp.Or(p.Email, more.Email)
}
