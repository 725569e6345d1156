// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"context"
	"log/slog"
	"runtime/debug"
	"time"
)

// Recover turns a panic into a [*PanicError] with its stack. Brokers' clients do so for
// themselves; put it inside middleware that should see a failure instead of a panic,
// such as [Logging] and [Guard].
func Recover() Middleware {
	return func(next Handler) Handler {
		return HandlerFunc(func(ctx context.Context, d *Delivery) (err error) {
			defer func() {
				if v := recover(); v != nil {
					err = &PanicError{Value: v, Stack: debug.Stack()}
				}
			}()
			return next.Handle(ctx, d)
		})
	}
}

// Timeout ends the handler's context after d; zero or less means no timeout. A handler
// that returns the context's error then has failed and is retried. One that ignores its
// context is not stopped.
func Timeout(d time.Duration) Middleware {
	return func(next Handler) Handler {
		if d <= 0 {
			return next
		}
		return HandlerFunc(func(ctx context.Context, del *Delivery) error {
			ctx, cancel := context.WithTimeout(ctx, d)
			defer cancel()
			return next.Handle(ctx, del)
		})
	}
}

// A Doer runs a function under some protection. Every guard of dovetail is one: a
// breaker, a bulkhead, a limiter, a whole resilience policy.
type Doer interface {
	Do(ctx context.Context, fn func(ctx context.Context) error) error
}

// Guard runs the handler under g. While g refuses, messages wait in the broker and use
// up no attempt.
func Guard(g Doer) Middleware {
	return func(next Handler) Handler {
		return HandlerFunc(func(ctx context.Context, d *Delivery) error {
			return g.Do(ctx, func(ctx context.Context) error { return next.Handle(ctx, d) })
		})
	}
}

// Handled is one call of a handler.
type Handled struct {
	Delivery *Delivery
	// Took is how long the handler ran.
	Took time.Duration
	// Err is what it returned, or a [*PanicError].
	Err error
}

// Observe calls fn after each call of the handler. It turns a panic into a
// [*PanicError], as [Recover] does. See [Hooks] for what the broker then did about it.
func Observe(fn func(ctx context.Context, h Handled)) Middleware {
	return func(next Handler) Handler {
		return HandlerFunc(func(ctx context.Context, d *Delivery) error {
			start := time.Now()
			var result error
			Invoke(ctx, next, d, func(err error) {
				result = err
				fn(ctx, Handled{Delivery: d, Took: time.Since(start), Err: err})
			})
			return result
		})
	}
}

// Logging logs each call of the handler: success at debug level, failure as a warning.
// Bodies, keys and header values stay out of the log, only the trace ID is told. A nil
// logger means slog.Default() at the time of the call.
func Logging(l *slog.Logger) Middleware {
	return Observe(func(ctx context.Context, h Handled) {
		l := l
		if l == nil {
			l = slog.Default()
		}
		level := slog.LevelDebug
		if h.Err != nil {
			level = slog.LevelWarn
		}
		if !l.Enabled(ctx, level) {
			return
		}
		m := h.Delivery.Message
		attrs := make([]slog.Attr, 0, 8)
		attrs = append(attrs,
			slog.String("group", h.Delivery.Group),
			slog.String("topic", m.Topic),
			slog.String("message_type", m.Type),
			slog.String("message_id", m.ID),
			slog.Int("attempt", h.Delivery.Attempt),
			slog.Duration("took", h.Took))
		if tc, ok := TraceFrom(m.Header); ok {
			attrs = append(attrs, slog.String("trace_id", tc.TraceID.String()))
		}
		if h.Err == nil {
			l.LogAttrs(ctx, level, "message handled", attrs...)
			return
		}
		l.LogAttrs(ctx, level, "message not handled", append(attrs, slog.Any("error", h.Err))...)
	})
}
