// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagatest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/saga"
)

// Setup is an empty store to be tested.
type Setup struct {
	// Store is the store.
	Store saga.Store
	// DB is the database whose transactions Start takes, nil if the store has none. Its pool
	// may have a single connection.
	DB *sql.DB
}

// RunStore checks a store, one subtest for each sentence of the contract. Open is
// called once for each, and returns an empty store.
func RunStore(t *testing.T, open func(t *testing.T) Setup) {
	for _, c := range slices.Concat(storeChecks, waitChecks) {
		t.Run(strings.ReplaceAll(c.sentence, " ", "_"), func(t *testing.T) {
			s := open(t)
			if c.needsTx && s.DB == nil {
				t.Skip("the store has no transactions")
			}
			c.run(&storeTest{tb: t, Setup: s})
		})
	}
}

// tb is the part of testing.TB that the checks use, so that a test of the checks can
// stand in for it.
type tb interface {
	Helper()
	Context() context.Context
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

type storeCheck struct {
	sentence string
	needsTx  bool
	run      func(s *storeTest)
}

var storeChecks = []storeCheck{
	{"a started saga is running and due at its first step", false, (*storeTest).started},
	{"starting again with the same input does nothing", false, (*storeTest).startedAgain},
	{"starting again with another input is a conflict", false, (*storeTest).startConflict},
	{"a conflict leaves the transaction usable", true, (*storeTest).conflictLeavesTx},
	{"a start that is rolled back has not happened", true, (*storeTest).startRolledBack},
	{"a deadline counts from the start", false, (*storeTest).deadline},
	{"the header of the start comes back with every record", false, (*storeTest).header},
	{"a claim takes the sagas that are due oldest first up to the limit", false, (*storeTest).claims},
	{"a claim leaves what a living node owns", false, (*storeTest).claimLeavesOwned},
	{"a claim takes over from a node whose lease has expired", false, (*storeTest).takeover},
	{"a claim takes over from a node that never had a lease", false, (*storeTest).takeoverWithoutLease},
	{"a node that leaves frees its sagas", false, (*storeTest).leave},
	{"a claim leaves foreign definitions to others for a while", false, (*storeTest).foreign},
	{"concurrent claims never give a saga twice", false, (*storeTest).claimRace},
	{"owned lists the sagas of a node", false, (*storeTest).owned},
	{"save writes every field", false, (*storeTest).saveFields},
	{"save refuses another epoch another revision and an unknown saga", false, (*storeTest).saveLost},
	{"of a batch those in time are saved and the others are named", false, (*storeTest).saveBatch},
	{"of concurrent saves of one revision one wins", false, (*storeTest).saveRace},
	{"a released saga can be claimed when it is due", false, (*storeTest).due},
	{"an ended or parked saga is never due", false, (*storeTest).neverDue},
	{"the history is in order and numbered by revision", false, (*storeTest).history},
	{"save in a transaction makes the change that the function returns", false, (*storeTest).saveTx},
	{"save in a transaction rolls back what the function did when it fails", true, (*storeTest).saveTxFails},
	{"save in a transaction rolls back what the function did when it is too late", true, (*storeTest).saveTxLost},
	{"save in a transaction survives a panic in the function", false, (*storeTest).saveTxPanics},
	{"an unknown saga is not found", false, (*storeTest).notFound},
	{"list filters by status name and stuck", false, (*storeTest).list},
	{"list pages from the newest to the oldest", false, (*storeTest).pages},
	{"prune deletes what ended long ago with its history", false, (*storeTest).prune},
	{"large and strange texts come back as they were", false, (*storeTest).texts},
	{"a cancelled context ends a call with an error", false, (*storeTest).cancelled},
}

// storeTest is one check in progress.
type storeTest struct {
	tb
	Setup
}

var order1 = saga.DefinitionKey{Name: "order", Version: 1}

func (s *storeTest) ok(what string, err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s = %v, want nil", what, err)
	}
}

// tx runs fn in a transaction that is committed if keep says so.
func (s *storeTest) tx(keep bool, fn func(tx saga.Tx)) {
	s.Helper()
	if s.DB == nil {
		fn(nil)
		return
	}
	tx, err := s.DB.BeginTx(s.Context(), nil)
	s.ok("BeginTx", err)
	defer tx.Rollback()
	fn(tx)
	if keep {
		s.ok("Commit", tx.Commit())
	}
}

func beginning(id string) saga.Beginning {
	return saga.Beginning{ID: id, Name: "order", Version: 1, Step: "reserve", Data: []byte(`{"n":1}`), Input: "input-1"}
}

