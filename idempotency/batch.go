// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// savepoint is the name of the savepoint before each message of a batch.
const savepoint = "dovetail_message"

// BatchConsumer returns a function that handles many deliveries of one group in one
// transaction, several times as fast as [Consumer] one by one, with the same guarantees.
// It returns one error per delivery, at its position. [messaging.Batch] makes a handler
// of it that gathers the batches:
//
//	handler, err := messaging.Batch(messaging.BatchConfig{}, idempotency.BatchConsumer(db, store, apply))
//
// The messages are given to h one by one in the order of the deliveries. One that fails,
// by error or panic, does not take its neighbours' effects along: the batch is then
// handled once more with a savepoint before each message, and if the transaction itself
// is lost, each message in a transaction of its own. So h may be called again for a
// message that it has handled well, with the first effects rolled back; what it does
// outside the transaction is repeated. A later message is handled although an earlier
// one has failed: where the order of keys matters, a batch must not hold two messages of
// one key, as messaging.Batch on an ordered subscription never does. Of two deliveries of one
// message the first is handled, and both have its outcome.
//
// Messages whose twins are in transactions that stand open elsewhere, perhaps those of a
// process that has stalled with a batch of its own, hold a batch up for as long as the inbox
// waits, once, and two seconds more: their neighbours are handled one by one, those first that
// come for the first time, and what has no outcome by then is [ErrInProgress].
func BatchConsumer(db Beginner, inbox Inbox, h TxHandler) messaging.BatchHandler {
	c := &batchConsumer{db: db, inbox: inbox, handle: h, single: h}
	return c.handleAll
}

// BulkTxHandler handles several messages in a transaction, such as by one statement for
// them all. The rules are those of [TxHandler]. An error is about all of them.
type BulkTxHandler func(ctx context.Context, tx *sql.Tx, ds []*messaging.Delivery) error

// BulkConsumer is [BatchConsumer] for a handler that takes the messages of a batch together,
// those that were not handled before, in the order of the deliveries. It saves a round trip
// to the database for each message, which is most of what a small effect costs.
//
// If h fails, by error or panic, nothing of the batch is kept, and each of its messages is
// given to h again, alone and in a transaction of its own. So a message that fails costs its
// neighbours time but not their effects.
func BulkConsumer(db Beginner, inbox Inbox, h BulkTxHandler) messaging.BatchHandler {
	c := &batchConsumer{db: db, inbox: inbox, bulk: h, single: func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
		return h(ctx, tx, []*messaging.Delivery{d})
	}}
	return c.handleAll
}

type batchConsumer struct {
	db     Beginner
	inbox  Inbox
	handle TxHandler
	bulk   BulkTxHandler // instead of handle
	single TxHandler     // of one message in a transaction of its own
}

func (c *batchConsumer) handleAll(ctx context.Context, ds []*messaging.Delivery) []error {
	errs := make([]error, len(ds))
	b := batch{}
	for i, d := range ds {
		if errs[i] = ValidateMark(d.Group, d.Message.ID); errs[i] == nil && d.Group != ds[0].Group {
			errs[i] = fmt.Errorf("idempotency: batch of group %q has a delivery of group %q", ds[0].Group, d.Group)
		}
		if errs[i] != nil {
			continue
		}
		b.at = append(b.at, i)
		b.ds = append(b.ds, d)
		b.ids = append(b.ids, d.Message.ID)
		// What was delivered before has probably failed before.
		b.savepoints = b.savepoints || d.Attempt > 1
	}
	results := c.run(ctx, &b)
	for k, i := range b.at {
		errs[i] = results[k]
	}
	return errs
}

// batch is the deliveries of one call that can be handled.
type batch struct {
	at         []int // position in the call
	ds         []*messaging.Delivery
	ids        []string
	savepoints bool
}

func (c *batchConsumer) run(ctx context.Context, b *batch) []error {
	var err error
	if len(b.ds) > 1 {
		for {
			var errs []error
			if errs, err = c.together(ctx, b); err == nil {
				return errs
			}
			if ctx.Err() != nil {
				break // the single ones will say so
			}
			if b.savepoints || !errors.Is(err, errNeedSavepoints) {
				break
			}
			b.savepoints = true
		}
	}
	return c.apart(ctx, b, errors.Is(err, ErrInProgress))
}

// apart handles each message of the batch in a transaction of its own. waited says that the
// batch has waited for a twin in vain.
func (c *batchConsumer) apart(ctx context.Context, b *batch, waited bool) []error {
	inbox := &hurried{Inbox: c.inbox, waited: waited}
	single := Consumer(c.db, inbox, c.single)
	errs := make([]error, len(b.ds))
	handle := func(again bool) {
		for k, d := range b.ds {
			switch {
			case waited && again != (d.Redelivered || d.Attempt > 1):
			case inbox.tired():
				errs[k] = fmt.Errorf("%w: not tried after waiting for others of its batch", ErrInProgress)
			default:
				messaging.Invoke(ctx, single, d, func(err error) { errs[k] = err })
			}
		}
	}
	handle(false)
	if waited {
		// The twin of a message is another delivery of it, so most of those that are held come
		// last, and do not use up the patience that their neighbours need.
		handle(true)
	}
	return errs
}

