// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/fault"
)

func Example() {
	b, err := breaker.New(breaker.Config{Name: "users", Consecutive: 2})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	user := func(context.Context) (string, error) { return "", errors.New("connection refused") }
	for range 3 {
		_, err := breaker.Do(ctx, b, user)
		fmt.Println(errors.Is(err, breaker.ErrOpen), b.State())
	}
	// Output:
	// false closed
	// false open
	// true open
}

// A refusal says when to come back.
func ExampleErrOpen() {
	b, _ := breaker.New(breaker.Config{Name: "users", Consecutive: 1, OpenFor: time.Minute})
	ctx := context.Background()
	b.Do(ctx, func(context.Context) error { return errors.New("connection refused") })

	err := b.Do(ctx, func(context.Context) error { return nil })

	var refused *fault.Rejection
	if errors.As(err, &refused) {
		fmt.Println(refused.By, refused.Name, refused.Err, refused.RetryAfter > 59*time.Second)
	}
	// Output: breaker users circuit breaker is open true
}

// A stream outlives the function that opens it: acquire, and settle when it ends.
func ExampleBreaker_Acquire() {
	b, _ := breaker.New(breaker.Config{})
	ctx := context.Background()

	ticket, err := b.Acquire(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	// ... read the stream ...
	ticket.Done(ctx, nil)
	fmt.Println(b.State())
	// Output: closed
}

// Trying a configuration on real traffic: everything passes, refusals are only reported.
func ExampleBreaker_Force() {
	b, _ := breaker.New(breaker.Config{Consecutive: 1, Mode: breaker.Shadow, Hooks: breaker.Hooks{
		Reject: func(r breaker.Rejected) { fmt.Println("refused by", r.Mode) },
	}})
	ctx := context.Background()
	down := func(context.Context) error { return errors.New("down") }
	b.Do(ctx, down)
	fmt.Println(b.Do(ctx, down))

	b.Force(breaker.Auto) // it has seen enough
	fmt.Println(errors.Is(b.Do(ctx, down), breaker.ErrOpen))
	// Output:
	// refused by shadow
	// down
	// refused by auto
	// true
}

// One breaker per host, in bounded memory.
func ExampleKeyed() {
	hosts, err := breaker.NewKeyed[string](breaker.Config{FailureRate: 0.5, MinCalls: 2}, 1000)
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	for range 2 {
		hosts.Get("a.example").Do(ctx, func(context.Context) error { return errors.New("down") })
		hosts.Get("b.example").Do(ctx, func(context.Context) error { return nil })
	}
	fmt.Println(hosts.Get("a.example").State(), hosts.Get("b.example").State())
	// Output: open closed
}

// Reconfigure while calls run: the window is kept.
func ExampleBreaker_Reconfigure() {
	b, _ := breaker.New(breaker.Config{FailureRate: 0.9, MinCalls: 4})
	ctx := context.Background()
	for i := range 5 {
		b.Do(ctx, func(context.Context) error {
			if i%2 == 0 {
				return errors.New("down")
			}
			return nil
		})
	}
	fmt.Println(b.State())
	b.Reconfigure(breaker.Config{FailureRate: 0.5, MinCalls: 4})
	b.Do(ctx, func(context.Context) error { return errors.New("down") })
	fmt.Println(b.State(), b.Stats().Opened)
	// Output:
	// closed
	// open 1
}
