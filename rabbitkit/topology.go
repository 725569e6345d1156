// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/messaging"
)

// The names of queues. An exchange's name has no dot, so no two of them are equal.
func (c *Client) groupQueue(group string) string { return c.cfg.Exchange + ".group." + group }
func (c *Client) deadQueue(group string) string  { return c.cfg.Exchange + ".dead." + group }
func (c *Client) logQueue() string               { return c.cfg.Exchange + ".log" }
func (c *Client) positionQueue(group string) string {
	return c.cfg.Exchange + ".position." + group
}
func (c *Client) retryQueue(group string, rung int) string {
	return c.cfg.Exchange + ".retry" + strconv.Itoa(rung) + "." + group
}

// The retry queues of a group are a ladder: rung n holds messages that wait for longer
// than rung n-1 and at most firstRung * 4^n. A queue expires its messages from its head
// only, so on one rung a short wait may last as long as a longer one ahead of it, but never
// more than four times as long.
const (
	firstRung = 100 * time.Millisecond
	lastRung  = 12
)

// rung returns the rung for a delay.
func rung(d time.Duration) int {
	n := 0
	for most := firstRung; d > most && n < lastRung; most *= 4 {
		n++
	}
	return n
}

// temporaryExpiry is after how long without a consumer the queue of a temporary group
// goes, if its last subscriber did not live to remove it. It outlasts a reconnect.
const temporaryExpiry = 5 * time.Minute

func (c *Client) validate(subs []messaging.Subscription) error {
	for _, s := range subs {
		if err := s.Validate(); err != nil {
			return err
		}
		if s.From.Kind != messaging.StartNext && c.cfg.Log == (Log{}) {
			return fmt.Errorf("rabbitkit: Subscription.From (group %q): %w: Config.Log is not set, so nothing is kept", s.Group, messaging.ErrUnsupported)
		}
		if p := s.WithDefaults().Prefetch; p > maxPrefetch {
			return fmt.Errorf("rabbitkit: Subscription.Prefetch is %d, want at most %d (group %q)", p, maxPrefetch, s.Group)
		}
	}
	return nil
}

