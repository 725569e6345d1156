// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/saga/internal/core"
)

// job is one saga in the hands of a worker.
type job struct {
	r     *run
	def   *definition
	shape *core.Shape
	rec   Record
	state core.State
	notes notes
	woken uint64    // Engine.woken before rec was read, or zero
	read  time.Time // when rec was read, by this process's clock
}

// work takes the saga as far as it goes now: to its end, into a backoff, or to the
// moment at which it belongs to somebody else.
func (r *run) work(rec Record, woken uint64) {
	j := &job{r: r, rec: rec, woken: woken, def: r.defs[DefinitionKey{rec.Name, rec.Version}]}
	if rec.Takeovers > 0 && r.cfg.Hooks.TakenOver != nil {
		r.cfg.Hooks.TakenOver(TakenOver{Saga: rec.ID, Name: rec.Name, Version: rec.Version, Step: rec.Step, Takeovers: rec.Takeovers})
	}
	if !j.adopt(rec) {
		return
	}
	if j.def == nil {
		j.postpone()
		return
	}
	if limit := r.cfg.MaxTakeovers; limit > 0 && rec.Takeovers >= limit {
		j.park(fmt.Sprintf("%d nodes died over this step", rec.Takeovers))
		return
	}
	for j.step() {
	}
}

// step does one thing and reports whether there may be another.
func (j *job) step() bool {
	if j.r.draining.Load() {
		return j.release()
	}
	if time.Now().After(*j.r.leased.Load()) && !j.reassure() {
		return false
	}
	if j.shape.Turns(j.state, j.late()) {
		return j.commit(func() draft {
			return j.apply(j.draft(), core.Event{Kind: core.Look, Late: j.late()}, nil, 0)
		})
	}
	switch j.shape.Next(j.state) {
	case core.Do:
		s := &j.def.steps[j.state.Step]
		if s.Parallel > 0 || s.Kind.waits() {
			return j.round(OpDo)
		}
		return j.attempt(OpDo, s.Name, s.Kind, s.timeout, s.do)
	case core.Undo:
		s := &j.def.steps[j.state.Step]
		if s.Undo.waits() {
			return j.round(OpUndo)
		}
		return j.attempt(OpUndo, s.Name, s.Undo, s.timeout, s.undo)
	case core.End:
		return j.attempt(OpEnd, "", KindLocal, 0, nil)
	}
	return j.release()
}

// function is a step's or an undo's user function.
type function func(ctx context.Context, tx *sql.Tx, a Attempt, data []byte) ([]byte, error)

// attempt runs one operation once and records its outcome.
func (j *job) attempt(op, name string, kind Kind, timeout time.Duration, fn function) bool {
	a := Attempt{Saga: j.rec.ID, Step: name, Op: op, Number: j.state.Attempt + 1}
	ctx, cancel := context.WithTimeout(j.r.attempts, or(timeout, j.r.cfg.Timeout))
	defer cancel()
	if left, ok := j.left(); ok && j.shape.Abortable(j.state) {
		ctx, cancel = context.WithTimeout(ctx, left)
		defer cancel()
	}
	if h := j.r.cfg.Hooks.StepStart; h != nil {
		ctx = h(ctx, StepStart{Attempt: a, Name: j.def.name, Version: j.def.version, Header: j.rec.Header})
	}
	if kind == KindLocal {
		return j.local(ctx, a, fn)
	}
	return j.call(ctx, a, fn)
}

// call runs a remote operation and records it.
func (j *job) call(ctx context.Context, a Attempt, fn function) bool {
	start := time.Now()
	data, err := j.invoke(a, func() ([]byte, error) { return fn(ctx, nil, a, j.rec.Data) })
	took := time.Since(start)
	if err != nil && j.r.attempts.Err() != nil {
		return j.release() // the end of Run cut it short, which says nothing about the step
	}
	build := func() draft {
		d := j.apply(j.draft(), j.event(err), data, took)
		d.after = retryAfter(err)
		return d
	}
	switch {
	case err != nil || j.shape.Next(build().state) != core.End:
	case j.endsWithTx():
		return j.end(ctx, a, build, took)
	default:
		return j.settle(ctx, a, func() draft { return j.endWithoutTx(build()) }, nil, took)
	}
	return j.settle(ctx, a, build, err, took)
}

// settle records an attempt and tells of it.
func (j *job) settle(ctx context.Context, a Attempt, build func() draft, err error, took time.Duration) bool {
	more := j.commit(build)
	j.report(ctx, a, err, took)
	return more
}

