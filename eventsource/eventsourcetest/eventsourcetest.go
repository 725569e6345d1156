// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package eventsourcetest checks implementations of [eventsource.Store] and
// [eventsource.Models] against their contracts.
//
//	func TestStore(t *testing.T) {
//		eventsourcetest.Run(t, func(t *testing.T) eventsourcetest.Subject {
//			store := eventsourcemem.New()
//			return eventsourcetest.Subject{
//				Store: store,
//				Begin: func(context.Context) (eventsource.Transaction, error) { return store.Begin(), nil },
//			}
//		})
//	}
package eventsourcetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/messaging"
)

// Subject is an empty store under test.
type Subject struct {
	Store eventsource.Store
	// Begin begins a transaction for Append.
	Begin func(ctx context.Context) (eventsource.Transaction, error)
	// OneWriter tells that only one transaction may be open at a time, as with SQLite, so that
	// what is about two of them is left out.
	OneWriter bool
}

// Run checks the store that open returns, a fresh and empty one for each subtest.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	t.Helper()
	for _, c := range []struct {
		name string
		two  bool // needs two transactions at a time
		test func(s *suite)
	}{
		{"Append is part of the transaction", false, (*suite).transaction},
		{"events come back as they were", false, (*suite).roundTrip},
		{"versions are counted from one", false, (*suite).versions},
		{"Append expects a version", false, (*suite).expect},
		{"a transaction may append several times", false, (*suite).several},
		{"a lost race is a VersionError", true, (*suite).race},
		{"Any waits for its turn", false, (*suite).any},
		{"Read goes on after a version", false, (*suite).read},
		{"ReadAll has everything once and in order", false, (*suite).all},
		{"ReadAll selects", false, (*suite).filter},
		{"End is the last event", false, (*suite).end},
		{"a snapshot is kept until a later one", false, (*suite).snapshot},
		{"an event committed late is not passed over", true, (*suite).late},
		{"an append that is rolled back holds up nobody", true, (*suite).rolledBack},
		{"a stream keeps its order among all", true, (*suite).streamOrder},
		{"many writers lose nothing", false, (*suite).writers},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			if c.two && s.OneWriter {
				t.Skip("one transaction at a time")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			c.test(&suite{T: t, Subject: s, ctx: ctx})
		})
	}
}

type suite struct {
	*testing.T
	Subject
	ctx context.Context //nolint:containedctx // the context of the subtest
}

// must ends the subtest on an error.
func must[V any](t testing.TB, what string) func(V, error) V {
	return func(v V, err error) V {
		t.Helper()
		if err != nil {
			t.Fatalf("%s = %v", what, err)
		}
		return v
	}
}

func (s *suite) ok(what string, err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s = %v, want nil", what, err)
	}
}

