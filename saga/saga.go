// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

var (
	// ErrRefused is the business's no: wrap it (or use [Refuse]) in what a step returns,
	// and the saga compensates instead of trying again.
	ErrRefused = errors.New("refused")
	// ErrConflict is returned by [Start] for an ID that was started with another input
	// or another definition.
	ErrConflict = errors.New("saga: already started with another input")
	// ErrNotFound is returned for an ID that the store does not know.
	ErrNotFound = errors.New("saga: not found")
	// ErrPastPivot is returned by [Engine.Cancel] when the saga can only go forward.
	ErrPastPivot = errors.New("saga: past the pivot")
	// ErrUnknownDefinition is returned for a saga whose definition the engine does not have.
	ErrUnknownDefinition = errors.New("saga: the engine has no such definition")
	// ErrNotStuck is returned by [Engine.Retry] and [Engine.Skip] for a saga that needs
	// no help.
	ErrNotStuck = errors.New("saga: not stuck")
)

// Refuse returns an error that wraps [ErrRefused]. The reason is kept with the saga.
func Refuse(reason string) error { return &refusal{reason} }

type refusal struct{ reason string }

func (r *refusal) Error() string {
	if r.reason == "" {
		return ErrRefused.Error()
	}
	return ErrRefused.Error() + ": " + r.reason
}

func (r *refusal) Unwrap() error { return ErrRefused }

// Tx is the caller's transaction: *sql.Tx, *sql.Conn and *sql.DB fit as they are.
type Tx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Operations of a step.
const (
	OpDo   = "do"
	OpUndo = "undo"
	// OpEnd is the operation of [Definition.OnEnd] and appears in histories only.
	OpEnd = "end"
)

// Attempt tells a step's function which attempt it is.
type Attempt struct {
	// Saga is the saga's ID.
	Saga string
	// Step is the step's name.
	Step string
	// Op is [OpDo] or [OpUndo].
	Op string
	// Number counts the attempts that were recorded, from 1. An attempt cut short by a
	// crash was not recorded: its number comes again.
	Number int
}

// Key identifies the effect: it is the same for every attempt at this operation of
// this step, so it serves as an idempotency key. It has the form
// "<saga>/<step>/<op>", each part path-escaped, and fits in an HTTP header.
func (a Attempt) Key() string {
	return url.PathEscape(a.Saga) + "/" + url.PathEscape(a.Step) + "/" + a.Op
}

// Parts returns the three parts of the key, as the barrier package takes them.
func (a Attempt) Parts() (saga, step, op string) { return a.Saga, a.Step, a.Op }

// Status is how far a saga has come.
type Status uint8

const (
	// Running sagas do their steps in order.
	Running Status = iota + 1
	// Compensating sagas undo their steps in reverse.
	Compensating
	// Completed sagas have done every step. Final.
	Completed
	// Compensated sagas have undone every step. Final.
	Compensated
)

// String returns "running", "compensating", "completed" or "compensated".
func (s Status) String() string {
	switch s {
	case Running:
		return "running"
	case Compensating:
		return "compensating"
	case Completed:
		return "completed"
	case Compensated:
		return "compensated"
	}
	return fmt.Sprintf("saga.Status(%d)", uint8(s))
}

// Ended reports whether the status is final.
func (s Status) Ended() bool { return s == Completed || s == Compensated }

// Cause is why a saga compensates.
type Cause uint8

const (
	// CauseNone is that of sagas that go forward.
	CauseNone Cause = iota
	// CauseRefused means that a step was refused: see [ErrRefused].
	CauseRefused
	// CauseFailed means that a step has used up its attempts, or that another one could
	// not have helped.
	CauseFailed
	// CauseCancelled means that somebody called [Engine.Cancel], or that the saga's parent
	// compensates.
	CauseCancelled
	// CauseDeadline means that the saga's [Definition.Deadline], or the [Timeout] of an
	// [Await] or a [Lock], has passed.
	CauseDeadline
)

