// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package saga runs business transactions that span several services and always end
// done or undone.
//
// A saga (Garcia-Molina and Salem, Sagas, SIGMOD 1987) is a list of steps. When one of
// them is refused, those before it are undone in reverse. Its state is a row in the
// service's own database, so there is no server to run, and the code of a step may do
// what it likes: nothing is replayed.
//
//	type order struct{ ID, Customer string; Total int }
//
//	place := saga.Must(saga.New("place-order", 1,
//		saga.Call("reserve", reserve, saga.Undo(release)), // another service
//		saga.Pivot(saga.Call("pay", pay)),                 // decides
//		saga.Local("confirm", confirm),                    // our own tables
//	))
//	store, err := sagasql.New(db, sagasql.Postgres, sagasql.Config{})
//	engine, err := saga.NewEngine(store, saga.Config{}, place)
//	go engine.Run(ctx)
//
//	err = saga.Start(ctx, engine, tx, place, "order-17", order{...}) // with the order's row
//	err = tx.Commit()
//	engine.Wake()
//
// A step's function returns nil when it is done, [Refuse] when the business says no, and any
// other error to be tried again. Steps before the [Pivot] say how they are undone; the
// pivot decides, and those behind it are tried until they succeed. [New] checks that.
// That is all that most sagas need. The other steps: [Send] commands a service by
// messages, [Await] waits for an event or a person, [Sleep] for a time, [Lock] for a business
// key; [If] chooses, [Parallel] runs steps side by side, [Child] is a saga itself.
//
// Operators look with [Engine.List], [Engine.Get], [Engine.History] and [Engine.Count],
// and act with [Engine.Cancel], [Engine.Retry] and [Engine.Skip]. Package sagatest proves
// a definition: Explore searches all that can happen to it, Crash kills it at every
// statement, Play tells its story under virtual time. Package barrier is for those who
// are called.
//
// # Guarantees
//
// A saga exists if and only if the transaction of its Start commits. It ends completed
// or compensated, whatever dies in between, unless it is stuck: then it says why, hooks
// and counters tell, and an operator decides. No error of the store moves it.
//
// A [Local] step, the sending of a [Send], the taking of a [Lock], and [Definition.OnEnd]
// happen in the transaction that records them: exactly once. A [Call] happens at least
// once, each time with the same [Attempt.Key]; behind a barrier its effect is exactly once.
//
// A step is undone if it may have happened. That includes the one that was refused: a
// duplicate of its request may still be under way, and would take effect when the saga is
// over (Temporal's and Restate's samples leave this open). Undos run on a context of their
// own that no cancellation reaches, and are never given up.
//
// When a node dies its sagas are taken over by any other one within the lease and a poll. A
// node that was taken for dead and wakes up cannot write: every change names the epoch and
// the revision that it was made from. Leases, timers and deadlines go by the database's
// clock. The heartbeat is one write per node, however many sagas it has; an idle engine
// asks less than once a second.
//
// What is delivered to a saga is not lost if it comes early, and the first counts if it
// comes twice. A reply that comes too late has no effect.
//
// Engines and definitions are safe for concurrent use. A saga is worked on by one node at a
// time; sagas have no order among each other.
//
// # Caveats
//
// Sagas are not isolated: others see what a saga has done before it ends. Say so in the
// data ("pending"), or keep other sagas out with [Lock].
//
// An undo runs for calls whose outcome is unknown, and so must succeed where there is
// nothing to undo, and bar a late request. Package barrier does that.
//
// A participant that refuses a pivot must remember it (barrier.Bar): the pivot has no undo
// that could bar a late duplicate.
//
// A local step must use the transaction it is given and no other connection, and be quick:
// it holds the saga's row.
//
// Steps are found by their names. Under the same version change what a step does, not which
// steps there are; for the rest, there are versions and [Migrate]. A saga whose version no
// node has waits, and is reported as stuck.
//
// The data are stored with every step, as JSON: keep them small, and keep documents
// elsewhere. Steps in parallel that wait for one another's data are not parallel; a Parallel
// has no lists of steps inside, for which there are children.
//
// Ended sagas stay where they are until Config.Archive moves and Config.Retain deletes them,
// or [Engine.Archive] and [Engine.Prune]. Set Config.Archive when every process runs a version
// that knows it: an older one would start an archived saga again.
//
// A saga that waits for a [Lock] is woken when it becomes free, but the next to ask may be
// faster. Two sagas that take two locks crosswise wait until one has a Timeout or a Deadline.
//
// # What it does not do
//
// It does not replay code, and so has no rules of determinism and no workflow language. It
// has no cron, no queue of its own, and no user interface: it has verbs for one. It does
// not make remote calls exactly once by itself: nobody can.
//
// # Orchestration or choreography
//
// Here one service knows the plan and calls the others: choose that when there are more
// than two or three of them, when somebody has to see where a case stands, when there is
// something to undo. In a choreography each service reacts to the events of others through
// an inbox and an outbox (packages idempotency and outbox): choose that when services only
// follow and nobody refuses, as in sending a mail for every order. It needs no engine; but
// the plan is nowhere, and each undo is one more event that everybody must know. [Correlate]
// helps to see what belongs together. The examples show one case in both styles.
package saga
