// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

type Placed struct {
	Order string `json:"order"`
	Total int    `json:"total"`
}

type listener func(ctx context.Context, p Placed) error

type oldShop struct{ mails, statistics listener }

// snippet: messaging/before
// Whoever wants to know of an order is called here, one after the other.
func (s *oldShop) placed(ctx context.Context, p Placed) error {
	if err := s.mails(ctx, p); err != nil {
		return err // and statistics never hears of it
	}
	return s.statistics(ctx, p)
}

// end

// snippet: messaging/after
type Shop struct{ broker messaging.Publisher }

func (s *Shop) placed(ctx context.Context, p Placed) error {
	m, err := messaging.Encode(messaging.JSON, messaging.Message{
		Topic: "order.placed", Key: p.Order, Type: "order.placed.v1",
	}, p)
	if err != nil {
		return err
	}
	return s.broker.Publish(ctx, m) // nil: every group bound to the topic has it
}

// end

// snippet: messaging/consumer
var mails = messaging.Subscription{
	Group:       "mails",             // each group gets every message, its members share them
	Topics:      []string{"order.*"}, // one word for *, any number for #
	Concurrency: 16,
	Ordered:     true, // the messages of one Key one after another
}

func runMails(ctx context.Context, broker messaging.Subscriber, send listener) error {
	handler := messaging.Typed(messaging.JSON, func(ctx context.Context, p Placed, _ *messaging.Delivery) error {
		if p.Total < 0 {
			return messaging.Reject(errors.New("total is negative")) // a dead letter, at once
		}
		return send(ctx, p) // an error: delivered again, later and later
	})
	return broker.Subscribe(ctx, mails, messaging.Chain(handler, messaging.Logging(nil), messaging.Timeout(30*time.Second)))
}

// end

// snippet: messaging/brokers
type Broker interface {
	messaging.Publisher
	messaging.Subscriber
	messaging.Declarer
}

// brokerAt is all that knows which broker it is.
func brokerAt(url string) (Broker, error) {
	if url == "" { // tests, and one process without a broker
		return messagingmem.New(messagingmem.Config{ConfirmOnAck: true})
	}
	return rabbitkit.New(url, rabbitkit.Config{Exchange: "shop", Name: "order-1"})
}

// end

func TestMessagingGuide(t *testing.T) {
	heard := 0
	hear := func(context.Context, Placed) error { heard++; return nil }
	if err := (&oldShop{hear, hear}).placed(t.Context(), Placed{Order: "7"}); err != nil || heard != 2 {
		t.Errorf("placed = %v, %d heard of it", err, heard)
	}
	for _, url := range []string{"", "amqp://127.0.0.1:1/"} {
		if _, err := brokerAt(url); err != nil {
			t.Errorf("brokerAt(%q) = %v", url, err)
		}
	}
}

// snippet: messaging/test
func TestMailsAreSentAndBadOrdersSetAside(t *testing.T) {
	// Publish returns when the handlers are done: nothing to wait for.
	broker, err := messagingmem.New(messagingmem.Config{ConfirmOnAck: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := broker.Declare(t.Context(), mails); err != nil { // before anything is published
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	sent, ended := make(chan Placed, 1), make(chan error)
	go func() {
		ended <- runMails(ctx, broker, func(_ context.Context, p Placed) error { sent <- p; return nil })
	}()

	shop := &Shop{broker: broker}
	if err := errors.Join(shop.placed(ctx, Placed{Order: "7", Total: 42}), shop.placed(ctx, Placed{Order: "8", Total: -1})); err != nil {
		t.Fatal(err)
	}
	if p := <-sent; p.Order != "7" {
		t.Errorf("mailed %+v, want order 7", p)
	}
	dead := broker.DeadLetters()
	if len(dead) != 1 || dead[0].Message.Key != "8" || dead[0].Reason != "total is negative" {
		t.Errorf("dead letters: %+v, want order 8", dead)
	}
	stop() // a drain: handlers finish
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// end
