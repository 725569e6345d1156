// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"strings"

	_ "modernc.org/sqlite" // the driver "sqlite"
)

// OpenSQLite opens, and creates if need be, a database file for one service.
//
// The pool is one connection: SQLite has one writer anyway, and waiting for the
// connection in Go is fair where SQLite's own busy loop is not. So code that holds
// a transaction must not ask the pool for anything else.
//
// The write-ahead log is synced at checkpoints only: a killed process loses nothing, a
// power cut may lose the last transactions.
func OpenSQLite(path string) (*sql.DB, error) {
	return openSQLite(path, "_txlock=immediate")
}

// OpenSQLiteReadOnly opens a database file that exists for looking at it, also while its
// service runs.
func OpenSQLiteReadOnly(path string) (*sql.DB, error) {
	// SQLite's own mode=ro cannot read a write-ahead log that nobody has open.
	return openSQLite(path, "mode=rw&_pragma=query_only(1)")
}

func openSQLite(path, extra string) (*sql.DB, error) {
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: extra +
		"&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=foreign_keys(1)"}).String()
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// InTx runs fn in a transaction: committed if fn returns nil, rolled back otherwise.
func InTx(ctx context.Context, db *sql.DB, fn func(tx *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// Collect runs a query and returns its rows, each read by scan. The rows are closed when it
// returns, so the connection is free again.
func Collect[T any](ctx context.Context, q interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}, scan func(row interface{ Scan(dest ...any) error }) (T, error), query string, args ...any,
) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// CreateTables runs a service's own schema, statement by statement, each of which must be
// safe to run again.
func CreateTables(ctx context.Context, db *sql.DB, schema string) error {
	for statement := range strings.SplitSeq(schema, ";\n") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("create tables: %w", err)
		}
	}
	return nil
}
