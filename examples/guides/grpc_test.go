// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/grpckit"
	"github.com/dovetail-go/dovetail/health"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

func oldConn(addr string) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	// snippet: grpc/before
	return grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	// end
}

// snippet: grpc/client
func dialInventory(resolver discovery.Resolver, total time.Duration, creds grpc.DialOption) (*grpc.ClientConn, error) {
	r, err1 := retry.New(retry.Config{Name: "inventory"})
	b, err2 := breaker.New(breaker.Config{Name: "inventory", FailureRate: 0.5})
	dialer, err3 := grpckit.NewDialer(resolver, grpckit.DialerConfig{})
	client, err4 := grpckit.NewClient(grpckit.ClientConfig{
		Policy:    &resilience.Policy{Total: total, Retry: r, Breaker: b},
		Propagate: true,                  // attempt, criticality and trace go along
		Reserve:   50 * time.Millisecond, // of our caller's deadline, to act on the answer
	})
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	return dialer.Dial("inventory", append(client.DialOptions(), creds)...)
}

// end

// snippet: grpc/server
func newGRPCServer(checks *health.Checks, store idempotency.Store) (*grpc.Server, error) {
	limit, err1 := resilience.NewAdaptive(resilience.AdaptiveConfig{Name: "server"})
	guards, err2 := grpckit.NewServer(grpckit.ServerConfig{
		Propagated: true, // only our own services can call
		Shed:       &resilience.Policy{Adaptive: limit},
		Timeout:    5 * time.Second,
	})
	once, err3 := grpckit.Idempotency(store, grpckit.IdempotencyConfig{Scope: callerOf})
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	server := grpc.NewServer(append(guards.ServerOptions(), grpc.ChainUnaryInterceptor(once))...)
	healthpb.RegisterHealthServer(server, grpckit.NewHealth(checks, grpckit.HealthConfig{}))
	return server, nil
}

// end

// callerOf tells who calls; behind TLS it is the client's certificate that says so.
func callerOf(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if caller := md.Get("x-caller"); len(caller) == 1 {
		return caller[0], nil
	}
	return "anybody", nil
}

// snippet: grpc/test
func TestInventoryRefusesWithAReason(t *testing.T) {
	checks, err := health.New(health.Config{})
	if err != nil {
		t.Fatal(err)
	}
	server, err := newGRPCServer(checks, idempotencymem.New())
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	resolver, err := discovery.NewStatic(map[string][]discovery.Instance{"inventory": {{Addr: listener.Addr().String()}}})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := dialInventory(resolver, time.Minute, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	answer, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil || answer.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("Check = %v, %v, want SERVING", answer, err)
	}
	if err := grpckit.Drain(t.Context(), server); err != nil { // loses no call
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := resolver.Set("inventory"); err != nil { // the registry says: no instance
		t.Fatal(err)
	}
	_, err = healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("Check = %v without an instance, want Unavailable", err)
	}
}

// end

func TestGRPCWithoutGuards(t *testing.T) {
	conn, err := oldConn("127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
