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

// TestCrashAtEveryStatement cuts the connections of a node before and after each
// statement of a transfer that is done, and of one that its pivot refuses.
// DOVETAIL_SAGA_JOURNEYS=all cuts at each, else at some.
func TestCrashAtEveryStatement(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, dialect string) {
		b := newBank(t, db, dialect)
		crashes, started := 0, 0
		for _, kind := range []int{0, 4} {
			crashes += sagatest.Crash(t, sagatest.CrashSetup{
				Connector: connectorOf(t, db, dialect), Stride: stride(9),
				Pool: func(db *sql.DB) {
					if dialect == "sqlite" {
						db.SetMaxOpenConns(1)
					}
				},
				Store: func(db *sql.DB) (saga.Store, error) {
					b, err := openBank(db, dialect)
					return b.store, err
				},
				Engine: func(db *sql.DB, store saga.Store) (*saga.Engine, error) {
					b, err := openBank(db, dialect)
					if err != nil {
						return nil, err
					}
					return b.engine(store, saga.Config{Writers: 1, Drain: time.Millisecond})
				},
				Start: func(ctx context.Context, _ *sql.DB, e *saga.Engine, _ int) (string, error) {
					n := kind + kinds*started
					started++
					return fmt.Sprintf("t%05d", n), b.start(ctx, e, n, n+1)
				},
				Check: func(t testing.TB, _ *sql.DB, in saga.Instance) {
					if want := map[int]saga.Status{0: saga.Completed, 4: saga.Compensated}[kind]; in.Status != want {
						t.Errorf("%s is %v, want %v", in.ID, in.Status, want)
					}
				},
			})
		}
		b.audit(t)
		t.Logf("%d crashes of %d transfers", crashes, started)
	})
}
