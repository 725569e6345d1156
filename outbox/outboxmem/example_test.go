// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outboxmem_test

import (
	"context"
	"fmt"
	"log"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxmem"
)

func Example() {
	ctx := context.Background()
	store := outboxmem.New()
	box, err := outbox.New(store, outbox.Config{})
	if err != nil {
		log.Fatal(err)
	}
	tx := store.Begin()
	if err := box.Enqueue(ctx, tx, &messaging.Message{Topic: "order.placed", Key: "order-1"}); err != nil {
		log.Fatal(err)
	}
	depth := func() int {
		stats, err := box.Stats(ctx)
		if err != nil {
			log.Fatal(err)
		}
		return stats.Depth
	}
	fmt.Println("before the commit:", depth())
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("after the commit:", depth())
	// Output:
	// before the commit: 0
	// after the commit: 1
}
