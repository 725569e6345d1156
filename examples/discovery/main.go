// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command discovery calls a service by its name and finds two instances behind it.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
)

func main() {
	var instances []discovery.Instance
	for _, id := range []string{"orders-1", "orders-2"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, id) }))
		defer server.Close()
		instances = append(instances, discovery.Instance{ID: id, Service: "orders", Addr: server.Listener.Addr().String()})
	}
	resolver, err := discovery.NewStatic(map[string][]discovery.Instance{"orders": instances})
	if err != nil {
		log.Fatal(err)
	}
	transport, err := balance.NewTransport(resolver, balance.TransportConfig{})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() { _ = transport.Run(ctx) }()

	client := &http.Client{Transport: transport}
	seen := map[string]bool{}
	for len(seen) < len(instances) { // the next call is for the one that answers sooner, mostly
		resp, err := client.Get("http://orders/")
		if err != nil {
			log.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			log.Fatal(err)
		}
		seen[string(body)] = true
	}
	fmt.Println(slices.Sorted(maps.Keys(seen)))
}

// Output:
// [orders-1 orders-2]
