// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package outboxsql keeps an outbox in PostgreSQL, MySQL or MariaDB, or SQLite.
//
//	store, err := outboxsql.New(db, outboxsql.Postgres, outboxsql.Config{})
//	...
//	err = store.Migrate(ctx) // or put outboxsql.Schema(outboxsql.Postgres) into your migrations
//	...
//	box, err := outbox.New(store, outbox.Config{})
//
// It needs a driver for database/sql and knows none: pgx's stdlib and lib/pq for
// PostgreSQL, go-sql-driver/mysql, modernc.org/sqlite.
//
// # Tables
//
// outbox_message holds what is to be published, and nothing else: a row is deleted when it
// is confirmed. outbox_parked holds what could not be published and what was discarded.
// outbox_archive holds what was published, with Config.Archive and until Outbox.Prune; else it
// is empty. outbox_lease has a row for each shard, and one with a number below zero for each
// relay. Config.Prefix goes before all the names.
//
// Times in them are microseconds since 1970 by the database's clock, but for happened, the
// message's Time, which is nanoseconds.
//
// # Guarantees
//
// Insert is one statement per 500 messages or 4 MiB of bodies. It takes no locks but those of
// its own rows, so producers wait neither for relays nor for each other.
//
// Reading takes no locks, under any isolation level that is the server's default from READ
// COMMITTED up. Rows are removed by primary key, in PostgreSQL and SQLite by one statement that checks the
// lease's epoch in passing, in MySQL by a short READ COMMITTED transaction. With Config.Archive
// the row is archived by the same statement or transaction, or not at all. In PostgreSQL the
// removal's commit does not wait for the disk: a server that crashes has what was removed in its
// last moments again, and it is published twice, as after a crash of the relay.
//
// Migrate upgrades the tables of every earlier version, with the rows in them, while replicas
// of that version go on working.
//
// A pool of one connection is enough, and may be the application's.
//
// # Caveats
//
// PostgreSQL: keys keep the order of their commits as long as the sequence of the
// table's identity column has a cache of one, as it has by default. The table is made for a
// queue, with an eager autovacuum; a transaction that stays open for hours still keeps
// dead rows in place, over which each read has to pass.
//
// MySQL: the tests run on MariaDB 10.11, not on MySQL itself. What the statements use beyond
// plain SQL is in the manual of MySQL 8.0 too: JSON_TABLE (from 8.0.4) as a table of a
// multiple-table DELETE and of INSERT ... SELECT, STRAIGHT_JOIN, FORCE INDEX, LOCK IN SHARE MODE,
// also in a subquery, DELETE with ORDER BY and LIMIT, UTC_TIMESTAMP(6), CHECK (which does
// nothing before 8.0.16), the collation utf8mb4_bin, and GET_LOCK for Migrate. Transactions are
// READ COMMITTED, which the server takes with binlog_format ROW, MySQL's default, or MIXED,
// MariaDB's. VARCHAR(255) columns compare without regard to spaces at the end, so parking "a"
// also blocks the key "a ". A server or a pool whose default is READ UNCOMMITTED does not do:
// relays would publish what producers then roll back.
//
// SQLite: use busy_timeout and WAL, and _txlock=immediate for the application's transactions.
//
// A process must have the same Config.Shards as the tables: Migrate and the relay refuse
// another, and so does Enqueue for a shard that does not exist.
//
// # Not here
//
// It prunes nothing by itself: call Outbox.Prune from time to time where messages are discarded
// or archived. It does not partition the archive; a table of your own, filled by Hooks.Confirmed,
// may do that, without the archive's promise.
package outboxsql
