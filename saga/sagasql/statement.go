// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql

import (
	"context"
	"database/sql"
	"strings"
	"sync"
)

// Statements are written once for all dialects: {i}, {h}, {n}, {s}, {l} and {w} are the
// tables of instances, history, nodes, signals, locks and those who wait for a lock, {a} and
// {ah} the archive and its history, {now} is the database's clock, ? are the parameters.

// textCache holds statements in the form that the database takes.
type textCache struct{ m sync.Map }

// text returns the statement in the form that the database takes.
func (s *Store) text(query string) string {
	if t, ok := s.texts.m.Load(query); ok {
		return t.(string)
	}
	t := s.dialect.Rebind(strings.NewReplacer(
		"{i}", s.block+"_instance", "{a}", s.block+"_archive", "{ah}", s.block+"_archive_history", "{s}", s.block+"_signal", "{l}", s.block+"_lock", "{w}", s.block+"_lock_wait", "{h}", s.block+"_history", "{n}", s.block+"_node", "{now}", s.dialect.Now(),
	).Replace(query))
	s.texts.m.Store(query, t)
	return t
}

// stmtCache holds prepared statements by their text.
type stmtCache struct {
	mu sync.Mutex
	m  map[string]*sql.Stmt
}

// prepare prepares statements that come again and again, where that saves something:
// SQLite would compile them each time, and MySQL's driver would prepare and close
// them. PostgreSQL's drivers keep statements themselves, in a way that can be
// configured for a pooler such as PgBouncer, which prepared statements would break.
//
// It must not be called while the caller holds a connection: there may be no other.
func (s *Store) prepare(ctx context.Context, queries ...string) error {
	if s.dialect == Postgres {
		return nil
	}
	for _, query := range queries {
		if s.prepared(query) != nil {
			continue
		}
		stmt, err := s.db.PrepareContext(ctx, s.text(query))
		if err != nil {
			return err
		}
		s.stmts.mu.Lock()
		old := s.stmts.m[query]
		if old == nil {
			if s.stmts.m == nil {
				s.stmts.m = map[string]*sql.Stmt{}
			}
			s.stmts.m[query] = stmt
		}
		s.stmts.mu.Unlock()
		if old != nil {
			_ = stmt.Close() //nolint:sqlclosecheck // somebody else was faster
		}
	}
	return nil
}

func (s *Store) prepared(query string) *sql.Stmt {
	s.stmts.mu.Lock()
	defer s.stmts.mu.Unlock()
	return s.stmts.m[query]
}

// exec runs a statement in tx, or by itself if tx is nil, and returns the number of
// affected rows.
func (s *Store) exec(ctx context.Context, tx *sql.Tx, query string, args ...any) (int64, error) {
	var res sql.Result
	var err error
	switch stmt := s.prepared(query); { //nolint:sqlclosecheck // statements are kept as long as the store
	case stmt != nil && tx != nil:
		res, err = tx.StmtContext(ctx, stmt).ExecContext(ctx, args...) //nolint:sqlclosecheck // the transaction closes it
	case stmt != nil:
		res, err = stmt.ExecContext(ctx, args...)
	case tx != nil:
		res, err = tx.ExecContext(ctx, s.text(query), args...)
	default:
		res, err = s.db.ExecContext(ctx, s.text(query), args...)
	}
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// rows runs a query in tx, or by itself if tx is nil.
func (s *Store) rows(ctx context.Context, tx *sql.Tx, query string, args ...any) (*sql.Rows, error) {
	switch stmt := s.prepared(query); { //nolint:sqlclosecheck // statements are kept as long as the store
	case stmt != nil && tx != nil:
		return tx.StmtContext(ctx, stmt).QueryContext(ctx, args...) //nolint:sqlclosecheck // the transaction closes it
	case stmt != nil:
		return stmt.QueryContext(ctx, args...)
	case tx != nil:
		return tx.QueryContext(ctx, s.text(query), args...)
	}
	return s.db.QueryContext(ctx, s.text(query), args...)
}
