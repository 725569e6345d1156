// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dovetail-go/dovetail/messaging"
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
	// Kind is how it takes part.
	Kind Kind
	// Undo is the kind of the compensation, or [KindNone].
	Undo Kind
	// Pivot marks the step that decides.
	Pivot bool
	// Retriable is true behind the pivot: the step is retried until it succeeds.
	Retriable bool
	// Attempts is the limit of [Backoff], zero for none.
	Attempts int
	// Parallel is how many steps run at the same time from this one on, zero if it is not
	// the first of a [Parallel].
	Parallel int
	// When are the decisions that the step depends on, outermost first.
	When []Decision
}

// Decision is what an [If] must have decided.
type Decision struct {
	// Step is the name of the If.
	Step string
	// Want is true for its own steps, false for those of its [Else].
	Want bool
}

// definition is a Definition without its type parameter: T lives in closures.
type definition struct {
	name     string
	version  int
	steps    []erased
	deadline time.Duration
	locks    bool // it has a Lock
	// normal returns data in the form in which they are encoded after an attempt.
	normal func(data []byte) ([]byte, error)
	onEnd  func(ctx context.Context, tx *sql.Tx, end End, data []byte) ([]byte, error)
}

// erased is a step without its type parameter. Its functions decode the data, run the
// user's function on it and return the changed data.
type erased struct {
	StepInfo
	guards           []core.Guard
	retry, undoRetry Backoff
	timeout          time.Duration

	do, undo function
	// message, on and the rest belong to steps that wait. Those for the undo are of a Send.
	message, undoMessage func(ctx context.Context, a Attempt, data []byte) (*messaging.Message, error)
	on, undoOn           func(data, payload []byte) ([]byte, error)
	onTimeout            func(data []byte) ([]byte, error)
	sleep                func(data []byte) (time.Duration, error)
	key                  func(data []byte) (string, error)
	try                  bool
	when                 func(data []byte) (bool, error)
	child                *definition
	begin                func(data []byte) ([]byte, error)
}

// New returns a definition, or an error that names the step which is wrong. The
// order is compensatable steps, at most one pivot, retriable steps: each step
// before the pivot says how it is undone ([Undo], [UndoLocal], [UndoSend] or [NoUndo]),
// unless it only waits; the pivot and those behind it must not. Without a pivot every
// step can be undone, except that a [Local] step at the end needs no undo: it ends the
// saga with its own transaction. A definition has at most 64 steps.
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
	b := builder[T]{d: &definition{name: name, version: version}}
	b.d.normal = func(data []byte) ([]byte, error) { return transform(data, func(*T) error { return nil }) }
	if err := b.add(steps, nil, nil); err != nil {
		return nil, fmt.Errorf("saga %s: %w", name, err)
	}
	for i, s := range b.steps {
		if problem := s.check(b.pivots[i], i == len(b.steps)-1); problem != "" {
			return nil, fmt.Errorf("saga %s: step %q: %s", name, s.name, problem)
		}
	}
	return &Definition[T]{b.d}, nil
}

// builder makes one list of nested steps.
type builder[T any] struct {
	d      *definition
	steps  []*step[T]
	pivots []string // the pivot in front of each step, or empty
	pivot  string
}