// Declare binds the groups of s to their topics; see [messaging.Declarer]. It makes the
// exchange and the queues that are missing. The client remembers the groups that are not
// temporary, and declares them again whenever it connects to publish.
func (c *Client) Declare(ctx context.Context, s ...messaging.Subscription) error {
	if err := c.validate(s); err != nil {
		return err
	}
	err := c.admin(ctx, func(cn *conn) error {
		for _, sub := range s {
			if _, err := c.declareGroup(cn, sub); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sub := range s {
		if sub.Temporary {
			continue
		}
		if known, ok := c.declared[sub.Group]; ok {
			sub.Topics = append(append([]string(nil), known.Topics...), sub.Topics...)
		}
		c.declared[sub.Group] = sub
	}
	return nil
}

// admin runs fn on a connection of its own, which ctx may cut without harm to others.
func (c *Client) admin(ctx context.Context, fn func(cn *conn) error) error {
	cn, err := c.dial(ctx, "admin")
	if err != nil {
		return err
	}
	defer cn.end()
	return cn.guard(ctx, c.cfg.Timeout, func() error { return fn(cn) })
}

// onChannel runs fn on a channel of its own, as an error closes it.
func (c *Client) onChannel(cn *conn, fn func(ch *amqp.Channel) error) error {
	ch, err := cn.Channel()
	if err != nil {
		return err
	}
	if err := fn(ch); err != nil {
		return err
	}
	return ch.Close()
}

// declareExchange makes the exchange, and its log if there is to be one.
func (c *Client) declareExchange(ch *amqp.Channel) error {
	err := ch.ExchangeDeclare(c.cfg.Exchange, amqp.ExchangeTopic, true, false, false, false, nil)
	if err != nil || c.cfg.Log == (Log{}) {
		return declareError(err, "exchange", c.cfg.Exchange)
	}
	name := c.logQueue()
	if _, err = ch.QueueDeclare(name, true, false, false, false, c.cfg.Log.args()); err == nil {
		err = ch.QueueBind(name, "#", c.cfg.Exchange, false, nil)
	}
	return declareError(err, "queue", name)
}

func (c *Client) declareDead(ch *amqp.Channel, group string) error {
	name := c.deadQueue(group)
	_, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{"x-queue-type": "quorum"})
	return declareError(err, "queue", name)
}

// declareGroup makes the queues of a group, and reports whether the group reads the log. A
// group that exists stays what it is, whatever s.From says.
func (c *Client) declareGroup(cn *conn, s messaging.Subscription) (fromLog bool, err error) {
	fromLog = s.From.Kind != messaging.StartNext
	err = c.declareKind(cn, s, fromLog)
	if errors.Is(err, messaging.ErrMismatch) && c.declareKind(cn, s, !fromLog) == nil {
		return !fromLog, nil
	}
	return fromLog, err
}

// declareKind makes the queues of a group that reads the log, or of one that is bound.
func (c *Client) declareKind(cn *conn, s messaging.Subscription, fromLog bool) error {
	return c.onChannel(cn, func(ch *amqp.Channel) error {
		if err := c.declareExchange(ch); err != nil {
			return err
		}
		args := amqp.Table{}
		if s.Temporary {
			args["x-queue-type"] = "classic" // a quorum queue cannot be deleted only if it is unused
			args["x-expires"] = temporaryExpiry.Milliseconds()
		} else {
			if err := c.declareDead(ch, s.Group); err != nil {
				return err
			}
			args["x-queue-type"] = "quorum"
			args["x-delivery-limit"] = int64(c.cfg.DeliveryLimit)
			toQueue(args, c.deadQueue(s.Group))
		}
		if s.Ordered {
			args["x-single-active-consumer"] = true
		}
		if fromLog {
			// No bound, but a mark: by it the broker tells a queue that is only for retries
			// and replays from one that is bound.
			args["x-max-length"] = int64(math.MaxInt32)
		}
		name := c.groupQueue(s.Group)
		if _, err := ch.QueueDeclare(name, true, false, false, false, args); err != nil {
			return declareError(err, "queue", name)
		}
		if fromLog {
			return c.declarePosition(ch, s)
		}
		for _, topic := range s.Topics {
			if err := ch.QueueBind(name, topic, c.cfg.Exchange, false, nil); err != nil {
				return declareError(err, "queue", name)
			}
		}
		return nil
	})
}

// toQueue lets a quorum queue hand what it gives up to another queue, and forget it only
// when that one has confirmed it.
func toQueue(args amqp.Table, name string) {
	args["x-dead-letter-exchange"] = ""
	args["x-dead-letter-routing-key"] = name
	args["x-dead-letter-strategy"] = "at-least-once"
	args["x-overflow"] = "reject-publish" // at-least-once asks for it
}

// declareRung makes a retry queue of a group, unless this client knows that it is there.
func (c *Client) declareRung(ctx context.Context, group string, n int) error {
	name := c.retryQueue(group, n)
	c.mu.Lock()
	known := c.rungs[name]
	c.mu.Unlock()
	if known {
		return nil
	}
	cn, err := c.pub.link.get(ctx)
	if err != nil {
		return err
	}
	err = cn.guard(c.ctx, c.cfg.Timeout, func() error {
		return c.onChannel(cn, func(ch *amqp.Channel) error {
			args := amqp.Table{"x-queue-type": "quorum"}
			toQueue(args, c.groupQueue(group))
			_, err := ch.QueueDeclare(name, true, false, false, false, args)
			return declareError(err, "queue", name)
		})
	})
	if err == nil {
		c.mu.Lock()
		c.rungs[name] = true
		c.mu.Unlock()
	}
	return err
}

func (c *Client) forgetRung(group string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.rungs, c.retryQueue(group, n))
}

// declareError gives what the broker says to a declaration its type.
func declareError(err error, what, name string) error {
	var ae *amqp.Error
	if err == nil || !errors.As(err, &ae) || !ae.Server {
		return err
	}
	switch ae.Code {
	case amqp.PreconditionFailed:
		return fmt.Errorf("rabbitkit: %s %q: %w: %w", what, name, messaging.ErrMismatch, err)
	case amqp.AccessRefused:
		return fmt.Errorf("rabbitkit: %s %q: %w: %w", what, name, ErrAccess, err)
	}
	return fmt.Errorf("rabbitkit: %s %q: %w", what, name, err)
}

// consumeError gives what the broker says to a consumer its type. A precondition that fails
// is no mismatch here: a stream, for one, has no replica while its node is starting.
func consumeError(err error, queue string) error {
	if ae := (*amqp.Error)(nil); errors.As(err, &ae) && ae.Server && ae.Code == amqp.AccessRefused {
		return fmt.Errorf("rabbitkit: queue %q: %w: %w", queue, ErrAccess, err)
	}
	return fmt.Errorf("rabbitkit: queue %q: %w", queue, err)
}

// Remove deletes a group with all its messages, those that wait for a retry and its dead
// letters included. Its subscribers must have ended.
func (c *Client) Remove(ctx context.Context, group string) error {
	c.mu.Lock()
	delete(c.declared, group)
	c.mu.Unlock()
	return c.admin(ctx, func(cn *conn) error {
		names := []string{c.groupQueue(group), c.deadQueue(group), c.positionQueue(group)}
		for n := range lastRung + 1 {
			c.forgetRung(group, n)
			names = append(names, c.retryQueue(group, n))
		}
		return c.onChannel(cn, func(ch *amqp.Channel) error {
			for _, name := range names {
				if _, err := ch.QueueDelete(name, false, false, false); err != nil {
					return fmt.Errorf("rabbitkit: queue %q: %w", name, err)
				}
			}
			return nil
		})
	})
}
