// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package pgxkit lets applications that use pgx natively, without database/sql, join the
// blocks of dovetail, and wakes outbox relays by PostgreSQL's LISTEN and NOTIFY.
//
//	tx, err := pool.Begin(ctx) // a pgx.Tx
//	...
//	_, err = tx.Exec(ctx, "UPDATE orders SET state = 'confirmed' WHERE id = $1", id)
//	...
//	err = box.Enqueue(ctx, pgxkit.Tx(tx), message) // commits together with the update
//
// [Tx] fits wherever a block joins the caller's transaction: outbox, idempotency, saga,
// saga/barrier. The stores themselves (such as outboxsql) work on a *sql.DB; pgx's package
// stdlib makes one from the same pool:
//
//	db := stdlib.OpenDBFromPool(pool)
//	store, err := outboxsql.New(db, outboxsql.Postgres, outboxsql.Config{})
//
// [Batch] is for statements that go to the server together: then a message costs no round trip.
//
// # Guarantees
//
// A statement that goes through Tx is part of the pgx transaction and of nothing else.
//
// A [Listener] passes wake-ups between the processes of one database. Those that come
// close together are sent as one, on a connection of its own and after the commit, because a
// NOTIFY inside the writers' transactions makes them commit one by one: PostgreSQL holds a
// lock of the whole server for it. Both of its connections are made again when they are
// lost, with a wake-up for what may have been missed.
//
// # Caveats
//
// A wake-up is a hint and can be lost: while a connection is being made again, when a
// process ends before it has sent it, and always where no one calls [Listener.Run]. The
// relay's polling is the guarantee.
//
// A Listener does not wake its own process: see there if that has two outboxes on one store.
//
// LISTEN needs a session of its own: give the Listener the server's address, not that of
// a pooler in transaction mode.
//
// # Not here
//
// There are no stores on native pgx: those on database/sql run on the same pool. A Listener
// carries wake-ups and no messages: for those there are brokers.
package pgxkit
