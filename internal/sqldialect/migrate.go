// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sqldialect

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"time"
)

// Schema returns steps as one text for a migration tool, with the version table that
// [Migrate] keeps, so that a later Migrate knows what is there.
func Schema(d Dialect, block string, steps []string) string {
	var b strings.Builder
	b.WriteString(versionTable(d, block) + ";\n")
	for _, step := range steps {
		for _, statement := range statements(step) {
			b.WriteString("\n" + statement + ";\n")
		}
	}
	fmt.Fprintf(&b, "\nINSERT INTO %s_schema (id, version, started) VALUES (1, %d, %d);\n", block, len(steps), len(steps))
	return b.String()
}

// Migrate brings a block's tables to version len(steps) by the steps that are missing.
// A step is one or more statements, each ended by a semicolon at the end of a line;
// released steps never change, new ones are appended. The version is kept in the
// table <block>_schema.
//
// It may run at every start of many replicas at once: one does the work under a lock
// while the others wait. Where the version is current already it is one SELECT.
// PostgreSQL and SQLite apply everything in one transaction. MySQL commits each DDL
// statement by itself; a crash between two of them is repaired by the next Migrate,
// which accepts in the interrupted step what exists already. A version newer than
// len(steps) is left alone: an old replica may restart during an upgrade, so steps
// must keep what the version before them needs.
//
// It needs one connection of the pool.
func Migrate(ctx context.Context, db *sql.DB, d Dialect, block string, steps []string) error {
	if !d.Valid() {
		return fmt.Errorf("migrate %s: unknown dialect %v", block, d)
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("migrate %s: %w", block, err)
	}
	defer conn.Close()
	// An error here means that the table is not there yet; any other cause will show again.
	if v, err := readVersion(ctx, conn, block); err == nil && v.version >= len(steps) {
		return nil
	}
	m := migration{conn: conn, dialect: d, block: block, steps: steps}
	switch d {
	case Postgres:
		err = m.postgres(ctx)
	case MySQL:
		err = m.mysql(ctx)
	case SQLite:
		err = m.sqlite(ctx)
	}
	if err != nil {
		return fmt.Errorf("migrate %s: %w", block, err)
	}
	return nil
}

type migration struct {
	conn    *sql.Conn
	dialect Dialect
	block   string
	steps   []string
}

func (m *migration) postgres(ctx context.Context) error {
	// Read committed whatever the server's default is: the version must be read as it
	// is after the wait for the lock, not as it was before.
	tx, err := m.conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return err
	}
	defer tx.Rollback()
	// Held to the end of the transaction, so it also works through a pooler.
	if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1)", int64(m.lockID())); err != nil {
		return err
	}
	if err := m.apply(ctx, tx, nil); err != nil {
		return err
	}
	return tx.Commit()
}

func (m *migration) sqlite(ctx context.Context) (err error) {
	// Not BeginTx: a deferred transaction that turns into a writer fails at once with
	// "busy" instead of waiting.
	for {
		_, err = m.conn.ExecContext(ctx, "BEGIN IMMEDIATE")
		if err == nil {
			break
		}
		if !IsContention(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	defer func() {
		if err != nil {
			// The connection goes back to the pool: it must not keep the transaction,
			// although ctx may have ended.
			_, _ = m.conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		}
	}()
	if err := m.apply(ctx, m.conn, nil); err != nil {
		return err
	}
	_, err = m.conn.ExecContext(ctx, "COMMIT")
	return err
}

func (m *migration) mysql(ctx context.Context) error {
	var database sql.NullString
	if err := m.conn.QueryRowContext(ctx, "SELECT DATABASE()").Scan(&database); err != nil {
		return err
	}
	if !database.Valid {
		return errors.New("no database selected")
	}
	// The lock's name is known to the whole server and has at most 64 characters.
	lock := fmt.Sprintf("dovetail-%x", hash(database.String+"/"+m.block))
	for {
		var got sql.NullInt64
		// Bounded waits, because a cancelled wait costs the connection.
		if err := m.conn.QueryRowContext(ctx, "SELECT GET_LOCK(?, 5)", lock).Scan(&got); err != nil {
			return err
		}
		if got.Int64 == 1 {
			break
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	defer func() {
		_, _ = m.conn.ExecContext(context.WithoutCancel(ctx), "DO RELEASE_LOCK(?)", lock)
	}()
	return m.apply(ctx, m.conn, func(err error) bool {
		switch mysqlNumber(err) {
		case "1050", "1060", "1061", "1062", "1091": // table, column, index, row exists; nothing to drop
			return true
		}
		return false
	})
}

// apply runs the missing steps under the lock. The errors that tolerate accepts are
// passed over in a step which an earlier run has begun and not finished.
func (m *migration) apply(ctx context.Context, c conn, tolerate func(error) bool) error {
	if _, err := c.ExecContext(ctx, versionTable(m.dialect, m.block)); err != nil {
		return err
	}
	v, err := readVersion(ctx, c, m.block)
	if errors.Is(err, sql.ErrNoRows) {
		_, err = c.ExecContext(ctx, "INSERT INTO "+m.block+"_schema (id, version, started) VALUES (1, 0, 0)")
	}
	if err != nil {
		return err
	}
	for n := v.version; n < len(m.steps); n++ {
		resumed := v.started > n
		if _, err := c.ExecContext(ctx, fmt.Sprintf("UPDATE %s_schema SET started = %d WHERE id = 1", m.block, n+1)); err != nil {
			return err
		}
		for _, statement := range statements(m.steps[n]) {
			_, err := c.ExecContext(ctx, statement)
			if err != nil && !(resumed && tolerate != nil && tolerate(err)) {
				return fmt.Errorf("step %d: %w", n+1, err)
			}
		}
		if _, err := c.ExecContext(ctx, fmt.Sprintf("UPDATE %s_schema SET version = %d WHERE id = 1", m.block, n+1)); err != nil {
			return err
		}
	}
	return nil
}

// lockID is the key of PostgreSQL's advisory lock for the block.
func (m *migration) lockID() uint64 { return hash("dovetail/" + m.block) }

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}

// conn is what *sql.Tx and *sql.Conn have in common here.
type conn interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

type version struct{ version, started int }

func readVersion(ctx context.Context, c conn, block string) (v version, err error) {
	err = c.QueryRowContext(ctx, "SELECT version, started FROM "+block+"_schema WHERE id = 1").Scan(&v.version, &v.started)
	return v, err
}

func versionTable(d Dialect, block string) string {
	return "CREATE TABLE IF NOT EXISTS " + block + "_schema (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, started INTEGER NOT NULL)" + d.TableOptions()
}

// TableOptions returns what follows the closing parenthesis of a CREATE TABLE: for
// MySQL the engine and a collation that compares byte by byte, spaces at the end left
// out (those that count them differ between MySQL and MariaDB); else nothing.
func (d Dialect) TableOptions() string {
	if d == MySQL {
		return " ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"
	}
	return ""
}

// statements splits a step at the semicolons that end a line.
func statements(step string) []string {
	var list []string
	for _, s := range strings.Split(step+"\n", ";\n") {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	return list
}
