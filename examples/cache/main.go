// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command cache reads one product a thousand times at once, changes it, and goes on when its
// database is down.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/cache"
)

// database is slow, and sometimes down.
type database struct {
	name  atomic.Value
	down  atomic.Bool
	reads atomic.Int64
}

func (d *database) product(_ context.Context, _ string) (string, error) {
	d.reads.Add(1)
	time.Sleep(20 * time.Millisecond)
	if d.down.Load() {
		return "", errors.New("database is down")
	}
	return d.name.Load().(string), nil
}

func main() {
	ctx := context.Background()
	products, err := cache.New("products", cache.Config[string]{TTL: time.Second, StaleFor: time.Hour, Early: -1})
	if err != nil {
		log.Fatal(err)
	}
	db := &database{}
	db.name.Store("tea")

	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() {
			if _, err := products.Get(ctx, "42", db.product); err != nil {
				log.Fatal(err)
			}
		})
	}
	wg.Wait()
	fmt.Println("reads of the database:", db.reads.Load())

	db.name.Store("green tea")
	if err := products.Invalidate(ctx, "42"); err != nil {
		log.Fatal(err)
	}
	name, err := products.Get(ctx, "42", db.product)
	fmt.Println(name, err)

	db.down.Store(true)
	time.Sleep(1100 * time.Millisecond) // until the value is too old
	r, err := products.Fetch(ctx, "42", db.product)
	fmt.Println(r.Value, r.Source, err)
	_, err = products.Get(ctx, "43", db.product)
	fmt.Println(err)
}

// Output:
// reads of the database: 1
// green tea <nil>
// green tea expired <nil>
// cache products: load "43": database is down
