// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/consulkit"
	"github.com/dovetail-go/dovetail/discovery"
)

// TestDNS reads what a Registry has registered by way of Consul's DNS and discovery.DNS.
func TestDNS(t *testing.T) {
	t.Parallel()
	a := startAgent(t, false, "")
	registry := must[*consulkit.Registry](t)(consulkit.NewRegistry(a.client(t), consulkit.RegistryConfig{}))
	lookup := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", a.dns))
	}}
	watch := func(cfg discovery.DNSConfig) <-chan discovery.Set {
		if cfg.Server == "" {
			cfg.Lookup, cfg.Every = lookup, 20*time.Millisecond
		}
		dns := must[*discovery.DNS](t)(discovery.NewDNS("{service}.service.consul.", cfg))
		sets := make(chan discovery.Set)
		background(t, func(ctx context.Context) error {
			for set, err := range dns.Watch(ctx, "order") {
				if err != nil {
					continue
				}
				select {
				case sets <- set:
				case <-ctx.Done():
				}
			}
			return nil
		})
		return sets
	}
	want := func(sets <-chan discovery.Set, want ...string) {
		t.Helper()
		var got []string
		for deadline := time.After(time.Minute); ; {
			select {
			case set := <-sets:
				got = nil
				for _, in := range set.Instances {
					got = append(got, fmt.Sprintf("%s weight %d", in.Addr, in.Weight))
				}
				slices.Sort(got)
				if slices.Equal(got, want) {
					return
				}
			case <-deadline:
				t.Fatalf("instances = %q, want %q", got, want)
			}
		}
	}
	services, addresses := watch(discovery.DNSConfig{}), watch(discovery.DNSConfig{Port: 8080})
	// As one would use it: the agent tells the targets' addresses, and how long its answers live.
	whole := watch(discovery.DNSConfig{Server: fmt.Sprintf("127.0.0.1:%d", a.dns)})
	want(services)
	want(addresses)
	want(whole)
	var leases []discovery.Lease
	for _, in := range []discovery.Instance{
		{Service: "order", ID: "a", Addr: "10.1.0.1:80", Weight: 3},
		{Service: "order", ID: "b", Addr: "10.1.0.2:81"},
	} {
		lease := must[discovery.Lease](t)(registry.Register(t.Context(), in))
		if err := lease.Renew(t.Context(), discovery.Health{}); err != nil {
			t.Fatal(err)
		}
		leases = append(leases, lease)
	}
	// The targets of Consul's SRV records are names of addresses: ac? is 10.1.0.?
	want(services, "0a010001.addr.dc1.consul:80 weight 300", "0a010002.addr.dc1.consul:81 weight 100")
	want(addresses, "10.1.0.1:8080 weight 0", "10.1.0.2:8080 weight 0")
	want(whole, "10.1.0.1:80 weight 300", "10.1.0.2:81 weight 100")
	for _, l := range leases {
		if err := l.Deregister(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want(services)
	want(addresses)
	want(whole)
}
