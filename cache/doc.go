// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package cache keeps what is expensive to get: beside the code that gets it (cache-aside), in
// this process and, through a [Store] such as Redis, for all processes together.
//
//	products, err := cache.New("products", cache.Config[Product]{Store: store})
//	...
//	p, err := products.Get(ctx, id, db.Product) // func(ctx, id) (Product, error)
//	if errors.Is(err, cache.ErrNotFound) {
//
// # Guarantees
//
// One load for a key at a time, however many ask: in this process, and with a Store in all
// processes. The load has a goroutine and a time limit of its own. A caller's deadline ends that
// caller's wait and nothing else; the load goes on for the others, and for the next.
//
// A hot key is refreshed in the background shortly before it expires, by one reader that is drawn
// by the XFetch rule (Vattani and others, VLDB 2015): the longer a load takes the earlier.
// Its readers never wait. A key that nobody reads is not refreshed.
//
// While loads fail, the last value is served for StaleFor; then callers get a [*LoadError]. What
// was invalidated is never served again: after [Cache.Invalidate] has returned nil, or
// [Cache.Handler] has handled the message, no Get of this process that begins then
// returns a value whose load began before the Invalidate, and no such load is stored, by whatever
// process (leases: Nishtala and others, "Scaling Memcache at Facebook", NSDI 2013).
//
// A Store that is down, slow or wrong is not an outage: behind a breaker, each process then
// goes on with its own memory and its own loads.
//
// A panic or runtime.Goexit in a load is a [*PanicError] for all who wait for it.
//
// Memory is bounded, and one scan over many keys does not throw out what is used (S3-FIFO, SOSP
// 2023). A hit takes a read lock of one of many parts and allocates nothing; so that the
// caller allocates nothing either, pass the same function value as load each time, not a new
// closure.
//
// # Caveats
//
// Values are shared between all who ask: do not change what Get returned. Whatever the answer depends
// on, such as the tenant or the user, must be in the key.
//
// Another process that misses the message which invalidates serves its old value until LocalTTL
// ends. Messages are missed while a Temporary subscription is not connected: bound it by LocalTTL, or
// call [Cache.Clear] when it is connected again.
//
// A load that reads from a replica which lags behind can bring back the old value after the
// invalidation. Read from the primary, or invalidate once more when the replica has caught up.
//
// A process that dies while it loads holds its lease for LoadTimeout and a little more. Others serve
// the old value meanwhile, and wait if there is none.
//
// There is no Set: two writers would store in another order than they have committed. Write where
// the value lives, then invalidate.
package cache
