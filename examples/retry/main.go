// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command retry calls something that fails twice, and something that nobody should call
// again.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/retry"
)

func main() {
	ctx := context.Background()
	// One budget for everything that burdens the same dependency: in an outage it keeps the
	// load from multiplying.
	budget, err := retry.NewBudget(retry.BudgetConfig{Ratio: 0.1})
	if err != nil {
		log.Fatal(err)
	}
	r, err := retry.New(retry.Config{Attempts: 4, Base: 5 * time.Millisecond, Budget: budget})
	if err != nil {
		log.Fatal(err)
	}

	tries := 0
	name, err := retry.Do(ctx, r, func(context.Context) (string, error) {
		if tries++; tries < 3 {
			return "", errors.New("connection reset")
		}
		return "Ada", nil
	})
	fmt.Println(name, err, "after", tries, "attempts")

	// A wrong request stays wrong.
	tries = 0
	err = r.Do(ctx, func(context.Context) error {
		tries++
		return fault.Permanent(errors.New("no such customer"))
	})
	fmt.Println(err, "after", tries, "attempt")

	// A wait that does not fit the deadline is not begun.
	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	err = r.Do(ctx, func(context.Context) error {
		return fault.RetryAfter(errors.New("come back later"), 10*time.Second)
	})
	fmt.Println(errors.Is(err, context.DeadlineExceeded), time.Since(start) < 50*time.Millisecond)
}

// Output:
// Ada <nil> after 3 attempts
// no such customer after 1 attempt
// true true
