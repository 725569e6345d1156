// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package grpckit_test

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/grpckit"
)

const service = "order"

// backend is an instance whose answers the test decides.
type backend struct {
	pb.UnimplementedTestServiceServer
	unary  func(ctx context.Context, in *pb.SimpleRequest) (*pb.SimpleResponse, error)
	stream func(stream grpc.BidiStreamingServer[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error
}

// UnaryCall implements pb.TestServiceServer.
func (b *backend) UnaryCall(ctx context.Context, in *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	return b.unary(ctx, in)
}

// FullDuplexCall implements pb.TestServiceServer.
func (b *backend) FullDuplexCall(stream grpc.BidiStreamingServer[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
	return b.stream(stream)
}

// says answers every call with its name.
func says(name string) *backend {
	return &backend{unary: func(context.Context, *pb.SimpleRequest) (*pb.SimpleResponse, error) {
		return &pb.SimpleResponse{ServerId: name}, nil
	}}
}

// start serves b on a port of its own, until the end of the test at the latest.
func start(t testing.TB, b pb.TestServiceServer, opts ...grpc.ServerOption) (*grpc.Server, string) {
	t.Helper()
	return startAt(t, "127.0.0.1:0", b, opts...)
}

func startAt(t testing.TB, addr string, b pb.TestServiceServer, opts ...grpc.ServerOption) (*grpc.Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(opts...)
	pb.RegisterTestServiceServer(server, b)
	return server, serve(t, server, ln)
}

func listen(t testing.TB, server *grpc.Server) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, server, ln)
}

func serve(t testing.TB, server *grpc.Server, ln net.Listener) string {
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(server.Stop)
	return ln.Addr().String()
}

// instances are those at the addresses; each one's ID is its address.
func instances(addrs ...string) []discovery.Instance {
	list := make([]discovery.Instance, len(addrs))
	for i, a := range addrs {
		list[i] = discovery.Instance{Addr: a}
	}
	return list
}

// dial returns a dialer with its connection to the addresses, and how to change them.
func dial(t testing.TB, cfg grpckit.DialerConfig, addrs []string, opts ...grpc.DialOption) (*grpckit.Dialer, *grpc.ClientConn, *discovery.Static) {
	t.Helper()
	static, err := discovery.NewStatic(map[string][]discovery.Instance{service: instances(addrs...)})
	if err != nil {
		t.Fatal(err)
	}
	d, err := grpckit.NewDialer(static, cfg)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := d.Dial(service, append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return d, conn, static
}

// call makes one call and returns who answered.
func call(ctx context.Context, conn grpc.ClientConnInterface) (string, error) {
	out, err := pb.NewTestServiceClient(conn).UnaryCall(ctx, &pb.SimpleRequest{})
	return out.GetServerId(), err
}

// patient is a context for what must not hang for ever, on the slowest machine.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for what comes in its own time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

func wantCode(t testing.TB, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("call = %v (%v), want %v", got, err, want)
	}
}
