// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package grpckit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/grpckit"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

type (
	duplex = grpc.BidiStreamingServer[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]
	reply  = pb.SimpleResponse
)

// answers makes a backend of unary calls.
func answers(fn func(ctx context.Context) (*reply, error)) *backend {
	return &backend{unary: func(ctx context.Context, _ *pb.SimpleRequest) (*reply, error) { return fn(ctx) }}
}

// guarded returns a connection to b through the guards.
func guarded(t testing.TB, b *backend, client grpckit.ClientConfig, opts ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	_, addr := start(t, b, opts...)
	c, err := grpckit.NewClient(client)
	if err != nil {
		t.Fatal(err)
	}
	_, conn, _ := dial(t, grpckit.DialerConfig{}, []string{addr}, c.DialOptions()...)
	return conn
}

// serverGuards returns the options for a server with the guards.
func serverGuards(t testing.TB, cfg grpckit.ServerConfig) []grpc.ServerOption {
	t.Helper()
	s, err := grpckit.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s.ServerOptions()
}

// must is for constructors with a configuration that is right.
func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func retrier(t testing.TB) *retry.Retrier {
	return must[*retry.Retrier](t)(retry.New(retry.Config{Base: time.Microsecond, AfterMax: time.Minute, Budget: retry.Unlimited}))
}

func TestRetries(t *testing.T) {
	repeatable := func(context.Context, string) bool { return true }
	for _, c := range []struct {
		name       string
		repeatable func(context.Context, string) bool
		key        string
		err        error // of the first two attempts
		pushback   string
		attempts   int64
		code       codes.Code
	}{
		{name: "Unavailable, repeatable", repeatable: repeatable, err: status.Error(codes.Unavailable, "x"), attempts: 3},
		{name: "Unavailable, with a key", key: "k1", err: status.Error(codes.Unavailable, "x"), attempts: 3},
		{name: "Unavailable, not repeatable", err: status.Error(codes.Unavailable, "x"), attempts: 1, code: codes.Unavailable},
		{name: "Internal, repeatable", repeatable: repeatable, err: status.Error(codes.Internal, "x"), attempts: 3},
		{name: "plain error, repeatable", repeatable: repeatable, err: errors.New("x"), attempts: 3},
		{name: "InvalidArgument", repeatable: repeatable, err: status.Error(codes.InvalidArgument, "x"), attempts: 1, code: codes.InvalidArgument},
		{name: "DataLoss", repeatable: repeatable, err: status.Error(codes.DataLoss, "x"), attempts: 1, code: codes.DataLoss},
		{name: "ResourceExhausted without a time", repeatable: repeatable, err: status.Error(codes.ResourceExhausted, "x"), attempts: 1, code: codes.ResourceExhausted},
		{name: "ResourceExhausted with a time", repeatable: repeatable, err: &fault.Rejection{By: "ratelimit", RetryAfter: time.Millisecond, Err: ratelimit.ErrLimited}, attempts: 3},
		{name: "in progress elsewhere", err: fault.RetryAfter(fmt.Errorf("%w", idempotency.ErrInProgress), time.Millisecond), attempts: 3},
		{name: "refused further down is not refused here", err: refusedFurtherDown, attempts: 1, code: codes.Unavailable},
		{name: "pushback", repeatable: repeatable, err: status.Error(codes.Unavailable, "x"), pushback: "1", attempts: 3},
		{name: "pushback says no", repeatable: repeatable, err: status.Error(codes.Unavailable, "x"), pushback: "-1", attempts: 1, code: codes.Unavailable},
		{name: "pushback is nonsense", repeatable: repeatable, err: status.Error(codes.Unavailable, "x"), pushback: "soon", attempts: 1, code: codes.Unavailable},
		{name: "pushback beyond all patience", repeatable: repeatable, err: status.Error(codes.Unavailable, "x"), pushback: "3600000", attempts: 1, code: codes.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			var attempts atomic.Int64
			b := answers(func(ctx context.Context) (*reply, error) {
				n := attempts.Add(1)
				if got := retry.Attempt(ctx); got != int(n) {
					t.Errorf("the server sees attempt %d, want %d", got, n)
				}
				if n < 3 {
					if c.pushback != "" {
						_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", c.pushback))
					}
					return nil, c.err
				}
				return &reply{ServerId: "third"}, nil
			})
			conn := guarded(t, b, grpckit.ClientConfig{
				Policy: &resilience.Policy{Retry: retrier(t)}, Repeatable: c.repeatable, Propagate: true,
			}, serverGuards(t, grpckit.ServerConfig{Propagated: true})...)
			ctx := patient(t)
			if c.key != "" {
				ctx = grpckit.WithIdempotencyKey(ctx, c.key)
			}
			_, err := call(ctx, conn)
			wantCode(t, err, c.code)
			if got := attempts.Load(); got != c.attempts {
				t.Errorf("%d attempts, want %d (%v)", got, c.attempts, err)
			}
		})
	}
}

