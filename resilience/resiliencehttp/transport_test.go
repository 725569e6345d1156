// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencehttp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/resilience/resiliencehttp"
	"github.com/dovetail-go/dovetail/retry"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// pipes is a listener without a network, so that client and server live in virtual time.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

func newPipes() *pipes {
	closed := make(chan struct{})
	return &pipes{make(chan net.Conn), closed, sync.OnceFunc(func() { close(closed) })}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.close(); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// serve starts a server in the bubble and returns the transport to reach it and the number of
// connections made.
func serve(t *testing.T, h http.HandlerFunc) (base *http.Transport, conns *atomic.Int64) {
	t.Helper()
	l := newPipes()
	server := &http.Server{Handler: h}
	go server.Serve(l)
	conns = new(atomic.Int64)
	base = &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conns.Add(1)
		return l.dial(ctx, network, addr)
	}}
	t.Cleanup(func() {
		base.CloseIdleConnections()
		server.Close()
	})
	return base, conns
}

// script answers the n-th request with statuses[n], and the last one ever after.
func script(statuses ...int) (http.HandlerFunc, *atomic.Int64) {
	n := new(atomic.Int64)
	return func(w http.ResponseWriter, r *http.Request) {
		i := int(n.Add(1)) - 1
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(statuses[min(i, len(statuses)-1)])
		fmt.Fprintf(w, "answer %d", i+1)
	}, n
}

func client(t *testing.T, cfg resiliencehttp.TransportConfig) *http.Client {
	t.Helper()
	transport, err := resiliencehttp.NewTransport(cfg)
	if err != nil {
		t.Fatalf("NewTransport = %v, want nil", err)
	}
	return &http.Client{Transport: transport}
}

// guards returns the same policy for each host.
func guards(p *resilience.Policy) func(string) resiliencehttp.Guards {
	return func(string) resiliencehttp.Guards { return resiliencehttp.Guards{Policy: p} }
}

func retrying(cfg retry.Config) func(string) resiliencehttp.Guards {
	return guards(&resilience.Policy{Retry: must(retry.New(cfg))})
}

func do(t *testing.T, c *http.Client, method string, body io.Reader, header ...string) (status int, text string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://shop.example/orders", body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("reading the body: %v", err)
	}
	return resp.StatusCode, string(b), nil
}

func TestNewTransportNamesTheWrongField(t *testing.T) {
	_, err := resiliencehttp.NewTransport(resiliencehttp.TransportConfig{Hosts: -1})
	if want := "resiliencehttp: TransportConfig.Hosts is -1, want 0 or more"; err == nil || err.Error() != want {
		t.Errorf("NewTransport = %v, want %q", err, want)
	}
}

