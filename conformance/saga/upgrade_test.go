// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagasql"
)

// A database of version 2, made by the text of that version and with a saga in it, is
// brought up to date by several stores at once. The saga runs on, and so does one that a
// replica of version 2 starts afterwards.
func TestUpgrade(t *testing.T) {
	for _, dialect := range testdb.Names {
		t.Run(dialect, func(t *testing.T) {
			db, dsn := testdb.OpenDSN(t, dialect)
			exec1 := func(statement string) {
				t.Helper()
				if _, err := db.ExecContext(t.Context(), statement); err != nil {
					t.Fatalf("%s: %v", statement, err)
				}
			}
			text, err := os.ReadFile("testdata/v2." + dialect + ".sql")
			if err != nil {
				t.Fatal(err)
			}
			for statement := range strings.SplitSeq(string(text), ";\n") {
				if strings.TrimSpace(statement) != "" {
					exec1(statement)
				}
			}
			// As version 2 writes them. The input is that of the data.
			start := func(id string) {
				exec1("INSERT INTO saga_instance (id, name, version, status, step, data, input, attempt, reason, cancel, stuck, stuck_at, parked, " +
					"starts, owner, epoch, revision, takeovers, wake_at, created_at, updated_at, notes, signals, deadline) " +
					"VALUES ('" + id + "', 'old', 1, 1, 'only', '{\"N\":1}', 'input', 0, '', '', '', NULL, 0, 1, '', 0, 0, 0, 1, 1, 1, NULL, 0, NULL)")
			}
			start("from before")
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					db, err := sql.Open(map[string]string{"sqlite": "sqlite", "postgres": "pgx", "mysql": "mysql"}[dialect], dsn)
					if err != nil {
						t.Error(err)
						return
					}
					defer db.Close()
					s, err := sagasql.New(db, dialects[dialect], sagasql.Config{})
					if err == nil {
						err = s.Migrate(t.Context())
					}
					if err != nil {
						t.Errorf("Migrate = %v", err)
					}
				})
			}
			wg.Wait()
			start("from an old replica")

			type numbers struct{ N int }
			def := saga.Must(saga.New("old", 1, saga.Pivot(saga.Call("only", func(_ context.Context, _ saga.Attempt, d *numbers) error {
				d.N++
				return nil
			}))))
			e, err := saga.NewEngine(store(t, db, dialect), saga.Config{}, def)
			if err != nil {
				t.Fatal(err)
			}
			run(t, e, func() {
				for _, id := range []string{"from before", "from an old replica"} {
					in, err := e.Wait(t.Context(), id)
					if err != nil || in.Status != saga.Completed || string(in.Data) != `{"N":2}` || in.Header != nil {
						t.Errorf("Wait %s = %+v, %v, want it completed", id, in, err)
					}
				}
			})
		})
	}
}