// refusedFurtherDown is what a handler gets from a service whose guard refused.
var refusedFurtherDown = func() error {
	s, err := grpckit.NewServer(grpckit.ServerConfig{RateLimit: func(context.Context, string) ratelimit.Result {
		return ratelimit.Result{RetryAfter: time.Millisecond}
	}})
	if err != nil {
		panic(err)
	}
	_, err = s.Unary(context.Background(), nil, &grpc.UnaryServerInfo{}, nil)
	st, _ := status.FromError(err)
	p := st.Proto()
	p.Code = int32(codes.Unavailable)
	return status.ErrorProto(p)
}()

// What a guard of the server refuses was not handled, so that anything may be repeated.
func TestRefusalsAreRepeatedWhateverTheMethod(t *testing.T) {
	var refusals, handled atomic.Int64
	b := answers(func(context.Context) (*reply, error) { handled.Add(1); return &reply{}, nil })
	conn := guarded(t, b, grpckit.ClientConfig{
		Policy: &resilience.Policy{Retry: retrier(t)}, Repeatable: func(context.Context, string) bool { return false },
	}, serverGuards(t, grpckit.ServerConfig{RateLimit: func(context.Context, string) ratelimit.Result {
		return ratelimit.Result{OK: refusals.Add(1) > 2, RetryAfter: time.Microsecond}
	}})...)
	if _, err := call(patient(t), conn); err != nil || handled.Load() != 1 {
		t.Errorf("call = %v after %d handled, want nil after 1", err, handled.Load())
	}
}

func TestErrorsAreStatusAndVerdict(t *testing.T) {
	b := answers(func(context.Context) (*reply, error) { return nil, status.Error(codes.Unavailable, "plain words") })
	conn := guarded(t, b, grpckit.ClientConfig{Policy: &resilience.Policy{
		Breaker: must[*breaker.Breaker](t)(breaker.New(breaker.Config{Name: "order", Consecutive: 2})),
		Retry:   retrier(t),
	}, Repeatable: func(context.Context, string) bool { return true }})
	_, err := call(patient(t), conn)
	if s := status.Convert(err); s.Code() != codes.Unavailable {
		t.Errorf("status = %v, want Unavailable", s)
	}
	var spent *retry.Error
	if !errors.As(err, &spent) {
		t.Errorf("call = %v, want a *retry.Error in it", err)
	}
	_, err = call(patient(t), conn)
	var rejection *fault.Rejection
	if !errors.As(err, &rejection) || rejection.By != "breaker" || status.Code(err) != codes.Unavailable {
		t.Errorf("call = %v, want the breaker's rejection, as Unavailable", err)
	}
	single := guarded(t, b, grpckit.ClientConfig{})
	_, err = call(patient(t), single)
	if s := status.Convert(err); s.Message() != "plain words" || !fault.IsUnknown(err) {
		t.Errorf("status = %v, unknown %v; want the server's words and an unknown outcome", s, fault.IsUnknown(err))
	}
}

