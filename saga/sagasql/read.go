// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dovetail-go/dovetail/saga"
)

// columns are those of a saga.Record, in the order of scan.
const columns = "id, name, version, status, step, attempt, reason, cancel, stuck, parked, data, " +
	"owner, epoch, revision, takeovers, wake_at, deadline, created_at, updated_at, signals, notes, header, {now}, 0"

// archivedColumns are the same for a saga in the archive.
const archivedColumns = "id, name, version, status, '', 0, reason, '', '', 0, data, " +
	"'', epoch, revision, 0, NULL, deadline, created_at, updated_at, signals, notes, header, {now}, 1"

const (
	load      = "SELECT " + columns + " FROM {i} WHERE id = ? UNION ALL SELECT " + archivedColumns + " FROM {a} WHERE id = ?"
	entriesOf = "SELECT n, at, step, op, attempt, outcome, detail, took, node, COALESCE(who, '') FROM "
	history   = entriesOf + "{h} WHERE saga_id = ? UNION ALL " + entriesOf + "{ah} WHERE saga_id = ? ORDER BY n"
	// What ended long ago was started long ago: that bounds the search by the index.
	endedIn = " WHERE status = ? AND created_at < {now} - ? AND updated_at < {now} - ?"
	oldest  = " ORDER BY created_at, id LIMIT ?"
	// A saga above it that has not ended may still have it undone. As for duplicate, not EXISTS.
	ended         = "SELECT id FROM {i}" + endedIn + " AND CASE WHEN root IS NULL THEN 0 ELSE (SELECT COUNT(*) FROM {i} r WHERE r.id = {i}.root AND r.status IN (1, 2)) END = 0" + oldest
	endedArchived = "SELECT id FROM {a}" + endedIn + oldest
)

// query returns the records, all of them read before it returns, oldest wake-up first.
func (s *Store) query(ctx context.Context, tx *sql.Tx, query string, args ...any) ([]saga.Record, error) {
	rows, err := s.rows(ctx, tx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var recs []saga.Record
	for rows.Next() {
		rec, err := scan(rows)
		if err != nil {
			return nil, err
		}
		recs = append(recs, rec)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	slices.SortFunc(recs, func(a, b saga.Record) int {
		return cmp.Or(a.WakeAt.Compare(b.WakeAt), cmp.Compare(a.ID, b.ID))
	})
	return recs, rows.Close()
}

func scan(row interface{ Scan(...any) error }) (saga.Record, error) {
	var r saga.Record
	var wake, deadline sql.NullInt64
	var created, updated, now int64
	var header []byte
	err := row.Scan(&r.ID, &r.Name, &r.Version, &r.Status, &r.Step, &r.Attempt, &r.Reason, &r.Cancel, &r.Stuck, &r.Parked, &r.Data,
		&r.Owner, &r.Epoch, &r.Revision, &r.Takeovers, &wake, &deadline, &created, &updated, &r.Signals, &r.Notes, &header, &now, &r.Archived)
	if len(header) > 0 && json.Unmarshal(header, &r.Header) != nil {
		r.Header = nil // somebody has spoilt it: no reason to stop the saga
	}
	if wake.Valid {
		r.WakeAt = time.UnixMicro(wake.Int64)
	}
	if deadline.Valid {
		r.Deadline = time.UnixMicro(deadline.Int64)
	}
	r.Created, r.Updated, r.Now = time.UnixMicro(created), time.UnixMicro(updated), time.UnixMicro(now)
	return r, err
}

// Load implements saga.Store.
func (s *Store) Load(ctx context.Context, id string) (saga.Record, error) {
	if err := s.prepare(ctx, load); err != nil {
		return saga.Record{}, err
	}
	recs, err := s.query(ctx, nil, load, id, id)
	if err != nil {
		return saga.Record{}, err
	}
	if len(recs) == 0 {
		return saga.Record{}, saga.ErrNotFound
	}
	if i := slices.IndexFunc(recs, func(r saga.Record) bool { return r.Archived }); i >= 0 {
		return recs[i], nil // the other one is a duplicate
	}
	return recs[0], nil
}

// List implements saga.Store.
func (s *Store) List(ctx context.Context, f saga.Filter) ([]saga.Record, error) {
	statuses := []saga.Status{f.Status}
	if f.Status == 0 && !f.Stuck {
		// One query for each, because the index begins with the status.
		statuses = []saga.Status{saga.Running, saga.Compensating, saga.Completed, saga.Compensated}
	}
	from := "SELECT " + columns + " FROM {i} WHERE "
	if f.Archived {
		if f.Stuck {
			return nil, nil
		}
		from = "SELECT " + archivedColumns + " FROM {a} WHERE "
	}
	var recs []saga.Record
	for _, status := range statuses {
		conditions, args := s.conditions(f, status)
		more, err := s.query(ctx, nil, from+strings.Join(conditions, " AND ")+
			" ORDER BY created_at DESC, id DESC LIMIT ?", append(args, f.Limit)...)
		if err != nil {
			return nil, err
		}
		recs = append(recs, more...)
	}
	slices.SortFunc(recs, func(a, b saga.Record) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.ID, a.ID))
	})
	return recs[:min(len(recs), f.Limit)], nil
}