func TestWhatIsRepeated(t *testing.T) {
	for _, tt := range []struct {
		name   string
		method string
		body   io.Reader
		header []string
		want   int64
	}{
		{"GET", http.MethodGet, nil, nil, 3},
		{"HEAD", http.MethodHead, nil, nil, 3},
		{"OPTIONS", http.MethodOptions, nil, nil, 3},
		{"PUT with a body that can be had again", http.MethodPut, strings.NewReader("order"), nil, 3},
		{"DELETE", http.MethodDelete, nil, nil, 3},
		{"POST", http.MethodPost, strings.NewReader("order"), nil, 1},
		{"POST without a body", http.MethodPost, nil, nil, 1},
		{"PATCH", http.MethodPatch, strings.NewReader("order"), nil, 1},
		{"POST with an Idempotency-Key", http.MethodPost, strings.NewReader("order"), []string{"Idempotency-Key", "k"}, 3},
		{"POST with an X-Idempotency-Key", http.MethodPost, strings.NewReader("order"), []string{"X-Idempotency-Key", "k"}, 3},
		{"PUT with a body that can be read once", http.MethodPut, io.MultiReader(strings.NewReader("order")), nil, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, n := script(503)
				base, _ := serve(t, h)
				status, _, err := do(t, client(t, resiliencehttp.TransportConfig{Base: base}), tt.method, tt.body, tt.header...)
				if err != nil || status != 503 || n.Load() != tt.want {
					t.Errorf("status %d, %v after %d requests, want 503 after %d", status, err, n.Load(), tt.want)
				}
			})
		})
	}
	for status, want := range map[int]int64{200: 1, 204: 1, 301: 1, 400: 1, 404: 1, 408: 3, 409: 1, 429: 3, 500: 3, 501: 1, 502: 3, 503: 3, 504: 3, 505: 1} {
		t.Run(fmt.Sprint("status ", status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, n := script(status)
				base, _ := serve(t, h)
				got, _, err := do(t, client(t, resiliencehttp.TransportConfig{Base: base}), http.MethodGet, nil)
				if err != nil || got != status || n.Load() != want {
					t.Errorf("status %d, %v after %d requests, want %d after %d", got, err, n.Load(), status, want)
				}
			})
		})
	}
	t.Run("Repeatable and Classify replace the rules", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, n := script(404, 404, 200)
			base, _ := serve(t, h)
			c := client(t, resiliencehttp.TransportConfig{
				Base:       base,
				Repeatable: func(*http.Request) bool { return true },
				Classify: func(r *http.Response) fault.Verdict {
					if r.StatusCode == 404 {
						return fault.Verdict{Outcome: fault.Neutral, Retry: true}
					}
					return resiliencehttp.Classify(r)
				},
			})
			if status, _, err := do(t, c, http.MethodPost, strings.NewReader("order")); err != nil || status != 200 || n.Load() != 3 {
				t.Errorf("status %d, %v after %d requests, want 200 after 3", status, err, n.Load())
			}
		})
	})
	t.Run("errors of the network", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			errReset := errors.New("connection reset")
			n := 0
			c := client(t, resiliencehttp.TransportConfig{Base: roundTripper(func(*http.Request) (*http.Response, error) { n++; return nil, errReset })})
			_, _, err := do(t, c, http.MethodGet, nil)
			var e *retry.Error
			if !errors.Is(err, errReset) || !errors.As(err, &e) || n != 3 {
				t.Errorf("error %v after %d requests, want *retry.Error of the reset after 3", err, n)
			}
			n = 0
			if _, _, err := do(t, c, http.MethodPost, strings.NewReader("order")); !errors.Is(err, errReset) || n != 1 {
				t.Errorf("error %v after %d requests, want the reset after 1", err, n)
			}
		})
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		header func() string
		low    time.Duration
		high   time.Duration
	}{
		{"seconds", 503, func() string { return "1" }, time.Second, time.Second + 50*time.Millisecond},
		{"a date", 503, func() string { return time.Now().Add(5 * time.Second).UTC().Format(http.TimeFormat) }, 5 * time.Second, 6050 * time.Millisecond},
		{"seconds of a quota", 429, func() string { return "2" }, 2 * time.Second, 2*time.Second + 50*time.Millisecond},
		{"a date in the past", 503, func() string { return "Sun, 06 Nov 1994 08:49:37 GMT" }, 0, 50 * time.Millisecond},
		{"zero", 503, func() string { return "0" }, 0, 50 * time.Millisecond},
		{"nonsense", 503, func() string { return "soon" }, 0, 50 * time.Millisecond},
		{"negative", 503, func() string { return "-5" }, 0, 50 * time.Millisecond},
	} {
		t.Run(tt.name+" is waited for, not less", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n int
				var first time.Time
				var waited time.Duration
				base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
					if n++; n == 1 {
						first = time.Now()
						w.Header().Set("Retry-After", tt.header())
						w.WriteHeader(tt.status)
						return
					}
					waited = time.Since(first)
				})
				status, _, err := do(t, client(t, resiliencehttp.TransportConfig{Base: base}), http.MethodGet, nil)
				if err != nil || status != 200 || waited < tt.low || waited > tt.high {
					t.Errorf("status %d, %v after %v, want 200 after %v to %v", status, err, waited, tt.low, tt.high)
				}
			})
		})
	}
	for _, value := range []string{"86400", "9300000000", "99999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"} {
		t.Run("longer than is worth waiting ends the retries at once: "+value, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
					n++
					w.Header().Set("Retry-After", value)
					w.WriteHeader(503)
				})
				start := time.Now()
				status, _, err := do(t, client(t, resiliencehttp.TransportConfig{Base: base}), http.MethodGet, nil)
				if err != nil || status != 503 || n != 1 || time.Since(start) != 0 {
					t.Errorf("status %d, %v after %d requests and %v, want 503 after 1, at once", status, err, n, time.Since(start))
				}
			})
		})
	}
	t.Run("of an answer is ignored", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Retry-After", "10") })
			start := time.Now()
			if status, _, err := do(t, client(t, resiliencehttp.TransportConfig{Base: base}), http.MethodGet, nil); err != nil || status != 200 || time.Since(start) != 0 {
				t.Errorf("status %d, %v after %v, want 200 at once", status, err, time.Since(start))
			}
		})
	})
	t.Run("a date is read by the server's clock", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var times []time.Time
			base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				times = append(times, time.Now())
				if len(times) == 1 {
					wrong := time.Now().Add(-time.Hour).UTC()
					w.Header().Set("Date", wrong.Format(http.TimeFormat))
					w.Header().Set("Retry-After", wrong.Add(3*time.Second).Format(http.TimeFormat))
					w.WriteHeader(503)
				}
			})
			do(t, client(t, resiliencehttp.TransportConfig{Base: base}), http.MethodGet, nil)
			if len(times) != 2 || times[1].Sub(times[0]) < 3*time.Second {
				t.Errorf("requests at %v, want 3s between them", times)
			}
		})
	})
}

