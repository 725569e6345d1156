// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"context"
	"fmt"

	"github.com/dovetail-go/dovetail/fault"
)

// Fallback is Do with a second way: when the call under p fails or is refused, it returns
// fallback's result, such as a cached or a default value. fallback receives ctx, which is not
// bounded by p, and the error; it may return that error itself.
//
// It is not called for an error that is an answer (fault.Permanent: the request was wrong,
// another source will not know better), nor when the caller's own context has ended. When fallback
// fails too, the error unwraps to both.
func Fallback[T any](ctx context.Context, p *Policy, fn func(context.Context) (T, error), fallback func(ctx context.Context, err error) (T, error)) (T, error) {
	v, err := Do(ctx, p, fn)
	if err == nil || ctx.Err() != nil {
		return v, err
	}
	verdict := fault.Judge(ctx, err)
	if p.Classify != nil {
		verdict = p.Classify(ctx, err)
	}
	if verdict.Outcome == fault.Neutral && !refusal(err) {
		return v, err
	}
	second, err2 := fallback(ctx, err)
	if err2 != nil && err2 != err {
		return second, fmt.Errorf("%w (fallback: %w)", err, err2)
	}
	return second, err2
}
