// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package sqldialect_test proves internal/sqldialect on real databases.
package sqldialect_test

import (
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/internal/sqldialect"
)

var dialects = map[string]sqldialect.Dialect{
	"postgres": sqldialect.Postgres, "mysql": sqldialect.MySQL, "sqlite": sqldialect.SQLite,
}

var steps = []string{
	"CREATE TABLE block_thing (id BIGINT PRIMARY KEY, name VARCHAR(20) NOT NULL UNIQUE);\nCREATE INDEX block_thing_name ON block_thing (name, id);\n",
	"ALTER TABLE block_thing ADD COLUMN size BIGINT NOT NULL DEFAULT 7;",
	"CREATE TABLE block_other (id BIGINT PRIMARY KEY);",
}

func version(t *testing.T, db *sql.DB) (v int) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), "SELECT version FROM block_schema").Scan(&v); err != nil {
		t.Fatalf("read the version: %v", err)
	}
	return v
}

func exec(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func TestMigrateManyAtOnce(t *testing.T) {
	for _, name := range testdb.Names {
		t.Run(name, func(t *testing.T) {
			pools := testdb.OpenN(t, name, 8)
			var wg sync.WaitGroup
			errs := make([]error, 3*len(pools))
			for i := range errs {
				wg.Go(func() {
					errs[i] = sqldialect.Migrate(t.Context(), pools[i%len(pools)], dialects[name], "block", steps)
				})
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatalf("Migrate = %v", err)
			}
			if v := version(t, pools[0]); v != len(steps) {
				t.Errorf("version = %d, want %d", v, len(steps))
			}
			exec(t, pools[0], "INSERT INTO block_thing (id, name, size) VALUES (1, 'a', 2)")
			exec(t, pools[0], "INSERT INTO block_other (id) VALUES (1)")
		})
	}
}

func TestMigrateUpgrades(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, name string) {
		for n := 1; n <= len(steps); n++ {
			if err := sqldialect.Migrate(t.Context(), db, dialects[name], "block", steps[:n]); err != nil {
				t.Fatalf("Migrate to version %d = %v", n, err)
			}
			if v := version(t, db); v != n {
				t.Fatalf("version = %d, want %d", v, n)
			}
			exec(t, db, fmt.Sprintf("INSERT INTO block_thing (id, name) VALUES (%d, 'n%d')", n, n))
		}
		var sum int
		if err := db.QueryRowContext(t.Context(), "SELECT SUM(size) FROM block_thing").Scan(&sum); err != nil || sum != 21 {
			t.Errorf("sum of the added column = %d, %v, want 21: old rows get the default", sum, err)
		}
		// An old replica restarts beside the new schema.
		if err := sqldialect.Migrate(t.Context(), db, dialects[name], "block", steps[:1]); err != nil {
			t.Errorf("Migrate by an older version = %v, want nil", err)
		}
		if v := version(t, db); v != len(steps) {
			t.Errorf("version after an older Migrate = %d, want %d", v, len(steps))
		}
	})
}

func TestMigrateAfterAFailedStep(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, name string) {
		broken := []string{steps[0], "CREATE TABLE block_half (id BIGINT PRIMARY KEY);\nCREATE GARBAGE;"}
		err := sqldialect.Migrate(t.Context(), db, dialects[name], "block", broken)
		if err == nil || !strings.Contains(err.Error(), "migrate block: step 2:") {
			t.Fatalf("Migrate with a broken step = %v, want an error that names it", err)
		}
		fixed := []string{steps[0], "CREATE TABLE block_half (id BIGINT PRIMARY KEY);\nCREATE TABLE block_rest (id BIGINT PRIMARY KEY);"}
		if err := sqldialect.Migrate(t.Context(), db, dialects[name], "block", fixed); err != nil {
			t.Fatalf("Migrate with the fixed step = %v, want nil", err)
		}
		exec(t, db, "INSERT INTO block_half (id) VALUES (1)")
		exec(t, db, "INSERT INTO block_rest (id) VALUES (1)")
	})
}

func TestMigrateRefusesAStrangersTable(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, name string) {
		exec(t, db, "CREATE TABLE block_thing (x BIGINT PRIMARY KEY)")
		if err := sqldialect.Migrate(t.Context(), db, dialects[name], "block", steps); err == nil {
			t.Errorf("Migrate over a table that it did not make = nil, want an error")
		}
	})
}

