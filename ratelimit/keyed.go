// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package ratelimit

import (
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// Keyed is a set of limiters, one per key, such as one per client, in bounded memory. It is
// safe for concurrent use.
type Keyed[K comparable] struct {
	base     time.Time
	seed     maphash.Seed
	limit    atomic.Pointer[gcra]
	overflow *Limiter
	shards   []shard[K] // a power of two
	spilled  atomic.Uint64
}

type shard[K comparable] struct {
	mu      sync.Mutex
	places  map[K]int
	buckets []bucket[K]
	limit   int
	hand    int
	_       [64]byte // keeps neighbours' locks off this cache line
}

type bucket[K comparable] struct {
	key K
	tat int64
}

// NewKeyed returns a set of at most keys buckets, or an error that names what is wrong. Zero
// keys means 65536; a bucket takes about 50 bytes and the key.
//
// A bucket that is full again is the same as one that never was, so only such a bucket is
// forgotten to make room. When there is none, the new key shares one overflow bucket
// of the same limit with all others in this position: an attacker with a million keys has one
// burst for all of them, and the keys known already do not notice.
func NewKeyed[K comparable](limit Limit, keys int) (*Keyed[K], error) {
	g, err := newGCRA(limit)
	if err != nil {
		return nil, err
	}
	if keys < 0 {
		return nil, fmt.Errorf("ratelimit: NewKeyed keys is %d, want 0 or more", keys)
	}
	if keys == 0 {
		keys = 65536
	}
	overflow, err := New(limit, Config{})
	if err != nil {
		return nil, err
	}
	k := &Keyed[K]{base: time.Now(), seed: maphash.MakeSeed(), overflow: overflow}
	k.limit.Store(g)
	shards := 1
	for shards < 64 && keys/shards > 1024 {
		shards *= 2
	}
	k.shards = make([]shard[K], shards)
	for i := range k.shards {
		k.shards[i].places = map[K]int{}
		k.shards[i].limit = keys / shards
	}
	return k, nil
}

// Allow takes one of key's tokens if there is one. It never waits.
func (k *Keyed[K]) Allow(key K) Result { return k.AllowN(key, 1) }

// AllowN takes n of key's tokens if there are so many, or none. It never waits.
// It panics if n is negative.
func (k *Keyed[K]) AllowN(key K, n int) Result {
	s := k.shard(key)
	now := int64(time.Since(k.base))
	s.mu.Lock()
	g := k.limit.Load()
	place, ok := s.places[key]
	if !ok {
		place, ok = s.add(key, now)
	}
	if !ok {
		s.mu.Unlock()
		k.spilled.Add(1)
		return k.overflow.AllowN(n)
	}
	b := &s.buckets[place]
	if uint(n) > uint(g.limit.Burst) {
		tat := b.tat
		s.mu.Unlock()
		return g.tooMany(n, tat, now)
	}
	next, early := g.take(b.tat, now, n)
	if early > 0 {
		next = b.tat
	} else {
		b.tat = next
	}
	s.mu.Unlock()
	return g.result(next, now, early)
}

func (k *Keyed[K]) shard(key K) *shard[K] {
	if len(k.shards) == 1 {
		return &k.shards[0]
	}
	return &k.shards[maphash.Comparable(k.seed, key)&uint64(len(k.shards)-1)]
}

// look bounds the search for a full bucket. The hand goes on from where it stopped, so that all
// are looked at in turn.
const look = 32

// add makes a full bucket for a new key, in a new place or in that of one that is full again.
func (s *shard[K]) add(key K, now int64) (place int, ok bool) {
	if len(s.buckets) < s.limit {
		place = len(s.buckets)
		s.buckets = append(s.buckets, bucket[K]{key: key})
		s.places[key] = place
		return place, true
	}
	for range min(look, len(s.buckets)) {
		place = s.hand
		s.hand = (s.hand + 1) % len(s.buckets)
		if b := &s.buckets[place]; b.tat <= now {
			delete(s.places, b.key)
			*b = bucket[K]{key: key}
			s.places[key] = place
			return place, true
		}
	}
	return 0, false
}

// Reconfigure changes the limit of all keys. What is used up stays used up.
func (k *Keyed[K]) Reconfigure(limit Limit) error {
	to, err := newGCRA(limit)
	if err != nil {
		return err
	}
	for i := range k.shards { // all at once, so that every bucket is rescaled exactly once
		k.shards[i].mu.Lock()
		defer k.shards[i].mu.Unlock()
	}
	from, now := k.limit.Load(), int64(time.Since(k.base))
	k.limit.Store(to)
	for i := range k.shards {
		for j := range k.shards[i].buckets {
			b := &k.shards[i].buckets[j]
			b.tat = from.rescale(b.tat, now, to)
		}
	}
	return k.overflow.Reconfigure(limit)
}

// KeyedStats is a snapshot of a [Keyed].
type KeyedStats struct {
	Limit   Limit
	Keys    int    // buckets in memory
	Spilled uint64 // decisions by the overflow bucket since NewKeyed
}

// Stats returns a snapshot.
func (k *Keyed[K]) Stats() KeyedStats {
	s := KeyedStats{Limit: k.limit.Load().limit, Spilled: k.spilled.Load()}
	for i := range k.shards {
		k.shards[i].mu.Lock()
		s.Keys += len(k.shards[i].buckets)
		k.shards[i].mu.Unlock()
	}
	return s
}
