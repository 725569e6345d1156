// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balancing

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"slices"
	"time"

	kitconsul "github.com/go-kit/kit/sd/consul"
	"github.com/go-kit/log"
	"github.com/hashicorp/consul/api"

	"github.com/go-kit/kit/sd"

	"github.com/dovetail-go/dovetail/consulkit"
	"github.com/dovetail-go/dovetail/discovery/balance"
)

const changes = 150

// sight is the moment when somebody saw a number of instances.
type sight struct {
	who string
	n   int
	at  time.Time
}

// propagation measures the time from a registration with the agent, or its end, to whoever follows the
// service. All follow it at the same time, so that each change is the same for all.
func propagation(ctx context.Context, stdout, w io.Writer) error {
	fmt.Fprint(w, "### A change in Consul\n\n")
	addr := os.Getenv("DOVETAIL_CONSUL_ADDR")
	if addr == "" {
		fmt.Fprint(w, "Not run: DOVETAIL_CONSUL_ADDR is not set.\n")
		return nil
	}
	service := "bench-" + rand.Text()
	client, err := consulkit.New(&api.Config{Address: addr})
	if err != nil {
		return err
	}
	agent := client.API().Agent()
	sights := make(chan sight, 1000)
	const us, plain, kit = "dovetail: consulkit and a Balancer", "a plain loop of blocking queries", "go-kit's Instancer"

	resolver, err := consulkit.NewResolver(client, consulkit.ResolverConfig{})
	if err != nil {
		return err
	}
	balancer, err := balance.New(resolver, service, balance.Config{Hooks: balance.Hooks{Change: func(c balance.Change) {
		if c.Err == nil {
			sights <- sight{us, len(c.Set.Instances), time.Now()}
		}
	}}})
	if err != nil {
		return err
	}
	go func() { _ = balancer.Run(ctx) }()

	go func() {
		opts := &api.QueryOptions{WaitTime: time.Minute}
		for ctx.Err() == nil {
			entries, meta, err := client.API().Health().Service(service, "", true, opts.WithContext(ctx))
			if err != nil {
				continue
			}
			opts.WaitIndex = meta.LastIndex
			sights <- sight{plain, len(entries), time.Now()}
		}
	}()

	instancer := kitconsul.NewInstancer(kitconsul.NewClient(client.API()), log.NewNopLogger(), service, nil, true)
	defer instancer.Stop()
	events := make(chan sd.Event)
	go instancer.Register(events)
	defer instancer.Deregister(events)
	go func() {
		for {
			select {
			case e := <-events:
				if e.Err == nil {
					sights <- sight{kit, len(e.Instances), time.Now()}
				}
			case <-ctx.Done():
				return
			}
		}
	}()

	names := []string{us, plain, kit}
	delays := map[string][]time.Duration{}
	id := service + "-1"
	defer func() { _ = agent.ServiceDeregister(id) }()
	time.Sleep(time.Second) // until all wait for the first change
	for i := range changes {
		want := 1 - i%2
		start := time.Now()
		if want == 1 {
			err = agent.ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: service, Address: "10.0.0.1", Port: 80})
		} else {
			err = agent.ServiceDeregister(id)
		}
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for deadline := time.After(10 * time.Second); len(seen) < len(names); {
			select {
			case s := <-sights:
				if s.n == want && !seen[s.who] && s.at.After(start) {
					seen[s.who] = true
					delays[s.who] = append(delays[s.who], s.at.Sub(start))
				}
			case <-deadline:
				return fmt.Errorf("balancing: of %v only %v saw change %d", names, seen, i)
			}
		}
		time.Sleep(100*time.Millisecond + mathrand.N(200*time.Millisecond))
	}
	fmt.Fprintf(w, "From before the request to the agent that registers an instance, or ends its registration, until the change is known; %d changes, watched by all at the same time.\n\n", changes)
	fmt.Fprint(w, "| | p50 | p90 | p99 | most |\n| --- | ---: | ---: | ---: | ---: |\n")
	for _, name := range names {
		d := delays[name]
		slices.Sort(d)
		p := func(q float64) time.Duration { return d[int(q*float64(len(d)-1))] }
		fmt.Fprintf(w, "| %s | %.2f ms | %.2f ms | %.2f ms | %.2f ms |\n", name, ms(p(0.5)), ms(p(0.9)), ms(p(0.99)), ms(d[len(d)-1]))
		fmt.Fprintf(stdout, "BenchmarkChange/%s\t%d\t%d p50-ns\t%d p99-ns\n", name, len(d), p(0.5).Nanoseconds(), p(0.99).Nanoseconds())
	}
	p99 := delays[us][int(0.99*float64(len(delays[us])-1))]
	floor := delays[plain][int(0.99*float64(len(delays[plain])-1))]
	fmt.Fprint(w, "\n| goal | measured | |\n| --- | ---: | --- |\n")
	reached := verdict(p99 < 5*time.Millisecond)
	if p99 >= 5*time.Millisecond {
		reached += fmt.Sprintf(" the plain loop, which is the floor, needed %.2f ms on this machine", ms(floor))
	}
	fmt.Fprintf(w, "| p99 below 5 ms | %.2f ms | %s |\n", ms(p99), reached)
	fmt.Fprint(w, "\nkratos's registry for Consul is not published as a module of a released version that could be required here; its loop wakes up once a second.\n")
	return nil
}
