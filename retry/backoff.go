// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package retry

import (
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"time"
)

// Jitter is how a step of the backoff becomes a delay. The kinds and their
// names are those of Marc Brooker, "Exponential Backoff and Jitter", AWS
// Architecture Blog, 2015. The step before attempt n+1 is min(Max, Base*2^(n-1)).
type Jitter uint8

const (
	// FullJitter draws the delay from 0 to the step. It spreads load best.
	FullJitter Jitter = iota
	// EqualJitter draws it from half the step to the step: never at once.
	EqualJitter
	// DecorrelatedJitter draws it from Base to three times the previous delay, at most Max.
	DecorrelatedJitter
	// NoJitter waits for the step itself. Callers that failed together come back together.
	NoJitter
)

// String returns the constant's name.
func (j Jitter) String() string {
	switch j {
	case FullJitter:
		return "FullJitter"
	case EqualJitter:
		return "EqualJitter"
	case DecorrelatedJitter:
		return "DecorrelatedJitter"
	case NoJitter:
		return "NoJitter"
	}
	return fmt.Sprintf("retry.Jitter(%d)", uint8(j))
}

// Delays returns the waits of one call that fails every time: Attempts-1 of them, without
// end where Attempts is negative. It is for schedulers that do their own waiting.
func (r *Retrier) Delays() iter.Seq[time.Duration] {
	return func(yield func(time.Duration) bool) {
		var prev time.Duration
		for n := 1; n != r.cfg.Attempts; n++ {
			if !yield(r.cfg.jittered(n, &prev)) {
				return
			}
		}
	}
}

// jittered returns the delay after attempt n. prev is the previous delay, zero at first.
func (c *Config) jittered(n int, prev *time.Duration) time.Duration {
	switch c.Jitter {
	case EqualJitter:
		s := c.step(n)
		return s/2 + upTo(s-s/2)
	case DecorrelatedJitter:
		before := max(*prev, c.Base)
		high := time.Duration(math.MaxInt64)
		if before <= high/3 {
			high = 3 * before
		}
		*prev = min(c.Max, c.Base+upTo(high-c.Base))
		return *prev
	case NoJitter:
		return c.step(n)
	}
	return upTo(c.step(n))
}

// step returns min(Max, Base*2^(n-1)) without overflow.
func (c *Config) step(n int) time.Duration {
	if n-1 >= 62 || c.Base > c.Max>>(n-1) {
		return c.Max
	}
	return c.Base << (n - 1)
}

// upTo draws from 0 to d, both included.
func upTo(d time.Duration) time.Duration {
	if d == math.MaxInt64 {
		return time.Duration(rand.Int64())
	}
	return time.Duration(rand.Int64N(int64(d) + 1))
}
