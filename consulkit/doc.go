// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package consulkit is discovery, live settings and leader election on Consul through its own
// client, consul/api. It is tested with Consul 1.15.
//
//	client, err := consulkit.New(&api.Config{Address: "127.0.0.1:8500"})
//
//	// who I am, until ctx is done
//	registry, err := consulkit.NewRegistry(client, consulkit.RegistryConfig{})
//	announcement, err := discovery.NewAnnouncement(registry, instance, discovery.AnnounceConfig{})
//	g.Go(func() error { return announcement.Run(ctx) })
//
//	// whom I call: http://order/orders/17
//	resolver, err := consulkit.NewResolver(client, consulkit.ResolverConfig{})
//	transport, err := balance.NewTransport(resolver, balance.TransportConfig{})
//	g.Go(func() error { return transport.Run(ctx) })
//
//	// what may change while I run
//	setting, err := consulkit.NewSetting(client, "order/breaker", apply, consulkit.SettingConfig[limits]{})
//	g.Go(func() error { return setting.Run(ctx) })
//
//	// what only one of us may do
//	election, err := consulkit.NewElection(client, "order/leader", consulkit.ElectionConfig{})
//	g.Go(func() error { return election.Run(ctx, lead) })
//
// # Guarantees
//
// Registration. An instance is seen while its renewals arrive and every other check passes.
// An agent that lost its state says so at the next renewal, and the announcement registers
// at once: with its interval of a second, about a second after the agent is back. A
// registration that another one has replaced cannot take that one away.
//
// Resolver. A change reaches the watch with the answer of the query that waits for it; there is
// no ticker in between. The end of the last instance is an empty set. An agent that cannot be
// asked, or has no leader to ask, is an error beside the last set, which is stale. After an
// outage the loss of instances is believed only when the agent has had time to be told of them
// again ([ResolverConfig.Settle]); new ones are believed at once.
//
// Queries. No timeout is shorter than the time a query may wait. An index that goes backwards, or
// is zero, begins anew, and so does the first query after a failure, because servers without
// their old state let queries for old indexes wait. Failures are followed by pauses that grow
// to 5 seconds, with so much jitter that processes which lost an agent together come back
// spread over them. Queries that are answered at once again and again are paced to 10 a
// second after a burst of 10.
//
// Setting. A value is decoded, validated and applied, or refused with a line in the log, and
// then the one before stays in force.
//
// Election. A leader learns that it is deposed when its session is gone, or has not been
// renewed for its TTL, whichever it sees first. Consul gives the lock to the next one after
// that moment. Tokens grow from term to term. What refuses a token lower than the highest
// it has seen is safe from leaders that were stopped and do not know it yet.
//
// # Caveats
//
// Each watch is a query, and so a connection, of its own. Let one balance.Transport serve the
// whole program rather than one for each caller.
//
// A watch asks through one agent, and fails with it. Use the agent on the same machine, or a name
// with several addresses, or discovery.Failover over several clients; and
// discovery.LastKnown where a process may start during an outage.
//
// A resolver answers for one datacentre. To reach another when this one is lost, use
// discovery.Failover; it does not ask the next one because of an empty set.
//
// Filter and Tags are evaluated by the agent, and a wrong Filter is an error of the watch. IDs of
// instances that others registered are "node/ID", as Consul's are unique on their node only.
// An instance without a port is left out.
//
// An election's tokens are positions in the log of Consul's servers. A cluster that is restored
// from a snapshot, or built anew, can hand out lower ones; then raise the highest seen by hand.
// Leadership ends with the session alone: it is not bound to the health of a node.
//
// Not here: Consul Connect and its proxies, prepared queries, peering, and locks other than the
// election.
package consulkit
