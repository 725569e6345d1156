// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/messaging"
)

// maxBrowse is how many dead letters are looked through at most. They are all held at
// the same time, as that is the only way past the first one in a queue.
const maxBrowse = 10_000

// DeadLetters returns the oldest dead letters of a group, at most limit, and leaves them
// where they are. A limit of zero means 100; the largest is 10,000. While it reads, others
// do not see what it holds.
//
// Those that the broker made, because deliveries ended without an answer, say so in their
// reason.
func (c *Client) DeadLetters(ctx context.Context, group string, limit int) ([]messaging.DeadLetter, error) {
	if limit < 0 {
		return nil, fmt.Errorf("rabbitkit: limit is %d, want 0 or more", limit)
	}
	if limit == 0 {
		limit = 100
	}
	var all []messaging.DeadLetter
	err := c.browse(ctx, group, limit, func(dl messaging.DeadLetter) (taken, more bool, err error) {
		all = append(all, dl)
		return false, true, nil
	})
	return all, err
}

// Replay gives dead letters back to their groups, and to no other, to be handled as if
// for the first time. Each leaves the dead letters when the broker has confirmed it in the
// group's queue. It looks through the oldest 10,000 of a group; one that is not there, such
// as because it was replayed already, is an error that comes after the others are done.
func (c *Client) Replay(ctx context.Context, dead ...messaging.DeadLetter) error {
	return c.takeDead(ctx, dead, func(dl messaging.DeadLetter) error {
		p, err := encode(dl.Message, maxAgain)
		if err != nil {
			return err
		}
		p.Headers[headerTopic] = dl.Message.Topic
		p.Headers[headerAgain] = true
		return c.toQueue(ctx, c.groupQueue(dl.Group), p)
	})
}

// Discard deletes dead letters for good. It finds them as [Client.Replay] does.
func (c *Client) Discard(ctx context.Context, dead ...messaging.DeadLetter) error {
	return c.takeDead(ctx, dead, func(messaging.DeadLetter) error { return nil })
}

// takeDead calls fn for each of dead and removes it if fn returns nil.
func (c *Client) takeDead(ctx context.Context, dead []messaging.DeadLetter, fn func(messaging.DeadLetter) error) error {
	groups := make(map[string]map[string]int)
	for _, dl := range dead {
		if dl.Message == nil || dl.Group == "" {
			return errors.New("rabbitkit: dead letter without message or group, want one as DeadLetters returns it")
		}
		if groups[dl.Group] == nil {
			groups[dl.Group] = make(map[string]int)
		}
		groups[dl.Group][identity(dl)]++
	}
	missing := 0
	for group, want := range groups {
		left := 0
		for _, n := range want {
			left += n
		}
		err := c.browse(ctx, group, maxBrowse, func(dl messaging.DeadLetter) (taken, more bool, err error) {
			id := identity(dl)
			if want[id] == 0 {
				return false, true, nil
			}
			if err := fn(dl); err != nil {
				return false, false, fmt.Errorf("rabbitkit: dead letter %q of group %q: %w", dl.Message.ID, group, err)
			}
			want[id]--
			left--
			return true, left > 0, nil
		})
		if err != nil {
			return err
		}
		missing += left
	}
	if missing > 0 {
		return fmt.Errorf("rabbitkit: %d of %d dead letters are not there (any more)", missing, len(dead))
	}
	return nil
}

// identity tells two dead letters of one message apart.
func identity(dl messaging.DeadLetter) string {
	return dl.Message.ID + "\x00" + dl.At.UTC().Format(time.RFC3339Nano)
}

// browse calls visit for the dead letters of a group, oldest first, and removes those
// that it takes.
func (c *Client) browse(ctx context.Context, group string, limit int, visit func(messaging.DeadLetter) (taken, more bool, err error)) error {
	name := c.deadQueue(group)
	return c.admin(ctx, func(cn *conn) error {
		n, err := c.depth(cn, name)
		if err != nil || n == 0 {
			return err
		}
		want := min(n, limit, maxBrowse)
		ch, err := cn.Channel()
		if err != nil {
			return err
		}
		if err := ch.Qos(want, 0, false); err != nil {
			return err
		}
		ds, err := ch.Consume(name, "", false, false, false, false, nil)
		if err != nil {
			return err
		}
		var kept uint64
		removed, seen := 0, 0
		idle := time.NewTimer(0)
		defer idle.Stop()
		for more := true; more && seen < want; {
			idle.Reset(2 * time.Second)
			var d amqp.Delivery
			var ok bool
			select {
			case d, ok = <-ds:
			case <-idle.C: // others hold the rest, or have taken it
			}
			if !ok {
				break
			}
			seen++
			var taken bool
			if taken, more, err = visit(readDead(&d, group)); taken {
				removed++
				err = errors.Join(err, ch.Ack(d.DeliveryTag, false))
			} else {
				kept = d.DeliveryTag
			}
			if err != nil {
				break
			}
		}
		if cerr := ch.Close(); err == nil { // it gives back what was not taken
			err = cerr
		}
		if err != nil || kept == 0 {
			return err
		}
		// What goes back is there a moment later. Whoever looks again should see it.
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
			if now, err := c.depth(cn, name); err != nil || now >= n-removed {
				return err
			}
			if err := sleep(ctx, 5*time.Millisecond); err != nil {
				return err
			}
		}
		return nil
	})
}

// depth returns how many messages wait in a queue, 0 if there is none.
func (c *Client) depth(cn *conn, name string) (int, error) {
	q, err := c.inspect(cn, name)
	return q.Messages, err
}

// inspect returns what the broker says of a queue, the zero Queue if there is none.
func (c *Client) inspect(cn *conn, name string) (amqp.Queue, error) {
	ch, err := cn.Channel()
	if err != nil {
		return amqp.Queue{}, err
	}
	q, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
	if err != nil {
		if ae := (*amqp.Error)(nil); errors.As(err, &ae) && ae.Code == amqp.NotFound {
			return amqp.Queue{}, nil
		}
		return amqp.Queue{}, declareError(err, "queue", name)
	}
	return q, ch.Close()
}

// readDead returns the dead letter in d, whoever put it there.
func readDead(d *amqp.Delivery, group string) messaging.DeadLetter {
	r := decode(d)
	if dl, err := messaging.DecodeDeadLetter(r.msg); err == nil {
		return dl
	}
	dl := messaging.DeadLetter{Delivery: messaging.Delivery{Message: r.msg, Group: group, Attempt: r.attempt, Redelivered: true}}
	if d.Exchange == "" && r.msg.Topic == d.RoutingKey {
		// Dead-lettered by the broker: the topic is in its note only.
		if first := text(d.Headers["x-first-death-queue"]); first != "" {
			if keys := deathKeys(d.Headers["x-death"]); keys != "" {
				r.msg.Topic = keys
			}
		}
	}
	dl.Reason = "set aside by the broker"
	if r.death != nil {
		dl.At = r.death.at
		dl.Reason += ": " + r.death.reason
		if r.death.reason == "delivery_limit" {
			dl.Reason += ": too many deliveries ended without an answer, as when the handler's process dies"
		}
	}
	return dl
}

// deathKeys returns the routing key that a message had before the broker set it aside.
func deathKeys(v any) string {
	list, _ := v.([]any)
	if len(list) == 0 {
		return ""
	}
	t, _ := list[0].(amqp.Table)
	keys, _ := t["routing-keys"].([]any)
	if len(keys) == 0 {
		return ""
	}
	return text(keys[0])
}