// endsWithTx reports whether something else happens in the transaction that ends the saga.
func (j *job) endsWithTx() bool { return j.def.onEnd != nil || j.def.locks || j.notes.Parent != "" }

// endWithoutTx returns d with the end of the saga, if the end is what follows.
func (j *job) endWithoutTx(d draft) draft {
	if j.shape.Next(d.state) != core.End {
		return d
	}
	return j.apply(d, core.Event{Kind: core.Done}, d.data, 0)
}

// end records the last operation in the transaction that ends the saga. If the user's
// function for the end fails, the operation is recorded nevertheless.
func (j *job) end(ctx context.Context, a Attempt, build func() draft, took time.Duration) bool {
	// The operation has used up a part of its time; the end has its own.
	tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), j.r.cfg.Timeout)
	defer cancel()
	var d draft
	var c Change
	var failed error
	err := j.r.store.SaveTx(tctx, func(ctx context.Context, tx *sql.Tx) (Change, error) {
		if d, failed = j.applyEnd(ctx, tx, a, build()); failed != nil {
			return Change{}, failed
		}
		c = j.change(d)
		return c, nil
	})
	more := false
	switch {
	case err == nil:
		more = j.accept(d, c)
	case failed != nil:
		more = j.commit(func() draft { return j.apply(build(), j.event(failed), nil, 0) })
	default:
		more = j.commit(build)
	}
	j.report(ctx, a, nil, took)
	return more
}

// local runs an operation in the transaction that records it, together with the end
// of the saga if it is the last.
func (j *job) local(ctx context.Context, a Attempt, fn function) bool {
	start := time.Now()
	more, settled, failed := j.inTx(ctx, func(ctx context.Context, tx *sql.Tx) (draft, error) {
		d := j.draft()
		if fn != nil {
			data, err := j.invoke(a, func() ([]byte, error) { return fn(ctx, tx, a, d.data) })
			if err != nil {
				return d, err
			}
			d = j.apply(d, j.event(nil), data, time.Since(start))
		}
		if j.shape.Next(d.state) == core.End {
			return j.applyEnd(ctx, tx, a, d)
		}
		return d, nil
	}, func(failed error) draft {
		d := j.apply(j.draft(), j.event(failed), nil, time.Since(start))
		d.after = retryAfter(failed)
		return d
	})
	if settled {
		j.report(ctx, a, failed, time.Since(start))
	}
	return more
}

// inTx makes what build returns the next state of the saga, in one transaction with
// what build does. If that fails, what instead returns is recorded. It reports whether
// the job may go on, whether either was recorded, and with what error build failed.
func (j *job) inTx(ctx context.Context, build func(ctx context.Context, tx *sql.Tx) (draft, error), instead func(error) draft) (more, settled bool, failed error) {
	var d draft
	var c Change
	entered := false
	err := j.r.store.SaveTx(ctx, func(ctx context.Context, tx *sql.Tx) (Change, error) {
		entered = true
		if d, failed = build(ctx, tx); failed != nil {
			return Change{}, failed
		}
		c = j.change(d)
		return c, nil
	})
	switch {
	case err == nil:
		return j.accept(d, c), true, nil
	case j.r.attempts.Err() != nil:
		return j.release(), false, nil
	case !entered:
		// No transaction was to be had, which says nothing about the step.
		return j.trouble("no transaction", err) && pause(j.r.writing, delay(storeBackoff, 3)) && j.reload(), false, nil
	case failed == nil:
		// The change was not accepted, or may have been made all the same.
		revision := j.rec.Revision
		rec, ok := j.load()
		switch {
		case !ok:
			return false, false, nil
		case results(rec, c):
			return j.accept(d, c), true, nil
		case !j.owns(rec) || !j.adopt(rec):
			return false, false, nil
		case rec.Revision != revision || errors.Is(err, ErrLost):
			return true, false, nil
		}
		failed = err
	}
	return j.commit(func() draft { return instead(failed) }), true, failed
}

// applyEnd runs the user's function for the end of a saga whose draft calls for it.
func (j *job) applyEnd(ctx context.Context, tx *sql.Tx, a Attempt, d draft) (draft, error) {
	start := time.Now()
	end := End{Saga: j.rec.ID, Status: Completed}
	if d.state.Status == core.Compensating {
		end.Status, end.Cause, end.Reason = Compensated, Cause(d.state.Cause), d.state.Reason
	}
	data := d.data
	if j.def.onEnd != nil {
		var err error
		if data, err = j.invoke(a, func() ([]byte, error) { return j.def.onEnd(ctx, tx, end, d.data) }); err != nil {
			return d, &endError{err}
		}
	}
	if j.def.locks {
		if err := j.r.store.Unlock(ctx, tx, j.rec.ID); err != nil {
			return d, &endError{err}
		}
	}
	if j.notes.Parent != "" {
		if err := j.tellParent(ctx, tx, end, data); err != nil {
			return d, &endError{err}
		}
	}
	return j.apply(d, core.Event{Kind: core.Done}, data, time.Since(start)), nil
}

