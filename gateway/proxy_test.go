// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/gateway"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// roundTrip is a service of the test's making.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := f(r)
	if r.Body != nil {
		_ = r.Body.Close()
	}
	return resp, err
}

func answer(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
}

func newProxy(t testing.TB, rt http.RoundTripper, cfg gateway.ProxyConfig) http.Handler {
	t.Helper()
	cfg.Logger = quiet
	p, err := gateway.Proxy("order", rt, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pass sends a request through a proxy to a service that answers 200, and returns the request that the
// service got, nil if none, and the answer.
func pass(t testing.TB, cfg gateway.ProxyConfig, r *http.Request) (*http.Request, *httptest.ResponseRecorder) {
	t.Helper()
	var got *http.Request
	w := httptest.NewRecorder()
	newProxy(t, roundTrip(func(r *http.Request) (*http.Response, error) {
		got = r
		if r.Body != nil {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return nil, fmt.Errorf("write: %w", err)
			}
		}
		return answer(200, "ok"), nil
	}), cfg).ServeHTTP(w, r)
	return got, w
}

func wantProblem(t testing.TB, w *httptest.ResponseRecorder, status int) gateway.Problem {
	t.Helper()
	var p gateway.Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("body = %q: %v, want a problem", w.Body, err)
	}
	if w.Code != status || p.Status != status || p.Title == "" || w.Header().Get("Content-Type") != "application/problem+json" || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("answer = %d %v %s, want a problem of status %d", w.Code, w.Header(), w.Body, status)
	}
	return p
}

func TestProxyPath(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		strip, add, path, want string
	}{
		{"", "", "/", "/"},
		{"", "", "/orders/17?full=1", "/orders/17?full=1"},
		{"/api", "", "/api/orders/17", "/orders/17"},
		{"/api", "", "/api", "/"},
		{"/api", "/v1", "/api/orders", "/v1/orders"},
		{"", "/v1", "/orders/", "/v1/orders/"},
		{"/api", "", "/api/caf%C3%A9/a%20b", "/caf%C3%A9/a%20b"},
		{"/api", "", "/api/a+b,c;d", "/a+b,c;d"},
		{"/api", "", "/apix/orders", "404"},
		{"/api", "", "/orders", "404"},
		{"/api", "", "/%61pi/orders", "404"},
	} {
		t.Run(tt.strip+" "+tt.add+" "+tt.path, func(t *testing.T) {
			got, w := pass(t, gateway.ProxyConfig{StripPrefix: tt.strip, AddPrefix: tt.add}, httptest.NewRequest(http.MethodGet, tt.path, nil))
			if tt.want == "404" {
				if got != nil {
					t.Errorf("the service got %s, want nothing", got.URL)
				}
				wantProblem(t, w, http.StatusNotFound)
				return
			}
			if got == nil || got.URL.String() != "http://order"+tt.want {
				t.Fatalf("the service got %v (%d %s), want http://order%s", got, w.Code, w.Body, tt.want)
			}
		})
	}
}

var oddPaths = []string{
	"/a/../b", "/a/./b", "/..", "/a/..", "/%2e%2e/b", "/a/%2E%2e/b", "/a/.%2e", "/a/..;x=1/b", "/a/%2e%2e%3bx/b", "/.;/b",
	"//a", "/a//b", "/a/%2fb", "/a%2Fb", "/a%5cb", `/a\b`, "/a%00b", "/a%0d%0ab", "/a%7f",
}

