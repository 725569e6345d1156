// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package outboxmem keeps an outbox in memory, for tests and examples: what the
// process does not publish before it ends is lost. It has transactions of its own,
// because there is no database to have them.
//
//	store := outboxmem.New()
//	box, err := outbox.New(store, outbox.Config{})
//	...
//	tx := store.Begin()
//	err = box.Enqueue(ctx, tx, message)
//	...
//	err = tx.Commit()
//	box.Wake()
package outboxmem

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/outbox"
)

// Shards is the number of shards of a Store.
const Shards = 16

// Store is an outbox in memory. The messages it is given must not be changed any more.
type Store struct {
	mu     sync.Mutex
	lastID int64
	rows   [Shards][]entry // by ID
	leases [Shards]lease
	relays map[string]time.Time // until when
	parked map[int64]parked
}

type entry struct {
	outbox.Row
	at time.Time
}

type lease struct {
	owner   string
	epoch   int64
	expires time.Time
}

type parked struct {
	outbox.Parked
	entry
}

var _ outbox.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	return &Store{relays: make(map[string]time.Time), parked: make(map[int64]parked)}
}

// Begin begins a transaction. As in a database, the order of its messages is that of their
// Enqueue, and they are seen from its Commit on.
func (s *Store) Begin() *Tx { return &Tx{store: s} }

// Tx is a transaction of a Store. Only one goroutine may use it at a time.
type Tx struct {
	store *Store
	rows  []entry
	done  bool
}

// ExecContext returns an error: there is no SQL here. It makes Tx an [outbox.Tx].
func (tx *Tx) ExecContext(context.Context, string, ...any) (sql.Result, error) {
	return nil, errors.New("outboxmem: no SQL here")
}

// Commit lets the messages be seen. After the end of the transaction it returns
// [sql.ErrTxDone].
func (tx *Tx) Commit() error {
	if tx.done {
		return sql.ErrTxDone
	}
	tx.done = true
	s := tx.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range tx.rows {
		s.put(e)
	}
	return nil
}

// Rollback forgets the messages. After the end of the transaction it returns
// [sql.ErrTxDone].
func (tx *Tx) Rollback() error {
	if tx.done {
		return sql.ErrTxDone
	}
	tx.done = true
	return nil
}

// put adds an entry at its place.
func (s *Store) put(e entry) {
	list := s.rows[e.Shard]
	at, _ := slices.BinarySearchFunc(list, e.ID, func(o entry, id int64) int { return int(o.ID - id) })
	s.rows[e.Shard] = slices.Insert(list, at, e)
}

// take removes a row and returns it.
func (s *Store) take(shard int, id int64) (entry, bool) {
	list := s.rows[shard]
	at, found := slices.BinarySearchFunc(list, id, func(o entry, id int64) int { return int(o.ID - id) })
	if !found {
		return entry{}, false
	}
	e := list[at]
	s.rows[shard] = slices.Delete(list, at, at+1)
	return e, true
}

// Shards implements [outbox.Store].
func (s *Store) Shards() int { return Shards }

