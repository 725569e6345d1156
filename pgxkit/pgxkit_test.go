// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package pgxkit_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
	"github.com/dovetail-go/dovetail/outbox/outboxtest"
	"github.com/dovetail-go/dovetail/pgxkit"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// config returns how to connect to a schema of the test's own, dropped afterwards.
func config(t *testing.T) *pgxpool.Config {
	t.Helper()
	dsn := os.Getenv("DOVETAIL_POSTGRES_DSN")
	if dsn == "" {
		const how = `DOVETAIL_POSTGRES_DSN is not set: run scripts/services up postgres && eval "$(scripts/services env)"`
		if os.Getenv("DOVETAIL_REQUIRE_SERVICES") == "1" {
			t.Fatal(how)
		}
		t.Skip(how)
	}
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	schema := "dovetail_test_" + strings.ToLower(rand.Text())
	admin := func(query string) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
		defer cancel()
		conn, err := pgx.ConnectConfig(ctx, cfg.ConnConfig.Copy())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, query); err != nil {
			t.Errorf("%s: %v", query, err)
		}
	}
	admin("CREATE SCHEMA " + schema)
	t.Cleanup(func() { admin("DROP SCHEMA " + schema + " CASCADE") })
	cfg.ConnConfig.RuntimeParams["search_path"] = schema
	cfg.ConnConfig.RuntimeParams["application_name"] = schema
	return cfg
}

// connect returns a native pool and a *sql.DB on it.
func connect(t *testing.T, cfg *pgxpool.Config) (*pgxpool.Pool, *sql.DB) {
	t.Helper()
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	db := stdlib.OpenDBFromPool(pool)
	t.Cleanup(func() {
		db.Close()
		pool.Close()
	})
	return pool, db
}

