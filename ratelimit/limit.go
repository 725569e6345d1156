// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package ratelimit

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

// The reasons of refusals. They come wrapped in a *fault.Rejection.
var (
	// ErrLimited means that there is no token now.
	ErrLimited = errors.New("rate limit exceeded")
	// ErrBurst means that there can never be so many tokens at once.
	ErrBurst = errors.New("more than the rate limit's burst")
)

// Limit is a rate, and how much of it may be used at once.
type Limit struct {
	// Rate is the number of events in Per.
	Rate int
	// Per is the time in which Rate events may happen. Zero means one second.
	Per time.Duration
	// Burst is how many events may happen at once after a pause. Zero means Rate.
	Burst int
}

// PerSecond returns a Limit of n events a second.
func PerSecond(n int) Limit { return Limit{Rate: n, Per: time.Second} }

// PerMinute returns a Limit of n events a minute.
func PerMinute(n int) Limit { return Limit{Rate: n, Per: time.Minute} }

// PerHour returns a Limit of n events an hour.
func PerHour(n int) Limit { return Limit{Rate: n, Per: time.Hour} }

// Complete returns l with its defaults, or an error that names the wrong field.
func (l Limit) Complete() (Limit, error) {
	if l.Per == 0 {
		l.Per = time.Second
	}
	if l.Per < 0 {
		return l, fmt.Errorf("ratelimit: Limit.Per is %v, want 0 or more", l.Per)
	}
	if l.Rate < 1 || int64(l.Rate) > int64(l.Per) {
		return l, fmt.Errorf("ratelimit: Limit.Rate is %d in %v, want 1 to one a nanosecond", l.Rate, l.Per)
	}
	if l.Burst == 0 {
		l.Burst = l.Rate
	}
	// A quarter of the range, so that no sum of a time and two bursts overflows.
	if most := math.MaxInt64 / 4 / int64(l.Interval()); l.Burst < 1 || int64(l.Burst) > most {
		return l, fmt.Errorf("ratelimit: Limit.Burst is %d, want 1 to %d", l.Burst, most)
	}
	return l, nil
}

// Interval returns the time that one event takes, rounded up to nanoseconds. l must be complete.
func (l Limit) Interval() time.Duration {
	return (l.Per + time.Duration(l.Rate) - 1) / time.Duration(l.Rate)
}

// Result is the answer of every limiter.
type Result struct {
	// OK is true when the event may happen.
	OK bool
	// Limit is the burst.
	Limit int
	// Remaining is how many more events could happen at once.
	Remaining int
	// RetryAfter is the time until the event could happen: zero when OK, negative when
	// it never can.
	RetryAfter time.Duration
	// ResetAfter is the time until the whole burst is available again.
	ResetAfter time.Duration
}

// Err returns nil if r is OK, and otherwise a *fault.Rejection of [ErrLimited] or [ErrBurst].
func (r Result) Err() error { return r.err("") }

func (r Result) err(name string) error {
	switch {
	case r.OK:
		return nil
	case r.RetryAfter < 0:
		return &fault.Rejection{By: "ratelimit", Name: name, RetryAfter: -1, Err: ErrBurst}
	}
	return &fault.Rejection{By: "ratelimit", Name: name, RetryAfter: r.RetryAfter, Err: ErrLimited}
}

// gcra is a Limit made ready for arithmetic. A bucket is one number, its theoretical
// arrival time (TAT): the time at which it will be full again.
type gcra struct {
	limit     Limit
	interval  int64 // of one event
	tolerance int64 // of the burst
}

func newGCRA(l Limit) (*gcra, error) {
	l, err := l.Complete()
	if err != nil {
		return nil, err
	}
	interval := int64(l.Interval())
	return &gcra{l, interval, int64(l.Burst) * interval}, nil
}

// take returns the bucket after n events at now, and how long they are too early: zero or
// less when they may happen. n must not exceed the burst.
func (g *gcra) take(tat, now int64, n int) (next, early int64) {
	next = max(tat, now) + int64(n)*g.interval
	return next, next - now - g.tolerance
}

// result describes a bucket after a decision.
func (g *gcra) result(tat, now, early int64) Result {
	r := Result{OK: early <= 0, Limit: g.limit.Burst, Remaining: g.limit.Burst}
	if used := tat - now; used > 0 {
		r.ResetAfter = time.Duration(used)
		r.Remaining = max(0, int((g.tolerance-used)/g.interval))
	}
	if !r.OK {
		r.RetryAfter = time.Duration(early)
	}
	return r
}

// never is the answer to more than the burst. It takes nothing.
func (g *gcra) never(tat, now int64) Result {
	r := g.result(tat, now, 0)
	r.OK, r.RetryAfter = false, -1
	return r
}

// rescale returns the bucket for a new limit: as many events are used up as before.
func (g *gcra) rescale(tat, now int64, to *gcra) int64 {
	if tat <= now {
		return tat
	}
	return now + int64(float64(tat-now)/float64(g.interval)*float64(to.interval))
}