func (s *storeTest) start(ids ...string) {
	s.Helper()
	for _, id := range ids {
		s.tx(true, func(tx saga.Tx) { s.ok("Start "+id, s.Store.Start(s.Context(), tx, beginning(id))) })
	}
}

func (s *storeTest) load(id string) saga.Record {
	s.Helper()
	rec, err := s.Store.Load(s.Context(), id)
	s.ok("Load "+id, err)
	return rec
}

func (s *storeTest) beat(node string, lease time.Duration) {
	s.Helper()
	s.ok("Beat "+node, s.Store.Beat(s.Context(), node, lease))
}

func (s *storeTest) claim(node string, limit int, keys ...saga.DefinitionKey) []saga.Record {
	s.Helper()
	if keys == nil {
		keys = []saga.DefinitionKey{order1}
	}
	recs, err := s.Store.Claim(s.Context(), saga.Claim{Node: node, Limit: limit, Definitions: keys, Foreign: time.Hour})
	s.ok("Claim", err)
	return recs
}

// eventually claims until the store gives what is wanted.
func (s *storeTest) eventually(node string, want ...string) []saga.Record {
	s.Helper()
	var got []saga.Record
	for deadline := time.Now().Add(10 * time.Second); len(got) < len(want); {
		if time.Now().After(deadline) {
			s.Fatalf("Claim gave %v within 10s, want %v", ids(got), want)
		}
		got = append(got, s.claim(node, 10)...)
	}
	s.same("claimed", ids(got), want)
	return got
}

func ids(recs []saga.Record) []string {
	list := []string{}
	for _, r := range recs {
		list = append(list, r.ID)
	}
	return list
}

func (s *storeTest) same(what string, got, want []string) {
	s.Helper()
	if !slices.Equal(got, want) {
		s.Errorf("%s = %v, want %v", what, got, want)
	}
}

// owner starts a saga and claims it for a node with a lease.
func (s *storeTest) ownedBy(node string, names ...string) []saga.Record {
	s.Helper()
	s.start(names...)
	s.beat(node, time.Hour)
	recs := s.claim(node, len(names))
	if len(recs) != len(names) {
		s.Fatalf("Claim = %v, want %v", ids(recs), names)
	}
	return recs
}

// change is one that leaves the saga as it is.
func change(r saga.Record) saga.Change {
	return saga.Change{
		ID: r.ID, Epoch: r.Epoch, Revision: r.Revision, Status: r.Status, Step: r.Step, Attempt: r.Attempt,
		Reason: r.Reason, Stuck: r.Stuck, Parked: r.Parked, Cancel: r.Cancel, Data: r.Data,
	}
}

func (s *storeTest) save(changes ...saga.Change) []int {
	s.Helper()
	lost, err := s.Store.Save(s.Context(), changes)
	s.ok("Save", err)
	return lost
}

func (s *storeTest) started() {
	s.start("a")
	r := s.load("a")
	if r.Name != "order" || r.Version != 1 || r.Status != saga.Running || r.Step != "reserve" || string(r.Data) != `{"n":1}` {
		s.Errorf("after Start the saga is %+v", r)
	}
	if r.Owner != "" || r.Epoch != 0 || r.Revision != 0 || r.Attempt != 0 || r.Stuck != "" || r.Parked || r.Cancel != "" || !r.Deadline.IsZero() {
		s.Errorf("after Start the saga is %+v", r)
	}
	if r.Created.IsZero() || !r.Updated.Equal(r.Created) || r.WakeAt.IsZero() || r.WakeAt.After(r.Now) {
		s.Errorf("after Start the times are created %v, updated %v, wake %v, now %v", r.Created, r.Updated, r.WakeAt, r.Now)
	}
	s.same("claimed", ids(s.claim("n", 5)), []string{"a"})
}

func (s *storeTest) startedAgain() {
	s.start("a")
	before := s.load("a")
	s.start("a")
	s.tx(true, func(tx saga.Tx) {
		s.ok("Start", s.Store.Start(s.Context(), tx, beginning("a")))
		s.ok("Start twice in one transaction", s.Store.Start(s.Context(), tx, beginning("a")))
	})
	after := s.load("a")
	if after.Revision != before.Revision || after.Epoch != before.Epoch || !after.Created.Equal(before.Created) {
		s.Errorf("after the second Start the saga is %+v, want %+v", after, before)
	}
	c := change(s.claim("n", 1)[0])
	c.Status, c.Step, c.Due, c.Release = saga.Completed, "", saga.DueNever, true
	s.save(c)
	s.start("a")
	if r := s.load("a"); r.Status != saga.Completed {
		s.Errorf("Start of an ended saga left it %v, want completed", r.Status)
	}
}

