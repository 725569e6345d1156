// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package shredsql keeps the keys of package shred in PostgreSQL, MySQL or MariaDB, or
// SQLite.
//
//	keys, err := shredsql.New(db, shredsql.Postgres, shredsql.Config{})
//	...
//	err = keys.Migrate(ctx)
//	...
//	vault, err := shred.NewVault(keys, shred.Config{Masters: [][]byte{master}})
//
// Forget deletes the row of the key in the transaction that records it. Keep the keys in a
// database apart from the events, so that a restored backup of the events does not bring
// forgotten keys back. A pool of one connection is enough, if nothing is sealed while its
// connection is in a transaction.
package shredsql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/eventsource/shred"
	"github.com/dovetail-go/dovetail/internal/sqldialect"
)

// Dialect is the SQL that the database speaks.
type Dialect = sqldialect.Dialect

// The dialects.
const (
	// Postgres is PostgreSQL 12 or later.
	Postgres = sqldialect.Postgres
	// MySQL is MySQL 8.0 or MariaDB 10.6 and later.
	MySQL = sqldialect.MySQL
	// SQLite is SQLite 3.24 or later.
	SQLite = sqldialect.SQLite
)

// Config configures [Keys]. The zero value is a sound default.
type Config struct {
	// Prefix stands before the names of the tables, such as "billing_". Lower-case letters,
	// digits and underscores, at most 32.
	Prefix string
}

// Keys are keys in a SQL database. They may be used from many goroutines and processes.
type Keys struct {
	db      *sql.DB
	dialect Dialect
	cfg     Config
	// the tables
	key, forgotten string
}

var _ shred.Keys = (*Keys)(nil)

// New returns keys on db. Its tables must exist before they are used: see [Keys.Migrate]
// and [Schema].
func New(db *sql.DB, d Dialect, cfg Config) (*Keys, error) {
	if db == nil {
		return nil, errors.New("shredsql: DB is nil, want a database")
	}
	return newKeys(db, d, cfg)
}

func newKeys(db *sql.DB, d Dialect, cfg Config) (*Keys, error) {
	if !d.Valid() {
		return nil, fmt.Errorf("shredsql: Dialect is %v, want Postgres, MySQL or SQLite", d)
	}
	if err := sqldialect.CheckName(cfg.Prefix); err != nil {
		return nil, fmt.Errorf("shredsql: Config.Prefix %w", err)
	}
	return &Keys{db: db, dialect: d, cfg: cfg, key: cfg.Prefix + "shred_key", forgotten: cfg.Prefix + "shred_forgotten"}, nil
}

// Schema returns the tables with the zero [Config] as SQL text, for a migration tool.
func Schema(d Dialect) string {
	k, err := newKeys(nil, d, Config{})
	if err != nil {
		return ""
	}
	return k.Schema()
}

// Schema returns the tables as SQL text, for a migration tool.
func (k *Keys) Schema() string {
	return sqldialect.Schema(k.dialect, k.cfg.Prefix+"shred", k.steps())
}

// Migrate creates the tables, or brings those of an older version up to date. It may run at
// every start of many replicas at once.
func (k *Keys) Migrate(ctx context.Context) error {
	if err := sqldialect.Migrate(ctx, k.db, k.dialect, k.cfg.Prefix+"shred", k.steps()); err != nil {
		return fmt.Errorf("shredsql: %w", err)
	}
	return nil
}

// steps are the versions of the tables, which are never changed once released.
func (k *Keys) steps() []string {
	types := map[Dialect][]string{
		Postgres: {"{name}", "TEXT", "{text}", "TEXT", "{bytes}", "BYTEA"},
		MySQL:    {"{name}", "VARCHAR(255)", "{text}", "MEDIUMTEXT", "{bytes}", "VARBINARY(255)"},
		SQLite:   {"{name}", "TEXT", "{text}", "TEXT", "{bytes}", "BLOB"},
	}[k.dialect]
	return []string{strings.NewReplacer(append(types, "{key}", k.key, "{forgotten}", k.forgotten, "{o}", k.dialect.TableOptions())...).Replace(
		`CREATE TABLE {key} (
	subject {name} NOT NULL PRIMARY KEY,
	key_id {name} NOT NULL,
	secret {bytes} NOT NULL,
	created BIGINT NOT NULL
){o};
CREATE TABLE {forgotten} (
	key_id {name} NOT NULL PRIMARY KEY,
	subject {name} NOT NULL,
	reason {text} NOT NULL,
	forgotten BIGINT NOT NULL
){o};
`)}
}

// Create implements [shred.Keys].
func (k *Keys) Create(ctx context.Context, n shred.Key) (shred.Key, error) {
	for {
		_, err := k.db.ExecContext(ctx, k.dialect.Rebind("INSERT INTO "+k.key+" (subject, key_id, secret, created) VALUES (?, ?, ?, "+k.dialect.Now()+") "+
			k.dialect.OnConflictDoNothing("subject")), n.Subject, n.ID, n.Secret)
		if err != nil {
			return shred.Key{}, err
		}
		// Another process may have been first, or have forgotten the subject meanwhile.
		if found, ok, err := k.Find(ctx, n.Subject); ok || err != nil {
			return found, err
		}
	}
}

// Find implements [shred.Keys].
func (k *Keys) Find(ctx context.Context, subject string) (shred.Key, bool, error) {
	found := shred.Key{Subject: subject}
	err := k.db.QueryRowContext(ctx, k.dialect.Rebind("SELECT key_id, secret FROM "+k.key+" WHERE subject = ?"), subject).Scan(&found.ID, &found.Secret)
	if errors.Is(err, sql.ErrNoRows) {
		return shred.Key{}, false, nil
	}
	return found, err == nil, err
}

// Forget implements [shred.Keys].
func (k *Keys) Forget(ctx context.Context, subject, reason string) (bool, error) {
	tx, err := k.db.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer tx.Rollback()
	because := "?"
	if k.dialect == Postgres {
		because = "CAST(? AS text)" // a type that it cannot infer in a select list
	}
	insert := "INSERT INTO " + k.forgotten + " (key_id, subject, reason, forgotten) SELECT key_id, subject, " + because + ", " + k.dialect.Now() +
		" FROM " + k.key + " WHERE subject = ?"
	if _, err := tx.ExecContext(ctx, k.dialect.Rebind(insert), reason, subject); err != nil {
		if sqldialect.IsDuplicate(err) { // somebody else has just done it
			return false, nil
		}
		return false, err
	}
	res, err := tx.ExecContext(ctx, k.dialect.Rebind("DELETE FROM "+k.key+" WHERE subject = ?"), subject)
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	if err != nil {
		return false, err
	}
	return n > 0, tx.Commit()
}

// Forgotten implements [shred.Keys].
func (k *Keys) Forgotten(ctx context.Context) (list []shred.Forgotten, err error) {
	rows, err := k.db.QueryContext(ctx, "SELECT subject, key_id, reason, forgotten FROM "+k.forgotten+" ORDER BY forgotten, key_id")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var f shred.Forgotten
		var at int64
		if err := rows.Scan(&f.Subject, &f.ID, &f.Reason, &at); err != nil {
			return nil, err
		}
		f.At = time.UnixMicro(at).UTC()
		list = append(list, f)
	}
	return list, rows.Err()
}
