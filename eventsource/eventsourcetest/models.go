// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsourcetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
)

// RunModels checks the models that open returns, fresh and empty ones for each subtest.
func RunModels[T eventsource.ModelTx](t *testing.T, open func(t *testing.T) eventsource.Models[T]) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(s *models[T])
	}{
		{"Lease makes the shards", (*models[T]).create},
		{"a shard has one owner", (*models[T]).owner},
		{"shards can be given back", (*models[T]).drop},
		{"a lease that ran out is free", (*models[T]).expiry},
		{"many owners share the shards", (*models[T]).race},
		{"Advance moves the checkpoint with the transaction", (*models[T]).advance},
		{"Advance is fenced", (*models[T]).fence},
		{"Park stops a shard", (*models[T]).park},
		{"Skip leaves an event out", (*models[T]).skip},
		{"one revision serves", (*models[T]).active},
		{"Remove forgets a revision", (*models[T]).remove},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c.test(&models[T]{T: t, models: open(t), ctx: ctx})
		})
	}
}

type models[T eventsource.ModelTx] struct {
	*testing.T
	models eventsource.Models[T]
	ctx    context.Context //nolint:containedctx // the context of the subtest
}

var orders = eventsource.ProjectionID{Name: "orders", Revision: 1}

const long = time.Hour

func (s *models[T]) lease(owner string, take int, change ...func(*eventsource.ProjectionLease)) eventsource.ProjectionView {
	s.Helper()
	r := eventsource.ProjectionLease{ID: orders, Shards: 4, Owner: owner, TTL: long, Take: take}
	for _, f := range change {
		f(&r)
	}
	return must[eventsource.ProjectionView](s, "Lease")(s.models.Lease(s.ctx, r))
}

// move advances a shard in a transaction of its own.
func (s *models[T]) move(shard int, epoch int64, from, to eventsource.Cursor) bool {
	s.Helper()
	tx := must[T](s, "Begin")(s.models.Begin(s.ctx))
	defer func() { _ = tx.Rollback() }()
	ok := must[bool](s, "Advance")(s.models.Advance(s.ctx, tx, orders, shard, epoch, from, to))
	if ok {
		if err := tx.Commit(); err != nil {
			s.Fatalf("Commit = %v", err)
		}
	}
	return ok
}

func (s *models[T]) shard(n int) eventsource.ProjectionShard {
	s.Helper()
	list := must[[]eventsource.ProjectionShard](s, "Shards")(s.models.Shards(s.ctx, orders))
	if n >= len(list) || list[n].Shard != n {
		s.Fatalf("Shards = %+v, want number %d in its place", list, n)
	}
	return list[n]
}

func (s *models[T]) create() {
	if list := must[[]eventsource.ProjectionShard](s, "Shards")(s.models.Shards(s.ctx, orders)); len(list) != 0 {
		s.Fatalf("Shards at first = %+v, want none", list)
	}
	v := s.lease("a", 0)
	if len(v.Held) != 0 || v.Free != 4 || v.Owners != 1 {
		s.Errorf("Lease = %+v, want 4 free shards and one owner", v)
	}
	for n := range 4 {
		if sh := s.shard(n); sh.Cursor != 0 || sh.Owner != "" || sh.Parked != nil {
			s.Errorf("shard %d = %+v, want it at zero and free", n, sh)
		}
	}
	r := eventsource.ProjectionLease{ID: orders, Shards: 5, Owner: "b", TTL: long}
	if _, err := s.models.Lease(s.ctx, r); err == nil {
		s.Error("Lease with another number of shards = nil, want an error")
	}
	r.ID.Revision = 2
	if v := must[eventsource.ProjectionView](s, "Lease")(s.models.Lease(s.ctx, r)); v.Free != 5 || v.Owners != 1 {
		s.Errorf("Lease of another revision = %+v, want 5 free shards", v)
	}
}

func (s *models[T]) owner() {
	if v := s.lease("a", 3); len(v.Held) != 3 || v.Free != 1 {
		s.Fatalf("Lease of three = %+v, want three", v)
	}
	if v := s.lease("b", 3); len(v.Held) != 1 || v.Free != 0 || v.Owners != 2 {
		s.Fatalf("Lease by another = %+v, want what is left", v)
	}
	if v := s.lease("a", 4); len(v.Held) != 3 {
		s.Errorf("Lease again = %+v, want the same three", v)
	}
}

