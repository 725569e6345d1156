// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package health_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/health"
)

var errAway = errors.New("connection refused")

func newChecks(t testing.TB, cfg health.Config) *health.Checks {
	t.Helper()
	c, err := health.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func add(t testing.TB, c *health.Checks, name string, cfg health.CheckConfig, fn func(context.Context) error) {
	t.Helper()
	if err := c.Add(name, fn, cfg); err != nil {
		t.Fatal(err)
	}
}

func get(h http.Handler) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	return w
}

func TestHandlers(t *testing.T) {
	t.Parallel()
	away := func(context.Context) error { return errAway }
	well := func(context.Context) error { return nil }
	for _, tt := range []struct {
		name        string
		cfg         health.CheckConfig
		fn          func(context.Context) error
		live, ready int
	}{
		{"a check that passes", health.CheckConfig{}, well, 200, 200},
		{"one that fails is a matter of readiness", health.CheckConfig{}, away, 200, 503},
		{"or of liveness too, if so said", health.CheckConfig{Liveness: true}, away, 503, 503},
		{"an optional one fails nothing", health.CheckConfig{Optional: true, Liveness: true}, away, 200, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newChecks(t, health.Config{})
			add(t, c, "database", tt.cfg, tt.fn)
			if got := get(c.Livez()); got.Code != tt.live {
				t.Errorf("/livez = %d, want %d", got.Code, tt.live)
			}
			got := get(c.Readyz())
			if got.Code != tt.ready {
				t.Errorf("/readyz = %d, want %d", got.Code, tt.ready)
			}
			want := map[int]string{200: "ok\n", 503: "failing\n"}[tt.ready]
			if body := got.Body.String(); body != want || got.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("/readyz = %q, %v, want %q and no-store", body, got.Header(), want)
			}
		})
	}
	t.Run("without checks all is well", func(t *testing.T) {
		if got := get(newChecks(t, health.Config{}).Readyz()); got.Code != 200 {
			t.Errorf("/readyz = %d, want 200", got.Code)
		}
	})
	t.Run("a reason not to be ready fails readiness alone", func(t *testing.T) {
		c := newChecks(t, health.Config{})
		c.SetReady(errors.New("loading"))
		if live, ready := get(c.Livez()).Code, get(c.Readyz()).Code; live != 200 || ready != 503 {
			t.Errorf("/livez, /readyz = %d, %d, want 200, 503", live, ready)
		}
		c.SetReady(nil)
		if got := get(c.Readyz()).Code; got != 200 {
			t.Errorf("/readyz = %d, want 200 again", got)
		}
	})
	t.Run("details name each check", func(t *testing.T) {
		c := newChecks(t, health.Config{Details: true})
		add(t, c, "database", health.CheckConfig{}, away)
		add(t, c, "cache", health.CheckConfig{Optional: true}, well)
		var got struct {
			Status, Error string
			Checks        map[string]struct {
				Status, Error string
				Optional      bool
			}
		}
		if err := json.Unmarshal(get(c.Readyz()).Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if got.Status != "failing" || got.Error != "database: connection refused" || got.Checks["database"].Error != "connection refused" ||
			got.Checks["cache"].Status != "ok" || !got.Checks["cache"].Optional {
			t.Errorf("details = %+v", got)
		}
	})
}

