// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/gateway"
)

type fetch = func(context.Context, *http.Request) (any, error)

func value(v any) fetch { return func(context.Context, *http.Request) (any, error) { return v, nil } }
func failure(err error) fetch {
	return func(context.Context, *http.Request) (any, error) { return nil, err }
}

// stubborn answers after d, whatever becomes of its context.
func stubborn(d time.Duration, v any) fetch {
	return func(context.Context, *http.Request) (any, error) { time.Sleep(d); return v, nil }
}

func compose(t testing.TB, r *http.Request, parts ...gateway.Part) *httptest.ResponseRecorder {
	t.Helper()
	h, err := gateway.Compose(gateway.ComposeConfig{Logger: quiet}, parts...)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func page(t testing.TB) *http.Request {
	return httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/pages/17", nil)
}

func wantAnswer(t testing.TB, w *httptest.ResponseRecorder, want, partial string) {
	t.Helper()
	if got := strings.TrimSpace(w.Body.String()); w.Code != 200 || got != want {
		t.Errorf("answer = %d %s, want 200 %s", w.Code, got, want)
	}
	if got := w.Header().Get(gateway.PartialHeader); got != partial {
		t.Errorf("%s = %q, want %q", gateway.PartialHeader, got, partial)
	}
	if noStore := w.Header().Get("Cache-Control") == "no-store"; noStore != (partial != "") {
		t.Errorf("Cache-Control = %q, want no-store for a partial answer only", w.Header().Get("Cache-Control"))
	}
}

var errDown = errors.New("dial tcp 10.1.2.3:8080: connect: connection refused")

func TestCompose(t *testing.T) {
	t.Parallel()
	type part = gateway.Part
	bubble := func(name string, fn func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, fn) })
	}
	bubble("parts stand in fields of their own", func(t *testing.T) {
		w := compose(t, page(t), part{Name: "order", Fetch: value(map[string]int{"id": 17})}, part{Name: "lines", Fetch: value([]int{1, 2})})
		wantAnswer(t, w, `{"lines":[1,2],"order":{"id":17}}`, "")
	})
	bubble("parts are fetched side by side", func(t *testing.T) {
		start := time.Now()
		wantAnswer(t, compose(t, page(t), part{Name: "a", Fetch: stubborn(500*time.Millisecond, 1)}, part{Name: "b", Fetch: stubborn(500*time.Millisecond, 2)}), `{"a":1,"b":2}`, "")
		if got := time.Since(start); got != 500*time.Millisecond {
			t.Errorf("answered after %v, want 500ms", got)
		}
	})
	bubble("a slow part never delays the answer beyond its budget, and is declared", func(t *testing.T) {
		start := time.Now()
		w := compose(t, page(t), part{Name: "fast", Fetch: value(1)}, part{Name: "slow", Budget: 80 * time.Millisecond, Fetch: stubborn(time.Hour, 2)})
		if got := time.Since(start); got != 80*time.Millisecond {
			t.Errorf("answered after %v, want 80ms", got)
		}
		wantAnswer(t, w, `{"fast":1,"partial":["slow"],"slow":null}`, "slow")
		time.Sleep(2 * time.Hour) // the stubborn one ends
	})
	bubble("nor does one whose value is slow to encode", func(t *testing.T) {
		start := time.Now()
		wantAnswer(t, compose(t, page(t), part{Name: "a", Budget: 80 * time.Millisecond, Fetch: value(slowJSON{})}), `{"a":null,"partial":["a"]}`, "a")
		if got := time.Since(start); got != 80*time.Millisecond {
			t.Errorf("answered after %v, want 80ms", got)
		}
		time.Sleep(2 * time.Hour)
	})
	bubble("the budget is one second by default, and the client's deadline if that is nearer", func(t *testing.T) {
		start := time.Now()
		compose(t, page(t), part{Name: "a", Fetch: stubborn(2*time.Second, 1)})
		if got := time.Since(start); got != time.Second {
			t.Errorf("answered after %v, want 1s", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start = time.Now()
		compose(t, page(t).WithContext(ctx), part{Name: "a", Fetch: stubborn(2*time.Second, 1)})
		if got := time.Since(start); got != 100*time.Millisecond {
			t.Errorf("answered after %v, want 100ms", got)
		}
		time.Sleep(2 * time.Second)
	})
	bubble("the context of a part ends with its budget, and with the answer", func(t *testing.T) {
		ended := make(chan time.Duration, 2)
		waits := func(ctx context.Context, _ *http.Request) (any, error) {
			start := time.Now()
			<-ctx.Done()
			ended <- time.Since(start)
			return nil, ctx.Err()
		}
		compose(t, page(t), part{Name: "a", Budget: 80 * time.Millisecond, Fetch: waits})
		compose(t, page(t), part{Name: "a", Fetch: waits}, part{Name: "b", Required: true, Fetch: failure(errDown)})
		if first, second := <-ended, <-ended; first != 80*time.Millisecond || second != 0 {
			t.Errorf("ended after %v and %v, want 80ms and 0", first, second)
		}
	})
	bubble("a fallback stands in for a part, and the answer is still partial", func(t *testing.T) {
		w := compose(t, page(t), part{Name: "recommended", Fetch: failure(errDown), Fallback: func(_ *http.Request, err error) any {
			if !errors.Is(err, errDown) {
				t.Errorf("Fallback(%v), want %v", err, errDown)
			}
			return []string{}
		}})
		wantAnswer(t, w, `{"partial":["recommended"],"recommended":[]}`, "recommended")
	})
	bubble("several missing parts are all named", func(t *testing.T) {
		w := compose(t, page(t), part{Name: "b", Fetch: failure(errDown)}, part{Name: "a", Fetch: failure(errDown)}, part{Name: "c", Fetch: value(1)})
		wantAnswer(t, w, `{"a":null,"b":null,"c":1,"partial":["a","b"]}`, "a, b")
	})
	bubble("an inline part's fields stand in the answer itself; a part of that name wins", func(t *testing.T) {
		order := part{Name: "order", Inline: true, Fetch: value(map[string]any{"id": 17, "payment": "old", "partial": []string{"forged"}})}
		wantAnswer(t, compose(t, page(t), order, part{Name: "payment", Fetch: value("new")}), `{"id":17,"payment":"new"}`, "")
	})
	bubble("an inline part that is missing has no fields", func(t *testing.T) {
		wantAnswer(t, compose(t, page(t), part{Name: "order", Inline: true, Fetch: failure(errDown)}, part{Name: "a", Fetch: value(1)}), `{"a":1,"partial":["order"]}`, "order")
		wantAnswer(t, compose(t, page(t), part{Name: "order", Inline: true, Fetch: value([]int{1})}, part{Name: "a", Fetch: value(1)}), `{"a":1,"partial":["order"]}`, "order")
	})
	bubble("a panic in a part is its failure", func(t *testing.T) {
		w := compose(t, page(t), part{Name: "a", Fetch: func(context.Context, *http.Request) (any, error) { panic("oops") }})
		wantAnswer(t, w, `{"a":null,"partial":["a"]}`, "a")
	})
	bubble("so is runtime.Goexit, and a value that cannot be encoded", func(t *testing.T) {
		w := compose(t, page(t),
			part{Name: "a", Fetch: func(context.Context, *http.Request) (any, error) { runtime.Goexit(); return nil, nil }},
			part{Name: "b", Fetch: value(func() {})}, part{Name: "c", Fetch: value(json.RawMessage("{")), Fallback: func(*http.Request, error) any { return func() {} }})
		wantAnswer(t, w, `{"a":null,"b":null,"c":null,"partial":["a","b","c"]}`, "a, b, c")
	})
	bubble("a required part that fails fails the answer, at once", func(t *testing.T) {
		for want, err := range map[int]error{
			502: errDown,
			503: &fault.Rejection{By: "breaker", Err: errDown},
			504: context.DeadlineExceeded,
		} {
			start := time.Now()
			w := compose(t, page(t), part{Name: "order", Required: true, Fetch: failure(err)}, part{Name: "slow", Fetch: stubborn(time.Hour, 1)})
			if p := wantProblem(t, w, want); strings.Contains(w.Body.String(), "10.1.2.3") || !strings.Contains(p.Detail, "order") {
				t.Errorf("problem = %s, want the part's name and no address", w.Body)
			}
			if got := time.Since(start); got != 0 {
				t.Errorf("answered after %v, want at once", got)
			}
		}
		time.Sleep(2 * time.Hour)
	})
	bubble("beyond its budget it is a timeout", func(t *testing.T) {
		wantProblem(t, compose(t, page(t), part{Name: "order", Required: true, Fetch: stubborn(time.Hour, 1)}), http.StatusGatewayTimeout)
		time.Sleep(2 * time.Hour)
	})
	for want, parts := range map[string][]part{
		"parts is empty":        nil,
		`parts[0].Name is ""`:   {{Fetch: value(1)}},
		`parts[0].Name is "par`: {{Name: "partial", Fetch: value(1)}},
		`parts[1].Name is "a"`:  {{Name: "a", Fetch: value(1)}, {Name: "a", Fetch: value(1)}},
		`Fetch of part "a" is`:  {{Name: "a"}},
		`Budget of part "a" is`: {{Name: "a", Fetch: value(1), Budget: -1}},
	} {
		if _, err := gateway.Compose(gateway.ComposeConfig{}, parts...); err == nil || !strings.HasPrefix(err.Error(), "gateway: "+want) {
			t.Errorf("Compose = %v, want gateway: %s…", err, want)
		}
	}
}

type slowJSON struct{}

func (slowJSON) MarshalJSON() ([]byte, error) { time.Sleep(time.Hour); return []byte("1"), nil }

// TestComposeLogsWhatFailed logs failures of services, and not that a client asked for what it may not have.
func TestComposeLogsWhatFailed(t *testing.T) {
	fails := func(status int) fetch {
		return func(context.Context, *http.Request) (any, error) { return nil, &gateway.StatusError{Status: status} }
	}
	for _, tt := range []struct {
		name     string
		status   int
		required bool
		logged   bool
	}{
		{"a required part refuses", 403, true, false},
		{"a required part fails", 500, true, true},
		{"another part refuses", 403, false, true}, // and the client does not see it
		{"another part fails", 500, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			h, err := gateway.Compose(gateway.ComposeConfig{Logger: slog.New(slog.NewTextHandler(&log, nil))}, gateway.Part{Name: "part", Fetch: fails(tt.status), Required: tt.required})
			if err != nil {
				t.Fatal(err)
			}
			h.ServeHTTP(httptest.NewRecorder(), page(t))
			if logged := strings.Contains(log.String(), "part of an answer failed"); logged != tt.logged {
				t.Errorf("logged = %v (%s), want %v", logged, &log, tt.logged)
			}
		})
	}
}

