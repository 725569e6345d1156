// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package consulkit is discovery on Consul.
//
//	client, err := consulkit.New(&api.Config{Address: "127.0.0.1:8500"})
//	registry, err := consulkit.NewRegistry(client, consulkit.RegistryConfig{})
//	resolver, err := consulkit.NewResolver(client, consulkit.ResolverConfig{})
//
//	announcement, err := discovery.NewAnnouncement(registry, instance, discovery.AnnounceConfig{})
//	transport, err := balance.NewTransport(resolver, balance.TransportConfig{})
package consulkit
