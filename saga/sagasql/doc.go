// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package sagasql keeps sagas in PostgreSQL, MySQL or MariaDB, and SQLite, in the database of
// the service that runs them.
//
//	store, err := sagasql.New(db, sagasql.Postgres, sagasql.Config{})
//	...
//	err = store.Migrate(ctx) // or put store.Schema() into your migrations
//	...
//	engine, err := saga.NewEngine(store, saga.Config{}, placeOrder)
//
// It needs a driver for database/sql and knows none: pgx's stdlib and lib/pq for PostgreSQL,
// go-sql-driver/mysql, modernc.org/sqlite.
//
// # Tables
//
// saga_instance has a row for each saga, saga_history what happened to it, saga_signal what was
// delivered, saga_lock and saga_lock_wait the keys of [saga.Lock], saga_node the leases of
// the engines, and saga_archive and saga_archive_history what has ended and was archived. Config.Prefix goes
// before all the names. Rows of what has ended stay until they are archived or pruned: see
// [saga.Config].
//
// # Guarantees
//
// Every change names the epoch and the revision that it was made from, so an engine that was
// taken for dead changes nothing. Local steps and what records them are one transaction of
// this database. Leases, timers and deadlines go by its clock.
//
// Engines that look for work do not wait for each other, nor for transactions that start
// sagas, and those not for engines. Sagas that have ended cost the search for work nothing.
//
// One connection is enough; an engine uses up to saga.Config.Writers for its progress, and one for
// each local step at work.
//
// [Store.Migrate] upgrades the tables of every earlier version, with the sagas in them, while
// replicas of that version go on working.
//
// # Caveats
//
// Statements are prepared once per connection. Behind a pooler in transaction mode the driver or the
// pooler has to cope with that (PgBouncer from 1.21 on, with max_prepared_statements).
//
// MySQL: the tests run on MariaDB 10.11.
//
// SQLite: use busy_timeout and WAL, and _txlock=immediate for the application's transactions. There
// is one writer at a time, so engines and the application wait for each other.
package sagasql
