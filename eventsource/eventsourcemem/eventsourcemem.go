// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package eventsourcemem keeps events, snapshots and the checkpoints of projections in
// memory, for tests and examples. It has transactions of its own, because there is no
// database to have them.
//
//	store := eventsourcemem.New()
//	events, err := eventsource.New(store, eventsource.Config{})
//	...
//	tx := store.Begin()
//	err = events.Append(ctx, tx, "order-42", eventsource.None, placed)
//	...
//	err = tx.Commit()
//	events.Wake()
//
// A lost race is a *eventsource.VersionError from Append, or from Commit if the other
// transaction began earlier and committed later.
package eventsourcemem

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
)

// Store is a log in memory. The events it is given must not be changed any more.
type Store struct {
	mu        sync.Mutex
	all       []eventsource.Recorded // by Cursor, which is the index plus one
	streams   map[string][]int       // indexes into all
	snapshots map[[2]string]eventsource.Snapshot
	open      map[*Tx]time.Time // those with an append
}

var _ eventsource.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	return &Store{streams: make(map[string][]int), snapshots: make(map[[2]string]eventsource.Snapshot), open: make(map[*Tx]time.Time)}
}

// Begin begins a transaction. Its events are seen, and get their places, at its Commit.
func (s *Store) Begin() *Tx { return &Tx{store: s, base: make(map[string]int64)} }

// Tx is a transaction of a Store. Only one goroutine may use it at a time.
type Tx struct {
	store  *Store
	events []eventsource.Recorded
	base   map[string]int64 // the version of each stream that it appends to, when it began to
	any    map[string]bool  // streams to which it appends whatever their version
	done   bool
}

// ExecContext returns an error: there is no SQL here. It makes Tx an [eventsource.Tx].
func (tx *Tx) ExecContext(context.Context, string, ...any) (sql.Result, error) {
	return nil, errors.New("eventsourcemem: no SQL here")
}

// Commit lets the events be seen, or returns a [*eventsource.VersionError] if another
// transaction was first. After the end of the transaction it returns [sql.ErrTxDone].
func (tx *Tx) Commit() error {
	if tx.done {
		return sql.ErrTxDone
	}
	tx.done = true
	s := tx.store
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, tx)
	for stream, base := range tx.base {
		if int64(len(s.streams[stream])) != base && !tx.any[stream] {
			return &eventsource.VersionError{Stream: stream, Want: eventsource.At(base)}
		}
	}
	for _, e := range tx.events {
		list := s.streams[e.Stream]
		e.Version, e.Cursor = int64(len(list))+1, eventsource.Cursor(len(s.all)+1)
		s.streams[e.Stream] = append(list, len(s.all))
		s.all = append(s.all, e)
	}
	return nil
}

// Rollback forgets the events. After the end of the transaction it returns
// [sql.ErrTxDone].
func (tx *Tx) Rollback() error {
	if tx.done {
		return sql.ErrTxDone
	}
	tx.done = true
	tx.store.mu.Lock()
	defer tx.store.mu.Unlock()
	delete(tx.store.open, tx)
	return nil
}

// Append implements [eventsource.Store]. The transaction must be one of this store.
func (s *Store) Append(_ context.Context, tx eventsource.Tx, stream string, want eventsource.Expect, events []eventsource.Event) error {
	t, ok := tx.(*Tx)
	switch {
	case !ok || t == nil || t.store != s:
		return fmt.Errorf("eventsourcemem: the transaction is a %T, want one from this store's Begin", tx)
	case t.done:
		return sql.ErrTxDone
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now().UTC()
	base, begun := t.base[stream]
	if !begun {
		base = int64(len(s.streams[stream]))
	}
	have := base
	for _, e := range t.events {
		if e.Stream == stream {
			have++
		}
	}
	n, exact := want.Version()
	if exact && n != have || want == eventsource.Exists && have == 0 {
		return &eventsource.VersionError{Stream: stream, Want: want}
	}
	t.base[stream] = base
	if !exact && !begun {
		if t.any == nil {
			t.any = make(map[string]bool)
		}
		t.any[stream] = true
	}
	if exact {
		delete(t.any, stream)
	}
	if _, ok := s.open[t]; !ok {
		s.open[t] = now
	}
	for _, e := range events {
		e.Header, e.Time = maps.Clone(e.Header), e.Time.UTC()
		t.events = append(t.events, eventsource.Recorded{Event: e, Stream: stream, Recorded: now})
	}
	return nil
}

// Read implements [eventsource.Store].
func (s *Store) Read(_ context.Context, stream string, after int64, limit int) ([]eventsource.Recorded, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.streams[stream]
	from := int(min(max(after, 0), int64(len(list))))
	list = list[from:min(from+limit, len(list))]
	events := make([]eventsource.Recorded, len(list))
	for i, at := range list {
		events[i] = s.copyOf(at)
	}
	return events, nil
}

func (s *Store) copyOf(at int) eventsource.Recorded {
	e := s.all[at]
	e.Header, e.Data = maps.Clone(e.Header), slices.Clone(e.Data)
	return e
}

// ReadAll implements [eventsource.Store].
func (s *Store) ReadAll(_ context.Context, after eventsource.Cursor, f eventsource.Filter, limit int) (eventsource.Page, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	page := eventsource.Page{Next: max(after, 0)}
	for at := int(page.Next); at < len(s.all); at++ {
		if len(page.Events) == limit {
			page.More = true
			return page, nil
		}
		if selects(f, s.all[at]) {
			page.Events = append(page.Events, s.copyOf(at))
		}
		page.Next = eventsource.Cursor(at + 1)
	}
	return page, nil
}

func selects(f eventsource.Filter, e eventsource.Recorded) bool {
	return (len(f.Types) == 0 || slices.Contains(f.Types, e.Type)) && strings.HasPrefix(e.Stream, f.Prefix) &&
		(f.Shards == 0 || eventsource.Bucket(e.Stream)%f.Shards == f.Shard)
}

// End implements [eventsource.Store].
func (s *Store) End(_ context.Context, stream string) (int64, eventsource.Cursor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.streams[stream]
	if len(list) == 0 {
		return 0, 0, nil
	}
	return int64(len(list)), s.all[list[len(list)-1]].Cursor, nil
}

// Horizon implements [eventsource.Store]. Nothing waits for an open append here, because
// events get their places at the commit.
func (s *Store) Horizon(context.Context) (eventsource.Horizon, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := eventsource.Cursor(len(s.all))
	h := eventsource.Horizon{Cursor: end, Head: end, Open: len(s.open)}
	for _, since := range s.open {
		h.Age = max(h.Age, time.Since(since))
	}
	return h, nil
}

// Snapshot implements [eventsource.Store].
func (s *Store) Snapshot(_ context.Context, stream, name string) (eventsource.Snapshot, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap, ok := s.snapshots[[2]string{stream, name}]
	return snap, ok, nil
}

// SaveSnapshot implements [eventsource.Store].
func (s *Store) SaveSnapshot(_ context.Context, snap eventsource.Snapshot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := [2]string{snap.Stream, snap.Name}
	if old, ok := s.snapshots[key]; !ok || old.Schema != snap.Schema || old.Version < snap.Version {
		snap.State = slices.Clone(snap.State)
		s.snapshots[key] = snap
	}
	return nil
}
