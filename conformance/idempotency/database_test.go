// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
	"github.com/dovetail-go/dovetail/idempotency/idempotencytest"
	"github.com/dovetail-go/dovetail/messaging"
)

func exec(t *testing.T, db idempotency.Tx, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func count(t *testing.T, db *sql.DB, query string) (n int) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func delivery(id string) *messaging.Delivery {
	return &messaging.Delivery{Message: &messaging.Message{ID: id}, Group: "mail", Attempt: 1}
}

func deliveries(ids ...string) []*messaging.Delivery {
	ds := make([]*messaging.Delivery, len(ids))
	for i, id := range ids {
		ds[i] = delivery(id)
	}
	return ds
}

func TestMigrateManyAtOnceAndSchemaAsText(t *testing.T) {
	each(t, func(t *testing.T, d string) {
		var wg sync.WaitGroup
		for _, db := range testdb.OpenN(t, d, 6) {
			wg.Go(func() {
				s, err := idempotencysql.New(db, dialects[d], idempotencysql.Config{})
				if err == nil {
					err = s.Migrate(t.Context())
				}
				if err != nil {
					t.Errorf("Migrate = %v", err)
				}
			})
		}
		wg.Wait()

		// What a migration tool applies is what Migrate would have made.
		db := testdb.Open(t, d)
		for _, statement := range strings.Split(idempotencysql.Schema(dialects[d]), ";\n") {
			if strings.TrimSpace(statement) != "" {
				exec(t, db, statement)
			}
		}
		s := open(t, db, d, idempotencysql.Config{})
		if _, err := s.Begin(t.Context(), idempotency.Command{Key: idempotency.Key{ID: "k"}}); err != nil {
			t.Errorf("Begin = %v", err)
		}
		// A second store beside it.
		s = open(t, db, d, idempotencysql.Config{Prefix: "billing_"})
		if _, err := s.Begin(t.Context(), idempotency.Command{Key: idempotency.Key{ID: "k"}}); err != nil {
			t.Errorf("Begin in the tables with a prefix = %v", err)
		}
	})
}

func TestPrune(t *testing.T) {
	each(t, func(t *testing.T, d string) {
		db := testdb.Open(t, d)
		s := open(t, db, d, idempotencysql.Config{})
		var ids []string
		for i := range 2500 {
			ids = append(ids, fmt.Sprint("old-", i))
		}
		begin := beginner(db)
		mark := func(ids ...string) {
			tx, err := begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if _, err := s.OnceMany(t.Context(), tx, "mail", ids); err != nil {
				t.Fatal(err)
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		mark(ids...)
		exec(t, db, "UPDATE idempotency_inbox SET seen_at = seen_at - 3600000000")
		mark("new")

		command := func(id string, lease, retention time.Duration) idempotency.Claim {
			c, err := s.Begin(t.Context(), idempotency.Command{Key: idempotency.Key{ID: id}, Lease: lease, Retention: retention})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		if err := s.Complete(t.Context(), command("done and kept", time.Minute, time.Hour), nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Complete(t.Context(), command("done and over", time.Minute, time.Microsecond), nil); err != nil {
			t.Fatal(err)
		}
		command("crashed and over", time.Microsecond, time.Microsecond)
		command("crashed and kept", time.Microsecond, time.Hour)
		command("running", time.Hour, time.Microsecond)
		time.Sleep(5 * time.Millisecond) // SQLite's clock counts milliseconds

		if n, err := s.Prune(t.Context(), 2*time.Hour); n != 2 || err != nil {
			t.Errorf("Prune of what is older than 2h = %d, %v, want the 2 keys whose retention is over", n, err)
		}
		if n, err := s.Prune(t.Context(), 30*time.Minute); n != 2500 || err != nil {
			t.Errorf("Prune of what is older than 30m = %d, %v, want 2500", n, err)
		}
		if n := count(t, db, "SELECT count(*) FROM idempotency_inbox"); n != 1 {
			t.Errorf("%d marks are left, want the new one", n)
		}
		if n := count(t, db, "SELECT count(*) FROM idempotency_key"); n != 3 {
			t.Errorf("%d keys are left, want 3: done, crashed and running", n)
		}
	})
}

func TestRunPrunesUntilItsContextEnds(t *testing.T) {
	each(t, func(t *testing.T, d string) {
		db := testdb.Open(t, d)
		s := open(t, db, d, idempotencysql.Config{MarkRetention: time.Minute})
		exec(t, db, "INSERT INTO idempotency_inbox (consumer, id, batch, seen_at) VALUES ('mail', 'old', 0, 0)")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		for end := time.Now().Add(30 * time.Second); count(t, db, "SELECT count(*) FROM idempotency_inbox") > 0; {
			if time.Now().After(end) {
				t.Fatal("the old mark is still there")
			}
			time.Sleep(5 * time.Millisecond)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
}

// mysqlWith returns a pool on a fresh database with another configuration of the driver.
func mysqlWith(t *testing.T, change func(*mysql.Config)) *sql.DB {
	t.Helper()
	db := testdb.Open(t, "mysql")
	cfg, err := mysql.ParseDSN(os.Getenv("DOVETAIL_MYSQL_DSN"))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRowContext(t.Context(), "SELECT DATABASE()").Scan(&cfg.DBName); err != nil {
		t.Fatal(err)
	}
	change(cfg)
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	pool := sql.OpenDB(connector)
	t.Cleanup(func() { pool.Close() })
	return pool
}

// A MySQL connection with clientFoundRows counts rows that a statement found, not those
// that it changed, which would make every duplicate look new.
func TestMySQLClientFoundRows(t *testing.T) {
	t.Parallel()
	found := func(t *testing.T) *sql.DB {
		return mysqlWith(t, func(cfg *mysql.Config) { cfg.ClientFoundRows, cfg.InterpolateParams = true, true })
	}
	t.Run("inbox", func(t *testing.T) {
		idempotencytest.RunInbox(t, func(t *testing.T) (idempotency.Inbox, idempotencytest.Begin) {
			db := found(t)
			return open(t, db, "mysql", idempotencysql.Config{}), beginner(db)
		})
	})
	t.Run("store", func(t *testing.T) {
		idempotencytest.RunStore(t, func(t *testing.T) idempotency.Store {
			return open(t, found(t), "mysql", idempotencysql.Config{})
		})
	})
}

// A pool of one connection must do, as SQLite's has it.
func TestPoolOfOne(t *testing.T) {
	for _, d := range []string{"postgres", "mysql"} {
		t.Run(d, func(t *testing.T) {
			one := func(t *testing.T) (*sql.DB, *idempotencysql.Store) {
				db := testdb.Open(t, d)
				db.SetMaxOpenConns(1)
				return db, open(t, db, d, idempotencysql.Config{})
			}
			t.Run("consumer", func(t *testing.T) {
				idempotencytest.RunConsumer(t, func(t *testing.T) (*sql.DB, idempotency.Inbox) { return one(t) })
			})
			t.Run("store", func(t *testing.T) {
				idempotencytest.RunTxStore(t, func(t *testing.T) (idempotency.TxStore, idempotencytest.Begin) {
					db, s := one(t)
					return s, beginner(db)
				})
			})
		})
	}
}

func TestWaitingForATwinIsBounded(t *testing.T) {
	for _, d := range []string{"postgres", "mysql"} { // SQLite waits when the transaction begins
		t.Run(d, func(t *testing.T) {
			var db *sql.DB
			cfg := idempotencysql.Config{}
			if d == "postgres" {
				db, cfg.Wait = testdb.Open(t, d), 100*time.Millisecond
			} else {
				// When we give up waiting, MySQL does not: its own bound must be the lower one.
				db = mysqlWith(t, func(cfg *mysql.Config) {
					cfg.Params = map[string]string{"innodb_lock_wait_timeout": "1"}
				})
			}
			s := open(t, db, d, cfg)
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if first, err := s.Once(t.Context(), tx, "mail", "m1"); !first || err != nil {
				t.Fatalf("Once = %v, %v, want true", first, err)
			}
			handled := false
			err = idempotency.Consumer(db, s, func(context.Context, *sql.Tx, *messaging.Delivery) error {
				handled = true
				return nil
			}).Handle(t.Context(), delivery("m1"))
			if v := fault.Judge(t.Context(), err); !errors.Is(err, idempotency.ErrInProgress) || v.Outcome != fault.Neutral || !v.Retry {
				t.Errorf("Handle = %v with %+v, want %v, neutral and to be retried", err, v, idempotency.ErrInProgress)
			}
			if handled {
				t.Error("the message was handled while its twin was open")
			}
			// In a batch the twin does not hold up its neighbours for longer than that.
			errs := idempotency.BatchConsumer(db, s, func(context.Context, *sql.Tx, *messaging.Delivery) error { return nil })(t.Context(), deliveries("m0", "m1", "m2"))
			if errs[0] != nil || !errors.Is(errs[1], idempotency.ErrInProgress) || errs[2] != nil {
				t.Errorf("batch = %v, want %v for m1", errs, idempotency.ErrInProgress)
			}
			// And many of them not for much longer than one, although each has its own twin.
			var held []string
			for i := range 30 {
				held = append(held, fmt.Sprint("held", i))
			}
			if _, err := s.OnceMany(t.Context(), tx, "mail", held); err != nil {
				t.Fatal(err)
			}
			waits := &countingInbox{Inbox: s}
			errs = idempotency.BatchConsumer(db, waits, func(context.Context, *sql.Tx, *messaging.Delivery) error { return nil })(t.Context(), deliveries(held...))
			for i, err := range errs {
				if !errors.Is(err, idempotency.ErrInProgress) {
					t.Errorf("error of %s = %v, want %v", held[i], err, idempotency.ErrInProgress)
				}
			}
			if waits.once > 5 {
				t.Errorf("the batch waited for %d of its messages, want a few", waits.once)
			}
		})
	}
}

// A wait for the transaction that completes a key would go on in the server when its caller has
// given up, and hold a connection meanwhile.
func TestBeginDoesNotWaitForAnOpenTransaction(t *testing.T) {
	for _, d := range []string{"postgres", "mysql"} {
		t.Run(d, func(t *testing.T) {
			db := testdb.Open(t, d)
			s := open(t, db, d, idempotencysql.Config{Wait: -1})
			cmd := idempotency.Command{Key: idempotency.Key{ID: "k"}, Lease: time.Microsecond}
			c, err := s.Begin(t.Context(), cmd)
			if err != nil {
				t.Fatal(err)
			}
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if err := s.CompleteTx(t.Context(), tx, c, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond) // the lease is over, by any clock
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if _, err := s.Begin(ctx, cmd); !errors.Is(err, idempotency.ErrInProgress) || ctx.Err() != nil {
				t.Errorf("Begin = %v, context %v, want %v without a wait", err, ctx.Err(), idempotency.ErrInProgress)
			}
		})
	}
}

// countingInbox counts the messages that are marked alone.
type countingInbox struct {
	idempotency.Inbox
	once int
}

func (c *countingInbox) Once(ctx context.Context, tx idempotency.Tx, consumer, id string) (bool, error) {
	c.once++
	return c.Inbox.Once(ctx, tx, consumer, id)
}

// Two batches that have messages in common wait for each other in one order, whatever theirs is:
// else each could have a mark that the other waits for.
func TestBatchesInOppositeOrders(t *testing.T) {
	for _, d := range []string{"postgres", "mysql"} {
		t.Run(d, func(t *testing.T) {
			db := testdb.Open(t, d)
			s := open(t, db, d, idempotencysql.Config{Wait: time.Minute})
			holder, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer holder.Rollback()
			if _, err := s.Once(t.Context(), holder, "mail", "m"); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for _, ids := range [][]string{{"z", "m", "a"}, {"a", "z"}} {
				wg.Go(func() {
					tx, err := db.BeginTx(t.Context(), nil)
					if err != nil {
						t.Error(err)
						return
					}
					defer tx.Rollback()
					_, err = s.OnceMany(t.Context(), tx, "mail", ids)
					if err = errors.Join(err, tx.Commit()); err != nil {
						t.Errorf("batch of %v: %v", ids, err)
					}
				})
				time.Sleep(100 * time.Millisecond) // for the first to come to its wait; sooner or later does no harm
			}
			if err := holder.Rollback(); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
		})
	}
}

// The commit fails because of one message, after all were handled: a deferred
// constraint. Its neighbours must not fail with it for ever.
func TestBatchWhoseCommitFails(t *testing.T) {
	for _, d := range []string{"postgres", "sqlite"} { // MySQL has no deferred constraints
		t.Run(d, func(t *testing.T) {
			db := testdb.Open(t, d)
			s := open(t, db, d, idempotencysql.Config{})
			exec(t, db, "CREATE TABLE parent (id INTEGER PRIMARY KEY)")
			exec(t, db, "CREATE TABLE effect (id TEXT PRIMARY KEY, parent INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)")
			errs := idempotency.BatchConsumer(db, s, func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
				parent := "NULL"
				if d.Message.ID == "m2" {
					parent = "7"
				}
				_, err := tx.ExecContext(ctx, "INSERT INTO effect VALUES ('"+d.Message.ID+"', "+parent+")")
				return err
			})(t.Context(), deliveries("m1", "m2", "m3"))
			if errs[0] != nil || errs[1] == nil || errs[2] != nil {
				t.Errorf("batch = %v, want an error for m2 only", errs)
			}
			if n := count(t, db, "SELECT count(*) FROM effect"); n != 2 {
				t.Errorf("%d effects, want 2", n)
			}
		})
	}
}

// The database ends the transaction behind the handler's back, as MySQL does after a
// deadlock: there is no savepoint to go back to.
func TestBatchWhoseTransactionTheDatabaseEnds(t *testing.T) {
	each(t, func(t *testing.T, d string) {
		db := testdb.Open(t, d)
		s := open(t, db, d, idempotencysql.Config{})
		exec(t, db, "CREATE TABLE effect (id VARCHAR(20) PRIMARY KEY)")
		deadlock := errors.New("deadlock")
		ds := deliveries("m1", "m2", "m3")
		ds[1].Attempt = 2 // so that there are savepoints
		errs := idempotency.BatchConsumer(db, s, func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
			if d.Message.ID == "m2" {
				_, err := tx.ExecContext(ctx, "ROLLBACK")
				return errors.Join(deadlock, err)
			}
			_, err := tx.ExecContext(ctx, "INSERT INTO effect VALUES ('"+d.Message.ID+"')")
			return err
		})(t.Context(), ds)
		if errs[0] != nil || !errors.Is(errs[1], deadlock) || errs[2] != nil {
			t.Errorf("batch = %v, want an error for m2 only", errs)
		}
		if n := count(t, db, "SELECT count(*) FROM effect"); n != 2 {
			t.Errorf("%d effects, want 2", n)
		}
	})
}

// Consumers whose messages fight for the same rows, in every order, deadlocks included:
// each message's effect is there once in the end.
func TestEffectsAreExactUnderContention(t *testing.T) {
	const messages, accounts, workers = 100, 4, 6
	each(t, func(t *testing.T, d string) {
		db := testdb.Open(t, d)
		s := open(t, db, d, idempotencysql.Config{})
		exec(t, db, "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
		for i := range accounts {
			exec(t, db, fmt.Sprintf("INSERT INTO account VALUES (%d, 0)", i))
		}
		apply := func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
			for _, account := range rand.Perm(accounts)[:2] {
				if _, err := tx.ExecContext(ctx, fmt.Sprintf("UPDATE account SET balance = balance + 1 WHERE id = %d", account)); err != nil {
					return err
				}
			}
			return nil
		}
		single, batch := idempotency.Consumer(db, s, apply), idempotency.BatchConsumer(db, s, apply)
		var ids []string
		for i := range messages {
			ids = append(ids, fmt.Sprint("m", i))
		}
		var failures atomic.Int64
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				todo := deliveries(ids...)
				rand.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
				for end := time.Now().Add(2 * time.Minute); len(todo) > 0; {
					if time.Now().After(end) {
						t.Errorf("%d messages cannot be handled", len(todo))
						return
					}
					n := min(len(todo), 1+rand.IntN(20))
					var errs []error
					if w%2 == 0 {
						errs = batch(t.Context(), todo[:n])
					} else {
						for _, d := range todo[:n] {
							errs = append(errs, single.Handle(t.Context(), d))
						}
					}
					var again []*messaging.Delivery
					for i, err := range errs {
						if err != nil {
							failures.Add(1)
							again = append(again, todo[i])
						}
					}
					todo = append(todo[n:], again...)
				}
			})
		}
		wg.Wait()
		t.Logf("%d deliveries failed and were repeated", failures.Load())
		if n := count(t, db, "SELECT sum(balance) FROM account"); n != 2*messages {
			t.Errorf("balances sum up to %d, want %d: each effect once", n, 2*messages)
		}
	})
}

// orders is an HTTP service on a real database, whose handler saves its answer with its
// effect.
type orders struct {
	http.Handler
	db    *sql.DB
	crash atomic.Bool // after the commit
	pause func()      // within the handler, before its transaction
}

func newOrders(t *testing.T, db *sql.DB, d string, cfg idempotency.HTTPConfig) *orders {
	t.Helper()
	s := open(t, db, d, idempotencysql.Config{})
	exec(t, db, "CREATE TABLE IF NOT EXISTS placed (id VARCHAR(20) NOT NULL)")
	cfg.Scope = idempotency.AnyClient
	protect, err := idempotency.HTTP(s, cfg)
	if err != nil {
		t.Fatal(err)
	}
	o := &orders{db: db}
	o.Handler = protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if o.pause != nil {
			o.pause()
		}
		resp, err := o.place(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if o.crash.Load() {
			panic(http.ErrAbortHandler)
		}
		resp.Write(w)
	}))
	return o
}

func (o *orders) place(r *http.Request) (resp idempotency.Response, err error) {
	ctx := context.WithoutCancel(r.Context()) // a process that was paused does not look
	id, err := io.ReadAll(r.Body)
	if err != nil {
		return resp, err
	}
	tx, err := o.db.BeginTx(ctx, nil)
	if err != nil {
		return resp, err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "INSERT INTO placed (id) VALUES ('"+string(id)+"')"); err != nil {
		return resp, err
	}
	if resp, err = idempotency.JSON(http.StatusCreated, "placed "+string(id)); err != nil {
		return resp, err
	}
	if err := idempotency.Save(ctx, tx, resp); err != nil {
		return resp, err
	}
	return resp, tx.Commit()
}

func (o *orders) send(key, body string) (status int, answer string, replayed bool) {
	defer func() {
		if recover() != nil {
			status = -1
		}
	}()
	r := httptest.NewRequest(http.MethodPost, "/orders", strings.NewReader(body))
	r.Header.Set(idempotency.HeaderKey, key)
	w := httptest.NewRecorder()
	o.ServeHTTP(w, r)
	return w.Code, w.Body.String(), w.Header().Get(idempotency.HeaderReplayed) == "true"
}

func TestHTTPOnADatabase(t *testing.T) {
	each(t, func(t *testing.T, d string) {
		t.Run("of many requests with one key in two processes one takes effect, and all get its answer", func(t *testing.T) {
			pools := testdb.OpenN(t, d, 2)
			processes := []*orders{newOrders(t, pools[0], d, idempotency.HTTPConfig{}), newOrders(t, pools[1], d, idempotency.HTTPConfig{})}
			for k := range 10 {
				body := fmt.Sprint("o", k)
				var originals atomic.Int64
				var wg sync.WaitGroup
				for i := range 8 {
					wg.Go(func() {
						for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
							status, answer, replayed := processes[i%2].send(body, body)
							if status == http.StatusConflict && time.Now().Before(end) {
								continue
							}
							if want := `"placed ` + body + `"`; status != http.StatusCreated || answer != want {
								t.Errorf("answer = %d %s, want 201 %s", status, answer, want)
							}
							if !replayed {
								originals.Add(1)
							}
							return
						}
					})
				}
				wg.Wait()
				if n := originals.Load(); n != 1 {
					t.Errorf("%d answers to %s are originals, want 1", n, body)
				}
			}
			if n := count(t, pools[0], "SELECT count(*) FROM placed"); n != 10 {
				t.Errorf("%d orders were placed, want 10", n)
			}
		})
		t.Run("a crash after the commit is answered by a replay", func(t *testing.T) {
			db := testdb.Open(t, d)
			o := newOrders(t, db, d, idempotency.HTTPConfig{})
			o.crash.Store(true)
			if status, _, _ := o.send("k", "o1"); status != -1 {
				t.Fatalf("answer = %d, want a crash", status)
			}
			o.crash.Store(false)
			if status, answer, replayed := o.send("k", "o1"); status != http.StatusCreated || answer != `"placed o1"` || !replayed {
				t.Errorf("answer = %d %s, replayed %v, want a replayed 201", status, answer, replayed)
			}
			if status, _, _ := o.send("k", "o2"); status != http.StatusUnprocessableEntity {
				t.Errorf("another payload = %d, want 422", status)
			}
			if n := count(t, db, "SELECT count(*) FROM placed"); n != 1 {
				t.Errorf("%d orders were placed, want 1", n)
			}
		})
		t.Run("a process that is paused past its lease cannot place the order again", func(t *testing.T) {
			pools := testdb.OpenN(t, d, 2)
			const lease = 150 * time.Millisecond
			cfg := idempotency.HTTPConfig{Lease: lease}
			paused, next := newOrders(t, pools[0], d, cfg), newOrders(t, pools[1], d, idempotency.HTTPConfig{})
			// All that would extend the lease is stopped, as by SIGSTOP.
			entered, resume := make(chan bool), make(chan bool)
			paused.pause = func() {
				pools[0].SetMaxOpenConns(1)
				conn, err := pools[0].Conn(t.Context())
				if err != nil {
					t.Error(err)
				}
				entered <- true
				<-resume
				conn.Close()
			}
			type answer struct {
				status int
				text   string
			}
			old := make(chan answer)
			go func() {
				status, text, _ := paused.send("k", "o1")
				old <- answer{status, text}
			}()
			<-entered
			status := http.StatusConflict
			for end := time.Now().Add(time.Minute); status == http.StatusConflict && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				status, _, _ = next.send("k", "o1")
			}
			if status != http.StatusCreated {
				t.Errorf("the next owner's answer = %d, want 201", status)
			}
			close(resume)
			if a := <-old; a.status != http.StatusInternalServerError || !strings.Contains(a.text, idempotency.ErrLeaseLost.Error()) {
				t.Errorf("the old owner's answer = %d %s, want 500 with %v", a.status, a.text, idempotency.ErrLeaseLost)
			}
			if n := count(t, pools[1], "SELECT count(*) FROM placed"); n != 1 {
				t.Errorf("%d orders were placed, want 1", n)
			}
		})
	})
}
