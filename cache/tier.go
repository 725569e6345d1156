// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"slices"
	"sync"
	"sync/atomic"
)

// entry is what the local tier knows of one key. Times are nanoseconds since the cache was
// made. Everything but the atomics is fixed once it is in a shard, so that a reader needs the
// lock only to find it.
type entry[T any] struct {
	key    string
	hash   uint64
	value  T
	err    error // of a negative entry
	made   int64 // when the value was loaded
	fresh  int64 // until when it may be served
	local  int64 // until when this process need not ask the store; at most fresh
	stale  int64 // until when it may be served where no newer one can be had
	took   int64 // how long the load took
	weight int64

	retry atomic.Int64  // until when no refresh is tried
	used  atomic.Uint32 // how often it was read, up to mostUsed, since its queue looked

	queue      *queue[T]
	prev, next *entry[T]
}

// mostUsed is what the counter of an entry counts to: two bits in the paper.
const mostUsed = 3

// queue is a first-in, first-out list of entries with a sentinel.
type queue[T any] struct {
	root   entry[T]
	weight int64
}

func (q *queue[T]) init() { q.root.prev, q.root.next, q.weight = &q.root, &q.root, 0 }

func (q *queue[T]) push(e *entry[T]) { q.link(e, &q.root) }

// link puts e behind at.
func (q *queue[T]) link(e, at *entry[T]) {
	e.queue, e.prev, e.next = q, at, at.next
	at.next.prev, at.next = e, e
	q.weight += e.weight
}

func (q *queue[T]) oldest() *entry[T] {
	if q.root.prev == &q.root {
		return nil
	}
	return q.root.prev
}

func (q *queue[T]) remove(e *entry[T]) {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next, e.queue = nil, nil, nil
	q.weight -= e.weight
}

// shard is one part of the local tier, with the flights of its keys under the same lock.
//
// It evicts by S3-FIFO: what is new stands in a small queue, and only what is read there more
// than once, or comes back soon after it was thrown out, gets into the main queue. A scan passes
// through the small queue and leaves the main one as it is; a hit changes one counter and
// moves nothing.
//
// Source: Yang, Zhang, Qiu, Yue, Vinayak, "FIFO queues are all you need for cache eviction",
// SOSP 2023.
type shard[T any] struct {
	mu      sync.RWMutex
	entries map[string]*entry[T]
	flights map[string]*flight[T]
	small   queue[T]
	main    queue[T]
	ghosts  ghosts
	max     int64 // weight

	hits, negative, stale, evictions atomic.Uint64

	_ [64]byte // its neighbour's lock is on another line
}

func (s *shard[T]) init(most int64) {
	s.entries, s.flights, s.max = map[string]*entry[T]{}, map[string]*flight[T]{}, most
	s.ghosts.at = map[uint64]uint64{}
	s.small.init()
	s.main.init()
}

// get returns key's entry, fresh or not, or nil.
func (s *shard[T]) get(key string) *entry[T] {
	s.mu.RLock()
	e := s.entries[key]
	s.mu.RUnlock()
	if e != nil {
		e.touch()
	}
	return e
}

// touch counts a read. Where two race one may be lost, which costs nothing but a little of the order.
func (e *entry[T]) touch() {
	if n := e.used.Load(); n < mostUsed {
		e.used.Store(n + 1)
	}
}

// put stores e in place of its key's entry, if there is one, and throws out what no longer
// fits. What is heavier than the whole shard is not kept. mu is held.
func (s *shard[T]) put(e *entry[T]) {
	old := s.entries[e.key]
	if e.weight > s.max {
		if old != nil {
			s.drop(old)
		}
		s.evictions.Add(1)
		return
	}
	if old != nil {
		q, at := old.queue, old.prev
		e.used.Store(old.used.Load())
		q.remove(old)
		q.link(e, at)
		s.entries[e.key] = e
		for s.weight() > s.max {
			s.evict()
		}
		return
	}
	for s.weight()+e.weight > s.max {
		s.evict()
	}
	s.entries[e.key] = e
	if s.ghosts.take(e.hash) {
		s.main.push(e)
	} else {
		s.small.push(e)
	}
}

func (s *shard[T]) weight() int64 { return s.small.weight + s.main.weight }

// evict looks at the end of one queue: what stands there goes out, or to the head of the main queue
// once more.
func (s *shard[T]) evict() {
	e := s.small.oldest()
	if main := s.main.oldest(); e == nil || main != nil && s.small.weight <= s.max/10 {
		e = main
	}
	q := e.queue
	used := e.used.Load()
	switch {
	case q == &s.small && used > 1:
		q.remove(e)
		e.used.Store(0)
		s.main.push(e)
	case q == &s.main && used > 0:
		q.remove(e)
		e.used.Store(used - 1)
		s.main.push(e)
	default:
		s.drop(e)
		s.evictions.Add(1)
		if q == &s.small {
			s.ghosts.add(e.hash, len(s.entries))
		}
	}
}

// drop removes e. mu is held.
func (s *shard[T]) drop(e *entry[T]) {
	e.queue.remove(e)
	delete(s.entries, e.key)
}

// ghosts remembers the hashes of keys that were thrown out of the small queue, the last so
// many. A collision sends a key to the main queue by mistake, no more.
type ghosts struct {
	at    map[uint64]uint64 // hash to the number of its place
	order []ghost           // oldest first; places of hashes that were taken are dead
	n     uint64
}

type ghost struct{ hash, n uint64 }

func (g *ghosts) add(hash uint64, most int) {
	g.n++
	g.at[hash] = g.n
	g.order = append(g.order, ghost{hash, g.n})
	for len(g.at) > most {
		o := g.order[0]
		g.order = g.order[1:] // append copies the rest when it runs out of room
		if g.at[o.hash] == o.n {
			delete(g.at, o.hash)
		}
	}
	if len(g.order) > 2*len(g.at)+8 {
		g.order = slices.DeleteFunc(g.order, func(o ghost) bool { return g.at[o.hash] != o.n })
	}
}

// take reports whether hash is remembered, and forgets it.
func (g *ghosts) take(hash uint64) bool {
	_, ok := g.at[hash]
	delete(g.at, hash)
	return ok
}
