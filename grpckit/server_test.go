// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package grpckit_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/dovetail-go/dovetail/grpckit"
	"github.com/dovetail-go/dovetail/health"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
)

// once returns a connection to b behind Idempotency. Callers are told apart by the metadata "user".
func once(t testing.TB, b *backend, cfg grpckit.IdempotencyConfig) *grpc.ClientConn {
	t.Helper()
	cfg.Scope = func(ctx context.Context) (string, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		if user := md.Get("user"); len(user) == 1 {
			return user[0], nil
		}
		return "", status.Error(codes.Unauthenticated, "who are you")
	}
	interceptor, err := grpckit.Idempotency(idempotencymem.New(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return guarded(t, b, grpckit.ClientConfig{}, append(serverGuards(t, grpckit.ServerConfig{}), grpc.ChainUnaryInterceptor(interceptor))...)
}

func TestIdempotency(t *testing.T) {
	var calls atomic.Int64
	b := &backend{unary: func(_ context.Context, in *pb.SimpleRequest) (*reply, error) {
		n := calls.Add(1)
		if body := string(in.GetPayload().GetBody()); body != "" {
			switch body {
			case "refused":
				return nil, status.Error(codes.FailedPrecondition, "out of stock")
			case "broken":
				return nil, status.Error(codes.Unavailable, "x")
			}
		}
		return &reply{ServerId: string(rune('0' + n)), Payload: in.GetPayload()}, nil
	}}
	conn := once(t, b, grpckit.IdempotencyConfig{Required: true})
	send := func(user, key, body string) (*reply, error) {
		ctx := patient(t)
		if user != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "user", user)
		}
		if key != "" {
			ctx = grpckit.WithIdempotencyKey(ctx, key)
		}
		return pb.NewTestServiceClient(conn).UnaryCall(ctx, &pb.SimpleRequest{Payload: &pb.Payload{Body: []byte(body)}})
	}
	wantCalls := func(want int64) {
		t.Helper()
		if got := calls.Load(); got != want {
			t.Errorf("handled %d times, want %d", got, want)
		}
	}
	first, err := send("anna", "k", "")
	if err != nil {
		t.Fatal(err)
	}
	again, err := send("anna", "k", "")
	if err != nil || again.GetServerId() != first.GetServerId() {
		t.Errorf("repeated = %v, %v; want %v", again, err, first)
	}
	wantCalls(1)
	_, err = send("anna", "k", "other")
	wantCode(t, err, codes.FailedPrecondition)
	wantCalls(1)
	if other, err := send("bert", "k", ""); err != nil || other.GetServerId() == first.GetServerId() {
		t.Errorf("another caller with the same key = %v, %v; want an answer of its own", other, err)
	}
	wantCalls(2)
	for range 2 {
		_, err = send("anna", "refused", "refused")
		if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != "out of stock" {
			t.Errorf("refusal = %v, want the first one's", s)
		}
	}
	wantCalls(3)
	for range 2 {
		_, err = send("anna", "broken", "broken")
		wantCode(t, err, codes.Unavailable)
	}
	wantCalls(5)
	_, err = send("anna", "", "")
	wantCode(t, err, codes.InvalidArgument)
	_, err = send("anna", strings.Repeat("k", 256), "")
	wantCode(t, err, codes.InvalidArgument)
	_, err = send("", "k", "")
	wantCode(t, err, codes.Unauthenticated)
	if _, err = send(strings.Repeat("long ", 100), "k", ""); err != nil {
		t.Errorf("caller with a long name = %v, want nil", err)
	}
	wantCalls(6)
}

func TestIdempotencyInProgress(t *testing.T) {
	entered, finish := make(chan struct{}), make(chan struct{})
	b := answers(func(context.Context) (*reply, error) {
		close(entered)
		<-finish
		return &reply{ServerId: "done"}, nil
	})
	conn := once(t, b, grpckit.IdempotencyConfig{})
	ctx := grpckit.WithIdempotencyKey(metadata.AppendToOutgoingContext(patient(t), "user", "anna"), "k")
	var first sync.WaitGroup
	first.Go(func() {
		if got, err := call(ctx, conn); err != nil || got != "done" {
			t.Errorf("first = %v, %v; want done", got, err)
		}
	})
	<-entered
	_, err := call(ctx, conn)
	wantCode(t, err, codes.Aborted)
	if v := grpckit.Judge(t.Context(), err); !v.Retry || v.After <= 0 {
		t.Errorf("verdict = %+v, want to come back later", v)
	}
	close(finish)
	first.Wait()
	if got, err := call(ctx, conn); err != nil || got != "done" {
		t.Errorf("repeated = %v, %v; want done", got, err)
	}
}

