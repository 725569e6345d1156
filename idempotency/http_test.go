// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
)

// api is a handler behind the middleware.
type api struct {
	http.Handler
	store *idempotencymem.Store
	runs  atomic.Int64 // of the handler
	mu    sync.Mutex
	seen  []idempotency.HTTPRequest
}

func newAPI(t *testing.T, cfg idempotency.HTTPConfig, h http.HandlerFunc) *api {
	t.Helper()
	a := &api{store: idempotencymem.New()}
	a.Handler = a.wrap(t, a.store, cfg, h)
	return a
}

func (a *api) wrap(t *testing.T, store idempotency.Store, cfg idempotency.HTTPConfig, h http.HandlerFunc) http.Handler {
	t.Helper()
	if cfg.Scope == nil {
		cfg.Scope = func(r *http.Request) (string, error) { return r.Header.Get("X-User"), nil }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Hooks.Request = func(r idempotency.HTTPRequest) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.seen = append(a.seen, r)
	}
	protect, err := idempotency.HTTP(store, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.runs.Add(1)
		h(w, r)
	}))
}

// request is POST /orders of alice with the key k1, changed by f.
func request(body string, f ...func(*http.Request)) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/orders", strings.NewReader(body))
	r.Header.Set("X-User", "alice")
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(idempotency.HeaderKey, `"k1"`)
	for _, change := range f {
		change(r)
	}
	return r
}

func (a *api) do(body string, f ...func(*http.Request)) *http.Response {
	return serve(a, request(body, f...))
}

func serve(h http.Handler, r *http.Request) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func text(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// want checks an answer, and how often the handler has run so far.
func (a *api) want(t *testing.T, got *http.Response, status int, body string, replayed bool, runs int64) {
	t.Helper()
	if b := text(t, got); got.StatusCode != status || b != body {
		t.Errorf("answer = %d %q, want %d %q", got.StatusCode, b, status, body)
	}
	if (got.Header.Get(idempotency.HeaderReplayed) == "true") != replayed {
		t.Errorf("%s = %q, want replayed %v", idempotency.HeaderReplayed, got.Header.Get(idempotency.HeaderReplayed), replayed)
	}
	if n := a.runs.Load(); n != runs {
		t.Errorf("the handler ran %d times, want %d", n, runs)
	}
}

func (a *api) wantProblem(t *testing.T, got *http.Response, status int, runs int64) {
	t.Helper()
	var p idempotency.Problem
	if err := json.Unmarshal([]byte(text(t, got)), &p); err != nil {
		t.Errorf("body: %v", err)
	}
	if got.StatusCode != status || p.Status != status || p.Title == "" || p.Type == "" || p.Detail == "" && status != 401 {
		t.Errorf("answer = %d with %+v, want %d and why", got.StatusCode, p, status)
	}
	if ct := got.Header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("Content-Type = %q, want a problem", ct)
	}
	if n := a.runs.Load(); n != runs {
		t.Errorf("the handler ran %d times, want %d", n, runs)
	}
}

func (a *api) wantSeen(t *testing.T, want ...idempotency.HTTPOutcome) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	var got []idempotency.HTTPOutcome
	for _, s := range a.seen {
		got = append(got, s.Outcome)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("outcomes = %v, want %v", got, want)
	}
}

