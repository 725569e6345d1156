// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql

import (
	"context"
	"database/sql"

	"github.com/dovetail-go/dovetail/saga"
)

// gate returns the statement that lets one transaction at a time start a saga or deliver
// something to it: without it a delivery that does not see the saga and a start that
// does not see the delivery could both commit. The gate is a signal without a step.
func (s *Store) gate() string {
	const gate = "INSERT INTO {s} (saga_id, step, op, data, at) VALUES (?, '', '', '', {now}) "
	if s.dialect == MySQL {
		return gate + "ON DUPLICATE KEY UPDATE at = GREATEST(at + 1, VALUES(at))"
	}
	return gate + "ON CONFLICT (saga_id, step, op) DO UPDATE SET at = excluded.at"
}

const (
	poke   = "UPDATE {i} SET signals = signals + 1, wake_at = CASE WHEN status IN (1, 2) AND parked = 0 THEN {now} ELSE wake_at END WHERE id = ?"
	signal = "INSERT INTO {s} (saga_id, step, op, data, at) VALUES (?, ?, ?, ?, {now}) "
)

// Deliver implements saga.Store.
func (s *Store) Deliver(ctx context.Context, tx saga.Tx, g saga.Signal) (first bool, err error) {
	if tx != nil {
		return s.deliver(ctx, tx, g)
	}
	err = s.transact(ctx, func(tx *sql.Tx) error {
		first, err = s.deliver(ctx, tx, g)
		return err
	})
	return first && err == nil, err
}

func (s *Store) deliver(ctx context.Context, tx saga.Tx, g saga.Signal) (first bool, err error) {
	if _, err := affected(ctx, tx, s.text(s.gate()), g.Saga); err != nil {
		return false, err
	}
	query := signal + "ON CONFLICT (saga_id, step, op) DO NOTHING"
	if s.dialect == MySQL {
		// A change counts as two rows, whatever the connection's clientFoundRows.
		query = signal + "ON DUPLICATE KEY UPDATE at = at + 1"
	}
	n, err := affected(ctx, tx, s.text(query), g.Saga, g.Step, g.Op, string(g.Data))
	if err != nil || n != 1 {
		return false, err
	}
	_, err = affected(ctx, tx, s.text(poke), g.Saga)
	return err == nil, err
}

// Signals implements saga.Store.
func (s *Store) Signals(ctx context.Context, id string) ([]saga.Signal, error) {
	rows, err := s.rows(ctx, nil, "SELECT step, op, data FROM {s} WHERE saga_id = ? AND step <> ''", id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []saga.Signal
	for rows.Next() {
		g := saga.Signal{Saga: id}
		if err := rows.Scan(&g.Step, &g.Op, &g.Data); err != nil {
			return nil, err
		}
		list = append(list, g)
	}
	return list, rows.Err()
}

// Lock implements saga.Store. The upsert locks the key's row, held or not, so that nobody
// frees it between the question and the note that somebody waits.
func (s *Store) Lock(ctx context.Context, tx *sql.Tx, key, id string) (holder string, err error) {
	take := "INSERT INTO {l} (name, saga_id, asked) VALUES (?, ?, 1) ON CONFLICT (name) DO UPDATE SET asked = {l}.asked + 1"
	wait := "INSERT INTO {w} (name, saga_id, at) VALUES (?, ?, {now}) ON CONFLICT (name, saga_id) DO NOTHING"
	read := "SELECT saga_id FROM {l} WHERE name = ?"
	if s.dialect == MySQL {
		take = "INSERT INTO {l} (name, saga_id, asked) VALUES (?, ?, 1) ON DUPLICATE KEY UPDATE asked = asked + 1"
		wait = "INSERT INTO {w} (name, saga_id, at) VALUES (?, ?, {now}) ON DUPLICATE KEY UPDATE name = VALUES(name)"
		read += " FOR UPDATE" // not from the transaction's snapshot
	}
	if _, err := s.exec(ctx, tx, take, key, id); err != nil {
		return "", err
	}
	if err := tx.QueryRowContext(ctx, s.text(read), key).Scan(&holder); err != nil {
		return "", err
	}
	if holder != id {
		_, err = s.exec(ctx, tx, wait, key, id)
	} else {
		_, err = s.exec(ctx, tx, "DELETE FROM {w} WHERE name = ? AND saga_id = ?", key, id)
	}
	return holder, err
}

// Unlock implements saga.Store.
func (s *Store) Unlock(ctx context.Context, tx *sql.Tx, id string) error {
	held, next := "SELECT name FROM {l} WHERE saga_id = ? ORDER BY name", "SELECT saga_id FROM {w} WHERE name = ? ORDER BY at, saga_id LIMIT 4"
	if s.dialect == MySQL {
		held, next = held+" FOR UPDATE", next+" FOR UPDATE"
	}
	if _, err := s.exec(ctx, tx, "DELETE FROM {w} WHERE saga_id = ?", id); err != nil {
		return err
	}
	names, err := s.column(ctx, tx, held, id)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := s.exec(ctx, tx, "DELETE FROM {l} WHERE name = ?", name); err != nil {
			return err
		}
		// Several, in case the first does not want it any more.
		waiting, err := s.column(ctx, tx, next, name)
		if err != nil {
			return err
		}
		for _, w := range waiting {
			if _, err := s.exec(ctx, tx, poke, w); err != nil {
				return err
			}
		}
	}
	return nil
}

// column returns the first column of a query, read to its end.
func (s *Store) column(ctx context.Context, tx *sql.Tx, query string, args ...any) ([]any, error) {
	rows, err := s.rows(ctx, tx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	return texts(rows)
}