func TestBodies(t *testing.T) {
	t.Run("each attempt sends the whole body", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var bodies []string
			base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				bodies = append(bodies, string(b))
				w.WriteHeader(503)
			})
			do(t, client(t, resiliencehttp.TransportConfig{Base: base}), http.MethodPut, bytes.NewReader([]byte("order")))
			if !slices.Equal(bodies, []string{"order", "order", "order"}) {
				t.Errorf("bodies %q, want the order three times", bodies)
			}
		})
	})
	t.Run("the last response's body is returned whole", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, _ := script(503)
			base, _ := serve(t, h)
			if _, text, _ := do(t, client(t, resiliencehttp.TransportConfig{Base: base}), http.MethodGet, nil); text != "answer 3" {
				t.Errorf("body %q, want answer 3", text)
			}
		})
	})
	t.Run("the request is never changed, and its body is closed once it is not needed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, _ := script(503)
			base, _ := serve(t, h)
			open := must(breaker.New(breaker.Config{Mode: breaker.ForcedOpen}))
			for name, cfg := range map[string]resiliencehttp.TransportConfig{
				"sent":             {Base: base, Propagate: true},
				"refused":          {Base: base, Guards: guards(&resilience.Policy{Breaker: open})},
				"refused, retried": {Base: base, Guards: guards(&resilience.Policy{Breaker: open, Retry: must(retry.New(retry.Config{}))})},
			} {
				body := &closing{Reader: strings.NewReader("order")}
				req, _ := http.NewRequestWithContext(resilience.WithCriticality(t.Context(), resilience.Sheddable), http.MethodPut, "http://shop.example/", body)
				req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("order")), nil }
				req.Header.Set("Accept", "text/plain")
				header, before := req.Header.Clone(), *req
				resp, err := must(resiliencehttp.NewTransport(cfg)).RoundTrip(req)
				if err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				if !maps.EqualFunc(header, req.Header, slices.Equal) || req.Body != before.Body || req.URL != before.URL || req.Context() != before.Context() {
					t.Errorf("%s: the request was changed: %+v", name, req)
				}
				if body.closed.Load() == 0 {
					t.Errorf("%s: the body was not closed", name)
				}
			}
		})
	})
	t.Run("GetBody may fail", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, n := script(503)
			base, _ := serve(t, h)
			errGone := errors.New("file is gone")
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://shop.example/", strings.NewReader("order"))
			req.GetBody = func() (io.ReadCloser, error) { return nil, errGone }
			p := &resilience.Policy{Retry: must(retry.New(retry.Config{})), Bulkhead: must(bulkhead.New(1, bulkhead.Config{}))}
			_, err := client(t, resiliencehttp.TransportConfig{Base: base, Guards: guards(p)}).Do(req)
			if !errors.Is(err, errGone) || n.Load() != 1 || p.Bulkhead.Stats().InFlight != 0 {
				t.Errorf("error %v after %d requests, %d in flight, want the file's error after 1", err, n.Load(), p.Bulkhead.Stats().InFlight)
			}
		})
	})
	t.Run("without a body the response frees everything at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })
			p := &resilience.Policy{Bulkhead: must(bulkhead.New(1, bulkhead.Config{}))}
			for range 3 {
				resp, err := client(t, resiliencehttp.TransportConfig{Base: base, Guards: guards(p)}).Get("http://shop.example/") //nolint:bodyclose // that is the point
				if err != nil || resp.StatusCode != 204 || p.Bulkhead.Stats().InFlight != 0 {
					t.Fatalf("Get = %v, %v, %d in flight, want 204 and none", resp, err, p.Bulkhead.Stats().InFlight)
				}
			}
		})
	})
	t.Run("the place in the bulkhead is held until the body ends", func(t *testing.T) {
		for _, how := range []string{"read to its end", "closed"} {
			synctest.Test(t, func(t *testing.T) {
				h, _ := script(200)
				base, _ := serve(t, h)
				p := &resilience.Policy{Bulkhead: must(bulkhead.New(1, bulkhead.Config{})), Total: time.Minute, Attempt: time.Second}
				resp, err := client(t, resiliencehttp.TransportConfig{Base: base, Guards: guards(p)}).Get("http://shop.example/")
				if err != nil {
					t.Fatal(err)
				}
				if n := p.Bulkhead.Stats().InFlight; n != 1 {
					t.Errorf("%d in flight while the body is open, want 1", n)
				}
				if how == "closed" {
					resp.Body.Close()
				} else if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "answer 1" {
					t.Errorf("body %q, %v", b, err)
				}
				if n := p.Bulkhead.Stats().InFlight; n != 0 {
					t.Errorf("%d in flight after the body was %s, want 0", n, how)
				}
				resp.Body.Close()
			})
		}
	})
	t.Run("the attempt's timeout bounds the reading of the body", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(200)
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			})
			resp, err := client(t, resiliencehttp.TransportConfig{Base: base, Guards: guards(&resilience.Policy{Attempt: time.Second})}).Get("http://shop.example/")
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
				t.Errorf("reading = %v after %v, want DeadlineExceeded after 1s", err, time.Since(start))
			}
			resp.Body.Close()
		})
	})
	t.Run("a discarded body that does not end holds nobody up for long", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if n++; n == 1 {
					w.WriteHeader(503)
					w.(http.Flusher).Flush()
					<-r.Context().Done()
				}
			})
			start := time.Now()
			status, _, err := do(t, client(t, resiliencehttp.TransportConfig{Base: base}), http.MethodGet, nil)
			if err != nil || status != 200 || time.Since(start) > time.Second {
				t.Errorf("status %d, %v after %v, want 200 within 1s", status, err, time.Since(start))
			}
		})
	})
	t.Run("an endless discarded body is cut off", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n, sent := 0, 0
			base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if n++; n > 1 {
					return
				}
				w.WriteHeader(503)
				for {
					k, err := w.Write(make([]byte, 1024))
					if sent += k; err != nil {
						return
					}
				}
			})
			status, _, err := do(t, client(t, resiliencehttp.TransportConfig{Base: base, Drain: 10_000}), http.MethodGet, nil)
			if err != nil || status != 200 || sent > 100_000 {
				t.Errorf("status %d, %v, %d bytes sent, want 200 and not much more than 10000", status, err, sent)
			}
		})
	})
	t.Run("101 Switching Protocols can be written to", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				conn, buf, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				fmt.Fprint(buf, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				buf.Flush()
				io.CopyN(conn, buf, 5)
			})
			p := &resilience.Policy{Bulkhead: must(bulkhead.New(1, bulkhead.Config{}))}
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://shop.example/", nil)
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "echo")
			resp, err := must(resiliencehttp.NewTransport(resiliencehttp.TransportConfig{Base: base, Guards: guards(p)})).RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			rw, ok := resp.Body.(io.ReadWriteCloser)
			if !ok {
				t.Fatalf("Body is a %T, want an io.ReadWriteCloser", resp.Body)
			}
			fmt.Fprint(rw, "hello")
			if b, err := io.ReadAll(rw); string(b) != "hello" || err != nil {
				t.Errorf("read %q, %v, want hello", b, err)
			}
			if n := p.Bulkhead.Stats().InFlight; n != 1 {
				t.Errorf("%d in flight while it can be written to, want 1", n)
			}
			rw.Close()
			if n := p.Bulkhead.Stats().InFlight; n != 0 {
				t.Errorf("%d in flight, want 0", n)
			}
		})
	})
}

