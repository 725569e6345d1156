// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencehttp_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/resilience/resiliencehttp"
	"github.com/dovetail-go/dovetail/retry"
)

// A guarded client in five lines.
func Example() {
	server := httptest.NewServer(flaky())
	defer server.Close()

	transport, err := resiliencehttp.NewTransport(resiliencehttp.TransportConfig{})
	if err != nil {
		panic(err)
	}
	client := &http.Client{Transport: transport}

	resp, err := client.Get(server.URL)
	if err != nil {
		panic(err)
	}
	resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 200 OK
}

// flaky answers every other request with 503.
func flaky() http.Handler {
	n := 0
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n++; n%2 == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
}

// Guards of one's own, for each host, with a retry budget for all of them.
func ExampleNewTransport() {
	retrier, err := retry.New(retry.Config{Attempts: 4})
	if err != nil {
		panic(err)
	}
	transport, err := resiliencehttp.NewTransport(resiliencehttp.TransportConfig{
		Guards: func(host string) resiliencehttp.Guards {
			brk, err := breaker.New(breaker.Config{Name: host, FailureRate: 0.3, SlowRate: 0.5, SlowAfter: time.Second})
			if err != nil {
				panic(err)
			}
			places, err := bulkhead.New(100, bulkhead.Config{Name: host})
			if err != nil {
				panic(err)
			}
			return resiliencehttp.Guards{Policy: &resilience.Policy{
				Total: 10 * time.Second, Retry: retrier, Bulkhead: places, Breaker: brk, Attempt: 3 * time.Second,
			}}
		},
	})
	if err != nil {
		panic(err)
	}
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	resp, err := (&http.Client{Transport: transport}).Get(server.URL)
	if err != nil {
		panic(err)
	}
	resp.Body.Close()
	for _, guards := range transport.Hosts() {
		fmt.Println(resp.StatusCode, guards.Policy.Breaker.State())
	}
	// Output: 404 closed
}

func ExampleNewMiddleware() {
	perClient, err := ratelimit.NewKeyed[string](ratelimit.PerMinute(1), 0)
	if err != nil {
		panic(err)
	}
	limit, err := resilience.NewAdaptive(resilience.AdaptiveConfig{})
	if err != nil {
		panic(err)
	}
	guard, err := resiliencehttp.NewMiddleware(resiliencehttp.MiddlewareConfig{
		RateLimit: func(r *http.Request) ratelimit.Result { return perClient.Allow(r.RemoteAddr) },
		Shed:      &resilience.Policy{Adaptive: limit},
		Timeout:   5 * time.Second,
	})
	if err != nil {
		panic(err)
	}
	handler := guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))

	for range 2 {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		fmt.Printf("%d, %s, Retry-After: %q\n", w.Code, w.Header().Get("RateLimit"), w.Header().Get("Retry-After"))
	}
	// Output:
	// 200, "default";r=0;t=60, Retry-After: ""
	// 429, "default";r=0;t=60, Retry-After: "60"
}

func ExampleParseRetryAfter() {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	fmt.Println(resiliencehttp.ParseRetryAfter("120", now))
	fmt.Println(resiliencehttp.ParseRetryAfter("Sat, 21 Nov 2026 12:00:05 GMT", now))
	// Output:
	// 2m0s true
	// 5s true
}
