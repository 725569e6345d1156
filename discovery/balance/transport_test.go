// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/fault"
)

// base is a network of the test's making.
type base func(*http.Request) (*http.Response, error)

func (b base) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b(r)
	if r.Body != nil {
		_ = r.Body.Close() // as every RoundTripper must
	}
	return resp, err
}

func answer(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
}

var roundRobin = balance.Config{Picker: balance.RoundRobin{}}

// runTransport returns a transport to the instances that runs until the test's end.
func runTransport(t testing.TB, cfg balance.TransportConfig, instances ...discovery.Instance) *balance.Transport {
	t.Helper()
	static, err := discovery.NewStatic(map[string][]discovery.Instance{service: instances})
	if err != nil {
		t.Fatal(err)
	}
	transport, err := balance.NewTransport(static, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- transport.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	return transport
}

func request(t testing.TB, method string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://order/orders?id=17", body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// stats is the only service's only instance, or the sum over all.
func stats(transport *balance.Transport) (sum balance.InstanceView) {
	for _, v := range transport.View() {
		for _, in := range v.Instances {
			sum.InFlight += in.InFlight
			sum.Waiting += in.Waiting
			sum.Calls += in.Calls
			sum.Failures += in.Failures
		}
	}
	return sum
}

func wantStats(t *testing.T, transport *balance.Transport, inFlight int, calls, failures uint64) {
	t.Helper()
	got := stats(transport)
	if got.InFlight != inFlight || got.Calls != calls || got.Failures != failures {
		t.Errorf("in flight, calls, failures = %d, %d, %d, want %d, %d, %d", got.InFlight, got.Calls, got.Failures, inFlight, calls, failures)
	}
}

func TestTransportRequest(t *testing.T) {
	t.Parallel()
	t.Run("calls go to the instances, with the original Host", func(t *testing.T) {
		var instances []discovery.Instance
		for _, name := range []string{"a", "b"} {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, name+" "+r.Host+" "+r.URL.RequestURI())
			}))
			t.Cleanup(server.Close)
			instances = append(instances, discovery.Instance{Addr: server.Listener.Addr().String()})
		}
		client := &http.Client{Transport: runTransport(t, balance.TransportConfig{Balancer: roundRobin}, instances...)}
		got := map[string]int{}
		for range 10 {
			resp, err := client.Get("http://order/orders?id=17")
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			got[string(body)]++
		}
		if got["a order /orders?id=17"] != 5 || got["b order /orders?id=17"] != 5 {
			t.Errorf("answers = %v, want 5 of each instance", got)
		}
		client.CloseIdleConnections()
	})
	for name, tt := range map[string]struct {
		host     string
		instance bool
		want     string
	}{
		"the service's name is the Host by default":     {"", false, "order"},
		"a Host of the request is kept":                 {"shop.example", false, "shop.example"},
		"the instance's address is the Host if so said": {"shop.example", true, "a:80"},
	} {
		t.Run(name, func(t *testing.T) {
			var got string
			transport := runTransport(t, balance.TransportConfig{InstanceHost: tt.instance, Base: base(func(r *http.Request) (*http.Response, error) {
				got = r.Host
				return answer(200, ""), nil
			})}, named("a")...)
			req := request(t, http.MethodGet, nil)
			req.Host = tt.host
			if _, err := transport.RoundTrip(req); err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("Host = %q, want %q", got, tt.want)
			}
		})
	}
	t.Run("the request is not changed, and the response names it", func(t *testing.T) {
		transport := runTransport(t, balance.TransportConfig{Base: base(func(r *http.Request) (*http.Response, error) {
			r.URL.Path = "/changed"
			return answer(200, ""), nil
		})}, named("a")...)
		req := request(t, http.MethodPost, strings.NewReader("body"))
		before := *req
		u := *req.URL
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if *req.URL != u || req.Host != before.Host || req.Body != before.Body || req.URL != before.URL {
			t.Errorf("request = %+v, want it as before, %+v", req, before)
		}
		if resp.Request != req {
			t.Errorf("Response.Request = %v, want the request", resp.Request)
		}
	})
	t.Run("a redirect is balanced again", func(t *testing.T) {
		transport := runTransport(t, balance.TransportConfig{Base: base(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/there" {
				return answer(200, r.URL.Host), nil
			}
			resp := answer(302, "")
			resp.Header.Set("Location", "/there")
			return resp, nil
		})}, named("a")...)
		resp, err := (&http.Client{Transport: transport}).Get("http://order/here")
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Request.URL.String(); got != "http://order/there" {
			t.Errorf("final URL = %s, want http://order/there", got)
		}
	})
	t.Run("a host that is no service name is refused, and the body closed", func(t *testing.T) {
		transport := runTransport(t, balance.TransportConfig{})
		for _, host := range []string{"", "order:8080", "[::1]"} {
			body := &closing{Reader: strings.NewReader("x")}
			req := request(t, http.MethodPost, body)
			req.URL.Host = host
			if _, err := transport.RoundTrip(req); err == nil || !strings.Contains(err.Error(), "want the name of a service") {
				t.Errorf("RoundTrip to %q = %v, want an error", host, err)
			}
			if body.closed.Load() != 1 {
				t.Errorf("body closed %d times, want once", body.closed.Load())
			}
		}
	})
}

