// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql" // the driver "mysql"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/dovetail-go/dovetail/chaos/internal/process"
	"github.com/dovetail-go/dovetail/chaos/internal/server"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/barrier"
	"github.com/dovetail-go/dovetail/saga/sagasql"
)

func TestMain(m *testing.M) {
	process.Main(m, map[string]func([]string) error{"node": node})
}

const (
	accounts = 10
	riches   = 1_000_000
	lease    = time.Second
)

// transfer is one saga's data.
type transfer struct {
	From, To, Amount int
	Refuse           bool
}

// world is a database with accounts, and the saga that moves money between them.
type world struct {
	db     *sql.DB
	driver string
	guard  *barrier.Barrier
	engine *saga.Engine
	def    *saga.Definition[transfer]
}

var dialects = map[string]sagasql.Dialect{"pgx": sagasql.Postgres, "mysql": sagasql.MySQL}

func open(driver, dsn string) (*world, error) {
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(12)
	w := &world{db: db, driver: driver}
	if w.guard, err = barrier.New(dialects[driver], barrier.Config{}); err != nil {
		return nil, err
	}
	w.def, err = saga.New("transfer", 1,
		saga.Local("debit", w.local(func(d *transfer) (int, int) { return d.From, -d.Amount }),
			saga.UndoLocal(w.local(func(d *transfer) (int, int) { return d.From, d.Amount }))),
		saga.Call("reserve", w.remote(func(d *transfer) (int, int) { return d.To, 0 }), saga.Undo(w.remote(func(d *transfer) (int, int) { return d.To, 0 }))),
		saga.Pivot(saga.Call("credit", w.remote(func(d *transfer) (int, int) { return d.To, d.Amount }))),
		saga.Local("book", w.local(func(d *transfer) (int, int) { return d.To, 0 })),
	)
	if err != nil {
		return nil, err
	}
	store, err := sagasql.New(db, dialects[driver], sagasql.Config{})
	if err != nil {
		return nil, err
	}
	w.engine, err = saga.NewEngine(store, saga.Config{
		Lease: lease, Poll: 50 * time.Millisecond, Backoff: saga.Backoff{Base: 5 * time.Millisecond, Max: 200 * time.Millisecond},
		StuckAfter: -1, MaxTakeovers: -1, Logger: slog.New(slog.DiscardHandler),
		Hooks: saga.Hooks{Starting: func(_ context.Context, s saga.Starting) { s.Header["transfer"] = s.Saga }},
	}, w.def)
	return w, err
}

func (w *world) create(ctx context.Context) error {
	store, err := sagasql.New(w.db, dialects[w.driver], sagasql.Config{})
	if err != nil {
		return err
	}
	if err := errors.Join(store.Migrate(ctx), w.guard.Migrate(ctx, w.db)); err != nil {
		return err
	}
	for _, q := range []string{
		"CREATE TABLE account (id INTEGER PRIMARY KEY, balance BIGINT NOT NULL)",
		"CREATE TABLE ledger (saga VARCHAR(50) NOT NULL, step VARCHAR(20) NOT NULL, op VARCHAR(10) NOT NULL)",
		"CREATE TABLE wish (n INTEGER NOT NULL)",
		"CREATE VIEW ended AS SELECT id, status, header FROM saga_instance WHERE status IN (3, 4) AND owner = '' AND wake_at IS NULL UNION ALL SELECT id, status, header FROM saga_archive",
	} {
		if _, err := w.db.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	for i := range accounts {
		if _, err := w.db.ExecContext(ctx, fmt.Sprintf("INSERT INTO account (id, balance) VALUES (%d, %d)", i, riches)); err != nil {
			return err
		}
	}
	return nil
}

// node is a process that starts and runs sagas until it is killed.
func node(args []string) error {
	w, err := open(args[0], args[1])
	if err != nil {
		return err
	}
	go w.fulfil()
	return w.engine.Run(context.Background())
}

// fulfil starts the transfers that are wished for, some at once and in no transaction of
// its own, so that they gather in one of the engine's. The other process may be at it as
// well. What is not known to have started is started again.
func (w *world) fulfil() {
	ctx := context.Background()
	for ; ; time.Sleep(10 * time.Millisecond) {
		list, _ := w.wishes(ctx)
		var starts sync.WaitGroup
		for _, n := range list {
			starts.Go(func() {
				if saga.Start(ctx, w.engine, nil, w.def, id(n), nth(n)) == nil {
					_, _ = w.db.ExecContext(ctx, fmt.Sprintf("DELETE FROM wish WHERE n = %d", n))
				}
			})
		}
		starts.Wait()
	}
}

func (w *world) wishes(ctx context.Context) (list []int, err error) {
	rows, err := w.db.QueryContext(ctx, "SELECT n FROM wish LIMIT 8")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var n int
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, rows.Err()
}

func id(n int) string { return fmt.Sprintf("t%05d", n) }

// nth is the nth transfer; every fourth is refused.
func nth(n int) transfer {
	return transfer{From: n % accounts, To: (n*7 + 3) % accounts, Amount: 1 + n%50, Refuse: n%4 == 3}
}

// move changes an account, and writes the ledger without a key that could hide a second time.
func (w *world) move(ctx context.Context, tx *sql.Tx, a saga.Attempt, account, amount int) error {
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("UPDATE account SET balance = balance + %d WHERE id = %d", amount, account)); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO ledger (saga, step, op) VALUES ('%s', '%s', '%s')", a.Saga, a.Step, a.Op))
	return err
}

