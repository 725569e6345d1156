// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/grpckit"
	"github.com/dovetail-go/dovetail/promkit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/saga/barrier"
)

// RPC is the way from one service to those that speak gRPC, with the same guards as [Guarded] has.
type RPC struct {
	dialer     *grpckit.Dialer
	certs      *Certificates
	token      string
	concurrent int
	telemetry  *Telemetry

	mu    sync.Mutex
	conns map[string]rpcConn
	calls tallies
}

type rpcConn struct {
	*grpc.ClientConn
	policy *resilience.Policy
}

// NewRPC returns the way to the services that the resolver knows, by TLS if there are certificates. Concurrent and t are
// as for [NewGuarded].
func NewRPC(resolver discovery.Resolver, certs *Certificates, token string, concurrent int, t *Telemetry) (*RPC, error) {
	d, err := grpckit.NewDialer(resolver, grpckit.DialerConfig{Balancer: t.Balancing()})
	if err != nil {
		return nil, err
	}
	return &RPC{dialer: d, certs: certs, token: token, concurrent: concurrent, telemetry: t, conns: map[string]rpcConn{}}, nil
}

// Conn returns the connection to a service, made when it is first asked for. Errors of calls that the service answered
// with an [*Error] are that.
func (r *RPC) Conn(service string) (grpc.ClientConnInterface, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.conns[service]; ok {
		return c, nil
	}
	policy, err := guards(service, r.concurrent, r.telemetry)
	if err != nil {
		return nil, err
	}
	client, err := grpckit.NewClient(grpckit.ClientConfig{Policy: policy, Propagate: true})
	if err != nil {
		return nil, err
	}
	conn, err := r.dialer.Dial(service, append([]grpc.DialOption{
		grpc.WithTransportCredentials(r.certs.Credentials(service)),
		grpc.WithPerRPCCredentials(bearer(r.token)),
		grpc.WithChainUnaryInterceptor(r.calls.counted(service), understand),
	}, append(r.telemetry.dial(), client.DialOptions()...)...)...)
	if err != nil {
		return nil, err
	}
	c := rpcConn{conn, policy}
	r.conns[service] = c
	return c, nil
}

// policies are the guards of the connections by service.
func (r *RPC) policies() iter.Seq2[string, *resilience.Policy] {
	return func(yield func(string, *resilience.Policy) bool) {
		if r == nil {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for service, c := range r.conns {
			if !yield(service, c.policy) {
				return
			}
		}
	}
}

// Close closes all connections.
func (r *RPC) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, c := range r.conns {
		errs = append(errs, c.Close())
	}
	clear(r.conns)
	return errors.Join(errs...)
}

// bearer is the service token as gRPC wants it.
type bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return false }

// rpcRoom is how many calls by gRPC a process works on at once, whatever its callers allow themselves. Four times as many
// may wait for that, and not for long.
const rpcRoom = 64

// withRPC serves gRPC beside next, on the same port, to other services only.
func withRPC(m *metrics, env Env, register func(*grpc.Server), next http.Handler) http.Handler {
	room, err := bulkhead.New(rpcRoom, bulkhead.Config{Name: "rpc", Queue: 4 * rpcRoom, Wait: 2 * time.Second, Hooks: env.Tracing().Bulkhead()})
	if err != nil {
		panic(err) // the configuration is constant
	}
	m.MustRegister(promkit.Bulkheads(room))
	guards, err := grpckit.NewServer(grpckit.ServerConfig{
		Propagated: true,
		Shed:       &resilience.Policy{Bulkhead: room},
		OnPanic: func(ctx context.Context, method string, value any, stack []byte) {
			env.Log.ErrorContext(ctx, "call panicked", "method", method, "panic", value, "stack", string(stack))
		},
	})
	if err != nil {
		panic(err) // the configuration is constant
	}
	server := grpc.NewServer(append(append(guards.ServerOptions(), env.Telemetry.answer()...), grpc.ChainUnaryInterceptor(m.call, say(env)))...)
	register(server)
	calls := env.Auth.Require(env.Gate.requests(server))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			calls.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Step is the handler of one saga step by gRPC, as [Participant] is by HTTP: it runs fn behind the barrier in a
// local transaction.
func Step(ctx context.Context, b *Bus, fn func(tx *sql.Tx) error) error {
	md, _ := metadata.FromIncomingContext(ctx)
	key, err := barrier.ParseKey(strings.Join(md.Get(barrier.Header), " "))
	if err != nil {
		return &Error{Status: http.StatusBadRequest, Code: "no-saga-key", Detail: err.Error()}
	}
	return b.step(ctx, key, fn)
}

// WithStep returns ctx for a call that is one step of a saga.
func WithStep(ctx context.Context, key barrier.Key) context.Context {
	return metadata.AppendToOutgoingContext(ctx, barrier.Header, key.String())
}

// errorDomain marks the codes of the shop's errors among those of others.
const errorDomain = "shop"

// statusCodes are gRPC's words for the shop's.
var statusCodes = map[int]codes.Code{
	http.StatusBadRequest:          codes.InvalidArgument,
	http.StatusUnprocessableEntity: codes.InvalidArgument,
	http.StatusForbidden:           codes.PermissionDenied,
	http.StatusNotFound:            codes.NotFound,
	http.StatusConflict:            codes.FailedPrecondition,
	http.StatusServiceUnavailable:  codes.Unavailable,
}

// say turns errors into what a caller may know, as [Handle] does.
func say(env Env) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		out, err := handler(ctx, req)
		if err == nil {
			return out, nil
		}
		var e *Error
		if !errors.As(err, &e) {
			if grpckit.Status(err).Code() == codes.Unknown {
				env.Log.ErrorContext(ctx, "call failed", "method", info.FullMethod, "error", err)
				return nil, status.Error(codes.Internal, "something went wrong on our side")
			}
			return nil, err // a guard's refusal, or the end of the caller
		}
		code, ok := statusCodes[e.Status]
		if !ok {
			code = codes.Internal
		}
		details := []protoadapt.MessageV1{&errdetails.ErrorInfo{
			Domain: errorDomain, Reason: e.Code, Metadata: map[string]string{"status": fmt.Sprint(e.Status), "field": e.Field},
		}}
		if e.RetryAfter > 0 {
			details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
		}
		s, err := status.New(code, e.Detail).WithDetails(details...)
		if err != nil {
			return nil, err
		}
		return nil, s.Err()
	}
}

// understand is the other direction.
func understand(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoker(ctx, method, req, reply, cc, opts...)
	if err == nil {
		return nil
	}
	s := grpckit.Status(err)
	var answer *Error
	var after time.Duration
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == errorDomain {
				answer = &Error{Code: d.GetReason(), Field: d.GetMetadata()["field"], Detail: s.Message(), Err: err}
				if _, scanErr := fmt.Sscan(d.GetMetadata()["status"], &answer.Status); scanErr != nil {
					return err
				}
			}
		case *errdetails.RetryInfo:
			after = d.GetRetryDelay().AsDuration()
		}
	}
	if answer == nil {
		return err
	}
	answer.RetryAfter = after
	return answer
}
