// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagamem"
)

func TestStepsRunInOrderAndTheirDataIsKept(t *testing.T) {
	w := newWorld(t)
	d := saga.Must(saga.New("x", 1, w.step("a"), saga.Local("b", w.localFn(), saga.NoUndo[data]()), saga.Pivot(saga.Call("c", w.fn())), saga.Call("d", w.fn())))
	w.defs = []saga.Registered{d}
	w.run(func() {
		begin := time.Now()
		w.start(d, "s", data{Log: []string{"start"}})
		in := w.end("s", saga.Completed)
		if took := time.Since(begin); took != 0 {
			t.Errorf("four steps took %v of virtual time, want them back to back", took)
		}
		w.noted("a/do", "b/do", "c/do", "d/do")
		v, err := d.Data(in)
		if err != nil {
			t.Errorf("Data = %v", err)
		}
		w.same("data", v.Log, []string{"start", "a/do", "b/do", "c/do", "d/do"})
		w.same("history", w.history("s"), []string{"a/do done", "b/do done", "c/do done", "d/do done"})
		if in.Owner != "" || in.Step != "" || in.Stuck != "" || !in.WakeAt.IsZero() {
			t.Errorf("the completed saga is %+v", in)
		}
	})
}

func TestARefusalCompensatesInReverse(t *testing.T) {
	for _, c := range []struct {
		what  string
		err   error
		last  func(w *world, err error) saga.Step[data]
		calls []string
	}{
		{"the refused call is undone too: a duplicate of its request may still come", saga.Refuse("no"),
			func(w *world, err error) saga.Step[data] { return w.step("c", err) },
			[]string{"a/do", "n/do", "b/do", "c/do", "c/undo", "b/undo", "a/undo"}},
		{"a refused local step was rolled back", saga.Refuse("no"),
			func(w *world, err error) saga.Step[data] {
				return saga.Local("c", w.localFn(err), saga.UndoLocal(w.localFn()))
			},
			[]string{"a/do", "n/do", "b/do", "c/do", "b/undo", "a/undo"}},
		{"a refused pivot has nothing to undo itself", saga.Refuse("no"),
			func(w *world, err error) saga.Step[data] { return saga.Pivot(saga.Call("c", w.fn(err))) },
			[]string{"a/do", "n/do", "b/do", "c/do", "b/undo", "a/undo"}},
		{"a wrapped refusal", fmt.Errorf("bank: %w", saga.Refuse("no")),
			func(w *world, err error) saga.Step[data] { return w.step("c", err) },
			[]string{"a/do", "n/do", "b/do", "c/do", "c/undo", "b/undo", "a/undo"}},
		{"a permanent failure", fault.Permanent(errors.New("no")),
			func(w *world, err error) saga.Step[data] { return w.step("c", err) },
			[]string{"a/do", "n/do", "b/do", "c/do", "c/undo", "b/undo", "a/undo"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newWorld(t)
			d := saga.Must(saga.New("x", 1,
				w.step("a"), saga.Call("n", w.fn(), saga.NoUndo[data]()), saga.Call("b", w.fn(), saga.UndoLocal(w.localFn())), c.last(w, c.err)))
			w.defs = []saga.Registered{d}
			w.run(func() {
				w.start(d, "s", data{})
				in := w.end("s", saga.Compensated)
				w.noted(c.calls...)
				if in.Reason != "no" || in.Cause != saga.CauseRefused {
					t.Errorf("cause = %v, reason = %q, want refused, no", in.Cause, in.Reason)
				}
				if h := w.history("s"); !slices.Contains(h, "/compensate accepted no") || !slices.Contains(h, "c/do refused "+c.err.Error()) {
					t.Errorf("history is %q", h)
				}
			})
		})
	}
}

func TestAFailureIsRetriedWithTheSameKey(t *testing.T) {
	w := newWorld(t)
	var keys []string
	var numbers []int
	d := saga.Must(saga.New("x", 1, saga.Call("a", func(_ context.Context, a saga.Attempt, d *data) error {
		keys, numbers = append(keys, a.Key()), append(numbers, a.Number)
		d.Log = append(d.Log, "touched")
		if len(keys) < 4 {
			return errOops
		}
		return nil
	}, saga.NoUndo[data]())))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		in := w.end("s", saga.Completed)
		w.same("keys", keys, slices.Repeat([]string{"s/a/do"}, 4))
		if !slices.Equal(numbers, []int{1, 2, 3, 4}) {
			t.Errorf("numbers = %v, want 1 to 4", numbers)
		}
		if v, _ := d.Data(in); len(v.Log) != 1 {
			t.Errorf("data = %v, want that of the last attempt only", v.Log)
		}
		w.same("history", w.history("s"), []string{"a/do failed oops", "a/do failed oops", "a/do failed oops", "a/do done"})
		if in.Reason != "" || in.Attempt != 0 {
			t.Errorf("reason = %q, attempt = %d, want none", in.Reason, in.Attempt)
		}
	})
}

