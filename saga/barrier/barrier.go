// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package barrier

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/dovetail-go/dovetail/internal/sqldialect"
)

// ErrCompensated is returned to a do that comes after its undo. It has not run, and
// never will: answer that the request is refused.
var ErrCompensated = errors.New("barrier: compensated already")

// Dialect is the SQL that the business database speaks.
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

// Tx is the participant's transaction, such as a *sql.Tx. A *sql.DB fits as well but must
// not be used: it commits each statement by itself, so that a crash between two of
// them leaves the mark of an operation that has not happened.
type Tx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Config tunes a [Barrier]. The zero value is a sound default.
type Config struct {
	// Prefix stands before the name of the table, such as "billing_", where several services
	// share a database. Lower-case letters, digits and underscores, at most 32.
	Prefix string
	// Retention is how long [Barrier.Run] keeps marks: see [Barrier.Prune] for what it must
	// outlast. Zero means 90 days.
	Retention time.Duration
	// Logger hears of what Run could not prune. Nil means slog.Default().
	Logger *slog.Logger
}

// Barrier guards the operations of sagas in one business database. It keeps no state
// of its own and is safe for concurrent use.
type Barrier struct {
	dialect Dialect
	cfg     Config
	table   string
	// claim inserts a row; a row that exists makes it affect none, or on MySQL two.
	claim, undone, prune string
}

// New returns a barrier for a database of the given dialect. Its table is made by
// [Barrier.Migrate] or from [Barrier.Schema].
func New(d Dialect, cfg Config) (*Barrier, error) {
	if !d.Valid() {
		return nil, fmt.Errorf("barrier: dialect is %v, want Postgres, MySQL or SQLite", d)
	}
	if err := sqldialect.CheckName(cfg.Prefix); err != nil {
		return nil, fmt.Errorf("barrier: Config.Prefix %w", err)
	}
	if cfg.Retention < 0 {
		return nil, fmt.Errorf("barrier: Config.Retention is %v, want 0 or more", cfg.Retention)
	}
	cfg.Retention = cmp.Or(cfg.Retention, 90*24*time.Hour)
	table := cfg.Prefix + "saga_barrier"
	insert := "INSERT INTO " + table + " (saga, step, op, seen, at) VALUES (?, ?, ?, 1, " + d.Now() + ") "
	if d == MySQL {
		// Not an assignment of a column to itself: whether that counts as a row depends on
		// the connection's clientFoundRows. A change counts as two in either case.
		insert += "ON DUPLICATE KEY UPDATE seen = seen + 1"
	} else {
		insert += "ON CONFLICT (saga, step, op) DO NOTHING"
	}
	old := fmt.Sprintf("FROM %s WHERE at < %s - ? LIMIT %d", table, d.Now(), pruneBatch)
	prune := "DELETE FROM " + table + " WHERE (saga, step, op) IN (SELECT saga, step, op " + old + ")"
	if d == MySQL {
		prune = "DELETE " + old
	}
	return &Barrier{
		dialect: d,
		cfg:     cfg,
		table:   table,
		claim:   d.Rebind(insert),
		undone:  d.Rebind("UPDATE " + table + " SET seen = seen + 1 WHERE saga = ? AND step = ? AND op = ?"),
		prune:   d.Rebind(prune),
	}, nil
}

// Do runs fn if the operation of this key must take effect now, and reports whether
// it ran. It calls nothing but ExecContext on tx, in which fn must make its changes
// as well: key and changes commit together. After an error, fn's own included, roll
// tx back.
//
// A do runs once: a repetition returns false and nil, and after its undo
// [ErrCompensated]. An undo runs once, and only if its do ran; if not, the do is
// barred for ever. Where do and undo come at the same time, one waits for the
// other's transaction.
func (b *Barrier) Do(ctx context.Context, tx Tx, key Key, fn func() error) (ran bool, err error) {
	if problem := key.check(); problem != "" {
		return false, fmt.Errorf("barrier: %s", problem)
	}
	if ran, err = b.enter(ctx, tx, key); err == nil && ran {
		err = fn()
		return err == nil, err
	}
	return false, err
}

func (b *Barrier) enter(ctx context.Context, tx Tx, key Key) (run bool, err error) {
	// An undo first lays claim to its do. If that succeeds there was none, and now there
	// cannot be one any more.
	first, err := b.insert(ctx, tx, key, "do")
	if err != nil {
		return false, err
	}
	if key.Op == "undo" {
		fresh, err := b.insert(ctx, tx, key, "undo")
		return fresh && !first, err
	}
	if first {
		return true, nil
	}
	undone, err := b.isUndone(ctx, tx, key)
	if err == nil && undone {
		err = fmt.Errorf("%w: %s", ErrCompensated, key)
	}
	return false, err
}

