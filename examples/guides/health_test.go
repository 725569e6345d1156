// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/health"
	"github.com/dovetail-go/dovetail/promkit"
	"github.com/dovetail-go/dovetail/retry"
)

func oldMain(server *http.Server) error {
	// snippet: health/before
	return server.ListenAndServe() // SIGTERM: requests under way are cut off
	// end
}

// snippet: health/after
// run works until ctx ends: signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM) in main.
func run(ctx context.Context, db *sql.DB, relay func(context.Context) error, listener net.Listener, settle time.Duration) error {
	checks, err := health.New(health.Config{})
	if err != nil {
		return err
	}
	if err := checks.Add("database", db.PingContext, health.CheckConfig{}); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /livez", checks.Livez())   // would a restart help?
	mux.Handle("GET /readyz", checks.Readyz()) // should new work come here?
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}

	process, err := health.NewLifecycle(health.LifecycleConfig{Checks: checks, Settle: settle},
		health.Stage{Name: "outbox", Run: relay}, // started first, so drained after the server
		health.Server("http", server, listener),
	)
	if err != nil {
		return err
	}
	return process.Run(ctx) // start in order, drain in reverse
}

// end

// snippet: health/test
func TestReadyUntilTheDrain(t *testing.T) {
	db := openDB(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ready := func() (status int) {
		resp, err := http.Get("http://" + listener.Addr().String() + "/readyz")
		if err != nil {
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	relayed := false
	relay := func(ctx context.Context) error {
		<-ctx.Done()
		relayed = ready() != http.StatusOK // the server is gone before the outbox ends
		return nil
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, db, relay, listener, 100*time.Millisecond) }()
	for ready() != http.StatusOK {
		time.Sleep(time.Millisecond)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if !relayed {
		t.Error("the outbox ended before the server")
	}
}

// end

func TestServeWithoutADrain(t *testing.T) {
	server := &http.Server{Addr: "127.0.0.1:-1", ReadHeaderTimeout: time.Second}
	if err := oldMain(server); err == nil {
		t.Error("ListenAndServe = nil on no port")
	}
}

// snippet: metrics/after
func newMetrics(calls *retry.Retrier, payments *breaker.Breaker) (http.Handler, error) {
	registry := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		promkit.Retries(calls),
		promkit.Breakers(payments), // all of them in one collector
	} {
		if err := registry.Register(c); err != nil { // a name that is missing or given twice
			return nil, err
		}
	}
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), nil
}

// end

// snippet: metrics/test
func TestAnOpenBreakerIsOnTheMetrics(t *testing.T) {
	calls, err1 := retry.New(retry.Config{Name: "payments"})
	payments, err2 := breaker.New(breaker.Config{Name: "payments", Mode: breaker.ForcedOpen})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	handler, err := newMetrics(calls, payments)
	if err != nil {
		t.Fatal(err)
	}
	_ = payments.Do(t.Context(), func(context.Context) error { return nil }) // refused
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`dovetail_breaker_state{name="payments",state="open"} 1`,
		`dovetail_breaker_rejected_total{name="payments"} 1`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("there is no %s in\n%s", want, w.Body)
		}
	}
}

// end
