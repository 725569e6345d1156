// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package gateway is the server side of a system of services: handlers that pass requests on
// and put answers together. Routes are http.ServeMux's; guards, authentication and caches are
// middleware of other packages.
//
//	transport, err := balance.NewTransport(resolver, balance.TransportConfig{Base: gateway.TunedTransport()})
//	orders, err := gateway.Proxy("order", transport, gateway.ProxyConfig{StripPrefix: "/api"})
//	page, err := gateway.Compose(gateway.ComposeConfig{},
//		gateway.Part{Name: "order", Fetch: gateway.Get(client, "http://order/orders/{id}", gateway.GetConfig{}), Required: true},
//		gateway.Part{Name: "payment", Fetch: gateway.Get(client, "http://payment/payments/{id}", gateway.GetConfig{}), Budget: 200 * time.Millisecond},
//	)
//	mux.Handle("/api/orders/", orders)
//	mux.Handle("GET /api/pages/orders/{id}", page)
//	server := &http.Server{Handler: gateway.StrictPath(authenticate(mux))}
//
// # Guarantees
//
//   - What a client says about itself is not believed: X-Forwarded-* and the like come from the
//     connection, or from proxies whose addresses are in ProxyConfig.Trusted; headers named in
//     ProxyConfig.Drop never arrive, in whatever spelling.
//   - A path that means different things to different servers (dot segments, also encoded;
//     encoded slashes; backslashes; empty segments) is refused with 400 by [StrictPath]
//     and by [Proxy]. It is not repaired: put StrictPath before whatever decides by
//     path.
//   - Bodies and streams pass through as they come: server-sent events, WebSocket, trailers.
//   - The errors of the gateway itself are problem details (RFC 9457) that name no address: 400,
//     413 and 431 for the request; 502 where the service answers nothing sensible, 503 with
//     Retry-After where a guard refuses, 504 where time runs out.
//   - No part of [Compose] delays the answer beyond its budget, even if it ignores its
//     context. What is missing is declared.
//
// # Caveats
//
// An answer that breaks off in the middle cannot become an error any more: the connection is
// aborted, by a panic with http.ErrAbortHandler that middleware must let pass.
//
// Proxy has no time limit of its own, because streams have none: [TunedTransport] bounds
// the wait for the head of the answer; http.Server and the guards do the rest.
package gateway
