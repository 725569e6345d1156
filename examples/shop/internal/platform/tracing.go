// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/metric"
	nometric "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"github.com/dovetail-go/dovetail/otelkit"
)

// OrderMember is the member of the baggage that names the order which something is about. It goes wherever the
// trace goes, onto every span and every line of the log on the way.
const OrderMember = "order.id"

// WithOrder returns ctx as one that is about an order.
func WithOrder(ctx context.Context, id string) context.Context {
	member, err := baggage.NewMemberRaw(OrderMember, id)
	if err != nil {
		return ctx
	}
	all, err := baggage.FromContext(ctx).SetMember(member)
	if err != nil {
		return ctx
	}
	return baggage.ContextWithBaggage(ctx, all)
}

// Telemetry is what one service tells of its work: spans, which it keeps for the operator's console and may
// export, and metrics, which it may export too. A nil Telemetry tells nothing.
type Telemetry struct {
	*otelkit.Kit
	// Spans are the last ones that ended here.
	Spans *SpanStore

	traces *sdktrace.TracerProvider
	meters *sdkmetric.MeterProvider // nil without an exporter
	// shown is the registry of the service in its present life.
	shown atomic.Pointer[prometheus.Registry]
}

// NewTelemetry returns the telemetry of one instance of a service. What OTEL_EXPORTER_OTLP_ENDPOINT or its forms for
// traces and metrics name gets them by OTLP over HTTP; where they are not set, nothing leaves the process. OTEL_TRACES_SAMPLER,
// OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_SCHEDULE_DELAY and the others of the specification mean what they mean there.
func NewTelemetry(ctx context.Context, service, instance string, log *slog.Logger) (*Telemetry, error) {
	res, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithFromEnv(), resource.WithAttributes(
		semconv.ServiceNamespace("shop"), semconv.ServiceName(service), semconv.ServiceInstanceID(instance)))
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	t := &Telemetry{Spans: NewSpanStore(service, instance)}
	traces := []sdktrace.TracerProviderOption{sdktrace.WithResource(res), sdktrace.WithSpanProcessor(t.Spans)}
	var meters metric.MeterProvider = nometric.NewMeterProvider()
	if exports("TRACES") {
		exporter, err := otlptracehttp.New(ctx)
		if err != nil {
			return nil, fmt.Errorf("telemetry: traces: %w", err)
		}
		traces = append(traces, sdktrace.WithBatcher(exporter))
		log.Info("traces are exported by OTLP")
	}
	t.traces = sdktrace.NewTracerProvider(traces...)
	if exports("METRICS") {
		exporter, err := otlpmetrichttp.New(ctx)
		if err != nil {
			return nil, fmt.Errorf("telemetry: metrics: %w", err)
		}
		// What Prometheus would be shown goes along.
		producer := bridge.NewMetricProducer(bridge.WithGatherer(prometheus.GathererFunc(t.gather)))
		t.meters = sdkmetric.NewMeterProvider(sdkmetric.WithResource(res), sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter, sdkmetric.WithProducer(producer))))
		meters = t.meters
		log.Info("metrics are exported by OTLP")
	}
	t.Kit, err = otelkit.New(otelkit.Config{TracerProvider: t.traces, MeterProvider: meters, MessagingSystem: "shop"})
	return t, err
}

// exports reports whether the environment names somebody to export a signal to.
func exports(signal string) bool {
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != ""
}

func (t *Telemetry) gather() ([]*dto.MetricFamily, error) {
	if registry := t.shown.Load(); registry != nil {
		return registry.Gather()
	}
	return nil, nil
}

// flushTime bounds how long a process that ends waits for what it exports to.
const flushTime = 3 * time.Second

// Close exports what is left. An exporter that does not answer is only worth a line in the log.
func (t *Telemetry) Close(log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	err := t.traces.Shutdown(ctx)
	if t.meters != nil {
		err = errors.Join(err, t.meters.Shutdown(ctx))
	}
	if err != nil {
		log.Warn("the last spans or metrics were not exported", "error", err)
	}
}

// silent is the kit of who tells nothing.
var silent = sync.OnceValue(func() *otelkit.Kit {
	kit, err := otelkit.New(otelkit.Config{TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample())), MeterProvider: nometric.NewMeterProvider()})
	if err != nil {
		panic(err) // nothing refuses an instrument there
	}
	return kit
})

// kit makes hooks and middleware, also for a service that tells nothing.
func (t *Telemetry) kit() *otelkit.Kit {
	if t == nil {
		return silent()
	}
	return t.Kit
}

// Tracing makes hooks for the service's own blocks.
func (e Env) Tracing() *otelkit.Kit { return e.Telemetry.kit() }

// show has a service's metrics exported.
func (t *Telemetry) show(registry *prometheus.Registry) {
	if t != nil {
		t.shown.Store(registry)
	}
}

// told reports whether a request is worth a span: what operators and machines ask again and again is not.
func told(r *http.Request) bool {
	switch path := r.URL.Path; path {
	case "/livez", "/readyz", "/metrics", "/openapi.yaml":
		return false
	default:
		return !strings.HasPrefix(path, "/ops") && !strings.HasPrefix(path, "/.well-known/") && !strings.HasPrefix(path, "/assets/")
	}
}

// Client makes a span of each call through base, and sends the trace along.
func (t *Telemetry) Client(base http.RoundTripper) http.RoundTripper {
	if t == nil {
		return base
	}
	return t.Transport(base, otelhttp.WithFilter(told))
}

// serve makes a span of each request. What comes in through the gateway begins a trace: nobody outside can
// say that it belongs to one of ours.
func (t *Telemetry) serve(entrance bool, next http.Handler) http.Handler {
	if t == nil {
		return next
	}
	opts := []otelhttp.Option{otelhttp.WithFilter(told)}
	if entrance {
		opts = append(opts, otelkit.Public())
	}
	return t.Server(opts...)(next)
}

// dial makes a span of each call by gRPC.
func (t *Telemetry) dial() []grpc.DialOption {
	if t == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(t.rpc()...))}
}

// answer makes a span of each call by gRPC that comes in.
func (t *Telemetry) answer() []grpc.ServerOption {
	if t == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(t.rpc()...))}
}

func (t *Telemetry) rpc() []otelgrpc.Option {
	opts := []otelgrpc.Option{otelgrpc.WithTracerProvider(t.traces), otelgrpc.WithPropagators(otelkit.Propagator())}
	if t.meters != nil {
		return append(opts, otelgrpc.WithMeterProvider(t.meters))
	}
	return append(opts, otelgrpc.WithMeterProvider(nometric.NewMeterProvider()))
}

// TraceOf returns the ID of the trace that ctx is in, "" for none.
func TraceOf(ctx context.Context) string {
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		return span.TraceID().String()
	}
	return ""
}