// Insert implements [outbox.Store]. The transaction must be one of this store.
func (s *Store) Insert(_ context.Context, tx outbox.Tx, rows []outbox.Row) error {
	t, ok := tx.(*Tx)
	switch {
	case !ok || t == nil || t.store != s:
		return fmt.Errorf("outboxmem: the transaction is a %T, want one from this store's Begin", tx)
	case t.done:
		return sql.ErrTxDone
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range rows {
		s.lastID++
		r.ID = s.lastID
		m := *r.Message
		m.Header = maps.Clone(m.Header)
		m.Time = m.Time.UTC()
		r.Message = &m
		t.rows = append(t.rows, entry{Row: r, at: time.Now()})
	}
	return nil
}

// Lease implements [outbox.Store].
func (s *Store) Lease(_ context.Context, r outbox.LeaseRequest) (view outbox.LeaseView, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	until := now.Add(r.TTL)
	for _, d := range r.Drop {
		if l := &s.leases[d.Shard]; l.owner == r.Relay && l.epoch == d.Epoch {
			l.owner, l.expires = "", time.Time{}
		}
	}
	if r.Leave {
		for i := range s.leases {
			if l := &s.leases[i]; l.owner == r.Relay {
				l.owner, l.expires = "", time.Time{}
			}
		}
		delete(s.relays, r.Relay)
		return view, nil
	}
	s.relays[r.Relay] = until
	maps.DeleteFunc(s.relays, func(_ string, until time.Time) bool { return !until.After(now) })
	view.Relays = len(s.relays)
	for i := range s.leases {
		l := &s.leases[i]
		switch {
		case l.expires.After(now) && l.owner == r.Relay:
			l.expires = until
		case l.expires.After(now):
			if left := l.expires.Sub(now); view.NextExpiry == 0 || left < view.NextExpiry {
				view.NextExpiry = left
			}
			continue
		case r.Take > 0:
			r.Take--
			*l = lease{owner: r.Relay, epoch: l.epoch + 1, expires: until}
		default:
			view.Free++
			continue
		}
		view.Held = append(view.Held, outbox.Lease{Shard: i, Epoch: l.epoch})
	}
	return view, nil
}

// Read implements [outbox.Store].
func (s *Store) Read(_ context.Context, reads []outbox.Read) (rows []outbox.Row, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	blocked := make(map[string]bool)
	for _, p := range s.parked {
		if p.Blocks {
			blocked[p.Row.Message.Key] = true
		}
	}
	for _, read := range reads {
		n := 0
		behind := make(map[string]bool) // keys with a row of a skipped topic
		for _, e := range s.rows[read.Shard] {
			m := e.Message
			if n == read.Limit {
				break
			}
			if slices.Contains(read.SkipTopics, m.Topic) {
				behind[m.Key] = true
				continue
			}
			if slices.Contains(read.SkipIDs, e.ID) || m.Key != "" && (blocked[m.Key] || behind[m.Key] || slices.Contains(read.SkipKeys, m.Key)) {
				continue
			}
			e.Age = time.Since(e.at)
			rows = append(rows, e.Row)
			n++
		}
	}
	return rows, nil
}

// Settle implements [outbox.Store].
func (s *Store) Settle(_ context.Context, settlements []outbox.Settlement) (lost []int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range settlements {
		if s.leases[t.Shard].epoch != t.Epoch {
			lost = append(lost, t.Shard)
			continue
		}
		for _, id := range t.IDs {
			s.take(t.Shard, id)
		}
	}
	return lost, nil
}

// Park implements [outbox.Store].
func (s *Store) Park(_ context.Context, l outbox.Lease, p outbox.Parking) (lost bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leases[l.Shard].epoch != l.Epoch {
		return true, nil
	}
	if e, ok := s.take(l.Shard, p.ID); ok {
		s.parked[p.ID] = parked{entry: e, Parked: outbox.Parked{
			Message: e.Message, Reason: p.Reason, Attempts: p.Attempts, Since: time.Now().UTC(), Blocks: p.Block,
		}}
	}
	return false, nil
}

// Parked implements [outbox.Store].
func (s *Store) Parked(_ context.Context, discarded bool, limit int) (list []outbox.Parked, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.parked)) {
		if p := s.parked[id]; p.Discarded.IsZero() != discarded && len(list) < limit {
			list = append(list, p.Parked)
		}
	}
	return list, nil
}

// Retry implements [outbox.Store].
func (s *Store) Retry(_ context.Context, id string) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, p := range s.parked {
		if p.Discarded.IsZero() && (id == "" || p.Parked.Message.ID == id) {
			delete(s.parked, key)
			s.put(p.entry)
			n++
		}
	}
	return n, nil
}

// Discard implements [outbox.Store].
func (s *Store) Discard(_ context.Context, id, reason string) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, p := range s.parked {
		if p.Discarded.IsZero() && p.Parked.Message.ID == id {
			p.Discarded, p.DiscardReason, p.Blocks = time.Now().UTC(), reason, false
			s.parked[key] = p
			n++
		}
	}
	return n, nil
}

// Prune implements [outbox.Store].
func (s *Store) Prune(_ context.Context, age time.Duration) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := time.Now().Add(-age)
	for key, p := range s.parked {
		if !p.Discarded.IsZero() && !p.Discarded.After(limit) {
			delete(s.parked, key)
			n++
		}
	}
	return n, nil
}

// Stats implements [outbox.Store].
func (s *Store) Stats(context.Context) (st outbox.Stats, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, list := range s.rows {
		st.Depth += len(list)
		for _, e := range list {
			st.OldestAge = max(st.OldestAge, now.Sub(e.at))
		}
	}
	for _, p := range s.parked {
		if p.Discarded.IsZero() {
			st.Parked++
		}
	}
	return st, nil
}
