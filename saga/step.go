// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// Step is one step of a [Definition], or several. [Call], [Local], [Send] and [Child] do
// something; [Await], [Sleep] and [Lock] wait; [If], [Else] and [Parallel] arrange
// others; [Pivot] marks the one that decides.
type Step[T any] struct{ s *step[T] }

type step[T any] struct {
	name   string
	kind   Kind
	pivot  bool
	pivots int // how often Pivot was applied

	call  func(ctx context.Context, a Attempt, d *T) error
	local func(ctx context.Context, tx *sql.Tx, a Attempt, d *T) error

	send, undoSend func(ctx context.Context, a Attempt, d *T) (*messaging.Message, error)
	// on and undoOn take what a Send, an Await or a Child waits for.
	on, undoOn func(payload []byte, d *T) error
	onTimeout  func(d *T) error
	sleep      func(d *T) time.Duration
	key        func(d *T) string // of a lock
	try        bool
	when       func(d *T) bool
	child      *definition
	begin      func(d *T) any
	body       []Step[T] // of If, Else and Parallel

	undo      func(ctx context.Context, a Attempt, d *T) error
	undoLocal func(ctx context.Context, tx *sql.Tx, a Attempt, d *T) error
	undos     int // how many of Undo, UndoLocal and NoUndo were given
	noUndo    bool

	retry     Backoff
	undoRetry Backoff
	timeout   time.Duration
	problem   string // what is wrong with an option
}

// Kind is how a step takes part.
type Kind uint8

const (
	// KindNone marks the absence of an undo.
	KindNone Kind = iota
	// KindCall is a remote call: at least once.
	KindCall
	// KindLocal runs in the transaction that records its outcome: exactly once.
	KindLocal
	// KindSend is a command through the outbox, answered by a message.
	KindSend
	// KindAwait waits for an event.
	KindAwait
	// KindSleep waits for a time.
	KindSleep
	// KindLock waits for a key that no other saga holds.
	KindLock
	// KindIf decides which steps follow.
	KindIf
	// KindChild is another saga.
	KindChild

	kindElse
	kindParallel
)

// String returns "none", "call", "local", "send", "await", "sleep", "lock", "if" or "child".
func (k Kind) String() string {
	names := [...]string{"none", "call", "local", "send", "await", "sleep", "lock", "if", "child", "else", "parallel"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("saga.Kind(%d)", uint8(k))
}

// idle reports whether the step has no effect of its own.
func (k Kind) idle() bool {
	return k == KindAwait || k == KindSleep || k == KindLock || k == KindIf
}

// waits reports whether the step may have to wait for something other than its function.
func (k Kind) waits() bool {
	return k == KindSend || k == KindChild || k.idle()
}

// Call returns a step that calls another service. It runs at least once: a crash or
// a lost answer repeats it with the same [Attempt.Key], so the callee must
// recognise the key, for example by the barrier package. It should honour ctx,
// which ends with the step's timeout, and never when the saga is cancelled.
//
// What do changes in *d is stored when it returns nil and forgotten when it fails.
// A call whose outcome is unknown is undone too: its undo must not need what the
// call itself would have put into *d.
func Call[T any](name string, do func(ctx context.Context, a Attempt, d *T) error, opts ...Option[T]) Step[T] {
	return newStep(&step[T]{name: name, kind: KindCall, call: do}, opts)
}

// Local returns a step that changes the service's own database. It runs in the
// transaction that also records its outcome, so it happens exactly once: what it
// writes through tx and what it changes in *d commit together, or not at all. It
// must not use another connection of the pool that tx came from, nor end tx.
//
// With a store that has no SQL transaction (sagamem) tx is nil.
func Local[T any](name string, do func(ctx context.Context, tx *sql.Tx, a Attempt, d *T) error, opts ...Option[T]) Step[T] {
	return newStep(&step[T]{name: name, kind: KindLocal, local: do}, opts)
}

func newStep[T any](s *step[T], opts []Option[T]) Step[T] {
	for _, o := range opts {
		o.apply(s)
	}
	return Step[T]{s}
}

// Pivot marks the step that decides. Until it has begun the saga can be undone; once
// it is done the saga only goes forward. A pivot has no undo: refused, it has not
// happened, and the steps before it are undone. Steps behind it are retried until
// they succeed; if one of them is refused the saga is stuck.
//
// A participant that refuses a pivot must remember that it did, so that a late
// duplicate of the request is refused as well: see the barrier package.
func Pivot[T any](s Step[T]) Step[T] {
	if s.s == nil {
		return s
	}
	p := *s.s
	p.pivot = true
	p.pivots++
	return Step[T]{&p}
}

// Option is an optional property of one step.
type Option[T any] struct{ apply func(*step[T]) }

// Undo gives a step its compensation, another remote call. It runs whenever the step
// may have happened: also when its outcome is unknown, and when it was refused,
// because a duplicate of the refused request may still arrive. So it must succeed
// when there is nothing to undo, and make a late arrival of the request
// ineffective; barrier does both.
//
// It is retried, with a context of its own, until it succeeds.
func Undo[T any](fn func(ctx context.Context, a Attempt, d *T) error) Option[T] {
	return Option[T]{func(s *step[T]) { s.undo, s.undos = fn, s.undos+1 }}
}

// UndoLocal gives a step a compensation in the service's own database. It runs in the
// transaction that records it, exactly once, under the rules of [Local] and [Undo].
func UndoLocal[T any](fn func(ctx context.Context, tx *sql.Tx, a Attempt, d *T) error) Option[T] {
	return Option[T]{func(s *step[T]) { s.undoLocal, s.undos = fn, s.undos+1 }}
}

// NoUndo says that there is nothing to undo: the step only looks, or what it leaves
// behind is harmless. Before the pivot it is an error to say nothing.
func NoUndo[T any]() Option[T] {
	return Option[T]{func(s *step[T]) { s.noUndo, s.undos = true, s.undos+1 }}
}

// Backoff is a schedule of attempts. The delay before attempt n+1 is random between
// zero and Base doubled n-1 times, at most Max (full jitter).
type Backoff struct {
	// Base is the bound of the first delay. Zero means the engine's Config.Backoff.
	Base time.Duration
	// Max bounds every delay. Zero means the engine's Config.Backoff.
	Max time.Duration
	// Attempts is how many attempts may fail before the saga compensates. Zero means
	// no limit but the saga's deadline. It is for steps before the pivot: the pivot,
	// the steps behind it and compensations are never given up.
	Attempts int
}

// Retry sets the schedule of the step's own attempts.
func Retry[T any](b Backoff) Option[T] {
	return Option[T]{func(s *step[T]) { s.retry = b }}
}

// UndoRetry sets the schedule of its compensation. Attempts must be zero.
func UndoRetry[T any](b Backoff) Option[T] {
	return Option[T]{func(s *step[T]) { s.undoRetry = b }}
}

// Timeout bounds each attempt at the step and at its undo. Without it the engine's
// Config.Timeout applies to a [Call] and a [Local] step, while a step that waits does so
// without an end of its own. What happens then is said at [Send], [Await] and [Lock].
func Timeout[T any](d time.Duration) Option[T] {
	return Option[T]{func(s *step[T]) {
		s.timeout = d
		if d <= 0 {
			s.problem = "Timeout is " + d.String() + ", want more than 0"
		}
	}}
}
