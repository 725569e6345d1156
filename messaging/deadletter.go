// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"
)

// DeadLetter is a message that a group could not handle, set aside with the reason.
type DeadLetter struct {
	// Delivery is the last one; its Attempt is how many there were.
	Delivery
	// Reason says why, for a person.
	Reason string
	// At is when it was given up.
	At time.Time
	// Stack is that of the last panic, nil if the handler did not panic.
	Stack []byte
}

// NewDeadLetter returns the dead letter for a delivery and the decision on it.
func NewDeadLetter(d *Delivery, dec Decision) DeadLetter {
	dl := DeadLetter{Delivery: *d, Reason: dec.Reason, At: time.Now()}
	var p *PanicError
	if errors.As(dec.Err, &p) {
		dl.Stack = p.Stack
	}
	return dl
}

// The headers of a dead letter on its way through a broker.
const (
	deadPrefix  = "dead-letter-"
	deadGroup   = deadPrefix + "group"
	deadAttempt = deadPrefix + "attempts"
	deadReason  = deadPrefix + "reason"
	deadAt      = deadPrefix + "time"
	deadStack   = deadPrefix + "stack"
)

// maxStack bounds the stack in a header, in bytes: brokers bound headers too.
const maxStack = 8 << 10

// Encode returns the dead letter as a message, to be kept in a queue or a table: the
// original with headers of its own for group, reason, attempts, time and stack. A
// stack is cut to 8 KiB. Partition and offset are not kept.
func (dl DeadLetter) Encode() *Message {
	m := dl.Message.Clone()
	if m.Header == nil {
		m.Header = make(Header, 5)
	}
	m.Header[deadGroup] = dl.Group
	m.Header[deadAttempt] = strconv.Itoa(dl.Attempt)
	m.Header[deadReason] = dl.Reason
	m.Header[deadAt] = dl.At.UTC().Format(time.RFC3339Nano)
	delete(m.Header, deadStack)
	if len(dl.Stack) > 0 {
		m.Header[deadStack] = strings.ToValidUTF8(string(dl.Stack[:min(len(dl.Stack), maxStack)]), "")
	}
	return m
}

// DecodeDeadLetter returns the dead letter that Encode turned into m. Its message is
// the original one. It shares m's body.
func DecodeDeadLetter(m *Message) (DeadLetter, error) {
	dl := DeadLetter{Delivery: Delivery{Group: m.Header[deadGroup], Redelivered: true}, Reason: m.Header[deadReason]}
	if dl.Group == "" {
		return DeadLetter{}, fmt.Errorf("messaging: message %q is not a dead letter: it has no header %q", m.ID, deadGroup)
	}
	var err error
	if dl.Attempt, err = strconv.Atoi(m.Header[deadAttempt]); err != nil || dl.Attempt < 1 {
		return DeadLetter{}, fmt.Errorf("messaging: header %q of dead letter %q is %.40q, want a number from 1", deadAttempt, m.ID, m.Header[deadAttempt])
	}
	if dl.At, err = time.Parse(time.RFC3339Nano, m.Header[deadAt]); err == nil {
		_, err = dl.At.UTC().MarshalText() // an offset can lead out of the years 0 to 9999
	}
	if err != nil {
		return DeadLetter{}, fmt.Errorf("messaging: header %q of dead letter %q is %.40q, want a time by RFC 3339", deadAt, m.ID, m.Header[deadAt])
	}
	if s := m.Header[deadStack]; s != "" {
		dl.Stack = []byte(s)
	}
	original := *m
	original.Header = maps.Clone(m.Header)
	maps.DeleteFunc(original.Header, func(name, _ string) bool { return strings.HasPrefix(name, deadPrefix) })
	dl.Message = &original
	return dl, nil
}
