// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
	"github.com/dovetail-go/dovetail/messaging"
)

const (
	inboxWait = 5 * time.Second // of idempotencymem
	mostWait  = inboxWait + 2*time.Second
)

// A process stands still with the marks of a whole batch in its open transaction.
func TestBatchWhoseTwinsAreHeld(t *testing.T) {
	type delivered struct {
		ds   []*messaging.Delivery
		errs []error
		runs string // IDs in the order in which they were handled
		took time.Duration
	}
	// deliver holds the marks of held and has the batch handled meanwhile.
	deliver := func(t *testing.T, wrap func(*idempotencymem.Store) idempotency.Inbox, held []string, ds []*messaging.Delivery, bulk bool) delivered {
		store := idempotencymem.New()
		db := store.OpenDB()
		defer db.Close()
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		if _, err := store.OnceMany(t.Context(), tx, "stock", held); err != nil {
			t.Fatal(err)
		}
		got := delivered{ds: ds}
		var runs []string
		one := func(_ context.Context, _ *sql.Tx, d *messaging.Delivery) error {
			runs = append(runs, d.Message.ID)
			return nil
		}
		handle := idempotency.BatchConsumer(db, wrap(store), one)
		if bulk {
			handle = idempotency.BulkConsumer(db, wrap(store), func(ctx context.Context, tx *sql.Tx, ds []*messaging.Delivery) (err error) {
				for _, d := range ds {
					err = errors.Join(err, one(ctx, tx, d))
				}
				return err
			})
		}
		begun := time.Now()
		got.errs = handle(t.Context(), ds)
		got.took, got.runs = time.Since(begun), strings.Join(runs, " ")
		return got
	}
	ids := func(prefix string, n int) (ids []string) {
		for i := range n {
			ids = append(ids, fmt.Sprint(prefix, i))
		}
		return ids
	}
	deliveries := func(ids []string, redelivered bool) (ds []*messaging.Delivery) {
		for _, id := range ids {
			ds = append(ds, &messaging.Delivery{Group: "stock", Message: &messaging.Message{ID: id}, Attempt: 1, Redelivered: redelivered})
		}
		return ds
	}
	// wantInProgress checks that exactly the messages from first to end are to come again.
	wantInProgress := func(t *testing.T, got delivered, from, to int) {
		t.Helper()
		for i, err := range got.errs {
			held := from <= i && i < to
			if v := fault.Judge(t.Context(), err); held && (!errors.Is(err, idempotency.ErrInProgress) || v.Outcome != fault.Neutral || !v.Retry) {
				t.Errorf("error of %s = %v with %+v, want %v, neutral and to be retried", got.ds[i].Message.ID, err, v, idempotency.ErrInProgress)
			}
			if !held && err != nil {
				t.Errorf("error of %s = %v, want nil", got.ds[i].Message.ID, err)
			}
		}
		if got.took > mostWait {
			t.Errorf("the batch took %v, want at most %v", got.took, mostWait)
		}
	}
	asItIs := func(s *idempotencymem.Store) idempotency.Inbox { return s }

	for name, bulk := range map[string]bool{"one by one": false, "in bulk": true} {
		run := func(sentence string, fn func(t *testing.T)) {
			t.Run(sentence+", "+name, func(t *testing.T) { synctest.Test(t, fn) })
		}
		run("a batch of nothing else waits once, and a little", func(t *testing.T) {
			got := deliver(t, asItIs, ids("m", 100), deliveries(ids("m", 100), false), bulk)
			wantInProgress(t, got, 0, 100)
			if got.runs != "" {
				t.Errorf("handled %s, want none", got.runs)
			}
		})
		run("an inbox that only knows contexts is asked no longer", func(t *testing.T) {
			got := deliver(t, func(s *idempotencymem.Store) idempotency.Inbox { return endless{s} }, ids("m", 100), deliveries(ids("m", 100), false), bulk)
			wantInProgress(t, got, 0, 100)
		})
		run("a neighbour behind a few of them is handled", func(t *testing.T) {
			got := deliver(t, asItIs, ids("m", 3), deliveries(append(ids("m", 3), "n"), false), bulk)
			wantInProgress(t, got, 0, 3)
			if got.runs != "n" {
				t.Errorf("handled %s, want n", got.runs)
			}
		})
		run("neighbours that come for the first time are handled, in their order", func(t *testing.T) {
			ds := append(deliveries(ids("m", 60), true), deliveries(ids("n", 3), false)...)
			got := deliver(t, asItIs, ids("m", 60), ds, bulk)
			wantInProgress(t, got, 0, 60)
			if got.runs != "n0 n1 n2" {
				t.Errorf("handled %s, want n0 n1 n2", got.runs)
			}
		})
	}
}

// endless is an inbox whose waits for one message end with their context only.
type endless struct{ *idempotencymem.Store }

func (endless) Once(ctx context.Context, _ idempotency.Tx, _, _ string) (bool, error) {
	<-ctx.Done()
	return false, ctx.Err()
}
