// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagatest

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/saga"
)

// CrashSetup says how a service runs its sagas, so that [Crash] can run them too.
type CrashSetup struct {
	// Connector opens the database, in which the tables are. Required.
	Connector driver.Connector
	// Pool may limit a pool on the Connector, as SQLite needs. May be nil.
	Pool func(db *sql.DB)
	// Store returns the store on a pool. Required.
	Store func(db *sql.DB) (saga.Store, error)
	// Engine returns an engine on a store, with the definitions under test. Give it a short
	// Config.Poll. Steps that use a database must use this one, and may use another pool. Required.
	Engine func(db *sql.DB, store saga.Store) (*saga.Engine, error)
	// Start starts the nth saga, from zero, commits, and returns its ID. Required.
	Start func(ctx context.Context, db *sql.DB, e *saga.Engine, n int) (id string, err error)
	// Check looks at what a saga that has ended left behind. Required.
	Check func(t testing.TB, db *sql.DB, in saga.Instance)
	// Stride leaves out statements: 3 cuts at every third. Zero means 1.
	Stride int
}

// Crash starts a saga, lets a node run it whose connections are cut at its first statement,
// lets another node finish it, and checks what is left; then the same with the second
// statement, and so on until the saga ends before the cut. Each statement, begin and
// commit is cut twice: before it is made, and after it, with the answer lost. A saga
// that a second node cannot end within a minute, or that is parked, fails the test.
//
// It returns how many nodes were cut off.
func Crash(t *testing.T, s CrashSetup) (crashes int) {
	t.Helper()
	db := s.open(s.Connector)
	defer db.Close()
	store, err := s.Store(db)
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Engine(db, store)
	if err != nil {
		t.Fatal(err)
	}
	var dying sync.WaitGroup
	defer dying.Wait()
	started := 0
	for n, reached := 1, true; reached; n += max(s.Stride, 1) {
		reached = false
		for _, after := range []bool{false, true} {
			id, cut := s.crash(t, db, store, second, started, newCut(s.Connector, n, after), &dying)
			if started++; cut {
				reached = true
				crashes++
			}
			in, err := second.Get(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if s.Check(t, db, in); t.Failed() {
				t.Fatalf("%s: cut at statement %d, after it: %v", id, n, after)
			}
		}
	}
	return crashes
}

func (s CrashSetup) open(c driver.Connector) *sql.DB {
	db := sql.OpenDB(c)
	if s.Pool != nil {
		s.Pool(db)
	}
	return db
}

// crash runs one saga and reports whether its first node was cut off.
func (s CrashSetup) crash(t *testing.T, db *sql.DB, store saga.Store, second *saga.Engine, n int, c *cut, dying *sync.WaitGroup) (id string, reached bool) {
	t.Helper()
	own := s.open(c)
	ownStore, err := s.Store(own)
	if err != nil {
		t.Fatal(err)
	}
	nodes := &nodes{Store: ownStore, names: map[string]bool{}}
	first, err := s.Engine(own, nodes)
	if err != nil {
		t.Fatal(err)
	}
	if id, err = s.Start(t.Context(), db, first, n); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	dying.Go(func() {
		_ = first.Run(ctx)
		_ = own.Close()
	})
	awaitEnd(t, second, id, c.died)
	// A node that is cut off takes a while to give up; nobody waits for that.
	reached = c.reached()
	c.kill()
	cancel()
	for _, name := range nodes.all() {
		// Time passes for the store: the lease of the dead runs out.
		if err := store.Beat(t.Context(), name, -time.Second); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel = context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- second.Run(ctx) }()
	awaitEnd(t, second, id, nil)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	return id, reached
}

// awaitEnd waits until the saga has ended, or something else happened.
func awaitEnd(t *testing.T, e *saga.Engine, id string, or <-chan struct{}) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		in, err := e.Get(t.Context(), id)
		switch {
		case err == nil && in.Status.Ended():
			return
		case in.Parked:
			t.Fatalf("%s is parked at %q: %s", id, in.Step, in.Stuck)
		case time.Now().After(deadline):
			t.Fatalf("%s has not ended within a minute: it is %v at %q (%v)", id, in.Status, in.Step, err)
		}
		select {
		case <-or:
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// nodes notes the names under which engines take a lease.
type nodes struct {
	saga.Store
	mu    sync.Mutex
	names map[string]bool
}

// Beat implements saga.Store.
func (n *nodes) Beat(ctx context.Context, node string, lease time.Duration) error {
	n.mu.Lock()
	n.names[node] = true
	n.mu.Unlock()
	return n.Store.Beat(ctx, node, lease)
}

func (n *nodes) all() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []string
	for name := range n.names {
		list = append(list, name)
	}
	return list
}
