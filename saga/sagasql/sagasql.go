// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagasql

import (
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/dovetail-go/dovetail/internal/sqldialect"
	"github.com/dovetail-go/dovetail/saga"
)

// Dialect is the SQL that the database speaks.
type Dialect = sqldialect.Dialect

// The dialects.
const (
	// Postgres is PostgreSQL 12 or later.
	Postgres = sqldialect.Postgres
	// MySQL is MySQL 8.0 or MariaDB 10.6 and later.
	MySQL = sqldialect.MySQL
	// SQLite is SQLite 3.35 or later.
	SQLite = sqldialect.SQLite
)

// Config tunes a [Store]. The zero value is a sound default.
type Config struct {
	// Prefix stands before the names of the tables, such as "billing_", where several
	// services share a database. Lower-case letters, digits and underscores, at most 32.
	Prefix string
}

// block begins the names of the tables.
const block = "saga"

// Store is a saga.Store in an SQL database.
type Store struct {
	db      *sql.DB
	dialect Dialect
	block   string // with the prefix
	texts   textCache
	stmts   stmtCache
	// swept is when the nodes that died long ago were last deleted.
	swept atomic.Int64
}

var _ saga.Store = (*Store)(nil)

// New returns a store on db. Its tables are made by [Store.Migrate] or from [Store.Schema].
// Start accepts transactions of this database only.
func New(db *sql.DB, d Dialect, cfg Config) (*Store, error) {
	if db == nil {
		return nil, errors.New("sagasql: db is nil")
	}
	if !d.Valid() {
		return nil, fmt.Errorf("sagasql: dialect is %v, want Postgres, MySQL or SQLite", d)
	}
	if err := sqldialect.CheckName(cfg.Prefix); err != nil {
		return nil, fmt.Errorf("sagasql: Config.Prefix %w", err)
	}
	return &Store{db: db, dialect: d, block: cfg.Prefix + block}, nil
}
