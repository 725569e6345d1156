// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command bulkhead bounds how many calls to a slow dependency run at once, so that it cannot
// take every goroutine of the program with it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"sync/atomic"

	"github.com/dovetail-go/dovetail/bulkhead"
)

func main() {
	b, err := bulkhead.New(2, bulkhead.Config{Name: "reports", Queue: 1})
	if err != nil {
		log.Fatal(err)
	}
	release := make(chan struct{})
	var served, refused atomic.Int64
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			err := b.Do(context.Background(), func(context.Context) error {
				<-release // slow
				return nil
			})
			if errors.Is(err, bulkhead.ErrFull) {
				if refused.Add(1) == 7 {
					close(release) // two run, one waits, all others were refused at once
				}
				return
			}
			served.Add(1)
		})
	}
	all.Wait()
	fmt.Println(served.Load(), "served,", refused.Load(), "refused")
}

// Output:
// 3 served, 7 refused
