// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/saga/barrier"
)

// guarded is a database with a barrier and an account.
type guarded struct {
	*testing.T
	db *sql.DB
	b  *barrier.Barrier
}

func newGuarded(t *testing.T, db *sql.DB, d string, cfg barrier.Config) *guarded {
	t.Helper()
	b, err := barrier.New(dialects[d], cfg)
	if err != nil {
		t.Fatalf("New = %v", err)
	}
	for range 2 {
		if err := b.Migrate(t.Context(), db); err != nil {
			t.Fatalf("Migrate = %v", err)
		}
	}
	g := &guarded{t, db, b}
	g.exec("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
	g.exec("INSERT INTO account (id, balance) VALUES (1, 0)")
	return g
}

func (g *guarded) exec(query string) {
	g.Helper()
	if _, err := g.db.ExecContext(g.Context(), query); err != nil {
		g.Fatalf("%s: %v", query, err)
	}
}

func (g *guarded) balance() (n int) {
	g.Helper()
	if err := g.db.QueryRowContext(g.Context(), "SELECT balance FROM account").Scan(&n); err != nil {
		g.Fatal(err)
	}
	return n
}

var errRefused = errors.New("refused by the business")

// do runs one operation, which adds amount to the account, in a transaction of its own.
func (g *guarded) do(op string, amount int, refuse bool) (ran bool, err error) {
	for { // the caller of a participant repeats what the database gave up
		ran, err = g.try(op, amount, refuse)
		if err == nil || errors.Is(err, errRefused) || errors.Is(err, barrier.ErrCompensated) || g.Context().Err() != nil {
			return ran, err
		}
		g.Logf("%s again after %v", op, err)
	}
}

func (g *guarded) try(op string, amount int, refuse bool) (ran bool, err error) {
	tx, err := g.db.BeginTx(g.Context(), nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	ran, err = g.b.Do(g.Context(), tx, barrier.Key{Saga: "s", Step: "pay", Op: op}, func() error {
		if refuse {
			return errRefused
		}
		_, err := tx.ExecContext(g.Context(), fmt.Sprintf("UPDATE account SET balance = balance + %d", amount))
		return err
	})
	if err != nil {
		return ran, err
	}
	return ran, tx.Commit()
}

// expect runs an operation and checks its result and the balance afterwards.
func (g *guarded) expect(op string, ran bool, want error, balance int) {
	g.Helper()
	amount := map[string]int{"do": 10, "undo": -10}[op]
	got, err := g.do(op, amount, false)
	if got != ran || !errors.Is(err, want) || (want == nil && err != nil) {
		g.Errorf("Do %s = %v, %v, want %v, %v", op, got, err, ran, want)
	}
	if n := g.balance(); n != balance {
		g.Errorf("after %s the balance is %d, want %d", op, n, balance)
	}
}

// bar bars the do and checks the result.
func (g *guarded) bar(want bool) {
	g.Helper()
	got, err := g.b.Bar(g.Context(), g.db, barrier.Key{Saga: "s", Step: "pay", Op: "do"})
	if got != want || err != nil {
		g.Errorf("Bar = %v, %v, want %v", got, err, want)
	}
}

func TestBarrier(t *testing.T) {
	for sentence, check := range map[string]func(g *guarded){
		"a do runs once, an undo runs once, a late do is refused": func(g *guarded) {
			g.expect("do", true, nil, 10)
			g.expect("do", false, nil, 10)
			g.expect("undo", true, nil, 0)
			g.expect("undo", false, nil, 0)
			g.expect("do", false, barrier.ErrCompensated, 0)
			g.expect("undo", false, nil, 0)
		},
		"an undo without a do does nothing and bars the do": func(g *guarded) {
			g.expect("undo", false, nil, 0)
			g.expect("do", false, barrier.ErrCompensated, 0)
			g.expect("undo", false, nil, 0)
			g.expect("do", false, barrier.ErrCompensated, 0)
		},
		"a do that fails leaves no trace": func(g *guarded) {
			for range 2 {
				if ran, err := g.do("do", 10, true); ran || !errors.Is(err, errRefused) {
					g.Errorf("Do = %v, %v, want false and the error of the function", ran, err)
				}
			}
			g.expect("do", true, nil, 10)
		},
		"an undo that fails leaves no trace": func(g *guarded) {
			g.expect("do", true, nil, 10)
			if ran, err := g.do("undo", 0, true); ran || !errors.Is(err, errRefused) {
				g.Errorf("Do = %v, %v, want false and the error of the function", ran, err)
			}
			g.expect("undo", true, nil, 0)
		},
		"an undo after a refused do bars its duplicates": func(g *guarded) {
			_, _ = g.do("do", 10, true)
			g.expect("undo", false, nil, 0)
			g.expect("do", false, barrier.ErrCompensated, 0)
		},
		"a barred do never runs": func(g *guarded) {
			_, _ = g.do("do", 10, true)
			g.bar(true)
			g.expect("do", false, barrier.ErrCompensated, 0)
			g.bar(true)
			g.expect("undo", false, nil, 0)
		},
		"a do that has run cannot be barred": func(g *guarded) {
			g.expect("do", true, nil, 10)
			g.bar(false)
			g.expect("do", false, nil, 10)
			g.expect("undo", true, nil, 0)
		},
		"what is older than its age is forgotten": func(g *guarded) {
			g.expect("do", true, nil, 10)
			if n, err := g.b.Prune(g.Context(), g.db, time.Hour); n != 0 || err != nil {
				g.Errorf("Prune = %d, %v, want 0", n, err)
			}
			g.expect("do", false, nil, 10)
			g.exec(longAgo)
			if n, err := g.b.Prune(g.Context(), g.db, time.Hour); n != 1 || err != nil {
				g.Errorf("Prune = %d, %v, want 1", n, err)
			}
			g.expect("do", true, nil, 20)
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			testdb.Each(t, func(t *testing.T, db *sql.DB, d string) { check(newGuarded(t, db, d, barrier.Config{})) })
		})
	}
}

// TestBarrierRace lets duplicates of a do and of its undo arrive at the same time. In
// whatever order they win, the balance ends where it was.
func TestBarrierRace(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, d string) {
		g := newGuarded(t, db, d, barrier.Config{})
		rounds := map[string]int{"sqlite": 20, "postgres": 30, "mysql": 15}[d]
		var undoneFirst int
		for range rounds {
			g.exec("DELETE FROM saga_barrier")
			var dos, undos atomic.Int32
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					op, amount, count := "do", 10, &dos
					if i%2 == 1 {
						op, amount, count = "undo", -10, &undos
					}
					ran, err := g.do(op, amount, false)
					if err != nil && (op == "undo" || !errors.Is(err, barrier.ErrCompensated)) {
						g.Errorf("Do %s = %v", op, err)
					}
					if ran {
						count.Add(1)
					}
				})
			}
			wg.Wait()
			if dos.Load() > 1 || undos.Load() != dos.Load() || g.balance() != 0 {
				g.Fatalf("%d dos and %d undos ran, the balance is %d; want as many of each, at most one, and 0", dos.Load(), undos.Load(), g.balance())
			}
			if dos.Load() == 0 {
				undoneFirst++
			}
		}
		t.Logf("%d rounds, in %d of them an undo came first", rounds, undoneFirst)
	})
}

