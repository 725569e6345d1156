// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sqldialect

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestRebind(t *testing.T) {
	for query, want := range map[string]string{
		"SELECT 1":                        "SELECT 1",
		"a = ? AND b IN (?, ?)":           "a = $1 AND b IN ($2, $3)",
		"a = '?' AND b = ?":               "a = '?' AND b = $1",
		"a = 'it''s ?' AND b = ?":         "a = 'it''s ?' AND b = $1",
		`"?" = ?`:                         `"?" = $1`,
		"? -- why?\n, ?":                  "$1 -- why?\n, $2",
		"? /* why? */ ?":                  "$1 /* why? */ $2",
		"? -- the end?":                   "$1 -- the end?",
		"? 'open ?":                       "$1 'open ?",
		"(?, ?, ?, ?, ?, ?, ?, ?, ?), (?": "($1, $2, $3, $4, $5, $6, $7, $8, $9), ($10",
	} {
		if got := Postgres.Rebind(query); got != want {
			t.Errorf("Postgres.Rebind(%q) = %q, want %q", query, got, want)
		}
		for _, d := range []Dialect{MySQL, SQLite} {
			if got := d.Rebind(query); got != query {
				t.Errorf("%v.Rebind(%q) = %q, want it unchanged", d, query, got)
			}
		}
	}
}

func TestValues(t *testing.T) {
	for want, got := range map[string]string{
		"(?)":                  Values(1, 1),
		"(?, ?, ?), (?, ?, ?)": Values(2, 3),
		"(?), (?), (?)":        Values(3, 1),
	} {
		if got != want {
			t.Errorf("Values = %q, want %q", got, want)
		}
	}
}

func TestOnConflictDoNothing(t *testing.T) {
	for d, want := range map[Dialect]string{
		Postgres: "ON CONFLICT (a, b) DO NOTHING", SQLite: "ON CONFLICT (a, b) DO NOTHING", MySQL: "ON DUPLICATE KEY UPDATE a = a",
	} {
		if got := d.OnConflictDoNothing("a, b"); got != want {
			t.Errorf("%v.OnConflictDoNothing = %q, want %q", d, got, want)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"", "a", "billing_", "_x1"} {
		if err := CheckName(good); err != nil {
			t.Errorf("CheckName(%q) = %v, want nil", good, err)
		}
	}
	for _, bad := range []string{"1a", "A", "a-b", "a b", "a;", `a"`, "ä", strings.Repeat("a", 33)} {
		if err := CheckName(bad); err == nil {
			t.Errorf("CheckName(%q) = nil, want an error", bad)
		}
	}
}

func TestDialect(t *testing.T) {
	for d, want := range map[Dialect]string{Postgres: "postgres", MySQL: "mysql", SQLite: "sqlite", 0: "sqldialect.Dialect(0)", 9: "sqldialect.Dialect(9)"} {
		if got := d.String(); got != want {
			t.Errorf("String = %q, want %q", got, want)
		}
		if got := d.Valid(); got != (d > 0 && d < 9) {
			t.Errorf("%v.Valid = %v", d, got)
		}
	}
}

type stated string

func (s stated) Error() string    { return "pg: " + string(s) }
func (s stated) SQLState() string { return string(s) }

type coded int

func (c coded) Error() string { return "sqlite" }
func (c coded) Code() int     { return int(c) }

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		err                   error
		contention, duplicate bool
	}{
		{err: nil},
		{err: errors.New("Error in the kitchen")},
		{stated("40001"), true, false},
		{stated("40P01"), true, false},
		{stated("55P03"), true, false},
		{stated("23505"), false, true},
		{stated("23503"), false, false},
		{errors.New("Error 1213 (40001): Deadlock found when trying to get lock"), true, false},
		{errors.New("Error 1205 (HY000): Lock wait timeout exceeded"), true, false},
		{errors.New("Error 1062 (23000): Duplicate entry '1' for key 'PRIMARY'"), false, true},
		{errors.New("Error 1146 (42S02): Table 'x' doesn't exist"), false, false},
		{coded(5), true, false},
		{coded(517), true, false}, // SQLITE_BUSY_SNAPSHOT
		{coded(2067), false, true},
		{coded(1555), false, true},
		{coded(787), false, false},
		{errors.New("database is locked"), true, false},
		{errors.New("UNIQUE constraint failed: t.id"), false, true},
	} {
		for _, err := range []error{c.err, wrap(c.err)} {
			if got := IsContention(err); got != c.contention {
				t.Errorf("IsContention(%v) = %v, want %v", err, got, c.contention)
			}
			if got := IsDuplicate(err); got != c.duplicate {
				t.Errorf("IsDuplicate(%v) = %v, want %v", err, got, c.duplicate)
			}
		}
	}
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("store: %w", err)
}

func TestSchema(t *testing.T) {
	text := Schema(MySQL, "x", []string{"CREATE TABLE a (b INTEGER);\nCREATE TABLE c (d INTEGER)", "ALTER TABLE a ADD e INTEGER;\n"})
	for _, want := range []string{"x_schema", "CREATE TABLE a (b INTEGER);\n", "CREATE TABLE c (d INTEGER);\n", "ALTER TABLE a ADD e INTEGER;\n", "VALUES (1, 2, 2);", "utf8mb4"} {
		if !strings.Contains(text, want) {
			t.Errorf("Schema has no %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, ";;") {
		t.Errorf("Schema has an empty statement:\n%s", text)
	}
}
