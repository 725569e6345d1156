// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package retry

import (
	"context"
	"errors"
	"fmt"
)

// The causes of giving up, beside the end of the caller's context. When the next delay would
// cross the context's deadline, the cause is context.DeadlineExceeded.
var (
	// ErrExhausted means that Config.Attempts were made.
	ErrExhausted = errors.New("attempts are used up")
	// ErrElapsed means that the next attempt would begin later than Config.Elapsed allows.
	ErrElapsed = errors.New("elapsed time is used up")
	// ErrBudget means that the budget is spent: too many other calls are retrying.
	ErrBudget = errors.New("retry budget is spent")
	// ErrAfter means that the callee asked for a longer wait than Config.AfterMax.
	ErrAfter = errors.New("asked to wait longer than AfterMax")
	// ErrUnknown means that the effect is unknown and the call may not be repeated.
	ErrUnknown = errors.New("effect is unknown and the call is not idempotent")
)

// errDeadline is the cause when a delay does not fit: nobody has waited in vain.
var errDeadline = fmt.Errorf("the next delay would cross the deadline: %w", context.DeadlineExceeded)

// Error says that a call was given up although another attempt might have helped.
type Error struct {
	// Attempts is how many times the function was called.
	Attempts int
	// Last is the error of the last attempt, or of the one before it where the last one
	// only saw the end of the caller's context.
	Last error
	// Cause is why there was no further attempt.
	Cause error
}

// Error returns the cause and the last error.
func (e *Error) Error() string {
	plural := "s"
	if e.Attempts == 1 {
		plural = ""
	}
	return fmt.Sprintf("retry: gave up after %d attempt%s (%v): %v", e.Attempts, plural, e.Cause, e.Last)
}

// Unwrap returns Last and Cause: both are true.
func (e *Error) Unwrap() []error { return []error{e.Last, e.Cause} }
