// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"errors"

	"github.com/dovetail-go/dovetail/fault"
)

// refusal reports whether a guard refused the call.
func refusal(err error) bool {
	var r *fault.Rejection
	return errors.As(err, &r)
}