func (s *Store) conditions(f saga.Filter, status saga.Status) (conditions []string, args []any) {
	conditions = []string{"1 = 1"}
	if status != 0 {
		conditions, args = append(conditions, "status = ?"), append(args, int(status))
	}
	if f.Stuck {
		conditions = append(conditions, "stuck_at IS NOT NULL")
	}
	if f.Name != "" {
		conditions, args = append(conditions, "name = ?"), append(args, f.Name)
	}
	if f.Version != 0 {
		conditions, args = append(conditions, "version = ?"), append(args, f.Version)
	}
	if f.Prefix != "" {
		conditions, args = append(conditions, "SUBSTR(id, 1, ?) = ?"), append(args, utf8.RuneCountInString(f.Prefix), f.Prefix)
		if s.dialect == MySQL { // to which a shorter ID with spaces behind it is the same
			conditions, args = append(conditions, "LENGTH(id) >= ?"), append(args, len(f.Prefix))
		}
	}
	if f.Age > 0 {
		conditions, args = append(conditions, "created_at <= {now} - ?"), append(args, f.Age.Microseconds())
	}
	if f.After != "" {
		const last = "SELECT created_at, id FROM "
		conditions = append(conditions, "(created_at, id) < (SELECT l.created_at, l.id FROM ("+last+"{a} WHERE id = ? UNION ALL "+last+"{i} WHERE id = ?) l LIMIT 1)")
		args = append(args, f.After, f.After)
	}
	return conditions, args
}

// History implements saga.Store.
func (s *Store) History(ctx context.Context, id string) ([]saga.Entry, error) {
	rows, err := s.rows(ctx, nil, history, id, id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var entries []saga.Entry
	for rows.Next() {
		var e saga.Entry
		var at, took int64
		if err := rows.Scan(&e.N, &at, &e.Step, &e.Op, &e.Attempt, &e.Outcome, &e.Text, &took, &e.Node, &e.Who); err != nil {
			return nil, err
		}
		e.At, e.Took = time.UnixMicro(at), time.Duration(took)*time.Microsecond
		entries = append(entries, e)
	}
	return entries, errors.Join(rows.Err(), rows.Close())
}

// Count implements saga.Store.
func (s *Store) Count(ctx context.Context) (saga.Counts, error) {
	const count = "SELECT status, COUNT(*), COUNT(stuck_at), {now} - MIN(created_at) FROM {i} WHERE status IN (1, 2) GROUP BY status"
	rows, err := s.rows(ctx, nil, count)
	if err != nil {
		return saga.Counts{}, err
	}
	defer rows.Close()
	var c saga.Counts
	for rows.Next() {
		var status saga.Status
		var n, stuck int
		var oldest int64
		if err := rows.Scan(&status, &n, &stuck, &oldest); err != nil {
			return saga.Counts{}, err
		}
		if status == saga.Running {
			c.Running = n
		} else {
			c.Compensating = n
		}
		c.Stuck += stuck
		c.Oldest = max(c.Oldest, time.Duration(oldest)*time.Microsecond)
	}
	return c, errors.Join(rows.Err(), rows.Close())
}

// texts reads rows of one column to the end.
func texts(rows *sql.Rows) ([]any, error) {
	var list []any
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, errors.Join(rows.Err(), rows.Close())
}
