// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// Outlier says when an instance that fails is left out of the choice, and for how long. The zero
// Outlier is a sound default.
//
// An instance is under suspicion after Consecutive failures, or when its share of failures is
// higher than that of the others together by SuccessGap. Suspects are left out, up to
// MaxShare. When more than PanicShare are under suspicion, the fault is probably one they
// share, and the rest could not take the load: then nobody is left out.
//
// Envoy and gRPC compare the success rate with mean − 1.9σ, which can never be reached by
// one of five instances; the comparison with the others together works from two.
type Outlier struct {
	// Off switches ejection off.
	Off bool
	// Consecutive is the number of failures in a row that puts an instance under suspicion.
	// Zero means 5, negative never.
	Consecutive int
	// SuccessGap is how much higher the share of failures may be than that of the other
	// instances, within Interval. Zero means 0.25, negative never.
	SuccessGap float64
	// MinCalls is how many calls within Interval the comparison needs. Zero means 20.
	MinCalls int
	// Interval is the time between comparisons. Zero means 10 seconds.
	Interval time.Duration
	// Eject is how long an instance is left out the first time; each time soon after
	// doubles it. After that a single failure is enough for the next time. Zero means
	// 30 seconds.
	Eject time.Duration
	// MaxEject bounds the doubling. Zero means 5 minutes.
	MaxEject time.Duration
	// MaxShare is the share of instances that may be left out, rounded up, but never all.
	// Zero means 0.5, negative none.
	MaxShare float64
	// PanicShare is the share of instances, rounded up, above which suspicion counts for
	// nothing, unless there are healthy ones in other zones or of other priorities. Zero
	// means 0.5.
	PanicShare float64
}

const (
	reasonStreak = "consecutive failures"
	reasonRate   = "success rate"
	reasonProbe  = "probe"
)

func (o Outlier) withDefaults() (Outlier, error) {
	if o.MinCalls < 0 {
		return o, fmt.Errorf("balance: Outlier.MinCalls is %d, want 0 or more", o.MinCalls)
	}
	for _, f := range []struct {
		name string
		got  *time.Duration
		zero time.Duration
	}{
		{"Interval", &o.Interval, 10 * time.Second}, {"Eject", &o.Eject, 30 * time.Second}, {"MaxEject", &o.MaxEject, 5 * time.Minute},
	} {
		if *f.got < 0 {
			return o, fmt.Errorf("balance: Outlier.%s is %v, want 0 or more", f.name, *f.got)
		}
		*f.got = cmp.Or(*f.got, f.zero)
	}
	if !(o.SuccessGap < 1) {
		return o, fmt.Errorf("balance: Outlier.SuccessGap is %v, want less than 1", o.SuccessGap)
	}
	if !(o.MaxShare <= 1) {
		return o, fmt.Errorf("balance: Outlier.MaxShare is %v, want at most 1", o.MaxShare)
	}
	if !(o.PanicShare >= 0 && o.PanicShare <= 1) {
		return o, fmt.Errorf("balance: Outlier.PanicShare is %v, want 0 to 1", o.PanicShare)
	}
	o.Consecutive = cmp.Or(o.Consecutive, 5)
	o.MinCalls = cmp.Or(o.MinCalls, 20)
	o.SuccessGap = cmp.Or(o.SuccessGap, 0.25)
	o.MaxShare = cmp.Or(o.MaxShare, 0.5)
	o.PanicShare = cmp.Or(o.PanicShare, 0.5)
	return o, nil
}

// mayEject is how many of n instances may be left out.
func (o *Outlier) mayEject(n int) int {
	return min(int(math.Ceil(max(o.MaxShare, 0)*float64(n))), n-1)
}

// panics reports whether that many suspects among n instances are too many. All always are.
func (o *Outlier) panics(suspects, n int) bool {
	return suspects == n || suspects > int(math.Ceil(o.PanicShare*float64(n)))
}

// compare puts the instances under suspicion that failed much more often than the others since
// the last comparison, and forgets old ejections.
func (b *Balancer) compare(now int64) {
	cfg := &b.cfg.Outlier
	type tally struct{ calls, failed float64 }
	tallies := make(map[*node]tally, len(b.nodes))
	var all tally
	for _, n := range b.nodes {
		n.mu.Lock()
		t := tally{float64(n.window.calls), float64(n.window.failed)}
		n.window.calls, n.window.failed = 0, 0
		if n.suspect == "" && n.ejections > 0 {
			n.ejections--
		}
		n.mu.Unlock()
		tallies[n] = t
		all.calls += t.calls
		all.failed += t.failed
	}
	if cfg.Off || cfg.SuccessGap < 0 {
		return
	}
	least := float64(cfg.MinCalls)
	for n, t := range tallies {
		others := tally{all.calls - t.calls, all.failed - t.failed}
		if t.calls < least || others.calls < least || t.failed/t.calls-others.failed/others.calls <= cfg.SuccessGap {
			continue
		}
		n.mu.Lock()
		if n.suspect == "" {
			n.suspect, n.since = reasonRate, now
		}
		n.mu.Unlock()
	}
}

// review looks at the suspicions again, and releases the instances whose time is over. It reports
// whether anything changed.
func (b *Balancer) review(now int64) (changed bool) {
	for _, n := range b.nodes {
		n.mu.Lock()
		if n.out && now >= n.until && n.suspect != "" {
			b.acquit(n, now)
			n.warming, n.warmFrom = b.cfg.SlowStart > 0, now
		}
		if doubted := n.suspect != ""; doubted != n.doubted {
			n.doubted = doubted
			changed = true
		}
		n.mu.Unlock()
	}
	return changed
}

// acquit lifts the suspicion, but one more failure is enough to bring it back. The node is locked.
func (b *Balancer) acquit(n *node, now int64) {
	n.suspect, n.since = "", now
	n.streak = max(b.cfg.Outlier.Consecutive-1, 0)
}

// calm ends a panic. Instances that have not been called since the fault went still look as bad as
// they did in it, so each of them gets one more call to prove itself.
func (b *Balancer) calm(groups []*group, now int64) {
	for _, g := range groups {
		g.suspects = 0
		for _, n := range g.nodes {
			n.mu.Lock()
			if n.doubted && n.suspect != reasonProbe {
				b.acquit(n, now)
			}
			if n.doubted = n.suspect != ""; n.doubted {
				g.suspects++
			}
			n.mu.Unlock()
		}
	}
}

// leaveOut begins an ejection.
func (b *Balancer) leaveOut(n *node, now int64) Ejection {
	cfg := &b.cfg.Outlier
	n.mu.Lock()
	defer n.mu.Unlock()
	n.out = true
	e := Ejection{Instance: *n.info.Load(), Reason: n.suspect}
	if n.suspect == reasonProbe {
		n.until = math.MaxInt64
		return e
	}
	e.For = min(cfg.Eject<<min(n.ejections, 20), cfg.MaxEject)
	// Many processes see the same failures: they should not all come back at once.
	e.For += rand.N(e.For/10 + 1)
	n.ejections++
	n.until = now + int64(e.For)
	return e
}
