// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package shred

import (
	"bytes"
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
)

// ErrNotSealed says that a personal value was about to be written in the clear.
var ErrNotSealed = errors.New("shred: a personal value is not sealed")

// Personal is a value about a person, the subject. The zero Personal is about nobody and is
// written as null. It is set once, by [New] or by being read; a copy is as good.
type Personal[T any] struct {
	subject string
	value   T
	known   bool
	box     *box
}

// box is the sealed form.
type box struct {
	Subject string `json:"subject"`
	Key     string `json:"key"`
	Data    []byte `json:"data"`
}

// New returns a value about a subject, which is an opaque ID.
func New[T any](subject string, value T) Personal[T] {
	return Personal[T]{subject: subject, value: value, known: true}
}

// Get returns the value, or false if there is none or it cannot be read: forgotten, or not
// opened by a [Vault].
func (p Personal[T]) Get() (T, bool) { return p.value, p.known }

// Or returns the value, or another one if it cannot be read.
func (p Personal[T]) Or(other T) T {
	if p.known {
		return p.value
	}
	return other
}

// Subject returns whom the value is about.
func (p Personal[T]) Subject() string { return p.subject }

// IsZero reports whether there is neither a value nor a sealed one.
func (p Personal[T]) IsZero() bool { return !p.known && p.box == nil }

// MarshalJSON returns the sealed form, and an error that wraps [ErrNotSealed] if there is none.
func (p Personal[T]) MarshalJSON() ([]byte, error) {
	switch {
	case p.box != nil:
		return json.Marshal(p.box)
	case p.known:
		return nil, fmt.Errorf("%w: %T of subject %q, want it sealed by a Vault first", ErrNotSealed, p, p.subject)
	}
	return []byte("null"), nil
}

// UnmarshalJSON reads the sealed form, for a [Vault] to open.
func (p *Personal[T]) UnmarshalJSON(data []byte) error {
	*p = Personal[T]{}
	if string(bytes.TrimSpace(data)) == "null" {
		return nil
	}
	var b box
	if err := json.Unmarshal(data, &b); err != nil {
		return fmt.Errorf("shred: a personal value is no sealed one: %w", err)
	}
	if b.Subject == "" || b.Key == "" {
		return errors.New("shred: a personal value is no sealed one: it has no subject or key")
	}
	p.subject, p.box = b.Subject, &b
	return nil
}

// Value returns the sealed form for a column of a read model. It implements
// [driver.Valuer].
func (p Personal[T]) Value() (driver.Value, error) {
	if p.IsZero() {
		return nil, nil //nolint:nilnil // SQL's NULL
	}
	text, err := p.MarshalJSON()
	if err != nil {
		return nil, err
	}
	return string(text), nil
}

// Scan reads the sealed form from a column, for a [Vault] to open. It implements
// [sql.Scanner].
func (p *Personal[T]) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*p = Personal[T]{}
		return nil
	case string:
		return p.UnmarshalJSON([]byte(v))
	case []byte:
		return p.UnmarshalJSON(v)
	}
	return fmt.Errorf("shred: a personal value is a %T in the database, want text", src)
}

const hidden = "[personal]"

// Format writes "[personal]" whatever the verb. It implements [fmt.Formatter].
func (Personal[T]) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// LogValue returns "[personal]". It implements [slog.LogValuer].
func (Personal[T]) LogValue() slog.Value { return slog.StringValue(hidden) }

// sealable is a pointer to a Personal.
type sealable interface {
	seal(ctx context.Context, v *Vault) error
	open(ctx context.Context, v *Vault) error
}

func (p *Personal[T]) seal(ctx context.Context, v *Vault) error {
	if !p.known || p.box != nil {
		return nil // nothing to seal, or sealed already and never changed since
	}
	plain, err := json.Marshal(p.value)
	if err != nil {
		return fmt.Errorf("shred: %T of subject %q does not encode: %w", p.value, p.subject, err)
	}
	p.box, err = v.lock(ctx, p.subject, plain)
	return err
}

func (p *Personal[T]) open(ctx context.Context, v *Vault) error {
	if p.box == nil || p.known {
		return nil
	}
	plain, ok, err := v.unlock(ctx, p.box)
	if err != nil || !ok {
		return err
	}
	if err := json.Unmarshal(plain, &p.value); err != nil {
		return fmt.Errorf("shred: the value of subject %q does not decode into %T", p.subject, p.value)
	}
	p.known = true
	return nil
}
