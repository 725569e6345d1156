// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package discovery answers which instances serve a name, and keeps answering while
// they come and go.
//
//	for set, err := range resolver.Watch(ctx, "order") {
//		if err != nil {
//			log.Print(err) // the source is away; go on with the instances you have
//			continue
//		}
//		use(set.Instances)
//	}
//
// Most programs never write this loop: package
// [github.com/dovetail-go/dovetail/discovery/balance] turns a resolver into an
// http.RoundTripper for http://order/path.
//
// # Which resolver
//
//   - [Static]: the program gives the lists and may change them. Tests, one process.
//   - [File]: a JSON file that people or a deployment tool write.
//   - [DNS]: SRV records (priority and weight), or A and AAAA records with a fixed
//     port: Kubernetes headless services, Consul DNS.
//   - discoverymem.Registry: a registry in memory, with leases.
//   - consulkit, a module of its own: a Consul agent.
//   - [Failover] puts several in order of preference; [LastKnown] remembers through
//     an outage, and through a restart during the outage.
//
// The other side is a [Registry], which takes registrations; [Announcement] keeps
// one alive and takes it back at the end.
//
// # Guarantees
//
//   - Empty and unreachable are different facts: a service without instances is an empty
//     set, a source that cannot be asked is an error.
//   - A [Set] is immutable, and sorted, so that equal sets compare equal.
//   - A watch yields changes only, the newest one: a slow loop skips what came between.
//   - A watch ends with its context or its loop, and leaves no goroutine behind.
//
// # Caveats
//
// [DNS] cannot be told of a change: it is as late as the records' time to live, a second at
// least. A name that does not exist is an empty set, so a misspelt name looks like a service
// without instances.
//
// Health as seen by callers (ejection, latency) is not here but in balance: a registry
// knows who is registered, only callers know who answers.
package discovery