func TestBreakerCountsFailuresOnly(t *testing.T) {
	var code atomic.Uint32
	var calls atomic.Int64
	b := answers(func(context.Context) (*reply, error) {
		calls.Add(1)
		return nil, status.Error(codes.Code(code.Load()), "x")
	})
	br := must[*breaker.Breaker](t)(breaker.New(breaker.Config{Consecutive: 3}))
	conn := guarded(t, b, grpckit.ClientConfig{Policy: &resilience.Policy{Breaker: br}})
	for _, c := range []codes.Code{codes.NotFound, codes.InvalidArgument, codes.ResourceExhausted, codes.Aborted, codes.PermissionDenied} {
		code.Store(uint32(c))
		for range 5 {
			_, err := call(patient(t), conn)
			wantCode(t, err, c)
		}
	}
	code.Store(uint32(codes.Internal))
	for range 10 {
		_, _ = call(patient(t), conn)
	}
	if got := calls.Load(); got != 25+3 {
		t.Errorf("the server got %d calls, want 28: 25 answers, 3 failures, and then none", got)
	}
}

func TestIdempotencyLevelOfTheDefinition(t *testing.T) {
	level := func(l descriptorpb.MethodOptions_IdempotencyLevel) *descriptorpb.MethodOptions {
		return &descriptorpb.MethodOptions{IdempotencyLevel: &l}
	}
	file := &descriptorpb.FileDescriptorProto{
		Name: proto.String("levels.proto"), Package: proto.String("levels"),
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("M")}},
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("S"), Method: []*descriptorpb.MethodDescriptorProto{
			{Name: proto.String("Get"), InputType: proto.String(".levels.M"), OutputType: proto.String(".levels.M"), Options: level(descriptorpb.MethodOptions_NO_SIDE_EFFECTS)},
			{Name: proto.String("Put"), InputType: proto.String(".levels.M"), OutputType: proto.String(".levels.M"), Options: level(descriptorpb.MethodOptions_IDEMPOTENT)},
			{Name: proto.String("Add"), InputType: proto.String(".levels.M"), OutputType: proto.String(".levels.M")},
		}}},
	}
	d, err := protodesc.NewFile(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := protoregistry.GlobalFiles.FindFileByPath(d.Path()); err != nil { // it may be there with -count
		if err := protoregistry.GlobalFiles.RegisterFile(d); err != nil {
			t.Fatal(err)
		}
	}
	for method, want := range map[string]bool{"/levels.S/Get": true, "/levels.S/Put": true, "/levels.S/Add": false, "/levels.S/Gone": false, "/levels.M": false, "": false} {
		if got := grpckit.Idempotent(t.Context(), method); got != want {
			t.Errorf("Idempotent(%q) = %v, want %v", method, got, want)
		}
	}
}

