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
			sagatest.RunStore(t, func(t *testing.T) sagatest.Setup {
				db := testdb.Open(t, d)
				return sagatest.Setup{Store: store(t, db, d), DB: db}
			})
		})
	}
}
