// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package breaker stops calling a dependency that is broken, and finds out when it works
// again.
//
//	b, err := breaker.New(breaker.Config{Name: "users"})
//	...
//	user, err := breaker.Do(ctx, b, func(ctx context.Context) (*User, error) {
//		return client.User(ctx, id)
//	})
//	if errors.Is(err, breaker.ErrOpen) { ... }
//
// One [Breaker] per dependency, whatever types its calls return; a [Keyed] set where
// there is one per host. The zero [Config] opens after five failures in a row, for one second.
//
// # Which condition do I choose?
//
// Consecutive failures for a dependency that works or does not: it costs nothing. FailureRate
// where some calls always fail or where many callers share the breaker, for then a
// success now and then would hide that most calls fail. SlowRate where the dependency
// answers late rather than wrongly. They may be combined.
//
// # Guarantees
//
// Closed, counting consecutive failures, a successful call costs no allocation, no look at
// the clock and no write to shared memory. With a rate it costs one look at the clock and one
// atomic addition.
//
// A panic and runtime.Goexit in the call are failures, give a probe back, and pass through.
//
// Half-open admits at most Config.Probes calls at a time, whoever races. A probe that hangs
// loses its place after Config.ProbeTimeout; its result is then ignored. A call that ends
// neutral (fault.Neutral: the caller cancelled, another guard refused) gives the place back
// and counts for nothing.
//
// A result counts only in the generation that admitted its call: late results from before the
// last change of state are ignored. Reconfigure is not a change of state.
//
// State is computed from the clock: an open breaker whose time is up reads half-open although
// nobody has called it.
//
// Hooks run outside the lock, each change once and in order, on a goroutine
// that caused one. They may call the breaker and may panic.
//
// # Caveats
//
// The end of the caller's context is neutral, with one exception: a call
// that its caller's deadline cut off after Config.SlowAfter or later counts as a failure, or
// else a dependency that hangs would never open the breaker of callers who bring their
// own deadlines. Without SlowRate the clock is not read until a deadline has cut off a call, so
// the first such call is not counted; it only makes the following calls be timed.
//
// Rates are evaluated when a failure (or a slow call) is recorded.
package breaker
