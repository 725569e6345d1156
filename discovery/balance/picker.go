// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
)

// Picker is a way to choose, as a plain value: one may serve many balancers.
type Picker interface {
	// Build returns the function that chooses among the candidates, by index. There is at
	// least one. The function is called from many goroutines at once, and should not
	// depend on their number. Build is called again when the candidates change.
	Build(candidates []Candidate) func(Hint) int
}

// Candidate is an instance that may be chosen.
type Candidate struct {
	// Weight is the instance's weight, less during slow start.
	Weight float64
	// Warm is 1, less during slow start.
	Warm float64

	n *node
}

// Instance returns the instance.
func (c *Candidate) Instance() discovery.Instance { return *c.n.info.Load() }

// InFlight returns the number of calls in flight to the instance.
func (c *Candidate) InFlight() int { return int(c.n.inflight()) }

// Latency returns the present estimate of the instance's latency, as [PeakEWMA] sees it;
// zero if nothing is known.
func (c *Candidate) Latency(h Hint) time.Duration {
	latency, _ := c.n.typical(h.now)
	return time.Duration(latency)
}

// two returns two different random numbers below n, which is at least 2. Every pair is as
// likely as any other.
func two(n int) (int, int) {
	r := rand.Uint64()
	i := int(r >> 32 * uint64(n) >> 32)
	j := int(r & (1<<32 - 1) * uint64(n-1) >> 32)
	if j >= i {
		j++
	}
	return i, j
}

// PeakEWMA takes of two random instances the one with the lower cost: latency × (calls in
// flight + 1), over weight and success. Latency is an average that believes peaks at once and
// forgets them slowly, as in Finagle; a call that is not answered counts with its age, so
// that a hanging instance is avoided although nothing comes back from it. A failure is never
// taken for a fast answer.
type PeakEWMA struct {
	// Decay is the time constant of forgetting. Zero means 10 seconds.
	Decay time.Duration
}

func (p PeakEWMA) validate() error {
	if p.Decay < 0 {
		return fmt.Errorf("balance: PeakEWMA.Decay is %v, want 0 or more", p.Decay)
	}
	return nil
}

// Build implements [Picker].
func (PeakEWMA) Build(candidates []Candidate) func(Hint) int {
	if len(candidates) == 1 {
		return first
	}
	return func(h Hint) int {
		i, j := two(len(candidates))
		a, b := &candidates[i], &candidates[j]
		// Smaller differences are noise. To follow it would send a quiet client's calls
		// to one instance only.
		if 1.25*b.n.cost(h.now, b.Weight) < a.n.cost(h.now, a.Weight) {
			return j
		}
		return i
	}
}

func first(Hint) int { return 0 }

// LeastRequests takes of two random instances the one with fewer calls in flight for its
// weight.
type LeastRequests struct {
	// All compares all instances instead of two. The cost grows with their number, and
	// clients that see the same state move in step.
	All bool
}

// Build implements [Picker].
func (p LeastRequests) Build(candidates []Candidate) func(Hint) int {
	load := func(c *Candidate) float64 { return float64(c.n.inflight()+1) / c.Weight }
	switch {
	case len(candidates) == 1:
		return first
	case p.All:
		return func(Hint) int {
			best := rand.IntN(len(candidates)) // ties fall to anybody
			least := load(&candidates[best])
			for i, start := 1, best; i < len(candidates); i++ {
				j := (start + i) % len(candidates)
				if l := load(&candidates[j]); l < least {
					best, least = j, l
				}
			}
			return best
		}
	}
	return func(Hint) int {
		i, j := two(len(candidates))
		if load(&candidates[j]) < load(&candidates[i]) {
			return j
		}
		return i
	}
}

// RoundRobin takes one instance after the other, whatever its weight, from a random start, so
// that processes that start together do not move in step.
type RoundRobin struct{}

// Build implements [Picker].
func (RoundRobin) Build(candidates []Candidate) func(Hint) int {
	n := uint64(len(candidates))
	var next atomic.Uint64
	next.Store(rand.Uint64N(n))
	for i := range candidates {
		if candidates[i].Warm < 1 {
			return func(Hint) int {
				for range 4 {
					i := next.Add(1) % n
					if w := candidates[i].Warm; w >= 1 || rand.Float64() < w {
						return int(i)
					}
				}
				return int(next.Add(1) % n)
			}
		}
	}
	return func(Hint) int { return int(next.Add(1) % n) }
}

// Weighted takes instances in proportion to their weights.
//
// Vose's alias method finds one in constant time. Instead of random numbers it gets multiples of
// the golden ratio, which fill every interval as evenly as a sequence can: shares are
// met within a few calls, not only in the long run.
type Weighted struct{}

// Build implements [Picker].
func (Weighted) Build(candidates []Candidate) func(Hint) int {
	threshold, alias := aliasTable(candidates)
	n := uint64(len(candidates))
	var next atomic.Uint64
	next.Store(rand.Uint64())
	return func(Hint) int {
		const golden = 0x9e3779b97f4a7c15 // 2^64 / φ
		column, fraction := bits.Mul64(next.Add(golden), n)
		if fraction < threshold[column] {
			return int(column)
		}
		return int(alias[column])
	}
}

// aliasTable splits the weights into columns of equal size of which each holds at most two
// candidates: the one of the column below the threshold (of 2^64), its alias above.
func aliasTable(candidates []Candidate) (threshold []uint64, alias []int32) {
	n := len(candidates)
	var sum float64
	for i := range candidates {
		sum += candidates[i].Weight
	}
	threshold, alias = make([]uint64, n), make([]int32, n)
	scaled := make([]float64, n)
	var small, large []int32
	for i := range candidates {
		scaled[i] = candidates[i].Weight * float64(n) / sum
		if scaled[i] < 1 {
			small = append(small, int32(i))
		} else {
			large = append(large, int32(i))
		}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		threshold[s], alias[s] = uint64(scaled[s]*(1<<63))<<1, l
		scaled[l] -= 1 - scaled[s]
		if scaled[l] < 1 {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	for _, i := range append(small, large...) { // full columns, but for rounding
		threshold[i], alias[i] = 1<<64-1, i
	}
	return threshold, alias
}
