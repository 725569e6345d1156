// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
	"github.com/dovetail-go/dovetail/outbox/outboxtest"
)

func TestMigrate(t *testing.T) {
	for _, name := range testdb.Names {
		t.Run(name, func(t *testing.T) {
			pools := testdb.OpenN(t, name, 4)
			errs := make([]error, 3*len(pools))
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() {
					store, err := outboxsql.New(pools[i%len(pools)], dialects[name], outboxsql.Config{})
					errs[i] = errors.Join(err, store.Migrate(t.Context()))
				})
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatalf("Migrate by many at once = %v, want nil", err)
			}
			t.Run("refuses another number of shards", func(t *testing.T) {
				store, err := outboxsql.New(pools[0], dialects[name], outboxsql.Config{Shards: 32})
				if err != nil {
					t.Fatal(err)
				}
				if err := store.Migrate(t.Context()); err == nil || !strings.Contains(err.Error(), "Config.Shards is 32, want 16") {
					t.Errorf("Migrate = %v, want an error about Config.Shards", err)
				}
				if _, err := store.Lease(t.Context(), outbox.LeaseRequest{Relay: "r", TTL: time.Second}); err == nil || !strings.Contains(err.Error(), "Config.Shards") {
					t.Errorf("Lease = %v, want an error about Config.Shards", err)
				}
				// What no relay would ever read is refused.
				row := outbox.Row{Shard: 31, Message: &messaging.Message{ID: "m", Topic: "t"}}
				if err := store.Insert(t.Context(), pools[0], []outbox.Row{row}); err == nil {
					t.Error("Insert into a shard that does not exist = nil, want an error")
				}
			})
		})
	}
}

func TestSchemaText(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, name string) {
		for statement := range strings.SplitSeq(outboxsql.Schema(dialects[name]), ";\n") {
			if strings.TrimSpace(statement) == "" {
				continue
			}
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
		store := open(t, db, name, outboxsql.Config{}) // finds it done
		if v, err := store.Lease(t.Context(), outbox.LeaseRequest{Relay: "r", TTL: time.Minute, Take: 16}); err != nil || len(v.Held) != 16 {
			t.Errorf("Lease = %v, %v, want 16 shards", v, err)
		}
	})
}

// Relay and application share a pool of one connection, as with SQLite.
func TestOneConnection(t *testing.T) {
	for _, name := range []string{"postgres", "mysql"} {
		t.Run(name, func(t *testing.T) {
			outboxtest.Run(t, func(t *testing.T) outboxtest.Subject {
				db := testdb.Open(t, name)
				db.SetMaxOpenConns(1)
				return outboxtest.Subject{
					Store:     open(t, db, name, outboxsql.Config{}),
					Begin:     func(ctx context.Context) (outboxtest.Tx, error) { return db.BeginTx(ctx, nil) },
					OneWriter: true,
				}
			})
		})
	}
}

// taker confirms everything.
type taker struct{ n atomic.Int64 }

func (p *taker) Publish(context.Context, ...*messaging.Message) error {
	p.n.Add(1)
	return nil
}

// fussy refuses each tenth message for good, when it comes for the first time.
type fussy struct {
	taker
	mu   sync.Mutex
	seen map[string]bool
}

func (p *fussy) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if first := !p.seen[msgs[0].ID]; first {
		p.seen[msgs[0].ID] = true
		if len(p.seen)%10 == 0 {
			return fault.Permanent(errors.New("not on a first date"))
		}
	}
	return p.taker.Publish(ctx, msgs...)
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// start runs a relay until the test ends.
func start(t *testing.T, box *outbox.Outbox, pub messaging.Publisher, cfg outbox.RelayConfig) *outbox.Relay {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = quiet
	}
	r, err := outbox.NewRelay(box, pub, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return r
}

// waits fails the test for a call of a relay that had to wait too long.
type waits struct{ t *testing.T }

