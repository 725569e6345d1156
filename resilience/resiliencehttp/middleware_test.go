// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencehttp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/resilience/resiliencehttp"
	"github.com/dovetail-go/dovetail/retry"
)

func middleware(t *testing.T, cfg resiliencehttp.MiddlewareConfig, h http.HandlerFunc) http.Handler {
	t.Helper()
	m, err := resiliencehttp.NewMiddleware(cfg)
	if err != nil {
		t.Fatalf("NewMiddleware = %v, want nil", err)
	}
	return m(h)
}

func get(t *testing.T, h http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w
}

func answer(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "answer") }

func TestNewMiddlewareNamesTheWrongField(t *testing.T) {
	for want, cfg := range map[string]resiliencehttp.MiddlewareConfig{
		"resiliencehttp: MiddlewareConfig.Timeout is -1ns, want 0 or more":                                                  {Timeout: -1},
		"resiliencehttp: MiddlewareConfig.RateLimitName is \"a\\\"b\", want printable ASCII without quotes and backslashes": {RateLimitName: `a"b`},
	} {
		if _, err := resiliencehttp.NewMiddleware(cfg); err == nil || err.Error() != want {
			t.Errorf("NewMiddleware = %v, want %q", err, want)
		}
	}
}

func TestMiddlewareRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clients := must(ratelimit.NewKeyed[string](ratelimit.Limit{Rate: 2, Per: time.Minute, Burst: 2}, 0))
		h := middleware(t, resiliencehttp.MiddlewareConfig{RateLimitName: "client", RateLimit: func(r *http.Request) ratelimit.Result {
			return clients.Allow(r.Header.Get("Client"))
		}}, answer)
		for i, want := range []struct {
			status            int
			limit, retryAfter string
		}{
			{200, `"client";r=1;t=30`, ""},
			{200, `"client";r=0;t=60`, ""},
			{429, `"client";r=0;t=60`, "30"},
		} {
			w := get(t, h, "/orders")
			if w.Code != want.status || w.Header().Get("RateLimit") != want.limit || w.Header().Get("Retry-After") != want.retryAfter || w.Header().Get("RateLimit-Policy") != `"client";q=2` {
				t.Errorf("request %d: status %d, %v, want %+v", i, w.Code, w.Header(), want)
			}
			if want.status == 429 {
				var p struct {
					Status int
					Title  string
				}
				if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Status != 429 || p.Title != "Too Many Requests" || w.Header().Get("Content-Type") != "application/problem+json" {
					t.Errorf("body %q, %v, want a problem of 429", w.Body, err)
				}
			}
		}
		if w := get(t, h, "/livez"); w.Code != 200 || w.Header().Get("RateLimit") != "" {
			t.Errorf("/livez: status %d, %v, want 200 without a limit", w.Code, w.Header())
		}
	})
	t.Run("what can never pass has no Retry-After", func(t *testing.T) {
		l := must(ratelimit.New(ratelimit.PerHour(1), ratelimit.Config{}))
		h := middleware(t, resiliencehttp.MiddlewareConfig{RateLimit: func(*http.Request) ratelimit.Result { return l.AllowN(2) }}, answer)
		if w := get(t, h, "/"); w.Code != 429 || w.Header().Get("Retry-After") != "" {
			t.Errorf("status %d, Retry-After %q, want 429 without", w.Code, w.Header().Get("Retry-After"))
		}
	})
}

// unread fails the test when the body is read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) { u.t.Error("the body was read"); return 0, io.EOF }

