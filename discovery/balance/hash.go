// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
)

// ConsistentHash takes the same instance for the same key, [Hint.Key], in every process. When
// an instance comes or goes, only its share of the keys moves. No instance gets more than Bound
// times the average of calls in flight: what is above goes to the next on the ring
// (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads, 2016). Calls
// without a key go anywhere.
type ConsistentHash struct {
	// Bound is how far above the average an instance may be loaded: 1.25 is 25 %. Zero
	// means 1.25, negative no bound.
	Bound float64
	// Points is the number of points of an average instance on the ring. More make the
	// shares more equal and a change of instances dearer. Zero means 100.
	Points int
}

func (p ConsistentHash) validate() error {
	if p.Bound > 0 && p.Bound <= 1 || math.IsNaN(p.Bound) {
		return fmt.Errorf("balance: ConsistentHash.Bound is %v, want more than 1, 0 or negative", p.Bound)
	}
	if p.Points < 0 {
		return fmt.Errorf("balance: ConsistentHash.Points is %d, want 0 or more", p.Points)
	}
	return nil
}

type point struct {
	at uint64
	of int32
}

// Build implements [Picker].
func (p ConsistentHash) Build(candidates []Candidate) func(Hint) int {
	if len(candidates) == 1 {
		return first
	}
	bound := cmp.Or(p.Bound, 1.25)
	var sum float64
	for i := range candidates {
		sum += candidates[i].Weight
	}
	share := make([]float64, len(candidates))
	var ring []point
	for i := range candidates {
		share[i] = candidates[i].Weight / sum
		id := hash(candidates[i].n.info.Load().ID)
		points := max(1, int(math.Round(float64(cmp.Or(p.Points, 100)*len(candidates))*share[i])))
		for k := range points {
			ring = append(ring, point{mix(id + uint64(k)*0x9e3779b97f4a7c15), int32(i)})
		}
	}
	slices.SortFunc(ring, func(a, b point) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.of, b.of)) })

	// The upper bits of a position lead to the first point at or after them, so that a
	// lookup takes a step or two, however many points there are.
	shift := 64 - bits.Len(uint(len(ring)))
	index := make([]int32, 1<<(64-shift))
	for i, next := 0, 0; i < len(index); i++ {
		for next < len(ring) && ring[next].at < uint64(i)<<shift {
			next++
		}
		index[i] = int32(next)
	}
	all := candidates[0].n.all
	return func(h Hint) int {
		at := rand.Uint64()
		if h.Key != "" {
			at = hash(h.Key)
		}
		i := int(index[at>>shift])
		for i < len(ring) && ring[i].at < at {
			i++
		}
		loads := float64(all.Load() + 1)
		for range ring {
			if i >= len(ring) {
				i = 0
			}
			of := ring[i].of
			c := &candidates[of]
			fits := bound < 0 || float64(c.n.inflight()) < math.Ceil(bound*loads*share[of])
			if fits && !h.unwanted(c.n) {
				return int(of)
			}
			i++
		}
		return int(ring[i%len(ring)].of)
	}
}

// hash is FNV-1a, mixed. It must be the same in every process and every version, or keys move.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}

// mix is the finaliser of SplitMix64: every bit of the result depends on every bit of x.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
