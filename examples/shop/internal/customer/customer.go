// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package customer is the service that knows people: sign-up, sign-in as a small
// OpenID Connect issuer, and the credit that bounds each customer's orders in flight.
package customer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"net/mail"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/crypto/bcrypt"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/ratelimit"
)

// CreditLimit is what a new customer may have in flight.
const CreditLimit kernel.Money = 100_000

// Account is a customer or a member of staff to exist from the start.
type Account struct {
	Name, Email, Password, Role string
}

// Config is what the service needs beyond its surroundings.
type Config struct {
	// Issuer is the URL that people reach the issuer at; it is the "iss" of every token.
	Issuer string
	// TokenTTL is how long a sign-in lasts. Zero means 12 hours.
	TokenTTL time.Duration
	// Accounts are created if they do not exist yet.
	Accounts []Account
	// PasswordCost is bcrypt's. Zero means its default.
	PasswordCost int
}

// Service is the customer service.
type Service struct {
	env    platform.Env
	bus    *platform.Bus
	issuer *issuer
	other  *otherIssuer
	// decoy is compared with the password of an unknown address, so that the time of
	// an answer does not tell whether the address is known.
	decoy []byte
	// tries bounds how often somebody may try a password of one address.
	tries platform.Quota
	cost  int
}

var signInLimit = ratelimit.Limit{Rate: 10, Per: time.Minute, Burst: 10}

// A customer without a password comes from another issuer, and is known by its identity there. Its address is
// none to sign in with, so it may be the same as somebody else's.
const schema = `
CREATE TABLE IF NOT EXISTS customers (
	id TEXT PRIMARY KEY,
	name TEXT NOT NULL,
	email TEXT NOT NULL,
	password_hash TEXT NOT NULL,
	role TEXT NOT NULL,
	credit_limit BIGINT NOT NULL,
	credit_reserved BIGINT NOT NULL DEFAULT 0 CHECK (credit_reserved >= 0),
	created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS customers_with_password ON customers (email) WHERE password_hash <> '';
CREATE TABLE IF NOT EXISTS identities (
	issuer TEXT NOT NULL,
	subject TEXT NOT NULL,
	customer_id TEXT NOT NULL REFERENCES customers (id),
	PRIMARY KEY (issuer, subject)
);
CREATE TABLE IF NOT EXISTS used_sign_ins (
	state TEXT PRIMARY KEY,
	expires_at BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS credit_reservations (
	order_id TEXT PRIMARY KEY,
	customer_id TEXT NOT NULL REFERENCES customers (id),
	amount BIGINT NOT NULL CHECK (amount > 0),
	status TEXT NOT NULL CHECK (status IN ('reserved', 'released', 'settled'))
);
CREATE INDEX IF NOT EXISTS credit_reservations_customer ON credit_reservations (customer_id);
CREATE TABLE IF NOT EXISTS signing_keys (
	id TEXT PRIMARY KEY,
	private_jwk TEXT NOT NULL,
	created_at BIGINT NOT NULL
);`

// New prepares the service's database and returns the service.
func New(ctx context.Context, env platform.Env, cfg Config) (*Service, error) {
	if err := platform.CreateTables(ctx, env.DB, schema); err != nil {
		return nil, err
	}
	bus, err := platform.NewBus(ctx, env)
	if err != nil {
		return nil, err
	}
	issuer, err := newIssuer(ctx, env.DB, cfg)
	if err != nil {
		return nil, err
	}
	if cfg.PasswordCost == 0 {
		cfg.PasswordCost = bcrypt.DefaultCost
	}
	decoy, err := bcrypt.GenerateFromPassword([]byte("decoy"), cfg.PasswordCost)
	if err != nil {
		return nil, err
	}
	tries, err := env.Quota("sign-in", signInLimit)
	if err != nil {
		return nil, err
	}
	s := &Service{env: env, bus: bus, issuer: issuer, decoy: decoy, tries: tries, cost: cfg.PasswordCost}
	if s.other, err = newOtherIssuer(env, cfg.Issuer); err != nil {
		return nil, err
	}
	for _, a := range cfg.Accounts {
		if _, err := s.register(ctx, a); err != nil && !errors.Is(err, errTaken) {
			return nil, fmt.Errorf("account %s: %w", a.Email, err)
		}
	}
	return s, nil
}

// Consumers implements [platform.Service]: the service listens to nobody.
func (s *Service) Consumers() []platform.Consumer { return nil }

// Run implements [platform.Service].
func (s *Service) Run(ctx context.Context) error { return s.bus.Run(ctx) }

// Collectors are what the service shows of its blocks, beside what every service does.
func (s *Service) Collectors() []prometheus.Collector {
	return platform.QuotaCollectors(map[string]platform.Quota{"sign-in": s.tries})
}

// Bus returns the service's outbox and inbox, for the operator's view.
func (s *Service) Bus() *platform.Bus { return s.bus }

// Handler implements [platform.Service].
func (s *Service) Handler() http.Handler {
	auth := s.env.Auth
	mux := http.NewServeMux()
	mux.Handle("POST /customers", platform.Handle(s.signUp))
	mux.Handle("POST /sessions", platform.Handle(s.signIn))
	mux.Handle("GET /sign-in", platform.Handle(s.waysIn))
	mux.Handle("POST /sign-in", platform.Handle(s.beginSignIn))
	mux.Handle("POST /sign-in/session", platform.Handle(s.endSignIn))
	mux.Handle("POST /internal/sessions", auth.Require(platform.Handle(s.exchange)))
	mux.Handle("GET /me", auth.Require(platform.Handle(s.me), platform.RoleCustomer, platform.RoleAdmin, platform.RoleOperator))
	mux.Handle("GET /.well-known/openid-configuration", platform.Handle(s.issuer.configuration))
	mux.Handle("GET /.well-known/jwks.json", platform.Handle(s.issuer.keys))
	mux.Handle("POST /internal/credit/reserve", auth.Require(platform.Participant(s.bus, s.reserveCredit)))
	mux.Handle("POST /internal/credit/release", auth.Require(platform.Participant(s.bus, s.endReservation("released"))))
	mux.Handle("POST /internal/credit/settle", auth.Require(platform.Participant(s.bus, s.endReservation("settled"))))
	return mux
}

