// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package customer

import (
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/oidckit"
)

// otherIssuer is the sign-in by another issuer than the shop's own: the authorization code flow of OpenID Connect
// with PKCE (RFC 7636). It ends in the same session as a sign-in by password.
//
// The shop remembers nothing of a sign-in that has begun: what it must know again is sealed in a cookie, so that
// beginning costs nothing, and any instance can end it.
type otherIssuer struct {
	*platform.Issuer
	// callback is the page that people come back to.
	callback string
	cookie   string
	secure   bool
	sealer   cipher.AEAD
}

// signInTakes is how long somebody may take to sign in at the other issuer.
const signInTakes = 10 * time.Minute

func newOtherIssuer(env platform.Env, publicURL string) (*otherIssuer, error) {
	if env.Issuer == nil {
		return nil, nil
	}
	// All instances have the service token, so each can open what another has sealed.
	key, err := env.Caller.KeyFor("shop sign-in cookie")
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	o := &otherIssuer{Issuer: env.Issuer, callback: publicURL + "/sign-in/callback", cookie: "sign-in", secure: strings.HasPrefix(publicURL, "https:")}
	if o.secure {
		o.cookie = "__Host-sign-in" // no other host, and nobody without TLS, can set it: RFC 6265bis, section 4.1.3.2
	}
	o.sealer, err = cipher.NewGCMWithRandomNonce(block)
	return o, err
}

// attempt is what must be known again when somebody comes back.
type attempt struct {
	State    string `json:"state"`
	Nonce    string `json:"nonce"`
	Verifier string `json:"verifier"`
	Expires  int64  `json:"expires"` // Unix time
}

func (o *otherIssuer) seal(w http.ResponseWriter, a attempt) error {
	plain, err := json.Marshal(a)
	if err != nil {
		return err
	}
	o.setCookie(w, base64.RawURLEncoding.EncodeToString(o.sealer.Seal(nil, nil, plain, nil)), int(signInTakes.Seconds()))
	return nil
}

func (o *otherIssuer) setCookie(w http.ResponseWriter, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{Name: o.cookie, Value: value, Path: "/", MaxAge: maxAge, Secure: o.secure, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

// open returns the attempt that this browser has begun, and false if there is none that still counts.
func (o *otherIssuer) open(r *http.Request) (a attempt, ok bool) {
	cookies := r.CookiesNamed(o.cookie)
	if len(cookies) != 1 {
		return a, false
	}
	sealed, err := base64.RawURLEncoding.DecodeString(cookies[0].Value)
	if err != nil {
		return a, false
	}
	plain, err := o.sealer.Open(nil, nil, sealed, nil)
	if err != nil || json.Unmarshal(plain, &a) != nil {
		return a, false
	}
	return a, time.Now().Unix() < a.Expires
}

// client is the shop as the issuer knows it.
func (o *otherIssuer) client(e platform.Endpoints) *oauth2.Config {
	c := &oauth2.Config{ClientID: o.ClientID, ClientSecret: o.ClientSecret, RedirectURL: o.callback, Scopes: o.Scopes, Endpoint: oauth2.Endpoint{AuthURL: e.Authorize, TokenURL: e.Token}}
	if o.ClientSecret == "" {
		c.Endpoint.AuthStyle = oauth2.AuthStyleInParams // a public client has nothing to authenticate with
	}
	return c
}

// endpoints asks where to go, or says that nobody can tell.
func (o *otherIssuer) endpoints(ctx context.Context) (platform.Endpoints, error) {
	e, err := o.Endpoints(ctx)
	if err != nil {
		return e, o.away(err)
	}
	return e, nil
}

// away says that the issuer cannot be asked.
func (o *otherIssuer) away(err error) error {
	after := max(fault.Judge(context.Background(), err).After, time.Second)
	return &platform.Error{Status: http.StatusServiceUnavailable, Code: "issuer-unavailable", Detail: o.Name + " does not answer as it should; please try again later", RetryAfter: after, Err: err}
}

// notSignedIn refuses what somebody came back with; why is for the log.
func (s *Service) notSignedIn(ctx context.Context, why error) error {
	s.env.Log.InfoContext(ctx, "sign-in by another issuer refused", "issuer", s.other.URL, "error", why)
	return &platform.Error{Status: http.StatusUnauthorized, Code: "sign-in-failed", Detail: "this sign-in was not begun here, took too long, or is over already; please begin again", Err: why}
}

// waysIn tells who, beside the shop itself, lets people in.
func (s *Service) waysIn(w http.ResponseWriter, _ *http.Request) error {
	type way struct {
		Name string `json:"name"`
	}
	ways := []way{}
	if s.other != nil {
		ways = append(ways, way{s.other.Name})
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"issuers": ways})
}

// beginSignIn answers with where to go to sign in.
func (s *Service) beginSignIn(w http.ResponseWriter, r *http.Request) error {
	if s.other == nil {
		return noOtherIssuer()
	}
	endpoints, err := s.other.endpoints(r.Context())
	if err != nil {
		return err
	}
	a := attempt{State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), Expires: time.Now().Add(signInTakes).Unix()}
	if err := s.other.seal(w, a); err != nil {
		return err
	}
	to := s.other.client(endpoints).AuthCodeURL(a.State, oauth2.S256ChallengeOption(a.Verifier), oauth2.SetAuthURLParam("nonce", a.Nonce))
	return platform.WriteJSON(w, http.StatusOK, map[string]string{"url": to})
}

