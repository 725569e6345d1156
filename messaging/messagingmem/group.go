// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingmem

import (
	"container/heap"
	"context"
	"slices"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// entry is one message in one group. It is in exactly one place: the ready list, a
// lane, the heap of delayed entries, or the hands of a worker.
type entry struct {
	msg         *messaging.Message
	offset      int64
	attempt     int // the number of the next delivery
	redelivered bool
	flight      *flight
	next        *entry // in a list

	// dead is set when the message was given up and only has to be put away.
	dead   *messaging.DeadLetter
	cause  error // the handler's
	buried int   // failed tries to put it away

	due time.Time // in the heap
}

// list is a queue of entries.
type list struct {
	head, tail *entry
	len        int
}

func (l *list) push(e *entry) {
	e.next = nil
	if l.tail == nil {
		l.head = e
	} else {
		l.tail.next = e
	}
	l.tail = e
	l.len++
}

func (l *list) pop() *entry {
	e := l.head
	if e == nil {
		return nil
	}
	l.head = e.next
	if l.head == nil {
		l.tail = nil
	}
	e.next = nil
	l.len--
	return e
}

// delayed is a heap of entries by due time.
type delayed []*entry

func (d delayed) Len() int           { return len(d) }
func (d delayed) Less(i, j int) bool { return d[i].due.Before(d[j].due) }
func (d delayed) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *delayed) Push(x any)        { *d = append(*d, x.(*entry)) }
func (d *delayed) Pop() any {
	old := *d
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*d = old[:len(old)-1]
	return e
}

// group is the queue of one consumer group. Everything in it is guarded by Broker.mu.
type group struct {
	b         *Broker
	name      string
	patterns  []string
	ordered   bool
	temporary bool

	held  int  // all entries
	ready list // may be delivered now
	// lanes has a list for each key of which an entry is ready, delayed or with a worker:
	// the entries behind that one. Only if ordered.
	lanes   map[string]*list
	behind  int // entries in lanes
	delayed delayed
	timer   *time.Timer // calls promote when the first delayed entry is due
	idle    []*worker   // waiting for an entry; then ready is empty
	dead    []messaging.DeadLetter
	subs    map[*subscriber]struct{}
	waiters []chan struct{} // publishers waiting for room
	counts  [messaging.Dropped + 1]int64
}

func newGroup(b *Broker, s messaging.Subscription) *group {
	return &group{
		b: b, name: s.Group, ordered: s.Ordered, temporary: s.Temporary,
		lanes: make(map[string]*list), subs: make(map[*subscriber]struct{}),
	}
}

func (g *group) matches(topic string) bool {
	return slices.ContainsFunc(g.patterns, func(p string) bool { return messaging.Match(p, topic) })
}

// add takes a new entry in.
func (g *group) add(e *entry) {
	g.held++
	if g.ordered && e.msg.Key != "" {
		if lane := g.lanes[e.msg.Key]; lane != nil {
			lane.push(e)
			g.behind++
			return
		}
		g.lanes[e.msg.Key] = &list{}
	}
	g.offer(e)
}

// offer gives an entry to an idle worker or makes it ready.
func (g *group) offer(e *entry) {
	if n := len(g.idle); n > 0 {
		w := g.idle[n-1]
		g.idle[n-1] = nil
		g.idle = g.idle[:n-1]
		w.in <- e // has room: w was idle
		return
	}
	g.ready.push(e)
}

// finish lets go of an entry: it is acked, dropped or put away.
func (g *group) finish(e *entry, a messaging.Action) {
	g.counts[a]++
	g.held--
	g.wakePublisher()
	g.b.land(e)
	if !g.ordered || e.msg.Key == "" {
		return
	}
	lane := g.lanes[e.msg.Key]
	if next := lane.pop(); next != nil {
		g.behind--
		g.offer(next)
	} else {
		delete(g.lanes, e.msg.Key)
	}
}

