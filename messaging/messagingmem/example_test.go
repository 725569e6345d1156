// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingmem_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

func Example() {
	broker, err := messagingmem.New(messagingmem.Config{ConfirmOnAck: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	// Two groups: each gets every message, in order, without the publisher knowing them.
	var handled [2][]string
	var consumers sync.WaitGroup
	for i, group := range []string{"mails", "invoices"} {
		s := messaging.Subscription{Group: group, Topics: []string{"order.#"}, Ordered: true}
		if err := broker.Declare(ctx, s); err != nil {
			fmt.Println(err)
		}
		consumers.Go(func() {
			_ = broker.Subscribe(ctx, s, messaging.HandlerFunc(func(_ context.Context, d *messaging.Delivery) error {
				handled[i] = append(handled[i], d.Message.Topic)
				return nil
			}))
		})
	}
	err = broker.Publish(ctx,
		&messaging.Message{ID: messaging.NewID(), Topic: "order.placed", Key: "A7"},
		&messaging.Message{ID: messaging.NewID(), Topic: "order.confirmed", Key: "A7"})
	fmt.Println(err, handled)
	cancel()
	consumers.Wait()
	// Output:
	// <nil> [[order.placed order.confirmed] [order.placed order.confirmed]]
}

func ExampleBroker_Replay() {
	broker, err := messagingmem.New(messagingmem.Config{ConfirmOnAck: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println(err)
		return
	}
	mails := messaging.Subscription{Group: "mails", Topics: []string{"order.*"}}
	consume := func(h messaging.HandlerFunc) (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		_ = broker.Declare(ctx, mails)
		var wg sync.WaitGroup
		wg.Go(func() { _ = broker.Subscribe(ctx, mails, h) })
		return func() { cancel(); wg.Wait() }
	}
	ctx := context.Background()

	stop := consume(func(context.Context, *messaging.Delivery) error {
		return messaging.Reject(errors.New("no template for order.placed"))
	})
	fmt.Println("published:", broker.Publish(ctx, &messaging.Message{ID: "1", Topic: "order.placed"}))
	stop()
	dead := broker.DeadLetters()
	for _, dl := range dead {
		fmt.Printf("dead in %s after %d: %s\n", dl.Group, dl.Attempt, dl.Reason)
	}

	// The bug is fixed.
	stop = consume(func(_ context.Context, d *messaging.Delivery) error {
		fmt.Println("mailed", d.Message.ID, "attempt", d.Attempt)
		return nil
	})
	fmt.Println("replayed:", broker.Replay(ctx, dead...))
	stop()
	fmt.Println("left:", len(broker.DeadLetters()))
	// Output:
	// published: <nil>
	// dead in mails after 1: no template for order.placed
	// mailed 1 attempt 1
	// replayed: <nil>
	// left: 0
}

func ExampleBroker_Stats() {
	broker, _ := messagingmem.New(messagingmem.Config{})
	ctx := context.Background()
	_ = broker.Declare(ctx, messaging.Subscription{Group: "mails", Topics: []string{"order.*"}})
	_ = broker.Publish(ctx, &messaging.Message{ID: "1", Topic: "order.placed"}, &messaging.Message{ID: "2", Topic: "order.placed"})
	for _, g := range broker.Stats().Groups {
		fmt.Printf("%s: %d ready, %d subscribers\n", g.Group, g.Ready, g.Subscribers)
	}
	// Output:
	// mails: 2 ready, 0 subscribers
}