func created(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Location", "/orders/1")
	w.Header().Add("X-Many", "a")
	w.Header().Add("X-Many", "b")
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(append([]byte("made "), body...))
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func TestHTTP(t *testing.T) {
	t.Run("a repetition gets the same status, headers and body without running", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		for i := range 3 {
			got := a.do("x")
			a.want(t, got, 201, "made x", i > 0, 1)
			if l, m := got.Header.Get("Location"), got.Header.Values("X-Many"); l != "/orders/1" || fmt.Sprint(m) != "[a b]" {
				t.Errorf("Location = %q, X-Many = %q, want those of the handler", l, m)
			}
		}
		a.wantSeen(t, idempotency.Stored, idempotency.Replayed, idempotency.Replayed)
	})
	t.Run("a quoted and a bare key are the same", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		a.want(t, a.do("x"), 201, "made x", false, 1)
		a.want(t, a.do("x", header(idempotency.HeaderKey, "k1")), 201, "made x", true, 1)
	})
	t.Run("another key runs", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		a.want(t, a.do("x"), 201, "made x", false, 1)
		a.want(t, a.do("x", header(idempotency.HeaderKey, "k2")), 201, "made x", false, 2)
	})
	t.Run("another principal, method or path with the same key runs", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		a.want(t, a.do("x"), 201, "made x", false, 1)
		a.want(t, a.do("x", header("X-User", "bob")), 201, "made x", false, 2)
		a.want(t, a.do("x", func(r *http.Request) { r.Method = http.MethodPatch }), 201, "made x", false, 3)
		a.want(t, a.do("x", func(r *http.Request) { r.URL.Path = "/orders/7" }), 201, "made x", false, 4)
	})
	t.Run("another body, query or content type with the same key is 422", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		a.want(t, a.do("x"), 201, "made x", false, 1)
		a.wantProblem(t, a.do("y"), 422, 1)
		a.wantProblem(t, a.do("x", func(r *http.Request) { r.URL.RawQuery = "a=b" }), 422, 1)
		a.wantProblem(t, a.do("x", header("Content-Type", "text/plain")), 422, 1)
		a.want(t, a.do("x"), 201, "made x", true, 1)
		a.wantSeen(t, idempotency.Stored, idempotency.Refused, idempotency.Refused, idempotency.Refused, idempotency.Replayed)
	})
	t.Run("without a key where none is required every request runs", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		for i := range int64(2) {
			a.want(t, a.do("x", func(r *http.Request) { r.Header.Del(idempotency.HeaderKey) }), 201, "made x", false, i+1)
		}
	})
	t.Run("without a key where one is required it is 400", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{Required: true}, created)
		noKey := func(method string) func(*http.Request) {
			return func(r *http.Request) { r.Header.Del(idempotency.HeaderKey); r.Method = method }
		}
		a.wantProblem(t, a.do("x", noKey(http.MethodPost)), 400, 0)
		a.wantProblem(t, a.do("x", noKey(http.MethodPatch)), 400, 0)
		a.want(t, a.do("x", noKey(http.MethodPut)), 201, "made x", false, 1)
		a.want(t, a.do("x", noKey(http.MethodDelete)), 201, "made x", false, 2)
	})
	t.Run("a malformed key is 400, required or not", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		for _, key := range []string{"", `""`, `"abc`, "a b", "a,b", strings.Repeat("x", 256)} {
			a.wantProblem(t, a.do("x", header(idempotency.HeaderKey, key)), 400, 0)
		}
		a.wantProblem(t, a.do("x", func(r *http.Request) { r.Header.Add(idempotency.HeaderKey, `"k1"`) }), 400, 0)
	})
	t.Run("safe methods pass, with or without a key", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{Required: true}, created)
		for i := range int64(2) {
			a.want(t, a.do("x", func(r *http.Request) { r.Method = http.MethodGet }), 201, "made x", false, i+1)
		}
	})
	t.Run("PUT and DELETE with a key are repeatable", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		for i, method := range []string{http.MethodPut, http.MethodDelete} {
			for _, replayed := range []bool{false, true} {
				a.want(t, a.do("x", func(r *http.Request) { r.Method = method }), 201, "made x", replayed, int64(i+1))
			}
		}
	})
	t.Run("a sender that is unknown is 401", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		a.wantProblem(t, a.do("x", func(r *http.Request) { r.Header.Del("X-User") }), 401, 0)
		a = newAPI(t, idempotency.HTTPConfig{Scope: func(*http.Request) (string, error) { return "alice", errors.New("expired") }}, created)
		a.wantProblem(t, a.do("x"), 401, 0)
	})
	t.Run("a body over MaxBody is 413", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{MaxBody: 4}, created)
		a.wantProblem(t, a.do("12345"), 413, 0)
		a.want(t, a.do("1234"), 201, "made 1234", false, 1)
	})
	t.Run("a body that cannot be read is 400", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		r := request("")
		r.Body = io.NopCloser(io.MultiReader(strings.NewReader("x"), errReader{}))
		if got := serve(a, r); got.StatusCode != 400 || a.runs.Load() != 0 {
			t.Errorf("answer = %d after %d runs, want 400 after none", got.StatusCode, a.runs.Load())
		}
	})
	t.Run("a body that an outer handler has read is 500, since two could not be told apart", func(t *testing.T) {
		form := header("Content-Type", "application/x-www-form-urlencoded")
		multi := header("Content-Type", "multipart/form-data; boundary=b")
		chunked := func(r *http.Request) { r.ContentLength = -1 }
		for name, c := range map[string]struct {
			body   string
			change []func(*http.Request)
			read   func(*http.Request) error
		}{
			"read":           {"x", nil, func(r *http.Request) error { _, err := io.Copy(io.Discard, r.Body); return err }},
			"form":           {"amount=1", []func(*http.Request){form}, (*http.Request).ParseForm},
			"chunked form":   {"amount=1", []func(*http.Request){form, chunked}, (*http.Request).ParseForm},
			"multipart form": {"--b\r\nContent-Disposition: form-data; name=\"amount\"\r\n\r\n1\r\n--b--\r\n", []func(*http.Request){multi, chunked}, func(r *http.Request) error { return r.ParseMultipartForm(1 << 10) }},
		} {
			a := newAPI(t, idempotency.HTTPConfig{}, created)
			r := request(c.body, c.change...)
			if err := c.read(r); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			a.wantProblem(t, serve(a, r), 500, 0)
			a.wantSeen(t, idempotency.Refused)
		}
	})
	t.Run("a form that was parsed without its body, or a request without one, is handled", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		r := request(`{"amount":1}`) // JSON, which ParseForm leaves alone
		if err := r.ParseForm(); err != nil {
			t.Fatal(err)
		}
		a.want(t, serve(a, r), 201, `made {"amount":1}`, false, 1)
		a.want(t, a.do("", header(idempotency.HeaderKey, `"k2"`)), 201, "made ", false, 2)
	})
	t.Run("the handler reads the whole body and its caller's request is left alone", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %d %v", body, r.ContentLength, err)
		})
		r := request("hello")
		r.ContentLength = -1 // as if chunked
		before := r.Body
		a.want(t, serve(a, r), 200, "hello 5 <nil>", false, 1)
		if r.Body != before {
			t.Error("the body of the request was replaced")
		}
		r = request("")
		r.Body = nil
		r.Header.Set(idempotency.HeaderKey, "k2")
		a.want(t, serve(a, r), 200, " 0 <nil>", false, 2)
	})
	t.Run("the handler can see its key", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, r *http.Request) {
			key, ok := idempotency.FromContext(r.Context())
			fmt.Fprint(w, key.Scope, "|", key.ID, "|", ok)
		})
		a.want(t, a.do("x"), 200, "alice POST /orders|k1|true", false, 1)
		a.want(t, a.do("x", func(r *http.Request) { r.Header.Del(idempotency.HeaderKey) }), 200, "||false", false, 2)
	})
	t.Run("a request without an answer is 200", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-A", "b") })
		for _, replayed := range []bool{false, true} {
			got := a.do("x")
			a.want(t, got, 200, "", replayed, 1)
			if got.Header.Get("X-A") != "b" {
				t.Errorf("X-A = %q, want b", got.Header.Get("X-A"))
			}
		}
	})
	t.Run("a status without a body is replayed", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNoContent)
			if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Errorf("Write = %v, want %v", err, http.ErrBodyNotAllowed)
			}
		})
		for _, replayed := range []bool{false, true} {
			a.want(t, a.do("x"), 204, "", replayed, 1)
		}
	})
	t.Run("headers of outer handlers and of one connection are not stored", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", "long ago")
			w.Header().Set("Connection", "close")
			w.Header().Set("X-Mine", "1")
			w.WriteHeader(http.StatusOK)
			w.Header().Set("X-Late", "1")
			fmt.Fprint(w, "ok")
		})
		n := 0
		outer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n++
			w.Header().Set("X-Request-Id", fmt.Sprint(n))
			a.ServeHTTP(w, r)
		})
		if got := serve(outer, request("x")); got.Header.Get("X-Request-Id") != "1" || got.Header.Get("X-Mine") != "1" || got.Header.Get("X-Late") != "" {
			t.Errorf("first answer has %v, want X-Request-Id 1 and X-Mine, and no X-Late", got.Header)
		}
		if got := serve(outer, request("x")); got.Header.Get("X-Request-Id") != "2" || got.Header.Get("X-Mine") != "1" || got.Header.Get("Date") != "" || got.Header.Get("Connection") != "" || got.Header.Get("X-Late") != "" {
			t.Errorf("replay has %v, want its own X-Request-Id and of the stored ones X-Mine only", got.Header)
		}
	})
	t.Run("a Problem of one's own is used", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{Required: true, Problem: func(w http.ResponseWriter, _ *http.Request, p idempotency.Problem) {
			http.Error(w, p.Title, p.Status)
		}}, created)
		a.want(t, a.do("x", func(r *http.Request) { r.Header.Del(idempotency.HeaderKey) }), 400, "Idempotency-Key is missing\n", false, 0)
	})
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func TestHTTPStoresFinalStatusesOnly(t *testing.T) {
	for status, final := range map[int]bool{
		200: true, 201: true, 202: true, 303: true, 400: true, 404: true, 422: true,
		408: false, 409: false, 425: false, 429: false, 500: false, 502: false, 503: false,
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
			a.want(t, a.do("x"), status, "", false, 1)
			if final {
				a.want(t, a.do("x"), status, "", true, 1)
				a.wantProblem(t, a.do("y"), 422, 1)
				return
			}
			a.want(t, a.do("x"), status, "", false, 2)
			a.want(t, a.do("y"), status, "", false, 3) // the key is free, for any request
			a.wantSeen(t, idempotency.Released, idempotency.Released, idempotency.Released)
		})
	}
	t.Run("as configured", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{Final: func(status int) bool { return status == 500 }},
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
		a.want(t, a.do("x"), 500, "", false, 1)
		a.want(t, a.do("x"), 500, "", true, 1)
	})
}

