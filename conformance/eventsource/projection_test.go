// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcesql"
	"github.com/dovetail-go/dovetail/fault"
)

// A counter's events are its numbers, so that each event says which it must be.
type counted struct{ N int64 }

type count struct{}

func counterCodec() *eventsource.Codec {
	c, err := eventsource.NewCodec(eventsource.Type[counted]("counted.v1"))
	if err != nil {
		panic(err)
	}
	return c
}

var counter = eventsource.Decider[int64, count, counted]{
	Zero:   func() int64 { return 0 },
	Decide: func(n int64, _ count) ([]counted, error) { return []counted{{n + 1}}, nil },
	Evolve: func(_ int64, e counted) int64 { return e.N },
}

// tally is a projection that refuses an event which is not the next of its stream.
func tally(name string, d eventsourcesql.Dialect, revision, shards int) eventsource.Projection[*sql.Tx] {
	table := fmt.Sprint("tally_", revision)
	return eventsource.Projection[*sql.Tx]{
		Name: name, Revision: revision, Shards: shards, Filter: eventsource.Filter{Types: counterCodec().Types()},
		Handle: eventsource.Typed(counterCodec(), func(ctx context.Context, tx *sql.Tx, e counted, r eventsource.Recorded) error {
			statement, args := "UPDATE "+table+" SET n = n + 1, version = ? WHERE stream = ? AND version = ? AND n = ?", []any{r.Version, r.Stream, r.Version - 1, e.N - 1}
			if r.Version == 1 {
				statement, args = "INSERT INTO "+table+" (stream, version, n) VALUES (?, 1, 1)", []any{r.Stream}
			}
			res, err := tx.ExecContext(ctx, d.Rebind(statement), args...)
			if err != nil {
				return err
			}
			if n, err := res.RowsAffected(); err != nil || n != 1 {
				return fault.Permanent(fmt.Errorf("event %d of %s is twice, lost or out of order (%w)", r.Version, r.Stream, err))
			}
			return nil
		}),
	}
}

func makeTally(t *testing.T, db *sql.DB, revision int) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), fmt.Sprintf("CREATE TABLE tally_%d (stream VARCHAR(255) NOT NULL PRIMARY KEY, version BIGINT NOT NULL, n BIGINT NOT NULL)", revision)); err != nil {
		t.Fatal(err)
	}
}

