// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package eventsourcesql keeps event streams, snapshots and the checkpoints of projections in
// PostgreSQL, MySQL or MariaDB, or SQLite.
//
//	store, err := eventsourcesql.New(db, eventsourcesql.Postgres, eventsourcesql.Config{})
//	...
//	err = store.Migrate(ctx) // or put eventsourcesql.Schema(eventsourcesql.Postgres) into your migrations
//	...
//	events, err := eventsource.New(store, eventsource.Config{})
//
// [Models] is for the database of the read models, which may be another, of another dialect.
//
// It needs a driver for database/sql and knows none: pgx's stdlib and lib/pq for
// PostgreSQL, go-sql-driver/mysql, modernc.org/sqlite.
//
// # Tables
//
// eventsource_event holds the events, eventsource_snapshot the states of streams; in MySQL
// eventsource_sequencer and eventsource_turn hold locks. Models has eventsource_shard,
// eventsource_owner, eventsource_active and eventsource_skipped. Config.Prefix goes before
// all the names.
//
// # The order of all events
//
// PostgreSQL: the numbers of a sequence, read up to a horizon. An append takes, in the same
// statement, a shared advisory lock that says how far the sequence was, then its numbers. A
// reader looks at the sequence, then at those locks, then at the rows, and goes up to the
// least of what it saw. Nobody waits for these locks. So a transaction that has appended
// and stays open holds up the readers of what was appended after it, and nothing else does: no
// writer of other tables or other databases of the server, as it would with a horizon of
// transaction IDs. [Store.Horizon] has the age of the oldest such transaction; for sessions
// of other roles PostgreSQL shows it only to members of pg_read_all_stats, and zero otherwise.
//
// MySQL: numbers are given after the commit, by whoever reads, one at a time. An open append
// holds up nobody. Events that nobody has read have no number.
//
// SQLite: the row's number. There is one writer at a time, so it is the order of commits.
//
// # Guarantees
//
// An append at a certain version is one statement per 500 events in every database. With
// Any or Exists it is two in PostgreSQL and three in MySQL.
//
// A pool of one connection is enough, and may be the application's.
//
// # Caveats
//
// Append with read committed or, in MySQL, its default. Under PostgreSQL's repeatable read a
// transaction that has read before another appended does not see the end of the stream and
// loses the race. Under serializable the commit may fail with SQLSTATE 40001, which only the
// caller sees; a Repository tries again.
//
// PostgreSQL: read from the server that is written to. A replica does not show the locks. Two
// logs in one database whose tables' OIDs are equal modulo 262144 would hold up each
// other; so would an application's own 64-bit shared advisory lock with the same high bits. Neither
// loses anything. Leave the sequence without a CACHE: its numbers would be taken before the lock.
//
// A log that has gone back in time, restored from a backup or failed over to a replica that
// lacked its end, gives numbers again that checkpoints in another database have passed: build
// those read models anew.
//
// MySQL: names compare without regard to spaces at the end, so streams must not have one.
//
// SQLite: use busy_timeout and WAL, and _txlock=immediate for the application's transactions.
package eventsourcesql
