// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/trace"
)

// LogHandler returns a handler that adds trace_id and span_id to what is logged with a context
// that has a span (Logger.InfoContext and the like), and the named members of its baggage where it has them. They
// stand beside the message, whatever group the logger has opened. Levels and output are next's.
func LogHandler(next slog.Handler, members ...string) slog.Handler {
	return &logHandler{next: next, base: next, members: members}
}

type logHandler struct {
	// next has all attributes and groups, base those before the first group, grouped what came
	// after it: attributes beside the message have to be added to base.
	next, base slog.Handler
	grouped    []func(slog.Handler) slog.Handler
	members    []string
}

// Enabled implements [slog.Handler].
func (h *logHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// Handle implements [slog.Handler].
func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	attrs := h.correlate(ctx)
	if len(attrs) == 0 {
		return h.next.Handle(ctx, r)
	}
	if len(h.grouped) == 0 {
		r = r.Clone() // its attributes may share memory with another's
		r.AddAttrs(attrs...)
		return h.next.Handle(ctx, r)
	}
	next := h.base.WithAttrs(attrs)
	for _, add := range h.grouped {
		next = add(next)
	}
	return next.Handle(ctx, r)
}

func (h *logHandler) correlate(ctx context.Context) (attrs []slog.Attr) {
	if ctx == nil {
		return nil
	}
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		attrs = append(attrs, slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String()))
	}
	if len(h.members) == 0 {
		return attrs
	}
	for all, i := baggage.FromContext(ctx), 0; i < len(h.members); i++ {
		if value := all.Member(h.members[i]).Value(); value != "" {
			attrs = append(attrs, slog.String(h.members[i], value))
		}
	}
	return attrs
}

// WithAttrs implements [slog.Handler].
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(attrs) == 0 {
		return h
	}
	return h.with(func(next slog.Handler) slog.Handler { return next.WithAttrs(attrs) }, false)
}

// WithGroup implements [slog.Handler].
func (h *logHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return h.with(func(next slog.Handler) slog.Handler { return next.WithGroup(name) }, true)
}

func (h *logHandler) with(add func(slog.Handler) slog.Handler, group bool) slog.Handler {
	out := &logHandler{next: add(h.next), base: h.base, members: h.members}
	if group || len(h.grouped) > 0 {
		out.grouped = append(h.grouped[:len(h.grouped):len(h.grouped)], add)
	} else {
		out.base = out.next
	}
	return out
}
