// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package sagamem keeps sagas in the memory of one process, for tests and examples.
//
// It behaves like sagasql except for what memory cannot do. Nothing outlives the
// process. There is no transaction: [saga.Start] may be given a nil Tx and takes
// effect at once, and local steps and OnEnd get a nil *sql.Tx. A local step
// whose change comes too late is not rolled back, so with several engines on one
// store it is not exactly once.
package sagamem

import (
	"cmp"
	"context"
	"database/sql"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/saga"
)

// Store is a saga.Store in memory.
type Store struct {
	mu    sync.Mutex
	sagas map[string]*row      // by ID, the archived ones too
	nodes map[string]time.Time // until when the lease lasts
	// signals are what was delivered, by saga; locks are the holders by key; queue are
	// those that wait for a key, oldest first.
	signals map[string][]signal
	locks   map[string]string
	queue   map[string][]string
}

type signal struct {
	saga.Signal
	at time.Time
}

type row struct {
	saga.Record
	input   string
	root    string
	history []saga.Entry
}

// New returns an empty store.
func New() *Store {
	return &Store{
		sagas: map[string]*row{}, nodes: map[string]time.Time{},
		signals: map[string][]signal{}, locks: map[string]string{}, queue: map[string][]string{},
	}
}

var _ saga.Store = (*Store)(nil)

// Start implements saga.Store. It does not use tx.
func (s *Store) Start(ctx context.Context, _ saga.Tx, b saga.Beginning) error {
	begun, err := s.Begin(ctx, []saga.Beginning{b})
	return cmp.Or(err, begun[0].Err)
}

// Begin implements saga.Store.
func (s *Store) Begin(ctx context.Context, list []saga.Beginning) ([]saga.Begun, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	begun := make([]saga.Begun, len(list))
	if err := ctx.Err(); err != nil {
		return begun, err
	}
	for i, b := range list {
		begun[i] = s.begin(b)
	}
	return begun, nil
}

func (s *Store) begin(b saga.Beginning) saga.Begun {
	if old := s.sagas[b.ID]; old != nil {
		if old.Name != b.Name || old.input != b.Input {
			return saga.Begun{Err: saga.ErrConflict}
		}
		return saga.Begun{}
	}
	now := time.Now()
	r := &row{input: b.Input, root: b.Root}
	r.Notes, r.Signals = slices.Clone(b.Notes), int64(len(s.signals[b.ID]))
	r.Instance = saga.Instance{
		ID: b.ID, Name: b.Name, Version: b.Version, Status: saga.Running, Step: b.Step,
		Data: slices.Clone(b.Data), Header: header(b.Header), Created: now, Updated: now, WakeAt: now,
	}
	if b.Deadline > 0 {
		r.Deadline = now.Add(b.Deadline)
	}
	s.sagas[b.ID] = r
	if b.Owner == "" {
		return saga.Begun{}
	}
	r.Owner, r.Epoch = b.Owner, 1
	rec := r.read(now)
	return saga.Begun{Record: &rec}
}

// Beat implements saga.Store.
func (s *Store) Beat(ctx context.Context, node string, lease time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for id, until := range s.nodes {
		if until.Before(now) {
			delete(s.nodes, id)
		}
	}
	s.nodes[node] = now.Add(lease)
	return ctx.Err()
}

// Leave implements saga.Store.
func (s *Store) Leave(ctx context.Context, node string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.nodes, node)
	for _, r := range s.sagas {
		if r.Owner == node {
			r.Owner = ""
		}
	}
	return ctx.Err()
}

// Claim implements saga.Store.
func (s *Store) Claim(ctx context.Context, c saga.Claim) ([]saga.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	var due []*row
	for _, r := range s.sagas {
		known := slices.Contains(c.Definitions, saga.DefinitionKey{Name: r.Name, Version: r.Version})
		if !known {
			known = r.WakeAt.Before(now.Add(-c.Foreign))
		}
		free := r.Owner == "" || !s.nodes[r.Owner].After(now)
		if known && free && !r.WakeAt.IsZero() && !r.WakeAt.After(now) {
			due = append(due, r)
		}
	}
	slices.SortFunc(due, func(a, b *row) int {
		return cmp.Or(a.WakeAt.Compare(b.WakeAt), cmp.Compare(a.ID, b.ID))
	})
	due = due[:min(len(due), c.Limit)]
	recs := make([]saga.Record, len(due))
	for i, r := range due {
		if r.Owner != "" {
			r.Takeovers++
		}
		r.Owner = c.Node
		r.Epoch++
		recs[i] = r.read(now)
	}
	return recs, nil
}

