// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox_test

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxmem"
)

// The simulation plays producers, relays, the store, a nasty broker and consumers with an inbox
// in one world with one random source: everything that takes time is an event, and between any
// two events a relay or a consumer may crash or a relay stand still, a request or a reply may be
// lost or late.
//
//	DOVETAIL_SIM_SEEDS=100000 go test -run TestSimulation ./outbox
//	DOVETAIL_SIM_SEED=4711 go test -v -run TestSimulation ./outbox    replays one, with its trace
func TestSimulation(t *testing.T) {
	if s := os.Getenv("DOVETAIL_SIM_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("DOVETAIL_SIM_SEED is %q, want a number", s)
		}
		w := simulate(t, seed)
		t.Logf("seed %d:\n%s", seed, w.trace.text.String())
		report(t, w)
		return
	}
	seeds := uint64(2000)
	if testing.Short() {
		seeds = 200
	}
	if s := os.Getenv("DOVETAIL_SIM_SEEDS"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("DOVETAIL_SIM_SEEDS is %q, want a number", s)
		}
		seeds = n
	}
	// Thousands of small worlds are garbage quickly.
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	var total tally
	var mu sync.Mutex
	const workers = 4
	t.Run("seeds", func(t *testing.T) {
		for worker := range uint64(workers) {
			t.Run(strconv.FormatUint(worker, 10), func(t *testing.T) {
				t.Parallel()
				for seed := worker; seed < seeds; seed += workers {
					w := simulate(t, seed)
					report(t, w)
					if t.Failed() {
						t.Fatalf("replay with DOVETAIL_SIM_SEED=%d", seed)
					}
					mu.Lock()
					total.add(w.tally)
					mu.Unlock()
				}
			})
		}
	})
	t.Logf("%d seeds: %+v", seeds, total)
	// A simulation in which nothing goes wrong proves nothing.
	for name, n := range map[string]int{
		"crashes": total.Crashes, "stalls": total.Stalls, "duplicates": total.Duplicates, "late": total.Late,
		"redelivered": total.Redelivered, "parked": total.Parked, "fenced": total.Fenced, "takeovers": total.Takeovers, "gaps": total.Gaps, "stops": total.Stops,
	} {
		if n == 0 {
			t.Errorf("no %s in %d seeds", name, seeds)
		}
	}
}

func TestSimulationReplays(t *testing.T) {
	for seed := range uint64(20) {
		t.Setenv("DOVETAIL_SIM_SEED", strconv.FormatUint(seed, 10)) // for the text
		a, b := simulate(t, seed), simulate(t, seed)
		if x, y := a.trace.text.String(), b.trace.text.String(); x != y || x == "" {
			t.Fatalf("seed %d took two courses, or none", seed)
		}
	}
}

func report(t *testing.T, w *world) {
	t.Helper()
	for _, p := range w.problems {
		t.Errorf("seed %d: %s", w.seed, p)
	}
}

const (
	simLease  = 400 * time.Millisecond
	simFaults = 3 * time.Second // until then things go wrong
	simLimit  = 5 * time.Minute // until then all must be settled
)

// tally counts what a run went through.
type tally struct {
	Messages, Duplicates, Late, Redelivered, Crashes, Stalls, Parked, Fenced, Takeovers, Gaps, Stops, Events int
}

func (t *tally) add(o tally) {
	t.Messages += o.Messages
	t.Duplicates += o.Duplicates
	t.Late += o.Late
	t.Redelivered += o.Redelivered
	t.Crashes += o.Crashes
	t.Stalls += o.Stalls
	t.Parked += o.Parked
	t.Fenced += o.Fenced
	t.Takeovers += o.Takeovers
	t.Gaps += o.Gaps
	t.Stops += o.Stops
	t.Events += o.Events
}

type world struct {
	seed     uint64
	rand     *rand.Rand
	start    time.Time
	events   eventHeap
	seq      int
	store    *outboxmem.Store
	box      *outbox.Outbox
	nodes    []*node
	pace     time.Duration // between transactions of a producer, at most
	free     bool          // policy for parked rows
	faults   bool
	trace    trace
	problems []string
	tally    tally

	// producers
	keys      []string
	locked    map[string]bool
	committed map[string][]string // by key, in commit order
	messages  map[string]*fact    // by message ID
	lastID    int64
	names     int
	// stuck is a topic whose publishes do not return.
	stuck      string
	stuckUntil time.Time
	leases     map[int]held

	// consumers
	queues  map[string][]*fact // by key, of an ordered group
	waiting int                // messages in queues
	effects map[string]int     // by key, the place of the last
}

