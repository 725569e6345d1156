// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"database/sql"
	"testing"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
	"github.com/dovetail-go/dovetail/messaging"
)

func oldStock(db *sql.DB) messaging.Handler {
	// snippet: inbox/before
	handler := messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
		_, err := db.ExecContext(ctx, "UPDATE stock SET n = n - 1 WHERE product = $1", d.Message.Key)
		return err // a message that comes twice takes two
	})
	// end
	return handler
}

func newStock(ctx context.Context, db *sql.DB, dialect idempotencysql.Dialect) (messaging.Handler, error) {
	// snippet: inbox/after
	inbox, err := idempotencysql.New(db, dialect, idempotencysql.Config{})
	if err != nil {
		return nil, err
	}
	if err := inbox.Migrate(ctx); err != nil {
		return nil, err
	}
	handler := idempotency.Consumer(db, inbox, func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
		_, err := tx.ExecContext(ctx, "UPDATE stock SET n = n - 1 WHERE product = $1", d.Message.Key)
		return err
	})
	// end
	return handler, nil
}

func batchStock(db *sql.DB, inbox idempotency.Inbox, takeOne idempotency.TxHandler) (messaging.Handler, error) {
	// snippet: inbox/batch
	// Thousands a second: four transactions at a time, each for up to 100 messages. A
	// subscription hands out as many messages as its Concurrency says: here Size times
	// Parallel, 400.
	return messaging.Batch(messaging.BatchConfig{Size: 100, Parallel: 4}, idempotency.BatchConsumer(db, inbox, takeOne))
	// end
}

// snippet: inbox/test
func TestStockIsTakenOnce(t *testing.T) {
	db := openDB(t, "CREATE TABLE stock (product TEXT, n INTEGER)", "INSERT INTO stock VALUES ('saw', 10)")
	handler, err := newStock(t.Context(), db, idempotencysql.SQLite)
	if err != nil {
		t.Fatal(err)
	}
	sold := &messaging.Delivery{Group: "stock", Message: &messaging.Message{ID: messaging.NewID(), Topic: "order.confirmed", Key: "saw"}}
	for range 3 {
		if err := handler.Handle(t.Context(), sold); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, db, "SELECT n FROM stock"); n != 9 {
		t.Errorf("stock is %d after one message that came three times, want 9", n)
	}
}

// end

func TestInboxGuide(t *testing.T) {
	db := openDB(t, "CREATE TABLE stock (product TEXT, n INTEGER)", "INSERT INTO stock VALUES ('saw', 10)")
	sold := &messaging.Delivery{Group: "stock", Message: &messaging.Message{ID: messaging.NewID(), Topic: "order.confirmed", Key: "saw"}}
	for range 2 {
		if err := oldStock(db).Handle(t.Context(), sold); err != nil {
			t.Fatal(err)
		}
	}
	inbox, err := idempotencysql.New(db, idempotencysql.SQLite, idempotencysql.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := inbox.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	handler, err := batchStock(db, inbox, func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
		_, err := tx.ExecContext(ctx, "UPDATE stock SET n = n - 1 WHERE product = $1", d.Message.Key)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := handler.Handle(t.Context(), sold); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, db, "SELECT n FROM stock"); n != 7 {
		t.Errorf("stock is %d, want 10 less 2 without an inbox and 1 with it", n)
	}
}
