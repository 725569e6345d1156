// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package keyed_test

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/dovetail-go/dovetail/internal/keyed"
)

type guard struct {
	key  int
	busy bool
}

func newMap(limit int) *keyed.Map[int, *guard] {
	return keyed.New(limit, func(k int) *guard { return &guard{key: k} }, func(g *guard) bool { return !g.busy })
}

func TestMap(t *testing.T) {
	t.Run("returns the same value for the same key", func(t *testing.T) {
		m := newMap(10)
		if a, b := m.Get(1), m.Get(1); a != b || a.key != 1 {
			t.Errorf("Get = %v and %v, want one value of key 1", a, b)
		}
	})
	t.Run("never holds more than its limit", func(t *testing.T) {
		m := newMap(10)
		for k := range 1000 {
			m.Get(k).busy = k%2 == 0
			if m.Len() > 10 {
				t.Fatalf("Len = %d, want at most 10", m.Len())
			}
		}
	})
	t.Run("forgets idle values first", func(t *testing.T) {
		m := newMap(10)
		for k := range 9 {
			m.Get(k).busy = true
		}
		for k := 100; k < 200; k++ {
			m.Get(k)
		}
		for k := range 9 {
			if !m.Get(k).busy {
				t.Errorf("the busy value of key %d was forgotten", k)
			}
		}
	})
	t.Run("forgets what was not used lately first", func(t *testing.T) {
		m := newMap(10)
		kept := m.Get(0)
		for k := 1; k < 100; k++ {
			m.Get(k)
			if m.Get(0) != kept {
				t.Fatalf("key 0 was forgotten although it is in use, at %d", k)
			}
		}
	})
	t.Run("works when everything is busy", func(t *testing.T) {
		m := newMap(1)
		for k := range 5 {
			if g := m.Get(k); g.key != k {
				t.Errorf("Get(%d) = %v", k, g)
			}
			m.Get(k).busy = true
		}
	})
	t.Run("is safe for concurrent use", func(t *testing.T) {
		m := newMap(16)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 2000 {
					k := rand.IntN(32)
					if g := m.Get(k); g.key != k {
						t.Errorf("Get(%d) = %v", k, g)
					}
				}
				for k, g := range m.All() {
					if g.key != k {
						t.Errorf("All yields %d, %v", k, g)
					}
					if k > 3 {
						break
					}
				}
			})
		}
		wg.Wait()
	})
}