func (s *Service) signUp(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Name     string `json:"name"`
		Email    string `json:"email"`
		Password string `json:"password"`
	}
	if err := platform.Decode(w, r, &in); err != nil {
		return err
	}
	id, err := s.register(r.Context(), Account{Name: in.Name, Email: in.Email, Password: in.Password, Role: platform.RoleCustomer})
	if errors.Is(err, errTaken) {
		return &platform.Error{Status: http.StatusConflict, Code: "email-taken", Field: "email", Detail: "has an account already; sign in instead"}
	}
	if err != nil {
		return err
	}
	return platform.WriteJSON(w, http.StatusCreated, map[string]string{"id": id})
}

var errTaken = errors.New("the address has an account")

// register creates an account and tells the others, in one transaction.
func (s *Service) register(ctx context.Context, a Account) (id string, err error) {
	a.Name, a.Email = strings.TrimSpace(a.Name), strings.ToLower(strings.TrimSpace(a.Email))
	if err := validate(a); err != nil {
		return "", err
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(a.Password), s.cost)
	if err != nil {
		return "", err
	}
	id = kernel.NewID()
	return id, s.bus.InTx(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `INSERT INTO customers (id, name, email, password_hash, role, credit_limit, created_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`,
			id, a.Name, a.Email, string(hash), a.Role, CreditLimit, time.Now().UnixMicro())
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, errTaken)
		}
		return s.bus.Emit(ctx, tx, kernel.CustomerRegistered{CustomerID: id, Name: a.Name, Email: a.Email})
	})
}

func validate(a Account) error {
	if n := utf8.RuneCountInString(a.Name); n < 1 || n > 100 {
		return platform.Invalid("name", "has %d characters, want 1 to 100", n)
	}
	if !platform.Line(a.Name) {
		return platform.Invalid("name", "has characters in it that cannot be read, want one line of text")
	}
	// An address that looks like another one may not be another one.
	hidden := func(r rune) bool { return !unicode.IsGraphic(r) }
	if addr, err := mail.ParseAddress(a.Email); err != nil || addr.Address != a.Email || len(a.Email) > platform.MaxEmail || strings.ContainsFunc(a.Email, hidden) {
		return platform.Invalid("email", "want a mail address such as name@example.com")
	}
	if n := len(a.Password); n < 8 || n > maxPassword {
		return platform.Invalid("password", "has %d bytes, want 8 to %d", n, maxPassword)
	}
	return nil
}

// maxPassword is how many bytes bcrypt reads: whatever comes after them would be as good as the password.
const maxPassword = 72

func (s *Service) signIn(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Email    string `json:"email"`
		Password string `json:"password"`
	}
	if err := platform.Decode(w, r, &in); err != nil {
		return err
	}
	email := strings.ToLower(strings.TrimSpace(in.Email))
	switch {
	case email == "":
		return platform.Invalid("email", "is missing")
	case in.Password == "":
		return platform.Invalid("password", "is missing")
	case len(email) > platform.MaxEmail:
		email = "" // it has no account, and its quota needs no megabyte
	}
	if result := s.tries.Allow(r.Context(), email); !result.OK {
		return &platform.Error{Status: http.StatusTooManyRequests, Code: "too-many-requests", Detail: "too many tries for this address; please wait", RetryAfter: result.RetryAfter}
	}
	var id, role, hash string
	err := s.env.DB.QueryRowContext(r.Context(), `SELECT id, role, password_hash FROM customers WHERE email = $1 AND password_hash <> ''`, email).
		Scan(&id, &role, &hash)
	if errors.Is(err, sql.ErrNoRows) {
		hash = string(s.decoy)
	} else if err != nil {
		return err
	}
	if bcrypt.CompareHashAndPassword([]byte(hash), []byte(in.Password)) != nil || id == "" || len(in.Password) > maxPassword {
		return &platform.Error{Status: http.StatusUnauthorized, Code: "bad-credentials", Detail: "the address or the password is wrong"}
	}
	token, expires, err := s.issuer.sign(platform.Identity{Subject: id, Email: email, Role: role})
	if err != nil {
		return err
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"token": token, "expires_at": expires.Format(time.RFC3339)})
}

// profile is what a customer sees of its own account.
type profile struct {
	ID             string       `json:"id"`
	Name           string       `json:"name"`
	Email          string       `json:"email"`
	Role           string       `json:"role"`
	CreditLimit    kernel.Money `json:"credit_limit"`
	CreditReserved kernel.Money `json:"credit_reserved"`
	Currency       string       `json:"currency"`
}

func (s *Service) me(w http.ResponseWriter, r *http.Request) error {
	id := platform.IdentityOf(r.Context())
	p := profile{Role: id.Role, Currency: kernel.Currency} // as long as the token lasts, its role does
	subject := id.Subject
	err := s.env.DB.QueryRowContext(r.Context(), `SELECT id, name, email, credit_limit, credit_reserved FROM customers WHERE id = $1`, subject).
		Scan(&p.ID, &p.Name, &p.Email, &p.CreditLimit, &p.CreditReserved)
	if errors.Is(err, sql.ErrNoRows) {
		return platform.NotFound("customer", subject)
	}
	if err != nil {
		return err
	}
	return platform.WriteJSON(w, http.StatusOK, p)
}
