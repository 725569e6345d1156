// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package eventsource keeps what happened, as streams of events in the service's own
// database, and builds read models from it.
//
//	store, err := eventsourcesql.New(db, eventsourcesql.Postgres, eventsourcesql.Config{})
//	...
//	err = store.Migrate(ctx)
//	...
//	events, err := eventsource.New(store, eventsource.Config{})
//	...
//	codec, err := eventsource.NewCodec(
//		eventsource.Type[Placed]("order.placed.v2"),
//		eventsource.Rename("order.created.v1", "order.placed.v2"),
//	)
//	...
//	orders, err := eventsource.NewRepository(events, begin, codec, eventsource.Decider[Order, Command, Event]{
//		Zero: zero, Decide: decide, Evolve: evolve,
//	}, eventsource.RepositoryConfig{})
//	...
//	order, err := orders.Do(ctx, "order-42", Place{...}) // loads, decides, appends, retries
//
// That is the side of commands. The side of queries is a [Projection], a function that writes
// batches of events into tables made for reading, in this database or another, and a
// [Projector] that runs it:
//
//	projector, err := eventsource.NewProjector(events, models, eventsource.Projection[*sql.Tx]{
//		Name: "orders", Filter: eventsource.Filter{Types: codec.Types()}, Handle: handle,
//	}, eventsource.ProjectorConfig{})
//	...
//	go projector.Run(ctx)
//	...
//	_, cursor, err := events.End(ctx, "order-42")
//	err = eventsource.WaitFor(ctx, models, "orders", cursor) // read your writes
//
// The stores are eventsourcesql (PostgreSQL, MySQL or MariaDB, SQLite) and eventsourcemem
// for tests. Package shred has personal data forgotten although events are not.
//
// # Guarantees
//
// Append: events are part of the caller's transaction ([Log.Append]). Versions of a stream
// count from 1 without a gap. A stream that is not as expected, and a race that was lost
// however the driver puts it, are one error, [*VersionError]. What commits is never changed.
//
// Order: all events of a log have one order. A reader that goes on after the last
// event it was given gets each committed event once, and those of a stream by their versions,
// however long a transaction was open and whatever it did before it appended. Nothing is
// ever passed over by a timeout. How each database does it, and who waits for whom, is in package
// eventsourcesql; [Log.Horizon] tells how far readers see and how long they have
// been held up.
//
// Projections: exactly once. The checkpoint moves by compare-and-swap in the transaction
// that changes the read model, under a lease's epoch, so that neither a crash nor a projector
// that was stopped for an hour and goes on applies anything twice. Each stream's events
// are applied in order. A batch that fails is divided until the event that is to blame is
// alone; after MaxAttempts its shard stops before it and says so ([Projector.Parked]), until
// an operator has it tried again or skipped, with a reason that stays on record. The other
// shards go on. While the database does not answer no event is blamed.
//
// Rebuild: a new Revision is built from the first event while the old one serves and goes
// on; when it has caught up it becomes the active one ([Models].Active), which is what readers
// ask for.
//
// # Read your writes
//
// After the commit [Log.End] gives the stream's cursor, and [WaitFor] waits until the active
// revision has come so far. It fails at once if the projection has stopped before.
//
// # Wake-ups
//
// [Log.Wake] after a commit has readers and projectors look at once, in other processes by a
// Notifier. It is a hint; looking every Config.Poll is the guarantee.
//
// # Caveats
//
// Decide in the transaction's database only: [Repository.Do] may decide several times.
// Evolve and upcasters run at every load; keep them pure.
//
// Appends with Any to one stream wait for each other. A race against an append at a certain
// version can be lost with Any too, and under an isolation level whose snapshot is older than
// the wait.
//
// A projection's events are at least a read transaction old when they are applied; its
// read model is always the state at some point of each shard's past.
//
// The names of streams, types, and the metadata are not encrypted. Use opaque IDs.
//
// It does not delete or compact streams, has no subscriptions that remember where
// they were without a [Projector], and no queries over events other than by stream, type and
// prefix.
package eventsource
