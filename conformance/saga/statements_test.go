// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagatest"
)

// connectorOf opens the database of a test again.
func connectorOf(t *testing.T, db *sql.DB, dialect string) driver.Connector {
	t.Helper()
	name := databaseName(t, db, dialect)
	switch dialect {
	case "postgres":
		cfg, err := pgx.ParseConfig(os.Getenv("DOVETAIL_POSTGRES_DSN"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.RuntimeParams["search_path"] = name
		return stdlib.GetConnector(*cfg)
	case "mysql":
		cfg, err := mysql.ParseDSN(os.Getenv("DOVETAIL_MYSQL_DSN"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.DBName = name
		connector, err := mysql.NewConnector(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return connector
	}
	return &dsnConnector{"file:" + name + sqliteOptions, db.Driver()}
}

type dsnConnector struct {
	dsn    string
	driver driver.Driver
}

func (c *dsnConnector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.dsn) }
func (c *dsnConnector) Driver() driver.Driver                        { return c.driver }

// TestCrashAtEveryStatement cuts the connections of a node before and after each
// statement of a transfer that is done, and of one that its pivot refuses.
// DOVETAIL_SAGA_JOURNEYS=all cuts at each, else at some.
func TestCrashAtEveryStatement(t *testing.T) {
	stride := 9
	if os.Getenv("DOVETAIL_SAGA_JOURNEYS") == "all" {
		stride = 1
	}
	testdb.Each(t, func(t *testing.T, db *sql.DB, dialect string) {
		b, err := openBank(db, dialect)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.create(t.Context()); err != nil {
			t.Fatal(err)
		}
		crashes, started := 0, 0
		for _, kind := range []int{0, 4} {
			crashes += sagatest.Crash(t, sagatest.CrashSetup{
				Connector: connectorOf(t, db, dialect), Stride: stride,
				Pool: func(db *sql.DB) {
					if dialect == "sqlite" {
						db.SetMaxOpenConns(1)
					}
				},
				Store: func(db *sql.DB) (saga.Store, error) {
					b, err := openBank(db, dialect)
					return b.store, err
				},
				Engine: func(db *sql.DB, store saga.Store) (*saga.Engine, error) {
					b, err := openBank(db, dialect)
					if err != nil {
						return nil, err
					}
					return b.engine(store, saga.Config{Writers: 1, Drain: time.Millisecond})
				},
				Start: func(ctx context.Context, _ *sql.DB, e *saga.Engine, _ int) (string, error) {
					n := kind + kinds*started
					started++
					return fmt.Sprintf("t%05d", n), b.start(ctx, e, n, n+1)
				},
				Check: func(t testing.TB, _ *sql.DB, in saga.Instance) {
					if want := map[int]saga.Status{0: saga.Completed, 4: saga.Compensated}[kind]; in.Status != want {
						t.Errorf("%s is %v, want %v", in.ID, in.Status, want)
					}
				},
			})
		}
		b.audit(t)
		t.Logf("%d crashes of %d transfers", crashes, started)
	})
}
