// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagatest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/saga"
)

// The checks of what sagas wait for: signals and locks.
var waitChecks = []storeCheck{
	{"the first signal of a step and operation counts", false, (*storeTest).signals},
	{"a signal makes a saga due and is counted", false, (*storeTest).signalled},
	{"a signal before the start is counted at the start", false, (*storeTest).signalledBefore},
	{"a signal that a wait has not seen makes it due at once", false, (*storeTest).waitUnseen},
	{"a wait is due after its delay", false, (*storeTest).waitDelay},
	{"a signal that is rolled back has not come", true, (*storeTest).signalRolledBack},
	{"a signal does not wake what is parked or has ended", false, (*storeTest).signalParked},
	{"a start and a signal at once never miss each other", true, (*storeTest).signalRace},
	{"a key has one holder at a time and its end wakes those who wait", false, (*storeTest).locks},
	{"of concurrent locks one wins and the others are woken", false, (*storeTest).lockRace},
	{"a lock that is rolled back was not taken", true, (*storeTest).lockRolledBack},
	{"notes and a new version are kept", false, (*storeTest).notes},
	{"list filters by version prefix and age", false, (*storeTest).listMore},
	{"count counts what has not ended", false, (*storeTest).counts},
	{"prune deletes signals with their saga and those for none", false, (*storeTest).pruneSignals},
	{"a batch keeps large and strange texts", false, (*storeTest).batchTexts},
	{"begin starts sagas for their owners as if these had claimed them", false, (*storeTest).begin},
	{"begin treats what exists as start does", false, (*storeTest).beginAgain},
	{"of concurrent begins one has the saga", false, (*storeTest).beginRace},
	{"archive moves what ended long ago and it is still found", false, (*storeTest).archive},
	{"a start of an archived saga is as that of any other", false, (*storeTest).archiveStart},
	{"archive and prune leave what can still be undone", false, (*storeTest).archiveRoot},
	{"concurrent archives move each saga once", false, (*storeTest).archiveRace},
	{"a start against an archive never makes a saga run again", true, (*storeTest).archiveStartRace},
	{"prune deletes archived sagas", false, (*storeTest).archivePrune},
}

func reply(id, step, op, data string) saga.Signal {
	return saga.Signal{Saga: id, Step: step, Op: op, Data: []byte(data)}
}

func (s *storeTest) deliver(g saga.Signal) bool {
	s.Helper()
	first, err := s.Store.Deliver(s.Context(), nil, g)
	s.ok("Deliver", err)
	return first
}

func (s *storeTest) signals() {
	s.start("a")
	for i, c := range []struct {
		signal saga.Signal
		want   bool
	}{
		{reply("a", "pay", "do", `"1"`), true}, {reply("a", "pay", "do", `"2"`), false}, {reply("a", "pay", "undo", `"3"`), true},
		{reply("a", "ship", "do", `"4"`), true}, {reply("b", "pay", "do", `"5"`), true},
	} {
		if got := s.deliver(c.signal); got != c.want {
			s.Errorf("Deliver %d = %v, want %v", i+1, got, c.want)
		}
	}
	list, err := s.Store.Signals(s.Context(), "a")
	s.ok("Signals", err)
	var got []string
	for _, g := range list {
		got = append(got, fmt.Sprint(g.Saga, g.Step, g.Op, string(g.Data)))
	}
	slices.Sort(got)
	s.same("signals", got, []string{`apaydo"1"`, `apayundo"3"`, `ashipdo"4"`})
	if n := s.load("a").Signals; n != 3 {
		s.Errorf("the saga counts %d signals, want 3", n)
	}
}

// wait puts a claimed saga to wait.
func (s *storeTest) wait(r saga.Record, after time.Duration) {
	s.Helper()
	c := change(r)
	c.Due, c.After, c.Release, c.Signals = saga.DueWait, after, true, r.Signals
	if lost := s.save(c); len(lost) > 0 {
		s.Fatalf("Save was lost")
	}
}

func (s *storeTest) signalled() {
	s.wait(s.ownedBy("n", "a")[0], 0)
	if got := s.load("a"); !got.WakeAt.IsZero() {
		s.Errorf("a saga that waits without a limit is due at %v", got.WakeAt)
	}
	s.same("claimed", ids(s.claim("n", 1)), []string{})
	s.deliver(reply("a", "pay", "do", "1"))
	recs := s.claim("n", 1)
	s.same("claimed after the signal", ids(recs), []string{"a"})
	s.wait(recs[0], 0)
	s.deliver(reply("a", "pay", "do", "2")) // a repetition is nothing new
	s.same("claimed after a repetition", ids(s.claim("n", 1)), []string{})
}

