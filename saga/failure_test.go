// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/saga"
)

// TestTheStoreFails lets each kind of call fail, before it took effect and after, and
// counts what the saga did.
func TestTheStoreFails(t *testing.T) {
	for _, name := range []string{"Beat", "Claim", "Load", "Save", "SaveTx"} {
		for _, n := range []int{1, 2, 3, 7} {
			for _, when := range []string{"before", "after"} {
				t.Run(fmt.Sprintf("%s %d times %s", name, n, when), func(t *testing.T) {
					w := newWorld(t)
					cut := &cutStore{Store: w.store}
					w.store = cut
					d := saga.Must(saga.New("x", 1, w.step("a"), saga.Local("b", w.localFn(), saga.UndoLocal(w.localFn())),
						w.step("c", errOops, saga.Refuse("no"))))
					w.defs = []saga.Registered{d}
					var ended atomic.Int32
					w.cfg.Hooks.Ended = func(saga.Ended) { ended.Add(1) }
					w.run(func() {
						if when == "before" {
							cut.set(failing(name, n), nil)
						} else {
							cut.set(nil, failing(name, n))
						}
						w.start(d, "s", data{})
						engine := w.engine
						w.engine = w.newEngine(cut.Store) // looks on undisturbed
						in := w.end("s", saga.Compensated)
						w.engine = engine
						time.Sleep(time.Minute)
						if n := ended.Load(); n != 1 {
							t.Errorf("hook Ended was called %d times, want once", n)
						}
						log := strings.Join(w.notes(), " ")
						// What was done stays done, however often the store fails to take note of it.
						if want := "a/do b/do c/do c/do c/undo b/undo a/undo"; log != want && name != "SaveTx" {
							t.Errorf("calls were %s, want %s", log, want)
						}
						if v, _ := d.Data(in); strings.Join(v.Log, " ") != "a/do b/do c/undo b/undo a/undo" {
							t.Errorf("data = %v, want each committed effect once", v.Log)
						}
					})
				})
			}
		}
	}
}

func TestTakeover(t *testing.T) {
	// The first node hangs in its step, cut off from the store; the second takes over.
	w := newWorld(t)
	cut := &cutStore{Store: w.store}
	hang := make(chan struct{})
	first := true
	d := saga.Must(saga.New("x", 1, saga.Call("a", func(ctx context.Context, a saga.Attempt, d *data) error {
		if first {
			first = false
			cut.set(func(string) error { return errors.New("network cut") }, nil)
			<-hang
			d.Log = append(d.Log, "zombie")
			w.note("zombie " + a.Step)
			return nil
		}
		d.Log = append(d.Log, "second")
		w.note(fmt.Sprint("second ", a.Step, " ", a.Number))
		return nil
	}, saga.NoUndo[data](), saga.Timeout[data](time.Hour)), saga.Call("b", w.fn(), saga.NoUndo[data]())))
	w.defs = []saga.Registered{d}
	var taken []saga.TakenOver
	w.cfg.Hooks.TakenOver = func(h saga.TakenOver) { taken = append(taken, h) }
	synctest.Test(t, func(t *testing.T) {
		w.T = t
		w.engine = w.newEngine(cut)
		hang = make(chan struct{})
		stop1 := w.goRun(w.engine)
		w.start(d, "s", data{})
		synctest.Wait()
		begin := time.Now()
		zombie := w.engine
		w.engine = w.newEngine(w.store)
		stop2 := w.goRun(w.engine)
		in := w.end("s", saga.Completed)
		if took := time.Since(begin); took > 12*time.Second {
			t.Errorf("taken over after %v, want a lease of 10s and a poll", took)
		}
		w.noted("second a 1", "b/do")
		if st := w.engine.Stats(); st.Takeovers != 1 {
			t.Errorf("Stats = %+v, want one takeover", st)
		}
		if want := (saga.TakenOver{Saga: "s", Name: "x", Version: 1, Step: "a", Takeovers: 1}); len(taken) != 1 || taken[0] != want {
			t.Errorf("hook TakenOver got %+v, want %+v", taken, want)
		}
		// The first node comes back, late.
		cut.set(nil, nil)
		close(hang)
		time.Sleep(time.Minute)
		w.noted("zombie a")
		after := w.get("s")
		if v, _ := d.Data(after); strings.Join(v.Log, " ") != "second b/do" || !after.Updated.Equal(in.Updated) {
			t.Errorf("after the zombie woke the data is %v, updated %v; want second b/do, %v", v.Log, after.Updated, in.Updated)
		}
		if st := zombie.Stats(); st.Lost != 1 {
			t.Errorf("Stats of the zombie = %+v, want one lost write", st)
		}
		stop1()
		stop2()
	})
}