type closing struct {
	io.Reader
	closed atomic.Int64
}

func (c *closing) Close() error { c.closed.Add(1); return nil }

func TestGuards(t *testing.T) {
	t.Run("the breaker sees 5xx, not 4xx, and refuses with ErrOpen", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			status := 404
			base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) })
			p := &resilience.Policy{Breaker: must(breaker.New(breaker.Config{Consecutive: 3}))}
			c := client(t, resiliencehttp.TransportConfig{Base: base, Guards: guards(p)})
			for _, status = range []int{404, 404, 404, 429, 429, 429, 501, 501, 501} {
				do(t, c, http.MethodGet, nil)
			}
			if s := p.Breaker.State(); s != breaker.Closed {
				t.Fatalf("State = %v, want closed", s)
			}
			status = 500
			for range 3 {
				if got, _, err := do(t, c, http.MethodPost, nil); err != nil || got != 500 {
					t.Errorf("status %d, %v, want the response itself", got, err)
				}
			}
			if _, _, err := do(t, c, http.MethodGet, nil); !errors.Is(err, breaker.ErrOpen) {
				t.Errorf("error %v, want ErrOpen", err)
			}
		})
	})
	t.Run("hosts do not share their guards", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.Host, "sick") {
					w.WriteHeader(500)
				}
			})
			c := client(t, resiliencehttp.TransportConfig{Base: base, Guards: func(host string) resiliencehttp.Guards {
				return resiliencehttp.Guards{Policy: &resilience.Policy{Breaker: must(breaker.New(breaker.Config{Name: host, Consecutive: 1}))}}
			}})
			get := func(host string) error {
				resp, err := c.Get("http://" + host)
				if err == nil {
					resp.Body.Close()
				}
				return err
			}
			if err := errors.Join(get("sick.example"), get("WELL.example")); err != nil {
				t.Fatal(err)
			}
			if err := get("SICK.example"); !errors.Is(err, breaker.ErrOpen) || !strings.Contains(err.Error(), "sick.example") {
				t.Errorf("sick: %v, want ErrOpen of sick.example", err)
			}
			if err := get("well.example"); err != nil {
				t.Errorf("well: %v, want nil", err)
			}
			hosts := map[string]breaker.State{}
			for host, g := range c.Transport.(*resiliencehttp.Transport).Hosts() {
				hosts[host] = g.Policy.Breaker.State()
			}
			if want := map[string]breaker.State{"sick.example": breaker.Open, "well.example": breaker.Closed}; !maps.Equal(hosts, want) {
				t.Errorf("Hosts = %v, want %v", hosts, want)
			}
		})
	})
	t.Run("guards of many hosts take bounded memory, and busy ones are kept", func(t *testing.T) {
		made := map[string]int{}
		base := roundTripper(func(r *http.Request) (*http.Response, error) {
			status := 200
			if r.Host == "sick" {
				status = 500
			}
			return &http.Response{StatusCode: status, Body: http.NoBody}, nil
		})
		transport := must(resiliencehttp.NewTransport(resiliencehttp.TransportConfig{Hosts: 8, Base: base, Guards: func(host string) resiliencehttp.Guards {
			made[host]++
			if host == "bare" {
				return resiliencehttp.Guards{}
			}
			return resiliencehttp.Guards{Policy: &resilience.Policy{
				Breaker:   must(breaker.New(breaker.Config{Consecutive: 1})),
				RateLimit: must(ratelimit.New(ratelimit.Limit{Rate: 1, Per: time.Nanosecond, Burst: 100}, ratelimit.Config{})),
				Bulkhead:  must(bulkhead.New(5, bulkhead.Config{})),
			}}
		}}))
		for i := range 200 {
			for _, host := range []string{"sick", "bare", fmt.Sprint("host", i)} {
				transport.RoundTrip(httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+host+"/", nil))
			}
		}
		n := 0
		for range transport.Hosts() {
			n++
		}
		if n > 8 || made["sick"] != 1 {
			t.Errorf("%d hosts in memory, sick made %d times, want at most 8 and once", n, made["sick"])
		}
	})
	t.Run("an attempt that hangs is cut off and repeated", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if n++; n == 1 {
					<-r.Context().Done()
				}
			})
			p := &resilience.Policy{Attempt: time.Second, Retry: must(retry.New(retry.Config{}))}
			status, _, err := do(t, client(t, resiliencehttp.TransportConfig{Base: base, Guards: guards(p)}), http.MethodGet, nil)
			if err != nil || status != 200 || n != 2 {
				t.Errorf("status %d, %v after %d requests, want 200 after 2", status, err, n)
			}
		})
	})
	t.Run("Total ends a wait between attempts", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, _ := script(503)
			base, _ := serve(t, h)
			for _, p := range []*resilience.Policy{
				{Total: time.Second, Retry: must(retry.New(retry.Config{Base: time.Minute, Max: time.Minute, Jitter: retry.NoJitter}))},
			} {
				start := time.Now()
				if status, _, err := do(t, client(t, resiliencehttp.TransportConfig{Base: base, Guards: guards(p)}), http.MethodGet, nil); err != nil || status != 503 || time.Since(start) != 0 {
					t.Errorf("status %d, %v after %v, want 503 at once: the delay does not fit", status, err, time.Since(start))
				}
			}
		})
	})
	t.Run("a cancel during the wait is an error with the last status", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, _ := script(503)
			base, _ := serve(t, h)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://shop.example/", nil)
			transport := must(resiliencehttp.NewTransport(resiliencehttp.TransportConfig{Base: base, Guards: retrying(retry.Config{Base: time.Minute, Max: time.Minute, Jitter: retry.NoJitter})}))
			_, err := transport.RoundTrip(req)
			var status *resiliencehttp.StatusError
			if !errors.Is(err, context.Canceled) || !errors.As(err, &status) || status.StatusCode != 503 || !strings.Contains(err.Error(), "503 Service Unavailable") {
				t.Errorf("RoundTrip = %v, want Canceled and status 503", err)
			}
			if _, err := transport.RoundTrip(req); !errors.Is(err, context.Canceled) {
				t.Errorf("RoundTrip = %v, want Canceled", err)
			}
		})
	})
	t.Run("a panic in Base frees everything and passes through", func(t *testing.T) {
		p := &resilience.Policy{Bulkhead: must(bulkhead.New(1, bulkhead.Config{})), Breaker: must(breaker.New(breaker.Config{Consecutive: 2}))}
		c := must(resiliencehttp.NewTransport(resiliencehttp.TransportConfig{Guards: guards(p), Base: roundTripper(func(*http.Request) (*http.Response, error) { panic("boom") })}))
		for range 2 {
			func() {
				defer func() {
					if r := recover(); r != "boom" {
						t.Errorf("recover = %v, want boom", r)
					}
				}()
				c.RoundTrip(httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://shop.example/", nil))
			}()
		}
		if p.Bulkhead.Stats().InFlight != 0 || p.Breaker.State() != breaker.Open {
			t.Errorf("bulkhead %+v, breaker %v, want free and open", p.Bulkhead.Stats(), p.Breaker.State())
		}
	})
}