func (s *models[T]) drop() {
	v := s.lease("a", 4)
	if v := s.lease("a", 0, func(r *eventsource.ProjectionLease) { r.Drop = []int{0, 2} }); len(v.Held) != 2 || v.Free != 2 {
		s.Fatalf("Lease with Drop = %+v, want two held and two free", v)
	}
	// What one does not hold one cannot drop.
	s.lease("b", 0, func(r *eventsource.ProjectionLease) { r.Drop = []int{1} })
	if sh := s.shard(1); sh.Owner != "a" {
		s.Errorf("shard 1 = %+v, want a to hold it", sh)
	}
	if w := s.lease("b", 1); len(w.Held) != 1 || w.Held[0].Epoch <= v.Held[w.Held[0].Shard].Epoch {
		s.Errorf("Lease = %+v, want a larger epoch than in %+v", w, v)
	}
	s.lease("a", 0, func(r *eventsource.ProjectionLease) { r.Leave = true })
	if v := s.lease("b", 4); len(v.Held) != 4 || v.Owners != 1 {
		s.Errorf("Lease after the other has left = %+v, want all and one owner", v)
	}
}

func (s *models[T]) expiry() {
	brief := func(r *eventsource.ProjectionLease) { r.TTL = time.Millisecond }
	s.lease("a", 4, brief)
	for s.shard(0).Owner != "" { // until the lease has run out
		time.Sleep(time.Millisecond)
	}
	old := s.shard(0).Epoch
	if v := s.lease("a", 0); len(v.Held) != 0 {
		s.Errorf("Lease after it ran out = %+v, want nothing held: it may be another's", v)
	}
	v := s.lease("b", 4)
	if len(v.Held) != 4 || v.Held[0].Epoch <= old {
		s.Errorf("Lease = %+v, want all under a new epoch", v)
	}
}

func (s *models[T]) race() {
	var mu sync.Mutex
	held := make(map[int]int)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := eventsource.ProjectionLease{ID: orders, Shards: 4, Owner: fmt.Sprint("o", i), TTL: long, Take: 2}
			v, err := s.models.Lease(s.ctx, r)
			if err != nil {
				s.Errorf("Lease = %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, sh := range v.Held {
				held[sh.Shard]++
			}
		})
	}
	wg.Wait()
	for shard, n := range held {
		if n != 1 {
			s.Errorf("shard %d has %d owners, want one", shard, n)
		}
	}
}

func (s *models[T]) advance() {
	epoch := s.lease("a", 4).Held[2].Epoch
	tx := must[T](s, "Begin")(s.models.Begin(s.ctx))
	if !must[bool](s, "Advance")(s.models.Advance(s.ctx, tx, orders, 2, epoch, 0, 7)) {
		s.Fatal("Advance = false, want true")
	}
	if err := tx.Rollback(); err != nil {
		s.Fatal(err)
	}
	if sh := s.shard(2); sh.Cursor != 0 {
		s.Fatalf("after the rollback the checkpoint is %d, want 0", sh.Cursor)
	}
	if !s.move(2, epoch, 0, 7) || s.shard(2).Cursor != 7 || s.shard(1).Cursor != 0 {
		s.Fatalf("after the commit shards are %+v, %+v, want 2 at 7 and 1 at 0", s.shard(2), s.shard(1))
	}
	if v := s.lease("a", 0); v.Held[2].Cursor != 7 {
		s.Errorf("Lease = %+v, want shard 2 at 7", v)
	}
}

func (s *models[T]) fence() {
	epoch := s.lease("a", 4).Held[0].Epoch
	s.move(0, epoch, 0, 5)
	if s.move(0, epoch, 0, 9) {
		s.Error("Advance from another checkpoint = true, want false")
	}
	s.lease("a", 0, func(r *eventsource.ProjectionLease) { r.Leave = true })
	next := s.lease("b", 4).Held[0].Epoch
	if s.move(0, epoch, 5, 9) {
		s.Error("Advance under an old epoch = true, want false")
	}
	if ok, err := s.models.Park(s.ctx, epoch, 5, eventsource.Parked{ID: orders, At: 6, Event: "e", Reason: "r"}); ok || err != nil {
		s.Errorf("Park under an old epoch = %v, %v, want false", ok, err)
	}
	if !s.move(0, next, 5, 9) {
		s.Error("Advance under the new epoch = false, want true")
	}
}