func TestAStoppedProcessAsksBeforeItGoesOn(t *testing.T) {
	// A whole process that stood still past its lease must not begin another step of a saga
	// that belongs to somebody else.
	w := newWorld(t)
	cut := &cutStore{Store: w.store}
	d := saga.Must(saga.New("x", 1, w.step("a"), w.step("b")))
	w.defs = []saga.Registered{d}
	synctest.Test(t, func(t *testing.T) {
		w.T = t
		w.engine = w.newEngine(cut)
		// The second claim takes the saga; its answer arrives late, and meanwhile the
		// heartbeat does not get through.
		var claims atomic.Int32
		var answered atomic.Bool
		cut.set(func(call string) error {
			if call == "Beat" && claims.Load() >= 2 && !answered.Load() {
				return errors.New("stalled")
			}
			return nil
		}, func(call string) error {
			if call == "Claim" && claims.Add(1) == 2 {
				time.Sleep(14 * time.Second)
				answered.Store(true)
			}
			return nil
		})
		stop1 := w.goRun(w.engine)
		synctest.Wait()
		// Not by the engine itself, which would own it without a claim.
		if err := saga.Start(t.Context(), w.newEngine(w.store), nil, d, "s", data{}); err != nil {
			t.Fatal(err)
		}
		w.engine.Wake()
		synctest.Wait()
		other := w.newEngine(w.store)
		stop2 := w.goRun(other)
		w.end("s", saga.Completed)
		time.Sleep(time.Minute)
		if !answered.Load() || w.get("s").Epoch != 2 {
			t.Errorf("the claim was answered: %v, the saga is %+v, want it taken over", answered.Load(), w.get("s"))
		}
		w.noted("a/do", "b/do")
		stop1()
		stop2()
	})
}

func TestAMissingDefinitionWaitsForANodeThatHasIt(t *testing.T) {
	w := newWorld(t)
	v1 := saga.Must(saga.New("x", 1, w.step("a")))
	v2 := saga.Must(saga.New("x", 2, w.step("b")))
	w.defs = []saga.Registered{v2}
	synctest.Test(t, func(t *testing.T) {
		w.T = t
		starter := w.newEngine(w.store)
		if err := saga.Start(w.Context(), starter, nil, v2, "s", data{}); err != nil {
			t.Fatalf("Start = %v", err)
		}
		// Only an old node runs.
		var stuck []saga.Stuck
		w.cfg.Hooks.Stuck = func(s saga.Stuck) { stuck = append(stuck, s) }
		w.defs = []saga.Registered{v1}
		w.engine = w.newEngine(w.store)
		stop1 := w.goRun(w.engine)
		w.engine.Wake()
		time.Sleep(20 * time.Second)
		if in := w.get("s"); in.Stuck != "" || in.Owner != "" {
			t.Errorf("after 20s the saga is %+v, want it left alone", in)
		}
		time.Sleep(10 * time.Minute)
		in := w.get("s")
		if in.Stuck != "no node runs x version 2" || in.Parked || len(stuck) != 1 {
			t.Errorf("the saga is %+v, reported %d times; want it stuck for want of a definition, reported once", in, len(stuck))
		}
		w.noted()
		recs, err := w.store.History(t.Context(), "s")
		if err != nil || len(recs) != 1 || recs[0].Op != "park" {
			t.Errorf("History = %+v, %v, want one entry about it", recs, err)
		}
		if err := w.engine.Retry(t.Context(), "s", byAnn); !errors.Is(err, saga.ErrUnknownDefinition) || !strings.Contains(err.Error(), "no such definition: x version 2") {
			t.Errorf("Retry by a node without the definition = %v, want an error that says so", err)
		}
		// A new node starts.
		w.defs = []saga.Registered{v1, v2}
		w.engine = w.newEngine(w.store)
		stop2 := w.goRun(w.engine)
		in = w.end("s", saga.Completed)
		w.noted("b/do")
		if in.Stuck != "" {
			t.Errorf("stuck = %q, want it cleared", in.Stuck)
		}
		stop1()
		stop2()
	})
}