// Owned implements saga.Store.
func (s *Store) Owned(ctx context.Context, node string) ([]saga.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	var recs []saga.Record
	for _, r := range s.sagas {
		if r.Owner == node {
			recs = append(recs, r.read(now))
		}
	}
	return recs, ctx.Err()
}

// Save implements saga.Store.
func (s *Store) Save(ctx context.Context, changes []saga.Change) (lost []int, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range changes {
		if !s.save(c) {
			lost = append(lost, i)
		}
	}
	return lost, nil
}

func (s *Store) save(c saga.Change) bool {
	r := s.sagas[c.ID]
	if r == nil || r.Archived || r.Epoch != c.Epoch || r.Revision != c.Revision {
		return false
	}
	now := time.Now()
	r.Status, r.Step, r.Attempt, r.Reason = c.Status, c.Step, c.Attempt, c.Reason
	r.Stuck, r.Parked, r.Cancel, r.Data = c.Stuck, c.Parked, c.Cancel, slices.Clone(c.Data)
	r.Revision, r.Takeovers, r.Updated, r.Notes = c.NewRevision(), 0, now, slices.Clone(c.Notes)
	if c.Version != 0 {
		r.Version = c.Version
	}
	for i, e := range c.Entries {
		e.N, e.At = c.Revision+1+int64(i), now
		r.history = append(r.history, e)
	}
	switch c.Due {
	case saga.DueAfter:
		r.WakeAt = now.Add(c.After)
	case saga.DueNever:
		r.WakeAt = time.Time{}
	case saga.DueWait:
		switch {
		case r.Signals != c.Signals:
			r.WakeAt = now
		case c.After > 0:
			r.WakeAt = now.Add(c.After)
		default:
			r.WakeAt = time.Time{}
		}
	}
	if c.Release {
		r.Owner = ""
	}
	return true
}

// SaveTx implements saga.Store. It calls fn with a nil transaction.
func (s *Store) SaveTx(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx) (saga.Change, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := fn(ctx, nil)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.save(c) {
		return saga.ErrLost
	}
	return nil
}

// Load implements saga.Store.
func (s *Store) Load(ctx context.Context, id string) (saga.Record, error) {
	if err := ctx.Err(); err != nil {
		return saga.Record{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.sagas[id]
	if r == nil {
		return saga.Record{}, saga.ErrNotFound
	}
	return r.read(time.Now()), nil
}

// List implements saga.Store.
func (s *Store) List(ctx context.Context, f saga.Filter) ([]saga.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rows []*row
	for _, r := range s.sagas {
		if r.Archived == f.Archived && (f.Status == 0 || r.Status == f.Status) && (f.Name == "" || r.Name == f.Name) && (!f.Stuck || r.Stuck != "") &&
			(f.Version == 0 || r.Version == f.Version) && strings.HasPrefix(r.ID, f.Prefix) && !r.Created.After(time.Now().Add(-f.Age)) {
			rows = append(rows, r)
		}
	}
	newest := func(a, b *row) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.ID, a.ID))
	}
	slices.SortFunc(rows, newest)
	if f.After != "" {
		last := s.sagas[f.After]
		rows = slices.DeleteFunc(rows, func(r *row) bool { return last == nil || newest(r, last) <= 0 })
	}
	rows = rows[:min(len(rows), f.Limit)]
	now := time.Now()
	recs := make([]saga.Record, len(rows))
	for i, r := range rows {
		recs[i] = r.read(now)
	}
	return recs, ctx.Err()
}

// History implements saga.Store.
func (s *Store) History(ctx context.Context, id string) ([]saga.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.sagas[id]; r != nil {
		return slices.Clone(r.history), ctx.Err()
	}
	return nil, ctx.Err()
}

