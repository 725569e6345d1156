// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package otelkit gives dovetail's blocks OpenTelemetry's traces, metrics and log correlation.
//
//	kit, err := otelkit.New(otelkit.Config{TracerProvider: traces, MeterProvider: meters, MessagingSystem: "rabbitmq"})
//	...
//	server := &http.Server{Handler: kit.Server()(mux)}
//	box, err := outbox.New(store, outbox.Config{Inject: kit.Inject})
//	relay, err := outbox.NewRelay(box, broker, outbox.RelayConfig{Hooks: kit.Relay()})
//	handler := messaging.Chain(mails, kit.Consumer())
//	engine, err := saga.NewEngine(sagas, saga.Config{Hooks: kit.Saga()}, placeOrder)
//	slog.SetDefault(slog.New(otelkit.LogHandler(slog.NewJSONHandler(os.Stderr, nil), "order.id")))
//
// That is wiring: no handler, step or consumer knows of it, and a request is one trace from its click to
// the mail that it leads to.
//
// # Hooks of your own
//
// A block has one set of hooks. Each method that returns hooks takes yours and calls them after
// the kit's: kit.Breaker(breaker.Hooks{Change: alarm}).
//
// # Which span stands where
//
//   - A request is a span of [Kit.Server]; what it calls are spans of [Kit.Transport], one for each attempt.
//   - Guards make no spans of their own: they mark the span of their caller's context with events. [Do] makes
//     a span for a call with all its attempts, where the request's is not enough.
//   - What is enqueued or appended has the context of its transaction in its header ([Kit.Inject]). Its
//     publication, by whatever process and whenever, and its consumers are children of that.
//   - A saga has the context of its start stored with it, and its attempts are children of that.
//   - A batch has many parents: its span has links ([Kit.Batch], [Kit.Publisher]).
//
// Baggage goes the same ways. It is sent to every service that a request touches: put nothing into it that
// they should not see, and begin a new trace where anybody can send some ([Public]).
//
// # Guarantees
//
// A trace survives crashes: what was committed with a context continues it after a restart, on
// another node. What a dead process had not exported is missing from the trace, which then has a gap, but goes on.
//
// Metrics have the names that you give to guards, definitions, groups and caches, and topics and routes, as
// attributes, and never IDs, keys, texts of errors, or paths: how many series there are does not depend on who calls.
// Topics that hold IDs are yours to shorten: [Config].Destination. Histograms have exemplars that lead to traces, also
// where a hook has no context, by the header of the message.
//
// Success paths of guards call no hook, so they cost the same with the kit as without; the benchmarks
// show it. Without the kit there is nothing: hooks are nil.
//
// # Conventions
//
// Spans and metrics for HTTP, messaging and databases follow OpenTelemetry's semantic conventions 1.43.0
// (https://opentelemetry.io/docs/specs/semconv/); those of messaging are still in development there.
// What they have no word for begins with "dovetail.".
//
// # What is not here
//
// HTTP is otelhttp's, of OpenTelemetry's contrib repository, put where it belongs. So is gRPC, and it needs nothing
// from here, but would bring gRPC into every program: give otelgrpc.NewClientHandler to grpc.WithStatsHandler beside
// grpckit's options, which makes each attempt a span, and otelgrpc.NewServerHandler to grpc.StatsHandler.
//
// What blocks know as Stats at the moment of a look (breaker states, depths and ages of queues, sagas
// under way) is promkit's. To send these by OTLP, give its registry to contrib's bridge for
// Prometheus (go.opentelemetry.io/contrib/bridges/prometheus).
//
// Statements of SQL are best traced in the driver: otelsql or otelpgx.
package otelkit
