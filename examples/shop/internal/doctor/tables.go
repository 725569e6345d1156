// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/dovetail-go/dovetail/eventsource/eventsourcesql"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
	"github.com/dovetail-go/dovetail/saga/barrier"
	"github.com/dovetail-go/dovetail/saga/sagasql"
)

// versionRow is how the schema of each block ends: with the version that its Migrate brings the tables to.
var versionRow = regexp.MustCompile(`INSERT INTO (\w+_schema) \(id, version, started\) VALUES \(1, (\d+),`)

// wanted returns the version of each block's tables that this program works with, by the table that says so.
func wanted(d platform.Dialect) map[string]int {
	all := map[string]int{}
	for _, schema := range []string{
		outboxsql.Schema(d), idempotencysql.Schema(d), sagasql.Schema(d), barrier.Schema(d), eventsourcesql.Schema(d), eventsourcesql.ModelsSchema(d),
	} {
		for _, row := range versionRow.FindAllStringSubmatch(schema, -1) {
			all[row[1]], _ = strconv.Atoi(row[2])
		}
	}
	return all
}

// Tables compares the versions of the blocks' tables in the database of a service with those that this program works
// with, and looks for projections that have stopped. It returns how many blocks have tables there. Nothing is found if
// all is well.
func Tables(ctx context.Context, service string, db *sql.DB) (blocks int, found []Finding) {
	d := platform.DialectOf(db)
	list := `SELECT name FROM sqlite_master WHERE type = 'table'`
	if d == platform.Postgres {
		list = `SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()`
	}
	names, err := platform.Collect(ctx, db, func(row interface{ Scan(dest ...any) error }) (name string, err error) {
		err = row.Scan(&name)
		return name, err
	}, list)
	if err != nil {
		return 0, []Finding{Wrong("look at the database", "its tables cannot be read: %v", err).About(service)}
	}
	want := wanted(d)
	var behind, ahead []string
	for _, name := range names {
		if want[name] == 0 {
			continue
		}
		blocks++
		var is int
		if err := db.QueryRowContext(ctx, "SELECT version FROM "+name+" WHERE id = 1").Scan(&is); err != nil {
			return blocks, []Finding{Wrong("look at the database", "%s cannot be read: %v", name, err).About(service)}
		}
		text := fmt.Sprintf("%s are of version %d, this program's of %d", strings.TrimSuffix(name, "_schema"), is, want[name])
		switch {
		case is < want[name]:
			behind = append(behind, text)
		case is > want[name]:
			ahead = append(ahead, text)
		}
	}
	if slices.Contains(names, "eventsource_shard") {
		found = append(found, stopped(ctx, service, db)...)
	}
	if len(behind) > 0 {
		found = append(found, behindBy(ctx, d, db, behind).About(service))
	}
	if len(ahead) > 0 {
		f := Doubt("update this program; it works beside the version right after it, and no further", "its tables of %s", strings.Join(ahead, ", of ")).About(service)
		f.See = "docs/operations.md"
		found = append(found, f)
	}
	return blocks, found
}

// AllTables sums up what [Tables] returned of so many services.
func AllTables(services, blocks int, found []Finding) []Finding {
	switch {
	case services == 0:
		return []Finding{Good("none yet, the first start makes them")}
	case len(found) == 0:
		return []Finding{Good("current: %d services, %d blocks", services, blocks)}
	}
	return found
}

// stopped are the projections of a service that wait before an event that they cannot apply.
func stopped(ctx context.Context, service string, db *sql.DB) []Finding {
	found, err := platform.Collect(ctx, db, func(row interface{ Scan(dest ...any) error }) (Finding, error) {
		var projection, stream, reason string
		err := row.Scan(&projection, &stream, &reason)
		return Wrong("mend what cannot be applied and start the service again", "its projection %s has stopped before an event of %s: %s", projection, stream, reason).
			About(service).Runbook("projection-parked"), err
	}, `SELECT projection, stream, reason FROM eventsource_shard WHERE stopped > 0 ORDER BY projection, shard`)
	if err != nil {
		return []Finding{Wrong("look at the database", "its projections cannot be read: %v", err).About(service)}
	}
	return found
}

// behindBy is a doubt where the next start will bring the tables up to date, and a failure where it
// may not.
func behindBy(ctx context.Context, d platform.Dialect, db *sql.DB, behind []string) (f Finding) {
	f = Doubt("start the shop again: a service brings its tables up to date when it starts", "its tables of %s", strings.Join(behind, ", of "))
	if d == platform.Postgres {
		var may bool
		err := db.QueryRowContext(ctx, `SELECT has_schema_privilege(current_schema(), 'CREATE')`).Scan(&may)
		if err == nil && !may {
			f.Status, f.Do = Fail, "put the blocks' Schema into your migrations, or let the services' user create tables: it may not"
		}
	}
	f.See = "docs/operations.md"
	return f
}
