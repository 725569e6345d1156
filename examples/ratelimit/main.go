// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command ratelimit gives each client a quota, in bounded memory.
package main

import (
	"fmt"
	"log"

	"github.com/dovetail-go/dovetail/ratelimit"
)

func main() {
	quota, err := ratelimit.NewKeyed[string](ratelimit.Limit{Rate: 1, Burst: 3}, 10_000)
	if err != nil {
		log.Fatal(err)
	}
	for range 4 {
		r := quota.Allow("ada")
		fmt.Println("ada", r.OK, r.Remaining)
	}
	fmt.Println("ben", quota.Allow("ben").OK)
}

// Output:
// ada true 2
// ada true 1
// ada true 0
// ada false 0
// ben true