func (s *storeTest) startConflict() {
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
		})
	}
	b := beginning("a")
	b.Version, b.Step = 2, "other"
	s.tx(true, func(tx saga.Tx) {
		s.ok("Start with the same input under a newer version", s.Store.Start(s.Context(), tx, b))
	})
	if r := s.load("a"); r.Name != "order" || r.Version != 1 || r.Step != "reserve" {
		s.Errorf("the saga is %+v, want it unchanged", r)
	}
}

func (s *storeTest) conflictLeavesTx() {
	s.start("a")
	s.tx(true, func(tx saga.Tx) {
		b := beginning("a")
		b.Input = "input-2"
		if err := s.Store.Start(s.Context(), tx, b); !errors.Is(err, saga.ErrConflict) {
			s.Fatalf("Start = %v, want ErrConflict", err)
		}
		s.ok("Start of another", s.Store.Start(s.Context(), tx, beginning("b")))
	})
	s.load("b")
}

func (s *storeTest) startRolledBack() {
	s.tx(false, func(tx saga.Tx) { s.ok("Start", s.Store.Start(s.Context(), tx, beginning("a"))) })
	if _, err := s.Store.Load(s.Context(), "a"); !errors.Is(err, saga.ErrNotFound) {
		s.Errorf("Load = %v, want ErrNotFound", err)
	}
	s.same("claimed", ids(s.claim("n", 5)), []string{})
}

func (s *storeTest) deadline() {
	b := beginning("a")
	b.Deadline = time.Minute
	s.tx(true, func(tx saga.Tx) { s.ok("Start", s.Store.Start(s.Context(), tx, b)) })
	if r := s.load("a"); r.Deadline.Sub(r.Created) != time.Minute {
		s.Errorf("the deadline is %v after the start, want 1m", r.Deadline.Sub(r.Created))
	}
}

func (s *storeTest) header() {
	b := beginning("a")
	b.Header = messaging.Header{"traceparent": "00-1-2-01", "Ümlaut ☃": "it's \"quoted\" \\ ? $1"}
	want := maps.Clone(b.Header)
	s.tx(true, func(tx saga.Tx) { s.ok("Start", s.Store.Start(s.Context(), tx, b)) })
	b.Header["traceparent"] = "of a start that is repeated"
	s.tx(true, func(tx saga.Tx) { s.ok("Start again", s.Store.Start(s.Context(), tx, b)) })
	s.start("b")
	check := func(from string, recs []saga.Record, err error) {
		s.Helper()
		s.ok(from, err)
		for _, r := range recs {
			if r.ID == "a" && !maps.Equal(r.Header, want) || r.ID == "b" && r.Header != nil {
				s.Errorf("%s: the header of %s is %q, want %q for a, nil for b", from, r.ID, r.Header, want)
			}
		}
		if len(recs) != 2 {
			s.Errorf("%s gave %v, want a and b", from, ids(recs))
		}
	}
	check("Claim", s.claim("n", 2), nil)
	owned, err := s.Store.Owned(s.Context(), "n")
	check("Owned", owned, err)
	list, err := s.Store.List(s.Context(), saga.Filter{Limit: 10})
	check("List", list, err)
	s.save(change(s.load("a")))
	check("Load after a change", []saga.Record{s.load("a"), s.load("b")}, nil)
}

func (s *storeTest) claims() {
	s.start("a", "b", "c")
	// The store's clock may be too coarse to tell them apart: give them an order.
	s.beat("n", time.Hour)
	for i, r := range s.claim("n", 3) {
		c := change(r)
		c.Due, c.Release = saga.DueAfter, true
		c.After = -map[string]time.Duration{"a": 10 * time.Second, "b": 30 * time.Second, "c": 20 * time.Second}[r.ID]
		if lost := s.save(c); len(lost) > 0 {
			s.Fatalf("Save %d was lost", i)
		}
	}
	first := s.claim("n", 2)
	s.same("the first two", ids(first), []string{"b", "c"})
	for _, r := range first {
		if r.Owner != "n" || r.Epoch != 2 || r.Takeovers != 0 {
			s.Errorf("claimed %s with owner %q, epoch %d, takeovers %d, want n, 2, 0", r.ID, r.Owner, r.Epoch, r.Takeovers)
		}
		if got := s.load(r.ID); got.Epoch != r.Epoch || got.Owner != r.Owner || got.Revision != r.Revision {
			s.Errorf("Load = %+v, Claim = %+v", got.Instance, r.Instance)
		}
	}
	s.same("the rest", ids(s.claim("n", 2)), []string{"a"})
	s.same("no more", ids(s.claim("n", 2)), []string{})
}

