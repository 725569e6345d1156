// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

// Dialect is the SQL that a database speaks. The services' own statements are written so that
// both understand them.
type Dialect = outboxsql.Dialect

// The databases that a service can live in.
const (
	SQLite   = outboxsql.SQLite
	Postgres = outboxsql.Postgres
)

// DialectOf returns the dialect of an open database.
func DialectOf(db *sql.DB) Dialect {
	if _, ok := db.Driver().(*stdlib.Driver); ok {
		return Postgres
	}
	return SQLite
}

// OpenSQLite opens, and creates if need be, a database file for one service, which only the user of
// this process may read.
//
// The pool is one connection: SQLite has one writer anyway, and waiting for the
// connection in Go is fair where SQLite's own busy loop is not. So code that holds
// a transaction must not ask the pool for anything else.
//
// The write-ahead log is synced at checkpoints only: a killed process loses nothing, a
// power cut may lose the last transactions.
func OpenSQLite(path string) (*sql.DB, error) { return OpenSQLiteBehind(path, nil) }

// OpenSQLiteBehind is OpenSQLite with a gate before every statement. Nil is none.
func OpenSQLiteBehind(path string, gate *Gate) (*sql.DB, error) {
	// SQLite would make it readable for everybody. Its other files take the mode of this one. One that exists is not
	// touched: to close it here would let go what other connections of this process have locked.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // the caller's path
	if err == nil {
		err = f.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return openSQLite(path, "_txlock=immediate", gate)
}

// OpenSQLiteReadOnly opens a database file that exists for looking at it, also while its
// service runs.
func OpenSQLiteReadOnly(path string) (*sql.DB, error) { return OpenSQLiteReadOnlyBehind(path, nil) }

// OpenSQLiteReadOnlyBehind is OpenSQLiteReadOnly with a gate before every statement. Nil is none.
func OpenSQLiteReadOnlyBehind(path string, gate *Gate) (*sql.DB, error) {
	// SQLite's own mode=ro cannot read a write-ahead log that nobody has open.
	return openSQLite(path, "mode=rw&_pragma=query_only(1)", gate)
}

func openSQLite(path, extra string, gate *Gate) (*sql.DB, error) {
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: extra +
		"&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=foreign_keys(1)"}).String()
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if gate != nil {
		_ = db.Close() // nothing is open yet
		db = sql.OpenDB(gatedConnector{db.Driver(), dsn, gate})
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// PostgresConns is how many connections a service process has at most: a database shared by
// two dozen processes has to hold all of them.
const PostgresConns = 8

// idleInTransaction is after how long PostgreSQL ends a transaction whose process says nothing
// more: a process that was stopped in the middle of one must not keep its locks from the others.
const idleInTransaction = 5 * time.Second

// OpenPostgres opens one service's own schema in the database at dsn, and creates the schema if
// need be. No statement of the service names it, so none can reach into another's.
func OpenPostgres(ctx context.Context, dsn, schema string) (*sql.DB, error) {
	db, err := openPostgres(dsn, schema, nil)
	if err != nil {
		return nil, err
	}
	if err := Exclusively(ctx, db, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{schema}.Sanitize())
		return err
	}); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("schema %s: %w", schema, err)
	}
	return db, nil
}

// OpenPostgresReadOnly opens a schema for looking at it, also while its service runs.
func OpenPostgresReadOnly(dsn, schema string) (*sql.DB, error) {
	return openPostgres(dsn, schema, map[string]string{"default_transaction_read_only": "on"})
}

func openPostgres(dsn, schema string, extra map[string]string) (*sql.DB, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]string{
		"search_path":                         pgx.Identifier{schema}.Sanitize(),
		"application_name":                    schema,
		"idle_in_transaction_session_timeout": fmt.Sprint(idleInTransaction.Milliseconds()),
	} {
		cfg.RuntimeParams[name] = value
	}
	for name, value := range extra {
		cfg.RuntimeParams[name] = value
	}
	db := stdlib.OpenDB(*cfg)
	db.SetMaxOpenConns(PostgresConns)
	db.SetMaxIdleConns(PostgresConns)
	db.SetConnMaxIdleTime(time.Minute)
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

// Exclusively runs fn in a transaction that no other Exclusively of the same service runs beside,
// in whatever process: for what must happen once although several instances start together.
func Exclusively(ctx context.Context, db *sql.DB, fn func(tx *sql.Tx) error) error {
	return InTx(ctx, db, func(tx *sql.Tx) error {
		// SQLite's transactions exclude each other anyway. PostgreSQL's lock is the whole database's, so
		// the services take their turn too.
		if DialectOf(db) == Postgres {
			if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(7380716)`); err != nil {
				return err
			}
		}
		return fn(tx)
	})
}

// AddColumn gives a table of a service a column, if it was made when there was none yet.
func AddColumn(ctx context.Context, db *sql.DB, table, column, definition string) error {
	ask := `SELECT COUNT(*) FROM pragma_table_info($1) WHERE name = $2`
	if DialectOf(db) == Postgres {
		ask = `SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = $1 AND column_name = $2`
	}
	if err := Exclusively(ctx, db, func(tx *sql.Tx) error {
		var there int
		if err := tx.QueryRowContext(ctx, ask, table, column).Scan(&there); err != nil || there > 0 {
			return err
		}
		_, err := tx.ExecContext(ctx, "ALTER TABLE "+table+" ADD COLUMN "+column+" "+definition)
		return err
	}); err != nil {
		return fmt.Errorf("column %s.%s: %w", table, column, err)
	}
	return nil
}

// CreateTables runs a service's own schema, statement by statement, each of which must be
// safe to run again.
func CreateTables(ctx context.Context, db *sql.DB, schema string) error {
	if err := Exclusively(ctx, db, func(tx *sql.Tx) error {
		for statement := range strings.SplitSeq(schema, ";\n") {
			if strings.TrimSpace(statement) == "" {
				continue
			}
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("create tables: %w", err)
	}
	return nil
}
