// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sqldialect

import (
	"errors"
	"strings"
)

// IsContention reports whether err says that the database refused because others were
// at the same rows or file: a serialization failure, a deadlock, a lock timeout, or
// SQLite's "busy". The transaction did not happen; run again from its start it may
// succeed.
func IsContention(err error) bool {
	if err == nil {
		return false
	}
	switch sqlState(err) {
	case "40001", "40P01", "55P03":
		return true
	}
	switch mysqlNumber(err) {
	case "1205", "1213", "3572", "1020": // lock wait timeout, deadlock, NOWAIT, record changed since last read
		return true
	}
	switch sqliteCode(err) & 0xff {
	case 5, 6: // SQLITE_BUSY, SQLITE_LOCKED
		return true
	}
	text := err.Error()
	return strings.Contains(text, "database is locked") || strings.Contains(text, "database table is locked")
}

// IsDuplicate reports whether err says that a unique key exists already.
func IsDuplicate(err error) bool {
	if err == nil {
		return false
	}
	if sqlState(err) == "23505" || mysqlNumber(err) == "1062" {
		return true
	}
	switch sqliteCode(err) {
	case 1555, 2067: // SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE
		return true
	}
	return strings.Contains(err.Error(), "UNIQUE constraint failed")
}

// sqlState returns the SQLSTATE of a PostgreSQL driver's error (pgx and lib/pq offer
// this method), or "".
func sqlState(err error) string {
	var e interface{ SQLState() string }
	if errors.As(err, &e) {
		return e.SQLState()
	}
	return ""
}

// sqliteCode returns the extended result code of modernc.org/sqlite's error, or 0.
// The other drivers' errors are recognised by their text.
func sqliteCode(err error) int {
	var e interface{ Code() int }
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

// mysqlNumber returns the number of go-sql-driver's error, or "". The number is an
// exported field, which no interface can reach, but the text starts with it:
// "Error 1062 (23000): Duplicate entry". Wrapping may have put words before it.
func mysqlNumber(err error) string {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if rest, ok := strings.CutPrefix(e.Error(), "Error "); ok {
			number, _, _ := strings.Cut(rest, ":")
			number, _, _ = strings.Cut(number, " ")
			return number
		}
	}
	return ""
}
