// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcesql"
	"github.com/dovetail-go/dovetail/eventsource/shred"
	"github.com/dovetail-go/dovetail/eventsource/shred/shredsql"
)

const personal = "Ada King, St James's Square"

type registered struct {
	Name shred.Personal[string]
	Plan string
}

type renamed struct{ Plan string }

type customer struct {
	Name shred.Personal[string]
	Plan string
}

func openKeys(t *testing.T, db *sql.DB, name string) *shredsql.Keys {
	t.Helper()
	keys, err := shredsql.New(db, dialects[name], shredsql.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := keys.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return keys
}

// After Forget nothing about the subject can be read: not in the stream, not in the snapshot, not in
// the read model, and not by a rebuild. All else can, and nothing was ever written in the clear.
func TestForgetLeavesNothingReadable(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, name string) {
		vault, err := shred.NewVault(openKeys(t, db, name), shred.Config{Masters: [][]byte{bytes.Repeat([]byte{3}, 32)}})
		if err != nil {
			t.Fatal(err)
		}
		codec, err := eventsource.NewCodec(
			eventsource.Type[registered]("customer.registered.v1"), eventsource.Type[renamed]("customer.plan.v1"), eventsource.Seal(vault))
		if err != nil {
			t.Fatal(err)
		}
		log := newLog(t, open(t, db, name, eventsourcesql.Config{}))
		models := openModels(t, db, name)
		for _, table := range []string{"customers_1", "customers_2"} {
			if _, err := db.ExecContext(t.Context(), "CREATE TABLE "+table+" (id VARCHAR(255) NOT NULL PRIMARY KEY, name TEXT, plan TEXT)"); err != nil {
				t.Fatal(err)
			}
		}
		repo, err := eventsource.NewRepository(log, begin(db), codec, eventsource.Decider[customer, any, any]{
			Zero:   func() customer { return customer{} },
			Decide: func(_ customer, c any) ([]any, error) { return []any{c}, nil },
			Evolve: func(c customer, e any) customer {
				switch e := e.(type) {
				case registered:
					return customer(e)
				case renamed:
					c.Plan = e.Plan
				}
				return c
			},
		}, eventsource.RepositoryConfig{SnapshotEvery: 2})
		if err != nil {
			t.Fatal(err)
		}
		project := func(revision int) {
			start(t, newProjector(t, log, models, eventsource.Projection[*sql.Tx]{
				Name: "customers", Revision: revision,
				Handle: eventsource.Typed(codec, func(ctx context.Context, tx *sql.Tx, e registered, r eventsource.Recorded) error {
					_, err := tx.ExecContext(ctx, dialects[name].Rebind(fmt.Sprintf("INSERT INTO customers_%d (id, name, plan) VALUES (?, ?, ?)", revision)), r.Stream, e.Name, e.Plan)
					return err
				}),
			}, eventsource.ProjectorConfig{}))
		}
		// read returns the names in the state, in the read model and in the stream.
		read := func(subject string, revision int) string {
			t.Helper()
			st, err := repo.Load(t.Context(), subject)
			if err != nil {
				t.Fatalf("Load = %v", err)
			}
			var row shred.Personal[string]
			var plan string
			err = db.QueryRowContext(t.Context(), dialects[name].Rebind(fmt.Sprintf("SELECT name, plan FROM customers_%d WHERE id = ?", revision)), subject).Scan(&row, &plan)
			if err == nil {
				err = vault.Open(t.Context(), &row)
			}
			if err != nil {
				t.Fatalf("read model = %v", err)
			}
			var first string
			for e, err := range log.Read(t.Context(), subject, 0) {
				if err != nil {
					t.Fatal(err)
				}
				values, err := codec.Decode(t.Context(), e.Event)
				if err != nil {
					t.Fatalf("Decode = %v", err)
				}
				if r, ok := values[0].(registered); ok {
					first = r.Name.Or("-")
				}
			}
			return strings.Join([]string{st.Value.Name.Or("-"), st.Value.Plan, row.Or("-"), plan, first}, "|")
		}
		project(1)
		for _, subject := range []string{"c-1", "c-2"} {
			for _, c := range []any{registered{shred.New(subject, personal), "small"}, renamed{"large"}} {
				if _, err := repo.Do(t.Context(), subject, c); err != nil {
					t.Fatalf("Do = %v", err)
				}
			}
		}
		waitFor(t, log, models, "customers", "c-1", "c-2")
		readable := strings.Join([]string{personal, "large", personal, "small", personal}, "|")
		if got := read("c-1", 1); got != readable {
			t.Fatalf("before Forget = %s, want %s", got, readable)
		}
		inTheClear(t, db, name)
		if err := vault.Forget(t.Context(), "c-1", "asked for it"); err != nil {
			t.Fatalf("Forget = %v", err)
		}
		if got, want := read("c-1", 1), "-|large|-|small|-"; got != want {
			t.Errorf("after Forget = %s, want %s", got, want)
		}
		if got := read("c-2", 1); got != readable {
			t.Errorf("another subject = %s, want %s", got, readable)
		}
		project(2)
		deadlineFor(t, func() bool { n, err := models.Active(t.Context(), "customers"); return err == nil && n == 2 })
		if got, want := read("c-1", 2), "-|large|-|small|-"; got != want {
			t.Errorf("after a rebuild = %s, want %s", got, want)
		}
		if got := read("c-2", 2); got != readable {
			t.Errorf("another subject after a rebuild = %s, want %s", got, readable)
		}
		if list, err := vault.Forgotten(t.Context()); err != nil || len(list) != 1 || list[0].Subject != "c-1" || list[0].Reason != "asked for it" {
			t.Errorf("Forgotten = %+v, %v, want c-1", list, err)
		}
		if err := vault.Forget(t.Context(), "nobody", "twice"); err != nil {
			t.Errorf("Forget of nobody = %v, want nil", err)
		}
	})
}