func TestHedging(t *testing.T) {
	hedged := func(p *resilience.Policy) func(string) resiliencehttp.Guards {
		return func(string) resiliencehttp.Guards {
			return resiliencehttp.Guards{Policy: p, Hedge: must(resilience.NewHedge(resilience.HedgeConfig{}))}
		}
	}
	t.Run("a late GET is sent again, and the winner's body can be read after the loser was cancelled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var n atomic.Int64
			gone := make(chan bool, 1)
			base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1) == 1 {
					<-r.Context().Done()
					gone <- true
					return
				}
				w.WriteHeader(200)
				w.(http.Flusher).Flush()
				time.Sleep(5 * time.Second)
				fmt.Fprint(w, "late, but whole")
			})
			p := &resilience.Policy{Bulkhead: must(bulkhead.New(5, bulkhead.Config{}))}
			status, text, err := do(t, client(t, resiliencehttp.TransportConfig{Base: base, Guards: hedged(p)}), http.MethodGet, nil)
			if err != nil || status != 200 || text != "late, but whole" || n.Load() != 2 {
				t.Errorf("status %d, %q, %v after %d requests, want the second one's body", status, text, err, n.Load())
			}
			<-gone
			synctest.Wait()
			if n := p.Bulkhead.Stats().InFlight; n != 0 {
				t.Errorf("%d in flight, want 0", n)
			}
		})
	})
	t.Run("a loser's response is closed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var n atomic.Int64
			late := &closing{Reader: strings.NewReader("late")}
			base := roundTripper(func(r *http.Request) (*http.Response, error) {
				if n.Add(1) == 1 {
					time.Sleep(time.Second) // deaf to its context
					return &http.Response{StatusCode: 200, Body: late}, nil
				}
				return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("early"))}, nil
			})
			p := &resilience.Policy{Bulkhead: must(bulkhead.New(5, bulkhead.Config{}))}
			if _, text, err := do(t, client(t, resiliencehttp.TransportConfig{Base: base, Guards: hedged(p)}), http.MethodGet, nil); err != nil || text != "early" {
				t.Errorf("body %q, %v, want early", text, err)
			}
			time.Sleep(time.Minute)
			if late.closed.Load() == 0 || p.Bulkhead.Stats().InFlight != 0 {
				t.Errorf("closed %d times, %d in flight, want closed and none", late.closed.Load(), p.Bulkhead.Stats().InFlight)
			}
		})
	})
	t.Run("POST and requests with a body never are", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var n atomic.Int64
			base, _ := serve(t, func(w http.ResponseWriter, r *http.Request) { n.Add(1); time.Sleep(time.Minute) })
			c := client(t, resiliencehttp.TransportConfig{Base: base, Guards: hedged(nil)})
			do(t, c, http.MethodPost, nil, "Idempotency-Key", "k")
			do(t, c, http.MethodGet, strings.NewReader("query"))
			if n.Load() != 2 {
				t.Errorf("%d requests, want 2", n.Load())
			}
		})
	})
	t.Run("statuses and errors are retried as without it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, n := script(503, 503, 200)
			base, _ := serve(t, h)
			p := &resilience.Policy{Retry: must(retry.New(retry.Config{}))}
			if status, text, err := do(t, client(t, resiliencehttp.TransportConfig{Base: base, Guards: hedged(p)}), http.MethodGet, nil); err != nil || status != 200 || text != "answer 3" {
				t.Errorf("status %d, %q, %v after %d requests, want 200 after 3", status, text, err, n.Load())
			}
			errReset := errors.New("connection reset")
			reset := roundTripper(func(*http.Request) (*http.Response, error) { return nil, errReset })
			if _, _, err := do(t, client(t, resiliencehttp.TransportConfig{Base: reset, Guards: hedged(p)}), http.MethodGet, nil); !errors.Is(err, errReset) || !errors.Is(err, retry.ErrExhausted) {
				t.Errorf("error %v, want the reset after all attempts", err)
			}
		})
	})
}