func store(t *testing.T, db *sql.DB) *outboxsql.Store {
	t.Helper()
	s, err := outboxsql.New(db, outboxsql.Postgres, outboxsql.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// native is a pgx transaction with the methods of a *sql.Tx.
type native struct {
	pgxkit.Adapter
	tx pgx.Tx
}

func (n native) Commit() error   { return n.tx.Commit(context.Background()) }   //nolint:usetesting // as sql.Tx does
func (n native) Rollback() error { return n.tx.Rollback(context.Background()) } //nolint:usetesting // as sql.Tx does

func TestOutboxInNativeTransactions(t *testing.T) {
	outboxtest.Run(t, func(t *testing.T) outboxtest.Subject {
		pool, db := connect(t, config(t))
		return outboxtest.Subject{Store: store(t, db), Begin: func(ctx context.Context) (outboxtest.Tx, error) {
			tx, err := pool.Begin(ctx)
			return native{pgxkit.Tx(tx), tx}, err
		}}
	})
}

func TestInboxInNativeTransactions(t *testing.T) {
	pool, db := connect(t, config(t))
	inbox, err := idempotencysql.New(db, idempotencysql.Postgres, idempotencysql.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := inbox.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		commit, first bool
	}{{false, true}, {true, true}, {true, false}} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		first, err := inbox.Once(t.Context(), pgxkit.Tx(tx), "consumer", "message")
		if err != nil || first != c.first {
			t.Errorf("Once = %v, %v, want %v", first, err, c.first)
		}
		if c.commit {
			err = tx.Commit(t.Context())
		} else {
			err = tx.Rollback(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestTx(t *testing.T) {
	if _, err := pgxkit.Tx(nil).ExecContext(t.Context(), "SELECT 1"); err == nil {
		t.Error("ExecContext on nothing = nil, want an error")
	}
	pool, _ := connect(t, config(t))
	tx := pgxkit.Tx(pool)
	if _, err := tx.ExecContext(t.Context(), "CREATE TABLE t (id BIGINT PRIMARY KEY, b BYTEA)"); err != nil {
		t.Fatal(err)
	}
	res, err := tx.ExecContext(t.Context(), "INSERT INTO t (id, b) VALUES ($1, $2), ($3, $4)", 1, []byte("x"), int64(2), []byte{})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := res.RowsAffected(); n != 2 || err != nil {
		t.Errorf("RowsAffected = %d, %v, want 2, nil", n, err)
	}
	if _, err := res.LastInsertId(); err == nil {
		t.Error("LastInsertId = nil, want an error")
	}
	_, err = tx.ExecContext(t.Context(), "INSERT INTO t (id) VALUES ($1)", 1)
	var state interface{ SQLState() string }
	if !errors.As(err, &state) || state.SQLState() != "23505" {
		t.Errorf("ExecContext = %v, want pgx's own error", err)
	}
}

func TestBatch(t *testing.T) {
	pool, db := connect(t, config(t))
	box, err := outbox.New(store(t, db), outbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	inbox, err := idempotencysql.New(db, idempotencysql.Postgres, idempotencysql.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := box.Enqueue(t.Context(), pgxkit.Batch(nil), &messaging.Message{Topic: "t"}); err == nil {
		t.Error("Enqueue in no batch = nil, want an error")
	}
	if _, err := inbox.Once(t.Context(), pgxkit.Batch(&pgx.Batch{}), "consumer", "message"); err == nil {
		t.Error("Once in a batch = nil, want an error")
	}
	want := 0
	for statement, ok := range map[string]bool{"SELECT 1": true, "SELECT 1 / 0": false} {
		batch := &pgx.Batch{}
		batch.Queue(statement)
		err := box.Enqueue(t.Context(), pgxkit.Batch(batch), &messaging.Message{Topic: "t", Body: []byte("x")}, &messaging.Message{Topic: "u"})
		if err != nil || batch.Len() != 2 {
			t.Fatalf("Enqueue = %v with %d statements in the batch, want nil and 2", err, batch.Len())
		}
		if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return tx.SendBatch(t.Context(), batch).Close() }); (err == nil) != ok {
			t.Errorf("SendBatch after %q = %v, want success: %v", statement, err, ok)
		}
		if ok {
			want += 2
		}
		st, err := box.Stats(t.Context())
		if err != nil || st.Depth != want {
			t.Errorf("%d messages after %q, %v, want %d", st.Depth, statement, err, want)
		}
	}
}

func TestNewListener(t *testing.T) {
	conn, err := pgx.ParseConfig("postgres://localhost/test")
	if err != nil {
		t.Fatal(err)
	}
	for want, cfg := range map[string]pgxkit.ListenerConfig{
		"ListenerConfig.Channel is":          {Channel: strings.Repeat("x", 64)},
		"ListenerConfig.Interval is -1s":     {Interval: -time.Second},
		"ListenerConfig.Check is -1s":        {Check: -time.Second},
		"ListenerConfig.Backoff.Base is -1s": {Backoff: messaging.Backoff{Base: -time.Second}},
	} {
		if _, err := pgxkit.NewListener(conn, cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewListener = %v, want an error with %q", err, want)
		}
	}
	if _, err := pgxkit.NewListener(nil, pgxkit.ListenerConfig{}); err == nil {
		t.Error("NewListener without a connection = nil, want an error")
	}
}

// listen starts a listener, as a process of its own would have.
func listen(t *testing.T, cfg *pgxpool.Config, lc pgxkit.ListenerConfig) *pgxkit.Listener {
	t.Helper()
	lc.Logger = quiet
	lc.Channel = cfg.ConnConfig.RuntimeParams["search_path"] // the test's own
	l, err := pgxkit.NewListener(cfg.ConnConfig, lc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := l.Run(ctx); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return l
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

func TestListener(t *testing.T) {
	cfg := config(t)
	pool, db := connect(t, cfg)
	// sessions counts the listeners' connections in the server: the pool has its own name.
	sessions := func() (n int) {
		name := cfg.ConnConfig.RuntimeParams["application_name"]
		if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND query LIKE 'LISTEN%'", name).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	here, there := listen(t, cfg, pgxkit.ListenerConfig{}), listen(t, cfg, pgxkit.ListenerConfig{Check: 50 * time.Millisecond})
	var mine, theirs atomic.Int64
	stopMine := here.Subscribe(func() { mine.Add(1) })
	stopTheirs := there.Subscribe(func() { theirs.Add(1) })
	eventually(t, "both are listening, and wake for what they missed", func() bool { return mine.Load() == 1 && theirs.Load() == 1 })

	t.Run("a notification wakes the others", func(t *testing.T) {
		before := theirs.Load()
		here.Notify()
		eventually(t, "woken", func() bool { return theirs.Load() == before+1 })
		if n := mine.Load(); n != 1 {
			t.Errorf("its sender was woken %d times more, want never", n-1)
		}
	})
	t.Run("many are passed on as few", func(t *testing.T) {
		before := theirs.Load()
		for range 10_000 {
			here.Notify()
		}
		eventually(t, "woken", func() bool { return theirs.Load() > before })
		time.Sleep(50 * time.Millisecond)
		if n := theirs.Load() - before; n > 100 {
			t.Errorf("10000 calls of Notify woke %d times, want few", n)
		}
	})
	t.Run("no more often than once in an interval", func(t *testing.T) {
		before := theirs.Load()
		rare := listen(t, cfg, pgxkit.ListenerConfig{Interval: time.Hour})
		rare.Notify()
		eventually(t, "woken", func() bool { return theirs.Load() > before })
		for range 10 {
			rare.Notify()
			time.Sleep(5 * time.Millisecond)
		}
		if n := theirs.Load() - before; n != 1 {
			t.Errorf("11 calls of Notify woke %d times within an hour, want once", n)
		}
	})
	t.Run("a lost connection is made again, and wakes", func(t *testing.T) {
		before := theirs.Load()
		if _, err := pool.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND pid <> pg_backend_pid() AND (query LIKE 'LISTEN%' OR query LIKE 'SELECT pg_notify%' OR query = 'SELECT 1')",
			cfg.ConnConfig.RuntimeParams["application_name"]); err != nil {
			t.Fatal(err)
		}
		eventually(t, "woken for what was missed", func() bool { return theirs.Load() > before })
		eventually(t, "a notification after that", func() bool {
			before = theirs.Load()
			here.Notify()
			time.Sleep(20 * time.Millisecond)
			return theirs.Load() > before
		})
	})
	t.Run("runs once at a time", func(t *testing.T) {
		if err := here.Run(t.Context()); err == nil {
			t.Error("a second Run = nil, want an error")
		}
	})
	t.Run("a relay elsewhere publishes at once", func(t *testing.T) {
		s := store(t, db)
		boxHere, err := outbox.New(s, outbox.Config{Notifier: here})
		if err != nil {
			t.Fatal(err)
		}
		boxThere, err := outbox.New(s, outbox.Config{Notifier: there})
		if err != nil {
			t.Fatal(err)
		}
		published := make(chan string, 10)
		relay, err := outbox.NewRelay(boxThere, publisher(published), outbox.RelayConfig{Poll: time.Hour, Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = relay.Run(ctx)
		}()
		eventually(t, "the relay holds its shards", func() bool { return relay.Stats().Shards == s.Shards() })
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = boxHere.Enqueue(t.Context(), pgxkit.Tx(tx), &messaging.Message{ID: "m", Topic: "t"})
		if err := errors.Join(err, tx.Commit(t.Context())); err != nil {
			t.Fatal(err)
		}
		boxHere.Wake()
		select {
		case id := <-published:
			if id != "m" {
				t.Errorf("published %q, want m", id)
			}
		case <-time.After(20 * time.Second):
			t.Error("not published, and the next poll is an hour away")
		}
		cancel()
		<-done
	})
	t.Run("nobody subscribed needs no connection", func(t *testing.T) {
		stopMine()
		stopTheirs()
		eventually(t, "the connections are closed", func() bool { return sessions() == 0 })
		var again atomic.Int64
		stopAgain := here.Subscribe(func() { again.Add(1) })
		defer stopAgain()
		eventually(t, "a new subscriber is heard", func() bool { return again.Load() > 0 })
	})
}

type publisher chan string

func (p publisher) Publish(_ context.Context, msgs ...*messaging.Message) error {
	p <- msgs[0].ID
	return nil
}

// A server that cannot be reached does not end Run, and Run ends when it is told to.
func TestListenerWithoutServer(t *testing.T) {
	conn, err := pgx.ParseConfig("postgres://nobody@127.0.0.1:1/nothing")
	if err != nil {
		t.Fatal(err)
	}
	l, err := pgxkit.NewListener(conn, pgxkit.ListenerConfig{Logger: quiet, Backoff: messaging.Backoff{Base: time.Millisecond, Max: 5 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	woken := atomic.Bool{}
	cancelWake := l.Subscribe(func() { woken.Store(true) })
	defer cancelWake()
	l.Notify()
	if err := l.Run(ctx); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	if woken.Load() {
		t.Error("woken by a server that is not there")
	}
}