func TestDeadlines(t *testing.T) {
	t.Run("the server has the client's deadline less its reserve", func(t *testing.T) {
		var left atomic.Int64
		b := answers(func(ctx context.Context) (*reply, error) {
			deadline, ok := ctx.Deadline()
			if !ok {
				t.Error("the server has no deadline")
			}
			left.Store(int64(time.Until(deadline)))
			return &reply{}, nil
		})
		conn := guarded(t, b, grpckit.ClientConfig{Reserve: 30 * time.Second})
		if _, err := call(patient(t), conn); err != nil || left.Load() > int64(30*time.Second) {
			t.Errorf("call = %v with %v left at the server, want at most 30s of the minute", err, time.Duration(left.Load()))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 29*time.Second)
		defer cancel()
		left.Store(-1)
		_, err := call(ctx, conn)
		wantCode(t, err, codes.DeadlineExceeded)
		if left.Load() != -1 {
			t.Error("the call was made although nothing was left of its time")
		}
	})
	t.Run("a call with too little time left is refused at once", func(t *testing.T) {
		var handled atomic.Int64
		b := answers(func(context.Context) (*reply, error) { handled.Add(1); return &reply{}, nil })
		conn := guarded(t, b, grpckit.ClientConfig{}, serverGuards(t, grpckit.ServerConfig{MinTime: time.Hour})...)
		_, err := call(patient(t), conn)
		wantCode(t, err, codes.DeadlineExceeded)
		if handled.Load() != 0 {
			t.Error("the call was handled")
		}
		if _, err := call(context.Background(), conn); err != nil {
			t.Errorf("call without a deadline = %v, want nil", err)
		}
	})
	t.Run("the server's timeout bounds calls without a deadline", func(t *testing.T) {
		b := answers(func(ctx context.Context) (*reply, error) { <-ctx.Done(); return nil, ctx.Err() })
		conn := guarded(t, b, grpckit.ClientConfig{}, serverGuards(t, grpckit.ServerConfig{Timeout: time.Millisecond})...)
		_, err := call(context.Background(), conn)
		wantCode(t, err, codes.DeadlineExceeded)
	})
	t.Run("Total bounds all attempts", func(t *testing.T) {
		b := answers(func(ctx context.Context) (*reply, error) { <-ctx.Done(); return nil, ctx.Err() })
		conn := guarded(t, b, grpckit.ClientConfig{Policy: &resilience.Policy{Total: time.Millisecond, Retry: retrier(t)}})
		_, err := call(context.Background(), conn)
		wantCode(t, err, codes.DeadlineExceeded)
	})
	t.Run("a slow attempt is a failure, repeated if that is allowed", func(t *testing.T) {
		var attempts atomic.Int64
		b := answers(func(ctx context.Context) (*reply, error) {
			if attempts.Add(1) == 1 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return &reply{}, nil
		})
		conn := guarded(t, b, grpckit.ClientConfig{
			Policy: &resilience.Policy{Attempt: time.Second, Retry: retrier(t)}, Repeatable: func(context.Context, string) bool { return true },
		})
		if _, err := call(patient(t), conn); err != nil || attempts.Load() != 2 {
			t.Errorf("call = %v after %d attempts, want nil after 2", err, attempts.Load())
		}
	})
}

// Every way in which a stream can end gives its place back, on both sides.
func TestStreamHoldsItsPlaceUntilItEnds(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, s pb.TestService_FullDuplexCallClient, cancel func()){
		"read to its end": func(t *testing.T, s pb.TestService_FullDuplexCallClient, _ func()) {
			if err := s.CloseSend(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("Recv = %v, want EOF", err)
			}
		},
		"error of the server": func(t *testing.T, s pb.TestService_FullDuplexCallClient, _ func()) {
			if err := s.Send(&pb.StreamingOutputCallRequest{ResponseStatus: &pb.EchoStatus{Code: int32(codes.Internal)}}); err != nil {
				t.Fatal(err)
			}
			_, err := s.Recv()
			wantCode(t, err, codes.Internal)
			if v := fault.Judge(t.Context(), err); v.Outcome != fault.Failure || !v.Unknown {
				t.Errorf("verdict = %+v, want a failure with unknown effect", v)
			}
		},
		"cancelled and never read": func(_ *testing.T, _ pb.TestService_FullDuplexCallClient, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			mine := must[*bulkhead.Bulkhead](t)(bulkhead.New(1, bulkhead.Config{}))
			theirs := must[*bulkhead.Bulkhead](t)(bulkhead.New(1, bulkhead.Config{}))
			adaptive := must[*resilience.Adaptive](t)(resilience.NewAdaptive(resilience.AdaptiveConfig{}))
			b := &backend{stream: func(s duplex) error {
				for {
					in, err := s.Recv()
					if errors.Is(err, io.EOF) {
						return nil
					}
					if err != nil {
						return err
					}
					if c := in.GetResponseStatus().GetCode(); c != 0 {
						return status.Error(codes.Code(c), "as asked")
					}
					if err := s.Send(&pb.StreamingOutputCallResponse{}); err != nil {
						return err
					}
				}
			}}
			conn := guarded(t, b, grpckit.ClientConfig{Policy: &resilience.Policy{Bulkhead: mine, Adaptive: adaptive, Attempt: time.Nanosecond, Total: time.Nanosecond}},
				serverGuards(t, grpckit.ServerConfig{Shed: &resilience.Policy{Bulkhead: theirs, Attempt: time.Nanosecond}, Timeout: time.Nanosecond})...)
			ctx, cancel := context.WithCancel(patient(t))
			defer cancel()
			s, err := pb.NewTestServiceClient(conn).FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if err := s.Send(&pb.StreamingOutputCallRequest{}); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Recv(); err != nil {
					t.Fatal(err)
				}
				if a, b := mine.Stats().InFlight, theirs.Stats().InFlight; a != 1 || b != 1 {
					t.Fatalf("places taken = %d and %d in the middle of the stream, want 1 and 1", a, b)
				}
			}
			if _, err := pb.NewTestServiceClient(conn).FullDuplexCall(ctx); status.Code(err) != codes.Unavailable {
				t.Errorf("a second stream = %v, want Unavailable", err)
			}
			end(t, s, cancel)
			eventually(t, "the places are free", func() bool {
				return mine.Stats().InFlight == 0 && theirs.Stats().InFlight == 0 && adaptive.Stats().InFlight == 0
			})
		})
	}
}

