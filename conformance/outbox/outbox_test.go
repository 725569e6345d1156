// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package outbox_test runs the outbox's conformance suite on real databases, and proves
// what only they can show.
package outbox_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
	"github.com/dovetail-go/dovetail/outbox/outboxtest"
)

var dialects = map[string]outboxsql.Dialect{
	"postgres": outboxsql.Postgres, "mysql": outboxsql.MySQL, "sqlite": outboxsql.SQLite,
}

// open returns a store with its tables.
func open(t *testing.T, db *sql.DB, name string, cfg outboxsql.Config) *outboxsql.Store {
	t.Helper()
	store, err := outboxsql.New(db, dialects[name], cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Migrate(t.Context()); err != nil {
		t.Fatalf("Migrate = %v", err)
	}
	return store
}

func TestStore(t *testing.T) {
	for _, name := range testdb.Names {
		for config, cfg := range map[string]outboxsql.Config{"as it comes": {}, "with a prefix, 40 shards and an archive": {Prefix: "billing_", Shards: 40, Archive: true}} {
			t.Run(name+" "+config, func(t *testing.T) {
				outboxtest.Run(t, func(t *testing.T) outboxtest.Subject {
					db := testdb.Open(t, name)
					return outboxtest.Subject{
						Store:     open(t, db, name, cfg),
						Begin:     func(ctx context.Context) (outboxtest.Tx, error) { return db.BeginTx(ctx, nil) },
						OneWriter: name == "sqlite",
					}
				})
			})
		}
	}
}
