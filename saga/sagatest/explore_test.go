// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagatest

import (
	"context"
	"database/sql"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/saga"
)

type nothing struct{}

func call(context.Context, saga.Attempt, *nothing) error           { return nil }
func local(context.Context, *sql.Tx, saga.Attempt, *nothing) error { return nil }

func step(name string) saga.Step[nothing] { return saga.Call(name, call, saga.Undo(call)) }

func placeOrder() saga.Registered {
	return saga.Must(saga.New("place-order", 1,
		step("reserve credit"), step("reserve stock"), step("authorise"),
		saga.Pivot(saga.Call("capture", call)), saga.Call("sell stock", call), saga.Local("confirm", local), saga.Call("settle credit", call),
	))
}

func command(context.Context, saga.Attempt, *nothing) (*messaging.Message, error) { return nil, nil }
func on(*nothing, int) error                                                      { return nil }
func when(*nothing) bool                                                          { return true }
func lockKey(*nothing) string                                                     { return "k" }
func begin(*nothing) nothing                                                      { return nothing{} }
func keep(*nothing, nothing) error                                                { return nil }

func sent(name string) saga.Step[nothing] {
	return saga.Send(name, command, on, saga.UndoSend(command, on))
}

var three = saga.Must(saga.New("three", 1, step("a"), step("b"), step("c")))

func TestExploreFindsNothingWrong(t *testing.T) {
	undoLocal, none := saga.UndoLocal(local), saga.NoUndo[nothing]()
	for name, d := range map[string]saga.Registered{
		"three calls":        saga.Must(saga.New("x", 1, step("a"), step("b"), step("c"))),
		"a pivot between":    saga.Must(saga.New("x", 1, step("a"), saga.Pivot(saga.Call("b", call)), saga.Call("c", call))),
		"local steps":        saga.Must(saga.New("x", 1, saga.Local("a", local, undoLocal), step("b"), saga.Local("c", local, undoLocal), step("d"))),
		"a local pivot":      saga.Must(saga.New("x", 1, step("a"), saga.Pivot(saga.Local("b", local)), saga.Call("c", call))),
		"a local end":        saga.Must(saga.New("x", 1, step("a"), step("b"), saga.Local("c", local))),
		"nothing to undo":    saga.Must(saga.New("x", 1, step("a"), saga.Call("b", call, none), step("c"))),
		"limited attempts":   saga.Must(saga.New("x", 1, step("a"), saga.Call("b", call, saga.Undo(call), saga.Retry[nothing](saga.Backoff{Attempts: 2})), step("c"))),
		"only a pivot":       saga.Must(saga.New("x", 1, saga.Pivot(saga.Call("a", call)))),
		"a realistic order":  placeOrder(),
		"a message":          saga.Must(saga.New("x", 1, step("a"), sent("b"), step("c"))),
		"a message as pivot": saga.Must(saga.New("x", 1, step("a"), saga.Pivot(saga.Send("b", command, on)), saga.Call("c", call))),
		"waits and a choice": saga.Must(saga.New("x", 1, saga.Lock("l", lockKey), step("a"), saga.If("i", when, step("b"), saga.Await("w", on)), saga.Else(step("c")), step("d"))),
		"steps in parallel":  saga.Must(saga.New("x", 1, step("a"), saga.Parallel(step("b"), sent("c")), saga.Pivot(saga.Call("p", call)), saga.Parallel(saga.Call("d", call), saga.Send("e", command, on)))),
		"children":           saga.Must(saga.New("x", 1, saga.Child("a", three, begin, keep), saga.Parallel(saga.Child("b", three, begin, keep), saga.Await("w", on)))),
	} {
		t.Run(name, func(t *testing.T) {
			var b Bounds
			for _, s := range d.Steps() {
				if s.Kind != saga.KindCall && s.Kind != saga.KindLocal {
					b.Failures, b.Stalls = 1, -1 // fewer states, for the race detector's sake
				}
			}
			Explore(t, d, b)
		})
	}
}

