// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsourcesql_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcesql"
)

// The read model is a table, changed in the transaction that moves the checkpoint.
func Example() {
	run := func(ctx context.Context, db, readDB *sql.DB) error {
		store, err := eventsourcesql.New(db, eventsourcesql.Postgres, eventsourcesql.Config{})
		if err != nil {
			return err
		}
		events, err := eventsource.New(store, eventsource.Config{})
		if err != nil {
			return err
		}
		models, err := eventsourcesql.NewModels(readDB, eventsourcesql.MySQL, eventsourcesql.Config{})
		if err != nil {
			return err
		}
		projector, err := eventsource.NewProjector(events, models, eventsource.Projection[*sql.Tx]{
			Name:   "order counts",
			Filter: eventsource.Filter{Types: []string{"order.placed.v1"}},
			Handle: func(ctx context.Context, tx *sql.Tx, batch []eventsource.Recorded) error {
				_, err := tx.ExecContext(ctx, "UPDATE counts SET orders = orders + ?", len(batch))
				return err
			},
		}, eventsource.ProjectorConfig{})
		if err != nil {
			return err
		}
		return projector.Run(ctx)
	}
	fmt.Println(run != nil)
	// Output: true
}

// The tables can be made by a migration tool of one's own.
func ExampleSchema() {
	for line := range strings.Lines(eventsourcesql.Schema(eventsourcesql.SQLite)) {
		if strings.HasPrefix(line, "CREATE TABLE eventsource") {
			fmt.Println(strings.Trim(line, "( \n"))
		}
	}
	// Output:
	// CREATE TABLE eventsource_event
	// CREATE TABLE eventsource_snapshot
}
