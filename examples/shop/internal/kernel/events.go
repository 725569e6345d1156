// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/cloudevents"
)

// Topics of the shop's events. A topic says what happened; the type in the message
// adds the version of its schema.
const (
	TopicCustomerRegistered = "customer.registered"
	TopicProductChanged     = "catalog.product_changed"
	TopicStockChanged       = "inventory.stock_changed"
	TopicOrderPlaced        = "order.placed"
	TopicOrderConfirmed     = "order.confirmed"
	TopicOrderRejected      = "order.rejected"
	TopicOrderCancelled     = "order.cancelled"
	TopicOrderDispatched    = "order.dispatched"
	TopicPaymentChanged     = "payment.changed"
	TopicShipmentDispatched = "shipping.dispatched"
)

// Event is the content of a message that tells what happened.
type Event interface {
	// Describe returns the message's topic, its ordering key and the version of its schema.
	Describe() (topic, key string, version int)
}

// CustomerRegistered tells that somebody signed up.
type CustomerRegistered struct {
	CustomerID string `json:"customer_id"`
	Name       string `json:"name"`
	Email      string `json:"email"`
}

// Describe implements [Event].
func (e CustomerRegistered) Describe() (topic, key string, version int) {
	return TopicCustomerRegistered, e.CustomerID, 1
}

// ProductChanged carries the whole product as it is since this revision.
type ProductChanged struct {
	ProductID string `json:"product_id"`
	// Revision counts the changes of this product from 1.
	Revision int64  `json:"revision"`
	Name     string `json:"name"`
	Category string `json:"category"`
	Price    Money  `json:"price"`
	// Currency is that of Price. Empty in events of before it was told means [Currency].
	Currency string `json:"currency"`
	// InitialStock is what inventory starts with when it first hears of the product.
	InitialStock int64 `json:"initial_stock"`
}

// Describe implements [Event].
func (e ProductChanged) Describe() (topic, key string, version int) {
	return TopicProductChanged, e.ProductID, 1
}

// StockChanged carries how many pieces can be reserved since this revision.
type StockChanged struct {
	ProductID string `json:"product_id"`
	Revision  int64  `json:"revision"`
	Available int64  `json:"available"`
}

// Describe implements [Event].
func (e StockChanged) Describe() (topic, key string, version int) {
	return TopicStockChanged, e.ProductID, 1
}

// OrderLine is one position of an order at the price when it was placed.
type OrderLine struct {
	ProductID string `json:"product_id"`
	Name      string `json:"name"`
	Quantity  int64  `json:"quantity"`
	Price     Money  `json:"price"`
}

// OrderChanged is the content of every order event: the order as it is then. The
// topic tells what happened to it.
type OrderChanged struct {
	// What is the topic of the event, one of the TopicOrder constants.
	What       string      `json:"what"`
	OrderID    string      `json:"order_id"`
	CustomerID string      `json:"customer_id"`
	Total      Money       `json:"total"`
	Currency   string      `json:"currency"`
	Lines      []OrderLine `json:"lines"`
	// Method is how the customer pays.
	Method string `json:"payment_method,omitempty"`
	// Reason tells why a rejected or cancelled order ended so.
	Reason string `json:"reason,omitempty"`
	// Tracking is the carrier's number of a dispatched order's parcel.
	Tracking string `json:"tracking,omitempty"`
}

// Describe implements [Event].
func (e OrderChanged) Describe() (topic, key string, version int) {
	return e.What, e.OrderID, 1
}

// PaymentChanged tells the new state of an order's payment.
type PaymentChanged struct {
	OrderID string `json:"order_id"`
	// Revision counts what was told of this payment from 1: of two, the greater is the later.
	Revision int64  `json:"revision"`
	Status   string `json:"status"`
	Amount   Money  `json:"amount"`
	Currency string `json:"currency"`
	// CustomerID is whose order it is. Empty in events of before it was told.
	CustomerID string `json:"customer_id,omitempty"`
}

// Describe implements [Event].
func (e PaymentChanged) Describe() (topic, key string, version int) {
	return TopicPaymentChanged, e.OrderID, 1
}

// ShipmentDispatched tells that an order's parcel has left.
type ShipmentDispatched struct {
	OrderID    string `json:"order_id"`
	CustomerID string `json:"customer_id"`
	// Tracking is the carrier's number of the parcel.
	Tracking string `json:"tracking"`
}

// Describe implements [Event].
func (e ShipmentDispatched) Describe() (topic, key string, version int) {
	return TopicShipmentDispatched, e.OrderID, 1
}

// CloudEvent makes a message of the named service a CloudEvent: its header gets all attributes under the names that
// AMQP's binding gives them. RabbitMQ carries headers as they are, so whoever knows CloudEvents understands what the
// shop tells. The error names the field that has no place in one. The header that m had is not changed.
func CloudEvent(m *messaging.Message, source string) error {
	whole := *m
	whole.Header = messaging.Header{"content-type": "application/json"}
	maps.Copy(whole.Header, m.Header)
	if m.Key != "" {
		whole.Header[cloudevents.Prefix+"subject"] = m.Key
	}
	h, err := cloudevents.AMQP.Encode(&whole, "/shop/"+source)
	if err != nil {
		return fmt.Errorf("kernel: event %s: %w", m.Topic, err)
	}
	m.Header = h
	return nil
}

// NewMessage wraps an event as a message of the named service.
func NewMessage(source string, e Event) (*messaging.Message, error) {
	topic, key, version := e.Describe()
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("kernel: event %s: %w", topic, err)
	}
	m := &messaging.Message{ID: NewID(), Topic: topic, Key: key, Type: fmt.Sprintf("%s.v%d", topic, version), Time: time.Now().UTC(), Body: body}
	if err := CloudEvent(m, source); err != nil {
		return nil, err
	}
	return m, nil
}
