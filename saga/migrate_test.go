// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/saga"
)

func TestMigrate(t *testing.T) {
	type next struct {
		Log  []string
		Note string
	}
	w := newWorld(t)
	var hang chan struct{}
	v1 := saga.Must(saga.New("x", 1, w.step("a"), saga.Call("old", func(ctx context.Context, _ saga.Attempt, _ *data) error {
		select {
		case <-hang:
		case <-ctx.Done():
		}
		return nil
	}, saga.NoUndo[data](), saga.Timeout[data](time.Hour)), w.step("b")))
	note := func(_ context.Context, a saga.Attempt, d *next) error {
		w.note(a.Step + "/" + a.Op + " " + d.Note)
		return nil
	}
	v2 := saga.Must(saga.New("x", 2, saga.Call("a", note, saga.Undo(note)), saga.Call("new", note, saga.Undo(note)), saga.Call("b", note, saga.Undo(note))))
	w.defs = []saga.Registered{v1, v2}
	move := func(_ saga.Instance, old data) (string, next, error) {
		return "new", next{Log: old.Log, Note: "moved"}, nil
	}
	w.run(func() {
		hang = make(chan struct{})
		w.start(v1, "s", data{})
		w.start(v1, "stays", data{})
		synctest.Wait()
		w.notes()
		for _, c := range []struct {
			step string
			want string
		}{{"nowhere", `has no step "nowhere"`}} {
			_, err := saga.Migrate(t.Context(), w.engine, 1, v2, func(saga.Instance, data) (string, next, error) { return c.step, next{}, nil })
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Migrate to step %q = %v", c.step, err)
			}
		}
		n, err := saga.Migrate(t.Context(), w.engine, 1, v2, func(in saga.Instance, old data) (string, next, error) {
			if in.ID == "stays" {
				return "", next{}, saga.ErrSkip
			}
			return move(in, old)
		})
		if n != 1 || err != nil {
			t.Errorf("Migrate = %d, %v, want 1", n, err)
		}
		close(hang) // what the node was doing is not recorded any more
		in := w.end("s", saga.Completed)
		if in.Version != 2 {
			t.Errorf("the version is %d, want 2", in.Version)
		}
		if v, err := v2.Data(in); err != nil || v.Note != "moved" || strings.Join(v.Log, " ") != "a/do" {
			t.Errorf("data = %+v, %v", v, err)
		}
		w.end("stays", saga.Completed)
		// The saga that stays on version 1 runs beside the one that moved.
		calls := slices.DeleteFunc(w.notes(), func(c string) bool { return !strings.HasSuffix(c, " moved") })
		if got := strings.Join(calls, ", "); got != "new/do moved, b/do moved" {
			t.Errorf("calls = %s", got)
		}
		if h := w.history("s"); !strings.Contains(strings.Join(h, "; "), `old/migrate accepted version 1 to 2, step "new"`) {
			t.Errorf("history = %q", h)
		}
		only := newWorld(t, v1)
		if _, err := saga.Migrate(t.Context(), only.newEngine(w.store), 1, v2, move); !errors.Is(err, saga.ErrUnknownDefinition) {
			t.Errorf("Migrate without the new version = %v, want ErrUnknownDefinition", err)
		}
	})
}

func TestMigrateWhatCompensatesAndWhatIsParked(t *testing.T) {
	w := newWorld(t)
	v1 := saga.Must(saga.New("x", 1, saga.Call("a", w.fn(), saga.Undo(w.fn(always(errOops)...))), w.step("b", saga.Refuse("no"))))
	v2 := saga.Must(saga.New("x", 2, w.step("a"), w.step("b")))
	w.defs = []saga.Registered{v1, v2}
	w.run(func() {
		w.start(v1, "s", data{})
		time.Sleep(time.Minute)
		if n, err := saga.Migrate(t.Context(), w.engine, 1, v2, func(in saga.Instance, old data) (string, data, error) { return in.Step, old, nil }); n != 1 || err != nil {
			t.Errorf("Migrate = %d, %v, want 1", n, err)
		}
		if in := w.end("s", saga.Compensated); in.Version != 2 || in.Reason != "no" || in.Cause != saga.CauseRefused {
			t.Errorf("the saga is %+v", in)
		}
	})
}

func TestRetain(t *testing.T) {
	w := newWorld(t)
	w.cfg.Retain = time.Hour
	d := saga.Must(saga.New("x", 1, w.step("a")))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		w.end("s", saga.Completed)
		time.Sleep(50 * time.Minute)
		w.get("s")
		time.Sleep(30 * time.Minute)
		if _, err := w.engine.Get(t.Context(), "s"); !errors.Is(err, saga.ErrNotFound) {
			t.Errorf("Get after the retention = %v, want ErrNotFound", err)
		}
		if n := w.engine.Stats().Pruned; n != 1 {
			t.Errorf("Stats.Pruned = %d, want 1", n)
		}
	})
	w.cfg.Retain = -1
	if _, err := saga.NewEngine(w.store, w.cfg); err == nil || !strings.Contains(err.Error(), "Config.Retain is -1ns") {
		t.Errorf("NewEngine = %v", err)
	}
}

