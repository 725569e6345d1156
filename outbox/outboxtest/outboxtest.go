// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package outboxtest checks an implementation of [outbox.Store] against its contract.
//
//	func TestStore(t *testing.T) {
//		outboxtest.Run(t, func(t *testing.T) outboxtest.Subject {
//			store := outboxmem.New()
//			return outboxtest.Subject{
//				Store: store,
//				Begin: func(context.Context) (outboxtest.Tx, error) { return store.Begin(), nil },
//			}
//		})
//	}
package outboxtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
)

// Subject is an empty store under test.
type Subject struct {
	Store outbox.Store
	// Begin begins a transaction for Insert.
	Begin func(ctx context.Context) (Tx, error)
	// OneWriter tells that only one transaction may be open at a time, as with SQLite, so that
	// what is about two of them is left out.
	OneWriter bool
}

// Tx is a transaction of the subject. A [*sql.Tx] fits.
type Tx interface {
	outbox.Tx
	// Commit lets the rows be seen.
	Commit() error
	// Rollback undoes everything.
	Rollback() error
}

// Run checks the store that open returns, a fresh and empty one for each subtest.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(s *suite)
	}{
		{"Insert is part of the transaction", (*suite).insert},
		{"messages come back as they were", (*suite).roundTrip},
		{"Read returns the first rows in order", (*suite).order},
		{"Read leaves out what is to be skipped", (*suite).skip},
		{"a row committed late is seen", (*suite).gap},
		{"a shard has one owner", (*suite).owner},
		{"leases can be given back", (*suite).drop},
		{"a lease that ran out is free", (*suite).expiry},
		{"many relays share the shards", (*suite).race},
		{"Settle removes rows", (*suite).settle},
		{"Settle is fenced", (*suite).fence},
		{"Park sets a row aside", (*suite).park},
		{"a parked row blocks its key", (*suite).block},
		{"Retry puts a row back", (*suite).retry},
		{"Discard gives a row up", (*suite).discard},
		{"Stats counts what waits", (*suite).stats},
		{"an open transaction holds up nobody", (*suite).bystander},
		{"nothing is lost and keys keep their order", (*suite).relay},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			c.test(&suite{T: t, Subject: open(t), ctx: ctx})
		})
	}
}

type suite struct {
	*testing.T
	Subject
	ctx   context.Context //nolint:containedctx // the context of the subtest
	names int
}

