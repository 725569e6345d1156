// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package fault_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

func ExampleJudge() {
	ctx := context.Background()
	for _, err := range []error{
		nil,
		errors.New("connection reset"),
		fault.Permanent(errors.New("no such customer")),
		fault.RetryAfter(errors.New("too busy"), 2*time.Second),
		context.DeadlineExceeded,
	} {
		v := fault.Judge(ctx, err)
		fmt.Println(v.Outcome, v.Retry, v.After, v.Unknown)
	}
	// Output:
	// success false 0s false
	// failure true 0s false
	// neutral false 0s false
	// failure true 2s false
	// failure true 0s true
}
