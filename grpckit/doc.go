// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package grpckit brings the blocks to gRPC, through grpc-go: instances found by package discovery
// and picked by package balance, guards on both sides, idempotent commands, health and
// draining.
//
//	dialer, err := grpckit.NewDialer(resolver, grpckit.DialerConfig{})
//	client, err := grpckit.NewClient(grpckit.ClientConfig{Policy: policy, Propagate: true})
//	conn, err := dialer.Dial("inventory", append(client.DialOptions(), grpc.WithTransportCredentials(creds))...)
//	stock := inventorypb.NewStockClient(conn)
//
// and at the server
//
//	guards, err := grpckit.NewServer(grpckit.ServerConfig{Propagated: true, Shed: shed, Timeout: 5 * time.Second})
//	once, err := grpckit.Idempotency(store, grpckit.IdempotencyConfig{Scope: caller})
//	server := grpc.NewServer(append(guards.ServerOptions(), grpc.ChainUnaryInterceptor(once))...)
//	healthpb.RegisterHealthServer(server, grpckit.NewHealth(checks, grpckit.HealthConfig{}))
//	stage := grpckit.Stage("grpc", server, listener) // of a health.Lifecycle
//
// # Guarantees
//
//   - The balancer hears of every call how it ended, and of a stream when its first answer
//     came; outlier ejection, slow start, zones and the rest work as in package balance. What is
//     known of an instance survives changes of the others, and breaks of its connection.
//   - A call goes to an instance that is connected. Instances are connected when they are first
//     picked, and again when their connection is lost. When none can be reached,
//     calls fail at once with the reason, unless they wait for readiness (grpc.WaitForReady).
//   - An instance that drains ([Drain], [Stage], a plain GracefulStop) loses no call.
//   - A call is repeated only if that cannot make its effect twice: its definition or its key says so
//     ([Idempotent]), or the server says that it was not handled, as the guards here do. Retries are
//     bounded by the Retrier's budget, heed RetryInfo and the pushback of gRFC A6, and the
//     attempt's number goes along, so that services further down do not multiply them.
//   - Places, permits and probes are given back when a call or a stream ends, also by a panic, by
//     runtime.Goexit and by a cancelled context. A stream holds its place until then.
//   - Errors keep the server's code, message and details for package status, and have a verdict for
//     package fault.
//
// # Caveats
//
// gRPC finds balancers by name in a registry of the program: importing this package registers
// one, without state.
//
// Streams are not repeated. Their guards hear how they began, not what happened after the
// first message; the balancer hears that.
//
// Retries of gRPC's own, by a service config, multiply with those of a Retrier: the connections of a
// [Dialer] have none, except for calls that never left the client or that a draining server did not take
// ("transparent retries").
//
// [Idempotency] is for unary calls. Its fingerprint and its stored replies are protocol buffers:
// a reply's type has to be in the program that repeats it.
package grpckit
