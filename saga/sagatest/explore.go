// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagatest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/saga"
)

// Bounds limit what [Explore] lets go wrong, each over the whole life of a saga. In
// every field zero means the default and a negative number means never.
type Bounds struct {
	// Nodes is how many engines share the store, at most 3. Zero means 2.
	Nodes int
	// Crashes is how many nodes die in the middle of their work. Zero means 1, at most 3.
	Crashes int
	// Stalls is how many nodes stand still past their lease and wake up later. Zero means 1,
	// at most 3.
	Stalls int
	// Failures is how many attempts end in an error or a timeout, before or after they took
	// effect. Zero means 2, at most 3.
	Failures int
	// Duplicates is how many requests the network delivers twice. Zero means 1, at most 3.
	Duplicates int
	// Cancels is how many times somebody asks to cancel. Zero means 1, which is also the most.
	Cancels int
	// MaxStates ends the search when so many states were found. Zero means 3 million, which
	// take about 400 MB.
	MaxStates int
	// Unguarded names steps whose participant has no barrier, to see what that does.
	Unguarded []string
	// Forgetful names pivots whose participant does not remember that it refused.
	Forgetful []string
	// Harmless names steps whose effect may remain when the saga is compensated.
	Harmless []string

	wrong wrong
}

// wrong makes the engine wrong on purpose, to show that the search can find something.
type wrong struct {
	// noFencing lets a node write that has lost the saga.
	noFencing bool
	// keepFailed does not compensate the step that was refused or given up.
	keepFailed bool
}

// Result is what [Search] found.
type Result struct {
	// States is how many different states were looked at.
	States int
	// Complete is true if there were no more within the bounds.
	Complete bool
	// Violation is what went wrong, or empty.
	Violation string
	// Trace is the shortest way to the violation.
	Trace []string
}

// Explore searches every behaviour of the definition's control flow within the
// bounds: several nodes, crashes between any two writes, nodes that wake up after
// they were taken for dead, requests and answers that are lost, repeated or late,
// refusals, failures, a deadline and a cancellation, in every order. The test fails
// with the shortest trace if one of these can be broken:
//
//   - A completed saga has done each of its steps exactly once.
//   - A compensated saga has undone every step it did, and no request that is still
//     under way can change that.
//   - Once the pivot is done the saga is never compensated.
//   - A local step is done at most once, and undone at most as often as it was done.
//   - Whatever happened, a saga that has not ended can go on.
//
// A message may be delivered late and, within Bounds.Duplicates, twice; its reply is kept.
// Steps in parallel are searched as messages that are under way together, a child as a
// participant that can undo what it did; what an Await waits for may come at any time and
// refuse; a Lock is got or refused, but other sagas are not part of the search.
//
// It does not run the functions of the steps, but takes each participant to be
// guarded by the barrier package unless Bounds.Unguarded names it, and its pivot to
// remember a refusal. Of several late copies of one request it keeps one.
// The number of states is logged.
func Explore(t testing.TB, def saga.Registered, b Bounds) {
	t.Helper()
	r := Search(def, b)
	switch {
	case r.Violation != "":
		t.Errorf("saga %s version %d: %s\n%s", def.Name(), def.Version(), r.Violation, strings.Join(r.Trace, "\n"))
	case !r.Complete:
		t.Errorf("saga %s version %d: more than %d states; allow fewer failures or raise Bounds.MaxStates", def.Name(), def.Version(), r.States)
	default:
		t.Logf("saga %s version %d: %d states, no violation", def.Name(), def.Version(), r.States)
	}
}

// Search is [Explore] without a test.
func Search(def saga.Registered, b Bounds) Result {
	x := newExplorer(def, b)
	return x.search()
}

type explorer struct {
	model
	max     int
	seen    map[key]uint32
	keys    []key
	parents []uint32
}

func newExplorer(def saga.Registered, b Bounds) *explorer {
	x := &explorer{model: newModel(def, b), max: b.MaxStates, seen: map[key]uint32{}}
	if x.max == 0 {
		x.max = 3_000_000
	}
	return x
}

// search goes through the states in the order of their distance from the beginning.
func (x *explorer) search() Result {
	x.add(x.begin(), 0)
	for i := 0; i < len(x.keys); i++ { //nolint:intrange // keys grows meanwhile
		if len(x.keys) > x.max {
			return Result{States: len(x.keys)}
		}
		w := x.unpack(x.keys[i])
		if why := x.check(&w); why != "" {
			return Result{States: len(x.keys), Violation: why, Trace: x.trace(uint32(i))}
		}
		moves := 0
		x.next(&w, func(to world, _ event) {
			moves++
			x.add(to, uint32(i))
		})
		if moves == 0 && !w.row.ended() && !w.row.parked {
			return Result{States: len(x.keys), Violation: "the saga cannot go on", Trace: x.trace(uint32(i))}
		}
	}
	return Result{States: len(x.keys), Complete: true}
}

func (x *explorer) add(w world, parent uint32) {
	x.settle(&w)
	k := x.pack(&w)
	if _, ok := x.seen[k]; ok {
		return
	}
	x.seen[k] = uint32(len(x.keys))
	x.keys = append(x.keys, k)
	x.parents = append(x.parents, parent)
}

// trace returns the events that lead to a state, each with what the row says then. The
// nodes keep their numbers on the way, which they do not in the states as they are
// remembered.
func (x *explorer) trace(i uint32) []string {
	var path []key
	for ; i > 0; i = x.parents[i] {
		path = append(path, x.keys[i])
	}
	slices.Reverse(path)
	var lines []string
	w := x.begin()
	for n, k := range path {
		var found *world
		x.next(&w, func(to world, ev event) {
			settled := to
			if x.settle(&settled); found == nil && x.pack(&settled) == k {
				found = &to
				lines = append(lines, fmt.Sprintf("%3d  %-58s | %s", n+1, x.tell(ev), x.describe(&to)))
			}
		})
		w = *found
	}
	return lines
}
