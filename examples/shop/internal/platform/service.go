// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package platform is the ground that each service of the shop stands on: how it is
// served, how it says no, who is asking, how it calls the others, and how it speaks
// and listens. It knows no service.
package platform

import (
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/gateway"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/ratelimit"
)

// Env is what its surroundings give to one service.
type Env struct {
	// Name is the service's name in discovery, such as "order".
	Name string
	// Instance tells this instance of the service from the others, such as "order-2".
	Instance string
	// DB is the service's own database, of either dialect. No other service opens it. Nil for
	// one without.
	DB *sql.DB
	// Replica is where to read what need not be the newest: a copy of DB, or other connections to it.
	// It may fail, and whoever reads from it then reads from DB. Nil means DB.
	Replica *sql.DB
	// Broker carries the events of all services. Nil for a service that has none.
	Broker Broker
	// Caller calls the other services.
	Caller *Caller
	// Auth tells who makes a request.
	Auth *Auth
	// Issuer is another one than the shop's own whose people may enter. Nil if there is none.
	Issuer *Issuer
	// Registry is told where the service is while it runs. Nil if others know by themselves.
	Registry discovery.Registry
	// Addr is where others reach the service, as host:port. Empty means the address of its listener.
	Addr string
	// Quotas makes quotas that all instances share. Nil makes them each process's own.
	Quotas func(name string, limit ratelimit.Limit) (Quota, error)
	// Cache is where answers are kept that all instances share. Nil leaves them to each process.
	Cache cache.Store
	// News passes word between the instances of the service. Nil where there is only one.
	News *News
	// Lease is how long after the death of a process another takes over its work. Zero leaves it
	// to each block.
	Lease time.Duration
	// Grace is how long a stopping service still serves everything after it has taken itself out of
	// the registry: until those who call it have heard of that.
	Grace time.Duration
	// Flush is how long a stopping service waits for the broker to confirm what it was given. Zero
	// means 5 seconds.
	Flush time.Duration
	// Certificates are what the service's listener shows, and what it wants to see. Nil serves without TLS.
	Certificates *Certificates
	// Proxies are those through which requests come, and whose word is taken on where from.
	Proxies []netip.Prefix
	// Collectors show what the surroundings are made of in the service's metrics.
	Collectors []prometheus.Collector
	// Telemetry is what the service tells of its work. Nil tells nothing.
	Telemetry *Telemetry
	// Gate is where harm is done to the service on purpose. Nil does none.
	Gate *Gate
	// Control answers what the gateway is asked about the shop as a whole: faults, invariants, load.
	// Nil where nothing is in control of the whole shop.
	Control http.Handler
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

// Serve serves a service on its listeners, of the first of which others are told, until ctx ends: its routes, its consumers and its
// background work, beside /livez, /readyz and /metrics. Then it drains, one thing after the other:
// readiness fails, the registry forgets the service, nothing new is taken in, requests in flight and
// messages in hand are finished, and only then its workers publish the rest and stop. It returns nil, or why a
// part of the service failed, which drains it too.
//
// A service whose gate is killed does not drain: see [Gate.Kill]. Serve then returns [ErrKilled].
func Serve(ctx context.Context, env Env, s Service, listeners ...net.Listener) error {
	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	// Requests and messages outlive running until they are drained, and the workers outlive those.
	intake, stopIntake := context.WithCancel(context.WithoutCancel(ctx))
	defer stopIntake()
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	// part runs one part of the service, which should end with its stage and not before.
	part := func(stage context.Context, g *sync.WaitGroup, what string, run func(ctx context.Context) error) {
		g.Go(func() {
			if err := run(stage); err != nil && stage.Err() == nil {
				fail(fmt.Errorf("%s: %s: %w", env.Name, what, err))
			}
		})
	}

	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(env.Certificates != nil) // gRPC, on the same port
	protocols.SetUnencryptedHTTP2(env.Certificates == nil)
	server := &http.Server{
		Handler:           env.Gate.awake(env.Certificates.Require(routes(running, env, s))),
		Protocols:         protocols,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(env.Log.Handler(), slog.LevelWarn),
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(context.WithoutCancel(ctx), drainKey{}, intake.Done()) // streams end with the intake
		},
	}
	if env.Gate != nil {
		die := context.AfterFunc(env.Gate.life, func() {
			fail(ErrKilled)
			stopIntake()
			stopWork()
			_ = server.Close()
		})
		defer die()
	}
	var taking, working, registered sync.WaitGroup
	for _, ln := range listeners {
		if env.Certificates != nil {
			ln = tls.NewListener(ln, env.Certificates.Server())
		}
		part(intake, &taking, "serve", func(context.Context) error {
			if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	bus := busOf(s)
	if bus != nil {
		if err := bus.hear(running, s.Consumers()); err != nil {
			fail(err)
		}
	}
	for _, c := range s.Consumers() {
		part(intake, &taking, "group "+c.Subscription.Group, func(ctx context.Context) error {
			handler := messaging.Chain(c.Handler, env.Tracing().Consumer(), messaging.Logging(env.Log), messaging.Recover())
			if bus != nil {
				handler = bus.watched(Consumer{c.Subscription, handler})
			}
			return env.Broker.Subscribe(ctx, c.Subscription, handler)
		})
	}
	part(work, &working, "work", s.Run)
	if bus != nil {
		part(work, &working, "dead letters", func(ctx context.Context) error {
			bus.collectDeadLetters(ctx, env, s.Consumers())
			return nil
		})
	}
	if err := announce(running, env, listeners[0], &registered); err != nil {
		fail(err)
	}

	<-running.Done()
	registered.Wait()
	if env.Registry != nil {
		time.Sleep(env.Grace)
	}
	stopIntake()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := server.Shutdown(stop)
	if err != nil {
		_ = server.Close()
		err = fmt.Errorf("%s: requests still running after %v: %w", env.Name, drainTimeout, err)
	}
	taking.Wait()
	stopWork()
	working.Wait()
	select {
	case <-env.Gate.killed():
		return ErrKilled // whatever else its parts said of that
	default:
	}
	if cause := context.Cause(running); ctx.Err() == nil {
		return errors.Join(cause, err)
	}
	return err
}

// announce keeps the service registered until ctx ends.
func announce(ctx context.Context, env Env, ln net.Listener, g *sync.WaitGroup) error {
	if env.Registry == nil {
		return nil
	}
	addr := env.Addr
	if addr == "" {
		addr = ln.Addr().String()
	}
	a, err := discovery.NewAnnouncement(env.Registry, discovery.Instance{ID: env.Instance, Service: env.Name, Addr: addr},
		discovery.AnnounceConfig{Logger: env.Log})
	if err != nil {
		return fmt.Errorf("%s: %w", env.Name, err)
	}
	g.Go(func() {
		if err := a.Run(ctx); err != nil {
			env.Log.Warn("the registry was not told of the end", "error", err) // it will find out by itself
		}
	})
	return nil
}

// behind has what comes by one of the proxies come from whom they name.
func behind(proxies []netip.Prefix, next http.Handler) http.Handler {
	if len(proxies) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ip := gateway.ClientIP(r, proxies); ip.IsValid() {
			r = r.Clone(r.Context())
			r.RemoteAddr = netip.AddrPortFrom(ip, 0).String()
		}
		next.ServeHTTP(w, r)
	})
}

// routes are the service's own and those that every service has. It is ready while running lasts.
func routes(running context.Context, env Env, s Service) http.Handler {
	m := newMetrics(env, s)
	mux := http.NewServeMux()
	mux.Handle("/", behind(env.Proxies, observe(m, env, env.Gate.requests(s.Handler()))))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.Handle("GET /readyz", Handle(func(w http.ResponseWriter, r *http.Request) error {
		if running.Err() != nil {
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
	if bus := busOf(s); bus != nil {
		bus.operate(mux, env.Auth)
	}
	if env.Caller.Guards != nil {
		env.Caller.operate(mux, env)
	}
	showTraffic(mux, &m.traffic, env, s)
	showSpans(mux, env)
	env.Telemetry.show(m.Registry)
	mux.Handle("GET /metrics", promhttp.HandlerFor(m, promhttp.HandlerOpts{}))
	_, public := s.(interface{ Public() })
	told := env.Telemetry.serve(public, mux)
	if speaker, ok := s.(interface{ RPC(server *grpc.Server) }); ok {
		return withRPC(m, env, speaker.RPC, told)
	}
	return told
}

// busOf returns how a service speaks and listens, nil if it does neither.
func busOf(s Service) *Bus {
	if speaker, ok := s.(interface{ Bus() *Bus }); ok {
		return speaker.Bus()
	}
	return nil
}

type drainKey struct{}

// Draining returns a channel that is closed when the service stops: streams end then,
// so that they do not hold up the drain.
func Draining(ctx context.Context) <-chan struct{} {
	done, _ := ctx.Value(drainKey{}).(<-chan struct{})
	return done
}

// observe counts and times requests by route pattern, never by raw path, and writes the access log: the gateway gives
// every request an ID, which all services that it passes through log it by.
func observe(m *metrics, env Env, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &statusRecorder{ResponseWriter: w}
		r, route := routing(r)
		next.ServeHTTP(rec, r)
		m.requests.WithLabelValues(route(), strconv.Itoa(rec.Status())).Observe(time.Since(start).Seconds())
		m.traffic.served(rec, r, time.Since(start))
		env.Log.DebugContext(r.Context(), "request", "method", r.Method, "path", r.URL.Path, "status", rec.Status(), "bytes", rec.bytes,
			"duration", time.Since(start), "request_id", r.Header.Get("X-Request-Id"), "remote", r.RemoteAddr)
	})
}

// statusRecorder remembers the status of an answer, and its size.
type statusRecorder struct {
	http.ResponseWriter
	status int
	bytes  int64
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
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
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