func TestServerRefusals(t *testing.T) {
	ok := answers(func(context.Context) (*reply, error) { return &reply{}, nil })
	full := must[*bulkhead.Bulkhead](t)(bulkhead.New(1, bulkhead.Config{}))
	permit, err := full.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer permit.Release()
	for _, c := range []struct {
		name  string
		cfg   grpckit.ServerConfig
		code  codes.Code
		after time.Duration
	}{
		{"quota", grpckit.ServerConfig{RateLimit: func(context.Context, string) ratelimit.Result { return ratelimit.Result{RetryAfter: 3 * time.Second} }}, codes.ResourceExhausted, 3 * time.Second},
		{"quota that will never do", grpckit.ServerConfig{RateLimit: func(context.Context, string) ratelimit.Result { return ratelimit.Result{RetryAfter: -1} }}, codes.ResourceExhausted, 0},
		{"overload", grpckit.ServerConfig{Shed: &resilience.Policy{Bulkhead: full}}, codes.Unavailable, time.Second},
		{"exempt", grpckit.ServerConfig{Shed: &resilience.Policy{Bulkhead: full}, Exempt: func(string) bool { return true }}, codes.OK, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := guarded(t, ok, grpckit.ClientConfig{}, serverGuards(t, c.cfg)...)
			_, err := call(patient(t), conn)
			wantCode(t, err, c.code)
			v := grpckit.Judge(t.Context(), err)
			if v.After != c.after || v.Retry != (c.after > 0) || v.Unknown {
				t.Errorf("verdict = %+v, want to come back after %v and no effect", v, c.after)
			}
		})
	}
}

