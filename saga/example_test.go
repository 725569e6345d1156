// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagamem"
)

// Order is what the saga knows. It is stored as JSON after every step.
type Order struct {
	Amount  int
	Card    string
	Payment string
}

func Example() {
	// The participants would be other services.
	call := func(what string) func(context.Context, saga.Attempt, *Order) error {
		return func(ctx context.Context, a saga.Attempt, o *Order) error {
			fmt.Println(what, a.Key())
			return nil
		}
	}
	pay := func(ctx context.Context, a saga.Attempt, o *Order) error {
		if o.Card == "declined" {
			return saga.Refuse("card declined")
		}
		o.Payment = "p-1"
		fmt.Println("pay", o.Amount)
		return nil
	}

	placeOrder := saga.Must(saga.New("place-order", 1,
		saga.Call("reserve", call("reserve"), saga.Undo(call("release"))),
		saga.Pivot(saga.Call("pay", pay)),
		saga.Call("ship", call("ship")),
	))

	quiet := slog.New(slog.DiscardHandler)
	engine, err := saga.NewEngine(sagamem.New(), saga.Config{Logger: quiet}, placeOrder)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go engine.Run(ctx)

	for _, o := range []Order{{Amount: 20, Card: "visa"}, {Amount: 30, Card: "declined"}} {
		// With a database, tx is the transaction that also stores the order.
		id := fmt.Sprintf("order-%d", o.Amount)
		if err := saga.Start(ctx, engine, nil, placeOrder, id, o); err != nil {
			fmt.Println(err)
			return
		}
		engine.Wake() // after the commit
		in, err := engine.Wait(ctx, id)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s: %s (%s) %q\n", in.ID, in.Status, in.Cause, in.Reason)
	}
	// Output:
	// reserve order-20/reserve/do
	// pay 20
	// ship order-20/ship/do
	// order-20: completed (none) ""
	// reserve order-30/reserve/do
	// release order-30/reserve/undo
	// order-30: compensated (refused) "card declined"
}