func TestHTTPConcurrency(t *testing.T) {
	t.Run("of two requests with one key at the same moment one runs and the other is 409", func(t *testing.T) {
		entered, leave := make(chan bool), make(chan bool)
		a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, _ *http.Request) {
			entered <- true
			<-leave
			fmt.Fprint(w, "done")
		})
		first := make(chan *http.Response)
		go func() { first <- a.do("x") }()
		<-entered
		got := a.do("x")
		if after := got.Header.Get("Retry-After"); after != "1" {
			t.Errorf("Retry-After = %q, want 1", after)
		}
		a.wantProblem(t, got, 409, 1)
		a.wantProblem(t, a.do("y"), 422, 1)
		close(leave)
		a.want(t, <-first, 200, "done", false, 1)
		a.want(t, a.do("x"), 200, "done", true, 1)
	})
	t.Run("of many at the same moment one runs", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				for {
					got := a.do("x")
					if got.StatusCode == http.StatusConflict {
						continue
					}
					if got.StatusCode != 201 {
						t.Errorf("answer = %d, want 201", got.StatusCode)
					}
					return
				}
			})
		}
		wg.Wait()
		if n := a.runs.Load(); n != 1 {
			t.Errorf("the handler ran %d times, want 1", n)
		}
	})
}

func TestHTTPHandlerPanics(t *testing.T) {
	for name, leave := range map[string]func(http.ResponseWriter){
		"panic":          func(http.ResponseWriter) { panic("boom") },
		"abort":          func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"invalid status": func(w http.ResponseWriter) { w.WriteHeader(42) },
	} {
		t.Run(name, func(t *testing.T) {
			crash := true
			a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, r *http.Request) {
				if crash {
					w.Header().Set("X-Half", "done")
					w.WriteHeader(http.StatusCreated)
					fmt.Fprint(w, "half")
					leave(w)
				}
				created(w, r)
			})
			w := httptest.NewRecorder()
			func() {
				defer func() {
					if recover() == nil {
						t.Error("the panic was swallowed")
					}
				}()
				a.ServeHTTP(w, request("x"))
			}()
			if w.Body.Len() > 0 || len(w.Header()) > 0 {
				t.Errorf("half an answer was sent: %v %q", w.Header(), w.Body)
			}
			crash = false
			a.want(t, a.do("x"), 201, "made x", false, 2)
			a.wantSeen(t, idempotency.Released, idempotency.Stored)
		})
	}
}

