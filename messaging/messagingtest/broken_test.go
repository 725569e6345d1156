// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

// driver is an in-memory broker's client that can be broken in one place.
type driver struct {
	*messagingmem.Broker
	publish   func(ctx context.Context, msgs ...*messaging.Message) error
	subscribe func(ctx context.Context, s messaging.Subscription, h messaging.Handler) error
	declare   func(ctx context.Context, s ...messaging.Subscription) error
	dead      func([]messaging.DeadLetter) []messaging.DeadLetter
}

func (d *driver) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	return d.publish(ctx, msgs...)
}

func (d *driver) Subscribe(ctx context.Context, s messaging.Subscription, h messaging.Handler) error {
	return d.subscribe(ctx, s, h)
}

func (d *driver) Declare(ctx context.Context, s ...messaging.Subscription) error {
	return d.declare(ctx, s...)
}

// wrap lets h see every delivery before the broker's client does.
func (d *driver) wrap(h func(ctx context.Context, del *messaging.Delivery, next messaging.Handler) error) {
	d.subscribe = func(ctx context.Context, s messaging.Subscription, next messaging.Handler) error {
		if next == nil {
			return d.Broker.Subscribe(ctx, s, nil)
		}
		return d.Broker.Subscribe(ctx, s, messaging.HandlerFunc(func(ctx context.Context, del *messaging.Delivery) error {
			return h(ctx, del, next)
		}))
	}
}

// change lets f change every subscription.
func (d *driver) change(f func(*messaging.Subscription)) {
	d.subscribe = func(ctx context.Context, s messaging.Subscription, h messaging.Handler) error {
		f(&s)
		return d.Broker.Subscribe(ctx, s, h)
	}
	d.declare = func(ctx context.Context, subs ...messaging.Subscription) error {
		subs = slices.Clone(subs)
		for i := range subs {
			f(&subs[i])
		}
		return d.Broker.Declare(ctx, subs...)
	}
}

// sound opens the in-memory broker, and lets damage break it.
func sound(damage func(t *testing.T, d *driver, cfg *messagingmem.Config)) Harness {
	return Harness{
		Open: func(t *testing.T, o Options) *Client {
			cfg := messagingmem.Config{ConfirmOnAck: o.ConfirmOnAck, Capacity: o.Capacity, Logger: slog.New(slog.DiscardHandler)}
			if o.Log {
				cfg.Retain = 100
			}
			d := &driver{}
			damage(t, d, &cfg)
			b, err := messagingmem.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			d.Broker = b
			if d.publish == nil {
				d.publish = b.Publish
			}
			if d.subscribe == nil {
				d.subscribe = b.Subscribe
			}
			if d.declare == nil {
				d.declare = b.Declare
			}
			return &Client{
				Publisher: d, Subscriber: d, Declarer: d, Replay: b.Replay,
				DeadLetters: func(_ context.Context, group string) ([]messaging.DeadLetter, error) {
					dls := slices.DeleteFunc(b.DeadLetters(), func(dl messaging.DeadLetter) bool { return dl.Group != group })
					if d.dead != nil {
						dls = d.dead(dls)
					}
					return dls, nil
				},
			}
		},
		Virtual: true, Ordered: true, Log: true, Temporary: true, Unroutable: true, ConfirmOnAck: true, Capacity: true,
	}
}

