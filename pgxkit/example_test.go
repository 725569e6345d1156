// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package pgxkit_test

import (
	"context"
	"fmt"
	"log"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
	"github.com/dovetail-go/dovetail/pgxkit"
)

// printer stands in for a pgx transaction, so that this example needs no server.
type printer struct{}

func (printer) Exec(_ context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	statement, _, _ := strings.Cut(sql, " (")
	fmt.Printf("%s: %v\n", statement, args[1:4])
	return pgconn.NewCommandTag("INSERT 0 1"), nil
}

// A message is enqueued in a native pgx transaction.
func ExampleTx() {
	pool, err := pgx.ParseConfig("postgres://localhost/shop")
	if err != nil {
		log.Fatal(err)
	}
	store, err := outboxsql.New(stdlib.OpenDB(*pool), outboxsql.Postgres, outboxsql.Config{}) // connects when needed
	if err != nil {
		log.Fatal(err)
	}
	box, err := outbox.New(store, outbox.Config{})
	if err != nil {
		log.Fatal(err)
	}
	var tx printer // pool.Begin(ctx) in earnest
	err = box.Enqueue(context.Background(), pgxkit.Tx(tx), &messaging.Message{ID: "0001", Topic: "order.confirmed", Key: "order-7"})
	fmt.Println(err)
	// Output:
	// INSERT INTO outbox_message: [0001 order.confirmed order-7]
	// <nil>
}

// A service with a native pool: its relay is woken by commits in other processes.
func Example() {
	run := func(ctx context.Context, pool *pgxpool.Pool, broker messaging.Publisher, work func(context.Context, *outbox.Outbox) error) error {
		listener, err := pgxkit.NewListener(pool.Config().ConnConfig, pgxkit.ListenerConfig{})
		if err != nil {
			return err
		}
		store, err := outboxsql.New(stdlib.OpenDBFromPool(pool), outboxsql.Postgres, outboxsql.Config{})
		if err != nil {
			return err
		}
		if err := store.Migrate(ctx); err != nil {
			return err
		}
		box, err := outbox.New(store, outbox.Config{Notifier: listener})
		if err != nil {
			return err
		}
		relay, err := outbox.NewRelay(box, broker, outbox.RelayConfig{})
		if err != nil {
			return err
		}
		done := make(chan error, 2)
		go func() { done <- listener.Run(ctx) }()
		go func() { done <- relay.Run(ctx) }()
		return work(ctx, box)
	}
	fmt.Println(run != nil)
	// Output: true
}
