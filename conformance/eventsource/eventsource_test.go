// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package eventsource_test runs the conformance suites of eventsource on real databases, and
// proves what only they can show.
package eventsource_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcesql"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcetest"
)

var dialects = map[string]eventsourcesql.Dialect{
	"postgres": eventsourcesql.Postgres, "mysql": eventsourcesql.MySQL, "sqlite": eventsourcesql.SQLite,
}

// open returns a store with its tables.
func open(t *testing.T, db *sql.DB, name string, cfg eventsourcesql.Config) *eventsourcesql.Store {
	t.Helper()
	store, err := eventsourcesql.New(db, dialects[name], cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Migrate(t.Context()); err != nil {
		t.Fatalf("Migrate = %v", err)
	}
	return store
}

func openModels(t *testing.T, db *sql.DB, name string) *eventsourcesql.Models {
	t.Helper()
	m, err := eventsourcesql.NewModels(db, dialects[name], eventsourcesql.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Migrate(t.Context()); err != nil {
		t.Fatalf("Migrate = %v", err)
	}
	return m
}

// begin begins transactions as applications do.
func begin(db *sql.DB) func(context.Context) (eventsource.Transaction, error) {
	return func(ctx context.Context) (eventsource.Transaction, error) { return db.BeginTx(ctx, nil) }
}

func TestStore(t *testing.T) {
	for _, name := range testdb.Names {
		t.Run(name, func(t *testing.T) {
			eventsourcetest.Run(t, func(t *testing.T) eventsourcetest.Subject {
				db := testdb.Open(t, name)
				return eventsourcetest.Subject{Store: open(t, db, name, eventsourcesql.Config{}), Begin: begin(db), OneWriter: name == "sqlite"}
			})
		})
	}
}

// Other isolation levels that a server may have as its default. Under PostgreSQL's repeatable
// read a transaction that began too early does not see the end of the stream, so its append
// is a lost race, as documented; what is about that is left out.
func TestStoreUnderOtherIsolation(t *testing.T) {
	for name, level := range map[string]sql.IsolationLevel{"postgres": sql.LevelRepeatableRead, "mysql": sql.LevelReadCommitted} {
		t.Run(name+" "+level.String(), func(t *testing.T) {
			eventsourcetest.Run(t, func(t *testing.T) eventsourcetest.Subject {
				if name == "postgres" && (strings.Contains(t.Name(), "Any_waits") || strings.Contains(t.Name(), "a_stream_keeps_its_order")) {
					t.Skip("needs read committed")
				}
				db := testdb.Open(t, name)
				return eventsourcetest.Subject{Store: open(t, db, name, eventsourcesql.Config{}), Begin: func(ctx context.Context) (eventsource.Transaction, error) {
					return db.BeginTx(ctx, &sql.TxOptions{Isolation: level})
				}}
			})
		})
	}
}

// Everything shares a pool of one connection, as with SQLite, and the tables have a prefix.
func TestOneConnection(t *testing.T) {
	for _, name := range []string{"postgres", "mysql"} {
		t.Run(name, func(t *testing.T) {
			eventsourcetest.Run(t, func(t *testing.T) eventsourcetest.Subject {
				db := testdb.Open(t, name)
				db.SetMaxOpenConns(1)
				return eventsourcetest.Subject{Store: open(t, db, name, eventsourcesql.Config{Prefix: "billing_"}), Begin: begin(db), OneWriter: true}
			})
		})
	}
}

func TestModels(t *testing.T) {
	for _, name := range testdb.Names {
		t.Run(name, func(t *testing.T) {
			eventsourcetest.RunModels(t, func(t *testing.T) eventsource.Models[*sql.Tx] { return openModels(t, testdb.Open(t, name), name) })
		})
	}
}

func TestMigrate(t *testing.T) {
	for _, name := range testdb.Names {
		t.Run(name, func(t *testing.T) {
			pools := testdb.OpenN(t, name, 4)
			errs := make([]error, 3*len(pools))
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() {
					db := pools[i%len(pools)]
					store, err := eventsourcesql.New(db, dialects[name], eventsourcesql.Config{})
					models, err2 := eventsourcesql.NewModels(db, dialects[name], eventsourcesql.Config{})
					errs[i] = errors.Join(err, err2, store.Migrate(t.Context()), models.Migrate(t.Context()))
				})
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatalf("Migrate by many at once = %v, want nil", err)
			}
		})
	}
}

func TestSchemaText(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, name string) {
		for _, text := range []string{eventsourcesql.Schema(dialects[name]), eventsourcesql.ModelsSchema(dialects[name])} {
			for statement := range strings.SplitSeq(text, ";\n") {
				if strings.TrimSpace(statement) == "" {
					continue
				}
				if _, err := db.ExecContext(t.Context(), statement); err != nil {
					t.Fatalf("%s: %v", statement, err)
				}
			}
		}
		store := open(t, db, name, eventsourcesql.Config{}) // finds it done
		openModels(t, db, name)
		if h, err := store.Horizon(t.Context()); err != nil || h != (eventsource.Horizon{}) {
			t.Errorf("Horizon = %+v, %v, want zeros", h, err)
		}
	})
}
