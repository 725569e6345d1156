// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// through makes a request through the gate to a service that counts what it serves, and reports whether an answer came.
func through(ctx context.Context, g *Gate, served *int, method, path string) (status int, answered bool) {
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		*served++
		w.WriteHeader(http.StatusTeapot)
	})
	w := httptest.NewRecorder()
	defer func() {
		if recover() != nil {
			status, answered = 0, false
		}
	}()
	g.awake(g.requests(next)).ServeHTTP(w, httptest.NewRequestWithContext(ctx, method, path, nil))
	return w.Code, true
}

func TestGateLetsThrough(t *testing.T) {
	for name, g := range map[string]*Gate{"nil": nil, "new": NewGate()} {
		served := 0
		if status, _ := through(t.Context(), g, &served, "POST", "/"); status != http.StatusTeapot || served != 1 || g.Harm() != (Harm{}) {
			t.Errorf("%s gate: status %d, served %d times, harm %+v; want 418, once, none", name, status, served, g.Harm())
		}
	}
}

func TestGateErrors(t *testing.T) {
	g := NewGate()
	g.Set(Harm{Errors: 100})
	served := 0
	if status, _ := through(t.Context(), g, &served, "GET", "/"); status != http.StatusServiceUnavailable || served != 0 {
		t.Errorf("GET = %d, served %d times; want 503 and not served", status, served)
	}
	if status, _ := through(t.Context(), g, &served, "GET", "/ops/traffic"); status != http.StatusTeapot {
		t.Errorf("an operator's GET = %d, want it let through", status)
	}
	served = 0
	refused, lost := 0, 0
	for range 200 { // it is a coin for each
		switch status, answered := through(t.Context(), g, &served, "POST", "/"); {
		case !answered:
			lost++
		case status == http.StatusServiceUnavailable:
			refused++
		default:
			t.Fatalf("POST = %d, want it to fail", status)
		}
	}
	if lost == 0 || refused == 0 || served != lost {
		t.Errorf("%d refused, %d answers lost, %d served; want some of both, and served what lost its answer", refused, lost, served)
	}
}

func TestGateLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate()
		g.Set(Harm{Latency: 3 * time.Second})
		served, start := 0, time.Now()
		if status, _ := through(t.Context(), g, &served, "GET", "/"); status != http.StatusTeapot || time.Since(start) != 3*time.Second {
			t.Errorf("GET = %d after %v, want 418 after 3s", status, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, answered := through(ctx, g, &served, "GET", "/"); answered || served != 1 {
			t.Errorf("answered %v, served %d times; want nobody served who does not wait", answered, served)
		}
	})
}

func TestGatePauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate()
		g.Set(Harm{Paused: true})
		served := 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, answered := through(ctx, g, &served, "GET", "/"); answered || served != 0 {
			t.Errorf("answered %v while paused, want it to hang", answered)
		}
		time.AfterFunc(time.Hour, func() { g.Set(Harm{}) })
		start := time.Now()
		if status, _ := through(t.Context(), g, &served, "GET", "/"); status != http.StatusTeapot || time.Since(start) != time.Hour {
			t.Errorf("GET = %d after %v, want 418 when the pause is over", status, time.Since(start))
		}
		g.Set(Harm{Paused: true})
		time.AfterFunc(time.Hour, g.Kill)
		if _, answered := through(t.Context(), g, &served, "GET", "/"); answered || served != 1 {
			t.Errorf("answered %v, served %d times; want the dead to answer nobody", answered, served)
		}
		if err := g.wait(t.Context(), paused); !errors.Is(err, ErrKilled) {
			t.Errorf("wait = %v, want ErrKilled", err)
		}
	})
}

func TestGateCuts(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	g := NewGate()
	dial := func() (net.Conn, error) { return g.Dial(t.Context(), "tcp", ln.Addr().String()) }
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	g.Set(Harm{Cut: true})
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read = %v, want the connection cut", err)
	}
	if _, err := dial(); !errors.Is(err, ErrCut) {
		t.Errorf("Dial = %v, want ErrCut", err)
	}
	g.Set(Harm{})
	if conn, err = dial(); err != nil {
		t.Fatalf("Dial = %v when it is over, want nil", err)
	}
	_ = conn.Close()
	if len(g.conns) != 0 {
		t.Errorf("%d connections are known, want none that is closed", len(g.conns))
	}
}

func TestGateRepeatsAndDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate()
		var got []bool
		l := &line{gate: g, ended: t.Context(), done: make(chan struct{}), next: messaging.HandlerFunc(func(_ context.Context, d *messaging.Delivery) error {
			got = append(got, d.Redelivered)
			return nil
		})}
		handle := func() error { return l.Handle(t.Context(), &messaging.Delivery{Message: &messaging.Message{}}) }
		g.Set(Harm{Duplicate: 100})
		if err := handle(); err != nil || len(got) != 2 || got[0] || !got[1] {
			t.Errorf("Handle = %v, redelivered %v; want it twice, the second time as a repetition", err, got)
		}
		g.Set(Harm{Reorder: 100})
		back, late := 0, 0
		for range 100 { // a coin for each
			start := time.Now()
			err := handle()
			rejection := (*fault.Rejection)(nil)
			switch {
			case errors.As(err, &rejection) && rejection.RetryAfter > 0:
				back++
			case err == nil && time.Since(start) == overtakenBy:
				late++
			default:
				t.Fatalf("Handle = %v after %v, want it sent back or late", err, time.Since(start))
			}
		}
		if back == 0 || late == 0 || len(got) != 2+late {
			t.Errorf("%d sent back, %d late, %d handled; want some of both, and those handled that were late", back, late, len(got)-2)
		}
	})
}

func TestGateTakesTheBrokerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate()
		handled := 0
		l := &line{gate: g, inProcess: true, ended: t.Context(), done: make(chan struct{}), next: messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error {
			handled++
			if handled == 2 {
				g.Set(Harm{Cut: true}) // in the middle of it
			}
			return nil
		})}
		handle := func() error { return l.Handle(t.Context(), &messaging.Delivery{Message: &messaging.Message{}}) }
		g.Set(Harm{Cut: true})
		time.AfterFunc(time.Minute, func() { g.Set(Harm{}) })
		start := time.Now()
		if err := handle(); err != nil || handled != 1 || time.Since(start) != time.Minute {
			t.Errorf("Handle = %v after %v, want nil when the broker is back", err, time.Since(start))
		}
		if err := handle(); !errors.Is(err, ErrCut) || handled != 2 {
			t.Errorf("Handle = %v, want its acknowledgement lost", err)
		}
		g.Set(Harm{})
		g.Kill()
		if err := handle(); !errors.Is(err, ErrKilled) || handled != 2 {
			t.Errorf("Handle = %v, handled %d; want the dead to handle nothing", err, handled)
		}
	})
}
