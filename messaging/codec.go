// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"
)

// Codec turns values into bodies and back.
//
// A codec may also have a method ContentType() string, the media type of its bodies.
type Codec interface {
	// Marshal returns the body for v.
	Marshal(v any) ([]byte, error)
	// Unmarshal reads a body into what v points to. An error makes a dead letter.
	Unmarshal(data []byte, v any) error
}

// JSON is the codec of encoding/json. It ignores fields that it does not know, so that a
// schema may grow.
var JSON Codec = jsonCodec{}

type jsonCodec struct{}

func (jsonCodec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (jsonCodec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }
func (jsonCodec) ContentType() string                { return "application/json" }

// Typed returns a handler that decodes the body before it calls fn. A body that does
// not decode will not decode the next time either: it becomes a dead letter at once,
// with the message's type and the Go type in the reason.
func Typed[T any](c Codec, fn func(ctx context.Context, v T, d *Delivery) error) Handler {
	return HandlerFunc(func(ctx context.Context, d *Delivery) error {
		var v T
		if err := c.Unmarshal(d.Message.Body, &v); err != nil {
			return Reject(fmt.Errorf("messaging: body of type %q does not decode into %T: %w", d.Message.Type, v, err))
		}
		return fn(ctx, v, d)
	})
}

// Encode returns a copy of m with v as its body, ready to be published: it fills in an
// empty ID, a zero Time, and the header content-type if the codec tells it and m does
// not have it.
func Encode(c Codec, m Message, v any) (*Message, error) {
	body, err := c.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("messaging: %T does not encode as body of type %q: %w", v, m.Type, err)
	}
	m.Body = body
	if m.ID == "" {
		m.ID = NewID()
	}
	if m.Time.IsZero() {
		m.Time = time.Now()
	}
	m.Header = maps.Clone(m.Header)
	if ct, ok := c.(interface{ ContentType() string }); ok && m.Header[contentType] == "" {
		if m.Header == nil {
			m.Header = make(Header, 1)
		}
		m.Header[contentType] = ct.ContentType()
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return &m, nil
}

// contentType is the header for the media type of the body.
const contentType = "content-type"
