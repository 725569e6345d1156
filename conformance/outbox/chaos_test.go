// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

const (
	chaosDSN   = "OUTBOX_CHAOS_DSN"
	chaosName  = "OUTBOX_CHAOS_DATABASE"
	chaosLog   = "OUTBOX_CHAOS_LOG"
	chaosLease = 400 * time.Millisecond
)

// TestChaosRelay is the process that TestChaos kills: a relay that publishes into a file.
func TestChaosRelay(t *testing.T) {
	name := os.Getenv(chaosName)
	if name == "" {
		t.Skip("only as a process of TestChaos")
	}
	db, err := sql.Open(map[string]string{"sqlite": "sqlite", "postgres": "pgx", "mysql": "mysql"}[name], os.Getenv(chaosDSN))
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(map[string]int{"sqlite": 1}[name])
	store, err := outboxsql.New(db, dialects[name], outboxsql.Config{})
	if err != nil {
		t.Fatal(err)
	}
	box, err := outbox.New(store, outbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(os.Getenv(chaosLog), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	relay, err := outbox.NewRelay(box, appender{file}, outbox.RelayConfig{
		Lease: chaosLease, Poll: 20 * time.Millisecond, Batch: 10, Window: 64, Logger: quiet,
		Backoff: messaging.Backoff{Base: 5 * time.Millisecond, Max: 50 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = relay.Run(context.Background()) //nolint:usetesting // until it is killed
}

// appender is a broker: a line that is written has landed, in this order.
type appender struct{ file *os.File }

func (a appender) Publish(_ context.Context, msgs ...*messaging.Message) error {
	time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
	if rand.IntN(20) == 0 {
		return messaging.ErrRefused
	}
	m := msgs[0]
	if _, err := a.file.WriteString(m.Key + " " + m.Header["n"] + "\n"); err != nil {
		return err
	}
	time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond) // between landing and confirmation
	if rand.IntN(20) == 0 {
		return messaging.ErrUnknown
	}
	return nil
}

// Three relay processes are killed and stopped beyond their leases while producers write. In the
// end every committed message has landed, and each key in the order of its commits.
func TestChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for _, name := range testdb.Names {
		t.Run(name, func(t *testing.T) {
			db, dsn := testdb.OpenDSN(t, name)
			box, err := outbox.New(open(t, db, name, outboxsql.Config{}), outbox.Config{})
			if err != nil {
				t.Fatal(err)
			}
			log := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(log, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			spawn := func() *exec.Cmd {
				cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChaosRelay$")
				cmd.Env = append(os.Environ(), chaosName+"="+name, chaosDSN+"="+dsn, chaosLog+"="+log)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				return cmd
			}
			relays := []*exec.Cmd{spawn(), spawn(), spawn()}
			end := func(c *exec.Cmd) {
				_ = c.Process.Kill()
				_ = c.Wait()
			}
			defer func() {
				for _, c := range relays {
					end(c)
				}
			}()

			const keys, producers = 20, 4
			sent := make([]int, keys)
			over := make(chan struct{})
			var wg sync.WaitGroup
			for p := range producers {
				wg.Go(func() {
					for {
						select {
						case <-over:
							return
						case <-time.After(time.Duration(rand.IntN(10)) * time.Millisecond):
						}
						k := p + producers*rand.IntN(keys/producers) // its own, which stands in for a lock
						tx, err := db.BeginTx(t.Context(), nil)
						if err == nil {
							m := func(n int) *messaging.Message {
								return &messaging.Message{Topic: "t", Key: fmt.Sprint(k), Header: messaging.Header{"n": strconv.Itoa(n)}}
							}
							err = errors.Join(box.Enqueue(t.Context(), tx, m(sent[k]+1), m(sent[k]+2)), tx.Commit())
						}
						if err != nil {
							t.Errorf("produce: %v", err)
							return
						}
						sent[k] += 2
					}
				})
			}
			kills, stops := 0, 0
			for begin := time.Now(); time.Since(begin) < 4*time.Second; {
				time.Sleep(time.Duration(100+rand.IntN(300)) * time.Millisecond)
				i := rand.IntN(len(relays))
				if rand.IntN(2) == 0 {
					end(relays[i])
					relays[i] = spawn()
					kills++
					continue
				}
				stops++
				_ = relays[i].Process.Signal(syscall.SIGSTOP)
				time.Sleep(chaosLease/2 + time.Duration(rand.Int64N(int64(chaosLease))))
				_ = relays[i].Process.Signal(syscall.SIGCONT)
			}
			close(over)
			wg.Wait()
			eventually(t, "the outbox is empty", func() bool {
				st, err := box.Stats(t.Context())
				return err == nil && st.Depth == 0 && st.Parked == 0
			})
			for _, c := range relays {
				end(c)
			}
			text, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			last := make([]int, keys)
			total, duplicates := 0, 0
			for line := range strings.Lines(string(text)) {
				var k, n int
				if _, err := fmt.Sscan(line, &k, &n); err != nil {
					t.Fatalf("line %q: %v", line, err)
				}
				switch {
				case n == last[k]+1:
					last[k] = n
					total++
				case n > last[k]:
					t.Fatalf("key %d: message %d landed after %d", k, n, last[k])
				default:
					duplicates++
				}
			}
			for k := range sent {
				if last[k] != sent[k] {
					t.Errorf("key %d: %d messages landed, want %d", k, last[k], sent[k])
				}
			}
			t.Logf("%d messages, %d duplicates, %d kills, %d stops beyond a lease or close to it: none lost, no key out of order", total, duplicates, kills, stops)
		})
	}
}
