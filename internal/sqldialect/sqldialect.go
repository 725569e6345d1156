// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package sqldialect holds what differs between PostgreSQL, MySQL or MariaDB, and
// SQLite, so that every block that keeps state in SQL writes its statements once.
//
// Statements are written with ? placeholders and pass through [Dialect.Rebind].
// Times are BIGINT microseconds since 1970 taken from the database's own clock by
// [Dialect.Now]: SQLite has no time type, and a number has no time zone. Drivers
// are never imported; errors are recognised by what they offer ([IsContention],
// [IsDuplicate]).
package sqldialect

import (
	"fmt"
	"strconv"
	"strings"
)

// Dialect is the SQL that a database speaks.
type Dialect uint8

const (
	// Postgres is PostgreSQL 12 or later.
	Postgres Dialect = iota + 1
	// MySQL is MySQL 8.0 or MariaDB 10.6 and later, with InnoDB tables.
	MySQL
	// SQLite is SQLite 3.24 or later.
	SQLite
)

// String returns "postgres", "mysql" or "sqlite".
func (d Dialect) String() string {
	switch d {
	case Postgres:
		return "postgres"
	case MySQL:
		return "mysql"
	case SQLite:
		return "sqlite"
	}
	return fmt.Sprintf("sqldialect.Dialect(%d)", uint8(d))
}

// Valid reports whether d is one of the dialects above.
func (d Dialect) Valid() bool { return d >= Postgres && d <= SQLite }

// Rebind returns query with its ? placeholders in the form that the dialect wants:
// $1, $2 and so on for PostgreSQL, unchanged for the others. Question marks inside
// quotes and comments are left alone.
func (d Dialect) Rebind(query string) string {
	if d != Postgres || !strings.Contains(query, "?") {
		return query
	}
	var b strings.Builder
	b.Grow(len(query) + 16)
	n := 0
	for i := 0; i < len(query); i++ {
		end := i
		switch c := query[i]; {
		case c == '?':
			n++
			b.WriteByte('$')
			b.WriteString(strconv.Itoa(n))
			continue
		case c == '\'' || c == '"':
			end = skipTo(query, i+1, string(c))
		case strings.HasPrefix(query[i:], "--"):
			end = skipTo(query, i, "\n")
		case strings.HasPrefix(query[i:], "/*"):
			end = skipTo(query, i, "*/")
		}
		b.WriteString(query[i : end+1])
		i = end
	}
	return b.String()
}

// skipTo returns the index of the last byte of the first stop at or after from,
// or of the last byte of s.
func skipTo(s string, from int, stop string) int {
	if j := strings.Index(s[from:], stop); j >= 0 {
		return from + j + len(stop) - 1
	}
	return len(s) - 1
}

// Values returns the placeholders of a multi-row insert: Values(2, 3) is
// "(?, ?, ?), (?, ?, ?)".
func Values(rows, columns int) string {
	row := "(" + strings.TrimSuffix(strings.Repeat("?, ", columns), ", ") + ")"
	return strings.TrimSuffix(strings.Repeat(row+", ", rows), ", ")
}

// Now returns an expression for the database's clock in microseconds since 1970 as
// a BIGINT. It is the time at which the current statement started, so it moves on
// inside a long transaction but is one value within a statement, and an index can
// serve a comparison with it. SQLite's clock has a resolution of a millisecond.
func (d Dialect) Now() string {
	switch d {
	case Postgres:
		return "CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS bigint)"
	case MySQL:
		// Not UNIX_TIMESTAMP(NOW(6)): that goes through the session's time zone and
		// jumps by an hour when summer time ends.
		return "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6))"
	default:
		return "(CAST(strftime('%s', 'now') AS INTEGER) * 1000000 + CAST(substr(strftime('%f', 'now'), 4) AS INTEGER) * 1000)"
	}
}

// OnConflictDoNothing returns the clause that makes an INSERT skip a row whose
// unique key exists, without an error (which would end a PostgreSQL transaction)
// and without hiding other errors (as MySQL's INSERT IGNORE does). The columns of
// the unique key are comma-separated. RowsAffected then counts the rows that are new.
//
// On MySQL a connection opened with clientFoundRows=true counts the skipped rows too.
func (d Dialect) OnConflictDoNothing(columns string) string {
	if d == MySQL {
		first, _, _ := strings.Cut(columns, ",")
		first = strings.TrimSpace(first)
		return "ON DUPLICATE KEY UPDATE " + first + " = " + first
	}
	return "ON CONFLICT (" + columns + ") DO NOTHING"
}

// CheckName returns an error unless name can stand unquoted as a part of a table's
// name in every dialect: lower-case letters, digits and underscores, not starting
// with a digit, at most 32 bytes. The empty name is fine.
func CheckName(name string) error {
	if len(name) > 32 {
		return fmt.Errorf("has %d bytes, want at most 32", len(name))
	}
	for i, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z' || c == '_':
		case c >= '0' && c <= '9' && i > 0:
		default:
			return fmt.Errorf("is %q, want lower-case letters, digits and underscores, not starting with a digit", name)
		}
	}
	return nil
}
