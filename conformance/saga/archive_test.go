// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagasql"
	"github.com/dovetail-go/dovetail/saga/sagatest"
)

// Whatever statement of an archive or a prune is the last one that a dying process makes,
// each saga is afterwards in the archive with all its history, or where it was with all
// its history, or wholly gone; and another process finishes the work.
func TestArchiveCrash(t *testing.T) {
	const sagas = 3
	testdb.Each(t, func(t *testing.T, db *sql.DB, dialect string) {
		s := store(t, db, dialect)
		connector := connectorOf(t, db, dialect)
		started := 0
		// fill adds sagas that have ended, and returns their IDs.
		fill := func() (ids []string) {
			for range sagas {
				id := fmt.Sprintf("s%03d", started)
				started++
				tx, err := db.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback()
				b := saga.Beginning{ID: id, Name: "x", Version: 1, Step: "a", Data: []byte("{}"), Input: "i"}
				if err := s.Start(t.Context(), tx, b); err != nil {
					t.Fatal(err)
				}
				if err := tx.Commit(); err != nil {
					t.Fatal(err)
				}
				entries := []saga.Entry{{Step: "a", Op: "do", Outcome: "done"}, {Op: "end", Outcome: "done"}}
				lost, err := s.Save(t.Context(), []saga.Change{{ID: id, Status: saga.Completed, Due: saga.DueNever, Data: []byte("{}"), Entries: entries}})
				if err != nil || len(lost) > 0 {
					t.Fatal(lost, err)
				}
				ids = append(ids, id)
			}
			return ids
		}
		// look returns how many of the sagas are archived, and how many are gone.
		look := func(ids []string) (archived, gone int) {
			t.Helper()
			for _, id := range ids {
				history, err := s.History(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				var rows, entries [2]int
				for i, tables := range [][2]string{{"saga_instance", "saga_history"}, {"saga_archive", "saga_archive_history"}} {
					query := fmt.Sprintf("SELECT (SELECT COUNT(*) FROM %s WHERE id = '%s'), (SELECT COUNT(*) FROM %s WHERE saga_id = '%[2]s')", tables[0], id, tables[1])
					if err := db.QueryRowContext(t.Context(), query).Scan(&rows[i], &entries[i]); err != nil {
						t.Fatal(err)
					}
				}
				switch state := fmt.Sprint(rows, entries, len(history)); state {
				case "[1 0] [2 0] 2":
				case "[0 1] [0 2] 2":
					archived++
				case "[0 0] [0 0] 0":
					gone++
				default:
					t.Fatalf("%s has %v rows and %v entries in the tables and the archive, and a history of %d", id, rows, entries, len(history))
				}
			}
			return archived, gone
		}
		cuts := 0
		for n, reached := 1, true; reached; n++ {
			reached = false
			for _, after := range []bool{false, true} {
				ids := fill()
				for _, verb := range []func(saga.Store) error{
					func(s saga.Store) error { _, err := s.Archive(t.Context(), -time.Hour, sagas); return err },
					func(s saga.Store) error { _, err := s.Prune(t.Context(), -time.Hour, sagas); return err },
				} {
					c, cut := sagatest.Cut(connector, n, after)
					own := sql.OpenDB(c)
					dying, err := sagasql.New(own, dialects[dialect], sagasql.Config{})
					if err != nil {
						t.Fatal(err)
					}
					if err = verb(dying); cut() != (err != nil) {
						t.Errorf("statement %d, cut after it: %v: reached %v, the error is %v", n, after, cut(), err)
					}
					if cut() {
						reached = true
						cuts++
					}
					_ = own.Close()
					look(ids)
					if err := verb(s); err != nil {
						t.Fatal(err)
					}
				}
				if _, gone := look(ids); gone != sagas {
					t.Fatalf("%d of %d are gone in the end, want all", gone, sagas)
				}
			}
		}
		t.Logf("%d cuts", cuts)
	})
}
