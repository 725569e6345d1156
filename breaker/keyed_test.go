// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package breaker_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/fault"
)

func TestKeyed(t *testing.T) {
	t.Run("keys do not share their state", func(t *testing.T) {
		k, err := breaker.NewKeyed[string](breaker.Config{Name: "payments"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		repeat(t.Context(), k.Get("a:80"), 5, fail)
		var r *fault.Rejection
		if err := k.Get("a:80").Do(t.Context(), succeed); !errors.As(err, &r) || r.Name != "payments a:80" {
			t.Errorf("Do = %v, want a rejection by payments a:80", err)
		}
		if err := k.Get("b:80").Do(t.Context(), succeed); err != nil {
			t.Errorf("Do = %v, want nil", err)
		}
	})
	t.Run("memory is bounded and open breakers are kept", func(t *testing.T) {
		k, err := breaker.NewKeyed[int](breaker.Config{}, 100)
		if err != nil {
			t.Fatal(err)
		}
		repeat(t.Context(), k.Get(-1), 5, fail)
		for i := range 10_000 {
			k.Get(i)
		}
		n := 0
		for range k.All() {
			n++
		}
		if n != 100 {
			t.Errorf("%d breakers, want 100", n)
		}
		wantState(t, k.Get(-1), breaker.Open)
	})
	t.Run("Reconfigure reaches present and future breakers", func(t *testing.T) {
		k, err := breaker.NewKeyed[string](breaker.Config{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		repeat(t.Context(), k.Get("a"), 2, fail)
		if err := k.Reconfigure(breaker.Config{Consecutive: 3}); err != nil {
			t.Fatal(err)
		}
		repeat(t.Context(), k.Get("a"), 1, fail)
		repeat(t.Context(), k.Get("b"), 3, fail)
		wantState(t, k.Get("a"), breaker.Open)
		wantState(t, k.Get("b"), breaker.Open)
	})
	t.Run("a wrong configuration is named", func(t *testing.T) {
		if _, err := breaker.NewKeyed[int](breaker.Config{Probes: -1}, 0); err == nil || !strings.Contains(err.Error(), "Config.Probes") {
			t.Errorf("NewKeyed = %v, want an error that names Config.Probes", err)
		}
		k, err := breaker.NewKeyed[int](breaker.Config{}, -1)
		if err == nil || err.Error() != "breaker: NewKeyed limit is -1, want 0 or more" {
			t.Errorf("NewKeyed = %v, %v", k, err)
		}
		k, _ = breaker.NewKeyed[int](breaker.Config{}, 0)
		if err := k.Reconfigure(breaker.Config{Probes: -1}); err == nil {
			t.Error("Reconfigure = nil, want an error")
		}
	})
}
