// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// Migrate moves the sagas of one version that have not ended to another one of the same
// name, which the engine must have, and returns how many it moved. Fn gets a saga and
// its data, and returns the name of the step that is current in the new version, and
// the new data. Everything in front of that step must count as done, or while the saga
// compensates, everything behind it as undone; the step itself will be attempted,
// under the key of its new name. It returns [ErrSkip] for a saga that is to stay.
//
// A saga that is being worked on is moved too: what its node is doing is not recorded,
// as after a crash, and happens again under the new version if its step is current
// there. A saga that waits, waits anew. Stop the nodes that know only the old version
// first, or let them run on: each saga is worked on by a node that has its version.
func Migrate[A, B any](ctx context.Context, e *Engine, from int, to *Definition[B], fn func(in Instance, old A) (step string, data B, err error)) (moved int, err error) {
	if e.defs[DefinitionKey{to.d.name, to.d.version}] == nil {
		return 0, fmt.Errorf("%w: %s version %d", ErrUnknownDefinition, to.d.name, to.d.version)
	}
	for _, status := range []Status{Running, Compensating} {
		f := Filter{Name: to.d.name, Version: from, Status: status, Limit: 100}
		for {
			page, err := e.store.List(ctx, f)
			if err != nil {
				return moved, fmt.Errorf("saga: migrate: %w", err)
			}
			for _, rec := range page {
				ok, err := migrate(ctx, e, rec.ID, from, to, fn)
				if err != nil {
					return moved, fmt.Errorf("saga %s: migrate: %w", rec.ID, err)
				}
				if ok {
					moved++
				}
			}
			if len(page) < f.Limit {
				break
			}
			f.After = page[len(page)-1].ID
		}
	}
	e.Wake()
	return moved, nil
}

// ErrSkip tells [Migrate] to leave a saga as it is.
var ErrSkip = errors.New("saga: left at its version")

// migrate moves one saga, against whatever an engine does with it meanwhile.
func migrate[A, B any](ctx context.Context, e *Engine, id string, from int, to *Definition[B], fn func(Instance, A) (string, B, error)) (bool, error) {
	for n := 1; ; n++ {
		rec, err := e.store.Load(ctx, id)
		if errors.Is(err, ErrNotFound) || err == nil && (rec.Version != from || rec.Status.Ended()) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		c, err := migration(rec, to, fn)
		if errors.Is(err, ErrSkip) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		c.Entries[0].Node = e.cfg.Node
		lost, err := e.store.Save(ctx, []Change{c})
		if err == nil && len(lost) == 0 {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if !pause(ctx, delay(storeBackoff, n)) {
			return false, ctx.Err()
		}
	}
}

// migration returns the change that moves a saga.
func migration[A, B any](rec Record, to *Definition[B], fn func(Instance, A) (string, B, error)) (Change, error) {
	var old A
	if err := json.Unmarshal(rec.Data, &old); err != nil {
		return Change{}, &dataError{err}
	}
	noted, err := readNotes(rec.Notes)
	if err != nil {
		return Change{}, err
	}
	step, data, err := fn(reveal(rec), old)
	if err != nil {
		return Change{}, err
	}
	encoded, err := encode(data)
	if err != nil {
		return Change{}, &dataError{err}
	}
	in := rec.Instance
	in.Step = step
	index, ok := to.d.index(in)
	if !ok {
		return Change{}, fmt.Errorf("%s version %d has no step %q", to.d.name, to.d.version, step)
	}
	for first := range to.d.steps {
		if n := to.d.steps[first].Parallel; rec.Status == Running && index > first && index < first+n {
			return Change{}, fmt.Errorf("step %q runs in parallel with %q, want that name", step, to.d.steps[first].Name)
		}
	}
	noted.Finished, noted.Waits = nil, nil
	s := to.d.stateOf(rec, noted, index)
	s.Attempt, s.Stuck, s.Parked = 0, "", false
	c := changeTo(rec, s, to.d.notesOf(s, noted), to.d.stepName(s), encoded)
	c.Version, c.Due, c.Release = to.d.version, DueAfter, true
	c.Entries = []Entry{{Step: rec.Step, Op: "migrate", Outcome: "accepted", Text: fmt.Sprintf("version %d to %d, step %q", rec.Version, to.d.version, c.Step)}}
	return c, nil
}
