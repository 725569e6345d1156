// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource

import (
	"context"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
)

// Message returns an event as a message: the topic is given, the key is the stream, and ID,
// Type, Time, Header and Body are the event's.
func Message(topic, stream string, e Event) *messaging.Message {
	return &messaging.Message{ID: e.ID, Topic: topic, Key: stream, Type: e.Type, Time: e.Time, Header: e.Header, Body: e.Data}
}

// Publish is the bridge to the outbox, for Config.Within: each event that is appended is
// also enqueued in the same transaction, as the message that route returns, or not at all if
// it returns nil. Messages of one stream are published in the order of its versions,
// because the append comes first and excludes others.
//
// Only appends publish. A projection that is rebuilt does not.
func Publish(box *outbox.Outbox, route func(stream string, e Event) *messaging.Message) func(ctx context.Context, tx Tx, stream string, events []Event) error {
	return func(ctx context.Context, tx Tx, stream string, events []Event) error {
		msgs := make([]*messaging.Message, 0, len(events))
		for _, e := range events {
			if m := route(stream, e); m != nil {
				msgs = append(msgs, m)
			}
		}
		return box.Enqueue(ctx, tx, msgs...)
	}
}
