// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql

import (
	"context"

	"github.com/dovetail-go/dovetail/saga"
)

// Start implements saga.Store.
func (s *Store) Start(ctx context.Context, tx saga.Tx, b saga.Beginning) error {
	deadline := "NULL"
	args := []any{b.ID, b.Name, b.Version, int(saga.Running), b.Step, string(b.Data), b.Input}
	if b.Deadline > 0 {
		deadline = "{now} + ?"
		args = append(args, b.Deadline.Microseconds())
	}
	insert := "INSERT INTO {i} (id, name, version, status, step, data, input, attempt, reason, cancel, stuck, stuck_at, parked, " +
		"starts, owner, epoch, revision, takeovers, deadline, wake_at, created_at, updated_at) " +
		"VALUES (?, ?, ?, ?, ?, ?, ?, 0, '', '', '', NULL, 0, 1, '', 0, 0, 0, " + deadline + ", {now}, {now}, {now}) "
	if s.dialect == MySQL {
		return s.startMySQL(ctx, tx, b, insert, args)
	}
	// The update affects the row only if it is the same saga, so no row is a conflict.
	n, err := exec(ctx, tx, s.q(insert+"ON CONFLICT (id) DO UPDATE SET starts = {i}.starts + 1 "+
		"WHERE {i}.name = excluded.name AND {i}.input = excluded.input"), args...)
	if err == nil && n == 0 {
		err = saga.ErrConflict
	}
	return err
}

// startMySQL tells an inserted row (1) from one that existed (2). A change that always
// changes something is counted alike with and without clientFoundRows.
func (s *Store) startMySQL(ctx context.Context, tx saga.Tx, b saga.Beginning, insert string, args []any) error {
	n, err := exec(ctx, tx, s.q(insert+"ON DUPLICATE KEY UPDATE starts = starts + 1"), args...)
	if err != nil || n == 1 {
		return err
	}
	n, err = exec(ctx, tx, s.q("UPDATE {i} SET starts = starts + 1 WHERE id = ? AND name = ? AND input = ?"), b.ID, b.Name, b.Input)
	if err == nil && n == 0 {
		err = saga.ErrConflict
	}
	return err
}

// exec returns the number of affected rows.
func exec(ctx context.Context, tx saga.Tx, query string, args ...any) (int64, error) {
	res, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}
