// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/ratelimit"
)

func Example() {
	l, err := ratelimit.New(ratelimit.PerMinute(2), ratelimit.Config{})
	if err != nil {
		panic(err)
	}
	for range 3 {
		r := l.Allow()
		fmt.Println(r.OK, r.Remaining, r.RetryAfter.Round(time.Second))
	}
	// Output:
	// true 1 0s
	// true 0 0s
	// false 0 30s
}

// Wait takes its turn, and fails at once if that is too late.
func ExampleLimiter_Wait() {
	l, _ := ratelimit.New(ratelimit.PerMinute(1), ratelimit.Config{})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	fmt.Println(l.Wait(ctx))
	fmt.Println(errors.Is(l.Wait(ctx), ratelimit.ErrLimited))
	// Output:
	// <nil>
	// true
}

// One limit per client, in bounded memory.
func ExampleKeyed() {
	clients, err := ratelimit.NewKeyed[string](ratelimit.PerMinute(1), 100_000)
	if err != nil {
		panic(err)
	}
	fmt.Println(clients.Allow("10.0.0.1").OK, clients.Allow("10.0.0.1").OK, clients.Allow("10.0.0.2").OK)
	// Output: true false true
}

// A limit that many processes share: the store decides, and busy keys take tokens in advance.
func ExampleLeased() {
	store := newMemory() // Redis, usually
	l, err := ratelimit.NewLeased(store, ratelimit.Limit{Rate: 1000, Burst: 1000}, ratelimit.LeasedConfig{
		Replicas: 4,
		Fallback: ratelimit.FallbackSplit, // without the store: 250 a second for each process
	})
	if err != nil {
		panic(err)
	}
	for range 1000 {
		l.Allow(context.Background(), "customer 7")
	}
	s := l.Stats()
	fmt.Println(s.Local > 950, s.Remote < 50)
	// Output: true true
}

func ExampleLimiter_Reconfigure() {
	l, _ := ratelimit.New(ratelimit.PerMinute(60), ratelimit.Config{})
	l.AllowN(50)
	l.Reconfigure(ratelimit.Limit{Rate: 600, Per: time.Minute, Burst: 60})
	fmt.Println(l.Stats().Remaining)
	// Output: 10
}
