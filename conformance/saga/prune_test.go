// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagasql"
)

// An ID that another process has pruned may be started again before an archive or a prune comes
// to the saga that it has found under this ID. The new one stays, with its history and what was
// delivered to it.
func TestPruneLeavesWhatWasStartedAgain(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, dialect string) {
		s := store(t, db, dialect)
		between := &meanwhile{Connector: connectorOf(t, db, dialect)}
		own := pool(between, dialect)
		defer own.Close()
		slow, err := sagasql.New(own, dialects[dialect], sagasql.Config{})
		if err != nil {
			t.Fatal(err)
		}
		begin := func(id string) {
			t.Helper()
			_, err := s.Begin(t.Context(), []saga.Beginning{{ID: id, Name: "x", Version: 1, Step: "a", Data: []byte("{}"), Input: "i", Waits: true}})
			if err != nil {
				t.Fatal(err)
			}
		}
		save := func(id string, status saga.Status, due saga.Due) {
			t.Helper()
			c := saga.Change{ID: id, Status: status, Due: due, Data: []byte("{}"), Entries: []saga.Entry{{Step: "a", Op: "do", Outcome: "done"}}}
			if lost, err := s.Save(t.Context(), []saga.Change{c}); err != nil || len(lost) > 0 {
				t.Fatalf("Save = %v, %v", lost, err)
			}
		}
		for _, c := range []struct {
			id   string
			verb func(context.Context, time.Duration, int) (int, error)
			// archived has the saga found in the archive.
			archived bool
		}{{"archive", slow.Archive, false}, {"prune", slow.Prune, false}, {"prune of the archive", slow.Prune, true}} {
			begin(c.id)
			save(c.id, saga.Completed, saga.DueNever)
			if c.archived {
				if n, err := s.Archive(t.Context(), -time.Hour, 10); n != 1 || err != nil {
					t.Fatalf("Archive = %d, %v", n, err)
				}
			}
			between.do = func() {
				if n, err := s.Prune(t.Context(), -time.Hour, 10); n != 1 || err != nil {
					t.Errorf("%s: Prune = %d, %v, want 1", c.id, n, err)
				}
				begin(c.id)
				save(c.id, saga.Running, saga.DueKeep)
				if first, err := s.Deliver(t.Context(), nil, saga.Signal{Saga: c.id, Step: "a", Op: saga.OpDo, Data: []byte("1")}); !first || err != nil {
					t.Errorf("Deliver = %v, %v, want true", first, err)
				}
			}
			if n, err := c.verb(t.Context(), -time.Hour, 10); n != 0 || err != nil {
				t.Errorf("%s = %d, %v, want 0", c.id, n, err)
			}
			rec, err := s.Load(t.Context(), c.id)
			history, err2 := s.History(t.Context(), c.id)
			signals, err3 := s.Signals(t.Context(), c.id)
			if err != nil || err2 != nil || err3 != nil || rec.Status != saga.Running || rec.Archived || len(history) != 1 || len(signals) != 1 {
				t.Errorf("after %s the saga is %+v, %v with history %v, %v and signals %v, %v, want it running, with one of each", c.id, rec, err, history, err2, signals, err3)
			}
		}
	})
}

// meanwhile connects to the same database and calls do before the next transaction.
type meanwhile struct {
	driver.Connector
	do func()
}

func (m *meanwhile) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := m.Connector.Connect(ctx)
	return meanwhileConn{conn, m}, err
}

type meanwhileConn struct {
	driver.Conn
	m *meanwhile
}

func (c meanwhileConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if do := c.m.do; do != nil {
		c.m.do = nil
		do()
	}
	return c.Conn.(driver.ConnBeginTx).BeginTx(ctx, opts)
}

func (c meanwhileConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
}

func (c meanwhileConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
}

func (c meanwhileConn) CheckNamedValue(v *driver.NamedValue) error {
	if k, ok := c.Conn.(driver.NamedValueChecker); ok {
		return k.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

// A plan that PostgreSQL makes for a table which had one row when it was looked at last does not
// make the limit of a claim a matter of luck.
func TestClaimKeepsItsLimitWhateverThePlan(t *testing.T) {
	db := testdb.Open(t, "postgres")
	s := store(t, db, "postgres")
	for i, id := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		b := saga.Beginning{ID: id, Name: "x", Version: 1, Step: "a", Data: []byte("{}"), Input: "i"}
		if err := s.Start(t.Context(), db, b); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if _, err := db.ExecContext(t.Context(), "ANALYZE saga_instance, saga_node"); err != nil {
				t.Fatal(err)
			}
		}
	}
	recs, err := s.Claim(t.Context(), saga.Claim{Node: "n", Limit: 3, Definitions: []saga.DefinitionKey{{Name: "x", Version: 1}}, Foreign: time.Hour})
	if err != nil || len(recs) != 3 {
		t.Errorf("Claim with limit 3 gave %d sagas, %v", len(recs), err)
	}
}
