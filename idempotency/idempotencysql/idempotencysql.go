// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package idempotencysql keeps an inbox and idempotency keys in PostgreSQL, MySQL or
// MariaDB, and SQLite, next to the data that they protect.
//
//	store, err := idempotencysql.New(db, idempotencysql.Postgres, idempotencysql.Config{})
//	err = store.Migrate(ctx) // or apply idempotencysql.Schema with your migration tool
//	go store.Run(ctx)        // forgets what is old
//
//	handler := idempotency.Consumer(db, store, apply)
//	protect, err := idempotency.HTTP(store, idempotency.HTTPConfig{Scope: principal})
//
// # Guarantees
//
// A mark or a saved answer commits with the caller's transaction, which is never
// aborted by finding a duplicate. Leases and retentions go by the database's clock. One
// connection of the pool is enough: a method holds none while it waits for another.
//
// Waiting for another transaction is bounded by Config.Wait, then it is
// [idempotency.ErrInProgress]. What is bounded is this side. A transaction that a stalled
// process has left open is for the database to end: idle_in_transaction_session_timeout
// on PostgreSQL, wait_timeout on MySQL.
//
// # Caveats
//
// For MySQL the tests run on MariaDB 10.11, not on MySQL itself. What the statements use
// beyond plain SQL is in the manual of MySQL 8.0 too: INSERT IGNORE, SELECT ... FOR UPDATE SKIP
// LOCKED (from 8.0.1), DELETE with ORDER BY and LIMIT, UTC_TIMESTAMP(6), VARBINARY in keys, and
// GET_LOCK for Migrate.
//
// Under PostgreSQL's repeatable read and serializable isolation an extension of the lease
// between a transaction's first statement and its [idempotency.Save] makes the latter a
// serialization failure: try the transaction again, as at those levels always.
//
// MySQL and MariaDB go on waiting when the client has given up, and hold what the
// statement has locked so far, for innodb_lock_wait_timeout, which is 50 seconds. Set it
// below Config.Wait for the connections of the pool: go-sql-driver/mysql takes
// innodb_lock_wait_timeout=3 in the data source name.
//
// With READ UNCOMMITTED as their default isolation MySQL and MariaDB would replay an answer whose
// transaction may yet be rolled back. Every other level does.
//
// On MySQL and MariaDB a deadlock ends the whole transaction, and later statements of
// the same connection commit one by one: a handler must return at the first error.
//
// A SQLite pool of one connection has no connection left for the lease while a handler's
// transaction is open, nor for anybody else who would want the key.
package idempotencysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/internal/sqldialect"
)

// Dialect is the SQL that a database speaks.
type Dialect = sqldialect.Dialect

// The dialects.
const (
	// Postgres is PostgreSQL 12 or later.
	Postgres = sqldialect.Postgres
	// MySQL is MySQL 8.0 or MariaDB 10.6 and later.
	MySQL = sqldialect.MySQL
	// SQLite is SQLite 3.24 or later.
	SQLite = sqldialect.SQLite
)

// Config configures a [Store].
type Config struct {
	// Prefix stands before the names of the tables, such as "billing_", where several
	// services share a database. Lower-case letters, digits and underscores, at most 32.
	Prefix string
	// Lease is that of a command which names none. Zero means
	// [idempotency.DefaultLease], 30 seconds.
	Lease time.Duration
	// Retention is that of a command which names none. Zero means
	// [idempotency.DefaultRetention], 24 hours.
	Retention time.Duration
	// MarkRetention is how long [Store.Run] keeps the inbox's marks. It must be longer than
	// any message can take to be delivered again, replays from a log or a dead-letter queue and
	// what waits parked in an outbox included: a message whose mark is gone is handled again.
	// Zero means 30 days, negative for ever.
	MarkRetention time.Duration
	// Wait bounds each wait for another transaction. Zero means 5 seconds; negative as
	// long as the database and the context allow.
	Wait time.Duration
	// Logger hears of what Run could not prune. Nil means slog.Default().
	Logger *slog.Logger
}

const (
	defaultMarkRetention = 30 * 24 * time.Hour
	defaultWait          = 5 * time.Second
)

// Store keeps marks and commands in two tables. It implements [idempotency.Inbox] and
// [idempotency.TxStore].
type Store struct {
	db      *sql.DB
	dialect Dialect
	cfg     Config
	sql     statements
}

var (
	_ idempotency.Inbox   = (*Store)(nil)
	_ idempotency.TxStore = (*Store)(nil)
)

// New returns a store on db. It does not touch the database: see [Store.Migrate].
func New(db *sql.DB, dialect Dialect, cfg Config) (*Store, error) {
	switch {
	case db == nil:
		return nil, errors.New("idempotencysql: db is nil")
	case !dialect.Valid():
		return nil, fmt.Errorf("idempotencysql: dialect is %v, want Postgres, MySQL or SQLite", dialect)
	case sqldialect.CheckName(cfg.Prefix) != nil:
		return nil, fmt.Errorf("idempotencysql: Config.Prefix %w", sqldialect.CheckName(cfg.Prefix))
	case cfg.Lease < 0:
		return nil, fmt.Errorf("idempotencysql: Config.Lease is %v, want 0 or more", cfg.Lease)
	case cfg.Retention < 0:
		return nil, fmt.Errorf("idempotencysql: Config.Retention is %v, want 0 or more", cfg.Retention)
	}
	if cfg.Lease == 0 {
		cfg.Lease = idempotency.DefaultLease
	}
	if cfg.Retention == 0 {
		cfg.Retention = idempotency.DefaultRetention
	}
	if cfg.MarkRetention == 0 {
		cfg.MarkRetention = defaultMarkRetention
	}
	if cfg.Wait == 0 {
		cfg.Wait = defaultWait
	}
	return &Store{db: db, dialect: dialect, cfg: cfg, sql: newStatements(dialect, cfg.Prefix)}, nil
}

// wait returns a context for a statement that may wait for another transaction.
func (s *Store) wait(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.cfg.Wait < 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, s.cfg.Wait)
}

// contended makes the end of such a wait an ErrInProgress.
func contended(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || sqldialect.IsContention(err) {
		return fmt.Errorf("%w: %w", idempotency.ErrInProgress, err)
	}
	return err
}

// affected executes a statement and returns how many rows it changed.
func affected(ctx context.Context, tx idempotency.Tx, query string, args ...any) (int64, error) {
	res, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}
