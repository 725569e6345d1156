// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

type Placed struct {
	Order string `json:"order"`
}

// snippet: watermill/before
func placedByWatermill(pub message.Publisher, p Placed) error {
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	m := message.NewMessage(watermill.NewUUID(), body)
	m.Metadata.Set("partition_key", p.Order)
	return pub.Publish("order.placed", m)
}

func newRouter(sub message.Subscriber, pub message.Publisher, mail func(Placed) error) (*message.Router, error) {
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	poison, err := middleware.PoisonQueue(pub, "poison")
	if err != nil {
		return nil, err
	}
	router.AddMiddleware(poison, middleware.Retry{MaxRetries: 3, InitialInterval: time.Millisecond}.Middleware, middleware.Recoverer)
	router.AddConsumerHandler("mails", "order.placed", sub, func(m *message.Message) error {
		var p Placed
		if err := json.Unmarshal(m.Payload, &p); err != nil {
			return err // retried three times, although it will never decode
		}
		return mail(p)
	})
	return router, nil // router.Run(ctx)
}

// end

// snippet: watermill/after
func placed(ctx context.Context, broker messaging.Publisher, p Placed) error {
	m, err := messaging.Encode(messaging.JSON, messaging.Message{Topic: "order.placed", Key: p.Order, Type: "order.placed.v1"}, p)
	if err != nil {
		return err
	}
	return broker.Publish(ctx, m)
}

var mails = messaging.Subscription{
	Group:         "mails", // in watermill a part of the subscriber's configuration
	Topics:        []string{"order.placed"},
	MaxDeliveries: 4,
	Backoff:       messaging.Backoff{Base: time.Millisecond}, // in the broker, no consumer sleeps
}

func runMails(ctx context.Context, broker messaging.Subscriber, mail func(Placed) error) error {
	return broker.Subscribe(ctx, mails, messaging.Typed(messaging.JSON, // what does not decode is a dead letter at once
		func(_ context.Context, p Placed, _ *messaging.Delivery) error { return mail(p) }))
}

// end

func TestWatermillAndMessagingDoTheSame(t *testing.T) {
	// Fails once, then works; and for one order it never does.
	flaky := func(sent chan<- string) func(Placed) error {
		var mu sync.Mutex
		tries := map[string]int{}
		return func(p Placed) error {
			mu.Lock()
			defer mu.Unlock()
			if tries[p.Order]++; p.Order == "bad" || tries[p.Order] == 1 {
				return errors.New("the mail server is away")
			}
			sent <- p.Order
			return nil
		}
	}
	t.Run("watermill", func(t *testing.T) {
		broker := gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: 16}, watermill.NopLogger{})
		sent := make(chan string, 16)
		router, err := newRouter(broker, broker, flaky(sent))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- router.Run(ctx) }()
		<-router.Running()
		dead, err := broker.Subscribe(ctx, "poison")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(placedByWatermill(broker, Placed{"bad"}), placedByWatermill(broker, Placed{"7"})); err != nil {
			t.Fatal(err)
		}
		if m := <-dead; m.Metadata.Get(middleware.ReasonForPoisonedKey) == "" || !m.Ack() {
			t.Errorf("the poison queue has %+v", m)
		}
		if order := <-sent; order != "7" {
			t.Errorf("mailed %s", order)
		}
		stop()
		if err := errors.Join(<-ended, broker.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Run("dovetail", func(t *testing.T) {
		broker, err := messagingmem.New(messagingmem.Config{ConfirmOnAck: true, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if err := broker.Declare(t.Context(), mails); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		sent, ended := make(chan string, 16), make(chan error, 1)
		go func() { ended <- runMails(ctx, broker, flaky(sent)) }()
		if err := errors.Join(placed(ctx, broker, Placed{"bad"}), placed(ctx, broker, Placed{"7"})); err != nil {
			t.Fatal(err)
		}
		if dead := broker.DeadLetters(); len(dead) != 1 || dead[0].Reason == "" {
			t.Errorf("dead letters: %+v", dead)
		}
		if order := <-sent; order != "7" {
			t.Errorf("mailed %s", order)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
