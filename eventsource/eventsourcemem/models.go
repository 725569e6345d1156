// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsourcemem

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
)

// Models keeps the checkpoints of projections whose read models are in memory.
type Models struct {
	turn chan struct{} // full while a transaction is open

	mu      sync.Mutex
	shards  map[eventsource.ProjectionID][]shard
	owners  map[eventsource.ProjectionID]map[string]time.Time // until when
	active  map[string]int
	skipped map[eventsource.ProjectionID][]eventsource.Skipped
}

type shard struct {
	eventsource.ProjectionShard
	expires time.Time
}

var _ eventsource.Models[*ModelTx] = (*Models)(nil)

// NewModels returns empty models.
func NewModels() *Models {
	return &Models{
		turn:   make(chan struct{}, 1),
		shards: make(map[eventsource.ProjectionID][]shard), owners: make(map[eventsource.ProjectionID]map[string]time.Time),
		active: make(map[string]int), skipped: make(map[eventsource.ProjectionID][]eventsource.Skipped),
	}
}

// ModelTx is a transaction of Models. One is open at a time, as in SQLite.
type ModelTx struct {
	models   *Models
	commit   []func()
	advances []advance
	done     bool
}

type advance struct {
	id    eventsource.ProjectionID
	shard int
	to    eventsource.Cursor
}

// OnCommit has f called if the transaction commits: it is what changes the read model.
// The functions are called in the order of the calls, and no other transaction's meanwhile.
func (tx *ModelTx) OnCommit(f func()) { tx.commit = append(tx.commit, f) }

// Commit calls the functions and moves the checkpoint.
func (tx *ModelTx) Commit() error {
	if tx.done {
		return sql.ErrTxDone
	}
	tx.done = true
	defer func() { <-tx.models.turn }()
	for _, f := range tx.commit {
		f()
	}
	tx.models.mu.Lock()
	defer tx.models.mu.Unlock()
	for _, a := range tx.advances {
		if list := tx.models.shards[a.id]; a.shard < len(list) {
			list[a.shard].Cursor = a.to
		}
	}
	return nil
}

// Rollback forgets the functions.
func (tx *ModelTx) Rollback() error {
	if tx.done {
		return sql.ErrTxDone
	}
	tx.done = true
	<-tx.models.turn
	return nil
}

// Begin implements [eventsource.Models].
func (m *Models) Begin(ctx context.Context) (*ModelTx, error) {
	select {
	case m.turn <- struct{}{}:
		return &ModelTx{models: m}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Lease implements [eventsource.Models].
func (m *Models) Lease(_ context.Context, r eventsource.ProjectionLease) (eventsource.ProjectionView, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	list := m.shards[r.ID]
	if list == nil {
		list = make([]shard, r.Shards)
		for i := range list {
			list[i].Shard = i
		}
		m.shards[r.ID] = list
		m.owners[r.ID] = make(map[string]time.Time)
	}
	if len(list) != r.Shards {
		return eventsource.ProjectionView{}, fmt.Errorf("eventsourcemem: projection %v has %d shards, want %d as at first", r.ID, r.Shards, len(list))
	}
	for i := range list {
		if s := &list[i]; s.Owner == r.Owner && (r.Leave || slices.Contains(r.Drop, i)) {
			s.Owner, s.expires = "", time.Time{}
		}
	}
	if r.Leave {
		delete(m.owners[r.ID], r.Owner)
		return eventsource.ProjectionView{}, nil
	}
	m.owners[r.ID][r.Owner] = now.Add(r.TTL)
	var v eventsource.ProjectionView
	for owner, until := range m.owners[r.ID] {
		if until.After(now) {
			v.Owners++
		} else {
			delete(m.owners[r.ID], owner)
		}
	}
	take := r.Take
	for i := range list {
		s := &list[i]
		switch {
		case s.Owner == r.Owner && s.expires.After(now):
			s.expires = now.Add(r.TTL)
		case !s.expires.After(now) && take > 0:
			take--
			s.Owner, s.expires = r.Owner, now.Add(r.TTL)
			s.Epoch++
		case !s.expires.After(now):
			v.Free++
			continue
		default:
			continue
		}
		v.Held = append(v.Held, s.ProjectionShard)
	}
	return v, nil
}

// at returns a shard if it is as expected. The caller holds the lock.
func (m *Models) at(id eventsource.ProjectionID, n int, epoch int64, from eventsource.Cursor) *shard {
	if n >= len(m.shards[id]) {
		return nil
	}
	if s := &m.shards[id][n]; s.Epoch == epoch && s.Cursor == from && s.Parked == nil {
		return s
	}
	return nil
}

// Advance implements [eventsource.Models].
func (m *Models) Advance(_ context.Context, tx *ModelTx, id eventsource.ProjectionID, n int, epoch int64, from, to eventsource.Cursor) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at(id, n, epoch, from) == nil {
		return false, nil
	}
	tx.advances = append(tx.advances, advance{id, n, to})
	return true, nil
}

// Park implements [eventsource.Models].
func (m *Models) Park(_ context.Context, epoch int64, from eventsource.Cursor, p eventsource.Parked) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.at(p.ID, p.Shard, epoch, from)
	if s == nil {
		return false, nil
	}
	p.Since = time.Now().UTC()
	s.Parked = &p
	return true, nil
}