func TestTheDelayIsJitteredCappedAndAtLeastWhatTheErrorAsks(t *testing.T) {
	w := newWorld(t)
	var at []time.Time
	d := saga.Must(saga.New("x", 1, saga.Call("a", func(context.Context, saga.Attempt, *data) error {
		at = append(at, time.Now())
		switch n := len(at); {
		case n == 1:
			return fault.RetryAfter(errOops, time.Hour)
		case n == 2:
			return &fault.Rejection{By: "breaker", RetryAfter: time.Minute, Err: errOops}
		case n < 40:
			return errOops
		}
		return nil
	}, saga.NoUndo[data](), saga.Retry[data](saga.Backoff{Base: time.Second, Max: 8 * time.Second}))))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		w.end("s", saga.Completed)
		if got := at[1].Sub(at[0]); got < time.Hour || got > time.Hour+time.Second {
			t.Errorf("after RetryAfter the delay was %v, want 1h", got)
		}
		if got := at[2].Sub(at[1]); got < time.Minute || got > time.Minute+time.Second {
			t.Errorf("after a Rejection the delay was %v, want 1m", got)
		}
		var sum time.Duration
		for i := 3; i < len(at); i++ {
			d := at[i].Sub(at[i-1])
			if sum += d; d > 8*time.Second+10*time.Millisecond {
				t.Errorf("delay %d was %v, want at most 8s", i, d)
			}
		}
		if mean := sum / time.Duration(len(at)-3); mean < time.Second || mean > 7*time.Second {
			t.Errorf("the mean delay was %v, want about 4s", mean)
		}
	})
}

func TestAttemptsAreLimitedBeforeThePivot(t *testing.T) {
	w := newWorld(t)
	d := saga.Must(saga.New("x", 1, w.step("a"),
		saga.Call("b", w.fn(always(errOops)...), saga.Undo(w.fn()), saga.Retry[data](saga.Backoff{Attempts: 3}))))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		in := w.end("s", saga.Compensated)
		w.noted("a/do", "b/do", "b/do", "b/do", "b/undo", "a/undo")
		if want := "gave up after 3 attempts: oops"; in.Reason != want || in.Cause != saga.CauseFailed {
			t.Errorf("reason = %q, want %q", in.Reason, want)
		}
	})
}

func TestARefusalBehindThePivotParksTheSaga(t *testing.T) {
	w := newWorld(t)
	var stuck []saga.Stuck
	w.cfg.Hooks.Stuck = func(s saga.Stuck) { stuck = append(stuck, s) }
	no := saga.Refuse("no")
	d := saga.Must(saga.New("x", 1, saga.Pivot(saga.Call("a", w.fn())), saga.Call("b", w.fn(no, no)), saga.Call("c", w.fn(no))))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		in := w.end("s", saga.Running)
		if !in.Parked || in.Stuck != "refused where there is no way back: no" || in.Step != "b" {
			t.Errorf("the saga is %+v, want it parked at b", in)
		}
		if len(stuck) != 1 || stuck[0].Saga != "s" || stuck[0].Step != "b" || !stuck[0].Parked {
			t.Errorf("hook Stuck got %+v, want one call", stuck)
		}
		list, err := w.engine.List(t.Context(), saga.Filter{Stuck: true})
		if err != nil || len(list) != 1 || list[0].ID != "s" {
			t.Errorf("List of the stuck = %v, %v, want s", list, err)
		}
		if err := w.engine.Cancel(t.Context(), "s", byAnn); !errors.Is(err, saga.ErrPastPivot) {
			t.Errorf("Cancel = %v, want ErrPastPivot", err)
		}
		time.Sleep(time.Hour)
		w.noted("a/do", "b/do")

		if err := w.engine.Retry(t.Context(), "s", saga.By{Who: "ann", Why: "bank is back"}); err != nil {
			t.Errorf("Retry = %v, want nil", err)
		}
		synctest.Wait()
		w.noted("b/do")
		if err := w.engine.Skip(t.Context(), "s", saga.By{Who: "ann", Why: "done by hand"}); err != nil {
			t.Errorf("Skip = %v, want nil", err)
		}
		synctest.Wait()
		w.noted("c/do")
		if err := w.engine.Skip(t.Context(), "s", byAnn); err != nil {
			t.Errorf("Skip = %v, want nil", err)
		}
		in = w.end("s", saga.Completed)
		if in.Stuck != "" || in.Parked {
			t.Errorf("the saga is %+v, want it no longer stuck", in)
		}
		w.same("history", w.history("s"), []string{
			"a/do done", "b/do refused refused: no", "b/retry accepted bank is back", "b/do refused refused: no",
			"b/skip accepted done by hand", "c/do refused refused: no", "c/skip accepted tired of it",
		})
		entries, err := w.engine.History(t.Context(), "s")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if verb := e.Op == "retry" || e.Op == "skip"; verb != (e.Who == "ann") {
				t.Errorf("the entry %+v does not say who", e)
			}
		}
		for verb, fn := range map[string]func(context.Context, string, saga.By) error{"Retry": w.engine.Retry, "Skip": w.engine.Skip} {
			if err := fn(t.Context(), "s", byAnn); !errors.Is(err, saga.ErrNotStuck) {
				t.Errorf("%s of a saga that is not stuck = %v, want ErrNotStuck", verb, err)
			}
			if err := fn(t.Context(), "unknown", byAnn); !errors.Is(err, saga.ErrNotFound) {
				t.Errorf("%s of an unknown saga = %v, want ErrNotFound", verb, err)
			}
		}
	})
}

