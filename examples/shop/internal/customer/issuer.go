// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package customer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// issuer signs tokens and publishes the keys to verify them with. The keys live in the
// service's database: all instances sign with the same one, and a restart signs nobody out.
type issuer struct {
	url    string
	ttl    time.Duration
	db     *sql.DB
	signer jose.Signer
}

func newIssuer(ctx context.Context, db *sql.DB, cfg Config) (*issuer, error) {
	key, err := signingKey(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	ttl := cfg.TokenTTL
	if ttl == 0 {
		ttl = 12 * time.Hour
	}
	return &issuer{url: cfg.Issuer, ttl: ttl, db: db, signer: signer}, nil
}

// signingKey returns the newest key, made now if there is none.
func signingKey(ctx context.Context, db *sql.DB) (*jose.JSONWebKey, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	fresh, err := json.Marshal(jose.JSONWebKey{Key: private, KeyID: kernel.NewID(), Algorithm: string(jose.ES256), Use: "sig"})
	if err != nil {
		return nil, err
	}
	key := new(jose.JSONWebKey)
	return key, platform.Exclusively(ctx, db, func(tx *sql.Tx) error {
		var stored string
		err := tx.QueryRowContext(ctx, `SELECT private_jwk FROM signing_keys ORDER BY created_at DESC LIMIT 1`).Scan(&stored)
		if errors.Is(err, sql.ErrNoRows) {
			stored = string(fresh)
			_, err = tx.ExecContext(ctx, `INSERT INTO signing_keys (id, private_jwk, created_at) VALUES ($1, $2, $3)`, kernel.NewID(), stored, time.Now().UnixMicro())
		}
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(stored), key)
	})
}

// sign returns a token that says who somebody is until it expires.
func (i *issuer) sign(id platform.Identity) (token string, expires time.Time, err error) {
	expires = time.Now().Add(i.ttl)
	token, err = i.signUntil(id, expires)
	return token, expires, err
}

func (i *issuer) signUntil(id platform.Identity, expires time.Time) (token string, err error) {
	claims := map[string]any{"role": id.Role}
	if id.Email != "" {
		claims["email"] = id.Email
	}
	return jwt.Signed(i.signer).
		Claims(jwt.Claims{
			Issuer: i.url, Subject: id.Subject, Audience: jwt.Audience{platform.Audience},
			IssuedAt: jwt.NewNumericDate(time.Now()), Expiry: jwt.NewNumericDate(expires), ID: kernel.NewID(),
		}).
		Claims(claims).
		Serialize()
}

// configuration answers OpenID Connect Discovery.
func (i *issuer) configuration(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Cache-Control", "max-age=300")
	return platform.WriteJSON(w, http.StatusOK, map[string]any{
		"issuer":                                i.url,
		"jwks_uri":                              i.url + "/.well-known/jwks.json",
		"id_token_signing_alg_values_supported": []string{string(jose.ES256)},
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
	})
}

// keys answers with the public keys, RFC 7517: all that tokens may have been signed with, the
// newest first.
func (i *issuer) keys(w http.ResponseWriter, r *http.Request) error {
	keys, err := platform.Collect(r.Context(), i.db, func(row interface{ Scan(dest ...any) error }) (key jose.JSONWebKey, err error) {
		var stored string
		if err := row.Scan(&stored); err != nil {
			return key, err
		}
		err = json.Unmarshal([]byte(stored), &key)
		return key.Public(), err
	}, `SELECT private_jwk FROM signing_keys ORDER BY created_at DESC`)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "max-age=300")
	return platform.WriteJSON(w, http.StatusOK, jose.JSONWebKeySet{Keys: keys})
}