// parked returns the shard that is parked at an event. The caller holds the lock.
func (m *Models) parked(id eventsource.ProjectionID, at eventsource.Cursor) *shard {
	for i := range m.shards[id] {
		if s := &m.shards[id][i]; s.Parked != nil && s.Parked.At == at {
			return s
		}
	}
	return nil
}

// Retry implements [eventsource.Models].
func (m *Models) Retry(_ context.Context, id eventsource.ProjectionID, at eventsource.Cursor) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.parked(id, at)
	if s != nil {
		s.Parked = nil
	}
	return s != nil, nil
}

// Skip implements [eventsource.Models].
func (m *Models) Skip(_ context.Context, id eventsource.ProjectionID, at eventsource.Cursor, reason string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.parked(id, at)
	if s == nil {
		return false, nil
	}
	m.skipped[id] = append(m.skipped[id], eventsource.Skipped{Parked: *s.Parked, Because: reason, When: time.Now().UTC()})
	s.Parked, s.Cursor = nil, at
	return true, nil
}

// Skipped implements [eventsource.Models].
func (m *Models) Skipped(_ context.Context, id eventsource.ProjectionID) ([]eventsource.Skipped, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := slices.Clone(m.skipped[id])
	slices.SortStableFunc(list, func(a, b eventsource.Skipped) int { return cmp.Compare(a.At, b.At) })
	return list, nil
}

// Shards implements [eventsource.Models].
func (m *Models) Shards(_ context.Context, id eventsource.ProjectionID) ([]eventsource.ProjectionShard, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]eventsource.ProjectionShard, len(m.shards[id]))
	for i, s := range m.shards[id] {
		list[i] = s.ProjectionShard
		if !s.expires.After(time.Now()) {
			list[i].Owner = ""
		}
		if s.Parked != nil {
			p := *s.Parked
			list[i].Parked = &p
		}
	}
	return list, nil
}

// Active implements [eventsource.Models].
func (m *Models) Active(_ context.Context, name string) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.active[name], nil
}

// Activate implements [eventsource.Models].
func (m *Models) Activate(_ context.Context, id eventsource.ProjectionID, force bool) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := m.active[id.Name]; now == id.Revision || now > id.Revision && !force {
		return false, nil
	}
	m.active[id.Name] = id.Revision
	return true, nil
}

// Remove implements [eventsource.Models].
func (m *Models) Remove(_ context.Context, id eventsource.ProjectionID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.shards, id)
	delete(m.owners, id)
	delete(m.skipped, id)
	return nil
}
