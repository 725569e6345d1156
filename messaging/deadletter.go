// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"errors"
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
