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
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	_ "modernc.org/sqlite"             // the driver "sqlite"
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
	driver, dsn := fresh(t, name)
	pools := make([]*sql.DB, n)
	for i := range pools {
		pools[i] = open(t, driver, dsn)
		if name == "sqlite" {
			pools[i].SetMaxOpenConns(1)
		}
	}
	return pools
}

// OpenDSN is Open with the data source name that other processes can open with the
// drivers "sqlite", "pgx" and "mysql".
func OpenDSN(t testing.TB, name string) (db *sql.DB, dsn string) {
	t.Helper()
	driver, dsn := fresh(t, name)
	db = open(t, driver, dsn)
	if name == "sqlite" {
		db.SetMaxOpenConns(1)
	}
	return db, dsn
}

func open(t testing.TB, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatalf("testdb: open %s: %v", driver, err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// fresh makes a database and returns how to open it.
func fresh(t testing.TB, name string) (driver, dsn string) {
	t.Helper()
	switch name {
	case "sqlite":
		return "sqlite", "file:" + filepath.Join(t.TempDir(), "test.db") +
			"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=foreign_keys(1)&_txlock=immediate"
	case "postgres":
		return "pgx", postgres(t)
	case "mysql":
		return "mysql", mariadb(t)
	}
	t.Fatalf("testdb: unknown database %q, want sqlite, postgres or mysql", name)
	return "", ""
}

// postgres makes a schema of its own: a hundred times faster than a database.
func postgres(t testing.TB) string {
	dsn := need(t, "DOVETAIL_POSTGRES_DSN", "postgres")
	admin := open(t, "pgx", dsn)
	schema := "dovetail_test_" + random()
	exec(t, admin, "CREATE SCHEMA "+schema)
	t.Cleanup(func() { exec(t, admin, "DROP SCHEMA "+schema+" CASCADE") })
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme == "" {
		t.Fatal("testdb: DOVETAIL_POSTGRES_DSN is no URL, want postgres://...")
	}
	query := u.Query()
	query.Set("search_path", schema)
	u.RawQuery = query.Encode()
	return u.String()
}

func mariadb(t testing.TB) string {
	dsn := need(t, "DOVETAIL_MYSQL_DSN", "mariadb")
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatalf("testdb: DOVETAIL_MYSQL_DSN: %v", err)
	}
	admin := open(t, "mysql", dsn)
	cfg.DBName = "dovetail_test_" + random()
	exec(t, admin, "CREATE DATABASE "+cfg.DBName)
	t.Cleanup(func() { exec(t, admin, "DROP DATABASE "+cfg.DBName) })
	return cfg.FormatDSN()
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
