// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency_test

import (
	"database/sql"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
)

// Two processes share a database, and the clock of one is decades behind or ahead, or jumps
// while it holds a key: leases and retentions go by the database's clock, so neither of them
// notices. SQLite has no clock but that of the process.
//
// The wrong clock is a bubble's, which begins in the year 2000 and jumps when everybody in it
// sleeps; with the network, which the bubble does not wait for, time stands still.
func TestClocksOfProcessesDoNotMatter(t *testing.T) {
	drivers := map[string]string{"postgres": "pgx", "mysql": "mysql"}
	for d, driver := range drivers {
		for name, ahead := range map[string]time.Duration{"behind": 0, "ahead": 60 * 365 * 24 * time.Hour} {
			t.Run(d+", "+name, func(t *testing.T) {
				t.Parallel()
				db, dsn := testdb.OpenDSN(t, d)
				right := open(t, db, d, idempotencysql.Config{})
				// elsewhere has the other process do something.
				elsewhere := func(do func(t *testing.T, db *sql.DB, wrong *idempotencysql.Store)) {
					synctest.Test(t, func(t *testing.T) {
						time.Sleep(ahead)
						db, err := sql.Open(driver, dsn)
						if err != nil {
							t.Fatal(err)
						}
						defer db.Close()
						wrong, err := idempotencysql.New(db, dialects[d], idempotencysql.Config{})
						if err != nil {
							t.Fatal(err)
						}
						do(t, db, wrong)
					})
				}
				begin := func(t *testing.T, s *idempotencysql.Store, id string, lease time.Duration) idempotency.Claim {
					t.Helper()
					c, err := s.Begin(t.Context(), idempotency.Command{Key: idempotency.Key{ID: id}, Lease: lease, Retention: time.Hour})
					if err != nil {
						t.Errorf("Begin of %s = %v, want nil", id, err)
					}
					return c
				}
				wantBusy := func(t *testing.T, s *idempotencysql.Store, id string) {
					t.Helper()
					if _, err := s.Begin(t.Context(), idempotency.Command{Key: idempotency.Key{ID: id}}); !errors.Is(err, idempotency.ErrInProgress) {
						t.Errorf("Begin of %s = %v, want %v", id, err, idempotency.ErrInProgress)
					}
				}
				mark := func(t *testing.T, db *sql.DB, s *idempotencysql.Store, id string) (first bool) {
					t.Helper()
					tx, err := db.BeginTx(t.Context(), nil)
					if err != nil {
						t.Fatal(err)
					}
					defer tx.Rollback()
					if first, err = s.Once(t.Context(), tx, "mail", id); err != nil {
						t.Fatal(err)
					}
					if err := tx.Commit(); err != nil {
						t.Fatal(err)
					}
					return first
				}
				wantNothingPruned := func(t *testing.T, s *idempotencysql.Store) {
					t.Helper()
					if n, err := s.Prune(t.Context(), time.Hour); n != 0 || err != nil {
						t.Errorf("Prune of what is older than an hour = %d, %v, want 0", n, err)
					}
				}

				begin(t, right, "right's", time.Hour)
				begin(t, right, "right's, over", time.Millisecond)
				mark(t, db, right, "right's")
				time.Sleep(20 * time.Millisecond) // longer than that lease, however slow the machine
				elsewhere(func(t *testing.T, db *sql.DB, wrong *idempotencysql.Store) {
					wantBusy(t, wrong, "right's")
					begin(t, wrong, "right's, over", time.Hour)
					if mark(t, db, wrong, "right's") {
						t.Error("a mark is first again")
					}
					wantNothingPruned(t, wrong)

					held := begin(t, wrong, "wrong's", time.Hour)
					begin(t, wrong, "wrong's, over", time.Millisecond)
					done := begin(t, wrong, "wrong's, done", time.Hour)
					mark(t, db, wrong, "wrong's")
					time.Sleep(2 * time.Hour) // its clock jumps
					if err := wrong.Extend(t.Context(), held); err != nil {
						t.Errorf("Extend after the clock has jumped = %v, want nil", err)
					}
					if err := wrong.Complete(t.Context(), done, []byte("result")); err != nil {
						t.Errorf("Complete after the clock has jumped = %v, want nil", err)
					}
					wantNothingPruned(t, wrong)
				})
				time.Sleep(20 * time.Millisecond)
				wantBusy(t, right, "right's")
				wantBusy(t, right, "right's, over")
				wantBusy(t, right, "wrong's")
				begin(t, right, "wrong's, over", time.Hour)
				if c := begin(t, right, "wrong's, done", time.Hour); !c.Done || string(c.Result) != "result" {
					t.Errorf("Begin of what was done = %+v, want its result", c)
				}
				if mark(t, db, right, "wrong's") {
					t.Error("a mark is first again")
				}
				wantNothingPruned(t, right)
			})
		}
	}
}