// tallies returns a read model.
func tallies(ctx context.Context, db *sql.DB, revision int) (map[string]int64, error) {
	rows, err := db.QueryContext(ctx, fmt.Sprintf("SELECT stream, n FROM tally_%d", revision))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	m := make(map[string]int64)
	for rows.Next() {
		var stream string
		var n int64
		if err := rows.Scan(&stream, &n); err != nil {
			return nil, err
		}
		m[stream] = n
	}
	return m, rows.Err()
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func newLog(t *testing.T, store eventsource.Store) *eventsource.Log {
	t.Helper()
	log, err := eventsource.New(store, eventsource.Config{Poll: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return log
}

func newCounters(t *testing.T, log *eventsource.Log, db *sql.DB) *eventsource.Repository[int64, count, counted] {
	t.Helper()
	r, err := eventsource.NewRepository(log, begin(db), counterCodec(), counter, eventsource.RepositoryConfig{Attempts: 10_000, SnapshotEvery: 50})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// start runs a projector until the test ends or stop is called.
func start(t *testing.T, p *eventsource.Projector[*sql.Tx]) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func newProjector(t *testing.T, log *eventsource.Log, m *eventsourcesql.Models, p eventsource.Projection[*sql.Tx], cfg eventsource.ProjectorConfig) *eventsource.Projector[*sql.Tx] {
	t.Helper()
	cfg.Logger = quiet
	projector, err := eventsource.NewProjector(log, m, p, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return projector
}

// waitFor waits for the active revision to have everything of these streams.
func waitFor(t *testing.T, log *eventsource.Log, m *eventsourcesql.Models, name string, streams ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, stream := range streams {
		_, at, err := log.End(ctx, stream)
		if err == nil {
			err = eventsource.WaitFor(ctx, m, name, at)
		}
		if err != nil {
			t.Fatalf("WaitFor = %v", err)
		}
	}
}

// The test binary starts itself again as a projector, told by these variables.
const (
	envDialect = "DOVETAIL_TEST_EVENTSOURCE_DIALECT"
	envDSN     = "DOVETAIL_TEST_EVENTSOURCE_DSN"
)

func TestMain(m *testing.M) {
	if os.Getenv(envDialect) == "" {
		os.Exit(m.Run())
	}
	if err := work(os.Getenv(envDialect), os.Getenv(envDSN)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// work projects until the process is killed.
func work(name, dsn string) error {
	db, err := sql.Open(map[string]string{"sqlite": "sqlite", "postgres": "pgx", "mysql": "mysql"}[name], dsn)
	if err != nil {
		return err
	}
	if name == "sqlite" {
		db.SetMaxOpenConns(1)
	}
	store, err := eventsourcesql.New(db, dialects[name], eventsourcesql.Config{})
	if err != nil {
		return err
	}
	models, err := eventsourcesql.NewModels(db, dialects[name], eventsourcesql.Config{})
	if err != nil {
		return err
	}
	log, err := eventsource.New(store, eventsource.Config{Poll: 2 * time.Millisecond})
	if err != nil {
		return err
	}
	p, err := eventsource.NewProjector(log, models, tally("tally", dialects[name], 1, 2), eventsource.ProjectorConfig{Batch: 7, Lease: 200 * time.Millisecond})
	if err != nil {
		return err
	}
	return p.Run(context.Background())
}

// Sixteen writers on one stream, and a projector whose process is killed at random. Each version is there
// once, and applied once in its order. DOVETAIL_CHAOS=long writes 100 times as much.
func TestWritersOnOneStreamAndAKilledProjector(t *testing.T) {
	for _, name := range testdb.Names {
		t.Run(name, func(t *testing.T) {
			const writers = 16
			each := 6
			if os.Getenv("DOVETAIL_CHAOS") == "long" {
				each = 600
			}
			db, dsn := testdb.OpenDSN(t, name)
			store := open(t, db, name, eventsourcesql.Config{})
			models := openModels(t, db, name)
			makeTally(t, db, 1)
			var conflicts atomic.Int64
			log, err := eventsource.New(store, eventsource.Config{Hooks: eventsource.Hooks{Conflicted: func(eventsource.Conflicted) { conflicts.Add(1) }}})
			if err != nil {
				t.Fatal(err)
			}
			counters := newCounters(t, log, db)

			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var kills atomic.Int64
			var output bytes.Buffer
			killed := make(chan error, 1)
			go func() {
				for i := range 1 << 30 {
					cmd := exec.CommandContext(ctx, os.Args[0])
					cmd.Env = append(os.Environ(), envDialect+"="+name, envDSN+"="+dsn)
					cmd.Stderr = &output
					if err := cmd.Start(); err != nil {
						killed <- err
						return
					}
					select {
					case <-ctx.Done():
					case <-time.After(time.Duration(50+rand.IntN(200+10*i)) * time.Millisecond): // at last longer than its start takes
						kills.Add(1)
					}
					_ = cmd.Process.Kill() // SIGKILL
					_ = cmd.Wait()
					if ctx.Err() != nil {
						killed <- nil
						return
					}
				}
			}()
			errs := make([]error, writers)
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for range each {
						if _, err := counters.Do(t.Context(), "one", count{}); err != nil {
							errs[w] = errors.Join(errs[w], err)
						}
						if _, err := counters.Do(t.Context(), fmt.Sprint("own-", w), count{}); err != nil {
							errs[w] = errors.Join(errs[w], err)
						}
					}
				})
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			total := int64(writers * each)
			for ; kills.Load() < 3; total++ {
				if _, err := counters.Do(t.Context(), "one", count{}); err != nil {
					t.Fatal(err)
				}
			}
			streams := []string{"one"}
			for w := range writers {
				streams = append(streams, fmt.Sprint("own-", w))
			}
			waitFor(t, log, models, "tally", streams...)
			stop()
			if err := <-killed; err != nil {
				t.Fatalf("the projector = %v", err)
			}
			got, err := tallies(t.Context(), db, 1)
			if err != nil {
				t.Fatal(err)
			}
			for i, stream := range streams {
				want := int64(each)
				if i == 0 {
					want = total
				}
				if v, _, err := log.End(t.Context(), stream); err != nil || v != want || got[stream] != want {
					t.Errorf("%s has %d versions (%v) and %d in the read model, want %d: %s", stream, v, err, got[stream], want, output.String())
				}
			}
			t.Logf("%d events, %d conflicts, %d kills", int(total)+writers*each, conflicts.Load(), kills.Load())
		})
	}
}

// A new revision is built from the first event while the old one serves and the writers go on. In
// the end both are the same.
func TestRebuildWhileServing(t *testing.T) {
	for _, name := range testdb.Names {
		t.Run(name, func(t *testing.T) {
			db := testdb.Open(t, name)
			log := newLog(t, open(t, db, name, eventsourcesql.Config{}))
			models := openModels(t, db, name)
			counters := newCounters(t, log, db)
			write := func(n int) {
				for i := range n {
					if _, err := counters.Do(t.Context(), fmt.Sprint("s", i%7), count{}); err != nil {
						t.Fatal(err)
					}
				}
			}
			makeTally(t, db, 1)
			makeTally(t, db, 2)
			write(60)
			start(t, newProjector(t, log, models, tally("tally", dialects[name], 1, 1), eventsource.ProjectorConfig{Batch: 10, Lease: time.Second}))
			waitFor(t, log, models, "tally", "s0", "s1", "s2", "s3", "s4", "s5", "s6")

			// A reader that asks for the active revision, and never sees one that is half built.
			ctx, stop := context.WithCancel(t.Context())
			reads := make(chan error, 1)
			var served [3]atomic.Int64
			go func() {
				reads <- func() error {
					for ctx.Err() == nil {
						revision, err := models.Active(t.Context(), "tally")
						if err != nil {
							return err
						}
						m, err := tallies(t.Context(), db, revision)
						if err != nil {
							return err
						}
						if m["s0"] < 9 || len(m) != 7 {
							return fmt.Errorf("revision %d serves %v, want what there was at the start", revision, m)
						}
						served[revision].Add(1)
					}
					return nil
				}()
			}()
			second := newProjector(t, log, models, tally("tally", dialects[name], 2, 3), eventsource.ProjectorConfig{Batch: 10, Lease: time.Second})
			start(t, second)
			deadline := time.Now().Add(time.Minute)
			for {
				write(7)
				st, err := second.Stats(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if st.Serves && served[1].Load() > 0 && served[2].Load() > 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("after a minute: %+v", st)
				}
			}
			stop()
			if err := <-reads; err != nil {
				t.Errorf("a reader meanwhile: %v", err)
			}
			all := []string{"s0", "s1", "s2", "s3", "s4", "s5", "s6"}
			waitFor(t, log, models, "tally", all...)
			if _, err := models.Activate(t.Context(), eventsource.ProjectionID{Name: "tally", Revision: 1}, true); err != nil {
				t.Fatal(err)
			}
			waitFor(t, log, models, "tally", all...)
			one, err1 := tallies(t.Context(), db, 1)
			two, err2 := tallies(t.Context(), db, 2)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(one) != fmt.Sprint(two) || len(one) != 7 {
				t.Errorf("the live read model is %v, the rebuilt one %v, want them equal", one, two)
			}
			if st, err := second.Stats(t.Context()); err != nil || st.Behind != 0 || st.Parked != 0 || len(st.Shards) != 3 || st.Cursor != st.Head {
				t.Errorf("Stats = %+v, %v, want nothing behind in 3 shards", st, err)
			}
		})
	}
}

// A projector that is stopped in the middle of a batch keeps its transaction open. Its shards are
// taken over when its leases have run out, but for the one of that batch, and nobody waits for
// that one.
func TestOpenBatchHoldsUpNobody(t *testing.T) {
	for _, name := range []string{"postgres", "mysql"} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Open(t, name)
			m, id := openModels(t, db, name), eventsource.ProjectionID{Name: "p", Revision: 1}
			lease := func(owner string, take int) eventsource.ProjectionView {
				t.Helper()
				// Longer than a lock is waited for.
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				v, err := m.Lease(ctx, eventsource.ProjectionLease{ID: id, Shards: 4, Owner: owner, TTL: time.Hour, Take: take})
				if err != nil {
					t.Fatalf("Lease of %s = %v", owner, err)
				}
				return v
			}
			if v := lease("stopped", 4); len(v.Held) != 4 {
				t.Fatalf("Lease = %+v, want 4 shards", v)
			}
			if _, err := db.ExecContext(t.Context(), "UPDATE eventsource_shard SET expires = 1"); err != nil {
				t.Fatal(err)
			}
			tx := beginTx(t, db)
			if ok, err := m.Advance(t.Context(), tx, id, 2, 1, 0, 5); !ok || err != nil {
				t.Fatalf("Advance = %v, %v", ok, err)
			}
			held := func(v eventsource.ProjectionView) (numbers []int) {
				for _, s := range v.Held {
					numbers = append(numbers, s.Shard)
				}
				return numbers
			}
			if got := held(lease("other", 4)); fmt.Sprint(got) != "[0 1 3]" {
				t.Errorf("Lease gives %v, want all shards but 2, whose batch is open", got)
			}
			if got := held(lease("other", 0)); fmt.Sprint(got) != "[0 1 3]" {
				t.Errorf("Lease renews %v, want the same", got)
			}
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
			if got := held(lease("other", 1)); len(got) != 4 {
				t.Errorf("Lease after the batch gives %v, want all shards", got)
			}
		})
	}
}

// The read model may be in another database, of another dialect.
func TestReadModelElsewhere(t *testing.T) {
	for from, to := range map[string]string{"postgres": "sqlite", "mysql": "postgres", "sqlite": "mysql"} {
		t.Run(from+" to "+to, func(t *testing.T) {
			db, readDB := testdb.Open(t, from), testdb.Open(t, to)
			log := newLog(t, open(t, db, from, eventsourcesql.Config{}))
			models := openModels(t, readDB, to)
			counters := newCounters(t, log, db)
			makeTally(t, readDB, 1)
			// Two replicas share four shards.
			for range 2 {
				start(t, newProjector(t, log, models, tally("tally", dialects[to], 1, 4), eventsource.ProjectorConfig{Lease: time.Second}))
			}
			streams := make([]string, 20)
			for i := range streams {
				streams[i] = fmt.Sprint("s", i)
				for range 1 + i%3 {
					if _, err := counters.Do(t.Context(), streams[i], count{}); err != nil {
						t.Fatal(err)
					}
				}
			}
			waitFor(t, log, models, "tally", streams...)
			got, err := tallies(t.Context(), readDB, 1)
			if err != nil {
				t.Fatal(err)
			}
			for i, stream := range streams {
				if got[stream] != int64(1+i%3) {
					t.Errorf("%s = %d, want %d", stream, got[stream], 1+i%3)
				}
			}
		})
	}
}

func deadlineFor(t *testing.T, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within a minute")
		}
	}
}
