// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package idempotencymem keeps an inbox and idempotency keys in memory: for tests, for
// examples, and for a single process whose commands need not be remembered over a
// restart.
//
//	store := idempotencymem.New()
//	protect, err := idempotency.HTTP(store, idempotency.HTTPConfig{Scope: principal})
//
// The inbox needs transactions, so the store brings a [database/sql] handle of its own:
// [Store.OpenDB]. Its transactions hold marks, saved answers and savepoints, and nothing
// else; they behave like a real database's with the isolation level read committed, so
// what is built on [idempotency.Consumer] and [idempotency.Save] can be tested without one.
package idempotencymem

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/idempotency"
)

// twinWait bounds the waiting for another transaction that holds the same mark.
const twinWait = 5 * time.Second

// Store keeps marks and commands. It implements [idempotency.Inbox] and
// [idempotency.TxStore]. It grows until [Store.Prune].
type Store struct {
	mu    sync.Mutex
	marks map[name]*mark
	keys  map[idempotency.Key]*entry
}

var (
	_ idempotency.Inbox   = (*Store)(nil)
	_ idempotency.TxStore = (*Store)(nil)
)

// New returns an empty store.
func New() *Store {
	return &Store{marks: map[name]*mark{}, keys: map[idempotency.Key]*entry{}}
}

type name struct{ consumer, id string }

// mark says that a message was handled, or is being.
type mark struct {
	owner *transaction // the open transaction that changes it, nil once committed
	gone  bool         // what the owner wants is that it be forgotten
	at    time.Time
}

// entry is one command.
type entry struct {
	token       string
	fingerprint []byte
	leaseUntil  time.Time
	expires     time.Time
	done        bool
	result      []byte
	owner       *transaction // the open transaction that completes it
}

// Begin implements [idempotency.Store].
func (s *Store) Begin(ctx context.Context, cmd idempotency.Command) (idempotency.Claim, error) {
	if err := cmd.Validate(); err != nil {
		return idempotency.Claim{}, err
	}
	if err := ctx.Err(); err != nil {
		return idempotency.Claim{}, err
	}
	claim := idempotency.Claim{Key: cmd.Key, Lease: cmd.Lease, Token: rand.Text()}
	if claim.Lease == 0 {
		claim.Lease = idempotency.DefaultLease
	}
	if cmd.Retention == 0 {
		cmd.Retention = idempotency.DefaultRetention
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if e := s.keys[cmd.Key]; e != nil && !e.forgotten(now) {
		switch {
		case !bytes.Equal(e.fingerprint, cmd.Fingerprint):
			return idempotency.Claim{}, idempotency.ErrMismatch
		case e.done:
			return idempotency.Claim{Key: cmd.Key, Lease: claim.Lease, Done: true, Result: slices.Clone(e.result)}, nil
		case e.leased(now):
			return idempotency.Claim{}, idempotency.ErrInProgress
		}
	}
	s.keys[cmd.Key] = &entry{
		token:       claim.Token,
		fingerprint: slices.Clone(cmd.Fingerprint),
		leaseUntil:  now.Add(claim.Lease),
		expires:     now.Add(cmd.Retention),
	}
	return claim, nil
}

// leased reports whether the command belongs to its owner.
func (e *entry) leased(now time.Time) bool {
	return e.owner != nil || !e.done && e.leaseUntil.After(now)
}

// forgotten reports whether the retention is over.
func (e *entry) forgotten(now time.Time) bool { return !e.expires.After(now) && !e.leased(now) }

// own returns the entry that belongs to c, or nil.
func (s *Store) own(c idempotency.Claim) *entry {
	if e := s.keys[c.Key]; e != nil && e.token == c.Token {
		return e
	}
	return nil
}

// Extend implements [idempotency.Store].
func (s *Store) Extend(ctx context.Context, c idempotency.Claim) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.own(c)
	if e == nil || e.done {
		return idempotency.ErrLeaseLost
	}
	e.leaseUntil = time.Now().Add(c.Lease)
	return nil
}

// Complete implements [idempotency.Store].
func (s *Store) Complete(ctx context.Context, c idempotency.Claim, result []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.own(c)
	switch {
	case e == nil:
		return idempotency.ErrLeaseLost
	case e.owner != nil:
		return fmt.Errorf("idempotencymem: a transaction that completes %q is still open", c.Key.ID)
	case !e.done:
		e.done, e.result = true, slices.Clone(result)
	}
	return nil
}

// Release implements [idempotency.Store].
func (s *Store) Release(ctx context.Context, c idempotency.Claim) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.own(c)
	switch {
	case e == nil || e.done:
	case e.owner != nil:
		return fmt.Errorf("idempotencymem: a transaction that completes %q is still open", c.Key.ID)
	default:
		delete(s.keys, c.Key)
	}
	return nil
}