func TestVerbsWantToKnowWhoAndWhy(t *testing.T) {
	w := newWorld(t)
	d := saga.Must(saga.New("x", 1, saga.Await("event", judge)))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		synctest.Wait()
		for _, c := range []struct {
			by   saga.By
			want string
		}{
			{saga.By{Why: "tired"}, "By.Who is empty, want who decides"},
			{saga.By{Who: " ", Why: "tired"}, "By.Who is empty, want who decides"},
			{saga.By{Who: "ann"}, "By.Why is empty, want the reason"},
			{saga.By{Who: "ann", Why: "\n"}, "By.Why is empty, want the reason"},
			{saga.By{Who: strings.Repeat("a", 201), Why: "tired"}, "By.Who has 201 bytes, want at most 200"},
			{saga.By{Who: "a\x00", Why: "tired"}, "By.Who "},
		} {
			for verb, fn := range map[string]func(context.Context, string, saga.By) error{"cancel": w.engine.Cancel, "retry": w.engine.Retry, "skip": w.engine.Skip} {
				if err := fn(t.Context(), "s", c.by); err == nil || !strings.HasPrefix(err.Error(), "saga s: "+verb+": "+c.want) {
					t.Errorf("%s by %+v = %v, want %s", verb, c.by, err, c.want)
				}
			}
		}
		if got := w.history("s"); slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "accepted") }) {
			t.Errorf("the history is %q, want nothing of what was refused", got)
		}
		if err := w.engine.Cancel(t.Context(), "s", byAnn); err != nil {
			t.Fatal(err)
		}
		w.end("s", saga.Compensated)
	})
}

func TestASagaIsStuckAfterItsAttemptsAndRetryCountsAfresh(t *testing.T) {
	w := newWorld(t)
	w.cfg.StuckAfter = 3
	var numbers []int
	w.defs = []saga.Registered{saga.Must(saga.New("x", 1, saga.Call("a", func(_ context.Context, a saga.Attempt, _ *data) error {
		numbers = append(numbers, a.Number)
		return errOops
	}, saga.Undo(w.fn()))))}
	verbs := []func() error{
		func() error { return w.engine.Retry(w.Context(), "s", byAnn) },
		func() error { return w.engine.Cancel(w.Context(), "s", byAnn) },
	}
	w.cfg.Hooks.Stuck = func(saga.Stuck) {
		w.note(fmt.Sprint(numbers))
		if err := verbs[0](); err != nil {
			t.Errorf("verb = %v", err)
		}
		verbs = verbs[1:]
	}
	w.run(func() {
		w.start(w.defs[0].(*saga.Definition[data]), "s", data{})
		w.end("s", saga.Compensated)
		w.noted("[1 2 3]", "[1 2 3 1 2 3]", "a/undo")
	})
}

func TestAnUndoIsNeverGivenUp(t *testing.T) {
	w := newWorld(t)
	stuck := 0
	w.cfg.Hooks.Stuck = func(s saga.Stuck) {
		if stuck++; s.Parked {
			t.Errorf("hook Stuck says parked")
		}
	}
	w.cfg.StuckAfter = 5
	d := saga.Must(saga.New("x", 1,
		saga.Call("a", w.fn(saga.Refuse("no")), saga.Undo(w.fn(slices.Repeat([]error{errOops}, 50)...)), saga.UndoRetry[data](saga.Backoff{Max: time.Second}))))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		for w.get("s").Stuck == "" {
			time.Sleep(time.Millisecond)
		}
		if in := w.get("s"); in.Parked || in.Attempt < 5 || in.Status != saga.Compensating || in.Stuck != "oops" || in.Reason != "no" {
			t.Errorf("the saga is %+v, want it stuck after 5 attempts, and not parked", in)
		}
		in := w.end("s", saga.Compensated)
		if stuck != 1 || in.Stuck != "" {
			t.Errorf("hook Stuck was called %d times, stuck = %q; want once, and no longer stuck", stuck, in.Stuck)
		}
	})
}

func TestARefusedUndoParksTheSaga(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{saga.Refuse("too late"), "refused where there is no way back: too late"},
		{fault.Permanent(errOops), "refused where there is no way back: oops"},
		{fault.Judged(errOops, fault.Verdict{Unknown: true}), "failed for good where there is no way back: oops"},
	} {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, saga.Call("a", w.fn(saga.Refuse("no")), saga.Undo(w.fn(c.err)))))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			if in := w.end("s", saga.Compensating); !in.Parked || in.Stuck != c.want {
				t.Errorf("stuck = %q, want %q", in.Stuck, c.want)
			}
			if err := w.engine.Cancel(t.Context(), "s", byAnn); err != nil {
				t.Errorf("Cancel of a saga that compensates = %v, want nil", err)
			}
			if err := w.engine.Skip(t.Context(), "s", byAnn); err != nil {
				t.Errorf("Skip = %v, want nil", err)
			}
			w.end("s", saga.Compensated)
		})
	}
}