// closing counts how often it is closed. It hides the Reader's type, so that there is no GetBody.
type closing struct {
	io.Reader
	closed atomic.Int64
}

func (c *closing) Close() error { c.closed.Add(1); return nil }

func TestTransportEnd(t *testing.T) {
	t.Parallel()
	serve := func(t *testing.T, h http.HandlerFunc) *balance.Transport {
		server := httptest.NewServer(h)
		t.Cleanup(server.Close)
		return runTransport(t, balance.TransportConfig{}, discovery.Instance{Addr: server.Listener.Addr().String()})
	}
	hello := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }
	t.Run("a call is in flight until its body has been read", func(t *testing.T) {
		transport := serve(t, hello)
		resp, err := transport.RoundTrip(request(t, http.MethodGet, nil))
		if err != nil {
			t.Fatal(err)
		}
		wantStats(t, transport, 1, 0, 0)
		if got := stats(transport); got.Waiting != 0 {
			t.Errorf("%d waiting, want 0: the answer has begun", got.Waiting)
		}
		_, _ = io.ReadAll(resp.Body)
		wantStats(t, transport, 0, 1, 0)
		_ = resp.Body.Close()
		_ = resp.Body.Close()
		wantStats(t, transport, 0, 1, 0)
	})
	t.Run("or closed", func(t *testing.T) {
		transport := serve(t, hello)
		resp, err := transport.RoundTrip(request(t, http.MethodGet, nil))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		wantStats(t, transport, 0, 1, 0)
	})
	t.Run("an answer without a body ends at once", func(t *testing.T) {
		transport := serve(t, hello)
		if _, err := transport.RoundTrip(request(t, http.MethodHead, nil)); err != nil {
			t.Fatal(err)
		}
		wantStats(t, transport, 0, 1, 0)
	})
	t.Run("an answer that is cut off is a failure", func(t *testing.T) {
		transport := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "hello")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		resp, err := transport.RoundTrip(request(t, http.MethodGet, nil))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Fatal("ReadAll = nil, want an error")
		}
		wantStats(t, transport, 0, 1, 1)
	})
	t.Run("unless the caller cut it off", func(t *testing.T) {
		transport := serve(t, func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		ctx, cancel := context.WithCancel(t.Context())
		resp, err := transport.RoundTrip(request(t, http.MethodGet, nil).WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Fatal("ReadAll = nil, want an error")
		}
		wantStats(t, transport, 0, 0, 0)
	})
	t.Run("after a panic the call has ended, and the panic goes on", func(t *testing.T) {
		transport := runTransport(t, balance.TransportConfig{Base: base(func(*http.Request) (*http.Response, error) { panic("broken base") })}, named("a")...)
		func() {
			defer func() {
				if got := recover(); got != "broken base" {
					t.Errorf("recovered %v, want the panic", got)
				}
			}()
			_, _ = transport.RoundTrip(request(t, http.MethodGet, nil))
		}()
		wantStats(t, transport, 0, 0, 0)
	})
	t.Run("after runtime.Goexit too", func(t *testing.T) {
		transport := runTransport(t, balance.TransportConfig{Base: base(func(*http.Request) (*http.Response, error) {
			runtime.Goexit()
			return nil, nil
		})}, named("a")...)
		req := request(t, http.MethodGet, nil)
		var gone sync.WaitGroup
		gone.Go(func() { _, _ = transport.RoundTrip(req) })
		gone.Wait()
		wantStats(t, transport, 0, 0, 0)
	})
	t.Run("a switched protocol is in flight until it is closed, and can be written to", func(t *testing.T) {
		transport := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			_ = rw.Flush()
			line, _ := rw.ReadString('\n')
			_, _ = rw.WriteString(line)
			_ = rw.Flush()
		})
		req := request(t, http.MethodGet, nil)
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "echo")
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		conn, ok := resp.Body.(io.ReadWriteCloser)
		if resp.StatusCode != 101 || !ok {
			t.Fatalf("status %d, body %T, want 101 and a connection", resp.StatusCode, resp.Body)
		}
		if _, err := io.WriteString(conn, "hello\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(conn).ReadString('\n'); line != "hello\n" {
			t.Errorf("echo = %q, %v, want hello", line, err)
		}
		_ = conn.Close()
		wantStats(t, transport, 0, 1, 0)
	})
	t.Run("the ability to close one side only is kept", func(t *testing.T) {
		transport := runTransport(t, balance.TransportConfig{Base: base(func(*http.Request) (*http.Response, error) {
			resp := answer(101, "")
			resp.Body = halfCloser{}
			return resp, nil
		})}, named("a")...)
		resp, err := transport.RoundTrip(request(t, http.MethodGet, nil))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := resp.Body.(interface{ CloseWrite() error }); !ok {
			t.Errorf("body %T has no CloseWrite", resp.Body)
		}
		_ = resp.Body.Close()
		wantStats(t, transport, 0, 1, 0)
	})
}

