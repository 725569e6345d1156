// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"database/sql"
	"testing"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/saga/sagasql"
	"github.com/dovetail-go/dovetail/saga/sagatest"
)

var dialects = map[string]sagasql.Dialect{
	"postgres": sagasql.Postgres, "mysql": sagasql.MySQL, "sqlite": sagasql.SQLite,
}

// store returns a store with its tables.
func store(t testing.TB, db *sql.DB, d string) *sagasql.Store {
	t.Helper()
	s, err := sagasql.New(db, dialects[d], sagasql.Config{})
	if err != nil {
		t.Fatalf("New = %v", err)
	}
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatalf("Migrate = %v", err)
	}
	return s
}

func TestStore(t *testing.T) {
	for _, d := range testdb.Names {
		t.Run(d, func(t *testing.T) {
			// One database for all: to make tables takes longer than most checks.
			db := testdb.Open(t, d)
			sagatest.RunStore(t, func(t *testing.T) sagatest.Setup {
				s := store(t, db, d)
				for _, table := range []string{"instance", "history", "node", "signal", "lock", "lock_wait", "archive", "archive_history"} {
					if _, err := db.ExecContext(t.Context(), "DELETE FROM saga_"+table); err != nil {
						t.Fatal(err)
					}
				}
				return sagatest.Setup{Store: s, DB: db}
			})
		})
	}
}