func (s *storeTest) claimLeavesOwned() {
	s.ownedBy("n1", "a")
	s.beat("n2", time.Hour)
	s.same("claimed by another", ids(s.claim("n2", 5)), []string{})
	s.same("claimed by itself", ids(s.claim("n1", 5)), []string{})
}

func (s *storeTest) takeover() {
	old := s.ownedBy("n1", "a")[0]
	s.beat("n1", time.Millisecond)
	s.beat("n2", time.Hour)
	r := s.eventually("n2", "a")[0]
	if r.Owner != "n2" || r.Epoch != old.Epoch+1 || r.Takeovers != 1 {
		s.Errorf("taken over with owner %q, epoch %d, takeovers %d, want n2, %d, 1", r.Owner, r.Epoch, r.Takeovers, old.Epoch+1)
	}
	if lost := s.save(change(old)); !slices.Equal(lost, []int{0}) {
		s.Errorf("Save by the old owner: lost %v, want [0]", lost)
	}
	// The old node comes back to life; what it lost stays lost.
	s.beat("n1", time.Hour)
	s.same("claimed by the old owner", ids(s.claim("n1", 5)), []string{})
	if lost := s.save(change(r)); len(lost) > 0 {
		s.Errorf("Save by the new owner was lost")
	}
	if r := s.load("a"); r.Takeovers != 0 {
		s.Errorf("after progress takeovers = %d, want 0", r.Takeovers)
	}
}

func (s *storeTest) takeoverWithoutLease() {
	s.start("a")
	s.claim("n1", 1)
	s.beat("n2", time.Hour)
	s.same("claimed", ids(s.claim("n2", 5)), []string{"a"})
}

func (s *storeTest) leave() {
	s.ownedBy("n1", "a")
	s.ok("Leave", s.Store.Leave(s.Context(), "n1"))
	s.beat("n2", time.Hour)
	recs := s.claim("n2", 5)
	s.same("claimed", ids(recs), []string{"a"})
	if len(recs) == 1 && recs[0].Takeovers != 0 {
		s.Errorf("takeovers = %d, want 0: the node did not die", recs[0].Takeovers)
	}
	s.ok("Leave again", s.Store.Leave(s.Context(), "n1"))
}

func (s *storeTest) foreign() {
	s.start("a")
	v2 := saga.DefinitionKey{Name: "order", Version: 2}
	other := saga.DefinitionKey{Name: "refund", Version: 1}
	s.same("claimed by a stranger", ids(s.claim("n", 5, v2, other)), []string{})
	recs, err := s.Store.Claim(s.Context(), saga.Claim{Node: "n", Limit: 5, Foreign: time.Hour})
	s.ok("Claim", err)
	s.same("claimed by a node without definitions", ids(recs), []string{})
	s.beat("n", time.Hour)
	c := change(s.claim("n", 5, v2, order1)[0])
	c.Due, c.After, c.Release = saga.DueAfter, -time.Minute, true
	s.save(c)
	recs, err = s.Store.Claim(s.Context(), saga.Claim{Node: "n", Limit: 5, Definitions: []saga.DefinitionKey{v2}, Foreign: time.Second})
	s.ok("Claim", err)
	s.same("claimed by a stranger a minute later", ids(recs), []string{"a"})
}

func (s *storeTest) claimRace() {
	const nodes, sagas = 6, 30
	for i := range sagas {
		s.start(fmt.Sprintf("s%02d", i))
	}
	for i := range nodes {
		s.beat(fmt.Sprintf("n%d", i), time.Hour)
	}
	var mu sync.Mutex
	got := map[string]int{}
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() {
			for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
				recs, err := s.Store.Claim(s.Context(), saga.Claim{
					Node: fmt.Sprintf("n%d", i), Limit: 3, Definitions: []saga.DefinitionKey{order1}, Foreign: time.Hour,
				})
				mu.Lock()
				if err != nil {
					s.Errorf("Claim = %v, want nil", err)
				}
				for _, r := range recs {
					got[r.ID]++
				}
				done := len(got) == sagas || err != nil
				mu.Unlock()
				if done {
					return
				}
			}
		})
	}
	wg.Wait()
	for i := range sagas {
		if n := got[fmt.Sprintf("s%02d", i)]; n != 1 {
			s.Errorf("saga %d was claimed %d times, want once", i, n)
		}
	}
}

func (s *storeTest) owned() {
	s.ownedBy("n1", "a", "b")
	s.ownedBy("n2", "c")
	recs, err := s.Store.Owned(s.Context(), "n1")
	s.ok("Owned", err)
	got := ids(recs)
	slices.Sort(got)
	s.same("owned", got, []string{"a", "b"})
}

