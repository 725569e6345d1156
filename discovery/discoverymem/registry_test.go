// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discoverymem_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/discoverymem"
	"github.com/dovetail-go/dovetail/discovery/discoverytest"
)

func open(t testing.TB, cfg discoverymem.Config) *discoverymem.Registry {
	t.Helper()
	r, err := discoverymem.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	discoverytest.Registry(t, func(t *testing.T) discoverytest.Registered {
		r := open(t, discoverymem.Config{TTL: time.Second})
		return discoverytest.Registered{
			Registry: r, Resolver: r, TTL: time.Second,
			Forget: func(*testing.T) { r.Forget() },
		}
	})
}

func TestResolver(t *testing.T) {
	t.Parallel()
	discoverytest.Resolver(t, func(t *testing.T) discoverytest.Source {
		r := open(t, discoverymem.Config{TTL: -1})
		leases := map[[2]string]discovery.Lease{}
		return discoverytest.Source{
			Resolver: r,
			Put: func(t *testing.T, service string, instances ...discovery.Instance) {
				keep := map[[2]string]bool{}
				for _, in := range instances {
					in.Service = service
					key := [2]string{service, in.Addr}
					keep[key] = true
					if leases[key] != nil {
						continue
					}
					lease, err := r.Register(t.Context(), in)
					if err != nil {
						t.Fatal(err)
					}
					leases[key] = lease
				}
				for key, lease := range leases {
					if key[0] == service && !keep[key] {
						if err := lease.Deregister(t.Context()); err != nil {
							t.Fatal(err)
						}
						delete(leases, key)
					}
				}
			},
			Outage: func(_ *testing.T, on bool) {
				if on {
					r.SetOutage(errors.New("registry: connection refused"))
				} else {
					r.SetOutage(nil)
				}
			},
		}
	})
}

func TestOutage(t *testing.T) {
	t.Run("leases run on while the registry is cut off", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := open(t, discoverymem.Config{TTL: 10 * time.Second})
			if _, err := r.Register(t.Context(), discovery.Instance{Service: "order", Addr: "10.0.0.1:80"}); err != nil {
				t.Fatal(err)
			}
			away := errors.New("cut off")
			r.SetOutage(away)
			if _, err := r.Register(t.Context(), discovery.Instance{Service: "order", Addr: "10.0.0.2:80"}); !errors.Is(err, away) {
				t.Errorf("Register = %v, want %v", err, away)
			}
			time.Sleep(10 * time.Second)
			r.SetOutage(nil)
			for set, err := range r.Watch(t.Context(), "order") {
				if err != nil || len(set.Instances) != 0 {
					t.Errorf("Watch yields %v, %v, want the empty set", set.Instances, err)
				}
				break
			}
		})
	})
}

// Two services live in one process: one announces itself, the other looks for it.
func Example() {
	registry, err := discoverymem.New(discoverymem.Config{})
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var g sync.WaitGroup
	a, err := discovery.NewAnnouncement(registry, discovery.Instance{ID: "order-1", Service: "order", Addr: "127.0.0.1:8081"}, discovery.AnnounceConfig{})
	if err != nil {
		panic(err)
	}
	g.Go(func() { _ = a.Run(ctx) })
	<-a.Registered()

	for set, err := range registry.Watch(context.Background(), "order") {
		fmt.Println(len(set.Instances), err)
		if len(set.Instances) == 0 {
			break
		}
		stop() // Run takes the registration back
	}
	g.Wait()
	// Output:
	// 1 <nil>
	// 0 <nil>
}
