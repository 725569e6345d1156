// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dovetail-go/dovetail/fault"
)

// Delivery is one message on its way to one group's handler.
type Delivery struct {
	// Message is what was published. It may be shared with other groups: do not change it.
	Message *Message
	// Group is the consumer group that it is delivered to.
	Group string
	// Attempt counts the deliveries that used up one of Subscription.MaxDeliveries, this
	// one included: from 1.
	Attempt int
	// Redelivered is true if the message may have been handed to a handler of this group
	// before.
	Redelivered bool
	// Partition is the part of the log that Offset counts in, 0 where there is only one.
	Partition int32
	// Offset is the position in a replayable log, the same in every delivery; 0 where the
	// group does not read one.
	Offset int64
}

// Handler handles deliveries. It is called from many goroutines.
//
// The returned error decides what becomes of the message:
//
//   - nil: done, it is never delivered again (but see at-least-once in the package comment).
//   - [Reject], [fault.Permanent]: it becomes a dead letter, with the error as reason.
//   - [Drop]: done, although not handled; the reason is reported.
//   - [fault.RetryAfter]: delivered again after that delay.
//   - a refusal by a guard ([fault.Rejection]): delivered again, no attempt used up.
//   - any other error, a panic, runtime.Goexit: delivered again by the schedule of the
//     subscription, up to its MaxDeliveries, then a dead letter.
//
// The context lives until the handler returns, over the start of a drain; it ends when
// the drain's own time is over. An error returned after that uses up no attempt.
type Handler interface {
	Handle(ctx context.Context, d *Delivery) error
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(ctx context.Context, d *Delivery) error

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, d *Delivery) error { return f(ctx, d) }

// Middleware wraps a handler in something to be done around every delivery.
type Middleware func(Handler) Handler

// Chain returns h wrapped in m; m[0] is outermost, so the first to see a delivery.
func Chain(h Handler, m ...Middleware) Handler {
	for i := len(m) - 1; i >= 0; i-- {
		h = m[i](h)
	}
	return h
}

// verb is the error of a handler that decided itself what becomes of the message.
type verb struct {
	action Action
	err    error
}

func (v *verb) Error() string { return v.err.Error() }
func (v *verb) Unwrap() error { return v.err }

// Reject returns err marked so that the message becomes a dead letter at once, with err
// as its reason: it is wrong, and no repetition will make it right. A nil err returns
// nil.
func Reject(err error) error {
	if err == nil {
		return nil
	}
	return &verb{DeadLettered, fault.Permanent(err)}
}

// Drop returns err marked so that the message is done with although it was not handled,
// such as one that came too late to matter. A nil err returns nil.
func Drop(err error) error {
	if err == nil {
		return nil
	}
	return &verb{Dropped, fault.Permanent(err)}
}

// Action is what becomes of a delivered message.
type Action uint8

const (
	// Acked: the message is done with.
	Acked Action = iota
	// Retried: it is delivered again, after a delay.
	Retried
	// DeadLettered: it is set aside with a reason, and acknowledged only when that is
	// confirmed.
	DeadLettered
	// Dropped: it is done with, unhandled, on the handler's word.
	Dropped
)

// String returns "acked", "retried", "dead-lettered" or "dropped".
func (a Action) String() string {
	switch a {
	case Acked:
		return "acked"
	case Retried:
		return "retried"
	case DeadLettered:
		return "dead-lettered"
	case Dropped:
		return "dropped"
	}
	return fmt.Sprintf("messaging.Action(%d)", uint8(a))
}

// Decision is what a broker's client does with a message after its handler returned.
type Decision struct {
	// Action says what becomes of the message.
	Action Action
	// Delay is how long a retried message waits at least.
	Delay time.Duration
	// Attempt is the number that the next delivery of a retried message bears. It is
	// that of this delivery where no attempt was used up.
	Attempt int
	// Reason says why, for a person; empty if acked.
	Reason string
	// Err is the handler's error.
	Err error
}

// maxReason bounds the reason that travels with a dead letter, in bytes.
const maxReason = 2048

// Decide returns what becomes of a message whose handler returned err at the given
// attempt. Every broker's client decides by this function alone, so that they all
// mean the same. The context is the one that the client gave to the handler, and s
// the handler's subscription, with its defaults filled in or not.
func Decide(ctx context.Context, err error, attempt int, s Subscription) Decision {
	if err == nil {
		return Decision{Action: Acked}
	}
	d := Decision{Action: DeadLettered, Reason: reason(err), Err: err}
	var v *verb
	if errors.As(err, &v) {
		d.Action = v.action
		return d
	}
	verdict := fault.Judge(ctx, err)
	if ctx.Err() != nil && (verdict.Unknown || !fault.IsPermanent(err)) {
		// We stopped the handler, it did not fail. Whoever handles the message next
		// finds it as it was.
		d.Action, d.Attempt = Retried, attempt
		return d
	}
	if !verdict.Retry {
		return d
	}
	d.Delay = verdict.After
	if d.Delay == 0 {
		d.Delay = s.Backoff.Delay(attempt)
	}
	if r := (*fault.Rejection)(nil); verdict.Outcome == fault.Neutral && errors.As(err, &r) {
		// Refused by one of our own guards: the message has not had its chance.
		d.Action, d.Attempt = Retried, attempt
		return d
	}
	if limit := s.WithDefaults().MaxDeliveries; limit > 0 && attempt >= limit {
		d.Delay = 0
		d.Reason = reason(fmt.Errorf("gave up after %d deliveries: %w", attempt, err))
		return d
	}
	d.Action, d.Attempt = Retried, attempt+1
	return d
}

// reason returns the text of err, cut to maxReason.
func reason(err error) string {
	s := strings.ToValidUTF8(err.Error(), "\uFFFD")
	if len(s) <= maxReason {
		return s
	}
	end := maxReason
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "..."
}

// PanicError is the failure of a handler that panicked or called runtime.Goexit.
//
// It does not unwrap to the value of the panic, so that an error that decides something
// when it is returned, such as one made by [Drop], is only a failure when it is thrown.
type PanicError struct {
	// Value is what was given to panic, nil after runtime.Goexit.
	Value any
	// Stack is the stack of the goroutine at the panic.
	Stack []byte
}

// Error returns the value of the panic, without the stack.
func (e *PanicError) Error() string {
	if e.Value == nil {
		return "messaging: handler called runtime.Goexit"
	}
	return fmt.Sprintf("messaging: handler panicked: %v", e.Value)
}

// Is lets errors.Is find the value of the panic if it is an error.
func (e *PanicError) Is(target error) bool {
	err, ok := e.Value.(error)
	return ok && errors.Is(err, target)
}

// Invoke calls h and then done, exactly once, with its error, whatever h does: a panic
// becomes a [*PanicError] and ends there; runtime.Goexit becomes one too, and then
// ends the calling goroutine after done has returned.
//
// It is what a broker's client runs handlers with.
func Invoke(ctx context.Context, h Handler, d *Delivery, done func(err error)) {
	var err error
	returned := false
	defer func() {
		if !returned {
			// recover returns nil only for Goexit: panic(nil) gives a *runtime.PanicNilError.
			err = &PanicError{Value: recover(), Stack: debug.Stack()}
		}
		done(err)
	}()
	err = h.Handle(ctx, d)
	returned = true
}
