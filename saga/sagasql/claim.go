// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/saga"
)

const (
	beat       = "INSERT INTO {n} (id, expires_at) VALUES (?, {now} + ?) ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at"
	beatMySQL  = "INSERT INTO {n} (id, expires_at) VALUES (?, {now} + ?) ON DUPLICATE KEY UPDATE expires_at = VALUES(expires_at)"
	sweepNodes = "DELETE FROM {n} WHERE expires_at < {now} - ?"
	// Owned sagas are due, so the index on wake_at finds them.
	leaveSagas = "UPDATE {i} SET owner = '' WHERE wake_at IS NOT NULL AND owner = ?"
	leave      = "DELETE FROM {n} WHERE id = ?"
	owned      = "SELECT " + columns + " FROM {i} WHERE wake_at IS NOT NULL AND owner = ?"
	// The takeovers come first: MySQL evaluates assignments from left to right.
	take = "UPDATE {i} SET takeovers = takeovers + CASE WHEN owner = '' THEN 0 ELSE 1 END, owner = ?, epoch = epoch + 1 WHERE id "
)

// Beat implements saga.Store.
func (s *Store) Beat(ctx context.Context, node string, lease time.Duration) error {
	query := beat
	if s.dialect == MySQL {
		query = beatMySQL
	}
	if _, err := s.exec(ctx, nil, query, node, lease.Microseconds()); err != nil {
		return err
	}
	// A node without a row is as dead as one whose lease has expired: old rows can go.
	last, now := s.swept.Load(), time.Now().UnixNano()
	if now-last < int64(time.Hour) || !s.swept.CompareAndSwap(last, now) {
		return nil
	}
	_, err := s.exec(ctx, nil, sweepNodes, time.Hour.Microseconds())
	return err
}

// Leave implements saga.Store.
func (s *Store) Leave(ctx context.Context, node string) error {
	if _, err := s.exec(ctx, nil, leaveSagas, node); err != nil {
		return err
	}
	_, err := s.exec(ctx, nil, leave, node)
	return err
}

// Claim implements saga.Store.
func (s *Store) Claim(ctx context.Context, c saga.Claim) ([]saga.Record, error) {
	due, args := s.due(c)
	search := "SELECT id FROM {i} WHERE " + due + " ORDER BY wake_at, id LIMIT ?"
	switch s.dialect {
	case Postgres:
		// An array, since that is made once: with IN a plan for a table that was small lately asks
		// again for each row, skips what this statement has changed, and exceeds the limit.
		return s.query(ctx, nil, take+"= ANY (ARRAY("+search+" FOR UPDATE SKIP LOCKED)) RETURNING "+columns, slices.Concat([]any{c.Node}, args, []any{c.Limit})...)
	case MySQL:
		return s.claimMySQL(ctx, c, due, args)
	}
	look, claim := "SELECT 1 FROM {i} WHERE "+due+" LIMIT 1", take+"IN ("+search+") RETURNING "+columns
	if err := s.prepare(ctx, look, claim); err != nil {
		return nil, err
	}
	// An update locks the file even if it finds nothing, so look first.
	if found, err := s.column(ctx, nil, look, args...); err != nil || len(found) == 0 {
		return nil, err
	}
	return s.query(ctx, nil, claim, slices.Concat([]any{c.Node}, args, []any{c.Limit})...)
}

// claimMySQL needs a transaction: MySQL has no RETURNING for updates.
func (s *Store) claimMySQL(ctx context.Context, c saga.Claim, due string, args []any) ([]saga.Record, error) {
	search := "SELECT " + columns + " FROM {i} WHERE " + due + " ORDER BY wake_at, id LIMIT ? FOR UPDATE SKIP LOCKED"
	if err := s.prepare(ctx, search); err != nil {
		return nil, err
	}
	// Read committed, so that rows which are scanned but not chosen stay unlocked.
	tx, err := s.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	recs, err := s.query(ctx, tx, search, slices.Concat(args, []any{c.Limit})...)
	if err != nil || len(recs) == 0 {
		return nil, err
	}
	ids := make([]any, len(recs))
	for i := range recs {
		r := &recs[i]
		if ids[i] = r.ID; r.Owner != "" {
			r.Takeovers++
		}
		r.Owner = c.Node
		r.Epoch++
	}
	if _, err := s.exec(ctx, tx, take+"IN ("+marks(len(ids))+")", append([]any{c.Node}, ids...)...); err != nil {
		return nil, err
	}
	return recs, tx.Commit()
}

// due returns the condition that a saga can be claimed.
func (s *Store) due(c saga.Claim) (string, []any) {
	known := make([]string, 0, len(c.Definitions)+1)
	var args []any
	for _, d := range c.Definitions {
		known = append(known, "name = ? AND version = ?")
		args = append(args, d.Name, d.Version)
	}
	known = append(known, "wake_at <= {now} - ?")
	args = append(args, c.Foreign.Microseconds())
	return "wake_at <= {now} AND " + duplicate + " = 0 AND (owner = '' OR owner NOT IN (SELECT id FROM {n} WHERE expires_at > {now})) AND (" +
		strings.Join(known, " OR ") + ")", args
}

// Owned implements saga.Store.
func (s *Store) Owned(ctx context.Context, node string) ([]saga.Record, error) {
	return s.query(ctx, nil, owned, node)
}

// duplicate is 1 for what was started while its saga of the same ID was being archived. It
// counts, because PostgreSQL would read the whole archive once for an EXISTS.
const duplicate = "CASE WHEN revision > 0 THEN 0 ELSE (SELECT COUNT(*) FROM {a} WHERE {a}.id = {i}.id) END"

func marks(n int) string { return strings.TrimSuffix(strings.Repeat("?, ", n), ", ") }
