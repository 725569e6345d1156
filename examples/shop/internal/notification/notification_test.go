// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package notification

import (
	"database/sql"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

func service(t *testing.T, db *sql.DB) *Service {
	t.Helper()
	broker, err := messagingmem.New(messagingmem.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), platform.Env{Name: "notification", DB: db, Broker: broker, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// hears gives a message to the service as its groups get it.
func (s *Service) hears(t *testing.T, m *messaging.Message) error {
	t.Helper()
	for _, c := range s.Consumers() {
		if slices.Contains(c.Subscription.Topics, m.Topic) {
			return c.Handler.Handle(t.Context(), &messaging.Delivery{Message: m, Group: c.Subscription.Group, Attempt: 1})
		}
	}
	t.Fatalf("nobody hears %s", m.Topic)
	return nil
}

func rejected(t *testing.T, err error) bool {
	return messaging.Decide(t.Context(), err, 1, messaging.Subscription{}).Action == messaging.DeadLettered
}

func message(t *testing.T, e kernel.Event) *messaging.Message {
	t.Helper()
	m, err := kernel.NewMessage("test", e)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMails tells the service everything that can happen in the shop, twice, and reads the mailbox.
func TestMails(t *testing.T) {
	db, err := platform.OpenSQLite(filepath.Join(t.TempDir(), "notification.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	s := service(t, db)
	written := func() (out []string) {
		t.Helper()
		out, err := platform.Collect(t.Context(), db, func(row interface{ Scan(dest ...any) error }) (string, error) {
			var recipient, subject, body string
			err := row.Scan(&recipient, &subject, &body)
			return recipient + ": " + subject + "\n" + body, err
		}, `SELECT recipient, subject, body FROM mails ORDER BY rowid`)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	order := func(what string) kernel.OrderChanged {
		return kernel.OrderChanged{
			What: what, OrderID: "o-1", CustomerID: "c-1", Total: 5998, Currency: kernel.Currency, Reason: "stock is short",
			Lines: []kernel.OrderLine{{ProductID: "p-1", Name: "Kettle", Quantity: 2, Price: 2999}},
		}
	}
	payment := func(status string) kernel.PaymentChanged {
		return kernel.PaymentChanged{OrderID: "o-1", Status: status, Amount: 5998, Currency: kernel.Currency, CustomerID: "c-1"}
	}
	product := func(revision int64, price kernel.Money) kernel.ProductChanged {
		return kernel.ProductChanged{ProductID: "p-1", Revision: revision, Name: "Kettle", Price: price}
	}

	early := message(t, order(kernel.TopicOrderPlaced))
	if err := s.hears(t, early); err == nil || rejected(t, err) {
		t.Error("a mail to a customer who is not known is written, want it tried again")
	}
	if got := written(); len(got) != 0 {
		t.Errorf("mails = %q, want none", got)
	}

	nobodys := payment("captured")
	nobodys.CustomerID = ""
	for _, tt := range []struct {
		event kernel.Event
		want  []string // parts of the mail; none for no mail
	}{
		{kernel.CustomerRegistered{CustomerID: "c-1", Name: "Ann", Email: "ann@shop.example"}, []string{"ann@shop.example: Welcome", "Dear Ann,"}},
		{order(kernel.TopicOrderPlaced), []string{"ann@shop.example: We have received your order", "Dear Ann,", "2 articles over 59.98 EUR", "Order o-1"}},
		{order(kernel.TopicOrderConfirmed), []string{"ann@shop.example: Your order is confirmed", "59.98 EUR", "Order o-1"}},
		{order(kernel.TopicOrderRejected), []string{"ann@shop.example: We could not take your order", "stock is short", "Order o-1"}},
		{order(kernel.TopicOrderCancelled), []string{"ann@shop.example: Your order is cancelled", "59.98 EUR", "Order o-1"}},
		{order(kernel.TopicOrderDispatched), []string{"ann@shop.example: Your invoice", "2 x Kettle: 59.98 EUR", "Paid: 59.98 EUR", "Order o-1"}},
		{kernel.ShipmentDispatched{OrderID: "o-1", CustomerID: "c-1", Tracking: "DV1"}, []string{"ann@shop.example: Your order is on its way", "DV1", "Order o-1"}},
		{payment("authorised"), []string{"ann@shop.example: Your payment is authorised", "59.98 EUR", "Order o-1"}},
		{payment("declined"), []string{"ann@shop.example: Your payment was declined", "59.98 EUR", "Order o-1"}},
		{payment("captured"), []string{"ann@shop.example: Your receipt", "59.98 EUR", "Order o-1"}},
		{payment("voided"), []string{"ann@shop.example: Your money is yours again", "59.98 EUR", "Order o-1"}},
		{payment("refunded"), []string{"ann@shop.example: Your refund", "59.98 EUR", "Order o-1"}},
		{nobodys, nil}, // of before payments told whose they are
		{product(1, 2999), nil},
		{product(2, 2999), nil}, // another category, say
		{product(3, 1999), []string{"staff@shop.example: New price of Kettle", "cost 29.99 EUR and costs 19.99 EUR now"}},
		{kernel.StockChanged{ProductID: "p-1", Revision: 1, Available: 1}, nil},
		{kernel.StockChanged{ProductID: "p-1", Revision: 2}, []string{"staff@shop.example: Kettle is sold out"}},
		{kernel.StockChanged{ProductID: "p-2", Revision: 1}, []string{"staff@shop.example: p-2 is sold out"}}, // before its name is known here
	} {
		before := len(written())
		m := message(t, tt.event)
		for range 2 {
			if err := s.hears(t, m); err != nil {
				t.Fatalf("%+v: %v", tt.event, err)
			}
		}
		now := written()[before:]
		if tt.want == nil && len(now) == 0 {
			continue
		}
		if tt.want == nil || len(now) != 1 {
			t.Errorf("%+v: mails = %q, want %d", tt.event, now, min(1, len(tt.want)))
			continue
		}
		for _, part := range tt.want {
			if !strings.Contains(now[0], part) {
				t.Errorf("%+v: mail = %q, want %q in it", tt.event, now[0], part)
			}
		}
	}

	before := len(written())
	if err := s.hears(t, early); err != nil || len(written()) != before+1 {
		t.Errorf("the mail that came too early: %v, %d new; want it written now", err, len(written())-before)
	}
	for _, c := range s.Consumers() {
		for _, topic := range c.Subscription.Topics {
			m := &messaging.Message{ID: kernel.NewID(), Topic: topic, Key: "k", Body: []byte("{")}
			if err := s.hears(t, m); !rejected(t, err) {
				t.Errorf("%s that cannot be read: %v, want it rejected", topic, err)
			}
		}
	}
	if err := s.hears(t, message(t, payment("lost"))); !rejected(t, err) {
		t.Errorf("a payment in a state that nobody knows: %v, want it rejected", err)
	}
}
