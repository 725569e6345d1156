// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/saga"
)

type data struct{ Log []string }

func call(context.Context, saga.Attempt, *data) error           { return nil }
func local(context.Context, *sql.Tx, saga.Attempt, *data) error { return nil }

func TestNewRefuses(t *testing.T) {
	undo, none := saga.Undo(call), saga.NoUndo[data]()
	good := saga.Call("good", call, undo)
	for _, c := range []struct {
		name    string
		version int
		steps   []saga.Step[data]
		want    string
	}{
		{"", 1, []saga.Step[data]{good}, "saga: name is empty"},
		{" x", 1, []saga.Step[data]{good}, `saga: name " x" begins or ends with a space`},
		{"x\n", 1, []saga.Step[data]{good}, `saga: name "x\n" has a control character`},
		{"x\xff", 1, []saga.Step[data]{good}, `saga: name "x\xff" is not UTF-8`},
		{strings.Repeat("x", 101), 1, []saga.Step[data]{good}, "has 101 bytes, want at most 100"},
		{"x", 0, []saga.Step[data]{good}, "saga x: version is 0, want at least 1"},
		{"x", 1, nil, "saga x: no steps"},
		{"x", 1, []saga.Step[data]{good, {}}, "saga x: step 2 is the zero Step"},
		{"x", 1, []saga.Step[data]{saga.Pivot(saga.Step[data]{})}, "saga x: step 1 is the zero Step"},
		{"x", 1, []saga.Step[data]{good, saga.Call("", call, undo)}, "saga x: name of step 2 is empty"},
		{"x", 1, []saga.Step[data]{good, good}, `saga x: two steps are named "good"`},
		{"x", 1, []saga.Step[data]{saga.Call[data]("a", nil, undo)}, `step "a": its function is nil`},
		{"x", 1, []saga.Step[data]{saga.Local[data]("a", nil, undo)}, `step "a": its function is nil`},
		{"x", 1, []saga.Step[data]{saga.Call("a", call, saga.Undo[data](nil))}, `step "a": its undo is nil`},
		{"x", 1, []saga.Step[data]{saga.Call("a", call, undo, saga.UndoLocal(local))}, `step "a": has more than one of Undo`},
		{"x", 1, []saga.Step[data]{saga.Call("a", call, undo, none)}, `step "a": has more than one of Undo`},
		{"x", 1, []saga.Step[data]{saga.Call("a", call)}, `step "a": has no undo and is not behind a pivot`},
		{"x", 1, []saga.Step[data]{saga.Local("a", local), good}, `step "a": has no undo and is not behind a pivot`},
		{"x", 1, []saga.Step[data]{saga.Pivot(saga.Call("a", call, undo))}, `step "a": is the pivot and has an undo`},
		{"x", 1, []saga.Step[data]{saga.Pivot(saga.Call("a", call)), good}, `step "good": has an undo behind the pivot "a"`},
		{"x", 1, []saga.Step[data]{saga.Pivot(saga.Call("a", call)), saga.Pivot(saga.Call("b", call))}, `step "b": a second pivot, after "a"`},
		{"x", 1, []saga.Step[data]{saga.Pivot(saga.Pivot(saga.Call("a", call))), saga.Call("b", call, none)}, `step "b": has an undo behind the pivot "a"`},
		{"x", 1, []saga.Step[data]{saga.Call("a", call, undo, saga.Timeout[data](0))}, `step "a": Timeout is 0s, want more than 0`},
		{"x", 1, []saga.Step[data]{saga.Call("a", call, undo, saga.Retry[data](saga.Backoff{Base: -1}))}, `step "a": Backoff is`},
		{"x", 1, []saga.Step[data]{saga.Pivot(saga.Call("a", call, saga.Retry[data](saga.Backoff{Attempts: 3})))}, `step "a": Retry.Attempts must be zero from the pivot on`},
		{"x", 1, []saga.Step[data]{saga.Call("a", call, undo, saga.UndoRetry[data](saga.Backoff{Attempts: 3}))}, `step "a": UndoRetry.Attempts must be zero`},
	} {
		d, err := saga.New(c.name, c.version, c.steps...)
		if d != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("New(%q, %d) = %v, %v, want an error with %q", c.name, c.version, d, err, c.want)
		}
	}
}