func TestHTTPHandlerExitsItsGoroutine(t *testing.T) {
	a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, r *http.Request) {
		created(w, r)
		runtime.Goexit()
	})
	for i := range int64(2) {
		var wg sync.WaitGroup
		wg.Go(func() { a.do("x") })
		wg.Wait()
		if n := a.runs.Load(); n != i+1 {
			t.Errorf("the handler ran %d times, want %d: the key is free", n, i+1)
		}
	}
}

func TestHTTPLargeResponse(t *testing.T) {
	large := strings.Repeat("x", 100)
	a := newAPI(t, idempotency.HTTPConfig{MaxResponse: 99}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/reports/1")
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Content-Encoding", "identity")
		w.WriteHeader(http.StatusCreated)
		for _, c := range large {
			fmt.Fprint(w, string(c))
		}
	})
	got := a.do("x")
	if got.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("Content-Type = %q, want text/plain", got.Header.Get("Content-Type"))
	}
	a.want(t, got, 201, large, false, 1)
	got = a.do("x")
	if got.Header.Get(idempotency.HeaderBodyOmitted) != "true" || got.Header.Get("Location") != "/reports/1" ||
		got.Header.Get("Content-Type") != "" || got.Header.Get("Content-Encoding") != "" {
		t.Errorf("replay has %v, want the Location, nothing about a body, and the body marked as omitted", got.Header)
	}
	a.want(t, got, 201, "", true, 1)
}

func TestHTTPStreaming(t *testing.T) {
	step := make(chan bool)
	a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(http.StatusEarlyHints)
		fmt.Fprint(w, "one ")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Errorf("Flush = %v", err)
		}
		<-step
		fmt.Fprint(w, "two")
		w.Header().Set("X-Sum", "2")
	})
	server := httptest.NewServer(a)
	defer server.Close()
	post := func() *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/orders", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = request("x").Header
		got, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { got.Body.Close() })
		return got
	}
	got := post()
	b := make([]byte, 4)
	if _, err := io.ReadFull(got.Body, b); err != nil || string(b) != "one " {
		t.Fatalf("before the handler is done: %q, %v, want what it flushed", b, err)
	}
	close(step)
	if rest := text(t, got); rest != "two" || got.Trailer.Get("X-Sum") != "2" {
		t.Errorf("the rest is %q with trailer %v, want two with X-Sum 2", rest, got.Trailer)
	}
	a.want(t, post(), 200, "one two", true, 1)
}

// failing is a client that has gone after so many bytes.
type failing struct {
	*httptest.ResponseRecorder
	left int
}

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errors.New("broken pipe")
	}
	return f.ResponseRecorder.Write(p)
}

// What was cut off must not pass for the whole answer.
func TestHTTPStreamThatIsCutOff(t *testing.T) {
	wantOmitted := func(t *testing.T, a *api) {
		t.Helper()
		got := a.do("x")
		if got.Header.Get(idempotency.HeaderBodyOmitted) != "true" {
			t.Errorf("%s = %q, want true", idempotency.HeaderBodyOmitted, got.Header.Get(idempotency.HeaderBodyOmitted))
		}
		a.want(t, got, 200, "", true, 1)
	}
	t.Run("by a handler whose client has gone", func(t *testing.T) {
		ctx, leave := context.WithCancel(t.Context())
		a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "one ")
			w.(http.Flusher).Flush()
			leave()
			<-r.Context().Done()
		})
		serve(a, request("x").WithContext(ctx))
		wantOmitted(t, a)
	})
	t.Run("by a handler that cannot write", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			for range 3 {
				if _, err := fmt.Fprint(w, "one "); err != nil {
					return
				}
			}
			t.Error("a Write to a client that has gone = nil, want an error")
		})
		a.ServeHTTP(&failing{httptest.NewRecorder(), 8}, request("x"))
		wantOmitted(t, a)
	})
}

func TestHTTPHijack(t *testing.T) {
	a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("Hijack = %v", err)
			return
		}
		defer conn.Close()
		if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrHijacked) {
			t.Errorf("Write = %v, want %v", err, http.ErrHijacked)
		}
		fmt.Fprint(conn, "HTTP/1.1 299 Mine\r\nContent-Length: 0\r\n\r\n")
	})
	server := httptest.NewServer(a)
	defer server.Close()
	send := func() int {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		r := request("")
		if err := r.Write(conn); err != nil {
			t.Fatal(err)
		}
		got, err := http.ReadResponse(bufio.NewReader(conn), r)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Body.Close()
		return got.StatusCode
	}
	for i := range int64(2) {
		status := send()
		for ; status == http.StatusConflict; status = send() {
			// It had its answer before the handler returned.
		}
		if n := a.runs.Load(); status != 299 || n != i+1 {
			t.Errorf("answer = %d after %d runs, want 299 after %d: nothing is stored", status, n, i+1)
		}
	}
}

