// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
	"github.com/dovetail-go/dovetail/messaging"
)

// TestAddColumn gives a table with a row a column, and once more.
func TestAddColumn(t *testing.T) {
	onBoth(t, func(t *testing.T, db *sql.DB) {
		if err := CreateTables(t.Context(), db, "CREATE TABLE t (id BIGINT PRIMARY KEY);\nINSERT INTO t VALUES (1)"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := AddColumn(t.Context(), db, "t", "revision", "BIGINT NOT NULL DEFAULT 7"); err != nil {
				t.Fatal(err)
			}
		}
		var revision int
		if err := db.QueryRowContext(t.Context(), `SELECT revision FROM t WHERE id = 1`).Scan(&revision); err != nil || revision != 7 {
			t.Errorf("revision = %d, %v; want 7", revision, err)
		}
		if err := AddColumn(t.Context(), db, "none", "revision", "BIGINT"); err == nil {
			t.Error("a table that does not exist has got a column")
		}
	})
}

// TestDatabaseIsPrivate looks at the files of a database in a folder that everybody can look into.
func TestDatabaseIsPrivate(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the point of the test
		t.Fatal(err)
	}
	db, err := OpenSQLite(filepath.Join(dir, "private.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := CreateTables(t.Context(), db, "CREATE TABLE t (id BIGINT PRIMARY KEY)"); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 2 {
		t.Fatalf("%v, %v; want the database and its log", files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v (%v), want nobody else to read it", f.Name(), info.Mode(), err)
		}
	}
}

// onBoth runs a test on an empty database of each kind that the shop can have.
func onBoth(t *testing.T, test func(t *testing.T, db *sql.DB)) {
	t.Helper()
	t.Run("SQLite", func(t *testing.T) {
		db, err := OpenSQLite(filepath.Join(t.TempDir(), "t.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		test(t, db)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		dsn := os.Getenv("DOVETAIL_POSTGRES_DSN")
		if dsn == "" {
			testserver.Missing(t, "DOVETAIL_POSTGRES_DSN is not set: run scripts/services up postgres && eval \"$(scripts/services env)\"")
		}
		schema := "test" + strings.ReplaceAll(messaging.NewID(), "-", "")
		db, err := OpenPostgres(t.Context(), dsn, schema)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		defer func() {
			if _, err := db.ExecContext(context.Background(), `DROP SCHEMA `+schema+` CASCADE`); err != nil {
				t.Error(err)
			}
		}()
		test(t, db)
	})
}
