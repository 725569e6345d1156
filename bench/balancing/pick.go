// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balancing

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/go-kit/kit/endpoint"
	"github.com/go-kit/kit/sd"
	"github.com/go-kit/kit/sd/lb"
	"github.com/go-kratos/kratos/v2/registry"
	"github.com/go-kratos/kratos/v2/selector"
	"github.com/go-kratos/kratos/v2/selector/p2c"
	"github.com/go-kratos/kratos/v2/selector/random"
	"github.com/go-kratos/kratos/v2/selector/wrr"

	"github.com/dovetail-go/dovetail/bench/internal/run"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/fault"
)

// picks measures a pick and its end.
func picks(ctx context.Context, stdout, w io.Writer, rounds int, each time.Duration) error {
	suite := run.Suite{Title: "Balancing"}
	for _, n := range []int{3, 10, 100, 1000} {
		group := fmt.Sprintf("pick and done, %d instances", n)
		for _, c := range []struct {
			name   string
			picker balance.Picker
		}{
			{"PeakEWMA", balance.PeakEWMA{}},
			{"LeastRequests", balance.LeastRequests{}},
			{"RoundRobin", balance.RoundRobin{}},
			{"Weighted", balance.Weighted{}},
			{"ConsistentHash", balance.ConsistentHash{}},
		} {
			b, err := ours(ctx, balance.Config{Picker: c.picker}, n)
			if err != nil {
				return err
			}
			suite.Cases = append(suite.Cases, run.Case{Group: group, Name: "dovetail " + c.name, Bench: pickOurs(b)})
		}
		for _, c := range []struct {
			name    string
			builder selector.Builder
		}{
			{"p2c", p2c.NewBuilder()}, {"wrr", wrr.NewBuilder()}, {"random", random.NewBuilder()},
		} {
			suite.Cases = append(suite.Cases, run.Case{Group: group, Name: "kratos " + c.name, Bench: pickKratos(kratos(c.builder, n))})
		}
		suite.Cases = append(suite.Cases, run.Case{Group: group, Name: "go-kit round robin, without an end", Bench: pickKit(n)})
	}
	const (
		ten, thousand = "pick and done, 10 instances", "pick and done, 1000 instances"
		why           = "two readings of the clock, without which there is no latency to pick by, are about half of a pick and its end"
	)
	suite.Goals = []run.Goal{
		{What: "the default, PeakEWMA, at most a quarter of kratos p2c", Group: ten, Ours: "dovetail PeakEWMA", Theirs: "kratos p2c", Most: 0.25, Why: why},
		{What: "RoundRobin at most a quarter of kratos wrr", Group: ten, Ours: "dovetail RoundRobin", Theirs: "kratos wrr", Most: 0.25, Why: why},
		{What: "and so with 1000 instances: PeakEWMA", Group: thousand, Ours: "dovetail PeakEWMA", Theirs: "kratos p2c", Most: 0.25},
		{What: "Weighted against kratos wrr, 1000 instances", Group: thousand, Ours: "dovetail Weighted", Theirs: "kratos wrr", Most: 0.25},
	}
	results, err := suite.Run(stdout, rounds, each)
	if err != nil {
		return err
	}
	suite.Report(w, results)

	// Flatness is a ratio over groups.
	at := func(group, name string) time.Duration {
		for _, r := range results {
			if r.Group == group && r.Name == name {
				return r.CPU
			}
		}
		return 0
	}
	fmt.Fprint(w, "With 1000 instances instead of 10 a pick and its end cost times as much:\n\n| | ratio |\n| --- | ---: |\n")
	for _, name := range []string{"dovetail PeakEWMA", "dovetail LeastRequests", "dovetail RoundRobin", "dovetail Weighted", "dovetail ConsistentHash", "kratos p2c", "kratos wrr"} {
		fmt.Fprintf(w, "| %s | %.2f |\n", name, float64(at(thousand, name))/float64(at(ten, name)))
	}
	fmt.Fprint(w, "\nThe goal is flat: what grows is the share of picks that miss the processor's caches, as every instance has state of its own.\n\n")
	return nil
}

func pickOurs(b *balance.Balancer) func(*testing.B) {
	return func(tb *testing.B) {
		ctx := context.Background()
		for tb.Loop() {
			lease, err := b.Pick(ctx)
			if err != nil {
				tb.Fatal(err)
			}
			lease.Done(fault.Success)
		}
	}
}

// kratos returns a selector that knows n nodes.
func kratos(builder selector.Builder, n int) selector.Selector {
	s := builder.Build()
	nodes := make([]selector.Node, n)
	for i, in := range many(n) {
		nodes[i] = selector.NewNode("http", in.Addr, &registry.ServiceInstance{ID: in.ID, Name: "order"})
	}
	s.Apply(nodes)
	return s
}

func pickKratos(s selector.Selector) func(*testing.B) {
	return func(tb *testing.B) {
		ctx := context.Background()
		for tb.Loop() {
			_, done, err := s.Select(ctx)
			if err != nil {
				tb.Fatal(err)
			}
			done(ctx, selector.DoneInfo{})
		}
	}
}

func pickKit(n int) func(*testing.B) {
	endpoints := make(sd.FixedEndpointer, n)
	for i := range endpoints {
		endpoints[i] = endpoint.Nop
	}
	balancer := lb.NewRoundRobin(endpoints)
	return func(tb *testing.B) {
		for tb.Loop() {
			if _, err := balancer.Endpoint(); err != nil {
				tb.Fatal(err)
			}
		}
	}
}
