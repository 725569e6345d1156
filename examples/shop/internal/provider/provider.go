// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package provider simulates a payment provider outside the shop: it has its own
// interface, its own ledger, and its moods. How it behaves is chosen by the payment method:
//
//	pm_visa                  succeeds
//	pm_declined              is declined
//	pm_insufficient_funds    is declined for lack of money
//	pm_slow                  succeeds after two seconds
//	pm_flaky                 fails twice, then succeeds
//	pm_timeout_after_charge  is booked, but the answer never comes
//
// Its gate may also make it as a whole be down, slow, or decline everything for a while.
package provider

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// Service is the provider.
type Service struct {
	env platform.Env
	// bearer is what a merchant shows. There is one: the shop.
	bearer string
}

// A charge is booked under the key that the caller chose, so that a repeated request
// finds the first one's result.
const schema = `
CREATE TABLE IF NOT EXISTS charges (
	key TEXT PRIMARY KEY,
	reference TEXT NOT NULL,
	amount BIGINT NOT NULL,
	currency TEXT NOT NULL,
	method TEXT NOT NULL,
	status TEXT NOT NULL CHECK (status IN ('authorised', 'declined', 'captured', 'voided', 'refunded')),
	reason TEXT NOT NULL DEFAULT '',
	updated_at BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS failures (
	key TEXT PRIMARY KEY,
	count BIGINT NOT NULL
);`

// New prepares the provider's ledger.
func New(ctx context.Context, env platform.Env) (*Service, error) {
	if err := platform.CreateTables(ctx, env.DB, schema); err != nil {
		return nil, err
	}
	key, err := env.Caller.KeyFor(platform.ProviderKey)
	if err != nil {
		return nil, err
	}
	return &Service{env: env, bearer: "Bearer " + hex.EncodeToString(key)}, nil
}

// Consumers implements [platform.Service]: the provider is no part of the shop.
func (s *Service) Consumers() []platform.Consumer { return nil }

// Run implements [platform.Service].
func (s *Service) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Handler implements [platform.Service].
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, fn := range map[string]func(w http.ResponseWriter, r *http.Request) error{
		"POST /v1/charges":               s.authorise,
		"GET /v1/charges/{key}":          s.get,
		"POST /v1/charges/{key}/capture": s.move("captured", "authorised"),
		"POST /v1/charges/{key}/void":    s.void,
		"POST /v1/charges/{key}/refund":  s.move("refunded", "captured"),
	} {
		mux.Handle(pattern, s.moody(s.merchants(platform.Handle(fn))))
	}
	return mux
}

// moody lets the provider's mood have its way before a request is served.
func (s *Service) moody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mood := s.env.Gate.Harm()
		if mood.Down {
			panic(http.ErrAbortHandler) // the connection is cut
		}
		if mood.Delay > 0 && pause(r.Context(), mood.Delay) != nil {
			return // nobody waits any more
		}
		next.ServeHTTP(w, r)
	})
}

// merchants lets those in who have a key.
func (s *Service) merchants(next http.Handler) http.Handler {
	return platform.Handle(func(w http.ResponseWriter, r *http.Request) error {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte(s.bearer)) != 1 {
			return &platform.Error{Status: http.StatusUnauthorized, Code: "no-merchant", Detail: "want a merchant's key"}
		}
		next.ServeHTTP(w, r)
		return nil
	})
}

// Charge is one booking as the provider shows it.
type Charge struct {
	Key       string `json:"key"`
	Reference string `json:"reference"`
	Amount    int64  `json:"amount"`
	Currency  string `json:"currency"`
	Method    string `json:"method"`
	Status    string `json:"status"`
	Reason    string `json:"reason,omitempty"`
}

func (s *Service) authorise(w http.ResponseWriter, r *http.Request) error {
	var in Charge
	in.Key = r.Header.Get("Idempotency-Key")
	if in.Key == "" {
		return &platform.Error{Status: http.StatusBadRequest, Code: "no-idempotency-key", Detail: "want an Idempotency-Key"}
	}
	var body struct {
		Reference string `json:"reference"`
		Amount    int64  `json:"amount"`
		Currency  string `json:"currency"`
		Method    string `json:"method"`
	}
	if err := platform.Decode(w, r, &body); err != nil {
		return err
	}
	if body.Amount <= 0 {
		return platform.Invalid("amount", "is %d, want more than 0", body.Amount)
	}
	in.Reference, in.Amount, in.Currency, in.Method, in.Status = body.Reference, body.Amount, body.Currency, body.Method, "authorised"
	switch in.Method {
	case "pm_declined":
		in.Status, in.Reason = "declined", "declined"
	case "pm_insufficient_funds":
		in.Status, in.Reason = "declined", "insufficient-funds"
	case "pm_slow":
		if err := pause(r.Context(), 2*time.Second); err != nil {
			return err
		}
	case "pm_flaky":
		if failed, err := s.failFirst(r.Context(), in.Key, 2); err != nil {
			return err
		} else if failed {
			return &platform.Error{Status: http.StatusServiceUnavailable, Code: "flaky", Detail: "please try again"}
		}
	case "pm_visa", "pm_timeout_after_charge":
	default:
		return platform.Invalid("method", "is %q, which is not a payment method of this provider", in.Method)
	}
	if s.env.Gate.Harm().Declining {
		in.Status, in.Reason = "declined", "declined"
	}
	booked, err := s.book(r.Context(), in)
	if err != nil {
		return err
	}
	if in.Method == "pm_timeout_after_charge" {
		select { // booked, but nobody hears of it
		case <-r.Context().Done():
		case <-platform.Draining(r.Context()):
		}
		panic(http.ErrAbortHandler)
	}
	return answer(w, booked)
}

