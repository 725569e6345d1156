// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package core decides what a saga does next. It is pure: no clock, no randomness,
// no I/O, so that the engine can run it and sagatest can search it exhaustively.
//
// The state names the current step. A step becomes current in the write that records
// the step before it, so a stored state always says: everything before the
// current step has happened, the current one may have, nothing behind it has. The
// compensation is thereby registered before the action. Steps of a group are current
// together, under the index of the first: each of them may have happened.
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
	// Idle steps have no effect: they decide, or wait. They are local, too.
	Idle bool
	// Undo tells whether there is a compensation.
	Undo bool
	// Pivot marks the step that decides.
	Pivot bool
	// Attempts is how many may fail before the saga compensates, zero for no limit.
	Attempts int
	// Group is how many steps are current together from this one on, zero and one for the
	// step alone. Only the first step of a group has it.
	Group int
	// Guards are the decisions that this step depends on.
	Guards []Guard
}

// Guard makes a step depend on the decision of an earlier one.
type Guard struct {
	// Step is the index of the step that decides, Want the decision that lets this one
	// take place.
	Step int
	Want bool
}

// Set is a set of steps by index.
type Set uint64

// MaxSteps is how many steps a definition can have.
const MaxSteps = 64

// Has reports whether step i is in the set.
func (s Set) Has(i int) bool { return s&(1<<i) != 0 }

// With returns the set with step i.
func (s Set) With(i int) Set { return s | 1<<i }

// Without returns the set without step i.
func (s Set) Without(i int) Set { return s &^ (1 << i) }

// Cause is why a saga compensates. The values are those of saga.Cause.
type Cause uint8

// The causes.
const (
	Refusal Cause = iota + 1
	Failure
	Cancellation
	Deadline
)

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
	if last := len(steps) - 1; sh.Pivot > last && steps[last].Local && !steps[last].Undo && !steps[last].Idle {
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
	// Cause and Reason are why it compensates. While running, Reason is the last failure.
	Cause  Cause
	Reason string
	// Chosen are the decisions that were positive. Finished are the steps of the current
	// group that are done; Waiting those current ones that wait for something.
	Chosen, Finished, Waiting Set
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
	// TimedOut is a wait that was not fulfilled in time: a definite no.
	TimedOut
	// Waits is the operation having begun to wait for something.
	Waits
	// Park is the engine giving up on its own account.
	Park
	// Cancel, Retry and Skip are an operator's verbs.
	Cancel
	Retry
	Skip
	// Revert is a parent's verb: like Cancel, but it also turns a completed saga back.
	Revert
)

// Event is what happened, in which the engine includes what the time is.
type Event struct {
	Kind Kind
	// Branch is the index of the step that it happened to, if a group is current.
	Branch int
	// Yes is the decision, when a step that decides is done.
	Yes bool
	// Text is the error, or the operator's reason. Why is the reason without what stands
	// before it in the error.
	Text, Why string
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
	case Cancel, Revert:
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
	case Waits:
		i := sh.branch(s, ev)
		was := s.Waiting.Has(i)
		if s.Waiting = s.Waiting.With(i); was {
			return s, Outcome{}, nil
		}
		return s, Outcome{Op: sh.op(s), Outcome: "waiting"}, nil
	}
	out := Outcome{Op: sh.op(s), Outcome: "failed"}
	switch ev.Kind {
	case Done:
		out.Outcome = "done"
		return sh.done(s, ev), out, nil
	case Refused, TimedOut:
		out.Outcome = "refused"
	}
	s, out.Wait = sh.failed(s, ev)
	return s, out, nil
}

// branch returns the index of the step that ev happened to.
func (sh *Shape) branch(s State, ev Event) int {
	if s.Status == Running && sh.Last(s.Step) > s.Step {
		return ev.Branch
	}
	return max(s.Step, 0)
}

// Last returns the index of the last step that is current together with step i.
func (sh *Shape) Last(i int) int {
	if i < 0 || i >= len(sh.Steps) {
		return i
	}
	return i + max(sh.Steps[i].Group, 1) - 1
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
	case ev.Kind == Revert && s.Status == Completed && sh.Pivot >= len(sh.Steps):
		s = sh.back(s, len(sh.Steps)-1, Cancellation, ev.Text)
		return s, accepted("revert"), nil
	case (ev.Kind == Cancel || ev.Kind == Revert) && s.Status == Completed:
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
	cause, _ := abort(s, Event{Late: late})
	return !s.Parked && sh.Abortable(s) && cause != 0
}

func (sh *Shape) look(s State, ev Event) State {
	if sh.Turns(s, ev.Late) {
		cause, why := abort(s, ev)
		return sh.compensate(s, cause, why)
	}
	return s
}