// retry delivers an entry again after d. An ordered entry keeps its lane meanwhile.
func (g *group) retry(e *entry, d time.Duration) {
	g.counts[messaging.Retried]++
	e.redelivered = true
	if d <= 0 {
		g.offer(e)
		return
	}
	e.due = time.Now().Add(d)
	heap.Push(&g.delayed, e)
	if g.delayed[0] == e {
		g.schedule()
	}
}

// promote offers the delayed entries that are due.
func (g *group) promote() {
	g.b.mu.Lock()
	defer g.b.mu.Unlock()
	if g.b.isClosed() {
		return
	}
	now := time.Now()
	for len(g.delayed) > 0 && !g.delayed[0].due.After(now) {
		g.offer(heap.Pop(&g.delayed).(*entry))
	}
	g.schedule()
}

// schedule sets the timer for the first delayed entry.
func (g *group) schedule() {
	if len(g.delayed) == 0 || g.b.isClosed() {
		return
	}
	d := time.Until(g.delayed[0].due)
	if g.timer == nil {
		g.timer = time.AfterFunc(d, g.promote)
	} else {
		g.timer.Reset(d)
	}
}

// waitRoom unlocks the broker until there may be room in g, or ctx has ended, or the
// broker is closed.
func (g *group) waitRoom(ctx context.Context) error {
	room := make(chan struct{})
	g.waiters = append(g.waiters, room)
	g.b.mu.Unlock()
	var err error
	select {
	case <-room:
	case <-ctx.Done():
		err = blocked(ctx)
	case <-g.b.closed:
	}
	g.b.mu.Lock()
	if i := slices.Index(g.waiters, room); i >= 0 {
		g.waiters = slices.Delete(g.waiters, i, i+1)
	}
	return err
}

// wakePublisher wakes the first publisher that waits for room, if there is some. Who was
// woken must call it again, because the room may be of no use to it. A nil g has no
// publishers.
func (g *group) wakePublisher() {
	if g != nil && len(g.waiters) > 0 && g.held < g.b.cfg.Capacity {
		close(g.waiters[0])
		g.waiters = slices.Delete(g.waiters, 0, 1)
	}
}

// bury keeps a dead letter in memory, if there is room.
func (g *group) bury(dl messaging.DeadLetter) bool {
	if len(g.dead) >= g.b.cfg.MaxDeadLetters {
		return false
	}
	g.dead = append(g.dead, dl)
	return true
}

// close ends all subscribers and the timer.
func (g *group) close() {
	for s := range g.subs {
		s.stop()
	}
	if g.timer != nil {
		g.timer.Stop()
	}
}

// remove takes a group that has no subscribers out of the broker, with all that it holds.
func (g *group) remove() {
	delete(g.b.groups, g.name)
	clear(g.b.routes)
	if g.timer != nil {
		g.timer.Stop()
	}
	for _, lane := range g.lanes {
		for e := lane.pop(); e != nil; e = lane.pop() {
			g.b.land(e)
		}
	}
	for e := g.ready.pop(); e != nil; e = g.ready.pop() {
		g.b.land(e)
	}
	for _, e := range g.delayed {
		g.b.land(e)
	}
	g.delayed, g.held = nil, 0
	for _, room := range g.waiters {
		close(room)
	}
	g.waiters = nil
}

func (g *group) stats() GroupStats {
	return GroupStats{
		Group:        g.name,
		Ready:        g.ready.len,
		Held:         g.behind,
		Delayed:      len(g.delayed),
		InFlight:     g.held - g.ready.len - g.behind - len(g.delayed),
		Dead:         len(g.dead),
		Publishers:   len(g.waiters),
		Subscribers:  len(g.subs),
		Acked:        g.counts[messaging.Acked],
		Retried:      g.counts[messaging.Retried],
		DeadLettered: g.counts[messaging.DeadLettered],
		Dropped:      g.counts[messaging.Dropped],
	}
}
