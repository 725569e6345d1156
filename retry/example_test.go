// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package retry_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/retry"
)

func Example() {
	r, err := retry.New(retry.Config{Base: time.Millisecond})
	if err != nil {
		panic(err)
	}
	calls := 0
	user, err := retry.Do(context.Background(), r, func(ctx context.Context) (string, error) {
		if calls++; calls < 3 {
			return "", errors.New("connection reset")
		}
		return "ada", nil
	})
	fmt.Println(user, err, calls)
	// Output: ada <nil> 3
}

func ExampleError() {
	r, _ := retry.New(retry.Config{Base: time.Minute})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	errReset := errors.New("connection reset")

	// The server wants five seconds, the caller has one: Do returns at once.
	err := r.Do(ctx, func(context.Context) error { return fault.RetryAfter(errReset, 5*time.Second) })

	fmt.Println(err)
	fmt.Println(errors.Is(err, errReset), errors.Is(err, context.DeadlineExceeded))
	// Output:
	// retry: gave up after 1 attempt (the next delay would cross the deadline: context deadline exceeded): connection reset
	// true true
}

// One budget bounds everything that burdens one dependency.
func ExampleBudget() {
	budget, _ := retry.NewBudget(retry.BudgetConfig{Ratio: 0.1, MinPerSecond: -1, Window: time.Hour})
	reads, _ := retry.New(retry.Config{Budget: budget, Base: time.Millisecond})
	writes, _ := retry.New(retry.Config{Budget: budget, Base: time.Millisecond, NonIdempotent: true})

	calls := 0
	down := func(context.Context) error { calls++; return errors.New("down") }
	for range 52 {
		reads.Do(context.Background(), down)
		writes.Do(context.Background(), down)
	}
	fmt.Println(calls, "calls for 104 first tries")
	// Output: 114 calls for 104 first tries
}

// Begin is the form without a closure.
func ExampleRetrier_Begin() {
	r, _ := retry.New(retry.Config{Attempts: 2, Base: time.Millisecond})
	open := func(context.Context) (string, error) { return "", errors.New("refused") }

	call := r.Begin(context.Background())
	for {
		_, err := open(call.Context())
		again, err := call.Next(err)
		if !again {
			fmt.Println(err)
			break
		}
	}
	// Output: retry: gave up after 2 attempts (attempts are used up): refused
}

func ExampleRetrier_Delays() {
	r, _ := retry.New(retry.Config{Attempts: 5, Base: time.Second, Max: 5 * time.Second, Jitter: retry.NoJitter})
	for delay := range r.Delays() {
		fmt.Println(delay)
	}
	// Output:
	// 1s
	// 2s
	// 4s
	// 5s
}

func ExampleAttempt() {
	r, _ := retry.New(retry.Config{Base: time.Millisecond})
	r.Do(context.Background(), func(ctx context.Context) error {
		fmt.Println("attempt", retry.Attempt(ctx))
		if retry.Attempt(ctx) < 2 {
			return errors.New("try again")
		}
		return nil
	})
	// Output:
	// attempt 1
	// attempt 2
}