func (w waits) Write(line []byte) (int, error) {
	if strings.Contains(string(line), "store call failed") {
		w.t.Errorf("a relay: %s", line)
	}
	return len(line), nil
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// With lock timeouts of a moment, whoever waits for another fails. Every isolation level: a
// claim under InnoDB's repeatable read keeps producers waiting until it commits. Rows are archived,
// parked, put back by an operator and pruned meanwhile.
func TestProducersAndRelaysNeverWaitForEachOther(t *testing.T) {
	for _, name := range []string{"postgres", "mysql"} {
		for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead} {
			t.Run(name+" "+level.String(), func(t *testing.T) {
				impatient := map[string]string{"postgres": "SET lock_timeout = 1000", "mysql": "SET innodb_lock_wait_timeout = 1"}[name]
				config := outboxsql.Config{Archive: true}
				pools := testdb.OpenN(t, name, 3) // of the relays, the producers, and the operator, who has patience
				open(t, pools[0], name, config)
				for _, db := range pools[:2] {
					// Every connection of the pool, as long as it lives.
					db.SetMaxOpenConns(6)
					db.SetMaxIdleConns(6)
					conns := make([]*sql.Conn, 6)
					for i := range conns {
						c, err := db.Conn(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						if _, err := c.ExecContext(t.Context(), impatient); err != nil {
							t.Fatal(err)
						}
						conns[i] = c
					}
					for _, c := range conns {
						c.Close()
					}
				}
				box, err := outbox.New(open(t, pools[0], name, config), outbox.Config{})
				if err != nil {
					t.Fatal(err)
				}
				producer, err := outbox.New(open(t, pools[1], name, config), outbox.Config{})
				if err != nil {
					t.Fatal(err)
				}
				operator, err := outbox.New(open(t, pools[2], name, config), outbox.Config{})
				if err != nil {
					t.Fatal(err)
				}
				pub := &fussy{seen: make(map[string]bool)}
				cfg := outbox.RelayConfig{Poll: 10 * time.Millisecond, Batch: 10, Logger: slog.New(slog.NewTextHandler(waits{t}, nil))}
				start(t, box, pub, cfg)
				start(t, box, pub, cfg)

				ctx, cancel := context.WithCancel(t.Context())
				var operating sync.WaitGroup
				defer operating.Wait()
				defer cancel()
				operating.Go(func() {
					for ctx.Err() == nil {
						_, err := operator.RetryAll(ctx)
						if _, pruned := operator.Prune(ctx, 0); ctx.Err() == nil && errors.Join(err, pruned) != nil {
							t.Errorf("the operator: %v", errors.Join(err, pruned))
							return
						}
						time.Sleep(5 * time.Millisecond)
					}
				})

				// One transaction stays open over everything, with rows in the table.
				long, err := pools[1].BeginTx(t.Context(), &sql.TxOptions{Isolation: level})
				if err != nil {
					t.Fatal(err)
				}
				defer long.Rollback()
				if err := producer.Enqueue(t.Context(), long, &messaging.Message{Topic: "t", Key: "long"}); err != nil {
					t.Fatal(err)
				}
				const writers, each = 4, 100
				var wg sync.WaitGroup
				for range writers {
					wg.Go(func() {
						for i := range each {
							tx, err := pools[1].BeginTx(t.Context(), &sql.TxOptions{Isolation: level})
							if err == nil {
								err = producer.Enqueue(t.Context(), tx, &messaging.Message{Topic: "t", Key: fmt.Sprint(i % 7)}, &messaging.Message{Topic: "t"})
								err = errors.Join(err, tx.Commit())
							}
							if err != nil {
								t.Errorf("a producer had to wait: %v", err)
								return
							}
							box.Wake()
						}
					})
				}
				wg.Wait()
				eventually(t, "all published beside the open transaction", func() bool { return pub.n.Load() >= 2*writers*each })
				if err := long.Commit(); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the late commit is published", func() bool { return pub.n.Load() >= 2*writers*each+1 })
			})
		}
	}
}

// A removal may have to wait for the lock of a row, such as that of somebody's backup. Under
// InnoDB's repeatable read it would hold the gap where it looked for a row that is gone, and
// producers would wait with it.
func TestARemovalThatWaitsHoldsUpNoProducer(t *testing.T) {
	db := testdb.Open(t, "mysql")
	store := open(t, db, "mysql", outboxsql.Config{})
	view, err := store.Lease(t.Context(), outbox.LeaseRequest{Relay: "r", TTL: time.Hour, Take: 1})
	if err != nil {
		t.Fatal(err)
	}
	shard := view.Held[0].Shard
	insert := func(tx outbox.Tx) error {
		return store.Insert(t.Context(), tx, []outbox.Row{{Shard: shard, Message: &messaging.Message{ID: "m", Topic: "t"}}})
	}
	if err := errors.Join(insert(db), insert(db)); err != nil {
		t.Fatal(err)
	}
	rows, err := store.Read(t.Context(), []outbox.Read{{Shard: shard, Limit: 2}})
	if err != nil || len(rows) != 2 {
		t.Fatalf("Read = %d rows, %v, want 2", len(rows), err)
	}
	lock := func(tx outbox.Tx, r outbox.Row) error {
		_, err := tx.ExecContext(t.Context(), fmt.Sprintf("SELECT id FROM outbox_message WHERE id = %d FOR UPDATE NOWAIT", r.ID))
		return err
	}
	holder, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback()
	if err := lock(holder, rows[1]); err != nil {
		t.Fatal(err)
	}
	settled := make(chan error, 1)
	go func() {
		gone := rows[1].ID + 1000 // where the next row is going to be
		_, err := store.Settle(t.Context(), []outbox.Settlement{{Lease: view.Held[0], IDs: []int64{gone, rows[0].ID, rows[1].ID}}})
		settled <- err
	}()
	eventually(t, "the removal has come as far as the first row", func() bool { return lock(db, rows[0]) != nil })
	producer, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	if _, err := producer.ExecContext(t.Context(), "SET innodb_lock_wait_timeout = 1"); err != nil {
		t.Fatal(err)
	}
	if err := insert(producer); err != nil {
		t.Errorf("a producer had to wait: %v", err)
	}
	if err := holder.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-settled; err != nil {
		t.Errorf("Settle = %v, want nil", err)
	}
}

// A write looks at its lease and then changes rows. A relay that got the lease in between would
// read rows that vanish under it, or publish what follows a row that is being parked.
func TestALeaseDoesNotChangeHandsDuringAWrite(t *testing.T) {
	writes := map[string]func(*outboxsql.Store, context.Context, outbox.Lease, outbox.Row) error{
		"Settle": func(s *outboxsql.Store, ctx context.Context, l outbox.Lease, r outbox.Row) error {
			_, err := s.Settle(ctx, []outbox.Settlement{{Lease: l, IDs: []int64{r.ID}, Hints: []uint64{r.Hint}}})
			return err
		},
		"Park": func(s *outboxsql.Store, ctx context.Context, l outbox.Lease, r outbox.Row) error {
			_, err := s.Park(ctx, l, outbox.Parking{ID: r.ID, Reason: "no"})
			return err
		},
	}
	for _, name := range []string{"postgres", "mysql"} { // SQLite has one writer at a time
		for what, write := range writes {
			for config, cfg := range map[string]outboxsql.Config{"": {}, " with an archive": {Archive: true}} {
				t.Run(name+", "+what+config, func(t *testing.T) {
					db := testdb.Open(t, name)
					store := open(t, db, name, cfg)
					view, err := store.Lease(t.Context(), outbox.LeaseRequest{Relay: "r", TTL: time.Hour, Take: 1})
					if err != nil {
						t.Fatal(err)
					}
					lease := view.Held[0]
					if err := store.Insert(t.Context(), db, []outbox.Row{{Shard: lease.Shard, Message: &messaging.Message{ID: "m", Topic: "t"}}}); err != nil {
						t.Fatal(err)
					}
					rows, err := store.Read(t.Context(), []outbox.Read{{Shard: lease.Shard, Limit: 1}})
					if err != nil || len(rows) != 1 {
						t.Fatalf("Read = %d rows, %v, want 1", len(rows), err)
					}
					// It waits for the row, having looked at the lease.
					holder, err := db.BeginTx(t.Context(), nil)
					if err != nil {
						t.Fatal(err)
					}
					defer holder.Rollback()
					if _, err := holder.ExecContext(t.Context(), fmt.Sprintf("SELECT id FROM outbox_message WHERE id = %d FOR UPDATE", rows[0].ID)); err != nil {
						t.Fatal(err)
					}
					written := make(chan error, 1)
					go func() { written <- write(store, t.Context(), lease, rows[0]) }()
					eventually(t, "the lease is locked", func() bool {
						_, err := db.ExecContext(t.Context(), fmt.Sprintf("SELECT shard FROM outbox_lease WHERE shard = %d FOR UPDATE NOWAIT", lease.Shard))
						return err != nil
					})
					if err := holder.Rollback(); err != nil {
						t.Fatal(err)
					}
					if err := <-written; err != nil {
						t.Errorf("%s = %v, want nil", what, err)
					}
				})
			}
		}
	}
}

// Operators who decide on different messages, or on the same one, or on all at once: one that
// comes too late is told so, and that is the only error. MySQL would roll back some of them.
func TestOperatorsAtTheSameTime(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, name string) {
		store := open(t, db, name, outboxsql.Config{})
		box, err := outbox.New(store, outbox.Config{})
		if err != nil {
			t.Fatal(err)
		}
		const messages, operators = 120, 6
		view, err := store.Lease(t.Context(), outbox.LeaseRequest{Relay: "r", TTL: time.Hour, Take: store.Shards()})
		if err != nil {
			t.Fatal(err)
		}
		lease := view.Held[0]
		var rows []outbox.Row
		for i := range messages {
			rows = append(rows, outbox.Row{Shard: lease.Shard, Message: &messaging.Message{ID: fmt.Sprint("m", i), Topic: "t", Key: fmt.Sprint(i)}})
		}
		if err := store.Insert(t.Context(), db, rows); err != nil {
			t.Fatal(err)
		}
		if rows, err = store.Read(t.Context(), []outbox.Read{{Shard: lease.Shard, Limit: messages}}); err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if lost, err := store.Park(t.Context(), lease, outbox.Parking{ID: r.ID, Reason: "no", Block: true}); lost || err != nil {
				t.Fatalf("Park = %v, %v", lost, err)
			}
		}
		var wg sync.WaitGroup
		var settled atomic.Int64
		for o := range operators {
			wg.Go(func() {
				for i := range messages {
					id, n := fmt.Sprint("m", (i+o/2)%messages), 1
					var err error
					switch {
					case o == 0 && i%20 == 10:
						n, err = box.RetryAll(t.Context())
					case o%2 == 0:
						err = box.Retry(t.Context(), id)
					default:
						err = box.Discard(t.Context(), id, "by one of many")
					}
					switch {
					case err == nil:
						settled.Add(int64(n))
					case !errors.Is(err, outbox.ErrNotParked):
						t.Errorf("operator %d: %v", o, err)
					}
				}
			})
		}
		wg.Wait()
		st, err := box.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		discarded, err := box.Discarded(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.Parked != 0 || st.Depth+len(discarded) != messages || settled.Load() != messages {
			t.Errorf("%d are parked, %d to be published and %d discarded by %d decisions, want each of %d decided once",
				st.Parked, st.Depth, len(discarded), settled.Load(), messages)
		}
	})
}

