// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

// ErrOverload is the reason of an [Adaptive] limit's refusals. It comes wrapped in a
// *fault.Rejection.
var ErrOverload = errors.New("too much in flight")

// AdaptiveConfig configures an [Adaptive] limit. The zero value is a sound default.
type AdaptiveConfig struct {
	// Name appears in refusals, hooks and Stats. It may be empty.
	Name string
	// Min and Max bound the limit. Zero means 2 and 1000.
	Min, Max int
	// Initial is the limit at first. Zero means 20, within Min and Max.
	Initial int
	// Window is how long latencies are gathered for one change of the limit, or longer until
	// there are MinSamples. Zero means 250 ms.
	Window time.Duration
	// MinSamples is the least number of latencies for a change. Zero means 10.
	MinSamples int
	// Tolerance is how many times the unloaded latency is still taken as healthy, at least
	// 1. Zero means 1.5.
	Tolerance float64
	// Shares is the part of the limit that calls of a criticality may fill. Nil means all for
	// CriticalPlus, 0.9 for Critical, 0.75 for SheddablePlus and 0.5 for Sheddable.
	Shares map[Criticality]float64
	// Hooks observe.
	Hooks AdaptiveHooks
}

// AdaptiveHooks are called outside locks; each may be nil.
type AdaptiveHooks struct {
	// Reject is called for each refusal.
	Reject func(Shed)
	// Change is called after each change of the limit.
	Change func(LimitChange)
}

// Shed is a refusal by an [Adaptive] limit.
type Shed struct {
	Context     context.Context
	Name        string
	Criticality Criticality
}

// LimitChange is a change of an [Adaptive] limit.
type LimitChange struct {
	Name     string
	From, To int
	Latency  time.Duration // mean of the window; zero after a probe
	Baseline time.Duration // the unloaded latency that it is compared with
}

// Adaptive bounds how many calls run at once by what the callee shows it can take, so that
// neither a client nor a server needs to know a number. When latency rises above what it is
// without load, calls queue somewhere, and the limit falls; when it does not, the limit
// grows while it is used. Calls of lower [Criticality] are refused first. It is safe for
// concurrent use.
//
// The rule is the gradient of Netflix's concurrency-limits (github.com/Netflix/concurrency-limits,
// Gradient2Limit): per window limit = limit*gradient + sqrt(limit), where gradient =
// Tolerance*baseline/latency between 0.5 and 1; a window with timeouts multiplies it by 0.9.
// Gradient2's long average drifts upwards under steady mild overload (its pull request
// 134). Here the baseline is the lowest window, and is measured anew from time to time by
// lowering the limit for one window, as TCP BBR does (Cardwell et al., ACM Queue 14(5), 2016, ProbeRTT),
// so that it follows a callee that has become slower.
type Adaptive struct {
	cfg      AdaptiveConfig
	base     time.Time
	inFlight atomic.Int64
	rejected atomic.Uint64
	bounds   atomic.Pointer[bounds]

	mu       sync.Mutex
	limit    float64
	baseline float64 // ns; zero before the first window
	window   struct {
		began   int64 // ns
		n       int
		sum     float64
		dropped bool
		peak    int64 // most in flight
	}
	left    int     // windows until the next probe
	probing bool    // the limit is lowered, to measure the baseline
	before  float64 // the limit before the probe
	busy    bool    // before the probe the limit was used up
	deep    bool    // the next probe is to go further down
}

// bounds is the limit as calls read it, by criticality.
type bounds struct {
	limit int
	by    [criticalities]int64
}

