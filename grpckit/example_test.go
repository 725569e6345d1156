// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package grpckit_test

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/grpckit"
	"github.com/dovetail-go/dovetail/health"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

// Two instances of a service, one of which does not feel well: calls are repeated at the other.
// The service is the one that is in every program, gRPC's own for health checks.
func Example() {
	var calls atomic.Int64
	sick := func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
		calls.Add(1)
		return nil, status.Error(codes.Unavailable, "not feeling well")
	}
	a, b := exampleServer(grpc.UnaryInterceptor(sick)), exampleServer()
	resolver, err := discovery.NewStatic(map[string][]discovery.Instance{"order": {{Addr: a}, {Addr: b}}})
	if err != nil {
		fmt.Println(err)
		return
	}

	dialer, err := grpckit.NewDialer(resolver, grpckit.DialerConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	retries, err := retry.New(retry.Config{Attempts: 10, Base: time.Millisecond, Budget: retry.Unlimited})
	if err != nil {
		fmt.Println(err)
		return
	}
	client, err := grpckit.NewClient(grpckit.ClientConfig{
		Policy:     &resilience.Policy{Total: time.Minute, Retry: retries},
		Repeatable: func(context.Context, string) bool { return true }, // it only asks
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	conn, err := dialer.Dial("order", append(client.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()

	failures := 0
	for range 100 {
		if _, err := healthpb.NewHealthClient(conn).Check(context.Background(), &healthpb.HealthCheckRequest{}); err != nil {
			failures++
		}
	}
	fmt.Println("failures:", failures)
	fmt.Println("few calls went to the sick instance:", calls.Load() <= 20)
	// Output:
	// failures: 0
	// few calls went to the sick instance: true
}

func exampleServer(opts ...grpc.ServerOption) (addr string) {
	checks, err := health.New(health.Config{})
	if err != nil {
		panic(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := grpc.NewServer(opts...)
	healthpb.RegisterHealthServer(server, grpckit.NewHealth(checks, grpckit.HealthConfig{}))
	go func() {
		if err := server.Serve(ln); err != nil {
			fmt.Println(err)
		}
	}()
	return ln.Addr().String()
}