func noOtherIssuer() error {
	return &platform.Error{Status: http.StatusNotFound, Code: "no-issuer", Detail: "this shop knows its own accounts only: sign in by POST /api/sessions"}
}

// endSignIn turns the code that somebody came back with into a session.
func (s *Service) endSignIn(w http.ResponseWriter, r *http.Request) error {
	if s.other == nil {
		return noOtherIssuer()
	}
	var in struct {
		Code   string `json:"code"`
		State  string `json:"state"`
		Issuer string `json:"iss"` // RFC 9207
	}
	if err := platform.Decode(w, r, &in); err != nil {
		return err
	}
	ctx := context.WithValue(r.Context(), oauth2.HTTPClient, s.other.Client)
	a, ok := s.other.open(r)
	switch {
	case !ok:
		return s.notSignedIn(ctx, errors.New("no attempt"))
	case subtle.ConstantTimeCompare([]byte(in.State), []byte(a.State)) != 1:
		return s.notSignedIn(ctx, errors.New("another state")) // of another tab, perhaps: the attempt lives on
	case in.Issuer != "" && in.Issuer != s.other.URL:
		return s.notSignedIn(ctx, errors.New("another issuer"))
	case in.Code == "":
		return platform.Invalid("code", "is missing")
	}
	endpoints, err := s.other.endpoints(ctx)
	if err != nil {
		return err
	}
	tokens, err := s.other.client(endpoints).Exchange(ctx, in.Code, oauth2.VerifierOption(a.Verifier))
	if err != nil {
		return s.notExchanged(ctx, err)
	}
	raw, _ := tokens.Extra("id_token").(string)
	person, err := s.other.ID(ctx, raw, a.Nonce)
	if err != nil {
		if errors.Is(err, oidckit.ErrInvalid) {
			return s.notSignedIn(ctx, err)
		}
		return s.other.away(err)
	}
	id, err := s.admit(ctx, person, tokens.AccessToken, &a)
	if err != nil {
		return err
	}
	token, expires, err := s.issuer.sign(platform.Identity{Subject: id, Email: person.Email, Role: person.Role})
	if err != nil {
		return err
	}
	s.other.setCookie(w, "", -1)
	session := map[string]string{"token": token, "expires_at": expires.Format(time.RFC3339)}
	if endpoints.SignOut != "" {
		session["sign_out_url"] = s.other.signOut(endpoints.SignOut)
	}
	return platform.WriteJSON(w, http.StatusOK, session)
}

// notExchanged says why the issuer gave no tokens for a code. Neither log nor answer has its words: they may
// quote the code.
func (s *Service) notExchanged(ctx context.Context, err error) error {
	var answer *oauth2.RetrieveError
	if !errors.As(err, &answer) || answer.Response == nil {
		return s.other.away(errors.New("the issuer does not answer a code"))
	}
	why := errors.New("the issuer answers a code with " + answer.Response.Status)
	if answer.Response.StatusCode >= http.StatusInternalServerError || answer.ErrorCode == "invalid_client" || answer.ErrorCode == "unauthorized_client" {
		return s.other.away(why) // it is out of order, or the shop is not registered there as it thinks
	}
	return s.notSignedIn(ctx, why)
}

