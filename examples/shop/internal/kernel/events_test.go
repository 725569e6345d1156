// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"maps"
	"reflect"
	"testing"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/cloudevents"
)

var events = map[string]kernel.Event{
	"customer.registered.v1":     kernel.CustomerRegistered{CustomerID: "7"},
	"catalog.product_changed.v1": kernel.ProductChanged{ProductID: "7"},
	"inventory.stock_changed.v1": kernel.StockChanged{ProductID: "7"},
	"order.placed.v1":            kernel.OrderChanged{What: kernel.TopicOrderPlaced, OrderID: "7"},
	"payment.changed.v1":         kernel.PaymentChanged{OrderID: "7"},
	"shipping.dispatched.v1":     kernel.ShipmentDispatched{OrderID: "7"},
}

// TestCloudEvents reads every event as one who knows nothing of the shop but CloudEvents.
func TestCloudEvents(t *testing.T) {
	for name, e := range events {
		m, err := kernel.NewMessage("here", e)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := cloudevents.AMQP.Decode(m.Header, m.Body)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := messaging.Header{"ce-source": "/shop/here", "ce-subject": "7", "content-type": "application/json"}
		if got.ID != m.ID || got.Type != name || got.Key != "7" || !got.Time.Equal(m.Time) || !maps.Equal(got.Header, want) || m.Header["cloudEvents_specversion"] != "1.0" {
			t.Errorf("%s: read as %+v from %v, want what it is and %v", name, got, m.Header, want)
		}
	}
}

func TestCloudEvent(t *testing.T) {
	h := messaging.Header{"traceparent": "00-x", "ce-dataschema": "/schemas/a"}
	m := &messaging.Message{ID: "1", Topic: "a.b", Type: "a.b.v1", Header: h}
	if err := kernel.CloudEvent(m, "here"); err != nil {
		t.Fatal(err)
	}
	want := messaging.Header{
		"traceparent": "00-x", "content-type": "application/json", "cloudEvents_specversion": "1.0", "cloudEvents_id": "1",
		"cloudEvents_type": "a.b.v1", "cloudEvents_source": "/shop/here", "cloudEvents_dataschema": "/schemas/a",
	}
	if !maps.Equal(m.Header, want) || len(h) != 2 {
		t.Errorf("header = %v, want %v; and the one before is %v, want it as it was", m.Header, want, h)
	}
	if err := kernel.CloudEvent(&messaging.Message{ID: "1", Topic: "a.b"}, "here"); err == nil {
		t.Error("a message without a type is a CloudEvent, want an error")
	}
}

// TestMoneyHasACurrency looks for amounts in events that do not say of what.
func TestMoneyHasACurrency(t *testing.T) {
	for name, e := range events {
		typ := reflect.TypeOf(e)
		_, says := typ.FieldByName("Currency")
		for i := range typ.NumField() {
			if f := typ.Field(i); f.Type == reflect.TypeFor[kernel.Money]() && !says {
				t.Errorf("%s has money in %s and no currency", name, f.Name)
			}
		}
	}
}
