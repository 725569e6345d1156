// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"testing"
)

// model is S3-FIFO as one would tell it: two lists and a list of the dead, searched from end to end.
type model struct {
	max         int64
	small, main []modelEntry // oldest first
	ghosts      []string     // oldest first
}

type modelEntry struct {
	key    string
	weight int64
	used   uint32
}

func weigh(q []modelEntry) (sum int64) {
	for _, e := range q {
		sum += e.weight
	}
	return sum
}

func (m *model) find(key string) *modelEntry {
	for _, q := range [][]modelEntry{m.small, m.main} {
		for i := range q {
			if q[i].key == key {
				return &q[i]
			}
		}
	}
	return nil
}

func (m *model) get(key string) bool {
	e := m.find(key)
	if e == nil {
		return false
	}
	e.used = min(e.used+1, mostUsed)
	return true
}

func (m *model) remove(key string) {
	named := func(e modelEntry) bool { return e.key == key }
	m.small, m.main = slices.DeleteFunc(m.small, named), slices.DeleteFunc(m.main, named)
}

func (m *model) put(key string, weight int64) {
	if weight > m.max {
		m.remove(key)
		return
	}
	if e := m.find(key); e != nil {
		e.weight = weight
		m.shrink(0)
		return
	}
	m.shrink(weight)
	if i := slices.Index(m.ghosts, key); i >= 0 {
		m.ghosts = slices.Delete(m.ghosts, i, i+1)
		m.main = append(m.main, modelEntry{key, weight, 0})
	} else {
		m.small = append(m.small, modelEntry{key, weight, 0})
	}
}

func (m *model) shrink(room int64) {
	for weigh(m.small)+weigh(m.main)+room > m.max {
		if len(m.small) == 0 || len(m.main) > 0 && weigh(m.small) <= m.max/10 {
			e := m.main[0]
			m.main = m.main[1:]
			if e.used > 0 {
				e.used--
				m.main = append(m.main, e)
			}
			continue
		}
		e := m.small[0]
		m.small = m.small[1:]
		if e.used > 1 {
			e.used = 0
			m.main = append(m.main, e)
			continue
		}
		m.ghosts = append(m.ghosts, e.key)
		if most := len(m.small) + len(m.main); len(m.ghosts) > most {
			m.ghosts = m.ghosts[len(m.ghosts)-most:]
		}
	}
}

// TestTierIsS3FIFO compares every answer and every weight with the model's.
func TestTierIsS3FIFO(t *testing.T) {
	for seed := range uint64(120) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			limit, weights, keys := 1+r.Int64N(60), 1+r.Int64N(6), 2+r.IntN(150)
			var s shard[int]
			s.init(limit)
			m := &model{max: limit}
			for step := range 2000 {
				n := r.IntN(keys)
				if r.IntN(2) == 0 {
					n = r.IntN(1 + n) // some keys more often than others
				}
				key := fmt.Sprint(n)
				switch op := r.IntN(20); {
				case op == 0:
					if e := s.entries[key]; e != nil {
						s.drop(e)
					}
					m.remove(key)
				default:
					got, want := s.get(key) != nil, m.get(key)
					if got != want {
						t.Fatalf("step %d: get(%s) = %v, want %v", step, key, got, want)
					}
					if !got || op < 4 {
						w := 1 + r.Int64N(weights)
						s.put(&entry[int]{key: key, hash: uint64(n), weight: w})
						m.put(key, w)
					}
				}
				if s.weight() != weigh(m.small)+weigh(m.main) || len(s.entries) != len(m.small)+len(m.main) {
					t.Fatalf("step %d: %d entries weigh %d, want %d and %d", step, len(s.entries), s.weight(), len(m.small)+len(m.main), weigh(m.small)+weigh(m.main))
				}
				if s.weight() > limit {
					t.Fatalf("step %d: it weighs %d, want at most %d", step, s.weight(), limit)
				}
				if len(s.ghosts.at) > keys || len(s.ghosts.order) > 2*keys+8 {
					t.Fatalf("step %d: %d ghosts for %d entries", step, len(s.ghosts.order), len(s.entries))
				}
			}
		})
	}
}

// TestScanLeavesWhatIsUsed reads a working set, then many keys once, as a report or a crawler does.
func TestScanLeavesWhatIsUsed(t *testing.T) {
	var s shard[int]
	s.init(1000)
	seed := maphash.MakeSeed()
	read := func(key string) {
		if s.get(key) == nil {
			s.put(&entry[int]{key: key, hash: maphash.String(seed, key), weight: 1})
		}
	}
	for range 4 {
		for k := range 800 {
			read(fmt.Sprint("used ", k))
		}
	}
	for k := range 100_000 {
		read(fmt.Sprint("scanned ", k))
	}
	kept := 0
	for k := range 800 {
		if s.get(fmt.Sprint("used ", k)) != nil {
			kept++
		}
	}
	if kept < 700 {
		t.Errorf("%d of 800 are left, want nearly all; least recently used would have left none", kept)
	}
}
