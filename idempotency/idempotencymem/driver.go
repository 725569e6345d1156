// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotencymem

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"

	"github.com/dovetail-go/dovetail/idempotency"
)

// OpenDB returns a pool of connections whose transactions work with the store's
// inbox and [idempotency.Save], and with SAVEPOINT, RELEASE SAVEPOINT and ROLLBACK TO
// SAVEPOINT. Any other statement is an error. The caller closes it.
func (s *Store) OpenDB() *sql.DB { return sql.OpenDB(connector{s}) }

// statement is the text of what [Store.exec] executes; the work is its only argument.
const statement = "idempotencymem"

// work is done within a transaction and returns the number of rows affected.
type work func(ctx context.Context, t *transaction) (int64, error)

// order is the argument of statement.
type order struct {
	store *Store
	work  work
}

// exec has tx do the work.
func (s *Store) exec(ctx context.Context, tx idempotency.Tx, w work) (int64, error) {
	res, err := tx.ExecContext(ctx, statement, order{s, w})
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// transaction is a list of actions that take effect together.
type transaction struct {
	actions    []action
	savepoints []savepoint
	waits      *mark // what it waits for; guarded by the store's mutex
	ended      chan struct{}
}

// action is one change. Both funcs are called with the store's mutex held.
type action struct{ commit, undo func() }

type savepoint struct {
	name    string
	actions int // how many there were
}

func newTransaction() *transaction { return &transaction{ended: make(chan struct{})} }

func (t *transaction) do(a action) { t.actions = append(t.actions, a) }

// rollbackTo undoes all but the first n actions, last one first.
func (t *transaction) rollbackTo(n int) {
	for i := len(t.actions) - 1; i >= n; i-- {
		t.actions[i].undo()
	}
	t.actions = t.actions[:n]
}

// find returns the index of the latest savepoint of that name, or -1.
func (t *transaction) find(name string) int {
	for i := len(t.savepoints) - 1; i >= 0; i-- {
		if t.savepoints[i].name == name {
			return i
		}
	}
	return -1
}

// connector, conn and tx are the driver.
type connector struct{ store *Store }

func (c connector) Connect(context.Context) (driver.Conn, error) { return &conn{store: c.store}, nil }
func (c connector) Driver() driver.Driver                        { return drv{} }

type drv struct{}

func (drv) Open(string) (driver.Conn, error) {
	return nil, errors.New("idempotencymem: open with Store.OpenDB")
}

type conn struct {
	store *Store
	tx    *transaction
}

func (c *conn) Prepare(string) (driver.Stmt, error) {
	return nil, errors.New("idempotencymem: the database holds nothing but marks and keys")
}

func (c *conn) Close() error { return nil }

func (c *conn) Begin() (driver.Tx, error) {
	c.tx = newTransaction()
	return tx{c}, nil
}

// BeginTx takes any isolation level for read committed.
func (c *conn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) { return c.Begin() }

// CheckNamedValue lets every argument through as it is.
func (c *conn) CheckNamedValue(*driver.NamedValue) error { return nil }

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if query == statement && len(args) == 1 {
		o, ok := args[0].Value.(order)
		if !ok || o.store != c.store {
			return nil, errors.New("idempotencymem: the transaction belongs to another store")
		}
		return c.run(ctx, o.work)
	}
	if c.tx == nil {
		return c.fail(query)
	}
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if name, ok := strings.CutPrefix(query, "SAVEPOINT "); ok {
		c.tx.savepoints = append(c.tx.savepoints, savepoint{name, len(c.tx.actions)})
		return driver.RowsAffected(0), nil
	}
	name, release := strings.CutPrefix(query, "RELEASE SAVEPOINT ")
	if !release {
		var ok bool
		if name, ok = strings.CutPrefix(query, "ROLLBACK TO SAVEPOINT "); !ok {
			return c.fail(query)
		}
	}
	i := c.tx.find(name)
	switch {
	case i < 0:
		return nil, fmt.Errorf("idempotencymem: there is no savepoint %q", name)
	case release:
		c.tx.savepoints = c.tx.savepoints[:i]
	default:
		c.tx.rollbackTo(c.tx.savepoints[i].actions)
		c.tx.savepoints = c.tx.savepoints[:i+1]
	}
	return driver.RowsAffected(0), nil
}

func (c *conn) fail(query string) (driver.Result, error) {
	_, err := c.Prepare(query)
	return nil, fmt.Errorf("%w: %.60q", err, query)
}

// run does the work in the open transaction, or in one of its own.
func (c *conn) run(ctx context.Context, w work) (driver.Result, error) {
	if c.tx != nil {
		n, err := w(ctx, c.tx)
		return driver.RowsAffected(n), err
	}
	t, _ := c.Begin()
	n, err := w(ctx, c.tx)
	if err != nil {
		_ = t.Rollback()
		return nil, err
	}
	return driver.RowsAffected(n), t.Commit()
}

type tx struct{ c *conn }

func (t tx) Commit() error {
	t.end(func(tr *transaction) {
		for _, a := range tr.actions {
			a.commit()
		}
	})
	return nil
}

func (t tx) Rollback() error {
	t.end(func(tr *transaction) { tr.rollbackTo(0) })
	return nil
}

func (t tx) end(how func(*transaction)) {
	t.c.store.mu.Lock()
	defer t.c.store.mu.Unlock()
	how(t.c.tx)
	close(t.c.tx.ended)
	t.c.tx = nil
}