// fact is what is true of a message.
type fact struct {
	key, topic        string
	place             int // among the committed of its key
	committed, rolled bool
	poison            int // 1 refused, 2 permanent
	landed            int // times
	effects           int // of the consumer, whose inbox this is too
	removed           bool
	parkedOnce, gone  bool // gone: discarded
}

type held struct {
	node  *node
	epoch int64
	until time.Time
}

type event struct {
	at  time.Time
	seq int
	do  func()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return cmp.Or(h[i].at.Compare(h[j].at), cmp.Compare(h[i].seq, h[j].seq)) < 0
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}

// trace is what happened, in words when a seed is replayed: finding them costs more than the rest.
type trace struct {
	text strings.Builder
	full bool
}

func (w *world) note(format string, args ...any) {
	if w.trace.full {
		fmt.Fprintf(&w.trace.text, "%9.4f "+format+"\n", append([]any{time.Since(w.start).Seconds()}, args...)...)
	}
}

func (w *world) fail(format string, args ...any) {
	w.note("PROBLEM "+format, args...)
	if len(w.problems) < 5 {
		w.problems = append(w.problems, fmt.Sprintf(format, args...))
	}
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.events, event{time.Now().Add(d), w.seq, do})
}

func (w *world) chance(p float64) bool { return w.rand.Float64() < p }
func (w *world) upTo(d time.Duration) time.Duration {
	return time.Duration(w.rand.Int64N(int64(d)) + 1)
}

// travel is how long a request or a reply takes: mostly short, rarely longer than a lease.
func (w *world) travel() time.Duration {
	switch {
	case w.faults && w.chance(0.04):
		return w.upTo(2 * simLease)
	case w.chance(0.1):
		return w.upTo(100 * time.Millisecond)
	}
	return w.upTo(3 * time.Millisecond)
}

func simulate(t *testing.T, seed uint64) *world {
	w := &world{
		seed: seed, rand: rand.New(rand.NewPCG(seed, 1)), faults: true,
		locked: make(map[string]bool), committed: make(map[string][]string), messages: make(map[string]*fact),
		leases: make(map[int]held), queues: make(map[string][]*fact), effects: make(map[string]int),
	}
	w.trace.full = os.Getenv("DOVETAIL_SIM_SEED") != ""
	synctest.Test(t, func(t *testing.T) { w.run(t) })
	return w
}

func (w *world) run(t *testing.T) {
	w.start = time.Now()
	w.store = outboxmem.New()
	var err error
	if w.box, err = outbox.New(w.store, outbox.Config{}); err != nil {
		t.Fatal(err)
	}
	w.free = w.chance(0.3)
	for range 1 + w.rand.IntN(3) {
		w.nodes = append(w.nodes, &node{world: w, number: len(w.nodes)})
	}
	for _, n := range w.nodes {
		w.after(w.upTo(200*time.Millisecond), n.boot)
	}
	// Keys that meet in few shards get in each other's way.
	shards := 1 + w.rand.IntN(3)
	for i := 0; len(w.keys) < 3+shards*2; i++ {
		key := fmt.Sprintf("k%d", i)
		if outbox.ShardOf(&messaging.Message{Key: key}, w.store.Shards()) < shards {
			w.keys = append(w.keys, key)
		}
	}
	w.pace = 40*time.Millisecond + w.upTo(400*time.Millisecond)
	for range 1 + w.rand.IntN(3) {
		w.after(w.upTo(time.Second), w.produce)
	}
	w.after(w.upTo(time.Second), w.trouble)
	w.after(simFaults, func() { w.faults = false })
	w.after(simFaults+time.Second, w.operate)
	for len(w.events) > 0 {
		e := heap.Pop(&w.events).(event)
		time.Sleep(time.Until(e.at))
		e.do()
		w.tally.Events++
		if time.Since(w.start) > simLimit {
			w.fail("not settled after %v: %s", simLimit, w.open())
			return
		}
		if w.tally.Events%16 == 0 && w.settled() {
			break
		}
	}
	w.check()
}

