// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

func oldConfirm(ctx context.Context, db *sql.DB, broker messaging.Publisher, id string) error {
	m := &messaging.Message{ID: messaging.NewID(), Topic: "order.confirmed", Key: id}
	// snippet: outbox/before
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "UPDATE orders SET state = 'confirmed' WHERE id = $1", id); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	return broker.Publish(ctx, m) // a crash before this line, and nobody ever hears of it
	// end
}

func confirm(ctx context.Context, db *sql.DB, box *outbox.Outbox, id string) error {
	m := &messaging.Message{Topic: "order.confirmed", Key: id}
	// snippet: outbox/after
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "UPDATE orders SET state = 'confirmed' WHERE id = $1", id); err != nil {
		return err
	}
	if err := box.Enqueue(ctx, tx, m); err != nil { // after the row is locked: that keeps the order
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	box.Wake() // the relay polls anyway; this saves the wait
	return nil
	// end
}

// snippet: outbox/setup
// openOutbox is called once at start; relay.Run belongs to the service's errgroup.
func openOutbox(ctx context.Context, db *sql.DB, dialect outboxsql.Dialect, broker messaging.Publisher) (*outbox.Outbox, *outbox.Relay, error) {
	store, err := outboxsql.New(db, dialect, outboxsql.Config{})
	if err != nil {
		return nil, nil, err
	}
	if err := store.Migrate(ctx); err != nil { // or outboxsql.Schema(dialect) in your migrations
		return nil, nil, err
	}
	box, err := outbox.New(store, outbox.Config{})
	if err != nil {
		return nil, nil, err
	}
	relay, err := outbox.NewRelay(box, broker, outbox.RelayConfig{PublishTimeout: 30 * time.Second})
	return box, relay, err
}

// end

// snippet: outbox/test
func TestConfirmedOrdersAreToldOf(t *testing.T) {
	db := openDB(t, "CREATE TABLE orders (id TEXT, state TEXT)", "INSERT INTO orders VALUES ('7', 'placed')")
	broker := openBroker(t)
	box, relay, err := openOutbox(t.Context(), db, outboxsql.SQLite, broker)
	if err != nil {
		t.Fatal(err)
	}
	if err := confirm(t.Context(), db, box, "7"); err != nil {
		t.Fatal(err)
	}
	// The service dies here, before any relay ran: what was committed is there.
	if s, err := box.Stats(t.Context()); err != nil || s.Depth != 1 {
		t.Fatalf("Stats = %+v, %v, want one message waiting", s, err)
	}

	audit := messaging.Subscription{Group: "audit", Topics: []string{"order.#"}}
	if err := broker.Declare(t.Context(), audit); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	heard, ended := make(chan string, 16), make(chan error, 2)
	go func() {
		ended <- broker.Subscribe(ctx, audit, messaging.HandlerFunc(func(_ context.Context, d *messaging.Delivery) error {
			heard <- d.Message.Key
			return nil
		}))
	}()
	go func() { ended <- relay.Run(ctx) }()
	if key := <-heard; key != "7" {
		t.Errorf("heard of %s, want 7", key)
	}
	stop()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// end

func TestConfirmWithoutAnOutbox(t *testing.T) {
	db := openDB(t, "CREATE TABLE orders (id TEXT, state TEXT)", "INSERT INTO orders VALUES ('7', 'placed')")
	if err := oldConfirm(t.Context(), db, openBroker(t), "7"); err == nil { // nobody is bound
		t.Error("oldConfirm = nil, want the broker's error after the commit")
	}
	if n := count(t, db, "SELECT COUNT(*) FROM orders WHERE state = 'confirmed'"); n != 1 {
		t.Errorf("%d orders are confirmed, want 1 that nobody heard of", n)
	}
}