func TestGet(t *testing.T) {
	t.Parallel()
	var got *http.Request
	client := func(status int, body string, header ...string) *http.Client {
		return &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			got = r
			resp := answer(status, body)
			for i := 0; i < len(header); i += 2 {
				resp.Header.Set(header[i], header[i+1])
			}
			return resp, nil
		})}
	}
	get := func(t *testing.T, r *http.Request, c *http.Client, url string, required bool) *httptest.ResponseRecorder {
		got = nil
		return compose(t, r, gateway.Part{Name: "payment", Fetch: gateway.Get(c, url, gateway.GetConfig{}), Required: required})
	}
	withID := func(t *testing.T, id string) *http.Request {
		r := page(t)
		r.SetPathValue("id", id)
		return r
	}
	const url = "http://payment/payments/{id}"
	t.Run("path values are escaped for where they stand", func(t *testing.T) {
		for id, want := range map[string]string{
			"17":    "http://payment/payments/17?for=17",
			"a/b&c": "http://payment/payments/a%2Fb&c?for=a%2Fb%26c",
			"x?y=1": "http://payment/payments/x%3Fy=1?for=x%3Fy%3D1",
		} {
			wantAnswer(t, get(t, withID(t, id), client(200, `{"id":1}`), url+"?for={id}", false), `{"payment":{"id":1}}`, "")
			if got.URL.String() != want {
				t.Errorf("URL = %s, want %s", got.URL, want)
			}
		}
	})
	t.Run("a value that would make another path does not exist", func(t *testing.T) {
		for _, id := range []string{"", ".", ".."} {
			wantProblem(t, get(t, withID(t, id), client(200, "1"), url, true), http.StatusNotFound)
			if got != nil {
				t.Errorf("the service was asked for %s", got.URL)
			}
		}
	})
	t.Run("a value cannot choose the host", func(t *testing.T) {
		wantAnswer(t, get(t, withID(t, "evil.example"), client(200, "1"), "http://{id}/", false), `{"partial":["payment"],"payment":null}`, "payment")
		if got != nil {
			t.Errorf("the service was asked for %s", got.URL)
		}
	})
	t.Run("the identity and the trace are passed on, cookies are not", func(t *testing.T) {
		r := withID(t, "17")
		r.Header.Set("Authorization", "Bearer x")
		r.Header.Set("Traceparent", "00-1-2-01")
		r.Header.Set("Cookie", "a=b")
		get(t, r, client(200, "1"), url, false)
		if got.Header.Get("Authorization") != "Bearer x" || got.Header.Get("Traceparent") == "" || got.Header.Get("Cookie") != "" {
			t.Errorf("headers = %v, want Authorization and Traceparent", got.Header)
		}
	})
	t.Run("what does not exist is null, and the answer complete", func(t *testing.T) {
		wantAnswer(t, get(t, withID(t, "17"), client(404, "no"), url, false), `{"payment":null}`, "")
	})
	t.Run("of a required part, a 4xx is the service's own answer", func(t *testing.T) {
		w := get(t, withID(t, "17"), client(404, `{"title":"no such payment"}`, "Content-Type", "application/problem+json", "Set-Cookie", "a=b"), url, true)
		if w.Code != 404 || w.Body.String() != `{"title":"no such payment"}` || w.Header().Get("Content-Type") != "application/problem+json" || w.Header().Get("Set-Cookie") != "" {
			t.Errorf("answer = %d %v %s, want the service's", w.Code, w.Header(), w.Body)
		}
	})
	t.Run("its 503 keeps its Retry-After", func(t *testing.T) {
		w := get(t, withID(t, "17"), client(503, "", "Retry-After", "7"), url, true)
		if wantProblem(t, w, 503); w.Header().Get("Retry-After") != "7" {
			t.Errorf("Retry-After = %q, want 7", w.Header().Get("Retry-After"))
		}
	})
	t.Run("any other answer is a bad gateway", func(t *testing.T) {
		wantProblem(t, get(t, withID(t, "17"), client(500, "secret"), url, true), 502)
		wantProblem(t, get(t, withID(t, "17"), client(200, "<html>"), url, true), 502)
		wantProblem(t, get(t, withID(t, "17"), client(200, `"`+strings.Repeat("x", 1<<20)+`"`), url, true), 502)
	})
	t.Run("an empty answer is null", func(t *testing.T) {
		wantAnswer(t, get(t, withID(t, "17"), client(204, ""), url, false), `{"payment":null}`, "")
	})
}

