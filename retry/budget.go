// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package retry

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// BudgetConfig configures a [Budget]. The zero value is a sound default.
type BudgetConfig struct {
	// Ratio is how many retries each first try pays for. Zero means 0.1.
	Ratio float64
	// MinPerSecond is how many retries a second are free, so that rare calls can be
	// retried too. Up to Window's worth is saved. Zero means 2; negative means none.
	MinPerSecond float64
	// Window is how long a first try is remembered: it is the time constant of the
	// decay. Zero means 10 s.
	Window time.Duration
}

// Budget bounds retries to a share of the recent first tries: in an outage, where
// every call fails, it is what keeps the load from multiplying. Count first tries with
// Deposit and ask Withdraw before repeating anything; [Retrier] does both by itself. One
// Budget may serve many Retriers, hedges and redeliveries that burden the same
// dependency. It is safe for concurrent use.
//
// The idea is Finagle's RetryBudget: a token bucket in which tokens expire. Here they
// decay exponentially, so that no ring of buckets is needed.
type Budget struct {
	// pending counts the deposits since the last fold: the success path is one
	// atomic addition, and reads the clock once in foldEvery times.
	pending atomic.Int64

	mu      sync.Mutex
	cfg     BudgetConfig
	balance float64 // retries paid for by first tries, decayed up to at
	reserve float64 // free retries saved
	at      time.Time
}

// Unlimited is the budget that refuses nothing.
var Unlimited = &Budget{}

// foldEvery is a power of two: large enough to make the clock's cost vanish, small
// enough that what is not folded yet is worth only a few retries.
const foldEvery = 64

// NewBudget returns a Budget, or an error that names the wrong field.
func NewBudget(cfg BudgetConfig) (*Budget, error) {
	if !(cfg.Ratio >= 0 && cfg.Ratio <= 10) {
		return nil, fmt.Errorf("retry: BudgetConfig.Ratio is %v, want 0 to 10", cfg.Ratio)
	}
	if math.IsNaN(cfg.MinPerSecond) || math.IsInf(cfg.MinPerSecond, 0) {
		return nil, fmt.Errorf("retry: BudgetConfig.MinPerSecond is %v, want a number", cfg.MinPerSecond)
	}
	if cfg.Window < 0 {
		return nil, fmt.Errorf("retry: BudgetConfig.Window is %v, want 0 or more", cfg.Window)
	}
	if cfg.Ratio == 0 {
		cfg.Ratio = 0.1
	}
	if cfg.MinPerSecond == 0 {
		cfg.MinPerSecond = 2
	}
	cfg.MinPerSecond = max(cfg.MinPerSecond, 0)
	if cfg.Window == 0 {
		cfg.Window = 10 * time.Second
	}
	return &Budget{cfg: cfg, at: time.Now(), reserve: cfg.MinPerSecond * cfg.Window.Seconds()}, nil
}

// Deposit counts a first try.
func (b *Budget) Deposit() {
	if b == Unlimited {
		return
	}
	if b.pending.Add(1)%foldEvery == 0 && b.mu.TryLock() {
		b.fold(time.Now())
		b.mu.Unlock()
	}
}

// Withdraw takes one retry and reports whether the budget had it.
func (b *Budget) Withdraw() bool {
	if b == Unlimited {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fold(time.Now())
	switch {
	case b.balance >= 1:
		b.balance--
	case b.reserve >= 1:
		b.reserve--
	default:
		return false
	}
	return true
}

// Balance returns how many retries could be withdrawn now, +Inf from Unlimited.
func (b *Budget) Balance() float64 {
	if b == Unlimited {
		return math.Inf(1)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fold(time.Now())
	return math.Floor(b.balance) + math.Floor(b.reserve)
}

// fold brings the balance up to now. Deposits since the last fold are taken as spread
// evenly over that time, so each has decayed by its own age on average: the
// integral of exp(-t/window) over the elapsed time.
func (b *Budget) fold(now time.Time) {
	deposits := float64(b.pending.Swap(0)) * b.cfg.Ratio
	elapsed := now.Sub(b.at).Seconds()
	b.at = now
	window := b.cfg.Window.Seconds()
	if elapsed > 0 {
		b.balance *= math.Exp(-elapsed / window)
		deposits *= -math.Expm1(-elapsed/window) * window / elapsed
		b.reserve = min(b.reserve+elapsed*b.cfg.MinPerSecond, b.cfg.MinPerSecond*window)
	}
	b.balance += deposits
}
