// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package order

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"testing"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

// alone is the service on a database, in a world where nobody answers.
func alone(t *testing.T, db *sql.DB, instance string) *Service {
	t.Helper()
	nobody, err := discovery.NewStatic(nil)
	if err != nil {
		t.Fatal(err)
	}
	rpc, err := platform.NewRPC(nobody, nil, "", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rpc.Close() })
	broker, err := messagingmem.New(messagingmem.Config{DropUnroutable: true})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), platform.Env{
		Name: "order", Instance: instance, DB: db, Broker: broker, Log: slog.New(slog.DiscardHandler),
		Caller: &platform.Caller{RPC: rpc, Client: &http.Client{Transport: silence{}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// silence answers no request.
type silence struct{}

func (silence) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("nobody is there")
}

func file(t *testing.T) *sql.DB {
	t.Helper()
	db, err := platform.OpenSQLite(filepath.Join(t.TempDir(), "order.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// accepts has the service take an order, as a request does.
func (s *Service) accepts(t *testing.T) (id string) {
	t.Helper()
	id = kernel.NewID()
	lines := []kernel.OrderLine{{ProductID: "p-001", Name: "Pen", Quantity: 1, Price: 100}}
	if err := s.bus.InTx(t.Context(), func(tx *sql.Tx) error {
		return s.begin(t.Context(), tx, placeOrder{OrderID: id, CustomerID: "c", Lines: lines, Total: 100, Method: "pm_visa"})
	}); err != nil {
		t.Fatal(err)
	}
	return id
}

// TestPaymentAcknowledged delivers what payment tells of an order in every sequence, everything twice, and from a
// message that comes back with its old ID: what is shown is the latest that was told, and never goes back.
func TestPaymentAcknowledged(t *testing.T) {
	s := alone(t, file(t), "order-1")
	hears := s.Consumers()[0].Handler
	stages := []string{"", "authorised", "captured", "refunded"} // by revision
	tell := func(t *testing.T, order string, revision int) *messaging.Message {
		t.Helper()
		m, err := kernel.NewMessage("payment", kernel.PaymentChanged{OrderID: order, Revision: int64(revision), Status: stages[revision], Amount: 100, Currency: kernel.Currency})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	hear := func(t *testing.T, m *messaging.Message) {
		t.Helper()
		if err := hears.Handle(context.Background(), &messaging.Delivery{Message: m, Group: "order", Attempt: 1}); err != nil {
			t.Fatalf("%s = %v, want it taken", m.Body, err)
		}
	}
	shown := func(t *testing.T, order string) string {
		t.Helper()
		v, err := scanOrder(s.env.DB.QueryRowContext(t.Context(), selectOrder+` WHERE id = $1`, order))
		if err != nil {
			t.Fatal(err)
		}
		return v.Payment
	}
	for _, sequence := range [][]int{{1, 2, 3}, {1, 3, 2}, {2, 1, 3}, {2, 3, 1}, {3, 1, 2}, {3, 2, 1}} {
		order, messages, latest := s.accepts(t), map[int]*messaging.Message{}, 0
		if got := shown(t, order); got != "" {
			t.Fatalf("before anything was told the payment is %q, want it unknown", got)
		}
		for _, revision := range sequence {
			messages[revision] = tell(t, order, revision)
			latest = max(latest, revision)
			hear(t, messages[revision])
			hear(t, messages[revision])       // the same message again
			hear(t, tell(t, order, revision)) // the same news in another message
			for _, old := range sequence[:slices.Index(sequence, revision)] {
				hear(t, messages[old])
			}
			if got := shown(t, order); got != stages[latest] {
				t.Errorf("after %v, now %d: the payment is %q, want %q", sequence, revision, got, stages[latest])
			}
		}
	}
	var orders, marks int
	if err := s.env.DB.QueryRowContext(t.Context(), `SELECT (SELECT COUNT(*) FROM acknowledged_payments), (SELECT COUNT(*) FROM idempotency_inbox WHERE consumer = 'order')`).Scan(&orders, &marks); err != nil {
		t.Fatal(err)
	}
	if orders != 6 || marks != 6*6 {
		t.Errorf("%d payments known and %d messages applied, want 6 and 36", orders, marks)
	}

	order := s.accepts(t)
	broken := tell(t, order, 1)
	broken.Body = []byte(`{"revision": "one"}`)
	err := hears.Handle(context.Background(), &messaging.Delivery{Message: broken, Group: "order", Attempt: 1})
	if got := messaging.Decide(t.Context(), err, 1, messaging.Subscription{}).Action; got != messaging.DeadLettered {
		t.Errorf("a message that cannot be read is %v (%v), want it put away at once", got, err)
	}
	if got := shown(t, order); got != "" {
		t.Errorf("and the payment is %q, want it unknown", got)
	}
}
