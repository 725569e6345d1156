// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/internal/sqldialect"
	"github.com/dovetail-go/dovetail/saga"
)

// Save implements saga.Store.
func (s *Store) Save(ctx context.Context, changes []saga.Change) (lost []int, err error) {
	if s.dialect == Postgres && len(changes) == 1 && len(changes[0].Entries) == 1 {
		ok, err := s.saveInOne(ctx, changes[0])
		if err == nil && !ok {
			lost = []int{0}
		}
		return lost, err
	}
	err = s.transact(ctx, func(tx *sql.Tx) error {
		lost, err = s.save(ctx, tx, changes)
		return err
	})
	if err != nil {
		return nil, err
	}
	return lost, nil
}

// SaveTx implements saga.Store.
func (s *Store) SaveTx(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx) (saga.Change, error)) error {
	return s.transact(ctx, func(tx *sql.Tx) error {
		c, err := fn(ctx, tx)
		if err != nil {
			return err
		}
		lost, err := s.save(ctx, tx, []saga.Change{c})
		if err == nil && len(lost) > 0 {
			err = saga.ErrLost
		}
		return err
	})
}

// contentions is how often a transaction is run again that the database gave up.
const contentions = 3

// transact runs fn in a transaction, again if the database sacrificed it to another.
func (s *Store) transact(ctx context.Context, fn func(tx *sql.Tx) error) error {
	for n := 0; ; n++ {
		err := s.transactOnce(ctx, fn)
		if n >= contentions || !sqldialect.IsContention(err) || ctx.Err() != nil {
			return err
		}
		time.Sleep(time.Duration(n+1) * time.Millisecond)
	}
}

func (s *Store) transactOnce(ctx context.Context, fn func(tx *sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// save makes the changes in tx and returns the indices of those that came too late.
func (s *Store) save(ctx context.Context, tx *sql.Tx, changes []saga.Change) (lost []int, err error) {
	order := make([]int, len(changes))
	for i := range order {
		order[i] = i
	}
	// In the order of IDs, so that two batches cannot lock each other's rows crosswise.
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(changes[a].ID, changes[b].ID) })
	var rows []any
	for _, i := range order {
		c := &changes[i]
		update, args := s.update(c)
		n, err := exec(ctx, tx, s.q(update), args...)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			lost = append(lost, i)
			continue
		}
		for k, e := range c.Entries {
			rows = append(rows, entry(c, k, e)...)
		}
	}
	if len(rows) > 0 {
		value := "(?, ?, {now}, ?, ?, ?, ?, ?, ?, ?)"
		values := strings.TrimSuffix(strings.Repeat(value+", ", len(rows)/entryArgs), ", ")
		if _, err := exec(ctx, tx, s.q("INSERT INTO {h} ("+entryColumns+") VALUES "+values), rows...); err != nil {
			return nil, err
		}
	}
	return lost, nil
}

// saveInOne makes a change with one entry in a single statement.
func (s *Store) saveInOne(ctx context.Context, c saga.Change) (bool, error) {
	update, args := s.update(&c)
	n, err := exec(ctx, s.db, s.q("WITH moved AS ("+update+" RETURNING id) INSERT INTO {h} ("+entryColumns+") "+
		"SELECT CAST(? AS varchar), CAST(? AS bigint), {now}, ?, ?, CAST(? AS integer), ?, ?, CAST(? AS bigint), ? FROM moved"),
		append(args, entry(&c, 0, c.Entries[0])...)...)
	return n > 0, err
}

// update returns the statement that makes the change, which affects no row if it is
// too late.
func (s *Store) update(c *saga.Change) (string, []any) {
	set := "UPDATE {i} SET status = ?, step = ?, attempt = ?, reason = ?, cancel = ?, stuck = ?, parked = ?, data = ?, revision = ?, takeovers = 0, updated_at = {now}"
	args := []any{int(c.Status), c.Step, c.Attempt, c.Reason, c.Cancel, c.Stuck, boolean(c.Parked), string(c.Data), c.NewRevision()}
	if c.Stuck == "" {
		set += ", stuck_at = NULL"
	} else {
		set += ", stuck_at = COALESCE(stuck_at, {now})"
	}
	switch c.Due {
	case saga.DueAfter:
		set += ", wake_at = {now} + ?"
		args = append(args, c.After.Microseconds())
	case saga.DueNever:
		set += ", wake_at = NULL"
	}
	if c.Release {
		set += ", owner = ''"
	}
	return set + " WHERE id = ? AND epoch = ? AND revision = ?", append(args, c.ID, c.Epoch, c.Revision)
}

const (
	entryColumns = "saga_id, n, at, step, op, attempt, outcome, detail, took, node"
	entryArgs    = 9
)

// entry returns the values of entryColumns but for the time.
func entry(c *saga.Change, k int, e saga.Entry) []any {
	return []any{c.ID, c.Revision + 1 + int64(k), e.Step, e.Op, e.Attempt, e.Outcome, e.Text, e.Took.Microseconds(), e.Node}
}

func boolean(b bool) int {
	if b {
		return 1
	}
	return 0
}
