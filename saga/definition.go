// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dovetail-go/dovetail/saga/internal/core"
)

// Definition is the plan of a saga over data of type T: an immutable, validated list
// of steps under a name and a version. T must survive a round trip through JSON.
//
// A running saga finishes on the version that it was started with. Keep a version
// registered as long as sagas of it run, and give a changed list of steps a new
// version: adding, removing or reordering steps under the same version would
// move running sagas onto another plan.
type Definition[T any] struct{ d *definition }

// Registered is a definition of any data type, as [NewEngine] takes it. Only
// [*Definition] implements it.
type Registered interface {
	// Name returns the definition's name.
	Name() string
	// Version returns the definition's version.
	Version() int
	// Steps describes the steps in order.
	Steps() []StepInfo
	// Mermaid returns the definition as a Mermaid flowchart.
	Mermaid() string
	// DOT returns the definition as a Graphviz digraph.
	DOT() string

	definition() *definition
}

// StepInfo describes one step of a definition.
type StepInfo struct {
	// Name is unique within the definition.
	Name string
	// Kind is [KindCall] or [KindLocal].
	Kind Kind
	// Undo is the kind of the compensation, or [KindNone].
	Undo Kind
	// Pivot marks the step that decides.
	Pivot bool
	// Retriable is true behind the pivot: the step is retried until it succeeds.
	Retriable bool
	// Attempts is the limit of [Backoff], zero for none.
	Attempts int
}

// definition is a Definition without its type parameter: T lives in closures.
type definition struct {
	name     string
	version  int
	steps    []erased
	deadline time.Duration
	onEnd    func(ctx context.Context, tx *sql.Tx, end End, data []byte) ([]byte, error)
}

type erased struct {
	StepInfo
	retry, undoRetry Backoff
	timeout          time.Duration
	// do and undo decode the data, run the function on it and return the changed data.
	do, undo func(ctx context.Context, tx *sql.Tx, a Attempt, data []byte) ([]byte, error)
}

// New returns a definition, or an error that names the step which is wrong. The
// order is compensatable steps, at most one pivot, retriable steps: each step
// before the pivot says how it is undone ([Undo], [UndoLocal] or [NoUndo]), the
// pivot and those behind it must not. Without a pivot every step can be undone,
// except that a [Local] step at the end needs no undo: it ends the saga with its own
// transaction.
func New[T any](name string, version int, steps ...Step[T]) (*Definition[T], error) {
	if problem := checkName(name); problem != "" {
		return nil, fmt.Errorf("saga: name %s", problem)
	}
	if version < 1 {
		return nil, fmt.Errorf("saga %s: version is %d, want at least 1", name, version)
	}
	if len(steps) == 0 {
		return nil, fmt.Errorf("saga %s: no steps", name)
	}
	d := &definition{name: name, version: version}
	pivot := ""
	for i, s := range steps {
		if s.s == nil {
			return nil, fmt.Errorf("saga %s: step %d is the zero Step, want one made by Call or Local", name, i+1)
		}
		if problem := checkName(s.s.name); problem != "" {
			return nil, fmt.Errorf("saga %s: name of step %d %s", name, i+1, problem)
		}
		for _, other := range d.steps {
			if other.Name == s.s.name {
				return nil, fmt.Errorf("saga %s: two steps are named %q", name, s.s.name)
			}
		}
		if s.s.pivot && pivot != "" {
			return nil, fmt.Errorf("saga %s: step %q: a second pivot, after %q", name, s.s.name, pivot)
		}
		if problem := s.s.check(pivot, i == len(steps)-1); problem != "" {
			return nil, fmt.Errorf("saga %s: step %q: %s", name, s.s.name, problem)
		}
		d.steps = append(d.steps, s.s.erase(pivot != ""))
		if s.s.pivot {
			pivot = s.s.name
		}
	}
	return &Definition[T]{d}, nil
}

// Must returns d, and panics if err is not nil: for definitions in package variables.
func Must[T any](d *Definition[T], err error) *Definition[T] {
	if err != nil {
		panic(err)
	}
	return d
}

