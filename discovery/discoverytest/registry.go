// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discoverytest

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
)

// Registered is a registry under test together with a resolver that sees it.
type Registered struct {
	// Registry is under test.
	Registry discovery.Registry
	// Resolver shows what is registered.
	Resolver discovery.Resolver
	// TTL is the registry's time to live, so short that a test can wait for its end. Zero
	// skips the subtests that wait.
	TTL time.Duration
	// Forget makes the registry lose its state. Nil where that cannot be done: its subtest
	// is skipped.
	Forget func(t *testing.T)
	// Within is how long a change may take to arrive, beyond TTL. Zero means 5 seconds.
	Within time.Duration
}

// Registry runs the suite. Each subtest opens a registry of its own.
func Registry(t *testing.T, open func(t *testing.T) Registered) {
	const service = "order"
	in := discovery.Instance{
		ID: "order-1", Service: service, Addr: "10.0.0.1:80", Zone: "a", Version: "v1.2.3", Weight: 3,
		Tags: []string{"blue"}, Meta: map[string]string{"team": "checkout"},
	}
	start := func(t *testing.T) (Registered, discovery.Lease, *watch) {
		t.Helper()
		r := open(t)
		r.Within = withDefault(r.Within)
		w := newWatch(t, r.Resolver, service, r.Within+r.TTL)
		lease, err := r.Registry.Register(t.Context(), in)
		if err != nil {
			t.Fatalf("Register = %v", err)
		}
		t.Cleanup(func() { _ = lease.Deregister(context.WithoutCancel(t.Context())) })
		if err := lease.Renew(t.Context(), discovery.Health{}); err != nil {
			t.Fatalf("Renew = %v", err)
		}
		w.wantAddrs(in.Addr)
		return r, lease, w
	}

	t.Run("a registered instance is seen with all its fields", func(t *testing.T) {
		r, _, _ := start(t)
		set := newWatch(t, r.Resolver, service, r.Within).wantAddrs(in.Addr)
		if got := set.Instances[0]; !reflect.DeepEqual(got, in) {
			t.Errorf("instance = %+v, want %+v", got, in)
		}
	})
	t.Run("one with the same ID replaces it", func(t *testing.T) {
		r, _, w := start(t)
		moved := in
		moved.Addr = "10.0.0.9:80"
		lease, err := r.Registry.Register(t.Context(), moved)
		if err != nil {
			t.Fatalf("Register = %v", err)
		}
		if err := lease.Renew(t.Context(), discovery.Health{}); err != nil {
			t.Fatalf("Renew = %v", err)
		}
		w.wantAddrs(moved.Addr)
	})
	t.Run("a failing instance is not seen until it passes again", func(t *testing.T) {
		_, lease, w := start(t)
		if err := lease.Renew(t.Context(), discovery.Health{Failing: true, Note: "no database"}); err != nil {
			t.Fatalf("Renew = %v", err)
		}
		w.wantAddrs()
		if err := lease.Renew(t.Context(), discovery.Health{}); err != nil {
			t.Fatalf("Renew = %v", err)
		}
		w.wantAddrs(in.Addr)
	})
	t.Run("an instance in maintenance is not seen until it is back", func(t *testing.T) {
		_, lease, w := start(t)
		if err := lease.Maintenance(t.Context(), true, "upgrade"); err != nil {
			t.Fatalf("Maintenance = %v", err)
		}
		w.wantAddrs()
		if err := lease.Maintenance(t.Context(), false, ""); err != nil {
			t.Fatalf("Maintenance = %v", err)
		}
		w.wantAddrs(in.Addr)
	})
	t.Run("a deregistered instance is gone, and again is no error", func(t *testing.T) {
		_, lease, w := start(t)
		for range 2 {
			if err := lease.Deregister(t.Context()); err != nil {
				t.Errorf("Deregister = %v, want nil", err)
			}
		}
		w.wantAddrs()
		if err := lease.Renew(t.Context(), discovery.Health{}); !errors.Is(err, discovery.ErrLeaseLost) {
			t.Errorf("Renew after Deregister = %v, want ErrLeaseLost", err)
		}
	})
	t.Run("a wrong instance is refused, and the error names the field", func(t *testing.T) {
		r := open(t)
		for field, wrong := range map[string]discovery.Instance{
			"Service": {Addr: in.Addr},
			"Addr":    {Service: service, Addr: "10.0.0.1"},
			"Weight":  {Service: service, Addr: in.Addr, Weight: -1},
		} {
			if _, err := r.Registry.Register(t.Context(), wrong); err == nil || !strings.Contains(err.Error(), field) {
				t.Errorf("Register(%+v) = %v, want an error that names %s", wrong, err, field)
			}
		}
		newWatch(t, r.Resolver, service, withDefault(r.Within)).wantAddrs()
	})
	t.Run("nothing is registered with a context that has ended", func(t *testing.T) {
		r := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Registry.Register(ctx, in); err == nil {
			t.Error("Register = nil, want an error")
		}
		newWatch(t, r.Resolver, service, withDefault(r.Within)).wantAddrs()
	})
	t.Run("a registry that lost its state says so at the next renewal, and takes the instance anew", func(t *testing.T) {
		r, lease, w := start(t)
		if r.Forget == nil {
			t.Skip("the registry cannot lose its state")
		}
		r.Forget(t)
		w.wantAddrs()
		if err := lease.Renew(t.Context(), discovery.Health{}); !errors.Is(err, discovery.ErrLeaseLost) {
			t.Errorf("Renew = %v, want ErrLeaseLost", err)
		}
		again, err := r.Registry.Register(t.Context(), in)
		if err != nil {
			t.Fatalf("Register = %v", err)
		}
		if err := again.Renew(t.Context(), discovery.Health{}); err != nil {
			t.Fatalf("Renew = %v", err)
		}
		w.wantAddrs(in.Addr)
	})
	t.Run("an instance that is not renewed is gone after the time to live", func(t *testing.T) {
		r, lease, w := start(t)
		if r.TTL == 0 {
			t.Skip("the time to live is too long to wait for")
		}
		w.wantAddrs()
		if err := lease.Renew(t.Context(), discovery.Health{}); !errors.Is(err, discovery.ErrLeaseLost) {
			t.Errorf("Renew = %v, want ErrLeaseLost", err)
		}
	})
	t.Run("an instance that is renewed stays", func(t *testing.T) {
		r, lease, w := start(t)
		if r.TTL == 0 {
			t.Skip("the time to live is too long to wait for")
		}
		tick := time.NewTicker(r.TTL / 5)
		defer tick.Stop()
		renewed := time.Now()
		// A machine that holds the test up for so long proves nothing.
		onTime := func() {
			if late := time.Since(renewed); late > r.TTL/2 {
				t.Skipf("the test was held up for %v of %v", late, r.TTL)
			}
		}
		for end := time.Now().Add(2 * r.TTL); time.Now().Before(end); {
			select {
			case got, ok := <-w.words:
				onTime()
				t.Fatalf("word = %v, %v (%v), want none while the lease is renewed", addrs(got.set), got.err, ok)
			case <-tick.C:
				err := lease.Renew(t.Context(), discovery.Health{})
				onTime()
				if err != nil {
					t.Fatalf("Renew = %v", err)
				}
				renewed = time.Now()
			}
		}
	})
}
