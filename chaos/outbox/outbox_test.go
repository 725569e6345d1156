// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package outbox_test proves the promises of outbox, idempotency and rabbitkit together,
// with processes that die.
package outbox_test

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/chaos/internal/process"
	"github.com/dovetail-go/dovetail/chaos/internal/server"
	"github.com/dovetail-go/dovetail/outbox"
)

// size is how many messages a test sends, and for how long it makes trouble.
// DOVETAIL_CHAOS is a number of messages, or "long" for 100,000.
func size(t *testing.T) (messages int, trouble time.Duration) {
	t.Helper()
	switch v := os.Getenv("DOVETAIL_CHAOS"); v {
	case "":
		return 2000, 8 * time.Second
	case "long":
		return 100_000, 3 * time.Minute
	default:
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			t.Fatalf("DOVETAIL_CHAOS is %q, want a number of messages or long", v)
		}
		return n, 8*time.Second + time.Duration(n)*time.Second/600
	}
}

// Four relays and four consumers are killed, and stopped for longer than their leases, while
// producers write; their connections are cut, stalled, half-open and lose answers; the broker and
// the database are killed and stopped too. In the end each committed change has its one entry in
// the ledger, in the order of its account.
func TestPostgres(t *testing.T) {
	t.Parallel()
	database, broker := server.StartPostgres(t), server.StartRabbit(t)
	w := newWorld(t, "pgx", database.DSN, database.Addr, broker)
	run(t, w, &broker.Server, &database.Server, database.Kill, database.Stop, database.StopImmediate)
}

// The same with MariaDB. In the short version PostgreSQL stands for both.
func TestMariaDB(t *testing.T) {
	t.Parallel()
	if os.Getenv("DOVETAIL_CHAOS") == "" {
		t.Skip("set DOVETAIL_CHAOS=long, or to a number of messages")
	}
	database, broker := server.StartMariaDB(t), server.StartRabbit(t)
	w := newWorld(t, "mysql", database.DSN, database.Addr, broker)
	run(t, w, &broker.Server, &database.Server, database.Kill, database.Stop)
}

