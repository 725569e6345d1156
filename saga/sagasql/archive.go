// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql

import (
	"context"
	"database/sql"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/saga"
)

const (
	kept = "id, name, version, status, reason, data, input, starts, epoch, revision, deadline, created_at, updated_at, signals, notes, header"
	keep = "INSERT INTO {a} (" + kept + ", archived_at) SELECT " + kept + ", {now} FROM {i} WHERE id IN ({ids})" + final
	// Somebody else may have pruned a saga since it was found, so that its ID was started anew.
	final       = " AND status IN (3, 4)"
	keepEntries = "INSERT INTO {ah} (" + entryColumns + ") SELECT " + entryColumns + " FROM {h} WHERE saga_id IN ({ids}) AND (SELECT COUNT(*) FROM {a} WHERE {a}.id = {h}.saga_id) > 0"
	// Due sagas are few, so the index on wake_at finds the duplicates.
	dropDuplicates = "DELETE FROM {i} WHERE wake_at <= {now} AND " + duplicate + " = 1"
	// What comes for a saga in the archive comes too late.
	dropLate = "DELETE FROM {s} WHERE at < {now} - ? AND EXISTS (SELECT 1 FROM {a} WHERE {a}.id = {s}.saga_id)"
	orphans  = "DELETE FROM {s} WHERE at < {now} - ? AND NOT EXISTS (SELECT 1 FROM {i} WHERE {i}.id = {s}.saga_id)"
)

var finals = []saga.Status{saga.Completed, saga.Compensated}

// Archive implements saga.Store.
func (s *Store) Archive(ctx context.Context, age time.Duration, limit int) (int, error) {
	total := 0
	for _, status := range finals {
		n, err := s.archive(ctx, status, age, limit-total)
		if total += n; err != nil || total >= limit {
			return total, err
		}
	}
	if _, err := s.exec(ctx, nil, dropDuplicates); err != nil {
		return total, err
	}
	_, err := s.exec(ctx, nil, dropLate, age.Microseconds())
	return total, err
}

// archive moves sagas in one transaction.
func (s *Store) archive(ctx context.Context, status saga.Status, age time.Duration, limit int) (n int, err error) {
	args := []any{int(status), age.Microseconds(), age.Microseconds(), limit}
	keep := keep
	var ids []any
	switch s.dialect {
	case Postgres:
	case MySQL:
		// A start locks the gap in the archive, then the saga. In the same order we can wait for
		// one another, and others who move the same ones wait here.
		keep += " ON DUPLICATE KEY UPDATE {a}.id = {a}.id"
		fallthrough
	default:
		// Before the transaction, also because SQLite gives up one that reads first when
		// another one has written meanwhile.
		if ids, err = s.column(ctx, nil, ended, args...); err != nil || len(ids) == 0 {
			return 0, err
		}
	}
	err = s.inTx(ctx, isolation(s.dialect), func(tx *sql.Tx) error {
		if n = 0; s.dialect == Postgres {
			if ids, err = s.column(ctx, tx, ended+" FOR UPDATE SKIP LOCKED", args...); err != nil || len(ids) == 0 {
				return err
			}
		}
		in := marks(len(ids))
		if _, err := s.exec(ctx, tx, strings.Replace(keep, "{ids}", in, 1), ids...); err != nil {
			return err
		}
		if _, err := s.exec(ctx, tx, strings.Replace(keepEntries, "{ids}", in, 1), ids...); err != nil {
			return err
		}
		n, err = s.erase(ctx, tx, "{i}", "{h}", ids)
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// isolation is read committed where there is a choice, so that MySQL locks nothing but the
// rows that it changes.
func isolation(d Dialect) *sql.TxOptions {
	if d == SQLite {
		return nil // it has one
	}
	return &sql.TxOptions{Isolation: sql.LevelReadCommitted}
}

// erase deletes sagas that have ended from the table that they are in, with the entries and
// signals that no other saga has under their IDs, and returns how many were there.
func (s *Store) erase(ctx context.Context, tx *sql.Tx, from, entries string, ids []any) (int, error) {
	in := " IN (" + marks(len(ids)) + ")"
	n, err := s.exec(ctx, tx, "DELETE FROM "+from+" WHERE id"+in+final, ids...)
	for _, t := range [][2]string{{entries, from}, {"{s}", "{i}"}} {
		if err == nil {
			_, err = s.exec(ctx, tx, "DELETE FROM "+t[0]+" WHERE saga_id"+in+" AND (SELECT COUNT(*) FROM "+t[1]+" WHERE "+t[1]+".id = "+t[0]+".saga_id) = 0", ids...)
		}
	}
	return int(n), err
}

// Prune implements saga.Store. What was archived meanwhile is left to the next Prune.
func (s *Store) Prune(ctx context.Context, age time.Duration, limit int) (int, error) {
	total := 0
	for _, t := range []struct{ search, from, entries string }{{endedArchived, "{a}", "{ah}"}, {ended, "{i}", "{h}"}} {
		for _, status := range finals {
			ids, err := s.column(ctx, nil, t.search, int(status), age.Microseconds(), age.Microseconds(), limit-total)
			if err != nil {
				return total, err
			}
			if len(ids) == 0 {
				continue
			}
			n := 0
			err = s.inTx(ctx, isolation(s.dialect), func(tx *sql.Tx) error {
				n, err = s.erase(ctx, tx, t.from, t.entries, ids)
				return err
			})
			if err != nil {
				return total, err
			}
			if total += n; total >= limit {
				return total, nil
			}
		}
	}
	_, err := s.exec(ctx, nil, orphans, age.Microseconds())
	return total, err
}
