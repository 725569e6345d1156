// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/gateway"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/resilience/resiliencehttp"
	"github.com/dovetail-go/dovetail/retry"
)

func oldClient() *http.Client {
	// snippet: resilience/before
	client := &http.Client{Timeout: 30 * time.Second}
	// end
	return client
}

func defaultClient() (*http.Client, error) {
	// snippet: resilience/after
	transport, err := resiliencehttp.NewTransport(resiliencehttp.TransportConfig{})
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: transport}
	// end
	return client, nil
}

// snippet: resilience/guards
// guards of one host: the order of the fields is the order in which they work.
func guards(host string) resiliencehttp.Guards {
	r, err1 := retry.New(retry.Config{Name: host})
	places, err2 := bulkhead.New(64, bulkhead.Config{Name: host, Queue: 64, Wait: time.Second})
	b, err3 := breaker.New(breaker.Config{Name: host, FailureRate: 0.5, SlowRate: 0.8, SlowAfter: time.Second})
	if err := errors.Join(err1, err2, err3); err != nil {
		panic(err) // constants: a test would have shown it
	}
	return resiliencehttp.Guards{Policy: &resilience.Policy{
		Total:    30 * time.Second, // all attempts and the waits between them
		Retry:    r,                // idempotent requests only
		Bulkhead: places,           // at most so many at once
		Breaker:  b,                // asked last, right before the call
		Attempt:  10 * time.Second, // each try, body included
	}}
}

func newClient() (*http.Client, error) {
	transport, err := resiliencehttp.NewTransport(resiliencehttp.TransportConfig{Guards: guards, Propagate: true})
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: transport}, nil
}

// end

// snippet: resilience/server
func protect(mux http.Handler) (http.Handler, error) {
	perAddress, err := ratelimit.NewKeyed[netip.Addr](ratelimit.Limit{Rate: 50, Burst: 200}, 0)
	if err != nil {
		return nil, err
	}
	limit, err := resilience.NewAdaptive(resilience.AdaptiveConfig{Name: "server"})
	if err != nil {
		return nil, err
	}
	guard, err := resiliencehttp.NewMiddleware(resiliencehttp.MiddlewareConfig{
		RateLimit: func(r *http.Request) ratelimit.Result { return perAddress.Allow(gateway.ClientIP(r, nil)) },
		Shed:      &resilience.Policy{Adaptive: limit}, // 503 before it hurts, the less important first
		Timeout:   10 * time.Second,
	})
	if err != nil {
		return nil, err
	}
	return guard(mux), nil
}

// end

// snippet: resilience/test
func TestClientRidesOutABadMoment(t *testing.T) {
	var calls atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	client, err := newClient()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Get(server.URL)
	if err != nil || resp.StatusCode != http.StatusOK || calls.Load() != 2 {
		t.Fatalf("Get = %v, %v after %d calls, want 200 after 2", resp, err, calls.Load())
	}
	resp.Body.Close()

	calls.Store(0) // nobody knows whether a failed POST has done its work: it is sent once
	resp, err = client.Post(server.URL, "text/plain", nil)
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable || calls.Load() != 1 {
		t.Fatalf("Post = %v, %v after %d calls, want 503 after 1", resp, err, calls.Load())
	}
	resp.Body.Close()
}

// end

func TestResilienceGuide(t *testing.T) {
	handler, err := protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	defer server.Close()
	guarded, err := defaultClient()
	if err != nil {
		t.Fatal(err)
	}
	for _, client := range []*http.Client{oldClient(), guarded} {
		resp, err := client.Get(server.URL)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("Get = %v, %v", resp, err)
		}
		resp.Body.Close()
	}
}
