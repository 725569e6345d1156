// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/check"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// TestCheckFindsWhatIsWrong breaks each invariant by hand: a check that cannot fail proves nothing.
func TestCheckFindsWhatIsWrong(t *testing.T) {
	data, addr := t.TempDir(), freeAddr(t)
	p := startShop(t, data, addr, "--packing", "24h")
	p.expect("The shop is open")
	a := (&api{t: t, url: "http://" + addr}).stocked().newcomer()
	confirmed := a.place("", lineItem{"product_id": "p-030", "quantity": 2})
	a.ends(confirmed, "confirmed")
	a.ends(a.place("pm_declined", lineItem{"product_id": "p-031", "quantity": 1}), "rejected")
	verify(t, check.Files(data), []string{confirmed})
	_ = p.end(15)

	for _, tt := range []struct {
		name      string
		invariant int
		service   string
		harm      string
	}{
		{"an order never ends", 1, "order", `UPDATE orders SET status = 'pending' WHERE status = 'rejected'`},
		{"an order ended twice", 1, "order", `INSERT INTO eventsource_event (stream, version, bucket, event_id, event_type, happened, recorded, header, data)
			SELECT stream, version + 100, bucket, event_id || '2', event_type, happened, recorded, header, data FROM eventsource_event WHERE event_type = 'order.confirmed.v1'`},
		{"a charge too much", 2, "provider", `UPDATE charges SET amount = amount + 1 WHERE status = 'captured'`},
		{"money kept for a rejected order", 2, "payment", `UPDATE payments SET status = 'captured' WHERE status = 'declined'`},
		{"a charge for no order", 2, "provider", `INSERT INTO charges SELECT 'other', reference, amount, currency, method, status, reason, updated_at FROM charges WHERE status = 'captured'`},
		{"a charge that payment knows nothing of", 2, "payment", `DELETE FROM payments`},
		{"a charge that is not payment's", 2, "provider", `UPDATE charges SET amount = amount + 1 WHERE status = 'declined'`},
		{"an order is charged twice", 2, "provider", `INSERT INTO charges SELECT key || '-2', reference, amount, currency, method, status, reason, updated_at FROM charges WHERE status = 'captured'`},
		{"a charge that was let go", 2, "provider", `UPDATE charges SET status = 'refunded' WHERE status = 'captured'`},
		{"money is held for a rejected order", 2, "provider", `UPDATE charges SET status = 'authorised' WHERE status = 'declined'`},
		{"pieces vanish", 3, "inventory", `UPDATE stock SET available = available - 1 WHERE product_id = 'p-050'`},
		{"pieces stay reserved", 3, "inventory", `UPDATE stock SET available = available - 1, reserved = 1 WHERE product_id = 'p-050'`},
		{"what was sold is on sale again", 3, "inventory", `UPDATE reservations SET status = 'restocked' WHERE status = 'sold'`},
		{"the catalogue shows another stock", 3, "catalog", `UPDATE availability SET available = available + 1 WHERE product_id = 'p-050'`},
		{"credit beyond the limit", 4, "customer", `UPDATE customers SET credit_limit = -1`},
		{"credit is settled for nothing", 4, "customer", `UPDATE credit_reservations SET status = 'settled'`},
		{"credit is kept", 4, "customer", `UPDATE customers SET credit_reserved = 1`},
		{"a mail too much", 5, "notification", `INSERT INTO mails SELECT id || '2', event_id, customer_id, recipient, subject, body, written_at FROM mails`},
		{"a mail too few", 5, "notification", `DELETE FROM mails WHERE subject LIKE '%confirmed%'`},
		{"a mail to nobody", 5, "notification", `UPDATE mails SET customer_id = 'nobody'`},
		{"a parcel is lost", 1, "shipping", `DELETE FROM shipments`},
		{"an event was applied to nothing", 6, "notification", `DELETE FROM idempotency_inbox WHERE consumer = 'notification.orders'`},
		{"an event was published out of order", 6, "journal", `UPDATE messages SET position = 1000000 WHERE topic = 'order.placed' AND id IN (SELECT id FROM messages WHERE topic = 'order.placed' LIMIT 1)`},
		{"an event was not applied by another service", 6, "shipping", `DELETE FROM idempotency_inbox`},
		{"a day was counted as another", 7, "reporting", `UPDATE days SET day = '2001-01-01'`},
		{"pieces were counted twice", 7, "reporting", `UPDATE products SET quantity = quantity * 2`},
		{"a sale was forgotten", 7, "reporting", `DELETE FROM sold`},
		{"revenue is too much", 7, "reporting", `UPDATE days SET revenue = revenue + 1`},
		{"an order was counted twice", 7, "reporting", `UPDATE days SET placed = placed + 1`},
		{"a dead letter without a reason", 8, "catalog", `INSERT INTO dead_letters VALUES ('catalog', 'm', '{}', '', 1, 1)`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			copyOf := t.TempDir()
			copyData(t, data, copyOf)
			harm(t, filepath.Join(copyOf, tt.service+".db"), tt.harm)
			invariants, err := check.Run(t.Context(), check.Files(copyOf), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range invariants {
				if i.Number == tt.invariant && i.OK() {
					t.Errorf("invariant %d holds, want it violated", i.Number)
				}
			}
		})
	}
	t.Run("a promised order is missing", func(t *testing.T) {
		invariants, err := check.Run(t.Context(), check.Files(data), []string{"promised"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if invariants[0].OK() {
			t.Error("invariant 1 holds, want it violated")
		}
	})
	t.Run("no data is an error", func(t *testing.T) {
		if _, err := check.Run(t.Context(), check.Files(t.TempDir()), nil, time.Second); err == nil {
			t.Error("check of an empty folder = nil, want an error")
		}
	})
}

// copyData copies the databases of a shop that has stopped.
func copyData(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func harm(t *testing.T, path, statement string) {
	t.Helper()
	db, err := platform.OpenSQLite(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	res, err := db.ExecContext(t.Context(), statement)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		t.Fatalf("%s changed %d rows (%v), want at least one", statement, n, err)
	}
}