// park stops the saga until an operator comes.
func (j *job) park(why string) {
	j.commit(func() draft { return j.apply(j.draft(), core.Event{Kind: core.Park, Text: why}, nil, 0) })
}

// release gives the saga back as it is.
func (j *job) release() bool {
	return j.rec.Owner == j.r.node && j.commit(func() draft {
		d := j.draft()
		d.release = true
		return d
	})
}

// postpone leaves a saga to nodes that know its definition, and reports it as stuck
// until one of them comes by.
func (j *job) postpone() {
	j.commit(func() draft {
		d := j.draft()
		d.wait, d.after, d.release = true, foreign, true
		if d.state.Stuck == "" {
			d.state.Stuck = fmt.Sprintf("no node runs %s version %d", j.rec.Name, j.rec.Version)
			d.entries = []Entry{{Op: "park", Outcome: "accepted", Text: d.state.Stuck, Node: j.r.node}}
		}
		return d
	})
}

// adopt makes rec what the job works on.
func (j *job) adopt(rec Record) bool {
	if rec.Version != j.rec.Version {
		return false // migrated meanwhile
	}
	j.rec, j.read = rec, time.Now()
	n, err := readNotes(rec.Notes)
	j.notes = n
	if j.def == nil {
		j.state = (&definition{}).stateOf(rec, n, 0)
		return true
	}
	j.shape = j.def.shape(j.r.cfg.StuckAfter, n.Parent != "")
	step, ok := j.def.index(rec.Instance)
	j.state = j.def.stateOf(rec, n, step)
	if err != nil && !j.state.Parked {
		j.park("notes: " + err.Error())
		return false
	}
	if !ok && !j.state.Parked {
		j.park(fmt.Sprintf("%s version %d has no step %q", rec.Name, rec.Version, rec.Step))
	}
	return ok
}

// reload reads the saga anew and reports whether it is still ours.
func (j *job) reload() bool {
	rec, ok := j.load()
	return ok && j.owns(rec) && j.adopt(rec)
}

// load reads the saga, however long the store takes to answer.
func (j *job) load() (Record, bool) {
	for n := 1; ; n++ {
		ctx, cancel := context.WithTimeout(j.r.writing, callTimeout)
		j.woken = j.r.Engine.woken.Load()
		rec, err := j.r.store.Load(ctx, j.rec.ID)
		cancel()
		if err == nil {
			return rec, true
		}
		if errors.Is(err, ErrNotFound) || !j.trouble("not read", err) || !pause(j.r.writing, delay(storeBackoff, n)) {
			return Record{}, false
		}
	}
}

// owns reports whether rec shows the saga still in our hands.
func (j *job) owns(rec Record) bool {
	if rec.Owner == j.r.node && rec.Epoch == j.rec.Epoch {
		return true
	}
	j.r.stats.lost.Add(1)
	return false
}

// reassure makes sure of the node's lease after it may have run out, and that the saga
// was not taken over meanwhile.
func (j *job) reassure() bool {
	for n := 1; ; n++ {
		err := j.r.beat(j.r.writing)
		if err == nil {
			return j.reload()
		}
		if !j.trouble("lease not renewed", err) || !pause(j.r.writing, delay(storeBackoff, n)) {
			return false
		}
	}
}

var storeBackoff = Backoff{Base: 50 * time.Millisecond, Max: 2 * time.Second}

// trouble logs an error of the store and reports whether to go on.
func (j *job) trouble(what string, err error) bool {
	if j.r.writing.Err() != nil {
		return false
	}
	j.r.log().WarnContext(j.r.writing, "saga: "+what, "saga", j.rec.ID, "node", j.r.node, "error", err)
	return true
}

// now returns the time by the store's clock: what it was when the saga was read, and
// what has passed since.
func (j *job) now() time.Time { return j.rec.Now.Add(time.Since(j.read)) }

// late reports whether the saga's deadline has passed by the store's clock.
func (j *job) late() bool {
	left, ok := j.left()
	return ok && left <= 0
}

// left returns the time to the deadline, if there is one.
func (j *job) left() (time.Duration, bool) {
	if j.rec.Deadline.IsZero() {
		return 0, false
	}
	return j.rec.Deadline.Sub(j.now()), true
}