// ---- producers

// produce begins a transaction that locks the keys it writes about, as a producer locks
// its aggregates, and ends it some time later.
func (w *world) produce() {
	if !w.faults {
		return
	}
	tx := w.store.Begin()
	var keys, ids []string
	for range 1 + w.rand.IntN(3) {
		key := ""
		if w.chance(0.85) {
			key = w.keys[w.rand.IntN(len(w.keys))]
			if w.locked[key] && !slices.Contains(keys, key) {
				continue // somebody else's
			}
			if !w.locked[key] {
				w.locked[key] = true
				keys = append(keys, key)
			}
		}
		w.names++
		id := fmt.Sprintf("m%d", w.names)
		f := &fact{key: key, topic: fmt.Sprintf("topic%d", w.rand.IntN(3))}
		if w.chance(0.02) {
			f.poison = 1 + w.rand.IntN(2)
		}
		w.messages[id] = f
		ids = append(ids, id)
		if err := w.box.Enqueue(context.Background(), tx, &messaging.Message{ID: id, Topic: f.topic, Key: key}); err != nil {
			w.fail("Enqueue = %v", err)
		}
	}
	commit := w.chance(0.85)
	hold := w.upTo(20 * time.Millisecond)
	if w.chance(0.1) {
		hold = w.upTo(time.Second)
	}
	w.after(hold, func() {
		for _, k := range keys {
			delete(w.locked, k)
		}
		if !commit {
			_ = tx.Rollback()
			for _, id := range ids {
				w.messages[id].rolled = true
			}
			w.note("rollback %v", ids)
			return
		}
		_ = tx.Commit()
		w.note("commit %v", ids)
		for _, id := range ids {
			f := w.messages[id]
			f.committed = true
			f.place = len(w.committed[f.key])
			w.committed[f.key] = append(w.committed[f.key], id)
			w.tally.Messages++
			n, _ := strconv.ParseInt(id[1:], 10, 64)
			if n < w.lastID {
				w.tally.Gaps++ // seen after one that was enqueued later
			}
			w.lastID = max(w.lastID, n)
		}
		if w.chance(0.7) {
			for _, n := range w.nodes {
				n.deliver(func() { n.machine.Wake() })
			}
		}
	})
	w.after(w.upTo(w.pace), w.produce)
}

// ---- faults

// trouble crashes, stalls or stops a relay, or sticks a topic, again and again.
func (w *world) trouble() {
	if !w.faults {
		return
	}
	n := w.nodes[w.rand.IntN(len(w.nodes))]
	switch w.rand.IntN(7) {
	case 0, 1:
		n.crash()
	case 2:
		n.stall(w.upTo(3 * simLease))
	case 3:
		n.stop()
	default:
		w.stuck, w.stuckUntil = fmt.Sprintf("topic%d", w.rand.IntN(3)), time.Now().Add(w.upTo(4*time.Second))
		w.note("%s is stuck", w.stuck)
	}
	w.after(w.upTo(time.Second), w.trouble)
}

// node is a process with a relay.
type node struct {
	world   *world
	number  int
	life    int // counts its processes
	machine *outbox.Machine
	timer   int // the last one set
	stalled bool
	pending []func() // arrived while stalled
	flying  map[string]bool
}

func (n *node) name() string { return fmt.Sprintf("node%d.%d", n.number, n.life) }

func (n *node) boot() {
	w := n.world
	if n.machine != nil {
		return
	}
	n.life++
	m, err := outbox.NewMachine(outbox.RelayConfig{
		Window: 1 + w.rand.IntN(8), Batch: 1 + w.rand.IntN(5), Lease: simLease, Poll: 200 * time.Millisecond, MaxAttempts: 4, Free: w.free,
		Backoff: messaging.Backoff{Base: 20 * time.Millisecond, Max: 300 * time.Millisecond}, DrainTimeout: w.upTo(300 * time.Millisecond),
	}, w.store.Shards(), n.name(), w.rand.Uint64())
	if err != nil {
		w.fail("NewMachine = %v", err)
		return
	}
	n.machine, n.flying = m, make(map[string]bool)
	w.note("%s starts", n.name())
	n.step()
}

func (n *node) crash() {
	if n.machine == nil {
		return
	}
	w := n.world
	w.note("%s crashes", n.name())
	w.tally.Crashes++
	n.end()
	w.after(w.upTo(2*simLease), n.boot)
}

