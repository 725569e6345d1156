// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"time"
)

// Store is the tier that many processes share, such as Redis through rediskit. The store's own
// clock counts, and each method is one atomic step for each key.
//
// For every key there is at most one lease at a time. Its owner loads the value for all; a value is
// only stored under the key's present lease, and Delete takes the lease away. So a load that began
// before Delete cannot bring back what was deleted.
//
// Source: Nishtala and others, "Scaling Memcache at Facebook", NSDI 2013, section 3.2.1.
type Store interface {
	// Take returns what the store holds of key. Where that is nothing, or a value that is not
	// fresh, or fresh for no longer than ask.Early, and nobody has the lease, it gives the
	// lease to the caller for ask.Lease.
	Take(ctx context.Context, key string, ask Ask) (Held, error)
	// Put stores it and ends the lease, and reports true, if token is the key's present
	// lease. Otherwise it changes nothing and reports false. A lease that has run out is present
	// until another is given or the store forgets it.
	Put(ctx context.Context, key, token string, it Item) (stored bool, err error)
	// Release ends the lease without storing anything. It changes nothing if token is not
	// the key's present lease.
	Release(ctx context.Context, key, token string) error
	// Delete removes the keys with their leases. A key whose last Delete was for the same event
	// is left as it is, because what it holds was loaded after that; an empty event is never
	// the same. An event is remembered for a minute at least.
	Delete(ctx context.Context, event string, keys ...string) error
}

// Ask is what a process asks of [Store.Take].
type Ask struct {
	// Lease is how long the lease is to last. It is above zero.
	Lease time.Duration
	// Early asks for the lease although the value is fresh, if it is fresh for no longer than this.
	Early time.Duration
}

// Item is one value in a [Store].
type Item struct {
	// Value is the encoded value, empty if it is Negative.
	Value []byte
	// Negative says that there is no such thing.
	Negative bool
	// Took is how long the load took.
	Took time.Duration
	// Fresh is for how long from now on it may be served. Below zero, in what Take
	// returns, it is how long ago that ended.
	Fresh time.Duration
	// Stale is for how much longer than Fresh the store keeps it, for those who cannot get a newer one.
	Stale time.Duration
}

// Held is what a [Store] holds of one key.
type Held struct {
	Item
	// Found is false where the store has no value; Item then means nothing.
	Found bool
	// Age is how long ago the value was put.
	Age time.Duration
	// Token is the lease that was given to the caller, empty if none was.
	Token string
	// Busy is how long the lease of another lasts at most, zero if there is none.
	Busy time.Duration
}
