// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotencymem_test

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
	"github.com/dovetail-go/dovetail/idempotency/idempotencytest"
)

func open(t *testing.T) (*idempotencymem.Store, idempotencytest.Begin) {
	s := idempotencymem.New()
	db := s.OpenDB()
	t.Cleanup(func() { db.Close() })
	return s, func(ctx context.Context) (idempotencytest.Tx, error) { return db.BeginTx(ctx, nil) }
}

func TestInbox(t *testing.T) {
	idempotencytest.RunInbox(t, func(t *testing.T) (idempotency.Inbox, idempotencytest.Begin) { return open(t) })
}

func TestStore(t *testing.T) {
	idempotencytest.RunStore(t, func(*testing.T) idempotency.Store { return idempotencymem.New() })
}

func TestTxStore(t *testing.T) {
	idempotencytest.RunTxStore(t, func(t *testing.T) (idempotency.TxStore, idempotencytest.Begin) { return open(t) })
}

func TestConsumer(t *testing.T) {
	idempotencytest.RunConsumer(t, func(t *testing.T) (*sql.DB, idempotency.Inbox) {
		s := idempotencymem.New()
		db := s.OpenDB()
		t.Cleanup(func() { db.Close() })
		db.SetMaxOpenConns(1)
		return db, s
	})
}

func TestPrune(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, begin := open(t)
		mark := func(id string) {
			tx, err := begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if _, err := s.Once(t.Context(), tx, "mail", id); err != nil {
				t.Fatal(err)
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		command := func(id string, retention time.Duration) {
			c, err := s.Begin(t.Context(), idempotency.Command{Key: idempotency.Key{ID: id}, Retention: retention})
			if err == nil {
				err = s.Complete(t.Context(), c, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		mark("old")
		command("over", time.Minute)
		command("kept", 3*time.Hour)
		time.Sleep(time.Hour)
		mark("new")
		for _, want := range []int64{2, 0} {
			if n, err := s.Prune(t.Context(), 30*time.Minute); n != want || err != nil {
				t.Errorf("Prune = %d, %v, want %d", n, err, want)
			}
		}
		if _, err := s.Prune(t.Context(), 0); err == nil {
			t.Error("Prune without an age = nil")
		}
	})
}

func TestTheDatabaseTakesNothingElse(t *testing.T) {
	db := idempotencymem.New().OpenDB()
	defer db.Close()
	for _, query := range []string{"SELECT 1", "SAVEPOINT outside_of_a_transaction", "ROLLBACK TO SAVEPOINT s"} {
		if _, err := db.ExecContext(t.Context(), query); err == nil {
			t.Errorf("%s = nil", query)
		}
	}
	if _, err := db.QueryContext(t.Context(), "SELECT 1"); err == nil { //nolint:rowserrcheck,sqlclosecheck // there are none
		t.Error("a query = nil")
	}
	other := idempotencymem.New()
	if _, err := other.Once(t.Context(), db, "mail", "m1"); err == nil {
		t.Error("Once with another store's database = nil")
	}
}

func TestTransactionsThatWaitForEachOtherAreToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, begin := open(t)
		var txs []idempotencytest.Tx
		ids := []string{"m0", "m1", "m2"}
		for _, id := range ids {
			tx, err := begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if _, err := s.Once(t.Context(), tx, "mail", id); err != nil {
				t.Fatal(err)
			}
			txs = append(txs, tx)
		}
		// Each but the last waits for the next one's mark; the last would close the circle.
		var waiting sync.WaitGroup
		for i := range len(ids) - 1 {
			waiting.Go(func() {
				if first, err := s.Once(t.Context(), txs[i], "mail", ids[i+1]); !first || err != nil {
					t.Errorf("Once(%s) after its twin rolled back = %v, %v, want true", ids[i+1], first, err)
				}
				txs[i].Rollback()
			})
			synctest.Wait()
		}
		start := time.Now()
		if _, err := s.Once(t.Context(), txs[2], "mail", "m0"); !errors.Is(err, idempotency.ErrInProgress) || time.Since(start) != 0 {
			t.Errorf("Once that closes a circle = %v after %v, want %v at once", err, time.Since(start), idempotency.ErrInProgress)
		}
		txs[2].Rollback()
		waiting.Wait()
	})
}

func TestSavepoints(t *testing.T) {
	s, begin := open(t)
	tx, err := begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	exec := func(query string, ok bool) {
		t.Helper()
		if _, err := tx.ExecContext(t.Context(), query); (err == nil) != ok {
			t.Fatalf("%s = %v, want it to work: %v", query, err, ok)
		}
	}
	mark := func(id string, want bool) {
		t.Helper()
		if first, err := s.Once(t.Context(), tx, "mail", id); first != want || err != nil {
			t.Fatalf("Once(%s) = %v, %v, want %v", id, first, err, want)
		}
	}
	mark("before", true)
	exec("SAVEPOINT a", true)
	mark("in a", true)
	exec("SAVEPOINT b", true)
	mark("in b", true)
	exec("ROLLBACK TO SAVEPOINT a", true)
	exec("RELEASE SAVEPOINT b", false) // it was within a
	mark("in a", true)
	mark("before", false)
	exec("RELEASE SAVEPOINT a", true)
	exec("ROLLBACK TO SAVEPOINT a", false)
	mark("in a", false)
	mark("in b", true)
}