func TestPropagate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []string
		inner := must(retry.New(retry.Config{}))
		guard := must(resiliencehttp.NewMiddleware(resiliencehttp.MiddlewareConfig{Propagated: true}))
		base, _ := serve(t, guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// The service further down retries its own calls, but not within a retry.
			inner.Do(r.Context(), func(ctx context.Context) error {
				seen = append(seen, fmt.Sprint(retry.Attempt(r.Context()), resilience.CriticalityOf(ctx)))
				return errors.New("down")
			})
			w.WriteHeader(500)
		})).ServeHTTP)
		req, _ := http.NewRequestWithContext(resilience.WithCriticality(t.Context(), resilience.Sheddable), http.MethodGet, "http://shop.example/", nil)
		req.Header.Set(resiliencehttp.AttemptHeader, "7") // does not come through
		resp, err := must(resiliencehttp.NewTransport(resiliencehttp.TransportConfig{Base: base, Propagate: true})).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		want := []string{"1 sheddable", "1 sheddable", "1 sheddable", "2 sheddable", "3 sheddable"}
		if !slices.Equal(seen, want) {
			t.Errorf("seen %q, want %q: 3 and 1 and 1 calls, not 9", seen, want)
		}
	})
}

// TestConnections is on a real network: what virtual time cannot show.
func TestConnections(t *testing.T) {
	var conns, requests atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		w.WriteHeader(503)
		w.Write(bytes.Repeat([]byte("unavailable "), 1000))
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	server.Start()
	before := runtime.NumGoroutine()
	base := &http.Transport{}
	c := client(t, resiliencehttp.TransportConfig{Base: base, Guards: retrying(retry.Config{Attempts: 21, Base: time.Microsecond, Max: time.Microsecond})})
	resp, err := c.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if requests.Load() != 21 || conns.Load() != 1 {
		t.Errorf("%d requests on %d connections, want 21 on 1", requests.Load(), conns.Load())
	}
	c.CloseIdleConnections()
	server.Close()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before-1 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // the connection's goroutines are ending
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
}

