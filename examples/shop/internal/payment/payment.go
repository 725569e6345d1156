// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package payment is the service between the shop and its payment provider. What it
// asks of the provider it writes down first, under a key that never changes, so that after a crash or
// an answer that never came it can ask again, or look up what became of it.
package payment

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/promkit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/saga/barrier"
)

// Config is what the service needs beyond its surroundings.
type Config struct {
	// Provider is the URL of the payment provider, without a slash at the end.
	Provider string
}

// Service is the payment service.
type Service struct {
	env      platform.Env
	bus      *platform.Bus
	provider *Provider
}

// The states ending in "ing" mean that the provider was asked, or is about to be, and
// its answer is not written down yet.
const schema = `
CREATE TABLE IF NOT EXISTS payments (
	order_id TEXT PRIMARY KEY,
	customer_id TEXT NOT NULL,
	amount BIGINT NOT NULL,
	currency TEXT NOT NULL,
	method TEXT NOT NULL,
	status TEXT NOT NULL CHECK (status IN ('authorising', 'authorised', 'declined', 'captured', 'voiding', 'voided', 'refunded')),
	reason TEXT NOT NULL DEFAULT '',
	revision BIGINT NOT NULL DEFAULT 0,
	updated_at BIGINT NOT NULL
)`

// New prepares the service's database and returns the service.
func New(ctx context.Context, env platform.Env, cfg Config) (*Service, error) {
	if err := platform.CreateTables(ctx, env.DB, schema); err != nil {
		return nil, err
	}
	if err := platform.AddColumn(ctx, env.DB, "payments", "revision", "BIGINT NOT NULL DEFAULT 0"); err != nil {
		return nil, err
	}
	bus, err := platform.NewBus(ctx, env)
	if err != nil {
		return nil, err
	}
	reads, err := resilience.NewHedge(resilience.HedgeConfig{Name: "provider", Hooks: env.Tracing().Hedge()})
	if err != nil {
		return nil, err
	}
	key, err := env.Caller.KeyFor(platform.ProviderKey)
	if err != nil {
		return nil, err
	}
	return &Service{env: env, bus: bus, provider: &Provider{URL: cfg.Provider, Caller: env.Caller, Key: hex.EncodeToString(key), Reads: reads}}, nil
}

// Collectors are what the service shows of its blocks, beside what every service does.
func (s *Service) Collectors() []prometheus.Collector {
	return []prometheus.Collector{promkit.Hedges(s.provider.Reads)}
}

// Consumers implements [platform.Service]: payment is only ever asked directly.
func (s *Service) Consumers() []platform.Consumer { return nil }

// Run implements [platform.Service].
func (s *Service) Run(ctx context.Context) error { return s.bus.Run(ctx) }

// Bus returns the service's outbox and inbox, for the operator's view.
func (s *Service) Bus() *platform.Bus { return s.bus }

// Handler implements [platform.Service].
func (s *Service) Handler() http.Handler {
	auth := s.env.Auth
	mux := http.NewServeMux()
	mux.Handle("GET /payments/{order}", auth.Require(platform.Handle(s.get), platform.RoleCustomer, platform.RoleOperator))
	mux.Handle("POST /ops/payments/{order}/tell", auth.Require(platform.Handle(s.tellAgain), platform.RoleOperator))
	mux.Handle("POST /internal/payments/authorise", auth.Require(s.step(s.authorise)))
	mux.Handle("POST /internal/payments/void", auth.Require(s.step(s.void)))
	mux.Handle("POST /internal/payments/capture", auth.Require(s.step(s.capture)))
	mux.Handle("POST /internal/payments/refund", auth.Require(s.step(s.refund)))
	return mux
}

// request is the body of every step; only authorise needs more than the order.
type request struct {
	OrderID    string       `json:"order_id"`
	CustomerID string       `json:"customer_id"`
	Amount     kernel.Money `json:"amount"`
	Currency   string       `json:"currency"`
	Method     string       `json:"method"`
}

