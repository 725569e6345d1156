// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"google.golang.org/protobuf/proto"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
)

// measured are the metrics that services have exported by OTLP.
type measured struct {
	mu       sync.Mutex
	requests []string
	// units are those of metrics, by service and name.
	units map[string]map[string]string
	wrong []string
}

// ServeHTTP implements [http.Handler]: OTLP over HTTP.
func (m *measured) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests = append(m.requests, req.URL.Path)
	var in collector.ExportMetricsServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &in)
	}
	if err != nil || req.URL.Path != "/v1/metrics" {
		http.Error(w, fmt.Sprint(req.URL.Path, err), http.StatusBadRequest)
		return
	}
	for _, of := range in.GetResourceMetrics() {
		resource := values(of.GetResource().GetAttributes())
		service := fmt.Sprint(resource["service.name"])
		if resource["service.namespace"] != "shop" || resource["service.instance.id"] != service+"-1" || resource["telemetry.sdk.language"] != "go" {
			m.wrong = append(m.wrong, fmt.Sprint(resource))
		}
		if m.units[service] == nil {
			m.units[service] = map[string]string{}
		}
		for _, scope := range of.GetScopeMetrics() {
			for _, one := range scope.GetMetrics() {
				m.units[service][one.GetName()] = one.GetUnit()
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	out, _ := proto.Marshal(&collector.ExportMetricsServiceResponse{})
	_, _ = w.Write(out)
}

// asked are the paths of all requests.
func (m *measured) asked() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.requests)
}

// TestMetricsByOTLP has a shop export its metrics: what the blocks' hooks measure, and what Prometheus is shown beside it.
func TestMetricsByOTLP(t *testing.T) {
	m := &measured{units: map[string]map[string]string{}}
	server := httptest.NewServer(m)
	defer server.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", server.URL+"/v1/metrics")
	t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "500") // milliseconds
	shop := openShopWith(t, embedded.Config{Data: t.TempDir(), Packing: time.Millisecond}).stocked()
	a := shop.newcomer()
	a.ends(a.place("pm_visa", lineItem{"product_id": "p-040", "quantity": 1}), "dispatched")
	a.want(http.StatusOK, a.send("GET", "/api/products/p-040", nil, nil), nil)
	a.want(http.StatusOK, a.send("GET", "/api/products/p-040/stock", nil, nil), nil)
	eventually(t, func() error { // until the quota of guesses is used up
		if got := shop.send("POST", "/api/sessions", nil, map[string]string{"email": "ben@shop.example", "password": "guess-guess"}); got.status != http.StatusTooManyRequests {
			return fmt.Errorf("a guess is answered %d, want 429", got.status)
		}
		return nil
	})
	calm := shop.as("operator@shop.example", "dovetail-operator").harm("latency", "customer", 1000)
	defer calm()
	eventually(t, func() error { // until the gateway has had too much
		a.burst(100, "/api/me")
		m.mu.Lock()
		defer m.mu.Unlock()
		if _, ok := m.units["gateway"]["dovetail.adaptive.rejected"]; !ok {
			return fmt.Errorf("the gateway measures %v", slices.Sorted(maps.Keys(m.units["gateway"])))
		}
		return nil
	})
	eventually(t, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, service := range append(slices.Clone(assembly.Backends), assembly.Gateway) {
			if _, ok := m.units[service]["go_goroutines"]; !ok {
				return fmt.Errorf("%s exports %v, want what it shows Prometheus", service, slices.Sorted(maps.Keys(m.units[service])))
			}
		}
		for service, want := range map[string]map[string]string{
			"gateway": {
				"http.server.request.duration": "s", "http.client.request.duration": "s", "shop_http_request_duration_seconds": "",
				"dovetail.cache.load.duration": "s", "dovetail.balance.instances": "{instance}", "dovetail.adaptive.rejected": "{call}",
			},
			"customer":     {"dovetail.ratelimit.rejected": "{call}"},
			"inventory":    {"rpc.server.call.duration": "s"},
			"order":        {"dovetail.saga.step.duration": "s", "dovetail.saga.ended": "{saga}", "dovetail.outbox.lag": "s", "dovetail_outbox_waiting": ""},
			"notification": {"dovetail.inbox.messages": "{message}", "shop_event_delay_seconds": ""},
		} {
			for name, unit := range want {
				if got, ok := m.units[service][name]; !ok || got != unit {
					return fmt.Errorf("%s exports %v, want %s in %q", service, slices.Sorted(maps.Keys(m.units[service])), name, unit)
				}
			}
		}
		return nil
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.wrong) > 0 {
		t.Errorf("resources are %v, want each service of the namespace shop and its first instance", m.wrong)
	}
}

// TestNothingIsExported listens where OTLP goes by default: a shop that is told of no receiver sends nothing, and shows
// its metrics all the same.
func TestNothingIsExported(t *testing.T) {
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:4318")
	if err != nil {
		testserver.Missing(t, "somebody else is there: %v", err)
	}
	m := &measured{units: map[string]map[string]string{}}
	server := httptest.NewUnstartedServer(m)
	_ = server.Listener.Close()
	server.Listener = ln
	server.Start()
	defer server.Close()
	for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"} {
		t.Setenv(name, "")
	}
	t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
	t.Run("a shop", func(t *testing.T) { // whose end would export the rest
		data := t.TempDir()
		shop := openShopWith(t, embedded.Config{Data: data, Packing: time.Millisecond}).stocked()
		a := shop.newcomer()
		a.ends(a.place("pm_visa", lineItem{"product_id": "p-040", "quantity": 1}), "confirmed")
		for service, text := range shop.scrapes(data) {
			if len(text) == 0 {
				t.Errorf("%s shows no metrics", service)
			}
		}
	})
	if asked := m.asked(); len(asked) > 0 {
		t.Errorf("the receiver was asked for %v, want nothing", asked)
	}
}