func TestHTTPClientGone(t *testing.T) {
	t.Run("a handler that gives up frees the key", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, r *http.Request) {
			if ctx.Err() == nil {
				cancel()
				<-r.Context().Done()
				return // without an answer: this is not a 200
			}
			created(w, r)
		})
		a.wantProblem(t, serve(a, request("x").WithContext(ctx)), 503, 1)
		a.want(t, a.do("x"), 201, "made x", false, 2)
	})
	t.Run("a handler that goes on has its answer stored", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		a := newAPI(t, idempotency.HTTPConfig{}, func(w http.ResponseWriter, r *http.Request) {
			cancel()
			created(w, r)
		})
		serve(a, request("x").WithContext(ctx))
		a.want(t, a.do("x"), 201, "made x", true, 1)
	})
}

func TestHTTPLease(t *testing.T) {
	t.Run("a long request keeps its key", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(t, idempotency.HTTPConfig{Lease: time.Second}, func(w http.ResponseWriter, _ *http.Request) {
				time.Sleep(time.Hour)
				fmt.Fprint(w, "done")
			})
			first := make(chan *http.Response)
			go func() { first <- a.do("x") }()
			for range 59 {
				time.Sleep(time.Minute)
				if got := a.do("x"); got.StatusCode != http.StatusConflict {
					t.Fatalf("answer = %d while the first runs, want 409", got.StatusCode)
				}
			}
			a.want(t, <-first, 200, "done", false, 1)
			a.want(t, a.do("x"), 200, "done", true, 1)
		})
	})
	t.Run("the key of a crashed process is usable after its lease", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(t, idempotency.HTTPConfig{Lease: time.Second}, created)
			// The process that dies begins, and is never heard of again.
			end := make(chan bool)
			dead := a.wrap(t, deadStore{a.store}, idempotency.HTTPConfig{Lease: time.Second}, func(http.ResponseWriter, *http.Request) { <-end })
			var wg sync.WaitGroup
			wg.Go(func() { serve(dead, request("x")) })
			time.Sleep(999 * time.Millisecond)
			a.wantProblem(t, a.do("x"), 409, 1)
			time.Sleep(time.Millisecond)
			a.want(t, a.do("x"), 201, "made x", false, 2)
			close(end)
			wg.Wait()
		})
	})
	t.Run("an owner that lost its lease learns of it and cannot overwrite the new owner's answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(t, idempotency.HTTPConfig{Lease: time.Second}, created)
			var cause error
			old := a.wrap(t, stalledStore{a.store}, idempotency.HTTPConfig{Lease: time.Second}, func(w http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
				cause = context.Cause(r.Context())
				time.Sleep(time.Second)
				fmt.Fprint(w, "old")
			})
			first := make(chan *http.Response)
			go func() { first <- serve(old, request("x")) }()
			time.Sleep(1500 * time.Millisecond)
			a.want(t, a.do("x"), 201, "made x", false, 2)
			a.want(t, <-first, 200, "old", false, 2)
			if !errors.Is(cause, idempotency.ErrLeaseLost) {
				t.Errorf("the old owner's context ended with %v, want %v", cause, idempotency.ErrLeaseLost)
			}
			a.want(t, a.do("x"), 201, "made x", true, 2)
			a.wantSeen(t, idempotency.Stored, idempotency.Lost, idempotency.Replayed)
		})
	})
	t.Run("an owner whose key was taken learns of it with the next extension", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(t, idempotency.HTTPConfig{}, created)
			old := a.wrap(t, takenStore{a.store}, idempotency.HTTPConfig{Lease: 30 * time.Second}, func(_ http.ResponseWriter, r *http.Request) {
				start := time.Now()
				<-r.Context().Done()
				if after := time.Since(start); after != 10*time.Second {
					t.Errorf("the context ended after %v, want a third of the lease", after)
				}
			})
			a.wantProblem(t, serve(old, request("x")), 503, 1)
		})
	})
	t.Run("an owner that lost its lease and gives up is 503", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(t, idempotency.HTTPConfig{}, created)
			old := a.wrap(t, stalledStore{a.store}, idempotency.HTTPConfig{Lease: time.Second}, func(_ http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
			})
			a.wantProblem(t, serve(old, request("x")), 503, 1)
		})
	})
	t.Run("after the retention the key is new", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(t, idempotency.HTTPConfig{Retention: time.Hour}, created)
			a.want(t, a.do("x"), 201, "made x", false, 1)
			time.Sleep(time.Hour - time.Second)
			a.want(t, a.do("x"), 201, "made x", true, 1)
			time.Sleep(time.Second)
			a.want(t, a.do("y"), 201, "made y", false, 2)
		})
	})
}

// deadStore is the store as a process has it that dies after Begin.
type deadStore struct{ *idempotencymem.Store }

