// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/saga/internal/core"
)

// notes are what the engine remembers of a saga beside its columns. Steps are noted by
// name, so that the notes can be read beside another version of the definition.
type notes struct {
	// Parent is the key of the step whose child the saga is.
	Parent string `json:"parent,omitempty"`
	// Root is the saga above all parents, if it is not the parent itself.
	Root  string `json:"root,omitempty"`
	Cause Cause  `json:"cause,omitempty"`
	// Chosen are the decisions that were positive.
	Chosen []string `json:"chosen,omitempty"`
	// Finished are the steps of the current group that are done.
	Finished []string `json:"finished,omitempty"`
	// Waits are the current steps that wait, until when by the store's clock in microseconds,
	// or zero.
	Waits map[string]int64 `json:"waits,omitempty"`
}

func readNotes(b []byte) (notes, error) {
	var n notes
	if len(b) == 0 {
		return n, nil
	}
	err := json.Unmarshal(b, &n)
	return n, err
}

func (n notes) encode() []byte {
	if n.Parent == "" && n.Root == "" && n.Cause == 0 && len(n.Chosen) == 0 && len(n.Finished) == 0 && len(n.Waits) == 0 {
		return nil
	}
	b, err := json.Marshal(n)
	if err != nil {
		panic(err) // strings and numbers
	}
	return b
}

// until returns when the wait of a step ends by the store's clock. Zero is never.
func (n notes) until(step string) time.Time {
	if us := n.Waits[step]; us != 0 {
		return time.UnixMicro(us)
	}
	return time.Time{}
}

// parent returns the step whose child the saga is.
func (n notes) parent() (saga, step string) {
	parts := strings.Split(n.Parent, "/")
	if len(parts) != 3 {
		return "", ""
	}
	saga, _ = url.PathUnescape(parts[0])
	step, _ = url.PathUnescape(parts[1])
	return saga, step
}

// root returns the saga above all parents of a saga with a parent.
func (n notes) root() string {
	if n.Root != "" {
		return n.Root
	}
	saga, _ := n.parent()
	return saga
}

// reveal fills in the fields of an instance that are kept in its notes.
func reveal(rec Record) Instance {
	in := rec.Instance
	n, err := readNotes(rec.Notes)
	if err != nil {
		return in // work on the saga will park it
	}
	in.Cause = n.Cause
	in.Parent, _ = n.parent()
	if !in.Status.Ended() {
		in.Waits = slices.Sorted(maps.Keys(n.Waits))
	}
	return in
}

// stateOf returns the core's view of a saga whose current step has the given index.
func (d *definition) stateOf(rec Record, n notes, step int) core.State {
	s := core.State{
		Status: core.Status(rec.Status), Step: step, Attempt: rec.Attempt, Cause: core.Cause(n.Cause), Reason: rec.Reason,
		Cancel: rec.Cancel, Stuck: rec.Stuck, Parked: rec.Parked,
	}
	for i := range d.steps {
		name := d.steps[i].Name
		if slices.Contains(n.Chosen, name) {
			s.Chosen = s.Chosen.With(i)
		}
		if slices.Contains(n.Finished, name) {
			s.Finished = s.Finished.With(i)
		}
		if _, ok := n.Waits[name]; ok {
			s.Waiting = s.Waiting.With(i)
		}
	}
	return s
}

// notesOf is the reverse of stateOf, with the times of n.
func (d *definition) notesOf(s core.State, n notes) notes {
	next := notes{Parent: n.Parent, Root: n.Root, Cause: Cause(s.Cause)}
	for i := range d.steps {
		name := d.steps[i].Name
		if s.Chosen.Has(i) {
			next.Chosen = append(next.Chosen, name)
		}
		if s.Finished.Has(i) {
			next.Finished = append(next.Finished, name)
		}
		if s.Waiting.Has(i) {
			if next.Waits == nil {
				next.Waits = map[string]int64{}
			}
			next.Waits[name] = n.Waits[name]
		}
	}
	return next
}
