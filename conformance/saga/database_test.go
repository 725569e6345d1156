// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"database/sql"
	"database/sql/driver"
	"os"
	"strconv"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"modernc.org/sqlite"
)

// databaseName returns what openAgain needs to open the same database.
func databaseName(t *testing.T, db *sql.DB, dialect string) (name string) {
	t.Helper()
	query := map[string]string{
		"sqlite": "SELECT file FROM pragma_database_list WHERE name = 'main'", "postgres": "SELECT current_schema()", "mysql": "SELECT DATABASE()",
	}[dialect]
	if err := db.QueryRowContext(t.Context(), query).Scan(&name); err != nil {
		t.Fatal(err)
	}
	return name
}

const sqliteOptions = "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=foreign_keys(1)&_txlock=immediate"

func connectorTo(dialect, name string) (driver.Connector, error) {
	switch dialect {
	case "postgres":
		cfg, err := pgx.ParseConfig(os.Getenv("DOVETAIL_POSTGRES_DSN"))
		if err != nil {
			return nil, err
		}
		cfg.RuntimeParams["search_path"] = name
		return stdlib.GetConnector(*cfg), nil
	case "mysql":
		cfg, err := mysql.ParseDSN(os.Getenv("DOVETAIL_MYSQL_DSN"))
		if err != nil {
			return nil, err
		}
		cfg.DBName = name
		return mysql.NewConnector(cfg)
	}
	return sqlite.NewConnector("file:" + name + sqliteOptions)
}

// connectorOf opens the database of a test again.
func connectorOf(t *testing.T, db *sql.DB, dialect string) driver.Connector {
	t.Helper()
	c, err := connectorTo(dialect, databaseName(t, db, dialect))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// openAgain opens a database in another process.
func openAgain(dialect, name string) (*sql.DB, error) {
	c, err := connectorTo(dialect, name)
	if err != nil {
		return nil, err
	}
	return pool(c, dialect), nil
}

// pool is as large as the database allows.
func pool(c driver.Connector, dialect string) *sql.DB {
	db := sql.OpenDB(c)
	if dialect == "sqlite" {
		db.SetMaxOpenConns(1)
	}
	return db
}

// size returns the number that an environment variable sets, or the one of a short run.
func size(t *testing.T, name string, short int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return short
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// stride returns how many places lie from one cut to the next: short, or 1 with
// DOVETAIL_SAGA_JOURNEYS=all.
func stride(short int) int {
	if os.Getenv("DOVETAIL_SAGA_JOURNEYS") == "all" {
		return 1
	}
	return short
}