func TestAPanicOrGoexitIsAFailedAttempt(t *testing.T) {
	w := newWorld(t)
	n := 0
	d := saga.Must(saga.New("x", 1, saga.Call("a", func(context.Context, saga.Attempt, *data) error {
		switch n++; n {
		case 1:
			panic("boom")
		case 2:
			runtime.Goexit()
		}
		return nil
	}, saga.NoUndo[data]()), saga.Local("b", func(context.Context, *sql.Tx, saga.Attempt, *data) error {
		switch n++; n {
		case 4:
			panic(errOops)
		case 5:
			runtime.Goexit()
		}
		return nil
	})))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		w.end("s", saga.Completed)
		w.same("history", w.history("s"), []string{
			"a/do failed panic: boom", "a/do failed the function ended its goroutine", "a/do done",
			"b/do failed panic: oops", "b/do failed the function ended its goroutine", "b/do done",
		})
	})
}

func TestTheTimeoutEndsAnAttempt(t *testing.T) {
	for _, c := range []struct {
		opts []saga.Option[data]
		want time.Duration
	}{
		{[]saga.Option[data]{saga.NoUndo[data](), saga.Timeout[data](time.Minute)}, time.Minute},
		{[]saga.Option[data]{saga.NoUndo[data]()}, 7 * time.Second},
	} {
		w := newWorld(t)
		w.cfg.Timeout = 7 * time.Second
		n := 0
		d := saga.Must(saga.New("x", 1, saga.Call("a", func(ctx context.Context, _ saga.Attempt, _ *data) error {
			if n++; n > 1 {
				return nil
			}
			begin := time.Now()
			<-ctx.Done()
			if got := time.Since(begin); got != c.want {
				t.Errorf("the attempt's context ended after %v, want %v", got, c.want)
			}
			return ctx.Err()
		}, c.opts...)))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			w.end("s", saga.Completed)
			w.same("history", w.history("s"), []string{"a/do failed context deadline exceeded", "a/do done"})
		})
	}
}

func TestTheDeadlineCompensatesBeforeThePivot(t *testing.T) {
	hang := func(ctx context.Context, _ saga.Attempt, _ *data) error {
		<-ctx.Done()
		return ctx.Err()
	}
	t.Run("during a backoff", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, w.step("a"), saga.Call("b", w.fn(always(fault.RetryAfter(errOops, time.Hour))...), saga.Undo(w.fn())))).Deadline(time.Minute)
		w.defs = []saga.Registered{d}
		w.run(func() {
			begin := time.Now()
			w.start(d, "s", data{})
			in := w.end("s", saga.Compensated)
			if took := time.Since(begin); in.Reason != "deadline passed" || in.Cause != saga.CauseDeadline || took < time.Minute || took > time.Minute+time.Second {
				t.Errorf("compensated after %v because of %q, want 1m, deadline passed", took, in.Reason)
			}
			w.noted("a/do", "b/do", "b/undo", "a/undo")
		})
	})
	t.Run("during an attempt", func(t *testing.T) {
		w := newWorld(t)
		w.cfg.Timeout = time.Hour
		d := saga.Must(saga.New("x", 1, w.step("a"), saga.Call("b", hang, saga.Undo(w.fn())))).Deadline(time.Minute)
		w.defs = []saga.Registered{d}
		w.run(func() {
			begin := time.Now()
			w.start(d, "s", data{})
			w.end("s", saga.Compensated)
			if took := time.Since(begin); took < time.Minute || took > time.Minute+time.Second {
				t.Errorf("compensated after %v, want 1m", took)
			}
			w.noted("a/do", "b/undo", "a/undo")
		})
	})
	t.Run("not behind the pivot, nor in an undo", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, w.step("a"), saga.Pivot(saga.Call("b", w.fn(fault.RetryAfter(errOops, time.Hour)))), saga.Call("c", w.fn(fault.RetryAfter(errOops, time.Hour))))).Deadline(time.Minute)
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			w.end("s", saga.Completed)
		})
	})
	t.Run("a step that ends too late does not begin the pivot", func(t *testing.T) {
		w := newWorld(t)
		w.cfg.Timeout = time.Hour
		slow := func(ctx context.Context, a saga.Attempt, d *data) error {
			time.Sleep(2 * time.Minute) // does not honour its context
			return w.fn()(ctx, a, d)
		}
		d := saga.Must(saga.New("x", 1, saga.Call("a", slow, saga.Undo(w.fn())), saga.Pivot(saga.Call("b", w.fn())))).Deadline(time.Minute)
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			w.end("s", saga.Compensated)
			w.noted("a/do", "a/undo")
		})
	})
}

