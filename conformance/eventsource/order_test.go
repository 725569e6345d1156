// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcesql"
	"github.com/dovetail-go/dovetail/messaging"
)

func beginTx(t *testing.T, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

// put appends one event and returns its ID.
func put(t *testing.T, store *eventsourcesql.Store, tx eventsource.Tx, stream string, want eventsource.Expect) string {
	t.Helper()
	e := eventsource.Event{ID: messaging.NewID(), Type: "t.v1", Time: time.Now()}
	if err := store.Append(t.Context(), tx, stream, want, []eventsource.Event{e}); err != nil {
		t.Fatalf("Append = %v", err)
	}
	return e.ID
}

// seen returns the IDs that a reader sees after a cursor.
func seen(t *testing.T, store *eventsourcesql.Store, after eventsource.Cursor) (ids []string, last eventsource.Page) {
	t.Helper()
	for {
		page, err := store.ReadAll(t.Context(), after, eventsource.Filter{}, 100)
		if err != nil {
			t.Fatalf("ReadAll = %v", err)
		}
		for _, e := range page.Events {
			ids = append(ids, e.ID)
		}
		if after = page.Next; !page.More {
			return ids, page
		}
	}
}

// A transaction that writes other tables, here or in another database of the server, holds
// up a horizon of transaction IDs, but not ours: for as long as it is open, what is appended is read
// and projected at once. With DOVETAIL_CHAOS=long it is open for a minute.
func TestUnrelatedTransactionStallsNothing(t *testing.T) {
	var minute time.Duration
	if os.Getenv("DOVETAIL_CHAOS") == "long" {
		minute = time.Minute
	}
	testdb.Each(t, func(t *testing.T, db *sql.DB, name string) {
		store := open(t, db, name, eventsourcesql.Config{})
		models := openModels(t, db, name)
		makeTally(t, db, 1)
		log := newLog(t, store)
		counters := newCounters(t, log, db)
		start(t, newProjector(t, log, models, tally("tally", dialects[name], 1, 1), eventsource.ProjectorConfig{}))
		if name != "sqlite" { // which has one writer at a time
			writing(t, db)
		}
		if name == "postgres" {
			elsewhere(t)
		} else {
			writing(t, testdb.Open(t, name))
		}
		began := time.Now()
		n := 0
		for ; n < 3 || time.Since(began) < minute; n++ {
			stream := fmt.Sprint("s", n%7)
			if _, err := counters.Do(t.Context(), stream, count{}); err != nil {
				t.Fatalf("Do = %v", err)
			}
			waitFor(t, log, models, "tally", stream)
			if h, err := store.Horizon(t.Context()); err != nil || h.Open != 0 || h.Age != 0 || h.Cursor != h.Head {
				t.Fatalf("Horizon = %+v, %v, want nothing open", h, err)
			}
		}
		t.Logf("%d events beside transactions that were open for %v", n, time.Since(began).Round(time.Millisecond))
	})
}

// writing leaves a transaction open that writes another table.
func writing(t *testing.T, db *sql.DB) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE unrelated (id INTEGER)"); err != nil {
		t.Fatal(err)
	}
	if _, err := beginTx(t, db).ExecContext(t.Context(), "INSERT INTO unrelated VALUES (1)"); err != nil {
		t.Fatal(err)
	}
}

