// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagasql"
)

type placeOrder struct{ OrderID string }

// An order and the start of its saga commit together or not at all.
func Example() {
	_ = func(ctx context.Context, db *sql.DB, definition *saga.Definition[placeOrder]) error {
		store, err := sagasql.New(db, sagasql.Postgres, sagasql.Config{})
		if err != nil {
			return err
		}
		if err := store.Migrate(ctx); err != nil {
			return err
		}
		engine, err := saga.NewEngine(store, saga.Config{}, definition)
		if err != nil {
			return err
		}
		go func() { _ = engine.Run(ctx) }()

		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if _, err := tx.ExecContext(ctx, "INSERT INTO orders (id) VALUES ($1)", "42"); err != nil {
			return err
		}
		if err := saga.Start(ctx, engine, tx, definition, "42", placeOrder{OrderID: "42"}); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		engine.Wake()
		return nil
	}
}

// For a migration tool of one's own.
func ExampleSchema() {
	fmt.Println(strings.Contains(sagasql.Schema(sagasql.Postgres), "CREATE TABLE"))
	// Output: true
}
