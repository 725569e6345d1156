// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"math"
	"sync"
	"sync/atomic"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/fault"
)

// node is what the balancer knows of one instance. Times are on the balancer's clock.
type node struct {
	info  atomic.Pointer[discovery.Instance] // ID and Addr never change
	all   *atomic.Int64                      // calls in flight to all instances; nil unless the picker needs it
	decay float64                            // time constant of forgetting, in nanoseconds

	// load counts the calls in flight, and in its upper half those not yet answered: one
	// atomic operation for both.
	load atomic.Int64
	// quiet is since when no call has been answered; it counts while calls wait.
	quiet atomic.Int64

	latency atomic.Uint64 // float64 bits: peak EWMA in nanoseconds, as of seen
	failing atomic.Uint64 // float64 bits: recent share of failures, as of seen
	seen    atomic.Int64

	mu     sync.Mutex
	calls  uint64 // all that have ended, but for the neutral ones
	failed uint64 // of them
	window struct{ calls, failed uint64 }
	streak int   // consecutive failures
	since  int64 // results of calls begun earlier say nothing about its present state
	// suspect is why the instance is under suspicion; empty if it is not.
	suspect string
	probe   int // consecutive failures of probes

	// What follows is guarded by the balancer's mutex.
	doubted   bool  // suspect is not empty, as Run knows it
	out       bool  // left out of the snapshot, until
	until     int64 // math.MaxInt64 for until a probe passes
	ejections int   // in the recent past
	warmFrom  int64 // start of the slow start, if warming
	warming   bool
}

func (n *node) weight() float64 { return float64(max(n.info.Load().Weight, 1)) }

const waiting = 1 << 32

func (n *node) inflight() int64 { return n.load.Load() & (waiting - 1) }
func (n *node) waiting() int64  { return n.load.Load() >> 32 }

// begin counts a call that starts.
func (n *node) begin(now int64) {
	if n.load.Load() < waiting {
		n.quiet.Store(now)
	}
	n.load.Add(waiting + 1)
}

// answered takes the latency of a call that goes on.
func (n *node) answered(start, now int64, o fault.Outcome) {
	n.mu.Lock()
	n.observe(start, now, o)
	n.mu.Unlock()
	n.load.Add(-waiting)
}

// done takes the end of a call, and its latency unless it has been answered before. It
// reports whether the suspicion against the instance has changed.
func (n *node) done(start, now int64, o fault.Outcome, answered bool, cfg *Outlier) (suspicion bool) {
	n.mu.Lock()
	if !answered {
		n.observe(start, now, o)
	}
	suspicion = n.record(start, now, o, cfg)
	n.mu.Unlock()
	if answered {
		n.load.Add(-1)
	} else {
		n.load.Add(-waiting - 1)
	}
	return suspicion
}

// observe takes a latency. The node is locked.
func (n *node) observe(start, now int64, o fault.Outcome) {
	rtt := float64(now - start)
	latency := math.Float64frombits(n.latency.Load())
	if o == fault.Neutral {
		// The caller gave up. That is not a failure, but the instance was at least this slow.
		if rtt > latency {
			n.latency.Store(math.Float64bits(rtt))
			n.seen.Store(now)
		}
		return
	}
	n.quiet.Store(now)
	if n.calls == 0 && o == fault.Success {
		return // the first call pays for the connection, and so tells nothing of the next ones
	}
	keep := decayed(float64(now-n.seen.Load()) / n.decay)
	if failing := math.Float64frombits(n.failing.Load()) * keep; o == fault.Failure {
		n.failing.Store(math.Float64bits(failing + (1-failing)/8))
		rtt = max(rtt, latency) // to fail fast is not to be fast
	} else if failing > 0 {
		n.failing.Store(math.Float64bits(failing - failing/8))
	}
	if rtt < latency {
		rtt = latency*keep + rtt*(1-keep) // else it is a peak, believed at once
	}
	n.latency.Store(math.Float64bits(rtt))
	n.seen.Store(now)
}

// decayed is e^-x, by its series where that is exact enough: between two calls little time
// passes.
func decayed(x float64) float64 {
	if x < 1.0/64 {
		return 1 - x + x*x/2
	}
	return math.Exp(-x)
}

// record takes an outcome, and reports whether the suspicion against the instance has
// changed. The node is locked.
func (n *node) record(start, now int64, o fault.Outcome, cfg *Outlier) bool {
	if o == fault.Neutral {
		return false
	}
	n.calls++
	if o == fault.Failure {
		n.failed++
	}
	if cfg.Off || start < n.since {
		return false
	}
	n.window.calls++
	if o == fault.Success {
		n.streak = 0
		if n.suspect == "" || n.suspect == reasonProbe {
			return false
		}
		// In a panic suspects go on working, and may show that they are well.
		n.suspect, n.since = "", now
		return true
	}
	n.window.failed++
	n.streak++
	if cfg.Consecutive < 0 || n.streak < cfg.Consecutive || n.suspect != "" {
		return false
	}
	n.suspect, n.since = reasonStreak, now
	return true
}

// cost is the expected time of one more call, in nanoseconds: the peak EWMA latency, or the present
// silence if that is longer, for each call in flight, divided by the weight and punished
// for failures. Both estimates decay, so that an instance that nobody picks gets another
// chance. A millisecond is added: below it, the connection and the scheduler decide, not the instance.
func (n *node) cost(now int64, weight float64) float64 {
	latency := math.Float64frombits(n.latency.Load())
	failing := math.Float64frombits(n.failing.Load())
	if age := float64(now - n.seen.Load()); age > n.decay/64 {
		keep := math.Exp(-age / n.decay)
		latency *= keep
		failing *= keep
	}
	load := n.load.Load()
	if load >= waiting {
		latency = max(latency, float64(now-n.quiet.Load()))
	}
	success := max(1-failing, 1.0/32)
	return (latency + 1e6) * float64(load&(waiting-1)+1) / (weight * success * success)
}

// failingNow is the share of failures as of now.
func (n *node) failingNow(now int64) float64 {
	return math.Float64frombits(n.failing.Load()) * math.Exp(-float64(now-n.seen.Load())/n.decay)
}

// typical is the latency as of now, and false if nothing is known.
func (n *node) typical(now int64) (float64, bool) {
	latency := math.Float64frombits(n.latency.Load())
	return latency * math.Exp(-float64(now-n.seen.Load())/n.decay), latency > 0
}