// OnEnd returns a copy of d whose sagas call fn in the transaction that ends them, so
// that the service's own row and the saga become final together. If fn fails the
// saga does not end; it is tried again until it succeeds. What fn changes in *data
// is stored.
func (d *Definition[T]) OnEnd(fn func(ctx context.Context, tx *sql.Tx, end End, data *T) error) *Definition[T] {
	c := *d.d
	c.onEnd = nil
	if fn != nil {
		c.onEnd = func(ctx context.Context, tx *sql.Tx, end End, data []byte) ([]byte, error) {
			return transform(data, func(v *T) error { return fn(ctx, tx, end, v) })
		}
	}
	return &Definition[T]{&c}
}

// Deadline returns a copy of d whose sagas compensate when they have not reached the
// pivot within after, counted by the store's clock from [Start]. It takes effect
// between attempts, and ends the context of an attempt that it overtakes. Zero
// means no deadline.
func (d *Definition[T]) Deadline(after time.Duration) *Definition[T] {
	c := *d.d
	c.deadline = max(after, 0)
	return &Definition[T]{&c}
}

// Name returns the definition's name.
func (d *Definition[T]) Name() string { return d.d.name }

// Version returns the definition's version.
func (d *Definition[T]) Version() int { return d.d.version }

// Steps describes the steps in order.
func (d *Definition[T]) Steps() []StepInfo {
	infos := make([]StepInfo, len(d.d.steps))
	for i, s := range d.d.steps {
		infos[i] = s.StepInfo
	}
	return infos
}

// Data decodes the data of one of the definition's sagas.
func (d *Definition[T]) Data(in Instance) (T, error) {
	var v T
	if in.Name != d.d.name {
		return v, fmt.Errorf("saga %s: %s is a %s, want a %s", d.d.name, in.ID, in.Name, d.d.name)
	}
	if err := json.Unmarshal(in.Data, &v); err != nil {
		return v, fmt.Errorf("saga %s: data of %s: %w", d.d.name, in.ID, err)
	}
	return v, nil
}

func (d *Definition[T]) definition() *definition { return d.d }

// shape returns what the core needs to know.
func (d *definition) shape(stuckAfter int) *core.Shape {
	steps := make([]core.Step, len(d.steps))
	for i, s := range d.steps {
		steps[i] = core.Step{Local: s.Kind == KindLocal, Undo: s.Undo != KindNone, Pivot: s.Pivot, Attempts: s.Attempts}
	}
	sh := core.NewShape(steps)
	sh.End, sh.StuckAfter = d.onEnd != nil, stuckAfter
	return sh
}

// index returns the position of the saga's current step in the form of core.State, and
// false if the definition has no such step.
func (d *definition) index(in Instance) (int, bool) {
	if in.Step == "" {
		if in.Status == Compensating || in.Status == Compensated {
			return -1, true
		}
		return len(d.steps), true
	}
	for i := range d.steps {
		if d.steps[i].Name == in.Step {
			return i, true
		}
	}
	return 0, false
}

// stepName is the reverse of index.
func (d *definition) stepName(s core.State) string {
	if s.Step < 0 || s.Step >= len(d.steps) {
		return ""
	}
	return d.steps[s.Step].Name
}

// backoff returns the schedule of the operation that s calls for.
func (d *definition) backoff(s core.State, fallback Backoff) Backoff {
	b := fallback
	if s.Step >= 0 && s.Step < len(d.steps) {
		b = d.steps[s.Step].retry
		if s.Status == core.Compensating {
			b = d.steps[s.Step].undoRetry
		}
	}
	return Backoff{Base: or(b.Base, fallback.Base), Max: or(b.Max, fallback.Max)}
}

// stateOf returns the core's view of a saga whose current step has the given index.
func stateOf(rec Record, step int) core.State {
	return core.State{
		Status: core.Status(rec.Status), Step: step, Attempt: rec.Attempt, Reason: rec.Reason,
		Cancel: rec.Cancel, Stuck: rec.Stuck, Parked: rec.Parked,
	}
}

