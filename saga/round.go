// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/saga/internal/core"
)

// errTimedOut is a wait that was in vain.
var errTimedOut = errors.New("timed out")

// turn is what a look at one of the current steps brought.
type turn struct {
	i   int // the step's index
	a   Attempt
	ctx context.Context // of an attempt, which is reported. Nil if there was none.

	err  error  // of an attempt, or of a wait
	data []byte // what a successful attempt left
	yes  bool
	took time.Duration

	// waits goes on waiting, or begins to: until a time of the store's clock, if it is not
	// zero, and looks again after some time, if that is not zero.
	waits bool
	until time.Time
	again time.Duration
	// arm does in the saga's transaction what the step needs before it can wait, and returns
	// the turn that came of it.
	arm func(ctx context.Context, tx *sql.Tx) (turn, error)
}

// round looks once at each of the current steps that are not done, and records what came
// of it in one write.
func (j *job) round(op string) bool {
	first, last := j.state.Step, j.state.Step
	if op == OpDo {
		last = j.shape.Last(first)
	}
	signals, ok := j.signals()
	if !ok {
		return false
	}
	turns := make([]turn, 0, last-first+1)
	for i := first; i <= last; i++ {
		if !j.state.Finished.Has(i) {
			turns = append(turns, turn{i: i, a: Attempt{Saga: j.rec.ID, Step: j.def.steps[i].Name, Op: op, Number: j.state.Attempt + 1}})
		}
	}
	var wg sync.WaitGroup
	for k := range turns {
		wg.Go(func() {
			// The engine's hands, lent to the branches: no more of these at once than sagas.
			j.r.branches <- struct{}{}
			defer func() { <-j.r.branches }()
			j.look(&turns[k], signals)
		})
	}
	wg.Wait()
	if j.r.attempts.Err() != nil {
		// The end of Run cut some short, which says nothing about them.
		turns = slices.DeleteFunc(turns, func(t turn) bool { return t.err != nil || t.waits || t.arm != nil })
		if len(turns) == 0 {
			return j.release()
		}
	}
	return j.record(turns)
}

// signals returns what was delivered to the saga.
func (j *job) signals() ([]Signal, bool) {
	if j.rec.Signals == 0 {
		return nil, true
	}
	for n := 1; ; n++ {
		ctx, cancel := context.WithTimeout(j.r.writing, callTimeout)
		signals, err := j.r.store.Signals(ctx, j.rec.ID)
		cancel()
		if err == nil {
			return signals, true
		}
		if !j.trouble("signals not read", err) || !pause(j.r.writing, delay(storeBackoff, n)) {
			return nil, false
		}
	}
}

// look finds out how a current step stands.
func (j *job) look(t *turn, signals []Signal) {
	s := &j.def.steps[t.i]
	kind, on, message := s.Kind, s.on, s.message
	if t.a.Op == OpUndo {
		kind, on, message = s.Undo, s.undoOn, s.undoMessage
	}
	armed := j.state.Waiting.Has(t.i)
	t.until = j.notes.until(s.Name)
	late := armed && !t.until.IsZero() && !j.now().Before(t.until)
	if k := slices.IndexFunc(signals, func(g Signal) bool { return g.Step == t.a.Step && g.Op == t.a.Op }); k >= 0 && (kind == KindSend || kind == KindAwait || kind == KindChild) {
		payload := signals[k].Data
		if t.a.Op == OpUndo && kind == KindChild {
			t.data = j.rec.Data // its end says it all
			return
		}
		j.try(t, s.timeout, func(context.Context) ([]byte, error) { return on(j.rec.Data, payload) })
		return
	}
	switch kind {
	case KindCall:
		j.try(t, s.timeout, func(ctx context.Context) ([]byte, error) { return s.do(ctx, nil, t.a, j.rec.Data) })
	case KindIf:
		j.try(t, s.timeout, func(context.Context) ([]byte, error) {
			var err error
			t.yes, err = s.when(j.rec.Data)
			return j.rec.Data, err
		})
	case KindSleep:
		j.sleep(t, s, armed, late)
	case KindAwait:
		switch {
		case late && s.onTimeout != nil:
			j.try(t, s.timeout, func(context.Context) ([]byte, error) { return s.onTimeout(j.rec.Data) })
		case late:
			t.err = fmt.Errorf("nothing came within %v: %w", s.timeout, errTimedOut)
		default:
			j.wait(t, s.timeout, armed)
		}
	case KindSend:
		switch {
		case late:
			t.err = fmt.Errorf("no reply within %v", s.timeout)
		case armed:
			t.waits = true
		default:
			j.send(t, s.timeout, message)
		}
	case KindLock:
		j.lock(t, s, armed, late)
	case KindChild:
		if t.a.Op == OpUndo {
			j.revertChild(t)
			return
		}
		if t.waits = true; !armed {
			j.startChild(t, s)
		}
	}
}