// NewAdaptive returns an Adaptive limit, or an error that names the wrong field.
func NewAdaptive(cfg AdaptiveConfig) (*Adaptive, error) {
	for _, f := range []struct {
		name  string
		value *int
		zero  int
	}{{"Min", &cfg.Min, 2}, {"Max", &cfg.Max, max(1000, cfg.Min)}, {"Initial", &cfg.Initial, 0}, {"MinSamples", &cfg.MinSamples, 10}} {
		if *f.value < 0 {
			return nil, fmt.Errorf("resilience: AdaptiveConfig.%s is %d, want 0 or more", f.name, *f.value)
		}
		if *f.value == 0 {
			*f.value = f.zero
		}
	}
	if cfg.Max < cfg.Min {
		return nil, fmt.Errorf("resilience: AdaptiveConfig.Max is %d, want at least Min, %d", cfg.Max, cfg.Min)
	}
	if cfg.Initial == 0 {
		cfg.Initial = min(max(20, cfg.Min), cfg.Max)
	}
	if cfg.Initial < cfg.Min || cfg.Initial > cfg.Max {
		return nil, fmt.Errorf("resilience: AdaptiveConfig.Initial is %d, want Min to Max, %d to %d", cfg.Initial, cfg.Min, cfg.Max)
	}
	if cfg.Window < 0 {
		return nil, fmt.Errorf("resilience: AdaptiveConfig.Window is %v, want 0 or more", cfg.Window)
	}
	if cfg.Window == 0 {
		cfg.Window = 250 * time.Millisecond
	}
	if cfg.Tolerance == 0 {
		cfg.Tolerance = 1.5
	}
	if !(cfg.Tolerance >= 1 && cfg.Tolerance <= 100) {
		return nil, fmt.Errorf("resilience: AdaptiveConfig.Tolerance is %v, want 1 to 100", cfg.Tolerance)
	}
	shares := map[Criticality]float64{CriticalPlus: 1, Critical: 0.9, SheddablePlus: 0.75, Sheddable: 0.5}
	for c, share := range cfg.Shares {
		if c < Sheddable || c > CriticalPlus || !(share > 0 && share <= 1) {
			return nil, fmt.Errorf("resilience: AdaptiveConfig.Shares[%v] is %v, want a criticality's share above 0 and up to 1", c, share)
		}
		shares[c] = share
	}
	cfg.Shares = shares
	a := &Adaptive{cfg: cfg, base: time.Now(), limit: float64(cfg.Initial), left: probeSoon}
	a.publish()
	return a, nil
}

func (a *Adaptive) now() int64 { return int64(time.Since(a.base)) }

// Do calls fn if a admits it, and otherwise returns a *fault.Rejection of [ErrOverload].
func (a *Adaptive) Do(ctx context.Context, fn func(context.Context) error) error {
	t, err := a.Acquire(ctx)
	if err != nil {
		return err
	}
	verdict := panicked
	defer func() { t.Settle(ctx, verdict) }()
	err = fn(ctx)
	verdict = fault.Judge(ctx, err)
	return err
}

// Acquire admits a call of ctx's criticality, in the form without a closure, or returns a
// *fault.Rejection of [ErrOverload]. Exactly one Settle must follow. It never waits.
func (a *Adaptive) Acquire(ctx context.Context) (AdaptiveTicket, error) {
	c := CriticalityOf(ctx)
	n := a.inFlight.Add(1)
	if n > a.bounds.Load().by[c.index()] {
		a.inFlight.Add(-1)
		a.rejected.Add(1)
		if hook := a.cfg.Hooks.Reject; hook != nil {
			hook(Shed{ctx, a.cfg.Name, c})
		}
		return AdaptiveTicket{}, &fault.Rejection{By: "adaptive", Name: a.cfg.Name, Err: ErrOverload}
	}
	return AdaptiveTicket{a, a.now(), n}, nil
}

// AdaptiveTicket is a call that an [Adaptive] limit has admitted. The zero one is of none.
type AdaptiveTicket struct {
	a        *Adaptive
	start    int64
	inFlight int64 // with this one, when it was admitted
}

// Settle ends the call, which was made with ctx. A success's latency counts; a timeout and an
// explicit wish to come later (fault.RetryAfter) count as overload; other failures and
// neutral ends say nothing about load.
func (t AdaptiveTicket) Settle(ctx context.Context, v fault.Verdict) {
	if t.a == nil {
		return
	}
	t.a.inFlight.Add(-1)
	switch {
	case v.Outcome == fault.Success:
		t.a.sample(t, false)
	case v.Outcome == fault.Failure && (v.Unknown || v.After > 0),
		v.Outcome == fault.Neutral && v.Unknown && ctx.Err() == context.DeadlineExceeded:
		t.a.sample(t, true)
	}
}