func ExampleCompose() {
	order := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"id":17,"status":"confirmed"}`)
	}))
	defer order.Close()
	release := make(chan struct{})
	payment := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release })) // hangs
	defer payment.Close()
	defer close(release)

	h, err := gateway.Compose(gateway.ComposeConfig{Logger: quiet},
		gateway.Part{Name: "order", Fetch: gateway.Get(nil, order.URL+"/orders/{id}", gateway.GetConfig{}), Required: true, Inline: true, Budget: 10 * time.Second},
		gateway.Part{Name: "payment", Fetch: gateway.Get(nil, payment.URL+"/payments/{id}", gateway.GetConfig{}), Budget: 50 * time.Millisecond},
	)
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /pages/orders/{id}", h)
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/pages/orders/17", nil))
	fmt.Print(w.Body, w.Header().Get(gateway.PartialHeader))
	// Output:
	// {"id":17,"partial":["payment"],"payment":null,"status":"confirmed"}
	// payment
}

func ExampleProxy() {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s for %q from %s", r.URL.Path, r.Header.Get("X-User-Id"), r.Header.Get("X-Forwarded-For"))
	}))
	defer service.Close()
	transport := gateway.TunedTransport() // in a system, balance.NewTransport around it
	defer transport.CloseIdleConnections()

	proxy, err := gateway.Proxy(service.Listener.Addr().String(), transport, gateway.ProxyConfig{
		StripPrefix: "/api",
		Drop:        []string{"X-User-*"}, // only the gateway says who the user is
	})
	if err != nil {
		panic(err)
	}
	r := httptest.NewRequest(http.MethodGet, "/api/orders/17", nil)
	r.Header.Set("X-User-Id", "admin")
	w := httptest.NewRecorder()
	gateway.StrictPath(proxy).ServeHTTP(w, r)
	fmt.Println(w.Code, w.Body)
	// Output: 200 /orders/17 for "" from 192.0.2.1
}