// try runs a user's function as an attempt.
func (j *job) try(t *turn, timeout time.Duration, fn func(ctx context.Context) ([]byte, error)) {
	ctx, cancel := context.WithTimeout(j.r.attempts, or(timeout, j.r.cfg.Timeout))
	defer cancel()
	if left, ok := j.left(); ok && j.shape.Abortable(j.state) {
		ctx, cancel = context.WithTimeout(ctx, left)
		defer cancel()
	}
	if h := j.r.cfg.Hooks.StepStart; h != nil {
		ctx = h(ctx, StepStart{Attempt: t.a, Name: j.def.name, Version: j.def.version, Header: j.rec.Header})
	}
	start := time.Now()
	t.data, t.err = j.invoke(t.a, func() ([]byte, error) { return fn(ctx) })
	t.ctx, t.took = ctx, time.Since(start)
}

// ask runs a user's function that only looks at the data.
func ask[R any](j *job, t *turn, fn func() (R, error)) (v R, ok bool) {
	_, t.err = j.invoke(t.a, func() (_ []byte, err error) {
		v, err = fn()
		return nil, err
	})
	return v, t.err == nil
}

// wait goes on waiting, or begins to.
func (j *job) wait(t *turn, timeout time.Duration, armed bool) {
	if t.waits = true; !armed && timeout > 0 {
		t.until = j.now().Add(timeout)
	}
}

func (j *job) sleep(t *turn, s *erased, armed, late bool) {
	if !armed {
		d, ok := ask(j, t, func() (time.Duration, error) { return s.sleep(j.rec.Data) })
		switch {
		case !ok:
			return
		case d > 0:
			j.wait(t, d, false)
			return
		}
	} else if !late {
		t.waits = true
		return
	}
	t.data = j.rec.Data
}

// Headers of the messages of a [Send].
const (
	// HeaderKey carries the [Attempt.Key] of the step, in commands and in replies.
	HeaderKey = "Saga-Key"
	// HeaderReplyTo carries the topic of the reply.
	HeaderReplyTo = "Saga-Reply-To"
)

func (j *job) send(t *turn, timeout time.Duration, message func(context.Context, Attempt, []byte) (*messaging.Message, error)) {
	ctx, cancel := context.WithTimeout(j.r.attempts, j.r.cfg.Timeout)
	defer cancel()
	m, ok := ask(j, t, func() (*messaging.Message, error) { return message(ctx, t.a, j.rec.Data) })
	if !ok {
		return
	}
	if m == nil {
		t.err = errors.New("the command is nil")
		return
	}
	command := *m
	command.Header = messaging.Header{}
	maps.Copy(command.Header, j.rec.Header)
	maps.Copy(command.Header, m.Header)
	command.Header[HeaderKey] = t.a.Key()
	if command.Header[HeaderReplyTo] == "" && j.r.cfg.ReplyTo != "" {
		command.Header[HeaderReplyTo] = j.r.cfg.ReplyTo
	}
	t.arm = func(ctx context.Context, tx *sql.Tx) (turn, error) {
		t := *t
		j.wait(&t, timeout, false)
		sent := command
		if tx == nil { // must not become a Tx that is not nil
			return t, j.r.cfg.Outbox.Enqueue(ctx, nil, &sent)
		}
		return t, j.r.cfg.Outbox.Enqueue(ctx, tx, &sent)
	}
}

// lockPatience is how long a saga waits for a lock before it looks by itself.
const lockPatience = 5 * time.Second

func (j *job) lock(t *turn, s *erased, armed, late bool) {
	key, ok := ask(j, t, func() (string, error) { return s.key(j.rec.Data) })
	if !ok {
		return
	}
	if problem := checkKey(key); problem != "" {
		t.err = &dataError{fmt.Errorf("lock: key %s", problem)}
		return
	}
	t.arm = func(ctx context.Context, tx *sql.Tx) (turn, error) {
		t := *t
		holder, err := j.r.store.Lock(ctx, tx, key, j.rec.ID)
		switch {
		case err != nil:
			return t, err
		case holder == j.rec.ID:
			t.data = j.rec.Data
		case s.try:
			t.err = Refuse(fmt.Sprintf("%s is in use by saga %s", key, holder))
		case late:
			t.err = fmt.Errorf("%s was in use for %v, now by saga %s: %w", key, s.timeout, holder, errTimedOut)
		default:
			j.wait(&t, s.timeout, armed)
			t.again = lockPatience
		}
		return t, nil
	}
}

