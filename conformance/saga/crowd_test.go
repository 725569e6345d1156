// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/saga"
)

// TestAMillionEndedSagas fills the table with sagas that have ended, and looks how the
// database finds those that have not: by an index, whatever lies around. It logs how long
// transfers take before and after. DOVETAIL_SAGA_ENDED sets how many, such as 1000000; 5,000 otherwise.
func TestAMillionEndedSagas(t *testing.T) {
	ended := size(t, "DOVETAIL_SAGA_ENDED", 5_000)
	testdb.Each(t, func(t *testing.T, db *sql.DB, dialect string) {
		b := newBank(t, db, dialect)
		e, err := b.engine(b.store, saga.Config{Drain: -1})
		if err != nil {
			t.Fatal(err)
		}
		started := 0
		measure := func() (took time.Duration) {
			run(t, e, func() {
				begin := time.Now()
				if err := b.start(t.Context(), e, started, started+50); err != nil {
					t.Fatal(err)
				}
				started += 50
				e.Wake()
				b.finished(t, time.Minute)
				took = time.Since(begin)
			})
			return took
		}
		measure()
		before := measure()
		b.fill(t, ended)
		begin := time.Now()
		_, err = e.Count(t.Context())
		counting := time.Since(begin)
		begin = time.Now()
		page, err2 := e.List(t.Context(), saga.Filter{Status: saga.Completed, Limit: 100})
		listing := time.Since(begin)
		begin = time.Now()
		pruned, err3 := e.Prune(t.Context(), time.Hour)
		pruning := time.Since(begin)
		if err != nil || err2 != nil || err3 != nil || len(page) != 100 || pruned != 0 {
			t.Errorf("Count = %v; List = %d, %v; Prune = %d, %v", err, len(page), err2, pruned, err3)
		}
		measure()
		after := measure()
		t.Logf("%d ended sagas: 50 transfers took %v before, %v after; Count %v, List %v, Prune of nothing %v", ended, before, after, counting, listing, pruning)
		for what, query := range map[string]string{
			"claim": "SELECT id FROM saga_instance WHERE wake_at <= 99999999999999999 AND (owner = '' OR owner NOT IN (SELECT id FROM saga_node WHERE expires_at > 0)) ORDER BY wake_at, id LIMIT 16",
			"count": "SELECT status, COUNT(*), COUNT(stuck_at) FROM saga_instance WHERE status IN (1, 2) GROUP BY status",
			"list":  "SELECT id FROM saga_instance WHERE status = 3 ORDER BY created_at DESC, id DESC LIMIT 100",
			"prune": "SELECT id FROM saga_instance WHERE status = 3 AND created_at < 1 AND updated_at < 1 ORDER BY created_at, id LIMIT 500",
		} {
			if plan := b.explain(t, query); !strings.Contains(plan, map[string]string{"claim": "saga_instance_wake"}[what]) || !strings.Contains(plan, "saga_instance_") {
				t.Errorf("%s is planned as\n%s\nwant an index", what, plan)
			}
		}
	})
}

// fill adds sagas that have ended, by doubling copies of one that has.
func (b *bank) fill(t *testing.T, n int) {
	t.Helper()
	const columns = "name, version, status, step, attempt, reason, cancel, stuck, stuck_at, parked, data, input, starts, owner, epoch, revision, takeovers, wake_at, deadline, created_at, updated_at, signals, notes"
	cast := map[string]string{"mysql": "CHAR"}[b.dialect]
	if cast == "" {
		cast = "VARCHAR(20)"
	}
	numbers := "WITH RECURSIVE k(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM k WHERE v < 1000) "
	query := "INSERT INTO saga_instance (id, " + columns + ") " + numbers +
		"SELECT %s, " + columns + " FROM saga_instance, k WHERE id = 't00000'"
	for i := range (n + 999) / 1000 {
		id := fmt.Sprintf("'ended-%d-' || CAST(v AS %s)", i, cast)
		if b.dialect == "mysql" {
			id = fmt.Sprintf("CONCAT('ended-%d-', CAST(v AS %s))", i, cast)
		}
		if _, err := b.db.ExecContext(t.Context(), fmt.Sprintf(query, id)); err != nil {
			t.Fatal(err)
		}
	}
	analyze := map[string]string{"postgres": "VACUUM ANALYZE saga_instance", "mysql": "ANALYZE TABLE saga_instance", "sqlite": "ANALYZE"}[b.dialect]
	if _, err := b.db.ExecContext(t.Context(), analyze); err != nil {
		t.Fatal(err)
	}
}

func (b *bank) explain(t *testing.T, query string) string {
	t.Helper()
	rows, err := b.db.QueryContext(t.Context(), map[string]string{"postgres": "EXPLAIN ", "mysql": "EXPLAIN FORMAT=JSON ", "sqlite": "EXPLAIN QUERY PLAN "}[b.dialect]+query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var plan strings.Builder
	for rows.Next() {
		values := make([]any, len(names))
		for i := range values {
			values[i] = new(sql.NullString)
		}
		if err := rows.Scan(values...); err != nil {
			t.Fatal(err)
		}
		for _, v := range values {
			fmt.Fprintln(&plan, v.(*sql.NullString).String)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return plan.String()
}