func TestNewAccepts(t *testing.T) {
	undo := saga.Undo(call)
	for what, steps := range map[string][]saga.Step[data]{
		"only a pivot":                    {saga.Pivot(saga.Call("a", call))},
		"a local step without undo last":  {saga.Call("a", call, undo), saga.Local("b", local)},
		"steps with nothing to undo":      {saga.Call("a", call, saga.NoUndo[data]()), saga.Local("b", local, saga.NoUndo[data]()), saga.Call("c", call, undo)},
		"all kinds of undo, then forward": {saga.Call("a", call, saga.UndoLocal(local)), saga.Local("b", local, undo), saga.Pivot(saga.Local("c", local)), saga.Call("d", call)},
	} {
		if _, err := saga.New("x", 1, steps...); err != nil {
			t.Errorf("New with %s = %v, want nil", what, err)
		}
	}
}

func TestStepsDescribeTheDefinition(t *testing.T) {
	d := saga.Must(saga.New("x", 7,
		saga.Call("a", call, saga.UndoLocal(local), saga.Retry[data](saga.Backoff{Attempts: 2})),
		saga.Pivot(saga.Local("b", local)),
		saga.Call("c", call),
	))
	want := []saga.StepInfo{
		{Name: "a", Kind: saga.KindCall, Undo: saga.KindLocal, Attempts: 2},
		{Name: "b", Kind: saga.KindLocal, Pivot: true},
		{Name: "c", Kind: saga.KindCall, Retriable: true},
	}
	got := d.Steps()
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("Steps()[%d] = %+v, want %+v", i, got[i], want[i])
		}
	}
	if d.Name() != "x" || d.Version() != 7 {
		t.Errorf("Name, Version = %s, %d, want x, 7", d.Name(), d.Version())
	}
}

func TestDefinitionsAreImmutable(t *testing.T) {
	d := saga.Must(saga.New("x", 1, saga.Pivot(saga.Call("a", call))))
	_ = d.OnEnd(func(context.Context, *sql.Tx, saga.End, *data) error { t.Error("OnEnd was called"); return nil })
	_ = d.Deadline(time.Nanosecond)
	plain := saga.Call("a", call, saga.Undo(call))
	_ = saga.Pivot(plain)
	if _, err := saga.New("x", 1, plain, saga.Pivot(saga.Call("b", call))); err != nil {
		t.Errorf("New = %v: Pivot has changed its argument", err)
	}
	w := newWorld(t, d)
	w.run(func() {
		w.start(d, "s", data{})
		w.end("s", saga.Completed)
	})
}

func TestMustPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Errorf("Must did not panic")
		}
	}()
	saga.Must(saga.New[data]("x", 1))
}

func TestAttemptKey(t *testing.T) {
	a := saga.Attempt{Saga: "a/b ü", Step: "pay now", Op: saga.OpUndo, Number: 3}
	if got, want := a.Key(), "a%2Fb%20%C3%BC/pay%20now/undo"; got != want {
		t.Errorf("Key = %q, want %q", got, want)
	}
}

func ExampleDefinition_Mermaid() {
	d := saga.Must(saga.New("place-order", 1,
		saga.Call("reserve", call, saga.Undo(call)),
		saga.Pivot(saga.Call("pay", call)),
		saga.Local("confirm", local),
	))
	fmt.Print(d.Mermaid())
	fmt.Print(d.DOT())
	// Output:
	// flowchart TD
	//   start([start])
	//   s1["reserve"]
	//   start --> s1
	//   s2{{"pay"}}
	//   s1 --> s2
	//   s3["confirm"]
	//   s2 --> s3
	//   completed([completed])
	//   s3 --> completed
	//   u1["undo reserve"]
	//   s1 -. refused .-> u1
	//   s2 -. refused .-> u1
	//   compensated([compensated])
	//   u1 --> compensated
	// digraph "place-order" {
	//   start [label="start", shape=oval];
	//   s1 [label="reserve", shape=box];
	//   start -> s1;
	//   s2 [label="pay", shape=hexagon];
	//   s1 -> s2;
	//   s3 [label="confirm", shape=box];
	//   s2 -> s3;
	//   completed [label="completed", shape=oval];
	//   s3 -> completed;
	//   u1 [label="undo reserve", shape=box];
	//   s1 -> u1 [style=dashed, label=refused];
	//   s2 -> u1 [style=dashed, label=refused];
	//   compensated [label="compensated", shape=oval];
	//   u1 -> compensated;
	// }
}