// ended reports whether a saga has ended before a time, and whatever could have it undone.
func (s *Store) ended(r *row, before time.Time) bool {
	root := s.sagas[r.root]
	return r.Status.Ended() && r.Updated.Before(before) && (root == nil || root.Status.Ended())
}

// Archive implements saga.Store.
func (s *Store) Archive(ctx context.Context, age time.Duration, limit int) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := time.Now().Add(-age)
	for id, r := range s.sagas {
		if n < limit && !r.Archived && s.ended(r, before) {
			r.Archived = true
			delete(s.signals, id)
			n++
		}
	}
	return n, ctx.Err()
}

// Prune implements saga.Store.
func (s *Store) Prune(ctx context.Context, age time.Duration, limit int) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := time.Now().Add(-age)
	for id, r := range s.sagas {
		if n < limit && s.ended(r, before) {
			delete(s.sagas, id)
			delete(s.signals, id)
			n++
		}
	}
	for id, list := range s.signals {
		if s.sagas[id] == nil && list[len(list)-1].at.Before(before) {
			delete(s.signals, id)
		}
	}
	return n, ctx.Err()
}

// Deliver implements saga.Store. It does not use tx.
func (s *Store) Deliver(ctx context.Context, _ saga.Tx, g saga.Signal) (first bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, old := range s.signals[g.Saga] {
		if old.Step == g.Step && old.Op == g.Op {
			return false, nil
		}
	}
	g.Data = slices.Clone(g.Data)
	s.signals[g.Saga] = append(s.signals[g.Saga], signal{g, time.Now()})
	s.poke(g.Saga)
	return true, nil
}

// poke tells a saga that something has come for it.
func (s *Store) poke(id string) {
	r := s.sagas[id]
	if r == nil || r.Archived {
		return
	}
	if r.Signals++; !r.Status.Ended() && !r.Parked {
		r.WakeAt = time.Now()
	}
}

// Signals implements saga.Store.
func (s *Store) Signals(ctx context.Context, id string) ([]saga.Signal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []saga.Signal
	for _, g := range s.signals[id] {
		g.Data = slices.Clone(g.Data)
		list = append(list, g.Signal)
	}
	return list, ctx.Err()
}

// Lock implements saga.Store. It does not use tx.
func (s *Store) Lock(ctx context.Context, _ *sql.Tx, key, id string) (holder string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locks[key] == "" {
		s.locks[key] = id
	}
	s.queue[key] = slices.DeleteFunc(s.queue[key], func(w string) bool { return w == id && s.locks[key] == id })
	if s.locks[key] != id && !slices.Contains(s.queue[key], id) {
		s.queue[key] = append(s.queue[key], id)
	}
	return s.locks[key], nil
}

// Unlock implements saga.Store. It does not use tx.
func (s *Store) Unlock(ctx context.Context, _ *sql.Tx, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, queue := range s.queue {
		s.queue[key] = slices.DeleteFunc(queue, func(w string) bool { return w == id })
	}
	for key, holder := range s.locks {
		if holder != id {
			continue
		}
		delete(s.locks, key)
		if len(s.queue[key]) > 0 {
			s.poke(s.queue[key][0])
		}
	}
	return nil
}

// Count implements saga.Store.
func (s *Store) Count(ctx context.Context) (saga.Counts, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var c saga.Counts
	for _, r := range s.sagas {
		switch r.Status {
		case saga.Running:
			c.Running++
		case saga.Compensating:
			c.Compensating++
		default:
			continue
		}
		if r.Stuck != "" {
			c.Stuck++
		}
		c.Oldest = max(c.Oldest, time.Since(r.Created))
	}
	return c, ctx.Err()
}

// header returns a copy, nil if it is empty.
func header(h messaging.Header) messaging.Header {
	if len(h) == 0 {
		return nil
	}
	return maps.Clone(h)
}

// read returns a copy for a caller.
func (r *row) read(now time.Time) saga.Record {
	rec := r.Record
	rec.Data, rec.Notes, rec.Header = slices.Clone(rec.Data), slices.Clone(rec.Notes), header(rec.Header)
	rec.Now = now
	return rec
}
