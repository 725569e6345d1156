// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package balancing measures what a pick costs, what callers feel when one of ten instances is
// ill, and how fast a change in Consul reaches the balancer, beside kratos and go-kit.
//
// The last part needs DOVETAIL_CONSUL_ADDR.
package balancing

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
)

// Peers are the modules that are compared with.
var Peers = []string{"github.com/go-kratos/kratos/v2", "github.com/go-kit/kit", "github.com/hashicorp/consul/api"}

// Report measures all and writes the tables to w. The parts after the first take about a
// minute each, whatever each says: they show what happens over time.
func Report(ctx context.Context, stdout, w io.Writer, rounds int, each time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := picks(ctx, stdout, w, rounds, each); err != nil {
		return err
	}
	if err := quality(ctx, stdout, w, rounds); err != nil {
		return err
	}
	return propagation(ctx, stdout, w)
}

// many returns n instances of equal weight.
func many(n int) []discovery.Instance {
	all := make([]discovery.Instance, n)
	for i := range all {
		all[i] = discovery.Instance{ID: fmt.Sprintf("i%04d", i), Addr: fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1)}
	}
	return all
}

// ours returns a balancer that knows n instances, and runs until ctx ends.
func ours(ctx context.Context, cfg balance.Config, n int) (*balance.Balancer, error) {
	resolver, err := discovery.NewStatic(map[string][]discovery.Instance{"order": many(n)})
	if err != nil {
		return nil, err
	}
	b, err := balance.New(resolver, "order", cfg)
	if err != nil {
		return nil, err
	}
	go func() { _ = b.Run(ctx) }()
	lease, err := b.Pick(ctx)
	lease.Done(0)
	return b, err
}
