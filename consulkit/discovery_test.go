// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit_test

import (
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/consulkit"
	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/discoverytest"
	"github.com/dovetail-go/dovetail/messaging/messagingtest"
)

func TestResolver(t *testing.T) {
	a := startAgent(t, false, "")
	agent := a.client(t).API().Agent()
	discoverytest.Resolver(t, func(t *testing.T) discoverytest.Source {
		a.clear(t)
		proxy := must[*messagingtest.Proxy](t)(messagingtest.StartProxy(a.addr()))
		t.Cleanup(func() { _ = proxy.Close() })
		transport := api.DefaultConfig().Transport
		c := must[*consulkit.Client](t)(consulkit.New(&api.Config{Address: proxy.Addr(), Transport: transport}))
		present := map[string]map[string]bool{}
		return discoverytest.Source{
			Resolver: must[*consulkit.Resolver](t)(consulkit.NewResolver(c, consulkit.ResolverConfig{})),
			Within:   30 * time.Second, CloseIdle: transport.CloseIdleConnections,
			Put: func(t *testing.T, service string, instances ...discovery.Instance) {
				old := present[service]
				present[service] = map[string]bool{}
				for _, in := range instances {
					host, portText, _ := net.SplitHostPort(in.Addr)
					port, _ := strconv.Atoi(portText)
					id := service + in.Addr
					if err := agent.ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: service, Address: host, Port: port}); err != nil {
						t.Fatal(err)
					}
					present[service][id] = true
				}
				for id := range old {
					if present[service][id] {
						continue
					}
					if err := agent.ServiceDeregister(id); err != nil {
						t.Fatal(err)
					}
				}
			},
			Outage: func(_ *testing.T, on bool) {
				if on {
					proxy.Down()
				} else {
					proxy.Heal()
				}
			},
		}
	})
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	a := startAgent(t, false, "")
	const ttl = 2 * time.Second
	discoverytest.Registry(t, func(t *testing.T) discoverytest.Registered {
		a.clear(t)
		c := a.client(t)
		return discoverytest.Registered{
			Registry: must[*consulkit.Registry](t)(consulkit.NewRegistry(c, consulkit.RegistryConfig{TTL: ttl})),
			Resolver: must[*consulkit.Resolver](t)(consulkit.NewResolver(c, consulkit.ResolverConfig{})),
			TTL:      ttl, Within: 30 * time.Second,
			Forget: func(t *testing.T) { a.kill(t); a.start(t) },
		}
	})
}
