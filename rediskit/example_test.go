// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rediskit_test

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/rediskit"
)

// A limit that four processes share. Nobody listens at this address, so each process keeps
// to its quarter of the limit until Redis is back.
func ExampleNewBuckets() {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	defer client.Close()
	buckets, err := rediskit.NewBuckets(client, rediskit.Config{Prefix: "api"})
	if err != nil {
		fmt.Println(err)
		return
	}
	limiter, err := ratelimit.NewLeased(buckets, ratelimit.Limit{Rate: 8, Per: time.Hour}, ratelimit.LeasedConfig{Replicas: 4})
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 3 {
		fmt.Println(limiter.Allow(context.Background(), "customer-1").OK)
	}
	// Output:
	// true
	// true
	// false
}

func ExampleNewCommands() {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379"})
	defer client.Close()
	_, err := rediskit.NewCommands(client, rediskit.Config{Prefix: "braces { are not for prefixes"})
	fmt.Println(err)
	// Output:
	// rediskit: Config.Prefix is "braces { are not for prefixes", want none of { and }
}

// A cache that processes share. Nobody listens at this address, so each process goes on
// with its own memory and its own loads until Redis is back.
func ExampleNewCache() {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	defer client.Close()
	store, err := rediskit.NewCache(client, rediskit.Config{Prefix: "shop"})
	if err != nil {
		fmt.Println(err)
		return
	}
	prices, err := cache.New("prices", cache.Config[int]{TTL: time.Hour, Store: store})
	if err != nil {
		fmt.Println(err)
		return
	}
	load := func(context.Context, string) (int, error) { return 350, nil }
	for range 2 {
		r, err := prices.Fetch(context.Background(), "tea", load)
		fmt.Println(r.Value, r.Source, err)
	}
	// Output:
	// 350 origin <nil>
	// 350 local <nil>
}
