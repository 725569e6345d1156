// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package barrier_test

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/saga/barrier"
)

// server is a database that executes by a function.
type server func(args []driver.NamedValue) (driver.Result, error)

func (s server) Connect(context.Context) (driver.Conn, error) { return s, nil }
func (s server) Driver() driver.Driver                        { return nil }
func (s server) Prepare(string) (driver.Stmt, error)          { return nil, errors.ErrUnsupported }
func (s server) Begin() (driver.Tx, error)                    { return nil, errors.ErrUnsupported }
func (s server) Close() error                                 { return nil }

func (s server) ExecContext(_ context.Context, _ string, args []driver.NamedValue) (driver.Result, error) {
	return s(args)
}

func TestRunPrunesNowAndEveryHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var at []time.Duration
		begin := time.Now()
		db := sql.OpenDB(server(func(args []driver.NamedValue) (driver.Result, error) {
			if args[0].Value != time.Minute.Microseconds() {
				t.Errorf("Run prunes marks older than %v µs, want the retention", args[0].Value)
			}
			switch at = append(at, time.Since(begin)); len(at) {
			case 1:
				return driver.RowsAffected(1000), nil // there may be more
			case 4:
				return nil, errors.New("connection refused")
			case 5:
				cancel()
			}
			return driver.RowsAffected(1), nil
		}))
		defer db.Close()
		var log bytes.Buffer
		b, err := barrier.New(barrier.Postgres, barrier.Config{Retention: time.Minute, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Run(ctx, db); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		if want := []time.Duration{0, 0, time.Hour, 2 * time.Hour, 3 * time.Hour}; !slices.Equal(at, want) {
			t.Errorf("Run pruned after %v, want %v", at, want)
		}
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "barrier: not pruned") || !strings.Contains(got, "connection refused") {
			t.Errorf("Run told %q, want the error", got)
		}
	})
}

func TestPruneWantsAnAge(t *testing.T) {
	b, err := barrier.New(barrier.Postgres, barrier.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, age := range []time.Duration{0, -time.Hour} {
		if n, err := b.Prune(t.Context(), nil, age); n != 0 || err == nil || !strings.Contains(err.Error(), "want longer than any saga lasts") {
			t.Errorf("Prune(%v) = %d, %v, want an error", age, n, err)
		}
	}
}
