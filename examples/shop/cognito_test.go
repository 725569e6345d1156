// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
)

// cognito is the API of Amazon Cognito: of an emulator, which looks at no signature.
type cognito struct {
	t   *testing.T
	url string
}

// do calls an action of the API. AWS's own package for that is six modules, and fifteen seconds to build with the race detector.
func (c cognito) do(action string, in, out any) {
	c.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		c.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", "AWSCognitoIdentityProviderService."+action)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err = io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("%s: %s, %v: %s", action, resp.Status, err, body)
	}
	if out == nil {
		return
	}
	if err := json.Unmarshal(body, out); err != nil {
		c.t.Fatalf("%s: %v: %s", action, err, body)
	}
}

// object is one of JSON.
type object map[string]any

// userPool is one of Cognito, whose people sign in by their addresses.
type userPool struct {
	cognito
	id string
}

func (c cognito) pool(groups ...string) userPool {
	c.t.Helper()
	var out struct{ UserPool struct{ ID string } }
	c.do("CreateUserPool", object{"PoolName": "shop", "UsernameAttributes": []string{"email"}}, &out)
	p := userPool{c, out.UserPool.ID}
	for _, group := range groups {
		p.do("CreateGroup", object{"UserPoolId": p.id, "GroupName": group}, nil)
	}
	return p
}

func (p userPool) issuer() string { return p.url + "/" + p.id }

// client makes a public client whose access tokens are valid for so many hours.
func (p userPool) client(hours int) (id string) {
	p.t.Helper()
	var out struct{ UserPoolClient struct{ ClientID string } }
	p.do("CreateUserPoolClient", object{
		"UserPoolId": p.id, "ClientName": "shop", "ExplicitAuthFlows": []string{"ALLOW_USER_PASSWORD_AUTH", "ALLOW_REFRESH_TOKEN_AUTH"},
		"AccessTokenValidity": hours, "TokenValidityUnits": object{"AccessToken": "hours", "IdToken": "hours"}, "IdTokenValidity": 1,
	}, &out)
	return out.UserPoolClient.ClientID
}

const poolPassword = "Correct-horse-1"

// admits makes a person, and a member of these groups.
func (p userPool) admits(email string, groups ...string) {
	p.t.Helper()
	p.do("AdminCreateUser", object{"UserPoolId": p.id, "Username": email, "MessageAction": "SUPPRESS", "UserAttributes": []object{{"Name": "email", "Value": email}}}, nil)
	p.do("AdminSetUserPassword", object{"UserPoolId": p.id, "Username": email, "Password": poolPassword, "Permanent": true}, nil)
	for _, group := range groups {
		p.do("AdminAddUserToGroup", object{"UserPoolId": p.id, "Username": email, "GroupName": group}, nil)
	}
}

type poolTokens struct{ AccessToken, IDToken, RefreshToken string }

// signsIn is what an app of the client does with somebody's password.
func (p userPool) signsIn(client, email string) poolTokens {
	p.t.Helper()
	return p.initiates("USER_PASSWORD_AUTH", client, object{"USERNAME": email, "PASSWORD": poolPassword})
}

func (p userPool) initiates(flow, client string, parameters object) poolTokens {
	p.t.Helper()
	var out struct{ AuthenticationResult poolTokens }
	p.do("InitiateAuth", object{"AuthFlow": flow, "ClientId": client, "AuthParameters": parameters}, &out)
	if got := out.AuthenticationResult; got.AccessToken == "" || got.IDToken == "" {
		p.t.Fatalf("%s: tokens = %+v", flow, got)
	}
	return out.AuthenticationResult
}