func (s *storeTest) signalledBefore() {
	s.deliver(reply("a", "pay", "do", "1"))
	b := beginning("a")
	b.Waits = true
	s.tx(true, func(tx saga.Tx) { s.ok("Start", s.Store.Start(s.Context(), tx, b)) })
	if n := s.load("a").Signals; n != 1 {
		s.Errorf("the saga counts %d signals, want 1", n)
	}
	if list, err := s.Store.Signals(s.Context(), "a"); err != nil || len(list) != 1 {
		s.Errorf("Signals = %v, %v, want one", list, err)
	}
}

func (s *storeTest) waitUnseen() {
	for _, after := range []time.Duration{0, time.Hour} {
		id := after.String()
		r := s.ownedBy("n", id)[0]
		s.deliver(reply(id, "pay", "do", "1"))
		s.wait(r, after)
		s.same("claimed", ids(s.eventually("n", id)), []string{id})
	}
}

func (s *storeTest) waitDelay() {
	r := s.ownedBy("n", "a")[0]
	s.wait(r, time.Hour)
	if got := s.load("a"); got.WakeAt.Sub(got.Updated) != time.Hour {
		s.Errorf("due %v after the change, want 1h", got.WakeAt.Sub(got.Updated))
	}
	s.same("claimed", ids(s.claim("n", 1)), []string{})
}

func (s *storeTest) signalRolledBack() {
	s.wait(s.ownedBy("n", "a")[0], 0)
	s.tx(false, func(tx saga.Tx) {
		first, err := s.Store.Deliver(s.Context(), tx, reply("a", "pay", "do", "1"))
		if !first || err != nil {
			s.Errorf("Deliver = %v, %v, want true", first, err)
		}
	})
	if list, err := s.Store.Signals(s.Context(), "a"); err != nil || len(list) != 0 || s.load("a").Signals != 0 {
		s.Errorf("Signals = %v, %v, want none", list, err)
	}
	s.same("claimed", ids(s.claim("n", 1)), []string{})
	if !s.deliver(reply("a", "pay", "do", "2")) {
		s.Errorf("Deliver after the rollback was not the first")
	}
}

func (s *storeTest) signalParked() {
	for i, r := range s.ownedBy("n", "a", "b") {
		c := change(r)
		c.Due, c.Release = saga.DueNever, true
		if c.Parked = i == 0; i == 1 {
			c.Status = saga.Completed
		}
		s.save(c)
		s.deliver(reply(r.ID, "pay", "do", "1"))
	}
	s.same("claimed", ids(s.claim("n", 2)), []string{})
	if s.load("a").Signals != 1 {
		s.Errorf("the signal of a parked saga was not counted")
	}
}

// signalRace starts sagas while something is delivered to them. Whoever commits
// later, the saga counts the signal.
func (s *storeTest) signalRace() {
	const n = 20
	var wg sync.WaitGroup
	errs := make(chan error, 2*n)
	for i := range n {
		id := fmt.Sprint("race", i)
		b := beginning(id)
		b.Waits = true
		for _, fn := range []func(tx *sql.Tx) error{
			func(tx *sql.Tx) error { return s.Store.Start(s.Context(), tx, b) },
			func(tx *sql.Tx) error {
				_, err := s.Store.Deliver(s.Context(), tx, reply(id, "pay", "do", "1"))
				return err
			},
		} {
			wg.Go(func() { errs <- s.retried(fn) })
		}
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		s.ok("Start or Deliver", err)
	}
	for i := range n {
		if got := s.load(fmt.Sprint("race", i)).Signals; got != 1 {
			s.Errorf("saga %d counts %d signals, want 1", i, got)
		}
	}
}

// retried runs fn in a transaction, again if the database gave it up for another.
func (s *storeTest) retried(fn func(tx *sql.Tx) error) (err error) {
	for range 20 {
		if err = func() error {
			tx, err := s.DB.BeginTx(s.Context(), nil)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			if err := fn(tx); err != nil {
				return err
			}
			return tx.Commit()
		}(); err == nil || s.Context().Err() != nil {
			return err
		}
	}
	return err
}

// lock asks for a key in a change that leaves the saga as it is, and returns the holder.
func (s *storeTest) lock(r *saga.Record, key string) (holder string) {
	s.Helper()
	s.ok("SaveTx", s.saveWith(r, func(ctx context.Context, tx *sql.Tx) (err error) {
		holder, err = s.Store.Lock(ctx, tx, key, r.ID)
		return err
	}))
	return holder
}