// TestRace sends requests of all kinds at once, on a real network.
func TestRace(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if n.Add(1)%5 == 0 {
			w.WriteHeader(503)
		}
		fmt.Fprint(w, "answer")
	}))
	defer server.Close()
	p := &resilience.Policy{
		Retry:    must(retry.New(retry.Config{Base: time.Millisecond, Budget: retry.Unlimited})),
		Bulkhead: must(bulkhead.New(8, bulkhead.Config{Queue: 100})),
		Attempt:  10 * time.Second,
	}
	transport := must(resiliencehttp.NewTransport(resiliencehttp.TransportConfig{Base: &http.Transport{}, Guards: func(string) resiliencehttp.Guards {
		return resiliencehttp.Guards{Policy: p, Hedge: must(resilience.NewHedge(resilience.HedgeConfig{MinDelay: time.Microsecond, Delay: time.Microsecond}))}
	}}))
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 40 {
				method, body := http.MethodGet, ""
				if (g+i)%3 == 0 {
					method, body = http.MethodPut, "order"
				}
				req, err := http.NewRequestWithContext(t.Context(), method, server.URL, strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				if body == "" {
					req.Body = http.NoBody
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Error(err)
					continue
				}
				if i%4 > 0 {
					if _, err := io.ReadAll(resp.Body); err != nil {
						t.Error(err)
					}
				}
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	for deadline := time.Now().Add(5 * time.Second); p.Bulkhead.Stats().InFlight > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // losers are ending
	}
	if n := p.Bulkhead.Stats().InFlight; n != 0 {
		t.Errorf("%d in flight, want 0", n)
	}
}
