// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox_test

import (
	"context"
	"database/sql"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

const (
	migrateName = "OUTBOX_MIGRATE_DATABASE"
	migrateDSN  = "OUTBOX_MIGRATE_DSN"
)

// TestMigrateProcess is a process of TestUpgrade: a replica that starts.
func TestMigrateProcess(t *testing.T) {
	name := os.Getenv(migrateName)
	if name == "" {
		t.Skip("only as a process of TestUpgrade")
	}
	db, err := sql.Open(map[string]string{"sqlite": "sqlite", "postgres": "pgx", "mysql": "mysql"}[name], os.Getenv(migrateDSN))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	open(t, db, name, outboxsql.Config{})
}

// A database of version 1, made by the text of that version and with rows in it, is brought
// up to date by several processes at once, and loses nothing. Replicas of version 1 go on
// working on it.
func TestUpgrade(t *testing.T) {
	for _, name := range testdb.Names {
		t.Run(name, func(t *testing.T) {
			db, dsn := testdb.OpenDSN(t, name)
			exec1 := func(statement string) {
				t.Helper()
				if _, err := db.ExecContext(t.Context(), statement); err != nil {
					t.Fatalf("%s: %v", statement, err)
				}
			}
			text, err := os.ReadFile("testdata/v1." + name + ".sql")
			if err != nil {
				t.Fatal(err)
			}
			for statement := range strings.SplitSeq(string(text), ";\n") {
				if strings.TrimSpace(statement) != "" {
					exec1(statement)
				}
			}
			// As version 1 writes them.
			const columns = "shard, message_id, topic, message_key, message_type, happened, header, body, enqueued"
			enqueue := func(id string) {
				exec1("INSERT INTO outbox_message (" + columns + ") VALUES (3, '" + id + "', 'topic', 'key', 'type', 1, '{\"a\":\"b\"}', 'body', 1)")
			}
			enqueue("waits")
			exec1("INSERT INTO outbox_parked (id, " + columns + ", reason, attempts, parked, blocks, discarded, discard_reason)" +
				" VALUES (77, 4, 'parked', 'topic', 'other', '', 1, '', 'body', 1, 'poison', 20, 1, 1, 0, '')")

			replicas := make([]*exec.Cmd, 4)
			for i := range replicas {
				replicas[i] = exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMigrateProcess$", "-test.v")
				replicas[i].Env = append(os.Environ(), migrateName+"="+name, migrateDSN+"="+dsn)
				replicas[i].Stdout = new(strings.Builder)
				replicas[i].Stderr = replicas[i].Stdout
				if err := replicas[i].Start(); err != nil {
					t.Fatal(err)
				}
			}
			for _, c := range replicas {
				if err := c.Wait(); err != nil {
					t.Errorf("a replica that starts: %v\n%s", err, c.Stdout)
				}
			}
			enqueue("from an old replica")

			box, err := outbox.New(open(t, db, name, outboxsql.Config{Archive: true}), outbox.Config{})
			if err != nil {
				t.Fatal(err)
			}
			if list, err := box.Parked(t.Context()); err != nil || len(list) != 1 || list[0].Message.ID != "parked" || list[0].Reason != "poison" {
				t.Fatalf("Parked = %v, %v, want what was parked in version 1", list, err)
			}
			if err := box.Retry(t.Context(), "parked"); err != nil {
				t.Fatal(err)
			}
			start(t, box, &taker{}, outbox.RelayConfig{Poll: 10 * time.Millisecond})
			eventually(t, "all is published", func() bool {
				st, err := box.Stats(t.Context())
				return err == nil && st.Depth == 0
			})
			if got, want := archived(t, db), []string{"waits", "from an old replica", "parked"}; !slices.Equal(got, want) {
				t.Errorf("archive = %q, want %q", got, want)
			}
		})
	}
}

// archived lists the IDs of the archived messages.
func archived(t *testing.T, db *sql.DB) (ids []string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), "SELECT message_id FROM outbox_archive ORDER BY id")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestArchive(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, name string) {
		store := open(t, db, name, outboxsql.Config{Archive: true})
		box, err := outbox.New(store, outbox.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if err := box.Enqueue(t.Context(), db, &messaging.Message{ID: "a", Topic: "t", Key: "k", Header: messaging.Header{"h": "v"}, Body: []byte("body")}); err != nil {
			t.Fatal(err)
		}
		view, err := store.Lease(t.Context(), outbox.LeaseRequest{Relay: "r", TTL: time.Minute, Take: store.Shards()})
		if err != nil {
			t.Fatal(err)
		}
		reads := make([]outbox.Read, len(view.Held))
		for i, l := range view.Held {
			reads[i] = outbox.Read{Shard: l.Shard, Limit: 10}
		}
		rows, err := store.Read(t.Context(), reads)
		if err != nil || len(rows) != 1 {
			t.Fatalf("Read = %v, %v, want one row", rows, err)
		}
		settle := func(epoch int64) []int {
			t.Helper()
			lost, err := store.Settle(t.Context(), []outbox.Settlement{{Lease: outbox.Lease{Shard: rows[0].Shard, Epoch: epoch}, IDs: []int64{rows[0].ID}}})
			if err != nil {
				t.Fatal(err)
			}
			return lost
		}
		prune := func(ctx context.Context, age time.Duration, want int) {
			t.Helper()
			if n, err := box.Prune(ctx, age); err != nil || n != want {
				t.Errorf("Prune(%v) = %d, %v, want %d", age, n, err, want)
			}
		}
		if lost := settle(view.Held[0].Epoch - 1); len(lost) != 1 || len(archived(t, db)) != 0 {
			t.Errorf("under an old lease: lost %v, archive %q, want one and nothing", lost, archived(t, db))
		}
		for range 2 { // the second time because an answer was lost
			if lost := settle(view.Held[0].Epoch); len(lost) != 0 || len(archived(t, db)) != 1 {
				t.Errorf("lost %v, archive %q, want none and the row", lost, archived(t, db))
			}
		}
		var header, body string
		var enqueued, published int64
		if err := db.QueryRowContext(t.Context(), "SELECT header, body, enqueued, published FROM outbox_archive").Scan(&header, &body, &enqueued, &published); err != nil {
			t.Fatal(err)
		}
		if header != `{"h":"v"}` || body != "body" || published < enqueued {
			t.Errorf("the row has header %s, body %s, enqueued %d, published %d", header, body, enqueued, published)
		}
		prune(t.Context(), time.Hour, 0)
		// More than one DELETE's worth.
		const doublings = 14
		for i := range doublings {
			const columns = "shard, message_id, topic, message_key, message_type, happened, header, body, enqueued, published"
			if _, err := db.ExecContext(t.Context(), "INSERT INTO outbox_archive (id, "+columns+") SELECT id + "+strconv.Itoa(1<<i)+", "+columns+" FROM outbox_archive"); err != nil {
				t.Fatal(err)
			}
		}
		prune(t.Context(), 0, 1<<doublings)
		if got := archived(t, db); len(got) != 0 {
			t.Errorf("archive = %d rows, want none", len(got))
		}
	})
}
