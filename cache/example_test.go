// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/cache/cachetest"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

func ExampleCache_Get() {
	ctx := context.Background()
	prices, err := cache.New("prices", cache.Config[int]{TTL: time.Minute})
	if err != nil {
		fmt.Println(err)
		return
	}
	load := func(_ context.Context, key string) (int, error) {
		fmt.Println("load", key)
		if key != "tea" {
			return 0, fmt.Errorf("price of %s: %w", key, cache.ErrNotFound)
		}
		return 350, nil
	}
	for _, key := range []string{"tea", "tea", "gold", "gold"} {
		price, err := prices.Get(ctx, key, load)
		fmt.Println(price, err, errors.Is(err, cache.ErrNotFound))
	}
	// Output:
	// load tea
	// 350 <nil> false
	// 350 <nil> false
	// load gold
	// 0 price of gold: cache: not found true
	// 0 price of gold: cache: not found true
}

// Two processes share a store. What one of them changes the other hears by a message.
func ExampleCache_Handler() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	store := cachetest.NewStore() // rediskit.NewCache in production
	broker, err := messagingmem.New(messagingmem.Config{ConfirmOnAck: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	price := 350
	load := func(context.Context, string) (int, error) { return price, nil }

	var processes []*cache.Cache[int]
	for i := range 2 {
		c, err := cache.New("prices", cache.Config[int]{Store: store})
		if err != nil {
			fmt.Println(err)
			return
		}
		processes = append(processes, c)
		s := messaging.Subscription{Group: fmt.Sprint("prices-cache-", i), Topics: []string{"price.changed"}}
		if err := broker.Declare(ctx, s); err != nil {
			fmt.Println(err)
			return
		}
		go broker.Subscribe(ctx, s, c.Handler(func(_ context.Context, d *messaging.Delivery) ([]string, error) {
			return []string{d.Message.Key}, nil
		}))
		v, _ := c.Get(ctx, "tea", load)
		fmt.Println(v)
	}
	price = 375
	if err := broker.Publish(ctx, &messaging.Message{ID: messaging.NewID(), Topic: "price.changed", Key: "tea"}); err != nil {
		fmt.Println(err)
	}
	for _, c := range processes {
		v, _ := c.Get(ctx, "tea", load)
		fmt.Println(v)
	}
	// Output:
	// 350
	// 350
	// 375
	// 375
}
