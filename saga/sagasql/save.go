// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"slices"
	"time"

	"github.com/dovetail-go/dovetail/internal/sqldialect"
	"github.com/dovetail-go/dovetail/saga"
)

const (
	// update makes a change, and affects no row if it is too late.
	update = "UPDATE {i} SET status = ?, step = ?, attempt = ?, reason = ?, cancel = ?, stuck = ?, " +
		"stuck_at = CASE WHEN ? = 0 THEN NULL ELSE COALESCE(stuck_at, {now}) END, parked = ?, data = ?, revision = ?, takeovers = 0, updated_at = {now}, " +
		"notes = ?, version = CASE WHEN ? = 0 THEN version ELSE ? END, " +
		"wake_at = CASE 0 + ? WHEN 1 THEN {now} + ? WHEN 2 THEN NULL WHEN 3 THEN CASE WHEN signals <> ? THEN {now} ELSE {now} + ? END " +
		"WHEN 4 THEN CASE WHEN signals <> ? THEN {now} ELSE NULL END ELSE wake_at END, owner = CASE WHEN ? = 1 THEN '' ELSE owner END " +
		"WHERE id = ? AND epoch = ? AND revision = ?"
	entryColumns = "saga_id, n, at, step, op, attempt, outcome, detail, took, node, who"
	insertEntry  = "INSERT INTO {h} (" + entryColumns + ") VALUES (?, ?, {now}, ?, ?, ?, ?, ?, ?, ?, ?)"
)

// Save implements saga.Store.
func (s *Store) Save(ctx context.Context, changes []saga.Change) (lost []int, err error) {
	switch {
	case len(changes) == 0:
		return nil, nil
	case s.dialect == Postgres && len(changes) == 1 && len(changes[0].Entries) > 0:
		return s.saveOne(ctx, changes[0])
	case s.dialect == Postgres:
		return s.saveMany(ctx, changes)
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
	if err := s.prepare(ctx, update, insertEntry); err != nil {
		return err
	}
	return s.inTx(ctx, nil, fn)
}

func (s *Store) inTx(ctx context.Context, opts *sql.TxOptions, fn func(tx *sql.Tx) error) error {
	for n := 0; ; n++ {
		err := s.inTxOnce(ctx, opts, fn)
		if n >= contentions || !sqldialect.IsContention(err) || ctx.Err() != nil {
			return err
		}
		time.Sleep(time.Duration(n+1) * time.Millisecond)
	}
}

func (s *Store) inTxOnce(ctx context.Context, opts *sql.TxOptions, fn func(tx *sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, opts)
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
	for _, i := range order {
		c := &changes[i]
		n, err := s.exec(ctx, tx, update, updateArgs(c)...)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			lost = append(lost, i)
			continue
		}
		for k := range c.Entries {
			if _, err := s.exec(ctx, tx, insertEntry, entryArgs(c, k)...); err != nil {
				return nil, err
			}
		}
	}
	return lost, nil
}

func updateArgs(c *saga.Change) []any {
	return []any{
		int(c.Status), c.Step, c.Attempt, c.Reason, c.Cancel, c.Stuck, number(c.Stuck != ""), number(c.Parked), string(c.Data), c.NewRevision(),
		notes(c), c.Version, c.Version, due(c), c.After.Microseconds(), c.Signals, c.After.Microseconds(), c.Signals,
		number(c.Release), c.ID, c.Epoch, c.Revision,
	}
}

func notes(c *saga.Change) any {
	if len(c.Notes) == 0 {
		return nil
	}
	return string(c.Notes)
}

// due returns the number under which the statements know Change.Due: that of the
// constant, or 4 for DueWait without a limit.
func due(c *saga.Change) int {
	if c.Due == saga.DueWait && c.After == 0 {
		return 4
	}
	return int(c.Due)
}

func entryArgs(c *saga.Change, k int) []any {
	e := &c.Entries[k]
	return []any{c.ID, c.Revision + 1 + int64(k), e.Step, e.Op, e.Attempt, e.Outcome, e.Text, e.Took.Microseconds(), e.Node, who(e)}
}