func (s *models[T]) park() {
	epoch := s.lease("a", 4).Held[3].Epoch
	s.move(3, epoch, 0, 5)
	p := eventsource.Parked{ID: orders, Shard: 3, At: 8, Event: "e-8", Stream: "order-1", Reason: "it \x00 is \xff bad", Attempts: 5}
	if ok, err := s.models.Park(s.ctx, epoch, 4, p); ok || err != nil {
		s.Fatalf("Park from another checkpoint = %v, %v, want false", ok, err)
	}
	if ok, err := s.models.Park(s.ctx, epoch, 5, p); !ok || err != nil {
		s.Fatalf("Park = %v, %v, want true", ok, err)
	}
	got := s.shard(3).Parked
	if got == nil || got.ID != orders || got.Shard != 3 || got.At != 8 || got.Event != "e-8" || got.Stream != "order-1" || got.Attempts != 5 || got.Reason == "" || time.Since(got.Since) > time.Hour {
		s.Fatalf("Parked = %+v, want %+v", got, p)
	}
	if v := s.lease("a", 0); v.Held[3].Parked == nil || v.Held[0].Parked != nil {
		s.Errorf("Lease = %+v, want shard 3 parked", v)
	}
	if s.move(3, epoch, 5, 8) {
		s.Error("Advance of a parked shard = true, want false")
	}
	if ok, err := s.models.Retry(s.ctx, orders, 9); ok || err != nil {
		s.Errorf("Retry elsewhere = %v, %v, want false", ok, err)
	}
	if ok, err := s.models.Retry(s.ctx, orders, 8); !ok || err != nil {
		s.Errorf("Retry = %v, %v, want true", ok, err)
	}
	if ok, err := s.models.Retry(s.ctx, orders, 8); ok || err != nil {
		s.Errorf("Retry again = %v, %v, want false", ok, err)
	}
	if !s.move(3, epoch, 5, 8) {
		s.Error("Advance after Retry = false, want true")
	}
}

func (s *models[T]) skip() {
	epoch := s.lease("a", 4).Held[1].Epoch
	for _, at := range []eventsource.Cursor{8, 12} {
		if ok, err := s.models.Park(s.ctx, epoch, s.shard(1).Cursor, eventsource.Parked{ID: orders, Shard: 1, At: at, Event: fmt.Sprint("e-", at), Stream: "s", Reason: "bad", Attempts: 2}); !ok || err != nil {
			s.Fatalf("Park = %v, %v", ok, err)
		}
		if ok, err := s.models.Skip(s.ctx, orders, 9, "why"); ok || err != nil {
			s.Errorf("Skip elsewhere = %v, %v, want false", ok, err)
		}
		if ok, err := s.models.Skip(s.ctx, orders, at, fmt.Sprint("because ", at)); !ok || err != nil {
			s.Fatalf("Skip = %v, %v, want true", ok, err)
		}
		if ok, err := s.models.Skip(s.ctx, orders, at, "again"); ok || err != nil {
			s.Errorf("Skip again = %v, %v, want false", ok, err)
		}
		if sh := s.shard(1); sh.Cursor != at || sh.Parked != nil {
			s.Errorf("shard = %+v, want it at %d and not parked", sh, at)
		}
	}
	list := must[[]eventsource.Skipped](s, "Skipped")(s.models.Skipped(s.ctx, orders))
	if len(list) != 2 || list[0].At != 8 || list[1].At != 12 || list[0].Because != "because 8" || list[0].Reason != "bad" || list[0].Event != "e-8" || list[0].Shard != 1 || list[0].When.IsZero() {
		s.Errorf("Skipped = %+v, want events 8 and 12 with their reasons", list)
	}
}

func (s *models[T]) active() {
	one, two := orders, eventsource.ProjectionID{Name: orders.Name, Revision: 2}
	for i, c := range []struct {
		id             eventsource.ProjectionID
		force, changed bool
		then           int
	}{
		{one, false, true, 1}, {one, false, false, 1}, {two, false, true, 2}, {one, false, false, 2}, {one, true, true, 1}, {one, true, false, 1},
		{eventsource.ProjectionID{Name: "others", Revision: 7}, false, true, 1},
	} {
		if changed, err := s.models.Activate(s.ctx, c.id, c.force); err != nil || changed != c.changed {
			s.Errorf("%d: Activate(%v, %v) = %v, %v, want %v", i, c.id, c.force, changed, err, c.changed)
		}
		if n, err := s.models.Active(s.ctx, orders.Name); err != nil || n != c.then {
			s.Errorf("%d: Active = %d, %v, want %d", i, n, err, c.then)
		}
	}
	if n, err := s.models.Active(s.ctx, "nothing"); err != nil || n != 0 {
		s.Errorf("Active of nothing = %d, %v, want 0", n, err)
	}
}

func (s *models[T]) remove() {
	s.move(0, s.lease("a", 4).Held[0].Epoch, 0, 5)
	if err := s.models.Remove(s.ctx, orders); err != nil {
		s.Fatalf("Remove = %v", err)
	}
	if list, err := s.models.Shards(s.ctx, orders); err != nil || len(list) != 0 {
		s.Errorf("Shards = %+v, %v, want none", list, err)
	}
	if v := s.lease("a", 4); len(v.Held) != 4 || v.Held[0].Cursor != 0 {
		s.Errorf("Lease = %+v, want it to begin again", v)
	}
}
