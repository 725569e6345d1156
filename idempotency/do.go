// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

// Do runs fn once under key and returns its result, now and at every repetition for as
// long as the store remembers it.
//
// The result is stored as JSON, so a repetition returns what JSON keeps of it: exported
// fields, no monotonic clock reading, numbers in an any as float64. A repetition has the
// same fingerprint, or gets [ErrMismatch]. While fn runs anywhere, other callers get
// [ErrInProgress].
//
// If fn returns an error, panics, or its result has no JSON form, nothing is stored and
// the next caller runs it again. The context of fn ends, with [ErrLeaseLost] as its
// cause, when the key was lost to another caller, for example after a long pause of
// this process. If fn was done but its result could not be stored, Do returns both
// the result and an error that satisfies [fault.IsUnknown]: the next caller may run fn again.
//
// If ctx has ended before fn was to begin, fn does not run and the key stays free. A call of
// the store that is on its way then is waited for, at most five seconds: given up, it might
// claim the key for nobody.
//
// A crash after fn's effect and before its result is stored lets the next caller run
// fn again, after the lease. Where the effect is in a database of your own, an [Inbox]
// in its transaction has no such gap; a remote effect needs its own idempotency, for
// which key makes a good key.
func Do[T any](ctx context.Context, store Store, key Key, fingerprint []byte, fn func(ctx context.Context) (T, error)) (result T, err error) {
	if err := ctx.Err(); err != nil {
		return result, fmt.Errorf("idempotency: begin %q: %w", key.ID, err)
	}
	begun := time.Now()
	claim, err := begin(ctx, store, Command{Key: key, Fingerprint: fingerprint})
	if err != nil {
		return result, fmt.Errorf("idempotency: begin %q: %w", key.ID, err)
	}
	if claim.Done {
		if err := json.Unmarshal(claim.Result, &result); err != nil {
			return result, fault.Permanent(fmt.Errorf("idempotency: stored result of %q: %w", key.ID, err))
		}
		return result, nil
	}
	if err := ctx.Err(); err != nil {
		_ = release(ctx, store, claim) // if it cannot, the lease ends
		return result, fmt.Errorf("idempotency: begin %q: %w", key.ID, err)
	}
	work, stop := hold(ctx, store, claim, begun, func() bool { return false })
	stored := false
	defer func() {
		stop()
		if !stored {
			_ = release(ctx, store, claim) // also on a panic; if it cannot, the lease ends
		}
	}()
	if result, err = fn(work); err != nil {
		if cause := context.Cause(work); errors.Is(cause, ErrLeaseLost) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return result, err
	}
	text, err := json.Marshal(result)
	if err != nil {
		return result, fault.Permanent(fmt.Errorf("idempotency: result of %q: %w", key.ID, err))
	}
	stop()
	stored = true // or unknown, and then it must not be released
	if err := complete(ctx, store, claim, text); err != nil {
		return result, fault.Unknown(fmt.Errorf("idempotency: store the result of %q: %w", key.ID, err))
	}
	return result, nil
}
