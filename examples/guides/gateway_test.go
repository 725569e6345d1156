// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/consulkit"
	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/gateway"
)

func oldOrders(base string) (*http.Client, string) {
	// snippet: discovery/before
	client := &http.Client{Timeout: 30 * time.Second}
	orderURL := base // such as http://order.internal:8080, one address for all instances
	// end
	return client, orderURL
}

// snippet: discovery/after
// newBalanced returns a client for http://order/..., http://payment/... and so on, and what has
// to run as long as it is used.
func newBalanced(resolver discovery.Resolver) (client *http.Client, run func(context.Context) error, err error) {
	transport, err := balance.NewTransport(resolver, balance.TransportConfig{
		Balancer: balance.Config{Zone: "eu-central-1a", SlowStart: 30 * time.Second},
	})
	if err != nil {
		return nil, nil, err
	}
	return &http.Client{Timeout: 30 * time.Second, Transport: transport}, transport.Run, nil
}

// end

func resolvers(dir string) (discovery.Resolver, error) {
	// snippet: discovery/resolver
	consul, err := consulkit.New(nil) // the agent on this machine
	if err != nil {
		return nil, err
	}
	fromConsul, err := consulkit.NewResolver(consul, consulkit.ResolverConfig{})
	if err != nil {
		return nil, err
	}
	// Remembers in files, so that a start during an outage of Consul finds its instances.
	return discovery.NewLastKnown(fromConsul, discovery.LastKnownConfig{Dir: dir})
	// end
}

func inKubernetes() (discovery.Resolver, error) {
	// snippet: discovery/dns
	// Kubernetes: a headless service (clusterIP: None) has a record for each ready pod.
	return discovery.NewDNS("{service}.prod.svc.cluster.local.", discovery.DNSConfig{Port: 8080, Every: 5 * time.Second})
	// end
}

// snippet: discovery/test
func TestCallsGoToAnotherInstance(t *testing.T) {
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
	defer bad.Close()
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "good") }))
	defer good.Close()
	resolver, err := discovery.NewStatic(map[string][]discovery.Instance{"order": {
		{Addr: bad.Listener.Addr().String()}, {Addr: good.Listener.Addr().String()},
	}})
	if err != nil {
		t.Fatal(err)
	}
	client, run, err := newBalanced(resolver)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()

	failures := 0
	for range 100 {
		resp, err := client.Get("http://order/orders/17")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close() // or the call counts as in flight for ever
		if resp.StatusCode != http.StatusOK {
			failures++
		}
	}
	if failures >= 50 {
		t.Errorf("%d of 100 calls went to the instance that fails, want far less than half", failures)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// end

func oldFront(order *url.URL) http.Handler {
	// snippet: gateway/before
	return httputil.NewSingleHostReverseProxy(order)
	// end
}

// snippet: gateway/after
func front(orders, reviews http.RoundTripper, authenticate func(http.Handler) http.Handler) (http.Handler, error) {
	proxy, err := gateway.Proxy("order", orders, gateway.ProxyConfig{
		StripPrefix: "/api",
		Drop:        []string{"X-User-*"}, // what a client says about itself does not arrive
		MaxBody:     1 << 20,
	})
	if err != nil {
		return nil, err
	}
	page, err := gateway.Compose(gateway.ComposeConfig{},
		gateway.Part{Name: "order", Required: true, Budget: 5 * time.Second,
			Fetch: gateway.Get(&http.Client{Transport: orders}, "http://order/orders/{id}", gateway.GetConfig{})},
		gateway.Part{Name: "reviews", Budget: 200 * time.Millisecond, // late or failed: null, and declared
			Fetch: gateway.Get(&http.Client{Transport: reviews}, "http://reviews/orders/{id}", gateway.GetConfig{})},
	)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/api/orders/", proxy)
	mux.Handle("GET /api/pages/orders/{id}", page)
	return gateway.StrictPath(authenticate(mux)), nil // before whatever decides by path
}

// end

// answers is a service that answers everything alike.
type answers struct {
	status int
	body   string
}

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	w.WriteHeader(a.status)
	fmt.Fprint(w, a.body)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

// snippet: gateway/test
func TestPageWithoutReviews(t *testing.T) {
	everybody := func(next http.Handler) http.Handler { return next }
	handler, err := front(answers{200, `{"id":"17"}`}, answers{503, "down"}, everybody)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/pages/orders/17", nil))
	var page struct {
		Order   map[string]string
		Reviews any
		Partial []string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
		t.Fatal(err)
	}
	if w.Code != http.StatusOK || page.Order["id"] != "17" || len(page.Partial) != 1 || page.Partial[0] != "reviews" {
		t.Errorf("answered %d %s, want the order and partial: reviews", w.Code, w.Body)
	}
	w = httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/orders/%2e%2e/admin", nil))
	if w.Code != http.StatusBadRequest {
		t.Errorf("a path of two meanings: %d, want 400", w.Code)
	}
}

// end

func TestGatewayGuide(t *testing.T) {
	order := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) }))
	defer order.Close()
	client, base := oldOrders(order.URL)
	resp, err := client.Get(base + "/orders/17")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	target, err := url.Parse(order.URL)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	oldFront(target).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/orders/17", nil))
	if w.Body.String() != "/orders/17" {
		t.Errorf("answered %s", w.Body)
	}
	if _, err := resolvers(t.TempDir()); err != nil {
		t.Error(err)
	}
	if _, err := inKubernetes(); err != nil {
		t.Error(err)
	}
}
