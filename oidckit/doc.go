// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package oidckit tells who sends a request: it verifies the JSON Web Tokens of an OpenID Connect
// issuer, such as Keycloak, Auth0, Entra ID or Amazon Cognito, through go-jose.
//
//	verifier, err := oidckit.New("https://login.example.com", []string{"shop"}, oidckit.Config{})
//	signedIn, err := oidckit.Middleware[Claims](verifier, oidckit.MiddlewareConfig{Realm: "shop"})
//	mux.Handle("GET /orders", signedIn(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
//		claims, _ := oidckit.ClaimsOf[Claims](r.Context())
//		token, _ := oidckit.TokenOf(r.Context())
//		...
//	})))
//
// An access token of Amazon Cognito has no audience but a client ID:
//
//	oidckit.New("https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_Ab1", []string{clientID},
//		oidckit.Config{ClientID: true, Require: map[string][]string{"token_use": {"access"}}})
//
// # Guarantees
//
//   - A token is accepted only if it is signed by a key of the issuer with an algorithm that
//     Config.Algorithms lists and that fits the key. None and the HMACs are no such
//     algorithms, whatever is configured; keys inside of a token are not looked at.
//   - Issuer, audience, expiry and what Config.Require names are checked, in every token; an
//     expiry has to be there.
//   - A token with a key that is known never waits for the issuer, and goes on being
//     accepted through an outage of it of up to Config.KeysMaxAge.
//   - However many tokens with made-up key IDs arrive, the issuer is asked once in
//     Config.KeysMinAge, by one request at a time; after failures in steps from 1 second to 1
//     minute. Nothing is remembered of such tokens.
//   - A new key of the issuer is known at its first token, or Config.KeysMinAge later; one that the
//     issuer has taken back is refused after Config.KeysAge, unless the issuer is out.
//   - Neither errors nor logs nor answers contain a token or a part of one.
//
// # Caveats
//
// A token is valid until it expires: there is no asking the issuer whether a session still
// lasts. Let tokens be short-lived.
//
// While the issuer is out, nobody can tell a forged key ID from a new one: such a token is [ErrKeys],
// and its answer 503 instead of 401.
//
// Tokens that were verified are remembered, by their SHA-256, so that their signature is verified
// once; see Config.Remember. Everything else is checked every time.
//
// A forged signature under a real key ID costs a verification each (30 to 100 µs). Put a rate limit per
// address before the middleware.
//
// There is no sign-in flow here (authorization code, PKCE): golang.org/x/oauth2 has one, and [Verifier.Discovery] tells it
// where to go; the reference shop shows both together. There are no encrypted tokens, no opaque tokens,
// and no tokens in cookies, query or body: only in the Authorization header (RFC 6750,
// section 2.1).
package oidckit