func (s *storeTest) saveFields() {
	r := s.ownedBy("n", "a")[0]
	c := change(r)
	c.Status, c.Step, c.Attempt, c.Reason, c.Stuck, c.Parked = saga.Compensating, "pay", 3, "why", "help", true
	c.Cancel, c.Data, c.Due, c.Release = "by ann", []byte(`{"n":2}`), saga.DueNever, true
	c.Entries = []saga.Entry{{Op: "park"}}
	if lost := s.save(c); len(lost) > 0 {
		s.Fatalf("Save was lost")
	}
	got := s.load("a")
	if got.Status != c.Status || got.Step != c.Step || got.Attempt != c.Attempt || got.Reason != c.Reason || got.Stuck != c.Stuck ||
		!got.Parked || got.Cancel != c.Cancel || string(got.Data) != string(c.Data) {
		s.Errorf("Load = %+v, want %+v", got, c)
	}
	if got.Owner != "" || got.Epoch != r.Epoch || got.Revision != c.NewRevision() || !got.WakeAt.IsZero() || got.Updated.Before(r.Updated) {
		s.Errorf("Load = %+v, want no owner, epoch %d, revision %d, no wake time", got, r.Epoch, c.NewRevision())
	}
	c = change(got)
	c.Status, c.Stuck, c.Parked, c.Cancel, c.Due = saga.Running, "", false, "", saga.DueAfter
	s.save(c)
	if got := s.load("a"); got.Stuck != "" || got.Parked || got.Cancel != "" || got.WakeAt.IsZero() || got.Revision != c.NewRevision() {
		s.Errorf("Load = %+v, want it no longer stuck, and due", got)
	}
}

func (s *storeTest) saveLost() {
	r := s.ownedBy("n", "a")[0]
	for what, spoil := range map[string]func(*saga.Change){
		"an older epoch":    func(c *saga.Change) { c.Epoch-- },
		"a newer epoch":     func(c *saga.Change) { c.Epoch++ },
		"another revision":  func(c *saga.Change) { c.Revision++ },
		"an unknown saga":   func(c *saga.Change) { c.ID = "b" },
		"a negative number": func(c *saga.Change) { c.Revision = -1 },
	} {
		c := change(r)
		c.Step, c.Entries = "spoilt", []saga.Entry{{Op: "do", Outcome: "done"}}
		spoil(&c)
		if lost := s.save(c); !slices.Equal(lost, []int{0}) {
			s.Errorf("Save with %s: lost %v, want [0]", what, lost)
		}
	}
	if got := s.load("a"); got.Step != "reserve" || got.Revision != r.Revision {
		s.Errorf("the saga is %+v, want it unchanged", got)
	}
	if h, err := s.Store.History(s.Context(), "a"); err != nil || len(h) != 0 {
		s.Errorf("History = %v, %v, want none", h, err)
	}
}

func (s *storeTest) saveBatch() {
	recs := s.ownedBy("n", "a", "b", "c", "d")
	changes := make([]saga.Change, len(recs))
	for i, r := range recs {
		c := change(r)
		c.Step = "next-" + r.ID
		c.Entries = []saga.Entry{{Op: "do", Outcome: "done", Text: r.ID, Who: "ann"}, {Op: "compensate"}}[:1+i%2]
		switch i {
		case 1:
			c.Epoch++
		case 2:
			c.Due, c.After = saga.DueAfter, time.Hour
		case 3:
			c.Stuck, c.Release = "help", true
		}
		changes[i] = c
	}
	if lost := s.save(changes...); !slices.Equal(lost, []int{1}) {
		s.Errorf("Save: lost %v, want [1]", lost)
	}
	for i, r := range recs {
		want := "next-" + r.ID
		if i == 1 {
			want = "reserve"
		}
		got := s.load(r.ID)
		h, err := s.Store.History(s.Context(), r.ID)
		s.ok("History", err)
		if wantLen := (1 + i%2) * boolInt(i != 1); got.Step != want || len(h) != wantLen {
			s.Errorf("%s is at step %q with %d entries, want %q with %d", r.ID, got.Step, len(h), want, wantLen)
		}
	}
	if h, err := s.Store.History(s.Context(), recs[0].ID); err != nil || h[0].Who != "ann" {
		s.Errorf("History = %+v, %v, want it by ann", h, err)
	}
	if got := s.load(recs[2].ID); got.WakeAt.Sub(got.Now) < time.Minute || got.Owner != "n" {
		s.Errorf("the third of the batch wakes at %v, owned by %q, want in an hour, by n", got.WakeAt, got.Owner)
	}
	if got := s.load(recs[3].ID); got.Stuck != "help" || got.Owner != "" || got.WakeAt.IsZero() {
		s.Errorf("the fourth of the batch is %+v, want it stuck, released, and due", got)
	}
	if lost := s.save(changes...); !slices.Equal(lost, []int{0, 1, 2, 3}) {
		s.Errorf("Save again from the old revisions: lost %v, want all four", lost)
	}
	if lost := s.save(); len(lost) > 0 {
		s.Errorf("Save of nothing: lost %v", lost)
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (s *storeTest) saveRace() {
	r := s.ownedBy("n", "a")[0]
	const racers = 6
	var mu sync.Mutex
	won := []string{}
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() {
			c := change(r)
			c.Step = fmt.Sprint("step-", i)
			c.Entries = []saga.Entry{{Op: "do", Outcome: "done"}}
			lost, err := s.Store.Save(s.Context(), []saga.Change{c})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				s.Errorf("Save = %v, want nil", err)
			}
			if err == nil && len(lost) == 0 {
				won = append(won, c.Step)
			}
		})
	}
	wg.Wait()
	h, err := s.Store.History(s.Context(), "a")
	s.ok("History", err)
	if got := s.load("a"); len(won) != 1 || got.Step != won[0] || len(h) != 1 {
		s.Errorf("won by %v, the saga is at %s with %d entries, want one winner", won, got.Step, len(h))
	}
}