func (n *node) end() {
	n.machine, n.stalled, n.pending = nil, false, nil
	n.timer++
}

func (n *node) stall(d time.Duration) {
	if n.machine == nil || n.stalled {
		return
	}
	w := n.world
	w.note("%s stands still for %v", n.name(), d)
	w.tally.Stalls++
	n.stalled = true
	life := n.life
	w.after(d, func() {
		if n.life != life || n.machine == nil {
			return
		}
		w.note("%s goes on", n.name())
		n.stalled = false
		pending := n.pending
		n.pending = nil
		for _, p := range pending {
			p()
			if n.machine == nil {
				return
			}
		}
		n.step()
	})
}

func (n *node) stop() {
	if n.machine == nil || n.stalled {
		return
	}
	n.world.note("%s is asked to stop", n.name())
	n.world.tally.Stops++
	n.machine.Stop(time.Now())
	n.step()
}

// deliver brings an event to the process, which then thinks.
func (n *node) deliver(do func()) {
	if n.machine == nil {
		return
	}
	if n.stalled {
		n.pending = append(n.pending, do)
		return
	}
	do()
	n.step()
}

// step is the loop of run in relay.go.
func (n *node) step() {
	w := n.world
	commands, next := n.machine.Step(time.Now())
	for _, c := range commands {
		n.start(c)
	}
	if n.machine.Finished() {
		w.note("%s has stopped", n.name())
		n.end()
		w.after(w.upTo(simLease), n.boot)
		return
	}
	n.timer++
	timer, life := n.timer, n.life
	w.after(max(0, time.Until(next)), func() {
		if n.life == life && n.timer == timer {
			n.deliver(func() {})
		}
	})
}

// start sends a command on its way. The sender may crash before it arrives, and before
// the reply does.
func (n *node) start(c outbox.Command) {
	w, life := n.world, n.life
	name := n.name()
	reply := func(result any, err error) {
		w.after(w.travel(), func() {
			if n.life == life {
				n.deliver(func() {
					if c.Publish != nil {
						delete(n.flying, c.Publish.Message.Key)
					}
					n.machine.Result(time.Now(), c, result, err)
				})
			}
		})
	}
	if c.Publish != nil {
		n.publish(name, c, reply)
		return
	}
	w.after(w.travel(), func() {
		if n.life != life && w.chance(0.5) {
			return // it never left
		}
		result, err := w.call(n, name, c)
		if w.faults && w.chance(0.03) {
			err = errors.New("the reply is lost")
		}
		reply(result, err)
	})
}

// call carries out a command at the store, or not.
func (w *world) call(n *node, name string, c outbox.Command) (any, error) {
	ctx := context.Background()
	refuse := w.faults && w.chance(0.03)
	broken := errors.New("the store is down")
	switch {
	case c.Lease != nil:
		if refuse {
			return outbox.LeaseView{}, broken
		}
		view, err := w.store.Lease(ctx, *c.Lease)
		w.note("%s leases, take %d: %v", name, c.Lease.Take, view)
		for _, l := range view.Held {
			before := w.leases[l.Shard]
			switch {
			case before.epoch == l.Epoch && before.node != n:
				w.fail("shard %d epoch %d has two owners", l.Shard, l.Epoch)
			case before.epoch > l.Epoch:
				w.fail("shard %d went back from epoch %d to %d", l.Shard, before.epoch, l.Epoch)
			case before.epoch < l.Epoch && before.node != nil:
				w.tally.Takeovers++
			}
			w.leases[l.Shard] = held{n, l.Epoch, time.Now().Add(c.Lease.TTL)}
		}
		return view, err
	case c.Read != nil:
		if refuse {
			return []outbox.Row(nil), broken
		}
		rows, err := w.store.Read(ctx, c.Read)
		w.note("%s reads %d rows", name, len(rows))
		return rows, err
	case c.Settle != nil:
		if refuse {
			return []int(nil), broken
		}
		lost, err := w.store.Settle(ctx, c.Settle)
		w.note("%s settles %v, lost %v", name, c.Settle, lost)
		w.tally.Fenced += len(lost)
		w.settledRows(c.Settle, lost)
		return lost, err
	default:
		if refuse {
			return false, broken
		}
		lost, err := w.store.Park(ctx, c.Under, *c.Park)
		w.note("%s parks %+v, lost %v", name, *c.Park, lost)
		if lost {
			w.tally.Fenced++
		} else {
			w.tally.Parked++
			w.current(c.Under)
			w.fact(c.Park.ID).parkedOnce = true
		}
		return lost, err
	}
}

