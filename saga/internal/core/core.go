// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package core decides what a saga does next. It is pure: no clock, no randomness,
// no I/O, so that the engine can run it and sagatest can search it exhaustively.
//
// The state names the current step. A step becomes current in the write that records
// the step before it, so a stored state always says: everything before the
// current step has happened, the current one may have, nothing behind it has. The
// compensation is thereby registered before the action.
package core

import (
	"errors"
	"fmt"
)

// Why a verb is not accepted.
var (
	ErrPastPivot = errors.New("past the pivot")
	ErrNotStuck  = errors.New("not stuck")
)

// Status is how far a saga has come. The values are those of saga.Status.
type Status uint8

// The statuses.
const (
	Running Status = iota + 1
	Compensating
	Completed
	Compensated
)

// Step is what matters here about a step.
type Step struct {
	// Local steps happen in the transaction that records them: one that was not recorded
	// as done has not happened.
	Local bool
	// Undo tells whether there is a compensation.
	Undo bool
	// Pivot marks the step that decides.
	Pivot bool
	// Attempts is how many may fail before the saga compensates, zero for no limit.
	Attempts int
}

// Shape is what matters here about a definition.
type Shape struct {
	Steps []Step
	// Pivot is the index of the step that decides, len(Steps) if there is none. See [NewShape].
	Pivot int
	// End tells whether a function of the user's runs in the transaction that ends the saga.
	End bool
	// StuckAfter is how many attempts may fail before the saga is called stuck, though it
	// is still tried. Zero is never.
	StuckAfter int
}

// NewShape returns the shape of these steps.
func NewShape(steps []Step) *Shape {
	sh := &Shape{Steps: steps, Pivot: len(steps)}
	for i, s := range steps {
		if s.Pivot {
			sh.Pivot = i
		}
	}
	// A local step that ends the saga and has no undo decides, whether it says so or not.
	if last := len(steps) - 1; sh.Pivot > last && steps[last].Local && !steps[last].Undo {
		sh.Pivot = last
	}
	return sh
}

// State is a saga's state. The zero State with Status Running is the beginning.
type State struct {
	Status Status
	// Step is the index of the current step. While running, len(Steps) means that only
	// the end is left; while compensating, -1 does.
	Step int
	// Attempt counts the failed attempts at the current operation.
	Attempt int
	// Reason is why it compensates, or while running the last failure.
	Reason string
	// Cancel is why it was cancelled, as long as that has not taken effect.
	Cancel string
	// Stuck is why it needs an operator. Parked means that it waits for one.
	Stuck  string
	Parked bool
}

// Action is what a state calls for.
type Action uint8

// The actions.
const (
	// Rest means that there is nothing to do: ended, or parked.
	Rest Action = iota
	// Do means to attempt the current step.
	Do
	// Undo means to attempt the current step's compensation.
	Undo
	// End means to run the user's function that ends the saga.
	End
)

// Next returns what state s calls for.
func (sh *Shape) Next(s State) Action {
	switch {
	case s.Parked || s.Status == Completed || s.Status == Compensated:
		return Rest
	case sh.ending(s):
		return End
	case s.Status == Compensating:
		return Undo
	}
	return Do
}

func (sh *Shape) ending(s State) bool {
	return s.Status == Running && s.Step >= len(sh.Steps) || s.Status == Compensating && s.Step < 0
}

// Kind is what happened.
type Kind uint8

// The kinds of event.
const (
	// Look is a worker taking up the saga, before it acts.
	Look Kind = iota
	// Done is success of the current operation.
	Done
	// Refused is a definite no: the operation did not happen and never will by being
	// asked again.
	Refused
	// Hopeless is a failure that another attempt cannot mend while the outcome of this
	// one is unknown.
	Hopeless
	// Failed is any other failure: it may or may not have happened.
	Failed
	// Park is the engine giving up on its own account.
	Park
	// Cancel, Retry and Skip are an operator's verbs.
	Cancel
	Retry
	Skip
)

// Event is what happened, in which the engine includes what the time is.
type Event struct {
	Kind Kind
	// Text is the error, or the operator's reason.
	Text string
	// Late is true when the saga's deadline has passed.
	Late bool
}

// Outcome is how a decision is told in the history.
type Outcome struct {
	// Op and Outcome are empty when nothing happened.
	Op, Outcome string
	// Turn is why the saga turned back, if it did so now.
	Turn string
	// Wait tells to back off before the next attempt.
	Wait bool
}

// Decide returns the state that follows s after ev. The error is ErrPastPivot or
// ErrNotStuck, for verbs only, and leaves s as it was.
func (sh *Shape) Decide(s State, ev Event) (State, Outcome, error) {
	next, out, err := sh.decide(s, ev)
	if s.Status == Running && (next.Status == Compensating || next.Status == Compensated) {
		out.Turn = next.Reason
	}
	return next, out, err
}