// A cursor over transaction IDs would wait for the oldest transaction of the whole server.
func TestALongUnrelatedTransactionStallsNothing(t *testing.T) {
	for _, name := range []string{"postgres", "mysql"} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Open(t, name)
			store := open(t, db, name, outboxsql.Config{})
			if _, err := db.ExecContext(t.Context(), "CREATE TABLE unrelated (id BIGINT PRIMARY KEY)"); err != nil {
				t.Fatal(err)
			}
			long, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
			if err != nil {
				t.Fatal(err)
			}
			defer long.Rollback()
			if _, err := long.ExecContext(t.Context(), "INSERT INTO unrelated (id) VALUES (1)"); err != nil {
				t.Fatal(err)
			}
			box, err := outbox.New(store, outbox.Config{})
			if err != nil {
				t.Fatal(err)
			}
			pub := &taker{}
			start(t, box, pub, outbox.RelayConfig{})
			for range 10 {
				if err := box.Enqueue(t.Context(), db, &messaging.Message{Topic: "t", Key: "k"}); err != nil {
					t.Fatal(err)
				}
			}
			box.Wake()
			eventually(t, "published beside it", func() bool { return pub.n.Load() == 10 })
		})
	}
}

// PostgreSQL keeps the plans of prepared statements. One that was made while the outbox was
// empty must not read a whole backlog each time when there is one.
func TestPlanOutlivesAnEmptyTable(t *testing.T) {
	db := testdb.Open(t, "postgres")
	db.SetMaxOpenConns(1)
	store := open(t, db, "postgres", outboxsql.Config{})
	box, err := outbox.New(store, outbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	reads := make([]outbox.Read, store.Shards())
	for i := range reads {
		reads[i] = outbox.Read{Shard: i, Limit: 100}
	}
	for range 10 { // after the fifth the server decides on a plan to keep
		if _, err := store.Read(t.Context(), reads); err != nil {
			t.Fatal(err)
		}
	}
	var name string
	if err := db.QueryRowContext(t.Context(), "SELECT name FROM pg_prepared_statements WHERE statement LIKE 'SELECT r.*%' AND generic_plans > 0").Scan(&name); err != nil {
		t.Fatalf("no plan was kept: %v", err)
	}
	messages := make([]*messaging.Message, 20_000)
	for i := range messages {
		messages[i] = &messaging.Message{Topic: "t", Key: fmt.Sprint(i)}
	}
	if err := box.Enqueue(t.Context(), db, messages...); err != nil {
		t.Fatal(err)
	}
	text := explain(t, db, "EXECUTE "+name+` ('{0,1,2}', '{0,0,0}', '{"{}","{}","{}"}', 100)`)
	if strings.Contains(text, "Sort") || strings.Contains(text, "Seq Scan on outbox_message") || !strings.Contains(text, "Index Scan using outbox_message_pkey") {
		t.Errorf("plan = %s\nwant the first rows by the index", text)
	}
}

// PostgreSQL takes a table that was vacuumed while it was empty for empty until the next time,
// and turned around the removal of what was published: each row was compared with each ID.
func TestRemovalOutlivesAnEmptyTable(t *testing.T) {
	_, dsn := testdb.OpenDSN(t, "postgres")
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	removals := &recorder{prefix: "DELETE FROM outbox_message"}
	cfg.Tracer = removals
	db := stdlib.OpenDB(*cfg)
	defer db.Close()
	db.SetMaxOpenConns(1)
	store := open(t, db, "postgres", outboxsql.Config{})
	box, err := outbox.New(store, outbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	fill := func() {
		messages := make([]*messaging.Message, 2000)
		for i := range messages {
			messages[i] = &messaging.Message{Topic: "t", Key: fmt.Sprint(i), Body: make([]byte, 1000)}
		}
		if err := box.Enqueue(t.Context(), db, messages...); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	for _, statement := range []string{"DELETE FROM outbox_message", "VACUUM (ANALYZE, TRUNCATE off) outbox_message"} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	view, err := store.Lease(t.Context(), outbox.LeaseRequest{Relay: "r", TTL: time.Hour, Take: 1})
	if err != nil || len(view.Held) != 1 {
		t.Fatalf("Lease = %+v, %v, want one", view, err)
	}
	for _, test := range []struct {
		name  string
		hints bool
		want  string
	}{
		{"where the rows are", true, "Tid Scan on outbox_message m"},
		{"by the index", false, "Index Cond: ((shard = d.shard) AND (id = d.id))"},
	} {
		rows, err := store.Read(t.Context(), []outbox.Read{{Shard: view.Held[0].Shard, Limit: 20}})
		if err != nil || len(rows) != 20 {
			t.Fatalf("Read = %d rows, %v, want 20", len(rows), err)
		}
		settlement := outbox.Settlement{Lease: view.Held[0]}
		for _, r := range rows {
			settlement.IDs = append(settlement.IDs, r.ID)
			if test.hints {
				settlement.Hints = append(settlement.Hints, r.Hint)
			}
		}
		removals.statements = nil
		if lost, err := store.Settle(t.Context(), []outbox.Settlement{settlement}); err != nil || len(lost) != 0 {
			t.Fatalf("Settle = %v, %v, want nothing lost", lost, err)
		}
		if len(removals.statements) != 1 {
			t.Fatalf("statements of the removal %s: %q, want one", test.name, removals.statements)
		}
		plan := explain(t, db, removals.statements[0])
		if !strings.Contains(plan, test.want) || strings.Contains(plan, "Join Filter") || strings.Contains(plan, "Seq Scan on outbox_message") ||
			test.hints && strings.Contains(plan, "outbox_message_pkey") {
			t.Errorf("removal %s: plan = %s\nwant %q", test.name, plan, test.want)
		}
		// Only the removal's own transaction does not wait for the disk.
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(t.Context(), removals.statements[0]); err != nil {
			t.Fatal(err)
		}
		if got := synchronousCommit(t, tx); got != "off" {
			t.Errorf("synchronous_commit = %s during the removal, want off", got)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		if got := synchronousCommit(t, db); got != "on" {
			t.Errorf("synchronous_commit = %s after the removal, want on", got)
		}
	}
}

// Rewriting the table moves the rows that a relay has read: they are removed all the same.
func TestRowsThatMovedAreRemoved(t *testing.T) {
	db := testdb.Open(t, "postgres")
	store := open(t, db, "postgres", outboxsql.Config{Shards: 1, Archive: true})
	box, err := outbox.New(store, outbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		if err := box.Enqueue(t.Context(), db, &messaging.Message{Topic: "t", Key: "k", Body: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	view, err := store.Lease(t.Context(), outbox.LeaseRequest{Relay: "r", TTL: time.Hour, Take: 1})
	if err != nil || len(view.Held) != 1 {
		t.Fatalf("Lease = %+v, %v, want one", view, err)
	}
	rows, err := store.Read(t.Context(), []outbox.Read{{Limit: 100}})
	if err != nil || len(rows) != 30 {
		t.Fatalf("Read = %d rows, %v, want 30", len(rows), err)
	}
	settle := func(rows []outbox.Row) {
		t.Helper()
		settlement := outbox.Settlement{Lease: view.Held[0]}
		for _, r := range rows {
			settlement.IDs, settlement.Hints = append(settlement.IDs, r.ID), append(settlement.Hints, r.Hint)
		}
		if lost, err := store.Settle(t.Context(), []outbox.Settlement{settlement}); err != nil || len(lost) != 0 {
			t.Fatalf("Settle = %v, %v, want nothing lost", lost, err)
		}
	}
	settle(rows[:10])
	db.SetMaxOpenConns(1)
	for _, statement := range []string{
		"CREATE TEMPORARY TABLE copy AS SELECT * FROM outbox_message", "TRUNCATE outbox_message", "INSERT INTO outbox_message SELECT * FROM copy ORDER BY id",
	} {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	// Where the eleventh was is another row now.
	settle(rows[10:20])
	left, err := store.Read(t.Context(), []outbox.Read{{Limit: 100}})
	if err != nil || len(left) != 10 {
		t.Fatalf("Read = %d rows, %v, want 10", len(left), err)
	}
	for i, r := range left {
		if r.ID != rows[20+i].ID || r.Hint == rows[20+i].Hint {
			t.Errorf("row %d is %d at %d, want %d somewhere else than at %d", i, r.ID, r.Hint, rows[20+i].ID, rows[20+i].Hint)
		}
	}
	var archived int
	if err := db.QueryRowContext(t.Context(), "SELECT COUNT(DISTINCT id) FROM outbox_archive").Scan(&archived); err != nil || archived != 20 {
		t.Errorf("%d rows are archived, %v, want 20", archived, err)
	}
}

// recorder keeps the statements that begin in a certain way.
type recorder struct {
	prefix     string
	statements []string
}

func (r *recorder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.HasPrefix(data.SQL, r.prefix) {
		r.statements = append(r.statements, data.SQL)
	}
	return ctx
}

func (*recorder) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func synchronousCommit(t *testing.T, q interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}) (setting string) {
	t.Helper()
	if err := q.QueryRowContext(t.Context(), "SHOW synchronous_commit").Scan(&setting); err != nil {
		t.Fatal(err)
	}
	return setting
}

// explain returns the plan of a statement.
func explain(t *testing.T, db *sql.DB, statement string) string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), "EXPLAIN "+statement)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var plan []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		plan = append(plan, line)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(plan, "\n")
}
