// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package grpckit

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/dovetail-go/dovetail/health"
)

// HealthConfig configures [NewHealth]. The zero HealthConfig is a sound default.
type HealthConfig struct {
	// Services are the names that may be asked for beside the empty one, which is the whole
	// server. All are as well as the process is. Others are unknown.
	Services []string
	// Every is the time between two looks at the checks for those who watch. Zero means 1
	// second.
	Every time.Duration
}

// healthServer answers the gRPC health checking protocol from checks.
type healthServer struct {
	healthpb.UnimplementedHealthServer
	checks *health.Checks
	cfg    HealthConfig
}

// NewHealth returns a service of the gRPC health checking protocol (grpc.health.v1) that tells what
// /readyz does: SERVING while the checks pass, NOT_SERVING when one fails and from the first
// moment of a drain.
//
//	healthpb.RegisterHealthServer(server, grpckit.NewHealth(checks, grpckit.HealthConfig{}))
//
// Watchers are told at the end of their stream's server too; a client then finds another.
func NewHealth(checks *health.Checks, cfg HealthConfig) healthpb.HealthServer {
	cfg.Every = cmp.Or(max(cfg.Every, 0), time.Second)
	return &healthServer{checks: checks, cfg: cfg}
}

func (h *healthServer) knows(service string) bool {
	return service == "" || slices.Contains(h.cfg.Services, service)
}

func (h *healthServer) now(ctx context.Context) healthpb.HealthCheckResponse_ServingStatus {
	if _, err := h.checks.Ready(ctx); err != nil {
		return healthpb.HealthCheckResponse_NOT_SERVING
	}
	return healthpb.HealthCheckResponse_SERVING
}

// Check implements healthpb.HealthServer.
func (h *healthServer) Check(ctx context.Context, in *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if !h.knows(in.GetService()) {
		return nil, status.Error(codes.NotFound, "unknown service")
	}
	return &healthpb.HealthCheckResponse{Status: h.now(ctx)}, nil
}

// List implements healthpb.HealthServer.
func (h *healthServer) List(ctx context.Context, _ *healthpb.HealthListRequest) (*healthpb.HealthListResponse, error) {
	now := h.now(ctx)
	all := map[string]*healthpb.HealthCheckResponse{}
	for _, name := range append([]string{""}, h.cfg.Services...) {
		all[name] = &healthpb.HealthCheckResponse{Status: now}
	}
	return &healthpb.HealthListResponse{Statuses: all}, nil
}

// Watch implements healthpb.HealthServer.
func (h *healthServer) Watch(in *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	ctx := stream.Context()
	tick := time.NewTicker(h.cfg.Every)
	defer tick.Stop()
	last := healthpb.HealthCheckResponse_UNKNOWN
	for {
		// The protocol wants an unknown service to be watched, since it may come.
		now := healthpb.HealthCheckResponse_SERVICE_UNKNOWN
		if h.knows(in.GetService()) {
			now = h.now(ctx)
		}
		if now != last {
			if err := stream.Send(&healthpb.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			last = now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// Stage is the stage of a gRPC server in a health.Lifecycle: it takes no more calls, finishes what is under
// way, and cuts off what is not finished by its StopTimeout, which is an error. Streams
// without an end have to end by themselves, at the sign of the service.
func Stage(name string, server *grpc.Server, listener net.Listener) health.Stage {
	return health.Stage{
		Name: name,
		Run: func(context.Context) error {
			// Nil after a stop, unless that came before.
			if err := server.Serve(listener); !errors.Is(err, grpc.ErrServerStopped) {
				return err
			}
			return nil
		},
		Stop: func(ctx context.Context) error { return Drain(ctx, server) },
	}
}

// Drain stops the server gracefully: clients are told to go elsewhere, calls under way are finished.
// When ctx ends before that, it cuts them off and returns how ctx ended.
func Drain(ctx context.Context, server *grpc.Server) error {
	finished := make(chan struct{})
	go func() {
		server.GracefulStop()
		close(finished)
	}()
	select {
	case <-finished:
		return nil
	case <-ctx.Done():
		server.Stop()
		<-finished
		return context.Cause(ctx)
	}
}
