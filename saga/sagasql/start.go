// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql

import (
	"context"
	"encoding/json"

	"github.com/dovetail-go/dovetail/saga"
)

const (
	insertColumns = "id, name, version, step, data, input, notes, header, root, owner, epoch, status, attempt, reason, cancel, stuck, stuck_at, parked, " +
		"starts, revision, takeovers, wake_at, created_at, updated_at, signals, deadline"
	insertValues = "1, 0, '', '', '', NULL, 0, 1, 0, 0, {now}, {now}, {now}"
	insertHead   = "INSERT INTO {i} (" + insertColumns + ") SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, " + insertValues + ", "
	// The update affects the row only if it is the same saga, so no row is a conflict.
	insertTail = notArchived + " ON CONFLICT (id) DO UPDATE SET starts = {i}.starts + 1 WHERE {i}.name = excluded.name AND {i}.input = excluded.input"
	// An inserted row counts as one, a changed one as two. A change that always changes
	// something is counted alike with and without clientFoundRows.
	insertTailMySQL = " FROM DUAL" + notArchived + " ON DUPLICATE KEY UPDATE {i}.starts = {i}.starts + 1"
	startAgain      = "UPDATE {i} SET starts = starts + 1 WHERE id = ? AND name = ? AND input = ?"
	// An archive that commits while the statement waits for it escapes this condition. What is
	// inserted then is never claimed (see duplicate), and removed by the next Archive.
	notArchived     = " WHERE NOT EXISTS (SELECT 1 FROM {a} WHERE id = ?)"
	startOfArchived = "UPDATE {a} SET starts = starts + 1 WHERE id = ? AND name = ? AND input = ?"
)

// insertion returns the values that differ from saga to saga.
func insertion(b *saga.Beginning) ([]any, error) {
	args := []any{b.ID, b.Name, b.Version, b.Step, string(b.Data), b.Input, nil, nil, nil, b.Owner, number(b.Owner != "")}
	if len(b.Notes) > 0 {
		args[6] = string(b.Notes)
	}
	if len(b.Header) > 0 {
		header, err := json.Marshal(b.Header)
		if err != nil {
			return nil, err
		}
		args[7] = string(header)
	}
	if b.Root != "" {
		args[8] = b.Root
	}
	return args, nil
}

// insert returns the statement that starts a saga, up to where what follows differs from
// dialect to dialect and use to use.
func insert(b *saga.Beginning) (query string, args []any, err error) {
	if args, err = insertion(b); err != nil {
		return "", nil, err
	}
	query = insertHead + "0, "
	if b.Waits {
		// What was delivered before is counted.
		query = insertHead + "(SELECT COUNT(*) FROM {s} WHERE saga_id = ? AND step <> ''), "
		args = append(args, b.ID)
	}
	if b.Deadline > 0 {
		query += "{now} + ?"
		args = append(args, b.Deadline.Microseconds())
	} else {
		query += "NULL"
	}
	return query, append(args, b.ID), nil
}

// Start implements saga.Store.
func (s *Store) Start(ctx context.Context, tx saga.Tx, b saga.Beginning) error {
	query, args, err := insert(&b)
	if err != nil {
		return err
	}
	if b.Waits {
		// What is being delivered waits at the gate.
		if _, err := affected(ctx, tx, s.text(s.gate()), b.ID); err != nil {
			return err
		}
	}
	tail := insertTail
	if s.dialect == MySQL {
		tail = insertTailMySQL
	}
	n, err := affected(ctx, tx, s.text(query+tail), args...)
	if s.dialect == MySQL && err == nil && n > 1 {
		n, err = affected(ctx, tx, s.text(startAgain), b.ID, b.Name, b.Input)
	}
	if err == nil && n == 0 {
		n, err = affected(ctx, tx, s.text(startOfArchived), b.ID, b.Name, b.Input)
	}
	if err == nil && n == 0 {
		err = saga.ErrConflict
	}
	return err
}

// affected runs a statement in the caller's transaction.
func affected(ctx context.Context, tx saga.Tx, query string, args ...any) (int64, error) {
	res, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}
