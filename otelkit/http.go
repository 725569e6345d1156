// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit

import (
	"context"
	"net/http"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/dovetail-go/dovetail/retry"
)

// Server returns otelhttp's middleware on the kit's providers: a span of kind server for each request, named
// after the route that [http.ServeMux] finds and never after the path, and the metrics of the
// conventions. It goes outside of everything. An entry that anybody can reach wants [Public], too.
func (k *Kit) Server(opts ...otelhttp.Option) func(http.Handler) http.Handler {
	observe := otelhttp.NewMiddleware("", k.options(opts)...)
	return func(next http.Handler) http.Handler {
		return observe(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			found := new(string)
			request := r.WithContext(context.WithValue(r.Context(), routeKey{}, found))
			defer func() {
				if *found == "" {
					*found = request.Pattern
				}
				r.Pattern = *found // otelhttp looks at its own request
				if *found != "" {
					trace.SpanFromContext(r.Context()).SetAttributes(semconv.HTTPRoute(route(*found)))
				}
			}()
			next.ServeHTTP(w, request)
		}))
	}
}

// Public is an option of [Kit.Server] for an entry that anybody can reach: a trace begins here, with a link to
// the one that the client says it is in. What a client sends cannot make our traces longer.
func Public() otelhttp.Option {
	return otelhttp.WithPublicEndpointFn(func(*http.Request) bool { return true })
}

type routeKey struct{}

// Routes goes right around a mux, and tells [Kit.Server] which route it found: the two have middleware
// between them that hands on a copy of the request, which the mux then marks.
func Routes(mux http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if found, ok := r.Context().Value(routeKey{}).(*string); ok && r.Pattern != "" {
				*found = r.Pattern
			}
		}()
		mux.ServeHTTP(w, r)
	})
}

// route is the path of a pattern.
func route(pattern string) string {
	if i := strings.IndexByte(pattern, '/'); i >= 0 {
		return pattern[i:]
	}
	return pattern
}

// Transport returns otelhttp's transport on the kit's providers: a span of kind client for each request, whose
// context goes along. Put it below resiliencehttp's, so that each attempt is a span: those after the
// first have http.request.resend_count.
func (k *Kit) Transport(base http.RoundTripper, opts ...otelhttp.Option) http.RoundTripper {
	if base == nil {
		base = http.DefaultTransport
	}
	return otelhttp.NewTransport(resends{base}, k.options(opts)...)
}

type resends struct{ base http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (t resends) RoundTrip(r *http.Request) (*http.Response, error) {
	if n := retry.Attempt(r.Context()) - 1; n > 0 {
		trace.SpanFromContext(r.Context()).SetAttributes(semconv.HTTPRequestResendCount(n))
	}
	return t.base.RoundTrip(r)
}

func (k *Kit) options(opts []otelhttp.Option) []otelhttp.Option {
	return append([]otelhttp.Option{
		otelhttp.WithTracerProvider(k.cfg.TracerProvider), otelhttp.WithMeterProvider(k.cfg.MeterProvider), otelhttp.WithPropagators(k.propagator),
	}, opts...)
}