func (j *job) childID(t *turn) string { return j.rec.ID + "/" + t.a.Step }

func (j *job) startChild(t *turn, s *erased) {
	id := j.childID(t)
	if len(id) > maxID {
		t.err = &dataError{fmt.Errorf("the child's id has %d bytes, want at most %d", len(id), maxID)}
		return
	}
	data, ok := ask(j, t, func() ([]byte, error) { return s.begin(j.rec.Data) })
	if !ok {
		return
	}
	t.arm = func(ctx context.Context, tx *sql.Tx) (turn, error) {
		b := s.child.beginning(id, data)
		above := notes{Parent: t.a.Key(), Root: j.notes.root()}
		b.Notes, b.Header, b.Root = above.encode(), j.rec.Header, above.root()
		// A nil *sql.Tx must not become a Tx that is not nil.
		if tx == nil {
			return *t, j.r.store.Start(ctx, nil, b)
		}
		return *t, j.r.store.Start(ctx, tx, b)
	}
}

// revertChild makes the child of a step turn back, whatever has become of it.
func (j *job) revertChild(t *turn) {
	id := j.childID(t)
	parent := By{Who: "saga " + j.rec.ID, Why: fmt.Sprintf("saga %s compensates: %s", j.rec.ID, j.state.Reason)}
	err := j.r.intervene(j.r.writing, id, core.Revert, "revert", parent)
	var child Instance
	if err == nil {
		child, err = j.r.Get(j.r.writing, id)
	}
	switch {
	case errors.Is(err, ErrNotFound): // it was never begun, and never will be
		t.data = j.rec.Data
	case err != nil:
		t.err = err
	case child.Status == Compensated:
		t.data = j.rec.Data
	default:
		t.waits = true
	}
}

