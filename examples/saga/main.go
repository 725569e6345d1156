// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command saga books a trip: what was booked is given back when the last booking is refused.
package main

import (
	"context"
	"fmt"
	"log"

	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagamem"
)

type trip struct {
	Seats int
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	// In a service each of these is a request to another one, with a.Key() as its idempotency key.
	say := func(text string, err error) func(context.Context, saga.Attempt, *trip) error {
		return func(context.Context, saga.Attempt, *trip) error {
			fmt.Println(text)
			return err
		}
	}
	booking, err := saga.New("book-trip", 1,
		saga.Call("flight", say("book flight", nil), saga.Undo(say("cancel flight", nil))),
		saga.Call("hotel", say("book hotel", nil), saga.Undo(say("cancel hotel", nil))),
		saga.Call("car", say("book car", saga.Refuse("no car left")), saga.Undo(say("cancel car", nil))),
	)
	if err != nil {
		return err
	}
	engine, err := saga.NewEngine(sagamem.New(), saga.Config{}, booking)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()

	// In a service the transaction, here nil, also stores what the saga is about.
	if err := saga.Start(ctx, engine, nil, booking, "trip-1", trip{Seats: 2}); err != nil {
		return err
	}
	engine.Wake() // after the commit
	in, err := engine.Wait(ctx, "trip-1")
	if err != nil {
		return err
	}
	fmt.Println(in.Status, "because", in.Cause, "with", in.Reason)
	stop()
	return <-ended
}

// Output:
// book flight
// book hotel
// book car
// cancel car
// cancel hotel
// cancel flight
// compensated because refused with no car left