// TestCognito lets people in by the tokens of an emulator of Amazon Cognito. The emulator has neither userinfo nor GlobalSignOut, leaves the
// endpoints of the code flow out of its discovery documents, and the nonce out of its ID tokens, without which the shop takes none:
// userinfo and the sign-in in a browser are tested with mockoidc.
func TestCognito(t *testing.T) {
	url, stop, start := testserver.Cognito(t, filepath.Join("..", "..", ".services", "cognito", "node_modules", "cognito-local", "lib", "bin", "start.js"))
	aws := cognito{t, url}
	pool := aws.pool("masters", "buyers", "operator")
	app := pool.client(1)
	config := platform.IssuerConfig{
		URL: pool.issuer(), Name: "Guild", ClientID: app, RolesClaim: "cognito:groups",
		Roles: []platform.GroupRole{{Group: "masters", Role: platform.RoleOperator}, {Group: "buyers", Role: platform.RoleAdmin}},
	}
	shop := openShopWith(t, embedded.Config{Data: t.TempDir(), Packing: 24 * time.Hour, Issuer: config}).stocked()
	with := func(t *testing.T, token string) *api { return &api{t, shop.url, token} }
	refused := func(t *testing.T, token string) {
		t.Helper()
		a := with(t, token)
		a.wantProblem(401, "bad-token", "", a.send("GET", "/api/me", nil, nil))
	}
	pool.admits("grete@guild.example")
	grete := pool.signsIn(app, "grete@guild.example")

	t.Run("an access token is as good as a session", func(t *testing.T) {
		a := with(t, grete.AccessToken)
		me := a.account()
		// The token says no more than the subject: its username is the same.
		if me.ID == "" || me.Name != "Customer" || me.Email != "" || me.Role != "customer" {
			t.Errorf("account = %+v, want a customer", me)
		}
		order := a.place("", lineItem{"product_id": "p-001", "quantity": 1})
		page := a.ends(order, "confirmed")
		if page.Payment == nil || page.Payment.Status != "captured" || page.Payment.Amount != page.Total {
			t.Errorf("payment = %+v, want %d captured", page.Payment, page.Total)
		}
		if again := with(t, pool.signsIn(app, "grete@guild.example").AccessToken).account(); again != me {
			t.Errorf("account = %+v, want %+v again", again, me)
		}
		pool.admits("bert@guild.example")
		stranger := with(t, pool.signsIn(app, "bert@guild.example").AccessToken)
		stranger.wantProblem(404, "not-found", "", stranger.send("GET", "/api/orders/"+order, nil, nil))
	})

	t.Run("groups become roles, the first that fits", func(t *testing.T) {
		for email, tt := range map[string]struct {
			groups []string
			role   string
		}{
			"olga@guild.example": {[]string{"buyers", "masters"}, "operator"},
			"otto@guild.example": {[]string{"buyers"}, "admin"},
			"carl@guild.example": {[]string{"operator"}, "customer"}, // a role's name is no group's
			"kurt@guild.example": {nil, "customer"},
		} {
			pool.admits(email, tt.groups...)
			a := with(t, pool.signsIn(app, email).AccessToken)
			if me := a.account(); me.Role != tt.role {
				t.Errorf("groups %v = %q, want %q", tt.groups, me.Role, tt.role)
			}
			got := a.send("GET", "/ops/api/services", nil, nil)
			if tt.role == "operator" {
				a.want(http.StatusOK, got, nil)
			} else {
				a.wantProblem(403, "forbidden", "", got)
			}
		}
		pool.do("AdminRemoveUserFromGroup", object{"UserPoolId": pool.id, "Username": "olga@guild.example", "GroupName": "masters"}, nil)
		if me := with(t, pool.signsIn(app, "olga@guild.example").AccessToken).account(); me.Role != "admin" {
			t.Errorf("role = %q in the next token, want admin", me.Role)
		}
	})

	t.Run("a token that was refreshed is the same customer's, and the last one lives on", func(t *testing.T) {
		next := pool.initiates("REFRESH_TOKEN_AUTH", app, object{"REFRESH_TOKEN": grete.RefreshToken})
		if a, b := with(t, next.AccessToken).account(), with(t, grete.AccessToken).account(); a != b || next.AccessToken == grete.AccessToken {
			t.Errorf("accounts = %+v and %+v, want the same by two tokens", a, b)
		}
		pool.do("RevokeToken", object{"ClientId": app, "Token": grete.RefreshToken}, nil)
		with(t, next.AccessToken).account() // until it expires: nobody asks the issuer
	})

	foreign := pool.client(1)
	t.Run("a token of another client is refused, and taken where that is named", func(t *testing.T) {
		token := pool.signsIn(foreign, "grete@guild.example").AccessToken
		refused(t, token)
		config := config
		config.Audience = []string{app, foreign}
		other := openShopWith(t, embedded.Config{Data: t.TempDir(), Issuer: config})
		(&api{t, other.url, token}).account()
	})

	other := aws.pool() // signed with the same key, as the emulator does
	otherApp := other.client(1)
	other.admits("grete@guild.example")
	for name, token := range map[string]string{
		"an ID token":                grete.IDToken,
		"a refresh token":            grete.RefreshToken,
		"one of another pool":        other.signsIn(otherApp, "grete@guild.example").AccessToken,
		"one that has expired":       pool.signsIn(pool.client(-1), "grete@guild.example").AccessToken,
		"one with another signature": altered(t, grete.AccessToken, func(signature []byte) []byte { signature[0] ^= 1; return signature }),
		"one without a signature":    altered(t, grete.AccessToken, func([]byte) []byte { return nil }),
		"one of a forger":            promoted(t, grete.AccessToken),
	} {
		t.Run(name+" is refused", func(t *testing.T) { refused(t, token) })
	}

	// From here on there is no Cognito, until there is one again.
	pool.admits("late@guild.example")
	late := pool.signsIn(app, "late@guild.example")
	stop()
	t.Run("while the issuer is away, tokens are good where its keys are known", func(t *testing.T) {
		known := with(t, grete.AccessToken)
		known.ends(known.place("", lineItem{"product_id": "p-002", "quantity": 1}), "confirmed")
		if me := with(t, late.AccessToken).account(); me.ID == "" || me.Name != "Customer" {
			t.Errorf("account = %+v, want a customer who has never been here", me)
		}
		refused(t, promoted(t, grete.AccessToken))
	})
	t.Run("a shop that opens meanwhile takes them when it is back", func(t *testing.T) {
		shop := openShopWith(t, embedded.Config{Data: t.TempDir(), Issuer: config})
		a := &api{t, shop.url, grete.AccessToken}
		got := a.send("GET", "/api/me", nil, nil)
		a.wantProblem(503, "unavailable", "", got)
		if got.header.Get("Retry-After") == "" {
			t.Error("Retry-After is missing")
		}
		got = shop.send("POST", "/api/sign-in", nil, nil)
		shop.wantProblem(503, "issuer-unavailable", "", got)
		if !strings.Contains(string(got.body), "Guild does not answer") {
			t.Errorf("answer = %s, want it to name who does not", got.body)
		}
		shop.ada() // the shop's own people come in as ever
		start()
		eventually(t, func() error {
			if got := a.send("GET", "/api/me", nil, nil); got.status != http.StatusOK {
				return fmt.Errorf("status = %d, want 200 again; body: %s", got.status, got.body)
			}
			return nil
		})
		back := &api{t, shop.url, pool.signsIn(app, "grete@guild.example").AccessToken}
		if again := back.account(); again.ID != a.account().ID {
			t.Errorf("account = %+v, want the same customer by a new token", again)
		}
	})
}

// altered is a token with another signature.
func altered(t *testing.T, token string, change func(signature []byte) []byte) string {
	t.Helper()
	parts := strings.Split(token, ".")
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(append(slices.Clone(parts[:2]), base64.RawURLEncoding.EncodeToString(change(signature))), ".")
}

// promoted is a token whose bearer has made a member of masters of himself.
func promoted(t *testing.T, token string) string {
	t.Helper()
	var claims jwt.MapClaims
	if _, _, err := jwt.NewParser().ParseUnverified(token, &claims); err != nil {
		t.Fatal(err)
	}
	claims["cognito:groups"] = []string{"masters"}
	body, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	return parts[0] + "." + base64.RawURLEncoding.EncodeToString(body) + "." + parts[2]
}