// book writes the charge unless its key is taken, and returns what the key stands for.
func (s *Service) book(ctx context.Context, in Charge) (booked Charge, err error) {
	return booked, platform.InTx(ctx, s.env.DB, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO charges (key, reference, amount, currency, method, status, reason, updated_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (key) DO NOTHING`,
			in.Key, in.Reference, in.Amount, in.Currency, in.Method, in.Status, in.Reason, time.Now().UnixMicro()); err != nil {
			return err
		}
		if booked, err = read(ctx, tx, in.Key); err != nil {
			return err
		}
		if booked.Status != "voided" && (booked.Amount != in.Amount || booked.Currency != in.Currency || booked.Method != in.Method || booked.Reference != in.Reference) {
			return &platform.Error{Status: http.StatusUnprocessableEntity, Code: "key-reused", Detail: "this Idempotency-Key stands for another charge"}
		}
		return nil
	})
}

// failFirst reports whether this attempt is among the first n of its key.
func (s *Service) failFirst(ctx context.Context, key string, n int) (failed bool, err error) {
	return failed, platform.InTx(ctx, s.env.DB, func(tx *sql.Tx) error {
		var count int
		err := tx.QueryRowContext(ctx, `INSERT INTO failures (key, count) VALUES ($1, 1)
			ON CONFLICT (key) DO UPDATE SET count = failures.count + 1 RETURNING count`, key).Scan(&count)
		failed = count <= n
		return err
	})
}

func (s *Service) get(w http.ResponseWriter, r *http.Request) error {
	c, err := read(r.Context(), s.env.DB, r.PathValue("key"))
	if err != nil {
		return err
	}
	return platform.WriteJSON(w, http.StatusOK, c)
}

// move books the next state of a charge. Asked again, it answers the same again.
func (s *Service) move(to string, from string) func(w http.ResponseWriter, r *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		key := r.PathValue("key")
		var c Charge
		err := platform.InTx(r.Context(), s.env.DB, func(tx *sql.Tx) (err error) {
			if _, err = tx.ExecContext(r.Context(), `UPDATE charges SET status = $1, updated_at = $2 WHERE key = $3 AND status = $4`,
				to, time.Now().UnixMicro(), key, from); err != nil {
				return err
			}
			c, err = read(r.Context(), tx, key)
			return err
		})
		if err != nil {
			return err
		}
		if c.Status != to {
			return &platform.Error{Status: http.StatusConflict, Code: "wrong-state", Detail: "the charge is " + c.Status + ", want " + from}
		}
		return platform.WriteJSON(w, http.StatusOK, c)
	}
}

// void ends an authorisation. The key of a charge that never came is voided as well, so
// that a late request for it finds it closed.
func (s *Service) void(w http.ResponseWriter, r *http.Request) error {
	key := r.PathValue("key")
	if _, err := s.env.DB.ExecContext(r.Context(), `INSERT INTO charges (key, reference, amount, currency, method, status, reason, updated_at)
		VALUES ($1, '', 0, '', '', 'voided', 'never authorised', $2) ON CONFLICT (key) DO NOTHING`, key, time.Now().UnixMicro()); err != nil {
		return err
	}
	c, err := read(r.Context(), s.env.DB, key)
	if err != nil {
		return err
	}
	if c.Status == "declined" {
		return platform.WriteJSON(w, http.StatusOK, c) // nothing was held
	}
	return s.move("voided", "authorised")(w, r)
}

func read(ctx context.Context, q interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}, key string,
) (Charge, error) {
	c := Charge{Key: key}
	err := q.QueryRowContext(ctx, `SELECT reference, amount, currency, method, status, reason FROM charges WHERE key = $1`, key).
		Scan(&c.Reference, &c.Amount, &c.Currency, &c.Method, &c.Status, &c.Reason)
	if errors.Is(err, sql.ErrNoRows) {
		return c, platform.NotFound("charge", key)
	}
	return c, err
}

func answer(w http.ResponseWriter, c Charge) error {
	if c.Status == "declined" {
		return &platform.Error{Status: http.StatusPaymentRequired, Code: c.Reason, Detail: "the payment was refused: " + strings.ReplaceAll(c.Reason, "-", " ")}
	}
	if c.Status == "voided" {
		return &platform.Error{Status: http.StatusConflict, Code: "voided", Detail: "this charge was voided before it came"}
	}
	return platform.WriteJSON(w, http.StatusCreated, c)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