func TestMiddlewareShed(t *testing.T) {
	t.Run("overload is 503 with Retry-After, before the body is read; health checks pass", func(t *testing.T) {
		b := must(bulkhead.New(1, bulkhead.Config{}))
		h := middleware(t, resiliencehttp.MiddlewareConfig{Shed: &resilience.Policy{Bulkhead: b}}, answer)
		permit := must(b.Acquire(t.Context()))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/orders", unread{t}))
		if w.Code != 503 || w.Header().Get("Retry-After") != "1" || !strings.Contains(w.Body.String(), `"status":503`) {
			t.Errorf("status %d, %v, %s, want 503, Retry-After 1 and a problem", w.Code, w.Header(), w.Body)
		}
		for _, path := range []string{"/livez", "/readyz", "/healthz", "/metrics"} {
			if w := get(t, h, path); w.Code != 200 {
				t.Errorf("%s: status %d, want 200", path, w.Code)
			}
		}
		permit.Release()
		if w := get(t, h, "/orders"); w.Code != 200 || w.Body.String() != "answer" || b.Stats().InFlight != 0 {
			t.Errorf("status %d, %q, %+v, want the answer and the place free", w.Code, w.Body, b.Stats())
		}
	})
	t.Run("a breaker sees 5xx and panics, and its Retry-After is sent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := must(breaker.New(breaker.Config{Consecutive: 4, OpenFor: 10 * time.Second}))
			status := 404
			h := middleware(t, resiliencehttp.MiddlewareConfig{Shed: &resilience.Policy{Breaker: b}}, func(w http.ResponseWriter, _ *http.Request) {
				if status == 0 {
					panic(http.ErrAbortHandler)
				}
				w.WriteHeader(status)
			})
			for range 10 {
				get(t, h, "/")
			}
			if b.State() != breaker.Closed {
				t.Fatal("404 opened the breaker")
			}
			status = 500
			get(t, h, "/")
			get(t, h, "/")
			status = 0
			for range 2 {
				func() {
					defer func() {
						if r := recover(); r != http.ErrAbortHandler {
							t.Errorf("recover = %v, want ErrAbortHandler", r)
						}
					}()
					get(t, h, "/")
				}()
			}
			if b.State() != breaker.Open {
				t.Errorf("State = %v, want open", b.State())
			}
			w := get(t, h, "/")
			if after, ok := resiliencehttp.ParseRetryAfter(w.Header().Get("Retry-After"), time.Now()); w.Code != 503 || !ok || after < 10*time.Second || after > 16*time.Second {
				t.Errorf("status %d, Retry-After %v, want 503 and the open time", w.Code, after)
			}
		})
	})
	t.Run("less critical requests are shed first", func(t *testing.T) {
		a := must(resilience.NewAdaptive(resilience.AdaptiveConfig{Min: 4, Max: 4}))
		h := middleware(t, resiliencehttp.MiddlewareConfig{
			Shed: &resilience.Policy{Adaptive: a},
			Criticality: func(r *http.Request) resilience.Criticality {
				if r.URL.Path == "/reports" {
					return resilience.Sheddable
				}
				return resilience.Critical
			},
		}, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, resilience.CriticalityOf(r.Context())) })
		for range 2 {
			must(a.Acquire(t.Context()))
		}
		if w := get(t, h, "/reports"); w.Code != 503 {
			t.Errorf("/reports: status %d, want 503", w.Code)
		}
		if w := get(t, h, "/orders"); w.Code != 200 || w.Body.String() != "critical" {
			t.Errorf("/orders: status %d %q, want 200", w.Code, w.Body)
		}
	})
	t.Run("the attempt's timeout bounds the handler's context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := middleware(t, resiliencehttp.MiddlewareConfig{Shed: &resilience.Policy{Attempt: time.Second}}, func(w http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
				w.WriteHeader(http.StatusGatewayTimeout)
			})
			if w := get(t, h, "/"); w.Code != 504 {
				t.Errorf("status %d, want 504", w.Code)
			}
		})
	})
	t.Run("Refuse and Exempt replace the defaults", func(t *testing.T) {
		b := must(breaker.New(breaker.Config{Mode: breaker.ForcedOpen}))
		h := middleware(t, resiliencehttp.MiddlewareConfig{
			Shed:   &resilience.Policy{Breaker: b},
			Exempt: func(r *http.Request) bool { return r.URL.Path == "/alive" },
			Refuse: func(w http.ResponseWriter, r *http.Request, refusal resiliencehttp.Refusal) {
				if !errors.Is(refusal.Err, breaker.ErrOpen) || refusal.RetryAfter != time.Second {
					t.Errorf("refusal %+v, want ErrOpen and 1s", refusal)
				}
				http.Error(w, "busy", refusal.Status)
			},
		}, answer)
		if w := get(t, h, "/livez"); w.Code != 503 || w.Body.String() != "busy\n" {
			t.Errorf("status %d %q, want 503 busy", w.Code, w.Body)
		}
		if w := get(t, h, "/alive"); w.Code != 200 {
			t.Errorf("status %d, want 200", w.Code)
		}
	})
}

func TestMiddlewareTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := must(breaker.New(breaker.Config{Consecutive: 1}))
		h := middleware(t, resiliencehttp.MiddlewareConfig{Timeout: time.Second, Shed: &resilience.Policy{Breaker: b}}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/quick" {
				return
			}
			if r.URL.Path == "/begun" {
				w.WriteHeader(202)
			}
			<-r.Context().Done()
		})
		for path, want := range map[string]int{"/quick": 200, "/begun": 202} {
			if w := get(t, h, path); w.Code != want {
				t.Errorf("%s: status %d, want %d", path, w.Code, want)
			}
		}
		if w := get(t, h, "/slow"); w.Code != 503 || w.Header().Get("Retry-After") != "1" {
			t.Errorf("/slow: status %d, %v, want 503 and Retry-After", w.Code, w.Header())
		}
		if b.State() != breaker.Open {
			t.Error("the breaker did not see the timeout")
		}
		ctx, cancel := context.WithCancel(t.Context())
		w := httptest.NewRecorder()
		time.AfterFunc(time.Millisecond, cancel)
		b.Reset()
		h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/gone", nil))
		if w.Code != 200 || w.Body.Len() > 0 {
			t.Errorf("/gone: status %d, want nothing written for a client that has gone", w.Code)
		}
	})
}

func TestMiddlewarePropagated(t *testing.T) {
	for _, trusted := range []bool{false, true} {
		h := middleware(t, resiliencehttp.MiddlewareConfig{Propagated: trusted}, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, retry.Attempt(r.Context()), " ", resilience.CriticalityOf(r.Context()))
		})
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Header.Set(resiliencehttp.AttemptHeader, "3")
		r.Header.Set(resiliencehttp.CriticalityHeader, "sheddable-plus")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		want := "1 critical"
		if trusted {
			want = "3 sheddable-plus"
		}
		if w.Body.String() != want {
			t.Errorf("trusted %v: %q, want %q", trusted, w.Body, want)
		}
	}
}

// TestWriter holds the writer that handlers see to what they may ask of it.
func TestWriter(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	var failures atomic.Int64
	b := must(breaker.New(breaker.Config{Hooks: breaker.Hooks{Change: func(breaker.Change) { failures.Add(1) }}, Consecutive: 1}))
	h := middleware(t, resiliencehttp.MiddlewareConfig{Timeout: time.Minute, Shed: &resilience.Policy{Breaker: b}}, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/flush":
			fmt.Fprint(w, "one")
			w.(http.Flusher).Flush()
			fmt.Fprint(w, "two")
		case "/flush-first":
			w.(http.Flusher).Flush()
			w.WriteHeader(500) // superfluous: 200 was sent
		case "/file":
			http.ServeFile(w, r, file)
		case "/early":
			w.WriteHeader(http.StatusEarlyHints)
			fmt.Fprint(w, "hinted")
		case "/hijack":
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			fmt.Fprint(conn, "HTTP/1.1 418 I'm a teapot\r\nConnection: close\r\nContent-Length: 3\r\n\r\ntea")
			conn.Close()
		case "/deadline":
			if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Error(err)
			}
			fmt.Fprint(w, "in time")
		}
	})
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // says that a status was superfluous
	server.Start()
	defer server.Close()
	for path, want := range map[string]string{
		"/flush": "200 onetwo", "/flush-first": "200 ", "/file": "200 a file", "/early": "200 hinted", "/hijack": "418 tea", "/deadline": "200 in time",
	} {
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if got := fmt.Sprint(resp.StatusCode, " ", string(body)); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
	if failures.Load() != 0 {
		t.Errorf("%d failures seen, want none", failures.Load())
	}
	var w http.ResponseWriter = httptest.NewRecorder()
	middleware(t, resiliencehttp.MiddlewareConfig{Timeout: time.Minute}, func(w http.ResponseWriter, _ *http.Request) {
		if _, _, err := w.(http.Hijacker).Hijack(); !errors.Is(err, http.ErrNotSupported) {
			t.Errorf("Hijack = %v, want ErrNotSupported", err)
		}
	}).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
}

// TestOverload puts a client and a server together: the server sheds, the client honours it,
// and nobody is lost.
func TestOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		places := must(bulkhead.New(5, bulkhead.Config{}))
		var served atomic.Int64
		base, _ := serve(t, middleware(t, resiliencehttp.MiddlewareConfig{Shed: &resilience.Policy{Bulkhead: places}}, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(100 * time.Millisecond)
			served.Add(1)
		}).ServeHTTP)
		c := client(t, resiliencehttp.TransportConfig{Base: base, Guards: retrying(retry.Config{Attempts: 20, Budget: retry.Unlimited})})
		statuses := make(chan int, 50)
		for range 50 {
			go func() {
				status, _, err := do(t, c, http.MethodGet, nil)
				if err != nil {
					t.Error(err)
				}
				statuses <- status
			}()
		}
		var seen []int
		for range 50 {
			seen = append(seen, <-statuses)
		}
		if slices.Sort(seen); seen[0] != 200 || seen[49] != 200 || served.Load() != 50 {
			t.Errorf("statuses %v, %d served, want 200 for all 50", seen, served.Load())
		}
	})
}