func TestCancel(t *testing.T) {
	// What decides has been delivered, but not recorded: nobody has acted on it yet.
	t.Run("while a pivot judges what it has waited for", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, w.step("a"), saga.Pivot(saga.Await("b", func(*data, string) error {
			if err := w.engine.Cancel(w.Context(), "s", byAnn); err != nil {
				t.Errorf("Cancel = %v, want nil", err)
			}
			return nil
		})), saga.Call("c", w.fn())))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			w.deliver("s", "b", "go", true)
			w.end("s", saga.Compensated)
			w.noted("a/do", "a/undo")
		})
	})
	t.Run("an attempt in progress finishes, and the pivot does not begin", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, saga.Call("a", func(ctx context.Context, a saga.Attempt, d *data) error {
			if err := w.engine.Cancel(ctx, "s", saga.By{Who: "ann", Why: "changed her mind"}); err != nil {
				t.Errorf("Cancel = %v, want nil", err)
			}
			if err := w.engine.Cancel(ctx, "s", byAnn); err != nil {
				t.Errorf("second Cancel = %v, want nil", err)
			}
			if err := ctx.Err(); err != nil {
				t.Errorf("the attempt's context ended: %v", err)
			}
			return w.fn()(ctx, a, d)
		}, saga.Undo(func(_ context.Context, _ saga.Attempt, d *data) error {
			w.note(fmt.Sprint("undo with ", d.Log))
			return nil
		})), saga.Pivot(saga.Call("b", w.fn()))))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			in := w.end("s", saga.Compensated)
			w.noted("a/do", "undo with [a/do]")
			if in.Reason != "changed her mind" || in.Cause != saga.CauseCancelled {
				t.Errorf("reason = %q", in.Reason)
			}
			w.same("history", w.history("s"), []string{"a/cancel accepted changed her mind", "a/do done",
				"/compensate accepted changed her mind", "a/undo done"})
			if err := w.engine.Cancel(t.Context(), "s", byAnn); err != nil {
				t.Errorf("Cancel of a compensated saga = %v, want nil", err)
			}
		})
	})
	t.Run("a local step in progress is rolled back", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, w.step("a"), saga.Pivot(saga.Local("b", func(ctx context.Context, _ *sql.Tx, a saga.Attempt, d *data) error {
			return w.engine.Cancel(ctx, "s", byAnn)
		})), saga.Call("c", w.fn())))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			w.end("s", saga.Compensated)
			w.noted("a/do", "a/undo")
		})
	})
	t.Run("a backoff ends at once", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, saga.Call("a", w.fn(always(fault.RetryAfter(errOops, time.Hour))...), saga.Undo(w.fn()))))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			synctest.Wait()
			begin := time.Now()
			if err := w.engine.Cancel(t.Context(), "s", byAnn); err != nil {
				t.Errorf("Cancel = %v, want nil", err)
			}
			in := w.end("s", saga.Compensated)
			if took := time.Since(begin); took != 0 || in.Reason != byAnn.Why {
				t.Errorf("compensated after %v because of %q, want at once", took, in.Reason)
			}
			w.noted("a/do", "a/undo")
		})
	})
	t.Run("a pivot that has begun cannot be stopped", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, w.step("a"), saga.Pivot(saga.Call("b", func(ctx context.Context, a saga.Attempt, d *data) error {
			if err := w.engine.Cancel(ctx, "s", byAnn); !errors.Is(err, saga.ErrPastPivot) {
				t.Errorf("Cancel = %v, want ErrPastPivot", err)
			}
			return nil
		}))))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			w.end("s", saga.Completed)
			if err := w.engine.Cancel(t.Context(), "s", byAnn); !errors.Is(err, saga.ErrPastPivot) {
				t.Errorf("Cancel of a completed saga = %v, want ErrPastPivot", err)
			}
			if err := w.engine.Cancel(t.Context(), "unknown", byAnn); !errors.Is(err, saga.ErrNotFound) {
				t.Errorf("Cancel of an unknown saga = %v, want ErrNotFound", err)
			}
		})
	})
	t.Run("a refused attempt of a cancelled saga compensates once", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, saga.Call("a", func(ctx context.Context, a saga.Attempt, d *data) error {
			_ = w.engine.Cancel(ctx, "s", byAnn)
			return saga.Refuse("no")
		}, saga.Undo(w.fn()))))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			w.end("s", saga.Compensated)
			w.noted("a/undo")
		})
	})
}