type halfCloser struct{ io.ReadWriteCloser }

func (halfCloser) CloseWrite() error { return nil }
func (halfCloser) Close() error      { return nil }

func TestTransportOutcome(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]fault.Outcome{
		200: fault.Success, 304: fault.Success, 404: fault.Success, 429: fault.Neutral,
		500: fault.Failure, 501: fault.Neutral, 502: fault.Failure, 503: fault.Failure, 504: fault.Failure, 505: fault.Neutral,
	} {
		if got := balance.Classify(nil, &http.Response{StatusCode: status}, nil); got != want {
			t.Errorf("Classify(%d) = %v, want %v", status, got, want)
		}
	}
	// hung answers nothing before the request's context ends.
	hung := base(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
	bubble := func(name string, fn func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, fn) })
	}
	bubble("5xx answers are failures, and eject", func(t *testing.T) {
		transport := runTransport(t, balance.TransportConfig{Balancer: roundRobin, Base: base(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "a:80" {
				return answer(500, "no"), nil
			}
			return answer(200, "yes"), nil
		})}, named("a", "b")...)
		bad := 0
		for range 100 {
			resp, err := transport.RoundTrip(request(t, http.MethodGet, nil))
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			synctest.Wait()
			if resp.StatusCode == 500 {
				bad++
			}
		}
		if bad != 5 {
			t.Errorf("%d answers of 500, want 5", bad)
		}
	})
	bubble("the caller's cancellation is no failure", func(t *testing.T) {
		transport := runTransport(t, balance.TransportConfig{Base: hung}, named("a")...)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Hour, cancel)
		if _, err := transport.RoundTrip(request(t, http.MethodGet, nil).WithContext(ctx)); !errors.Is(err, context.Canceled) {
			t.Errorf("RoundTrip = %v, want %v", err, context.Canceled)
		}
		wantStats(t, transport, 0, 0, 0)
	})
	bubble("nor is a deadline that gave little time", func(t *testing.T) {
		transport := runTransport(t, balance.TransportConfig{Base: hung}, named("a")...)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second-1)
		defer cancel()
		if _, err := transport.RoundTrip(request(t, http.MethodGet, nil).WithContext(ctx)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("RoundTrip = %v, want %v", err, context.DeadlineExceeded)
		}
		wantStats(t, transport, 0, 0, 0)
	})
	bubble("a deadline that gave enough is, so that a hanging instance is ejected", func(t *testing.T) {
		transport := runTransport(t, balance.TransportConfig{Balancer: roundRobin, Base: base(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "a:80" {
				return hung(r)
			}
			return answer(200, ""), nil
		})}, named("a", "b")...)
		bad := 0
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			resp, err := transport.RoundTrip(request(t, http.MethodGet, nil).WithContext(ctx))
			if err != nil {
				bad++
			} else {
				_ = resp.Body.Close()
			}
			cancel()
			synctest.Wait()
		}
		if bad != 5 {
			t.Errorf("%d calls timed out, want 5", bad)
		}
	})
	bubble("a request body that cannot be read is the caller's fault", func(t *testing.T) {
		tries := 0
		transport := runTransport(t, balance.TransportConfig{Base: base(func(r *http.Request) (*http.Response, error) {
			tries++
			_, err := io.ReadAll(r.Body)
			return nil, fmt.Errorf("write: %w", err)
		})}, named("a", "b")...)
		broken := errors.New("upload cut off")
		req := request(t, http.MethodPut, io.MultiReader(strings.NewReader("begin"), failing{broken}))
		if _, err := transport.RoundTrip(req); !errors.Is(err, broken) {
			t.Errorf("RoundTrip = %v, want %v", err, broken)
		}
		if tries != 1 {
			t.Errorf("%d tries, want 1", tries)
		}
		wantStats(t, transport, 0, 0, 0)
	})
	bubble("Classify may be replaced", func(t *testing.T) {
		transport := runTransport(t, balance.TransportConfig{
			Base: base(func(*http.Request) (*http.Response, error) { return answer(404, ""), nil }),
			Classify: func(_ *http.Request, resp *http.Response, _ error) fault.Outcome {
				if resp.StatusCode == 404 {
					return fault.Failure
				}
				return fault.Success
			},
		}, named("a")...)
		resp, err := transport.RoundTrip(request(t, http.MethodGet, nil))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		wantStats(t, transport, 0, 1, 1)
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

var (
	errDial = &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	errCut  = &net.OpError{Op: "read", Net: "tcp", Err: errors.New("connection reset by peer")}
)

func TestTransportRetry(t *testing.T) {
	t.Parallel()
	const body = "the whole body"
	for _, tt := range []struct {
		name   string
		method string
		key    string
		body   func() io.Reader
		read   bool // the first instance reads some of the body before it fails
		err    error
		cfg    balance.TransportConfig
		want   bool // a second try
	}{
		{name: "GET after a cut connection", method: "GET", err: errCut, want: true},
		{name: "PUT with GetBody after a cut connection", method: "PUT", body: replayable, read: true, err: errCut, want: true},
		{name: "DELETE after a cut connection", method: "DELETE", err: errCut, want: true},
		{name: "POST after a cut connection", method: "POST", body: replayable, read: true, err: errCut, want: false},
		{name: "POST after a cut connection, although nothing was read of the body", method: "POST", body: replayable, err: errCut, want: false},
		{name: "PATCH after a cut connection", method: "PATCH", err: errCut, want: false},
		{name: "POST with Idempotency-Key after a cut connection", method: "POST", key: "k", body: replayable, read: true, err: errCut, want: true},
		{name: "POST with Idempotency-Key and a body that was read and cannot be had again", method: "POST", key: "k", body: stream, read: true, err: errCut, want: false},
		{name: "POST after an error of dialling", method: "POST", body: replayable, err: errDial, want: true},
		{name: "POST with a streaming body after an error of dialling", method: "POST", body: stream, err: errDial, want: true},
		{name: "POST with a streaming body, switched off", method: "POST", body: stream, err: errDial, cfg: balance.TransportConfig{NoRetry: true}, want: false},
		{name: "switched off", method: "GET", err: errDial, cfg: balance.TransportConfig{NoRetry: true}, want: false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var tries []string
			var got string
			cfg := tt.cfg
			retries := 0
			cfg.OnRetry = func(r balance.Retry) {
				retries++
				if r.From.Addr != tries[0] || !errors.Is(r.Err, tt.err) {
					t.Errorf("OnRetry(%+v), want the first instance and its error", r)
				}
			}
			cfg.Base = base(func(r *http.Request) (*http.Response, error) {
				tries = append(tries, r.URL.Host)
				if len(tries) == 1 {
					if tt.read {
						_, _ = io.ReadFull(r.Body, make([]byte, 3))
					}
					return nil, tt.err
				}
				if r.Body != nil {
					all, err := io.ReadAll(r.Body)
					if err != nil {
						t.Errorf("reading the body again = %v", err)
					}
					got = string(all)
				}
				return answer(200, ""), nil
			})
			transport := runTransport(t, cfg, named("a", "b")...)
			var reader io.Reader
			if tt.body != nil {
				reader = tt.body()
			}
			closer, _ := reader.(*closing)
			req := request(t, tt.method, reader)
			if tt.key != "" {
				req.Header.Set("Idempotency-Key", tt.key)
			}
			resp, err := transport.RoundTrip(req)
			if !tt.want {
				if !errors.Is(err, tt.err) || len(tries) != 1 {
					t.Errorf("RoundTrip = %v after %d tries, want %v after 1", err, len(tries), tt.err)
				}
				if want := tt.err != errDial; fault.IsUnknown(err) != want {
					t.Errorf("IsUnknown(%v) = %v, want %v", err, !want, want)
				}
			} else {
				if err != nil || len(tries) != 2 || tries[0] == tries[1] || retries != 1 {
					t.Fatalf("RoundTrip = %v after tries at %v and %d retries, want success at another instance", err, tries, retries)
				}
				_ = resp.Body.Close()
				if reader != nil && got != body {
					t.Errorf("body of the second try = %q, want %q", got, body)
				}
			}
			if closer != nil && closer.closed.Load() != 1 {
				t.Errorf("the request's body was closed %d times, want once", closer.closed.Load())
			}
			if got := stats(transport); got.InFlight != 0 {
				t.Errorf("%d in flight, want 0", got.InFlight)
			}
		})
	}

	t.Run("a killed instance is not noticed by callers, whatever the method", func(t *testing.T) {
		echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
		alive, killed := httptest.NewServer(echo), httptest.NewServer(echo)
		t.Cleanup(alive.Close)
		transport := runTransport(t, balance.TransportConfig{Balancer: roundRobin},
			discovery.Instance{Addr: alive.Listener.Addr().String()}, discovery.Instance{Addr: killed.Listener.Addr().String()})
		killed.Close()
		client := &http.Client{Transport: transport}
		for range 20 {
			resp, err := client.Post("http://order/", "text/plain", io.MultiReader(strings.NewReader(body)))
			if err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if string(got) != body {
				t.Errorf("echo = %q, want %q", got, body)
			}
		}
	})
	t.Run("the only instance is not tried again", func(t *testing.T) {
		upload := &closing{Reader: strings.NewReader(body)}
		tries := 0
		transport := runTransport(t, balance.TransportConfig{Base: base(func(*http.Request) (*http.Response, error) {
			tries++
			return nil, errDial
		})}, named("a")...)
		if _, err := transport.RoundTrip(request(t, http.MethodPost, upload)); !errors.Is(err, errDial) || tries != 1 {
			t.Errorf("RoundTrip = %v after %d tries, want the error after 1", err, tries)
		}
		if got := upload.closed.Load(); got != 1 {
			t.Errorf("the request's body was closed %d times, want once", got)
		}
	})
	t.Run("nothing is tried again once the caller has gone", func(t *testing.T) {
		tries := 0
		ctx, cancel := context.WithCancel(t.Context())
		transport := runTransport(t, balance.TransportConfig{Base: base(func(*http.Request) (*http.Response, error) {
			tries++
			cancel()
			return nil, errDial
		})}, named("a", "b")...)
		if _, err := transport.RoundTrip(request(t, http.MethodGet, nil).WithContext(ctx)); !errors.Is(err, errDial) || tries != 1 {
			t.Errorf("RoundTrip = %v after %d tries, want the error after 1", err, tries)
		}
	})
	t.Run("second tries are bounded when everything fails", func(t *testing.T) {
		tries := 0
		transport := runTransport(t, balance.TransportConfig{Base: base(func(*http.Request) (*http.Response, error) {
			tries++
			return nil, errDial
		})}, named("a", "b", "c")...)
		for range 1000 {
			_, _ = transport.RoundTrip(request(t, http.MethodGet, nil))
		}
		if tries < 1200 || tries > 1215 {
			t.Errorf("%d tries of 1000 calls, want 1000, a fifth more, and a reserve of 10", tries)
		}
	})
	t.Run("with a consistent hash the second try is at the next on the ring", func(t *testing.T) {
		var tries []string
		transport := runTransport(t, balance.TransportConfig{
			Balancer: balance.Config{Picker: balance.ConsistentHash{}},
			Base: base(func(r *http.Request) (*http.Response, error) {
				tries = append(tries, r.URL.Host)
				return nil, errDial
			}),
		}, named("a", "b", "c", "d")...)
		ctx := balance.WithKey(t.Context(), "customer-17")
		for range 3 {
			_, _ = transport.RoundTrip(request(t, http.MethodGet, nil).WithContext(ctx))
		}
		if len(tries) != 6 || tries[0] != tries[2] || tries[1] != tries[3] || tries[0] == tries[1] {
			t.Errorf("tries = %v, want the same two in turn", tries)
		}
	})
}

func replayable() io.Reader { return strings.NewReader("the whole body") }
func stream() io.Reader     { return &closing{Reader: strings.NewReader("the whole body")} }

func TestTransportRun(t *testing.T) {
	t.Parallel()
	ok := base(func(r *http.Request) (*http.Response, error) { return answer(200, r.URL.Host), nil })
	newTransport := func(t *testing.T, r discovery.Resolver) *balance.Transport {
		transport, err := balance.NewTransport(r, balance.TransportConfig{Base: ok})
		if err != nil {
			t.Fatal(err)
		}
		return transport
	}
	bubble := func(name string, fn func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, fn) })
	}
	bubble("a call waits for Run, and for the first word of the resolver", func(t *testing.T) {
		static, err := discovery.NewStatic(map[string][]discovery.Instance{service: named("a")})
		if err != nil {
			t.Fatal(err)
		}
		transport := newTransport(t, static)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, func() { _ = transport.Run(ctx) })
		start := time.Now()
		if _, err := transport.RoundTrip(request(t, http.MethodGet, nil)); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(start); got != time.Second {
			t.Errorf("answered after %v, want 1s", got)
		}
		cancel()
	})
	bubble("without Run the error says so", func(t *testing.T) {
		_, err := newTransport(t, &silent{}).RoundTrip(request(t, http.MethodGet, nil))
		wantRejection(t, err, balance.ErrNotReady, "Run is not running")
	})
	bubble("the request's context bounds the wait", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := newTransport(t, &silent{}).RoundTrip(request(t, http.MethodGet, nil).WithContext(ctx)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("RoundTrip = %v, want %v", err, context.DeadlineExceeded)
		}
	})
	bubble("one watch per service, which ends with Run", func(t *testing.T) {
		r := &silent{}
		transport := newTransport(t, r)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- transport.Run(ctx) }()
		var calls sync.WaitGroup
		for i := range 10 {
			req := request(t, http.MethodGet, nil)
			req.URL.Host = []string{"order", "customer"}[i%2]
			calls.Go(func() { _, _ = transport.RoundTrip(req) })
		}
		synctest.Wait()
		if got := r.watches.Load(); got != 2 {
			t.Errorf("%d watches, want 2", got)
		}
		if v := transport.View(); len(v) != 2 || v[0].Service != "customer" || v[1].Service != "order" {
			t.Errorf("View = %+v, want customer and order", v)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		calls.Wait()
		if got := r.watches.Load(); got != 0 {
			t.Errorf("%d watches after Run, want 0", got)
		}
	})
	bubble("after Run calls to known services go on, others are refused", func(t *testing.T) {
		static, err := discovery.NewStatic(map[string][]discovery.Instance{service: named("a"), "customer": named("b")})
		if err != nil {
			t.Fatal(err)
		}
		transport := newTransport(t, static)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- transport.Run(ctx) }()
		if _, err := transport.RoundTrip(request(t, http.MethodGet, nil)); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-ended
		if _, err := transport.RoundTrip(request(t, http.MethodGet, nil)); err != nil {
			t.Errorf("RoundTrip = %v, want nil", err)
		}
		req := request(t, http.MethodGet, nil)
		req.URL.Host = "customer"
		if _, err := transport.RoundTrip(req); !errors.Is(err, balance.ErrNotReady) {
			t.Errorf("RoundTrip to another service = %v, want %v", err, balance.ErrNotReady)
		}
		if err := transport.Run(t.Context()); err == nil {
			t.Error("Run again = nil, want an error")
		}
	})
	bubble("no instances is a rejection through http.Client too", func(t *testing.T) {
		transport := runTransport(t, balance.TransportConfig{Base: ok})
		_, err := (&http.Client{Transport: transport}).Get("http://order/")
		wantRejection(t, err, balance.ErrNoInstances, "")
	})
	bubble("services may have configurations of their own", func(t *testing.T) {
		if _, err := balance.NewTransport(&silent{}, balance.TransportConfig{Services: map[string]balance.Config{service: {Wait: -1}}}); err == nil || !strings.Contains(err.Error(), `Services["order"]`) {
			t.Errorf("NewTransport = %v, want an error that names the service", err)
		}
		transport := runTransport(t, balance.TransportConfig{Base: ok, Services: map[string]balance.Config{service: roundRobin}}, named("a", "b")...)
		for range 10 {
			resp, err := transport.RoundTrip(request(t, http.MethodGet, nil))
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
		}
		for _, in := range transport.View()[0].Instances {
			if in.Calls != 5 {
				t.Errorf("%s: %d calls, want 5 by round robin", in.ID, in.Calls)
			}
		}
	})
}

