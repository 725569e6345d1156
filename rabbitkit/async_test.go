// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingtest"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

// outcome is what PublishAsync told of one message.
type outcome struct {
	err   chan error
	calls atomic.Int32
}

// begin publishes m without waiting for it.
func (s *setup) begin(t *testing.T, ctx context.Context, m *messaging.Message) *outcome {
	t.Helper()
	o := &outcome{err: make(chan error, 1)}
	if !s.PublishAsync(ctx, m, func(err error) {
		if o.calls.Add(1) == 1 {
			o.err <- err
		}
	}) {
		t.Fatal("PublishAsync = false, want true")
	}
	return o
}

// want waits for an outcome that wraps all of wanted.
func (o *outcome) want(t *testing.T, wanted ...error) {
	t.Helper()
	select {
	case err := <-o.err:
		if len(wanted) == 0 && err != nil {
			t.Errorf("done(%v), want nil", err)
		}
		for _, want := range wanted {
			if !errors.Is(err, want) {
				t.Errorf("done(%v), want it to wrap %v", err, want)
			}
		}
	case <-time.After(time.Minute):
		t.Fatal("done is not called")
	}
}

// once checks that nothing more was told, when nothing more can be.
func (o *outcome) once(t *testing.T) {
	t.Helper()
	if n := o.calls.Load(); n != 1 {
		t.Errorf("done was called %d times, want once", n)
	}
}

// ready is how many messages the queue of the group has.
func (s *setup) ready(t *testing.T) (n int) {
	t.Helper()
	s.raw(t, func(ch *amqp.Channel) {
		q, err := ch.QueueDeclarePassive(s.exchange+".group."+group().Group, true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		n = q.Messages
	})
	return n
}

func TestPublishAsync(t *testing.T) {
	var _ messaging.AsyncPublisher = (*rabbitkit.Client)(nil)
	t.Run("tells that a message is confirmed, or that it cannot be routed", func(t *testing.T) {
		s := open(t, rabbitkit.Config{})
		s.declare(t, group())
		good, lost := s.begin(t, t.Context(), msg("t", "")), s.begin(t, t.Context(), msg("nobody", ""))
		good.want(t)
		lost.want(t, messaging.ErrUnroutable)
		if st := s.Stats(); st.Confirmed != 1 || st.Unroutable != 1 || st.InFlight != 0 {
			t.Errorf("Stats = %+v, want one confirmed, one unroutable and none in flight", st)
		}
		_ = s.Close()
		good.once(t)
		lost.once(t)
	})
	t.Run("keeps the order of a key, whatever else goes over other channels", func(t *testing.T) {
		s := open(t, rabbitkit.Config{Window: 2000})
		s.declare(t, group())
		const keys, each = 16, 100
		var all []*outcome
		for i := range each {
			for k := range keys {
				m := msg("t", fmt.Sprint("k", k))
				m.Body = strconv.AppendInt(nil, int64(i), 10)
				all = append(all, s.begin(t, t.Context(), m))
			}
		}
		for _, o := range all {
			o.want(t)
		}
		next := make(map[any]int)
		s.raw(t, func(ch *amqp.Channel) {
			for range keys * each {
				d, ok, err := ch.Get(s.exchange+".group."+group().Group, true)
				if err != nil || !ok {
					t.Fatalf("Get = %t, %v, want a message", ok, err)
				}
				key := d.Headers["x-dovetail-key"]
				if string(d.Body) != strconv.Itoa(next[key]) {
					t.Errorf("message %s of key %v came, want %d", d.Body, key, next[key])
				}
				next[key]++
			}
		})
	})
	t.Run("takes no message that Publish would have to refuse or to hold up", func(t *testing.T) {
		s := open(t, rabbitkit.Config{Window: 1})
		s.declare(t, group())
		s.publish(t, msg("t", ""))
		never := func(error) { t.Error("done was called") }
		if s.PublishAsync(t.Context(), nil, never) || s.PublishAsync(t.Context(), &messaging.Message{Topic: "t"}, never) {
			t.Error("PublishAsync of a bad message = true, want false")
		}
		if !s.SetBlocked(true) {
			t.Fatal("not connected")
		}
		ctx, cancel := context.WithCancel(t.Context())
		o := s.begin(t, ctx, msg("t", ""))
		if s.PublishAsync(t.Context(), msg("t", ""), never) {
			t.Error("PublishAsync beyond the window = true, want false")
		}
		cancel()
		o.want(t, messaging.ErrBlocked, context.Canceled)
		s.SetBlocked(false)
		eventually(t, func() bool { return s.Stats().InFlight == 0 }, "the place is free again")
		s.publish(t, msg("t", ""))
		_ = s.Close()
		if s.PublishAsync(t.Context(), msg("t", ""), never) {
			t.Error("PublishAsync after Close = true, want false")
		}
		o.once(t)
	})
	t.Run("the outcome of what was sent is unknown when its context ends", func(t *testing.T) {
		s := open(t, rabbitkit.Config{Heartbeat: 10 * time.Minute})
		s.declare(t, group())
		s.publish(t, msg("t", "k"))
		s.proxy.Stall(messagingtest.ToClient)
		ctx, cancel := context.WithCancel(t.Context())
		o := s.begin(t, ctx, msg("t", "k"))
		// It has been sent when the broker has it.
		eventually(t, func() bool { return s.ready(t) == 2 }, "the message is in the queue")
		cancel()
		o.want(t, messaging.ErrUnknown, context.Canceled)
		s.proxy.Heal()
		eventually(t, func() bool { return s.Stats().InFlight == 0 }, "the late confirmation frees the place")
		o.once(t)
	})
	t.Run("the outcome is unknown when the connection is lost", func(t *testing.T) {
		s := open(t, rabbitkit.Config{})
		s.declare(t, group())
		s.publish(t, msg("t", "k"))
		s.proxy.Stall(messagingtest.ToClient)
		o := s.begin(t, t.Context(), msg("t", "k"))
		eventually(t, func() bool { return s.ready(t) == 2 }, "the message is in the queue")
		s.proxy.Cut()
		s.proxy.Heal()
		o.want(t, messaging.ErrUnknown)
		o.once(t)
	})
	t.Run("Close ends what was not sent", func(t *testing.T) {
		s := open(t, rabbitkit.Config{})
		s.declare(t, group())
		s.publish(t, msg("t", "k"))
		if !s.SetBlocked(true) {
			t.Fatal("not connected")
		}
		a, b := s.begin(t, t.Context(), msg("t", "k")), s.begin(t, t.Context(), msg("t", "k"))
		_ = s.Close()
		for _, o := range []*outcome{a, b} {
			select {
			case err := <-o.err:
				// The first may have been on its way when the broker was blocked.
				if !errors.Is(err, messaging.ErrClosed) && !errors.Is(err, messaging.ErrUnknown) {
					t.Errorf("done(%v), want ErrClosed or ErrUnknown", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("done is not called")
			}
			o.once(t)
		}
	})
}
