// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcesql"
)

var errTooLittle = errors.New("too little on the account")

func oldWithdraw(ctx context.Context, db *sql.DB, account string, amount int) error {
	// snippet: eventsource/before
	result, err := db.ExecContext(ctx, "UPDATE accounts SET balance = balance - $1 WHERE id = $2 AND balance >= $1", amount, account)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(errTooLittle, err)
	}
	return nil // how the balance came about, nobody can tell
	// end
}

// snippet: eventsource/after
type (
	Deposited struct{ Amount int }
	Withdrawn struct{ Amount int }

	Deposit  struct{ Amount int }
	Withdraw struct{ Amount int }

	Account struct{ Balance int }
)

var accounts = eventsource.Decider[Account, any, any]{
	Zero: func() Account { return Account{} },
	Decide: func(a Account, command any) ([]any, error) {
		switch c := command.(type) {
		case Deposit:
			return []any{Deposited(c)}, nil
		case Withdraw:
			if a.Balance < c.Amount {
				return nil, errTooLittle
			}
			return []any{Withdrawn(c)}, nil
		}
		return nil, errors.New("unknown command")
	},
	Evolve: func(a Account, event any) Account {
		switch e := event.(type) {
		case Deposited:
			a.Balance += e.Amount
		case Withdrawn:
			a.Balance -= e.Amount
		}
		return a
	},
}

func newCodec() (*eventsource.Codec, error) {
	return eventsource.NewCodec(eventsource.Type[Deposited]("account.deposited.v1"), eventsource.Type[Withdrawn]("account.withdrawn.v1"))
}

// end

// snippet: eventsource/setup
func openAccounts(ctx context.Context, db *sql.DB, dialect eventsourcesql.Dialect) (*eventsource.Log, *eventsource.Repository[Account, any, any], error) {
	store, err := eventsourcesql.New(db, dialect, eventsourcesql.Config{})
	if err != nil {
		return nil, nil, err
	}
	if err := store.Migrate(ctx); err != nil {
		return nil, nil, err
	}
	events, err := eventsource.New(store, eventsource.Config{})
	if err != nil {
		return nil, nil, err
	}
	codec, err := newCodec()
	if err != nil {
		return nil, nil, err
	}
	begin := func(ctx context.Context) (eventsource.Transaction, error) { return db.BeginTx(ctx, nil) }
	repository, err := eventsource.NewRepository(events, begin, codec, accounts, eventsource.RepositoryConfig{})
	return events, repository, err
}

// end

// snippet: eventsource/projection
func newBalances(events *eventsource.Log, models *eventsourcesql.Models) (*eventsource.Projector[*sql.Tx], error) {
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	change := func(ctx context.Context, tx *sql.Tx, event any, r eventsource.Recorded) error {
		amount := 0
		switch e := event.(type) {
		case Deposited:
			amount = e.Amount
		case Withdrawn:
			amount = -e.Amount
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO balances (account, balance) VALUES ($1, $2)
			ON CONFLICT (account) DO UPDATE SET balance = balances.balance + excluded.balance`, r.Stream, amount)
		return err
	}
	// The rows and the checkpoint change in one transaction: each event counts once.
	return eventsource.NewProjector(events, models, eventsource.Projection[*sql.Tx]{
		Name:   "balances",
		Filter: eventsource.Filter{Types: codec.Types()},
		Handle: eventsource.Typed(codec, change),
	}, eventsource.ProjectorConfig{})
}

// end

// snippet: eventsource/test
func TestDecideWithdraw(t *testing.T) {
	// Pure functions: no database, no mock.
	if _, err := accounts.Decide(Account{Balance: 10}, Withdraw{Amount: 11}); !errors.Is(err, errTooLittle) {
		t.Errorf("Decide = %v, want errTooLittle", err)
	}
	events, err := accounts.Decide(Account{Balance: 10}, Withdraw{Amount: 10})
	if err != nil || len(events) != 1 || accounts.Evolve(Account{Balance: 10}, events[0]).Balance != 0 {
		t.Errorf("Decide = %v, %v, want what leaves 0", events, err)
	}
}

func TestBalancesFollow(t *testing.T) {
	db := openDB(t, "CREATE TABLE balances (account TEXT PRIMARY KEY, balance INTEGER)")
	events, repository, err := openAccounts(t.Context(), db, eventsourcesql.SQLite)
	if err != nil {
		t.Fatal(err)
	}
	models, err := eventsourcesql.NewModels(db, eventsourcesql.SQLite, eventsourcesql.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := models.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	projector, err := newBalances(events, models)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- projector.Run(ctx) }()

	for _, command := range []any{Deposit{Amount: 50}, Withdraw{Amount: 20}} {
		if _, err := repository.Do(ctx, "account-7", command); err != nil {
			t.Fatal(err)
		}
	}
	_, cursor, err := events.End(ctx, "account-7")
	if err != nil {
		t.Fatal(err)
	}
	if err := eventsource.WaitFor(ctx, models, "balances", cursor); err != nil { // read your writes
		t.Fatal(err)
	}
	if n := count(t, db, "SELECT balance FROM balances WHERE account = 'account-7'"); n != 30 {
		t.Errorf("the read model says %d, want 30", n)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// end

func TestAccountsWithoutEvents(t *testing.T) {
	db := openDB(t, "CREATE TABLE accounts (id TEXT, balance INTEGER)", "INSERT INTO accounts VALUES ('7', 10)")
	if err := oldWithdraw(t.Context(), db, "7", 10); err != nil {
		t.Error(err)
	}
	if err := oldWithdraw(t.Context(), db, "7", 1); !errors.Is(err, errTooLittle) {
		t.Errorf("oldWithdraw = %v", err)
	}
}