// elsewhere leaves a transaction open that writes in another database of PostgreSQL, and
// shows that it holds the horizon of transaction IDs.
func elsewhere(t *testing.T) {
	t.Helper()
	cfg, err := pgx.ParseConfig(os.Getenv("DOVETAIL_POSTGRES_DSN"))
	if err != nil {
		t.Fatal(err)
	}
	admin := stdlib.OpenDB(*cfg)
	t.Cleanup(func() { admin.Close() })
	name := "dovetail_other_" + fmt.Sprint(rand.Uint32())
	if _, err := admin.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatalf("CREATE DATABASE = %v", err)
	}
	t.Cleanup(func() {
		_, _ = admin.ExecContext(context.WithoutCancel(t.Context()), "DROP DATABASE "+name+" WITH (FORCE)")
	})
	cfg.Database = name
	db := stdlib.OpenDB(*cfg)
	t.Cleanup(func() { db.Close() })
	tx := beginTx(t, db)
	if _, err := tx.ExecContext(t.Context(), "CREATE TABLE unrelated (id INTEGER)"); err != nil {
		t.Fatal(err)
	}
	var xid, oldest int64
	if err := tx.QueryRowContext(t.Context(), "SELECT pg_current_xact_id()::text::bigint").Scan(&xid); err != nil {
		t.Fatal(err)
	}
	if err := admin.QueryRowContext(t.Context(), "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint").Scan(&oldest); err != nil {
		t.Fatal(err)
	}
	if oldest > xid {
		t.Fatalf("the server's horizon is %d, want it held at %d", oldest, xid)
	}
}