func TestSchemaTextThenMigrate(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, name string) {
		d := dialects[name]
		for _, statement := range strings.Split(sqldialect.Schema(d, "block", steps[:2]), ";\n") {
			if strings.TrimSpace(statement) != "" {
				exec(t, db, statement)
			}
		}
		if err := sqldialect.Migrate(t.Context(), db, d, "block", steps); err != nil {
			t.Fatalf("Migrate after Schema's text = %v", err)
		}
		exec(t, db, "INSERT INTO block_other (id) VALUES (1)")
	})
}

func TestNowIsTheClock(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, name string) {
		var micros int64
		if err := db.QueryRowContext(t.Context(), "SELECT "+dialects[name].Now()).Scan(&micros); err != nil {
			t.Fatalf("SELECT Now = %v", err)
		}
		if off := time.Since(time.UnixMicro(micros)); math.Abs(off.Hours()) > 0.4 {
			t.Errorf("Now is %v away from this machine's clock", off)
		}
		if name != "mysql" {
			return
		}
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		var there int64
		if _, err := conn.ExecContext(t.Context(), "SET time_zone = '+09:00'"); err != nil {
			t.Fatal(err)
		}
		if err := conn.QueryRowContext(t.Context(), "SELECT "+dialects[name].Now()).Scan(&there); err != nil {
			t.Fatal(err)
		}
		if off := there - micros; off < 0 || off > 1e9 {
			t.Errorf("Now in another time zone is %d microseconds away, want it to be the same clock", off)
		}
	})
}

func TestErrorsAreRecognised(t *testing.T) {
	testdb.Each(t, func(t *testing.T, db *sql.DB, name string) {
		d := dialects[name]
		if err := sqldialect.Migrate(t.Context(), db, d, "block", steps); err != nil {
			t.Fatal(err)
		}
		exec(t, db, "INSERT INTO block_thing (id, name) VALUES (1, 'a')")
		_, err := db.ExecContext(t.Context(), "INSERT INTO block_thing (id, name) VALUES (1, 'b')")
		if !sqldialect.IsDuplicate(fmt.Errorf("wrapped: %w", err)) {
			t.Errorf("IsDuplicate(%v) for a primary key = false, want true", err)
		}
		_, err = db.ExecContext(t.Context(), "INSERT INTO block_thing (id, name) VALUES (2, 'a')")
		if !sqldialect.IsDuplicate(err) {
			t.Errorf("IsDuplicate(%v) for a unique key = false, want true", err)
		}
		_, err = db.ExecContext(t.Context(), "INSERT INTO block_thing (id) VALUES (3)")
		if err == nil || sqldialect.IsDuplicate(err) {
			t.Errorf("IsDuplicate(%v) for a missing value = true, want false", err)
		}
		res, err := db.ExecContext(t.Context(), "INSERT INTO block_thing (id, name) VALUES (1, 'z'), (9, 'z') "+d.OnConflictDoNothing("id"))
		if err != nil {
			t.Fatalf("insert with OnConflictDoNothing = %v", err)
		}
		if n, _ := res.RowsAffected(); n != 1 {
			t.Errorf("RowsAffected = %d, want 1: the row that is new", n)
		}
	})
}

func TestContentionIsRecognised(t *testing.T) {
	for _, name := range testdb.Names {
		t.Run(name, func(t *testing.T) {
			pools := testdb.OpenN(t, name, 2)
			exec(t, pools[0], "CREATE TABLE block_row (id BIGINT PRIMARY KEY, n BIGINT NOT NULL)")
			exec(t, pools[0], "INSERT INTO block_row (id, n) VALUES (1, 0)")
			tx, err := pools[0].BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if _, err := tx.ExecContext(t.Context(), "UPDATE block_row SET n = 1"); err != nil {
				t.Fatal(err)
			}
			conn, err := pools[1].Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			impatient := map[string]string{"sqlite": "PRAGMA busy_timeout = 10", "postgres": "SET lock_timeout = 10", "mysql": "SET innodb_lock_wait_timeout = 1"}
			if _, err := conn.ExecContext(t.Context(), impatient[name]); err != nil {
				t.Fatal(err)
			}
			_, err = conn.ExecContext(t.Context(), "UPDATE block_row SET n = 2")
			if !sqldialect.IsContention(fmt.Errorf("wrapped: %w", err)) {
				t.Errorf("IsContention(%v) = false, want true", err)
			}
			if sqldialect.IsDuplicate(err) {
				t.Errorf("IsDuplicate(%v) = true, want false", err)
			}
		})
	}
}