// CompleteTx implements [idempotency.TxStore]; tx must come from [Store.OpenDB].
func (s *Store) CompleteTx(ctx context.Context, tx idempotency.Tx, c idempotency.Claim, result []byte) error {
	result = slices.Clone(result)
	_, err := s.exec(ctx, tx, func(_ context.Context, t *transaction) (int64, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		e := s.own(c)
		if e == nil || e.owner != nil && e.owner != t {
			return 0, idempotency.ErrLeaseLost
		}
		before := e.owner
		e.owner = t
		t.do(action{
			commit: func() { e.owner, e.done, e.result = nil, true, result },
			undo:   func() { e.owner = before },
		})
		return 1, nil
	})
	return err
}

// Once implements [idempotency.Inbox]; tx must come from [Store.OpenDB].
func (s *Store) Once(ctx context.Context, tx idempotency.Tx, consumer, id string) (bool, error) {
	if err := idempotency.ValidateMark(consumer, id); err != nil {
		return false, err
	}
	n, err := s.exec(ctx, tx, func(ctx context.Context, t *transaction) (int64, error) {
		return s.once(ctx, t, name{consumer, id})
	})
	return n == 1, err
}

// OnceMany implements [idempotency.Inbox]; tx must come from [Store.OpenDB].
func (s *Store) OnceMany(ctx context.Context, tx idempotency.Tx, consumer string, ids []string) ([]bool, error) {
	for _, id := range ids {
		if err := idempotency.ValidateMark(consumer, id); err != nil {
			return nil, err
		}
	}
	first := make([]bool, len(ids))
	order := make([]int, len(ids))
	for i := range order {
		order[i] = i
	}
	// In one order for all, or two batches could wait for each other.
	slices.SortStableFunc(order, func(a, b int) int { return strings.Compare(ids[a], ids[b]) })
	for _, i := range order {
		var err error
		if first[i], err = s.Once(ctx, tx, consumer, ids[i]); err != nil {
			return nil, err
		}
	}
	return first, nil
}

// Forget implements [idempotency.Inbox]; tx must come from [Store.OpenDB].
func (s *Store) Forget(ctx context.Context, tx idempotency.Tx, consumer string, ids ...string) error {
	_, err := s.exec(ctx, tx, func(ctx context.Context, t *transaction) (n int64, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, id := range ids {
			m, err := s.lock(ctx, t, name{consumer, id})
			if err != nil {
				return n, err
			}
			if !m.gone {
				n++
				s.set(t, name{consumer, id}, m, true)
			}
		}
		return n, nil
	})
	return err
}

// once makes the mark, unless it is there.
func (s *Store) once(ctx context.Context, t *transaction, n name) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.lock(ctx, t, n)
	if err != nil || !m.gone {
		return 0, err
	}
	s.set(t, n, m, false)
	return 1, nil
}

// lock waits until no other transaction is at the mark, and returns it as t sees it: one
// that does not exist is gone. Where waiting would close a circle, it does not wait.
func (s *Store) lock(ctx context.Context, t *transaction, n name) (*mark, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, twinWait, idempotency.ErrInProgress)
	defer cancel()
	for {
		m := s.marks[n]
		if m == nil {
			return &mark{gone: true}, nil
		}
		if m.owner == nil || m.owner == t {
			return m, nil
		}
		if m.owner.waitsFor(t) {
			return nil, idempotency.ErrInProgress
		}
		twin := m.owner.ended
		t.waits = m
		s.mu.Unlock()
		select {
		case <-twin:
		case <-ctx.Done():
		}
		s.mu.Lock()
		t.waits = nil
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// waitsFor reports whether t can go on only once other has ended. Each transaction looks
// before it waits, so there are no circles among those that wait.
func (t *transaction) waitsFor(other *transaction) bool {
	for t.waits != nil && t.waits.owner != nil {
		if t = t.waits.owner; t == other {
			return true
		}
	}
	return false
}

// set has t make or forget the mark.
func (s *Store) set(t *transaction, n name, m *mark, gone bool) {
	before := *m
	*m = mark{owner: t, gone: gone, at: time.Now()}
	s.marks[n] = m
	settle := func() {
		m.owner = nil
		if m.gone {
			delete(s.marks, n)
		}
	}
	t.do(action{commit: settle, undo: func() {
		if *m = before; m.owner == nil {
			settle()
		}
	}})
}

// Prune forgets the marks that are older than olderThan and the commands whose
// retention is over, and returns how many there were.
func (s *Store) Prune(ctx context.Context, olderThan time.Duration) (int64, error) {
	if olderThan <= 0 {
		return 0, fmt.Errorf("idempotencymem: olderThan is %v, want longer than any redelivery", olderThan)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	var n int64
	for k, m := range s.marks {
		if m.owner == nil && now.Sub(m.at) > olderThan {
			delete(s.marks, k)
			n++
		}
	}
	for k, e := range s.keys {
		if e.forgotten(now) {
			delete(s.keys, k)
			n++
		}
	}
	return n, nil
}
