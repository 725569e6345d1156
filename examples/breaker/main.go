// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command breaker calls a dependency that breaks and recovers.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
)

func main() {
	ctx := context.Background()
	b, err := breaker.New(breaker.Config{
		Name: "users", Consecutive: 3, OpenFor: 20 * time.Millisecond,
		Hooks: breaker.Hooks{Change: func(c breaker.Change) { fmt.Println(c.From, "->", c.To) }},
	})
	if err != nil {
		log.Fatal(err)
	}
	broken := true
	getUser := func(context.Context) (string, error) {
		if broken {
			return "", errors.New("connection refused")
		}
		return "Ada", nil
	}
	for range 3 {
		_, err = breaker.Do(ctx, b, getUser)
		fmt.Println(err)
	}
	_, err = breaker.Do(ctx, b, getUser) // not called any more
	fmt.Println(errors.Is(err, breaker.ErrOpen))

	broken = false
	time.Sleep(b.Stats().RetryAfter + time.Millisecond)
	user, err := breaker.Do(ctx, b, getUser) // one probe
	fmt.Println(user, err)
}

// Output:
// connection refused
// connection refused
// closed -> open
// connection refused
// true
// open -> half-open
// half-open -> closed
// Ada <nil>