// payment is one row.
type payment struct {
	OrderID    string       `json:"order_id"`
	CustomerID string       `json:"-"`
	Status     string       `json:"status"`
	Reason     string       `json:"reason,omitempty"`
	Amount     kernel.Money `json:"amount"`
	Currency   string       `json:"currency"`
	Method     string       `json:"method"`
	Revision   int64        `json:"-"`
}

// stepTimeout bounds one step: two calls of the provider, and what is written down before and after them.
const stepTimeout = 8 * time.Second

// step is the handler of a saga step that talks to the provider. Such a step is more
// than one local transaction, so the barrier is passed where the intent is written down.
// What was begun is brought to its end although who asked has gone: the event tells of it.
func (s *Service) step(fn func(ctx context.Context, key barrier.Key, in request) error) http.Handler {
	return platform.Handle(func(w http.ResponseWriter, r *http.Request) error {
		key, err := barrier.KeyFromHeader(r.Header)
		if err != nil {
			return &platform.Error{Status: http.StatusBadRequest, Code: "no-saga-key", Detail: err.Error()}
		}
		var in request
		if err := platform.Decode(w, r, &in); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), stepTimeout)
		defer cancel()
		if err := fn(ctx, key, in); err != nil {
			return err
		}
		return platform.WriteJSON(w, http.StatusOK, struct{}{})
	})
}

// authorise holds the money. The intent is committed before the provider is asked.
func (s *Service) authorise(ctx context.Context, key barrier.Key, in request) error {
	err := s.bus.InTx(ctx, func(tx *sql.Tx) error {
		_, err := s.bus.Barrier.Do(ctx, tx, key, func() error {
			_, err := tx.ExecContext(ctx, `INSERT INTO payments (order_id, customer_id, amount, currency, method, status, updated_at)
				VALUES ($1, $2, $3, $4, $5, 'authorising', $6)`, in.OrderID, in.CustomerID, in.Amount, in.Currency, in.Method, time.Now().UnixMicro())
			return err
		})
		return err
	})
	if errors.Is(err, barrier.ErrCompensated) {
		return platform.Refused("compensated", "this payment was voided before it arrived")
	}
	if err != nil {
		return err
	}
	p, err := s.read(ctx, s.env.DB, in.OrderID)
	if err != nil {
		return err
	}
	if p.Status == "authorising" {
		switch refusal, err := s.provider.Authorise(ctx, p); {
		case err != nil:
			return err
		case refusal != "":
			p, err = s.move(ctx, in.OrderID, "declined", refusal, "authorising")
			if err != nil {
				return err
			}
		default:
			p, err = s.move(ctx, in.OrderID, "authorised", "", "authorising")
			if err != nil {
				return err
			}
		}
	}
	switch p.Status {
	case "authorised", "captured":
		return nil
	case "declined":
		return platform.Refused(p.Reason, "the payment was refused")
	}
	return platform.Refused("voided", "the payment is "+p.Status)
}

// void gives the money back that authorise held, or closes the door on an
// authorisation that has not come yet.
func (s *Service) void(ctx context.Context, key barrier.Key, in request) error {
	err := s.bus.InTx(ctx, func(tx *sql.Tx) error {
		_, err := s.bus.Barrier.Do(ctx, tx, key, func() error {
			_, err := tx.ExecContext(ctx, `UPDATE payments SET status = 'voiding', updated_at = $1
				WHERE order_id = $2 AND status IN ('authorising', 'authorised')`, time.Now().UnixMicro(), in.OrderID)
			return err
		})
		return err
	})
	if err != nil {
		return err
	}
	p, err := s.read(ctx, s.env.DB, in.OrderID)
	if isNotFound(err) {
		return nil // it never came, and the barrier keeps it out from now on
	}
	if err != nil || p.Status != "voiding" {
		return err
	}
	if err := s.provider.Void(ctx, in.OrderID); err != nil {
		return err
	}
	_, err = s.move(ctx, in.OrderID, "voided", "", "voiding")
	return err
}

// capture takes the money that authorise held.
func (s *Service) capture(ctx context.Context, _ barrier.Key, in request) error {
	return s.settle(ctx, in.OrderID, "authorised", "captured", s.provider.Capture)
}

