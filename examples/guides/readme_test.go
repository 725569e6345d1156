// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"database/sql"
	"testing"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

func readme(ctx context.Context, db *sql.DB, box *outbox.Outbox, orderID string, body []byte) error {
	// snippet: outbox/readme
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	// … change your tables in tx …
	if err := box.Enqueue(ctx, tx, &messaging.Message{Topic: "order.placed", Key: orderID, Body: body}); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil { // the change and its message, or neither
		return err
	}
	box.Wake() // the relay polls anyway; this saves the wait
	// end
	return nil
}

func TestReadme(t *testing.T) {
	box, _, err := openOutbox(t.Context(), openDB(t), outboxsql.SQLite, openBroker(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := readme(t.Context(), openDB(t), box, "7", nil); err == nil {
		t.Error("Enqueue in a database without an outbox = nil")
	}
	db := openDB(t)
	if box, _, err = openOutbox(t.Context(), db, outboxsql.SQLite, openBroker(t)); err != nil {
		t.Fatal(err)
	}
	if err := readme(t.Context(), db, box, "7", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if s, err := box.Stats(t.Context()); err != nil || s.Depth != 1 {
		t.Errorf("Stats = %+v, %v, want one message", s, err)
	}
}