// String returns "none", "refused", "failed", "cancelled" or "deadline".
func (c Cause) String() string {
	names := [...]string{"none", "refused", "failed", "cancelled", "deadline"}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("saga.Cause(%d)", uint8(c))
}

// End is how a saga ended.
type End struct {
	// Saga is the saga's ID.
	Saga string
	// Status is [Completed] or [Compensated].
	Status Status
	// Cause is why a compensated saga was undone.
	Cause Cause
	// Reason tells the cause in words: what was given to [Refuse] or [Engine.Cancel], or
	// the error that did it.
	Reason string
}

// Instance is one saga as it stands in the store.
type Instance struct {
	// ID is the saga's ID.
	ID string
	// Name and Version are those of its definition.
	Name    string
	Version int
	// Status is how far it has come.
	Status Status
	// Step is the current step, which may or may not have happened yet. It is empty
	// when only the end is left.
	Step string
	// Attempt counts the failed attempts at the current operation.
	Attempt int
	// Cause is why the saga compensates.
	Cause Cause
	// Reason tells why the saga compensates, or the error of the last failed attempt
	// while it runs.
	Reason string
	// Waits are the current steps that wait for a reply, an event, a time, a lock or a child.
	Waits []string
	// Parent is the ID of the saga whose [Child] this one is, or empty.
	Parent string
	// Stuck tells why the saga needs an operator. Empty means that it does not.
	Stuck string
	// Parked is true when a stuck saga waits for an operator; a stuck saga that is not
	// parked is still being tried.
	Parked bool
	// Cancel is why the saga was cancelled, while it has not yet begun to compensate.
	Cancel string
	// Data is the user's value as JSON.
	Data []byte
	// Header is what [Hooks.Starting] has stored with the saga. It never changes. Nil is none.
	Header messaging.Header
	// Created and Updated are times of the store's clock.
	Created, Updated time.Time
	// WakeAt is when the saga may next be worked on. Zero when it has ended, is parked, or
	// waits without a time limit.
	WakeAt time.Time
	// Deadline is when a saga that has not reached its pivot compensates. Zero is never.
	Deadline time.Time
	// Owner is the node that works on it now, or empty.
	Owner string
	// Epoch counts the changes of owner.
	Epoch int64
	// Archived is true for a saga that has ended and was moved to the archive: see
	// [Config.Archive].
	Archived bool
}

// Entry is one line of a saga's history.
type Entry struct {
	// N orders the entries of one saga. Numbers may have gaps.
	N int64
	// At is when the entry was written, by the store's clock.
	At time.Time
	// Step is the step's name, empty for what concerns the saga as a whole.
	Step string
	// Op is "do", "undo", "end", or what happened to the saga as a whole: "start",
	// "compensate", "cancel", "revert", "retry", "skip", "park", "migrate".
	Op string
	// Attempt is the attempt's number, from 1, or zero.
	Attempt int
	// Outcome is "done", "failed", "refused" or "waiting", or for verbs "accepted".
	Outcome string
	// Text is the error of an attempt, or the reason given with a verb.
	Text string
	// Who is [By.Who] of a verb, or the parent that turned the saga back. Else it is empty.
	Who string
	// Took is how long the attempt took on its node.
	Took time.Duration
	// Node is the engine that wrote the entry.
	Node string
}

// Filter selects sagas. The zero Filter selects the newest 100.
type Filter struct {
	// Status selects one status. Zero is all.
	Status Status
	// Name selects one definition. Empty is all.
	Name string
	// Version selects one version of it. Zero is all.
	Version int
	// Prefix selects IDs that begin so. Empty is all.
	Prefix string
	// Age selects sagas that were started at least so long ago. Zero is all.
	Age time.Duration
	// Stuck selects only sagas that need an operator.
	Stuck bool
	// Archived selects archived sagas, and only these. Without it they are left out.
	Archived bool
	// Limit bounds the result. Zero means 100, the most is 1,000.
	Limit int
	// After continues behind the saga of this ID, the last one of the page before. What is
	// started meanwhile does not move the pages that follow.
	After string
}
