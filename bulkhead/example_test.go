// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package bulkhead_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/bulkhead"
)

func Example() {
	b, err := bulkhead.New(1, bulkhead.Config{Name: "users"})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	user, err := bulkhead.Do(ctx, b, func(ctx context.Context) (string, error) {
		// While this call runs there is no place for another one.
		err := b.Do(ctx, func(context.Context) error { return nil })
		fmt.Println(errors.Is(err, bulkhead.ErrFull), err)
		return "ada", nil
	})
	fmt.Println(user, err)
	// Output:
	// true bulkhead users: bulkhead is full
	// ada <nil>
}

// A stream outlives the function that opens it: acquire, and release when it ends.
func ExampleBulkhead_Acquire() {
	b, _ := bulkhead.New(10, bulkhead.Config{Queue: 100, Wait: time.Second})

	permit, err := b.Acquire(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(b.Stats().InFlight)
	permit.Release()
	fmt.Println(b.Stats().InFlight)
	// Output:
	// 1
	// 0
}

type tierKey struct{}

// Paying customers wait at the front.
func ExampleConfig_priority() {
	b, _ := bulkhead.New(1, bulkhead.Config{Queue: 100, Priority: func(ctx context.Context) int {
		tier, _ := ctx.Value(tierKey{}).(int)
		return tier
	}})
	permit, _ := b.Acquire(context.Background())
	done := make(chan string)
	for tier, name := range []string{"guest", "customer"} {
		go b.Do(context.WithValue(context.Background(), tierKey{}, tier), func(context.Context) error {
			done <- name
			return nil
		})
		for b.Stats().Waiting <= tier {
			time.Sleep(time.Millisecond)
		}
	}
	permit.Release()
	fmt.Println(<-done)
	fmt.Println(<-done)
	// Output:
	// customer
	// guest
}

func ExampleBulkhead_Resize() {
	b, _ := bulkhead.New(1, bulkhead.Config{})
	b.Acquire(context.Background())
	_, ok := b.TryAcquire()
	fmt.Println(ok)
	b.Resize(2)
	_, ok = b.TryAcquire()
	fmt.Println(ok)
	// Output:
	// false
	// true
}