func TestTransportTimeout(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	inner := &http.Transport{ResponseHeaderTimeout: 10 * time.Millisecond}
	t.Cleanup(inner.CloseIdleConnections)
	client := &http.Client{Transport: runTransport(t, balance.TransportConfig{Base: inner}, discovery.Instance{Addr: server.Listener.Addr().String()})}
	_, err := client.Post("http://order/", "text/plain", strings.NewReader("x"))
	var urlErr *url.Error
	if !errors.As(err, &urlErr) || !urlErr.Timeout() || !fault.IsUnknown(err) {
		t.Errorf("Post = %v, want a timeout with unknown outcome", err)
	}
}

func TestClientIP(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string]string{
		"192.0.2.1:1234":        "192.0.2.1",
		"[2001:db8:1:2::3]:80":  "2001:db8:1:2::",
		"[2001:db8:1:2:9::]:80": "2001:db8:1:2::",
		"[::ffff:192.0.2.1]:80": "192.0.2.1",
		"[fe80::1%eth0]:80":     "fe80::",
		"192.0.2.1":             "192.0.2.1",
		"@":                     "",
		"":                      "",
	} {
		if got := balance.ClientIP(&http.Request{RemoteAddr: remote}); got != want {
			t.Errorf("ClientIP(%q) = %q, want %q", remote, got, want)
		}
	}
}