const (
	// hurriedWait bounds the wait for a twin after a first one in the same batch was in vain.
	hurriedWait = 500 * time.Millisecond
	// hurriedWaits is how many of those may be in vain.
	hurriedWaits = 4
)

// hurried is an inbox for the messages of one batch, one after the other. It waits for a twin as
// long as the inbox below does once, and then only briefly and for a few: a hundred whole
// waits in a row would keep all later messages waiting too.
type hurried struct {
	Inbox
	waited bool // once, in vain
	vain   int  // waits after that
}

// tired reports whether the batch has waited enough.
func (h *hurried) tired() bool { return h.vain >= hurriedWaits }

// Once is the inbox's own, with an end.
func (h *hurried) Once(ctx context.Context, tx Tx, consumer, id string) (bool, error) {
	if !h.waited {
		first, err := h.Inbox.Once(ctx, tx, consumer, id)
		h.waited = errors.Is(err, ErrInProgress)
		return first, err
	}
	hurry, cancel := context.WithTimeoutCause(ctx, hurriedWait, ErrInProgress)
	defer cancel()
	first, err := h.Inbox.Once(hurry, tx, consumer, id)
	if err != nil && !errors.Is(err, ErrInProgress) && context.Cause(hurry) == ErrInProgress { //nolint:errorlint // the very cause
		err = fmt.Errorf("%w: %w", ErrInProgress, err)
	}
	if errors.Is(err, ErrInProgress) {
		h.vain++
	}
	return first, err
}

// errNeedSavepoints says that a message failed while there was no savepoint to go back to.
var errNeedSavepoints = errors.New("idempotency: batch needs savepoints")

// together handles the batch in one transaction. An error means that nothing was
// committed, or that it is unknown whether it was.
func (c *batchConsumer) together(ctx context.Context, b *batch) ([]error, error) {
	errs := make([]error, len(b.ds))
	tx, err := c.db.BeginTx(ctx, nil)
	if err != nil {
		for k := range errs {
			errs[k] = fmt.Errorf("idempotency: begin: %w", err)
		}
		return errs, nil
	}
	defer tx.Rollback()
	first, err := c.inbox.OnceMany(ctx, tx, b.ds[0].Group, b.ids)
	if err != nil {
		return nil, err
	}
	if c.bulk != nil {
		return errs, c.inBulk(ctx, tx, b, first)
	}
	var failed []string
	twice := make(map[string]error) // what became of a message that may be in the batch again
	handled := 0
	for k, d := range b.ds {
		if !first[k] {
			// Done, unless it has failed just now. That delivery may be of a connection that is lost,
			// and this one all that the broker still has of the message.
			errs[k] = twice[b.ids[k]]
			continue
		}
		if b.savepoints {
			if _, err := tx.ExecContext(ctx, "SAVEPOINT "+savepoint); err != nil {
				return nil, err
			}
		}
		messaging.Invoke(ctx, txHandler{c.handle, tx}, d, func(err error) { errs[k] = err })
		switch {
		case errs[k] == nil:
			handled++
		case !b.savepoints:
			return nil, errNeedSavepoints
		default:
			failed = append(failed, b.ids[k])
			twice[b.ids[k]] = errs[k]
			// A transaction that the database has ended has no savepoint either: MySQL
			// after a deadlock.
			if _, err := tx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT "+savepoint); err != nil {
				return nil, err
			}
		}
		if b.savepoints {
			// Else PostgreSQL and SQLite pile them up under the same name.
			if _, err := tx.ExecContext(ctx, "RELEASE SAVEPOINT "+savepoint); err != nil {
				return nil, err
			}
		}
	}
	if handled == 0 {
		return errs, nil // nothing to commit
	}
	if len(failed) > 0 {
		if err := c.inbox.Forget(ctx, tx, b.ds[0].Group, failed...); err != nil {
			return nil, err
		}
	}
	if err := tx.Commit(); err != nil {
		return nil, err
	}
	return errs, nil
}

// inBulk has the new messages of a batch handled by one call, and commits.
func (c *batchConsumer) inBulk(ctx context.Context, tx *sql.Tx, b *batch, first []bool) error {
	var fresh []*messaging.Delivery
	for k, d := range b.ds {
		if first[k] {
			fresh = append(fresh, d)
		}
	}
	if len(fresh) == 0 {
		return nil // nothing to commit
	}
	var err error
	call := messaging.HandlerFunc(func(ctx context.Context, _ *messaging.Delivery) error { return c.bulk(ctx, tx, fresh) })
	messaging.Invoke(ctx, call, nil, func(e error) { err = e })
	if err != nil {
		return err
	}
	return tx.Commit()
}

// txHandler is a TxHandler with its transaction.
type txHandler struct {
	handle TxHandler
	tx     *sql.Tx
}

func (h txHandler) Handle(ctx context.Context, d *messaging.Delivery) error {
	return h.handle(ctx, h.tx, d)
}
