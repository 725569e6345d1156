// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/saga"
)

// when tells where a call of the store is cut.
type when int

const (
	before     when = iota // the node dies before the call
	after                  // the node dies after the call, and never hears the answer
	answerLost             // the node lives on, and never hears the answer
)

func (w when) String() string {
	return [...]string{"dead before", "dead after", "answer lost after"}[w]
}

var errCut = errors.New("cut")

// faulty is a store that is cut at its nth call.
type faulty struct {
	saga.Store

	mu    sync.Mutex
	when  when
	left  int
	dead  bool
	died  chan struct{}
	nodes map[string]bool
}

func newFaulty(s saga.Store, n int, w when) *faulty {
	return &faulty{Store: s, when: w, left: n, died: make(chan struct{}), nodes: map[string]bool{}}
}

// call makes a call. One that does not count, as it neither reads nor writes a saga,
// fails only when the node is dead.
func (f *faulty) call(counts bool, fn func() error) error {
	f.mu.Lock()
	if counts {
		f.left--
	}
	cut := counts && f.left == 0
	if f.dead || cut && f.when == before {
		f.die()
		f.mu.Unlock()
		return errCut
	}
	f.mu.Unlock()
	err := fn()
	f.mu.Lock()
	defer f.mu.Unlock()
	if cut && f.when == after {
		f.die()
	}
	if f.dead || cut {
		return errCut
	}
	return err
}

func (f *faulty) die() {
	if !f.dead {
		f.dead = true
		close(f.died)
	}
}

func (f *faulty) Beat(ctx context.Context, node string, lease time.Duration) error {
	f.mu.Lock()
	f.nodes[node] = true
	f.mu.Unlock()
	return f.call(false, func() error { return f.Store.Beat(ctx, node, lease) })
}

func (f *faulty) Leave(ctx context.Context, node string) error {
	return f.call(false, func() error { return f.Store.Leave(ctx, node) })
}

func (f *faulty) Claim(ctx context.Context, c saga.Claim) (recs []saga.Record, err error) {
	// An idle engine asks any number of times, so it is not counted before there is
	// something to claim.
	due, err := f.Store.List(ctx, saga.Filter{Status: saga.Running, Limit: 1})
	if e := f.call(err == nil && len(due) > 0, func() error { recs, err = f.Store.Claim(ctx, c); return err }); e != nil {
		return nil, e
	}
	return recs, nil
}

func (f *faulty) Owned(ctx context.Context, node string) (recs []saga.Record, err error) {
	if e := f.call(true, func() error { recs, err = f.Store.Owned(ctx, node); return err }); e != nil {
		return nil, e
	}
	return recs, nil
}

func (f *faulty) Save(ctx context.Context, changes []saga.Change) (lost []int, err error) {
	if e := f.call(true, func() error { lost, err = f.Store.Save(ctx, changes); return err }); e != nil {
		return nil, e
	}
	return lost, nil
}

func (f *faulty) SaveTx(ctx context.Context, fn func(context.Context, *sql.Tx) (saga.Change, error)) error {
	return f.call(true, func() error { return f.Store.SaveTx(ctx, fn) })
}

func (f *faulty) Load(ctx context.Context, id string) (rec saga.Record, err error) {
	err = f.call(true, func() error { rec, err = f.Store.Load(ctx, id); return err })
	return rec, err
}

// TestCrashAtEveryCall kills the node at its first call of the store, at its second,
// and so on to the last, before and after the call, and lets each answer be lost,
// for transfers that are refused at each of the steps. Another node finishes them.
func TestCrashAtEveryCall(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, d string) {
		b := newBank(t, db, d)
		second, err := b.engine(b.store, saga.Config{})
		if err != nil {
			t.Fatal(err)
		}
		started := 0
		for kind := range kinds {
			for _, w := range []when{before, after, answerLost} {
				for n, reached := 1, true; reached; n++ {
					for started%kinds != kind {
						started++
					}
					if reached = b.crashAt(t, second, n, w, started); t.Failed() {
						t.Fatalf("%v call %d of transfer %d", w, n, started)
					}
					started++
				}
			}
		}
		b.audit(t)
		t.Logf("%d crashes and lost answers", b.transfers(t))
	})
}