func (s *storeTest) due() {
	r := s.ownedBy("n", "a")[0]
	c := change(r)
	c.Due, c.After, c.Release = saga.DueAfter, time.Hour, true
	s.save(c)
	s.same("claimed an hour too early", ids(s.claim("n", 5)), []string{})
	c = change(s.load("a"))
	c.Due, c.After = saga.DueAfter, 20*time.Millisecond
	s.save(c)
	r = s.eventually("n", "a")[0]
	if r.WakeAt.After(r.Now) {
		s.Errorf("claimed at %v, due at %v", r.Now, r.WakeAt)
	}
	c = change(r)
	c.Release = true
	s.save(c)
	s.same("claimed with its time unchanged", ids(s.claim("n", 5)), []string{"a"})
}

func (s *storeTest) neverDue() {
	for _, r := range s.ownedBy("n", "a", "b") {
		c := change(r)
		c.Due, c.Release = saga.DueNever, true
		if c.Status, c.Step = saga.Completed, ""; r.ID == "b" {
			c.Status, c.Step, c.Stuck, c.Parked = saga.Running, "pay", "help", true
		}
		s.save(c)
		if got := s.load(r.ID); !got.WakeAt.IsZero() {
			s.Errorf("%s wakes at %v, want never", r.ID, got.WakeAt)
		}
	}
	s.same("claimed", ids(s.claim("n", 5)), []string{})
}

func (s *storeTest) history() {
	r := s.ownedBy("n", "a")[0]
	c := change(r)
	c.Entries = []saga.Entry{
		{Step: "reserve", Op: "do", Attempt: 1, Outcome: "failed", Text: "no answer", Took: 1500 * time.Microsecond, Node: "n"},
		{Op: "cancel", Outcome: "accepted", Text: "why", Who: "ann ☃"},
	}
	s.save(c)
	s.save(change(s.load("a"))) // without an entry
	c = change(s.load("a"))
	c.Entries = []saga.Entry{{Step: "reserve", Op: "undo", Attempt: 1, Outcome: "done"}}
	s.save(c)
	h, err := s.Store.History(s.Context(), "a")
	s.ok("History", err)
	if len(h) != 3 {
		s.Fatalf("History has %d entries, want 3: %+v", len(h), h)
	}
	now := s.load("a").Now
	for i, want := range []int64{1, 2, 4} {
		if h[i].N != want || h[i].At.Before(r.Created) || h[i].At.After(now) {
			s.Errorf("entry %d has number %d at %v, want %d between %v and %v", i, h[i].N, h[i].At, want, r.Created, now)
		}
	}
	if h[1].Who != "ann ☃" || h[1].Text != "why" {
		s.Errorf("the second entry is %+v, want it by ann", h[1])
	}
	got := h[0]
	want := saga.Entry{N: 1, At: got.At, Step: "reserve", Op: "do", Attempt: 1, Outcome: "failed", Text: "no answer", Took: 1500 * time.Microsecond, Node: "n"}
	if got != want {
		s.Errorf("the first entry is %+v, want %+v", got, want)
	}
	h, err = s.Store.History(s.Context(), "unknown")
	if err != nil || len(h) != 0 {
		s.Errorf("History of an unknown saga = %v, %v, want none", h, err)
	}
}

