// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
)

// TestProviderDown cuts the payment provider off: the shop still answers, orders wait, the breaker
// opens, and all of it recovers by itself.
func TestProviderDown(t *testing.T) {
	shop := openShop(t).stocked()
	operator := shop.as("operator@shop.example", "dovetail-operator")
	a := shop.newcomer()
	breaker := func(service, to string) (state string) {
		t.Helper()
		var list struct {
			Items []struct {
				Service string
				Items   []struct{ To, State string }
			}
		}
		operator.want(http.StatusOK, operator.send("GET", "/ops/api/breakers", nil, nil), &list)
		for _, s := range list.Items {
			for _, b := range s.Items {
				if s.Service == service && b.To == to {
					return b.State
				}
			}
		}
		return "unknown"
	}

	end := operator.harm("provider-down", "", 0)
	var waiting []string
	for range 3 {
		waiting = append(waiting, a.place("pm_visa", lineItem{"product_id": "p-040", "quantity": 1}))
	}
	eventually(t, func() error {
		if state := breaker("payment", "provider"); state != "open" && state != "half-open" {
			return fmt.Errorf("breaker from payment to provider is %s, want it open", state)
		}
		return nil
	})
	a.want(http.StatusOK, a.send("GET", "/api/products", nil, nil), nil)
	for _, id := range waiting {
		var page orderPage
		a.want(http.StatusOK, a.send("GET", "/api/orders/"+id, nil, nil), &page)
		if page.Status != "pending" {
			t.Errorf("order is %s, want it pending", page.Status)
		}
	}

	end()
	for _, id := range waiting {
		a.ends(id, "confirmed")
		// The page's parts are asked for at once: its payment may have been, and its order not yet.
		if page := a.ends(id, "confirmed"); page.Payment == nil || page.Payment.Status != "captured" {
			t.Errorf("payment = %+v, want it captured", page.Payment)
		}
	}
	eventually(t, func() error {
		if state := breaker("payment", "provider"); state != "closed" {
			return fmt.Errorf("breaker from payment to provider is %s, want it closed", state)
		}
		return nil
	})

	operator.harm("provider-declining", "", 0)
	if page := a.ends(a.place("pm_visa", lineItem{"product_id": "p-040", "quantity": 1}), "rejected"); page.Reason != "declined" {
		t.Errorf("reason = %q, want declined", page.Reason)
	}
}

func TestTooFast(t *testing.T) {
	shop := openShop(t)
	t.Run("guessing a password is slowed down", func(t *testing.T) {
		for range 60 { // each takes a while by design, and a new try comes every six seconds
			got := shop.send("POST", "/api/sessions", nil, map[string]string{"email": "ben@shop.example", "password": "guess-guess"})
			if got.status == http.StatusTooManyRequests {
				shop.wantProblem(429, "too-many-requests", "", got)
				if got.header.Get("Retry-After") == "" {
					t.Error("Retry-After is missing")
				}
				return
			}
			shop.wantProblem(401, "bad-credentials", "", got)
		}
		t.Error("60 guesses, want one of them refused")
	})
	t.Run("a person has a quota", func(t *testing.T) {
		// Of all that a person may ask, this costs the shop the least: the gateway answers it by itself. So
		// a busy machine too can ask for it faster than the quota allows.
		a := shop.as("operator@shop.example", "dovetail-operator")
		refusedAtLast(a, func() answer { return a.send("POST", "/ops/api/dead-letters/nobody/none/replay", nil, nil) })
	})
	t.Run("so has an address whose people have not said who they are", func(t *testing.T) {
		refusedAtLast(shop, func() answer { return shop.send("POST", "/api/customers", nil, "{") })
	})
}

// refusedAtLast asks as fast as it goes, and wants one of many answers to say that this is too fast.
func refusedAtLast(a *api, ask func() answer) {
	a.t.Helper()
	refused := make(chan answer, 1)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 1000 {
				if got := ask(); got.status == http.StatusTooManyRequests {
					select {
					case refused <- got:
					default:
					}
				}
				if len(refused) > 0 {
					return
				}
			}
		})
	}
	all.Wait()
	select {
	case got := <-refused:
		a.wantProblem(429, "too-many-requests", "", got)
		if got.header.Get("Retry-After") == "" {
			a.t.Error("Retry-After is missing")
		}
	default:
		a.t.Error("16,000 requests as fast as they go, want one of them refused")
	}
}
