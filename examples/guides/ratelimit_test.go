// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience/resiliencehttp"
)

func customerOf(r *http.Request) string { return r.Header.Get("X-Customer") }

func oldServer(mux http.Handler) http.Handler {
	// snippet: ratelimit/before
	handler := mux
	// end
	return handler
}

// snippet: ratelimit/after
func newServer(mux http.Handler) (http.Handler, error) {
	perCustomer, err := ratelimit.NewKeyed[string](ratelimit.Limit{Rate: 10, Burst: 30}, 0)
	if err != nil {
		return nil, err
	}
	guard, err := resiliencehttp.NewMiddleware(resiliencehttp.MiddlewareConfig{
		RateLimit: func(r *http.Request) ratelimit.Result { return perCustomer.Allow(customerOf(r)) },
	})
	if err != nil {
		return nil, err
	}
	return guard(mux), nil
}

// end

func sendAll(ctx context.Context, limiter *ratelimit.Limiter, mails []string, send func(string) error) error {
	// snippet: ratelimit/wait
	// The other direction: not faster than a provider allows. Wait fails at once where
	// the turn would come after ctx's deadline.
	for _, mail := range mails {
		if err := limiter.Wait(ctx); err != nil {
			return err
		}
		if err := send(mail); err != nil {
			return err
		}
	}
	return nil
	// end
}

func sharedLimit(store ratelimit.Store) (*ratelimit.Leased, error) {
	// snippet: ratelimit/shared
	// One limit for all replicas. The store is rediskit.NewBuckets(client, rediskit.Config{}).
	return ratelimit.NewLeased(store, ratelimit.PerSecond(1000), ratelimit.LeasedConfig{
		Name:     "search",
		Replicas: 4,                       // each gets a quarter while the store is away
		Fallback: ratelimit.FallbackSplit, // or Deny, or Allow
	})
	// end
}

// snippet: ratelimit/test
func TestCustomersHaveAQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, err := newServer(http.NotFoundHandler())
		if err != nil {
			t.Fatal(err)
		}
		ask := func(customer string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(http.MethodGet, "/orders", nil)
			r.Header.Set("X-Customer", customer)
			w := httptest.NewRecorder()
			server.ServeHTTP(w, r)
			return w
		}
		for range 30 {
			ask("ada")
		}
		if w := ask("ada"); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "1" {
			t.Errorf("the 31st request: %d %v, want 429 and Retry-After: 1", w.Code, w.Header())
		}
		if w := ask("bob"); w.Code != http.StatusNotFound {
			t.Errorf("another customer: %d, want the handler's 404", w.Code)
		}
		time.Sleep(time.Second)
		if w := ask("ada"); w.Code != http.StatusNotFound {
			t.Errorf("a second later: %d, want the handler's 404", w.Code)
		}
	})
}

// end

type allTokens struct{}

func (allTokens) Take(_ context.Context, _ string, _, want int, limit ratelimit.Limit) (int, ratelimit.Result, error) {
	return want, ratelimit.Result{OK: true, Limit: limit.Burst}, nil
}

func TestRateLimitGuide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter, err := ratelimit.New(ratelimit.Limit{Rate: 1, Burst: 1}, ratelimit.Config{})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := sendAll(t.Context(), limiter, []string{"a", "b", "c"}, func(string) error { return nil }); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("three mails at one a second took %v", took)
		}
		shared, err := sharedLimit(allTokens{})
		if err != nil {
			t.Fatal(err)
		}
		if r := shared.Allow(t.Context(), "ada"); !r.OK {
			t.Errorf("Allow = %+v", r)
		}
		w := httptest.NewRecorder()
		oldServer(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if w.Code != http.StatusNotFound {
			t.Errorf("answered %d", w.Code)
		}
	})
}
