// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagatest

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/saga"
)

// end ends claimed sagas, with two entries in the history of each.
func (s *storeTest) end(status saga.Status, recs ...saga.Record) {
	s.Helper()
	var changes []saga.Change
	for _, r := range recs {
		c := change(r)
		c.Status, c.Step, c.Reason, c.Due, c.Release = status, "", "why", saga.DueNever, true
		c.Data, c.Notes = []byte(`{"n":2}`), []byte(`{"cause":1}`)
		c.Entries = []saga.Entry{{Step: "reserve", Op: "do", Outcome: "done"}, {Op: "end", Outcome: "done", Who: "ann"}}
		changes = append(changes, c)
	}
	if lost := s.save(changes...); len(lost) > 0 {
		s.Fatalf("Save was lost")
	}
}

func (s *storeTest) archived(age time.Duration, limit, want int) {
	s.Helper()
	if n, err := s.Store.Archive(s.Context(), age, limit); n != want || err != nil {
		s.Errorf("Archive(%v, %d) = %d, %v, want %d", age, limit, n, err, want)
	}
}

func (s *storeTest) archive() {
	b := beginning("a")
	b.Header, b.Deadline = messaging.Header{"trace": "1"}, time.Hour
	s.tx(true, func(tx saga.Tx) { s.ok("Start", s.Store.Start(s.Context(), tx, b)) })
	recs := s.claim("n", 1)
	recs = append(recs, s.ownedBy("n", "b", "c", "d")...)
	s.deliver(reply("a", "pay", "do", "1"))
	s.end(saga.Completed, recs[0], recs[1])
	s.end(saga.Compensated, recs[2])
	before := map[string]saga.Record{"a": s.load("a"), "c": s.load("c"), "d": s.load("d")}
	history, err := s.Store.History(s.Context(), "a")
	s.ok("History", err)

	s.archived(time.Hour, 10, 0)
	s.archived(-time.Hour, 1, 1)
	s.archived(-time.Hour, 10, 2)
	s.archived(-time.Hour, 10, 0)
	for id, want := range before {
		got := s.load(id)
		want.Archived = id != "d"
		want.Now, got.Now = time.Time{}, time.Time{}
		if !reflect.DeepEqual(got, want) {
			s.Errorf("Load %s = %+v, want %+v", id, got, want)
		}
	}
	again, err := s.Store.History(s.Context(), "a")
	if err != nil || !slices.Equal(again, history) || len(again) != 2 {
		s.Errorf("History = %+v, %v, want as before %+v", again, err, history)
	}
	if list, err := s.Store.Signals(s.Context(), "a"); err != nil || len(list) > 0 {
		s.Errorf("Signals = %v, %v, want none of an archived saga", list, err)
	}
	s.deliver(reply("a", "ship", "do", "late"))
	if lost := s.save(change(s.load("a"))); len(lost) != 1 {
		s.Errorf("Save of an archived saga was not lost")
	}
	s.same("claimed", ids(s.claim("n2", 10)), []string{})
	c, err := s.Store.Count(s.Context())
	if err != nil || c.Running != 1 {
		s.Errorf("Count = %+v, %v, want one running", c, err)
	}
	for _, f := range []struct {
		filter saga.Filter
		want   []string
	}{
		{saga.Filter{}, []string{"d"}},
		{saga.Filter{Archived: true}, []string{"a", "b", "c"}},
		{saga.Filter{Archived: true, Status: saga.Compensated}, []string{"c"}},
		{saga.Filter{Archived: true, Status: saga.Running}, []string{}},
		{saga.Filter{Archived: true, Stuck: true}, []string{}},
		{saga.Filter{Archived: true, Name: "order", Version: 1, Prefix: "b"}, []string{"b"}},
		{saga.Filter{Archived: true, Name: "refund"}, []string{}},
		{saga.Filter{Archived: true, Age: time.Hour}, []string{}},
	} {
		f.filter.Limit = 10
		recs, err := s.Store.List(s.Context(), f.filter)
		s.ok("List", err)
		got := ids(recs)
		slices.Sort(got)
		s.same(fmt.Sprintf("List(%+v)", f.filter), got, f.want)
		for _, r := range recs {
			if r.Archived != f.filter.Archived || r.ID == "a" && !bytes.Equal(r.Data, before["a"].Data) {
				s.Errorf("List(%+v) gave %+v", f.filter, r)
			}
		}
	}
	var paged []string
	for f := (saga.Filter{Archived: true, Limit: 2}); len(paged) <= 3; {
		recs, err := s.Store.List(s.Context(), f)
		s.ok("List", err)
		if paged = append(paged, ids(recs)...); len(recs) < 2 {
			break
		}
		f.After = recs[1].ID
	}
	slices.Sort(paged)
	s.same("all pages together", paged, []string{"a", "b", "c"})
}

