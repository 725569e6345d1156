// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox

import (
	"cmp"
	"container/heap"
	"container/list"
	"context"
	"errors"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// The scheduler decides what a relay does. It does no I/O and looks at no clock: it is
// told the time and what happened, and answers with commands. So a test can play a
// relay through any order of events, crashes included, and again from the same seed.
//
// What keeps the order of a key:
//
//   - its rows stay in one shard, and a relay publishes only what it holds the lease
//     of, by a deadline of its own that ends before the store's;
//   - the next row of a key goes out when the one before it is confirmed, or has been
//     parked in the store by a relay that frees keys;
//   - confirmed rows are removed in the order of their confirmation, a failed removal
//     together with the next one, so that a row is never left behind in the store by a later one
//     of its key;
//   - rows that are in memory are named in each read, so that it cannot return them again, and
//     nothing is parked during a read, which might return what the parked row blocks.
//
// Parking, removing and reading take turns, so that many bad messages do not hold up the good.
type scheduler struct {
	cfg    RelayConfig
	shards int
	name   string
	rand   *rand.Rand

	// held are the shards by number, nil if not held.
	held   []*shard
	topics map[string]*topic
	// ring are the topics with rows that are ready, served in turn.
	ring    []*topic
	turn    int
	waiting rowHeap
	// young are the rows that are on their way, in the order of their reading, until they
	// are slow.
	young list.List
	// flying are the rows with the publisher, strays left out, in the order of their start.
	flying list.List

	inFlight int
	// strays counts per shard what is with the publisher for a lease that is lost, and spent
	// is that lease's epoch. A late write under it must not meet a new beginning.
	strays map[int]int
	spent  map[int]int64
	// confirmed counts, as evidence that the broker works.
	confirmed uint64

	leasing    bool
	nextLease  time.Time
	validUntil time.Time
	take       int
	drops      []Lease
	stopping   bool
	stopBy     time.Time
	finished   bool

	// wakes counts reasons to look at the store, polls included.
	wakes    uint64
	nextPoll time.Time
	reading  bool
	// settling tells that a write is under way, and parking that this or the last one parks a row.
	settling, parking bool
	// parks are the rows to be parked, and unread counts those since the last read.
	parks  []*row
	unread int
	// settleBy is when the first of the rows that are confirmed and not yet being removed
	// has waited long enough for others; zero if there are none.
	settleBy time.Time
	// readAfter and writeAfter hold back calls of a store that fails.
	readAfter, writeAfter   time.Time
	readErrors, writeErrors int

	stats RelayStats
	notes []any
}

const (
	// slowAfter is when a row that is not confirmed stops counting as being on its way, so
	// that more rows are read in its place.
	slowAfter = time.Second
	// memory is how many batches of a shard may be in memory.
	memory = 3
	// settleAfter is how long a confirmed row waits for others to be removed with it, while
	// more are on their way: each removal is a transaction that waits for the disk.
	settleAfter = 20 * time.Millisecond
	// maxHint bounds the delays that errors ask for.
	maxHint = time.Hour
	// readShare is the part of its time, as a divisor, that a relay may spend on reads
	// which pass over rows: those can be many.
	readShare = 10
	// parksPerRead is how many rows are parked at most before rows are read that are wanted.
	parksPerRead = 8
	// leaveGrace is how long the last call of a run may take beyond the drain.
	leaveGrace = time.Second
	// storeRetry and storeRetryMax are the backoff for a store that fails.
	storeRetry    = 100 * time.Millisecond
	storeRetryMax = 5 * time.Second
)

// shard is one that the relay holds.
type shard struct {
	Lease
	rows map[int64]*row
	keys map[string]*key
	// topics counts the rows that are the first of their key, or have none. One key with a
	// long queue does not make its topic look slow.
	topics map[*topic]int
	// published are confirmed rows that are still in the store, in the order of their
	// confirmation.
	published []*row
	// fresh counts rows that are on their way and not slow.
	fresh int
	// seen is the value of wakes that the last read began with, and more tells that it was
	// full.
	seen uint64
	more bool
	// skipAfter holds back reads after one that passed over rows.
	skipAfter time.Time
	// draining since that time; zero if not.
	draining time.Time
	lost     bool
	// ctx is that of its attempts, made with the first of them and ended when the shard is
	// lost.
	ctx    context.Context //nolint:containedctx // see above
	cancel context.CancelFunc
}

// key is a queue of rows, of which the first is being dealt with.
type key struct {
	name string
	rows []*row
}

type topic struct {
	name     string
	ready    queue
	inRing   bool
	inFlight int
	// rows counts those in memory, in all shards.
	rows int
	// troubled rows wait for the broker's sake, and are tried again soon after another row
	// of the topic got through.
	troubled int
	eased    time.Time
}

type state uint8

const (
	queued state = iota // behind another row of its key
	ready
	flying
	waiting
	published // and not yet removed from the store
	parking
	gone
)

type row struct {
	Row
	shard *shard
	topic *topic
	key   *key // nil if the row has no order to keep
	state state

	readAt  time.Time
	started time.Time
	leads   bool // counts in shard.topics
	// tries counts attempts, failures those that are the message's own fault.
	tries, failures int
	// mark is the value of confirmed at the last failure, or the first attempt.
	mark    uint64
	trouble bool
	reason  string
	due     time.Time
	// where it is in waiting, young and flying
	index  int
	youth  *list.Element
	flight *list.Element
}

// The commands.
type (
	command      any
	leaseCommand struct {
		request LeaseRequest
		sent    time.Time
	}
	readCommand struct {
		reads  []Read
		shards []*shard
		wakes  uint64
		sent   time.Time
	}
	settleCommand struct {
		settlements []Settlement
		shards      []*shard
	}
	parkCommand struct {
		row     *row
		lease   Lease
		parking Parking
	}
	publishCommand struct{ row *row }
)

// storeTrouble notes a failed call of the store.
type storeTrouble struct {
	call string
	err  error
}

func newScheduler(cfg RelayConfig, shards int, name string, seed uint64) *scheduler {
	return &scheduler{
		cfg: cfg, shards: shards, name: name, rand: rand.New(rand.NewPCG(seed, 0)),
		held: make([]*shard, shards), topics: make(map[string]*topic), strays: make(map[int]int), spent: make(map[int]int64),
		wakes: 1,
	}
}

// step returns what to do now, and when to ask again if nothing happens before.
func (s *scheduler) step(now time.Time) (commands []command, next time.Time) {
	s.expire(now)
	s.drain(now)
	if s.stopping && !now.Before(s.stopBy.Add(leaveGrace)) {
		s.finished = true // the store does not answer; the leases run out by themselves
		return nil, now
	}
	s.age(now)
	for len(s.waiting) > 0 && !s.waiting[0].due.After(now) {
		s.setReady(s.waiting[0])
	}
	if !now.Before(s.nextPoll) {
		s.wakes++
		// Jitter keeps replicas that started together from asking together.
		s.nextPoll = now.Add(s.cfg.Poll - time.Duration(s.rand.Int64N(int64(s.cfg.Poll)/10+1)))
	}
	if c := s.lease(now); c != nil {
		commands = append(commands, c)
	}
	if c := s.write(now); c != nil {
		commands = append(commands, c)
	}
	if c := s.wantRead(now); c != nil {
		commands = append(commands, c)
	}
	for _, r := range s.dispatch(now) {
		commands = append(commands, &publishCommand{r})
	}
	return commands, s.next(now)
}

// next returns the earliest time at which step has something to do by itself.
func (s *scheduler) next(now time.Time) time.Time {
	next := s.nextPoll
	earlier := func(t time.Time) {
		if t.After(now) && t.Before(next) {
			next = t
		}
	}
	earlier(s.validUntil)
	earlier(s.stopBy)
	earlier(s.stopBy.Add(leaveGrace))
	earlier(s.readAfter)
	earlier(s.writeAfter)
	if !s.settling {
		earlier(s.settleBy)
	}
	if !s.leasing {
		earlier(s.nextLease)
	}
	if len(s.waiting) > 0 {
		earlier(s.waiting[0].due)
	}
	if e := s.young.Front(); e != nil {
		earlier(e.Value.(*row).readAt.Add(slowAfter))
	}
	for sh := range s.shardsHeld() {
		earlier(sh.skipAfter)
		if !sh.draining.IsZero() {
			earlier(sh.draining.Add(max(s.cfg.DrainTimeout, 0)))
		}
	}
	return next
}

func (s *scheduler) wake() { s.wakes++ }

// stop begins the end of the run.
func (s *scheduler) stop(now time.Time) {
	s.stopping, s.stopBy, s.take = true, now.Add(max(s.cfg.DrainTimeout, 0)), 0
	for sh := range s.shardsHeld() {
		s.beginDrain(sh, now)
	}
	s.nextLease = now
}

// shardsHeld yields the shards that are held, in the order of their numbers.
func (s *scheduler) shardsHeld() iter.Seq[*shard] {
	return func(yield func(*shard) bool) {
		for _, sh := range s.held {
			if sh != nil && !yield(sh) {
				return
			}
		}
	}
}

// inOrder returns the rows by ID. Nothing here depends on the order of a map, or a seed
// would not replay.
func (sh *shard) inOrder() []*row {
	return slices.SortedFunc(maps.Values(sh.rows), func(a, b *row) int { return cmp.Compare(a.ID, b.ID) })
}

// ---- leases

// expire gives up everything when the leases can have run out in the store.
func (s *scheduler) expire(now time.Time) {
	if now.Before(s.validUntil) {
		return
	}
	for sh := range s.shardsHeld() {
		s.lose(sh, "expired")
	}
}

// lose forgets a shard. What is with the publisher is cancelled and counts as a stray
// until it returns.
func (s *scheduler) lose(sh *shard, why string) {
	sh.lost = true
	s.spent[sh.Shard] = sh.Epoch
	s.held[sh.Shard] = nil
	s.stats.Shards--
	for _, r := range sh.inOrder() {
		if r.state == flying {
			s.strays[sh.Shard]++
			s.flying.Remove(r.flight)
		}
		s.forget(r)
	}
	if sh.cancel != nil {
		sh.cancel()
	}
	s.parks = slices.DeleteFunc(s.parks, func(r *row) bool { return r.shard == sh })
	s.notes = append(s.notes, Leased{Lease: sh.Lease, Why: why})
}

// beginDrain stops taking up rows of a shard. It is given up when nothing of it is under way.
func (s *scheduler) beginDrain(sh *shard, now time.Time) {
	if !sh.draining.IsZero() {
		return
	}
	sh.draining = now
	for _, r := range sh.inOrder() {
		if r.state == queued || r.state == ready || r.state == waiting {
			s.forget(r)
		}
	}
}

// drain drops the shards that are empty or out of time.
func (s *scheduler) drain(now time.Time) {
	for sh := range s.shardsHeld() {
		if sh.draining.IsZero() {
			continue
		}
		if len(sh.rows) == 0 || !now.Before(sh.draining.Add(max(s.cfg.DrainTimeout, 0))) {
			s.drops = append(s.drops, sh.Lease)
			s.lose(sh, "dropped")
			s.nextLease = now
		}
	}
}

// lease returns the next heartbeat if it is due.
func (s *scheduler) lease(now time.Time) command {
	if s.leasing || now.Before(s.nextLease) {
		return nil
	}
	leave := s.stopping && (s.stats.Shards == 0 || !now.Before(s.stopBy))
	s.leasing = true
	return &leaseCommand{sent: now, request: LeaseRequest{
		Relay: s.name, TTL: s.cfg.Lease, Drop: slices.Clone(s.drops), Take: s.take, Leave: leave,
	}}
}

func (s *scheduler) leased(now time.Time, c *leaseCommand, view LeaseView, err error) {
	s.leasing = false
	if c.request.Leave {
		// If it failed the leases run out by themselves.
		s.finished = true
		return
	}
	if err != nil {
		s.storeFailed("lease", err)
		s.nextLease = now.Add(min(s.cfg.Lease/6, time.Second))
		return
	}
	took := s.take > 0
	s.take = 0
	s.drops = slices.DeleteFunc(s.drops, func(l Lease) bool { return slices.Contains(c.request.Drop, l) })
	s.nextLease = c.sent.Add(s.cfg.Lease / 3)
	if view.NextExpiry > 0 {
		// Be there when the lease of a relay that died runs out.
		if t := now.Add(view.NextExpiry + time.Millisecond); t.Before(s.nextLease) {
			s.nextLease = t
		}
	}
	until := c.sent.Add(s.cfg.Lease)
	if !now.Before(until) {
		s.nextLease = now // too late to rely on
		return
	}
	s.validUntil = until
	for sh := range s.shardsHeld() {
		if !slices.Contains(view.Held, sh.Lease) {
			s.lose(sh, "fenced")
		}
	}
	for _, l := range view.Held {
		switch {
		case s.held[l.Shard] != nil:
		case s.stopping, s.strays[l.Shard] > 0, s.spent[l.Shard] >= l.Epoch:
			// Given back, to be taken again under a new epoch when no stray is left: beside it
			// two rows of a key could be in flight.
			if !slices.Contains(s.drops, l) {
				s.drops = append(s.drops, l)
			}
		case !slices.Contains(s.drops, l):
			s.held[l.Shard] = &shard{
				Lease: l, rows: make(map[int64]*row), keys: make(map[string]*key), topics: make(map[*topic]int), more: true,
			}
			s.stats.Shards++
			s.notes = append(s.notes, Leased{Lease: l, Held: true})
		}
	}
	s.balance(now, view, took)
}

// balance aims at an equal share of the shards.
func (s *scheduler) balance(now time.Time, view LeaseView, took bool) {
	if s.stopping {
		s.nextLease = now
		if s.stats.Shards > 0 {
			s.nextLease = now.Add(s.cfg.Lease / 3)
		}
		return
	}
	share := (s.shards + max(view.Relays, 1) - 1) / max(view.Relays, 1)
	active := slices.DeleteFunc(slices.Collect(s.shardsHeld()), func(sh *shard) bool { return !sh.draining.IsZero() })
	switch extra := len(active) - share; {
	case extra > 0:
		// The emptiest are the quickest to hand over.
		slices.SortFunc(active, func(a, b *shard) int {
			return cmp.Or(cmp.Compare(len(a.rows), len(b.rows)), cmp.Compare(a.Shard, b.Shard))
		})
		for _, sh := range active[:extra] {
			s.beginDrain(sh, now)
		}
	case extra < 0 && view.Free > 0 && !took:
		s.take = min(-extra, view.Free)
		s.nextLease = now
	}
}

// ---- reading

// wantRead returns a read of all shards that need rows.
func (s *scheduler) wantRead(now time.Time) command {
	if s.reading || s.settling && s.parking {
		return nil
	}
	short := s.short(now)
	if len(short) == 0 {
		return nil
	}
	c := &readCommand{wakes: s.wakes, sent: now, shards: short}
	for _, sh := range short {
		c.reads = append(c.reads, s.wanted(sh))
	}
	s.reading, s.unread = true, 0
	return c
}

// short returns the shards that are short of rows, if one of them is to be read now.
func (s *scheduler) short(now time.Time) (short []*shard) {
	if s.stopping || now.Before(s.readAfter) {
		return nil
	}
	low := false
	for sh := range s.shardsHeld() {
		if !sh.draining.IsZero() || !sh.more && sh.seen == s.wakes || now.Before(sh.skipAfter) ||
			sh.fresh > s.cfg.Batch/2 || s.free(sh) <= 0 || len(sh.published) >= memory*s.cfg.Batch {
			continue
		}
		// When one has run low, the others that will soon are read along. The lower, the fewer
		// rows in memory the store has to pass over. With what is read, a shard has at most one and a
		// half batches, half of its memory: what a single topic may have.
		low = low || sh.fresh <= s.cfg.Batch/4
		short = append(short, sh)
	}
	if !low {
		return nil
	}
	return short
}

// wanted is a read of rows of a shard that are not in memory.
func (s *scheduler) wanted(sh *shard) Read {
	free := s.free(sh)
	r := Read{Shard: sh.Shard, Limit: min(s.cfg.Batch, free), SkipIDs: slices.Sorted(maps.Keys(sh.rows))}
	// What has its share of the memory is slow, since there are few fresh rows. Look for
	// others behind it.
	for _, k := range sh.keys {
		if len(k.rows) >= free {
			r.SkipKeys = append(r.SkipKeys, k.name)
		}
	}
	for t, rows := range sh.topics {
		if rows >= free {
			r.SkipTopics = append(r.SkipTopics, t.name)
		}
	}
	slices.Sort(r.SkipKeys)
	slices.Sort(r.SkipTopics)
	return r
}

// free is how many more rows of a shard may be in memory. A key or a topic may have as
// many as are free: so one that is slow gets half of the memory, two get a third each, n
// get an (n+1)-th part, and there is always room for others.
//
// Source: Choudhury, Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet
// Switches", IEEE/ACM Transactions on Networking 6(2), 1998.
func (s *scheduler) free(sh *shard) int {
	return memory*s.cfg.Batch - (len(sh.rows) - len(sh.published))
}

func (s *scheduler) read(now time.Time, c *readCommand, rows []Row, err error) {
	s.reading = false
	if err != nil {
		s.storeFailed("read", err)
		s.readErrors++
		s.readAfter = now.Add(s.storeBackoff(s.readErrors))
		return
	}
	s.readErrors = 0
	count := make(map[int]int)
	byShard := make(map[int]*shard)
	for _, sh := range c.shards {
		byShard[sh.Shard] = sh
	}
	left := make(map[string]bool) // keys with a row that was left in the store
	for _, r := range rows {
		count[r.Shard]++
		sh := byShard[r.Shard]
		if sh == nil || sh.lost || !sh.draining.IsZero() || sh.rows[r.ID] != nil || left[r.Message.Key] {
			continue
		}
		if !s.add(now, sh, r) && r.Message.Key != "" {
			left[r.Message.Key] = true
		}
	}
	for i, sh := range c.shards {
		sh.seen = c.wakes
		sh.more = count[sh.Shard] >= c.reads[i].Limit
		if r := c.reads[i]; len(r.SkipKeys)+len(r.SkipTopics) > 0 {
			sh.skipAfter = now.Add(now.Sub(c.sent) * readShare)
		}
	}
}

// add takes a row that was read into memory, if its key and topic may have one more.
func (s *scheduler) add(now time.Time, sh *shard, stored Row) bool {
	free := s.free(sh)
	t := s.topics[stored.Message.Topic]
	k := sh.keys[stored.Message.Key]
	switch {
	case k != nil && len(k.rows) >= free, k == nil && t != nil && sh.topics[t] >= free, free <= 0:
		return false
	}
	if t == nil {
		t = &topic{name: stored.Message.Topic}
		s.topics[t.name] = t
	}
	r := &row{Row: stored, shard: sh, topic: t, readAt: now, index: -1}
	sh.rows[r.ID] = r
	t.rows++
	sh.fresh++
	r.youth = s.young.PushBack(r)
	if name := stored.Message.Key; name != "" {
		if k == nil {
			k = &key{name: name}
			sh.keys[name] = k
		}
		r.key = k
		// Rows come in order. Should an application break the rule on locking, the first one is
		// being dealt with already and stays the first.
		at := len(k.rows)
		for at > 1 && k.rows[at-1].ID > r.ID {
			at--
		}
		k.rows = slices.Insert(k.rows, at, r)
		if at > 0 {
			return true
		}
	}
	s.lead(r)
	s.setReady(r)
	return true
}

// lead counts a row that is the first of its key or has none.
func (s *scheduler) lead(r *row) {
	r.leads = true
	r.shard.topics[r.topic]++
}

// age takes slow rows out of the count of fresh ones.
func (s *scheduler) age(now time.Time) {
	for e := s.young.Front(); e != nil && !now.Before(e.Value.(*row).readAt.Add(slowAfter)); e = s.young.Front() {
		s.slowed(e.Value.(*row))
	}
}

func (s *scheduler) slowed(r *row) {
	if r.youth != nil {
		s.young.Remove(r.youth)
		r.youth = nil
		r.shard.fresh--
	}
}

// ---- publishing

// dispatch returns the rows to publish now.
func (s *scheduler) dispatch(now time.Time) (rows []*row) {
	if s.stopping {
		return nil
	}
	idle := 0 // topics in a row that have nothing or may not
	for s.inFlight < s.cfg.Window && idle < len(s.ring) {
		s.turn %= len(s.ring)
		t := s.ring[s.turn]
		r := t.ready.first(func(r *row) bool { return r.state == ready })
		switch {
		case r == nil:
			t.inRing = false
			s.ring = slices.Delete(s.ring, s.turn, s.turn+1)
			continue
		case t.inFlight >= s.cfg.Window-s.inFlight:
			// As in free: with n slow topics each has an (n+1)-th part of the window.
			idle++
			s.turn++
			continue
		}
		t.ready.pop()
		s.turn++
		idle = 0
		r.state, r.started = flying, now
		if r.tries == 0 {
			r.mark = s.confirmed
		}
		r.tries++
		t.inFlight++
		s.inFlight++
		s.stats.InFlight = s.inFlight
		r.flight = s.flying.PushBack(r)
		rows = append(rows, r)
	}
	return rows
}

// setReady queues a row for publishing.
func (s *scheduler) setReady(r *row) {
	s.unwait(r)
	r.state = ready
	r.topic.ready.push(r)
	if !r.topic.inRing {
		r.topic.inRing = true
		s.ring = append(s.ring, r.topic)
	}
}

// unwait takes a row out of the heap.
func (s *scheduler) unwait(r *row) {
	if r.state != waiting {
		return
	}
	heap.Remove(&s.waiting, r.index)
	s.stats.Waiting = len(s.waiting)
	if r.trouble {
		r.topic.troubled--
	}
}

// published takes the result of an attempt.
func (s *scheduler) published(now time.Time, r *row, err error) {
	s.inFlight--
	s.stats.InFlight = s.inFlight
	r.topic.inFlight--
	if r.shard.lost {
		// Whatever came of it, the row is somebody else's now, and still in the store.
		if s.strays[r.Shard]--; s.strays[r.Shard] == 0 {
			delete(s.strays, r.Shard)
		}
		s.release(r.topic)
		return
	}
	s.flying.Remove(r.flight)
	if err != nil {
		s.failed(now, r, err)
		return
	}
	s.confirmed++
	s.stats.Confirmed++
	s.notes = append(s.notes, Confirmed{Message: r.Message, Lag: r.Age + now.Sub(r.readAt), Took: now.Sub(r.started)})
	s.uncount(r)
	r.state = published
	r.shard.published = append(r.shard.published, r)
	if s.settleBy.IsZero() {
		s.settleBy = now.Add(settleAfter)
	}
	s.advance(r)
	s.ease(now, r.topic)
}

// advance lets the next row of a key go.
func (s *scheduler) advance(r *row) {
	k := r.key
	if k == nil {
		return
	}
	r.key = nil
	k.rows = k.rows[1:]
	if len(k.rows) == 0 {
		delete(r.shard.keys, k.name)
		return
	}
	s.lead(k.rows[0])
	if r.shard.draining.IsZero() {
		s.setReady(k.rows[0])
	}
}

// failed decides what becomes of a row that was not confirmed.
func (s *scheduler) failed(now time.Time, r *row, err error) {
	// The context that counts is the run's, which has not ended.
	verdict := fault.Judge(context.Background(), err)
	s.stats.Failed++
	if verdict.Unknown {
		s.stats.Unknown++
	}
	own := s.ownFault(r, err, verdict)
	r.mark = s.confirmed
	r.trouble = !own
	if own {
		r.failures++
	}
	r.reason = err.Error()
	if !verdict.Retry || s.cfg.MaxAttempts > 0 && r.failures >= s.cfg.MaxAttempts {
		r.failures = max(r.failures, 1)
		r.state = parking
		s.slowed(r)
		s.parks = append(s.parks, r)
		s.notes = append(s.notes, AttemptFailed{Message: r.Message, Err: err})
		return
	}
	delay := s.cfg.Backoff.Longest(r.tries)
	delay = max(delay-time.Duration(s.rand.Int64N(int64(delay)/2+1)), min(verdict.After, maxHint))
	s.notes = append(s.notes, AttemptFailed{Message: r.Message, Err: err, RetryIn: delay})
	if !r.shard.draining.IsZero() {
		s.forget(r)
		return
	}
	s.wait(r, now.Add(delay))
}

// ownFault reports whether a failure counts against the message, and not against the
// broker or the way to it.
func (s *scheduler) ownFault(r *row, err error, verdict fault.Verdict) bool {
	var rejection *fault.Rejection
	switch {
	case !verdict.Retry:
		return true
	case verdict.Unknown, errors.Is(err, messaging.ErrBlocked), errors.Is(err, messaging.ErrClosed), errors.As(err, &rejection):
		return false
	case errors.Is(err, messaging.ErrRefused), errors.Is(err, messaging.ErrUnroutable):
		return true
	}
	// An error that says nothing: if others got through since, it is this message. During
	// an outage nothing is parked.
	return s.confirmed > r.mark
}

func (s *scheduler) wait(r *row, due time.Time) {
	r.state, r.due = waiting, due
	heap.Push(&s.waiting, r)
	s.stats.Waiting = len(s.waiting)
	if r.trouble {
		r.topic.troubled++
	}
}

// ease has the rows that waited for the broker's sake tried soon, because one of their
// topic got through. At most once per base delay, since trouble can be with a part of a topic.
func (s *scheduler) ease(now time.Time, t *topic) {
	base := s.cfg.Backoff.Base
	if t.troubled == 0 || now.Before(t.eased.Add(base)) {
		return
	}
	t.eased = now
	for _, r := range slices.Clone(s.waiting) {
		if r.topic != t || !r.trouble {
			continue
		}
		if soon := now.Add(time.Duration(s.rand.Int64N(int64(base) + 1))); soon.Before(r.due) {
			r.due = soon
			heap.Fix(&s.waiting, r.index)
		}
	}
}

// uncount takes a row out of what its shard has to publish.
func (s *scheduler) uncount(r *row) {
	s.slowed(r)
	if sh := r.shard; r.leads {
		r.leads = false
		if sh.topics[r.topic]--; sh.topics[r.topic] == 0 {
			delete(sh.topics, r.topic)
		}
	}
}

// forget removes a row from memory.
func (s *scheduler) forget(r *row) {
	s.unwait(r)
	s.uncount(r)
	sh := r.shard
	delete(sh.rows, r.ID)
	r.state = gone
	r.topic.rows--
	s.release(r.topic)
	if k := r.key; k != nil {
		r.key = nil
		k.rows = slices.DeleteFunc(k.rows, func(o *row) bool { return o == r })
		if len(k.rows) == 0 {
			delete(sh.keys, k.name)
		}
	}
}

// release forgets a topic that nothing refers to.
func (s *scheduler) release(t *topic) {
	if t.rows == 0 && t.inFlight == 0 {
		delete(s.topics, t.name)
	}
}

// ---- writing

// write returns the next change of the store's rows, one call at a time: what was published is
// removed, what is to be parked is parked, in turn.
func (s *scheduler) write(now time.Time) command {
	if s.settling || now.Before(s.writeAfter) {
		return nil
	}
	due := s.settleDue(now)
	switch {
	case s.mayPark(now) && !(due && s.parking):
		r := s.parks[0]
		s.settling, s.parking = true, true
		s.unread++
		return &parkCommand{row: r, lease: r.shard.Lease, parking: Parking{
			ID: r.ID, Reason: r.reason, Attempts: r.failures, Block: !s.cfg.Free && r.Message.Key != "",
		}}
	case !due:
		return nil
	}
	c := &settleCommand{}
	for sh := range s.shardsHeld() {
		if len(sh.published) == 0 {
			continue
		}
		t := Settlement{Lease: sh.Lease, IDs: make([]int64, len(sh.published)), Hints: make([]uint64, len(sh.published))}
		for i, r := range sh.published {
			t.IDs[i], t.Hints[i] = r.ID, r.Hint
		}
		c.settlements = append(c.settlements, t)
		c.shards = append(c.shards, sh)
	}
	s.settling, s.parking, s.settleBy = true, false, time.Time{}
	return c
}

// mayPark reports whether there are rows to park, and it is not the turn of a read.
func (s *scheduler) mayPark(now time.Time) bool {
	return len(s.parks) > 0 && !s.reading && (s.unread < parksPerRead || len(s.short(now)) == 0)
}

// settleDue reports whether there are rows to remove, and no reason to wait for more.
func (s *scheduler) settleDue(now time.Time) bool {
	count := 0
	for sh := range s.shardsHeld() {
		count += len(sh.published)
	}
	return count > 0 && (count >= s.cfg.Window/2 || s.inFlight == 0 || s.stopping || !now.Before(s.settleBy))
}

func (s *scheduler) settled(now time.Time, c *settleCommand, lost []int, err error) {
	s.settling = false
	if s.writeFailed(now, "settle", err) {
		return
	}
	for i, sh := range c.shards {
		switch {
		case sh.lost:
		case slices.Contains(lost, sh.Shard):
			s.lose(sh, "fenced")
		default:
			n := len(c.settlements[i].IDs)
			for _, r := range sh.published[:n] {
				s.forget(r)
			}
			sh.published = slices.Delete(sh.published, 0, n)
		}
	}
}

func (s *scheduler) parked(now time.Time, c *parkCommand, lost bool, err error) {
	s.settling = false
	r := c.row
	if s.writeFailed(now, "park", err) {
		if !r.shard.lost {
			s.parks = append(s.parks[1:], r) // it may be this one alone
		}
		return
	}
	if r.shard.lost {
		return
	}
	if lost {
		s.lose(r.shard, "fenced")
		return
	}
	s.parks = s.parks[1:]
	s.stats.Parked++
	s.notes = append(s.notes, ParkedMessage{Message: r.Message, Reason: r.reason, Attempts: r.failures})
	if k := r.key; k != nil && c.parking.Block {
		for _, follower := range slices.Clone(k.rows[1:]) {
			s.forget(follower) // the store keeps them back
		}
	} else {
		s.advance(r)
	}
	s.forget(r)
}

func (s *scheduler) writeFailed(now time.Time, call string, err error) bool {
	if err == nil {
		s.writeErrors = 0
		return false
	}
	s.storeFailed(call, err)
	s.writeErrors++
	s.writeAfter = now.Add(s.storeBackoff(s.writeErrors))
	return true
}

func (s *scheduler) storeFailed(call string, err error) {
	s.stats.StoreErrors++
	s.notes = append(s.notes, storeTrouble{call, err})
}

func (s *scheduler) storeBackoff(errors int) time.Duration {
	d := messaging.Backoff{Base: storeRetry, Max: storeRetryMax}.Longest(errors)
	return d - time.Duration(s.rand.Int64N(int64(d)/2+1))
}

// oldestInFlight returns when the row that is longest with the publisher was handed to it.
func (s *scheduler) oldestInFlight() time.Time {
	if e := s.flying.Front(); e != nil {
		return e.Value.(*row).started
	}
	return time.Time{}
}

// queue is a first-in, first-out queue of rows. Rows that are no longer of interest stay in
// it until they are the first.
type queue struct {
	rows []*row
	head int
}

func (q *queue) push(r *row) { q.rows = append(q.rows, r) }

// first returns the first row that is of interest, or nil, and removes those before it.
func (q *queue) first(wanted func(*row) bool) *row {
	for q.head < len(q.rows) && !wanted(q.rows[q.head]) {
		q.pop()
	}
	if q.head == len(q.rows) {
		return nil
	}
	return q.rows[q.head]
}

func (q *queue) pop() {
	q.rows[q.head] = nil
	q.head++
	if q.head == len(q.rows) {
		q.rows, q.head = q.rows[:0], 0
	} else if q.head >= 1024 && q.head*2 >= len(q.rows) {
		n := copy(q.rows, q.rows[q.head:])
		clear(q.rows[n:])
		q.rows, q.head = q.rows[:n], 0
	}
}

// rowHeap orders waiting rows by when they are due.
type rowHeap []*row

func (h rowHeap) Len() int           { return len(h) }
func (h rowHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h rowHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *rowHeap) Push(x any) {
	r := x.(*row)
	r.index = len(*h)
	*h = append(*h, r)
}

func (h *rowHeap) Pop() any {
	old := *h
	r := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return r
}
