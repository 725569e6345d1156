// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox_test

import (
	"database/sql"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

// Two relays share a database, and the clock of one is decades behind or ahead, or jumps while
// it holds a shard: leases and ages go by the database's clock, so neither of them notices. SQLite
// has no clock but that of the process.
//
// The wrong clock is a bubble's, which begins in the year 2000 and jumps when everybody in it
// sleeps; with the network, which the bubble does not wait for, time stands still.
func TestClocksOfProcessesDoNotMatter(t *testing.T) {
	for d, driver := range map[string]string{"postgres": "pgx", "mysql": "mysql"} {
		for name, ahead := range map[string]time.Duration{"behind": 0, "ahead": 60 * 365 * 24 * time.Hour} {
			t.Run(d+", "+name, func(t *testing.T) {
				t.Parallel()
				cfg := outboxsql.Config{Shards: 2}
				db, dsn := testdb.OpenDSN(t, d)
				right := open(t, db, d, cfg)
				// lease asks for both shards, of which the other relay has one.
				lease := func(t *testing.T, s *outboxsql.Store, relay string) outbox.LeaseView {
					t.Helper()
					v, err := s.Lease(t.Context(), outbox.LeaseRequest{Relay: relay, TTL: time.Hour, Take: 2})
					if err != nil {
						t.Fatal(err)
					}
					if len(v.Held) != 1 || v.Relays != 2 || v.Free != 0 || v.NextExpiry <= 0 || v.NextExpiry > time.Hour {
						t.Errorf("Lease of the relay with the %s clock = %+v, want one of two shards, two relays, and an hour at most", relay, v)
					}
					return v
				}
				for relay, ttl := range map[string]time.Duration{"right": time.Hour, "gone": time.Millisecond} {
					if _, err := right.Lease(t.Context(), outbox.LeaseRequest{Relay: relay, TTL: ttl, Take: 1}); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(20 * time.Millisecond) // longer than the lease of the one that is gone
				synctest.Test(t, func(t *testing.T) {
					time.Sleep(ahead)
					db, err := sql.Open(driver, dsn)
					if err != nil {
						t.Fatal(err)
					}
					defer db.Close()
					wrong, err := outboxsql.New(db, dialects[d], cfg)
					if err != nil {
						t.Fatal(err)
					}
					before := lease(t, wrong, "wrong")
					enqueue(t, wrong, db)
					time.Sleep(2 * time.Hour) // its clock jumps
					if after := lease(t, wrong, "wrong"); len(after.Held) != 1 || after.Held[0] != before.Held[0] {
						t.Errorf("after the clock has jumped: %v is held, want %v", after.Held, before.Held)
					}
				})
				lease(t, right, "right")
				enqueue(t, right, db)
				rows, err := right.Read(t.Context(), []outbox.Read{{Shard: 0, Limit: 10}, {Shard: 1, Limit: 10}})
				if err != nil || len(rows) != 2 {
					t.Fatalf("Read = %d rows, %v, want 2", len(rows), err)
				}
				for _, r := range rows {
					if r.Age > time.Hour {
						t.Errorf("Age of row %d = %v, want that of a row just inserted", r.ID, r.Age)
					}
				}
				if st, err := right.Stats(t.Context()); err != nil || st.OldestAge == 0 || st.OldestAge > time.Hour {
					t.Errorf("Stats = %+v, %v, want the age of a row just inserted", st, err)
				}
			})
		}
	}
}

// enqueue inserts a message without a key.
func enqueue(t *testing.T, store *outboxsql.Store, db *sql.DB) {
	t.Helper()
	box, err := outbox.New(store, outbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := box.Enqueue(t.Context(), db, &messaging.Message{Topic: "t"}); err != nil {
		t.Fatal(err)
	}
}
