// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsourcesql

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/internal/sqldialect"
)

// Dialect is the SQL that the database speaks.
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

// Config configures a [Store] and [Models]. The zero value is a sound default.
type Config struct {
	// Prefix stands before the names of the tables, such as "billing_", where several
	// logs share a database. Lower-case letters, digits and underscores, at most 32.
	Prefix string
}

// maxRows bounds one INSERT, below the databases' limits on parameters.
const maxRows = 500

// Store is a log in a SQL database. It may be used from many goroutines.
type Store struct {
	db      *sql.DB
	dialect Dialect
	cfg     Config
	// the tables
	event, snapshot, sequencer, turn string
	// settled is a cursor up to which no append is open any more, in PostgreSQL.
	settled atomic.Int64
}

var _ eventsource.Store = (*Store)(nil)

// New returns a store on db. Its tables must exist before it is used: see
// [Store.Migrate] and [Schema].
func New(db *sql.DB, d Dialect, cfg Config) (*Store, error) {
	if db == nil {
		return nil, errors.New("eventsourcesql: DB is nil, want a database")
	}
	return newStore(db, d, cfg)
}

func newStore(db *sql.DB, d Dialect, cfg Config) (*Store, error) {
	if err := check(d, cfg); err != nil {
		return nil, err
	}
	p := cfg.Prefix + "eventsource_"
	return &Store{db: db, dialect: d, cfg: cfg, event: p + "event", snapshot: p + "snapshot", sequencer: p + "sequencer", turn: p + "turn"}, nil
}

func check(d Dialect, cfg Config) error {
	if !d.Valid() {
		return fmt.Errorf("eventsourcesql: Dialect is %v, want Postgres, MySQL or SQLite", d)
	}
	if err := sqldialect.CheckName(cfg.Prefix); err != nil {
		return fmt.Errorf("eventsourcesql: Config.Prefix %w", err)
	}
	return nil
}

// columns are those of an event, in the order of scan.
const columns = "stream, version, event_id, event_type, happened, recorded, header, data"

func scan(rows *sql.Rows, e *eventsource.Recorded) error {
	var at sql.NullInt64
	var happened, recorded int64
	var header string
	if err := rows.Scan(&at, &e.Stream, &e.Version, &e.ID, &e.Type, &happened, &recorded, &header, &e.Data); err != nil {
		return err
	}
	e.Cursor = eventsource.Cursor(at.Int64)
	e.Time, e.Recorded = time.Unix(0, happened).UTC(), time.UnixMicro(recorded).UTC()
	if header != "" {
		if err := json.Unmarshal([]byte(header), &e.Header); err != nil {
			return fmt.Errorf("header of event %s: %w", e.ID, err)
		}
	}
	return nil
}

