// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package retry repeats a call that failed for a passing reason, without making
// an outage worse.
//
//	r, err := retry.New(retry.Config{})
//	...
//	user, err := retry.Do(ctx, r, func(ctx context.Context) (*User, error) {
//		return client.User(ctx, id)
//	})
//
// One [Retrier] per dependency, made once and shared by all goroutines. The zero
// [Config] is three attempts, 50 ms doubling to 2 s with full jitter, and a budget of one
// retry in ten calls.
//
// # Guarantees
//
// A call that succeeds costs no allocation, and a look at the clock in one of 64 calls, for
// the budget (in every call with Config.Elapsed).
//
// Whether an error is worth another attempt is [fault.Judge]'s decision: permanent errors
// and the end of the caller's context are not, a guard's refusal is if its RetryAfter fits.
//
// Do never sleeps in vain: not after the last attempt, not when the delay would
// cross the context's deadline, not when RetryAfter exceeds Config.AfterMax. It
// then returns at once. A RetryAfter is never undercut: jitter is added on top of it.
//
// The error says what happened. An error that settles the matter (a permanent one) is
// returned as the call returned it. When Do gives up although another attempt might have
// helped, it returns an [*Error] which unwraps to both the last error of the call and the
// cause of giving up, such as [ErrExhausted] or context.DeadlineExceeded.
//
// Retries are bounded over all calls, not only per call. The [Budget] counts first tries,
// decays with time, and may be shared by many Retriers, by hedges and by redeliveries.
// In a full outage at high rates three attempts cost 1.1 times the load, not 3.
//
// Nested Retriers do not multiply. The innermost one retries; the layers around it
// see its [*Error] and pass it on. Where a layer in between hides that error, the
// outer layer's second and later attempts carry a mark in their context ([Attempt])
// in which inner layers try once only: attempts then add, they never multiply.
//
// # Caveats
//
// Do does not stop an attempt: the function must heed its context. The first attempt's
// context carries no mark, because a mark costs an allocation.
//
// # What it does not do
//
// It does not limit one attempt's time (resilience.Policy does) and does not keep calls
// away from a broken dependency (package breaker does).
package retry