// longAgo makes all marks two hours older.
const longAgo = "UPDATE saga_barrier SET at = at - 7200000000"

// TestBarrierPrunesInBatches has more to forget than fits in one transaction.
func TestBarrierPrunesInBatches(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, d string) {
		g := newGuarded(t, db, d, barrier.Config{})
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		for i := range 1200 {
			if _, err := g.b.Do(context.WithoutCancel(t.Context()), tx, barrier.Key{Saga: fmt.Sprint(i), Step: "a", Op: "do"}, func() error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		g.exec(longAgo)
		if n, err := g.b.Prune(t.Context(), db, time.Hour); n != 1200 || err != nil {
			t.Errorf("Prune = %d, %v, want 1200", n, err)
		}
	})
}

// TestBarrierOfEachService has two services in one database, which do not see each other's
// marks, and forgets those of one.
func TestBarrierOfEachService(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, d string) {
		g := newGuarded(t, db, d, barrier.Config{})
		billing, err := barrier.New(dialects[d], barrier.Config{Prefix: "billing_", Retention: time.Hour})
		if err == nil {
			err = billing.Migrate(t.Context(), db)
		}
		if err != nil {
			t.Fatal(err)
		}
		shipping := g.b
		for _, b := range []*barrier.Barrier{shipping, billing} {
			g.b = b
			g.expect("undo", false, nil, 0)
			g.expect("do", false, barrier.ErrCompensated, 0)
		}
		g.exec(strings.Replace(longAgo, "saga_barrier", "billing_saga_barrier", 1))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- billing.Run(ctx, db) }()
		eventually(t, "Run has pruned", func() bool {
			n := -1
			err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM billing_saga_barrier").Scan(&n)
			return err == nil && n == 0
		})
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		g.expect("do", true, nil, 10)
		g.b = shipping
		g.expect("do", false, barrier.ErrCompensated, 10)
	})
}
