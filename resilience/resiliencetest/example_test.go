// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencetest_test

import (
	"fmt"

	"github.com/dovetail-go/dovetail/resilience/resiliencetest"
)

// What the suites check, such as for a table of who keeps which promise.
func ExamplePromises() {
	for _, p := range resiliencetest.Promises() {
		if p.Suite == "bulkhead" {
			fmt.Println(p.Text)
		}
	}
	// Output:
	// no more than the maximum run at once, whoever races
	// without a queue what cannot run is refused at once
	// the queue is bounded
	// waiters are served in order
	// a wait ends after Wait
	// the caller's end ends the wait with its error
	// a waiter cancelled in the moment of its grant loses no permit
	// a panic in the call gives the permit back
	// Goexit in the call gives the permit back
	// a success allocates nothing
}