// must ends the subtest on an error.
func must[V any](s *suite, what string) func(V, error) V {
	return func(v V, err error) V {
		s.Helper()
		if err != nil {
			s.Fatalf("%s = %v", what, err)
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

func (s *suite) begin() Tx {
	s.Helper()
	return must[Tx](s, "Begin")(s.Begin(s.ctx))
}

// message returns a new one.
func (s *suite) message(key, topic string) *messaging.Message {
	s.names++
	return &messaging.Message{ID: fmt.Sprintf("m%d", s.names), Topic: topic, Key: key, Time: time.Now()}
}

// put commits messages of a key, in shard 0, and returns their IDs.
func (s *suite) put(key, topic string, n int) (ids []string) {
	s.Helper()
	rows := make([]outbox.Row, n)
	for i := range rows {
		rows[i].Message = s.message(key, topic)
		ids = append(ids, rows[i].Message.ID)
	}
	s.commit(rows...)
	return ids
}

func (s *suite) commit(rows ...outbox.Row) {
	s.Helper()
	tx := s.begin()
	s.ok("Insert", s.Store.Insert(s.ctx, tx, rows))
	s.ok("Commit", tx.Commit())
}

// read returns the rows of one read.
func (s *suite) read(reads ...outbox.Read) []outbox.Row {
	s.Helper()
	return must[[]outbox.Row](s, "Read")(s.Store.Read(s.ctx, reads))
}

// all reads shard 0 and returns the message IDs.
func (s *suite) all() []string {
	s.Helper()
	return names(s.read(outbox.Read{Shard: 0, Limit: 10_000}))
}

func names(rows []outbox.Row) (ids []string) {
	for _, r := range rows {
		ids = append(ids, r.Message.ID)
	}
	return ids
}

func (s *suite) want(what string, got, want any) {
	s.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		s.Errorf("%s = %v, want %v", what, got, want)
	}
}

const longTTL = 10 * time.Minute

// lease makes a heartbeat that takes up to n shards.
func (s *suite) lease(relay string, n int) outbox.LeaseView {
	s.Helper()
	return must[outbox.LeaseView](s, "Lease")(s.Store.Lease(s.ctx, outbox.LeaseRequest{Relay: relay, TTL: longTTL, Take: n}))
}

// own returns leases of all shards.
func (s *suite) own(relay string) []outbox.Lease {
	s.Helper()
	v := s.lease(relay, s.Store.Shards())
	if len(v.Held) != s.Store.Shards() {
		s.Fatalf("Lease for all %d shards = %v", s.Store.Shards(), v.Held)
	}
	return v.Held
}

// of returns the lease of a shard.
func of(leases []outbox.Lease, shard int) outbox.Lease {
	return leases[slices.IndexFunc(leases, func(l outbox.Lease) bool { return l.Shard == shard })]
}

func (s *suite) insert() {
	tx := s.begin()
	s.ok("Insert", s.Store.Insert(s.ctx, tx, []outbox.Row{{Message: s.message("k", "t")}}))
	if !s.OneWriter {
		s.want("Read before the commit", s.all(), []string{})
	}
	s.ok("Rollback", tx.Rollback())
	s.want("Read after a rollback", s.all(), []string{})
	want := s.put("k", "t", 2)
	s.want("Read after a commit", s.all(), want)
}

func (s *suite) roundTrip() {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	long := strings.Repeat("ä", 127)
	messages := []*messaging.Message{
		{ID: "plain", Topic: "order.placed", Time: time.Now()},
		{
			ID: long, Topic: long, Key: long, Type: long, Time: time.Date(1999, 12, 31, 23, 59, 59, 999_999_999, time.FixedZone("", 3600)),
			Header: messaging.Header{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "quote": `"'\` + "\n\t\u2028", "empty": "", "日本": "\U0001F600"},
			Body:   every,
		},
		{ID: "'; --", Topic: "a", Key: "?", Type: `\'`, Time: time.Date(1700, 1, 1, 0, 0, 0, 1, time.UTC), Body: bytes.Repeat([]byte("x"), 300_000)},
		{ID: "case", Topic: "T", Key: "K ", Time: time.Unix(0, 0)},
	}
	rows := make([]outbox.Row, len(messages))
	for i, m := range messages {
		rows[i] = outbox.Row{Message: m}
	}
	s.commit(rows...)
	got := s.read(outbox.Read{Limit: 100})
	if len(got) != len(messages) {
		s.Fatalf("Read = %d rows, want %d", len(got), len(messages))
	}
	for i, want := range messages {
		m := got[i].Message
		s.want("ID", m.ID, want.ID)
		s.want("Topic", m.Topic, want.Topic)
		s.want("Key", strconv.Quote(m.Key), strconv.Quote(want.Key))
		s.want("Type", m.Type, want.Type)
		if !m.Time.Equal(want.Time) {
			s.Errorf("Time of %.10q = %v, want %v", m.ID, m.Time, want.Time)
		}
		if !maps.Equal(m.Header, want.Header) {
			s.Errorf("Header of %.10q = %q, want %q", m.ID, m.Header, want.Header)
		}
		if !bytes.Equal(m.Body, want.Body) {
			s.Errorf("Body of %.10q = %d bytes, want the %d that were put in", m.ID, len(m.Body), len(want.Body))
		}
		if got[i].Shard != 0 || got[i].Age < 0 || got[i].Age > time.Hour {
			s.Errorf("Shard, Age of %.10q = %d, %v, want 0 and a moment", m.ID, got[i].Shard, got[i].Age)
		}
	}
}

func (s *suite) order() {
	last := s.Store.Shards() - 1
	var want []string
	for range 3 {
		var rows []outbox.Row
		for range 700 {
			rows = append(rows, outbox.Row{Message: s.message("", "t")})
			want = append(want, rows[len(rows)-1].Message.ID)
		}
		s.commit(rows...)
	}
	s.commit(outbox.Row{Shard: last, Message: s.message("", "t")})
	s.want("Read of everything", s.all(), want)
	s.want("Read with Limit 5", names(s.read(outbox.Read{Limit: 5})), want[:5])
	rows := s.read(outbox.Read{Shard: last, Limit: 9}, outbox.Read{Shard: 0, Limit: 2})
	byShard := map[int]int{}
	for _, r := range rows {
		byShard[r.Shard]++
	}
	s.want("rows of two shards", byShard, map[int]int{0: 2, last: 1})
	s.want("Read of nothing", s.read(), []outbox.Row{})
	every := make([]outbox.Read, s.Store.Shards())
	for i := range every {
		every[i] = outbox.Read{Shard: i, Limit: 1}
	}
	s.want("rows of every shard", len(s.read(every...)), 2)
	var before int64
	for _, r := range s.read(outbox.Read{Limit: 10_000}) {
		if r.ID <= before {
			s.Fatalf("row ID %d after %d, want IDs that grow", r.ID, before)
		}
		before = r.ID
	}
}

func (s *suite) skip() {
	a := s.put("a", "slow", 2)
	b := s.put("b", "fast", 2)
	ab := s.put("a", "fast", 1)
	ba := s.put("b", "slow", 1)
	bb := s.put("b", "fast", 1)
	none := s.put("", "fast", 2)
	noneSlow := s.put("", "slow", 1)
	list := func(parts ...[]string) []string { return slices.Concat(parts...) }
	all := s.read(outbox.Read{Limit: 100})
	s.want("Read", names(all), list(a, b, ab, ba, bb, none, noneSlow))
	for _, c := range []struct {
		what string
		read outbox.Read
		want []string
	}{
		{"Read without some IDs", outbox.Read{Limit: 4, SkipIDs: []int64{all[0].ID, all[2].ID, all[5].ID}}, []string{a[1], b[1], ab[0], bb[0]}},
		{"Read without a key", outbox.Read{Limit: 100, SkipKeys: []string{"b", "none"}}, list(a, ab, none, noneSlow)},
		{"Read without two keys", outbox.Read{Limit: 2, SkipKeys: []string{"a", "b"}}, none},
		{"Read without a topic", outbox.Read{Limit: 100, SkipTopics: []string{"slow"}}, list(b, none)},
		{"Read without two topics", outbox.Read{Limit: 100, SkipTopics: []string{"slow", "fast"}}, nil},
		{"Read without a topic, a key and an ID", outbox.Read{Limit: 100, SkipTopics: []string{"slow"}, SkipKeys: []string{"b"}, SkipIDs: []int64{all[7].ID}}, none[1:]},
	} {
		s.want(c.what, names(s.read(c.read)), c.want)
	}
	s.want("two reads that skip different things", names(s.read(outbox.Read{Limit: 1, SkipIDs: []int64{all[0].ID}}, outbox.Read{Shard: s.Store.Shards() - 1, Limit: 1})), a[1:])
	more := s.put("", "many", 400)
	rows := s.read(outbox.Read{Limit: 1000})
	var known []int64
	for _, r := range rows[:len(rows)-3] {
		known = append(known, r.ID)
	}
	s.want("Read with many IDs to skip", names(s.read(outbox.Read{Limit: 1000, SkipIDs: known})), more[len(more)-3:])
}

func (s *suite) gap() {
	if s.OneWriter {
		s.Skip("one writer at a time")
	}
	early, late := s.begin(), s.begin()
	m1, m2 := s.message("a", "t"), s.message("b", "t")
	s.ok("Insert", s.Store.Insert(s.ctx, early, []outbox.Row{{Message: m1}}))
	s.ok("Insert", s.Store.Insert(s.ctx, late, []outbox.Row{{Message: m2}}))
	s.ok("Commit", late.Commit())
	rows := s.read(outbox.Read{Limit: 10})
	s.want("Read between the commits", names(rows), []string{m2.ID})
	l := s.own("relay")
	s.settled(outbox.Settlement{Lease: of(l, 0), IDs: []int64{rows[0].ID}})
	s.ok("Commit", early.Commit())
	s.want("Read after the late commit", s.all(), []string{m1.ID})
}

// settled settles and wants no shard to be lost.
func (s *suite) settled(settlements ...outbox.Settlement) {
	s.Helper()
	s.want("shards lost in Settle", must[[]int](s, "Settle")(s.Store.Settle(s.ctx, settlements)), []int{})
}

func (s *suite) owner() {
	n := s.Store.Shards()
	v := s.lease("one", 0)
	s.want("the first view: held, relays, free, next expiry", []any{len(v.Held), v.Relays, v.Free, v.NextExpiry}, []any{0, 1, n, time.Duration(0)})
	take := (n + 1) / 2
	v = s.lease("one", take)
	s.want("after taking half: held, free", []int{len(v.Held), v.Free}, []int{take, n - take})
	one := v.Held
	v = s.lease("two", n)
	s.want("the second relay: held, relays, free", []int{len(v.Held), v.Relays, v.Free}, []int{n - take, 2, 0})
	for _, l := range v.Held {
		if slices.ContainsFunc(one, func(o outbox.Lease) bool { return o.Shard == l.Shard }) {
			s.Errorf("shard %d has two owners", l.Shard)
		}
	}
	if v.NextExpiry <= 0 || v.NextExpiry > longTTL {
		s.Errorf("NextExpiry = %v, want up to %v", v.NextExpiry, longTTL)
	}
	sorted := func(l []outbox.Lease) []outbox.Lease {
		return slices.SortedFunc(slices.Values(l), func(a, b outbox.Lease) int { return a.Shard - b.Shard })
	}
	s.want("the first relay later", sorted(s.lease("one", n).Held), sorted(one))
}

func (s *suite) drop() {
	leases := s.own("one")
	give := of(leases, 0)
	v := must[outbox.LeaseView](s, "Lease")(s.Store.Lease(s.ctx, outbox.LeaseRequest{Relay: "one", TTL: longTTL, Drop: []outbox.Lease{give}}))
	s.want("held, free after a drop", []int{len(v.Held), v.Free}, []int{len(leases) - 1, 1})
	v = s.lease("two", 5)
	if len(v.Held) != 1 || v.Held[0].Shard != 0 || v.Held[0].Epoch <= give.Epoch {
		s.Fatalf("the second relay holds %v, want shard 0 in a later epoch than %d", v.Held, give.Epoch)
	}
	// A late drop of the old lease does nothing to the new one.
	_, err := s.Store.Lease(s.ctx, outbox.LeaseRequest{Relay: "one", TTL: longTTL, Drop: []outbox.Lease{give}})
	s.ok("Lease", err)
	s.want("held by the second relay", s.lease("two", 0).Held, v.Held)
	_, err = s.Store.Lease(s.ctx, outbox.LeaseRequest{Relay: "one", TTL: longTTL, Leave: true})
	s.ok("Lease", err)
	w := s.lease("two", len(leases))
	s.want("held, relays after the first left", []int{len(w.Held), w.Relays}, []int{len(leases), 1})
}

func (s *suite) expiry() {
	brief := func(relay string, take int, ttl time.Duration) outbox.LeaseView {
		return must[outbox.LeaseView](s, "Lease")(s.Store.Lease(s.ctx, outbox.LeaseRequest{Relay: relay, TTL: ttl, Take: take}))
	}
	n := s.Store.Shards()
	brief("one", n, time.Millisecond)
	var v outbox.LeaseView
	deadline := time.Now().Add(5 * time.Second)
	for len(v.Held) < n && time.Now().Before(deadline) {
		v = s.lease("two", n)
		time.Sleep(time.Millisecond)
	}
	s.want("shards of the second relay in the end", len(v.Held), n)
	for _, l := range v.Held {
		if l.Epoch < 2 {
			s.Errorf("epoch of shard %d = %d, want more than the first", l.Shard, l.Epoch)
		}
	}
	s.want("what the first still has", len(brief("one", 0, longTTL).Held), 0)

	// One's own lease is not renewed either once it ran out, but can be taken again.
	s.ok("leave", s.leave("two"))
	brief("one", 1, time.Millisecond)
	time.Sleep(20 * time.Millisecond) // longer than that lease, by any clock
	v = brief("one", 0, longTTL)
	s.want("leases held after they ran out", len(v.Held), 0)
	v = brief("one", n, longTTL)
	s.want("leases taken again", len(v.Held), n)
}

func (s *suite) leave(relay string) error {
	_, err := s.Store.Lease(s.ctx, outbox.LeaseRequest{Relay: relay, TTL: longTTL, Leave: true})
	return err
}

func (s *suite) race() {
	const relays = 6
	views := make([]outbox.LeaseView, relays)
	errs := make([]error, relays)
	var wg sync.WaitGroup
	for i := range relays {
		wg.Go(func() {
			for try := range 20 {
				v, err := s.Store.Lease(s.ctx, outbox.LeaseRequest{Relay: fmt.Sprintf("relay%d", i), TTL: longTTL, Take: 1 + try%3})
				if err != nil {
					errs[i] = err // a database may refuse one of many; a relay asks again
					continue
				}
				for _, l := range views[i].Held {
					if !slices.Contains(v.Held, l) {
						s.Errorf("relay %d has lost %+v, of which the lease is long", i, l)
					}
				}
				views[i] = v
			}
		})
	}
	wg.Wait()
	owner := make(map[int]int)
	for i, v := range views {
		if v.Relays == 0 {
			s.Fatalf("relay %d never got an answer: %v", i, errs[i])
		}
		for _, l := range s.lease(fmt.Sprintf("relay%d", i), 0).Held {
			if o, taken := owner[l.Shard]; taken {
				s.Errorf("shard %d belongs to relays %d and %d", l.Shard, o, i)
			}
			owner[l.Shard] = i
		}
	}
	s.want("shards with an owner", len(owner), s.Store.Shards())
}

func (s *suite) settle() {
	l := s.own("relay")
	s.put("k", "t", 5)
	rows := s.read(outbox.Read{Limit: 10})
	s.settled(settlement(of(l, 0), rows[1], rows[3]))
	s.want("Read after Settle", names(s.read(outbox.Read{Limit: 10})), []string{"m1", "m3", "m5"})
	s.settled(outbox.Settlement{Lease: of(l, 0), IDs: []int64{rows[1].ID, rows[0].ID}})
	s.want("Read after settling a row that is gone with one that is not", s.all(), []string{"m3", "m5"})

	// Hints out of date: those of other rows, of a row that is gone, of none, and of one in two places.
	s.put("k", "t", 4)
	more := s.read(outbox.Read{Limit: 10})
	stale := settlement(of(l, 0), more[:4]...)
	stale.Hints = []uint64{more[4].Hint, rows[0].Hint, 1 << 40, more[3].Hint}
	s.settled(stale)
	s.want("Read after Settle with hints out of date", s.all(), []string{"m8", "m9"})
	none := settlement(of(l, 0), more[4], more[5])
	none.Hints = nil
	s.settled(none)
	s.want("Read after Settle without hints", s.all(), []string{})

	// Many rows of many shards at once.
	var many []outbox.Row
	for i := range 1000 {
		many = append(many, outbox.Row{Shard: i % s.Store.Shards(), Message: s.message("", "t")})
	}
	s.commit(many...)
	var settlements []outbox.Settlement
	for n := range s.Store.Shards() {
		t := outbox.Settlement{Lease: of(l, n)}
		for _, r := range s.read(outbox.Read{Shard: n, Limit: 1000}) {
			t.IDs, t.Hints = append(t.IDs, r.ID), append(t.Hints, r.Hint)
		}
		settlements = append(settlements, t)
	}
	s.settled(settlements...)
	s.want("depth after settling everything", must[outbox.Stats](s, "Stats")(s.Store.Stats(s.ctx)).Depth, 0)
}

// settlement is that of rows as they were read.
func settlement(l outbox.Lease, rows ...outbox.Row) outbox.Settlement {
	t := outbox.Settlement{Lease: l}
	for _, r := range rows {
		t.IDs, t.Hints = append(t.IDs, r.ID), append(t.Hints, r.Hint)
	}
	return t
}

func (s *suite) fence() {
	old := s.own("one")
	s.ok("leave", s.leave("one"))
	now := s.own("two")
	other := s.Store.Shards() - 1
	s.commit(outbox.Row{Shard: 0, Message: s.message("", "t")}, outbox.Row{Shard: other, Message: s.message("", "t")})
	rows := s.read(outbox.Read{Shard: 0, Limit: 1}, outbox.Read{Shard: other, Limit: 1})
	lost := must[[]int](s, "Settle")(s.Store.Settle(s.ctx, []outbox.Settlement{settlement(of(old, 0), rows[0])}))
	s.want("shards lost under the old epoch", lost, []int{0})
	s.want("Read after it", s.all(), []string{"m1"})
	if other > 0 {
		lost = must[[]int](s, "Settle")(s.Store.Settle(s.ctx, []outbox.Settlement{settlement(of(now, other), rows[1]), settlement(of(old, 0), rows[0])}))
		s.want("shards lost when one of two is old", lost, []int{0})
		s.want("Read after it", s.all(), []string{"m1"})
		s.want("Read of the other shard", len(s.read(outbox.Read{Shard: other, Limit: 1})), 0)
	}
	gone := must[bool](s, "Park")(s.Store.Park(s.ctx, of(old, 0), outbox.Parking{ID: rows[0].ID, Reason: "no"}))
	s.want("Park under the old epoch, lost", gone, true)
	s.want("Read after it", s.all(), []string{"m1"})
	s.settled(settlement(of(now, 0), rows[0]))
	s.want("Read after a Settle under the new epoch", s.all(), []string{})
}

// setAside parks a row of shard 0.
func (s *suite) setAside(id int64, block bool) {
	s.Helper()
	l := of(s.own("relay"), 0)
	lost := must[bool](s, "Park")(s.Store.Park(s.ctx, l, outbox.Parking{ID: id, Reason: "it's \"bad\"\x00\xff", Attempts: 7, Block: block}))
	s.want("Park, lost", lost, false)
}

func (s *suite) park() {
	m := s.message("k", "t")
	m.Header, m.Body, m.Type = messaging.Header{"a": "b"}, []byte("body"), "type"
	s.commit(outbox.Row{Message: m})
	rest := s.put("k", "t", 1)
	rows := s.read(outbox.Read{Limit: 10})
	s.setAside(rows[0].ID, false)
	s.want("Read after Park", s.all(), rest)
	s.setAside(rows[0].ID, false) // nothing happens
	parked := must[[]outbox.Parked](s, "Parked")(s.Store.Parked(s.ctx, false, 10))
	if len(parked) != 1 {
		s.Fatalf("Parked = %d, want 1", len(parked))
	}
	p := parked[0]
	if p.Message.ID != m.ID || p.Message.Key != "k" || p.Message.Type != "type" || string(p.Message.Body) != "body" || p.Message.Header["a"] != "b" || !p.Message.Time.Equal(m.Time) {
		s.Errorf("parked message = %+v, want %+v", p.Message, m)
	}
	if !strings.HasPrefix(p.Reason, `it's "bad"`) || p.Attempts != 7 || p.Blocks || !p.Discarded.IsZero() || p.DiscardReason != "" {
		s.Errorf("Parked = %+v, want the reason and attempts it was parked with", p)
	}
	if d := time.Since(p.Since); d < -time.Hour || d > time.Hour {
		s.Errorf("Since = %v, want now", p.Since)
	}
	s.want("Stats.Parked", must[outbox.Stats](s, "Stats")(s.Store.Stats(s.ctx)).Parked, 1)
}

func (s *suite) block() {
	s.put("k", "t", 3)
	other := s.put("o", "t", 1)
	none := s.put("", "t", 1)
	rows := s.read(outbox.Read{Limit: 10})
	s.setAside(rows[0].ID, true)
	s.want("Read beside a blocked key", s.all(), slices.Concat(other, none))
	later := s.put("k", "t", 1)
	s.want("Read after another message of the key", s.all(), slices.Concat(other, none))
	s.want("Parked.Blocks", must[[]outbox.Parked](s, "Parked")(s.Store.Parked(s.ctx, false, 10))[0].Blocks, true)
	s.want("Discard", must[int](s, "Discard")(s.Store.Discard(s.ctx, "m1", "because")), 1)
	s.want("Read after Discard", s.all(), slices.Concat([]string{"m2", "m3"}, other, none, later))
}

func (s *suite) retry() {
	ids := s.put("k", "t", 3)
	rows := s.read(outbox.Read{Limit: 10})
	s.setAside(rows[0].ID, true)
	later := s.put("o", "t", 1)
	s.want("Retry of another", must[int](s, "Retry")(s.Store.Retry(s.ctx, "other")), 0)
	s.want("Retry", must[int](s, "Retry")(s.Store.Retry(s.ctx, ids[0])), 1)
	s.want("Read after Retry", s.all(), slices.Concat(ids, later))
	s.want("Retry again", must[int](s, "Retry")(s.Store.Retry(s.ctx, ids[0])), 0)
	s.setAside(rows[0].ID, true)
	s.setAside(rows[1].ID, false)
	s.want("Retry of all", must[int](s, "Retry")(s.Store.Retry(s.ctx, "")), 2)
	s.want("Read after it", s.all(), slices.Concat(ids, later))
	s.want("messages parked", len(must[[]outbox.Parked](s, "Parked")(s.Store.Parked(s.ctx, false, 10))), 0)
	got := s.read(outbox.Read{Limit: 1})[0]
	s.want("row ID after Retry", got.ID, rows[0].ID)
	fresh := s.put("k", "t", 1)
	s.want("Read after one more", s.all(), slices.Concat(ids, later, fresh))
}

func (s *suite) discard() {
	s.put("", "t", 3)
	rows := s.read(outbox.Read{Limit: 10})
	s.setAside(rows[0].ID, false)
	s.setAside(rows[1].ID, false)
	s.want("Discard of another", must[int](s, "Discard")(s.Store.Discard(s.ctx, "m3", "x")), 0)
	s.want("Discard", must[int](s, "Discard")(s.Store.Discard(s.ctx, "m1", "customer is gone")), 1)
	s.want("Discard again", must[int](s, "Discard")(s.Store.Discard(s.ctx, "m1", "x")), 0)
	s.want("Retry of a discarded one", must[int](s, "Retry")(s.Store.Retry(s.ctx, "m1")), 0)
	list := must[[]outbox.Parked](s, "Parked")(s.Store.Parked(s.ctx, true, 10))
	if len(list) != 1 || list[0].Message.ID != "m1" || list[0].DiscardReason != "customer is gone" || list[0].Discarded.IsZero() || list[0].Blocks {
		s.Errorf("discarded = %+v, want m1 with its reason and time", list)
	}
	list = must[[]outbox.Parked](s, "Parked")(s.Store.Parked(s.ctx, false, 10))
	if len(list) != 1 || list[0].Message.ID != "m2" {
		s.Errorf("parked = %+v, want m2", list)
	}
	s.want("Prune of older ones", must[int](s, "Prune")(s.Store.Prune(s.ctx, time.Hour)), 0)
	s.want("Prune", must[int](s, "Prune")(s.Store.Prune(s.ctx, 0)), 1)
	s.want("discarded after Prune", len(must[[]outbox.Parked](s, "Parked")(s.Store.Parked(s.ctx, true, 10))), 0)
	s.want("parked after Prune", len(must[[]outbox.Parked](s, "Parked")(s.Store.Parked(s.ctx, false, 10))), 1)
}

func (s *suite) stats() {
	s.want("Stats of an empty store", must[outbox.Stats](s, "Stats")(s.Store.Stats(s.ctx)), outbox.Stats{})
	s.put("k", "t", 3)
	s.commit(outbox.Row{Shard: s.Store.Shards() - 1, Message: s.message("", "t")})
	time.Sleep(20 * time.Millisecond)
	st := must[outbox.Stats](s, "Stats")(s.Store.Stats(s.ctx))
	if st.Depth != 4 || st.Parked != 0 || st.OldestAge < 10*time.Millisecond || st.OldestAge > time.Hour {
		s.Errorf("Stats = %+v, want depth 4 and the age of the first", st)
	}
	s.setAside(s.read(outbox.Read{Limit: 1})[0].ID, true)
	st = must[outbox.Stats](s, "Stats")(s.Store.Stats(s.ctx))
	s.want("depth and parked after Park", []int{st.Depth, st.Parked}, []int{3, 1})
}

// bystander: what an unrelated transaction has inserted and not committed is in nobody's way, nor
// is the relay in the way of inserts.
func (s *suite) bystander() {
	if s.OneWriter {
		s.Skip("one writer at a time")
	}
	s.put("a", "t", 2)
	s.put("b", "t", 2)
	open := s.begin()
	defer func() { _ = open.Rollback() }()
	s.ok("Insert", s.Store.Insert(s.ctx, open, []outbox.Row{{Message: s.message("c", "t")}, {Message: s.message("a", "t")}}))
	ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
	defer cancel()
	outer := s.ctx
	s.ctx = ctx
	l := s.own("relay")
	rows := s.read(outbox.Read{Limit: 10})
	s.want("Read beside an open transaction", names(rows), []string{"m1", "m2", "m3", "m4"})
	s.settled(outbox.Settlement{Lease: of(l, 0), IDs: []int64{rows[0].ID, rows[0].ID - 1, rows[3].ID + 100}})
	s.setAside(rows[1].ID, true)
	s.want("Retry", must[int](s, "Retry")(s.Store.Retry(s.ctx, "m2")), 1)
	s.ok("leave", s.leave("relay"))
	_, err := s.Store.Stats(s.ctx)
	s.ok("Stats", err)
	second := s.begin()
	s.ok("Insert", s.Store.Insert(s.ctx, second, []outbox.Row{{Message: s.message("d", "t")}}))
	s.ok("Commit", second.Commit())
	s.ctx = outer
	s.ok("Commit", open.Commit())
	s.want("Read in the end", s.all(), []string{"m2", "m3", "m4", "m5", "m6", "m7"})
}

// relay runs relays that come and go on the store.
func (s *suite) relay() {
	const keys, producers, each = 12, 4, 60
	box, err := outbox.New(s.Store, outbox.Config{})
	s.ok("New", err)
	broker := &recorder{last: make(map[string]int), count: make(map[string]int)}
	config := outbox.RelayConfig{
		Batch: 7, Window: 16, Lease: 500 * time.Millisecond, Poll: 50 * time.Millisecond, DrainTimeout: 200 * time.Millisecond,
		Backoff: messaging.Backoff{Base: time.Millisecond, Max: 20 * time.Millisecond},
	}
	// Three relays; now and then one of them ends and another begins.
	ctx, stop := context.WithCancel(s.ctx)
	var relays, writers sync.WaitGroup
	for range 3 {
		relays.Go(func() {
			for ctx.Err() == nil {
				r, err := outbox.NewRelay(box, broker, config)
				if err != nil {
					s.Error(err)
					return
				}
				life, end := context.WithTimeout(ctx, time.Duration(200+rand.IntN(800))*time.Millisecond)
				if err := r.Run(life); err != nil {
					s.Errorf("Run = %v, want nil", err)
				}
				end()
			}
		})
	}
	// A key belongs to one producer, which stands in for the lock on its aggregate.
	for p := range producers {
		writers.Go(func() {
			next := make(map[string]int)
			for range each {
				tx, err := s.Begin(s.ctx)
				if err != nil {
					s.Errorf("Begin = %v", err)
					return
				}
				commit := rand.IntN(10) > 0
				added := make(map[string]int)
				for range 1 + rand.IntN(3) {
					key := fmt.Sprintf("key%d", p+producers*rand.IntN(keys/producers))
					added[key]++
					n := next[key] + added[key]
					err = errors.Join(err, box.Enqueue(s.ctx, tx, &messaging.Message{Topic: "t", Key: key, Header: messaging.Header{"n": strconv.Itoa(n), "commit": strconv.FormatBool(commit)}}))
				}
				if commit {
					err = errors.Join(err, tx.Commit())
				} else {
					err = errors.Join(err, tx.Rollback())
				}
				if err != nil {
					s.Errorf("produce: %v", err)
					return
				}
				if commit {
					for key, n := range added {
						next[key] += n
					}
					box.Wake()
				}
			}
			broker.mu.Lock()
			defer broker.mu.Unlock()
			for key, n := range next {
				broker.count[key] = n
			}
		})
	}
	writers.Wait()
	for s.ctx.Err() == nil && !s.Failed() {
		if st := must[outbox.Stats](s, "Stats")(s.Store.Stats(s.ctx)); st.Depth == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	stop()
	relays.Wait()
	broker.mu.Lock()
	defer broker.mu.Unlock()
	for _, p := range broker.problems {
		s.Error(p)
	}
	for key, n := range broker.count {
		s.want("published messages of "+key, broker.last[key], n)
	}
}

// recorder is a broker that loses some answers and checks the order of first arrivals.
type recorder struct {
	mu       sync.Mutex
	last     map[string]int // by key
	count    map[string]int
	problems []string
}

func (r *recorder) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(rand.IntN(1000)) * time.Microsecond):
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range msgs {
		if rand.IntN(20) == 0 {
			return messaging.ErrRefused
		}
		n, err := strconv.Atoi(m.Header["n"])
		switch {
		case err != nil:
			r.problems = append(r.problems, fmt.Sprintf("message %s lost its header: %q", m.ID, m.Header))
		case m.Header["commit"] != "true":
			r.problems = append(r.problems, fmt.Sprintf("message %s of %s was rolled back and is published", m.ID, m.Key))
		case n > r.last[m.Key]+1:
			r.problems = append(r.problems, fmt.Sprintf("message %d of %s is published after %d", n, m.Key, r.last[m.Key]))
		}
		r.last[m.Key] = max(r.last[m.Key], n)
		if rand.IntN(20) == 0 {
			return messaging.ErrUnknown
		}
	}
	return nil
}