func TestAChangedDefinitionParksWhatDoesNotFit(t *testing.T) {
	w := newWorld(t)
	was := saga.Must(saga.New("x", 1, w.step("old")))
	is := saga.Must(saga.New("x", 1, w.step("new")))
	w.defs = []saga.Registered{is}
	w.run(func() {
		w2 := newWorld(t, was)
		if err := saga.Start(w.Context(), w2.newEngine(w.store), nil, was, "s", data{}); err != nil {
			t.Fatalf("Start = %v", err)
		}
		w.engine.Wake()
		in := w.end("s", saga.Running)
		if want := `x version 1 has no step "old"`; in.Stuck != want || !in.Parked {
			t.Errorf("stuck = %q, want %q", in.Stuck, want)
		}
		w.noted()
	})
}

func TestDataThatDoesNotFitParksTheSaga(t *testing.T) {
	w := newWorld(t)
	was := saga.Must(saga.New("x", 1, saga.Call("a", func(context.Context, saga.Attempt, *struct{ Log int }) error { return nil }, saga.NoUndo[struct{ Log int }]())))
	is := saga.Must(saga.New("x", 1, w.step("a")))
	w.defs = []saga.Registered{is}
	w.run(func() {
		w2 := newWorld(t, was)
		if err := saga.Start(w.Context(), w2.newEngine(w.store), nil, was, "s", struct{ Log int }{7}); err != nil {
			t.Fatalf("Start = %v", err)
		}
		w.engine.Wake()
		in := w.end("s", saga.Running)
		if !strings.Contains(in.Stuck, "data: json: cannot unmarshal number") || !in.Parked {
			t.Errorf("stuck = %q, want the error of the data", in.Stuck)
		}
		if _, err := is.Data(in); err == nil {
			t.Errorf("Data = nil, want an error")
		}
		w.noted()
	})
}

// No database would take it, however often it is tried.
func TestDataThatIsNotUTF8IsNeverStored(t *testing.T) {
	type raw struct{ R json.RawMessage }
	bad := json.RawMessage("\"\xff\"")
	w := newWorld(t)
	d := saga.Must(saga.New("x", 1, saga.Call("a", func(_ context.Context, _ saga.Attempt, d *raw) error {
		d.R = bad
		return nil
	}, saga.NoUndo[raw]())))
	w.defs = []saga.Registered{d}
	w.run(func() {
		if err := saga.Start(w.Context(), w.engine, nil, d, "s", raw{bad}); err == nil || !strings.Contains(err.Error(), "not UTF-8") {
			t.Errorf("Start = %v, want an error", err)
		}
		if _, err := w.engine.Deliver(w.Context(), nil, "s", "a", bad); err == nil || !strings.Contains(err.Error(), "not UTF-8") {
			t.Errorf("Deliver = %v, want an error", err)
		}
		m := &messaging.Message{ID: "1", Header: messaging.Header{saga.HeaderKey: "s/a/do"}, Body: bad}
		if err := w.engine.Replies().Handle(w.Context(), &messaging.Delivery{Message: m}); err == nil || !strings.Contains(err.Error(), "UTF-8") {
			t.Errorf("Replies = %v, want an error", err)
		}
		if err := saga.Start(w.Context(), w.engine, nil, d, "s", raw{}); err != nil {
			t.Fatalf("Start = %v", err)
		}
		if in := w.end("s", saga.Running); !in.Parked || !strings.Contains(in.Stuck, "not UTF-8") {
			t.Errorf("stuck = %q, want it parked over its data", in.Stuck)
		}
	})
}