// fact returns what is known of a row: IDs of rows are given in the order of Enqueue, as
// the names of messages are.
func (w *world) fact(id int64) *fact { return w.messages[fmt.Sprintf("m%d", id)] }

// settledRows checks that only what was published is removed, and of each key the first.
func (w *world) settledRows(settlements []outbox.Settlement, lost []int) {
	for _, s := range settlements {
		if slices.Contains(lost, s.Shard) {
			continue
		}
		w.current(s.Lease)
		for _, id := range s.IDs {
			f := w.fact(id)
			if f.landed == 0 {
				w.fail("m%d is removed and was never published", id)
			}
			f.removed = true
		}
		for _, id := range s.IDs {
			f := w.fact(id)
			if f.key == "" {
				continue
			}
			for _, earlier := range w.committed[f.key][:f.place] {
				if e := w.messages[earlier]; !e.removed && !e.parkedOnce {
					w.fail("m%d is removed and %s, which is before it, is not", id, earlier)
				}
			}
		}
	}
}

// current checks that a write was not made under an old lease.
func (w *world) current(l outbox.Lease) {
	if now := w.leases[l.Shard]; now.epoch != l.Epoch {
		w.fail("a write under %+v succeeds in epoch %d", l, now.epoch)
	}
}

// publish plays the broker.
func (n *node) publish(name string, c outbox.Command, reply func(any, error)) {
	w := n.world
	m := c.Publish.Message
	// The decision to publish needs a lease that holds at this moment.
	if l := w.leases[c.Publish.Shard]; l.node != n || l.epoch != c.Under.Epoch || !time.Now().Before(l.until) {
		w.fail("%s publishes %s under %+v, which is not the lease", name, m.ID, c.Under)
	}
	f := w.messages[m.ID]
	switch {
	case f.removed:
		w.fail("%s publishes %s, which is done", name, m.ID)
	case m.Key != "" && n.flying[m.Key]:
		w.fail("%s publishes %s while another of its key is in flight", name, m.ID)
	}
	n.flying[m.Key] = true
	w.note("%s publishes %s", name, m.ID)
	answered := false
	answer := func(err error) {
		if !answered {
			answered = true
			reply(nil, err)
		}
	}
	c.OnCancel(func() {
		if !answered {
			w.note("%s cancels %s", name, m.ID)
			answer(context.Canceled)
		}
	})
	life := n.life
	w.after(w.travel(), func() {
		if n.life != life && w.chance(0.5) {
			return
		}
		if w.faults && m.Topic == w.stuck && time.Now().Before(w.stuckUntil) {
			// The handlers hang: the broker has it and does not confirm it until they go on.
			w.land(m)
			w.after(time.Until(w.stuckUntil), func() { answer(nil) })
			return
		}
		roll := w.rand.Float64()
		switch {
		case w.faults && f.poison == 1:
			answer(&messaging.PublishError{Failed: []messaging.Failed{{ID: m.ID, Err: messaging.ErrRefused}}})
		case w.faults && f.poison == 2:
			answer(fault.Permanent(errors.New("poison")))
		case !w.faults || roll < 0.8:
			w.land(m)
			answer(nil)
		case roll < 0.84:
			w.land(m)
			answer(messaging.ErrUnknown)
		case roll < 0.86:
			answer(messaging.ErrUnknown)
		case roll < 0.88:
			// Lost to the sender, and still on its way.
			w.tally.Late++
			w.after(w.upTo(time.Second), func() { w.land(m) })
			answer(messaging.ErrUnknown)
		case roll < 0.91:
			answer(messaging.ErrRefused)
		case roll < 0.94:
			answer(messaging.ErrBlocked)
		case roll < 0.96:
			answer(errors.New("no reason given"))
		case roll < 0.98:
			answer(&fault.Rejection{By: "breaker", RetryAfter: w.upTo(300 * time.Millisecond)})
		default:
			answer(fault.RetryAfter(messaging.ErrRefused, w.upTo(300*time.Millisecond)))
		}
	})
}

