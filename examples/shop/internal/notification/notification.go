// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package notification is the service that writes to people. It listens to everything, knows
// nobody who speaks, and writes one mail per event, however often the event comes.
package notification

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
)

// Service is the notification service.
type Service struct {
	env platform.Env
	bus *platform.Bus
}

// Recipients is this service's own copy of what it needs to know about customers.
const schema = `
CREATE TABLE IF NOT EXISTS recipients (
	customer_id TEXT PRIMARY KEY,
	name TEXT NOT NULL,
	email TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS mails (
	id TEXT PRIMARY KEY,
	event_id TEXT NOT NULL,
	customer_id TEXT NOT NULL,
	recipient TEXT NOT NULL,
	subject TEXT NOT NULL,
	body TEXT NOT NULL,
	written_at BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS mails_customer ON mails (customer_id, written_at);`

// New prepares the service's database and returns the service.
func New(ctx context.Context, env platform.Env) (*Service, error) {
	if err := platform.CreateTables(ctx, env.DB, schema); err != nil {
		return nil, err
	}
	bus, err := platform.NewBus(ctx, env)
	if err != nil {
		return nil, err
	}
	return &Service{env: env, bus: bus}, nil
}

// Consumers implements [platform.Service]. Customers and orders are two groups: an order that waits for
// its customer's name must not wait in the same queue as that name.
func (s *Service) Consumers() []platform.Consumer {
	return []platform.Consumer{
		s.bus.On("notification.customers", []string{kernel.TopicCustomerRegistered}, s.customerRegistered),
		s.bus.On("notification.orders", []string{kernel.TopicOrderPlaced, kernel.TopicOrderConfirmed, kernel.TopicOrderRejected, kernel.TopicOrderCancelled, kernel.TopicShipmentDispatched}, s.orderChanged),
	}
}

// Run implements [platform.Service].
func (s *Service) Run(ctx context.Context) error { return s.bus.Run(ctx) }

// Bus returns the service's outbox and inbox, for the operator's view.
func (s *Service) Bus() *platform.Bus { return s.bus }

// Handler implements [platform.Service].
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /mails", s.env.Auth.Require(platform.Handle(s.list), platform.RoleCustomer, platform.RoleOperator))
	return mux
}

func (s *Service) customerRegistered(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	var e kernel.CustomerRegistered
	if err := json.Unmarshal(d.Message.Body, &e); err != nil {
		return messaging.Reject(err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO recipients (customer_id, name, email) VALUES ($1, $2, $3)
		ON CONFLICT (customer_id) DO UPDATE SET name = excluded.name, email = excluded.email`, e.CustomerID, e.Name, e.Email); err != nil {
		return err
	}
	return s.write(ctx, tx, d.Message.ID, e.CustomerID, e.Email, "Welcome to the shop", fmt.Sprintf("Dear %s,\n\nyour account is ready.\n", e.Name))
}

func (s *Service) orderChanged(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	var e struct {
		kernel.OrderChanged
		Tracking string `json:"tracking"` // of a shipment
	}
	if err := json.Unmarshal(d.Message.Body, &e); err != nil {
		return messaging.Reject(err)
	}
	var name, email string
	err := tx.QueryRowContext(ctx, `SELECT name, email FROM recipients WHERE customer_id = $1`, e.CustomerID).Scan(&name, &email)
	if errors.Is(err, sql.ErrNoRows) {
		// The event that introduces the customer is still on its way: come back to this one.
		return fmt.Errorf("customer %s is not known here yet", e.CustomerID)
	}
	if err != nil {
		return err
	}
	var subject, body string
	switch d.Message.Topic {
	case kernel.TopicOrderPlaced:
		subject, body = "We have received your order", fmt.Sprintf("thank you for your order of %d article(s) over %v. You hear from us as soon as it is confirmed.", len(e.Lines), e.Total)
	case kernel.TopicOrderConfirmed:
		subject, body = "Your order is confirmed", fmt.Sprintf("we have received %v and are packing %d article(s).", e.Total, len(e.Lines))
	case kernel.TopicOrderRejected:
		subject, body = "We could not take your order", fmt.Sprintf("your order over %v was not accepted: %s. You have not been charged.", e.Total, e.Reason)
	case kernel.TopicOrderCancelled:
		subject, body = "Your order is cancelled", fmt.Sprintf("your order over %v is cancelled; what you paid comes back to you.", e.Total)
	case kernel.TopicShipmentDispatched:
		subject, body = "Your order is on its way", fmt.Sprintf("your parcel has left us. Its number is %s.", e.Tracking)
	default:
		return messaging.Reject(fmt.Errorf("there is no mail for %s", d.Message.Topic))
	}
	return s.write(ctx, tx, d.Message.ID, e.CustomerID, email, subject, fmt.Sprintf("Dear %s,\n\n%s\n\nOrder %s\n", name, body, e.OrderID))
}

func (s *Service) write(ctx context.Context, tx *sql.Tx, event, customer, recipient, subject, body string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO mails (id, event_id, customer_id, recipient, subject, body, written_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		kernel.NewID(), event, customer, recipient, subject, body, time.Now().UnixMicro())
	return err
}

type mail struct {
	ID        string    `json:"id"`
	Recipient string    `json:"recipient"`
	Subject   string    `json:"subject"`
	Body      string    `json:"body"`
	At        time.Time `json:"at"`
}

// list answers with the newest mails: a customer's own, or everybody's for an operator.
func (s *Service) list(w http.ResponseWriter, r *http.Request) error {
	id := platform.IdentityOf(r.Context())
	mails, err := platform.Collect(r.Context(), s.env.DB, func(row interface{ Scan(dest ...any) error }) (m mail, err error) {
		var at int64
		err = row.Scan(&m.ID, &m.Recipient, &m.Subject, &m.Body, &at)
		m.At = time.UnixMicro(at).UTC()
		return m, err
	}, `SELECT id, recipient, subject, body, written_at FROM mails WHERE customer_id = $1 OR $2 = 1 ORDER BY written_at DESC LIMIT 100`,
		id.Subject, btoi(id.Role != platform.RoleCustomer))
	if err != nil {
		return err
	}
	if mails == nil {
		mails = []mail{}
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"items": mails})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
