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

// Beat implements saga.Store.
func (s *Store) Beat(ctx context.Context, node string, lease time.Duration) error {
	upsert := "ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at"
	if s.dialect == MySQL {
		upsert = "ON DUPLICATE KEY UPDATE expires_at = VALUES(expires_at)"
	}
	_, err := s.db.ExecContext(ctx, s.q("INSERT INTO {n} (id, expires_at) VALUES (?, {now} + ?) "+upsert), node, lease.Microseconds())
	if err != nil {
		return err
	}
	// A node without a row is as dead as one whose lease has expired: old rows can go.
	if last, now := s.swept.Load(), time.Now().UnixNano(); now-last > int64(time.Hour) && s.swept.CompareAndSwap(last, now) {
		_, err = s.db.ExecContext(ctx, s.q("DELETE FROM {n} WHERE expires_at < {now} - ?"), time.Hour.Microseconds())
	}
	return err
}

// Leave implements saga.Store.
func (s *Store) Leave(ctx context.Context, node string) error {
	// Owned sagas are due, so the index on wake_at finds them.
	if _, err := s.db.ExecContext(ctx, s.q("UPDATE {i} SET owner = '' WHERE wake_at IS NOT NULL AND owner = ?"), node); err != nil {
		return err
	}
	_, err := s.db.ExecContext(ctx, s.q("DELETE FROM {n} WHERE id = ?"), node)
	return err
}

// Claim implements saga.Store.
func (s *Store) Claim(ctx context.Context, c saga.Claim) ([]saga.Record, error) {
	due, args := s.due(c)
	take := "owner = ?, epoch = epoch + 1"
	// Before the owner is set: MySQL evaluates assignments from left to right.
	take = "takeovers = takeovers + CASE WHEN owner = '' THEN 0 ELSE 1 END, " + take
	switch s.dialect {
	case Postgres:
		return s.query(ctx, s.db, "UPDATE {i} SET "+take+" WHERE id IN ("+
			"SELECT id FROM {i} WHERE "+due+" ORDER BY wake_at, id LIMIT ? FOR UPDATE SKIP LOCKED) RETURNING "+columns,
			slices.Concat([]any{c.Node}, args, []any{c.Limit})...)
	case SQLite:
		// An update locks the file even if it finds nothing, so look first.
		var found int
		err := s.db.QueryRowContext(ctx, s.q("SELECT COUNT(*) FROM (SELECT 1 FROM {i} WHERE "+due+" LIMIT 1) AS t"), args...).Scan(&found)
		if err != nil || found == 0 {
			return nil, err
		}
		return s.query(ctx, s.db, "UPDATE {i} SET "+take+" WHERE id IN ("+
			"SELECT id FROM {i} WHERE "+due+" ORDER BY wake_at, id LIMIT ?) RETURNING "+columns,
			slices.Concat([]any{c.Node}, args, []any{c.Limit})...)
	}
	return s.claimMySQL(ctx, c, take, due, args)
}

// claimMySQL needs a transaction: MySQL has no RETURNING for updates.
func (s *Store) claimMySQL(ctx context.Context, c saga.Claim, take, due string, args []any) ([]saga.Record, error) {
	// Read committed, so that rows which are scanned but not chosen stay unlocked.
	tx, err := s.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	recs, err := s.query(ctx, tx, "SELECT "+columns+" FROM {i} WHERE "+due+" ORDER BY wake_at, id LIMIT ? FOR UPDATE SKIP LOCKED",
		slices.Concat(args, []any{c.Limit})...)
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
	if _, err := tx.ExecContext(ctx, s.q("UPDATE {i} SET "+take+" WHERE id IN ("+marks(len(ids))+")"), append([]any{c.Node}, ids...)...); err != nil {
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
	return "wake_at <= {now} AND (owner = '' OR owner NOT IN (SELECT id FROM {n} WHERE expires_at > {now})) AND (" +
		strings.Join(known, " OR ") + ")", args
}

// Owned implements saga.Store.
func (s *Store) Owned(ctx context.Context, node string) ([]saga.Record, error) {
	return s.query(ctx, s.db, "SELECT "+columns+" FROM {i} WHERE wake_at IS NOT NULL AND owner = ?", node)
}

func marks(n int) string { return strings.TrimSuffix(strings.Repeat("?, ", n), ", ") }
