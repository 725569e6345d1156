// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/saga"
)

// holding is the value of envKillAt for a process that does not kill itself: see hold.
const holding = "never"

const (
	holdLease = time.Second
	holdPoll  = 50 * time.Millisecond
)

// holder returns an engine whose only step notes its process, and the first time does not
// return.
func holder(db *sql.DB, dialect string) (*saga.Engine, *saga.Definition[struct{}], error) {
	b, err := openBank(db, dialect)
	if err != nil {
		return nil, nil, err
	}
	def, err := saga.New("hold", 1, saga.Pivot(saga.Call("hold", func(ctx context.Context, a saga.Attempt, _ *struct{}) error {
		if _, err := db.ExecContext(ctx, b.bind("INSERT INTO hold (saga, pid) VALUES (?, ?)"), a.Saga, os.Getpid()); err != nil {
			return err
		}
		var n int
		if err := db.QueryRowContext(ctx, b.bind("SELECT COUNT(*) FROM hold WHERE saga = ?"), a.Saga).Scan(&n); err != nil || n > 1 {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}, saga.Timeout[struct{}](time.Hour))))
	if err != nil {
		return nil, nil, err
	}
	e, err := saga.NewEngine(b.store, saga.Config{Lease: holdLease, Poll: holdPoll, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}, def)
	return e, def, err
}

// hold runs sagas until the process is killed.
func hold() error {
	dialect := os.Getenv(envDialect)
	db, err := openAgain(dialect, os.Getenv(envName))
	if err != nil {
		return err
	}
	e, _, err := holder(db, dialect)
	if err != nil {
		return err
	}
	return e.Run(context.Background())
}

// TestTakeover kills the process that is at work on a saga, and measures how long it takes
// until the other one has begun the step again, by this machine's clock: the rest of the
// lease and a poll, and what a busy machine adds.
func TestTakeover(t *testing.T) {
	const kills = 3
	testdb.Each(t, func(t *testing.T, db *sql.DB, dialect string) {
		store(t, db, dialect)
		if _, err := db.ExecContext(t.Context(), "CREATE TABLE hold (saga VARCHAR(50) NOT NULL, pid INTEGER NOT NULL)"); err != nil {
			t.Fatal(err)
		}
		starter, def, err := holder(db, dialect)
		if err != nil {
			t.Fatal(err)
		}
		name := databaseName(t, db, dialect)
		workers := []*worker{startWorker(t, dialect, name, holding), startWorker(t, dialect, name, holding)}
		defer func() {
			for _, w := range workers {
				w.signal(syscall.SIGKILL)
				<-w.exited
			}
		}()
		var took []time.Duration
		for k := range kills {
			id := fmt.Sprint("hold-", k)
			if err := saga.Start(t.Context(), starter, db, def, id, struct{}{}); err != nil {
				t.Fatal(err)
			}
			var first, second int
			eventually(t, "a process is at work", func() bool {
				return db.QueryRowContext(t.Context(), fmt.Sprintf("SELECT pid FROM hold WHERE saga = '%s'", id)).Scan(&first) == nil
			})
			i := slices.IndexFunc(workers, func(w *worker) bool { return w.cmd.Process.Pid == first })
			workers[i].signal(syscall.SIGKILL)
			begin := time.Now()
			eventually(t, "the other process has taken over", func() bool {
				query := fmt.Sprintf("SELECT pid FROM hold WHERE saga = '%s' AND pid <> %d", id, first)
				return db.QueryRowContext(t.Context(), query).Scan(&second) == nil
			})
			took = append(took, time.Since(begin).Round(time.Millisecond))
			if second != workers[1-i].cmd.Process.Pid {
				t.Errorf("process %d has taken over, want the other of the two", second)
			}
			eventually(t, "the saga has ended", func() bool {
				in, err := starter.Get(t.Context(), id)
				return err == nil && in.Status == saga.Completed && in.Epoch == 2
			})
			<-workers[i].exited
			workers[i] = startWorker(t, dialect, name, holding)
		}
		t.Logf("taken over after %v, with a lease of %v and a poll of %v", took, holdLease, holdPoll)
	})
}