func TestOnEnd(t *testing.T) {
	for _, c := range []struct {
		what string
		last func(w *world) saga.Step[data]
		want saga.Status
	}{
		{"behind a call", func(w *world) saga.Step[data] { return w.step("a") }, saga.Completed},
		{"behind a local step", func(w *world) saga.Step[data] { return saga.Local("a", w.localFn()) }, saga.Completed},
		{"behind an undo", func(w *world) saga.Step[data] { return w.step("a", saga.Refuse("no")) }, saga.Compensated},
		{"with nothing to undo", func(w *world) saga.Step[data] { return saga.Local("a", w.localFn(saga.Refuse("no"))) }, saga.Compensated},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newWorld(t)
			var ends []saga.End
			d := saga.Must(saga.New("x", 1, c.last(w))).OnEnd(func(_ context.Context, _ *sql.Tx, end saga.End, d *data) error {
				d.Log = append(d.Log, "ended")
				switch ends = append(ends, end); len(ends) {
				case 1:
					return errOops
				case 2:
					return saga.Refuse("nonsense")
				case 3:
					panic("boom")
				}
				return nil
			})
			w.defs = []saga.Registered{d}
			ended := 0
			w.cfg.Hooks.Ended = func(e saga.Ended) {
				if ended++; e.End != ends[0] || e.Name != "x" || e.Version != 1 {
					t.Errorf("hook Ended got %+v", e)
				}
			}
			w.run(func() {
				w.start(d, "s", data{})
				in := w.end("s", c.want)
				if len(ends) != 4 || ended != 1 {
					t.Errorf("OnEnd was called %d times and the hook %d times, want 4 and 1; history %q", len(ends), ended, w.history("s"))
				}
				want := saga.End{Saga: "s", Status: c.want}
				if c.want == saga.Compensated {
					want.Cause, want.Reason = saga.CauseRefused, "no"
				}
				for _, e := range ends {
					if e != want {
						t.Errorf("OnEnd got %+v, want %+v", e, want)
					}
				}
				if v, _ := d.Data(in); !slices.Contains(v.Log, "ended") || strings.Count(strings.Join(v.Log, " "), "ended") != 1 {
					t.Errorf("data = %v, want what the successful call left", v.Log)
				}
			})
		})
	}
}

func TestOnEndDoesNotRepeatTheLastCall(t *testing.T) {
	w := newWorld(t)
	n := 0
	d := saga.Must(saga.New("x", 1, w.step("a"))).OnEnd(func(context.Context, *sql.Tx, saga.End, *data) error {
		if n++; n < 3 {
			return errOops
		}
		return nil
	})
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		w.end("s", saga.Completed)
		w.noted("a/do")
		w.same("history", w.history("s"), []string{"a/do done", "/end failed oops", "/end failed oops", "/end done"})
	})
}

func TestStart(t *testing.T) {
	w := newWorld(t)
	d := saga.Must(saga.New("x", 1, w.step("a")))
	other := saga.Must(saga.New("y", 1, w.step("a")))
	w.defs = []saga.Registered{d, other}
	unregistered := saga.Must(saga.New("x", 2, w.step("a")))
	w.run(func() {
		w.start(d, "s", data{Log: []string{"1"}})
		w.start(d, "s", data{Log: []string{"1"}})
		w.end("s", saga.Completed)
		w.start(d, "s", data{Log: []string{"1"}})
		w.noted("a/do")
		for what, c := range map[string]struct {
			def  *saga.Definition[data]
			id   string
			v    data
			want string
		}{
			"other data":                 {d, "s", data{}, "saga s: start: saga: already started with another input"},
			"another definition":         {other, "s", data{Log: []string{"1"}}, "saga s: start: saga: already started with another input"},
			"an empty ID":                {d, "", data{}, "saga: id has 0 bytes, want 1 to 200"},
			"a long ID":                  {d, strings.Repeat("x", 201), data{}, "saga: id has 201 bytes, want 1 to 200"},
			"a strange ID":               {d, "a\x00b", data{}, `saga: id "a\x00b" has a control character`},
			"an unregistered definition": {unregistered, "u", data{}, "saga u: start: definition x version 2 is not registered with the engine"},
		} {
			if err := saga.Start(w.Context(), w.engine, nil, c.def, c.id, c.v); err == nil || err.Error() != c.want {
				t.Errorf("Start with %s = %v, want %q", what, err, c.want)
			}
		}
		if err := saga.Start(w.Context(), w.engine, nil, d, "s", data{}); !errors.Is(err, saga.ErrConflict) {
			t.Errorf("Start with other data = %v, want ErrConflict", err)
		}
	})
}

func TestPollingFindsWhatNobodyAnnounced(t *testing.T) {
	w := newWorld(t)
	d := saga.Must(saga.New("x", 1, w.step("a")))
	w.defs = []saga.Registered{d}
	w.run(func() {
		synctest.Wait()
		begin := time.Now()
		if err := saga.Start(w.Context(), w.engine, nil, d, "s", data{}); err != nil {
			t.Fatalf("Start = %v", err)
		}
		w.end("s", saga.Completed)
		if took := time.Since(begin); took > 1700*time.Millisecond {
			t.Errorf("without Wake the saga ended after %v, want within the poll interval", took)
		}
	})
}

func TestAnIdleEngineAsksAtMostOnceASecond(t *testing.T) {
	w := newWorld(t)
	cut := &cutStore{Store: w.store}
	w.store = cut
	w.run(func() {
		synctest.Wait()
		before := cut.count()
		time.Sleep(10 * time.Minute)
		if n := cut.count() - before; n > 600 || n < 300 {
			t.Errorf("%d calls of the store in 10 idle minutes, want at most 600", n)
		}
	})
}