func TestPanicsReleaseTheirPlace(t *testing.T) {
	info := &grpc.UnaryServerInfo{FullMethod: "/a.B/C"}
	for name, handler := range map[string]grpc.UnaryHandler{
		"panic":  func(context.Context, any) (any, error) { panic("boom") },
		"Goexit": func(context.Context, any) (any, error) { runtime.Goexit(); return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			places := must[*bulkhead.Bulkhead](t)(bulkhead.New(1, bulkhead.Config{}))
			s := must[*grpckit.Server](t)(grpckit.NewServer(grpckit.ServerConfig{Shed: &resilience.Policy{Bulkhead: places}}))
			var caught any
			var done sync.WaitGroup
			done.Go(func() {
				defer func() { caught = recover() }()
				_, _ = s.Unary(t.Context(), nil, info, handler)
			})
			done.Wait()
			if places.Stats().InFlight != 0 {
				t.Error("the place is still taken")
			}
			if name == "panic" && caught != "boom" {
				t.Errorf("caught %v, want the panic to go on", caught)
			}
		})
	}
	t.Run("OnPanic", func(t *testing.T) {
		places := must[*bulkhead.Bulkhead](t)(bulkhead.New(1, bulkhead.Config{}))
		var told atomic.Value
		b := answers(func(context.Context) (*reply, error) { panic("boom") })
		b.stream = func(duplex) error { panic("boom") }
		conn := guarded(t, b, grpckit.ClientConfig{}, serverGuards(t, grpckit.ServerConfig{
			Shed: &resilience.Policy{Bulkhead: places},
			OnPanic: func(_ context.Context, method string, value any, stack []byte) {
				told.Store(fmt.Sprint(method, " ", value, " ", strings.Contains(string(stack), "guards_test.go")))
			},
		})...)
		_, err := call(patient(t), conn)
		wantCode(t, err, codes.Internal)
		if strings.Contains(err.Error(), "boom") {
			t.Errorf("call = %v, which says too much", err)
		}
		if want := pb.TestService_UnaryCall_FullMethodName + " boom true"; told.Load() != want {
			t.Errorf("OnPanic was told %q, want %q", told.Load(), want)
		}
		s, err := pb.NewTestServiceClient(conn).FullDuplexCall(patient(t))
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Recv()
		wantCode(t, err, codes.Internal)
		eventually(t, "the place is free", func() bool { return places.Stats().InFlight == 0 })
	})
	t.Run("client", func(t *testing.T) {
		places := must[*bulkhead.Bulkhead](t)(bulkhead.New(1, bulkhead.Config{}))
		c := must[*grpckit.Client](t)(grpckit.NewClient(grpckit.ClientConfig{Policy: &resilience.Policy{Bulkhead: places}}))
		for what, fn := range map[string]func(){
			"unary": func() {
				_ = c.Unary(t.Context(), "/a.B/C", nil, nil, nil, func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { panic("boom") })
			},
			"stream": func() {
				_, _ = c.Stream(t.Context(), &grpc.StreamDesc{}, nil, "/a.B/C", func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
					panic("boom")
				})
			},
		} {
			func() {
				defer func() {
					if v := recover(); v != "boom" || places.Stats().InFlight != 0 {
						t.Errorf("%s: recovered %v with %d places taken, want boom and 0", what, v, places.Stats().InFlight)
					}
				}()
				fn()
			}()
		}
	})
}

func TestTraceAndCriticalityGoThrough(t *testing.T) {
	type seen struct {
		trace       messaging.TraceContext
		traced      bool
		criticality resilience.Criticality
		baggage     string
	}
	var last atomic.Value
	end := answers(func(ctx context.Context) (*reply, error) {
		trace, ok := grpckit.TraceOf(ctx)
		md, _ := metadata.FromIncomingContext(ctx)
		last.Store(seen{trace, ok, resilience.CriticalityOf(ctx), strings.Join(md.Get("baggage"), ",")})
		return &reply{}, nil
	})
	propagated := serverGuards(t, grpckit.ServerConfig{Propagated: true})
	further := guarded(t, end, grpckit.ClientConfig{Propagate: true}, propagated...)
	middle := answers(func(ctx context.Context) (*reply, error) {
		_, err := call(ctx, further)
		return &reply{}, err
	})
	conn := guarded(t, middle, grpckit.ClientConfig{Propagate: true}, propagated...)

	root := messaging.NewTrace()
	root.State = "vendor=1"
	ctx := resilience.WithCriticality(grpckit.WithTrace(patient(t), root), resilience.Sheddable)
	ctx = metadata.AppendToOutgoingContext(ctx, "baggage", "tenant=7")
	if _, err := call(ctx, conn); err != nil {
		t.Fatal(err)
	}
	got := last.Load().(seen)
	if !got.traced || got.trace.TraceID != root.TraceID || got.trace.SpanID == root.SpanID || got.trace.State != root.State {
		t.Errorf("trace after two hops = %+v, want another span of %+v", got.trace, root)
	}
	if got.criticality != resilience.Sheddable || got.baggage != "tenant=7" {
		t.Errorf("criticality, baggage = %v, %q; want sheddable, tenant=7", got.criticality, got.baggage)
	}
	// What another tool has put into the metadata stays.
	ctx = metadata.AppendToOutgoingContext(grpckit.WithTrace(patient(t), root), "traceparent", "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01")
	if _, err := call(ctx, conn); err != nil {
		t.Fatal(err)
	}
	if got := last.Load().(seen); got.trace.TraceID.String() != "0123456789abcdef0123456789abcdef" {
		t.Errorf("trace = %v, want that of the metadata", got.trace)
	}
}

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		err   error
		code  codes.Code
		after time.Duration
	}{
		{nil, codes.OK, 0},
		{errors.New("x"), codes.Unknown, 0},
		{fmt.Errorf("load: %w", status.Error(codes.NotFound, "x")), codes.NotFound, 0},
		{&fault.Rejection{By: "ratelimit", RetryAfter: time.Second, Err: ratelimit.ErrLimited}, codes.ResourceExhausted, time.Second},
		{&fault.Rejection{By: "breaker", RetryAfter: 2 * time.Second, Err: breaker.ErrOpen}, codes.Unavailable, 2 * time.Second},
		{&fault.Rejection{By: "bulkhead", Err: bulkhead.ErrFull}, codes.Unavailable, 0},
		{fault.RetryAfter(errors.New("x"), time.Minute), codes.Unavailable, time.Minute},
		{context.Canceled, codes.Canceled, 0},
		{fmt.Errorf("load: %w", context.DeadlineExceeded), codes.DeadlineExceeded, 0},
		{idempotency.ErrInProgress, codes.Aborted, time.Second},
		{fmt.Errorf("x: %w", idempotency.ErrMismatch), codes.FailedPrecondition, 0},
	} {
		s := grpckit.Status(c.err)
		if s.Code() != c.code {
			t.Errorf("Status(%v) = %v, want %v", c.err, s.Code(), c.code)
		}
		if c.after > 0 {
			if v := grpckit.Judge(t.Context(), s.Err()); v.After != c.after {
				t.Errorf("Judge(Status(%v)) = %+v, want After %v", c.err, v, c.after)
			}
		}
	}
}

func TestJudgeAfterTheCallersEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []codes.Code{codes.Canceled, codes.DeadlineExceeded} {
		if v := grpckit.Judge(ctx, status.Error(c, "x")); v.Outcome != fault.Neutral || v.Retry || !v.Unknown {
			t.Errorf("Judge(%v) = %+v, want neutral with unknown effect", c, v)
		}
		if v := grpckit.Judge(t.Context(), status.Error(c, "x")); v.Outcome != fault.Failure || !v.Unknown {
			t.Errorf("Judge(%v) while the caller waits = %+v, want a failure", c, v)
		}
	}
	if v := grpckit.Judge(ctx, status.Error(codes.Unavailable, "x")); v.Retry {
		t.Error("Judge says to try again after the end of the caller")
	}
	if v := grpckit.Judge(t.Context(), nil); v != (fault.Verdict{}) {
		t.Errorf("Judge(nil) = %+v, want success", v)
	}
}

func TestGuardsNameWhatIsWrong(t *testing.T) {
	if _, err := grpckit.NewClient(grpckit.ClientConfig{Reserve: -1}); err == nil || !strings.Contains(err.Error(), "Reserve") {
		t.Errorf("NewClient = %v, want an error that names Reserve", err)
	}
	for name, cfg := range map[string]grpckit.ServerConfig{"MinTime": {MinTime: -1}, "Timeout": {Timeout: -1}} {
		if _, err := grpckit.NewServer(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("NewServer = %v, want an error that names %s", err, name)
		}
	}
}

// FuzzPropagated: whatever the metadata says, the call is handled.
func FuzzPropagated(f *testing.F) {
	f.Add("2", "sheddable", "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01", "a=b", "k=v")
	f.Add("-1", "", "00--", ",", "")
	s, err := grpckit.NewServer(grpckit.ServerConfig{Propagated: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, attempt, criticality, parent, state, baggage string) {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(
			"dovetail-attempt", attempt, "dovetail-criticality", criticality, "traceparent", parent, "tracestate", state, "baggage", baggage,
		))
		_, err := s.Unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/a.B/C"}, func(ctx context.Context, _ any) (any, error) {
			if n := retry.Attempt(ctx); n < 1 {
				t.Errorf("attempt = %d, want 1 or more", n)
			}
			if trace, ok := grpckit.TraceOf(ctx); ok && trace.String()[3:35] != parent[3:35] {
				t.Errorf("trace = %v of %q", trace, parent)
			}
			return nil, nil
		})
		if err != nil {
			t.Errorf("Unary = %v, want nil", err)
		}
	})
}