func TestExploreFindsWhatIsWrong(t *testing.T) {
	pivot := saga.Must(saga.New("x", 1, step("a"), saga.Pivot(saga.Call("b", call)), saga.Call("c", call)))
	locals := saga.Must(saga.New("x", 1, saga.Local("a", local, saga.UndoLocal(local)), step("b")))
	for name, c := range map[string]struct {
		def    saga.Registered
		bounds Bounds
		want   string
	}{
		"the failed step is not compensated":               {three, Bounds{wrong: wrong{keepFailed: true}}, "the saga is compensated, yet step"},
		"a node writes that has lost the saga":             {three, Bounds{wrong: wrong{noFencing: true}}, "yet step"},
		"a local step without fencing":                     {locals, Bounds{wrong: wrong{noFencing: true}}, "was done 2 times"},
		"a participant without a barrier":                  {three, Bounds{Unguarded: []string{"b"}}, `yet step "b" was done`},
		"a pivot that does not remember its refusal":       {pivot, Bounds{Forgetful: []string{"b"}}, `yet its pivot "b" was done`},
		"a remote step that is undone in our own tables":   {saga.Must(saga.New("x", 1, saga.Call("a", call, saga.UndoLocal(local)))), Bounds{}, `yet step "a" was done 1 times and undone 0 times`},
		"a message that is not undone when it was refused": {saga.Must(saga.New("x", 1, sent("a"), sent("b"))), Bounds{wrong: wrong{keepFailed: true}}, "the saga is compensated, yet step"},
		"a message to a participant without a barrier":     {saga.Must(saga.New("x", 1, step("a"), sent("b"))), Bounds{Unguarded: []string{"b"}}, `yet step "b" was done`},
		"one of two in parallel without a barrier":         {saga.Must(saga.New("x", 1, saga.Parallel(step("a"), step("b")))), Bounds{Unguarded: []string{"b"}}, `yet step "b" was done`},
		"a message as pivot that forgets its refusal":      {saga.Must(saga.New("x", 1, step("a"), saga.Pivot(saga.Send("b", command, on)))), Bounds{Forgetful: []string{"b"}}, `yet its pivot "b" was done`},
		"the realistic order without a barrier":            {placeOrder(), Bounds{Unguarded: []string{"authorise"}}, `yet step "authorise"`},
	} {
		t.Run(name, func(t *testing.T) {
			r := Search(c.def, c.bounds)
			if !strings.Contains(r.Violation, c.want) {
				t.Fatalf("Search = %q after %d states, want %q", r.Violation, r.States, c.want)
			}
			t.Logf("after %d states: %s\n%s", r.States, r.Violation, strings.Join(r.Trace, "\n"))
		})
	}
	t.Run("unless it is declared harmless", func(t *testing.T) {
		Explore(t, saga.Must(saga.New("x", 1, saga.Call("a", call, saga.UndoLocal(local)))), Bounds{Harmless: []string{"a"}})
	})
}

func TestExploreSaysThatItDidNotFinish(t *testing.T) {
	if r := Search(placeOrder(), Bounds{MaxStates: 1000}); r.Complete || r.Violation != "" || r.States < 1000 {
		t.Errorf("Search with a limit of 1,000 states = %+v, want it incomplete", r)
	}
}

func TestTheShortestTraceIsTold(t *testing.T) {
	d := saga.Must(saga.New("x", 1, step("a")))
	r := Search(d, Bounds{wrong: wrong{keepFailed: true}, Crashes: -1, Stalls: -1, Failures: -1, Cancels: -1, Nodes: 1})
	var got []string
	for _, line := range r.Trace {
		event, _, _ := strings.Cut(line, "|")
		got = append(got, strings.Join(strings.Fields(event), " "))
	}
	want := []string{
		`1 node 1 claims the saga and begins to do "a"`,
		`2 the network copies node 1's request to do "a"`,
		`3 the participant refuses node 1's request to do "a"`,
		`4 node 1 receives the answer to do "a"`,
		`5 a late request to do "a" arrives`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") || r.Violation != `the saga is compensated, yet step "a" was done 1 times and undone 0 times` {
		t.Errorf("Search = %q by\n%s\nwant\n%s", r.Violation, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestPackIsExact(t *testing.T) {
	x := newExplorer(placeOrder(), Bounds{Nodes: 3, MaxStates: 20_000})
	x.search()
	for _, k := range x.keys {
		w := x.unpack(k)
		if x.pack(&w) != k {
			t.Fatalf("pack(unpack(%x)) = %x", k, x.pack(&w))
		}
	}
}
