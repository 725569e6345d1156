// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package balance picks the instance of a service that takes the next call, and makes an
// http.RoundTripper of it.
//
//	transport, err := balance.NewTransport(resolver, balance.TransportConfig{})
//	g.Go(func() error { return transport.Run(ctx) })
//	client := &http.Client{Transport: transport}
//	resp, err := client.Get("http://order/orders/17")
//
// Other protocols use a [Balancer]: Pick returns a [Lease], whose Done tells how the
// call went.
//
// # Which picker when
//
//   - [PeakEWMA], the default: of two random instances the one with the lower expected
//     latency, by its recent peaks, its failures and its calls in flight. Avoids slow and hanging
//     instances within a call or two. Where one client mixes very slow and very fast
//     endpoints, latency says little about the instance: use LeastRequests.
//   - [LeastRequests]: of two random instances the one with fewer calls in flight. Needs
//     no notion of latency. A fast-failing instance looks idle to it: keep ejection on.
//   - [RoundRobin]: one after the other. Equal instances, equal calls; easy to foresee.
//   - [Weighted]: in proportion to Instance.Weight, evenly spread. Unequal machines, canaries.
//   - [ConsistentHash]: the same key to the same instance, and a bound on how far one may be
//     loaded above the average. Caches, sessions; with [ClientIP] as the key, by client.
//
// PeakEWMA, LeastRequests and ConsistentHash honour Instance.Weight too.
//
// # Guarantees
//
//   - A pick and its end allocate nothing and take the same time for 2 and for 1,000 instances
//     (LeastRequests with All excepted).
//   - What is known of an instance (latency, failures, calls in flight) survives every
//     change of the others.
//   - An instance that fails its calls is ejected, however fast it fails, up to a maximum
//     share; when more than the panic share fail, the fault is not theirs and all take part
//     again. See [Outlier].
//   - During an outage of the registry the last known instances are used. An empty set is
//     believed at once, unless Config.KeepOnEmpty says otherwise.
//   - The [Transport] ends a call when the response body ends, tries once more on another
//     instance only where that cannot do a thing twice, never changes the request, and takes
//     the caller's cancellation for no fault of the instance.
//
// # Caveats
//
// Every process balances for itself: it knows its own calls in flight, not those of the others.
// Two-choice pickers and random starts keep many processes from moving in step.
//
// A response body that is neither read to its end nor closed counts as in flight for ever.
//
// Health checks from outside ([Config.Probe]) cost a request per instance and process; leave
// them to the registry where it has its own.
package balance
