// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// Hooks observe an engine. Every field may be nil. They are called outside locks, from
// many goroutines, and should be quick.
type Hooks struct {
	// Starting is called by [Start], in the caller's context, and may fill the header that is
	// stored with the saga and comes back with each of its attempts: with the trace that the
	// start is a part of, say, which so survives crashes and long waits.
	Starting func(ctx context.Context, s Starting)
	// StepStart is called before an attempt. The attempt runs with the context that it
	// returns, in which a tracer may put its span.
	StepStart func(ctx context.Context, s StepStart) context.Context
	// StepEnd is called when an attempt has ended and its outcome is stored, with the
	// attempt's context.
	StepEnd func(ctx context.Context, s StepEnd)
	// TakenOver is called when the engine has taken a saga from a node that died.
	TakenOver func(TakenOver)
	// Compensating is called when a saga has turned back.
	Compensating func(Turned)
	// Ended is called when a saga has ended.
	Ended func(Ended)
	// Stuck is called when a saga has got stuck: alarm somebody.
	Stuck func(Stuck)
}

// Starting is a saga that [Start] is about to write.
type Starting struct {
	// Saga is the saga's ID.
	Saga string
	// Name and Version are those of the definition.
	Name    string
	Version int
	// Header is empty, to be filled. The header of a start that is repeated is not stored. The
	// [Child] of a saga has its parent's. The command of a [Send] carries it, too, but for the
	// names that it sets itself.
	Header messaging.Header
}

// StepStart is an attempt that begins.
type StepStart struct {
	Attempt
	// Name and Version are those of the definition.
	Name    string
	Version int
	// Header is what [Hooks.Starting] has stored with the saga. It must not be changed.
	Header messaging.Header
}

// StepEnd is an attempt that has ended.
type StepEnd struct {
	Attempt
	// Name and Version are those of the definition.
	Name    string
	Version int
	// Outcome is "done", "failed" or "refused".
	Outcome string
	// Err is the attempt's error, or nil.
	Err error
	// Took is how long the attempt took.
	Took time.Duration
}

// TakenOver is a saga taken from a node that died.
type TakenOver struct {
	// Saga is the saga's ID.
	Saga string
	// Name and Version are those of the definition.
	Name    string
	Version int
	// Step is the current step, which may have happened.
	Step string
	// Takeovers counts the nodes that died over it in a row.
	Takeovers int
}

// Turned is a saga that compensates from now on.
type Turned struct {
	// Saga is the saga's ID.
	Saga string
	// Name and Version are those of the definition.
	Name    string
	Version int
	// Cause and Reason tell why.
	Cause  Cause
	Reason string
}

// Ended is a saga that has ended.
type Ended struct {
	End
	// Name and Version are those of the definition.
	Name    string
	Version int
}

// Stuck is a saga that needs an operator.
type Stuck struct {
	// Saga is the saga's ID.
	Saga string
	// Name and Version are those of the definition.
	Name    string
	Version int
	// Step is the current step.
	Step string
	// Reason tells why.
	Reason string
	// Parked is true when it waits for an operator, false when it is still being tried.
	Parked bool
}
