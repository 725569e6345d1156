// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/discovery/discoverymem"
	"github.com/dovetail-go/dovetail/health"
)

// replica is one instance of the service as a program would be: a server and a registration,
// started and drained in order.
type replica struct {
	server *http.Server
	slow   atomic.Int64 // milliseconds
	served atomic.Int64
	stop   context.CancelFunc
	ended  chan error
}

func startReplica(t *testing.T, registry discovery.Registry, id string) *replica {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{ended: make(chan error, 1)}
	r.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.served.Add(1)
		time.Sleep(time.Duration(r.slow.Load()+2) * time.Millisecond)
		_, _ = io.Copy(w, req.Body)
	})}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	announcement, err := discovery.NewAnnouncement(registry, discovery.Instance{ID: id, Service: service, Addr: listener.Addr().String()}, discovery.AnnounceConfig{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	process, err := health.NewLifecycle(health.LifecycleConfig{Settle: 100 * time.Millisecond, Logger: quiet},
		health.Server("http", r.server, listener),
		health.Stage{Name: "registration", Run: announcement.Run, Announce: true},
	)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.ended <- process.Run(ctx) }()
	<-announcement.Registered()
	return r
}

// drain ends the replica in order, and waits for it.
func (r *replica) drain(t *testing.T) {
	t.Helper()
	r.stop()
	if err := <-r.ended; err != nil {
		t.Errorf("Lifecycle.Run = %v, want nil", err)
	}
}

// TestRollingRestart is the promise to callers: nobody notices a deployment, and hardly anybody a
// crash.
func TestRollingRestart(t *testing.T) {
	if testing.Short() {
		t.Skip("seconds of real traffic; run it without -short")
	}
	registry, err := discoverymem.New(discoverymem.Config{TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	replicas := make([]*replica, 3)
	for i := range replicas {
		replicas[i] = startReplica(t, registry, fmt.Sprintf("order-%d", i))
	}
	transport, err := balance.NewTransport(registry, balance.TransportConfig{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- transport.Run(ctx) }()
	client := &http.Client{Transport: transport}

	// POST, which is not repeated once it may have arrived.
	var calls, failures atomic.Int64
	var load sync.WaitGroup
	loadCtx, endLoad := context.WithCancel(context.Background())
	for range 8 {
		load.Go(func() {
			for loadCtx.Err() == nil {
				calls.Add(1)
				resp, err := client.Post("http://order/", "text/plain", strings.NewReader("hello"))
				if err != nil {
					failures.Add(1)
					t.Logf("call failed: %v", err)
					continue
				}
				if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "hello" {
					failures.Add(1)
					t.Logf("answer = %q, %v", body, err)
				}
				_ = resp.Body.Close()
			}
		})
	}
	more := func(n int64) { // until n more calls have been made
		t.Helper()
		before := calls.Load()
		waitFor(t, func() bool { return calls.Load() >= before+n })
	}
	more(200)
	for i := range replicas {
		replicas[i].drain(t)
		replicas[i] = startReplica(t, registry, fmt.Sprintf("order-%d", i))
		more(200)
	}
	if got := failures.Load(); got != 0 {
		t.Errorf("rolling restart: %d of %d calls failed, want 0", got, calls.Load())
	}
	t.Logf("rolling restart of three: %d calls, %d failed", calls.Load(), failures.Load())

	before := replicas[0].served.Load()
	replicas[0].slow.Store(50)
	more(300)
	slowCalls := replicas[0].served.Load() - before
	if slowCalls > 100 {
		t.Errorf("slow instance: %d of 300 calls, want its share to fall well below a third", slowCalls)
	}
	t.Logf("one slow: it got %d of 300 calls", slowCalls)
	replicas[0].slow.Store(0)

	calls.Store(0)
	_ = replicas[1].server.Close() // at once, with the calls in flight, and still registered
	more(500)
	if got := failures.Load(); got > 8 {
		t.Errorf("crash: %d of %d calls failed, want at most those in flight, 8", got, calls.Load())
	}
	t.Logf("one crashed: %d of %d calls failed", failures.Load(), calls.Load())

	endLoad()
	load.Wait()
	transport.CloseIdleConnections()
	cancel()
	<-ended
	for i, r := range replicas {
		r.stop()
		if err := <-r.ended; err != nil && i != 1 {
			t.Errorf("Lifecycle.Run = %v, want nil", err)
		}
	}
}
