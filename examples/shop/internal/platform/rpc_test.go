// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// patient is a gRPC service whose calls end when they are told to.
type patient struct {
	inside, most atomic.Int64
	full         chan struct{} // closed when there is no room for more
	filled       sync.Once
	release      chan struct{}
}

func (p *patient) wait(context.Context, any) (any, error) {
	n := p.inside.Add(1)
	defer p.inside.Add(-1)
	for most := p.most.Load(); n > most && !p.most.CompareAndSwap(most, n); most = p.most.Load() {
	}
	if n == rpcRoom {
		p.filled.Do(func() { close(p.full) })
	}
	<-p.release
	return &emptypb.Empty{}, nil
}

func (p *patient) register(s *grpc.Server) {
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "test.Patient", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Wait",
		Handler: func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			var in emptypb.Empty
			if err := decode(&in); err != nil {
				return nil, err
			}
			return intercept(ctx, &in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/test.Patient/Wait"}, p.wait)
		},
	}}}, p)
}

// Callers have bulkheads of their own, but nobody counts the callers.
func TestRoomForCallsIsBounded(t *testing.T) {
	auth, err := NewAuth("http://shop", "http://nowhere", "service-token", http.DefaultClient)
	if err != nil {
		t.Fatal(err)
	}
	env := Env{Name: "patient", Instance: "patient-1", Auth: auth, Caller: &Caller{}, Log: slog.New(slog.DiscardHandler)}
	p := &patient{full: make(chan struct{}), release: make(chan struct{})}
	server := httptest.NewUnstartedServer(withRPC(newMetrics(env, nil), env, p.register, http.NotFoundHandler()))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	defer server.Close()

	// A connection has room for 250 calls at once.
	const callers, each = 5, 100
	var done, refused atomic.Int64
	enough := make(chan struct{}) // closed when those who find no place even to wait have been told
	var all sync.WaitGroup
	for range callers {
		conn, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(server.URL, "http://"),
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(bearer("service-token")))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for range each {
			all.Go(func() {
				err := conn.Invoke(t.Context(), "/test.Patient/Wait", &emptypb.Empty{}, &emptypb.Empty{})
				switch status.Code(err) {
				case codes.OK:
					done.Add(1)
				case codes.Unavailable, codes.ResourceExhausted:
					if refused.Add(1) == callers*each-5*rpcRoom {
						close(enough)
					}
				default:
					t.Errorf("Wait = %v, want nil or no room", err)
				}
			})
		}
	}
	<-p.full
	<-enough
	close(p.release)
	all.Wait()
	if n := p.most.Load(); n != rpcRoom {
		t.Errorf("%d calls at once, want %d", n, rpcRoom)
	}
	if done.Load() < rpcRoom || done.Load()+refused.Load() != callers*each {
		t.Errorf("%d done and %d refused of %d, want at least %d done", done.Load(), refused.Load(), callers*each, rpcRoom)
	}
}