func (s *storeTest) saveTx() {
	r := s.ownedBy("n", "a")[0]
	calls := 0
	err := s.Store.SaveTx(s.Context(), func(ctx context.Context, tx *sql.Tx) (saga.Change, error) {
		calls++
		if (tx == nil) != (s.DB == nil) {
			s.Errorf("the transaction is %v", tx)
		}
		if tx != nil {
			s.ok("Start inside", s.Store.Start(ctx, tx, beginning("b")))
		}
		c := change(r)
		c.Step, c.Entries = "pay", []saga.Entry{{Op: "do", Outcome: "done"}}
		return c, nil
	})
	s.ok("SaveTx", err)
	if got := s.load("a"); got.Step != "pay" || got.Revision != r.Revision+1 || calls != 1 {
		s.Errorf("after %d calls the saga is at %s, revision %d", calls, got.Step, got.Revision)
	}
	if s.DB != nil {
		s.load("b")
	}
}

func (s *storeTest) saveTxFails() {
	r := s.ownedBy("n", "a")[0]
	sorry := errors.New("sorry")
	err := s.Store.SaveTx(s.Context(), func(ctx context.Context, tx *sql.Tx) (saga.Change, error) {
		s.ok("Start inside", s.Store.Start(ctx, tx, beginning("b")))
		return change(r), sorry
	})
	if !errors.Is(err, sorry) {
		s.Errorf("SaveTx = %v, want the function's error", err)
	}
	s.gone("b")
	if got := s.load("a"); got.Revision != r.Revision {
		s.Errorf("the revision is %d, want %d", got.Revision, r.Revision)
	}
}

func (s *storeTest) gone(id string) {
	s.Helper()
	if _, err := s.Store.Load(s.Context(), id); !errors.Is(err, saga.ErrNotFound) {
		s.Errorf("Load of what was rolled back = %v, want ErrNotFound", err)
	}
}

func (s *storeTest) saveTxLost() {
	r := s.ownedBy("n", "a")[0]
	err := s.Store.SaveTx(s.Context(), func(ctx context.Context, tx *sql.Tx) (saga.Change, error) {
		s.ok("Start inside", s.Store.Start(ctx, tx, beginning("b")))
		c := change(r)
		c.Epoch--
		return c, nil
	})
	if !errors.Is(err, saga.ErrLost) {
		s.Errorf("SaveTx = %v, want ErrLost", err)
	}
	s.gone("b")
}

func (s *storeTest) saveTxPanics() {
	r := s.ownedBy("n", "a")[0]
	func() {
		defer func() {
			if recover() == nil {
				s.Errorf("the panic was swallowed")
			}
		}()
		_ = s.Store.SaveTx(s.Context(), func(context.Context, *sql.Tx) (saga.Change, error) { panic("oh") })
	}()
	if lost := s.save(change(r)); len(lost) > 0 {
		s.Errorf("Save after the panic was lost")
	}
}

func (s *storeTest) notFound() {
	if _, err := s.Store.Load(s.Context(), "a"); !errors.Is(err, saga.ErrNotFound) {
		s.Errorf("Load = %v, want ErrNotFound", err)
	}
}

func (s *storeTest) list() {
	recs := s.ownedBy("n", "a", "b", "c")
	for _, r := range recs[1:] {
		c := change(r)
		if c.Status, c.Due = saga.Completed, saga.DueNever; r.ID == "c" {
			c.Status, c.Stuck, c.Parked = saga.Compensating, "help", true
		}
		s.save(c)
	}
	b := beginning("d")
	b.Name = "refund"
	s.tx(true, func(tx saga.Tx) { s.ok("Start", s.Store.Start(s.Context(), tx, b)) })
	for _, c := range []struct {
		filter saga.Filter
		want   []string
	}{
		{saga.Filter{}, []string{"a", "b", "c", "d"}},
		{saga.Filter{Status: saga.Running}, []string{"a", "d"}},
		{saga.Filter{Status: saga.Completed}, []string{"b"}},
		{saga.Filter{Stuck: true}, []string{"c"}},
		{saga.Filter{Stuck: true, Status: saga.Running}, []string{}},
		{saga.Filter{Name: "order", Status: saga.Running}, []string{"a"}},
		{saga.Filter{Name: "refund"}, []string{"d"}},
	} {
		c.filter.Limit = 100
		recs, err := s.Store.List(s.Context(), c.filter)
		s.ok("List", err)
		got := ids(recs)
		slices.Sort(got)
		s.same(fmt.Sprintf("List(%+v)", c.filter), got, c.want)
	}
}