func (s *storeTest) saveWith(r *saga.Record, fn func(ctx context.Context, tx *sql.Tx) error) error {
	var c saga.Change
	err := s.Store.SaveTx(s.Context(), func(ctx context.Context, tx *sql.Tx) (saga.Change, error) {
		c = change(*r)
		return c, fn(ctx, tx)
	})
	if err == nil {
		r.Revision = c.NewRevision()
	}
	return err
}

func (s *storeTest) locks() {
	recs := s.ownedBy("n", "a", "b", "c")
	a, b, c := &recs[0], &recs[1], &recs[2]
	for range 2 {
		if got := s.lock(a, "k"); got != "a" {
			s.Errorf("Lock of a free key = %q, want a", got)
		}
	}
	if got := s.lock(b, "k"); got != "a" {
		s.Errorf("Lock of a held key = %q, want a", got)
	}
	if got := s.lock(c, "other"); got != "c" {
		s.Errorf("Lock of another key = %q, want c", got)
	}
	s.wait(*b, 0)
	s.same("claimed while it waits", ids(s.claim("n", 3)), []string{})
	s.ok("SaveTx", s.saveWith(a, func(ctx context.Context, tx *sql.Tx) error { return s.Store.Unlock(ctx, tx, "a") }))
	got := s.eventually("n", "b")
	if holder := s.lock(&got[0], "k"); holder != "b" {
		s.Errorf("Lock of the freed key = %q, want b", holder)
	}
	if holder := s.lock(a, "k"); holder != "b" {
		s.Errorf("Lock by the former holder = %q, want b", holder)
	}
}

// lockRace lets sagas take a key, hold it for a moment and free it, and those that did not
// get it wait. Each has it once, and never two at a time.
func (s *storeTest) lockRace() {
	const n = 6
	var names []string
	for i := range n {
		names = append(names, fmt.Sprint("r", i))
	}
	recs := s.ownedBy("n", names...)
	var mu sync.Mutex
	holding, served := 0, 0
	serve := func(r saga.Record) error {
		var holder string
		if err := s.saveWith(&r, func(ctx context.Context, tx *sql.Tx) (err error) {
			holder, err = s.Store.Lock(ctx, tx, "k", r.ID)
			return err
		}); err != nil {
			return err
		}
		if holder != r.ID {
			c := change(r)
			c.Due, c.Release, c.Signals = saga.DueWait, true, r.Signals
			_, err := s.Store.Save(s.Context(), []saga.Change{c})
			return err
		}
		mu.Lock()
		if holding++; holding > 1 {
			s.Errorf("%d sagas hold the key", holding)
		}
		mu.Unlock()
		time.Sleep(time.Millisecond)
		mu.Lock()
		holding--
		served++
		mu.Unlock()
		return s.Store.SaveTx(s.Context(), func(ctx context.Context, tx *sql.Tx) (saga.Change, error) {
			c := change(r)
			c.Status, c.Due, c.Release = saga.Completed, saga.DueNever, true
			return c, s.Store.Unlock(ctx, tx, r.ID)
		})
	}
	for deadline := time.Now().Add(20 * time.Second); served < n; {
		if time.Now().After(deadline) {
			s.Fatalf("%d of %d sagas had the key within 20s", served, n)
		}
		var wg sync.WaitGroup
		errs := make([]error, len(recs))
		for i, r := range recs {
			wg.Go(func() { errs[i] = serve(r) })
		}
		wg.Wait()
		for _, err := range errs {
			s.ok("a turn", err)
		}
		recs = s.claim("n", n)
	}
}

func (s *storeTest) lockRolledBack() {
	recs := s.ownedBy("n", "a", "b")
	sorry := errors.New("sorry")
	err := s.saveWith(&recs[0], func(ctx context.Context, tx *sql.Tx) error {
		_, err := s.Store.Lock(ctx, tx, "k", "a")
		return errors.Join(err, sorry)
	})
	if !errors.Is(err, sorry) {
		s.Errorf("SaveTx = %v, want the function's error", err)
	}
	if holder := s.lock(&recs[1], "k"); holder != "b" {
		s.Errorf("Lock = %q, want b", holder)
	}
}

