// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/check"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
)

// TestDispatch lets parcels leave: shipping hears of confirmed orders and sends them, order and
// notification hear of that, reporting counts.
func TestDispatch(t *testing.T) {
	data := t.TempDir()
	shop := openShopWith(t, embedded.Config{Data: data, Packing: 200 * time.Millisecond}).stocked()
	var accepted []string

	t.Run("a confirmed order is dispatched, and its customer told", func(t *testing.T) {
		a := shop.newcomer()
		id := a.place("", lineItem{"product_id": "p-001", "quantity": 1})
		accepted = append(accepted, id)
		page := a.ends(id, "dispatched")
		if page.Shipment == nil || page.Shipment.Status != "dispatched" || page.Shipment.Tracking == "" {
			t.Errorf("shipment = %+v, want it dispatched with a tracking number", page.Shipment)
		}
		eventually(t, func() error {
			var mails struct {
				Items []struct{ Subject, Body string }
			}
			a.want(http.StatusOK, a.send("GET", "/api/me/mails", nil, nil), &mails)
			if len(mails.Items) != 4 || mails.Items[0].Subject != "Your order is on its way" || !strings.Contains(mails.Items[0].Body, page.Shipment.Tracking) {
				return fmt.Errorf("mails = %+v, want the tracking number, the confirmation, that the order is received and the welcome", mails.Items)
			}
			return nil
		})
		a.want(http.StatusConflict, a.send("POST", "/api/orders/"+id+"/cancel", http.Header{"Idempotency-Key": {"late"}}, nil), nil)
	})

	// Some parcels leave before their order's cancellation reaches shipping, some do not. Either is
	// right, and nothing in between.
	t.Run("of a cancellation and a parcel one wins", func(t *testing.T) {
		ended := map[string]int{}
		for i := range 12 {
			a := shop.newcomer()
			id := a.place("", lineItem{"product_id": "p-002", "quantity": 1})
			accepted = append(accepted, id)
			a.ends(id, "confirmed")
			time.Sleep(time.Duration(i) * 90 * time.Millisecond) // the race is the test
			answer := a.send("POST", "/api/orders/"+id+"/cancel", http.Header{"Idempotency-Key": {"cancel"}}, nil)
			if answer.status != http.StatusAccepted && answer.status != http.StatusConflict {
				t.Fatalf("cancel = %d %s, want 202 or 409", answer.status, answer.body)
			}
			eventually(t, func() error {
				var page orderPage
				a.want(http.StatusOK, a.send("GET", "/api/orders/"+id, nil, nil), &page)
				if page.Status != "dispatched" && page.Status != "cancelled" {
					return errors.New("order is " + page.Status)
				}
				ended[page.Status]++
				return nil
			})
		}
		t.Logf("of 12 orders: %v", ended)
	})

	t.Run("reporting counts, and counts the same again from the beginning", func(t *testing.T) {
		verify(t, check.Files(data), accepted)
		operator := shop.as("operator@shop.example", "dovetail-operator")
		var build struct{ Build int }
		operator.want(http.StatusAccepted, operator.send("POST", "/ops/api/reporting/rebuild", nil, nil), &build)
		eventually(t, func() error {
			var figures struct {
				Days   []struct{ Placed int }
				Builds []struct {
					Build               int
					Status, Differences string
				}
			}
			operator.want(http.StatusOK, operator.send("GET", "/ops/api/reporting", nil, nil), &figures)
			for _, b := range figures.Builds {
				if b.Build == build.Build && b.Status == "serving" {
					total := 0
					for _, d := range figures.Days {
						total += d.Placed
					}
					if total != len(accepted) {
						t.Errorf("%d orders placed, want %d", total, len(accepted))
					}
					return nil
				}
			}
			return fmt.Errorf("builds %+v, want build %d serving", figures.Builds, build.Build)
		})
		verify(t, check.Files(data), accepted)
	})
}
