// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package grpckit

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
)

// ServerConfig configures the guards of a server. The zero ServerConfig guards nothing, and maps
// errors as [Status] does.
//
// They work in this order: Exempt, Propagated and Criticality, MinTime, RateLimit, Shed, Timeout, handler.
type ServerConfig struct {
	// Exempt reports whether calls of a method, as /package.Service/Method, pass without any guard. Nil
	// means those of health checks and reflection.
	Exempt func(method string) bool
	// Propagated believes the metadata of [ClientConfig].Propagate. Set it where only
	// services of one owner can call.
	Propagated bool
	// Criticality returns how important a call is, for Shed and for calls made with its
	// context. Nil leaves it as it is.
	Criticality func(ctx context.Context, method string) resilience.Criticality
	// MinTime is the time that has to be left until a call's deadline; with less it is refused at
	// once, as DeadlineExceeded, since the answer would come too late. Zero means no such limit.
	MinTime time.Duration
	// RateLimit takes a token of the caller, such as ratelimit.Keyed.Allow with its identity.
	// Nil means none.
	RateLimit func(ctx context.Context, method string) ratelimit.Result
	// Shed admits calls: usually with an Adaptive limit, a Bulkhead or a Breaker. A stream
	// holds its place until it ends. A RateLimit in it is one for all callers; its Total and Retry
	// are not used, and its Attempt for unary calls only. Nil means none.
	Shed *resilience.Policy
	// Timeout bounds unary calls, those without a deadline among them. Zero means no bound but
	// the caller's.
	Timeout time.Duration
	// OnPanic is told of a handler's panic, with its stack; the caller gets Internal. Nil lets
	// the panic go on, which ends the program: gRPC does not recover as net/http does.
	OnPanic func(ctx context.Context, method string, value any, stack []byte)
}

// Server guards the calls that a server handles, by interceptors.
type Server struct {
	cfg    ServerConfig
	unary  *resilience.Policy
	stream *resilience.Policy
}

// NewServer returns a server's guards, or an error that names the wrong field.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.MinTime < 0 {
		return nil, fmt.Errorf("grpckit: ServerConfig.MinTime is %v, want 0 or more", cfg.MinTime)
	}
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("grpckit: ServerConfig.Timeout is %v, want 0 or more", cfg.Timeout)
	}
	if cfg.Exempt == nil {
		cfg.Exempt = func(method string) bool {
			return strings.HasPrefix(method, "/grpc.health.v1.") || strings.HasPrefix(method, "/grpc.reflection.")
		}
	}
	s := &Server{cfg: cfg}
	if cfg.Shed != nil {
		unary := *cfg.Shed
		if unary.Classify == nil {
			unary.Classify = Judge
		}
		stream := unary
		stream.Attempt = 0
		s.unary, s.stream = &unary, &stream
	}
	return s, nil
}

// ServerOptions returns the options for grpc.NewServer that put the guards before every call, and
// before the interceptors of later options.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(s.Unary), grpc.ChainStreamInterceptor(s.Stream)}
}

// Unary is a grpc.UnaryServerInterceptor.
func (s *Server) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (reply any, err error) {
	if s.cfg.Exempt(info.FullMethod) {
		return handler(ctx, req)
	}
	err = s.guard(ctx, info.FullMethod, s.unary, func(ctx context.Context) error {
		ctx, cancel := resilience.WithTimeout(ctx, s.cfg.Timeout)
		defer cancel()
		reply, err = handler(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// Stream is a grpc.StreamServerInterceptor.
func (s *Server) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if s.cfg.Exempt(info.FullMethod) {
		return handler(srv, stream)
	}
	return s.guard(stream.Context(), info.FullMethod, s.stream, func(ctx context.Context) error {
		if ctx != stream.Context() {
			stream = &streamWith{stream, ctx}
		}
		return handler(srv, stream)
	})
}

// streamWith is a stream with another context.
type streamWith struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // that is what it is for
}

// Context implements grpc.ServerStream.
func (s *streamWith) Context() context.Context { return s.ctx }

// guard handles a call behind the guards. The error is a status.
func (s *Server) guard(ctx context.Context, method string, shed *resilience.Policy, handle func(context.Context) error) (err error) {
	if s.cfg.Propagated {
		ctx = propagated(ctx)
	}
	if s.cfg.Criticality != nil {
		ctx = resilience.WithCriticality(ctx, s.cfg.Criticality(ctx, method))
	}
	if deadline, ok := ctx.Deadline(); ok && s.cfg.MinTime > 0 && time.Until(deadline) < s.cfg.MinTime {
		return status.Error(codes.DeadlineExceeded, "too little time left to answer")
	}
	if s.cfg.RateLimit != nil {
		if r := s.cfg.RateLimit(ctx, method); !r.OK {
			return refusal(r.Err()).Err()
		}
	}
	if s.cfg.OnPanic != nil {
		defer func() {
			if v := recover(); v != nil {
				s.cfg.OnPanic(ctx, method, v, debug.Stack())
				err = status.Error(codes.Internal, "internal error")
			}
		}()
	}
	if shed == nil {
		return handled(handle(ctx))
	}
	ticket, err := shed.Acquire(ctx)
	if err != nil {
		return s.refused(err)
	}
	result := errHandlerPanicked
	defer func() { ticket.Done(result) }()
	err = handle(ticket.Context())
	result = err
	return handled(err)
}

var errHandlerPanicked = errors.New("grpckit: the handler panicked")

// refused is the status of a call that Shed did not admit.
func (s *Server) refused(err error) error {
	r, ok := errors.AsType[*fault.Rejection](err)
	if !ok {
		return handled(err) // the end of the caller's context, while it waited
	}
	if r.RetryAfter == 0 { // a guard that cannot tell: soon, but not at once
		told := *r
		told.RetryAfter = time.Second
		err = &told
	}
	return refusal(err).Err()
}
