// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outboxsql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

// The statements themselves are proved on real databases, in the conformance module.

var dialects = []outboxsql.Dialect{outboxsql.Postgres, outboxsql.MySQL, outboxsql.SQLite}

func TestNew(t *testing.T) {
	db := sql.OpenDB(&fake{})
	defer db.Close()
	for want, open := range map[string]func() (*outboxsql.Store, error){
		"DB is nil":              func() (*outboxsql.Store, error) { return outboxsql.New(nil, outboxsql.SQLite, outboxsql.Config{}) },
		"Dialect is sqldialect.": func() (*outboxsql.Store, error) { return outboxsql.New(db, 0, outboxsql.Config{}) },
		`Config.Prefix is "my table"`: func() (*outboxsql.Store, error) {
			return outboxsql.New(db, outboxsql.SQLite, outboxsql.Config{Prefix: "my table"})
		},
		"Config.Shards is -1, want 0 to": func() (*outboxsql.Store, error) {
			return outboxsql.New(db, outboxsql.SQLite, outboxsql.Config{Shards: -1})
		},
		"Config.Shards is 257": func() (*outboxsql.Store, error) {
			return outboxsql.New(db, outboxsql.SQLite, outboxsql.Config{Shards: 257})
		},
	} {
		if _, err := open(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, want an error with %q", err, want)
		}
	}
	s, err := outboxsql.New(db, outboxsql.SQLite, outboxsql.Config{})
	if err != nil || s.Shards() != 16 {
		t.Errorf("New = %v, %v, want a store with 16 shards", s, err)
	}
}

func TestSchema(t *testing.T) {
	for _, d := range dialects {
		text := outboxsql.Schema(d)
		for _, want := range []string{"CREATE TABLE outbox_message", "CREATE TABLE outbox_parked", "CREATE TABLE outbox_lease", "(15, '', 0, 0)", "outbox_schema"} {
			if !strings.Contains(text, want) {
				t.Errorf("Schema(%v) has no %q", d, want)
			}
		}
		// A trigger, or a NOTIFY by one, would be part of the writers' transactions.
		if upper := strings.ToUpper(text); strings.Contains(upper, "TRIGGER") || strings.Contains(upper, "NOTIFY") {
			t.Errorf("Schema(%v) acts in the writers' transactions", d)
		}
		// Dead rows are what reads slow down by.
		if d == outboxsql.Postgres && !strings.Contains(text, "autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0") {
			t.Errorf("Schema(%v) leaves the cleaning up to the server's defaults", d)
		}
		if strings.ContainsAny(text, "{}") {
			t.Errorf("Schema(%v) has a gap that was not filled:\n%s", d, text)
		}
	}
	if text := outboxsql.Schema(0); text != "" {
		t.Errorf("Schema of no dialect = %q, want nothing", text)
	}
	s, err := outboxsql.New(sql.OpenDB(&fake{}), outboxsql.MySQL, outboxsql.Config{Prefix: "billing_", Shards: 4})
	if err != nil {
		t.Fatal(err)
	}
	text := s.Schema()
	if !strings.Contains(text, "billing_outbox_message") || strings.Contains(text, " outbox_") || !strings.Contains(text, "(3, '', 0, 0);") || !strings.Contains(text, "shard < 4") {
		t.Errorf("Schema = %s, want the prefix everywhere and four shards", text)
	}
}