func (s *suite) begin() eventsource.Transaction {
	s.Helper()
	tx := must[eventsource.Transaction](s, "Begin")(s.Begin(s.ctx))
	s.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

// make returns n new events.
func (s *suite) make(n int) []eventsource.Event {
	list := make([]eventsource.Event, n)
	for i := range list {
		list[i] = eventsource.Event{ID: messaging.NewID(), Type: "tested.v1", Time: time.Now()}
	}
	return list
}

// put commits n events of a stream and returns their IDs.
func (s *suite) put(stream string, n int) (ids []string) {
	s.Helper()
	events := s.make(n)
	s.ok("append", s.append(stream, eventsource.Any, events...))
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	return ids
}

// append commits events in a transaction of their own.
func (s *suite) append(stream string, want eventsource.Expect, events ...eventsource.Event) error {
	tx, err := s.Begin(s.ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := s.Store.Append(s.ctx, tx, stream, want, events); err != nil {
		return err
	}
	return tx.Commit()
}

// list returns what can be read now, in pages of n.
func (s *suite) list(after eventsource.Cursor, f eventsource.Filter, n int) (events []eventsource.Recorded, next eventsource.Cursor) {
	s.Helper()
	for {
		page := must[eventsource.Page](s, "ReadAll")(s.Store.ReadAll(s.ctx, after, f, n))
		if len(page.Events) > n {
			s.Fatalf("ReadAll = %d events, want at most %d", len(page.Events), n)
		}
		for _, e := range page.Events {
			if e.Cursor <= after || e.Cursor > page.Next {
				s.Fatalf("ReadAll after %d = an event at %d and Next %d, want %d < event <= Next", after, e.Cursor, page.Next, after)
			}
		}
		if page.Next < after {
			s.Fatalf("ReadAll after %d = Next %d, want it not to go back", after, page.Next)
		}
		events, after = append(events, page.Events...), page.Next
		if !page.More {
			return events, after
		}
	}
}

func ids(events []eventsource.Recorded) (list []string) {
	for _, e := range events {
		list = append(list, e.ID)
	}
	return list
}

func (s *suite) same(what string, got, want []string) {
	s.Helper()
	if !slices.Equal(got, want) {
		s.Fatalf("%s = %q, want %q", what, got, want)
	}
}

func (s *suite) transaction() {
	tx := s.begin()
	events := s.make(2)
	s.ok("Append", s.Store.Append(s.ctx, tx, "a", eventsource.None, events))
	if !s.OneWriter {
		s.same("Read before the commit", ids(must[[]eventsource.Recorded](s, "Read")(s.Store.Read(s.ctx, "a", 0, 10))), nil)
	}
	s.ok("Rollback", tx.Rollback())
	got, _ := s.list(0, eventsource.Filter{}, 10)
	s.same("ReadAll after the rollback", ids(got), nil)
	tx = s.begin()
	s.ok("Append", s.Store.Append(s.ctx, tx, "a", eventsource.None, events))
	s.ok("Commit", tx.Commit())
	s.same("Read after the commit", ids(must[[]eventsource.Recorded](s, "Read")(s.Store.Read(s.ctx, "a", 0, 10))), []string{events[0].ID, events[1].ID})
}

func (s *suite) roundTrip() {
	events := []eventsource.Event{
		{
			ID: "1", Type: "order.placed.v1", Time: time.Date(2026, 2, 3, 4, 5, 6, 789, time.UTC),
			Header: messaging.Header{"traceparent": "00-1-2-01", "ce-authid": "käthe", "empty": ""}, Data: []byte("{\"a\":1}\x00\xff"),
		},
		{ID: "2", Type: "order.placed.v1", Time: time.Date(1969, 12, 31, 23, 59, 59, 1, time.FixedZone("x", 3600))},
	}
	const stream = "order-ä 'quoted' \\ ? % $1"
	before := time.Now().Add(-time.Hour)
	s.ok("append", s.append(stream, eventsource.None, events...))
	all, _ := s.list(0, eventsource.Filter{}, 10)
	read := must[[]eventsource.Recorded](s, "Read")(s.Store.Read(s.ctx, stream, 0, 10))
	for what, got := range map[string][]eventsource.Recorded{"Read": read, "ReadAll": all} {
		if len(got) != len(events) {
			s.Fatalf("%s = %d events, want %d", what, len(got), len(events))
		}
		for i, e := range got {
			want := events[i]
			if e.Stream != stream || e.Version != int64(i+1) || e.ID != want.ID || e.Type != want.Type || !e.Time.Equal(want.Time) ||
				!bytes.Equal(e.Data, want.Data) || len(e.Header) != len(want.Header) {
				s.Errorf("%s = %+v, want %+v", what, e, want)
			}
			for name, value := range want.Header {
				if e.Header[name] != value {
					s.Errorf("%s: Header[%q] = %q, want %q", what, name, e.Header[name], value)
				}
			}
			if e.Recorded.Before(before) || e.Recorded.After(before.Add(2*time.Hour)) {
				s.Errorf("%s: Recorded = %v, want about now", what, e.Recorded)
			}
		}
	}
}

func (s *suite) versions() {
	const many = 1203 // more than one statement can take
	s.put("a", 3)
	s.put("a", many)
	var versions []int64
	for after := int64(0); ; {
		page := must[[]eventsource.Recorded](s, "Read")(s.Store.Read(s.ctx, "a", after, 500))
		for _, e := range page {
			versions = append(versions, e.Version)
		}
		if len(page) < 500 {
			break
		}
		after = page[len(page)-1].Version
	}
	for i, v := range versions {
		if v != int64(i+1) {
			s.Fatalf("version of event %d = %d, want %d", i, v, i+1)
		}
	}
	if len(versions) != many+3 {
		s.Fatalf("Read = %d events, want %d", len(versions), many+3)
	}
}

func (s *suite) expect() {
	s.put("three", 3)
	for _, c := range []struct {
		stream string
		want   eventsource.Expect
		ok     bool
	}{
		{"new", eventsource.Exists, false},
		{"new", eventsource.At(1), false},
		{"new", eventsource.None, true}, // now it has two
		{"new", eventsource.None, false},
		{"three", eventsource.None, false},
		{"three", eventsource.At(2), false},
		{"three", eventsource.At(4), false},
		{"three", eventsource.At(3), true}, // now it has five
		{"three", eventsource.At(3), false},
		{"three", eventsource.Exists, true},
		{"three", eventsource.Any, true},
		{"newer", eventsource.Any, true},
		{"three", eventsource.At(9), true},
	} {
		err := s.append(c.stream, c.want, s.make(2)...)
		var lost *eventsource.VersionError
		switch {
		case c.ok && err != nil:
			s.Errorf("Append to %q, expecting %v = %v, want nil", c.stream, c.want, err)
		case !c.ok && !errors.As(err, &lost):
			s.Errorf("Append to %q, expecting %v = %v, want a VersionError", c.stream, c.want, err)
		case !c.ok && (lost.Stream != c.stream || lost.Want != c.want):
			s.Errorf("VersionError = %+v, want stream %q and %v", lost, c.stream, c.want)
		}
	}
	for stream, want := range map[string]int64{"new": 2, "three": 11, "newer": 2} {
		if v, _, err := s.Store.End(s.ctx, stream); err != nil || v != want {
			s.Errorf("End of %q = %d, %v, want %d: all of an append or nothing", stream, v, err, want)
		}
	}
}

func (s *suite) several() {
	tx := s.begin()
	for i, c := range []struct {
		stream string
		want   eventsource.Expect
	}{
		{"a", eventsource.None}, {"b", eventsource.Any}, {"a", eventsource.At(1)}, {"b", eventsource.Exists}, {"a", eventsource.Any}, {"b", eventsource.At(2)},
	} {
		if err := s.Store.Append(s.ctx, tx, c.stream, c.want, s.make(1)); err != nil {
			s.Fatalf("Append %d = %v, want nil", i, err)
		}
	}
	s.ok("Commit", tx.Commit())
	var got []string
	all, _ := s.list(0, eventsource.Filter{}, 4)
	for _, e := range all {
		got = append(got, fmt.Sprint(e.Stream, e.Version))
	}
	s.same("ReadAll", got, []string{"a1", "b1", "a2", "b2", "a3", "b3"})
}

func (s *suite) race() {
	for _, base := range []int{0, 1} {
		stream := fmt.Sprint("s", base)
		if base > 0 {
			s.put(stream, base)
		}
		first, second := s.begin(), s.begin()
		s.ok("Append", s.Store.Append(s.ctx, first, stream, eventsource.At(int64(base)), s.make(1)))
		lost := make(chan error, 1)
		go func() {
			err := s.Store.Append(s.ctx, second, stream, eventsource.At(int64(base)), s.make(2))
			if err == nil {
				err = second.Commit()
			}
			lost <- err
		}()
		// In a database that locks, the second waits for the first; in any other it has to
		// come first to its commit. Both ways one of the two loses.
		var err error
		done := false
		select {
		case err = <-lost:
			done = true
		case <-time.After(50 * time.Millisecond):
		}
		err = errors.Join(err, first.Commit())
		if !done {
			err = errors.Join(err, <-lost)
		}
		var v *eventsource.VersionError
		if !errors.As(err, &v) || !errors.Is(err, eventsource.ErrVersion) {
			s.Fatalf("the second Append at %d = %v, want a VersionError", base, err)
		}
		_ = second.Rollback()
		if n, _, err := s.Store.End(s.ctx, stream); err != nil || n != int64(base)+1 && n != int64(base)+2 {
			s.Fatalf("End = %d, %v, want one of the appends", n, err)
		}
	}
}

func (s *suite) any() {
	const writers, each = 8, 5
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				want := eventsource.Any
				if i > 0 {
					want = eventsource.Exists
				}
				errs[w] = errors.Join(errs[w], s.append("shared", want, s.make(2)...))
			}
		})
	}
	wg.Wait()
	s.ok("Append by many", errors.Join(errs...))
	if n, _, err := s.Store.End(s.ctx, "shared"); err != nil || n != writers*each*2 {
		s.Fatalf("End = %d, %v, want %d", n, err, writers*each*2)
	}
}

