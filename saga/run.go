// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// callTimeout bounds one call of the store that is not a user's transaction.
	callTimeout = 15 * time.Second
	// foreign is how long a saga whose definition a node does not know is left to others.
	foreign = 30 * time.Second
	// maxWakes bounds the memory for backoffs; beyond it polling finds them.
	maxWakes = 4096
)

// run is one call of Engine.Run: a node with a lease, its sagas and its schedule.
type run struct {
	*Engine
	node   string
	writes *committer[Change, bool] // true if the change was lost
	// branches bounds the steps that run in parallel within sagas.
	branches chan struct{}

	// attempts is the context of attempts. It outlives Run's context by Config.Drain.
	attempts context.Context
	stop     context.CancelFunc
	// writing is the context of writes, which outlives attempts a little, so that what
	// has happened is also recorded.
	writing context.Context
	finish  context.CancelFunc
	// draining is true when no further step may begin.
	draining atomic.Bool
	// crowded is true if there may be more due sagas than hands.
	crowded atomic.Bool
	// doubt is true after a start whose outcome is unknown: the node may own what it does not know of.
	doubt atomic.Bool

	// leased is until when the node's lease is certain, by this process's clock.
	leased atomic.Pointer[time.Time]

	mu     sync.Mutex
	held   map[string]*held
	wakes  wakeHeap
	closed bool // nothing more is taken up

	// hands are full while as many sagas are worked on as may be. A start can take a hand that a claim under way has
	// counted on: then one of them is held, and waits.
	hands   chan struct{}
	freed   chan struct{} // a saga is no longer held
	sooner  chan struct{} // wakes has a new first
	workers sync.WaitGroup
}

// held is a saga in the hands of a worker, or about to be.
type held struct {
	// again is what a claim gave while the worker was still putting the saga away.
	again *Record
	// news is for those who wait for the saga, who get it when the hand is free: they may
	// start the next one at once.
	news *Instance
}

func newRun(ctx context.Context, e *Engine) *run {
	r := &run{
		Engine: e, node: e.newNode(), held: map[string]*held{},
		hands: make(chan struct{}, e.cfg.Concurrency), freed: make(chan struct{}, 1), sooner: make(chan struct{}, 1),
	}
	r.attempts, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	r.writing, r.finish = context.WithCancel(context.WithoutCancel(ctx))
	r.writes = newCommitter(e.cfg.Writers, func(ctx context.Context, changes []Change) ([]bool, error) {
		lost := make([]bool, len(changes))
		list, err := e.store.Save(ctx, changes)
		for _, i := range list {
			lost[i] = true
		}
		return lost, err
	})
	r.branches = make(chan struct{}, e.cfg.Concurrency)
	r.leased.Store(&time.Time{})
	return r
}

func (r *run) run(ctx context.Context) error {
	defer r.finish()
	defer r.stop()
	if !r.join(ctx) {
		return nil
	}
	beating, endBeat := context.WithCancel(r.writing)
	beatEnded := make(chan struct{})
	go func() {
		defer close(beatEnded)
		r.heartbeat(beating)
	}()

	var tidying sync.WaitGroup
	tidying.Go(func() { r.tidy(ctx, "archived", r.cfg.Archive, &r.stats.archived, r.Engine.Archive) })
	tidying.Go(func() { r.tidy(ctx, "pruned", r.cfg.Retain, &r.stats.pruned, r.Prune) })

	unsubscribe := func() {}
	if r.cfg.Notifier != nil {
		unsubscribe = r.cfg.Notifier.Subscribe(r.wakeHere)
	}
	r.active.Store(r)
	r.schedule(ctx)
	unsubscribe()

	r.active.CompareAndSwap(r, nil)
	r.draining.Store(true)
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	worked := make(chan struct{})
	go func() {
		r.workers.Wait()
		close(worked)
	}()
	patience := time.NewTimer(r.cfg.Drain)
	defer patience.Stop()
	select {
	case <-worked:
	case <-patience.C:
	}
	r.stop()
	// What the cancelled attempts did is still written, if the store lets us.
	giveUp := time.AfterFunc(3*time.Second, r.finish)
	defer giveUp.Stop()
	<-worked
	tidying.Wait()
	endBeat()
	<-beatEnded
	r.leave(ctx)
	return nil
}

