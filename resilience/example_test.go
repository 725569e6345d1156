// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resilience_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

func Example() {
	retrier, err := retry.New(retry.Config{Base: time.Millisecond})
	if err != nil {
		panic(err)
	}
	places, err := bulkhead.New(50, bulkhead.Config{Name: "users", Queue: 100, Wait: time.Second})
	if err != nil {
		panic(err)
	}
	brk, err := breaker.New(breaker.Config{Name: "users"})
	if err != nil {
		panic(err)
	}
	users := &resilience.Policy{
		Total:    2 * time.Second,
		Retry:    retrier,
		Bulkhead: places,
		Breaker:  brk,
		Attempt:  500 * time.Millisecond,
	}

	calls := 0
	name, err := resilience.Do(context.Background(), users, func(ctx context.Context) (string, error) {
		if calls++; calls == 1 {
			return "", errors.New("connection reset")
		}
		return "ada", nil
	})
	fmt.Println(name, err, calls)
	// Output: ada <nil> 2
}

func ExampleFallback() {
	p := &resilience.Policy{}
	down := func(context.Context) (string, error) { return "", errors.New("down") }
	cached := func(_ context.Context, err error) (string, error) { return "yesterday's prices", nil }

	v, err := resilience.Fallback(context.Background(), p, down, cached)
	fmt.Println(v, err)
	// Output: yesterday's prices <nil>
}

// A read that is late is made a second time, and the first answer counts.
func ExampleDoHedged() {
	h, err := resilience.NewHedge(resilience.HedgeConfig{Delay: 10 * time.Millisecond})
	if err != nil {
		panic(err)
	}
	replicas := make(chan string, 2)
	replicas <- "slow replica"
	replicas <- "fast replica"
	v, err := resilience.DoHedged(context.Background(), &resilience.Policy{}, h, func(ctx context.Context) (string, error) {
		replica := <-replicas
		if replica == "slow replica" {
			<-ctx.Done() // it is cancelled when the other has answered
			return "", ctx.Err()
		}
		return replica, nil
	})
	fmt.Println(v, err)
	// Output: fast replica <nil>
}

// Under overload, what matters least is refused first.
func ExampleAdaptive() {
	a, err := resilience.NewAdaptive(resilience.AdaptiveConfig{Initial: 4})
	if err != nil {
		panic(err)
	}
	batch := resilience.WithCriticality(context.Background(), resilience.Sheddable)
	for range 3 {
		_, err := a.Acquire(batch) // half of the limit is open to it
		fmt.Println(err)
	}
	_, err = a.Acquire(context.Background())
	fmt.Println(err)
	// Output:
	// <nil>
	// <nil>
	// adaptive: too much in flight
	// <nil>
}

// The criticality of a call orders the queue of a bulkhead.
func ExampleCriticalityOf() {
	_, err := bulkhead.New(10, bulkhead.Config{
		Queue:    100,
		Priority: func(ctx context.Context) int { return int(resilience.CriticalityOf(ctx)) },
	})
	fmt.Println(err)
	// Output: <nil>
}

// A stream passes the guards when it is opened, and frees its places when it has been read.
func ExamplePolicy_Acquire() {
	places, _ := bulkhead.New(1, bulkhead.Config{})
	p := &resilience.Policy{Bulkhead: places}

	ticket, err := p.Acquire(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	ticket.Settle(nil) // the stream is open
	fmt.Println(places.Stats().InFlight)
	ticket.Release() // and has been read
	fmt.Println(places.Stats().InFlight)
	// Output:
	// 1
	// 0
}

// One place judges errors for all guards.
func ExamplePolicy_classify() {
	errNotFound := errors.New("not found")
	retrier, _ := retry.New(retry.Config{})
	p := &resilience.Policy{
		Retry: retrier,
		Classify: func(ctx context.Context, err error) fault.Verdict {
			if errors.Is(err, errNotFound) {
				return fault.Verdict{Outcome: fault.Success}
			}
			return fault.Judge(ctx, err)
		},
	}
	calls := 0
	err := p.Do(context.Background(), func(context.Context) error { calls++; return errNotFound })
	fmt.Println(err, calls)
	// Output: not found 1
}

// A timeout that costs nothing when the caller's deadline is nearer.
func ExampleWithTimeout() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()

	near, cancelNear := resilience.WithTimeout(ctx, time.Minute)
	defer cancelNear()
	fmt.Println(near == ctx)
	// Output: true
}
