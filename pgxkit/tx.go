// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package pgxkit

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jackc/pgx/v5"
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

// Queue is a transaction of which the statements are yet to be sent. [Batch] makes one.
type Queue struct{ batch *pgx.Batch }

// Batch returns a transaction that a message can be enqueued in at the price of no round trip:
// its statements join b, which the caller sends with others in a transaction, or alone, when
// it is one by itself.
//
//	batch := &pgx.Batch{}
//	batch.Queue("UPDATE orders SET state = 'confirmed' WHERE id = $1", id)
//	err = box.Enqueue(ctx, pgxkit.Batch(batch), message)
//	...
//	err = tx.SendBatch(ctx, batch).Close()
//
// What Enqueue returns is then only whether it took the message; the server's answer is
// SendBatch's. Do not change the message's Body before that. It is for what needs no answer:
// an inbox does, and refuses.
func Batch(b *pgx.Batch) Queue { return Queue{b} }

// ExecContext adds a statement to the batch. The result knows nothing.
func (q Queue) ExecContext(_ context.Context, query string, args ...any) (sql.Result, error) {
	if q.batch == nil {
		return nil, errors.New("pgxkit: Batch of nil, want a pgx batch")
	}
	q.batch.Queue(query, args...)
	return queued{}, nil
}

// queued is the result of a statement that was not sent yet.
type queued struct{}

func (queued) RowsAffected() (int64, error) {
	return 0, errors.New("pgxkit: the statement was not sent yet, so it has affected nothing")
}

func (queued) LastInsertId() (int64, error) { return result(0).LastInsertId() }
