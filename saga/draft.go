// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/saga/internal/core"
)

// draft is what a series of events makes of a saga, before it is written.
type draft struct {
	state   core.State
	notes   notes
	step    string
	data    []byte
	entries []Entry
	// wait backs off after a failure, for at least after.
	wait    bool
	backoff Backoff
	after   time.Duration
	release bool
	// rest lets the saga wait, looking again after again if that is not zero.
	rest  bool
	again time.Duration
}

// draft returns the saga as it is.
func (j *job) draft() draft {
	return draft{state: j.state, notes: j.notes, step: j.rec.Step, data: j.rec.Data}
}

// apply returns d after one more event. Data is what a successful operation left.
func (j *job) apply(d draft, ev core.Event, data []byte, took time.Duration) draft {
	next, out, _ := j.shape.Decide(d.state, ev)
	if out.Op != "" {
		e := Entry{Step: d.step, Op: out.Op, Outcome: out.Outcome, Text: ev.Text, Took: took, Node: j.r.node}
		if j.shape.Last(d.state.Step) > d.state.Step && d.state.Status == core.Running && ev.Kind != core.Park {
			e.Step = j.def.steps[ev.Branch].Name
		}
		if ev.Kind != core.Park && ev.Kind != core.Waits {
			e.Attempt = d.state.Attempt + 1
		}
		d.entries = append(d.entries, e)
	}
	if out.Turn != "" {
		d.entries = append(d.entries, Entry{Op: "compensate", Outcome: "accepted", Text: out.Turn, Node: j.r.node})
	}
	if ev.Kind == core.Done {
		d.data = data
	}
	stays := next.Status == d.state.Status && next.Step == d.state.Step
	d.wait, d.backoff = out.Wait || d.wait && stays, j.def.backoff(d.state, j.r.cfg.Backoff)
	d.state, d.step = next, j.def.stepName(next)
	if next.Chosen|next.Finished|next.Waiting != 0 || next.Cause != 0 || d.notes.Waits != nil {
		d.notes = j.def.notesOf(next, d.notes)
	}
	return d
}

// change returns d in the form in which the store takes it.
func (j *job) change(d draft) Change {
	c := changeTo(j.rec, d.state, d.notes, d.step, d.data)
	c.Entries, c.Release = d.entries, d.release
	switch {
	case d.state.Parked || Status(d.state.Status).Ended():
		c.Due, c.Release = DueNever, true
	case d.rest:
		c.Due, c.Release, c.Signals = DueWait, true, j.rec.Signals
		c.After = j.patience(d)
	case d.wait:
		c.Due, c.Release = DueAfter, true
		c.After = max(delay(d.backoff, d.state.Attempt), d.after)
		if left, ok := j.left(); ok && j.shape != nil && j.shape.Abortable(d.state) {
			c.After = min(c.After, max(left, 0))
		}
	}
	return c
}

// patience returns how long a saga may wait before somebody looks at it. Zero is for ever.
func (j *job) patience(d draft) time.Duration {
	least := d.again
	limit := func(t time.Duration) {
		if t = max(t, time.Millisecond); least == 0 || t < least {
			least = t
		}
	}
	for name := range d.notes.Waits {
		if until := d.notes.until(name); !until.IsZero() {
			limit(until.Sub(j.now()))
		}
	}
	if d.wait {
		limit(max(delay(d.backoff, d.state.Attempt), d.after))
	}
	if left, ok := j.left(); ok && j.shape.Abortable(d.state) {
		limit(left)
	}
	return least
}

// changeTo returns the change of a saga to the given state.
func changeTo(rec Record, s core.State, n notes, step string, data []byte) Change {
	return Change{
		ID: rec.ID, Epoch: rec.Epoch, Revision: rec.Revision,
		Status: Status(s.Status), Step: step, Attempt: s.Attempt, Reason: s.Reason,
		Stuck: s.Stuck, Parked: s.Parked, Cancel: s.Cancel, Data: data,
		Notes: n.encode(),
	}
}

// commit writes what build makes of the saga as it stands. If somebody else changed
// the saga meanwhile without taking it away, as an operator's verb does, build is
// asked again. It reports whether the job may go on.
func (j *job) commit(build func() draft) bool {
	for n := 1; ; n++ {
		d := build()
		c := j.change(d)
		lost, err := j.r.writes.commit(j.r.writing, c, n > 1)
		if err == nil && !lost {
			return j.accept(d, c)
		}
		if err != nil && (!j.trouble("progress not written", err) || !pause(j.r.writing, delay(storeBackoff, n))) {
			return false
		}
		rec, ok := j.load()
		switch {
		case !ok:
			return false
		case results(rec, c):
			return j.accept(d, c)
		case !j.owns(rec):
			return false
		}
		moved := rec.Status != j.rec.Status || rec.Step != j.rec.Step || rec.Version != j.rec.Version
		if !j.adopt(rec) {
			return false
		}
		if moved {
			return true
		}
	}
}

// results reports whether rec is what c made: the change was written, although its
// writer was not told. A verb can have made the same revision of the same step, but it leaves
// the saga to its owner.
func results(rec Record, c Change) bool {
	return rec.Epoch == c.Epoch && rec.Revision == c.NewRevision() &&
		rec.Status == c.Status && rec.Step == c.Step && rec.Attempt == c.Attempt &&
		rec.Cancel == c.Cancel && rec.Stuck == c.Stuck && (rec.Owner == "") == c.Release
}