func (s *storeTest) pages() {
	var all []string
	for i := range 7 {
		all = append(all, fmt.Sprint("s", i))
	}
	s.start(all...)
	for i, r := range s.claim("n", 7) {
		c := change(r)
		if c.Release = true; i%2 == 0 {
			c.Status, c.Due = saga.Compensated, saga.DueNever
		}
		s.save(c)
	}
	var got []string
	created := time.Now().Add(time.Hour)
	for f := (saga.Filter{Limit: 3}); len(got) <= 7; {
		recs, err := s.Store.List(s.Context(), f)
		s.ok("List", err)
		for _, r := range recs {
			if r.Created.After(created) {
				s.Errorf("%s of %v comes behind an older one", r.ID, r.Created)
			}
			created = r.Created
		}
		if got = append(got, ids(recs)...); len(recs) < 3 {
			break
		}
		f.After = recs[2].ID
	}
	slices.Sort(got)
	s.same("all pages together", got, all)
	recs, err := s.Store.List(s.Context(), saga.Filter{Limit: 3, After: "unknown"})
	if err != nil || len(recs) > 0 {
		s.Errorf("List after an unknown saga = %v, %v, want none", ids(recs), err)
	}
}

func (s *storeTest) prune() {
	for _, r := range s.ownedBy("n", "a", "b", "c") {
		c := change(r)
		c.Entries = []saga.Entry{{Op: "do", Outcome: "done"}}
		if r.ID != "c" {
			c.Status, c.Due, c.Release = saga.Completed, saga.DueNever, true
		}
		s.save(c)
	}
	prune := func(age time.Duration, limit int) int {
		n, err := s.Store.Prune(s.Context(), age, limit)
		s.ok("Prune", err)
		return n
	}
	if n := prune(time.Hour, 10); n != 0 {
		s.Errorf("Prune of what is older than an hour = %d, want 0", n)
	}
	if n := prune(-time.Hour, 1); n != 1 {
		s.Errorf("Prune of one = %d, want 1", n)
	}
	if n := prune(-time.Hour, 10); n != 1 {
		s.Errorf("Prune = %d, want 1", n)
	}
	s.gone("a")
	s.gone("b")
	s.load("c")
	for id, want := range map[string]int{"a": 0, "b": 0, "c": 1} {
		if h, err := s.Store.History(s.Context(), id); err != nil || len(h) != want {
			s.Errorf("History of %s = %v, %v, want %d entries", id, h, err, want)
		}
	}
	s.start("a")
}

func (s *storeTest) texts() {
	id := "ä/😀'\"%?\\;--$1 :x"
	b := beginning(id)
	b.Data = []byte(`{"s":"` + strings.Repeat("ü😀'\\u0000?", 50_000) + `"}`)
	s.tx(true, func(tx saga.Tx) { s.ok("Start", s.Store.Start(s.Context(), tx, b)) })
	rec := s.claim("n", 1)[0]
	if rec.ID != id || string(rec.Data) != string(b.Data) {
		s.Fatalf("Claim gave the ID %q and %d bytes of data, want %q and %d", rec.ID, len(rec.Data), id, len(b.Data))
	}
	c := change(rec)
	c.Reason = "it's 100% \"wrong\" ? $1 \\ 😀"
	c.Entries = []saga.Entry{{Op: "do", Outcome: "failed", Text: c.Reason}}
	s.save(c)
	h, err := s.Store.History(s.Context(), id)
	s.ok("History", err)
	if got := s.load(id); got.Reason != c.Reason || len(h) != 1 || h[0].Text != c.Reason {
		s.Errorf("the reason came back as %q, and in the history as %+v, want %q", got.Reason, h, c.Reason)
	}
	s.start("A", "a")
	if got := s.load("a"); got.ID != "a" {
		s.Errorf("Load a = %q: case matters", got.ID)
	}
}

func (s *storeTest) cancelled() {
	s.start("a")
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	if _, err := s.Store.Load(ctx, "a"); err == nil || errors.Is(err, saga.ErrNotFound) {
		s.Errorf("Load = %v, want the context's error", err)
	}
	if _, err := s.Store.Claim(ctx, saga.Claim{Node: "n", Limit: 1, Definitions: []saga.DefinitionKey{order1}}); err == nil {
		s.Errorf("Claim = nil, want the context's error")
	}
	if _, err := s.Store.Save(ctx, []saga.Change{change(s.load("a"))}); err == nil {
		s.Errorf("Save = nil, want the context's error")
	}
	called := false
	err := s.Store.SaveTx(ctx, func(context.Context, *sql.Tx) (saga.Change, error) {
		called = true
		return saga.Change{}, errors.New("called")
	})
	if err == nil || called {
		s.Errorf("SaveTx = %v, called = %v, want the context's error before the call", err, called)
	}
}
