// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/oauth2-proxy/mockoidc"

	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// otherIssuer is mockoidc, which lets everybody in, with a hand in what it answers.
type otherIssuer struct {
	*mockoidc.MockOIDC
	t *testing.T

	mu     sync.Mutex
	answer func(path string, body map[string]any) (status int) // changes an answer; nil or 0 leaves it
}

// openIssuer runs an issuer until the test ends.
func openIssuer(t *testing.T) *otherIssuer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return openIssuerOn(t, ln)
}

func openIssuerOn(t *testing.T, ln net.Listener) *otherIssuer {
	t.Helper()
	mock, err := mockoidc.NewServer(nil)
	if err != nil {
		t.Fatal(err)
	}
	o := &otherIssuer{MockOIDC: mock, t: t}
	if err := mock.AddMiddleware(o.meddle); err != nil {
		t.Fatal(err)
	}
	if err := mock.Start(ln, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mock.Server.Close() })
	return o
}

// meddle lets the test change what the issuer answers in JSON.
func (o *otherIssuer) meddle(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock() // the mock is for one at a time
		defer o.mu.Unlock()
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		status, body := rec.Code, rec.Body.Bytes()
		var object map[string]any
		if o.answer != nil && json.Unmarshal(body, &object) == nil {
			if s := o.answer(strings.TrimPrefix(r.URL.Path, mockoidc.IssuerBase), object); s != 0 {
				status = s
			}
			body, _ = json.Marshal(object)
		}
		maps.Copy(w.Header(), rec.Header())
		w.Header().Del("Content-Length")
		w.WriteHeader(status)
		_, _ = w.Write(body)
	})
}

// answers sets how answers are changed until the test ends.
func (o *otherIssuer) answers(t *testing.T, change func(path string, body map[string]any) int) {
	set := func(f func(string, map[string]any) int) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.answer = f
	}
	set(change)
	t.Cleanup(func() { set(nil) })
}

// config is what the shop is told of the issuer.
func (o *otherIssuer) config() platform.IssuerConfig {
	return platform.IssuerConfig{
		URL: o.Issuer(), Name: "Guild", ClientID: o.ClientID, ClientSecret: o.ClientSecret, Scopes: []string{"openid", "email", "profile", "groups"},
		Roles: []platform.GroupRole{{Group: "masters", Role: platform.RoleOperator}, {Group: "buyers", Role: platform.RoleAdmin}},
	}
}

// sign returns a token of the issuer with the claims of a good one, changed; nil takes one away.
func (o *otherIssuer) sign(changes map[string]any) string {
	o.t.Helper()
	token, err := o.Keypair.SignJWT(o.claims(changes))
	if err != nil {
		o.t.Fatal(err)
	}
	return token
}