func (s *suite) read() {
	want := s.put("a", 7)
	s.put("b", 2)
	for _, c := range []struct{ after, limit, from, to int }{{0, 3, 0, 3}, {3, 3, 3, 6}, {6, 3, 6, 7}, {7, 3, 7, 7}, {90, 3, 7, 7}, {0, 100, 0, 7}} {
		got := must[[]eventsource.Recorded](s, "Read")(s.Store.Read(s.ctx, "a", int64(c.after), c.limit))
		s.same(fmt.Sprintf("Read after %d, limit %d", c.after, c.limit), ids(got), want[c.from:c.to])
	}
	s.same("Read of a stream that does not exist", ids(must[[]eventsource.Recorded](s, "Read")(s.Store.Read(s.ctx, "c", 0, 3))), nil)
	// A name is one to the last byte, and not a pattern.
	s.same("Read of A", ids(must[[]eventsource.Recorded](s, "Read")(s.Store.Read(s.ctx, "A", 0, 3))), nil)
	s.same("Read of %", ids(must[[]eventsource.Recorded](s, "Read")(s.Store.Read(s.ctx, "%", 0, 3))), nil)
}

func (s *suite) all() {
	var want []string
	for i := range 10 {
		want = append(want, s.put(fmt.Sprint("s", i%3), 1+i%4)...)
	}
	for _, n := range []int{1, 3, len(want), 1000} {
		got, next := s.list(0, eventsource.Filter{}, n)
		s.same(fmt.Sprintf("ReadAll in pages of %d", n), ids(got), want)
		for i := 1; i < len(got); i++ {
			if got[i].Cursor <= got[i-1].Cursor {
				s.Fatalf("cursors %d, %d, want them to grow", got[i-1].Cursor, got[i].Cursor)
			}
		}
		more := s.put("later", 2)
		rest, _ := s.list(next, eventsource.Filter{}, n)
		s.same("ReadAll of what came then", ids(rest), more)
		want = append(want, more...)
	}
	h := must[eventsource.Horizon](s, "Horizon")(s.Store.Horizon(s.ctx))
	if got, next := s.list(0, eventsource.Filter{}, 1000); h.Cursor < got[len(got)-1].Cursor || next > h.Head {
		s.Errorf("Horizon = %+v, want Cursor at least %d and Head at least %d", h, got[len(got)-1].Cursor, next)
	}
}

