// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsourcemem_test

import (
	"context"
	"fmt"
	"log"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcemem"
)

func Example() {
	ctx := context.Background()
	store := eventsourcemem.New()
	events, err := eventsource.New(store, eventsource.Config{})
	if err != nil {
		log.Fatal(err)
	}
	tx := store.Begin()
	if err := events.Append(ctx, tx, "order-42", eventsource.None, eventsource.Event{Type: "order.placed.v1"}); err != nil {
		log.Fatal(err)
	}
	for range events.All(ctx, 0, eventsource.Filter{}) {
		fmt.Println("seen too early")
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}
	for e, err := range events.All(ctx, 0, eventsource.Filter{}) {
		fmt.Println(e.Stream, e.Version, e.Type, err)
	}
	// Output: order-42 1 order.placed.v1 <nil>
}
