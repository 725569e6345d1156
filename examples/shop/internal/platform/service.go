// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package platform is the ground that each service of the shop stands on: how it is
// served, how it says no, who is asking, how it calls the others, and how it speaks
// and listens. It knows no service.
package platform

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/dovetail-go/dovetail/messaging"
)

// Env is what its surroundings give to one service.
type Env struct {
	// Name is the service's name in discovery, such as "order".
	Name string
	// DB is the service's own database. No other service opens it.
	DB *sql.DB
	// Broker carries the events of all services.
	Broker Broker
	// Caller calls the other services.
	Caller *Caller
	// Auth tells who makes a request.
	Auth *Auth
	// Lease is how long after the death of a process another takes over its work. Zero leaves it
	// to each block.
	Lease time.Duration
	// Log is never nil.
	Log *slog.Logger
}

// Service is one service of the shop, ready to be served.
type Service interface {
	// Handler serves the service's own routes.
	Handler() http.Handler
	// Consumers are declared to the broker before anything is published.
	Consumers() []Consumer
	// Run does the service's background work until ctx ends.
	Run(ctx context.Context) error
}

// drainTimeout bounds how long a stopping service waits for requests in flight.
const drainTimeout = 10 * time.Second

// Serve serves a service on ln until ctx ends: its routes, its consumers and its
// background work, beside /livez, /readyz and /metrics. Then it drains: readiness fails, requests in
// flight and messages in hand are finished, and it returns nil.
func Serve(ctx context.Context, env Env, s Service, ln net.Listener) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("/", observe(registry, env, s.Handler()))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.Handle("GET /readyz", Handle(func(w http.ResponseWriter, r *http.Request) error {
		if ctx.Err() != nil {
			return &Error{Status: http.StatusServiceUnavailable, Code: "draining", Detail: "stopping", RetryAfter: time.Second}
		}
		if env.DB != nil {
			if err := env.DB.PingContext(r.Context()); err != nil {
				return &Error{Status: http.StatusServiceUnavailable, Code: "no-database", Detail: "the database does not answer", Err: err}
			}
		}
		_, _ = w.Write([]byte("ok\n"))
		return nil
	}))
	if speaker, ok := s.(interface{ Bus() *Bus }); ok {
		speaker.Bus().operate(mux, env.Auth)
	}
	if env.Caller.Guards != nil {
		env.Caller.Guards.operate(mux, env)
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(env.Log.Handler(), slog.LevelWarn),
	}
	g, gctx := errgroup.WithContext(ctx)
	// Requests outlive ctx until they are drained; streams end with it.
	server.BaseContext = func(net.Listener) context.Context {
		return context.WithValue(context.WithoutCancel(ctx), drainKey{}, gctx.Done())
	}
	g.Go(func() error {
		if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("%s: %w", env.Name, err)
		}
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		if err := server.Shutdown(stop); err != nil {
			_ = server.Close()
			return fmt.Errorf("%s: requests still running after %v: %w", env.Name, drainTimeout, err)
		}
		return nil
	})
	for _, c := range s.Consumers() {
		g.Go(func() error {
			h := messaging.Chain(c.Handler, messaging.Recover())
			if err := env.Broker.Subscribe(gctx, c.Subscription, h); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: group %s: %w", env.Name, c.Subscription.Group, err)
			}
			return nil
		})
	}
	g.Go(func() error {
		if err := s.Run(gctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("%s: %w", env.Name, err)
		}
		return nil
	})
	return g.Wait()
}

type drainKey struct{}

// Draining returns a channel that is closed when the service stops: streams end then,
// so that they do not hold up the drain.
func Draining(ctx context.Context) <-chan struct{} {
	done, _ := ctx.Value(drainKey{}).(<-chan struct{})
	return done
}

// observe counts and times requests by route pattern, never by raw path, and logs
// the ones that failed.
func observe(registry *prometheus.Registry, env Env, next http.Handler) http.Handler {
	duration := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "shop_http_request_duration_seconds", Help: "Time to answer a request.",
		ConstLabels: prometheus.Labels{"service": env.Name}, NativeHistogramBucketFactor: 1.1,
		Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10},
	}, []string{"route", "status"})
	registry.MustRegister(duration)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &statusRecorder{ResponseWriter: w}
		next.ServeHTTP(rec, r)
		route := r.Pattern
		if route == "" {
			route = "unmatched"
		}
		duration.WithLabelValues(route, strconv.Itoa(rec.Status())).Observe(time.Since(start).Seconds())
		env.Log.DebugContext(r.Context(), "request", "method", r.Method, "path", r.URL.Path, "status", rec.Status(), "duration", time.Since(start))
	})
}

// statusRecorder remembers the status of an answer.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

// Status returns what was answered, 200 if the handler said nothing.
func (w *statusRecorder) Status() int {
	if w.status == 0 {
		return http.StatusOK
	}
	return w.status
}

func (w *statusRecorder) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusRecorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the writer below.
func (w *statusRecorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// RunAll runs several workers until ctx ends or one of them fails, and returns the first
// failure.
func RunAll(ctx context.Context, workers ...func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range workers {
		g.Go(func() error { return w(ctx) })
	}
	return g.Wait()
}