// inTheClear looks for the personal data in every column that could hold it.
func inTheClear(t *testing.T, db *sql.DB, name string) {
	t.Helper()
	text := func(column string) string {
		if name == "postgres" {
			return "encode(" + column + ", 'escape')"
		}
		return "CAST(" + column + " AS CHAR)"
	}
	for from, column := range map[string]string{"eventsource_event": text("data"), "eventsource_snapshot": text("state"), "customers_1": "name"} {
		var rows, clear int
		query := "SELECT COUNT(*), COALESCE(SUM(CASE WHEN " + column + " LIKE '%King%' OR " + column + " LIKE '%James%' THEN 1 ELSE 0 END), 0) FROM " + from
		if err := db.QueryRowContext(t.Context(), query).Scan(&rows, &clear); err != nil || rows == 0 || clear > 0 {
			t.Errorf("%s: %d of %d rows hold personal data in the clear (%v), want none", from, clear, rows, err)
		}
	}
}

// Many processes that meet a subject at once agree on one key.
func TestKeysOfManyProcesses(t *testing.T) {
	for _, name := range testdb.Names {
		t.Run(name, func(t *testing.T) {
			pools := testdb.OpenN(t, name, 4)
			values := make([]shred.Personal[string], 2*len(pools))
			errs := make([]error, len(values))
			openKeys(t, pools[0], name)
			var wg sync.WaitGroup
			for i := range values {
				wg.Go(func() {
					keys, err := shredsql.New(pools[i%len(pools)], dialects[name], shredsql.Config{})
					vault, err2 := shred.NewVault(keys, shred.Config{})
					values[i] = shred.New("c-1", fmt.Sprint(i))
					errs[i] = errors.Join(err, err2, vault.Seal(t.Context(), &values[i]))
				})
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			vault, err := shred.NewVault(openKeys(t, pools[1], name), shred.Config{})
			if err != nil {
				t.Fatal(err)
			}
			for i := range values {
				sealed, err := values[i].Value()
				if err != nil {
					t.Fatal(err)
				}
				var back shred.Personal[string]
				if err := errors.Join(back.Scan(sealed), vault.Open(t.Context(), &back)); err != nil || back.Or("-") != fmt.Sprint(i) {
					t.Errorf("value %d = %q, %v, want it readable", i, back.Or("-"), err)
				}
			}
		})
	}
}
