// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
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
			if err := a.hasMails("Welcome to the shop", "We have received your order", "Your payment is authorised", "Your receipt", "Your order is confirmed",
				"Your order is on its way", "Your invoice"); err != nil {
				return err
			}
			var page orderPage
			a.want(http.StatusOK, a.send("GET", "/api/orders/"+id, nil, nil), &page)
			if page.Shipment == nil || page.Shipment.Recipient != a.me().Name {
				return fmt.Errorf("shipment = %+v, want it sent to %s", page.Shipment, a.me().Name)
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
		if placed := shop.seenBy(t).rebuilds(); placed != len(accepted) {
			t.Errorf("%d orders placed, want %d", placed, len(accepted))
		}
		verify(t, check.Files(data), accepted)
	})

	t.Run("figures that are not those of the stream are found", func(t *testing.T) {
		testFalseFigures(shop.seenBy(t), check.Files(data), func(statement string) { harm(t, filepath.Join(data, "reporting.db"), statement) })
	})
}

// verifies that the books balance, and again with figures that reporting has read from the beginning.
func (a *api) verifies(open func(service string) (*sql.DB, error), accepted []string) {
	a.t.Helper()
	verify(a.t, open, accepted)
	a.rebuilds()
	verify(a.t, open, accepted)
}

// rebuilds has reporting read everything again from the beginning, beside the figures that it has, and waits until
// the new ones have taken their place: only equal ones do. It returns how many orders were placed by them.
func (a *api) rebuilds() (placed int) {
	a.t.Helper()
	status, differences, placed := a.rebuild()
	if status != "serving" {
		a.t.Fatalf("the stream, read again, is %s: %s differ; want the same figures", status, differences)
	}
	return placed
}

// rebuild has reporting read everything again, and waits until that has come to something.
func (a *api) rebuild() (status, differences string, placed int) {
	a.t.Helper()
	operator := a.as("operator@shop.example", "dovetail-operator")
	var build struct{ Build int }
	eventually(a.t, func() error {
		got := operator.send("POST", "/ops/api/reporting/rebuild", nil, nil)
		if got.status == http.StatusServiceUnavailable {
			return fmt.Errorf("rebuild: %s", got.body)
		}
		operator.want(http.StatusAccepted, got, &build)
		return nil
	})
	eventuallyWithin(a.t, stormPatience, func() error {
		var figures struct {
			Days   []struct{ Placed int }
			Builds []struct {
				Build               int
				Status, Differences string
			}
		}
		got := operator.send("GET", "/ops/api/reporting", nil, nil)
		if got.status == http.StatusServiceUnavailable {
			return fmt.Errorf("reporting: %s", got.body)
		}
		operator.want(http.StatusOK, got, &figures)
		for _, b := range figures.Builds {
			if b.Build == build.Build && b.Status != "building" {
				status, differences, placed = b.Status, b.Differences, 0
				for _, d := range figures.Days {
					placed += d.Placed
				}
				return nil
			}
		}
		return fmt.Errorf("builds %+v, want build %d at its end", figures.Builds, build.Build)
	})
	return status, differences, placed
}

// testFalseFigures changes figures that reporting alone has: nobody knows until the stream is read again. Then they are
// a violation, until they have been mended and read again.
func testFalseFigures(shop *api, open func(service string) (*sql.DB, error), change func(statement string)) {
	t := shop.t
	t.Helper()
	change(`UPDATE products SET revenue = revenue + 1`)
	if status, differences, _ := shop.rebuild(); status != "different" || !strings.Contains(differences, "products") {
		t.Errorf("the stream, read again, is %s (%s), want the products different", status, differences)
	}
	invariants, err := check.Run(t.Context(), open, nil, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if reporting := invariants[6]; !slices.ContainsFunc(reporting.Violations, func(v string) bool { return strings.Contains(v, "rows of products differ") }) {
		t.Errorf("invariant %d: %v, want the rebuild that came to other products", reporting.Number, reporting.Violations)
	}
	change(`UPDATE products SET revenue = revenue - 1`)
	shop.rebuilds()
	verify(t, open, nil)
}