func TestIdempotencyLeavesOtherMethodsAlone(t *testing.T) {
	var calls atomic.Int64
	b := answers(func(context.Context) (*reply, error) { calls.Add(1); return &reply{}, nil })
	conn := once(t, b, grpckit.IdempotencyConfig{Required: true, Methods: func(method string) bool { return strings.HasSuffix(method, "/Other") }})
	for range 2 {
		if _, err := call(grpckit.WithIdempotencyKey(patient(t), "k"), conn); err != nil {
			t.Fatal(err)
		}
	}
	if calls.Load() != 2 {
		t.Errorf("handled %d times, want 2", calls.Load())
	}
}

func TestIdempotencyNamesWhatIsWrong(t *testing.T) {
	if _, err := grpckit.Idempotency(nil, grpckit.IdempotencyConfig{}); err == nil || !strings.Contains(err.Error(), "store") {
		t.Errorf("Idempotency = %v, want an error that names the store", err)
	}
	if _, err := grpckit.Idempotency(idempotencymem.New(), grpckit.IdempotencyConfig{}); err == nil || !strings.Contains(err.Error(), "Scope") {
		t.Errorf("Idempotency = %v, want an error that names Scope", err)
	}
}

func TestHealth(t *testing.T) {
	checks, err := health.New(health.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var sick atomic.Bool
	err = checks.Add("database", func(context.Context) error {
		if sick.Load() {
			return errors.New("gone")
		}
		return nil
	}, health.CheckConfig{TTL: -1})
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, grpckit.NewHealth(checks, grpckit.HealthConfig{Services: []string{"shop.Orders"}, Every: time.Millisecond}))
	_, conn, _ := dial(t, grpckit.DialerConfig{}, []string{listen(t, server)})
	client := healthpb.NewHealthClient(conn)
	check := func(service string) string {
		out, err := client.Check(patient(t), &healthpb.HealthCheckRequest{Service: service})
		if err != nil {
			return status.Code(err).String()
		}
		return out.GetStatus().String()
	}
	for service, want := range map[string]string{"": "SERVING", "shop.Orders": "SERVING", "shop.Unknown": "NotFound"} {
		if got := check(service); got != want {
			t.Errorf("Check(%q) = %s, want %s", service, got, want)
		}
	}
	list, err := client.List(patient(t), &healthpb.HealthListRequest{})
	if err != nil || len(list.GetStatuses()) != 2 {
		t.Errorf("List = %v, %v; want 2 services", list, err)
	}
	watch, err := client.Watch(patient(t), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func() string {
		out, err := watch.Recv()
		if err != nil {
			return err.Error()
		}
		return out.GetStatus().String()
	}
	var got []string
	got = append(got, next())
	sick.Store(true)
	got = append(got, next())
	sick.Store(false)
	got = append(got, next())
	checks.SetReady(errors.New("draining"))
	got = append(got, next())
	if want := []string{"SERVING", "NOT_SERVING", "SERVING", "NOT_SERVING"}; !slices.Equal(got, want) {
		t.Errorf("Watch = %v, want %v", got, want)
	}
	if got := check(""); got != "NOT_SERVING" {
		t.Errorf("Check while draining = %s, want NOT_SERVING", got)
	}
	unknown, err := client.Watch(patient(t), &healthpb.HealthCheckRequest{Service: "shop.Unknown"})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := unknown.Recv(); err != nil || out.GetStatus() != healthpb.HealthCheckResponse_SERVICE_UNKNOWN {
		t.Errorf("Watch of an unknown service = %v, %v; want SERVICE_UNKNOWN", out, err)
	}
}

func TestStageFinishesCallsAndCutsOffWhatIsLeft(t *testing.T) {
	for name, patience := range map[string]time.Duration{"finishes": time.Minute, "cuts off": time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			entered, finish := make(chan struct{}), make(chan struct{})
			b := answers(func(ctx context.Context) (*reply, error) {
				close(entered)
				select {
				case <-finish:
				case <-ctx.Done():
				}
				return &reply{ServerId: "finished"}, ctx.Err()
			})
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			server := grpc.NewServer()
			pb.RegisterTestServiceServer(server, b)
			stage := grpckit.Stage("grpc", server, ln)
			var done sync.WaitGroup
			done.Go(func() {
				if err := stage.Run(t.Context()); err != nil {
					t.Errorf("Run = %v, want nil", err)
				}
			})
			_, conn, _ := dial(t, grpckit.DialerConfig{}, []string{ln.Addr().String()})
			var answer string
			var failed error
			done.Go(func() { answer, failed = call(patient(t), conn) })
			<-entered
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			stopped := make(chan error, 1)
			go func() { stopped <- stage.Stop(ctx) }()
			if patience == time.Minute {
				close(finish)
			}
			err = <-stopped
			done.Wait()
			switch patience {
			case time.Minute:
				if err != nil || answer != "finished" {
					t.Errorf("Stop = %v with answer %q, %v; want nil and the answer", err, answer, failed)
				}
			default:
				if !errors.Is(err, context.DeadlineExceeded) || failed == nil {
					t.Errorf("Stop = %v with the call's error %v, want the deadline and an error", err, failed)
				}
			}
		})
	}
}
