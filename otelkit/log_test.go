// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"testing"
	"testing/slogtest"

	"github.com/dovetail-go/dovetail/otelkit"
)

func TestLogHandlerIsAHandler(t *testing.T) {
	var out bytes.Buffer
	slogtest.Run(t, func(*testing.T) slog.Handler {
		out.Reset()
		return otelkit.LogHandler(slog.NewJSONHandler(&out, nil), "order.id")
	}, func(t *testing.T) map[string]any { return line(t, &out) })
}

func line(t *testing.T, out *bytes.Buffer) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(out.Bytes(), &m); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return m
}

func TestRecordsTellTheirTrace(t *testing.T) {
	w := watch(t, otelkit.Config{})
	ctx, span := w.tracer.Start(withBaggage(t, t.Context(), "order.id", "o-17"), "s")
	defer span.End()
	var out bytes.Buffer
	plain := slog.New(otelkit.LogHandler(slog.NewJSONHandler(&out, nil), "order.id", "absent"))
	for name, log := range map[string]*slog.Logger{
		"plain": plain, "with attributes": plain.With("a", 1), "in a group": plain.WithGroup("g").With("a", 1), "in groups": plain.With("b", 1).WithGroup("g").WithGroup("h"),
	} {
		out.Reset()
		log.InfoContext(ctx, "hello", "x", 1)
		m := line(t, &out)
		if m["trace_id"] != span.SpanContext().TraceID().String() || m["span_id"] != span.SpanContext().SpanID().String() || m["order.id"] != "o-17" {
			t.Errorf("%s: %v, want the trace, the span and the order beside the message", name, m)
		}
		if _, there := m["absent"]; there {
			t.Errorf("%s: %v, want nothing of a member that is not there", name, m)
		}
	}
	out.Reset()
	plain.InfoContext(t.Context(), "hello")
	if m := line(t, &out); m["trace_id"] != nil || m["order.id"] != nil {
		t.Errorf("without a span: %v, want nothing of a trace", m)
	}
}