func (s *suite) filter() {
	var want []string
	shards := make(map[int][]string)
	for i := range 40 {
		e := s.make(1)
		stream := fmt.Sprint("order-", i)
		if i%4 == 0 {
			stream = fmt.Sprint("orders%", i)
		}
		e[0].Type = fmt.Sprint("t", i%3)
		s.ok("append", s.append(stream, eventsource.None, e...))
		if i%4 != 0 && i%3 != 1 {
			want = append(want, e[0].ID)
		}
		shards[eventsource.Bucket(stream)%3] = append(shards[eventsource.Bucket(stream)%3], e[0].ID)
	}
	end, _ := s.list(0, eventsource.Filter{}, 100)
	for _, n := range []int{1, 7, 100} {
		got, next := s.list(0, eventsource.Filter{Types: []string{"t0", "t2", "other"}, Prefix: "order-"}, n)
		s.same("ReadAll by type and prefix", ids(got), want)
		if next < end[len(end)-1].Cursor {
			s.Errorf("Next = %d, want it past what was not selected, to %d", next, end[len(end)-1].Cursor)
		}
		for shard := range 3 {
			got, _ := s.list(0, eventsource.Filter{Shard: shard, Shards: 3}, n)
			s.same(fmt.Sprint("ReadAll of shard ", shard), ids(got), shards[shard])
		}
	}
	if len(shards) != 3 {
		s.Errorf("40 streams lie in %d shards, want 3", len(shards))
	}
	s.put("a", 1)
	space := s.put("a b", 1)
	// More than a store may write in one statement.
	s.ok("append", s.append("many", eventsource.None, s.make(1001)...))
	if v, _, err := s.Store.End(s.ctx, "many"); v != 1001 || err != nil {
		s.Errorf("End after an append of 1001 events = %d, %v", v, err)
	}
	got, _ := s.list(0, eventsource.Filter{Prefix: "a "}, 10)
	s.same("ReadAll by a prefix with a space at its end", ids(got), space)
}

