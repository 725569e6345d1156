// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/saga"
)

type traceKey struct{}

func TestHeader(t *testing.T) {
	trace := func(w *world) {
		w.cfg.Hooks.Starting = func(ctx context.Context, s saga.Starting) {
			w.note("starting " + s.Saga + " of " + s.Name)
			if v, ok := ctx.Value(traceKey{}).(string); ok {
				s.Header["trace"] = v
			}
		}
		w.cfg.Hooks.StepStart = func(ctx context.Context, s saga.StepStart) context.Context {
			w.note(s.Saga + " " + s.Attempt.Step + "/" + s.Op + " in trace " + s.Header["trace"])
			return ctx
		}
	}
	start := func(w *world, d *saga.Definition[data], trace string) {
		w.Helper()
		ctx := context.WithValue(w.Context(), traceKey{}, trace)
		if err := saga.Start(ctx, w.engine, nil, d, "s", data{}); err != nil {
			w.Fatalf("Start = %v", err)
		}
		w.engine.Wake()
	}
	nothing := func(context.Context, saga.Attempt, *data) error { return nil }
	t.Run("of the start comes back with each attempt, also after a takeover, and with the saga", func(t *testing.T) {
		w := newWorld(t)
		trace(w)
		cut := &cutStore{Store: w.store}
		first := true
		d := saga.Must(saga.New("x", 1,
			saga.Call("a", func(ctx context.Context, _ saga.Attempt, _ *data) error {
				if first {
					first = false
					cut.set(func(string) error { return errors.New("network cut") }, nil)
					<-ctx.Done()
				}
				return ctx.Err()
			}, saga.Undo(nothing), saga.Timeout[data](time.Hour)),
			saga.Sleep("nap", func(*data) time.Duration { return time.Hour }),
			saga.Call("b", func(context.Context, saga.Attempt, *data) error { return saga.Refuse("no") }, saga.Undo(nothing))))
		w.defs = []saga.Registered{d}
		w.run(func() {
			dying := w.newEngine(cut)
			stop := w.goRun(dying)
			synctest.Wait()
			survivor := w.engine
			w.engine = dying
			start(w, d, "one")
			w.engine = survivor
			synctest.Wait()
			start(w, d, "another") // does nothing
			if err := saga.Start(w.Context(), w.engine, nil, d, "bare", data{}); err != nil {
				t.Fatal(err)
			}
			in := w.end("s", saga.Compensated)
			if !maps.Equal(in.Header, messaging.Header{"trace": "one"}) || w.engine.Stats().Takeovers != 1 {
				t.Errorf("the header is %q after %d takeovers, want the first start's after one", in.Header, w.engine.Stats().Takeovers)
			}
			if in := w.end("bare", saga.Compensated); in.Header != nil {
				t.Errorf("the header is %q, want nil where the hook sets nothing", in.Header)
			}
			stop()
		})
		log := w.notes()
		for _, want := range []string{"starting s of x", "s a/do in trace one", "s b/do in trace one", "s a/undo in trace one", "bare a/undo in trace "} {
			if !slices.Contains(log, want) {
				t.Errorf("the hooks noted %q, want also %q", log, want)
			}
		}
	})
	t.Run("is inherited by children, and carried by commands but for their own names", func(t *testing.T) {
		w := newWorld(t)
		trace(w)
		p := newPost(w)
		child := saga.Must(saga.New("child", 1, saga.Call("c", nothing, saga.Undo(nothing))))
		d := saga.Must(saga.New("x", 1,
			saga.Child("sub", child, func(*data) data { return data{} }, func(*data, data) error { return nil }),
			saga.Send("plain", command("do"), judge, saga.NoUndo[data]()),
			saga.Send("own", func(context.Context, saga.Attempt, *data) (*messaging.Message, error) {
				return &messaging.Message{Topic: "do", Header: messaging.Header{"trace": "mine"}}, nil
			}, judge, saga.NoUndo[data]())))
		w.defs = []saga.Registered{child, d}
		w.run(func() {
			start(w, d, "one")
			for _, want := range []string{"one", "mine"} {
				time.Sleep(time.Minute)
				m, _ := p.last()
				if m == nil || m.Header["trace"] != want || m.Header[saga.HeaderKey] == "" {
					t.Fatalf("the command is %+v, want it in trace %s", m, want)
				}
				if err := w.reply(p, answer{true, "yes"}); err != nil {
					t.Fatal(err)
				}
			}
			w.end("s", saga.Completed)
			if in := w.get("s/sub"); in.Header["trace"] != "one" {
				t.Errorf("the child's header is %q, want its parent's", in.Header)
			}
		})
		if log := w.notes(); !slices.Contains(log, "s/sub c/do in trace one") || slices.Contains(log, "starting s/sub of child") {
			t.Errorf("the hooks noted %q, want the child's attempt in the trace, and no start of it", log)
		}
	})
}
