// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// Tx is the caller's transaction: a [*sql.Tx], or whatever else can execute a statement
// in one.
type Tx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Inbox remembers which messages a consumer has handled. A mark is made in the
// transaction of the message's effect, so that both exist or neither.
//
// consumer and id are 1 to 255 bytes of UTF-8 without NUL and compared byte by byte. An
// invalid one is an error that leaves the transaction usable; after any other error the
// transaction may only be rolled back.
//
// While another transaction with the same mark is open, Once and OnceMany wait for its
// end, for a bounded time, then return [ErrInProgress].
type Inbox interface {
	// Once marks the message id as handled by consumer and reports whether tx is the
	// first to do so. If it is not, the message's effect exists already: do nothing.
	Once(ctx context.Context, tx Tx, consumer, id string) (first bool, err error)
	// OnceMany is Once for every id at the same position, at the price of about one. Of
	// an id that occurs twice in ids only the first occurrence can be first.
	OnceMany(ctx context.Context, tx Tx, consumer string, ids []string) (first []bool, err error)
	// Forget removes the marks of ids, if tx commits: the messages may be handled again.
	Forget(ctx context.Context, tx Tx, consumer string, ids ...string) error
}

// ValidateMark returns nil if every inbox may take a mark, and otherwise an error that
// names what is wrong with it. Inboxes call it before they touch the transaction.
func ValidateMark(consumer, id string) error {
	if err := checkName("consumer", consumer); err != nil {
		return err
	}
	return checkName("message ID", id)
}

// Beginner begins transactions: a [*sql.DB], or a wrapper that chooses the isolation
// level.
type Beginner interface {
	BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error)
}

// TxHandler handles a message in a transaction.
//
// All its effects go through tx, and it neither commits nor rolls back. It returns the
// error of every statement that had one: PostgreSQL commits nothing after such an
// error, but MySQL does, and after a deadlock it commits without the mark.
type TxHandler func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error

// Consumer returns a handler that gives each message to h in a transaction together
// with its mark in the inbox, under the name of the delivery's group. So the message's
// effect happens exactly once however often the message is delivered.
//
// A message that has its mark is acknowledged without h. An error of h rolls back and
// is returned as it is; so does a panic, which goes on to the caller. An error of the
// commit leaves open whether it happened ([fault.IsUnknown]), which the next delivery
// finds out.
func Consumer(db Beginner, inbox Inbox, h TxHandler) messaging.Handler {
	return messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
		if err := ValidateMark(d.Group, d.Message.ID); err != nil {
			return err
		}
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return fmt.Errorf("idempotency: begin: %w", err)
		}
		defer tx.Rollback() // does nothing after a commit; on a panic it is the end
		first, err := inbox.Once(ctx, tx, d.Group, d.Message.ID)
		if err != nil || !first {
			return err
		}
		if err := h(ctx, tx, d); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return fault.Unknown(fmt.Errorf("idempotency: commit: %w", err))
		}
		return nil
	})
}
