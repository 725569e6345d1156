// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command messaging publishes orders to groups that it does not know: one fails and is
// tried again, one cannot be handled and is set aside until somebody has mended the
// handler, and a group that comes later reads everything from the first.
//
// The broker is in this process. On RabbitMQ only the constructor is another one:
// rabbitkit.New(url, rabbitkit.Config{Log: rabbitkit.Log{MaxAge: 7 * 24 * time.Hour}}).
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

type order struct {
	ID    string
	Total int
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	broker, err := messagingmem.New(messagingmem.Config{
		ConfirmOnAck: true, // Publish returns when the groups are done
		Retain:       1000, // for groups that begin in the past
		Logger:       slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	mails := messaging.Subscription{Group: "mails", Topics: []string{"order.*"}, Backoff: messaging.Backoff{Base: time.Millisecond}}
	mended := false
	sendMail := messaging.Typed(messaging.JSON, func(_ context.Context, o order, d *messaging.Delivery) error {
		switch {
		case o.Total < 0 && !mended:
			return messaging.Reject(fmt.Errorf("total is %d", o.Total)) // no repetition helps
		case o.ID == "7" && d.Attempt == 1:
			return errors.New("the mail server is away") // tried again
		}
		fmt.Printf("mailed order %s at attempt %d\n", o.ID, d.Attempt)
		return nil
	})
	// Bound before anything is published, so that nothing is missed.
	if err := broker.Declare(ctx, mails); err != nil {
		return err
	}
	var subscribers errgroup.Group
	subscribers.Go(func() error { return broker.Subscribe(ctx, mails, sendMail) })

	for _, o := range []order{{"7", 42}, {"8", -1}, {"9", 12}} {
		m, err := messaging.Encode(messaging.JSON, messaging.Message{Topic: "order.placed", Key: o.ID, Type: "order.v1"}, o)
		if err != nil {
			return err
		}
		if err := broker.Publish(ctx, m); err != nil {
			return err
		}
	}

	dead := broker.DeadLetters()
	for _, dl := range dead {
		fmt.Printf("set aside by %s after %d attempt: %s\n", dl.Group, dl.Attempt, dl.Reason)
	}
	mended = true
	if err := broker.Replay(ctx, dead...); err != nil {
		return err
	}

	// A group of tomorrow. The zero From would begin with what is published from now on.
	sums := messaging.Subscription{Group: "sums", Topics: []string{"order.#"}, Concurrency: 1, From: messaging.FromFirst()}
	sum, left := 0, 3
	all := make(chan struct{})
	subscribers.Go(func() error {
		return broker.Subscribe(ctx, sums, messaging.Typed(messaging.JSON, func(_ context.Context, o order, _ *messaging.Delivery) error {
			sum += o.Total
			if left--; left == 0 {
				close(all)
			}
			return nil
		}))
	})
	<-all
	fmt.Println("sum of all orders:", sum)
	stop() // a drain
	return subscribers.Wait()
}

// Output:
// mailed order 7 at attempt 2
// mailed order 9 at attempt 1
// set aside by mails after 1 attempt: total is -1
// mailed order 8 at attempt 1
// sum of all orders: 53
