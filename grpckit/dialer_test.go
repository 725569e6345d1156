// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package grpckit_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/grpckit"
	"github.com/dovetail-go/dovetail/health"
)

// three starts three instances that say their names.
func three(t testing.TB) (addrs []string, servers []*grpc.Server) {
	t.Helper()
	for i := range 3 {
		server, addr := start(t, says(fmt.Sprint(i)))
		addrs, servers = append(addrs, addr), append(servers, server)
	}
	return addrs, servers
}

func TestCallsAreSpreadOverTheInstances(t *testing.T) {
	addrs, _ := three(t)
	for _, picker := range []balance.Picker{balance.PeakEWMA{}, balance.RoundRobin{}, balance.LeastRequests{}} {
		t.Run(fmt.Sprintf("%T", picker), func(t *testing.T) {
			_, conn, _ := dial(t, grpckit.DialerConfig{Balancer: balance.Config{Picker: picker}}, addrs)
			seen := map[string]bool{}
			eventually(t, "all three answer", func() bool {
				who, err := call(patient(t), conn)
				if err != nil {
					t.Fatal(err)
				}
				seen[who] = true
				return len(seen) == 3
			})
		})
	}
	t.Run("one key, one instance", func(t *testing.T) {
		type keyed struct{}
		_, conn, _ := dial(t, grpckit.DialerConfig{
			Balancer: balance.Config{Picker: balance.ConsistentHash{}},
			Key: func(ctx context.Context, method string) string {
				if method != pb.TestService_UnaryCall_FullMethodName {
					t.Errorf("method = %q", method)
				}
				key, _ := ctx.Value(keyed{}).(string)
				return key
			},
		}, addrs)
		ctx := context.WithValue(patient(t), keyed{}, "customer 17")
		home := map[string]int{}
		for range 100 { // the first ones may go elsewhere, until their instance is connected
			who, err := call(ctx, conn)
			if err != nil {
				t.Fatal(err)
			}
			home[who]++
		}
		most := 0
		for _, n := range home {
			most = max(most, n)
		}
		if most < 80 {
			t.Errorf("calls with one key went to %v, want nearly all to one", home)
		}
	})
}

func TestAuthorityIsTheService(t *testing.T) {
	_, addr := start(t, &backend{unary: func(ctx context.Context, _ *pb.SimpleRequest) (*pb.SimpleResponse, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		return &pb.SimpleResponse{ServerId: strings.Join(md.Get(":authority"), ",")}, nil
	}})
	_, conn, _ := dial(t, grpckit.DialerConfig{}, []string{addr})
	if got, err := call(patient(t), conn); err != nil || got != service {
		t.Errorf("authority = %q, %v; want %q", got, err, service)
	}
}

// The certificate names the service, not the addresses of its instances.
func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	certificate := func(name string) tls.Certificate {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	for name, want := range map[string]codes.Code{service: codes.OK, "payment": codes.Unavailable} {
		t.Run(name, func(t *testing.T) {
			theirs := certificate(name)
			_, addr := start(t, says("secret"), grpc.Creds(credentials.NewServerTLSFromCert(&theirs)))
			roots := x509.NewCertPool()
			parsed, err := x509.ParseCertificate(theirs.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			roots.AddCert(parsed)
			_, conn, _ := dial(t, grpckit.DialerConfig{}, []string{addr}, grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(roots, "")))
			_, err = call(patient(t), conn)
			wantCode(t, err, want)
		})
	}
}

// load makes calls from several goroutines until stop is closed, and counts.
type load struct {
	calls, failures atomic.Int64
	last            atomic.Value
	stop            chan struct{}
	done            sync.WaitGroup
}

func startLoad(ctx context.Context, conn grpc.ClientConnInterface) *load {
	l := &load{stop: make(chan struct{})}
	for range 4 {
		l.done.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
				}
				if _, err := call(ctx, conn); err != nil {
					l.failures.Add(1)
					l.last.Store(err)
				}
				l.calls.Add(1)
			}
		})
	}
	return l
}

// more waits until n more calls were made.
func (l *load) more(t testing.TB, n int64) {
	t.Helper()
	from := l.calls.Load()
	eventually(t, "calls go on", func() bool { return l.calls.Load() >= from+n })
}

// end returns how many calls failed.
func (l *load) end() int64 {
	close(l.stop)
	l.done.Wait()
	return l.failures.Load()
}

func TestKilledInstance(t *testing.T) {
	addrs, servers := three(t)
	d, conn, _ := dial(t, grpckit.DialerConfig{}, addrs)
	l := startLoad(patient(t), conn)
	l.more(t, 300)
	servers[1].Stop() // connections break with calls on them
	l.more(t, 300)
	// At most the calls that were on it fail, each once, and those of the moment until it is noticed.
	if failed := l.end(); failed > 8 {
		t.Errorf("%d of %d calls failed, last with %v; want those on the killed instance only", failed, l.calls.Load(), l.last.Load())
	}
	for _, in := range d.View()[0].Instances {
		if in.InFlight != 0 {
			t.Errorf("%d calls in flight to %s after the end, want 0", in.InFlight, in.Addr)
		}
	}
	// Back at the same address, it takes part again.
	startAt(t, addrs[1], says("back"))
	eventually(t, "the instance that came back answers", func() bool {
		who, err := call(patient(t), conn)
		return err == nil && who == "back"
	})
}