func (deadStore) Extend(context.Context, idempotency.Claim) error           { return errDead }
func (deadStore) Complete(context.Context, idempotency.Claim, []byte) error { return errDead }
func (deadStore) Release(context.Context, idempotency.Claim) error          { return errDead }

var errDead = errors.New("the process is dead")

// takenStore is the store as an owner has it whose key was taken.
type takenStore struct{ *idempotencymem.Store }

func (takenStore) Extend(context.Context, idempotency.Claim) error { return idempotency.ErrLeaseLost }

// stalledStore is the store as a process has it that cannot reach it for a while.
type stalledStore struct{ *idempotencymem.Store }

func (stalledStore) Extend(ctx context.Context, _ idempotency.Claim) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestHTTPStoreOutOfReach(t *testing.T) {
	t.Run("before the handler it is 503", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		down := a.wrap(t, downStore{}, idempotency.HTTPConfig{}, created)
		got := serve(down, request("x"))
		if got.Header.Get("Retry-After") == "" {
			t.Error("Retry-After is missing")
		}
		a.wantProblem(t, got, 503, 0)
	})
	t.Run("after the handler its answer is sent, and the loss is reported", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(t, idempotency.HTTPConfig{}, created)
			var log bytes.Buffer
			dead := a.wrap(t, deadStore{a.store}, idempotency.HTTPConfig{Logger: slog.New(slog.NewTextHandler(&log, nil))}, created)
			a.want(t, serve(dead, request("x")), 201, "made x", false, 1)
			a.wantSeen(t, idempotency.Lost)
			if !errors.Is(a.seen[0].Err, errDead) || !strings.Contains(log.String(), errDead.Error()) {
				t.Errorf("hook says %v, log says %q, want %v", a.seen[0].Err, log.String(), errDead)
			}
		})
	})
	t.Run("a short outage after the handler is bridged", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAPI(t, idempotency.HTTPConfig{}, created)
			flaky := a.wrap(t, &flakyStore{Store: a.store, fail: 3}, idempotency.HTTPConfig{}, created)
			a.want(t, serve(flaky, request("x")), 201, "made x", false, 1)
			a.want(t, a.do("x"), 201, "made x", true, 1)
		})
	})
	t.Run("a stored answer that cannot be read is 500 and does not run again", func(t *testing.T) {
		a := newAPI(t, idempotency.HTTPConfig{}, created)
		a.do("x")
		broken := a.wrap(t, garbageStore{a.store}, idempotency.HTTPConfig{}, created)
		a.wantProblem(t, serve(broken, request("x")), 500, 1)
	})
}

type downStore struct{ idempotency.Store }

func (downStore) Begin(context.Context, idempotency.Command) (idempotency.Claim, error) {
	return idempotency.Claim{}, errDead
}

type flakyStore struct {
	*idempotencymem.Store
	fail int
}

func (s *flakyStore) Complete(ctx context.Context, c idempotency.Claim, result []byte) error {
	if s.fail--; s.fail >= 0 {
		return errDead
	}
	return s.Store.Complete(ctx, c, result)
}

type garbageStore struct{ *idempotencymem.Store }

func (s garbageStore) Begin(ctx context.Context, cmd idempotency.Command) (idempotency.Claim, error) {
	c, err := s.Store.Begin(ctx, cmd)
	c.Result = []byte("garbage")
	return c, err
}

// saving returns a handler that saves its answer in a transaction, then does what end
// says, such as to commit.
func saving(t *testing.T, db *sql.DB, end func(tx *sql.Tx, w http.ResponseWriter, resp idempotency.Response)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		tx, err := db.BeginTx(r.Context(), nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer tx.Rollback()
		resp, err := idempotency.JSON(http.StatusCreated, map[string]int{"id": 7})
		if err != nil {
			t.Error(err)
			return
		}
		resp.Header.Set("Location", "/orders/7")
		if err := idempotency.Save(r.Context(), tx, resp); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		end(tx, w, resp)
	}
}

