// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package pgxkit

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// Execer executes a statement: a [github.com/jackc/pgx/v5.Tx], and, where there is no
// transaction to join, a *pgx.Conn or a *pgxpool.Pool.
type Execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Adapter is what the blocks of dovetail take for a transaction. [Tx] makes one.
type Adapter struct{ tx Execer }

// Tx returns tx as a transaction that a block can join. It begins and ends nothing: tx
// stays the caller's, to commit or to roll back.
func Tx(tx Execer) Adapter { return Adapter{tx} }

// ExecContext executes a statement in the transaction.
func (a Adapter) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if a.tx == nil {
		return nil, errors.New("pgxkit: Tx of nil, want a pgx transaction")
	}
	tag, err := a.tx.Exec(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return result(tag.RowsAffected()), nil
}

// result is the number of affected rows.
type result int64

func (r result) RowsAffected() (int64, error) { return int64(r), nil }

func (r result) LastInsertId() (int64, error) {
	return 0, errors.New("pgxkit: PostgreSQL has no LastInsertId, use RETURNING")
}
