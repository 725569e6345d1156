// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package ratelimit bounds how many events happen in a time.
//
//	l, err := ratelimit.New(ratelimit.PerSecond(100), ratelimit.Config{})
//	...
//	if r := l.Allow(); !r.OK {
//		return r.Err() // come back after r.RetryAfter
//	}
//
// # Which one do I choose?
//
// [Limiter] for one stream of events in this process. [Keyed] for one per client, in bounded
// memory. [Leased] for a limit that many processes share through a [Store], such as
// Redis. All of them answer with a [Result], which has what the RateLimit and Retry-After
// headers need.
//
// The algorithm is GCRA (ATM Forum, Traffic Management 4.0, 4.4.2; also known as the leaky
// bucket as a meter): one integer of nanoseconds per bucket says when it will be full again. It admits
// what a token bucket of the same rate and burst admits, without a timer or a refill.
//
// # Guarantees
//
// In any time t at most Burst + t*Rate/Per events are admitted. The interval between events is a whole
// number of nanoseconds, rounded up, so the rate is never exceeded.
//
// Allow costs no allocation and no lock. Time is monotonic: setting the clock has no effect.
//
// Wait fails at once, and takes nothing, when its turn would come after the context's deadline. Waiters
// are served in order. One that is cancelled gives its tokens back and those behind it move up.
//
// Asking for more than the burst is an error ([ErrBurst]), not a wait without end.
//
// Keyed never gives a client a fresh burst by forgetting it: only a bucket that is full again
// is forgotten. Where all are in use, unknown keys share one bucket.
//
// # Caveats
//
// A Limiter starts with its full burst: a process that restarts often admits more.
package ratelimit