func (s *Store) query(ctx context.Context, query string, args ...any) (events []eventsource.Recorded, err error) {
	rows, err := s.db.QueryContext(ctx, s.dialect.Rebind(query), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var e eventsource.Recorded
		if err := scan(rows, &e); err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events, rows.Err()
}

// Read implements [eventsource.Store].
func (s *Store) Read(ctx context.Context, stream string, after int64, limit int) ([]eventsource.Recorded, error) {
	return s.query(ctx, "SELECT position, "+columns+" FROM "+s.event+" WHERE stream = ? AND version > ? ORDER BY version LIMIT ?", stream, after, limit)
}

// ReadAll implements [eventsource.Store].
func (s *Store) ReadAll(ctx context.Context, after eventsource.Cursor, f eventsource.Filter, limit int) (eventsource.Page, error) {
	after = max(after, 0)
	end, err := s.end(ctx, after)
	if err != nil {
		return eventsource.Page{}, err
	}
	page := eventsource.Page{Next: after, More: end.more, Waiting: end.waiting}
	if end.at <= after {
		return page, nil
	}
	where, args := "position > ? AND position <= ?", []any{int64(after), int64(end.at)}
	if len(f.Types) > 0 {
		where += " AND event_type IN " + sqldialect.Values(1, len(f.Types))
		for _, t := range f.Types {
			args = append(args, t)
		}
	}
	if f.Prefix != "" {
		where += " AND substr(stream, 1, " + strconv.Itoa(len([]rune(f.Prefix))) + ") = ?"
		args = append(args, f.Prefix)
		if s.dialect == MySQL { // to which a shorter name with spaces behind it is the same
			where += " AND length(stream) >= " + strconv.Itoa(len(f.Prefix))
		}
	}
	if f.Shards > 1 {
		where += fmt.Sprintf(" AND bucket %% %d = %d", f.Shards, f.Shard)
	}
	page.Events, err = s.query(ctx, "SELECT position, "+columns+" FROM "+s.event+" WHERE "+where+" ORDER BY position LIMIT ?", append(args, limit)...)
	if err != nil {
		return eventsource.Page{}, err
	}
	page.Next = end.at
	if len(page.Events) == limit {
		page.Next = page.Events[limit-1].Cursor
		page.More = page.More || page.Next < end.at
	}
	return page, nil
}

// reach is how far a reader may go.
type reach struct {
	at eventsource.Cursor
	// more says that there may be more after at by now, waiting that what is there must wait.
	more, waiting bool
}

// end returns how far a reader that is at after may go.
func (s *Store) end(ctx context.Context, after eventsource.Cursor) (reach, error) {
	switch s.dialect {
	case Postgres:
		// What was settled once is settled for ever, so a reader who is far behind need not
		// look at the locks again for each page.
		if known := eventsource.Cursor(s.settled.Load()); known > after {
			return reach{at: known, more: true}, nil
		}
		h, err := s.horizonPostgres(ctx, false)
		return reach{at: h.Cursor, waiting: h.Head > h.Cursor}, err
	case MySQL:
		more, err := s.sequence(ctx)
		if err != nil {
			return reach{}, err
		}
		at, err := s.last(ctx)
		return reach{at: at, more: more}, err
	default:
		at, err := s.last(ctx)
		return reach{at: at}, err
	}
}

// last returns the largest position that is committed.
func (s *Store) last(ctx context.Context) (at eventsource.Cursor, err error) {
	err = s.db.QueryRowContext(ctx, "SELECT COALESCE(MAX(position), 0) FROM "+s.event).Scan(&at)
	return at, err
}

// End implements [eventsource.Store].
func (s *Store) End(ctx context.Context, stream string) (version int64, at eventsource.Cursor, err error) {
	for {
		var position sql.NullInt64
		err = s.db.QueryRowContext(ctx, s.dialect.Rebind("SELECT version, position FROM "+s.event+" WHERE stream = ? ORDER BY version DESC LIMIT 1"), stream).
			Scan(&version, &position)
		if errors.Is(err, sql.ErrNoRows) {
			return 0, 0, nil
		}
		if err != nil || position.Valid {
			return version, eventsource.Cursor(position.Int64), err
		}
		// The sequencer has not come to it, so it is our turn.
		if _, err := s.sequence(ctx); err != nil {
			return 0, 0, err
		}
	}
}

// Horizon implements [eventsource.Store].
func (s *Store) Horizon(ctx context.Context) (eventsource.Horizon, error) {
	switch s.dialect {
	case Postgres:
		return s.horizonPostgres(ctx, true)
	case MySQL:
		if _, err := s.sequence(ctx); err != nil {
			return eventsource.Horizon{}, err
		}
	}
	at, err := s.last(ctx)
	return eventsource.Horizon{Cursor: at, Head: at}, err
}

// Snapshot implements [eventsource.Store].
func (s *Store) Snapshot(ctx context.Context, stream, name string) (snap eventsource.Snapshot, ok bool, err error) {
	snap.Stream, snap.Name = stream, name
	err = s.db.QueryRowContext(ctx, s.dialect.Rebind("SELECT state_schema, version, state FROM "+s.snapshot+" WHERE stream = ? AND name = ?"), stream, name).
		Scan(&snap.Schema, &snap.Version, &snap.State)
	if errors.Is(err, sql.ErrNoRows) {
		return eventsource.Snapshot{}, false, nil
	}
	return snap, err == nil, err
}

// SaveSnapshot implements [eventsource.Store].
func (s *Store) SaveSnapshot(ctx context.Context, snap eventsource.Snapshot) error {
	query := "INSERT INTO " + s.snapshot + " (stream, name, state_schema, version, state, taken) VALUES (?, ?, ?, ?, ?, " + s.dialect.Now() + ") "
	if s.dialect == MySQL {
		// Assignments take effect from left to right, so the condition's columns come last.
		const newer = "(state_schema <> VALUES(state_schema) OR version < VALUES(version))"
		query += "ON DUPLICATE KEY UPDATE state = IF(" + newer + ", VALUES(state), state), taken = IF(" + newer + ", VALUES(taken), taken)," +
			" version = IF(" + newer + ", VALUES(version), version), state_schema = VALUES(state_schema)"
	} else {
		t := s.snapshot
		query += "ON CONFLICT (stream, name) DO UPDATE SET state_schema = excluded.state_schema, version = excluded.version, state = excluded.state, taken = excluded.taken" +
			" WHERE " + t + ".state_schema <> excluded.state_schema OR " + t + ".version < excluded.version"
	}
	_, err := s.db.ExecContext(ctx, s.dialect.Rebind(query), snap.Stream, snap.Name, snap.Schema, snap.Version, snap.State)
	return err
}

// Append implements [eventsource.Store].
func (s *Store) Append(ctx context.Context, tx eventsource.Tx, stream string, want eventsource.Expect, events []eventsource.Event) error {
	err := s.append(ctx, tx, stream, want, events)
	if err != nil && (sqldialect.IsDuplicate(err) || sqldialect.IsContention(err)) {
		return &eventsource.VersionError{Stream: stream, Want: want, Err: err}
	}
	return err
}

func (s *Store) append(ctx context.Context, tx eventsource.Tx, stream string, want eventsource.Expect, events []eventsource.Event) error {
	n, exact := want.Version()
	if !exact {
		if err := s.takeTurn(ctx, tx, stream); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(events, maxRows) {
		done, err := s.insert(ctx, tx, stream, want, part)
		if err != nil {
			return err
		}
		if done != int64(len(part)) {
			return &eventsource.VersionError{Stream: stream, Want: want}
		}
		// The rest follows what was just written.
		if n += int64(len(part)); exact {
			want = eventsource.At(n)
		}
	}
	return nil
}

// takeTurn has appends to one stream whose version does not matter wait for each other.
func (s *Store) takeTurn(ctx context.Context, tx eventsource.Tx, stream string) error {
	var err error
	switch s.dialect {
	case Postgres:
		_, err = tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock(hashtextextended('"+s.event+"/' || $1, 0))", stream)
	case MySQL:
		_, err = tx.ExecContext(ctx, "UPDATE "+s.turn+" SET taken = taken + 1 WHERE id = ?", eventsource.Bucket(stream)%turns)
	}
	return err
}

// row returns the arguments of an event, in the order of insertColumns.
func row(args []any, e eventsource.Event) ([]any, error) {
	header := ""
	if len(e.Header) > 0 {
		text, err := json.Marshal(e.Header)
		if err != nil {
			return nil, err
		}
		header = string(text)
	}
	data := e.Data
	if data == nil {
		data = []byte{}
	}
	return append(args, e.ID, e.Type, e.Time.UnixNano(), header, data), nil
}

// insertColumns are those that an append fills.
const insertColumns = " (stream, bucket, version, event_id, event_type, happened, header, data, recorded) "

// insert adds the events if the stream is as expected and returns how many it added.
func (s *Store) insert(ctx context.Context, tx eventsource.Tx, stream string, want eventsource.Expect, events []eventsource.Event) (int64, error) {
	switch s.dialect {
	case Postgres:
		return s.insertPostgres(ctx, tx, stream, want, events)
	case MySQL:
		return s.insertMySQL(ctx, tx, stream, want, events)
	default:
		return s.insertSQLite(ctx, tx, stream, want, events)
	}
}

// insertSQLite relies on the database having one writer: what it has read of the stream is
// true until the end of the transaction, and positions are given in the order of commits.
func (s *Store) insertSQLite(ctx context.Context, tx eventsource.Tx, stream string, want eventsource.Expect, events []eventsource.Event) (n int64, err error) {
	args := make([]any, 0, 6*len(events)+4)
	for i, e := range events {
		if args, err = row(append(args, i+1), e); err != nil {
			return 0, err
		}
	}
	query := "INSERT INTO " + s.event + insertColumns +
		"SELECT ?, ?, base.version + e.column1, e.column2, e.column3, e.column4, e.column5, e.column6, " + s.dialect.Now() +
		" FROM (SELECT COALESCE(MAX(version), 0) AS version FROM " + s.event + " WHERE stream = ?) AS base" +
		" CROSS JOIN (VALUES " + sqldialect.Values(len(events), 6) + ") AS e WHERE " + condition(want, "base.version") + " ORDER BY e.column1"
	return affected(tx.ExecContext(ctx, query, append([]any{stream, eventsource.Bucket(stream), stream}, args...)...))
}

// condition is what a stream's version must fulfil.
func condition(want eventsource.Expect, version string) string {
	n, exact := want.Version()
	switch {
	case exact:
		return version + " = " + strconv.FormatInt(n, 10)
	case want == eventsource.Exists:
		return version + " > 0"
	}
	return "1 = 1"
}

func affected(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}
