// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/fault"
)

var pickers = []struct {
	name   string
	picker balance.Picker
}{
	{"RoundRobin", balance.RoundRobin{}},
	{"Weighted", balance.Weighted{}},
	{"LeastRequests", balance.LeastRequests{}},
	{"PeakEWMA", balance.PeakEWMA{}},
	{"ConsistentHash", balance.ConsistentHash{}},
}

func many(n int) []discovery.Instance {
	all := make([]discovery.Instance, n)
	for i := range all {
		all[i] = discovery.Instance{ID: fmt.Sprintf("i%04d", i), Addr: fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1), Weight: i%4 + 1}
	}
	return all
}

// BenchmarkPick is one pick and its end.
func BenchmarkPick(b *testing.B) {
	for _, p := range pickers {
		for _, n := range []int{2, 10, 100, 1000} {
			b.Run(fmt.Sprintf("%s/%d", p.name, n), func(b *testing.B) {
				balancer := run(b, balance.Config{Picker: p.picker}, many(n)...)
				hint := balance.Hint{Key: "customer-17"}
				b.ReportAllocs()
				for b.Loop() {
					lease, err := balancer.PickFor(context.Background(), hint)
					if err != nil {
						b.Fatal(err)
					}
					lease.Done(fault.Success)
				}
			})
		}
	}
}

func BenchmarkPickParallel(b *testing.B) {
	for _, p := range pickers {
		b.Run(p.name, func(b *testing.B) {
			balancer := run(b, balance.Config{Picker: p.picker}, many(10)...)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					lease, err := balancer.Pick(context.Background())
					if err != nil {
						b.Error(err)
						return
					}
					lease.Done(fault.Success)
				}
			})
		})
	}
}

// BenchmarkTransport is what the transport does beside the call itself.
func BenchmarkTransport(b *testing.B) {
	network := base(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
	})
	transport := runTransport(b, balance.TransportConfig{Base: network}, many(10)...)
	req := request(b, http.MethodGet, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := transport.RoundTrip(req); err != nil {
			b.Fatal(err)
		}
	}
}
