// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsourcesql

import (
	"context"
	"database/sql"
	"encoding/json"
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
	ids, err := unnumbered(ctx, tx, "SELECT id FROM "+s.event+" WHERE position IS NULL ORDER BY id LIMIT "+strconv.Itoa(maxNumbered))
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

func unnumbered(ctx context.Context, tx *sql.Tx, query string) (ids []int64, err error) {
	rows, err := tx.QueryContext(ctx, query)
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

// insertMySQL locks no more than the row it continues. To look for the end of a stream under
// repeatable read locks the gap behind it, into which two appends then want to insert,
// each waiting for the other; so a certain version is looked up by itself, and an
// uncertain one outside the statement, when it is this transaction's turn.
func (s *Store) insertMySQL(ctx context.Context, tx eventsource.Tx, stream string, want eventsource.Expect, events []eventsource.Event) (int64, error) {
	n, exact := want.Version()
	bucket := strconv.Itoa(eventsource.Bucket(stream))
	switch {
	case exact && n == 0:
		return s.insertValues(ctx, tx, stream, bucket, "?", events)
	case exact:
		return s.insertAfter(ctx, tx, stream, bucket, strconv.FormatInt(n, 10),
			" FROM "+s.event+" AS h WHERE h.stream = ? AND h.version = "+strconv.FormatInt(n, 10), []any{stream}, events)
	}
	if _, err := tx.ExecContext(ctx, "SET @eventsource_version = (SELECT COALESCE(MAX(version), 0) FROM "+s.event+" WHERE stream = ?)", stream); err != nil {
		return 0, err
	}
	if want == eventsource.Exists {
		return s.insertAfter(ctx, tx, stream, bucket, "@eventsource_version", " FROM DUAL WHERE @eventsource_version > 0", nil, events)
	}
	return s.insertValues(ctx, tx, stream, bucket, "@eventsource_version + ?", events)
}

// insertValues adds the events without a look at the stream: the unique key is the look.
func (s *Store) insertValues(ctx context.Context, tx eventsource.Tx, stream, bucket, version string, events []eventsource.Event) (_ int64, err error) {
	one := "(?, " + bucket + ", " + version + ", ?, ?, ?, ?, ?, " + s.dialect.Now() + ")"
	args := make([]any, 0, 7*len(events))
	for i, e := range events {
		if args, err = row(append(args, stream, i+1), e); err != nil {
			return 0, err
		}
	}
	return affected(tx.ExecContext(ctx, "INSERT INTO "+s.event+insertColumns+"VALUES "+strings.Repeat(one+", ", len(events)-1)+one, args...))
}

// insertAfter adds the events behind a version if the condition in from holds.
func (s *Store) insertAfter(ctx context.Context, tx eventsource.Tx, stream, bucket, version, from string, condition []any, events []eventsource.Event) (_ int64, err error) {
	var b strings.Builder
	args := make([]any, 0, 6*len(events)+len(condition)+1)
	args = append(args, stream)
	b.WriteString("INSERT INTO " + s.event + insertColumns + "SELECT ?, " + bucket + ", " + version + " + e.n, e.a, e.b, e.c, e.d, e.e, " + s.dialect.Now() + " FROM (")
	for i, e := range events {
		if i > 0 {
			b.WriteString(" UNION ALL ")
		}
		b.WriteString("SELECT " + strconv.Itoa(i+1) + " AS n, ? AS a, ? AS b, ? AS c, ? AS d, ? AS e")
		if args, err = row(args, e); err != nil {
			return 0, err
		}
	}
	b.WriteString(") AS e WHERE EXISTS (SELECT 1" + from + ") ORDER BY e.n")
	return affected(tx.ExecContext(ctx, b.String(), append(args, condition...)...))
}
