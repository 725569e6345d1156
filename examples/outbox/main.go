// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command outbox commits a change and its message together, publishes the message, and
// applies it once although it comes twice: outbox, broker and inbox on one SQLite database.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"

	"golang.org/x/sync/errgroup"
	_ "modernc.org/sqlite"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	db, err := sql.Open("sqlite", "file:shop?mode=memory&_txlock=immediate")
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, "CREATE TABLE orders (id TEXT); CREATE TABLE mails (order_id TEXT)"); err != nil {
		return err
	}
	store, err := outboxsql.New(db, outboxsql.SQLite, outboxsql.Config{})
	if err != nil {
		return err
	}
	if err := store.Migrate(ctx); err != nil {
		return err
	}
	inbox, err := idempotencysql.New(db, idempotencysql.SQLite, idempotencysql.Config{})
	if err != nil {
		return err
	}
	if err := inbox.Migrate(ctx); err != nil {
		return err
	}
	broker, err := messagingmem.New(messagingmem.Config{ConfirmOnAck: true})
	if err != nil {
		return err
	}
	box, err := outbox.New(store, outbox.Config{})
	if err != nil {
		return err
	}
	relay, err := outbox.NewRelay(box, broker, outbox.RelayConfig{})
	if err != nil {
		return err
	}

	// The consumer: its change and the memory of the message are one transaction.
	mails := messaging.Subscription{Group: "mails", Topics: []string{"order.*"}, Ordered: true}
	handler := idempotency.Consumer(db, inbox, func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO mails VALUES (?)", string(d.Message.Body))
		return err
	})
	if err := broker.Declare(ctx, mails); err != nil {
		return err
	}
	var workers errgroup.Group
	workers.Go(func() error { return broker.Subscribe(ctx, mails, handler) })
	workers.Go(func() error { return relay.Run(ctx) })

	// The producer: the order and its message are one transaction.
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, "INSERT INTO orders VALUES ('42')"); err != nil {
		return err
	}
	placed := &messaging.Message{ID: messaging.NewID(), Topic: "order.placed", Key: "42", Type: "order.placed.v1", Body: []byte("42")}
	if err := box.Enqueue(ctx, tx, placed); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	box.Wake()

	// Somebody publishes it again, as a relay does that crashed at the wrong moment.
	if err := broker.Publish(ctx, placed); err != nil {
		return err
	}
	for waiting := 1; waiting > 0; {
		stats, err := box.Stats(ctx)
		if err != nil {
			return err
		}
		waiting = stats.Depth
	}
	var orders, sent int
	if err := db.QueryRowContext(ctx, "SELECT (SELECT COUNT(*) FROM orders), (SELECT COUNT(*) FROM mails)").Scan(&orders, &sent); err != nil {
		return err
	}
	fmt.Println(orders, "order,", sent, "mail")
	stop()
	return workers.Wait()
}

// Output:
// 1 order, 1 mail