func (w *world) local(what func(d *transfer) (account, amount int)) func(context.Context, *sql.Tx, saga.Attempt, *transfer) error {
	return func(ctx context.Context, tx *sql.Tx, a saga.Attempt, d *transfer) error {
		account, amount := what(d)
		return w.move(ctx, tx, a, account, amount)
	}
}

// remote is a participant behind its barrier, with a transaction of its own.
func (w *world) remote(what func(d *transfer) (account, amount int)) func(context.Context, saga.Attempt, *transfer) error {
	return func(ctx context.Context, a saga.Attempt, d *transfer) error {
		if a.Step == "credit" && d.Refuse {
			if _, err := w.guard.Bar(ctx, w.db, barrier.KeyOf(a.Parts())); err != nil {
				return err
			}
			return saga.Refuse("account closed")
		}
		tx, err := w.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		account, amount := what(d)
		if _, err := w.guard.Do(ctx, tx, barrier.KeyOf(a.Parts()), func() error { return w.move(ctx, tx, a, account, amount) }); err != nil {
			return err
		}
		return tx.Commit()
	}
}

// TestMoneyIsNeitherMadeNorLost transfers money by two processes. Now and then one of them
// is killed, one is stopped for longer than its lease and goes on, or the database is stopped
// in immediate mode or killed. Half of the transfers are started by the test, the others by
// the processes themselves; what has ended is archived meanwhile. DOVETAIL_CHAOS=long makes
// it 10,000 transfers.
func TestMoneyIsNeitherMadeNorLost(t *testing.T) {
	t.Run("postgres", func(t *testing.T) {
		s := server.StartPostgres(t)
		run(t, "pgx", s.DSN, func() {
			s.StopImmediate()
			s.Start()
		})
	})
	t.Run("mariadb", func(t *testing.T) {
		s := server.StartMariaDB(t)
		run(t, "mysql", s.DSN, func() {
			s.Kill()
			s.Start()
		})
	})
}

func run(t *testing.T, driver, dsn string, crash func()) {
	transfers := 200
	if os.Getenv("DOVETAIL_CHAOS") == "long" {
		transfers = 10_000
	}
	w, err := open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer w.db.Close()
	if err := w.create(t.Context()); err != nil {
		t.Fatal(err)
	}
	nodes := []*process.Process{process.Role(t, "node", driver, dsn), process.Role(t, "node", driver, dsn)}
	kills, stops, crashes, started, archived := 0, 0, 0, 0, 0
	deadline := time.Now().Add(5*time.Minute + time.Duration(transfers)*200*time.Millisecond)
	for n := 0; ; n++ {
		// Some at a time, so that there is always work when something dies.
		for ; started < transfers && started < (n+1)*max(20, transfers/100); started++ {
			w.start(t, started)
		}
		if left := w.pending(); left == 0 && started == transfers && n > 4 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%d sagas have not ended after %d kills, %d stops, %d crashes of the database", left, kills, stops, crashes)
		}
		moved, _ := w.engine.Archive(t.Context(), 0) // as far as it comes
		archived += moved
		node := nodes[rand.IntN(len(nodes))]
		switch n % 4 {
		case 0, 2:
			node.Kill()
			node.Restart()
			kills++
		case 1:
			node.Pause()
			time.Sleep(lease + 500*time.Millisecond)
			node.Resume()
			stops++
		case 3:
			crash()
			crashes++
		}
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
	}
	w.audit(t, transfers)
	t.Logf("%d transfers, %d kills, %d stops past the lease, %d crashes of the database, %d archived meanwhile", transfers, kills, stops, crashes, archived)
}

// start starts a transfer, or wishes that a node does, again and again while the database
// is away.
func (w *world) start(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		var err error
		if n%8 < 4 {
			err = saga.Start(t.Context(), w.engine, w.db, w.def, id(n), nth(n))
		} else {
			_, err = w.db.ExecContext(t.Context(), fmt.Sprintf("INSERT INTO wish (n) VALUES (%d)", n))
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("Start = %v", err)
		}
	}
}

// pending returns how many transfers have not ended, or -1 while the database is away.
func (w *world) pending() int {
	n := -1
	_ = w.db.QueryRow("SELECT (SELECT COUNT(*) FROM wish) + (SELECT COUNT(*) FROM saga_instance WHERE status IN (1, 2))").Scan(&n)
	return n
}

// audit checks the invariants from the data alone.
func (w *world) audit(t *testing.T, transfers int) {
	t.Helper()
	for query, want := range map[string]int{
		"SELECT SUM(balance) FROM account": accounts * riches,
		"SELECT COUNT(*) FROM ended":       transfers,
		"SELECT COUNT(*) FROM ended WHERE header = CONCAT('{\"transfer\":\"', id, '\"}')":                                 transfers,
		"SELECT COUNT(*) FROM ended WHERE status = 4":                                                                     transfers / 4,
		"SELECT COUNT(*) FROM (SELECT saga FROM ledger GROUP BY saga, step, op HAVING COUNT(*) > 1) AS t":                 0,
		"SELECT COUNT(*) FROM ledger l JOIN ended i ON i.id = l.saga WHERE i.status = 3":                                  (transfers - transfers/4) * 4,
		"SELECT COUNT(*) FROM ledger l JOIN ended i ON i.id = l.saga WHERE i.status = 4":                                  transfers / 4 * 4,
		"SELECT COUNT(*) FROM ledger l JOIN ended i ON i.id = l.saga WHERE i.status = 4 AND l.step IN ('credit', 'book')": 0,
	} {
		var got int
		if err := w.db.QueryRowContext(t.Context(), query).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %d, %v, want %d", strings.ReplaceAll(query, "\n", " "), got, err, want)
		}
	}
}