func TestDrainedInstancesLoseNoCalls(t *testing.T) {
	for name, deregister := range map[string]bool{"after deregistration": true, "by the server alone": false} {
		t.Run(name, func(t *testing.T) {
			addrs, servers := three(t)
			_, conn, static := dial(t, grpckit.DialerConfig{}, addrs)
			l := startLoad(patient(t), conn)
			l.more(t, 200)
			for i := range servers { // one after the other is replaced
				server, addr := start(t, says(fmt.Sprint("new ", i)))
				old := servers[i]
				servers[i], addrs[i] = server, addr
				if deregister {
					static.Set(service, instances(addrs...)...)
				}
				if err := grpckit.Drain(patient(t), old); err != nil {
					t.Errorf("Drain = %v, want nil", err)
				}
				static.Set(service, instances(addrs...)...)
				l.more(t, 200)
			}
			if failed := l.end(); failed > 0 {
				t.Errorf("%d of %d calls failed, last with %v; want 0", failed, l.calls.Load(), l.last.Load())
			}
		})
	}
}

func TestHangingInstanceIsAvoided(t *testing.T) {
	addrs, _ := three(t)
	var hung atomic.Int64
	_, hanging := start(t, &backend{unary: func(ctx context.Context, _ *pb.SimpleRequest) (*pb.SimpleResponse, error) {
		hung.Add(1)
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	_, conn, _ := dial(t, grpckit.DialerConfig{}, append(addrs, hanging))
	ctx, cancel := context.WithCancel(patient(t))
	var calls sync.WaitGroup
	var answered atomic.Int64
	for n := int64(1); n <= 300; n++ {
		calls.Go(func() {
			if _, err := call(ctx, conn); err == nil {
				answered.Add(1)
			}
		})
		eventually(t, "the call is answered, or hangs", func() bool { return answered.Load()+hung.Load() >= n })
	}
	if got := hung.Load(); got > 60 {
		t.Errorf("%d of 300 calls went to the instance that hangs, want it to be avoided", got)
	}
	cancel()
	calls.Wait()
}

func TestFailingInstanceIsEjected(t *testing.T) {
	addrs, _ := three(t)
	_, failing := start(t, &backend{unary: func(context.Context, *pb.SimpleRequest) (*pb.SimpleResponse, error) {
		return nil, status.Error(codes.Internal, "fast and wrong")
	}})
	d, conn, _ := dial(t, grpckit.DialerConfig{Balancer: balance.Config{Picker: balance.RoundRobin{}}}, append(addrs, failing))
	eventually(t, "it is ejected", func() bool {
		_, _ = call(patient(t), conn)
		for _, in := range d.View()[0].Instances {
			if in.Addr == failing && in.Ejected {
				return true
			}
		}
		return false
	})
}

func TestAnswersThatAreErrorsEjectNobody(t *testing.T) {
	_, addr := start(t, &backend{unary: func(context.Context, *pb.SimpleRequest) (*pb.SimpleResponse, error) {
		return nil, status.Error(codes.NotFound, "no such order")
	}})
	d, conn, _ := dial(t, grpckit.DialerConfig{}, []string{addr})
	for range 20 {
		_, err := call(patient(t), conn)
		wantCode(t, err, codes.NotFound)
	}
	if in := d.View()[0].Instances[0]; in.Calls != 20 || in.Failures != 0 || in.Suspect != "" {
		t.Errorf("instance = %+v, want 20 calls without failure", in)
	}
}

func TestWhatIsKnownSurvivesChangesOfTheOthers(t *testing.T) {
	addrs, _ := three(t)
	d, conn, static := dial(t, grpckit.DialerConfig{}, addrs[:1])
	for range 10 {
		if _, err := call(patient(t), conn); err != nil {
			t.Fatal(err)
		}
	}
	for n := 2; n <= 3; n++ {
		static.Set(service, instances(addrs[:n]...)...)
		eventually(t, "the change arrives", func() bool { return len(d.View()[0].Instances) == n })
	}
	for _, in := range d.View()[0].Instances {
		if in.Addr == addrs[0] && in.Calls != 10 {
			t.Errorf("the first instance has %d calls, want the 10 from before", in.Calls)
		}
	}
}

func TestNoInstances(t *testing.T) {
	_, conn, static := dial(t, grpckit.DialerConfig{}, nil)
	_, err := call(patient(t), conn)
	wantCode(t, err, codes.Unavailable)
	if !strings.Contains(err.Error(), balance.ErrNoInstances.Error()) {
		t.Errorf("call = %v, want it to say that there are no instances", err)
	}
	var waiting sync.WaitGroup
	waiting.Go(func() {
		out, err := pb.NewTestServiceClient(conn).UnaryCall(patient(t), &pb.SimpleRequest{}, grpc.WaitForReady(true))
		if err != nil || out.GetServerId() != "late" {
			t.Errorf("call that waits = %v, %v; want late", out, err)
		}
	})
	_, addr := start(t, says("late"))
	static.Set(service, instances(addr)...)
	waiting.Wait()
}

func TestInstanceThatCannotBeReached(t *testing.T) {
	server, addr := start(t, says("first"))
	server.Stop()
	d, conn, _ := dial(t, grpckit.DialerConfig{}, []string{addr})
	_, err := call(patient(t), conn)
	wantCode(t, err, codes.Unavailable)
	if !strings.Contains(err.Error(), "no instance can be reached") {
		t.Errorf("call = %v, want it to say why", err)
	}
	startAt(t, addr, says("second"))
	eventually(t, "it is reached", func() bool {
		who, err := call(patient(t), conn)
		return err == nil && who == "second"
	})
	if len(d.View()) != 1 {
		t.Errorf("View has %d services, want 1", len(d.View()))
	}
}

func TestStreamIsInFlightUntilItEnds(t *testing.T) {
	_, addr := start(t, &backend{stream: func(s grpc.BidiStreamingServer[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
		for {
			if _, err := s.Recv(); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := s.Send(&pb.StreamingOutputCallResponse{}); err != nil {
				return err
			}
		}
	}})
	d, conn, _ := dial(t, grpckit.DialerConfig{}, []string{addr})
	stream, err := pb.NewTestServiceClient(conn).FullDuplexCall(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	state := func() [3]uint64 {
		in := d.View()[0].Instances[0]
		return [3]uint64{uint64(in.InFlight), uint64(in.Waiting), in.Calls}
	}
	if got := state(); got != [3]uint64{1, 1, 0} {
		t.Errorf("in flight, waiting, calls = %v before the answer, want 1 1 0", got)
	}
	for range 2 {
		if err := stream.Send(&pb.StreamingOutputCallRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		if got := state(); got[0] != 1 || got[1] != 0 {
			t.Errorf("in flight, waiting, calls = %v after an answer, want 1 0", got)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err == nil {
		t.Fatal("Recv = nil, want the end")
	}
	eventually(t, "the stream is over", func() bool { return state() == [3]uint64{0, 0, 1} })
}

func TestInstanceThatIsNotServingGetsNoCalls(t *testing.T) {
	checks := map[string]*health.Checks{}
	var addrs []string
	for _, name := range []string{"a", "b"} {
		c, err := health.New(health.Config{})
		if err != nil {
			t.Fatal(err)
		}
		checks[name] = c
		server := grpc.NewServer()
		pb.RegisterTestServiceServer(server, says(name))
		healthpb.RegisterHealthServer(server, grpckit.NewHealth(c, grpckit.HealthConfig{Every: 5 * time.Millisecond}))
		addrs = append(addrs, listen(t, server))
	}
	_, conn, _ := dial(t, grpckit.DialerConfig{Health: true}, addrs)
	both := func(want ...string) func() bool {
		return func() bool {
			seen := map[string]bool{}
			for range 50 {
				who, err := call(patient(t), conn)
				if err != nil {
					t.Fatal(err)
				}
				seen[who] = true
			}
			for _, w := range want {
				if !seen[w] {
					return false
				}
			}
			return len(seen) == len(want)
		}
	}
	eventually(t, "both answer", both("a", "b"))
	checks["a"].SetReady(errors.New("draining"))
	eventually(t, "only b answers", both("b"))
	checks["a"].SetReady(nil)
	eventually(t, "both answer again", both("a", "b"))
}

func TestCloseLeavesNothingBehind(t *testing.T) {
	addrs, servers := three(t)
	before := runtime.NumGoroutine()
	for range 5 {
		d, conn, _ := dial(t, grpckit.DialerConfig{}, addrs)
		for range 20 {
			if _, err := call(patient(t), conn); err != nil {
				t.Fatal(err)
			}
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		if got := len(d.View()); got != 0 {
			t.Errorf("View has %d services after Close, want 0", got)
		}
	}
	for _, s := range servers {
		s.Stop() // with its side of the connections
	}
	eventually(t, "the goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}

func TestNewDialerNamesWhatIsWrong(t *testing.T) {
	d, _, static := dial(t, grpckit.DialerConfig{}, nil)
	if _, err := d.Dial(""); err == nil {
		t.Error("Dial of no service = nil, want an error")
	}
	if _, err := grpckit.NewDialer(nil, grpckit.DialerConfig{}); err == nil {
		t.Error("NewDialer without a resolver = nil, want an error")
	}
	_, err := grpckit.NewDialer(static, grpckit.DialerConfig{Services: map[string]balance.Config{"a": {Subset: -1}}})
	if err == nil || !strings.Contains(err.Error(), `Services["a"]`) || !strings.Contains(err.Error(), "Subset") {
		t.Errorf("NewDialer = %v, want an error that names the service and the field", err)
	}
}

func BenchmarkCall(b *testing.B) {
	addrs, _ := three(b)
	_, conn, _ := dial(b, grpckit.DialerConfig{}, addrs)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := call(b.Context(), conn); err != nil {
			b.Fatal(err)
		}
	}
}
