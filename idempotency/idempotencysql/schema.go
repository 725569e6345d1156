// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotencysql

import (
	"context"
	"strings"

	"github.com/dovetail-go/dovetail/internal/sqldialect"
)

// Schema returns the tables of a [Store] with the zero [Config] as text for a migration
// tool. [Store.Schema] is the same for a store with another.
func Schema(d Dialect) string { return schema(d, "") }

// Schema returns the store's tables as text for a migration tool. [Store.Migrate]
// recognises what it made.
func (s *Store) Schema() string { return schema(s.dialect, s.cfg.Prefix) }

// Migrate creates the store's tables, or brings them up to date. It may run at every
// start of many replicas at once.
func (s *Store) Migrate(ctx context.Context) error {
	return sqldialect.Migrate(ctx, s.db, s.dialect, s.cfg.Prefix+block, steps(s.dialect, s.cfg.Prefix))
}

// block names the version table of the schema, after the prefix.
const block = "idempotency"

func schema(d Dialect, prefix string) string {
	return sqldialect.Schema(d, prefix+block, steps(d, prefix))
}

// steps are the versions of the schema. A released step never changes.
//
// Names are compared byte by byte: on MySQL only VARBINARY also tells "a" from "a ". The
// only index on the keys besides the primary key is on a column that no update by an
// owner changes, so that PostgreSQL's updates of a row stay on its page.
func steps(d Dialect, prefix string) []string {
	name, data, short := "TEXT", "BLOB", "BLOB"
	switch d {
	case Postgres:
		name, data, short = `TEXT COLLATE "C"`, "BYTEA", "BYTEA"
	case MySQL:
		name, data, short = "VARBINARY(255)", "LONGBLOB", "VARBINARY(255)"
	}
	step := `CREATE TABLE {p}idempotency_inbox (
	consumer {name} NOT NULL,
	id {name} NOT NULL,
	batch BIGINT NOT NULL,
	seen_at BIGINT NOT NULL,
	PRIMARY KEY (consumer, id)
){options};
CREATE INDEX {p}idempotency_inbox_seen_at ON {p}idempotency_inbox (seen_at);
CREATE TABLE {p}idempotency_key (
	scope {name} NOT NULL,
	id {name} NOT NULL,
	token {name} NOT NULL,
	fingerprint {short} NOT NULL,
	lease_until BIGINT NOT NULL,
	expires_at BIGINT NOT NULL,
	done SMALLINT NOT NULL,
	result {data} NOT NULL,
	version BIGINT NOT NULL,
	PRIMARY KEY (scope, id)
){options};
CREATE INDEX {p}idempotency_key_expires_at ON {p}idempotency_key (expires_at);
`
	return []string{strings.NewReplacer("{p}", prefix, "{name}", name, "{short}", short, "{data}", data, "{options}", d.TableOptions()).Replace(step)}
}

// statements are all that the store executes, in the words of its dialect.
type statements struct {
	mark  [maxShift + 1]string // inserts 1<<i marks
	count [maxShift + 1]string // counts the marks of one batch among 1<<i messages
	drop  [maxShift + 1]string // deletes the marks of 1<<i messages

	look, insert, lock, take, extend, complete, completed, completeTx, release string

	pruneMarks, pruneKeys string
}

// maxShift bounds a statement to 1<<maxShift messages, which is within the parameters that
// every database takes.
const maxShift = 8

// ignore returns a statement that inserts the rows whose primary key is new, without an
// error for the others, and affects only the new ones. MySQL's ON DUPLICATE KEY UPDATE
// would count the others too on a connection with clientFoundRows=true; what IGNORE hides
// besides duplicates, names that are too long or not text, was refused before.
func ignore(d Dialect, table, columns, values, key string) string {
	if d == MySQL {
		return "INSERT IGNORE INTO " + table + " (" + columns + ") VALUES " + values
	}
	return "INSERT INTO " + table + " (" + columns + ") VALUES " + values + " " + d.OnConflictDoNothing(key)
}

func newStatements(d Dialect, prefix string) (s statements) {
	words := strings.NewReplacer("{now}", d.Now(), "{inbox}", prefix+"idempotency_inbox", "{key}", prefix+"idempotency_key")
	sql := func(query string) string { return d.Rebind(words.Replace(query)) }
	for i := range s.mark {
		n := 1 << i
		rows := strings.TrimSuffix(strings.Repeat("(?, ?, ?, {now}), ", n), ", ")
		s.mark[i] = sql(ignore(d, "{inbox}", "consumer, id, batch, seen_at", rows, "consumer, id"))
		among := " WHERE consumer = ? AND id IN " + sqldialect.Values(1, n)
		// An update that changes something, because MySQL counts no others.
		s.count[i] = sql("UPDATE {inbox} SET seen_at = seen_at + 1" + among + " AND batch = ?")
		s.drop[i] = sql("DELETE FROM {inbox}" + among)
	}

	const own = " WHERE scope = ? AND id = ? AND token = ?"
	s.look = sql("SELECT token, fingerprint, done, result, lease_until - {now}, expires_at - {now} FROM {key} WHERE scope = ? AND id = ?")
	s.insert = sql(ignore(d, "{key}", "scope, id, token, fingerprint, lease_until, expires_at, done, result, version",
		"(?, ?, ?, ?, {now} + ?, {now} + ?, 0, ?, 0)", "scope, id"))
	s.lock = sql("SELECT 1 FROM {key}" + own + " AND (done = 0 AND lease_until <= {now} OR done = 1 AND expires_at <= {now})" + skipLocked(d))
	s.take = sql("UPDATE {key} SET token = ?, fingerprint = ?, lease_until = {now} + ?, expires_at = {now} + ?, done = 0, result = ?, version = version + 1" + own)
	s.extend = sql("UPDATE {key} SET lease_until = {now} + ?, version = version + 1" + own + " AND done = 0")
	s.complete = sql("UPDATE {key} SET done = 1, result = ?, version = version + 1" + own + " AND done = 0")
	s.completed = sql("SELECT done FROM {key}" + own)
	s.completeTx = sql("UPDATE {key} SET done = 1, result = ?, version = version + 1" + own)
	s.release = sql("DELETE FROM {key}" + own + " AND done = 0")

	s.pruneMarks = sql(prune(d, "{inbox}", "seen_at < {now} - ?", "seen_at"))
	s.pruneKeys = sql(prune(d, "{key}", "expires_at <= {now} AND (done = 1 OR lease_until <= {now})", "expires_at"))
	return s
}

// skipLocked makes a SELECT lock its rows, without those that another transaction holds.
// SQLite has one writer at a time.
func skipLocked(d Dialect) string {
	if d == SQLite {
		return ""
	}
	return " FOR UPDATE SKIP LOCKED"
}

// prune returns a statement that deletes at most pruneBatch rows. Several may run at once.
func prune(d Dialect, table, where, order string) string {
	sel := " FROM " + table + " WHERE " + where + " ORDER BY " + order + " LIMIT " + pruneBatch
	switch d {
	case Postgres:
		return "DELETE FROM " + table + " WHERE ctid = ANY (ARRAY(SELECT ctid" + sel + skipLocked(d) + "))"
	case MySQL:
		return "DELETE" + sel
	default:
		return "DELETE FROM " + table + " WHERE rowid IN (SELECT rowid" + sel + ")"
	}
}