func TestAPoisonSagaIsParkedAfterItsLimit(t *testing.T) {
	w := newWorld(t)
	w.cfg.MaxTakeovers = 3
	d := saga.Must(saga.New("x", 1, w.step("a")))
	w.defs = []saga.Registered{d}
	w.run(func() {
		synctest.Wait()
		w2 := newWorld(t, d)
		if err := saga.Start(w.Context(), w2.newEngine(w.store), nil, d, "s", data{}); err != nil {
			t.Fatalf("Start = %v", err)
		}
		// Nodes that take it and die, none of them ever having a lease.
		for i := range 3 {
			recs, err := w.store.Claim(t.Context(), saga.Claim{Node: fmt.Sprint("n", i), Limit: 1, Definitions: []saga.DefinitionKey{{Name: "x", Version: 1}}})
			if err != nil || len(recs) != 1 {
				t.Fatalf("Claim = %v, %v", recs, err)
			}
		}
		w.engine.Wake()
		in := w.end("s", saga.Running)
		if want := "3 nodes died over this step"; in.Stuck != want || !in.Parked {
			t.Errorf("stuck = %q, want %q", in.Stuck, want)
		}
		w.noted()
		if err := w.engine.Retry(t.Context(), "s", byAnn); err != nil {
			t.Errorf("Retry = %v", err)
		}
		synctest.Wait()
		w.end("s", saga.Completed)
	})
}

func TestAVerbWinsAgainstABusyEngine(t *testing.T) {
	w := newWorld(t)
	cut := &cutStore{Store: w.store}
	d := saga.Must(saga.New("x", 1, w.step("a"), w.step("b"), saga.Pivot(saga.Call("c", w.fn()))))
	w.defs = []saga.Registered{d}
	w.run(func() {
		synctest.Wait() // the engine has looked, and will not look again before it is woken
		e := w.newEngine(cut)
		n := 0
		cut.set(func(call string) error {
			if call != "Save" {
				return nil
			}
			if n++; n == 1 {
				return errOops
			}
			return nil
		}, nil)
		if err := saga.Start(w.Context(), e, nil, d, "s", data{}); err != nil {
			t.Fatal(err)
		}
		if err := e.Cancel(t.Context(), "s", byAnn); !errors.Is(err, errOops) {
			t.Errorf("Cancel with a failing store = %v, want its error", err)
		}
		if err := e.Cancel(t.Context(), "s", byAnn); err != nil {
			t.Errorf("Cancel = %v, want nil", err)
		}
		w.engine.Wake()
		w.end("s", saga.Compensated)
		w.noted("a/undo")
	})
}

func TestAnEngineWithoutSQLGivesNilTransactions(t *testing.T) {
	w := newWorld(t)
	d := saga.Must(saga.New("x", 1, saga.Local("a", func(_ context.Context, tx *sql.Tx, _ saga.Attempt, _ *data) error {
		if tx != nil {
			t.Errorf("tx = %v, want nil", tx)
		}
		return nil
	})))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		w.end("s", saga.Completed)
	})
}

