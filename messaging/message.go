// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"context"
	"time"
)

// Message is one message: an event, a command or a reply.
type Message struct {
	// ID is unique over all messages and stable over every repetition: consumers
	// recognise a duplicate by it. Publishers refuse an empty ID; see [NewID].
	ID string
	// Topic says what the message is about, in dot-separated words such as
	// "order.confirmed". Subscriptions select by it.
	Topic string
	// Key orders: messages of one key are delivered in the order of their
	// publication where the subscription asks for it. Empty means no order.
	Key string
	// Type names the schema of Body with its version, such as "order.confirmed.v1".
	Type string
	// Time is when it happened, not when it was sent.
	Time time.Time
	// Header carries metadata: trace context, CloudEvents attributes, correlation.
	Header Header
	// Body is the encoded content. Publishers and handlers must not change it.
	Body []byte
}

// Header is the metadata of a message. Names are case-sensitive and by
// convention lower case. A nil Header reads as empty.
type Header map[string]string

// Publisher sends messages.
//
// Publish returns nil only when the broker has taken responsibility for every
// message. Otherwise it returns a [*PublishError] that names each message which
// was not confirmed and why; messages it does not name are confirmed. An error
// that wraps [ErrUnknown] leaves open whether the message was taken: publish it
// again with the same ID. Publish honours ctx and may be called from many
// goroutines; calls in flight are pipelined.
type Publisher interface {
	Publish(ctx context.Context, msgs ...*Message) error
}
