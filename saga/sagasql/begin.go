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

	"github.com/dovetail-go/dovetail/saga"
)

// Begin implements saga.Store. PostgreSQL takes those with an owner in one statement.
func (s *Store) Begin(ctx context.Context, list []saga.Beginning) ([]saga.Begun, error) {
	begun := make([]saga.Begun, len(list))
	order := make([]int, len(list))
	for i := range order {
		order[i] = i
	}
	// In the order of IDs, so that two batches cannot wait for each other crosswise.
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(list[a].ID, list[b].ID) })
	if s.dialect == Postgres {
		owned := slices.DeleteFunc(slices.Clone(order), func(i int) bool { return list[i].Owner == "" })
		if err := s.insertOwned(ctx, list, owned, begun); err != nil {
			return nil, err
		}
		order = slices.DeleteFunc(order, func(i int) bool { return begun[i].Record != nil })
	}
	if len(order) == 0 {
		return begun, nil
	}
	err := s.inTx(ctx, isolation(s.dialect), func(tx *sql.Tx) error {
		var fresh []int
		for _, i := range order {
			b := list[i]
			if b.Owner != "" && s.dialect != Postgres {
				ok, err := s.insertNew(ctx, tx, b)
				if err != nil {
					return err
				}
				if ok {
					fresh = append(fresh, i)
					continue
				}
			}
			b.Owner = "" // as it is not new
			err := s.Start(ctx, tx, b)
			if err != nil && !errors.Is(err, saga.ErrConflict) {
				return err
			}
			begun[i].Err = err
		}
		return s.read(ctx, tx, list, fresh, begun)
	})
	return begun, err
}

// insertNew inserts a saga and reports whether it was new.
func (s *Store) insertNew(ctx context.Context, tx *sql.Tx, b saga.Beginning) (bool, error) {
	query, args, err := insert(&b)
	if err != nil {
		return false, err
	}
	tail := notArchived + " ON CONFLICT (id) DO NOTHING"
	if s.dialect == MySQL {
		tail = insertTailMySQL
	}
	n, err := s.exec(ctx, tx, query+tail, args...)
	return n == 1, err
}

// read fills in the records of those that were inserted, but for duplicates.
func (s *Store) read(ctx context.Context, tx *sql.Tx, list []saga.Beginning, fresh []int, begun []saga.Begun) error {
	if len(fresh) == 0 {
		return nil
	}
	ids := make([]any, len(fresh))
	for k, i := range fresh {
		ids[k] = list[i].ID
	}
	recs, err := s.query(ctx, tx, "SELECT "+columns+" FROM {i} WHERE id IN ("+marks(len(ids))+") AND "+duplicate+" = 0", ids...)
	for k := range recs {
		i := slices.IndexFunc(fresh, func(i int) bool { return list[i].ID == recs[k].ID })
		begun[fresh[i]].Record = &recs[k]
	}
	return err
}

// insertOwned inserts sagas in one statement of PostgreSQL, and fills in the records of those
// that are new.
func (s *Store) insertOwned(ctx context.Context, list []saga.Beginning, order []int, begun []saga.Begun) error {
	const tail = " ON CONFLICT (id) DO NOTHING RETURNING " + columns
	const many = "INSERT INTO {i} (" + insertColumns + ") SELECT b.id, b.name, b.version, b.step, b.data, b.input, b.notes, b.header, b.root, b.owner, 1, " + insertValues + ", 0, " +
		"CASE WHEN b.deadline > 0 THEN {now} + b.deadline END FROM json_to_recordset(CAST(? AS json)) " +
		"AS b(id text, name text, version int, step text, data text, input text, notes text, header text, root text, owner text, deadline bigint) " +
		"WHERE (SELECT COUNT(*) FROM {a} WHERE {a}.id = b.id) = 0" + tail
	if len(order) == 0 {
		return nil
	}
	var query string
	var args []any
	if len(order) == 1 {
		var err error
		if query, args, err = insert(&list[order[0]]); err != nil {
			return err
		}
		query += notArchived + tail
	} else {
		rows := make([]map[string]any, len(order))
		for k, i := range order {
			values, err := insertion(&list[i])
			if err != nil {
				return err
			}
			rows[k] = map[string]any{"deadline": list[i].Deadline.Microseconds()}
			for n, name := range [...]string{"id", "name", "version", "step", "data", "input", "notes", "header", "root", "owner"} {
				rows[k][name] = values[n]
			}
		}
		encoded, err := json.Marshal(rows)
		if err != nil {
			return err
		}
		query, args = many, []any{string(encoded)}
	}
	recs, err := s.query(ctx, nil, query, args...)
	if err != nil || len(recs) == 0 {
		return err
	}
	ids := make([]any, len(recs))
	for k := range recs {
		ids[k] = recs[k].ID
	}
	// A statement that waited for an archive has not seen it. This one does.
	archived, err := s.column(ctx, nil, "SELECT id FROM {a} WHERE id IN ("+marks(len(ids))+")", ids...)
	if err != nil {
		return err
	}
	for k := range recs {
		r := &recs[k]
		if !slices.Contains(archived, any(r.ID)) {
			begun[order[slices.IndexFunc(order, func(i int) bool { return list[i].ID == r.ID })]].Record = r
		}
	}
	return nil
}
