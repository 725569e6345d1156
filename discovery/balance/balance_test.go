// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"context"
	"testing"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
)

const service = "order"

// run returns a balancer over the instances that runs until the test's end.
func run(t testing.TB, cfg balance.Config, instances ...discovery.Instance) *balance.Balancer {
	t.Helper()
	b, _ := runStatic(t, cfg, instances...)
	return b
}

// runStatic also returns the resolver, by which the instances can be changed.
func runStatic(t testing.TB, cfg balance.Config, instances ...discovery.Instance) (*balance.Balancer, *discovery.Static) {
	t.Helper()
	static, err := discovery.NewStatic(map[string][]discovery.Instance{service: instances})
	if err != nil {
		t.Fatal(err)
	}
	return runWith(t, static, cfg), static
}

func runWith(t testing.TB, r discovery.Resolver, cfg balance.Config) *balance.Balancer {
	t.Helper()
	b, err := balance.New(r, service, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	return b
}
