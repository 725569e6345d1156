// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/barrier"
	"github.com/dovetail-go/dovetail/saga/sagasql"
)

// bank transfers money between accounts by a saga with every kind of step. What each
// step does is also written to a ledger, in the same transaction, so that a step
// which was committed twice is seen.
type bank struct {
	db      *sql.DB
	dialect string
	store   *sagasql.Store
	guard   *barrier.Barrier
	def     *saga.Definition[transfer]
}

type transfer struct {
	From, To int
	Amount   int
	// Refuse names the step that says no, Flaky the one whose first attempts fail, before
	// or after they took effect.
	Refuse, Flaky string
}

const (
	accounts = 10
	riches   = 100_000
	feeTaker = 0
)

func openBank(db *sql.DB, dialect string) (*bank, error) {
	b := &bank{db: db, dialect: dialect}
	var err error
	if b.store, err = sagasql.New(db, dialects[dialect], sagasql.Config{}); err != nil {
		return nil, err
	}
	if b.guard, err = barrier.New(dialects[dialect], barrier.Config{}); err != nil {
		return nil, err
	}
	b.def, err = saga.New("transfer", 1,
		saga.Local("debit", b.local(func(d *transfer) (int, int) { return d.From, -d.Amount }),
			saga.UndoLocal(b.local(func(d *transfer) (int, int) { return d.From, d.Amount }))),
		saga.Call("fee", b.remote(func(d *transfer) (int, int) { return feeTaker, 1 }),
			saga.Undo(b.remote(func(d *transfer) (int, int) { return feeTaker, -1 }))),
		saga.Local("charge", b.local(func(d *transfer) (int, int) { return d.From, -1 }),
			saga.UndoLocal(b.local(func(d *transfer) (int, int) { return d.From, 1 }))),
		saga.Pivot(saga.Call("credit", b.remote(func(d *transfer) (int, int) { return d.To, d.Amount }))),
		saga.Call("notify", b.remote(func(d *transfer) (int, int) { return d.To, 0 })),
		saga.Local("book", b.local(func(d *transfer) (int, int) { return d.From, 0 })),
	)
	if err != nil {
		return nil, err
	}
	b.def = b.def.OnEnd(func(ctx context.Context, tx *sql.Tx, end saga.End, d *transfer) error {
		_, err := tx.ExecContext(ctx, b.bind("UPDATE transfer SET status = ?, ends = ends + 1 WHERE id = ?"), end.Status.String(), end.Saga)
		return err
	})
	return b, nil
}

