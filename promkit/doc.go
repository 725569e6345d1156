// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package promkit shows what dovetail's blocks do to Prometheus, on client_golang.
//
//	registry.MustRegister(
//		promkit.Breakers(payments, mails),
//		promkit.Relay("orders", box, relay),
//		promkit.Saga("orders", engine),
//	)
//
// A collector asks a block for its Stats at each scrape. Between scrapes it costs
// nothing, and the block's calls not a nanosecond.
//
// # Guarantees
//
// Labels are the names that you give to guards, caches and engines, the groups and instances
// that you run, and a handful of states: how many series there are does not depend on who calls or
// what is called for. Keys are never labels, with one exception that you ask for:
// [KeyedBreakers] and [Policies] have series for each key of a set, and a bound for these.
//
// Names follow Prometheus' conventions: base units, _total for what only grows,
// and dovetail_ before all of them.
//
// What needs a question to a database ([Relay], [Saga], [Projector], [EventLog]) is given [Patience] to
// answer. If it does not, the scrape goes on without these numbers, and the collector's _up is 0.
//
// # Caveats
//
// Names must be unique within a registry and kind: it refuses one that is missing or given twice, with an error that says
// so. [Balancing], [MemoryBroker], [Messages], [Steps], [Inbox] and [Requests] have no name, and are in a registry once.
//
// Counts begin at zero with each process, and states are this process's: alert on the worst
// instance (max by), not on the sum.
package promkit
