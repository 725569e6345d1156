// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

// BenchmarkPublish publishes 1 KiB messages to a quorum queue, with confirmations and at
// most 100 in flight: by a blocking Publish from 100 goroutines, and by amqp091 pipelined
// by hand from one.
func BenchmarkPublish(b *testing.B) {
	const window = 100
	body := make([]byte, 1024)
	s := open(b, rabbitkit.Config{Window: window})
	s.declare(b, group())
	s.publish(b, msg("t", ""))

	b.Run("rabbitkit", func(b *testing.B) {
		var left atomic.Int64
		left.Store(int64(b.N))
		var wg sync.WaitGroup
		for range window {
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					m := &messaging.Message{ID: messaging.NewID(), Topic: "t", Body: body}
					if err := s.other.Publish(context.Background(), m); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
	b.Run("amqp091", func(b *testing.B) {
		s.raw(b, func(ch *amqp.Channel) {
			if err := ch.Confirm(false); err != nil {
				b.Fatal(err)
			}
			var flying [window]*amqp.DeferredConfirmation
			b.ResetTimer()
			for i := range b.N + window {
				if c := flying[i%window]; c != nil && !c.Wait() {
					b.Fatal("not confirmed")
				}
				flying[i%window] = nil
				if i >= b.N {
					continue
				}
				c, err := ch.PublishWithDeferredConfirmWithContext(context.Background(), s.exchange, "t", true, false, amqp.Publishing{
					DeliveryMode: amqp.Persistent, MessageId: fmt.Sprint(i), Body: body,
				})
				if err != nil {
					b.Fatal(err)
				}
				flying[i%window] = c
			}
			b.StopTimer()
		})
	})
}