// signOut is where the issuer signs people out, and sends them back to the shop
// (OpenID Connect RP-Initiated Logout 1.0; logout_uri is Cognito's name for the way back).
func (o *otherIssuer) signOut(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return ""
	}
	home := strings.TrimSuffix(o.callback, "sign-in/callback")
	q := u.Query()
	q.Set("client_id", o.ClientID)
	q.Set("post_logout_redirect_uri", home)
	q.Set("logout_uri", home)
	u.RawQuery = q.Encode()
	return u.String()
}

// exchange gives the gateway a token of the shop for an access token of the other issuer.
func (s *Service) exchange(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Token string `json:"token"`
	}
	if err := platform.Decode(w, r, &in); err != nil {
		return err
	}
	if s.other == nil {
		return noOtherIssuer()
	}
	person, err := s.other.Access(r.Context(), in.Token)
	if err != nil {
		return platform.NotIdentified(w, err)
	}
	id, err := s.admit(r.Context(), person, in.Token, nil)
	if err != nil {
		return err
	}
	expires := time.Now().Add(exchangedFor)
	if person.Expiry.Before(expires) {
		expires = person.Expiry
	}
	token, err := s.issuer.signUntil(platform.Identity{Subject: id, Email: person.Email, Role: person.Role}, expires)
	if err != nil {
		return err
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]string{"token": token})
}

// exchangedFor is how long the shop's token lives that stands for another issuer's: longer than the gateway
// keeps it, which looks at the other one each time.
const exchangedFor = 5 * time.Minute

// admit returns the customer that a person is, made now if it is the first time. Only issuer and subject tell who
// somebody is: an address can be given to another person, and an account that was made here with it is not theirs.
// An attempt to sign in is admitted once.
func (s *Service) admit(ctx context.Context, p platform.Person, accessToken string, a *attempt) (id string, err error) {
	if id, err = s.known(ctx, s.env.DB, p); err != nil || id != "" && a == nil {
		return id, err
	}
	if id == "" {
		s.other.Complete(ctx, &p, accessToken) // not in a transaction: it asks the issuer
		p.Name = cmp.Or(p.Name, p.Username, "Customer")
	}
	for range 2 {
		err = s.bus.InTx(ctx, func(tx *sql.Tx) error {
			if a != nil {
				if err := s.use(ctx, tx, a); err != nil {
					return err
				}
			}
			if id, err = s.known(ctx, tx, p); err != nil || id != "" {
				return err
			}
			id, err = s.introduce(ctx, tx, p)
			return err
		})
		if !errors.Is(err, errTaken) {
			break // or another request of the same person was first, and they are known now
		}
	}
	return id, err
}

// introduce makes the customer of a person who has not been here before.
func (s *Service) introduce(ctx context.Context, tx *sql.Tx, p platform.Person) (id string, err error) {
	id = kernel.NewID()
	if _, err := tx.ExecContext(ctx, `INSERT INTO customers (id, name, email, password_hash, role, credit_limit, created_at)
		VALUES ($1, $2, $3, '', $4, $5, $6)`, id, p.Name, p.Email, p.Role, CreditLimit, time.Now().UnixMicro()); err != nil {
		return "", err
	}
	res, err := tx.ExecContext(ctx, `INSERT INTO identities (issuer, subject, customer_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, s.other.URL, p.Subject, id)
	if err != nil {
		return "", err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return "", errors.Join(err, errTaken)
	}
	return id, s.bus.Emit(ctx, tx, kernel.CustomerRegistered{CustomerID: id, Name: p.Name, Email: p.Email})
}

// known returns the customer that a person is, or nothing.
func (s *Service) known(ctx context.Context, db interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}, p platform.Person) (id string, err error) {
	err = db.QueryRowContext(ctx, `SELECT customer_id FROM identities WHERE issuer = $1 AND subject = $2`, s.other.URL, p.Subject).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return id, err
}

// use remembers that an attempt has ended in a session, so that nobody comes back with the same one again.
func (s *Service) use(ctx context.Context, tx *sql.Tx, a *attempt) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM used_sign_ins WHERE expires_at < $1`, time.Now().Unix()); err != nil {
		return err
	}
	res, err := tx.ExecContext(ctx, `INSERT INTO used_sign_ins (state, expires_at) VALUES ($1, $2) ON CONFLICT DO NOTHING`, a.State, a.Expires)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, s.notSignedIn(ctx, errors.New("the attempt has been used")))
	}
	return nil
}