func (sh *Shape) decide(s State, ev Event) (State, Outcome, error) {
	if s.Status != Running && s.Status != Compensating {
		return sh.ended(s, ev)
	}
	switch ev.Kind {
	case Look:
		return sh.look(s, ev), Outcome{}, nil
	case Cancel:
		switch {
		case s.Status == Compensating || s.Cancel != "":
			return s, Outcome{}, nil
		case !sh.Abortable(s):
			return s, Outcome{}, ErrPastPivot
		}
		s.Cancel, s.Stuck, s.Parked = ev.Text, "", false
		return s, accepted("cancel"), nil
	case Retry:
		if s.Stuck == "" {
			return s, Outcome{}, ErrNotStuck
		}
		s.Stuck, s.Parked, s.Attempt = "", false, 0
		return s, accepted("retry"), nil
	case Skip:
		if s.Stuck == "" {
			return s, Outcome{}, ErrNotStuck
		}
		return sh.done(s, ev), accepted("skip"), nil
	case Park:
		s.Stuck, s.Parked = ev.Text, true
		return s, accepted("park"), nil
	}
	out := Outcome{Op: sh.op(s), Outcome: "failed"}
	switch ev.Kind {
	case Done:
		out.Outcome = "done"
		return sh.done(s, ev), out, nil
	case Refused:
		out.Outcome = "refused"
	}
	s, out.Wait = sh.failed(s, ev)
	return s, out, nil
}

func accepted(verb string) Outcome { return Outcome{Op: verb, Outcome: "accepted"} }

func (sh *Shape) op(s State) string {
	switch {
	case sh.ending(s):
		return "end"
	case s.Status == Compensating:
		return "undo"
	}
	return "do"
}

// ended answers verbs to a saga that is over. Anything else comes too late to matter.
func (sh *Shape) ended(s State, ev Event) (State, Outcome, error) {
	switch {
	case ev.Kind == Cancel && s.Status == Completed:
		return s, Outcome{}, ErrPastPivot
	case ev.Kind == Retry || ev.Kind == Skip:
		return s, Outcome{}, ErrNotStuck
	}
	return s, Outcome{}, nil
}

// Abortable tells whether the saga can still be undone: the pivot has not begun, or
// is a local step, which has not happened as long as it is current.
func (sh *Shape) Abortable(s State) bool {
	return s.Status == Running && (s.Step < sh.Pivot && s.Step < len(sh.Steps) ||
		s.Step == sh.Pivot && s.Step < len(sh.Steps) && sh.Steps[s.Step].Local)
}

// Turns tells whether the event Look would turn the saga back.
func (sh *Shape) Turns(s State, late bool) bool {
	return !s.Parked && sh.Abortable(s) && abort(s, Event{Late: late}) != ""
}

func (sh *Shape) look(s State, ev Event) State {
	if sh.Turns(s, ev.Late) {
		return sh.compensate(s, abort(s, ev))
	}
	return s
}

// abort returns why a saga that still can should turn back, or "".
func abort(s State, ev Event) string {
	switch {
	case s.Cancel != "":
		return "cancelled: " + s.Cancel
	case ev.Late:
		return "deadline passed"
	}
	return ""
}

func (sh *Shape) done(s State, ev Event) State {
	if sh.ending(s) {
		return finish(s)
	}
	if s.Status == Compensating {
		s.Step = sh.undoable(s.Step - 1)
		return sh.arrive(s)
	}
	if s.Step < sh.Pivot && s.Step < len(sh.Steps) {
		// What follows has not begun, so that even a pivot behind this step is not too late.
		if why := abort(s, ev); why != "" {
			return sh.back(s, s.Step, why)
		}
	}
	s.Step++
	s.Reason = ""
	return sh.arrive(s)
}

// arrive is the first moment at a new operation.
func (sh *Shape) arrive(s State) State {
	s.Attempt, s.Stuck, s.Parked = 0, "", false
	if sh.ending(s) && !sh.End {
		return finish(s)
	}
	return s
}

func finish(s State) State {
	s.Attempt, s.Stuck, s.Parked = 0, "", false
	s.Status = map[Status]Status{Running: Completed, Compensating: Compensated}[s.Status]
	return s
}

func (sh *Shape) failed(s State, ev Event) (_ State, wait bool) {
	s.Attempt++
	final := ev.Kind == Refused || ev.Kind == Hopeless
	forward := s.Status == Running && s.Step < len(sh.Steps)
	switch {
	case forward && s.Step < sh.Pivot && final,
		forward && s.Step == sh.Pivot && (ev.Kind == Refused || final && sh.Steps[s.Step].Local):
		return sh.compensate(s, ev.Text), false
	case final:
		why := "refused"
		if ev.Kind == Hopeless {
			why = "failed for good"
		}
		s.Stuck, s.Parked = fmt.Sprintf("%s where there is no way back: %s", why, ev.Text), true
		return s, false
	}
	if sh.Abortable(s) {
		if why := abort(s, ev); why != "" {
			return sh.compensate(s, why), false
		}
		if limit := sh.Steps[s.Step].Attempts; limit > 0 && s.Attempt >= limit {
			return sh.compensate(s, fmt.Sprintf("gave up after %d attempts: %s", s.Attempt, ev.Text)), false
		}
	}
	if s.Status == Running {
		s.Reason = ev.Text
	}
	if sh.StuckAfter > 0 && s.Attempt >= sh.StuckAfter {
		s.Stuck = ev.Text
	}
	return s, true
}

// compensate turns back at the current step, which is undone as well if it may have
// happened. A refused step may still happen when a duplicate of its request arrives.
func (sh *Shape) compensate(s State, why string) State {
	from := s.Step
	if from < len(sh.Steps) && sh.Steps[from].Local {
		from--
	}
	return sh.back(s, from, why)
}

func (sh *Shape) back(s State, from int, why string) State {
	s.Status, s.Step, s.Reason, s.Cancel = Compensating, sh.undoable(from), why, ""
	return sh.arrive(s)
}

// undoable returns the last step up to i that has a compensation, or -1.
func (sh *Shape) undoable(i int) int {
	for ; i >= 0; i-- {
		if sh.Steps[i].Undo {
			return i
		}
	}
	return -1
}