// newBank returns a bank with its tables.
func newBank(t *testing.T, db *sql.DB, dialect string) *bank {
	t.Helper()
	b, err := openBank(db, dialect)
	if err == nil {
		err = b.create(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// create makes the tables and fills the accounts.
func (b *bank) create(ctx context.Context) error {
	if err := errors.Join(b.store.Migrate(ctx), b.guard.Migrate(ctx, b.db)); err != nil {
		return err
	}
	queries := []string{
		"CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)",
		"CREATE TABLE ledger (saga VARCHAR(100) NOT NULL, step VARCHAR(50) NOT NULL, op VARCHAR(10) NOT NULL, account INTEGER NOT NULL, amount INTEGER NOT NULL)",
		"CREATE TABLE transfer (id VARCHAR(100) PRIMARY KEY, status VARCHAR(20) NOT NULL, ends INTEGER NOT NULL)",
	}
	for i := range accounts {
		queries = append(queries, fmt.Sprintf("INSERT INTO account (id, balance) VALUES (%d, %d)", i, riches))
	}
	for _, q := range queries {
		if _, err := b.db.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("%s: %w", q, err)
		}
	}
	return nil
}

func (b *bank) bind(query string) string {
	if b.dialect != "postgres" {
		return query
	}
	for n := 1; strings.Contains(query, "?"); n++ {
		query = strings.Replace(query, "?", fmt.Sprintf("$%d", n), 1)
	}
	return query
}

// move changes an account and writes the ledger.
func (b *bank) move(ctx context.Context, tx *sql.Tx, a saga.Attempt, account, amount int) error {
	if _, err := tx.ExecContext(ctx, b.bind("UPDATE account SET balance = balance + ? WHERE id = ?"), amount, account); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, b.bind("INSERT INTO ledger (saga, step, op, account, amount) VALUES (?, ?, ?, ?, ?)"), a.Saga, a.Step, a.Op, account, amount)
	return err
}

var errFlaky = errors.New("no answer")

func (b *bank) local(what func(d *transfer) (account, amount int)) func(context.Context, *sql.Tx, saga.Attempt, *transfer) error {
	return func(ctx context.Context, tx *sql.Tx, a saga.Attempt, d *transfer) error {
		account, amount := what(d)
		if err := b.move(ctx, tx, a, account, amount); err != nil {
			return err
		}
		switch {
		case a.Step == d.Refuse && a.Op == saga.OpDo:
			return saga.Refuse("not allowed")
		case a.Step == d.Flaky && a.Number < 3:
			return errFlaky
		}
		return nil
	}
}

// remote is a participant behind its barrier. It is in the same process and database
// only to keep the test small: it has a transaction of its own.
func (b *bank) remote(what func(d *transfer) (account, amount int)) func(context.Context, saga.Attempt, *transfer) error {
	return func(ctx context.Context, a saga.Attempt, d *transfer) error {
		if a.Step == d.Flaky && a.Number == 1 {
			return errFlaky
		}
		key := barrier.KeyOf(a.Parts())
		account, amount := what(d)
		err := b.inTx(ctx, func(tx *sql.Tx) error {
			_, err := b.guard.Do(ctx, tx, key, func() error {
				if err := b.move(ctx, tx, a, account, amount); err != nil {
					return err
				}
				if a.Step == d.Refuse && a.Op == saga.OpDo {
					return saga.Refuse("not allowed")
				}
				return nil
			})
			return err
		})
		if errors.Is(err, barrier.ErrCompensated) {
			return saga.Refuse("undone already")
		}
		if errors.Is(err, saga.ErrRefused) && a.Step == "credit" {
			// It is the pivot: remember the refusal.
			if barred, err := b.guard.Bar(ctx, b.db, key); err != nil || !barred {
				return fmt.Errorf("not barred: %w", err)
			}
		}
		if err == nil && a.Step == d.Flaky && a.Number == 2 {
			return errFlaky
		}
		return err
	}
}

func (b *bank) inTx(ctx context.Context, fn func(tx *sql.Tx) error) error {
	tx, err := b.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// engine returns an engine that is quick to retry and to take over.
func (b *bank) engine(store saga.Store, cfg saga.Config) (*saga.Engine, error) {
	cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	cfg.Lease, cfg.Poll = time.Second, 20*time.Millisecond
	cfg.Backoff = saga.Backoff{Base: time.Millisecond, Max: 20 * time.Millisecond}
	cfg.StuckAfter, cfg.MaxTakeovers = -1, -1
	return saga.NewEngine(store, cfg, b.def)
}

const kinds = 5 // of transfers, by the step that refuses

// nth is the nth transfer: some are refused at one of the steps, some are flaky.
func nth(n int) transfer {
	d := transfer{From: 1 + n%(accounts-1), To: 1 + (n*7+3)%(accounts-1), Amount: 1 + n%50}
	d.Refuse = []string{"", "debit", "fee", "charge", "credit"}[n%kinds]
	d.Flaky = []string{"", "", "debit", "fee", "charge", "credit", "notify", "book", ""}[n%9]
	return d
}

// start starts transfers, each in the transaction that also writes its row.
func (b *bank) start(ctx context.Context, e *saga.Engine, from, to int) error {
	for n := from; n < to; n++ {
		id := fmt.Sprintf("t%05d", n)
		err := b.inTx(ctx, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, b.bind("INSERT INTO transfer (id, status, ends) VALUES (?, 'pending', 0)"), id); err != nil {
				return err
			}
			return saga.Start(ctx, e, tx, b.def, id, nth(n))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pending returns how many sagas have not ended.
func (b *bank) pending(ctx context.Context) (n int, err error) {
	err = b.db.QueryRowContext(ctx, b.bind("SELECT COUNT(*) FROM saga_instance WHERE status IN (1, 2)")).Scan(&n)
	return n, err
}

// finished waits until every saga has ended.
func (b *bank) finished(t *testing.T, within time.Duration) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		n, err := b.pending(t.Context())
		if err == nil && n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d sagas have not ended within %v (%v)", n, within, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// audit checks the invariants from the data alone.
func (b *bank) audit(t *testing.T) {
	t.Helper()
	number := func(query string) (n int) {
		t.Helper()
		if err := b.db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		return n
	}
	if sum := number("SELECT SUM(balance) FROM account"); sum != accounts*riches {
		t.Errorf("the accounts hold %d together, want %d", sum, accounts*riches)
	}
	if n := number("SELECT COUNT(*) FROM (SELECT saga FROM ledger GROUP BY saga, step, op HAVING COUNT(*) > 1) AS t"); n != 0 {
		t.Errorf("%d operations were committed twice", n)
	}
	if n := number("SELECT COUNT(*) FROM transfer WHERE ends <> 1"); n != 0 {
		t.Errorf("%d transfers were not ended exactly once", n)
	}
	if n := number("SELECT COUNT(*) FROM transfer t JOIN saga_instance i ON i.id = t.id WHERE (i.status = 3) <> (t.status = 'completed') OR (i.status = 4) <> (t.status = 'compensated')"); n != 0 {
		t.Errorf("%d transfers and their sagas disagree", n)
	}
	if n := number("SELECT COUNT(*) FROM saga_instance WHERE owner <> '' OR wake_at IS NOT NULL"); n != 0 {
		t.Errorf("%d ended sagas are still owned or due", n)
	}
	for id, did := range ledger(t, b.db, "SELECT t.id, COALESCE(l.step, ''), COALESCE(l.op, '') FROM transfer t LEFT JOIN ledger l ON l.saga = t.id") {
		var n int
		if _, err := fmt.Sscanf(id, "t%d", &n); err != nil {
			t.Fatal(err)
		}
		d := nth(n)
		want := "debit fee charge credit notify book"
		if d.Refuse != "" {
			want = map[string]string{
				"debit": "", "fee": "debit -debit", "charge": "debit fee -fee -debit", "credit": "debit fee charge -charge -fee -debit",
			}[d.Refuse]
		}
		if !sameWords(did, want) {
			t.Errorf("transfer %s (%+v) did %q, want %q", id, d, did, want)
		}
	}
}

func (b *bank) transfers(t *testing.T) (n int) {
	t.Helper()
	if err := b.db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM transfer").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// ledger returns what each saga did, undone steps with a minus, from a query for saga, step and op.
func ledger(t *testing.T, db *sql.DB, query string) map[string]string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	done := map[string]string{}
	for rows.Next() {
		var id, step, op string
		if err := rows.Scan(&id, &step, &op); err != nil {
			t.Fatal(err)
		}
		if op == saga.OpUndo {
			step = "-" + step
		}
		done[id] += " " + step
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return done
}

// sameWords ignores the order, which a table does not keep.
func sameWords(a, b string) bool {
	count := map[string]int{}
	for _, w := range strings.Fields(a) {
		count[w]++
	}
	for _, w := range strings.Fields(b) {
		count[w]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}