func run(t *testing.T, w world, broker, database *server.Server, ends ...func()) {
	t.Helper()
	messages, trouble := size(t)
	db := w.setUp(t)
	_, rows, _, err := w.open()
	if err != nil {
		t.Fatal(err)
	}
	box, err := outbox.New(rows, outbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "deliveries")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	// A transaction has 2.5 messages on average: so the trouble is over a little before the last.
	p := &producer{world: w, db: db, box: box, left: messages, pause: trouble * producers * 5 / 2 / time.Duration(messages)}
	var producing sync.WaitGroup
	defer producing.Wait()
	for range producers {
		producing.Go(func() { p.run(t.Context()) })
	}
	var victims []*victim
	for i := range 4 {
		victims = append(victims, &victim{Process: process.Role(t, "relay", w.args([]string{"slow", "at once"}[i%2])...), beyond: lease})
	}
	for i := range 4 {
		victims = append(victims, &victim{Process: process.Role(t, "consumer", w.args(log, []string{"single", "batch"}[i%2])...), beyond: 3 * heartbeat})
	}

	counts := map[string]int{}
	step := func() {
		time.Sleep(time.Duration(20+rand.IntN(200)) * time.Millisecond)
		for _, v := range victims {
			v.resumeIfDue()
		}
		if rand.IntN(4) == 0 {
			counts["network faults"]++
			w.networkFault()
			return
		}
		v := victims[rand.IntN(len(victims))]
		if !v.until.IsZero() {
			return
		}
		if rand.IntN(2) == 0 {
			counts["processes killed"]++
			v.Restart() // by SIGKILL
			return
		}
		counts["processes stopped beyond their lease"]++
		v.pauseFor(v.beyond + time.Duration(rand.Int64N(int64(v.beyond))))
	}
	// The broker and the database go down each in its turn, at least once.
	down := []func(){
		func() { counts["broker killed"]++; broker.Kill(); broker.Start() },
		func() {
			counts["database killed or stopped"]++
			ends[counts["database killed or stopped"]%len(ends)]()
			database.Start()
		},
		func() { counts["broker stopped"]++; broker.Stop(); broker.Start() },
		func() {
			counts["broker and database killed"]++
			broker.Kill()
			database.Kill()
			broker.Start()
			database.Start()
		},
		func() {
			counts["broker stalled"]++
			broker.Pause()
			time.Sleep(2 * heartbeat)
			broker.Resume()
		},
	}
	every := min(trouble/2-time.Second, 15*time.Second)
	for i, next := 0, begin.Add(every); time.Since(begin) < trouble; step() {
		if time.Now().After(next) {
			down[i%len(down)]()
			i, next = i+1, time.Now().Add(every)
		}
	}
	if counts["database killed or stopped"] == 0 {
		down[1]()
	}
	for _, v := range victims {
		v.until = time.Now()
		v.resumeIfDue()
	}
	healed := time.Now()
	producing.Wait()
	// A pool of its own, because a query on a connection that the database has closed meanwhile
	// fails once, and the producers' pool may have many of those.
	if db, _, _, err = w.open(); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	want := committed(t, db)
	eventually(t, 5*time.Minute, func() string {
		got := 0
		if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM ledger").Scan(&got); err != nil {
			return err.Error()
		}
		st, err := box.Stats(t.Context())
		if err != nil {
			return err.Error()
		}
		if st.Depth > 0 || st.Parked > 0 || got < want {
			return fmt.Sprintf("%d of %d entries are there; the outbox has %d messages, parked %d", got, want, st.Depth, st.Parked)
		}
		return ""
	})
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	check(t, db)
	t.Logf("%d messages of %d keys from %d transactions (%d rolled back, %d failed) in %v, the last %v after all servers and processes were back;"+
		" %d deliveries, %v: none lost, each effect once, no key out of order",
		want, keys, p.commits, p.rolledBack, p.failed, time.Since(begin).Round(100*time.Millisecond), time.Since(healed).Round(100*time.Millisecond),
		strings.Count(string(text), "\n"), counts)
	if want < messages {
		t.Errorf("%d messages were committed, want at least %d", want, messages)
	}
}

// victim is a process that is killed and stopped.
type victim struct {
	*process.Process
	beyond time.Duration // after which others take over
	until  time.Time     // the end of a stop; zero if it runs
}

func (v *victim) pauseFor(d time.Duration) {
	v.Pause()
	v.until = time.Now().Add(d)
}

func (v *victim) resumeIfDue() {
	if !v.until.IsZero() && !time.Now().Before(v.until) {
		v.Resume()
		v.until = time.Time{}
	}
	if !v.Running() {
		v.Restart() // it has given up, which no process should: its output tells why
	}
}

// committed is how many changes there are.
func committed(t *testing.T, db *sql.DB) (n int) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), "SELECT SUM(n) FROM account").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// check compares the ledger with the accounts: of each account the entries 1 to n, in the
// order in which they were made, each once.
func check(t *testing.T, db *sql.DB) {
	t.Helper()
	last := map[string]int{}
	rows, err := db.QueryContext(t.Context(), "SELECT account, n FROM ledger ORDER BY seq")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	problems := 0
	for rows.Next() && problems < 10 {
		var name string
		var n int
		if err := rows.Scan(&name, &n); err != nil {
			t.Fatal(err)
		}
		switch {
		case n == last[name]+1:
			last[name] = n
			continue
		case n <= last[name]:
			t.Errorf("%s: entry %d comes after %d: again, or out of order", name, n, last[name])
		default:
			t.Errorf("%s: entry %d comes after %d: some between are lost, or out of order", name, n, last[name])
		}
		problems++
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	for k := range keys {
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT n FROM account WHERE name = '"+account(k)+"'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n != last[account(k)] {
			t.Errorf("%s: the last entry is %d, want %d", account(k), last[account(k)], n)
		}
	}
}

// eventually waits until problem returns none.
func eventually(t *testing.T, limit time.Duration, problem func() string) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		p := problem()
		if p == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", limit, p)
		}
	}
}
