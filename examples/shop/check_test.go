// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"database/sql"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
	"github.com/dovetail-go/dovetail/examples/shop/internal/check"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// TestCheckFindsWhatIsWrong breaks each invariant by hand: a check that cannot fail proves nothing.
func TestCheckFindsWhatIsWrong(t *testing.T) {
	data, addr := t.TempDir(), freeAddr(t)
	p := startShop(t, data, addr, "--packing", "24h")
	p.expect("The shop is open")
	shop := (&api{t: t, url: "http://" + addr}).stocked()
	a := shop.newcomer()
	confirmed := a.place("", lineItem{"product_id": "p-030", "quantity": 2})
	a.ends(confirmed, "confirmed")
	a.ends(a.place("pm_declined", lineItem{"product_id": "p-031", "quantity": 1}), "rejected")
	cancel := func(order string) {
		t.Helper()
		if got := a.send("POST", "/api/orders/"+order+"/cancel", http.Header{"Idempotency-Key": {"cancel-" + order}}, nil); got.status != http.StatusAccepted {
			t.Fatalf("cancel = %d %s, want 202", got.status, got.body)
		}
	}
	refunded := a.place("", lineItem{"product_id": "p-032", "quantity": 1})
	a.ends(refunded, "confirmed")
	cancel(refunded)
	a.ends(refunded, "cancelled")
	// And one that is cancelled before it is paid.
	operator := shop.as("operator@shop.example", "dovetail-operator")
	end := operator.harm(chaos.ProviderDown, "", 0)
	voided := a.place("", lineItem{"product_id": "p-033", "quantity": 1})
	eventually(t, func() error { // payment has written down what it is about to ask for
		if got := a.send("GET", "/api/orders/"+voided, nil, nil); !strings.Contains(string(got.body), "authorising") {
			return fmt.Errorf("the order is %s, want its payment under way", got.body)
		}
		return nil
	})
	cancel(voided)
	end()
	a.ends(voided, "cancelled")
	verify(t, check.Files(data), []string{confirmed, refunded, voided})
	operator.rebuilds()
	verify(t, check.Files(data), []string{confirmed, refunded, voided})

	// What was given up is told again.
	harm(t, filepath.Join(data, "order.db"), `UPDATE acknowledged_payments SET status = 'authorised', revision = revision - 1 WHERE order_id = '`+confirmed+`'`)
	operator.want(http.StatusOK, operator.send("POST", "/ops/api/payments/"+confirmed+"/tell", nil, nil), nil)
	verify(t, check.Files(data), []string{confirmed, refunded, voided})
	_ = p.end(15)

	of := func(order string) string { return ` WHERE order_id = '` + order + `'` }
	at := func(order string) string { return ` WHERE key = '` + order + `'` }
	const park = `INSERT INTO outbox_parked SELECT id, shard, 'parked', topic, message_key, message_type, happened, header, body, enqueued, 'refused', 1, 1, 1, `
	for _, tt := range []struct {
		name      string
		invariant int
		harms     harms
	}{
		{"an order never ends", 1, harms{"order": `UPDATE orders SET status = 'pending' WHERE status = 'rejected'`}},
		{"an order ended twice", 1, harms{"order": `INSERT INTO eventsource_event (stream, version, bucket, event_id, event_type, happened, recorded, header, data)
			SELECT stream, version + 100, bucket, event_id || '2', event_type, happened, recorded, header, data FROM eventsource_event WHERE event_type = 'order.confirmed.v1'`}},
		{"a parcel is lost", 1, harms{"shipping": `DELETE FROM shipments`}},
		{"a parcel for no order", 1, harms{"shipping": `INSERT INTO shipments VALUES ('other', 'nobody', 'packing', '', 1 << 60, 1)`}},
		{"a parcel goes to somebody else", 1, harms{"shipping": `UPDATE shipments SET customer_id = 'nobody'` + of(confirmed)}},
		{"an order was placed twice", 1, harms{"order": `UPDATE eventsource_event SET event_type = 'order.placed.v1' WHERE event_type = 'order.confirmed.v1' AND stream = 'order-` + refunded + `'`}},
		{"a history has a hole", 1, harms{"order": `UPDATE eventsource_event SET version = version + 1 WHERE event_type = 'order.rejected.v1'`}},
		{"a saga stands still", 1, harms{"order": `UPDATE saga_instance SET status = 1, step = 'settle-credit', stuck = 'refused' WHERE id = '` + confirmed + `'`}},
		{"a charge too much", 2, harms{"provider": `UPDATE charges SET amount = amount + 1 WHERE status = 'captured'`}},
		{"money kept for a rejected order", 2, harms{"payment": `UPDATE payments SET status = 'captured' WHERE status = 'declined'`}},
		{"a charge for no order", 2, harms{"provider": `INSERT INTO charges SELECT 'other', reference, amount, currency, method, status, reason, updated_at FROM charges WHERE status = 'captured'`}},
		{"a payment for no order", 2, harms{"payment": `UPDATE payments SET order_id = 'other' WHERE status = 'declined'`, "provider": `DELETE FROM charges WHERE status = 'declined'`}},
		{"a charge that payment knows nothing of", 2, harms{"payment": `DELETE FROM payments`}},
		{"a charge that is not payment's", 2, harms{"provider": `UPDATE charges SET amount = amount + 1 WHERE status = 'declined'`}},
		{"an order is charged twice", 2, harms{"provider": `INSERT INTO charges SELECT key || '-2', reference, amount, currency, method, status, reason, updated_at FROM charges WHERE status = 'captured'`}},
		{"a charge that was let go", 2, harms{"provider": `UPDATE charges SET status = 'refunded' WHERE status = 'captured'`}},
		{"money is held for a rejected order", 2, harms{"provider": `UPDATE charges SET status = 'authorised' WHERE status = 'declined'`}},
		{"the money of a cancelled order is kept", 2, harms{"payment": `UPDATE payments SET status = 'captured'` + of(refunded), "provider": `UPDATE charges SET status = 'captured'` + at(refunded)}},
		{"a cancelled order is refunded in part", 2, harms{"payment": `UPDATE payments SET amount = amount - 1` + of(refunded), "provider": `UPDATE charges SET amount = amount - 1` + at(refunded)}},
		{"a refund is booked here and not there", 2, harms{"provider": `UPDATE charges SET status = 'voided'` + at(refunded)}},
		{"nobody knows of the money of a cancelled order", 2, harms{"payment": `DELETE FROM payments` + of(refunded), "provider": `DELETE FROM charges` + at(refunded)}},
		{"the money of an order that was never paid is held", 2, harms{"provider": `UPDATE charges SET status = 'authorised'` + at(voided)}},
		{"a payment that was let go was another's", 2, harms{"payment": `UPDATE payments SET amount = amount + 1` + of(voided)}},
		{"a payment that was let go never was", 2, harms{"provider": `DELETE FROM charges` + at(voided)}},
		{"a charge in another currency", 2, harms{"provider": `UPDATE charges SET currency = 'USD'` + at(confirmed)}},
		{"a payment in another currency", 2, harms{"payment": `UPDATE payments SET currency = 'USD'` + of(confirmed)}},
		{"a charge was made otherwise than ordered", 2, harms{"provider": `UPDATE charges SET method = 'pm_slow'` + at(confirmed)}},
		{"a payment was made otherwise than ordered", 2, harms{"payment": `UPDATE payments SET method = 'pm_slow'` + of(confirmed)}},
		{"a charge says that it is for another order", 2, harms{"provider": `UPDATE charges SET reference = '` + refunded + `'` + at(confirmed)}},
		{"another customer has paid", 2, harms{"payment": `UPDATE payments SET customer_id = 'nobody'` + of(confirmed)}},
		{"an order has heard something else of its payment", 2, harms{"order": `UPDATE acknowledged_payments SET status = 'declined'` + of(confirmed)}},
		{"an order has heard nothing of its payment", 2, harms{"order": `DELETE FROM acknowledged_payments` + of(confirmed)}},
		{"pieces vanish", 3, harms{"inventory": `UPDATE stock SET available = available - 1 WHERE product_id = 'p-050'`}},
		{"pieces stay reserved", 3, harms{"inventory": `UPDATE stock SET available = available - 1, reserved = 1 WHERE product_id = 'p-050'`}},
		{"what was sold is on sale again", 3, harms{"inventory": `UPDATE reservations SET status = 'restocked' WHERE status = 'sold'`}},
		{"the catalogue shows another stock", 3, harms{"catalog": `UPDATE availability SET available = available + 1 WHERE product_id = 'p-050'`}},
		{"a piece too many was sold", 3, harms{
			"inventory": `UPDATE stock SET available = available - 1, sold = sold + 1 WHERE product_id = 'p-030'`, "catalog": `UPDATE availability SET available = available - 1 WHERE product_id = 'p-030'`,
			"reporting": `UPDATE products SET quantity = quantity + 1 WHERE product_id = 'p-030'`,
		}},
		{"more was reserved than ordered", 3, harms{"inventory": `UPDATE reservations SET quantity = quantity + 1` + of(refunded)}},
		{"something else was reserved than ordered", 3, harms{"inventory": `UPDATE reservations SET product_id = 'p-050'` + of(refunded)}},
		{"pieces were reserved for no order", 3, harms{"inventory": `INSERT INTO reservations VALUES ('other', 'p-050', 1, 'released')`}},
		{"the catalogue shows what is not there", 3, harms{"catalog": `INSERT INTO availability VALUES ('p-999', 1, 1)`}},
		{"a product has no stock any more", 3, harms{"inventory": `DELETE FROM stock WHERE product_id = 'p-050'`}},
		{"credit beyond the limit", 4, harms{"customer": `UPDATE customers SET credit_limit = -1`}},
		{"credit is settled for nothing", 4, harms{"customer": `UPDATE credit_reservations SET status = 'settled'`}},
		{"credit is kept", 4, harms{"customer": `UPDATE customers SET credit_reserved = 1`}},
		{"another credit was reserved than an order is worth", 4, harms{"customer": `UPDATE credit_reservations SET amount = amount + 1` + of(confirmed)}},
		{"another customer's credit was reserved", 4, harms{"customer": `UPDATE credit_reservations SET customer_id = (SELECT id FROM customers WHERE role <> 'customer' LIMIT 1)` + of(confirmed)}},
		{"the credit of a cancelled order was never settled", 4, harms{"customer": `UPDATE credit_reservations SET status = 'released'` + of(refunded)}},
		{"the credit of an order that was never confirmed is settled", 4, harms{"customer": `UPDATE credit_reservations SET status = 'settled'` + of(voided)}},
		{"credit is settled for no order", 4, harms{"customer": `UPDATE credit_reservations SET order_id = 'other'` + of(voided)}},
		{"credit of nobody", 4, harms{"customer": `PRAGMA foreign_keys = OFF; DELETE FROM customers WHERE id = (SELECT customer_id FROM credit_reservations` + of(confirmed) + `)`}},
		{"a mail too much", 5, harms{"notification": `INSERT INTO mails SELECT id || '2', event_id, customer_id, recipient, subject, body, written_at, topic FROM mails`}},
		{"a mail too few", 5, harms{"notification": `DELETE FROM mails WHERE subject LIKE '%confirmed%'`}},
		{"a receipt too few", 5, harms{"notification": `DELETE FROM mails WHERE subject = 'Your receipt'`}},
		{"a receipt too much", 5, harms{"notification": `INSERT INTO mails SELECT id || '2', event_id, customer_id, recipient, subject, body, written_at, topic FROM mails WHERE subject = 'Your receipt'`}},
		{"another customer's receipt", 5, harms{"notification": `UPDATE mails SET customer_id = 'another' WHERE subject = 'Your receipt'`}},
		{"a mail to another's address", 5, harms{"notification": `UPDATE mails SET recipient = 'x' || recipient WHERE subject = 'Your receipt'`}},
		{"a mail to somebody unknown", 5, harms{"notification": `INSERT INTO mails SELECT id || '2', event_id, 'nobody', recipient, subject, body, written_at, topic FROM mails WHERE subject = 'Your receipt'`}},
		{"a mail about nothing", 5, harms{"notification": `INSERT INTO mails SELECT id || '2', event_id || '2', customer_id, recipient, subject, body, written_at, topic FROM mails WHERE subject = 'Your receipt'`}},
		{"a mail to nobody", 5, harms{"notification": `UPDATE mails SET customer_id = 'nobody'`}},
		{"an event was never published", 6, harms{"order": `DELETE FROM outbox_archive WHERE topic = 'order.confirmed'`}},
		{"events were published out of order", 6, harms{"order": `UPDATE outbox_archive SET id = 1000000 - id`}},
		{"an order's event was not applied", 6, harms{"notification": `DELETE FROM applied WHERE topic = 'order.confirmed'`}},
		{"a customer's event was not applied", 6, harms{"notification": `DELETE FROM applied WHERE topic = 'customer.registered'`}},
		{"a product's event was not applied", 6, harms{"inventory": `DELETE FROM applied WHERE message_key = 'p-050'`}},
		{"a change of stock was not applied", 6, harms{"catalog": `DELETE FROM applied WHERE message_key = 'p-030'`}},
		{"a change of payment was not applied", 6, harms{"order": `DELETE FROM applied WHERE topic = 'payment.changed'`}},
		{"shipping was not told of a customer", 6, harms{"shipping": `DELETE FROM applied WHERE topic = 'customer.registered'`}},
		{"notification was not told of a payment", 6, harms{"notification": `DELETE FROM applied WHERE topic = 'payment.changed'`}},
		{"reporting has not applied an event", 6, harms{"reporting": `DELETE FROM applied WHERE topic = 'order.placed'`}},
		{"an event is a dead letter", 6, harms{
			"shipping": `INSERT INTO dead_letters SELECT consumer, message_id, '{}', 'on purpose', 1, 1 FROM applied WHERE message_key = '` + confirmed + `'; DELETE FROM applied WHERE message_key = '` + confirmed + `'`,
		}},
		{"an event was applied that nobody published", 6, harms{"shipping": `INSERT INTO applied SELECT consumer, message_key, position + 100, message_id || '2', topic, replayed, at FROM applied`}},
		{"a payment's events were applied, and payment published none", 6, harms{"payment": `DELETE FROM outbox_archive`}},
		{"a customer was heard of, who was never told of", 6, harms{"customer": `DELETE FROM outbox_archive WHERE id = (SELECT MAX(id) FROM outbox_archive)`}},
		{"an event was published that never happened", 6, harms{"order": `DELETE FROM eventsource_event WHERE event_type = 'order.rejected.v1'`}},
		{"an event was applied twice", 6, harms{"shipping": `INSERT INTO applied SELECT consumer, message_key, position + 100, message_id, topic, replayed, at FROM applied`}},
		{"reporting has applied an event twice", 6, harms{"reporting": `INSERT INTO applied SELECT consumer, message_key, position + 100, message_id, topic, replayed, at FROM applied WHERE topic = 'order.rejected'`}},
		{"a group has applied an order's events out of order", 6, harms{"notification": `UPDATE applied SET position = 100 - position WHERE message_key = '` + refunded + `'`}},
		{"the catalogue has applied a product's stocks out of order", 6, harms{"catalog": `UPDATE applied SET position = 100 - position WHERE message_key = 'p-032'`}},
		{"a day was counted as another", 7, harms{"reporting": `UPDATE days SET day = '2001-01-01'`}},
		{"pieces were counted twice", 7, harms{"reporting": `UPDATE products SET quantity = quantity * 2`}},
		{"a sale was forgotten", 7, harms{"reporting": `DELETE FROM sold`}},
		{"revenue is too much", 7, harms{"reporting": `UPDATE days SET revenue = revenue + 1`}},
		{"revenue of one day is another's", 7, harms{"reporting": `INSERT INTO days SELECT build, '2001-01-01', 0, 0, 0, 0, 0, 1 FROM days; UPDATE days SET revenue = revenue - 1 WHERE day <> '2001-01-01'`}},
		{"revenue of a product is too much", 7, harms{"reporting": `UPDATE products SET revenue = revenue + 1 WHERE product_id = 'p-030'`}},
		{"an order was counted twice", 7, harms{"reporting": `UPDATE days SET placed = placed + 1`}},
		{"the stream, read again, came to something else", 7, harms{"reporting": `INSERT INTO builds SELECT build + 1, 'different', applied, position, '1 rows of days', started_at, ended_at FROM builds WHERE status = 'serving'`}},
		{"a dead letter without a reason", 8, harms{"catalog": `INSERT INTO dead_letters VALUES ('catalog', 'm', '{}', '', 1, 1)`}},
		{"a dead letter for a blank reason", 8, harms{"catalog": `INSERT INTO dead_letters VALUES ('catalog', 'm', '{}', ' ', 1, 1)`}},
		{"a message waits in an outbox", 8, harms{"payment": `INSERT INTO outbox_message (shard, message_id, topic, message_key, message_type, happened, header, body, enqueued)
			SELECT shard, 'left', topic, message_key, message_type, happened, header, body, enqueued FROM outbox_archive LIMIT 1`}},
		{"a message is parked", 8, harms{"payment": park + `0, '' FROM outbox_archive LIMIT 1`}},
		{"a message was given up without a reason", 8, harms{"payment": park + `1, '' FROM outbox_archive LIMIT 1`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			invariants, err := check.Run(t.Context(), harmed(t, data, tt.harms), nil, 0, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range invariants {
				switch {
				case i.Number != tt.invariant:
				case i.OK():
					t.Errorf("invariant %d holds, want it violated", i.Number)
				default:
					t.Log(i.Violations[0])
				}
			}
		})
	}
	t.Run("a topic that is heard since today", func(t *testing.T) {
		verifyWithin(t, harmed(t, data, harms{"notification": `UPDATE hears SET since = (SELECT MAX(at) + 1 FROM applied) WHERE topic = 'payment.changed';
			DELETE FROM applied WHERE topic = 'payment.changed'; DELETE FROM mails WHERE topic = 'payment.changed'`}), nil, 0)
	})
	t.Run("what was heard before the archives begin", func(t *testing.T) {
		ms := time.Now().Add(-platform.PublishedFor).UnixMilli()
		old := fmt.Sprintf("%08x-%04x-7000-8000-000000000000", ms>>16, ms&0xffff)
		verifyWithin(t, harmed(t, data, harms{
			"shipping":     `INSERT INTO applied SELECT consumer, message_key, 0, '` + old + `', topic, 0, at FROM applied WHERE position = 1 AND message_key = '` + confirmed + `'`,
			"notification": `INSERT INTO mails SELECT '` + old + `', '` + old + `', customer_id, recipient, subject, body, 1, topic FROM mails WHERE subject = 'Your receipt' LIMIT 1`,
		}), nil, 0)
	})
	t.Run("a build that came to something else, and a later one that did not", func(t *testing.T) {
		verifyWithin(t, harmed(t, data, harms{"reporting": `UPDATE builds SET status = 'different', differences = '1 rows of days' WHERE status = 'retired'`}), nil, 0)
	})
	t.Run("a promised order is missing", func(t *testing.T) {
		invariants, err := check.Run(t.Context(), check.Files(data), []string{"promised"}, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		if invariants[0].OK() {
			t.Error("invariant 1 holds, want it violated")
		}
	})
	t.Run("of many things the same are named each time", func(t *testing.T) { // who watches compares them
		look := harmed(t, data, harms{"provider": `WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 40)
			INSERT INTO charges SELECT 'other-' || n, reference, amount, currency, method, status, reason, updated_at FROM n, charges WHERE status = 'captured'`})
		var before []check.Invariant
		for range 5 {
			all, err := check.Run(t.Context(), look, nil, 0, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(before) > 0 && !slices.Equal(all[1].Violations, before[1].Violations) {
				t.Fatalf("first %v, then %v", before[1].Violations, all[1].Violations)
			}
			before = all
		}
	})
	t.Run("an older shop's data", func(t *testing.T) {
		for _, older := range []harms{{"notification": `DELETE FROM hears; DROP TABLE hears; CREATE TABLE other AS SELECT 1; INSERT INTO other VALUES (1)`},
			{"notification": `ALTER TABLE mails DROP COLUMN topic; UPDATE mails SET subject = subject`}} {
			if _, err := check.Run(t.Context(), harmed(t, data, older), nil, 0, nil); err == nil || !strings.Contains(err.Error(), "start the shop on it once") {
				t.Errorf("%v: %v, want an error that says what to do", older, err)
			}
		}
	})
	t.Run("no data is an error", func(t *testing.T) {
		if _, err := check.Run(t.Context(), check.Files(t.TempDir()), nil, time.Second, nil); err == nil {
			t.Error("check of an empty folder = nil, want an error")
		}
	})
}

// harms are statements, by service.
type harms map[string]string

// harmed opens the databases of a shop that has stopped; those that harm is done to are copies.
func harmed(t *testing.T, data string, harms harms) func(service string) (*sql.DB, error) {
	t.Helper()
	copies := t.TempDir()
	for service, statement := range harms {
		path := filepath.Join(copies, service+".db")
		whole, err := os.ReadFile(filepath.Join(data, service+".db")) // all of it: who stops leaves no write-ahead log
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		harm(t, path, statement)
	}
	return func(service string) (*sql.DB, error) {
		if harms[service] != "" {
			return check.Files(copies)(service)
		}
		return check.Files(data)(service)
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