// isUndone reports whether there is an undo of the key's step.
func (b *Barrier) isUndone(ctx context.Context, tx Tx, key Key) (bool, error) {
	n, err := affected(ctx, tx, b.undone, key.Saga, key.Step, "undo")
	if err != nil {
		return false, fmt.Errorf("barrier: %s: %w", key, err)
	}
	return n > 0, nil
}

// Bar makes sure that the do of this key never runs, because the participant has
// refused it: a late duplicate of the request will get [ErrCompensated]. It reports
// false, and does nothing, if the do has run already.
//
// A step with an undo need not be barred, since the saga undoes a refused step too.
// A pivot has none: bar it when the transaction of the refused attempt was rolled
// back, before the refusal is answered. Bar has a transaction of its own.
func (b *Barrier) Bar(ctx context.Context, db *sql.DB, key Key) (barred bool, err error) {
	if problem := key.check(); problem != "" {
		return false, fmt.Errorf("barrier: %s", problem)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return false, fmt.Errorf("barrier: %s: %w", key, err)
	}
	defer tx.Rollback()
	first, err := b.insert(ctx, tx, key, "do")
	if err != nil {
		return false, err
	}
	if !first {
		return b.isUndone(ctx, tx, key)
	}
	if _, err := b.insert(ctx, tx, key, "undo"); err != nil {
		return false, err
	}
	if err := tx.Commit(); err != nil {
		return false, fmt.Errorf("barrier: %s: %w", key, err)
	}
	return true, nil
}

// insert reports whether the row is new.
func (b *Barrier) insert(ctx context.Context, tx Tx, key Key, op string) (bool, error) {
	n, err := affected(ctx, tx, b.claim, key.Saga, key.Step, op)
	if err != nil {
		return false, fmt.Errorf("barrier: %s: %w", key, err)
	}
	return n == 1, nil
}

// steps are the migrations; released ones never change.
func steps(d Dialect, table string) []string {
	return []string{
		"CREATE TABLE " + table + " (\n" +
			"  saga VARCHAR(200) NOT NULL,\n  step VARCHAR(100) NOT NULL,\n  op VARCHAR(4) NOT NULL,\n" +
			"  seen BIGINT NOT NULL,\n  at BIGINT NOT NULL,\n  PRIMARY KEY (saga, step, op)\n)" + d.TableOptions() + ";\n" +
			"CREATE INDEX " + table + "_at ON " + table + " (at);\n",
	}
}

// Schema returns the table of a barrier with the zero [Config] as SQL text, for a migration
// tool. It is empty for an unknown dialect.
func Schema(d Dialect) string {
	b, err := New(d, Config{})
	if err != nil {
		return ""
	}
	return b.Schema()
}

// Schema returns the barrier's table as SQL text, for a migration tool. [Barrier.Migrate]
// recognises what it made.
func (b *Barrier) Schema() string {
	return sqldialect.Schema(b.dialect, b.table, steps(b.dialect, b.table))
}

// Migrate creates the barrier's table in the business database, or brings it up to
// date. Many replicas may call it at every start. It needs one connection.
func (b *Barrier) Migrate(ctx context.Context, db *sql.DB) error {
	return sqldialect.Migrate(ctx, db, b.dialect, b.table, steps(b.dialect, b.table))
}

const (
	pruneBatch    = 1000
	pruneInterval = time.Hour
)

// Prune forgets operations that are older than age, by the database's clock, a thousand at
// a time, and returns how many. After that a request that is repeated is taken for a new
// one, and an undo finds nothing to undo: age must be longer than any saga lasts, also one
// that waits for a person or an operator, and longer than any request can be delayed.
func (b *Barrier) Prune(ctx context.Context, db *sql.DB, age time.Duration) (int64, error) {
	if age <= 0 {
		return 0, fmt.Errorf("barrier: prune: age is %v, want longer than any saga lasts", age)
	}
	var total int64
	for {
		n, err := affected(ctx, db, b.prune, age.Microseconds())
		if err != nil {
			return total, fmt.Errorf("barrier: prune: %w", err)
		}
		if total += n; n < pruneBatch {
			return total, nil
		}
	}
}

// Run prunes what is older than Config.Retention, now and every hour, until ctx ends, then
// returns nil. Any number of replicas may do so.
func (b *Barrier) Run(ctx context.Context, db *sql.DB) error {
	ticker := time.NewTicker(pruneInterval)
	defer ticker.Stop()
	for {
		if _, err := b.Prune(ctx, db, b.cfg.Retention); err != nil && ctx.Err() == nil {
			cmp.Or(b.cfg.Logger, slog.Default()).ErrorContext(ctx, "barrier: not pruned", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// affected executes a statement and returns how many rows it changed.
func affected(ctx context.Context, tx Tx, query string, args ...any) (int64, error) {
	res, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}