// A verb makes the next revision in the moment before the engine writes its own, which leaves the
// saga at the same step: the engine must not take the one for the other.
func TestAVerbIsNotTakenForTheEnginesOwnWrite(t *testing.T) {
	for name, wait := range map[string]func(w *world) saga.Step[data]{
		"Await": func(*world) saga.Step[data] { return saga.Await("b", judge) },
		"Sleep": func(*world) saga.Step[data] {
			return saga.Sleep("b", func(*data) time.Duration { return 1000 * time.Hour })
		},
		"Send": func(w *world) saga.Step[data] {
			newPost(w)
			return saga.Send("b", command("do"), judge, saga.NoUndo[data]())
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			cut := &cutStore{Store: w.store}
			d := saga.Must(saga.New("x", 1, w.step("a"), wait(w), saga.Call("c", w.fn(), saga.NoUndo[data]())))
			w.defs = []saga.Registered{d}
			w.store = cut
			w.run(func() {
				operator := w.newEngine(cut.Store)
				cancelled := false
				cut.set(func(call string) error {
					if in, err := operator.Get(t.Context(), "s"); err == nil && in.Step == "b" && !cancelled && (call == "Save" || call == "SaveTx") {
						cancelled = true
						return operator.Cancel(t.Context(), "s", byAnn)
					}
					return nil
				}, nil)
				w.start(d, "s", data{})
				w.end("s", saga.Compensated)
				w.noted("a/do", "a/undo")
			})
		})
	}
}

func TestASkippedStepIsNotTakenForTheNext(t *testing.T) {
	// The attempt at the step that an operator skips ends after it.
	w := newWorld(t)
	w.cfg.StuckAfter = 1
	goOn, attempts := make(chan struct{}), 0
	d := saga.Must(saga.New("x", 1, saga.Call("a", func(context.Context, saga.Attempt, *data) error {
		if attempts++; attempts == 1 {
			return errOops
		}
		<-goOn
		return nil
	}, saga.NoUndo[data]()), saga.Call("b", w.fn(), saga.NoUndo[data]())))
	w.defs = []saga.Registered{d}
	synctest.Test(t, func(t *testing.T) {
		w.T = t
		goOn = make(chan struct{})
		w.engine = w.newEngine(w.store)
		stop := w.goRun(w.engine)
		w.start(d, "s", data{})
		time.Sleep(time.Second)
		if err := w.engine.Skip(t.Context(), "s", byAnn); err != nil {
			t.Errorf("Skip = %v", err)
		}
		close(goOn)
		w.end("s", saga.Completed)
		w.noted("b/do")
		w.same("history", w.history("s"), []string{"a/do failed oops", "a/skip accepted tired of it", "b/do done"})
		stop()
	})
}

func TestASagaThatEndsByASkipIsNotDueAgain(t *testing.T) {
	w := newWorld(t)
	cut := &cutStore{Store: w.store}
	w.store = cut
	d := saga.Must(saga.New("y", 1, saga.Pivot(saga.Call("a", w.fn())), saga.Call("b", w.fn(saga.Refuse("no")))))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		if in := w.end("s", saga.Running); !in.Parked {
			t.Fatalf("the saga is %+v, want it parked", in)
		}
		if err := w.engine.Skip(t.Context(), "s", byAnn); err != nil {
			t.Fatalf("Skip = %v", err)
		}
		time.Sleep(time.Minute)
		if in := w.get("s"); in.Status != saga.Completed || !in.WakeAt.IsZero() || in.Owner != "" {
			t.Errorf("the saga is %+v, want it completed, owned by nobody and never due", in)
		}
	})
	if n := cut.countOf("Leave"); n != 1 {
		t.Errorf("the engine has left %d times, want once", n)
	}
}

func TestWithoutATransactionNoAttemptIsCounted(t *testing.T) {
	w := newWorld(t)
	cut := &cutStore{Store: w.store}
	w.store = cut
	d := saga.Must(saga.New("x", 1, w.step("a"), saga.Local("b", w.localFn(), saga.Retry[data](saga.Backoff{Attempts: 2}))))
	w.defs = []saga.Registered{d}
	w.run(func() {
		cut.set(failing("SaveTx", 5), nil)
		w.start(d, "s", data{})
		w.end("s", saga.Completed)
		w.noted("a/do", "b/do")
	})
}
