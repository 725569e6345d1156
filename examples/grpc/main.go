// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command grpc replaces the instances of a gRPC service one after the other while it is called, and
// loses no call. The service is the one that needs no generated code: gRPC's own for health checks.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/grpckit"
	"github.com/dovetail-go/dovetail/health"
	"github.com/dovetail-go/dovetail/resilience"
)

func main() {
	var running []*instance
	for range 3 {
		running = append(running, start())
	}
	resolver, err := discovery.NewStatic(map[string][]discovery.Instance{"order": addresses(running)})
	if err != nil {
		log.Fatal(err)
	}

	// The client's side.
	dialer, err := grpckit.NewDialer(resolver, grpckit.DialerConfig{})
	if err != nil {
		log.Fatal(err)
	}
	br, err := breaker.New(breaker.Config{Name: "order", FailureRate: 0.5})
	if err != nil {
		log.Fatal(err)
	}
	guards, err := grpckit.NewClient(grpckit.ClientConfig{Policy: &resilience.Policy{Total: time.Minute, Breaker: br}, Propagate: true})
	if err != nil {
		log.Fatal(err)
	}
	conn, err := dialer.Dial("order", append(guards.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	var calls, failures atomic.Int64
	ctx, stop := context.WithCancel(context.Background())
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for ctx.Err() == nil {
				if _, err := healthpb.NewHealthClient(conn).Check(context.Background(), &healthpb.HealthCheckRequest{}); err != nil {
					failures.Add(1)
				}
				calls.Add(1)
			}
		})
	}
	for i, old := range running { // a rolling update
		for before := calls.Load(); calls.Load() < before+100; {
			time.Sleep(time.Millisecond)
		}
		running[i] = start()
		if err := resolver.Set("order", addresses(running)...); err != nil {
			log.Fatal(err)
		}
		if err := grpckit.Drain(context.Background(), old.server); err != nil {
			log.Fatal(err)
		}
	}
	stop()
	callers.Wait()
	fmt.Println("at least 300 calls:", calls.Load() >= 300)
	fmt.Println("failures:", failures.Load())
	fmt.Println("instances:", len(dialer.View()[0].Instances))
}

// instance is one server.
type instance struct {
	server *grpc.Server
	addr   string
}

func start() *instance {
	checks, err := health.New(health.Config{})
	if err != nil {
		log.Fatal(err)
	}
	guards, err := grpckit.NewServer(grpckit.ServerConfig{Propagated: true, Timeout: 5 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(guards.ServerOptions()...)
	healthpb.RegisterHealthServer(server, grpckit.NewHealth(checks, grpckit.HealthConfig{}))
	go func() {
		if err := server.Serve(ln); err != nil { // nil after a drain
			log.Print(err)
		}
	}()
	return &instance{server, ln.Addr().String()}
}

func addresses(running []*instance) []discovery.Instance {
	var out []discovery.Instance
	for _, in := range running {
		out = append(out, discovery.Instance{Addr: in.addr})
	}
	return out
}

// Output:
// at least 300 calls: true
// failures: 0
// instances: 3
