// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/saga"
)

func TestArchive(t *testing.T) {
	t.Run("what has ended is moved after a while, still found, and deleted after another", func(t *testing.T) {
		w := newWorld(t)
		w.cfg.Archive, w.cfg.Retain = 10*time.Minute, time.Hour
		d := saga.Must(saga.New("x", 1, w.step("a")))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			before := w.end("s", saga.Completed)
			history := w.history("s")
			time.Sleep(5 * time.Minute)
			if in := w.get("s"); in.Archived {
				t.Errorf("the saga is %+v, want it where it was", in)
			}
			time.Sleep(15 * time.Minute)
			in, err := w.engine.Wait(t.Context(), "s")
			if before.Archived = true; err != nil || !in.Archived || in.Status != before.Status || string(in.Data) != string(before.Data) {
				t.Errorf("Wait = %+v, %v, want %+v", in, err, before)
			}
			w.same("history", w.history("s"), history)
			for archived, want := range map[bool]int{false: 0, true: 1} {
				if list, err := w.engine.List(t.Context(), saga.Filter{Archived: archived}); err != nil || len(list) != want {
					t.Errorf("List with archived %v = %v, %v, want %d", archived, list, err, want)
				}
			}
			w.start(d, "s", data{}) // does nothing
			if err := saga.Start(w.Context(), w.engine, nil, d, "s", data{Log: []string{"other"}}); !errors.Is(err, saga.ErrConflict) {
				t.Errorf("Start with another input = %v, want ErrConflict", err)
			}
			if err := w.engine.Retry(t.Context(), "s", byAnn); !errors.Is(err, saga.ErrNotStuck) {
				t.Errorf("Retry = %v, want ErrNotStuck", err)
			}
			time.Sleep(2 * time.Hour)
			if _, err := w.engine.Get(t.Context(), "s"); !errors.Is(err, saga.ErrNotFound) {
				t.Errorf("Get = %v, want ErrNotFound", err)
			}
			w.noted("a/do")
			if st := w.engine.Stats(); st.Archived != 1 || st.Pruned != 1 {
				t.Errorf("Stats = %+v, want one archived, one pruned", st)
			}
		})
	})
	t.Run("a grandchild stays until the saga above it has ended, and can be undone", func(t *testing.T) {
		w := newWorld(t)
		begin := func(*data) data { return data{} }
		keep := func(*data, data) error { return nil }
		low := saga.Must(saga.New("low", 1, w.step("l")))
		middle := saga.Must(saga.New("middle", 1, saga.Child("low", low, begin, keep)))
		top := saga.Must(saga.New("top", 1, saga.Child("middle", middle, begin, keep), saga.Sleep("nap", func(*data) time.Duration { return 10 * time.Minute }), w.step("t", saga.Refuse("no"))))
		w.defs = []saga.Registered{low, middle, top}
		w.run(func() {
			w.start(top, "s", data{})
			time.Sleep(5 * time.Minute)
			for what, fn := range map[string]func() (int, error){
				"Archive": func() (int, error) { return w.engine.Archive(t.Context(), time.Minute) },
				"Prune":   func() (int, error) { return w.engine.Prune(t.Context(), time.Minute) },
			} {
				if n, err := fn(); n != 0 || err != nil {
					t.Errorf("%s = %d, %v, want 0", what, n, err)
				}
			}
			w.end("s", saga.Compensated)
			w.noted("l/do", "t/do", "t/undo", "l/undo")
			time.Sleep(5 * time.Minute)
			if n, err := w.engine.Archive(t.Context(), time.Minute); n != 3 || err != nil {
				t.Errorf("Archive = %d, %v, want 3", n, err)
			}
			list, err := w.engine.List(t.Context(), saga.Filter{Archived: true})
			if err != nil || len(list) != 3 || !slices.ContainsFunc(list, func(in saga.Instance) bool { return in.ID == "s/middle/low" && in.Parent == "s/middle" }) {
				t.Errorf("List = %+v, %v, want all three with their parents", list, err)
			}
		})
	})
	t.Run("must come before the deletion", func(t *testing.T) {
		w := newWorld(t)
		for _, c := range []struct {
			archive, retain time.Duration
			want            string
		}{
			{-1, 0, "Config.Archive is -1ns, want 0 or more"},
			{time.Hour, time.Hour, "Config.Archive is 1h0m0s, want less than Config.Retain, which is 1h0m0s"},
		} {
			w.cfg.Archive, w.cfg.Retain = c.archive, c.retain
			if _, err := saga.NewEngine(w.store, w.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("NewEngine = %v, want %s", err, c.want)
			}
		}
	})
}
