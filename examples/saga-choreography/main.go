// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command saga-choreography sells two orders, one of which is not paid, in both styles: first
// as a saga that one service orchestrates, then as a choreography, in which each service
// only reacts to events through its inbox and its outbox.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"

	"golang.org/x/sync/errgroup"
	_ "modernc.org/sqlite"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagasql"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	db, err := sql.Open("sqlite", "file:shop?mode=memory&_txlock=immediate")
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, "CREATE TABLE stock (n INTEGER); INSERT INTO stock VALUES (10)"); err != nil {
		return err
	}
	if err := orchestrated(ctx, db); err != nil {
		return err
	}
	return choreographed(ctx, db)
}

// What the services do in their databases, here one. Payment knows who cannot pay.

func reserve(ctx context.Context, tx *sql.Tx, n int) error {
	_, err := tx.ExecContext(ctx, "UPDATE stock SET n = n - ?", n)
	return err
}

var errNoMoney = errors.New("no money")

func pay(customer string) error {
	if customer == "bob" {
		return errNoMoney
	}
	return nil
}

func report(ctx context.Context, db *sql.DB) error {
	var n int
	err := db.QueryRowContext(ctx, "SELECT n FROM stock").Scan(&n)
	fmt.Println("stock:", n)
	return err
}

// The orchestrated style: the plan is one value, and what is undone follows from it.

type order struct{ Customer string }

func orchestrated(ctx context.Context, db *sql.DB) error {
	plan, err := saga.New("sell", 1,
		saga.Local("reserve", func(ctx context.Context, tx *sql.Tx, a saga.Attempt, _ *order) error {
			fmt.Println(a.Saga, "reserve")
			return reserve(ctx, tx, 1)
		}, saga.UndoLocal(func(ctx context.Context, tx *sql.Tx, a saga.Attempt, _ *order) error {
			fmt.Println(a.Saga, "release")
			return reserve(ctx, tx, -1)
		})),
		saga.Pivot(saga.Call("pay", func(_ context.Context, a saga.Attempt, d *order) error {
			if err := pay(d.Customer); err != nil {
				return saga.Refuse(err.Error())
			}
			fmt.Println(a.Saga, "paid")
			return nil
		})),
	)
	if err != nil {
		return err
	}
	store, err := sagasql.New(db, sagasql.SQLite, sagasql.Config{})
	if err != nil {
		return err
	}
	if err := store.Migrate(ctx); err != nil {
		return err
	}
	engine, err := saga.NewEngine(store, saga.Config{}, plan)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var workers errgroup.Group
	workers.Go(func() error { return engine.Run(ctx) })
	for _, customer := range []string{"ann", "bob"} {
		if err := saga.Start(ctx, engine, db, plan, "order of "+customer, order{customer}); err != nil {
			return err
		}
		engine.Wake()
		in, err := engine.Wait(ctx, "order of "+customer)
		if err != nil {
			return err
		}
		fmt.Println(in.ID, in.Status)
	}
	if err := report(ctx, db); err != nil {
		return err
	}
	stop()
	return workers.Wait()
}

// The choreographed style: the plan is in nobody's hands. Each service is a handler that gets
// an event, changes its tables and sends the next event in one transaction, once.

type service struct {
	group  string
	topics []string
	// react returns the topic of the event that follows, or none.
	react func(ctx context.Context, tx *sql.Tx, topic, customer string) (next string, err error)
}

var services = []service{
	{"stock", []string{"order.placed", "payment.refused"}, func(ctx context.Context, tx *sql.Tx, topic, _ string) (string, error) {
		if topic == "order.placed" {
			return "stock.reserved", reserve(ctx, tx, 1)
		}
		return "stock.released", reserve(ctx, tx, -1)
	}},
	{"payment", []string{"stock.reserved"}, func(_ context.Context, _ *sql.Tx, _, customer string) (string, error) {
		if pay(customer) != nil {
			return "payment.refused", nil
		}
		return "payment.taken", nil
	}},
	{"order", []string{"payment.taken", "stock.released"}, func(_ context.Context, _ *sql.Tx, topic, _ string) (string, error) {
		return map[string]string{"payment.taken": "order.completed", "stock.released": "order.rejected"}[topic], nil
	}},
}

func choreographed(ctx context.Context, db *sql.DB) error {
	rows, err := outboxsql.New(db, outboxsql.SQLite, outboxsql.Config{})
	if err != nil {
		return err
	}
	inbox, err := idempotencysql.New(db, idempotencysql.SQLite, idempotencysql.Config{})
	if err != nil {
		return err
	}
	if err := errors.Join(rows.Migrate(ctx), inbox.Migrate(ctx)); err != nil {
		return err
	}
	box, err := outbox.New(rows, outbox.Config{})
	if err != nil {
		return err
	}
	broker, err := messagingmem.New(messagingmem.Config{ConfirmOnAck: true})
	if err != nil {
		return err
	}
	relay, err := outbox.NewRelay(box, broker, outbox.RelayConfig{})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var workers errgroup.Group
	for _, s := range services {
		sub := messaging.Subscription{Group: s.group, Topics: s.topics, Ordered: true}
		handler := idempotency.Consumer(db, inbox, func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
			customer := string(d.Message.Body)
			next, err := s.react(ctx, tx, d.Message.Topic, customer)
			if err != nil {
				return err
			}
			event := saga.Correlate(d.Message, &messaging.Message{Topic: next, Key: customer, Body: d.Message.Body})
			return box.Enqueue(ctx, tx, event)
		})
		wake := messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
			defer box.Wake()
			return handler.Handle(ctx, d)
		})
		if err := broker.Declare(ctx, sub); err != nil {
			return err
		}
		workers.Go(func() error { return broker.Subscribe(ctx, sub, wake) })
	}
	// Whoever wants to see the whole of it must listen to everything.
	events := make(chan *messaging.Message)
	all := messaging.Subscription{Group: "onlooker", Topics: []string{"#"}, Ordered: true}
	if err := broker.Declare(ctx, all); err != nil {
		return err
	}
	workers.Go(func() error {
		return broker.Subscribe(ctx, all, messaging.HandlerFunc(func(_ context.Context, d *messaging.Delivery) error {
			events <- d.Message
			return nil
		}))
	})
	workers.Go(func() error { return relay.Run(ctx) })
	for _, customer := range []string{"ann", "bob"} {
		placed := &messaging.Message{ID: "placed by " + customer, Topic: "order.placed", Key: customer, Body: []byte(customer)}
		if err := box.Enqueue(ctx, db, placed); err != nil {
			return err
		}
		box.Wake()
		for end := false; !end; {
			event := <-events
			from := event.Header[saga.HeaderCorrelation]
			if from == "" {
				from = event.ID
			}
			fmt.Println(from+":", event.Topic)
			end = event.Topic == "order.completed" || event.Topic == "order.rejected"
		}
	}
	if err := report(ctx, db); err != nil {
		return err
	}
	stop()
	return workers.Wait()
}

// Output:
// order of ann reserve
// order of ann paid
// order of ann completed
// order of bob reserve
// order of bob release
// order of bob compensated
// stock: 9
// placed by ann: order.placed
// placed by ann: stock.reserved
// placed by ann: payment.taken
// placed by ann: order.completed
// placed by bob: order.placed
// placed by bob: stock.reserved
// placed by bob: payment.refused
// placed by bob: stock.released
// placed by bob: order.rejected
// stock: 8
