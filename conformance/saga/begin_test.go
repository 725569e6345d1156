// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagatest"
)

// TestCrashOfBegun cuts the connections of a node before and after each statement while it
// starts a transfer in a transaction of its own, which it goes on with at once. The caller
// then starts the transfer again elsewhere, as one does who heard nothing or an error, and
// another node finishes it. DOVETAIL_SAGA_JOURNEYS=all cuts at each statement, else at some.
func TestCrashOfBegun(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, dialect string) {
		b := newBank(t, db, dialect)
		connector := connectorOf(t, db, dialect)
		crashes, transfers := 0, 0
		for n, reached := 1, true; reached; n += stride(13) {
			reached = false
			for _, after := range []bool{false, true} {
				id, d := fmt.Sprintf("t%05d", transfers*kinds), nth(transfers*kinds)
				transfers++
				if _, err := db.ExecContext(t.Context(), b.bind("INSERT INTO transfer (id, status, ends) VALUES (?, 'pending', 0)"), id); err != nil {
					t.Fatal(err)
				}
				c, cut := sagatest.Cut(connector, n, after)
				own := pool(c, dialect)
				dying, err := openBank(own, dialect)
				if err != nil {
					t.Fatal(err)
				}
				first, err := dying.engine(dying.store, saga.Config{Drain: time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				run(t, first, func() {
					eventually(t, "the first node is up", func() bool { return first.Stats().Polls > 1 || cut() })
					err := saga.Start(t.Context(), first, nil, dying.def, id, d)
					if err != nil && !cut() {
						t.Fatalf("Start = %v, although nothing was cut", err)
					}
					_, loaded := b.store.Load(t.Context(), id)
					if err == nil && loaded != nil {
						t.Fatalf("Start = nil, yet Load = %v", loaded)
					}
					eventually(t, "the transfer has ended, or the node", func() bool {
						rec, err := b.store.Load(t.Context(), id)
						return cut() || err == nil && rec.Status.Ended()
					})
				})
				if cut() {
					reached = true
					crashes++
				}
				_ = own.Close()
				// Time passes for the store: the lease of the dead runs out.
				if _, err := db.ExecContext(t.Context(), "UPDATE saga_node SET expires_at = 0"); err != nil {
					t.Fatal(err)
				}
				second, err := b.engine(b.store, saga.Config{})
				if err != nil {
					t.Fatal(err)
				}
				run(t, second, func() {
					if err := saga.Start(t.Context(), second, nil, b.def, id, d); err != nil {
						t.Fatalf("Start again = %v, want nil", err)
					}
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					if in, err := second.Wait(ctx, id); err != nil || in.Status != saga.Completed {
						t.Fatalf("cut at statement %d, after it: %v: %+v, %v", n, after, in, err)
					}
				})
			}
		}
		b.audit(t)
		t.Logf("%d crashes of %d transfers", crashes, transfers)
	})
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	// Longer than MySQL waits for a lock, which a connection that was cut may still hold.
	for deadline := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within three minutes: %s", what)
		}
	}
}
