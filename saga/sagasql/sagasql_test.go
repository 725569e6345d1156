// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql_test

import (
	"database/sql"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/saga/sagasql"
)

func TestNewRefuses(t *testing.T) {
	db := new(sql.DB)
	for _, c := range []struct {
		db      *sql.DB
		dialect sagasql.Dialect
		prefix  string
		want    string
	}{
		{nil, sagasql.SQLite, "", "sagasql: db is nil"},
		{db, 0, "", "sagasql: dialect is sqldialect.Dialect(0), want Postgres, MySQL or SQLite"},
		{db, sagasql.SQLite, "a-", `sagasql: Config.Prefix is "a-", want lower-case letters`},
		{db, sagasql.SQLite, strings.Repeat("a", 33), "sagasql: Config.Prefix has 33 bytes, want at most 32"},
	} {
		if s, err := sagasql.New(c.db, c.dialect, sagasql.Config{Prefix: c.prefix}); s != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("New(%v, %q) = %v, %v, want %q", c.dialect, c.prefix, s, err, c.want)
		}
	}
}

func TestSchema(t *testing.T) {
	for _, d := range []sagasql.Dialect{sagasql.Postgres, sagasql.MySQL, sagasql.SQLite} {
		s, err := sagasql.New(new(sql.DB), d, sagasql.Config{Prefix: "billing_"})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Schema(); !strings.Contains(got, "CREATE TABLE billing_saga_instance (") || strings.ReplaceAll(got, "billing_", "") != sagasql.Schema(d) {
			t.Errorf("%v: Schema with a prefix =\n%s\nand without\n%s", d, got, sagasql.Schema(d))
		}
	}
	if got := sagasql.Schema(0); got != "" {
		t.Errorf("Schema(0) = %q, want nothing", got)
	}
}
