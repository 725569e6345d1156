// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package outbox publishes messages if and only if the transaction commits that they
// belong to.
//
// A service that changes its database and then tells others about it can crash in
// between, or tell of a change that is rolled back. With an outbox the message is a row in
// the same transaction as the change, and a [Relay] publishes committed rows until a broker
// has confirmed them.
//
//	store, err := outboxsql.New(db, outboxsql.Postgres, outboxsql.Config{})
//	...
//	err = store.Migrate(ctx)
//	...
//	box, err := outbox.New(store, outbox.Config{})
//	...
//	relay, err := outbox.NewRelay(box, broker, outbox.RelayConfig{})
//	...
//	go relay.Run(ctx)
//
//	tx, err := db.BeginTx(ctx, nil)
//	...
//	_, err = tx.ExecContext(ctx, "UPDATE orders SET state = 'confirmed' WHERE id = $1", id)
//	...
//	err = box.Enqueue(ctx, tx, &messaging.Message{Topic: "order.confirmed", Key: id, Body: body})
//	...
//	err = tx.Commit()
//	...
//	box.Wake()
//
// The stores are outboxsql (PostgreSQL, MySQL or MariaDB, SQLite) and outboxmem for tests;
// pgxkit has native pgx transactions and wake-ups by LISTEN.
//
// # Guarantees
//
// Delivery: at least once. What is committed is published until the broker confirms it, or
// parked with the reason for an operator to decide; nothing is dropped silently. What
// is rolled back is never published. A message keeps its ID over all repetitions, and an
// inbox (package idempotency) makes of that an effect that happens once.
//
// Order: messages of one Key reach the broker in the order of their commits, for consumers
// that recognise a repetition by its ID. Precisely: a message is published for the first
// time only when each earlier one of its key has been confirmed, or has been parked in an
// outbox that frees keys, or discarded. And a row leaves the store only when the earlier
// ones of its key have left it, so whatever crashes, a repetition begins no later than where it
// should and goes on from there in order.
//
// The condition: Enqueue comes after the statement that locks what the key stands for, such as
// the UPDATE of the order's row. Two transactions about one order are then one after the
// other, and so are their messages. Enqueue before that lock and the order of two concurrent
// transactions is open. Messages without a key have no order.
//
// A relay that stands still for longer than its lease (a stopped process, a paused container)
// loses its shards to others. What it had handed to the broker just before may land late,
// once, after newer messages of the key: at most one message of each key. It cannot
// remove or park rows any more; each such write carries the epoch of its lease. After a machine
// was suspended it can be several, since the clock of Linux that deadlines are measured by was
// suspended as well: the relay notices with its first write. All of these are repetitions.
//
// Progress: no row waits for an unrelated transaction, however long that is open, because
// rows are claimed and removed, not read past by a cursor. No transaction is open while the
// broker is waited for. Producers never wait for relays, nor for each other because of the outbox.
//
// # Relays, shards and leases
//
// Keys are hashed to a fixed number of shards. Each shard belongs to one relay, by a lease in
// the database whose clock alone counts. Any number of relays share the shards evenly; with
// more relays than shards some only wait. What a relay that died held is taken over when its
// lease runs out, within RelayConfig.Lease; a relay that ends in order gives its shards back.
//
// An idle relay makes two small statements per third of a lease and one per Poll, for all
// its shards together: with the defaults 1.6 statements a second. [Outbox.Wake] makes it look
// at once; it is a hint, and polling is the guarantee.
//
// # Failures
//
// A failed attempt is repeated after a growing delay, of which memory is in the relay: after a
// takeover it begins again. Later messages of the key wait, all others go on. What happens
// next is decided by package fault's verdict on the error:
//
//   - An unknown outcome is published again with the same ID.
//   - A permanent error parks the message at once.
//   - A refusal ([messaging.ErrRefused], [messaging.ErrUnroutable]) counts, and after
//     MaxAttempts the message is parked.
//   - A blocked or closed broker, and a refusal by our own guards, do not count.
//   - Any other error counts only if the broker confirmed something else since: an outage
//     parks nothing, however long it lasts, and when it ends, what waited is tried at once.
//
// A parked message blocks its key by default, until [Outbox.Retry] puts it back to its
// place or [Outbox.Discard] gives it up for a reason that stays on record. With
// RelayConfig.Free the key goes on without it.
//
// # Slow consumers
//
// Where Publish returns only when handlers are done (messagingmem with ConfirmOnAck), a
// handler that hangs keeps its message in the window. It must not keep others out: a topic
// may have as many messages in flight as are still free in the window, so one that hangs holds half
// of it, two hold two thirds, and there is always room for one more. The rows in memory are
// shared out by the same rule, among topics and among keys. What a topic that hangs
// leaves in the store is passed over by each read, which takes time in proportion
// to it, so a relay spends at most a tenth of its time on such reads: other topics stay quick
// up to some hundred thousand rows of a topic that hangs, and then get slower.
//
// # Caveats
//
// All relays of an outbox must agree on the number of shards; outboxsql checks it.
//
// A shard has up to three batches of messages in memory. With large bodies use a smaller
// Batch.
//
// The database's clock must not jump by more than a small part of a lease.
//
// A database that is restored from a backup has again what was published since; it is published
// again, with the same IDs. So is a parked message of which an earlier attempt had reached the
// broker unnoticed, when it is retried. Keep the inboxes' marks for longer than backups are old and
// messages stay parked.
//
// # Not here
//
// It does not encrypt, and does not schedule messages for later. It keeps what was published
// only where the store does (outboxsql's Config.Archive); [Hooks] tell of each message that was
// confirmed. It removes no duplicates: that is the consumer's inbox.
package outbox
