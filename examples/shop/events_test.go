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
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
	"github.com/dovetail-go/dovetail/examples/shop/internal/check"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/cloudevents"
)

// TestWithoutPayment kills payment after it has told order of its payments: customers still see how far those came.
func TestWithoutPayment(t *testing.T) {
	shop := openShop(t).stocked()
	operator, buyer := shop.as("operator@shop.example", "dovetail-operator"), shop.newcomer()
	id := buyer.place("", lineItem{"product_id": "p-001", "quantity": 1})
	buyer.ends(id, "confirmed")
	type order struct {
		PaymentStatus string `json:"payment_status"`
	}
	eventually(t, func() error { // what payment has not told yet, it tells when it is back
		var list struct{ Items []order }
		buyer.want(http.StatusOK, buyer.send("GET", "/api/me/orders", nil, nil), &list)
		if len(list.Items) != 1 || list.Items[0].PaymentStatus != "captured" {
			return fmt.Errorf("the orders are %+v, want one whose payment is captured", list.Items)
		}
		return nil
	})

	end := operator.harm(chaos.Kill, "payment", 0)
	defer end()
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

// currencies are those that an event names where it tells of money. The keys of its amounts are the same in all events.
type currencies struct {
	Price, Total, Amount *int64
	Currency             string
}

func (c currencies) missing() bool {
	return (c.Price != nil || c.Total != nil || c.Amount != nil) && c.Currency != "EUR"
}

// TestEventsOfAShop reads everything that an embedded shop has told, as CloudEvents: by attributes that every event has, and
// with a currency wherever there is money.
func TestEventsOfAShop(t *testing.T) {
	data := t.TempDir()
	shop := openShopWith(t, embedded.Config{Data: data, Packing: time.Millisecond}).stocked()
	buyer := shop.newcomer()
	buyer.ends(buyer.place("", lineItem{"product_id": "p-001", "quantity": 1}), "dispatched")
	journal, err := check.Files(data)("journal")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = journal.Close() }()
	wanted := []string{
		"customer.registered", "catalog.product_changed", "inventory.stock_changed", "order.placed", "order.confirmed", "order.dispatched",
		"payment.changed", "shipping.dispatched",
	}
	eventually(t, func() error { // an event is told after it has happened
		messages, err := platform.Collect(t.Context(), journal, func(row interface{ Scan(dest ...any) error }) (m messaging.Message, err error) {
			var text string
			if err := row.Scan(&text); err != nil {
				return m, err
			}
			err = json.Unmarshal([]byte(text), &m)
			return m, err
		}, `SELECT message FROM messages`)
		if err != nil {
			return err
		}
		topics := map[string]bool{}
		for _, m := range messages {
			topics[m.Topic] = true
			if err := isCloudEvent(m.Header, m.Body, m.Topic, m.ID); err != nil {
				t.Fatalf("%s %v: %v", m.Topic, m.Header, err)
			}
			if strings.HasPrefix(m.Topic, "order.") && m.Header["traceparent"] == "" { // somebody's click
				t.Fatalf("%s %v has no trace", m.Topic, m.Header)
			}
		}
		for _, want := range wanted {
			if !topics[want] {
				return fmt.Errorf("nothing of %s was told; there is %v", want, topics)
			}
		}
		return nil
	})
}

// isCloudEvent reads a message as one who knows nothing but AMQP's binding of CloudEvents.
func isCloudEvent(h messaging.Header, body []byte, topic, id string) error {
	e, err := cloudevents.AMQP.Decode(h, body)
	if err != nil {
		return err
	}
	source := "/shop/" + strings.Split(topic, ".")[0]
	if e.ID != id || e.Type != topic+".v1" || e.Header["ce-source"] != source || e.Header["ce-subject"] == "" || e.Header["ce-subject"] != e.Key || e.Time.IsZero() {
		return fmt.Errorf("read as %+v, want ID %s, %s.v1 from %s, with a time and a subject", e, id, topic, source)
	}
	var c currencies
	if err := json.Unmarshal(e.Body, &c); err != nil || c.missing() {
		return fmt.Errorf("%s (%v) has money and no currency", e.Body, err)
	}
	return nil
}

// testCloudEvents listens at RabbitMQ as a program does that is not the shop's, and has no library of ours in its way.
func testCloudEvents(t *testing.T, shop *stackShop) {
	conn, err := amqp091.Dial(shop.settings[stack.RabbitMQVar])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	channel, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	queue, err := channel.QueueDeclare("", false, true, true, false, nil)
	if err == nil {
		err = channel.QueueBind(queue.Name, "#", shop.settings[stack.NameVar], false, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	deliveries, err := channel.Consume(queue.Name, "", true, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	buyer := shop.seenBy(t).newcomer()
	id := buyer.place("", lineItem{"product_id": "p-001", "quantity": 1})
	buyer.ends(id, "confirmed")
	waiting := map[string]bool{"customer.registered": true, "order.placed": true, "order.confirmed": true, "payment.changed": true, "inventory.stock_changed": true}
	for deadline := time.After(time.Minute); len(waiting) > 0; {
		select {
		case d, ok := <-deliveries:
			if !ok {
				t.Fatal("the broker has ended the subscription")
			}
			h := messaging.Header{}
			for name, value := range d.Headers {
				h[name] = fmt.Sprint(value)
			}
			if err := isCloudEvent(h, d.Body, d.RoutingKey, d.MessageId); err != nil {
				t.Errorf("%s %v: %v", d.RoutingKey, d.Headers, err)
			}
			if d.ContentType != "application/json" {
				t.Errorf("%s is %q, want application/json", d.RoutingKey, d.ContentType)
			}
			delete(waiting, d.RoutingKey)
		case <-deadline:
			t.Fatalf("nothing is told of %v", waiting)
		}
	}
}

// testWordBetweenInstances sees that every instance of order listens to what the others tell.
func testWordBetweenInstances(t *testing.T, shop *stackShop) {
	db, err := shop.look("order")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	eventually(t, func() error {
		var listening int
		if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM pg_stat_activity WHERE query = $1`,
			fmt.Sprintf(`LISTEN "%s_order"`, shop.settings[stack.NameVar])).Scan(&listening); err != nil {
			return err
		}
		if listening != 2 {
			return fmt.Errorf("%d instances of order listen, want 2", listening)
		}
		return nil
	})
}
