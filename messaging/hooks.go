// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import "time"

// Hooks tell what a broker's client does, for metrics and traces. Every field may be
// nil. They are called from many goroutines, outside locks, and hold up their caller.
type Hooks struct {
	// Published is called when the outcome of a message is known to its publisher.
	Published func(Published)
	// Delivered is called before a handler.
	Delivered func(Delivered)
	// Settled is called when the decision on a delivery has been carried out.
	Settled func(Settled)
}

// Published is the outcome of publishing one message.
type Published struct {
	Message *Message
	// Took is the time from the call of Publish to its end.
	Took time.Duration
	// Err is nil if the message was confirmed; see [Failed].
	Err error
}

// Delivered is one delivery on its way to its handler.
type Delivered struct {
	Delivery *Delivery
}

// Settled is one delivery that is over.
type Settled struct {
	Delivery *Delivery
	// Decision is what was done. A dead letter that could not be put away is Retried: the
	// message is still there.
	Decision Decision
	// Took is how long the handler ran.
	Took time.Duration
}