func TestStrictPath(t *testing.T) {
	t.Parallel()
	strict := gateway.StrictPath(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	request := func(path string) *http.Request {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		u, err := url.ParseRequestURI(path) // as http.Server does
		if err != nil {
			t.Fatal(err)
		}
		r.URL = u
		return r
	}
	for _, path := range []string{"/", "/a", "/a/", "/a.b/..c/...", "/a%20b", "/a;b", "/~a/*", "/%e2%82%ac"} {
		w := httptest.NewRecorder()
		if strict.ServeHTTP(w, request(path)); w.Code != 200 {
			t.Errorf("StrictPath(%q) = %d %s, want it to pass", path, w.Code, w.Body)
		}
	}
	for _, path := range oddPaths {
		w := httptest.NewRecorder()
		strict.ServeHTTP(w, request(path))
		wantProblem(t, w, http.StatusBadRequest)
		if got, w := pass(t, gateway.ProxyConfig{}, request(path)); got != nil || w.Code != http.StatusBadRequest {
			t.Errorf("Proxy passes %q on, want 400", path)
		}
	}
	t.Run("encoded slashes pass where they are wanted, dot segments between them do not", func(t *testing.T) {
		cfg := gateway.ProxyConfig{EncodedSlash: true, StripPrefix: "/api"}
		if got, _ := pass(t, cfg, request("/api/files/a%2Fb")); got == nil || got.URL.String() != "http://order/files/a%2Fb" {
			t.Errorf("the service got %v, want /files/a%%2Fb", got)
		}
		for _, path := range []string{"/api/a%2F..%2Fb", "/api/..%2Fb"} {
			if got, w := pass(t, cfg, request(path)); got != nil || w.Code != http.StatusBadRequest {
				t.Errorf("%s passes, want 400", path)
			}
		}
		if got, w := pass(t, cfg, request("/api%2Fa")); got != nil || w.Code != http.StatusNotFound {
			t.Errorf("/api%%2Fa passes, want 404: it is not under the prefix")
		}
	})
	t.Run("other forms of request targets are refused", func(t *testing.T) {
		r := httptest.NewRequest(http.MethodOptions, "*", nil)
		if got, w := pass(t, gateway.ProxyConfig{}, r); got != nil || w.Code != http.StatusBadRequest {
			t.Errorf("OPTIONS * = %d, want 400", w.Code)
		}
	})
}

func TestProxyHeaders(t *testing.T) {
	t.Parallel()
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for _, tt := range []struct {
		name    string
		cfg     gateway.ProxyConfig
		remote  string
		in      http.Header
		want    map[string]string
		wantNot []string
		host    string
	}{
		{
			name: "the connection speaks for the client", remote: "192.0.2.1:999",
			want: map[string]string{"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "shop.example"}, host: "order",
		},
		{
			name: "what a client says of itself is not believed", remote: "192.0.2.1:999",
			in: http.Header{
				"X-Forwarded-For": {"1.1.1.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"evil.example"}, "X-Forwarded-Port": {"1"},
				"X-Real-Ip": {"1.1.1.1"}, "Forwarded": {"for=1.1.1.1"}, "X-Forwarded-Prefix": {"/x"},
			},
			want:    map[string]string{"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "shop.example"},
			wantNot: []string{"X-Real-Ip", "Forwarded", "X-Forwarded-Port", "X-Forwarded-Prefix"},
		},
		{
			name: "a trusted proxy is", cfg: gateway.ProxyConfig{Trusted: proxies}, remote: "10.0.0.1:999",
			in:   http.Header{"X-Forwarded-For": {"1.1.1.1, 192.0.2.1", "10.0.0.2"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"www.shop.example"}},
			want: map[string]string{"X-Forwarded-For": "192.0.2.1, 10.0.0.2, 10.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "www.shop.example"},
		},
		{
			name: "as long as it makes sense", cfg: gateway.ProxyConfig{Trusted: proxies}, remote: "10.0.0.1:999",
			in:   http.Header{"X-Forwarded-For": {"192.0.2.1, unknown"}, "X-Forwarded-Proto": {"javascript"}, "X-Forwarded-Host": {"a, b"}},
			want: map[string]string{"X-Forwarded-For": "10.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "shop.example"},
		},
		{
			name: "the client's Host may be kept", cfg: gateway.ProxyConfig{KeepHost: true}, remote: "192.0.2.1:999", host: "shop.example",
		},
		{
			name: "headers of an identity are the gateway's, in whatever spelling", remote: "192.0.2.1:999",
			cfg: gateway.ProxyConfig{
				Drop:   []string{"x-user-*", "X-Role"},
				Header: func(_ *http.Request, out http.Header) { out.Set("X-User-Id", "17") },
			},
			in:   http.Header{"X-User-Id": {"1"}, "X_user_id": {"1"}, "X-User_Name": {"root"}, "X-Role": {"admin"}, "X-Rolex": {"kept"}, "Connection": {"X-User-Id"}},
			want: map[string]string{"X-User-Id": "17", "X-Rolex": "kept"}, wantNot: []string{"X_user_id", "X-User_Name", "X-Role", "Connection"},
		},
		{
			name: "hop-by-hop headers end here", remote: "192.0.2.1:999",
			in: http.Header{
				"Connection": {"keep-alive, X-Mine"}, "X-Mine": {"1"}, "Keep-Alive": {"1"}, "Proxy-Authorization": {"x"}, "Te": {"gzip"},
				"Transfer-Encoding": {"chunked"}, "X-End": {"to end"},
			},
			want: map[string]string{"X-End": "to end"}, wantNot: []string{"Connection", "X-Mine", "Keep-Alive", "Proxy-Authorization", "Te", "Transfer-Encoding"},
		},
		{
			name: "h2c is not passed on", remote: "192.0.2.1:999",
			in:      http.Header{"Connection": {"Upgrade, HTTP2-Settings"}, "Upgrade": {"h2c"}, "Http2-Settings": {"x"}},
			wantNot: []string{"Connection", "Upgrade", "Http2-Settings"},
		},
		{
			name: "websocket is", remote: "192.0.2.1:999",
			in:   http.Header{"Connection": {"Upgrade"}, "Upgrade": {"WebSocket"}},
			want: map[string]string{"Connection": "Upgrade", "Upgrade": "WebSocket"},
		},
		{
			name: "unless it is not allowed", remote: "192.0.2.1:999", cfg: gateway.ProxyConfig{Upgrade: []string{}},
			in:      http.Header{"Connection": {"Upgrade"}, "Upgrade": {"WebSocket"}},
			wantNot: []string{"Connection", "Upgrade"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "http://shop.example/orders", nil)
			r.RemoteAddr = tt.remote
			for name, values := range tt.in {
				r.Header[name] = values
			}
			got, w := pass(t, tt.cfg, r)
			if got == nil {
				t.Fatalf("the service got nothing: %d %s", w.Code, w.Body)
			}
			for name, want := range tt.want {
				if v := strings.Join(got.Header[name], "|"); v != want {
					t.Errorf("%s = %q, want %q", name, v, want)
				}
			}
			for _, name := range tt.wantNot {
				if v, ok := got.Header[name]; ok {
					t.Errorf("%s = %q, want none", name, v)
				}
			}
			if tt.host != "" && got.Host != tt.host {
				t.Errorf("Host = %q, want %q", got.Host, tt.host)
			}
		})
	}
	t.Run("balance.ClientIP sees the client behind trusted proxies", func(t *testing.T) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = "10.0.0.1:999"
		r.Header.Set("X-Forwarded-For", "192.0.2.1")
		got, _ := pass(t, gateway.ProxyConfig{Trusted: proxies}, r)
		if ip := balance.ClientIP(got); ip != "192.0.2.1" {
			t.Errorf("ClientIP = %q, want 192.0.2.1", ip)
		}
		if ip := gateway.ClientIP(r, proxies); ip.String() != "192.0.2.1" {
			t.Errorf("gateway.ClientIP = %v, want 192.0.2.1", ip)
		}
	})
}

func TestProxyLimits(t *testing.T) {
	t.Parallel()
	const limit = 100
	body := func(n int) io.Reader { return strings.NewReader(strings.Repeat("x", n)) }
	t.Run("a body of the largest size passes", func(t *testing.T) {
		if got, w := pass(t, gateway.ProxyConfig{MaxBody: limit}, httptest.NewRequest(http.MethodPost, "/", body(limit))); got == nil || w.Code != 200 {
			t.Errorf("answer = %d %s, want 200", w.Code, w.Body)
		}
	})
	t.Run("a larger one is refused before the service is asked", func(t *testing.T) {
		got, w := pass(t, gateway.ProxyConfig{MaxBody: limit}, httptest.NewRequest(http.MethodPost, "/", body(limit+1)))
		if got != nil {
			t.Error("the service was asked")
		}
		if p := wantProblem(t, w, http.StatusRequestEntityTooLarge); !strings.Contains(p.Detail, "100 bytes") {
			t.Errorf("detail = %q, want the limit", p.Detail)
		}
	})
	t.Run("one of unknown size is cut off", func(t *testing.T) {
		r := httptest.NewRequest(http.MethodPost, "/", body(limit+1))
		r.ContentLength = -1
		_, w := pass(t, gateway.ProxyConfig{MaxBody: limit}, r)
		wantProblem(t, w, http.StatusRequestEntityTooLarge)
	})
	t.Run("what the client sends wrongly says nothing about the service", func(t *testing.T) {
		service := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
		t.Cleanup(service.Close)
		rt := to(t, service)
		for name, sent := range map[string]io.Reader{
			"too much":   body(limit + 1),
			"not enough": io.MultiReader(body(1), iotest.ErrReader(io.ErrUnexpectedEOF)),
		} {
			var err error
			p := newProxy(t, roundTrip(func(r *http.Request) (*http.Response, error) {
				var resp *http.Response
				resp, err = rt.RoundTrip(r)
				return resp, err
			}), gateway.ProxyConfig{MaxBody: limit})
			r := httptest.NewRequest(http.MethodPost, "/", sent)
			r.ContentLength = -1
			p.ServeHTTP(httptest.NewRecorder(), r)
			if v := fault.Judge(t.Context(), err); err == nil || v.Outcome != fault.Neutral || v.Retry {
				t.Errorf("%s: the guards of the service see %v, %+v; want it neutral and not tried again", name, err, v)
			}
		}
	})
	t.Run("over a real connection too", func(t *testing.T) {
		service := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
		t.Cleanup(service.Close)
		front := httptest.NewServer(newProxy(t, to(t, service), gateway.ProxyConfig{MaxBody: 1 << 20}))
		t.Cleanup(front.Close)
		resp, err := http.Post(front.URL, "text/plain", io.LimitReader(endless{}, 2<<20))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("status = %d, want 413", resp.StatusCode)
		}
	})
	t.Run("without a limit anything passes", func(t *testing.T) {
		if _, w := pass(t, gateway.ProxyConfig{MaxBody: -1}, httptest.NewRequest(http.MethodPost, "/", body(11<<20))); w.Code != 200 {
			t.Errorf("answer = %d, want 200", w.Code)
		}
	})
	t.Run("large headers are refused", func(t *testing.T) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Cookie", strings.Repeat("x", 64<<10))
		got, w := pass(t, gateway.ProxyConfig{}, r)
		if got != nil {
			t.Error("the service was asked")
		}
		wantProblem(t, w, http.StatusRequestHeaderFieldsTooLarge)
		if _, w := pass(t, gateway.ProxyConfig{MaxHeader: -1}, r); w.Code != 200 {
			t.Errorf("answer without a limit = %d, want 200", w.Code)
		}
	})
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// to returns a transport to the server, whatever the host of the URL.
func to(t testing.TB, server *httptest.Server) http.RoundTripper {
	transport := gateway.TunedTransport()
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

type timeoutError struct{ error }

func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

func TestProxyErrors(t *testing.T) {
	t.Parallel()
	secret := errors.New("dial tcp 10.1.2.3:8080: connect: connection refused")
	for _, tt := range []struct {
		name  string
		err   error
		want  int
		after string
	}{
		{"a service that is down", secret, 502, ""},
		{"a timeout of the network", timeoutError{secret}, 504, ""},
		{"a deadline", fmt.Errorf("call: %w", context.DeadlineExceeded), 504, ""},
		{"an open breaker", &fault.Rejection{By: "breaker", Err: secret, RetryAfter: 1500 * time.Millisecond}, 503, "2"},
		{"no instances", &fault.Rejection{By: "balance", Name: "order", Err: balance.ErrNoInstances}, 503, ""},
		{"an error that says when to come back", fault.RetryAfter(secret, 3*time.Second), 503, "3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			newProxy(t, roundTrip(func(*http.Request) (*http.Response, error) { return nil, tt.err }), gateway.ProxyConfig{}).
				ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
			p := wantProblem(t, w, tt.want)
			if got := w.Header().Get("Retry-After"); got != tt.after {
				t.Errorf("Retry-After = %q, want %q", got, tt.after)
			}
			if strings.Contains(w.Body.String(), "10.1.2.3") || !strings.Contains(p.Detail, "order") {
				t.Errorf("problem = %s, want the service's name and no address", w.Body)
			}
		})
	}
	t.Run("a client that has gone", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := httptest.NewRecorder()
		newProxy(t, roundTrip(func(r *http.Request) (*http.Response, error) {
			cancel()
			return nil, r.Context().Err()
		}), gateway.ProxyConfig{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx))
		wantProblem(t, w, gateway.StatusClientClosed)
	})
	t.Run("a body that breaks off is the client's fault", func(t *testing.T) {
		r := httptest.NewRequest(http.MethodPost, "/", io.MultiReader(strings.NewReader("begin"), broken{}))
		_, w := pass(t, gateway.ProxyConfig{}, r)
		wantProblem(t, w, http.StatusBadRequest)
	})
	t.Run("Response may refuse", func(t *testing.T) {
		_, w := pass(t, gateway.ProxyConfig{Response: func(*http.Response) error { return errors.New("no such answer") }}, httptest.NewRequest(http.MethodGet, "/", nil))
		wantProblem(t, w, http.StatusBadGateway)
	})
	t.Run("Refuse may answer in its own way, and knows why", func(t *testing.T) {
		w := httptest.NewRecorder()
		newProxy(t, roundTrip(func(*http.Request) (*http.Response, error) { return nil, secret }), gateway.ProxyConfig{
			Refuse: func(w http.ResponseWriter, _ *http.Request, p gateway.Problem, err error) {
				if !errors.Is(err, secret) || p.Status != 502 {
					t.Errorf("Refuse(%+v, %v), want 502 and %v", p, err, secret)
				}
				w.WriteHeader(http.StatusTeapot)
			},
		}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if w.Code != http.StatusTeapot {
			t.Errorf("status = %d, want 418", w.Code)
		}
	})
	t.Run("an answer that breaks off does not look complete", func(t *testing.T) {
		service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "begin")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}))
		t.Cleanup(service.Close)
		front := httptest.NewServer(newProxy(t, to(t, service), gateway.ProxyConfig{}))
		t.Cleanup(front.Close)
		resp, err := http.Get(front.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		if body, err := io.ReadAll(resp.Body); err == nil || string(body) != "begin" {
			t.Errorf("ReadAll = %q, %v, want the beginning and an error", body, err)
		}
	})
	for want, call := range map[string]func() error{
		`service is ""`:        func() error { _, err := gateway.Proxy("", http.DefaultTransport, gateway.ProxyConfig{}); return err },
		`service is "a/b"`:     func() error { _, err := gateway.Proxy("a/b", http.DefaultTransport, gateway.ProxyConfig{}); return err },
		"round tripper is nil": func() error { _, err := gateway.Proxy("a", nil, gateway.ProxyConfig{}); return err },
		"ProxyConfig.Trusted[0": func() error {
			_, err := gateway.Proxy("a", http.DefaultTransport, gateway.ProxyConfig{Trusted: make([]netip.Prefix, 1)})
			return err
		},
		`ProxyConfig.StripPrefix is "api"`: func() error {
			_, err := gateway.Proxy("a", http.DefaultTransport, gateway.ProxyConfig{StripPrefix: "api"})
			return err
		},
		`ProxyConfig.AddPrefix is "/a/"`: func() error {
			_, err := gateway.Proxy("a", http.DefaultTransport, gateway.ProxyConfig{AddPrefix: "/a/"})
			return err
		},
		`ProxyConfig.AddPrefix is "/a b"`: func() error {
			_, err := gateway.Proxy("a", http.DefaultTransport, gateway.ProxyConfig{AddPrefix: "/a b"})
			return err
		},
	} {
		if err := call(); err == nil || !strings.HasPrefix(err.Error(), "gateway: "+want) {
			t.Errorf("Proxy = %v, want gateway: %s…", err, want)
		}
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func TestProxyStreams(t *testing.T) {
	t.Parallel()
	// chain is client - gateway - balance - service, over real connections.
	chain := func(t *testing.T, service http.HandlerFunc, dead ...string) *httptest.Server {
		server := httptest.NewServer(service)
		t.Cleanup(server.Close)
		instances := []discovery.Instance{{Addr: server.Listener.Addr().String()}}
		for _, addr := range dead {
			instances = append(instances, discovery.Instance{Addr: addr})
		}
		static, err := discovery.NewStatic(map[string][]discovery.Instance{"order": instances})
		if err != nil {
			t.Fatal(err)
		}
		transport, err := balance.NewTransport(static, balance.TransportConfig{Base: gateway.TunedTransport(), Balancer: balance.Config{Picker: balance.RoundRobin{}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- transport.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-ended; transport.CloseIdleConnections() })
		front := httptest.NewServer(newProxy(t, transport, gateway.ProxyConfig{}))
		t.Cleanup(front.Close)
		t.Cleanup(func() {
			deadline := time.Now().Add(10 * time.Second)
			for transport.View()[0].InFlight != 0 { // a switched connection ends a little later
				if time.Now().After(deadline) {
					t.Fatalf("%d calls in flight at the end, want 0", transport.View()[0].InFlight)
				}
				time.Sleep(time.Millisecond)
			}
		})
		return front
	}
	t.Run("server-sent events arrive one by one", func(t *testing.T) {
		next := make(chan struct{})
		front := chain(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for i := range 3 {
				_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
				_ = http.NewResponseController(w).Flush()
				select {
				case <-next: // not before the client has got this one
				case <-r.Context().Done():
					return
				}
			}
		})
		resp, err := http.Get(front.URL + "/events")
		if err != nil {
			t.Fatal(err)
		}
		events := bufio.NewReader(resp.Body)
		for i := range 3 {
			line, err := events.ReadString('\n')
			if want := fmt.Sprintf("data: %d\n", i); line != want {
				t.Fatalf("event = %q, %v, want %q", line, err, want)
			}
			_, _ = events.ReadString('\n')
			next <- struct{}{}
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	})
	t.Run("a stream that the client leaves ends at the service", func(t *testing.T) {
		left := make(chan struct{})
		front := chain(t, func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			close(left)
		})
		resp, err := http.Get(front.URL)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		select {
		case <-left:
		case <-time.After(10 * time.Second):
			t.Error("the service has not noticed within 10s")
		}
	})
	t.Run("trailers pass", func(t *testing.T) {
		front := chain(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-Checksum")
			_, _ = io.WriteString(w, "body")
			w.Header().Set("X-Checksum", "17")
		})
		resp, err := http.Get(front.URL)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if got := resp.Trailer.Get("X-Checksum"); got != "17" {
			t.Errorf("trailer = %q, want 17", got)
		}
	})
	t.Run("a websocket passes in both directions", func(t *testing.T) {
		front := chain(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "websocket" {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_ = rw.Flush()
			for {
				line, err := rw.ReadString('\n')
				if err != nil {
					return
				}
				_, _ = rw.WriteString("echo " + line)
				_ = rw.Flush()
			}
		})
		conn, err := net.Dial("tcp", front.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		in := bufio.NewReader(conn)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatalf("response = %v, %v, want 101", resp, err)
		}
		for range 3 {
			_, _ = io.WriteString(conn, "hello\n")
			if line, err := in.ReadString('\n'); line != "echo hello\n" {
				t.Errorf("echo = %q, %v, want echo hello", line, err)
			}
		}
		_ = conn.Close()
	})
	t.Run("an upload to an instance that is gone goes to another", func(t *testing.T) {
		gone := httptest.NewServer(nil)
		gone.Close()
		var got atomic.Int64
		front := chain(t, func(_ http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			got.Add(n)
		}, gone.Listener.Addr().String())
		for range 10 {
			resp, err := http.Post(front.URL, "text/plain", io.LimitReader(endless{}, 1<<20))
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("status = %d, want 200", resp.StatusCode)
			}
		}
		if got.Load() != 10<<20 {
			t.Errorf("%d bytes arrived, want 10 MiB", got.Load())
		}
	})
}
