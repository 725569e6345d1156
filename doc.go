// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package dovetail is the map of a library of building blocks for services that
// talk over a network and keep their own data. It has no code: import the block
// that you need, each stands alone.
//
// # Which block when
//
// How did the call end, and may it be repeated? [github.com/dovetail-go/dovetail/fault],
// the ground floor that every block reads.
//
// A change and its message must commit together: [github.com/dovetail-go/dovetail/outbox].
// A message or a request may come twice and must count once:
// [github.com/dovetail-go/dovetail/idempotency]. Messages between services, with retries and
// dead letters: [github.com/dovetail-go/dovetail/messaging].
//
// A business transaction over several services that ends done or undone:
// [github.com/dovetail-go/dovetail/saga]. What happened, kept as the truth, and models made for
// reading: [github.com/dovetail-go/dovetail/eventsource].
//
// What is expensive to get, near and never stale without saying so:
// [github.com/dovetail-go/dovetail/cache].
//
// Calls that fail, hang or come too fast: [github.com/dovetail-go/dovetail/retry],
// [github.com/dovetail-go/dovetail/breaker], [github.com/dovetail-go/dovetail/bulkhead] and
// [github.com/dovetail-go/dovetail/ratelimit], composed in [github.com/dovetail-go/dovetail/resilience].
//
// Which instances serve a name, and which of them takes this call:
// [github.com/dovetail-go/dovetail/discovery] and [github.com/dovetail-go/dovetail/discovery/balance].
//
// The front door, and a process that starts and ends in order:
// [github.com/dovetail-go/dovetail/gateway] and [github.com/dovetail-go/dovetail/health].
//
// # Together
//
// The blocks dovetail: an effect happens exactly once although every part may
// crash, repeat, reorder or vanish. A command is made repeatable by an
// idempotency key; its change, the start of its saga and its events commit in
// one local transaction; the outbox relay publishes at least once and in order
// per key; every consumer applies each message once in its own transaction.
// The shop in the examples module is that sentence as a program.
package dovetail
