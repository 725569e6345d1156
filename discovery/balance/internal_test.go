// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"math"
	"sync/atomic"
	"testing"

	"github.com/dovetail-go/dovetail/discovery"
)

func TestTwo(t *testing.T) {
	t.Parallel()
	// Traefik's second choice was biased (#13643): the neighbour of the first came too often.
	const n, draws = 5, 100_000
	var pairs [n][n]int
	for range draws {
		i, j := two(n)
		pairs[i][j]++
	}
	for i := range n {
		for j := range n {
			want := 0.0
			if i != j {
				want = draws / (n * (n - 1))
			}
			if math.Abs(float64(pairs[i][j])-want) > want/10 {
				t.Errorf("pair %d, %d: %d times, want about %.0f", i, j, pairs[i][j], want)
			}
		}
	}
}

func FuzzAliasTable(f *testing.F) {
	f.Add([]byte{1, 2, 3})
	f.Add([]byte{0, 0, 255})
	f.Add([]byte{7})
	f.Fuzz(func(t *testing.T, weights []byte) {
		if len(weights) == 0 {
			return
		}
		candidates := make([]Candidate, len(weights))
		sum := 0.0
		for i, w := range weights {
			candidates[i].Weight = float64(w) + 0.1
			sum += candidates[i].Weight
		}
		threshold, alias := aliasTable(candidates)
		got := make([]float64, len(weights))
		for i := range threshold {
			own := float64(threshold[i]) / (1 << 64)
			got[i] += own
			got[alias[i]] += 1 - own
		}
		for i := range got {
			if want := candidates[i].Weight / sum * float64(len(weights)); math.Abs(got[i]-want) > 1e-9*float64(len(weights)) {
				t.Fatalf("share of %d = %v columns, want %v (weights %v)", i, got[i], want, weights)
			}
		}
	})
}

func FuzzRing(f *testing.F) {
	f.Add("customer-17", uint8(3), uint8(100))
	f.Add("", uint8(1), uint8(1))
	f.Add("x", uint8(255), uint8(1))
	f.Fuzz(func(t *testing.T, key string, n, points uint8) {
		candidates := make([]Candidate, max(n, 1))
		for i := range candidates {
			node := &node{all: new(atomic.Int64)}
			node.info.Store(&discovery.Instance{ID: string(rune('a' + i))})
			candidates[i] = Candidate{Weight: float64(i%7) + 0.5, Warm: 1, n: node}
		}
		choose := ConsistentHash{Points: int(points)}.Build(candidates)
		first := choose(Hint{Key: key})
		if first < 0 || first >= len(candidates) {
			t.Fatalf("choose = %d of %d", first, len(candidates))
		}
		if again := choose(Hint{Key: key}); key != "" && again != first {
			t.Fatalf("choose = %d, then %d", first, again)
		}
		if other := choose(Hint{Key: key, avoid: candidates[first].n}); len(candidates) > 1 && other == first {
			t.Fatalf("choose = %d, which is to be avoided", other)
		}
	})
}

func TestDecayed(t *testing.T) {
	t.Parallel()
	for _, x := range []float64{0, 1e-9, 1e-3, 1.0/64 - 1e-9, 1.0 / 64, 1, 10} {
		if got, want := decayed(x), math.Exp(-x); math.Abs(got-want) > 1e-6 {
			t.Errorf("decayed(%v) = %v, want %v", x, got, want)
		}
	}
}
