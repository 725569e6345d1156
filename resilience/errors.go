// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"context"
	"errors"
	"fmt"

	"github.com/dovetail-go/dovetail/fault"
)

// refusal reports whether a guard refused the call.
func refusal(err error) bool {
	var r *fault.Rejection
	return errors.As(err, &r)
}

// ended returns why ctx is done: its error, joined with its cause where there is one.
func ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if cause != nil && cause != err {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}