// In PostgreSQL an append that is left open makes the events behind it wait, exactly those,
// and its age shows.
func TestOpenAppendHoldsWhatIsBehindIt(t *testing.T) {
	db := testdb.Open(t, "postgres")
	store := open(t, db, "postgres", eventsourcesql.Config{})
	before := []string{put(t, store, db, "a", eventsource.None), put(t, store, db, "b", eventsource.None)}
	tx := beginTx(t, db)
	held := put(t, store, tx, "held", eventsource.None)
	behind := []string{put(t, store, db, "a", eventsource.At(1)), put(t, store, db, "c", eventsource.None)}
	ids, page := seen(t, store, 0)
	if fmt.Sprint(ids) != fmt.Sprint(before) || !page.Waiting {
		t.Errorf("ReadAll = %q, waiting %v, want %q, true", ids, page.Waiting, before)
	}
	// Its own stream can be read, and appended to, by everybody meanwhile.
	if got, err := store.Read(t.Context(), "a", 0, 10); err != nil || len(got) != 2 {
		t.Errorf("Read = %d events, %v, want 2", len(got), err)
	}
	var last time.Duration
	for range 3 {
		h, err := store.Horizon(t.Context())
		if err != nil || h.Open != 1 || h.Age <= last || h.Head != h.Cursor+3 {
			t.Fatalf("Horizon = %+v, %v, want one open append, older than %v, three numbers ahead", h, err, last)
		}
		last = h.Age
	}
	// A prepared transaction would hold its lock without a session; a savepoint that is
	// rolled back gives lock and rows up together.
	later := beginTx(t, db)
	for _, statement := range []string{"SAVEPOINT s", "", "ROLLBACK TO SAVEPOINT s"} {
		if statement == "" {
			put(t, store, later, "undone", eventsource.None)
		} else if _, err := later.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if h, err := store.Horizon(t.Context()); err != nil || h.Open != 1 {
		t.Errorf("Horizon = %+v, %v, want still one open append", h, err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	rest, page := seen(t, store, page.Next)
	if want := append([]string{held}, behind...); fmt.Sprint(rest) != fmt.Sprint(want) || page.Waiting {
		t.Errorf("ReadAll after the commit = %q, waiting %v, want %q, false", rest, page.Waiting, want)
	}
	if h, err := store.Horizon(t.Context()); err != nil || h.Open != 0 || h.Age != 0 || h.Cursor != h.Head {
		t.Errorf("Horizon = %+v, %v, want nothing open", h, err)
	}
}

// In MySQL an open append holds up nobody: places are given after the commit.
func TestOpenAppendHoldsNobodyInMySQL(t *testing.T) {
	db := testdb.Open(t, "mysql")
	store := open(t, db, "mysql", eventsourcesql.Config{})
	tx := beginTx(t, db)
	held := put(t, store, tx, "held", eventsource.None)
	behind := put(t, store, db, "a", eventsource.None)
	ids, page := seen(t, store, 0)
	if fmt.Sprint(ids) != fmt.Sprint([]string{behind}) {
		t.Errorf("ReadAll = %q, want %q", ids, behind)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if ids, _ := seen(t, store, page.Next); fmt.Sprint(ids) != fmt.Sprint([]string{held}) {
		t.Errorf("ReadAll after the commit = %q, want %q", ids, held)
	}
}

// A reader that asks for what is above the last number it saw loses what commits late. SQLite has
// one writer at a time, whose numbers are committed in their order, so there it loses nothing.
func TestNaiveReaderLosesEvents(t *testing.T) {
	number := map[string]string{"postgres": "position", "mysql": "id", "sqlite": "position"}
	for _, name := range testdb.Names {
		t.Run(name, func(t *testing.T) {
			const writers = 12
			each := 40
			if os.Getenv("DOVETAIL_CHAOS") == "long" {
				each = 2000
			}
			db := testdb.Open(t, name)
			store := open(t, db, name, eventsourcesql.Config{})
			ctx, stop := context.WithCancel(t.Context())
			naive, ours := make(map[string]int), make(map[string]int)
			errs := make([]error, 2+writers)
			var readers, all sync.WaitGroup
			last := int64(0)
			look := func() error {
				rows, err := db.QueryContext(t.Context(), "SELECT "+number[name]+", event_id FROM eventsource_event WHERE "+number[name]+" > "+fmt.Sprint(last)+" ORDER BY 1")
				if err != nil {
					return err
				}
				defer rows.Close()
				for rows.Next() {
					var id string
					if err := rows.Scan(&last, &id); err != nil {
						return err
					}
					naive[id]++
				}
				return rows.Err()
			}
			total := writers * each
			if name != "sqlite" {
				// One that is lost for certain, whatever the scheduler does.
				late := beginTx(t, db)
				put(t, store, late, "late", eventsource.None)
				put(t, store, db, "early", eventsource.None)
				if err := errors.Join(look(), late.Commit()); err != nil {
					t.Fatal(err)
				}
				total += 2
			}
			readers.Go(func() { errs[0] = poll(ctx, look) })
			readers.Go(func() {
				after := eventsource.Cursor(0)
				errs[1] = poll(ctx, func() error {
					for {
						page, err := store.ReadAll(t.Context(), after, eventsource.Filter{}, 50)
						if err != nil {
							return err
						}
						for _, e := range page.Events {
							ours[e.ID]++
						}
						if after = page.Next; !page.More {
							return nil
						}
					}
				})
			})
			for w := range writers {
				all.Go(func() {
					for i := range each {
						tx, err := db.BeginTx(t.Context(), nil)
						if err == nil {
							e := eventsource.Event{ID: messaging.NewID(), Type: "t.v1", Time: time.Now()}
							err = store.Append(t.Context(), tx, fmt.Sprintf("s-%d-%d", w, i), eventsource.None, []eventsource.Event{e})
							if err == nil && w%2 == 0 && name != "sqlite" {
								time.Sleep(time.Duration(rand.IntN(4)) * time.Millisecond) // other work of the transaction
							}
							err = errors.Join(err, tx.Commit())
						}
						errs[2+w] = errors.Join(errs[2+w], err)
					}
				})
			}
			all.Wait()
			stop()
			readers.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			t.Logf("of %d events a naive reader saw %d, ours %d", total, len(naive), len(ours))
			if len(ours) != total {
				t.Errorf("ours saw %d of %d events", len(ours), total)
			}
			for id, n := range ours {
				if n != 1 {
					t.Errorf("ours saw %s %d times", id, n)
				}
			}
			if loses := name != "sqlite"; loses != (len(naive) < total) {
				t.Errorf("a naive reader saw %d of %d events, want it to lose some: %v", len(naive), total, loses)
			}
		})
	}
}

// poll calls look until ctx ends, and once more after that.
func poll(ctx context.Context, look func() error) error {
	for {
		last := ctx.Err() != nil
		if err := look(); err != nil || last {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}
