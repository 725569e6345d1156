// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagamem"
)

// start runs one saga of a definition on an engine in memory until it has ended, and calls
// meanwhile once it has been started.
func start[T any](def *saga.Definition[T], data T, meanwhile func(context.Context, *saga.Engine) error, others ...saga.Registered) error {
	engine, err := saga.NewEngine(sagamem.New(), saga.Config{Logger: slog.New(slog.DiscardHandler)}, append(others, def)...)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()
	if err := saga.Start(ctx, engine, nil, def, "7", data); err != nil {
		return err
	}
	engine.Wake()
	if meanwhile != nil {
		if err := meanwhile(ctx, engine); err != nil {
			return err
		}
	}
	in, err := engine.Wait(ctx, "7")
	if err != nil {
		return err
	}
	fmt.Println(in.Status, in.Reason)
	stop()
	return <-ended
}

type claim struct {
	Amount   int
	Approved bool
}

// A person decides, or nobody does for a week.
func ExampleAwait() {
	pay := saga.Must(saga.New("pay-claim", 1,
		saga.Await("approval", func(c *claim, approved bool) error {
			if !approved {
				return saga.Refuse("not approved")
			}
			c.Approved = true
			return nil
		}, saga.Timeout[claim](7*24*time.Hour)),
		saga.Pivot(saga.Call("pay", func(_ context.Context, a saga.Attempt, c *claim) error {
			fmt.Println("pay", c.Amount, "with the key", a.Key())
			return nil
		})),
	))
	err := start(pay, claim{Amount: 100}, func(ctx context.Context, e *saga.Engine) error {
		_, err := e.Deliver(ctx, nil, "7", "approval", true) // such as from a handler of HTTP
		e.Wake()
		return err
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// pay 100 with the key 7/pay/do
	// completed
}

type journey struct{ Flight, Hotel string }

// Steps side by side each change fields of their own. When one is refused all are undone.
func ExampleParallel() {
	book := saga.Must(saga.New("book-journey", 1,
		saga.Parallel(
			saga.Call("flight", func(_ context.Context, _ saga.Attempt, j *journey) error {
				j.Flight = "LH 400"
				return nil
			}, saga.Undo(func(context.Context, saga.Attempt, *journey) error { return nil })),
			saga.Call("hotel", func(_ context.Context, _ saga.Attempt, j *journey) error {
				j.Hotel = "Plaza"
				return nil
			}, saga.Undo(func(context.Context, saga.Attempt, *journey) error { return nil })),
		),
		saga.Pivot(saga.Call("charge", func(_ context.Context, _ saga.Attempt, j *journey) error {
			fmt.Println("charge for", j.Flight, "and", j.Hotel)
			return nil
		})),
	))
	if err := start(book, journey{}, nil); err != nil {
		fmt.Println(err)
	}
	// Output:
	// charge for LH 400 and Plaza
	// completed
}

type delivery struct{ Parcel string }

// A saga may be a step of another one. If it ends compensated, the step is refused.
func ExampleChild() {
	pack := saga.Must(saga.New("pack", 1,
		saga.Call("box", func(context.Context, saga.Attempt, *delivery) error { return saga.Refuse("no box is large enough") },
			saga.Undo(func(context.Context, saga.Attempt, *delivery) error { return nil })),
	))
	send := saga.Must(saga.New("send", 1,
		saga.Child("pack", pack,
			func(d *delivery) delivery { return *d },
			func(d *delivery, packed delivery) error { d.Parcel = packed.Parcel; return nil }),
		saga.Pivot(saga.Call("hand over", func(context.Context, saga.Attempt, *delivery) error { return nil })),
	))
	if err := start(send, delivery{}, nil, pack); err != nil {
		fmt.Println(err)
	}
	// Output:
	// compensated no box is large enough
}

type transfer struct{ Account string }

// One saga at a time for each account, until it ends.
func ExampleLock() {
	move := saga.Must(saga.New("transfer", 1,
		saga.Lock("account", func(t *transfer) string { return "account " + t.Account }, saga.Timeout[transfer](time.Minute)),
		saga.Pivot(saga.Call("book", func(_ context.Context, _ saga.Attempt, t *transfer) error {
			fmt.Println("book on", t.Account)
			return nil
		})),
	))
	if err := start(move, transfer{Account: "12"}, nil); err != nil {
		fmt.Println(err)
	}
	// Output:
	// book on 12
	// completed
}