func commitAndAnswer(tx *sql.Tx, w http.ResponseWriter, resp idempotency.Response) {
	if err := tx.Commit(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	resp.Write(w)
}

func TestSave(t *testing.T) {
	setup := func(t *testing.T, end func(tx *sql.Tx, w http.ResponseWriter, resp idempotency.Response)) (*api, *sql.DB) {
		a := &api{store: idempotencymem.New()}
		db := a.store.OpenDB()
		t.Cleanup(func() { db.Close() })
		a.Handler = a.wrap(t, a.store, idempotency.HTTPConfig{}, saving(t, db, end))
		return a, db
	}
	// again is the same service after a restart, whose handler works.
	again := func(t *testing.T, a *api, db *sql.DB) {
		a.Handler = a.wrap(t, a.store, idempotency.HTTPConfig{}, saving(t, db, commitAndAnswer))
	}

	t.Run("a saved answer is sent and replayed", func(t *testing.T) {
		a, _ := setup(t, commitAndAnswer)
		for _, replayed := range []bool{false, true} {
			got := a.do("x")
			if got.Header.Get("Location") != "/orders/7" || got.Header.Get("Content-Type") != "application/json" {
				t.Errorf("header = %v, want that of the saved answer", got.Header)
			}
			a.want(t, got, 201, `{"id":7}`, replayed, 1)
		}
		a.wantSeen(t, idempotency.Stored, idempotency.Replayed)
	})
	t.Run("a handler that crashes after the commit has its answer replayed", func(t *testing.T) {
		a, _ := setup(t, func(tx *sql.Tx, _ http.ResponseWriter, _ idempotency.Response) {
			_ = tx.Commit()
			panic("crash")
		})
		func() {
			defer func() { _ = recover() }()
			a.do("x")
		}()
		a.want(t, a.do("x"), 201, `{"id":7}`, true, 1)
	})
	t.Run("a handler that crashes before the commit runs again", func(t *testing.T) {
		a, db := setup(t, func(*sql.Tx, http.ResponseWriter, idempotency.Response) { panic("crash") })
		func() {
			defer func() { _ = recover() }()
			a.do("x")
		}()
		again(t, a, db)
		a.want(t, a.do("x"), 201, `{"id":7}`, false, 2)
	})
	t.Run("a handler that rolls back and answers with an error runs again", func(t *testing.T) {
		a, db := setup(t, func(tx *sql.Tx, w http.ResponseWriter, _ idempotency.Response) {
			_ = tx.Rollback()
			w.WriteHeader(http.StatusInternalServerError)
		})
		a.want(t, a.do("x"), 500, "", false, 1)
		again(t, a, db)
		a.want(t, a.do("x"), 201, `{"id":7}`, false, 2)
	})
	t.Run("a handler that rolls back and answers something final runs again all the same", func(t *testing.T) {
		a, db := setup(t, func(tx *sql.Tx, w http.ResponseWriter, _ idempotency.Response) {
			_ = tx.Rollback()
			w.WriteHeader(http.StatusUnprocessableEntity)
		})
		a.want(t, a.do("x"), 422, "", false, 1)
		again(t, a, db)
		a.want(t, a.do("x"), 201, `{"id":7}`, false, 2)
	})
	t.Run("a Save that failed is as if it had not been called", func(t *testing.T) {
		a, db := setup(t, nil)
		a.Handler = a.wrap(t, &failingTxStore{a.store}, idempotency.HTTPConfig{}, func(w http.ResponseWriter, r *http.Request) {
			tx, err := db.BeginTx(r.Context(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer tx.Rollback()
			if err := idempotency.Save(r.Context(), tx, idempotency.Response{Status: 201}); !errors.Is(err, errDead) {
				t.Errorf("Save = %v, want %v", err, errDead)
			}
			created(w, r)
		})
		a.want(t, a.do("x"), 201, "made x", false, 1)
		a.want(t, a.do("x"), 201, "made x", true, 1)
	})
	t.Run("a commit whose outcome was unknown and happened is replayed", func(t *testing.T) {
		a, _ := setup(t, func(tx *sql.Tx, w http.ResponseWriter, _ idempotency.Response) {
			_ = tx.Commit()
			w.WriteHeader(http.StatusInternalServerError)
		})
		a.want(t, a.do("x"), 500, "", false, 1)
		a.want(t, a.do("x"), 201, `{"id":7}`, true, 1)
	})
	t.Run("only the saved answer is stored, whatever the handler writes", func(t *testing.T) {
		a, _ := setup(t, func(tx *sql.Tx, w http.ResponseWriter, _ idempotency.Response) {
			_ = tx.Commit()
			fmt.Fprint(w, "something else")
		})
		a.want(t, a.do("x"), 200, "something else", false, 1)
		a.want(t, a.do("x"), 201, `{"id":7}`, true, 1)
	})
	t.Run("a client that leaves after the commit gets the answer when it repeats", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		a, _ := setup(t, func(tx *sql.Tx, _ http.ResponseWriter, _ idempotency.Response) {
			_ = tx.Commit()
			cancel()
		})
		// The middleware sees the end of the context only after the handler.
		serve(a, request("x").WithContext(ctx))
		a.want(t, a.do("x"), 201, `{"id":7}`, true, 1)
	})
	t.Run("an owner that lost its lease cannot save", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, db := setup(t, commitAndAnswer)
			var saved error
			old := a.wrap(t, stalledStore{a.store}, idempotency.HTTPConfig{Lease: time.Second}, func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(3 * time.Second)
				ctx := context.WithoutCancel(r.Context()) // it does not even look
				tx, err := db.BeginTx(ctx, nil)
				if err != nil {
					t.Error(err)
					return
				}
				defer tx.Rollback()
				saved = idempotency.Save(ctx, tx, idempotency.Response{Status: 201, Body: []byte("old")})
				w.WriteHeader(http.StatusInternalServerError)
			})
			first := make(chan *http.Response)
			go func() { first <- serve(old, request("x")) }()
			time.Sleep(2 * time.Second)
			a.want(t, a.do("x"), 201, `{"id":7}`, false, 2)
			a.want(t, <-first, 500, "", false, 2)
			if !errors.Is(saved, idempotency.ErrLeaseLost) {
				t.Errorf("Save = %v, want %v", saved, idempotency.ErrLeaseLost)
			}
			a.want(t, a.do("x"), 201, `{"id":7}`, true, 2)
		})
	})
	t.Run("a lease that cannot be extended does not matter while the transaction holds the key", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, db := setup(t, nil)
			h := a.wrap(t, stalledStore{a.store}, idempotency.HTTPConfig{Lease: time.Second}, saving(t, db, func(tx *sql.Tx, w http.ResponseWriter, resp idempotency.Response) {
				time.Sleep(time.Minute)
				commitAndAnswer(tx, w, resp)
			}))
			first := make(chan *http.Response)
			go func() { first <- serve(h, request("x")) }()
			time.Sleep(30 * time.Second)
			a.wantProblem(t, serve(h, request("x")), 409, 1)
			a.want(t, <-first, 201, `{"id":7}`, false, 1)
		})
	})
	t.Run("without a key it does nothing", func(t *testing.T) {
		a, _ := setup(t, commitAndAnswer)
		noKey := func(r *http.Request) { r.Header.Del(idempotency.HeaderKey) }
		a.want(t, a.do("x", noKey), 201, `{"id":7}`, false, 1)
		a.want(t, a.do("x", noKey), 201, `{"id":7}`, false, 2)
	})
	t.Run("outside of the middleware it is an error", func(t *testing.T) {
		if err := idempotency.Save(t.Context(), nil, idempotency.Response{Status: 200}); err == nil {
			t.Error("Save = nil")
		}
	})
	t.Run("with a store that cannot join a transaction it is an error", func(t *testing.T) {
		a := &api{store: idempotencymem.New()}
		var saved error
		h := a.wrap(t, plainStore{a.store}, idempotency.HTTPConfig{}, func(_ http.ResponseWriter, r *http.Request) {
			saved = idempotency.Save(r.Context(), nil, idempotency.Response{Status: 200})
		})
		serve(h, request("x"))
		if !errors.Is(saved, errors.ErrUnsupported) {
			t.Errorf("Save = %v, want %v", saved, errors.ErrUnsupported)
		}
	})
	t.Run("a response that cannot be replayed is an error and leaves the transaction usable", func(t *testing.T) {
		a := &api{store: idempotencymem.New()}
		db := a.store.OpenDB()
		defer db.Close()
		h := a.wrap(t, a.store, idempotency.HTTPConfig{MaxResponse: 3}, func(w http.ResponseWriter, r *http.Request) {
			tx, err := db.BeginTx(r.Context(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			for _, bad := range []idempotency.Response{{}, {Status: 100}, {Status: 600}, {Status: 200, Body: []byte("1234")}} {
				if err := idempotency.Save(r.Context(), tx, bad); err == nil {
					t.Errorf("Save(%+v) = nil", bad)
				}
			}
			good := idempotency.Response{Status: 200, Body: []byte("123")}
			if err := idempotency.Save(r.Context(), tx, good); err != nil {
				t.Errorf("Save = %v", err)
			}
			commitAndAnswer(tx, w, good)
		})
		a.want(t, serve(h, request("x")), 200, "123", false, 1)
		a.want(t, serve(h, request("x")), 200, "123", true, 1)
	})
}

// failingTxStore cannot complete in a transaction today.
type failingTxStore struct{ *idempotencymem.Store }

func (failingTxStore) CompleteTx(context.Context, idempotency.Tx, idempotency.Claim, []byte) error {
	return errDead
}

// plainStore hides what the store can do beyond idempotency.Store.
type plainStore struct{ idempotency.Store }

// A client that goes while its key is looked up leaves no claim behind.
func TestHTTPClientGoneDuringBegin(t *testing.T) {
	a := newAPI(t, idempotency.HTTPConfig{}, created)
	ctx, cancel := context.WithCancel(t.Context())
	h := a.wrap(t, cancellingStore{a.store, cancel}, idempotency.HTTPConfig{}, func(w http.ResponseWriter, r *http.Request) {
		if err := r.Context().Err(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	if got := serve(h, request("x").WithContext(ctx)); got.StatusCode != http.StatusInternalServerError {
		t.Errorf("answer = %d, want the handler's 500", got.StatusCode)
	}
	a.want(t, a.do("x"), 201, "made x", false, 2)
}

// cancellingStore has the client go just before the claim is made.
type cancellingStore struct {
	*idempotencymem.Store
	cancel context.CancelFunc
}

func (s cancellingStore) Begin(ctx context.Context, cmd idempotency.Command) (idempotency.Claim, error) {
	s.cancel()
	return s.Store.Begin(ctx, cmd)
}

func TestHTTPConfigErrors(t *testing.T) {
	ok := idempotency.HTTPConfig{Scope: idempotency.AnyClient}
	for want, change := range map[string]func(*idempotency.HTTPConfig){
		"HTTPConfig.Scope is nil":       func(c *idempotency.HTTPConfig) { c.Scope = nil },
		"HTTPConfig.Lease is -1ns":      func(c *idempotency.HTTPConfig) { c.Lease = -1 },
		"HTTPConfig.Retention is -1ns":  func(c *idempotency.HTTPConfig) { c.Retention = -1 },
		"HTTPConfig.MaxBody is -1":      func(c *idempotency.HTTPConfig) { c.MaxBody = -1 },
		"HTTPConfig.MaxResponse is -1,": func(c *idempotency.HTTPConfig) { c.MaxResponse = -1 },
	} {
		cfg := ok
		change(&cfg)
		if _, err := idempotency.HTTP(idempotencymem.New(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("HTTP = %v, want %q", err, want)
		}
	}
	if _, err := idempotency.HTTP(nil, ok); err == nil {
		t.Error("HTTP without a store = nil")
	}
}