func (o *otherIssuer) claims(changes map[string]any) jwt.MapClaims {
	c := jwt.MapClaims{"iss": o.Issuer(), "jti": kernel.NewID(), "sub": "subject", "aud": o.ClientID, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// unsigned is the token of a forger: the algorithm none.
func unsigned(t *testing.T, claims jwt.MapClaims) string {
	t.Helper()
	token, err := jwt.NewWithClaims(jwt.SigningMethodNone, claims).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// signingIn is one sign-in by the other issuer, as a browser does it.
type signingIn struct {
	to     *url.URL
	cookie *http.Cookie
	// What the issuer leads back with.
	code, state string
}

func (a *api) beginsSignIn() signingIn {
	a.t.Helper()
	got := a.send("POST", "/api/sign-in", nil, nil)
	var out struct{ URL string }
	a.want(http.StatusOK, got, &out)
	to, err := url.Parse(out.URL)
	if err != nil {
		a.t.Fatal(err)
	}
	cookies := (&http.Response{Header: got.header}).Cookies()
	if len(cookies) != 1 {
		a.t.Fatalf("cookies = %v, want one", cookies)
	}
	return signingIn{to: to, cookie: cookies[0]}
}

// leaves goes to the issuer and comes back as the user.
func (a *api) leaves(o *otherIssuer, user mockoidc.User) signingIn {
	a.t.Helper()
	s := a.beginsSignIn()
	o.mu.Lock()
	o.QueueUser(user)
	o.mu.Unlock()
	req, err := http.NewRequestWithContext(a.t.Context(), http.MethodGet, s.to.String(), nil)
	if err != nil {
		a.t.Fatal(err)
	}
	resp, err := http.DefaultTransport.RoundTrip(req) // no redirect is followed
	if err != nil {
		a.t.Fatal(err)
	}
	_ = resp.Body.Close()
	back, err := resp.Location()
	if err != nil || !strings.HasPrefix(back.String(), a.url+"/sign-in/callback?") {
		a.t.Fatalf("the issuer leads to %v (status %d, %v), want the shop's callback", back, resp.StatusCode, err)
	}
	s.code, s.state = back.Query().Get("code"), back.Query().Get("state")
	return s
}

// comesBack ends the sign-in.
func (a *api) comesBack(s signingIn) answer {
	a.t.Helper()
	header := http.Header{}
	if s.cookie != nil {
		header.Set("Cookie", s.cookie.Name+"="+s.cookie.Value)
	}
	return a.send("POST", "/api/sign-in/session", header, map[string]string{"code": s.code, "state": s.state})
}

// entersAs signs in by the issuer.
func (a *api) entersAs(o *otherIssuer, user mockoidc.User) *api {
	a.t.Helper()
	var session struct{ Token string }
	a.want(http.StatusOK, a.comesBack(a.leaves(o, user)), &session)
	return &api{a.t, a.url, session.Token}
}

type account struct{ ID, Name, Email, Role string }

func (a *api) account() (got account) {
	a.t.Helper()
	a.want(http.StatusOK, a.send("GET", "/api/me", nil, nil), &got)
	return got
}

func user(changes ...func(*mockoidc.MockUser)) *mockoidc.MockUser {
	u := &mockoidc.MockUser{Subject: kernel.NewID(), PreferredUsername: "Grete", Email: "grete@guild.example", EmailVerified: true}
	for _, change := range changes {
		change(u)
	}
	return u
}

func TestSignInByAnotherIssuer(t *testing.T) {
	guild := openIssuer(t)
	shop := openShopWith(t, embedded.Config{Data: t.TempDir(), Packing: 24 * time.Hour, Issuer: guild.config()}).stocked()

	t.Run("the shop tells who else signs people in", func(t *testing.T) {
		var ways struct{ Issuers []struct{ Name string } }
		shop.want(http.StatusOK, shop.send("GET", "/api/sign-in", nil, nil), &ways)
		if len(ways.Issuers) != 1 || ways.Issuers[0].Name != "Guild" {
			t.Errorf("issuers = %+v, want Guild", ways.Issuers)
		}
	})

	t.Run("a sign-in begins with PKCE, state and nonce, and a cookie that nothing else can read", func(t *testing.T) {
		a, b := shop.beginsSignIn(), shop.beginsSignIn()
		q := a.to.Query()
		for name, want := range map[string]string{
			"response_type": "code", "client_id": guild.ClientID, "redirect_uri": shop.url + "/sign-in/callback", "scope": "openid email profile groups", "code_challenge_method": "S256",
		} {
			if got := q.Get(name); got != want {
				t.Errorf("%s = %q, want %q", name, got, want)
			}
		}
		for _, name := range []string{"state", "nonce", "code_challenge"} {
			if got := q.Get(name); len(got) < 26 || got == b.to.Query().Get(name) {
				t.Errorf("%s = %q and %q, want 128 bits or more, new each time", name, got, b.to.Query().Get(name))
			}
		}
		if got := a.cookie.String(); !strings.Contains(got, "; Path=/; Max-Age=600; HttpOnly; SameSite=Lax") || strings.Contains(got, q.Get("nonce")) {
			t.Errorf("cookie = %s", got)
		}
		if strings.Contains(a.to.String(), guild.ClientSecret) {
			t.Error("the address has the client's secret")
		}
	})

	t.Run("it ends in a session like any other", func(t *testing.T) {
		s := shop.leaves(guild, user())
		got := shop.comesBack(s)
		var session struct {
			Token     string
			ExpiresAt time.Time `json:"expires_at"`
			SignOut   string    `json:"sign_out_url"`
		}
		shop.want(http.StatusOK, got, &session)
		if left := time.Until(session.ExpiresAt); left < time.Hour || session.SignOut != "" {
			t.Errorf("session = %v more, signed out at %q; want as long as by password, and nowhere: the issuer has no such place", left, session.SignOut)
		}
		if c := (&http.Response{Header: got.header}).Cookies(); len(c) != 1 || c[0].MaxAge >= 0 || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("cookies = %v, Cache-Control = %q; want the cookie taken back, and nothing kept", c, got.header.Get("Cache-Control"))
		}
		a := &api{t, shop.url, session.Token}
		if me := a.account(); me.Name != "Grete" || me.Email != "grete@guild.example" || me.Role != "customer" {
			t.Errorf("account = %+v, want what the issuer says", me)
		}
		a.ends(a.place("", lineItem{"product_id": "p-001", "quantity": 1}), "confirmed")
		eventually(t, func() error {
			var mails struct{ Items []struct{ Recipient string } }
			a.want(http.StatusOK, a.send("GET", "/api/me/mails", nil, nil), &mails)
			for _, m := range mails.Items {
				if m.Recipient != "grete@guild.example" {
					t.Fatalf("a mail to %s, want grete@guild.example", m.Recipient)
				}
			}
			return a.hasMails("Welcome to the shop", "We have received your order", "Your payment is authorised", "Your receipt", "Your order is confirmed")
		})
	})

	t.Run("the same person is the same customer, whatever else has changed", func(t *testing.T) {
		u := user()
		first := shop.entersAs(guild, u).account()
		again := *u
		again.Email, again.PreferredUsername = "other@guild.example", "Margarete"
		if got := shop.entersAs(guild, &again).account(); got.ID != first.ID {
			t.Errorf("account = %+v, want %s", got, first.ID)
		}
	})

	t.Run("who comes for the first time at several doors at once is one customer", func(t *testing.T) {
		u := user()
		token := guild.sign(map[string]any{"sub": u.Subject})
		var all sync.WaitGroup
		ids := make(chan string, 8)
		for range 4 {
			s := shop.leaves(guild, u)
			all.Go(func() {
				var session struct{ Token string }
				if got := shop.comesBack(s); got.status != http.StatusOK || json.Unmarshal(got.body, &session) != nil {
					t.Errorf("status = %d, want 200; body: %s", got.status, got.body)
					return
				}
				ids <- (&api{t, shop.url, session.Token}).account().ID
			})
			all.Go(func() { ids <- (&api{t, shop.url, token}).account().ID })
		}
		all.Wait()
		close(ids)
		first := <-ids
		for id := range ids {
			if id != first {
				t.Errorf("customers %s and %s, want one", first, id)
			}
		}
	})

	t.Run("an account with the same address is another's", func(t *testing.T) {
		u := user(func(u *mockoidc.MockUser) { u.Email = "ada@shop.example" })
		mine := shop.entersAs(guild, u).account()
		if ada := shop.ada().account(); mine.ID == ada.ID || mine.Email != ada.Email {
			t.Errorf("accounts = %+v and Ada's %+v, want two with one address", mine, ada)
		}
		shop.wantProblem(422, "invalid-input", "password", shop.send("POST", "/api/sessions", nil, map[string]string{"email": "grete@guild.example", "password": ""}))
		shop.wantProblem(401, "bad-credentials", "", shop.send("POST", "/api/sessions", nil, map[string]string{"email": "grete@guild.example", "password": "grete@guild.example"}))
	})

	t.Run("an address that the issuer has not verified is not taken over", func(t *testing.T) {
		u := user(func(u *mockoidc.MockUser) { u.EmailVerified = false })
		if me := shop.entersAs(guild, u).account(); me.Email != "" {
			t.Errorf("email = %q, want none", me.Email)
		}
	})

	t.Run("groups become roles, the first that fits", func(t *testing.T) {
		for _, tt := range []struct {
			groups []string
			role   string
		}{{nil, "customer"}, {[]string{"operator", "admin"}, "customer"}, {[]string{"joiners", "buyers"}, "admin"}, {[]string{"buyers", "masters"}, "operator"}} {
			a := shop.entersAs(guild, user(func(u *mockoidc.MockUser) { u.Groups = tt.groups }))
			if me := a.account(); me.Role != tt.role {
				t.Errorf("groups %v = %q, want %q", tt.groups, me.Role, tt.role)
			}
			want := map[bool]int{true: 200, false: 403}[tt.role == "operator"]
			if got := a.send("GET", "/ops/api/services", nil, nil); got.status != want {
				t.Errorf("groups %v: the console answers %d, want %d", tt.groups, got.status, want)
			}
		}
	})

	t.Run("what the token leaves out comes from userinfo, if that speaks of the same person", func(t *testing.T) {
		for _, same := range []bool{true, false} {
			u := user(func(u *mockoidc.MockUser) { u.Email, u.PreferredUsername = "", "" })
			guild.answers(t, func(path string, body map[string]any) int {
				if path == "/userinfo" {
					maps.Copy(body, map[string]any{"sub": map[bool]string{true: u.Subject, false: "another"}[same], "name": "Grete Zimmer", "email": "zimmer@guild.example", "email_verified": "true"})
				}
				return 0
			})
			want := map[bool]string{true: "Grete Zimmer <zimmer@guild.example>", false: "Customer <>"}[same]
			if me := shop.entersAs(guild, u).account(); me.Name+" <"+me.Email+">" != want {
				t.Errorf("account = %+v, want %s", me, want)
			}
		}
	})

	t.Run("signing out leads to the issuer, if it has a place for that", func(t *testing.T) {
		// The discovery document is known already: another shop asks for it anew.
		guild.answers(t, func(path string, body map[string]any) int {
			if path == "/.well-known/openid-configuration" {
				body["end_session_endpoint"] = guild.Issuer() + "/logout?at=guild"
			}
			return 0
		})
		shop := openShopWith(t, embedded.Config{Data: t.TempDir(), Issuer: guild.config()})
		var session struct {
			SignOut string `json:"sign_out_url"`
		}
		shop.want(http.StatusOK, shop.comesBack(shop.leaves(guild, user())), &session)
		u, err := url.Parse(session.SignOut)
		if err != nil || !strings.HasPrefix(session.SignOut, guild.Issuer()+"/logout?") || u.Query().Get("post_logout_redirect_uri") != shop.url+"/" || u.Query().Get("client_id") != guild.ClientID || u.Query().Get("at") != "guild" {
			t.Errorf("sign_out_url = %q (%v), want the issuer's, with the way back", session.SignOut, err)
		}
	})

	t.Run("who comes back otherwise than they left is refused", func(t *testing.T) {
		other := shop.leaves(guild, user())
		for name, change := range map[string]func(*signingIn){
			"without the cookie":    func(s *signingIn) { s.cookie = nil },
			"with another's cookie": func(s *signingIn) { s.cookie = other.cookie },
			"with a changed cookie": func(s *signingIn) { c := *s.cookie; c.Value = c.Value[:len(c.Value)-4] + "AAAA"; s.cookie = &c },
			"with another state":    func(s *signingIn) { s.state = other.state },
			"without a state":       func(s *signingIn) { s.state = "" },
			"with a code made up":   func(s *signingIn) { s.code = "made-up" },
			"with another's code":   func(s *signingIn) { s.code = other.code }, // an attacker's, slipped in: the verifier does not fit
			"with two of the cookies": func(s *signingIn) {
				c := *s.cookie
				c.Value += "; " + other.cookie.Name + "=" + other.cookie.Value
				s.cookie = &c
			},
		} {
			t.Run(name, func(t *testing.T) {
				shop := shop.seenBy(t)
				s := shop.leaves(guild, user())
				change(&s)
				shop.wantProblem(401, "sign-in-failed", "", shop.comesBack(s))
			})
		}
	})

	t.Run("an answer of another issuer is refused (RFC 9207)", func(t *testing.T) {
		s := shop.leaves(guild, user())
		header := http.Header{"Cookie": {s.cookie.Name + "=" + s.cookie.Value}}
		in := map[string]string{"code": s.code, "state": s.state, "iss": "https://evil.example"}
		shop.wantProblem(401, "sign-in-failed", "", shop.send("POST", "/api/sign-in/session", header, in))
		in["iss"] = guild.Issuer()
		shop.want(http.StatusOK, shop.send("POST", "/api/sign-in/session", header, in), nil)
	})

	t.Run("the same answer of the issuer works once, even if the issuer lets it", func(t *testing.T) {
		s := shop.leaves(guild, user())
		shop.want(http.StatusOK, shop.comesBack(s), nil)
		shop.wantProblem(401, "sign-in-failed", "", shop.comesBack(s))
		guild.mu.Lock()
		guild.SessionStore.Store[s.code].Granted = false
		guild.mu.Unlock()
		shop.wantProblem(401, "sign-in-failed", "", shop.comesBack(s))
	})

	t.Run("a bad ID token opens nothing", func(t *testing.T) {
		for name, forge := range map[string]func(c jwt.MapClaims) string{
			"another nonce":    func(c jwt.MapClaims) string { c["nonce"] = "replayed"; return guild.sign(c) },
			"no nonce":         func(c jwt.MapClaims) string { c["nonce"] = nil; return guild.sign(c) },
			"expired":          func(c jwt.MapClaims) string { c["exp"] = time.Now().Add(-time.Hour).Unix(); return guild.sign(c) },
			"without an end":   func(c jwt.MapClaims) string { c["exp"] = nil; return guild.sign(c) },
			"another audience": func(c jwt.MapClaims) string { c["aud"] = "another-client"; return guild.sign(c) },
			"two audiences": func(c jwt.MapClaims) string {
				c["aud"] = []string{guild.ClientID, "another-client"}
				return guild.sign(c)
			},
			"another party":          func(c jwt.MapClaims) string { c["azp"] = "another-client"; return guild.sign(c) },
			"another issuer":         func(c jwt.MapClaims) string { c["iss"] = "https://evil.example"; return guild.sign(c) },
			"nobody":                 func(c jwt.MapClaims) string { c["sub"] = nil; return guild.sign(c) },
			"an access token":        func(c jwt.MapClaims) string { c["token_use"] = "access"; return guild.sign(c) },
			"the algorithm none":     func(c jwt.MapClaims) string { return unsigned(t, guild.claims(c)) },
			"another's key":          func(c jwt.MapClaims) string { return forged(t, guild.claims(c)) },
			"the public key as HMAC": func(c jwt.MapClaims) string { return confused(t, guild, guild.claims(c)) },
			"none at all":            func(jwt.MapClaims) string { return "" },
		} {
			t.Run(name, func(t *testing.T) {
				shop := shop.seenBy(t)
				guild.answers(t, func(path string, body map[string]any) int {
					if path == "/token" {
						raw, ok := body["id_token"].(string)
						if !ok {
							return 0 // a refusal: of a way to authenticate the client that the mock does not know
						}
						var said jwt.MapClaims
						if _, _, err := jwt.NewParser().ParseUnverified(raw, &said); err != nil {
							t.Error(err)
						}
						body["id_token"] = forge(said)
					}
					return 0
				})
				shop.wantProblem(401, "sign-in-failed", "", shop.comesBack(shop.leaves(guild, user())))
			})
		}
	})

	t.Run("an issuer that fails on the way is 503, and the way can be gone again", func(t *testing.T) {
		guild.answers(t, func(path string, _ map[string]any) int { return map[string]int{"/token": 500}[path] })
		s := shop.leaves(guild, user())
		got := shop.comesBack(s)
		shop.wantProblem(503, "issuer-unavailable", "", got)
		if got.header.Get("Retry-After") == "" {
			t.Error("Retry-After is missing")
		}
		guild.answers(t, nil)
		shop.want(http.StatusOK, shop.comesBack(shop.leaves(guild, user())), nil)
	})

	t.Run("what is wrong with the shop's registration is not the person's fault", func(t *testing.T) {
		cfg := guild.config()
		cfg.ClientSecret = "wrong"
		shop := openShopWith(t, embedded.Config{Data: t.TempDir(), Issuer: cfg})
		shop.wantProblem(503, "issuer-unavailable", "", shop.comesBack(shop.leaves(guild, user())))
	})
}

// forged is signed with a key that is not the issuer's.
func forged(t *testing.T, claims jwt.MapClaims) string {
	t.Helper()
	other, err := mockoidc.RandomKeypair(2048)
	if err != nil {
		t.Fatal(err)
	}
	token, err := other.SignJWT(claims)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// confused is signed with the issuer's public key as if it were a shared secret.
func confused(t *testing.T, o *otherIssuer, claims jwt.MapClaims) string {
	t.Helper()
	public, err := o.Keypair.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(public)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestTokensOfAnotherIssuer(t *testing.T) {
	guild := openIssuer(t)
	shop := openShopWith(t, embedded.Config{Data: t.TempDir(), Packing: 24 * time.Hour, Issuer: guild.config()}).stocked()
	bearer := func(t *testing.T, changes map[string]any) *api { return &api{t, shop.url, guild.sign(changes)} }

	t.Run("an access token is as good as a session", func(t *testing.T) {
		a := bearer(t, map[string]any{"sub": "anna", "username": "Anna"})
		if me := a.account(); me.Name != "Anna" || me.Role != "customer" {
			t.Errorf("account = %+v, want Anna, a customer", me)
		}
		id := a.place("", lineItem{"product_id": "p-001", "quantity": 1})
		a.ends(id, "confirmed")
		if again := bearer(t, map[string]any{"sub": "anna", "jti": "2"}); again.account().ID != a.account().ID {
			t.Error("another token of the same person is another customer")
		}
		stranger := bearer(t, map[string]any{"sub": "bert"})
		stranger.wantProblem(404, "not-found", "", stranger.send("GET", "/api/orders/"+id, nil, nil))
	})
	t.Run("it is of the same customer as the sign-in", func(t *testing.T) {
		u := user()
		if a, b := shop.entersAs(guild, u).account(), bearer(t, map[string]any{"sub": u.Subject}).account(); a != b {
			t.Errorf("accounts = %+v and %+v, want the same", a, b)
		}
	})
	t.Run("its groups are roles", func(t *testing.T) {
		a := bearer(t, map[string]any{"sub": "olga", "groups": []string{"masters"}})
		a.want(http.StatusOK, a.send("GET", "/ops/api/services", nil, nil), nil)
		a = bearer(t, map[string]any{"sub": "olga"}) // no more
		a.wantProblem(403, "forbidden", "", a.send("GET", "/ops/api/services", nil, nil))
	})
	t.Run("a username is a name where nobody knows a better one", func(t *testing.T) {
		for _, tt := range []struct {
			claims, userinfo map[string]any
			want             string
		}{
			{map[string]any{"sub": "c-1", "username": "google_1"}, map[string]any{"sub": "c-1", "name": "Clara", "email": "clara@guild.example", "email_verified": "true"}, "Clara <clara@guild.example>"},
			{map[string]any{"sub": "c-2", "username": "google_2"}, map[string]any{"sub": "c-2"}, "google_2 <>"},
			{map[string]any{"sub": "c-3"}, map[string]any{"sub": "c-3", "username": "google_3"}, "google_3 <>"},
			{map[string]any{"sub": "c-4", "username": "c-4"}, map[string]any{"sub": "c-4", "username": "c-4"}, "Customer <>"}, // a pool of Cognito, signed in by address
		} {
			guild.answers(t, func(path string, body map[string]any) int {
				if path != "/userinfo" {
					return 0
				}
				clear(body)
				maps.Copy(body, tt.userinfo)
				return http.StatusOK
			})
			if me := bearer(t, tt.claims).account(); me.Name+" <"+me.Email+">" != tt.want {
				t.Errorf("token %v, userinfo %v: account = %+v, want %s", tt.claims, tt.userinfo, me, tt.want)
			}
		}
	})
	t.Run("one of Cognito names the client in place of an audience", func(t *testing.T) {
		cognito := map[string]any{"sub": "carl", "aud": nil, "client_id": guild.ClientID, "token_use": "access"}
		if me := bearer(t, cognito).account(); me.ID == "" {
			t.Errorf("account = %+v", me)
		}
		cognito["client_id"] = "another-client"
		a := bearer(t, cognito)
		a.wantProblem(401, "bad-token", "", a.send("GET", "/api/me", nil, nil))
	})
	for name, token := range map[string]string{
		"expired":             guild.sign(map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}),
		"for somebody else":   guild.sign(map[string]any{"aud": "another-client"}),
		"of another issuer":   guild.sign(map[string]any{"iss": "https://evil.example"}),
		"without a subject":   guild.sign(map[string]any{"sub": nil}),
		"an ID token":         guild.sign(map[string]any{"nonce": "n"}),
		"Cognito's ID token":  guild.sign(map[string]any{"token_use": "id"}),
		"Keycloak's ID token": guild.sign(map[string]any{"typ": "ID"}),
		"unsigned":            unsigned(t, guild.claims(nil)),
		"another's signature": forged(t, guild.claims(nil)),
		"key confusion":       confused(t, guild, guild.claims(nil)),
		"no token":            base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256"}`)) + ".e30.",
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			a := &api{t, shop.url, token}
			a.wantProblem(401, "bad-token", "", a.send("GET", "/api/me", nil, nil))
		})
	}
}

// TestIssuerIsAway opens the shop before there is an issuer.
func TestIssuerIsAway(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	// Nobody accepts on it yet: a connection waits, and ends with the patience of who has made it. A server that answers
	// nothing useful does the same without the wait.
	dumb := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.NotFoundHandler()}
	kept, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kept.Close() })
	go func() { _ = dumb.Serve(ln) }()

	issuer := "http://" + ln.Addr().String() + mockoidc.IssuerBase
	var log safeBuffer
	cfg := platform.IssuerConfig{URL: issuer, Name: "Guild", ClientID: "shop", Scopes: []string{"openid"}}
	shop := openShopWith(t, embedded.Config{Data: t.TempDir(), Issuer: cfg, Log: slog.New(slog.NewTextHandler(&log, nil))})

	got := shop.send("POST", "/api/sign-in", nil, nil)
	shop.wantProblem(503, "issuer-unavailable", "", got)
	if got.header.Get("Retry-After") == "" || !strings.Contains(string(got.body), "Guild does not answer") {
		t.Errorf("answer = %v %s, want it to name who does not answer, and when to come back", got.header, got.body)
	}
	if !strings.Contains(log.String(), "404") {
		t.Errorf("the log does not say what the issuer answers:\n%s", &log)
	}
	shop.ada() // the shop's own people come in as ever

	if err := dumb.Close(); err != nil {
		t.Fatal(err)
	}
	revived, err := net.FileListener(kept)
	if err != nil {
		t.Fatal(err)
	}
	openIssuerOn(t, revived)
	eventually(t, func() error {
		if got := shop.send("POST", "/api/sign-in", nil, nil); got.status != http.StatusOK {
			return fmt.Errorf("status = %d, want 200 again; body: %s", got.status, got.body)
		}
		return nil
	})
}