func (s *storeTest) notes() {
	b := beginning("a")
	b.Notes = []byte(`{"parent":"x"}`)
	s.tx(true, func(tx saga.Tx) { s.ok("Start", s.Store.Start(s.Context(), tx, b)) })
	r := s.claim("n", 1)[0]
	if string(r.Notes) != `{"parent":"x"}` {
		s.Errorf("after Start the notes are %q", r.Notes)
	}
	c := change(r)
	c.Notes, c.Version = []byte(`{"cause":1}`), 2
	s.save(c)
	if r = s.load("a"); string(r.Notes) != `{"cause":1}` || r.Version != 2 {
		s.Errorf("after Save the notes are %q, the version %d", r.Notes, r.Version)
	}
	c = change(r)
	s.save(c)
	if r = s.load("a"); len(r.Notes) != 0 || r.Version != 2 {
		s.Errorf("after Save of none the notes are %q, the version %d", r.Notes, r.Version)
	}
}

func (s *storeTest) listMore() {
	s.start("ab", "a_", "a%", "b", "b 2")
	b := beginning("abc")
	b.Version = 2
	s.tx(true, func(tx saga.Tx) { s.ok("Start", s.Store.Start(s.Context(), tx, b)) })
	for _, c := range []struct {
		filter saga.Filter
		want   []string
	}{
		{saga.Filter{Version: 2}, []string{"abc"}},
		{saga.Filter{Prefix: "ab"}, []string{"ab", "abc"}},
		{saga.Filter{Prefix: "a%"}, []string{"a%"}},
		{saga.Filter{Prefix: "a_"}, []string{"a_"}},
		{saga.Filter{Prefix: "A"}, []string{}},
		{saga.Filter{Prefix: "b "}, []string{"b 2"}},
		{saga.Filter{Age: time.Hour}, []string{}},
		{saga.Filter{Age: time.Hour, Status: saga.Running}, []string{}},
	} {
		c.filter.Limit = 100
		recs, err := s.Store.List(s.Context(), c.filter)
		s.ok("List", err)
		got := ids(recs)
		slices.Sort(got)
		s.same(fmt.Sprintf("List(%+v)", c.filter), got, c.want)
	}
}

func (s *storeTest) counts() {
	for i, r := range s.ownedBy("n", "a", "b", "c", "d") {
		c := change(r)
		switch i {
		case 0:
			c.Status, c.Due = saga.Completed, saga.DueNever
		case 1:
			c.Status, c.Stuck = saga.Compensating, "help"
		}
		s.save(c)
	}
	c, err := s.Store.Count(s.Context())
	s.ok("Count", err)
	if c.Running != 2 || c.Compensating != 1 || c.Stuck != 1 || c.Oldest < 0 || c.Oldest > time.Hour {
		s.Errorf("Count = %+v, want 2 running, 1 compensating, 1 stuck", c)
	}
}

func (s *storeTest) pruneSignals() {
	r := s.ownedBy("n", "a", "b")[0]
	for _, id := range []string{"a", "b", "nobody"} {
		s.deliver(reply(id, "pay", "do", "1"))
	}
	c := change(r)
	c.Status, c.Due, c.Release = saga.Completed, saga.DueNever, true
	s.save(c)
	if n, err := s.Store.Prune(s.Context(), time.Hour, 10); n != 0 || err != nil {
		s.Errorf("Prune of what is older than an hour = %d, %v, want 0", n, err)
	}
	if n, err := s.Store.Prune(s.Context(), -time.Hour, 10); n != 1 || err != nil {
		s.Errorf("Prune = %d, %v, want 1", n, err)
	}
	for id, want := range map[string]int{"a": 0, "b": 1, "nobody": 0} {
		if list, err := s.Store.Signals(s.Context(), id); err != nil || len(list) != want {
			s.Errorf("Signals of %s = %d, %v, want %d", id, len(list), err, want)
		}
	}
}

func (s *storeTest) batchTexts() {
	recs := s.ownedBy("n", "a", "b", "c")
	text := `{"s":"` + strings.Repeat("ü😀'\\u0000?\\\\", 1000) + `"}`
	var changes []saga.Change
	for _, r := range recs {
		c := change(r)
		c.Reason, c.Data = "it's 100% \"wrong\" ? $1 \\ 😀", []byte(text)
		c.Entries = []saga.Entry{{Op: "do", Outcome: "failed", Text: c.Reason}, {Op: "do", Outcome: "done", Text: c.Reason}}
		changes = append(changes, c)
	}
	if lost := s.save(changes...); len(lost) > 0 {
		s.Fatalf("Save lost %v", lost)
	}
	for _, c := range changes {
		h, err := s.Store.History(s.Context(), c.ID)
		s.ok("History", err)
		if r := s.load(c.ID); string(r.Data) != text || r.Reason != c.Reason || len(h) != 2 || h[1].Text != c.Reason {
			s.Errorf("%s came back with the reason %q, %d bytes of data and the history %+v", c.ID, r.Reason, len(r.Data), h)
		}
	}
}
