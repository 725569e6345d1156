// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// whole is the gateway in front of o.
func whole(t *testing.T, o http.RoundTripper) http.Handler {
	t.Helper()
	env := platform.Env{Name: "gateway", Instance: "gateway-1", Caller: &platform.Caller{Client: &http.Client{Transport: o}}, Log: slog.New(slog.DiscardHandler)}
	s, err := New(env, []string{"catalog"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s.Handler()
}

// from makes a request of the client at an address.
func from(t *testing.T, h http.Handler, addr, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), "GET", path, nil)
	r.RemoteAddr = addr + ":1234"
	h.ServeHTTP(w, r)
	return w
}

// wantProblem checks a refusal that says when to come back.
func wantProblem(t *testing.T, w *httptest.ResponseRecorder, status int, code string) {
	t.Helper()
	var p struct{ Type string }
	_ = json.Unmarshal(w.Body.Bytes(), &p)
	if w.Code != status || p.Type != "/problems/"+code || w.Header().Get("Retry-After") == "" {
		t.Errorf("answered %d %s, Retry-After %q; want %d %s and when to come back", w.Code, w.Body, w.Header().Get("Retry-After"), status, code)
	}
}

func TestClientIsSlowedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := whole(t, &origin{})
		for range addressLimit.Burst { // at one moment
			if w := from(t, h, "192.0.2.1", "/api/nothing"); w.Code != http.StatusNotFound {
				t.Fatalf("answered %d, want 404", w.Code)
			}
		}
		wantProblem(t, from(t, h, "192.0.2.1", "/api/nothing"), http.StatusTooManyRequests, "too-many-requests")
		if w := from(t, h, "192.0.2.2", "/api/nothing"); w.Code != http.StatusNotFound {
			t.Errorf("somebody else is answered %d, want 404", w.Code)
		}
		for _, path := range []string{"/api/orders/none/events", "/ops/api/sagas", "/api/products/p-1"} {
			wantProblem(t, from(t, h, "192.0.2.1", path), http.StatusTooManyRequests, "too-many-requests")
		}
		if w := from(t, h, "192.0.2.1", "/"); w.Code != http.StatusOK {
			t.Errorf("a page is answered %d, want 200: it costs nothing", w.Code)
		}
		time.Sleep(time.Second)
		if w := from(t, h, "192.0.2.1", "/api/nothing"); w.Code != http.StatusNotFound {
			t.Errorf("a second later: %d, want 404", w.Code)
		}
	})
}

func TestCustomerIsSlowedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(platform.Env{Name: "gateway", Caller: &platform.Caller{Client: &http.Client{Transport: &origin{}}}, Log: slog.New(slog.DiscardHandler)}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		h := s.metered(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		for i := range customerLimit.Burst { // from one address after the other
			if w := from(t, h, fmt.Sprintf("192.0.2.%d", i%250), "/api/me"); w.Code != http.StatusOK {
				t.Fatalf("answered %d, want 200", w.Code)
			}
		}
		wantProblem(t, from(t, h, "198.51.100.1", "/api/me"), http.StatusTooManyRequests, "too-many-requests")
		time.Sleep(time.Second)
		if w := from(t, h, "198.51.100.1", "/api/me"); w.Code != http.StatusOK {
			t.Errorf("a second later: %d, want 200", w.Code)
		}
	})
}

func TestOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := whole(t, roundTripper(func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			w := httptest.NewRecorder()
			_ = platform.WriteJSON(w, http.StatusOK, struct{}{})
			return w.Result(), nil
		}))
		var served, refused atomic.Int64
		var all sync.WaitGroup
		for i := range 500 { // at once, each with a question of its own
			all.Go(func() {
				w := from(t, h, "192.0.2.1", fmt.Sprintf("/api/products/p-%d", i))
				if w.Code == http.StatusOK {
					served.Add(1)
					return
				}
				refused.Add(1)
				wantProblem(t, w, http.StatusServiceUnavailable, "overloaded")
			})
		}
		all.Wait()
		if served.Load() == 0 || refused.Load() == 0 {
			t.Errorf("%d served, %d refused, want some of each", served.Load(), refused.Load())
		}
		if w := from(t, h, "192.0.2.1", "/api/products/other"); w.Code != http.StatusOK {
			t.Errorf("afterwards: %d, want 200", w.Code)
		}
	})
}