func TestConcurrencyIsBounded(t *testing.T) {
	w := newWorld(t)
	w.cfg.Concurrency = 3
	active, most := 0, 0
	d := saga.Must(saga.New("x", 1, saga.Call("a", func(context.Context, saga.Attempt, *data) error {
		w.mu.Lock()
		active++
		most = max(most, active)
		w.mu.Unlock()
		time.Sleep(time.Second)
		w.mu.Lock()
		active--
		w.mu.Unlock()
		return nil
	}, saga.NoUndo[data]())))
	w.defs = []saga.Registered{d}
	w.run(func() {
		begin := time.Now()
		for i := range 12 {
			w.start(d, fmt.Sprint("s", i), data{})
		}
		for i := range 12 {
			w.end(fmt.Sprint("s", i), saga.Completed)
		}
		took := time.Since(begin)
		w.mu.Lock()
		defer w.mu.Unlock()
		if most != 3 || took != 4*time.Second {
			t.Errorf("%d sagas at once took %v, want 3 at once and 4s", most, took)
		}
		synctest.Wait()
		if st := w.engine.Stats(); st.Completed != 12 || st.Attempts != 12 || st.Claimed != 12 || st.Active != 0 {
			t.Errorf("Stats = %+v, want 12 completed", st)
		}
	})
}

func TestHooksSeeEveryAttempt(t *testing.T) {
	w := newWorld(t)
	type key struct{}
	w.cfg.Hooks.StepStart = func(ctx context.Context, s saga.StepStart) context.Context {
		w.note(fmt.Sprintf("start %s/%s %d", s.Step, s.Op, s.Number))
		return context.WithValue(ctx, key{}, s.Attempt)
	}
	w.cfg.Hooks.StepEnd = func(ctx context.Context, s saga.StepEnd) {
		if ctx.Value(key{}) != s.Attempt {
			t.Errorf("StepEnd got another context than StepStart returned")
		}
		w.note(fmt.Sprintf("end %s/%s %d %s %v", s.Step, s.Op, s.Number, s.Outcome, s.Err))
		w.engine.Stats() // hooks may call back
	}
	seen := func(ctx context.Context, a saga.Attempt, _ *data) error {
		if ctx.Value(key{}) != a {
			t.Errorf("the step got another context than StepStart returned")
		}
		return nil
	}
	d := saga.Must(saga.New("x", 1, saga.Call("a", seen, saga.Undo(seen)),
		saga.Local("b", func(context.Context, *sql.Tx, saga.Attempt, *data) error { return saga.Refuse("no") })))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		w.end("s", saga.Compensated)
		synctest.Wait()
		w.noted("start a/do 1", "end a/do 1 done <nil>", "start b/do 1", "end b/do 1 refused refused: no", "start a/undo 1", "end a/undo 1 done <nil>")
	})
}

func TestDrain(t *testing.T) {
	t.Run("a step in progress finishes, and no other begins", func(t *testing.T) {
		w := newWorld(t)
		slow := func(ctx context.Context, a saga.Attempt, d *data) error {
			time.Sleep(5 * time.Second)
			w.note(fmt.Sprint(a.Step, " ", ctx.Err()))
			return nil
		}
		d := saga.Must(saga.New("x", 1, saga.Call("a", slow, saga.NoUndo[data]()), saga.Call("b", slow, saga.NoUndo[data]())))
		w.defs = []saga.Registered{d}
		synctestRun(t, w, func(stop func()) {
			w.start(d, "s", data{})
			time.Sleep(time.Second)
			begin := time.Now()
			stop()
			if took := time.Since(begin); took != 4*time.Second {
				t.Errorf("Run ended after %v, want 4s", took)
			}
			w.noted("a <nil>")
			if in := w.get("s"); in.Step != "b" || in.Owner != "" {
				t.Errorf("the saga is %+v, want it free at b", in)
			}
			w.engine = w.newEngine(w.store)
			stop = w.goRun(w.engine)
			w.end("s", saga.Completed)
			w.noted("b <nil>")
			stop()
		})
	})
	t.Run("a step that takes too long is cancelled and left", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, saga.Call("a", func(ctx context.Context, _ saga.Attempt, _ *data) error {
			<-ctx.Done()
			return ctx.Err()
		}, saga.NoUndo[data](), saga.Timeout[data](time.Hour))))
		w.defs = []saga.Registered{d}
		var begin time.Time
		synctestRun(t, w, func(stop func()) {
			w.start(d, "s", data{})
			synctest.Wait()
			begin = time.Now()
			stop()
			if took := time.Since(begin); took != 10*time.Second {
				t.Errorf("Run ended after %v, want 10s", took)
			}
			in := w.get("s")
			if in.Owner != "" || in.Attempt != 0 || in.Status != saga.Running || in.WakeAt.IsZero() {
				t.Errorf("the saga is %+v, want it free, and the attempt not counted", in)
			}
			if h := w.history("s"); len(h) != 0 {
				t.Errorf("history is %q, want nothing", h)
			}
		})
	})
	t.Run("so are steps in parallel", func(t *testing.T) {
		w := newWorld(t)
		hang := func(ctx context.Context, _ saga.Attempt, _ *data) error {
			<-ctx.Done()
			return ctx.Err()
		}
		d := saga.Must(saga.New("x", 1, saga.Parallel(saga.Call("a", hang, saga.NoUndo[data]()), saga.Call("b", hang, saga.NoUndo[data](), saga.Timeout[data](time.Hour)))))
		w.defs = []saga.Registered{d}
		w.cfg.Timeout = time.Hour
		synctestRun(t, w, func(stop func()) {
			w.start(d, "s", data{})
			synctest.Wait()
			stop()
			if in, h := w.get("s"), w.history("s"); in.Owner != "" || in.Attempt != 0 || len(h) != 0 {
				t.Errorf("the saga is %+v with history %q, want it free, and the attempts not counted", in, h)
			}
		})
	})
	t.Run("so is a local one, and its transaction", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, saga.Local("a", func(ctx context.Context, _ *sql.Tx, _ saga.Attempt, _ *data) error {
			<-ctx.Done()
			return ctx.Err()
		}, saga.Timeout[data](time.Hour))))
		w.defs = []saga.Registered{d}
		synctestRun(t, w, func(stop func()) {
			w.start(d, "s", data{})
			synctest.Wait()
			stop()
			if in, h := w.get("s"), w.history("s"); in.Owner != "" || in.Attempt != 0 || len(h) != 0 {
				t.Errorf("the saga is %+v with history %q, want it free, and the attempt not counted", in, h)
			}
		})
	})
	t.Run("the store is not reachable", func(t *testing.T) {
		w := newWorld(t)
		cut := &cutStore{Store: w.store}
		w.store = cut
		d := saga.Must(saga.New("x", 1, saga.Call("a", func(context.Context, saga.Attempt, *data) error {
			cut.set(func(string) error { return errOops }, nil)
			return nil
		}, saga.NoUndo[data]())))
		w.defs = []saga.Registered{d}
		synctestRun(t, w, func(stop func()) {
			w.start(d, "s", data{})
			synctest.Wait()
			begin := time.Now()
			stop()
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("Run ended after %v, want it to give up soon", took)
			}
		})
	})
	t.Run("before the store answered at all", func(t *testing.T) {
		w := newWorld(t)
		cut := &cutStore{Store: w.store}
		cut.set(func(string) error { return errOops }, nil)
		w.store = cut
		synctestRun(t, w, func(stop func()) {
			time.Sleep(time.Minute)
			stop()
		})
	})
}

