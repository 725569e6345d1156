// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"net/http"
)

// Handler is everything that [Serve] serves, for who serves it otherwise. It is ready until running ends. Background
// work and consumers are not run.
func Handler(running context.Context, env Env, s Service) http.Handler {
	return env.Gate.awake(routes(running, env, s))
}

// WithDraining returns a context in which streams end when done is closed, see [Draining].
func WithDraining(ctx context.Context, done <-chan struct{}) context.Context {
	return context.WithValue(ctx, drainKey{}, done)
}
