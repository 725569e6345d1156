// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command resilience guards one dependency with one policy, whatever the calls return.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

func main() {
	policy, err := newPolicy()
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	tries := 0
	price, err := resilience.Do(ctx, policy, func(ctx context.Context) (int, error) {
		if tries++; tries == 1 {
			<-ctx.Done() // hangs, until the attempt's time is over
			return 0, ctx.Err()
		}
		return 1999, nil
	})
	fmt.Println(price, err)

	name, err := resilience.Do(ctx, policy, func(context.Context) (string, error) { return "Dovetail saw", nil })
	fmt.Println(name, err)
}

func newPolicy() (*resilience.Policy, error) {
	r, err1 := retry.New(retry.Config{Base: time.Millisecond})
	b, err2 := breaker.New(breaker.Config{Name: "catalog", FailureRate: 0.5})
	h, err3 := bulkhead.New(32, bulkhead.Config{Name: "catalog"})
	return &resilience.Policy{Total: 5 * time.Second, Retry: r, Bulkhead: h, Breaker: b, Attempt: 20 * time.Millisecond}, errors.Join(err1, err2, err3)
}

// Output:
// 1999 <nil>
// Dovetail saw <nil>