// synctestRun is world.run whose function stops the engine itself.
func synctestRun(t *testing.T, w *world, fn func(stop func())) {
	synctest.Test(t, func(t *testing.T) {
		w.T = t
		w.engine = w.newEngine(w.store)
		fn(w.goRun(w.engine))
	})
}

func TestOneRunAtATime(t *testing.T) {
	w := newWorld(t)
	w.run(func() {
		synctest.Wait()
		if err := w.engine.Run(t.Context()); err == nil || err.Error() != "saga: the engine is running already" {
			t.Errorf("second Run = %v, want an error", err)
		}
	})
}

func TestNewEngineRefuses(t *testing.T) {
	d := saga.Must(saga.New("x", 1, saga.Pivot(saga.Call("a", call))))
	st, long := sagamem.New(), strings.Repeat("n", 101)
	for want, fn := range map[string]func() (*saga.Engine, error){
		"saga: store is nil":                                                 func() (*saga.Engine, error) { return saga.NewEngine(nil, saga.Config{}) },
		"saga: definition 1 is nil":                                          func() (*saga.Engine, error) { return saga.NewEngine(st, saga.Config{}, nil) },
		"saga: definition x version 1 is given twice":                        func() (*saga.Engine, error) { return saga.NewEngine(st, saga.Config{}, d, d) },
		"saga: Config.Concurrency is -1, want at least 1":                    func() (*saga.Engine, error) { return saga.NewEngine(st, saga.Config{Concurrency: -1}) },
		"saga: Config.Writers is -1, want at least 1":                        func() (*saga.Engine, error) { return saga.NewEngine(st, saga.Config{Writers: -1}) },
		`saga: Config.Node "a " begins or ends with a space`:                 func() (*saga.Engine, error) { return saga.NewEngine(st, saga.Config{Node: "a "}) },
		"saga: Config.Node \"" + long + "\" has 101 bytes, want at most 100": func() (*saga.Engine, error) { return saga.NewEngine(st, saga.Config{Node: long}) },
		"saga: Config.Lease is 10ms, want at least 1s":                       func() (*saga.Engine, error) { return saga.NewEngine(st, saga.Config{Lease: 10 * time.Millisecond}) },
		"saga: Config.Poll is 1ms, want at least 10ms":                       func() (*saga.Engine, error) { return saga.NewEngine(st, saga.Config{Poll: time.Millisecond}) },
		"saga: Config.Timeout is -1s, want more than 0":                      func() (*saga.Engine, error) { return saga.NewEngine(st, saga.Config{Timeout: -time.Second}) },
		"saga: Config.Backoff is {Base:-1ns Max:30s Attempts:0}, want nothing negative and no Attempts": func() (*saga.Engine, error) {
			return saga.NewEngine(st, saga.Config{Backoff: saga.Backoff{Base: -1}})
		},
	} {
		if e, err := fn(); e != nil || err == nil || err.Error() != want {
			t.Errorf("NewEngine = %v, %v, want %q", e, err, want)
		}
	}
}
