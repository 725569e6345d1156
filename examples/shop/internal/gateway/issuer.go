// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/oidckit"
)

// exchangedFor is how long the gateway keeps the shop's token for one of another issuer, which customer makes for
// longer. It is kept in memory only: a shared cache is no place for tokens.
const exchangedFor = time.Minute

func newExchange() (*cache.Cache[string], error) {
	return cache.New("exchange", cache.Config[string]{TTL: exchangedFor, StaleFor: -1, NegativeTTL: -1, LoadTimeout: 5 * time.Second})
}

// exchanged lets people in by access tokens of the other issuer, if there is one: it puts a token of the shop in the
// place of each, so that the services behind know a single issuer, and customers by a single ID.
func (s *Service) exchanged(next http.Handler) http.Handler {
	if s.env.Issuer == nil {
		return next
	}
	return platform.Handle(func(w http.ResponseWriter, r *http.Request) error {
		raw, _ := oidckit.Bearer(r) // without one it is not the other issuer's
		if !s.env.Issuer.Issued(raw) {
			next.ServeHTTP(w, r)
			return nil
		}
		// Each time: an answer that is kept must not outlive the token that it was given for.
		if _, err := s.env.Issuer.Access(r.Context(), raw); err != nil {
			return platform.NotIdentified(w, err)
		}
		key := sha256.Sum256([]byte(raw))
		ours, err := s.exchange.Get(r.Context(), hex.EncodeToString(key[:]), func(ctx context.Context, _ string) (string, error) {
			var out struct {
				Token string `json:"token"`
			}
			err := s.env.Caller.Do(ctx, http.MethodPost, "http://customer/internal/sessions", nil, map[string]string{"token": raw}, &out)
			return out.Token, err
		})
		var no *platform.Error
		switch {
		case errors.As(err, &no) && no.Status == http.StatusUnauthorized:
			return platform.NotIdentified(w, oidckit.ErrInvalid)
		case err != nil:
			return away(r.Context(), "customer", err)
		}
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+ours)
		next.ServeHTTP(w, r)
		return nil
	})
}
