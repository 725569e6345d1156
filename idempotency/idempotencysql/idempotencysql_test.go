// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotencysql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
)

// noDB is a pool that never reaches a database. The store is held to its contract on
// real ones in the conformance module.
type noDB struct{}

func (noDB) Connect(context.Context) (driver.Conn, error) { return nil, errors.New("no database") }
func (noDB) Driver() driver.Driver                        { return nil }

func TestNewNamesWhatIsWrong(t *testing.T) {
	db := sql.OpenDB(noDB{})
	defer db.Close()
	for want, fn := range map[string]func() (*idempotencysql.Store, error){
		"db is nil": func() (*idempotencysql.Store, error) {
			return idempotencysql.New(nil, idempotencysql.SQLite, idempotencysql.Config{})
		},
		"dialect is sqldialect.Dialect(0), want": func() (*idempotencysql.Store, error) {
			return idempotencysql.New(db, 0, idempotencysql.Config{})
		},
		`Config.Prefix is "Billing"`: func() (*idempotencysql.Store, error) {
			return idempotencysql.New(db, idempotencysql.SQLite, idempotencysql.Config{Prefix: "Billing"})
		},
		"Config.Lease is -1ns": func() (*idempotencysql.Store, error) {
			return idempotencysql.New(db, idempotencysql.SQLite, idempotencysql.Config{Lease: -1})
		},
		"Config.Retention is -1ns": func() (*idempotencysql.Store, error) {
			return idempotencysql.New(db, idempotencysql.SQLite, idempotencysql.Config{Retention: -1})
		},
	} {
		s, err := fn()
		if s != nil || err == nil || !strings.HasPrefix(err.Error(), "idempotencysql: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, %v, want the error %q", s, err, want)
		}
	}
}

func TestSchemaIsInTheDialectsWords(t *testing.T) {
	for d, want := range map[idempotencysql.Dialect][]string{
		idempotencysql.Postgres: {`TEXT COLLATE "C"`, "BYTEA"},
		idempotencysql.MySQL:    {"VARBINARY(255)", "LONGBLOB", "ENGINE=InnoDB"},
		idempotencysql.SQLite:   {"TEXT", "BLOB"},
	} {
		text := idempotencysql.Schema(d)
		for _, w := range append(want, "CREATE TABLE idempotency_inbox", "CREATE TABLE idempotency_key", "idempotency_schema") {
			if !strings.Contains(text, w) {
				t.Errorf("Schema(%v) has no %q", d, w)
			}
		}
		if strings.ContainsAny(text, "{}") {
			t.Errorf("Schema(%v) has a word that was not replaced:\n%s", d, text)
		}
	}
}

func TestPruneNeedsAnAge(t *testing.T) {
	db := sql.OpenDB(noDB{})
	defer db.Close()
	s, err := idempotencysql.New(db, idempotencysql.SQLite, idempotencysql.Config{Prefix: "billing_"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prune(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "olderThan is 0s") {
		t.Errorf("Prune = %v, want an error that names olderThan", err)
	}
	if text := s.Schema(); !strings.Contains(text, "CREATE TABLE billing_idempotency_inbox") {
		t.Errorf("Schema with a prefix:\n%s", text)
	}
}
