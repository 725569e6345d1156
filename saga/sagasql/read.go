// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/saga"
)

// columns are those of a saga.Record, in the order of scan.
const columns = "id, name, version, status, step, attempt, reason, cancel, stuck, parked, data, " +
	"owner, epoch, revision, takeovers, wake_at, deadline, created_at, updated_at, {now}"

const (
	load    = "SELECT " + columns + " FROM {i} WHERE id = ?"
	history = "SELECT n, at, step, op, attempt, outcome, detail, took, node FROM {h} WHERE saga_id = ? ORDER BY n"
	ended   = "SELECT id FROM {i} WHERE status IN (3, 4) AND updated_at < {now} - ? ORDER BY created_at LIMIT ?"
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
	err := row.Scan(&r.ID, &r.Name, &r.Version, &r.Status, &r.Step, &r.Attempt, &r.Reason, &r.Cancel, &r.Stuck, &r.Parked, &r.Data,
		&r.Owner, &r.Epoch, &r.Revision, &r.Takeovers, &wake, &deadline, &created, &updated, &now)
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
	recs, err := s.query(ctx, nil, load, id)
	if err != nil {
		return saga.Record{}, err
	}
	if len(recs) == 0 {
		return saga.Record{}, saga.ErrNotFound
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
	var recs []saga.Record
	for _, status := range statuses {
		conditions, args := s.conditions(f, status)
		more, err := s.query(ctx, nil, "SELECT "+columns+" FROM {i} WHERE "+strings.Join(conditions, " AND ")+
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
	if f.After != "" {
		conditions = append(conditions, "(created_at, id) < (SELECT l.created_at, l.id FROM {i} l WHERE l.id = ?)")
		args = append(args, f.After)
	}
	return conditions, args
}

// History implements saga.Store.
func (s *Store) History(ctx context.Context, id string) ([]saga.Entry, error) {
	rows, err := s.rows(ctx, nil, history, id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var entries []saga.Entry
	for rows.Next() {
		var e saga.Entry
		var at, took int64
		if err := rows.Scan(&e.N, &at, &e.Step, &e.Op, &e.Attempt, &e.Outcome, &e.Text, &took, &e.Node); err != nil {
			return nil, err
		}
		e.At, e.Took = time.UnixMicro(at), time.Duration(took)*time.Microsecond
		entries = append(entries, e)
	}
	return entries, errors.Join(rows.Err(), rows.Close())
}

// Prune implements saga.Store.
func (s *Store) Prune(ctx context.Context, age time.Duration, limit int) (int, error) {
	rows, err := s.rows(ctx, nil, ended, age.Microseconds(), limit)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var ids []any
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return 0, err
		}
		ids = append(ids, id)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || len(ids) == 0 {
		return 0, err
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	// What has ended does not change any more, so the IDs are still right.
	n, err := s.exec(ctx, tx, "DELETE FROM {i} WHERE id IN ("+marks(len(ids))+")", ids...)
	if err != nil {
		return 0, err
	}
	if _, err := s.exec(ctx, tx, "DELETE FROM {h} WHERE saga_id IN ("+marks(len(ids))+")", ids...); err != nil {
		return 0, err
	}
	return int(n), tx.Commit()
}