// abort returns why a saga that still can should turn back, or zero.
func abort(s State, ev Event) (Cause, string) {
	switch {
	case s.Cancel != "":
		return Cancellation, s.Cancel
	case ev.Late:
		return Deadline, "deadline passed"
	}
	return 0, ""
}

func (sh *Shape) done(s State, ev Event) State {
	if sh.ending(s) {
		return finish(s)
	}
	if s.Status == Compensating {
		s.Step = sh.undoable(s, s.Step-1)
		return sh.arrive(s)
	}
	last := sh.Last(s.Step)
	if last > s.Step && ev.Kind != Skip {
		i := sh.branch(s, ev)
		s.Finished, s.Waiting = s.Finished.With(i), s.Waiting.Without(i)
		for i := s.Step; i <= last; i++ {
			if !s.Finished.Has(i) {
				return s
			}
		}
	}
	if ev.Yes {
		s.Chosen = s.Chosen.With(s.Step)
	}
	if s.Step < sh.Pivot || s.Cancel != "" && sh.Abortable(s) {
		// What follows has not begun, so that even a pivot behind this step is not too late. Nor
		// is one that only waited, if the cancellation came before it was recorded.
		if cause, why := abort(s, ev); cause != 0 {
			return sh.back(s, last, cause, why)
		}
	}
	s.Step = last + 1
	for s.Step < len(sh.Steps) && !sh.Live(s, s.Step) {
		s.Step++
	}
	s.Reason = ""
	return sh.arrive(s)
}

// Live reports whether the decisions so far let step i take place.
func (sh *Shape) Live(s State, i int) bool {
	for _, g := range sh.Steps[i].Guards {
		if s.Chosen.Has(g.Step) != g.Want {
			return false
		}
	}
	return true
}

// arrive is the first moment at a new operation.
func (sh *Shape) arrive(s State) State {
	s.Attempt, s.Stuck, s.Parked, s.Finished, s.Waiting = 0, "", false, 0, 0
	if sh.ending(s) && !sh.End {
		return finish(s)
	}
	return s
}

func finish(s State) State {
	s.Attempt, s.Stuck, s.Parked, s.Finished, s.Waiting = 0, "", false, 0, 0
	s.Status = map[Status]Status{Running: Completed, Compensating: Compensated}[s.Status]
	return s
}

func (sh *Shape) failed(s State, ev Event) (_ State, wait bool) {
	s.Attempt++
	s.Waiting = s.Waiting.Without(sh.branch(s, ev))
	definite := ev.Kind == Refused || ev.Kind == TimedOut
	final := definite || ev.Kind == Hopeless
	forward := s.Status == Running && s.Step < len(sh.Steps)
	switch {
	case forward && s.Step < sh.Pivot && final,
		forward && s.Step == sh.Pivot && (definite || final && sh.Steps[s.Step].Local):
		return sh.compensate(s, map[Kind]Cause{Refused: Refusal, TimedOut: Deadline, Hopeless: Failure}[ev.Kind], why(ev)), false
	case final:
		what := "refused"
		if ev.Kind == Hopeless {
			what = "failed for good"
		}
		s.Stuck, s.Parked = fmt.Sprintf("%s where there is no way back: %s", what, why(ev)), true
		return s, false
	}
	if sh.Abortable(s) {
		if cause, why := abort(s, ev); cause != 0 {
			return sh.compensate(s, cause, why), false
		}
		if limit := sh.Steps[sh.branch(s, ev)].Attempts; limit > 0 && s.Attempt >= limit {
			return sh.compensate(s, Failure, fmt.Sprintf("gave up after %d attempts: %s", s.Attempt, ev.Text)), false
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

func why(ev Event) string {
	if ev.Why != "" {
		return ev.Why
	}
	return ev.Text
}

// compensate turns back at the current step, which is undone as well if it may have
// happened. A refused step may still happen when a duplicate of its request arrives.
func (sh *Shape) compensate(s State, cause Cause, why string) State {
	from := sh.Last(s.Step)
	if from < len(sh.Steps) && sh.Steps[from].Local {
		from--
	}
	return sh.back(s, from, cause, why)
}

func (sh *Shape) back(s State, from int, cause Cause, why string) State {
	s.Status, s.Step, s.Cause, s.Reason, s.Cancel = Compensating, sh.undoable(s, from), cause, why, ""
	return sh.arrive(s)
}

// undoable returns the last step up to i that took place and has a compensation, or -1.
func (sh *Shape) undoable(s State, i int) int {
	for ; i >= 0; i-- {
		if sh.Steps[i].Undo && sh.Live(s, i) {
			return i
		}
	}
	return -1
}