func TestCheck(t *testing.T) {
	t.Parallel()
	bubble := func(name string, fn func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, fn) })
	}
	bubble("a result is given out for its TTL", func(t *testing.T) {
		c := newChecks(t, health.Config{})
		runs := 0
		add(t, c, "x", health.CheckConfig{TTL: 10 * time.Second}, func(context.Context) error { runs++; return nil })
		for range 100 { // 25 s
			_, _ = c.Ready(t.Context())
			time.Sleep(250 * time.Millisecond)
		}
		if runs != 3 {
			t.Errorf("%d runs in 25s, want 3", runs)
		}
	})
	bubble("many askers share one run", func(t *testing.T) {
		c := newChecks(t, health.Config{})
		var runs atomic.Int64
		add(t, c, "x", health.CheckConfig{TTL: -1}, func(context.Context) error {
			runs.Add(1)
			time.Sleep(100 * time.Millisecond)
			return errAway
		})
		var askers sync.WaitGroup
		for range 50 {
			askers.Go(func() {
				if _, err := c.Ready(t.Context()); !errors.Is(err, errAway) {
					t.Errorf("Ready = %v, want %v", err, errAway)
				}
			})
		}
		askers.Wait()
		if got := runs.Load(); got != 1 {
			t.Errorf("%d runs, want 1", got)
		}
	})
	bubble("an asker who leaves does not end the run for the others", func(t *testing.T) {
		c := newChecks(t, health.Config{})
		add(t, c, "x", health.CheckConfig{}, func(ctx context.Context) error {
			select {
			case <-time.After(500 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var other sync.WaitGroup
		other.Go(func() {
			time.Sleep(50 * time.Millisecond)
			if _, err := c.Ready(t.Context()); err != nil {
				t.Errorf("Ready = %v, want nil", err)
			}
		})
		if _, err := c.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Ready = %v, want the end of the asker's own context", err)
		}
		other.Wait()
	})
	bubble("checks run side by side, and a slow one is cut off", func(t *testing.T) {
		c := newChecks(t, health.Config{})
		for i := range 5 {
			add(t, c, fmt.Sprint(i), health.CheckConfig{Timeout: 2 * time.Second}, func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			})
		}
		start := time.Now()
		if _, err := c.Ready(t.Context()); err == nil {
			t.Error("Ready = nil, want errors")
		}
		if got := time.Since(start); got != 2*time.Second {
			t.Errorf("answered after %v, want 2s", got)
		}
	})
	bubble("one that ignores its timeout fails at once, and is not started again while it hangs", func(t *testing.T) {
		c := newChecks(t, health.Config{})
		var runs atomic.Int64
		release := make(chan struct{})
		add(t, c, "x", health.CheckConfig{}, func(context.Context) error {
			if runs.Add(1) == 1 {
				<-release
			}
			return nil
		})
		for i := range 10 {
			start := time.Now()
			if _, err := c.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "no result within 1s") {
				t.Errorf("Ready = %v, want the timeout", err)
			}
			if got := time.Since(start); i > 0 && got != 0 {
				t.Errorf("answered after %v, want at once", got)
			}
			time.Sleep(10 * time.Second)
		}
		if got := runs.Load(); got != 1 {
			t.Errorf("%d runs, want 1", got)
		}
		close(release)
		synctest.Wait()
		if _, err := c.Ready(t.Context()); err != nil {
			t.Errorf("Ready = %v after it came back, want nil", err)
		}
	})
	bubble("a panic is a failure", func(t *testing.T) {
		c := newChecks(t, health.Config{})
		add(t, c, "x", health.CheckConfig{}, func(context.Context) error { panic("oops") })
		if _, err := c.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "oops") {
			t.Errorf("Ready = %v, want the panic", err)
		}
	})
	bubble("so is runtime.Goexit", func(t *testing.T) {
		c := newChecks(t, health.Config{})
		add(t, c, "x", health.CheckConfig{}, func(context.Context) error { runtime.Goexit(); return nil })
		if _, err := c.Ready(t.Context()); err == nil {
			t.Error("Ready = nil, want an error")
		}
	})
	bubble("changes are told, once each", func(t *testing.T) {
		var c *health.Checks
		var told []bool
		c = newChecks(t, health.Config{Change: func(r health.Result) {
			told = append(told, r.Err == nil)
			c.SetReady(nil) // calling back is allowed
		}})
		ill := false
		add(t, c, "x", health.CheckConfig{TTL: -1}, func(context.Context) error {
			if ill {
				return errAway
			}
			return nil
		})
		for i := range 6 {
			ill = i == 2 || i == 3
			_, _ = c.Ready(t.Context())
			synctest.Wait()
		}
		if want := "[true false true]"; fmt.Sprint(told) != want {
			t.Errorf("told = %v, want %s", told, want)
		}
	})
	t.Run("wrong ones are refused", func(t *testing.T) {
		c := newChecks(t, health.Config{})
		ok := func(context.Context) error { return nil }
		add(t, c, "x", health.CheckConfig{}, ok)
		for want, err := range map[string]error{
			"health: name is empty":                      c.Add("", ok, health.CheckConfig{}),
			`health: check "y" is nil`:                   c.Add("y", nil, health.CheckConfig{}),
			`health: CheckConfig.Timeout of "y" is -1ns`: c.Add("y", ok, health.CheckConfig{Timeout: -1}),
			`health: there is a check "x" already`:       c.Add("x", ok, health.CheckConfig{}),
		} {
			if err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("Add = %v, want %s…", err, want)
			}
		}
	})
}

func ExampleChecks() {
	checks, err := health.New(health.Config{})
	if err != nil {
		panic(err)
	}
	ping := func(context.Context) error { return errors.New("connection refused") } // such as db.PingContext
	if err := checks.Add("database", ping, health.CheckConfig{}); err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /livez", checks.Livez())
	mux.Handle("GET /readyz", checks.Readyz())

	for _, path := range []string{"/livez", "/readyz"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		fmt.Print(path, " ", w.Code, " ", w.Body)
	}
	// Output:
	// /livez 200 ok
	// /readyz 503 failing
}
