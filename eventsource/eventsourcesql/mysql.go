// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsourcesql

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/internal/sqldialect"
)

// The order in MySQL is given after the commit, by a sequencer: whoever wants to read numbers
// the committed events that have no number yet, one at a time under the lock of
// one row. Numbers are committed in their order and without gaps, so a reader can go as
// far as they go. An append that is open has no number and holds up nobody.
//
// Within a turn of the sequencer the events are numbered in the order of their IDs. Of one stream
// that is the order of the versions: an append that continues a version has seen that
// version committed, or wrote it itself, before it takes an ID.

const (
	// turns is the number of rows for which appends of one stream wait.
	turns = 256
	// maxNumbered bounds the events of one turn of the sequencer.
	maxNumbered = 5000
)

// sequence numbers the events that have no place yet, and returns whether there may be
// more of them.
func (s *Store) sequence(ctx context.Context) (more bool, err error) {
	// Most of the time there is nothing to do, and no lock needed to know.
	var some bool
	if err := s.db.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM "+s.event+" WHERE position IS NULL)").Scan(&some); err != nil || !some {
		return false, err
	}
	for {
		n, err := s.turnOfSequencer(ctx)
		if err == nil || !sqldialect.IsContention(err) || ctx.Err() != nil {
			return n == maxNumbered, err
		}
	}
}

// turnOfSequencer waits for the one that is at it and then sees what that left. Read committed: a
// snapshot begun before the wait would not show the numbers that were given meanwhile.
func (s *Store) turnOfSequencer(ctx context.Context) (n int, err error) {
	tx, err := s.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	var last int64
	if err := tx.QueryRowContext(ctx, "SELECT last FROM "+s.sequencer+" WHERE id = 1 FOR UPDATE").Scan(&last); err != nil {
		return 0, err
	}
	ids, err := numbers(ctx, tx, "SELECT id FROM "+s.event+" WHERE position IS NULL ORDER BY id LIMIT "+strconv.Itoa(maxNumbered))
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return 0, err
	}
	// By primary key, so that only these rows are locked.
	query := "UPDATE JSON_TABLE('" + string(list) + "', '$[*]' COLUMNS (n FOR ORDINALITY, id BIGINT PATH '$')) d STRAIGHT_JOIN " +
		s.event + " e FORCE INDEX (PRIMARY) ON e.id = d.id SET e.position = " + strconv.FormatInt(last, 10) + " + d.n"
	if _, err := tx.ExecContext(ctx, query); err != nil {
		return 0, err
	}
	if _, err := tx.ExecContext(ctx, "UPDATE "+s.sequencer+" SET last = ? WHERE id = 1", last+int64(len(ids))); err != nil {
		return 0, err
	}
	return len(ids), tx.Commit()
}

// numbers returns the only column of a query.
func numbers(ctx context.Context, tx *sql.Tx, query string, args ...any) (ids []int64, err error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// insertMySQL is INSERT ... VALUES in every case: InnoDB holds a lock of the whole table while an
// INSERT ... SELECT takes its IDs, also while that waits for another append to its stream. Nor
// does it look for the end of a stream in a statement that writes: under repeatable read that
// locks the gap behind it, into which two appends then want to insert, each waiting for the other.
// So a certain version is looked up by itself, which locks its row, and an uncertain one before,
// when it is this transaction's turn. A version that is not there is NULL, which the
// table refuses; that there is a later one is told by the unique key.
func (s *Store) insertMySQL(ctx context.Context, tx eventsource.Tx, stream string, want eventsource.Expect, events []eventsource.Event) (_ int64, err error) {
	n, exact := want.Version()
	base := strconv.FormatInt(n, 10)
	first, args := base, []any{stream}
	switch {
	case exact && n > 0:
		// In a derived table, because MySQL does not read otherwise from the table it inserts into.
		first = "(SELECT h.version FROM (SELECT MAX(version) AS version FROM " + s.event + " WHERE stream = ? AND version = " + base + ") AS h)"
		args = append(args, stream)
	case !exact:
		base = "@eventsource_version"
		if want == eventsource.Exists {
			base = "NULLIF(@eventsource_version, 0)"
		}
		first = base
		if _, err := tx.ExecContext(ctx, "SET @eventsource_version = (SELECT COALESCE(MAX(version), 0) FROM "+s.event+" WHERE stream = ?)", stream); err != nil {
			return 0, err
		}
	}
	var b strings.Builder
	b.WriteString("INSERT INTO " + s.event + insertColumns + "VALUES ")
	bucket := strconv.Itoa(eventsource.Bucket(stream))
	for i, e := range events {
		if i > 0 {
			b.WriteString(", ")
			first, args = base, append(args, stream)
		}
		b.WriteString("(?, " + bucket + ", " + first + " + " + strconv.Itoa(i+1) + ", ?, ?, ?, ?, ?, " + s.dialect.Now() + ")")
		if args, err = row(args, e); err != nil {
			return 0, err
		}
	}
	n, err = affected(tx.ExecContext(ctx, b.String(), args...))
	if noVersion(err) {
		return 0, nil
	}
	return n, err
}

// noVersion recognises the refusal of a version that is NULL: as such, or by the table's CHECK
// where a server's mode makes zero of it.
func noVersion(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		for _, number := range [...]string{"Error 1048 ", "Error 1048:", "Error 3819 ", "Error 3819:", "Error 4025 ", "Error 4025:"} {
			if strings.HasPrefix(err.Error(), number) {
				return true
			}
		}
	}
	return false
}
