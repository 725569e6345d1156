// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
)

// View is the state of a balancer at one moment, for dashboards and metrics.
type View struct {
	Service string `json:"service"`
	// Revision and At are those of the set in use; see discovery.Set.
	Revision uint64    `json:"revision"`
	At       time.Time `json:"at,omitzero"`
	// Stale is true, and Error says why, while the resolver cannot ask its source.
	Stale bool   `json:"stale"`
	Error string `json:"error,omitempty"`
	// Panic is true while so many instances fail that none is left out.
	Panic bool `json:"panic"`
	// InFlight is the number of calls in flight to the instances.
	InFlight int `json:"in_flight"`
	// Instances are sorted by ID.
	Instances []InstanceView `json:"instances"`
}

// InstanceView is the state of one instance.
type InstanceView struct {
	discovery.Instance
	// InFlight is the number of calls in flight, Waiting how many of them have no answer yet.
	InFlight int `json:"in_flight"`
	Waiting  int `json:"waiting"`
	// Calls have ended, and Failures of them failed, since the instance is known.
	Calls    uint64 `json:"calls"`
	Failures uint64 `json:"failures"`
	// Latency is the present estimate, see [PeakEWMA]; in JSON, nanoseconds.
	Latency time.Duration `json:"latency"`
	// Failing is the recent share of failures.
	Failing float64 `json:"failing"`
	// Suspect is why the instance is under suspicion, or empty.
	Suspect string `json:"suspect,omitempty"`
	// Ejected is true when it is left out, and For how long still, zero if until a probe
	// passes; in JSON, nanoseconds.
	Ejected bool          `json:"ejected"`
	For     time.Duration `json:"for,omitempty"`
	// Warm is 1, less during slow start.
	Warm float64 `json:"warm"`
}

// View returns the present state.
func (b *Balancer) View() View {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	v := View{
		Service: b.service, Revision: b.set.Revision, At: b.set.At, Stale: b.set.Stale || b.err != nil,
		Panic: b.panicked, Instances: make([]InstanceView, 0, len(b.nodes)),
	}
	if b.err != nil {
		v.Error = b.err.Error()
	}
	for _, n := range b.nodes {
		latency, _ := n.typical(now)
		n.mu.Lock()
		i := InstanceView{
			Instance: *n.info.Load(), InFlight: int(n.inflight()), Waiting: int(n.waiting()), Calls: n.calls, Failures: n.failed,
			Latency: time.Duration(latency), Failing: n.failingNow(now),
			Suspect: n.suspect, Ejected: n.out, Warm: b.warm(n, now),
		}
		n.mu.Unlock()
		if n.out && n.until != math.MaxInt64 {
			i.For = max(time.Duration(n.until-now), 0)
		}
		v.InFlight += i.InFlight
		v.Instances = append(v.Instances, i)
	}
	slices.SortFunc(v.Instances, func(x, y InstanceView) int { return cmp.Compare(x.ID, y.ID) })
	return v
}