// add appends steps that depend on the given decisions.
func (b *builder[T]) add(steps []Step[T], guards []core.Guard, when []Decision) error {
	for i, st := range steps {
		s := st.s
		switch {
		case s == nil:
			return fmt.Errorf("step %d is the zero Step, want one made by Call, Local or another function of this package", i+1)
		case s.kind == kindElse:
			if i == 0 || steps[i-1].s.kind != KindIf {
				return fmt.Errorf("an Else is not behind an If")
			}
			continue // it was added with its If
		case s.kind == kindParallel:
			if err := b.parallel(s, guards, when); err != nil {
				return err
			}
			continue
		}
		if problem := checkName(s.name); problem != "" {
			return fmt.Errorf("name of step %d %s", i+1, problem)
		}
		if err := b.append(s, guards, when); err != nil {
			return err
		}
		if s.kind != KindIf {
			continue
		}
		bodies := map[bool][]Step[T]{true: s.body}
		if i+1 < len(steps) && steps[i+1].s != nil && steps[i+1].s.kind == kindElse {
			bodies[false] = steps[i+1].s.body
		}
		index := len(b.steps) - 1
		for _, want := range []bool{true, false} {
			body, ok := bodies[want]
			if ok && len(body) == 0 {
				return fmt.Errorf("step %q: no steps in it or in its Else", s.name)
			}
			if err := b.add(body, append(slices.Clip(guards), core.Guard{Step: index, Want: want}), append(slices.Clip(when), Decision{s.name, want})); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *builder[T]) append(s *step[T], guards []core.Guard, when []Decision) error {
	for _, other := range b.d.steps {
		if other.Name == s.name {
			return fmt.Errorf("two steps are named %q", s.name)
		}
	}
	switch {
	case len(b.steps) == core.MaxSteps:
		return fmt.Errorf("step %q: more than %d steps", s.name, core.MaxSteps)
	case s.pivot && b.pivot != "":
		return fmt.Errorf("step %q: a second pivot, after %q", s.name, b.pivot)
	case s.pivot && len(guards) > 0:
		return fmt.Errorf("step %q: the pivot is in an If; whether a saga can turn back must not depend on its data", s.name)
	}
	e := s.erase(b.pivot != "")
	e.guards, e.When = guards, when
	b.d.steps, b.steps, b.pivots = append(b.d.steps, e), append(b.steps, s), append(b.pivots, b.pivot)
	b.d.locks = b.d.locks || s.kind == KindLock
	if s.pivot {
		b.pivot = s.name
	}
	return nil
}

const maxParallel = 16

func (b *builder[T]) parallel(s *step[T], guards []core.Guard, when []Decision) error {
	if s.pivot {
		return errors.New("a Parallel is the pivot; want one step that decides")
	}
	if n := len(s.body); n < 2 || n > maxParallel {
		return fmt.Errorf("a Parallel has %d steps, want 2 to %d", n, maxParallel)
	}
	first := len(b.steps)
	for i, st := range s.body {
		switch {
		case st.s == nil:
			return fmt.Errorf("step %d of a Parallel is the zero Step", i+1)
		case st.s.pivot:
			return fmt.Errorf("step %q: the pivot is in a Parallel; put it behind", st.s.name)
		}
		switch st.s.kind {
		case KindCall, KindSend, KindChild, KindAwait, KindSleep:
		default:
			return fmt.Errorf("step %q: is of kind %v and in a Parallel; want Call, Send, Child, Await or Sleep", st.s.name, st.s.kind)
		}
		if err := b.add([]Step[T]{st}, guards, when); err != nil {
			return err
		}
	}
	b.d.steps[first].Parallel = len(s.body)
	return nil
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
func (d *definition) shape(stuckAfter int, child bool) *core.Shape {
	steps := make([]core.Step, len(d.steps))
	for i, s := range d.steps {
		steps[i] = core.Step{
			Local: s.Kind == KindLocal || s.Kind.idle(), Idle: s.Kind.idle(), Undo: s.Undo != KindNone, Pivot: s.Pivot,
			Attempts: s.Attempts, Group: s.Parallel, Guards: s.guards,
		}
	}
	sh := core.NewShape(steps)
	sh.End, sh.StuckAfter = d.onEnd != nil || d.locks || child, stuckAfter
	return sh
}

// decides reports whether the definition has a pivot, declared or implied.
func (d *definition) decides() bool {
	return d.shape(0, false).Pivot < len(d.steps)
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

// check returns what is wrong with the step behind the given pivot, if any.
func (s *step[T]) check(pivot string, last bool) string {
	forward := s.pivot || pivot != ""
	switch {
	case s.problem != "":
		return s.problem
	case s.incomplete() != "":
		return s.incomplete()
	case s.undos > 1:
		return "has more than one of Undo, UndoLocal, UndoSend and NoUndo"
	case s.undos == 1 && s.undo == nil && s.undoLocal == nil && (s.undoSend == nil || s.undoOn == nil) && !s.noUndo:
		return "its undo is nil"
	case s.kind.idle() && s.undos > 0:
		return "has an undo, yet it only waits or decides"
	case s.kind == KindChild && s.undos > 0:
		return "has an undo, yet that of a Child is built in"
	case s.pivot && s.kind.idle() && s.kind != KindAwait:
		return fmt.Sprintf("is the pivot and of kind %v, which does nothing that could decide", s.kind)
	case s.pivot && s.undos > 0:
		return "is the pivot and has an undo; what decides cannot be undone"
	case pivot != "" && s.undos > 0:
		return fmt.Sprintf("has an undo behind the pivot %q; there the saga only goes forward", pivot)
	case pivot != "" && s.kind == KindLock:
		return fmt.Sprintf("is a lock behind the pivot %q, where nobody may be refused any more", pivot)
	case !forward && s.kind == KindChild && s.child.decides():
		return fmt.Sprintf("its saga %s has a pivot, so it could not be undone; make the step the pivot or put it behind", s.child.name)
	case !forward && s.undos == 0 && !s.kind.idle() && s.kind != KindChild && !(last && s.kind == KindLocal):
		return "has no undo and is not behind a pivot; want Undo, UndoLocal, UndoSend or NoUndo"
	case forward && s.retry.Attempts != 0:
		return "Retry.Attempts must be zero from the pivot on; there a step is tried until it succeeds"
	case s.undoRetry.Attempts != 0:
		return "UndoRetry.Attempts must be zero; an undo is tried until it succeeds"
	case s.onTimeout != nil && (s.kind != KindAwait || s.timeout == 0):
		return "has an OnTimeout, which is for an Await with a Timeout"
	case forward && s.kind == KindAwait && s.timeout > 0 && s.onTimeout == nil:
		return "has a Timeout where there is no way back; want an OnTimeout"
	case s.kind == KindChild && s.timeout > 0:
		return "has a Timeout; give the child's definition a Deadline"
	}
	for _, b := range []Backoff{s.retry, s.undoRetry} {
		if b.Base < 0 || b.Max < 0 || b.Attempts < 0 {
			return fmt.Sprintf("Backoff is %+v, want nothing negative", b)
		}
	}
	return ""
}

// incomplete returns which of its functions the step lacks.
func (s *step[T]) incomplete() string {
	missing := false
	switch s.kind {
	case KindCall:
		missing = s.call == nil
	case KindLocal:
		missing = s.local == nil
	case KindSend:
		missing = s.send == nil || s.on == nil
	case KindAwait:
		missing = s.on == nil
	case KindSleep:
		missing = s.sleep == nil
	case KindLock:
		missing = s.key == nil
	case KindIf:
		missing = s.when == nil
	case KindChild:
		if s.child == nil {
			return "its definition is nil"
		}
		missing = s.begin == nil || s.on == nil
	}
	if missing {
		return "its function is nil"
	}
	return ""
}

// erase returns the step without its type parameter.
func (s *step[T]) erase(retriable bool) erased {
	e := erased{
		StepInfo: StepInfo{Name: s.name, Kind: s.kind, Pivot: s.pivot, Retriable: retriable, Attempts: s.retry.Attempts},
		retry:    s.retry, undoRetry: s.undoRetry, timeout: s.timeout, try: s.try, child: s.child,
		do: eraseFn(s.call, s.local), undo: eraseFn(s.undo, s.undoLocal),
		message: eraseMessage(s.send), undoMessage: eraseMessage(s.undoSend), on: eraseOn(s.on), undoOn: eraseOn(s.undoOn),
	}
	if fn := s.onTimeout; fn != nil {
		e.onTimeout = func(data []byte) ([]byte, error) { return transform(data, fn) }
	}
	if fn := s.sleep; fn != nil {
		e.sleep = func(data []byte) (time.Duration, error) { return look(data, fn) }
	}
	if fn := s.key; fn != nil {
		e.key = func(data []byte) (string, error) { return look(data, fn) }
	}
	if fn := s.when; fn != nil {
		e.when = func(data []byte) (bool, error) { return look(data, fn) }
	}
	if fn := s.begin; fn != nil {
		e.begin = func(data []byte) ([]byte, error) {
			v, err := look(data, fn)
			if err != nil {
				return nil, err
			}
			encoded, err := encode(v)
			if err != nil {
				err = &dataError{err}
			}
			return encoded, err
		}
	}
	switch {
	case s.undo != nil:
		e.Undo = KindCall
	case s.undoLocal != nil:
		e.Undo = KindLocal
	case s.undoSend != nil:
		e.Undo = KindSend
	case s.kind == KindChild && !s.pivot && !retriable:
		e.Undo = KindChild
	}
	return e
}

func eraseFn[T any](call func(context.Context, Attempt, *T) error, local func(context.Context, *sql.Tx, Attempt, *T) error) function {
	return func(ctx context.Context, tx *sql.Tx, a Attempt, data []byte) ([]byte, error) {
		return transform(data, func(v *T) error {
			if local != nil {
				return local(ctx, tx, a, v)
			}
			return call(ctx, a, v)
		})
	}
}

func eraseMessage[T any](fn func(context.Context, Attempt, *T) (*messaging.Message, error)) func(context.Context, Attempt, []byte) (*messaging.Message, error) {
	return func(ctx context.Context, a Attempt, data []byte) (*messaging.Message, error) {
		v := new(T)
		if err := json.Unmarshal(data, v); err != nil {
			return nil, &dataError{err}
		}
		return fn(ctx, a, v)
	}
}

func eraseOn[T any](fn func(payload []byte, d *T) error) func(data, payload []byte) ([]byte, error) {
	return func(data, payload []byte) ([]byte, error) {
		return transform(data, func(v *T) error { return fn(payload, v) })
	}
}

// look decodes the data for a function that only looks at it.
func look[T, R any](data []byte, fn func(*T) R) (R, error) {
	v := new(T)
	if err := json.Unmarshal(data, v); err != nil {
		var zero R
		return zero, &dataError{err}
	}
	return fn(v), nil
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
	data, err := encode(v)
	if err != nil {
		return nil, &dataError{err}
	}
	return data, nil
}

// encode returns v as JSON that any database takes. What a json.RawMessage holds need not be
// UTF-8, and a saga that cannot be written would be tried for ever.
func encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err == nil && !utf8.Valid(data) {
		err = errors.New("the JSON is not UTF-8")
	}
	return data, err
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
