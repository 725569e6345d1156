// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// These tests let Up start processes that are this test program in another role: they only say who they are, to
// whoever listens at fakeAt, and end when they are told to. So no server is needed.
const (
	fakeAt    = "STACK_TEST_AT"
	fakeFails = "STACK_TEST_FAILS" // the service that ends at once
	fakeUp    = "STACK_TEST_UP"    // the program is who calls Up
)

func TestMain(m *testing.M) {
	switch at := os.Getenv(fakeAt); {
	case at == "":
		os.Exit(m.Run())
	case os.Getenv(fakeUp) != "":
		_ = os.Unsetenv(fakeUp)
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		err := Up(ctx, fakeConfig(at))
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		if err := fakeProcess(at); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// hello is what such a process says of itself.
type hello struct {
	Instance   string
	PID        int
	Args       []string
	ControlURL string
	Token      string
}

// fakeProcess stands in for shop run SERVICE --instance NAME --supervised.
func fakeProcess(at string) error {
	if len(os.Args) < 5 || os.Args[1] != "run" || os.Args[3] != "--instance" || !slices.Contains(os.Args, "--supervised") {
		return fmt.Errorf("called with %q", os.Args)
	}
	service, name := os.Args[2], os.Args[4]
	if os.Getenv(fakeFails) == service {
		return errors.New("this one ends at once")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	conn, err := net.Dial("tcp", at) // open as long as the process lives
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := json.NewEncoder(conn).Encode(hello{name, os.Getpid(), os.Args, os.Getenv(controlURLVar), os.Getenv(controlTokenVar)}); err != nil {
		return err
	}
	if service == "gateway" {
		_, ln, err := Listen(ctx, inheritedListener)
		if err != nil {
			return err
		}
		go func() {
			_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { //nolint:gosec // it lives for a moment
				_ = platform.WriteJSON(w, http.StatusOK, map[string]any{"items": []map[string]any{{"service": "order", "ready": true}}})
			}))
		}()
	}
	if err := json.NewEncoder(os.Stdout).Encode(Instance{Service: service, Instance: name, Addr: "127.0.0.1:1", PID: os.Getpid()}); err != nil {
		return err
	}
	alone := make(chan error, 1)
	go func() { alone <- Obey(os.Stdin, platform.NewGate()) }()
	select {
	case <-ctx.Done():
		_, err = io.WriteString(conn, "told\n")
	case err = <-alone:
	}
	return err
}

// fakeConfig starts one process of each service. The servers of its settings are nowhere.
func fakeConfig(at string) UpConfig {
	settings := map[string]string{
		ServiceTokenVar: strings.Repeat("hidden", 6), PostgresVar: "postgres://a:hidden@127.0.0.1:1/b", RabbitMQVar: "amqp://a:hidden@127.0.0.1:1/b",
		RedisVar: "redis://:hidden@127.0.0.1:1/0", ConsulVar: "127.0.0.1:1", AdminPasswordVar: "hidden-password", OperatorPasswordVar: "hidden-password",
	}
	return UpConfig{
		Listen: "127.0.0.1:0", Getenv: func(name string) string { return settings[name] }, Env: append(os.Environ(), fakeAt+"="+at), Output: io.Discard,
		Log: slog.New(slog.DiscardHandler),
	}
}

// parish knows the living.
type parish struct {
	t  *testing.T
	at string

	mu    sync.Mutex
	alive map[int]hello
	born  []hello
	told  []string // in the order in which they were told to end
}

func newParish(t *testing.T) *parish {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &parish{t: t, at: ln.Addr().String(), alive: map[int]hello{}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.keep(conn) })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); all.Wait() })
	return p
}

// keep follows one process from its hello to its death.
func (p *parish) keep(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	var h hello
	said := json.NewDecoder(conn)
	if said.Decode(&h) != nil {
		return
	}
	p.mu.Lock()
	p.alive[h.PID], p.born = h, append(p.born, h)
	p.mu.Unlock()
	rest, _ := io.ReadAll(io.MultiReader(said.Buffered(), conn))
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.alive, h.PID)
	if strings.Contains(string(rest), "told") {
		p.told = append(p.told, h.Instance)
	}
}

// living returns one process by its name, and how many there are in all.
func (p *parish) living(name string) (h hello, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.alive {
		if a.Instance == name {
			h = a
		}
	}
	return h, len(p.alive)
}

func (p *parish) until(what string, so func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.t.Fatalf("not within two minutes: %s; %d are alive", what, len(p.alive))
		}
	}
}

// open runs Up until the test ends or the returned function is called.
func (p *parish) open(cfg UpConfig) (end func() error) {
	p.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	cfg.Ready = func(string) { close(ready) }
	go func() { ended <- Up(ctx, cfg) }()
	end = sync.OnceValue(func() error { stop(); return <-ended })
	p.t.Cleanup(func() { _ = end() })
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		p.t.Fatalf("Up = %v before it was open", err)
	}
	return end
}