// join begins the lease. It returns false if ctx ended before the store answered.
func (r *run) join(ctx context.Context) bool {
	for n := 0; ; n++ {
		err := r.beat(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		r.log().WarnContext(ctx, "saga: store not reachable", "node", r.node, "error", err)
		if !pause(ctx, delay(Backoff{Base: 100 * time.Millisecond, Max: 5 * time.Second}, n+1)) {
			return false
		}
	}
}

func (r *run) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := r.store.Leave(ctx, r.node); err != nil {
		r.log().WarnContext(ctx, "saga: lease not returned, it will expire", "node", r.node, "error", err)
	}
}

func (r *run) heartbeat(ctx context.Context) {
	t := time.NewTicker(r.cfg.Lease / 3)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := r.beat(ctx); err != nil && ctx.Err() == nil {
			r.log().WarnContext(ctx, "saga: heartbeat missed", "node", r.node, "error", err)
		}
	}
}

func (r *run) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Lease/3)
	defer cancel()
	// Counted from before the call: the store cannot have begun the lease earlier.
	until := time.Now().Add(r.cfg.Lease)
	if err := r.store.Beat(ctx, r.node, r.cfg.Lease); err != nil {
		return err
	}
	r.leased.Store(&until)
	return nil
}

// tidy moves or deletes, now and then, what ended longer ago than age.
func (r *run) tidy(ctx context.Context, what string, age time.Duration, count *atomic.Uint64, fn func(context.Context, time.Duration) (int, error)) {
	if age == 0 {
		return
	}
	every := min(max(age/10, time.Minute), time.Hour)
	for pause(ctx, every/2+rand.N(every)) {
		n, err := fn(ctx, age)
		count.Add(uint64(n))
		if err != nil && ctx.Err() == nil {
			r.log().WarnContext(ctx, "saga: not "+what, "node", r.node, "error", err)
		}
	}
}

// schedule claims due sagas and starts a worker for each until ctx ends.
func (r *run) schedule(ctx context.Context) {
	unsure := false // a claim failed: it may have given us sagas that we do not know of
	// What was cut off may still have happened a little later, so look again.
	var again time.Time
	failures := 0
	for ctx.Err() == nil {
		if r.doubt.Swap(false) {
			unsure = true
		}
		if unsure {
			again = time.Now().Add(callTimeout)
		} else if !again.IsZero() && time.Now().After(again) {
			unsure, again = true, time.Time{}
		}
		free := r.cfg.Concurrency - r.count()
		full := free <= 0
		wait := time.Duration(float64(r.cfg.Poll) * (0.9 + 0.2*rand.Float64()))
		if !full {
			woken := r.woken.Load()
			recs, err := r.claim(ctx, free, unsure)
			if unsure = err != nil; unsure {
				failures++
				wait = min(delay(Backoff{Base: 100 * time.Millisecond, Max: 5 * time.Second}, failures), wait)
				if ctx.Err() == nil {
					r.log().WarnContext(ctx, "saga: no claim", "node", r.node, "error", err)
				}
			} else {
				failures = 0
			}
			for _, rec := range recs {
				r.take(rec, woken)
			}
			full = len(recs) >= free
			r.crowded.Store(full)
		}
		r.await(ctx, wait, full)
	}
}

func (r *run) claim(ctx context.Context, limit int, unsure bool) ([]Record, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r.stats.polls.Add(1)
	if !unsure {
		return r.store.Claim(ctx, Claim{Node: r.node, Limit: limit, Definitions: r.keys, Foreign: foreign})
	}
	// Only what was not held before the question can be an orphan of the failed claim.
	before := r.ids()
	owned, err := r.store.Owned(ctx, r.node)
	if err != nil {
		return nil, err
	}
	var orphans []Record
	for _, rec := range owned {
		if !before[rec.ID] {
			orphans = append(orphans, rec)
		}
	}
	return orphans, nil
}

// await returns when it is time to claim again: woken, a backoff or the poll
// interval is over, or, if there was more work than hands, a hand is free.
func (r *run) await(ctx context.Context, wait time.Duration, full bool) {
	poll := time.NewTimer(wait)
	defer poll.Stop()
	var freed <-chan struct{}
	wake := r.wake
	if full {
		// More may be due. A wake-up would not tell anything new.
		freed, wake = r.freed, nil
	}
	for {
		var due <-chan time.Time
		if at, ok := r.firstWake(); ok && !full {
			t := time.NewTimer(time.Until(at))
			defer t.Stop()
			due = t.C
		}
		select {
		case <-ctx.Done():
		case <-wake:
		case <-freed:
		case <-poll.C:
		case <-due:
		case <-r.sooner:
			continue
		}
		r.dropWakes(time.Now())
		return
	}
}

