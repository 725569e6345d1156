// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"database/sql"
	"log/slog"
	"path/filepath"
	"testing"

	_ "modernc.org/sqlite" // the guides' database; what they show is the same on PostgreSQL

	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

// openDB returns an empty database with the tables of the statements.
func openDB(t *testing.T, statements ...string) *sql.DB {
	t.Helper()
	file := filepath.Join(t.TempDir(), "guide.db")
	db, err := sql.Open("sqlite", "file:"+file+"?_txlock=immediate&_pragma=busy_timeout(60000)&_pragma=journal_mode(wal)&_pragma=synchronous(off)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, s := range statements {
		if _, err := db.ExecContext(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

// openBroker returns a broker in memory whose Publish returns when the handlers are done.
func openBroker(t *testing.T) *messagingmem.Broker {
	t.Helper()
	b, err := messagingmem.New(messagingmem.Config{ConfirmOnAck: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// count returns what a query for one number says.
func count(t *testing.T, db *sql.DB, query string) (n int) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