func TestUpStartsAgainWhatDies(t *testing.T) {
	p := newParish(t)
	cfg := fakeConfig(p.at)
	var log syncBuffer
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	cfg.Instances = map[string]int{"order": 2}
	type end struct {
		Instance
		again time.Duration
	}
	ends := make(chan end, 10)
	cfg.Ended = func(i Instance, _ error, again time.Duration) { ends <- end{i, again} }
	finish := p.open(cfg)
	p.until("one more process than services is there", func() bool { _, n := p.living(""); return n == len(services())+1 })
	old, _ := p.living("order-2")
	if err := syscall.Kill(old.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.until("order-2 is another process", func() bool { h, _ := p.living("order-2"); return h.PID != 0 && h.PID != old.PID })
	if e := <-ends; e.PID != old.PID || e.Instance.Instance != "order-2" || e.again != shortestPause {
		t.Errorf("ended: %+v, want process %d of order-2, and again in %v", e, old.PID, shortestPause)
	}

	t.Run("the control's token is for the gateways, and nowhere to be seen", func(t *testing.T) {
		gateway, _ := p.living("gateway-1")
		if len(gateway.Token) < 32 || gateway.ControlURL == "" {
			t.Fatalf("the gateway has %d bytes of token for %q, want a secret", len(gateway.Token), gateway.ControlURL)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, h := range p.born {
			if args := strings.Join(h.Args, " "); strings.Contains(args, gateway.Token) || strings.Contains(args, "hidden") {
				t.Errorf("%s was called with %s: everybody can see that", h.Instance, args)
			}
			if h.Token != "" && !strings.HasPrefix(h.Instance, "gateway") {
				t.Errorf("%s has the token, want it only with gateways", h.Instance)
			}
		}
		if text := log.String(); strings.Contains(text, gateway.Token) || strings.Contains(text, "hidden") {
			t.Errorf("a secret is in the log: %s", text)
		}
	})
	t.Run("the control answers who has the token", func(t *testing.T) {
		gateway, _ := p.living("gateway-1")
		for bearer, want := range map[string]int{"": 401, "Bearer ": 401, "Bearer " + gateway.Token + "x": 401, gateway.Token: 401, "Bearer " + gateway.Token: 200} {
			for _, path := range []string{"/ops/api/chaos", "/ops/api/load"} {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, gateway.ControlURL+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				if bearer != "" {
					req.Header.Set("Authorization", bearer)
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				if resp.StatusCode != want {
					t.Errorf("GET %s with %d bytes of authorization = %d, want %d", path, len(bearer), resp.StatusCode, want)
				}
			}
		}
		host, _, err := net.SplitHostPort(strings.TrimPrefix(gateway.ControlURL, "http://"))
		if ip := net.ParseIP(host); err != nil || !ip.IsLoopback() {
			t.Errorf("the control listens at %s, want loopback only", gateway.ControlURL)
		}
	})
	t.Run("told to end, all drain, the gateway first", func(t *testing.T) {
		if err := finish(); err != nil {
			t.Errorf("Up = %v, want nil", err)
		}
		p.until("all have ended", func() bool { _, n := p.living(""); return n == 0 })
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.told) != len(services())+1 {
			t.Errorf("%v were told to end, want all", p.told)
		}
	})
}

func TestUpGivesUpWhatNeverStarts(t *testing.T) {
	p := newParish(t)
	cfg := fakeConfig(p.at)
	cfg.Env = append(cfg.Env, fakeFails+"=payment")
	var pauses []time.Duration
	cfg.Ended = func(i Instance, _ error, again time.Duration) {
		if i.Instance != "payment-1" || i.Addr != "" {
			t.Errorf("%+v ended, want payment-1 without an address", i)
		}
		pauses = append(pauses, again) // one process ends after the other
	}
	err := Up(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "payment-1 does not start") || strings.Contains(err.Error(), "hidden") {
		t.Errorf("Up = %v, want that payment-1 does not start", err)
	}
	if want := []time.Duration{shortestPause, 2 * shortestPause, 4 * shortestPause, 8 * shortestPause}; !slices.Equal(pauses, want) {
		t.Errorf("pauses %v, want %v", pauses, want)
	}
	p.until("all have ended", func() bool { _, n := p.living(""); return n == 0 })
}

// TestNobodyOutlivesUp kills the process that calls Up, or tells it to end: what it has started ends too.
func TestNobodyOutlivesUp(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			p := newParish(t)
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), fakeAt+"="+p.at, fakeUp+"=1")
			cmd.Stderr = t.Output()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			p.until("all have started", func() bool { _, n := p.living(""); return n == len(services()) })
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			err = cmd.Wait()
			if sig == syscall.SIGTERM && err != nil {
				t.Errorf("told to end, it ended with %v, want exit code 0", err)
			}
			p.until("all have ended", func() bool { _, n := p.living(""); return n == 0 })
		})
	}
}

func TestUpSaysWhatIsMissingOnce(t *testing.T) {
	err := Up(t.Context(), UpConfig{Listen: "127.0.0.1:0", Getenv: func(string) string { return "" }, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		t.Fatal("Up = nil, want an error")
	}
	lines := strings.Split(err.Error(), "\n")
	if unique := slices.Compact(slices.Sorted(slices.Values(lines))); len(unique) != len(lines) || len(lines) != 7 {
		t.Errorf("%d lines, %d of them different; want 7:\n%v", len(lines), len(unique), err)
	}
}

// syncBuffer is a buffer for many goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
