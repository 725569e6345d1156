// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Message is one message: an event, a command or a reply.
//
// Once published or delivered it is not changed any more: the handlers of
// several groups may share it.
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

// maxText bounds the names in a message, as AMQP's short strings do, so that what one
// broker takes another does not refuse.
const maxText = 255

// Validate returns nil if every publisher may take m, and otherwise an error that
// names the field, its value and what is wanted.
func (m *Message) Validate() error {
	if m == nil {
		return fmt.Errorf("messaging: Message is nil")
	}
	if m.ID == "" {
		return fmt.Errorf("messaging: Message.ID is empty, want a unique ID such as messaging.NewID()")
	}
	if err := validTopic("Message.Topic", m.Topic); err != nil {
		return err
	}
	if err := validText("Message.ID", m.ID); err != nil {
		return err
	}
	if err := validText("Message.Key", m.Key); err != nil {
		return err
	}
	if err := validText("Message.Type", m.Type); err != nil {
		return err
	}
	for name, value := range m.Header {
		if name == "" {
			return fmt.Errorf("messaging: Message.Header has an empty name (value %.40q), want a name", value)
		}
		if err := validText("Message.Header name", name); err != nil {
			return err
		}
		if !utf8.ValidString(value) {
			return fmt.Errorf("messaging: Message.Header[%q] is %.40q, want UTF-8 text", name, value)
		}
	}
	return nil
}

// validText holds a name to at most maxText bytes of UTF-8 without control characters.
func validText(field, s string) error {
	if len(s) > maxText {
		return fmt.Errorf("messaging: %s has %d bytes, want at most %d", field, len(s), maxText)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("messaging: %s is %q, want UTF-8 text without control characters", field, s)
	}
	return nil
}

// Clone returns a copy of m that shares nothing with it.
func (m *Message) Clone() *Message {
	c := *m
	c.Header = maps.Clone(m.Header)
	c.Body = slices.Clone(m.Body)
	return &c
}

// Header is the metadata of a message. Names are case-sensitive and by
// convention lower case. A nil Header reads as empty.
//
// Get, Set and Keys make it a carrier for OpenTelemetry's propagators.
type Header map[string]string

// Get returns the value of name, or "" if there is none.
func (h Header) Get(name string) string { return h[name] }

// Set sets the value of name. Like any map, h must not be nil.
func (h Header) Set(name, value string) { h[name] = value }

// Keys returns the names in h, sorted.
func (h Header) Keys() []string { return slices.Sorted(maps.Keys(h)) }

// Publisher sends messages.
//
// Publish returns nil only when the broker has taken responsibility for every
// message. Otherwise it returns a [*PublishError] that names each message which
// was not confirmed and why; messages it does not name are confirmed. An error
// that wraps [ErrUnknown] leaves open whether the message was taken: publish it
// again with the same ID. A message that does not [Message.Validate] is refused
// before anything is sent. Publish honours ctx and may be called from many
// goroutines; calls in flight are pipelined. When it has returned, the caller may
// change the messages.
type Publisher interface {
	Publish(ctx context.Context, msgs ...*Message) error
}

// AsyncPublisher is a Publisher that needs no goroutine to wait for each message. Whoever
// has many messages on their way at once, as a relay, uses it where it is there, and Publish
// where not: what wraps a Publisher need not have it.
type AsyncPublisher interface {
	Publisher
	// PublishAsync begins to publish m and returns true. Then done is called once, with
	// nil or what Publish would say of the message (see [Failed]), as soon as that is known or
	// ctx has ended; from any goroutine, which it must not hold up, perhaps before PublishAsync
	// has returned. From then on nobody changes m. PublishAsync never waits: if it would have
	// to, it does nothing and returns false.
	PublishAsync(ctx context.Context, m *Message, done func(err error)) bool
}