// accept takes note of a change that was written, and reports whether the saga is
// still ours.
func (j *job) accept(d draft, c Change) bool {
	was := j.state
	j.state, j.notes = d.state, d.notes
	j.rec.Status, j.rec.Step, j.rec.Attempt, j.rec.Data = c.Status, c.Step, c.Attempt, c.Data
	j.rec.Reason, j.rec.Stuck, j.rec.Parked, j.rec.Cancel = c.Reason, c.Stuck, c.Parked, c.Cancel
	j.rec.Revision, j.rec.Takeovers, j.rec.Notes = c.NewRevision(), 0, c.Notes
	j.rec.Updated = j.now()
	if c.Release {
		j.rec.Owner = ""
	}
	if c.Due == DueNever {
		j.rec.WakeAt = time.Time{}
	}
	if c.Due == DueAfter || c.Due == DueWait && c.After > 0 {
		j.r.wakeIn(c.After)
	}
	if c.Due == DueWait {
		j.r.stats.waiting.Add(1)
		if j.r.Engine.woken.Load() != j.woken {
			signal(j.r.wake) // perhaps for this saga, which nobody could claim then
		}
	}
	if c.Status.Ended() && (j.notes.Parent != "" || j.def != nil && j.def.locks) {
		j.r.Wake() // somebody waits for it
	}
	j.r.announce(reveal(j.rec), was, j.r.keepNews)
	return !c.Release
}

// announce tells of a saga's end, or that it has got stuck, since it was in state was. Those
// who wait for it are told last, by tell.
func (e *Engine) announce(in Instance, was core.State, tell func(Instance)) {
	if in.Status.Ended() || in.Parked {
		defer tell(in)
	}
	if was.Status == core.Running && (in.Status == Compensating || in.Status == Compensated) {
		e.stats.compensating.Add(1)
		if h := e.cfg.Hooks.Compensating; h != nil {
			h(Turned{Saga: in.ID, Name: in.Name, Version: in.Version, Cause: in.Cause, Reason: in.Reason})
		}
	}
	if in.Status.Ended() && !Status(was.Status).Ended() {
		if in.Status == Completed {
			e.stats.completed.Add(1)
		} else {
			e.stats.compensated.Add(1)
		}
		if h := e.cfg.Hooks.Ended; h != nil {
			end := End{Saga: in.ID, Status: in.Status}
			if in.Status == Compensated {
				end.Cause, end.Reason = in.Cause, in.Reason
			}
			h(Ended{End: end, Name: in.Name, Version: in.Version})
		}
	}
	if in.Stuck != "" && was.Stuck == "" {
		e.stats.stuck.Add(1)
		e.log().Error("saga: stuck", "saga", in.ID, "definition", in.Name, "step", in.Step, "parked", in.Parked, "reason", in.Stuck)
		if h := e.cfg.Hooks.Stuck; h != nil {
			h(Stuck{Saga: in.ID, Name: in.Name, Version: in.Version, Step: in.Step, Reason: in.Stuck, Parked: in.Parked})
		}
	}
}

// report tells of an attempt whose outcome was written.
func (j *job) report(ctx context.Context, a Attempt, err error, took time.Duration) {
	outcome := "done"
	switch kind := eventKind(err); {
	case kind == core.Refused || kind == core.TimedOut:
		outcome = "refused"
		j.r.stats.refused.Add(1)
	case kind != core.Done:
		outcome = "failed"
		j.r.stats.failed.Add(1)
	}
	j.r.stats.attempts.Add(1)
	if h := j.r.cfg.Hooks.StepEnd; h != nil {
		h(ctx, StepEnd{Attempt: a, Name: j.def.name, Version: j.def.version, Outcome: outcome, Err: err, Took: took})
	}
}

// event returns what an attempt's result means for the saga.
func (j *job) event(err error) core.Event {
	ev := core.Event{Kind: eventKind(err), Late: j.late()}
	if err != nil {
		ev.Text = clean(err.Error())
	}
	var no *refusal
	if errors.As(err, &no) && no.reason != "" {
		ev.Why = clean(no.reason)
	}
	return ev
}

func eventKind(err error) core.Kind {
	var bad *dataError
	var end *endError
	switch v := fault.Judge(context.Background(), err); {
	case err == nil:
		return core.Done
	case errors.As(err, &end):
		return core.Failed
	case errors.As(err, &bad):
		return core.Park
	case errors.Is(err, errTimedOut):
		return core.TimedOut
	case errors.Is(err, ErrRefused), !v.Retry && !v.Unknown:
		return core.Refused
	case !v.Retry:
		return core.Hopeless
	}
	return core.Failed
}

// endError is the error of a user's function for the end of a saga, which cannot
// refuse the end whatever the error says.
type endError struct{ err error }

func (e *endError) Error() string { return e.err.Error() }
func (e *endError) Unwrap() error { return e.err }

// retryAfter returns the least delay that the error asks for.
func retryAfter(err error) time.Duration {
	return fault.Judge(context.Background(), err).After
}

const maxText = 2000

// clean makes a text fit to be stored by any database.
func clean(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "?")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return s
}

// panicError is a panic of a user's function.
type panicError struct{ value any }

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

func (e *panicError) Unwrap() error {
	err, _ := e.value.(error)
	return err
}

var errGoexit = errors.New("the function ended its goroutine")

// invoke calls a user's function in a goroutine of its own, so that neither a panic
// nor runtime.Goexit takes the worker with it.
func (j *job) invoke(a Attempt, fn func() ([]byte, error)) (data []byte, err error) {
	err = errGoexit
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer func() {
			if v := recover(); v != nil {
				err = &panicError{v}
				j.r.log().Error("saga: panic", "saga", a.Saga, "step", a.Step, "op", a.Op, "panic", v, "stack", string(debug.Stack()))
			}
		}()
		data, err = fn()
	}()
	<-ended
	return data, err
}