// TestDoor has many sign in at once, which takes long, and looks whether others are served meanwhile.
func TestDoor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := whole(t, roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/sessions" {
				time.Sleep(time.Minute)
			}
			w := httptest.NewRecorder()
			_ = platform.WriteJSON(w, http.StatusOK, struct{}{})
			return w.Result(), nil
		}))
		var served, refused atomic.Int64
		var all sync.WaitGroup
		for range entryLimit.Burst {
			all.Go(func() {
				w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "POST", "/api/sessions", strings.NewReader("{}"))
				if h.ServeHTTP(w, r); w.Code == http.StatusOK {
					served.Add(1)
					return
				}
				refused.Add(1)
				wantProblem(t, w, http.StatusServiceUnavailable, "overloaded")
			})
		}
		synctest.Wait()
		for i := range 100 {
			if w := from(t, h, "192.0.2.1", fmt.Sprintf("/api/products/p-%d", i)); w.Code != http.StatusOK {
				t.Fatalf("meanwhile somebody else is answered %d %s, want 200", w.Code, w.Body)
			}
		}
		all.Wait()
		if served.Load() != doorRoom || refused.Load() != int64(entryLimit.Burst)-doorRoom {
			t.Errorf("%d came in, %d were refused; want %d, and the rest when they have waited", served.Load(), refused.Load(), doorRoom)
		}
	})
}

func TestWhatIsNoText(t *testing.T) {
	h := whole(t, &origin{})
	for path, field := range map[string]string{
		"/api/products/%ff": "", "/api/products?category=%00": "category", "/api/products?q=saw&q=%c3%28": "q", "/api/products?%ff=1": "?",
		"/api/products?q=%": "", "/api/products?q=%zz": "", "/api/products?q=a;page=2": "",
	} {
		w := from(t, h, "192.0.2.1", path)
		var p struct{ Field string }
		_ = json.Unmarshal(w.Body.Bytes(), &p)
		if w.Code != http.StatusBadRequest && w.Code != http.StatusUnprocessableEntity || p.Field != field {
			t.Errorf("GET %s = %d %s, want 400 or 422 about the field %q", path, w.Code, w.Body, field)
		}
	}
	if w := from(t, h, "192.0.2.1", "/api/products?q=s%C3%A4ge"); w.Code != http.StatusOK {
		t.Errorf("a letter that is not ASCII: %d, want 200", w.Code)
	}
}

// TestAccessLog sends requests through the gateway as it is served.
func TestAccessLog(t *testing.T) {
	var log bytes.Buffer
	env := platform.Env{
		Name: "gateway", Caller: &platform.Caller{Client: &http.Client{Transport: &origin{}}},
		Log: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	s, err := New(env, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := platform.Handler(t.Context(), env, s)
	for name, c := range map[string]struct{ sent, want string }{
		"the client's own ID":       {"my-request-1", "my-request-1"},
		"one that is no such thing": {"forged\tline", ""},
		"none":                      {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			log.Reset()
			w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "GET", "/api/products/p-1?q=secret", nil)
			if c.sent != "" {
				r.Header.Set("X-Request-Id", c.sent)
			}
			h.ServeHTTP(w, r)
			id := w.Header().Get("X-Request-Id")
			if !requestID.MatchString(id) || c.want != "" && id != c.want {
				t.Errorf("X-Request-Id = %q, want %q", id, c.want)
			}
			var line struct {
				Method, Path, Remote string
				Status, Bytes        int
				RequestID            string `json:"request_id"`
				Duration             int64
			}
			if err := json.Unmarshal(log.Bytes(), &line); err != nil {
				t.Fatalf("log %s: %v", &log, err)
			}
			if line.Method != "GET" || line.Path != "/api/products/p-1" || line.Status != 200 || line.Bytes != w.Body.Len() || line.RequestID != id || line.Remote != r.RemoteAddr || line.Duration <= 0 {
				t.Errorf("log %s, want the request and its answer", &log)
			}
			if strings.Contains(log.String(), "secret") {
				t.Errorf("log %s, want no query: it may hold what is nobody's business", &log)
			}
		})
	}
}

// TestSlowBodyTakesNoRoom has many clients begin a body and say no more.
func TestSlowBodyTakesNoRoom(t *testing.T) {
	server := httptest.NewServer(whole(t, &origin{}))
	defer server.Close()
	for range 150 {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if _, err := io.WriteString(conn, "POST /api/customers HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		// That is said when somebody waits for the body.
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, " 100 ") {
			t.Fatalf("answered %q, %v; want to be asked for the body", line, err)
		}
	}
	resp, err := http.Get(server.URL + "/api/products/p-1")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("meanwhile somebody else is answered %s, want 200", resp.Status)
	}
}

