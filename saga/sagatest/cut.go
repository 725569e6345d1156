// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagatest

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"sync"
)

// errCut is what a node hears from a database that it is cut off from.
var errCut = errors.New("sagatest: the node is cut off")

// cut is a connector whose nth statement, begin or commit ends all its connections: before
// it is made, or after it, with the answer lost. What was not committed is rolled back, as
// when a process dies.
type cut struct {
	driver.Connector
	after bool

	mu   sync.Mutex
	left int
	dead bool
	died chan struct{}
}

// Cut returns a connector to the same database whose nth statement, begin or commit ends all
// its connections: before it is made, or after it, with the answer lost. What was not
// committed is rolled back, as when a process dies, also where the node was reading rows.
// Reached reports whether it has come to that. The driver must know contexts. Rows do not
// tell the types of their columns.
func Cut(c driver.Connector, n int, after bool) (connector driver.Connector, reached func() bool) {
	k := newCut(c, n, after)
	return k, k.reached
}

func newCut(c driver.Connector, n int, after bool) *cut {
	return &cut{Connector: c, after: after, left: n, died: make(chan struct{})}
}

func (c *cut) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dead {
		c.dead = true
		close(c.died)
	}
}

func (c *cut) isDead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}

// reached reports whether there were as many statements.
func (c *cut) reached() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left <= 0
}

// count counts a statement and reports whether it is the one.
func (c *cut) count() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left--
	return c.left == 0
}

// statement makes a statement on a connection, unless it is cut.
func statement[R any](c *cutConn, fn func() (R, error)) (R, error) {
	var none R
	if c.cut.isDead() {
		return none, c.end()
	}
	now := c.cut.count()
	if now && !c.cut.after {
		c.cut.kill()
		return none, c.end()
	}
	r, err := fn()
	if errors.Is(err, driver.ErrSkip) {
		c.cut.mu.Lock()
		c.cut.left++ // it will be made in another way
		c.cut.mu.Unlock()
		return none, err
	}
	if now {
		c.cut.kill()
	}
	if c.cut.isDead() {
		return none, c.end()
	}
	return r, err
}

func (c *cut) Connect(ctx context.Context) (driver.Conn, error) {
	if c.isDead() {
		return nil, errCut
	}
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &cutConn{Conn: conn, cut: c, rows: map[*cutRows]bool{}, stmts: map[*cutStmt]bool{}}, nil
}

// cutConn is one connection, in the hands of one goroutine at a time.
type cutConn struct {
	driver.Conn
	cut    *cut
	closed bool
	// rows and stmts are open: SQLite keeps a transaction until they are closed.
	rows  map[*cutRows]bool
	stmts map[*cutStmt]bool
}

// end closes the connection for good, without a word to what is open on it.
func (c *cutConn) end() error {
	_ = c.Close()
	return errCut
}

func (c *cutConn) Close() error {
	if c.closed {
		return nil
	}
	c.closed = true
	for r := range c.rows {
		_ = r.Rows.Close()
	}
	for s := range c.stmts {
		_ = s.Stmt.Close()
	}
	return c.Conn.Close()
}

// query makes a statement that returns rows, on a connection or prepared.
func (c *cutConn) query(fn func() (driver.Rows, error)) (driver.Rows, error) {
	return statement(c, func() (driver.Rows, error) {
		rows, err := fn()
		if err != nil {
			return nil, err
		}
		r := &cutRows{rows, c}
		c.rows[r] = true
		return r, nil
	})
}

func (c *cutConn) IsValid() bool {
	if v, ok := c.Conn.(driver.Validator); ok && !c.closed && !v.IsValid() {
		return false
	}
	return !c.closed && !c.cut.isDead()
}

func (c *cutConn) ResetSession(ctx context.Context) error {
	if r, ok := c.Conn.(driver.SessionResetter); ok && !c.closed {
		return r.ResetSession(ctx)
	}
	return nil
}

func (c *cutConn) CheckNamedValue(v *driver.NamedValue) error {
	if n, ok := c.Conn.(driver.NamedValueChecker); ok {
		return n.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

func (c *cutConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	return statement(c, func() (driver.Tx, error) {
		b, ok := c.Conn.(driver.ConnBeginTx)
		if !ok {
			return nil, errors.New("sagatest: the driver has no BeginTx")
		}
		tx, err := b.BeginTx(ctx, opts)
		if err != nil {
			return nil, err
		}
		return &cutTx{tx, c}, nil
	})
}

func (c *cutConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return statement(c, func() (driver.Result, error) {
		if e, ok := c.Conn.(driver.ExecerContext); ok {
			return e.ExecContext(ctx, query, args)
		}
		return nil, driver.ErrSkip
	})
}

func (c *cutConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.query(func() (driver.Rows, error) {
		if q, ok := c.Conn.(driver.QueryerContext); ok {
			return q.QueryContext(ctx, query, args)
		}
		return nil, driver.ErrSkip
	})
}

func (c *cutConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if c.cut.isDead() {
		return nil, c.end()
	}
	p, ok := c.Conn.(driver.ConnPrepareContext)
	if !ok {
		return nil, errors.New("sagatest: the driver has no PrepareContext")
	}
	s, err := p.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	stmt := &cutStmt{s, c}
	c.stmts[stmt] = true
	return stmt, nil
}

type cutTx struct {
	driver.Tx
	c *cutConn
}

func (t *cutTx) Commit() error {
	_, err := statement(t.c, func() (struct{}, error) { return struct{}{}, t.Tx.Commit() })
	return err
}

func (t *cutTx) Rollback() error {
	if t.c.cut.isDead() {
		return t.c.end()
	}
	return t.Tx.Rollback()
}

type cutStmt struct {
	driver.Stmt
	c *cutConn
}

func (s *cutStmt) Close() error {
	if s.c.closed {
		return nil
	}
	delete(s.c.stmts, s)
	return s.Stmt.Close()
}

func (s *cutStmt) CheckNamedValue(v *driver.NamedValue) error {
	if n, ok := s.Stmt.(driver.NamedValueChecker); ok {
		return n.CheckNamedValue(v)
	}
	return s.c.CheckNamedValue(v)
}

func (s *cutStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return statement(s.c, func() (driver.Result, error) {
		if e, ok := s.Stmt.(driver.StmtExecContext); ok {
			return e.ExecContext(ctx, args)
		}
		return nil, errors.New("sagatest: the driver's statements have no ExecContext")
	})
}

func (s *cutStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.c.query(func() (driver.Rows, error) {
		if q, ok := s.Stmt.(driver.StmtQueryContext); ok {
			return q.QueryContext(ctx, args)
		}
		return nil, errors.New("sagatest: the driver's statements have no QueryContext")
	})
}

type cutRows struct {
	driver.Rows
	c *cutConn
}

func (r *cutRows) Close() error {
	if r.c.closed {
		return nil
	}
	delete(r.c.rows, r)
	return r.Rows.Close()
}

func (r *cutRows) Next(dest []driver.Value) error {
	if r.c.cut.isDead() {
		return r.c.end()
	}
	return r.Rows.Next(dest)
}

// HasNextResultSet implements driver.RowsNextResultSet.
func (r *cutRows) HasNextResultSet() bool {
	n, ok := r.Rows.(driver.RowsNextResultSet)
	return ok && !r.c.closed && n.HasNextResultSet()
}

// NextResultSet implements driver.RowsNextResultSet.
func (r *cutRows) NextResultSet() error {
	if r.c.cut.isDead() {
		return r.c.end()
	}
	if n, ok := r.Rows.(driver.RowsNextResultSet); ok {
		return n.NextResultSet()
	}
	return io.EOF
}