// take hands a claimed saga to a worker. Woken is what Engine.woken was before the claim.
func (r *run) take(rec Record, woken uint64) {
	r.stats.claimed.Add(1)
	if rec.Takeovers > 0 {
		r.stats.takeovers.Add(1)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.held[rec.ID]; h != nil {
		h.again = &rec
		return
	}
	r.hold(rec.ID)
	go r.carry(rec.ID, &rec, woken)
}

// hold counts a saga as held, until carry ends. R.mu is locked.
func (r *run) hold(id string) {
	r.held[id] = &held{}
	r.stats.active.Add(1)
	r.workers.Add(1)
}

// carry works on a saga that is held.
func (r *run) carry(id string, next *Record, woken uint64) {
	defer r.workers.Done()
	for ; next != nil; next = r.put(id) {
		r.hands <- struct{}{}
		r.work(*next, woken)
		<-r.hands
		woken = 0
	}
}

// reserve holds a saga that is about to be started, if there is a hand for it that no older
// one waits for. The caller ends that with begun.
func (r *run) reserve(id string) bool {
	if r.crowded.Load() || time.Now().After(*r.leased.Load()) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.held[id] != nil {
		return false
	}
	if len(r.held) >= r.cfg.Concurrency {
		r.crowded.Store(true) // by this one
		return false
	}
	r.hold(id)
	return true
}

// begun hands a reserved saga to a worker, or ends the reservation if rec is nil.
func (r *run) begun(id string, rec *Record) {
	if rec != nil {
		r.stats.claimed.Add(1)
	} else if rec = r.put(id); rec == nil {
		r.workers.Done()
		return
	}
	go r.carry(id, rec, 0)
}

// put ends a worker's hold on a saga, unless it has been claimed again meanwhile.
func (r *run) put(id string) *Record {
	r.mu.Lock()
	h := r.held[id]
	next, news := h.again, h.news
	if h.again, h.news = nil, nil; next == nil {
		delete(r.held, id)
		r.stats.active.Add(-1)
		signal(r.freed)
	}
	r.mu.Unlock()
	if news != nil {
		r.waiters.tell(*news)
	} else if next == nil {
		r.waiters.put(id)
	}
	return next
}

func (r *run) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.held)
}

// keepNews keeps what is to be told when the saga is put.
func (r *run) keepNews(in Instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[in.ID].news = &in
}

// holds reports whether the node works on the saga.
func (r *run) holds(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held[id] != nil
}

func (r *run) ids() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := make(map[string]bool, len(r.held))
	for id := range r.held {
		ids[id] = true
	}
	return ids
}

// wakeIn remembers that a saga put away is due after d.
func (r *run) wakeIn(d time.Duration) {
	at := time.Now().Add(d + time.Millisecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.wakes) >= maxWakes {
		return
	}
	heap.Push(&r.wakes, at)
	if r.wakes[0].Equal(at) {
		signal(r.sooner)
	}
}

func (r *run) firstWake() (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.wakes) == 0 {
		return time.Time{}, false
	}
	return r.wakes[0], true
}

func (r *run) dropWakes(until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.wakes) > 0 && !r.wakes[0].After(until) {
		heap.Pop(&r.wakes)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause waits for d and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// delay returns a random delay before attempt n+1 (full jitter: Exponential Backoff
// And Jitter, AWS Architecture Blog, 2015).
func delay(b Backoff, n int) time.Duration {
	limit, n := b.Max, max(n, 1)
	if n < 40 && b.Base < b.Max>>(n-1) {
		limit = b.Base << (n - 1)
	}
	if limit <= 0 {
		return 0
	}
	return rand.N(limit)
}

type wakeHeap []time.Time

func (h wakeHeap) Len() int           { return len(h) }
func (h wakeHeap) Less(i, j int) bool { return h[i].Before(h[j]) }
func (h wakeHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *wakeHeap) Push(x any)        { *h = append(*h, x.(time.Time)) }
func (h *wakeHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
