// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kafkakit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/dovetail-go/dovetail/messaging"
)

// identity tells two dead letters of one message apart. It is the key of the record, by which one that was
// taken away is removed when the log is compacted.
func identity(dl messaging.DeadLetter) string {
	return dl.Message.ID + "\x00" + dl.At.UTC().Format(time.RFC3339Nano)
}

// bury puts a dead letter into the group's log of dead letters.
func (c *Client) bury(ctx context.Context, dl messaging.DeadLetter) error {
	r := encode(c.deadTopic(dl.Group), dl.Encode())
	r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerKey, Value: []byte(dl.Message.Key)}, from(&dl.Delivery))
	r.Key = []byte(identity(dl))
	if err := c.ensure(ctx, r.Topic); err != nil {
		return err
	}
	return c.put(ctx, r)
}

// DeadLetters returns the dead letters of a group, oldest first, at most limit of them. Zero means all.
func (c *Client) DeadLetters(ctx context.Context, group string, limit int) ([]messaging.DeadLetter, error) {
	var order []string
	there := map[string]messaging.DeadLetter{}
	err := c.scan(ctx, c.deadTopic(group), func(r *kgo.Record) {
		key := string(r.Key)
		if len(r.Headers) == 0 {
			delete(there, key)
			return
		}
		d := decode(r)
		dl, err := messaging.DecodeDeadLetter(d.msg)
		if err != nil {
			return // of somebody else
		}
		dl.Partition, dl.Offset = d.partition, d.offset
		if _, known := there[key]; !known {
			order = append(order, key)
		}
		there[key] = dl
	})
	if err != nil {
		return nil, err
	}
	var dead []messaging.DeadLetter
	for _, key := range order {
		if dl, ok := there[key]; ok && (limit <= 0 || len(dead) < limit) {
			dead = append(dead, dl)
			delete(there, key) // also named again
		}
	}
	return dead, nil
}

// Replay gives dead letters, as DeadLetters returned them, to their groups once more, as if for the
// first time, and to no other group. Each leaves the dead letters when it is confirmed in its new
// place.
func (c *Client) Replay(ctx context.Context, dead ...messaging.DeadLetter) error {
	return c.takeDead(ctx, dead, func(dl messaging.DeadLetter) error {
		return c.put(ctx, again(c.retryTopic(dl.Group), &dl.Delivery, 1, time.Time{}))
	})
}

// Discard removes dead letters for good. They are gone from the brokers when these compact the log.
func (c *Client) Discard(ctx context.Context, dead ...messaging.DeadLetter) error {
	return c.takeDead(ctx, dead, func(messaging.DeadLetter) error { return nil })
}

func (c *Client) takeDead(ctx context.Context, dead []messaging.DeadLetter, fn func(messaging.DeadLetter) error) error {
	for _, dl := range dead {
		if dl.Message == nil || dl.Group == "" {
			return errors.New("kafkakit: dead letter without message or group, want one as DeadLetters returns it")
		}
		err := fn(dl)
		if err == nil {
			err = c.put(ctx, &kgo.Record{Topic: c.deadTopic(dl.Group), Key: []byte(identity(dl))})
		}
		if err != nil {
			return fmt.Errorf("kafkakit: dead letter %q of group %q: %w", dl.Message.ID, dl.Group, err)
		}
	}
	return nil
}