// defects are ways to be wrong, each with a sentence of the suite that has to notice.
var defects = map[string]struct {
	damage func(t *testing.T, d *driver, cfg *messagingmem.Config)
	caught string
}{
	"loses every seventh confirmed message": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		var n atomic.Int64
		d.publish = func(ctx context.Context, msgs ...*messaging.Message) error {
			if len(msgs) == 1 && msgs[0].Validate() == nil && n.Add(1)%7 == 0 {
				return nil
			}
			return d.Broker.Publish(ctx, msgs...)
		}
	}, "many_goroutines_may_publish"},
	"delivers some messages twice": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.wrap(func(ctx context.Context, del *messaging.Delivery, next messaging.Handler) error {
			if err := next.Handle(ctx, del); err != nil {
				return err
			}
			return next.Handle(ctx, del)
		})
	}, "nil_acknowledges"},
	"acknowledges before the handler": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.wrap(func(ctx context.Context, del *messaging.Delivery, next messaging.Handler) error {
			_ = next.Handle(ctx, del)
			return nil
		})
	}, "an_error_delivers_again"},
	"calls an unroutable message confirmed": {func(_ *testing.T, _ *driver, cfg *messagingmem.Config) {
		cfg.DropUnroutable = true
	}, "a_topic_without_a_group_is_unroutable"},
	"sends the valid messages of an invalid call": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.publish = func(ctx context.Context, msgs ...*messaging.Message) error {
			err := messaging.Invalid(msgs)
			if err != nil {
				for _, m := range msgs {
					if m.Validate() == nil {
						_ = d.Broker.Publish(ctx, m)
					}
				}
				return err
			}
			return d.Broker.Publish(ctx, msgs...)
		}
	}, "an_invalid_message_is_refused"},
	"returns a plain error instead of naming messages": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.publish = func(ctx context.Context, msgs ...*messaging.Message) error {
			if d.Broker.Publish(ctx, msgs...) != nil {
				return errors.New("publish failed")
			}
			return nil
		}
	}, "an_invalid_message_is_refused"},
	"ignores the publisher's context": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.publish = func(ctx context.Context, msgs ...*messaging.Message) error {
			return d.Broker.Publish(context.WithoutCancel(ctx), msgs...)
		}
	}, "an_ended_context_publishes_nothing"},
	"cuts times to seconds": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.wrap(func(ctx context.Context, del *messaging.Delivery, next messaging.Handler) error {
			m, c := *del.Message, *del
			m.Time = m.Time.Truncate(time.Second)
			c.Message = &m
			return next.Handle(ctx, &c)
		})
	}, "arrives_with_every_field"},
	"gives all groups one copy": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		// Every message goes only to the group that came first.
		var mu sync.Mutex
		taken := make(map[string]string)
		d.wrap(func(ctx context.Context, del *messaging.Delivery, next messaging.Handler) error {
			mu.Lock()
			if taken[del.Message.ID] == "" {
				taken[del.Message.ID] = del.Group
			}
			mine := taken[del.Message.ID] == del.Group
			mu.Unlock()
			if !mine {
				return nil
			}
			return next.Handle(ctx, del)
		})
	}, "every_group_gets_each_message"},
	"ignores RetryAfter": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.wrap(func(ctx context.Context, del *messaging.Delivery, next messaging.Handler) error {
			if err := next.Handle(ctx, del); err != nil && messaging.Decide(ctx, err, del.Attempt, messaging.Subscription{}).Delay > 0 {
				return errors.New(err.Error())
			}
			return nil
		})
	}, "RetryAfter_waits"},
	"sleeps in the consumer before a retry": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.wrap(func(ctx context.Context, del *messaging.Delivery, next messaging.Handler) error {
			err := next.Handle(ctx, del)
			if dec := messaging.Decide(ctx, err, del.Attempt, messaging.Subscription{}); dec.Action == messaging.Retried && dec.Delay > 100*time.Millisecond {
				select {
				case <-time.After(dec.Delay):
				case <-ctx.Done():
				}
			}
			return err
		})
	}, "a_message_that_waits_for_its_retry_blocks_no_other"},
	"delivers once too often": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.change(func(s *messaging.Subscription) {
			if s.MaxDeliveries > 0 {
				s.MaxDeliveries++
			}
		})
	}, "after_MaxDeliveries"},
	"counts a refusal by a guard": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.wrap(func(ctx context.Context, del *messaging.Delivery, next messaging.Handler) error {
			err := next.Handle(ctx, del)
			if err == nil || messaging.Decide(ctx, err, del.Attempt, messaging.Subscription{}).Attempt != del.Attempt {
				return err
			}
			return errors.New(err.Error())
		})
	}, "a_refusal_by_a_guard"},
	"takes a panic for success": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.wrap(func(ctx context.Context, del *messaging.Delivery, next messaging.Handler) error {
			defer func() { _ = recover() }()
			return next.Handle(ctx, del)
		})
	}, "a_panic_is_a_failure"},
	"loses the stack of a panic": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.dead = func(dls []messaging.DeadLetter) []messaging.DeadLetter {
			for i := range dls {
				dls[i].Stack = nil
			}
			return dls
		}
	}, "a_dead_letter_of_a_panic"},
	"treats Drop as Reject": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.wrap(func(ctx context.Context, del *messaging.Delivery, next messaging.Handler) error {
			err := next.Handle(ctx, del)
			if messaging.Decide(ctx, err, del.Attempt, messaging.Subscription{}).Action == messaging.Dropped {
				return messaging.Reject(err)
			}
			return err
		})
	}, "Drop_ends_it"},
	"runs too many handlers": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.change(func(s *messaging.Subscription) {
			if s.Concurrency > 0 && s.Prefetch == 0 {
				s.Concurrency++
			}
		})
	}, "Concurrency_handlers_run"},
	"ignores Ordered": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.change(func(s *messaging.Subscription) { s.Ordered = false })
	}, "messages_of_one_key_are_handled_one_after_another"},
	"puts all keys in one line": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.change(func(s *messaging.Subscription) {
			if s.Ordered {
				s.Concurrency = 1
			}
		})
	}, "other_keys_run_at_the_same_time"},
	"ends handlers with their subscription": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.subscribe = func(outer context.Context, s messaging.Subscription, h messaging.Handler) error {
			if h == nil {
				return errors.New("no handler")
			}
			return d.Broker.Subscribe(outer, s, messaging.HandlerFunc(func(ctx context.Context, del *messaging.Delivery) error {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				defer context.AfterFunc(outer, cancel)()
				return h.Handle(ctx, del)
			}))
		}
	}, "whose_context_stays_alive"},
	"does not wait for its handlers": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.subscribe = func(ctx context.Context, s messaging.Subscription, h messaging.Handler) error {
			done := make(chan error, 1)
			go func() { done <- d.Broker.Subscribe(ctx, s, h) }()
			select {
			case err := <-done:
				return err
			case <-ctx.Done():
				return nil
			}
		}
	}, "Subscribe_waits_for_its_handlers"},
	"counts a delivery that a drain cut short": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.wrap(func(ctx context.Context, del *messaging.Delivery, next messaging.Handler) error {
			err := next.Handle(ctx, del)
			if ctx.Err() != nil && err != nil {
				return messaging.Reject(err)
			}
			return err
		})
	}, "after_DrainTimeout"},
	"confirms before the groups have finished": {func(_ *testing.T, _ *driver, cfg *messagingmem.Config) {
		cfg.ConfirmOnAck = false
	}, "Publish_returns_when_every_group_has_finished"},
	"has no bound": {func(_ *testing.T, _ *driver, cfg *messagingmem.Config) {
		cfg.Capacity = 0
	}, "a_full_broker_blocks_Publish"},
	"begins new groups at the end of the log": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.change(func(s *messaging.Subscription) { s.From = messaging.Start{} })
	}, "a_new_group_from_the_first"},
	"forgets where a group was": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.change(func(s *messaging.Subscription) {
			if s.From != (messaging.Start{}) {
				s.Group += "-" + messaging.NewID()
			}
		})
	}, "a_subscriber_goes_on_where_another"},
	"replays without a look at the topics": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.change(func(s *messaging.Subscription) {
			if s.From != (messaging.Start{}) {
				s.Topics = []string{"#"}
			}
		})
	}, "only_what_matches"},
	"forgets the offset over a retry": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.wrap(func(ctx context.Context, del *messaging.Delivery, next messaging.Handler) error {
			c := *del
			if c.Attempt > 1 {
				c.Offset = 0
			}
			return next.Handle(ctx, &c)
		})
	}, "what_fails_is_retried_and_then_set_aside"},
	"ignores Ordered in a replay": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.change(func(s *messaging.Subscription) {
			if s.From != (messaging.Start{}) {
				s.Ordered = false
			}
		})
	}, "an_ordered_group_that_begins_in_the_past"},
	"declares half of an invalid call": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.declare = func(ctx context.Context, subs ...messaging.Subscription) error {
			for _, s := range subs {
				if err := d.Broker.Declare(ctx, s); err != nil {
					return err
				}
			}
			return nil
		}
	}, "an_invalid_subscription_is_refused"},
	"forgets what waits when its group is declared again": {func(_ *testing.T, d *driver, _ *messagingmem.Config) {
		d.wrap(func(ctx context.Context, del *messaging.Delivery, next messaging.Handler) error {
			if del.Message.Topic == "a" {
				return nil
			}
			return next.Handle(ctx, del)
		})
	}, "declaring_a_group_again"},
}

// TestSuiteCatches runs the suite in a process of its own against each broken driver
// and wants the sentence that it breaks to fail.
func TestSuiteCatches(t *testing.T) {
	const which = "MESSAGINGTEST_DEFECT"
	if name := os.Getenv(which); name != "" {
		Run(t, sound(defects[name].damage))
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range defects {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestSuiteCatches$", "-test.timeout=60s")
			cmd.Env = append(os.Environ(), which+"="+name)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("the suite passed a driver that %s", name)
			}
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, "--- FAIL") && strings.Contains(line, d.caught) {
					return
				}
			}
			t.Errorf("the suite failed a driver that %s, but not in %q:\n%s", name, d.caught, out)
		})
	}
}

// TestSuitePasses shows that the sound driver is what the broken ones differ from.
func TestSuitePasses(t *testing.T) {
	Run(t, sound(func(*testing.T, *driver, *messagingmem.Config) {}))
}