// crashAt runs a transfer on a store that is cut at its nth call, and finishes it with
// a second engine. It returns false if there were fewer than n calls.
func (b *bank) crashAt(t *testing.T, second *saga.Engine, n int, w when, number int) (reached bool) {
	t.Helper()
	f := newFaulty(b.store, n, w)
	e, err := b.engine(f, saga.Config{Concurrency: 1, Drain: -1, Writers: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.start(t.Context(), e, number, number+1); err != nil {
		t.Fatalf("start: %v", err)
	}
	run := func(e *saga.Engine, until func(ctx context.Context)) (ended chan error) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended = make(chan error, 1)
		go func() { ended <- e.Run(ctx) }()
		until(ctx)
		return ended
	}
	// What is dead for the store takes a while to give up; nobody waits for that.
	run(e, func(ctx context.Context) {
		deadline := time.After(2 * time.Minute)
		for {
			select {
			case <-f.died:
				return
			case <-deadline:
				t.Errorf("neither dead nor done within 2 minutes")
				return
			case <-time.After(2 * time.Millisecond):
			}
			if left, err := b.pending(ctx); err == nil && left == 0 {
				return
			}
		}
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	// Time passes for the store: the lease of the dead runs out.
	for node := range f.nodes {
		if err := b.store.Beat(t.Context(), node, -time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-run(second, func(context.Context) { b.finished(t, 2*time.Minute) }); err != nil {
		t.Errorf("Run = %v", err)
	}
	return f.left <= 0
}

// TestManyNodes shares the work among engines that each lose an answer now and then.
func TestManyNodes(t *testing.T) {
	for _, d := range testdb.Names {
		t.Run(d, func(t *testing.T) {
			const nodes, transfers = 3, 150
			pools := testdb.OpenN(t, d, nodes)
			var wg sync.WaitGroup
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var first *bank
			for i, db := range pools {
				b, err := openBank(db, d)
				if err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					first = b
					if err := b.create(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				e, err := b.engine(&forgetful{Store: b.store}, saga.Config{Node: fmt.Sprint("n", i), Concurrency: 8})
				if err != nil {
					t.Fatal(err)
				}
				wg.Go(func() {
					if err := e.Run(ctx); err != nil {
						t.Errorf("Run = %v", err)
					}
				})
				if i == 0 {
					if err := b.start(t.Context(), e, 0, transfers); err != nil {
						t.Fatal(err)
					}
				}
			}
			first.finished(t, 60*time.Second)
			cancel()
			wg.Wait()
			first.audit(t)
			if n := first.transfers(t); n != transfers {
				t.Errorf("%d transfers, want %d", n, transfers)
			}
		})
	}
}

// forgetful loses every 13th answer.
type forgetful struct {
	saga.Store
	mu sync.Mutex
	n  int
}

func (f *forgetful) forget() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	return f.n%13 == 0
}

func (f *forgetful) Claim(ctx context.Context, c saga.Claim) ([]saga.Record, error) {
	recs, err := f.Store.Claim(ctx, c)
	if err == nil && f.forget() {
		return nil, errCut
	}
	return recs, err
}

func (f *forgetful) Save(ctx context.Context, changes []saga.Change) ([]int, error) {
	lost, err := f.Store.Save(ctx, changes)
	if err == nil && f.forget() {
		return nil, errCut
	}
	return lost, err
}

func (f *forgetful) SaveTx(ctx context.Context, fn func(context.Context, *sql.Tx) (saga.Change, error)) error {
	err := f.Store.SaveTx(ctx, fn)
	if err == nil && f.forget() {
		return errCut
	}
	return err
}