func TestStatements(t *testing.T) {
	for _, d := range dialects {
		t.Run(d.String(), func(t *testing.T) {
			f := &fake{}
			db := sql.OpenDB(f)
			defer db.Close()
			s, err := outboxsql.New(db, d, outboxsql.Config{})
			if err != nil {
				t.Fatal(err)
			}
			t.Run("Insert is one for many messages", func(t *testing.T) {
				tx := &recorder{}
				rows := make([]outbox.Row, 500)
				for i := range rows {
					rows[i].Message = &messaging.Message{ID: fmt.Sprint(i), Topic: "t"}
				}
				if err := s.Insert(t.Context(), tx, rows); err != nil || tx.calls != 1 || tx.args != 8*500 || !strings.HasPrefix(tx.query, "INSERT INTO outbox_message ") {
					t.Errorf("Insert = %v in %d statements with %d arguments, want one with 4000", err, tx.calls, tx.args)
				}
				if err := s.Insert(t.Context(), tx, slices.Concat(rows, rows)); err != nil || tx.calls != 3 {
					t.Errorf("Insert of 1000 = %v, %d statements more, want two", err, tx.calls-1)
				}
			})
			t.Run("Insert fits into a packet", func(t *testing.T) {
				tx := &recorder{}
				rows := make([]outbox.Row, 5)
				for i := range rows {
					rows[i].Message = &messaging.Message{ID: fmt.Sprint(i), Topic: "t", Body: make([]byte, []int{3 << 20, 1 << 20, 1, 9 << 20, 1}[i])}
				}
				if err := s.Insert(t.Context(), tx, rows); err != nil || tx.calls != 4 {
					t.Errorf("Insert of 3, 1, 0, 9 and 0 MiB = %v in %d statements, want four", err, tx.calls)
				}
			})
			t.Run("Insert tells the database's error", func(t *testing.T) {
				broken := errors.New("broken")
				err := s.Insert(t.Context(), &recorder{err: broken}, []outbox.Row{{Message: &messaging.Message{}}})
				if !errors.Is(err, broken) {
					t.Errorf("Insert = %v, want the database's error", err)
				}
			})
			t.Run("Read is one for all shards", func(t *testing.T) {
				reads := make([]outbox.Read, 16)
				for i := range reads {
					reads[i] = outbox.Read{Shard: i, Limit: 100}
				}
				reads[3].SkipIDs = []int64{1, 2, 3}
				f.reset()
				if _, err := s.Read(t.Context(), reads); err != nil {
					t.Fatal(err)
				}
				if got := f.queries(); len(got) != 1 {
					t.Errorf("Read = %d statements, want one", len(got))
				}
			})
			t.Run("a heartbeat is two", func(t *testing.T) {
				f.reset()
				f.lease = "relay"
				if _, err := s.Lease(t.Context(), outbox.LeaseRequest{Relay: "relay", TTL: time.Second}); err != nil {
					t.Fatal(err)
				}
				if got := f.queries(); len(got) != 2 {
					t.Errorf("Lease = %q, want an UPDATE and a SELECT", got)
				}
			})
			if d == outboxsql.Postgres {
				t.Run("Read has one text for the drivers' caches", func(t *testing.T) {
					f.reset()
					texts := make(map[string]bool)
					for n := 1; n <= 100; n++ {
						ids := make([]int64, n)
						if _, err := s.Read(t.Context(), []outbox.Read{{Limit: 100, SkipIDs: ids}, {Shard: n % 16, Limit: 100}}); err != nil {
							t.Fatal(err)
						}
					}
					for _, q := range f.queries() {
						texts[q] = true
					}
					if len(texts) != 1 {
						t.Errorf("%d different statements, want one", len(texts))
					}
				})
			}
		})
	}
}

// recorder is a transaction that counts.
type recorder struct {
	calls, args int
	query       string
	err         error
}

func (r *recorder) ExecContext(_ context.Context, query string, args ...any) (sql.Result, error) {
	r.calls++
	r.args, r.query = len(args), query
	return driver.RowsAffected(1), r.err
}

// fake is a database that remembers its statements and has nothing but leases.
type fake struct {
	mu    sync.Mutex
	seen  []string
	lease string // owner of all shards, with a row of its own
}

func (f *fake) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = nil
}

func (f *fake) queries() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}

func (f *fake) Connect(context.Context) (driver.Conn, error) { return &conn{f}, nil }
func (f *fake) Driver() driver.Driver                        { return nil }

type conn struct{ *fake }

func (c *conn) Prepare(string) (driver.Stmt, error) { return nil, errors.New("not prepared") }
func (c *conn) Close() error                        { return nil }
func (c *conn) Begin() (driver.Tx, error)           { return c, nil }
func (c *conn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return c, nil
}
func (c *conn) Commit() error   { return nil }
func (c *conn) Rollback() error { return nil }

func (c *conn) ExecContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, query)
	return driver.RowsAffected(0), nil
}

func (c *conn) QueryContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, query)
	if strings.HasPrefix(query, "SELECT shard, owner") {
		return &leases{owner: c.lease, next: -1}, nil
	}
	return &leases{next: 16}, nil
}

// leases are the rows of the lease table.
type leases struct {
	owner string
	next  int64
}

func (l *leases) Columns() []string { return []string{"shard", "owner", "epoch", "left"} }
func (l *leases) Close() error      { return nil }

func (l *leases) Next(dest []driver.Value) error {
	if l.next == 16 {
		return io.EOF
	}
	dest[0], dest[1], dest[2], dest[3] = l.next, l.owner, int64(1), int64(1000)
	l.next++
	return nil
}
