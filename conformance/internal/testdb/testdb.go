// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package testdb opens a fresh, empty database for a test and drops it afterwards.
//
// SQLite needs nothing. PostgreSQL and MariaDB (or MySQL) are used where the
// environment names them, as `eval "$(scripts/services env)"` does after
// `scripts/services up postgres mariadb`:
//
//	DOVETAIL_POSTGRES_DSN  for example postgres://user:password@127.0.0.1:5432/postgres
//	DOVETAIL_MYSQL_DSN     for example user:password@tcp(127.0.0.1:3306)/
//
// Without them the test is skipped and says so; with DOVETAIL_REQUIRE_SERVICES=1 it fails.
package testdb

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// Names are the databases that [Each] runs a test against, by the name of their dialect.
var Names = []string{"sqlite", "postgres", "mysql"}

// Each runs fn as one subtest per database, each with a fresh one.
func Each(t *testing.T, fn func(t *testing.T, db *sql.DB, d string)) {
	t.Helper()
	for _, name := range Names {
		t.Run(name, func(t *testing.T) { fn(t, Open(t, name), name) })
	}
}

// Open returns a pool on a fresh database of the named kind: "sqlite", "postgres" or
// "mysql". SQLite's pool has one connection.
func Open(t testing.TB, name string) *sql.DB {
	t.Helper()
	return OpenN(t, name, 1)[0]
}

// OpenN returns n pools on one fresh database, as n processes would have.
func OpenN(t testing.TB, name string, n int) []*sql.DB {
	t.Helper()
	var open func() *sql.DB
	switch name {
	case "sqlite":
		open = sqlite(t)
	case "postgres":
		open = postgres(t)
	case "mysql":
		open = mariadb(t)
	default:
		t.Fatalf("testdb: unknown database %q, want sqlite, postgres or mysql", name)
	}
	pools := make([]*sql.DB, n)
	for i := range pools {
		pools[i] = open()
		t.Cleanup(func() { pools[i].Close() })
	}
	return pools
}

func sqlite(t testing.TB) func() *sql.DB {
	path := filepath.Join(t.TempDir(), "test.db")
	return func() *sql.DB {
		db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=foreign_keys(1)&_txlock=immediate")
		if err != nil {
			t.Fatalf("testdb: open sqlite: %v", err)
		}
		db.SetMaxOpenConns(1)
		return db
	}
}

// postgres makes a schema of its own: a hundred times faster than a database.
func postgres(t testing.TB) func() *sql.DB {
	dsn := need(t, "DOVETAIL_POSTGRES_DSN", "postgres")
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatalf("testdb: DOVETAIL_POSTGRES_DSN: %v", err)
	}
	admin := stdlib.OpenDB(*cfg)
	schema := "dovetail_test_" + random()
	exec(t, admin, "CREATE SCHEMA "+schema)
	t.Cleanup(func() {
		exec(t, admin, "DROP SCHEMA "+schema+" CASCADE")
		admin.Close()
	})
	cfg = cfg.Copy()
	cfg.RuntimeParams["search_path"] = schema
	return func() *sql.DB { return stdlib.OpenDB(*cfg) }
}

func mariadb(t testing.TB) func() *sql.DB {
	dsn := need(t, "DOVETAIL_MYSQL_DSN", "mariadb")
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatalf("testdb: DOVETAIL_MYSQL_DSN: %v", err)
	}
	open := func(cfg *mysql.Config) *sql.DB {
		connector, err := mysql.NewConnector(cfg)
		if err != nil {
			t.Fatalf("testdb: DOVETAIL_MYSQL_DSN: %v", err)
		}
		return sql.OpenDB(connector)
	}
	admin := open(cfg)
	database := "dovetail_test_" + random()
	exec(t, admin, "CREATE DATABASE "+database)
	t.Cleanup(func() {
		exec(t, admin, "DROP DATABASE "+database)
		admin.Close()
	})
	fresh := cfg.Clone()
	fresh.DBName = database
	return func() *sql.DB { return open(fresh) }
}

func need(t testing.TB, env, service string) string {
	t.Helper()
	dsn := os.Getenv(env)
	if dsn != "" {
		return dsn
	}
	const how = "%s is not set: run scripts/services up %s && eval \"$(scripts/services env)\""
	if os.Getenv("DOVETAIL_REQUIRE_SERVICES") == "1" {
		t.Fatalf(how, env, service)
	}
	t.Skipf(how, env, service)
	return ""
}

// exec outlives the test's context, because it also runs as clean-up.
func exec(t testing.TB, db *sql.DB, query string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	if _, err := db.ExecContext(ctx, query); err != nil {
		t.Errorf("testdb: %s: %v", query, err)
	}
}

func random() string {
	b := make([]byte, 6)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}