// tellParent delivers the end of a child to the step that waits for it.
func (j *job) tellParent(ctx context.Context, tx *sql.Tx, end End, data []byte) error {
	payload, err := json.Marshal(childEnd{end.Status, end.Reason, data})
	if err != nil {
		return err
	}
	saga, step := j.notes.parent()
	ops := []string{OpDo}
	if end.Status == Compensated {
		ops = []string{OpDo, OpUndo}
	}
	for _, op := range ops {
		if err := j.deliver(ctx, tx, Signal{Saga: saga, Step: step, Op: op, Data: payload}); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) deliver(ctx context.Context, tx *sql.Tx, s Signal) (err error) {
	if tx == nil {
		_, err = j.r.store.Deliver(ctx, nil, s)
	} else {
		_, err = j.r.store.Deliver(ctx, tx, s)
	}
	return err
}

// record writes what came of a round.
func (j *job) record(turns []turn) bool {
	arms := slices.ContainsFunc(turns, func(t turn) bool { return t.arm != nil })
	plain := func() draft { return j.fold(turns) }
	a := turns[0].a
	var more, settled bool
	failed := error(nil)
	if !j.endsWithTx() {
		fold := plain
		plain = func() draft { return j.endWithoutTx(fold()) }
	}
	if arms || j.shape.Next(plain().state) == core.End {
		ctx, cancel := context.WithTimeout(j.r.attempts, j.r.cfg.Timeout)
		defer cancel()
		more, settled, failed = j.inTx(ctx, func(ctx context.Context, tx *sql.Tx) (draft, error) {
			armed := slices.Clone(turns)
			for k := range armed {
				if armed[k].arm == nil {
					continue
				}
				var err error
				if armed[k], err = armed[k].arm(ctx, tx); err != nil {
					return draft{}, err
				}
			}
			d := j.fold(armed)
			if j.shape.Next(d.state) == core.End {
				return j.applyEnd(ctx, tx, a, d)
			}
			return d, nil
		}, func(failed error) draft {
			d := j.draft()
			if !arms {
				d = plain()
			}
			ev := j.event(failed)
			ev.Branch = turns[0].i
			d = j.apply(d, ev, nil, 0)
			d.after = retryAfter(failed)
			return d
		})
		if failed == nil && settled {
			j.begun(turns)
		}
	} else {
		more, settled = j.commit(plain), true
	}
	for _, t := range turns {
		if settled && t.ctx != nil {
			j.report(t.ctx, t.a, t.err, t.took)
		}
	}
	return more
}

// begun wakes those who go on with what was begun.
func (j *job) begun(turns []turn) {
	for _, t := range turns {
		kind := j.def.steps[t.i].Kind
		if t.a.Op == OpUndo {
			kind = j.def.steps[t.i].Undo
		}
		switch {
		case t.arm == nil:
		case kind == KindSend:
			j.r.cfg.Outbox.Wake()
		case kind == KindChild:
			j.r.Wake()
		}
	}
}

// fold returns the saga after the given turns.
func (j *job) fold(turns []turn) draft {
	d := j.draft()
	stands := func() bool { return d.state.Status == j.state.Status && d.state.Step == j.state.Step }
	event := func(t turn) core.Event {
		ev := j.event(t.err)
		ev.Branch, ev.Yes = t.i, t.yes
		return ev
	}
	// What is done comes first, and what turns the saga back last.
	rank := func(t turn) int {
		switch kind := eventKind(t.err); {
		case t.waits:
			return 1
		case kind == core.Done:
			return 0
		case kind == core.Failed:
			return 2
		}
		return 3
	}
	failed := false
	turns = slices.Clone(turns)
	slices.SortStableFunc(turns, func(a, b turn) int { return cmp.Compare(rank(a), rank(b)) })
	for _, t := range turns {
		switch {
		case !stands() || failed && rank(t) == 2:
			// The saga has turned back, or this round counts as a failed one already.
			outcome := "failed"
			if k := eventKind(t.err); k == core.Refused || k == core.TimedOut {
				outcome = "refused"
			}
			d.entries = append(d.entries, Entry{Step: t.a.Step, Op: t.a.Op, Attempt: t.a.Number, Outcome: outcome, Text: clean(t.err.Error()), Took: t.took, Node: j.r.node})
		case t.waits:
			d = j.apply(d, core.Event{Kind: core.Waits, Branch: t.i}, nil, 0)
			if !t.until.IsZero() {
				d.notes.Waits[t.a.Step] = t.until.UnixMicro()
			}
			if t.again > 0 && (d.again == 0 || t.again < d.again) {
				d.again = t.again
			}
		case t.err == nil:
			data, err := t.data, error(nil)
			if len(turns) > 1 || j.state.Finished != 0 {
				data, err = j.merge(d.data, t)
			}
			if err != nil {
				t.err = err
			}
			d = j.apply(d, event(t), data, t.took)
		default:
			failed = true
			d = j.apply(d, event(t), nil, t.took)
			d.after = max(d.after, retryAfter(t.err))
		}
	}
	// A cancellation that came meanwhile is looked at now: nothing else may ever come.
	d.rest = stands() && d.state.Waiting != 0 && !d.state.Parked && !j.shape.Turns(d.state, false)
	return d
}

// merge puts what a step that ran beside others changed into the data.
func (j *job) merge(data []byte, t turn) ([]byte, error) {
	base, err := j.def.normal(j.rec.Data)
	if err != nil || bytes.Equal(base, t.data) || bytes.Equal(j.rec.Data, t.data) {
		return data, err
	}
	if bytes.Equal(data, j.rec.Data) {
		data = base
	}
	var before, after, merged map[string]json.RawMessage
	for to, from := range map[*map[string]json.RawMessage][]byte{&before: base, &after: t.data, &merged: data} {
		if err := json.Unmarshal(from, to); err != nil {
			return nil, &dataError{fmt.Errorf("of steps in parallel, want a struct or a map: %w", err)}
		}
	}
	for name, v := range after {
		if bytes.Equal(before[name], v) {
			continue
		}
		if now := merged[name]; !bytes.Equal(now, before[name]) && !bytes.Equal(now, v) {
			return nil, &dataError{fmt.Errorf("step %s and another one in parallel with it both changed the field %q", t.a.Step, name)}
		}
		merged[name] = v
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			delete(merged, name)
		}
	}
	encoded, err := json.Marshal(merged)
	if err != nil {
		return nil, &dataError{err}
	}
	return encoded, nil
}

// checkKey returns what is wrong with the key of a lock.
func checkKey(s string) string {
	if s == "" || len(s) > maxID {
		return fmt.Sprintf("has %d bytes, want 1 to %d", len(s), maxID)
	}
	return checkText(s)
}
