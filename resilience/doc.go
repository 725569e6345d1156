// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package resilience composes the guards around the calls to one dependency.
//
//	var users = &resilience.Policy{
//		Total:    2 * time.Second,
//		Retry:    retrier,
//		Bulkhead: bulkhead,
//		Breaker:  breaker,
//		Attempt:  500 * time.Millisecond,
//	}
//
//	user, err := resilience.Do(ctx, users, func(ctx context.Context) (*User, error) {
//		return client.User(ctx, id)
//	})
//
// The guards are values of their own packages, checked by their own constructors, and may be
// shared: a [Policy] only says which there are. The order in which they work is fixed
// and is that of Policy's fields. For another order, nest: any guard's Do takes any
// function.
//
// # What is here beside Policy
//
// [Hedge] starts a second call when the first is late. [Fallback] has another answer ready. [Adaptive]
// bounds calls in flight by what the callee shows it can take, and sheds by [Criticality]
// which travels in the context. [WithTimeout] is context.WithTimeout that costs nothing when the caller's
// deadline is nearer.
//
// # Guarantees
//
// A call that succeeds through Retry, RateLimit, Adaptive, Bulkhead and Breaker costs no
// allocation. A timeout costs what context.WithTimeout costs, and nothing when the caller's
// own deadline is nearer.
//
// Each attempt is judged once, by Classify or fault.Judge, with the caller's context bounded by
// Total; every guard hears the same verdict. An attempt that the Attempt timeout cut off is a
// failure. One that the caller or Total cut off is neutral, since it had less time than an
// attempt is meant to have; but see breaker.Config.SlowAfter.
//
// When a later guard refuses, the earlier ones get their places back and a neutral verdict. A
// panic and runtime.Goexit are failures, free every place, and pass through.
//
// # Caveats
//
// Timeouts are cooperative: fn runs on the caller's goroutine and must heed its context. A
// result that arrives late is still returned.
//
// A token of RateLimit that was taken for an attempt which a later guard refused is spent.
package resilience