func (s *storeTest) archiveStart() {
	s.end(saga.Completed, s.ownedBy("n", "a")...)
	s.archived(-time.Hour, 10, 1)
	s.start("a")
	for what, change := range map[string]func(*saga.Beginning){
		"another input": func(b *saga.Beginning) { b.Input = "input-2" },
		"another name":  func(b *saga.Beginning) { b.Name = "refund" },
	} {
		b := beginning("a")
		change(&b)
		s.tx(true, func(tx saga.Tx) {
			if err := s.Store.Start(s.Context(), tx, b); !errors.Is(err, saga.ErrConflict) {
				s.Errorf("Start with %s = %v, want ErrConflict", what, err)
			}
			s.ok("Start behind the conflict", s.Store.Start(s.Context(), tx, beginning("b")))
		})
	}
	if r := s.load("a"); r.Status != saga.Completed || !r.Archived {
		s.Errorf("the saga is %+v, want it completed and archived", r)
	}
	s.same("claimed", ids(s.claim("n", 10)), []string{"b"})
}

func (s *storeTest) archiveRoot() {
	recs := s.ownedBy("n", "root")
	for _, id := range []string{"root/a", "root/a/b"} {
		b := beginning(id)
		b.Root = "root"
		s.tx(true, func(tx saga.Tx) { s.ok("Start", s.Store.Start(s.Context(), tx, b)) })
	}
	s.end(saga.Completed, s.claim("n", 2)...)
	s.archived(-time.Hour, 10, 0)
	if n, err := s.Store.Prune(s.Context(), -time.Hour, 10); n != 0 || err != nil {
		s.Errorf("Prune = %d, %v, want 0", n, err)
	}
	s.end(saga.Completed, recs...)
	s.archived(-time.Hour, 10, 3)
}

func (s *storeTest) archiveRace() {
	const sagas, racers = 40, 4
	names := make([]string, sagas)
	for i := range names {
		names[i] = fmt.Sprintf("s%02d", i)
	}
	s.end(saga.Completed, s.ownedBy("n", names...)...)
	var mu sync.Mutex
	total := 0
	var wg sync.WaitGroup
	for range racers {
		wg.Go(func() {
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
				n, err := s.Store.Archive(s.Context(), -time.Hour, 7)
				mu.Lock()
				if err != nil {
					s.Errorf("Archive = %v, want nil", err)
				}
				total += n
				done := total >= sagas || err != nil
				mu.Unlock()
				if done {
					return
				}
			}
		})
	}
	wg.Wait()
	list, err := s.Store.List(s.Context(), saga.Filter{Archived: true, Limit: 100})
	s.ok("List", err)
	left, err := s.Store.List(s.Context(), saga.Filter{Limit: 100})
	s.ok("List", err)
	if total != sagas || len(list) != sagas || len(left) != 0 {
		s.Errorf("%d were moved, %d are in the archive, %d are left, want all of %d in the archive", total, len(list), len(left), sagas)
	}
	for _, id := range names {
		if h, err := s.Store.History(s.Context(), id); err != nil || len(h) != 2 {
			s.Errorf("History of %s = %v, %v, want two entries", id, h, err)
		}
	}
}

// archiveStartRace starts sagas again while they are being archived. Some of these starts
// may not see the archive; whatever they leave must never run.
func (s *storeTest) archiveStartRace() {
	const sagas = 30
	names := make([]string, sagas)
	for i := range names {
		names[i] = fmt.Sprintf("s%02d", i)
	}
	s.end(saga.Completed, s.ownedBy("n", names...)...)
	var wg sync.WaitGroup
	wg.Go(func() {
		for total, deadline := 0, time.Now().Add(20*time.Second); total < sagas && time.Now().Before(deadline); {
			n, err := s.Store.Archive(s.Context(), -time.Hour, 1)
			if err != nil {
				s.Errorf("Archive = %v, want nil", err)
				return
			}
			total += n
		}
	})
	for _, id := range names {
		s.start(id)
	}
	wg.Wait()
	s.same("claimed", ids(s.claim("n2", sagas)), []string{})
	for _, id := range names {
		if r := s.load(id); r.Status != saga.Completed || !r.Archived {
			s.Errorf("%s is %+v, want it completed and archived", id, r)
		}
	}
	s.archived(-time.Hour, 10, 0)
	if left, err := s.Store.List(s.Context(), saga.Filter{Limit: 100}); err != nil || len(left) > 0 {
		s.Errorf("List = %v, %v, want nothing left behind", ids(left), err)
	}
}

func (s *storeTest) archivePrune() {
	s.end(saga.Completed, s.ownedBy("n", "a", "b", "c")...)
	s.archived(-time.Hour, 2, 2)
	s.deliver(reply("a", "ship", "do", "late"))
	if n, err := s.Store.Prune(s.Context(), time.Hour, 10); n != 0 || err != nil {
		s.Errorf("Prune of what is older than an hour = %d, %v, want 0", n, err)
	}
	if n, err := s.Store.Prune(s.Context(), -time.Hour, 1); n != 1 || err != nil {
		s.Errorf("Prune of one = %d, %v, want 1", n, err)
	}
	if n, err := s.Store.Prune(s.Context(), -time.Hour, 10); n != 2 || err != nil {
		s.Errorf("Prune = %d, %v, want 2", n, err)
	}
	for _, id := range []string{"a", "b", "c"} {
		s.gone(id)
		h, err := s.Store.History(s.Context(), id)
		list, err2 := s.Store.Signals(s.Context(), id)
		if err != nil || err2 != nil || len(h) > 0 || len(list) > 0 {
			s.Errorf("of %s there are left the history %v, %v, and the signals %v, %v", id, h, err, list, err2)
		}
	}
	s.start("a")
	s.same("claimed", ids(s.claim("n", 10)), []string{"a"})
}
