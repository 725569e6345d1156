// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
)

// TestWithoutPayment kills payment after it has told order of its payments: customers still see how far those came.
func TestWithoutPayment(t *testing.T) {
	shop := openShop(t).stocked()
	operator, buyer := shop.as("operator@shop.example", "dovetail-operator"), shop.newcomer()
	id := buyer.place("", lineItem{"product_id": "p-001", "quantity": 1})
	buyer.ends(id, "confirmed")

	end := operator.harm(chaos.Kill, "payment", 0)
	defer end()
	type order struct {
		PaymentStatus string `json:"payment_status"`
	}
	eventually(t, func() error {
		var page struct {
			order
			Partial []string
		}
		buyer.want(http.StatusOK, buyer.send("GET", "/api/orders/"+id, nil, nil), &page)
		if page.PaymentStatus != "captured" || !slices.Equal(page.Partial, []string{"payment"}) {
			return fmt.Errorf("without payment the page is %+v, want payment missing and the status captured", page)
		}
		return nil
	})
	var list struct{ Items []order }
	buyer.want(http.StatusOK, buyer.send("GET", "/api/me/orders", nil, nil), &list)
	if len(list.Items) != 1 || list.Items[0].PaymentStatus != "captured" {
		t.Errorf("the orders are %+v, want one whose payment is captured", list.Items)
	}
	live := bufio.NewScanner(buyer.watch(id))
	for event := ""; live.Scan(); {
		if name, ok := strings.CutPrefix(live.Text(), "event: "); ok {
			event = name
		}
		if data, ok := strings.CutPrefix(live.Text(), "data: "); ok && event == "status" {
			var told order
			if err := json.Unmarshal([]byte(data), &told); err != nil || told.PaymentStatus != "captured" {
				t.Errorf("the live history says %s (%v), want the payment captured", data, err)
			}
			return
		}
	}
	t.Errorf("the live history ended with %v before it said how the order is", live.Err())
}