// safeBuffer is a log that is read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestSignInInABrowser clicks through the sign-in of the other issuer, and out again.
func TestSignInInABrowser(t *testing.T) {
	browser := openBrowser(t)
	guild := openIssuer(t)
	guild.answers(t, func(path string, body map[string]any) int {
		if path == "/.well-known/openid-configuration" {
			body["end_session_endpoint"] = guild.Addr() + mockoidc.DiscoveryEndpoint // any page of the issuer
		}
		return 0
	})
	shop := openShopWith(t, embedded.Config{Data: t.TempDir(), Issuer: guild.config()})
	guild.mu.Lock()
	guild.QueueUser(user())
	guild.mu.Unlock()

	v := visit(t, browser, shop.url)
	v.mayComplain("/favicon.ico") // the issuer has none
	v.open("/sign-in?to=/orders")
	v.shows("#issuer", "Sign in with Guild")
	v.picture("sign-in-issuer")
	v.clicks("#issuer")
	v.arrives("/orders")
	v.shows("#who", "Grete")
	v.until("the tab has forgotten the way", `sessionStorage.getItem('sign-in-to') === null && !document.cookie`)
	v.clicks("#sign-out")
	v.until("the issuer signs out", fmt.Sprintf(`location.href.startsWith(%q)`, guild.Issuer()))

	t.Run("a way back to another site is not taken", func(t *testing.T) {
		v := visit(t, browser, shop.url)
		v.open("/sign-in?to=" + url.QueryEscape("//evil.example/"))
		v.signsIn("ada@shop.example", "dovetail-ada")
		v.arrives("/")
		v.until("it is the shop", fmt.Sprintf(`location.origin === %q`, shop.url))
	})
	t.Run("an answer that nobody asked for is refused, and leaves no trace", func(t *testing.T) {
		v := visit(t, browser, shop.url)
		v.mayComplain("401")
		v.open("/sign-in/callback?code=stolen&state=guessed")
		v.shows("#problem", "This sign-in was not begun here, took too long, or is over already; please begin again.")
		v.until("the code is not in the address", `location.search === ''`)
		v.picture("sign-in-failed")
	})
	t.Run("who does not sign in there may begin again", func(t *testing.T) {
		v := visit(t, browser, shop.url)
		v.open("/sign-in/callback?error=access_denied&error_description=" + url.QueryEscape("call 555-1234"))
		v.shows("#problem", "You did not sign in there.")
		v.clicks("#again a")
		v.arrives("/sign-in")
	})
}
