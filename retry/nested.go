// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package retry

import "context"

type attemptKey struct{}

// WithAttempt returns ctx marked as the n-th attempt of a layer above, so that a Retrier
// given it makes one attempt only if n is more than one. Transports use it to carry an attempt's
// number into another process.
func WithAttempt(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, attemptKey{}, n)
}

// Attempt returns the number of the attempt that ctx belongs to: 1 for every first attempt.
func Attempt(ctx context.Context) int {
	if n, ok := ctx.Value(attemptKey{}).(int); ok {
		return n
	}
	return 1
}
