// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package rediskit lets dovetail's blocks share state through Redis, on go-redis v9.
//
//	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379"})
//	buckets, err := rediskit.NewBuckets(client, rediskit.Config{})
//	...
//	limiter, err := ratelimit.NewLeased(buckets, ratelimit.PerSecond(1000), ratelimit.LeasedConfig{Replicas: 4})
//
// [Buckets] is the store of a rate limit that many processes share. [Commands] is the
// store of idempotency keys. [Cache] is the tier of a cache that many processes share. All work on a
// single server, with Sentinel and on a Cluster.
//
// # Guarantees
//
// Every operation is one round trip: one Lua script on one key, which the server runs
// atomically. Only the server's clock counts. A server that has lost its scripts, after a
// restart or a failover, gets them again by itself.
//
// All arithmetic is in whole microseconds and whole parts of tokens, so nothing is lost or won
// by rounding, however often a bucket is asked.
//
// Each key has a time to live, so an unused bucket and a forgotten command cost nothing.
//
// A client repeats a command whose answer is lost, by default three times, although the server may have
// carried it out. Claims, leases, results, values and invalidations are then as they were after the first
// time, and so is the answer. Only tokens are taken again: a limit can become stricter by a lost
// answer, never laxer.
//
// # Caveats
//
// Redis replicates after it has answered: a failover may forget the last writes. A bucket is
// then as full as it was a moment before, and a command may run a second time. Where that must
// not happen keep commands in the database that holds their effect: see idempotencysql. A value that
// was invalidated in that moment may be there again until it expires.
//
// A server with a maxmemory policy that evicts keys may evict buckets and commands. Use noeviction for
// them, and a server of its own for the cache, which any policy suits.
package rediskit
