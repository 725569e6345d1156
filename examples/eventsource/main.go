// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command eventsource sells the seats of a show: commands are decided on a stream of events,
// and a read model counts what is free, on one SQLite database.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"time"

	"golang.org/x/sync/errgroup"
	_ "modernc.org/sqlite"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcesql"
)

// The events.
type (
	planned struct{ Seats int }
	sold    struct{ Seat, Buyer string }
)

// The commands.
type (
	plan struct{ Seats int }
	buy  struct{ Seat, Buyer string }
)

type show struct {
	Free  int
	Taken map[string]string
}

var errTaken = errors.New("the seat is taken")

var shows = eventsource.Decider[show, any, any]{
	Zero: func() show { return show{Taken: map[string]string{}} },
	Decide: func(s show, c any) ([]any, error) {
		switch c := c.(type) {
		case plan:
			return []any{planned(c)}, nil
		case buy:
			if s.Taken[c.Seat] != "" {
				return nil, errTaken
			}
			return []any{sold(c)}, nil
		}
		return nil, fmt.Errorf("unknown command %T", c)
	},
	Evolve: func(s show, e any) show {
		switch e := e.(type) {
		case planned:
			s.Free = e.Seats
		case sold:
			s.Free--
			s.Taken[e.Seat] = e.Buyer
		}
		return s
	},
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	db, err := sql.Open("sqlite", "file:shows?mode=memory&_txlock=immediate")
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, "CREATE TABLE free_seats (show TEXT PRIMARY KEY, free INTEGER)"); err != nil {
		return err
	}
	store, err := eventsourcesql.New(db, eventsourcesql.SQLite, eventsourcesql.Config{})
	if err != nil {
		return err
	}
	models, err := eventsourcesql.NewModels(db, eventsourcesql.SQLite, eventsourcesql.Config{})
	if err != nil {
		return err
	}
	if err := errors.Join(store.Migrate(ctx), models.Migrate(ctx)); err != nil {
		return err
	}
	events, err := eventsource.New(store, eventsource.Config{})
	if err != nil {
		return err
	}
	codec, err := eventsource.NewCodec(eventsource.Type[planned]("show.planned.v1"), eventsource.Type[sold]("seat.sold.v1"))
	if err != nil {
		return err
	}

	// The side of queries: the row and the checkpoint change in one transaction.
	projector, err := eventsource.NewProjector(events, models, eventsource.Projection[*sql.Tx]{
		Name: "free seats", Filter: eventsource.Filter{Types: codec.Types()},
		Handle: eventsource.Typed(codec, func(ctx context.Context, tx *sql.Tx, e any, r eventsource.Recorded) error {
			var err error
			switch e := e.(type) {
			case planned:
				_, err = tx.ExecContext(ctx, "INSERT INTO free_seats VALUES (?, ?)", r.Stream, e.Seats)
			case sold:
				_, err = tx.ExecContext(ctx, "UPDATE free_seats SET free = free - 1 WHERE show = ?", r.Stream)
			}
			return err
		}),
	}, eventsource.ProjectorConfig{})
	if err != nil {
		return err
	}
	var workers errgroup.Group
	workers.Go(func() error { return projector.Run(ctx) })

	// The side of commands.
	begin := func(ctx context.Context) (eventsource.Transaction, error) { return db.BeginTx(ctx, nil) }
	repository, err := eventsource.NewRepository(events, begin, codec, shows, eventsource.RepositoryConfig{})
	if err != nil {
		return err
	}
	for _, command := range []any{plan{Seats: 50}, buy{"A1", "ada"}, buy{"A2", "bob"}, buy{"A1", "eve"}} {
		s, err := repository.Do(ctx, "show-7", command)
		fmt.Printf("%T: %d free at version %d, %v\n", command, s.Value.Free, s.Version, err)
	}

	// Read your writes.
	_, cursor, err := events.End(ctx, "show-7")
	if err != nil {
		return err
	}
	if err := eventsource.WaitFor(ctx, models, "free seats", cursor); err != nil {
		return err
	}
	var free int
	if err := db.QueryRowContext(ctx, "SELECT free FROM free_seats WHERE show = 'show-7'").Scan(&free); err != nil {
		return err
	}
	fmt.Println("the read model says", free)
	stop()
	return workers.Wait()
}

// Output:
// main.plan: 50 free at version 1, <nil>
// main.buy: 49 free at version 2, <nil>
// main.buy: 48 free at version 3, <nil>
// main.buy: 48 free at version 3, the seat is taken
// the read model says 48
