// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command proxy is one of the proxies that package gatewaying compares, in a process of its own, so that its
// processor time is its own: proxy KIND BACKEND KEYS. It prints its address, and ends with its standard input.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	_ "net/http/pprof" // on the port of PPROF, to see where the time goes
	"net/url"
	"os"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/gateway"
	"github.com/dovetail-go/dovetail/oidckit"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/resilience/resiliencehttp"
)

func main() {
	if err := serve(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "proxy:", err)
		os.Exit(1)
	}
}

func serve(kind, backend, keys string) error {
	var h http.Handler
	var err error
	switch kind {
	case "default":
		h = httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: backend})
	case "tuned":
		h = &httputil.ReverseProxy{Transport: gateway.TunedTransport(), Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: backend})
			r.SetXForwarded()
		}}
	case "bare":
		h, err = gateway.Proxy(backend, gateway.TunedTransport(), gateway.ProxyConfig{})
	case "whole":
		h, err = whole(backend, keys)
	default:
		err = fmt.Errorf("kind is %q, want default, tuned, bare or whole", kind)
	}
	if err != nil {
		return err
	}
	if addr := os.Getenv("PPROF"); addr != "" {
		go func() { fmt.Fprintln(os.Stderr, http.ListenAndServe(addr, nil)) }()
	}
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return (&http.Server{Handler: h}).Serve(ln)
}

// whole is the gateway as one would run it: tokens verified, a quota per client, discovery and balancing, a
// breaker.
func whole(backend, keys string) (http.Handler, error) {
	resolver, err := discovery.NewStatic(map[string][]discovery.Instance{"order": {{Addr: backend}}})
	if err != nil {
		return nil, err
	}
	balanced, err := balance.NewTransport(resolver, balance.TransportConfig{Base: gateway.TunedTransport()})
	if err != nil {
		return nil, err
	}
	go func() { _ = balanced.Run(context.Background()) }()
	br, err := breaker.New(breaker.Config{Name: "order", FailureRate: 0.5})
	if err != nil {
		return nil, err
	}
	guarded, err := resiliencehttp.NewTransport(resiliencehttp.TransportConfig{Base: balanced, Guards: func(string) resiliencehttp.Guards {
		return resiliencehttp.Guards{Policy: &resilience.Policy{Breaker: br}}
	}})
	if err != nil {
		return nil, err
	}
	proxy, err := gateway.Proxy("order", guarded, gateway.ProxyConfig{Drop: []string{"X-User-*"}})
	if err != nil {
		return nil, err
	}
	verifier, err := oidckit.New("https://login.bench", []string{"bench"}, oidckit.Config{KeysURL: keys})
	if err != nil {
		return nil, err
	}
	signedIn, err := oidckit.Middleware[struct{}](verifier, oidckit.MiddlewareConfig{})
	if err != nil {
		return nil, err
	}
	quota, err := ratelimit.NewKeyed[string](ratelimit.Limit{Rate: 1_000_000, Burst: 1_000_000}, 10_000)
	if err != nil {
		return nil, err
	}
	limited, err := resiliencehttp.NewMiddleware(resiliencehttp.MiddlewareConfig{RateLimit: func(r *http.Request) ratelimit.Result {
		token, _ := oidckit.TokenOf(r.Context())
		return quota.Allow(token.Subject)
	}})
	if err != nil {
		return nil, err
	}
	return gateway.StrictPath(signedIn(limited(proxy))), nil
}