func who(e *saga.Entry) any {
	if e.Who == "" {
		return nil
	}
	return e.Who
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// saveOne makes a change with its entries in a single statement of PostgreSQL.
func (s *Store) saveOne(ctx context.Context, c saga.Change) (lost []int, err error) {
	const entry = "SELECT CAST(? AS varchar), CAST(? AS bigint), {now}, CAST(? AS varchar), CAST(? AS varchar), CAST(? AS integer), " +
		"CAST(? AS varchar), CAST(? AS text), CAST(? AS bigint), CAST(? AS varchar), CAST(? AS varchar) FROM moved"
	query := "WITH moved AS (" + update + " RETURNING id) INSERT INTO {h} (" + entryColumns + ") " + entry
	args := append(updateArgs(&c), entryArgs(&c, 0)...)
	for k := 1; k < len(c.Entries); k++ {
		query += " UNION ALL " + entry
		args = append(args, entryArgs(&c, k)...)
	}
	n, err := s.exec(ctx, nil, query, args...)
	if err == nil && n == 0 {
		lost = []int{0}
	}
	return lost, err
}

// saveMany makes many changes in a single statement of PostgreSQL, which takes them as
// JSON: any driver can pass that.
func (s *Store) saveMany(ctx context.Context, changes []saga.Change) (lost []int, err error) {
	const many = "WITH c AS (SELECT * FROM json_to_recordset(CAST(? AS json)) AS t(k int, id text, epoch bigint, revision bigint, " +
		"status int, step text, attempt int, reason text, cancel text, stuck text, parked int, data text, newrevision bigint, notes text, version int, due int, after bigint, signals bigint, release int)), " +
		"moved AS (UPDATE {i} SET status = c.status, step = c.step, attempt = c.attempt, reason = c.reason, cancel = c.cancel, stuck = c.stuck, " +
		"stuck_at = CASE WHEN c.stuck = '' THEN NULL ELSE COALESCE(stuck_at, {now}) END, parked = c.parked, data = c.data, revision = c.newrevision, " +
		"takeovers = 0, updated_at = {now}, notes = c.notes, version = CASE WHEN c.version = 0 THEN {i}.version ELSE c.version END, " +
		"wake_at = CASE c.due WHEN 0 THEN wake_at WHEN 1 THEN {now} + c.after WHEN 3 THEN CASE WHEN {i}.signals <> c.signals THEN {now} ELSE {now} + c.after END " +
		"WHEN 4 THEN CASE WHEN {i}.signals <> c.signals THEN {now} ELSE NULL END ELSE NULL END, " +
		"owner = CASE WHEN c.release = 1 THEN '' ELSE owner END " +
		"FROM c WHERE {i}.id = c.id AND {i}.epoch = c.epoch AND {i}.revision = c.revision RETURNING c.k), " +
		"logged AS (INSERT INTO {h} (" + entryColumns + ") SELECT e.id, e.n, {now}, e.step, e.op, e.attempt, e.outcome, e.detail, e.took, e.node, e.who " +
		"FROM json_to_recordset(CAST(? AS json)) AS e(k int, id text, n bigint, step text, op text, attempt int, outcome text, detail text, took bigint, node text, who text) " +
		"JOIN moved ON moved.k = e.k) SELECT k FROM moved"
	cs, es, err := encode(changes)
	if err != nil {
		return nil, err
	}
	rows, err := s.rows(ctx, nil, many, cs, es)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	moved := make([]bool, len(changes))
	for rows.Next() {
		var k int
		if err := rows.Scan(&k); err != nil {
			return nil, err
		}
		moved[k] = true
	}
	for k, ok := range moved {
		if !ok {
			lost = append(lost, k)
		}
	}
	return lost, cmp.Or(rows.Err(), rows.Close())
}

// encode returns the changes and their entries as the JSON that saveMany's statement
// describes.
func encode(changes []saga.Change) (cs, es string, err error) {
	type change struct {
		K           int    `json:"k"`
		ID          string `json:"id"`
		Epoch       int64  `json:"epoch"`
		Revision    int64  `json:"revision"`
		Status      int    `json:"status"`
		Step        string `json:"step"`
		Attempt     int    `json:"attempt"`
		Reason      string `json:"reason"`
		Cancel      string `json:"cancel"`
		Stuck       string `json:"stuck"`
		Parked      int    `json:"parked"`
		Data        string `json:"data"`
		NewRevision int64  `json:"newrevision"`
		Notes       any    `json:"notes"`
		Version     int    `json:"version"`
		Due         int    `json:"due"`
		After       int64  `json:"after"`
		Signals     int64  `json:"signals"`
		Release     int    `json:"release"`
	}
	type entry struct {
		K       int    `json:"k"`
		ID      string `json:"id"`
		N       int64  `json:"n"`
		Step    string `json:"step"`
		Op      string `json:"op"`
		Attempt int    `json:"attempt"`
		Outcome string `json:"outcome"`
		Detail  string `json:"detail"`
		Took    int64  `json:"took"`
		Node    string `json:"node"`
		Who     any    `json:"who,omitempty"`
	}
	list := make([]change, len(changes))
	entries := []entry{}
	for k := range changes {
		c := &changes[k]
		list[k] = change{
			k, c.ID, c.Epoch, c.Revision, int(c.Status), c.Step, c.Attempt, c.Reason, c.Cancel, c.Stuck, number(c.Parked),
			string(c.Data), c.NewRevision(), notes(c), c.Version, due(c), c.After.Microseconds(), c.Signals, number(c.Release),
		}
		for n, e := range c.Entries {
			entries = append(entries, entry{k, c.ID, c.Revision + 1 + int64(n), e.Step, e.Op, e.Attempt, e.Outcome, e.Text, e.Took.Microseconds(), e.Node, who(&e)})
		}
	}
	a, err := json.Marshal(list)
	if err != nil {
		return "", "", err
	}
	b, err := json.Marshal(entries)
	return string(a), string(b), err
}
