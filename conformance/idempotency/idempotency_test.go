// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
	"github.com/dovetail-go/dovetail/idempotency/idempotencytest"
)

var dialects = map[string]idempotencysql.Dialect{
	"postgres": idempotencysql.Postgres, "mysql": idempotencysql.MySQL, "sqlite": idempotencysql.SQLite,
}

func open(t *testing.T, db *sql.DB, d string, cfg idempotencysql.Config) *idempotencysql.Store {
	t.Helper()
	s, err := idempotencysql.New(db, dialects[d], cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func beginner(db *sql.DB) idempotencytest.Begin {
	return func(ctx context.Context) (idempotencytest.Tx, error) { return db.BeginTx(ctx, nil) }
}

// each runs fn once per database, side by side, because most of the time goes into
// waiting. The suites open a fresh one per subtest.
func each(t *testing.T, fn func(t *testing.T, d string)) {
	t.Parallel()
	for _, d := range testdb.Names {
		t.Run(d, func(t *testing.T) {
			t.Parallel()
			fn(t, d)
		})
	}
}

func TestInbox(t *testing.T) {
	each(t, func(t *testing.T, d string) {
		idempotencytest.RunInbox(t, func(t *testing.T) (idempotency.Inbox, idempotencytest.Begin) {
			db := testdb.Open(t, d)
			return open(t, db, d, idempotencysql.Config{}), beginner(db)
		})
	})
}

func TestStore(t *testing.T) {
	each(t, func(t *testing.T, d string) {
		idempotencytest.RunStore(t, func(t *testing.T) idempotency.Store {
			return open(t, testdb.Open(t, d), d, idempotencysql.Config{})
		})
	})
}

func TestTxStore(t *testing.T) {
	each(t, func(t *testing.T, d string) {
		idempotencytest.RunTxStore(t, func(t *testing.T) (idempotency.TxStore, idempotencytest.Begin) {
			db := testdb.Open(t, d)
			return open(t, db, d, idempotencysql.Config{}), beginner(db)
		})
	})
}

func TestConsumer(t *testing.T) {
	each(t, func(t *testing.T, d string) {
		idempotencytest.RunConsumer(t, func(t *testing.T) (*sql.DB, idempotency.Inbox) {
			db := testdb.Open(t, d)
			return db, open(t, db, d, idempotencysql.Config{})
		})
	})
}
