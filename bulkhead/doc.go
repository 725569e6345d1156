// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package bulkhead bounds how many calls to a dependency run at once, so that a slow one
// cannot sink the whole service.
//
//	b, err := bulkhead.New(10, bulkhead.Config{Queue: 20, Wait: time.Second})
//	...
//	user, err := bulkhead.Do(ctx, b, func(ctx context.Context) (*User, error) {
//		return client.User(ctx, id)
//	})
//	if errors.Is(err, bulkhead.ErrFull) { ... }
//
// # Guarantees
//
// At most the maximum of calls run. A permit is given back when the call returns, panics or
// calls runtime.Goexit; panics pass through. A permit granted to a waiter who has
// just given up goes to the next one.
//
// Waiters are bounded in number (Config.Queue) and time (Config.Wait and their
// context). Nobody overtakes them: a newcomer is admitted at once only if nobody waits.
//
// A call that is admitted at once costs no allocation, no lock and no look at the clock.
//
// # Caveats
//
// The permit says that the function has returned, not that the dependency has stopped working on it:
// give the function's context a timeout that the dependency honours too.
package bulkhead
