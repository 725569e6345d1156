// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"database/sql/driver"
)

// The conns, statements and transactions below are those of the SQLite driver behind a [Gate]: while the
// service is paused they wait, and once it is killed they fail and what has not been committed is rolled back.
// On servers a process is stopped and killed itself, so nothing stands between it and its database.

// gatedConnector opens connections behind a gate.
type gatedConnector struct {
	driver driver.Driver
	dsn    string
	gate   *Gate
}

// Connect implements [driver.Connector].
func (c gatedConnector) Connect(context.Context) (driver.Conn, error) {
	conn, err := c.driver.Open(c.dsn)
	if err != nil {
		return nil, err
	}
	return &gatedConn{conn.(sqliteConn), c.gate}, nil
}

// Driver implements [driver.Connector].
func (c gatedConnector) Driver() driver.Driver { return c.driver }

// sqliteConn is what the driver's connections can do.
type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

type gatedConn struct {
	sqliteConn
	gate *Gate
}

func (c *gatedConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := c.gate.wait(ctx, paused); err != nil {
		return nil, err
	}
	tx, err := c.sqliteConn.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	return gatedTx{tx, c.gate}, nil
}

func (c *gatedConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if err := c.gate.wait(ctx, paused); err != nil {
		return nil, err
	}
	stmt, err := c.sqliteConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return &gatedStmt{stmt.(sqliteStmt), c.gate}, nil
}

func (c *gatedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.gate.wait(ctx, paused); err != nil {
		return nil, err
	}
	return c.sqliteConn.ExecContext(ctx, query, args)
}

func (c *gatedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.gate.wait(ctx, paused); err != nil {
		return nil, err
	}
	return c.sqliteConn.QueryContext(ctx, query, args)
}

func (c *gatedConn) Ping(ctx context.Context) error {
	if err := c.gate.wait(ctx, paused); err != nil {
		return err
	}
	return c.sqliteConn.Ping(ctx)
}

// sqliteStmt is what the driver's statements can do.
type sqliteStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

type gatedStmt struct {
	sqliteStmt
	gate *Gate
}

func (s *gatedStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if err := s.gate.wait(ctx, paused); err != nil {
		return nil, err
	}
	return s.sqliteStmt.ExecContext(ctx, args)
}

func (s *gatedStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.gate.wait(ctx, paused); err != nil {
		return nil, err
	}
	return s.sqliteStmt.QueryContext(ctx, args)
}

type gatedTx struct {
	driver.Tx
	gate *Gate
}

func (t gatedTx) Commit() error {
	if err := t.gate.wait(context.Background(), paused); err != nil {
		_ = t.Tx.Rollback() // what the database does with the open transactions of the dead
		return err
	}
	return t.Tx.Commit()
}
