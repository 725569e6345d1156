// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

func TestLogTellsTraceAndOrder(t *testing.T) {
	t.Setenv(logVar, "json")
	ctx, span := sdktrace.NewTracerProvider().Tracer("test").Start(platform.WithOrder(t.Context(), "o-17"), "s")
	defer span.End()
	var out bytes.Buffer
	logger(&out, false).InfoContext(ctx, "hello")
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%v in %s", err, &out)
	}
	if line["trace_id"] != platform.TraceOf(ctx) || line["span_id"] != span.SpanContext().SpanID().String() || line[platform.OrderMember] != "o-17" {
		t.Errorf("line %v, want the trace, the span and the order", line)
	}
}

// TestLogFile has the access log in the file that is shipped, and not on the terminal.
func TestLogFile(t *testing.T) {
	t.Setenv(logVar, "")
	var terminal, file bytes.Buffer
	log := alsoTo(&file, logger(&terminal, false))
	log.Debug("request", "path", "/api/products")
	log.Info("hello")
	if got := terminal.String(); strings.Contains(got, "request") || !strings.Contains(got, "hello") {
		t.Errorf("the terminal has %q, want hello alone", got)
	}
	var line struct{ Msg, Path string }
	first, second, _ := strings.Cut(file.String(), "\n")
	if err := json.Unmarshal([]byte(first), &line); err != nil || line.Path != "/api/products" || !strings.Contains(second, "hello") {
		t.Errorf("the file has %q (%v), want the request and hello", file.String(), err)
	}
}

func TestLogFlag(t *testing.T) {
	t.Setenv(logVar, "")
	cmd := command()
	cmd.SetArgs([]string{"check", "--log", "xml"})
	if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.HasPrefix(err.Error(), `--log is "xml", want text or json`) {
		t.Errorf("--log xml: %v, want an error that says what is wanted", err)
	}
}
