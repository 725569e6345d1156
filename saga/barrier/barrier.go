// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package barrier

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
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
	Postgres = sqldialect.Postgres
	MySQL    = sqldialect.MySQL
	SQLite   = sqldialect.SQLite
)

// Tx is the participant's transaction, such as a *sql.Tx. A *sql.DB fits as well but must
// not be used: it commits each statement by itself, so that a crash between two of
// them leaves the mark of an operation that has not happened.
type Tx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Barrier guards the operations of sagas in one business database. It keeps no state
// of its own and is safe for concurrent use.
type Barrier struct {
	dialect Dialect
	// claim inserts a row; a row that exists makes it affect none, or on MySQL two.
	claim, undone string
}

// New returns a barrier for a database of the given dialect.
func New(d Dialect) (*Barrier, error) {
	if !d.Valid() {
		return nil, fmt.Errorf("barrier: dialect is %v, want Postgres, MySQL or SQLite", d)
	}
	insert := "INSERT INTO saga_barrier (saga, step, op, seen, at) VALUES (?, ?, ?, 1, " + d.Now() + ") "
	if d == MySQL {
		// Not an assignment of a column to itself: whether that counts as a row depends on
		// the connection's clientFoundRows. A change counts as two in either case.
		insert += "ON DUPLICATE KEY UPDATE seen = seen + 1"
	} else {
		insert += "ON CONFLICT (saga, step, op) DO NOTHING"
	}
	return &Barrier{
		dialect: d,
		claim:   d.Rebind(insert),
		undone:  d.Rebind("UPDATE saga_barrier SET seen = seen + 1 WHERE saga = ? AND step = ? AND op = ?"),
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
	res, err := tx.ExecContext(ctx, b.undone, key.Saga, key.Step, "undo")
	if err != nil {
		return false, fmt.Errorf("barrier: %s: %w", key, err)
	}
	n, err := res.RowsAffected()
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
	res, err := tx.ExecContext(ctx, b.claim, key.Saga, key.Step, op)
	if err != nil {
		return false, fmt.Errorf("barrier: %s: %w", key, err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return false, fmt.Errorf("barrier: %s: %w", key, err)
	}
	return n == 1, nil
}

const block = "saga_barrier"

func steps(d Dialect) []string {
	return []string{
		"CREATE TABLE saga_barrier (\n" +
			"  saga VARCHAR(200) NOT NULL,\n  step VARCHAR(100) NOT NULL,\n  op VARCHAR(4) NOT NULL,\n" +
			"  seen BIGINT NOT NULL,\n  at BIGINT NOT NULL,\n  PRIMARY KEY (saga, step, op)\n)" + d.TableOptions() + ";\n" +
			"CREATE INDEX saga_barrier_at ON saga_barrier (at);\n",
	}
}

// Schema returns the barrier's tables as text for a migration tool.
func Schema(d Dialect) string { return sqldialect.Schema(d, block, steps(d)) }

// Migrate creates the barrier's tables in the business database, or brings them up to
// date. Many replicas may call it at every start. It needs one connection.
func (b *Barrier) Migrate(ctx context.Context, db *sql.DB) error {
	return sqldialect.Migrate(ctx, db, b.dialect, block, steps(b.dialect))
}

// Prune forgets operations that are older than age, in small transactions, and returns
// how many rows it deleted. A request that comes later than that is taken for a
// new one, so age must be longer than any request can be delayed or repeated:
// longer than sagas last.
func (b *Barrier) Prune(ctx context.Context, db *sql.DB, age time.Duration) (int64, error) {
	const batch = 1000
	query := fmt.Sprintf("DELETE FROM saga_barrier WHERE (saga, step, op) IN "+
		"(SELECT saga, step, op FROM saga_barrier WHERE at < %s - ? LIMIT %d)", b.dialect.Now(), batch)
	if b.dialect == MySQL {
		query = fmt.Sprintf("DELETE FROM saga_barrier WHERE at < %s - ? LIMIT %d", b.dialect.Now(), batch)
	}
	var total int64
	for {
		res, err := db.ExecContext(ctx, b.dialect.Rebind(query), age.Microseconds())
		if err != nil {
			return total, fmt.Errorf("barrier: prune: %w", err)
		}
		n, err := res.RowsAffected()
		if err != nil {
			return total, fmt.Errorf("barrier: prune: %w", err)
		}
		if total += n; n < batch {
			return total, nil
		}
	}
}
