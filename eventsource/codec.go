// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/dovetail-go/dovetail/messaging"
)

// ErrUnknownType says that a codec knows neither the type nor an upcaster for it.
var ErrUnknownType = errors.New("eventsource: unknown type of event")

// Codec turns Go values into events and back: a registry that is a value, made once and
// unchangeable, so that two parts of a program can have different ones.
type Codec struct {
	format messaging.Codec
	sealer Sealer
	names  map[reflect.Type]string
	types  map[string]reflect.Type
	ups    map[string]func(Encoded) ([]Encoded, error)
}

// Encoded is an event's type and content, which an upcaster works on.
type Encoded struct {
	Type string
	Data []byte
}

// Sealer protects what is personal in a value before it is encoded, and makes it readable
// after it was decoded. v is a pointer to the value. shred.Vault is one.
type Sealer interface {
	// Seal encrypts what is personal in *v, which it may mark as encrypted.
	Seal(ctx context.Context, v any) error
	// Open decrypts it where the key still exists.
	Open(ctx context.Context, v any) error
}

// Entry is one entry of a codec: [Type], [Upcast], [Rename], [Format] or [Seal].
type Entry func(*Codec) error

// NewCodec returns a codec with these entries. The error names an entry that contradicts
// another, or an upcaster that leads nowhere it should.
func NewCodec(entries ...Entry) (*Codec, error) {
	c := &Codec{
		format: messaging.JSON,
		names:  make(map[reflect.Type]string), types: make(map[string]reflect.Type),
		ups: make(map[string]func(Encoded) ([]Encoded, error)),
	}
	for _, entry := range entries {
		if err := entry(c); err != nil {
			return nil, fmt.Errorf("eventsource: %w", err)
		}
	}
	for name := range c.ups {
		if t, both := c.types[name]; both {
			return nil, fmt.Errorf("eventsource: type %q has an upcaster and is also the Go type %v, want one of the two", name, t)
		}
	}
	return c, nil
}

// Type says that values of type T are written as events of this type, such as
// "order.placed.v2", and read from them. T is not a pointer.
func Type[T any](name string) Entry {
	return func(c *Codec) error {
		t := reflect.TypeFor[T]()
		if err := checkText("type of event", name); err != nil {
			return err
		}
		if t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
			return fmt.Errorf("type %q is given to %v, want a type that is no pointer or interface", name, t)
		}
		if other, ok := c.types[name]; ok {
			return fmt.Errorf("type %q is given to %v and %v, want one", name, other, t)
		}
		if other, ok := c.names[t]; ok {
			return fmt.Errorf("type %v is called %q and %q, want one name; older names have upcasters", t, other, name)
		}
		c.types[name], c.names[t] = t, name
		return nil
	}
}

// Upcast says how stored events of an old type are read: as the events that up returns, in
// their order: one of a newer type (which may have an upcaster again), several, or none.
func Upcast(old string, up func(Encoded) ([]Encoded, error)) Entry {
	return func(c *Codec) error {
		if err := checkText("type of event", old); err != nil {
			return err
		}
		if up == nil {
			return fmt.Errorf("upcaster of %q is nil, want a function", old)
		}
		if _, ok := c.ups[old]; ok {
			return fmt.Errorf("type %q has two upcasters, want one", old)
		}
		c.ups[old] = up
		return nil
	}
}

// Rename is the upcaster of a type that got another name and kept its content.
func Rename(old, name string) Entry {
	return Upcast(old, func(e Encoded) ([]Encoded, error) { return []Encoded{{Type: name, Data: e.Data}}, nil })
}

// Format sets how values are written. Without it they are JSON.
func Format(f messaging.Codec) Entry {
	return func(c *Codec) error {
		if f == nil {
			return errors.New("Format is nil, want a codec such as messaging.JSON")
		}
		c.format = f
		return nil
	}
}

// Seal sets what protects personal data. Without it a value is written as it is, and
// shred.Personal refuses to be.
func Seal(s Sealer) Entry {
	return func(c *Codec) error {
		if s == nil {
			return errors.New("Sealer is nil, want one such as shred's Vault")
		}
		c.sealer = s
		return nil
	}
}

// Types returns all types that can be read, sorted: for a [Filter] that selects what a
// projection understands.
func (c *Codec) Types() []string {
	names := slices.AppendSeq(slices.Collect(maps.Keys(c.types)), maps.Keys(c.ups))
	slices.Sort(names)
	return names
}

// Encode returns v as an event, without ID and Time. With a Sealer it may need the
// database: encode before a transaction is begun where the pool has one connection.
func (c *Codec) Encode(ctx context.Context, v any) (Event, error) {
	t := reflect.TypeOf(v)
	if t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	name, ok := c.names[t]
	if !ok {
		return Event{}, fmt.Errorf("%w: Go type %T is not in the codec", ErrUnknownType, v)
	}
	data, err := c.marshal(ctx, v)
	if err != nil {
		return Event{}, fmt.Errorf("eventsource: %T does not encode as %q: %w", v, name, err)
	}
	return Event{Type: name, Data: data}, nil
}

func (c *Codec) marshal(ctx context.Context, v any) ([]byte, error) {
	if c.sealer != nil {
		p := reflect.ValueOf(v)
		if p.Kind() != reflect.Pointer {
			p = reflect.New(p.Type())
			p.Elem().Set(reflect.ValueOf(v))
		}
		v = p.Interface()
		if err := c.sealer.Seal(ctx, v); err != nil {
			return nil, err
		}
	}
	return c.format.Marshal(v)
}

// unmarshal reads data into what p points to.
func (c *Codec) unmarshal(ctx context.Context, data []byte, p any) error {
	if err := c.format.Unmarshal(data, p); err != nil {
		return err
	}
	if c.sealer != nil {
		return c.sealer.Open(ctx, p)
	}
	return nil
}

// maxSteps bounds a chain of upcasters, of which two might lead to each other.
const maxSteps = 100

// Decode returns the values that a stored event stands for: one, or as many as its
// upcasters say.
func (c *Codec) Decode(ctx context.Context, e Event) ([]any, error) {
	encoded, err := c.upcast(Encoded{Type: e.Type, Data: e.Data}, maxSteps)
	if err != nil {
		return nil, err
	}
	values := make([]any, len(encoded))
	for i, one := range encoded {
		t, ok := c.types[one.Type]
		if !ok {
			return nil, fmt.Errorf("%w: %q", ErrUnknownType, one.Type)
		}
		p := reflect.New(t)
		if err := c.unmarshal(ctx, one.Data, p.Interface()); err != nil {
			return nil, fmt.Errorf("eventsource: event of type %q does not decode into %v: %w", one.Type, t, err)
		}
		values[i] = p.Elem().Interface()
	}
	return values, nil
}

func (c *Codec) upcast(e Encoded, left int) ([]Encoded, error) {
	up, old := c.ups[e.Type]
	if !old {
		return []Encoded{e}, nil
	}
	if left == 0 {
		return nil, fmt.Errorf("eventsource: the upcasters of %q lead to each other", e.Type)
	}
	newer, err := up(e)
	if err != nil {
		return nil, fmt.Errorf("eventsource: upcast %q: %w", e.Type, err)
	}
	var all []Encoded
	for _, n := range newer {
		done, err := c.upcast(n, left-1)
		if err != nil {
			return nil, err
		}
		all = append(all, done...)
	}
	return all, nil
}