func TestHooksAndStatsOfEveryTurn(t *testing.T) {
	w := newWorld(t)
	var turned []saga.Turned
	w.cfg.Hooks.Compensating = func(h saga.Turned) { turned = append(turned, h) }
	d := saga.Must(saga.New("x", 1, w.step("a"), saga.Await("w", judge)))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		w.waiting("s", "w")
		if c, err := w.engine.Count(t.Context()); err != nil || c.Running != 1 || c.Compensating != 0 || c.Stuck != 0 {
			t.Errorf("Count = %+v, %v, want one running", c, err)
		}
		w.deliver("s", "w", answer{Text: "no"}, true)
		w.end("s", saga.Compensated)
		want := saga.Turned{Saga: "s", Name: "x", Version: 1, Cause: saga.CauseRefused, Reason: "no"}
		if len(turned) != 1 || turned[0] != want {
			t.Errorf("hook Compensating got %+v, want %+v", turned, want)
		}
		if st := w.engine.Stats(); st.Waiting != 1 || st.Compensating != 1 || st.Compensated != 1 || st.Refused != 1 {
			t.Errorf("Stats = %+v", st)
		}
		if c, err := w.engine.Count(t.Context()); err != nil || c != (saga.Counts{}) {
			t.Errorf("Count = %+v, %v, want none", c, err)
		}
	})
}

// TestWhatWaitsCostsNothing counts the calls of the store in an hour in which nothing
// happens, with many sagas that wait and with none.
func TestWhatWaitsCostsNothing(t *testing.T) {
	counts := map[int]int{}
	for _, sagas := range []int{0, 500} {
		w := newWorld(t)
		cut := &cutStore{Store: w.store}
		w.store = cut
		d := saga.Must(saga.New("x", 1, saga.Await("w", judge)))
		w.defs = []saga.Registered{d}
		w.run(func() {
			for i := range sagas {
				w.start(d, fmt.Sprint(i), data{})
			}
			time.Sleep(time.Minute)
			before := cut.count()
			time.Sleep(time.Hour)
			counts[sagas] = cut.count() - before
		})
	}
	if counts[0] > 3600 {
		t.Errorf("an idle engine called the store %d times in an hour, want at most once a second", counts[0])
	}
	if diff := counts[500] - counts[0]; diff > counts[0]/50 || diff < -counts[0]/50 {
		t.Errorf("with 500 sagas that wait it called the store %d times in an hour, without any %d times; want no difference", counts[500], counts[0])
	}
}

// TestTheHeartbeatIsOneWriteHoweverManySagas counts the calls of the store in an hour in which
// one engine has many sagas in its hands and another none.
func TestWhatHasComeDoesNotKeepASagaAwake(t *testing.T) {
	w := newWorld(t)
	d := saga.Must(saga.New("x", 1, saga.Await("a", judge), saga.Await("b", judge)))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		w.deliver("s", "a", answer{OK: true}, true)
		w.waiting("s", "b")
		before := w.engine.Stats().Claimed
		time.Sleep(time.Hour)
		if n := w.engine.Stats().Claimed - before; n > 1 {
			t.Errorf("a saga that waits was claimed %d times in an hour", n)
		}
	})
}

func TestTheHeartbeatIsOneWriteHoweverManySagas(t *testing.T) {
	beats, calls := map[int]int{}, map[int]int{}
	for _, sagas := range []int{0, 100} {
		w := newWorld(t)
		w.cfg.Concurrency = 200
		cut := &cutStore{Store: w.store}
		w.store = cut
		d := saga.Must(saga.New("x", 1, saga.Pivot(saga.Call("long", func(context.Context, saga.Attempt, *data) error {
			time.Sleep(2 * time.Hour)
			return nil
		}, saga.Timeout[data](3*time.Hour)))))
		w.defs = []saga.Registered{d}
		w.run(func() {
			for i := range sagas {
				w.start(d, fmt.Sprint(i), data{})
			}
			time.Sleep(time.Minute)
			if n := w.engine.Stats().Active; n != sagas {
				t.Fatalf("%d sagas are in hand, want %d", n, sagas)
			}
			beatsBefore, callsBefore := cut.countOf("Beat"), cut.count()
			time.Sleep(time.Hour)
			beats[sagas], calls[sagas] = cut.countOf("Beat")-beatsBefore, cut.count()-callsBefore
			time.Sleep(2 * time.Hour)
		})
	}
	const perHour = 3 * 360 // three times in each lease of 10 s
	if max(beats[0], beats[100]) > perHour+1 || min(beats[0], beats[100]) < perHour-1 {
		t.Errorf("%d heartbeats in an hour with 100 sagas in hand, %d without any, want %d", beats[100], beats[0], perHour)
	}
	if diff := calls[100] - calls[0]; diff > calls[0]/50 || diff < -calls[0]/50 {
		t.Errorf("with 100 sagas in hand it called the store %d times in an hour, without any %d times; want no difference", calls[100], calls[0])
	}
}

func TestMigrateHasAWaitBeginAnew(t *testing.T) {
	w := newWorld(t)
	p := newPost(w)
	define := func(version int) *saga.Definition[data] {
		return saga.Must(saga.New("x", version, saga.Send("a", command("do"), judge, saga.NoUndo[data]())))
	}
	v1, v2 := define(1), define(2)
	w.defs = []saga.Registered{v1, v2}
	w.run(func() {
		w.start(v1, "s", data{})
		w.waiting("s", "a")
		n, err := saga.Migrate(t.Context(), w.engine, 1, v2, func(_ saga.Instance, old data) (string, data, error) { return "a", old, nil })
		if n != 1 || err != nil {
			t.Fatalf("Migrate = %d, %v", n, err)
		}
		w.waiting("s", "a")
		if _, n := p.last(); n != 2 {
			t.Errorf("%d commands were sent, want one more", n)
		}
		if err := w.reply(p, answer{true, "yes"}); err != nil {
			t.Errorf("reply = %v", err)
		}
		w.end("s", saga.Completed)
	})
}
