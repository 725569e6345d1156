// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/saga"
)

// The test binary starts itself again as a worker, told by these variables.
const (
	envDialect = "DOVETAIL_TEST_SAGA_DIALECT"
	envName    = "DOVETAIL_TEST_SAGA_DATABASE"
	envKillAt  = "DOVETAIL_TEST_SAGA_KILL_AT"
)

func TestMain(m *testing.M) {
	if os.Getenv(envDialect) == "" {
		os.Exit(m.Run())
	}
	role := work
	if os.Getenv(envKillAt) == holding {
		role = hold
	}
	if err := role(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// work runs an engine until the process is killed, which it may do itself.
func work() error {
	dialect := os.Getenv(envDialect)
	db, err := openAgain(dialect, os.Getenv(envName))
	if err != nil {
		return err
	}
	b, err := openBank(db, dialect)
	if err != nil {
		return err
	}
	killAt, err := strconv.Atoi(os.Getenv(envKillAt))
	if err != nil {
		return err
	}
	f := newFaulty(b.store, killAt, when(killAt%2)) // before or after the call
	go func() {
		<-f.died
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}()
	e, err := b.engine(f, saga.Config{Concurrency: 8})
	if err != nil {
		return err
	}
	return e.Run(context.Background())
}

// worker is a process that runs sagas.
type worker struct {
	cmd    *exec.Cmd
	output bytes.Buffer
	exited chan struct{}
}

// startWorker starts a process that kills itself at a call of the store, or one that is holding.
func startWorker(t *testing.T, dialect, name, killAt string) *worker {
	t.Helper()
	w := &worker{exited: make(chan struct{})}
	w.cmd = exec.CommandContext(t.Context(), os.Args[0])
	w.cmd.Env = append(os.Environ(), envDialect+"="+dialect, envName+"="+name, envKillAt+"="+killAt)
	w.cmd.Stdout, w.cmd.Stderr = &w.output, &w.output
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = w.cmd.Wait()
		close(w.exited)
	}()
	return w
}

func (w *worker) signal(s syscall.Signal) { _ = w.cmd.Process.Signal(s) }

// TestKilledProcesses runs transfers by two processes, kills each of them with SIGKILL
// between two statements and at random moments, and stops one now and then for
// longer than its lease, until all is done. DOVETAIL_SAGA_TRANSFERS sets how many.
func TestKilledProcesses(t *testing.T) {
	transfers := size(t, "DOVETAIL_SAGA_TRANSFERS", 120)
	testdb.Each(t, func(t *testing.T, db *sql.DB, d string) {
		b := newBank(t, db, d)
		starter, err := b.engine(b.store, saga.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.start(t.Context(), starter, 0, transfers); err != nil {
			t.Fatal(err)
		}
		name := databaseName(t, db, d)
		workers := make([]*worker, 2)
		kills, stops := 0, 0
		defer func() {
			for _, w := range workers {
				if w != nil {
					w.signal(syscall.SIGKILL)
					<-w.exited
				}
			}
		}()
		deadline := time.Now().Add(5*time.Minute + time.Duration(transfers)*200*time.Millisecond)
		for round := 0; ; round++ {
			for i, w := range workers {
				if w == nil {
					workers[i] = startWorker(t, d, name, strconv.Itoa(5+rand.IntN(60)))
				}
			}
			time.Sleep(time.Duration(50+rand.IntN(100)) * time.Millisecond)
			for i, w := range workers {
				select {
				case <-w.exited:
					if state := w.cmd.ProcessState; state.Exited() {
						t.Fatalf("a worker ended by itself: %v\n%s", state, w.output.String())
					}
					kills++
					workers[i] = nil
					continue
				default:
				}
				switch chance := rand.IntN(100); {
				case chance < 5:
					w.signal(syscall.SIGKILL)
				case chance < 10 && stops < 3+transfers/1000:
					w.signal(syscall.SIGSTOP)
					time.Sleep(1500 * time.Millisecond)
					w.signal(syscall.SIGCONT)
					stops++
				}
			}
			if left, err := b.pending(t.Context()); err == nil && left == 0 {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("%d sagas have not ended after %d kills (%v)", left, kills, errors.Join(err))
			}
		}
		b.audit(t)
		if n := b.transfers(t); n != transfers {
			t.Errorf("%d transfers, want %d", n, transfers)
		}
		t.Logf("%d transfers, %d kills, %d stops past the lease", transfers, kills, stops)
	})
}
