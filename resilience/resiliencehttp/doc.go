// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package resiliencehttp guards HTTP clients and servers.
//
// A client, in three lines:
//
//	transport, err := resiliencehttp.NewTransport(resiliencehttp.TransportConfig{})
//	...
//	client := &http.Client{Transport: transport}
//
// A server:
//
//	guard, err := resiliencehttp.NewMiddleware(resiliencehttp.MiddlewareConfig{
//		RateLimit: func(r *http.Request) ratelimit.Result { return perClient.Allow(clientID(r)) },
//		Shed:      &resilience.Policy{Adaptive: limit},
//		Timeout:   5 * time.Second,
//	})
//	...
//	server := &http.Server{Handler: guard(mux)}
//
// # Guarantees of the Transport
//
// Each host has guards of its own, in bounded memory.
//
// Only requests that may be repeated are: the idempotent methods of RFC 9110, section 9.2.2, and
// those with an Idempotency-Key header; and only if their body can be had again
// (http.Request.GetBody). No other request is ever sent twice.
//
// A response with status 5xx counts as a failure (except 501 and 505, which are answers), 429 as a
// wish to come later; see [Classify]. Where retries end, the last response is
// returned as it is, not an error. Retry-After is honoured in both forms, and never
// undercut; what is longer than retry.Config.AfterMax ends the retries.
//
// A response that is not returned is read to its end, within bounds of size and time, and closed,
// so that its connection is used again. The request is never changed, and its body is closed
// in every case.
//
// The context of an attempt, its timeouts and its place in a bulkhead end when the response's
// body has been read to its end or closed, as the caller must do anyway. Timeouts
// therefore include the time to read the body, as http.Client.Timeout does.
//
// # Guarantees of the middleware
//
// A request is refused before its body is read: 429 for a client that exceeds its quota, 503
// when the server is overloaded, both with Retry-After. Health checks are never
// refused. A handler that answers 5xx, or panics, has failed: a breaker on the server sees it.
package resiliencehttp