// check returns what is wrong with the step behind the given pivot, if any.
func (s *step[T]) check(pivot string, last bool) string {
	switch {
	case s.problem != "":
		return s.problem
	case s.call == nil && s.local == nil:
		return "its function is nil"
	case s.undos > 1:
		return "has more than one of Undo, UndoLocal and NoUndo"
	case s.undos == 1 && s.undo == nil && s.undoLocal == nil && !s.noUndo:
		return "its undo is nil"
	case s.pivot && s.undos > 0:
		return "is the pivot and has an undo; what decides cannot be undone"
	case pivot != "" && s.undos > 0:
		return fmt.Sprintf("has an undo behind the pivot %q; there the saga only goes forward", pivot)
	case !s.pivot && pivot == "" && s.undos == 0 && !(last && s.kind == KindLocal):
		return "has no undo and is not behind a pivot; want Undo, UndoLocal or NoUndo"
	case (s.pivot || pivot != "") && s.retry.Attempts != 0:
		return "Retry.Attempts must be zero from the pivot on; there a step is tried until it succeeds"
	case s.undoRetry.Attempts != 0:
		return "UndoRetry.Attempts must be zero; an undo is tried until it succeeds"
	}
	for _, b := range []Backoff{s.retry, s.undoRetry} {
		if b.Base < 0 || b.Max < 0 || b.Attempts < 0 {
			return fmt.Sprintf("Backoff is %+v, want nothing negative", b)
		}
	}
	return ""
}

func (s *step[T]) erase(retriable bool) erased {
	e := erased{
		StepInfo: StepInfo{Name: s.name, Kind: s.kind, Pivot: s.pivot, Retriable: retriable, Attempts: s.retry.Attempts},
		retry:    s.retry, undoRetry: s.undoRetry, timeout: s.timeout,
	}
	e.do = func(ctx context.Context, tx *sql.Tx, a Attempt, data []byte) ([]byte, error) {
		return transform(data, func(v *T) error {
			if s.local != nil {
				return s.local(ctx, tx, a, v)
			}
			return s.call(ctx, a, v)
		})
	}
	if s.undo == nil && s.undoLocal == nil {
		return e
	}
	e.Undo = KindCall
	if s.undoLocal != nil {
		e.Undo = KindLocal
	}
	e.undo = func(ctx context.Context, tx *sql.Tx, a Attempt, data []byte) ([]byte, error) {
		return transform(data, func(v *T) error {
			if s.undoLocal != nil {
				return s.undoLocal(ctx, tx, a, v)
			}
			return s.undo(ctx, a, v)
		})
	}
	return e
}

// transform gives fn a fresh value of the data, so that a failed attempt leaves no
// trace in it.
func transform[T any](data []byte, fn func(*T) error) ([]byte, error) {
	v := new(T)
	if err := json.Unmarshal(data, v); err != nil {
		return nil, &dataError{err}
	}
	if err := fn(v); err != nil {
		return nil, err
	}
	data, err := json.Marshal(v)
	if err != nil {
		return nil, &dataError{err}
	}
	return data, nil
}

// dataError says that the saga's data and T do not fit: no attempt can help.
type dataError struct{ err error }

func (e *dataError) Error() string { return "data: " + e.err.Error() }
func (e *dataError) Unwrap() error { return e.err }

const maxName = 100

// checkName returns what is wrong with the name of a definition or a step.
func checkName(s string) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > maxName:
		return fmt.Sprintf("%q has %d bytes, want at most %d", s, len(s), maxName)
	}
	return checkText(s)
}

// checkText returns why s cannot be part of a key.
func checkText(s string) string {
	if !utf8.ValidString(s) {
		return fmt.Sprintf("%q is not UTF-8", s)
	}
	if s[0] == ' ' || s[len(s)-1] == ' ' {
		return fmt.Sprintf("%q begins or ends with a space", s)
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return fmt.Sprintf("%q has a control character", s)
		}
	}
	return ""
}
