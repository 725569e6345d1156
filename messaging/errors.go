// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/dovetail-go/dovetail/fault"
)

// The outcomes of publishing a message that was not confirmed. Exactly one of them is
// in the error of every [Failed].
var (
	// ErrUnroutable means that the broker has no group for the message's topic, so
	// nobody would ever have received it. It was not taken. The callee is healthy, and a
	// group may yet be declared: neutral, may be tried again.
	ErrUnroutable = fault.Judged(errors.New("messaging: unroutable: no group is bound to the topic"),
		fault.Verdict{Outcome: fault.Neutral, Retry: true})
	// ErrRefused means that the broker, or the publisher itself, answered no: the message
	// was not taken. Where trying again cannot help the error is [fault.Permanent].
	ErrRefused = errors.New("messaging: refused")
	// ErrBlocked means that the broker took nothing in until the context ended: the
	// message was never sent, and may be later.
	ErrBlocked = errors.New("messaging: blocked: the broker takes no messages now")
	// ErrUnknown means that the answer was lost or did not come in time: the message was
	// taken or it was not. Publish it again with the same ID; consumers recognise the
	// duplicate. It satisfies [fault.IsUnknown].
	ErrUnknown = fault.Unknown(errors.New("messaging: outcome unknown"))
)

var (
	// ErrClosed means that the broker or its client was closed by its owner.
	ErrClosed = errors.New("messaging: closed")
	// ErrMismatch means that a group, or what stands behind it in the broker, already
	// exists and was declared otherwise. Trying again cannot help.
	ErrMismatch = fault.Permanent(errors.New("messaging: declared otherwise"))
	// ErrUnsupported means that this broker cannot do what was asked, such as starting a
	// group in the past. Trying again cannot help.
	ErrUnsupported = fault.Permanent(errors.New("messaging: not supported by this broker"))
)

// PublishError names each message of one Publish call that was not confirmed.
//
// It unwraps to every cause. Its verdict for package fault is that of the call as a
// whole: unknown if any outcome is unknown, worth retrying if any message is.
type PublishError struct {
	// Failed is in the order of the call's messages and not empty.
	Failed []Failed
}

// Failed is one message that was not confirmed.
type Failed struct {
	// Index is the position in the arguments of Publish.
	Index int
	// ID is the message's, empty if it had none.
	ID string
	// Err wraps one of ErrUnroutable, ErrRefused, ErrBlocked and ErrUnknown.
	Err error
}

// maxNamed is how many messages an error's text lists one by one.
const maxNamed = 3

// Error names the first failed messages and their number.
func (e *PublishError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "messaging: %d not confirmed", len(e.Failed))
	for i, f := range e.Failed {
		if i == maxNamed {
			b.WriteString("; ...")
			break
		}
		fmt.Fprintf(&b, "; message %d (id %q): %v", f.Index, f.ID, f.Err)
	}
	return b.String()
}

// Unwrap returns all causes, joined and judged as one.
func (e *PublishError) Unwrap() error {
	if len(e.Failed) == 1 {
		return e.Failed[0].Err
	}
	var all fault.Verdict
	all.Outcome = fault.Neutral
	errs := make([]error, len(e.Failed))
	for i, f := range e.Failed {
		errs[i] = f.Err
		v := fault.Judge(context.Background(), f.Err)
		if v.Outcome == fault.Failure {
			all.Outcome = fault.Failure
		}
		all.Retry = all.Retry || v.Retry
		all.Unknown = all.Unknown || v.Unknown
		all.After = max(all.After, v.After)
	}
	return fault.Judged(errors.Join(errs...), all)
}

// Invalid returns the error of a Publish that sends nothing because some of msgs do not
// [Message.Validate], and nil if all do. It names every message: the bad ones as
// permanently refused, the others as refused because of them.
//
// Publishers call it first.
func Invalid(msgs []*Message) error {
	first := -1
	var failed []Failed
	for i, m := range msgs {
		err := m.Validate()
		if err == nil {
			continue
		}
		if first < 0 {
			first, failed = i, make([]Failed, len(msgs))
		}
		failed[i].Err = fault.Permanent(fmt.Errorf("%w: %w", ErrRefused, err))
	}
	if first < 0 {
		return nil
	}
	for i, m := range msgs {
		failed[i].Index = i
		if m != nil {
			failed[i].ID = m.ID
		}
		if failed[i].Err == nil {
			failed[i].Err = fmt.Errorf("%w: not sent, because message %d of the same call is invalid", ErrRefused, first)
		}
	}
	return &PublishError{Failed: failed}
}