func FuzzClientIP(f *testing.F) {
	f.Add("192.0.2.1:1234")
	f.Add("[::1%zone]:80")
	f.Fuzz(func(t *testing.T, remote string) {
		if key := balance.ClientIP(&http.Request{RemoteAddr: remote}); key != "" && key != balance.ClientIP(&http.Request{RemoteAddr: key}) {
			t.Errorf("ClientIP(%q) = %q, which is not its own key", remote, key)
		}
	})
}

// Requests name services; the transport finds the instances.
func ExampleTransport() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s, asked as %s", r.URL.Path, r.Host)
	}))
	defer server.Close()
	resolver, err := discovery.NewStatic(map[string][]discovery.Instance{
		"order": {{ID: "order-1", Addr: server.Listener.Addr().String()}},
	})
	if err != nil {
		panic(err)
	}
	transport, err := balance.NewTransport(resolver, balance.TransportConfig{})
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() { _ = transport.Run(ctx) }() // with errgroup: g.Go(func() error { return transport.Run(ctx) })

	client := &http.Client{Transport: transport}
	resp, err := client.Get("http://order/orders/17")
	if err != nil {
		panic(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	fmt.Println(string(body), err)
	// Output: /orders/17, asked as order <nil>
}

// Without HTTP: pick, call, tell how it went.
func ExampleBalancer() {
	resolver, err := discovery.NewStatic(map[string][]discovery.Instance{"cache": {{ID: "cache-1", Addr: "10.0.0.1:6379"}}})
	if err != nil {
		panic(err)
	}
	b, err := balance.New(resolver, "cache", balance.Config{Picker: balance.ConsistentHash{}})
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() { _ = b.Run(ctx) }()

	lease, err := b.PickFor(ctx, balance.Hint{Key: "customer-17"})
	if err != nil {
		panic(err) // a *fault.Rejection with ErrNoInstances or ErrNotReady
	}
	outcome := fault.Neutral
	defer func() { lease.Done(outcome) }()
	fmt.Println("calling", lease.Addr())
	outcome = fault.Success
	// Output: calling 10.0.0.1:6379
}