// refund gives captured money back.
func (s *Service) refund(ctx context.Context, _ barrier.Key, in request) error {
	return s.settle(ctx, in.OrderID, "captured", "refunded", s.provider.Refund)
}

// settle asks the provider for a change that it makes at most once per order, and
// writes it down. It needs no barrier: the states only move forward, and nothing undoes it.
func (s *Service) settle(ctx context.Context, order, from, to string, ask func(ctx context.Context, order string) error) error {
	p, err := s.read(ctx, s.env.DB, order)
	if err != nil || p.Status == to {
		return err
	}
	if p.Status != from {
		return platform.Refused("wrong-state", fmt.Sprintf("the payment is %s, want %s", p.Status, from))
	}
	if err := ask(ctx, order); err != nil {
		return err
	}
	_, err = s.move(ctx, order, to, "", from)
	return err
}

// move writes the next state down and tells the others, in one transaction. If somebody
// else moved the payment meanwhile, it returns where it is now.
func (s *Service) move(ctx context.Context, order, to, reason, from string) (p payment, err error) {
	return p, s.bus.InTx(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE payments SET status = $1, reason = $2, revision = revision + 1, updated_at = $3 WHERE order_id = $4 AND status = $5`,
			to, reason, time.Now().UnixMicro(), order, from)
		if err != nil {
			return err
		}
		moved, err := res.RowsAffected()
		if err != nil {
			return err
		}
		if p, err = s.read(ctx, tx, order); err != nil || moved == 0 {
			return err
		}
		return s.tell(ctx, tx, p)
	})
}

// tellAgain tells everybody once more how far a payment is: after the event that said so was given up, nothing else
// would. It is a new event, of which the customer is written to as of any.
func (s *Service) tellAgain(w http.ResponseWriter, r *http.Request) error {
	ctx, order := r.Context(), r.PathValue("order")
	var p payment
	err := s.bus.InTx(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE payments SET revision = revision + 1 WHERE order_id = $1 AND status NOT IN ('authorising', 'voiding')`, order)
		if err != nil {
			return err
		}
		settled, err := res.RowsAffected()
		if err != nil {
			return err
		}
		if p, err = s.read(ctx, tx, order); err != nil {
			return err
		}
		if settled == 0 {
			return &platform.Error{Status: http.StatusConflict, Code: "wrong-state", Detail: "the payment is " + p.Status + "; it tells of itself when the provider has answered"}
		}
		return s.tell(ctx, tx, p)
	})
	if err != nil {
		return err
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"order_id": order, "status": p.Status, "revision": p.Revision})
}

// tell tells the others how far a payment is.
func (s *Service) tell(ctx context.Context, tx *sql.Tx, p payment) error {
	return s.bus.Emit(ctx, tx, kernel.PaymentChanged{OrderID: p.OrderID, Revision: p.Revision, Status: p.Status, Amount: p.Amount, Currency: p.Currency, CustomerID: p.CustomerID})
}

func (s *Service) get(w http.ResponseWriter, r *http.Request) error {
	order := r.PathValue("order")
	p, err := s.read(r.Context(), s.env.DB, order)
	if err != nil {
		return err
	}
	if id := platform.IdentityOf(r.Context()); id.Role == platform.RoleCustomer && id.Subject != p.CustomerID {
		return platform.NotFound("payment of order", order)
	}
	return platform.WriteJSON(w, http.StatusOK, p)
}

func (s *Service) read(ctx context.Context, q interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}, order string,
) (payment, error) {
	p := payment{OrderID: order}
	err := q.QueryRowContext(ctx, `SELECT customer_id, amount, currency, method, status, reason, revision FROM payments WHERE order_id = $1`, order).
		Scan(&p.CustomerID, &p.Amount, &p.Currency, &p.Method, &p.Status, &p.Reason, &p.Revision)
	if errors.Is(err, sql.ErrNoRows) {
		return p, platform.NotFound("payment of order", order)
	}
	return p, err
}

func isNotFound(err error) bool {
	var e *platform.Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}