// slowBody says nothing until its connection's deadline.
type slowBody struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (b *slowBody) SetReadDeadline(at time.Time) error {
	b.deadline = at
	return nil
}

func (b *slowBody) Read([]byte) (int, error) {
	time.Sleep(time.Until(b.deadline))
	return 0, os.ErrDeadlineExceeded
}

func TestBody(t *testing.T) {
	serve := func(t *testing.T) http.Handler {
		env := platform.Env{Name: "gateway", Caller: &platform.Caller{Client: &http.Client{Transport: &origin{}}}, Log: slog.New(slog.DiscardHandler)}
		s, err := New(env, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return platform.Handler(t.Context(), env, s)
	}
	synctest.Test(t, func(t *testing.T) {
		served := serve(t)
		b := &slowBody{ResponseRecorder: httptest.NewRecorder()}
		begun := time.Now()
		served.ServeHTTP(b, httptest.NewRequestWithContext(t.Context(), "POST", "/api/customers", b))
		if took := time.Since(begun); b.Code != http.StatusRequestTimeout || took != bodyTakes || !b.deadline.IsZero() {
			t.Errorf("a body that does not come: %d after %v, deadline %v; want 408 after %v and none left", b.Code, took, b.deadline, bodyTakes)
		}
	})
	served := serve(t)
	for name, c := range map[string]struct {
		body io.Reader
		want int
	}{
		"what breaks off":     {iotest.ErrReader(io.ErrUnexpectedEOF), http.StatusBadRequest},
		"too much":            {io.MultiReader(strings.NewReader(strings.Repeat(" ", 2*platform.MaxBody)), iotest.ErrReader(io.ErrUnexpectedEOF)), http.StatusRequestEntityTooLarge}, // and nobody reads to its end
		"as much as may be":   {io.MultiReader(strings.NewReader(strings.Repeat(" ", platform.MaxBody))), http.StatusOK},
		"too much as it says": {strings.NewReader(strings.Repeat(" ", platform.MaxBody+1)), http.StatusRequestEntityTooLarge},
	} {
		w := httptest.NewRecorder()
		served.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", "/api/customers", c.body))
		if closes := w.Header().Get("Connection") == "close"; w.Code != c.want || closes != (c.want != http.StatusOK) {
			t.Errorf("%s: %d %s, the connection is closed %v; want %d", name, w.Code, w.Body, closes, c.want)
		}
	}
}

func TestMethods(t *testing.T) {
	h := whole(t, &origin{})
	for _, c := range []struct{ method, path, allow string }{
		{"DELETE", "/api/products", "GET, HEAD, POST"},
		{"PUT", "/api/products/p-1", "GET, HEAD, PATCH"},
		{"OPTIONS", "/api/me", "GET, HEAD"},
		{"GET", "/api/sessions", "POST"},
		{"POST", "/ops/api/load", "GET, HEAD, PUT"},
		{"PATCH", "/ops/api/chaos/none", "DELETE"},
		{"POST", "/openapi.yaml", "GET, HEAD"},
		{"GET", "/api/nothing", ""},
		{"POST", "/api/products/p-1/nothing", ""},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), c.method, c.path, nil))
		want := http.StatusMethodNotAllowed
		if c.allow == "" {
			want = http.StatusNotFound
		}
		if w.Code != want || w.Header().Get("Allow") != c.allow {
			t.Errorf("%s %s = %d %s, Allow %q; want %d, %q", c.method, c.path, w.Code, w.Body, w.Header().Get("Allow"), want, c.allow)
		}
	}
}

func TestAddress(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.1:1234": "192.0.2.1", "[::ffff:192.0.2.1]:1234": "192.0.2.1", "[2001:db8::1]:1234": "2001:db8::/64",
		"[2001:db8::ffff:1]:1": "2001:db8::/64", "[2001:db8:0:1::1]:1": "2001:db8:0:1::/64", "@": "@",
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
		r.RemoteAddr = remote
		r.Header.Set("X-Forwarded-For", "198.51.100.1") // is not believed
		if got := address(r); got != want {
			t.Errorf("address of %s = %q, want %q", remote, got, want)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
