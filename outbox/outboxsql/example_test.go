// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outboxsql_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

// An order and the message about it commit together.
func Example() {
	place := func(ctx context.Context, db *sql.DB, box *outbox.Outbox, id string, body []byte) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, "INSERT INTO orders (id, state) VALUES ($1, 'placed')", id); err != nil {
			return err
		}
		// After the statement that locks the order, so that the messages of one order keep
		// the order of its changes.
		if err := box.Enqueue(ctx, tx, &messaging.Message{Topic: "order.placed", Key: id, Body: body}); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		box.Wake()
		return nil
	}
	fmt.Println(place != nil)
	// Output: true
}

// The tables can be made by a migration tool of one's own.
func ExampleSchema() {
	for line := range strings.Lines(outboxsql.Schema(outboxsql.Postgres)) {
		if strings.HasPrefix(line, "CREATE TABLE") {
			fmt.Println(strings.Trim(line, "( \n"))
		}
	}
	// Output:
	// CREATE TABLE IF NOT EXISTS outbox_schema (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, started INTEGER NOT NULL);
	// CREATE TABLE outbox_message
	// CREATE TABLE outbox_parked
	// CREATE TABLE outbox_lease
	// CREATE TABLE outbox_archive
}