// land is the broker taking a message. Its consumers recognise duplicates, so the first
// time is the one that counts for the order.
func (w *world) land(m *messaging.Message) {
	f := w.messages[m.ID]
	w.note("%s lands", m.ID)
	f.landed++
	if !f.committed {
		w.fail("%s is published and was not committed", m.ID)
	}
	queue := f.key
	if queue == "" {
		queue = m.ID // in no order
	}
	w.queues[queue] = append(w.queues[queue], f)
	if w.waiting++; len(w.queues[queue]) == 1 {
		w.deliver(queue)
	}
	if f.landed > 1 {
		w.tally.Duplicates++
		return
	}
	if f.key == "" {
		return
	}
	for _, earlier := range w.committed[f.key][:f.place] {
		if e := w.messages[earlier]; e.landed == 0 && !e.gone && !(w.free && e.parkedOnce) {
			w.fail("%s is published before %s of the same key", m.ID, earlier)
		}
	}
}

// ---- consumers

// deliver gives the first message of an ordered queue to a consumer, and again until one of
// them has acknowledged it. The consumer may crash before its transaction, and between that
// and the acknowledgement; the effect and the mark in the inbox are one step.
func (w *world) deliver(queue string) {
	f := w.queues[queue][0]
	again := func() {
		w.tally.Redelivered++
		w.deliver(queue)
	}
	w.after(w.upTo(10*time.Millisecond), func() {
		if w.faults && w.chance(0.05) {
			again()
			return
		}
		if f.effects == 0 {
			f.effects++
			if f.key != "" {
				if last, some := w.effects[queue]; some && last > f.place && !w.free && !f.parkedOnce {
					w.fail("the effect of place %d of %s comes after that of %d", f.place, queue, last)
				}
				w.effects[queue] = max(w.effects[queue], f.place)
			}
		}
		w.after(w.upTo(10*time.Millisecond), func() {
			if w.faults && w.chance(0.05) {
				again()
				return
			}
			w.waiting--
			if w.queues[queue] = w.queues[queue][1:]; len(w.queues[queue]) > 0 {
				w.deliver(queue)
			}
		})
	})
}

// ---- the end

// operate settles what is parked, until nothing is.
func (w *world) operate() {
	ctx := context.Background()
	parked, err := w.box.Parked(ctx)
	if err != nil {
		w.fail("Parked = %v", err)
	}
	for _, p := range parked {
		id := p.Message.ID
		if w.chance(0.5) {
			w.note("operator retries %s", id)
			err = w.box.Retry(ctx, id)
		} else {
			w.note("operator discards %s", id)
			w.messages[id].gone = true
			err = w.box.Discard(ctx, id, "bad")
		}
		if err != nil {
			w.fail("operator: %v", err)
		}
	}
	w.after(w.upTo(time.Second), w.operate)
}

// settled reports whether the faults are over and everything is done.
func (w *world) settled() bool {
	if w.faults || len(w.locked) > 0 || w.waiting > 0 {
		return false
	}
	st, err := w.store.Stats(context.Background())
	if err != nil || st.Depth > 0 || st.Parked > 0 {
		return false
	}
	shards := 0
	for _, n := range w.nodes {
		if n.machine != nil {
			if !n.machine.Idle() {
				return false
			}
			shards += n.machine.Shards()
		}
	}
	for _, f := range w.messages {
		if !f.committed && !f.rolled {
			return false // keyless and still in its transaction
		}
	}
	return shards == w.store.Shards()
}

// open says what is not done.
func (w *world) open() string {
	st, _ := w.store.Stats(context.Background())
	text := fmt.Sprintf("%+v", st)
	for _, n := range w.nodes {
		if n.machine != nil {
			text += fmt.Sprintf("; %s holds %d shards, idle %v", n.name(), n.machine.Shards(), n.machine.Idle())
		}
	}
	return text
}

func (w *world) check() {
	for id, f := range w.messages {
		switch {
		case f.committed && f.landed == 0 && !f.gone:
			w.fail("%s is lost", id)
		case !f.committed && f.landed > 0:
			w.fail("%s was rolled back and is published", id)
		case f.effects != min(f.landed, 1):
			w.fail("%s landed %d times and has %d effects", id, f.landed, f.effects)
		}
	}
}