func (s *suite) end() {
	if v, at, err := s.Store.End(s.ctx, "a"); v != 0 || at != 0 || err != nil {
		s.Errorf("End of no stream = %d, %d, %v, want zeros", v, at, err)
	}
	s.put("a", 3)
	s.put("b", 1)
	v, at, err := s.Store.End(s.ctx, "a")
	all, _ := s.list(0, eventsource.Filter{}, 10)
	if err != nil || v != 3 || at != all[2].Cursor {
		s.Errorf("End = %d, %d, %v, want 3 at %d", v, at, err, all[2].Cursor)
	}
}

func (s *suite) snapshot() {
	get := func(name string) string {
		snap, ok, err := s.Store.Snapshot(s.ctx, "a", name)
		s.ok("Snapshot", err)
		if !ok {
			return "none"
		}
		return fmt.Sprintf("%s %s %s %d %s", snap.Stream, snap.Name, snap.Schema, snap.Version, snap.State)
	}
	for i, c := range []struct {
		name, schema string
		version      int64
		state        string
		want         string
	}{
		{"n", "1", 10, "ten\x00", "a n 1 10 ten\x00"},
		{"n", "1", 20, "twenty", "a n 1 20 twenty"},
		{"n", "1", 15, "late", "a n 1 20 twenty"},
		{"n", "2", 12, "another schema", "a n 2 12 another schema"},
		{"m", "1", 1, "", "a m 1 1 "},
	} {
		s.ok("SaveSnapshot", s.Store.SaveSnapshot(s.ctx, eventsource.Snapshot{Stream: "a", Name: c.name, Schema: c.schema, Version: c.version, State: []byte(c.state)}))
		if got := get(c.name); got != c.want {
			s.Errorf("%d: Snapshot = %q, want %q", i, got, c.want)
		}
	}
	if got := get("other"); got != "none" {
		s.Errorf("Snapshot of another name = %q, want none", got)
	}
}

