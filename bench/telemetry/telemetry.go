// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package telemetry measures what being watched costs a call that goes well, through retry, bulkhead and
// breaker.
package telemetry

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	nometric "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"
	notrace "go.opentelemetry.io/otel/trace/noop"

	"github.com/dovetail-go/dovetail/bench/internal/run"
	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/otelkit"
	"github.com/dovetail-go/dovetail/promkit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

// Peers are the modules that do the work below ours.
var Peers = []string{"go.opentelemetry.io/otel", "go.opentelemetry.io/otel/sdk", "github.com/prometheus/client_golang"}

const group = "guarded_call"

// Report measures a guarded call with more and more telemetry, and writes the tables to w.
func Report(_ context.Context, stdout, w io.Writer, rounds int, each time.Duration) error {
	s := suite()
	results, err := s.Run(stdout, rounds, each)
	if err != nil {
		return err
	}
	s.Report(w, results)
	fmt.Fprint(w, "\n### All of it\n\n| | CPU, as a multiple of none |\n| --- | ---: |\n")
	for _, r := range results {
		fmt.Fprintf(w, "| %s | %.2f |\n", r.Name, float64(r.CPU)/float64(results[0].CPU))
	}
	fmt.Fprint(w, "\nSuccess paths of guards call no hook. A span, and a histogram of a call's times, are what `otelkit.Do` adds around a call that "+
		"wants them: most of its cost is the SDK's.\n")
	return nil
}

func suite() run.Suite {
	s := run.Suite{Title: "Telemetry, success path", Cases: cases()}
	const why = "nothing is called on this path: what is measured is the machine"
	s.Goals = []run.Goal{
		{What: "promkit's collectors cost a call nothing", Group: group, Ours: "promkit", Theirs: "none", Most: 1.25, Why: why},
		{What: "otelkit's hooks cost a call nothing", Group: group, Ours: "promkit_and_otelkit_hooks", Theirs: "none", Most: 1.25, Why: why},
	}
	return s
}

func cases() []run.Case {
	meters := metric.NewMeterProvider(metric.WithReader(metric.NewManualReader()))
	metrics := kit(otelkit.Config{MeterProvider: meters, TracerProvider: notrace.NewTracerProvider()})
	unsampled := kit(otelkit.Config{MeterProvider: meters, TracerProvider: trace.NewTracerProvider(trace.WithSampler(trace.NeverSample()))})
	sampled := kit(otelkit.Config{MeterProvider: meters, TracerProvider: trace.NewTracerProvider(trace.WithBatcher(nowhere{}))})
	spans := kit(otelkit.Config{MeterProvider: nometric.NewMeterProvider(), TracerProvider: trace.NewTracerProvider(trace.WithBatcher(nowhere{}))})

	plain, shown, hooked := policy(nil), policy(nil), policy(metrics)
	show(shown)
	show(hooked)
	watched := func(k *otelkit.Kit) func(b *testing.B) {
		p := policy(k)
		show(p)
		return loop(func() (int, error) {
			return otelkit.Do(ctx, k, "charge card", func(ctx context.Context) (int, error) { return resilience.Do(ctx, p, call) })
		})
	}
	return []run.Case{
		{Group: group, Name: "none", Bench: loop(func() (int, error) { return resilience.Do(ctx, plain, call) })},
		{Group: group, Name: "promkit", Bench: loop(func() (int, error) { return resilience.Do(ctx, shown, call) })},
		{Group: group, Name: "promkit_and_otelkit_hooks", Bench: loop(func() (int, error) { return resilience.Do(ctx, hooked, call) })},
		{Group: group, Name: "and_a_histogram", Bench: watched(metrics)},
		{Group: group, Name: "and_spans_not_sampled", Bench: watched(unsampled)},
		{Group: group, Name: "and_spans_sampled", Bench: watched(sampled)},
		{Group: group, Name: "spans_sampled_without_the_histogram", Bench: watched(spans)},
	}
}

var ctx = context.Background()

func call(context.Context) (int, error) { return 1, nil }

// loop measures fn, which must not fail.
func loop(fn func() (int, error)) func(b *testing.B) {
	return func(b *testing.B) {
		for b.Loop() {
			if _, err := fn(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// must ends the run if a case cannot be set up.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func kit(cfg otelkit.Config) *otelkit.Kit { return must(otelkit.New(cfg)) }

// policy has the hooks of k, none if that is nil.
func policy(k *otelkit.Kit) *resilience.Policy {
	r, b, full := retry.Config{Name: "payment"}, breaker.Config{Name: "payment", FailureRate: 0.5}, bulkhead.Config{Name: "payment"}
	if k != nil {
		r.Hooks, b.Hooks, full.Hooks = k.Retry(), k.Breaker(), k.Bulkhead()
	}
	return &resilience.Policy{Retry: must(retry.New(r)), Bulkhead: must(bulkhead.New(10, full)), Breaker: must(breaker.New(b))}
}

// show has a policy's guards in a registry of Prometheus.
func show(p *resilience.Policy) {
	prometheus.NewRegistry().MustRegister(promkit.Retries(p.Retry), promkit.Breakers(p.Breaker), promkit.Bulkheads(p.Bulkhead))
}

// nowhere is where spans are exported to.
type nowhere struct{}

func (nowhere) ExportSpans(context.Context, []trace.ReadOnlySpan) error { return nil }
func (nowhere) Shutdown(context.Context) error                          { return nil }
