// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/saga/sagatest"
)

// A node that is cut off in a transaction leaves nothing behind, neither a row nor a lock,
// also while it is reading rows. SQLite keeps the transaction of a closed connection as long
// as rows are open, which the pool of the dead node does not close or closes late.
func TestCutEndsTransactionThatReads(t *testing.T) {
	const read, again = 3, 4 // after begin and insert
	testdb.Each(t, func(t *testing.T, db *sql.DB, dialect string) {
		for _, q := range []string{"CREATE TABLE cut (id INTEGER PRIMARY KEY)", "INSERT INTO cut (id) VALUES (1)", "INSERT INTO cut (id) VALUES (2)"} {
			if _, err := db.ExecContext(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		connector := connectorOf(t, db, dialect)
		for _, c := range []struct {
			name     string
			at       int
			after    bool
			prepared bool
		}{
			{"at the query", read, true, false},
			{"at a prepared query", read, true, true},
			{"before the next statement", again, false, false},
			{"before the next statement, prepared", again, false, true},
			{"after the next statement", again, true, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				cutOff, reached := sagatest.Cut(connector, c.at, c.after)
				own := sql.OpenDB(cutOff)
				defer own.Close()
				tx, err := own.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback()
				if _, err := tx.ExecContext(t.Context(), "INSERT INTO cut (id) VALUES (3)"); err != nil {
					t.Fatal(err)
				}
				query := tx.QueryContext
				if c.prepared {
					stmt, err := tx.PrepareContext(t.Context(), "SELECT id FROM cut ORDER BY id")
					if err != nil {
						t.Fatal(err)
					}
					defer stmt.Close()
					query = func(ctx context.Context, _ string, args ...any) (*sql.Rows, error) {
						return stmt.QueryContext(ctx, args...)
					}
				}
				rows, err := query(t.Context(), "SELECT id FROM cut ORDER BY id")
				if c.at == read != (err != nil) {
					t.Fatalf("QueryContext = %v", err)
				}
				if err == nil {
					defer rows.Close()
					if !rows.Next() {
						t.Fatalf("Next = false (%v), want a row", rows.Err())
					}
					// MySQL's protocol has no room for a statement here, but the node is cut off in any case.
					if _, err := tx.ExecContext(t.Context(), "DELETE FROM cut WHERE id = 1"); err == nil {
						t.Fatal("ExecContext = nil, want an error")
					}
					if rows.Next(); rows.Err() == nil && reached() {
						t.Error("Next has an answer from a database that the node is cut off from")
					}
				}
				if !reached() {
					t.Fatal("not cut off")
				}
				if _, err := db.ExecContext(t.Context(), "UPDATE cut SET id = id + 10"); err != nil {
					t.Fatalf("another node writes: %v", err)
				}
				var n int
				if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM cut").Scan(&n); err != nil || n != 2 {
					t.Errorf("%d rows (%v), want the 2 that were committed", n, err)
				}
			})
		}
	})
}
