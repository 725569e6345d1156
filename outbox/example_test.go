// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"strings"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxmem"
)

// printer stands in for a broker. It tells what it is sent.
type printer struct {
	told chan string
	err  func(m *messaging.Message) error
}

func (p printer) Publish(_ context.Context, msgs ...*messaging.Message) error {
	for _, m := range msgs {
		if p.err != nil {
			if err := p.err(m); err != nil {
				return err
			}
		}
		p.told <- fmt.Sprintf("%s %s %s", m.Topic, m.Key, m.Body)
	}
	return nil
}

// A message is published if and only if its transaction commits.
func Example() {
	store := outboxmem.New() // outboxsql.New(db, outboxsql.Postgres, outboxsql.Config{}) in earnest
	box, err := outbox.New(store, outbox.Config{})
	if err != nil {
		log.Fatal(err)
	}
	broker := printer{told: make(chan string)}
	relay, err := outbox.NewRelay(box, broker, outbox.RelayConfig{})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- relay.Run(ctx) }()

	order := func(id, body string) *messaging.Message {
		return &messaging.Message{Topic: "order.placed", Key: id, Body: []byte(body)}
	}
	forgotten := store.Begin()
	if err := box.Enqueue(ctx, forgotten, order("order-1", "an umbrella")); err != nil {
		log.Fatal(err)
	}
	if err := forgotten.Rollback(); err != nil {
		log.Fatal(err)
	}
	tx := store.Begin()
	if err := box.Enqueue(ctx, tx, order("order-2", "a hat"), order("order-2", "and a coat")); err != nil {
		log.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}
	box.Wake()

	fmt.Println(<-broker.told)
	fmt.Println(<-broker.told)
	stop()
	fmt.Println(<-done)
	// Output:
	// order.placed order-2 a hat
	// order.placed order-2 and a coat
	// <nil>
}

// A message that cannot be published is set aside, and its key waits for a decision.
func ExampleOutbox_Parked() {
	store := outboxmem.New()
	box, err := outbox.New(store, outbox.Config{})
	if err != nil {
		log.Fatal(err)
	}
	parked := make(chan struct{})
	broker := printer{told: make(chan string), err: func(m *messaging.Message) error {
		if strings.Contains(string(m.Body), "piano") {
			return fault.Permanent(errors.New("message too large"))
		}
		return nil
	}}
	relay, err := outbox.NewRelay(box, broker, outbox.RelayConfig{
		Logger: slog.New(slog.DiscardHandler),
		Hooks:  outbox.Hooks{Parked: func(outbox.ParkedMessage) { close(parked) }},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- relay.Run(ctx) }()

	tx := store.Begin()
	err = box.Enqueue(ctx, tx,
		&messaging.Message{ID: "m1", Topic: "parcel.sent", Key: "ann", Body: []byte("a piano")},
		&messaging.Message{ID: "m2", Topic: "parcel.sent", Key: "ann", Body: []byte("a flute")})
	if err := errors.Join(err, tx.Commit()); err != nil {
		log.Fatal(err)
	}
	box.Wake()
	<-parked

	list, err := box.Parked(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range list {
		fmt.Printf("%s of %s, blocking %v: %s\n", p.Message.ID, p.Message.Key, p.Blocks, p.Reason)
	}
	if err := box.Discard(ctx, "m1", "sent by lorry"); err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-broker.told)
	stop()
	<-done
	// Output:
	// m1 of ann, blocking true: message too large
	// parcel.sent ann a flute
}
