// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package notification is the service that writes to people. It hears every event of the shop, knows
// nobody who speaks, and writes one mail to a customer for each event that concerns that customer, however often the
// event comes. What concerns the range of goods is written to the shop's own people when there is something to do.
package notification

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
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

// Recipients and products are this service's own copies of what it needs to know to write. The mails of before topics
// were kept have none.
const schema = `
CREATE TABLE IF NOT EXISTS recipients (
	customer_id TEXT PRIMARY KEY,
	name TEXT NOT NULL,
	email TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS products (
	product_id TEXT PRIMARY KEY,
	name TEXT NOT NULL,
	price BIGINT NOT NULL
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
	if err := platform.AddColumn(ctx, env.DB, "mails", "topic", "TEXT NOT NULL DEFAULT ''"); err != nil {
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
		s.bus.On("notification.orders", []string{
			kernel.TopicOrderPlaced, kernel.TopicOrderConfirmed, kernel.TopicOrderRejected, kernel.TopicOrderCancelled, kernel.TopicOrderDispatched,
			kernel.TopicPaymentChanged, kernel.TopicShipmentDispatched,
		}, s.orderChanged),
		s.bus.On("notification.products", []string{kernel.TopicProductChanged, kernel.TopicStockChanged}, s.productChanged),
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
	return s.write(ctx, tx, d.Message, e.CustomerID, e.Email, "Welcome to the shop", fmt.Sprintf("Dear %s,\n\nyour account is ready.\n", e.Name))
}

// orderChanged writes to the customer about an order, its payment or its parcel.
func (s *Service) orderChanged(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	l, err := letterOf(d.Message)
	if err != nil {
		return messaging.Reject(err)
	}
	if l.customer == "" {
		return nil // of a payment, from before these told whose it is
	}
	var name, email string
	err = tx.QueryRowContext(ctx, `SELECT name, email FROM recipients WHERE customer_id = $1`, l.customer).Scan(&name, &email)
	if errors.Is(err, sql.ErrNoRows) {
		// The event that introduces the customer is still on its way: come back to this one.
		return fmt.Errorf("customer %s is not known here yet", l.customer)
	}
	if err != nil {
		return err
	}
	return s.write(ctx, tx, d.Message, l.customer, email, l.subject, fmt.Sprintf("Dear %s,\n\n%s\n\nOrder %s\n", name, l.text, l.order))
}

// letter is what there is to say to a customer about an event.
type letter struct{ customer, order, subject, text string }

func letterOf(m *messaging.Message) (letter, error) {
	switch m.Topic {
	case kernel.TopicPaymentChanged:
		var e kernel.PaymentChanged
		if err := json.Unmarshal(m.Body, &e); err != nil {
			return letter{}, err
		}
		l := letter{customer: e.CustomerID, order: e.OrderID}
		switch e.Status {
		case "authorised":
			l.subject, l.text = "Your payment is authorised", fmt.Sprintf("%v is held for your order. It is taken when the order is confirmed, and let go if it is not.", e.Amount)
		case "declined":
			l.subject, l.text = "Your payment was declined", fmt.Sprintf("%v could not be taken. You have not been charged.", e.Amount)
		case "captured":
			l.subject, l.text = "Your receipt", fmt.Sprintf("we have taken %v for your order.", e.Amount)
		case "voided":
			l.subject, l.text = "Your money is yours again", fmt.Sprintf("%v that was held for your order is let go. You have not been charged.", e.Amount)
		case "refunded":
			l.subject, l.text = "Your refund", fmt.Sprintf("we have given you %v back.", e.Amount)
		default:
			return l, fmt.Errorf("there is no mail for a payment that is %q", e.Status)
		}
		return l, nil
	case kernel.TopicShipmentDispatched:
		var e kernel.ShipmentDispatched
		if err := json.Unmarshal(m.Body, &e); err != nil {
			return letter{}, err
		}
		return letter{e.CustomerID, e.OrderID, "Your order is on its way", fmt.Sprintf("your parcel has left us. Its number is %s.", e.Tracking)}, nil
	}
	var e kernel.OrderChanged
	if err := json.Unmarshal(m.Body, &e); err != nil {
		return letter{}, err
	}
	l := letter{customer: e.CustomerID, order: e.OrderID}
	switch m.Topic {
	case kernel.TopicOrderPlaced:
		l.subject, l.text = "We have received your order", fmt.Sprintf("thank you for your order of %s over %v. You hear from us as soon as it is confirmed.", articles(e.Lines), e.Total)
	case kernel.TopicOrderConfirmed:
		l.subject, l.text = "Your order is confirmed", fmt.Sprintf("we have received %v and are packing %s.", e.Total, articles(e.Lines))
	case kernel.TopicOrderRejected:
		l.subject, l.text = "We could not take your order", fmt.Sprintf("your order over %v was not accepted: %s. You have not been charged.", e.Total, e.Reason)
	case kernel.TopicOrderCancelled:
		l.subject, l.text = "Your order is cancelled", fmt.Sprintf("your order over %v is cancelled; what you paid comes back to you.", e.Total)
	case kernel.TopicOrderDispatched:
		l.subject, l.text = "Your invoice", invoice(e)
	default:
		return l, fmt.Errorf("there is no mail for %s", m.Topic)
	}
	return l, nil
}

func articles(lines []kernel.OrderLine) string {
	var n int64
	for _, l := range lines {
		n += l.Quantity
	}
	if n == 1 {
		return "1 article"
	}
	return fmt.Sprintf("%d articles", n)
}

// invoice lists what was sent. It is due when the goods have left.
func invoice(e kernel.OrderChanged) string {
	var b strings.Builder
	b.WriteString("this is what we have sent you.\n\n")
	for _, l := range e.Lines {
		fmt.Fprintf(&b, "%d x %s: %v\n", l.Quantity, l.Name, l.Price*kernel.Money(l.Quantity))
	}
	fmt.Fprintf(&b, "\nPaid: %v", e.Total)
	return b.String()
}

// staff is who reads of the range of goods.
const staff = "staff@shop.example"

// productChanged writes to the shop's people when a price changes and when something is sold out. That a product is new
// they know: one of them wrote it.
func (s *Service) productChanged(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	if d.Message.Topic == kernel.TopicStockChanged {
		return s.stockChanged(ctx, tx, d)
	}
	var e kernel.ProductChanged
	if err := json.Unmarshal(d.Message.Body, &e); err != nil {
		return messaging.Reject(err)
	}
	var before kernel.Money
	err := tx.QueryRowContext(ctx, `SELECT price FROM products WHERE product_id = $1`, e.ProductID).Scan(&before)
	known := err == nil
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO products (product_id, name, price) VALUES ($1, $2, $3)
		ON CONFLICT (product_id) DO UPDATE SET name = excluded.name, price = excluded.price`, e.ProductID, e.Name, e.Price); err != nil {
		return err
	}
	if !known || before == e.Price {
		return nil
	}
	return s.write(ctx, tx, d.Message, "", staff, "New price of "+e.Name, fmt.Sprintf("%s (%s) cost %v and costs %v now.\n", e.Name, e.ProductID, before, e.Price))
}

func (s *Service) stockChanged(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	var e kernel.StockChanged
	if err := json.Unmarshal(d.Message.Body, &e); err != nil {
		return messaging.Reject(err)
	}
	if e.Available > 0 {
		return nil
	}
	name := e.ProductID // if it is not known here yet
	if err := tx.QueryRowContext(ctx, `SELECT name FROM products WHERE product_id = $1`, e.ProductID).Scan(&name); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	return s.write(ctx, tx, d.Message, "", staff, name+" is sold out", fmt.Sprintf("Nothing is left of %s (%s) that can be ordered.\n", name, e.ProductID))
}

// write puts a mail into the mailbox. One to the shop's own people has no customer.
func (s *Service) write(ctx context.Context, tx *sql.Tx, about *messaging.Message, customer, recipient, subject, body string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO mails (id, event_id, topic, customer_id, recipient, subject, body, written_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		kernel.NewID(), about.ID, about.Topic, customer, recipient, subject, body, time.Now().UnixMicro())
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
