// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
)

func TestTransportSpreads(t *testing.T) {
	var instances []discovery.Instance
	for _, name := range []string{"a", "b"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, name+r.Host) }))
		defer server.Close()
		instances = append(instances, discovery.Instance{Addr: server.Listener.Addr().String()})
	}
	static, err := discovery.NewStatic(map[string][]discovery.Instance{"order": instances})
	if err != nil {
		t.Fatal(err)
	}
	transport, err := balance.NewTransport(static, balance.TransportConfig{Balancer: balance.Config{Picker: balance.RoundRobin{}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- transport.Run(ctx) }()
	client := &http.Client{Transport: transport}
	got := map[string]int{}
	for range 10 {
		resp, err := client.Get("http://order/x")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		got[string(body)]++
	}
	if got["aorder"] != 5 || got["border"] != 5 {
		t.Errorf("answers = %v, want 5 of each", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}
