// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"

	"github.com/dovetail-go/dovetail/gateway"
)

// BenchmarkProxy is what the proxy does beside the network: the whole of it, against the bare
// httputil.ReverseProxy.
func BenchmarkProxy(b *testing.B) {
	body := []byte(`{"id":17,"status":"confirmed"}`)
	rt := roundTrip(func(*http.Request) (*http.Response, error) { return answer(200, string(body)), nil })
	handler, err := gateway.Proxy("order", rt, gateway.ProxyConfig{StripPrefix: "/api", Drop: []string{"X-User-*"}})
	if err != nil {
		b.Fatal(err)
	}
	for name, h := range map[string]http.Handler{
		"gateway": handler,
		"bare": &httputil.ReverseProxy{Transport: rt, Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "order"})
			r.SetXForwarded()
		}},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := httptest.NewRequest(http.MethodGet, "/api/orders/17", nil)
				r.Header.Set("User-Agent", "bench")
				r.Header.Set("Authorization", "Bearer x")
				h.ServeHTTP(discard{}, r)
			}
		})
	}
}

type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(p []byte) (int, error) { return io.Discard.Write(p) }
func (discard) WriteHeader(int)             {}
