// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package keyed holds one guard per key in bounded memory.
package keyed

import (
	"iter"
	"sync"
	"sync/atomic"
)

// Map makes a value for each key on first use and holds at most a limit of them. It evicts by
// second chance (the CLOCK algorithm): a hit costs a read lock and, once per turn
// of the hand, one write.
type Map[K comparable, V any] struct {
	limit int
	make  func(K) V
	idle  func(V) bool

	mu      sync.RWMutex
	entries map[K]*entry[K, V]
	ring    []*entry[K, V]
	hand    int
}

type entry[K comparable, V any] struct {
	key   K
	value V
	used  atomic.Bool // since the hand came by
}

// New returns a Map of at most limit values. make is called outside the lock; where two
// callers race for a new key, one of the values made is dropped. idle tells which values may be
// forgotten without loss, and is called with the lock held: it must be quick.
func New[K comparable, V any](limit int, make func(K) V, idle func(V) bool) *Map[K, V] {
	return &Map[K, V]{limit: limit, make: make, idle: idle, entries: map[K]*entry[K, V]{}}
}

// Get returns key's value.
func (m *Map[K, V]) Get(key K) V {
	m.mu.RLock()
	e := m.entries[key]
	m.mu.RUnlock()
	if e != nil {
		if !e.used.Load() {
			e.used.Store(true)
		}
		return e.value
	}
	fresh := &entry[K, V]{key: key, value: m.make(key)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[key]; e != nil {
		return e.value
	}
	if len(m.ring) < m.limit {
		m.ring = append(m.ring, fresh)
	} else {
		victim := m.victim()
		delete(m.entries, m.ring[victim].key)
		m.ring[victim] = fresh
	}
	m.entries[key] = fresh
	return fresh.value
}

// look bounds the search for a victim, and with it the time the lock is held.
const look = 64

// victim returns the place of an entry that was not used lately and is idle; if there is none
// near the hand, of one that was not used lately; if there is none either, of the next one.
func (m *Map[K, V]) victim() int {
	unused := -1
	for range min(look, 2*len(m.ring)) {
		at := m.hand
		m.hand = (m.hand + 1) % len(m.ring)
		if e := m.ring[at]; e.used.Swap(false) {
			continue
		} else if m.idle(e.value) {
			return at
		}
		if unused < 0 {
			unused = at
		}
	}
	if unused < 0 {
		return m.hand
	}
	return unused
}

// Len returns the number of values held.
func (m *Map[K, V]) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.ring)
}

// All iterates over a snapshot.
func (m *Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		m.mu.RLock()
		ring := append([]*entry[K, V](nil), m.ring...)
		m.mu.RUnlock()
		for _, e := range ring {
			if !yield(e.key, e.value) {
				return
			}
		}
	}
}