func (s *suite) late() {
	early := s.put("before", 1)
	open := s.begin()
	held := s.make(2)
	s.ok("Append", s.Store.Append(s.ctx, open, "held", eventsource.None, held))
	behind := s.put("behind", 2)
	got, next := s.list(0, eventsource.Filter{}, 1)
	if len(got) == 0 || got[0].ID != early[0] {
		s.Fatalf("ReadAll = %q, want at least %q: it was before the open append", ids(got), early)
	}
	s.ok("Commit", open.Commit())
	rest, _ := s.list(next, eventsource.Filter{}, 1)
	all := append(ids(got), ids(rest)...)
	slices.Sort(all)
	want := slices.Sorted(slices.Values(slices.Concat(early, behind, []string{held[0].ID, held[1].ID})))
	s.same("everything, sorted", all, want)
}

func (s *suite) rolledBack() {
	open := s.begin()
	s.ok("Append", s.Store.Append(s.ctx, open, "held", eventsource.None, s.make(2)))
	want := s.put("behind", 1)
	s.ok("Rollback", open.Rollback())
	got, _ := s.list(0, eventsource.Filter{}, 10)
	s.same("ReadAll", ids(got), want)
}

func (s *suite) streamOrder() {
	// The second event's transaction is the older one, and has appended before.
	old := s.begin()
	s.ok("Append", s.Store.Append(s.ctx, old, "other", eventsource.None, s.make(1)))
	first := s.put("a", 1)
	second := s.make(1)
	s.ok("Append", s.Store.Append(s.ctx, old, "a", eventsource.At(1), second))
	s.ok("Commit", old.Commit())
	all, _ := s.list(0, eventsource.Filter{Prefix: "a"}, 1)
	s.same("ReadAll", ids(all), []string{first[0], second[0].ID})
}

func (s *suite) writers() {
	const writers, each, streams = 12, 20, 5
	reader, stop := context.WithCancel(s.ctx)
	var seen []eventsource.Recorded
	var after eventsource.Cursor
	done := make(chan error, 1)
	go func() {
		for {
			page, err := s.Store.ReadAll(s.ctx, after, eventsource.Filter{}, 7)
			seen, after = append(seen, page.Events...), page.Next
			if err != nil || reader.Err() != nil {
				done <- err
				return
			}
		}
	}()
	var mu sync.Mutex
	committed := make(map[string]bool)
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for range each {
				stream := fmt.Sprint("s", rand.IntN(streams))
				for {
					v, _, err := s.Store.End(s.ctx, stream)
					events := s.make(1 + rand.IntN(3))
					if err == nil {
						err = s.append(stream, eventsource.At(v), events...)
					}
					if errors.Is(err, eventsource.ErrVersion) {
						continue
					}
					if err != nil {
						errs[w] = err
						return
					}
					mu.Lock()
					for _, e := range events {
						committed[e.ID] = true
					}
					mu.Unlock()
					break
				}
			}
		})
	}
	wg.Wait()
	stop()
	s.ok("Append by many", errors.Join(errs...))
	s.ok("ReadAll meanwhile", <-done)
	rest, _ := s.list(after, eventsource.Filter{}, 100)
	seen = append(seen, rest...)
	versions := make(map[string]int64)
	var wrong []string
	for _, e := range seen {
		if e.Version != versions[e.Stream]+1 {
			wrong = append(wrong, fmt.Sprintf("%s: %d after %d", e.Stream, e.Version, versions[e.Stream]))
		}
		versions[e.Stream] = e.Version
		if !committed[e.ID] {
			s.Errorf("event %s was seen and not committed, or seen twice", e.ID)
		}
		delete(committed, e.ID)
	}
	if len(committed) > 0 {
		s.Errorf("%d of %d events were never seen", len(committed), len(committed)+len(seen))
	}
	if len(wrong) > 0 {
		s.Errorf("versions out of order: %s", strings.Join(wrong, "; "))
	}
}