// Windows between two probes of the baseline: on average, and when it is doubtful.
const (
	probeEvery = 60
	probeSoon  = 4
)

func (a *Adaptive) sample(t AdaptiveTicket, dropped bool) {
	now := a.now()
	a.mu.Lock()
	w := &a.window
	if t.start < w.began && a.probing {
		a.mu.Unlock() // it ran under the old limit
		return
	}
	if dropped {
		w.dropped = true
	} else {
		w.sum += float64(now - t.start)
	}
	w.n++
	w.peak = max(w.peak, t.inFlight)
	if now-w.began < int64(a.cfg.Window) || w.n < a.cfg.MinSamples {
		a.mu.Unlock()
		return
	}
	change := a.turn(now)
	a.mu.Unlock()
	if hook := a.cfg.Hooks.Change; hook != nil && change.From != change.To {
		hook(change)
	}
}

// turn ends a window and sets the limit.
func (a *Adaptive) turn(now int64) LimitChange {
	w := a.window
	a.window.began, a.window.n, a.window.sum, a.window.dropped, a.window.peak = now, 0, 0, false, 0
	change := LimitChange{Name: a.cfg.Name, From: a.bounds.Load().limit}
	latency := w.sum / float64(w.n)
	switch {
	case a.probing:
		a.probing, a.limit = false, a.before
		if !w.dropped {
			// If it differs, either the callee has changed or calls had queued while one of the
			// two was measured. Look again soon and further down, until it differs no more.
			if a.deep = a.busy && math.Abs(latency-a.baseline) > 0.08*a.baseline; a.deep {
				a.left = probeSoon
			}
			a.baseline = latency
		}
	case w.dropped:
		a.limit *= 0.9
	default:
		if a.baseline == 0 || latency < a.baseline {
			a.baseline = latency
		}
		change.Latency = time.Duration(latency)
		gradient := max(0.5, min(1, a.cfg.Tolerance*a.baseline/latency))
		next := a.limit*gradient + math.Sqrt(a.limit)
		// A limit that is not used says nothing about what the callee could take.
		if next < a.limit || float64(w.peak) > a.limit/2 {
			a.limit += 0.5 * (next - a.limit) // smoothed, for windows are noisy
		}
	}
	a.limit = min(max(a.limit, float64(a.cfg.Min)), float64(a.cfg.Max))
	if a.left--; a.left <= 0 {
		a.left = probeEvery/2 + rand.IntN(probeEvery) // at random, so that clients do not probe together
		a.probing, a.before, a.busy = true, a.limit, float64(w.peak) > 0.8*a.limit
		// In balance the callee works on a tolerance-th of the limit less the headroom, so that
		// many find it without a queue.
		a.limit *= 0.9 * (1 - 1/math.Sqrt(a.limit)) / a.cfg.Tolerance
		if a.deep {
			a.limit /= 2
		}
		a.limit = max(a.limit, float64(a.cfg.Min))
	}
	a.publish()
	change.To, change.Baseline = a.bounds.Load().limit, time.Duration(a.baseline)
	return change
}

func (a *Adaptive) publish() {
	b := &bounds{limit: int(a.limit)}
	for c, share := range a.cfg.Shares {
		b.by[c.index()] = max(1, int64(math.Ceil(float64(b.limit)*share)))
	}
	a.bounds.Store(b)
}

// AdaptiveStats is a snapshot of an [Adaptive] limit.
type AdaptiveStats struct {
	Name     string
	Limit    int
	InFlight int
	Baseline time.Duration // latency without load, as far as known
	Rejected uint64        // since NewAdaptive
}

// Stats returns a snapshot.
func (a *Adaptive) Stats() AdaptiveStats {
	a.mu.Lock()
	baseline := a.baseline
	a.mu.Unlock()
	return AdaptiveStats{a.cfg.Name, a.bounds.Load().limit, int(a.inFlight.Load()), time.Duration(baseline), a.rejected.Load()}
}
