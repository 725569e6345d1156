// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/saga"
)

// post is an outbox that keeps what it is given.
type post struct {
	mu    sync.Mutex
	sent  []*messaging.Message
	errs  []error
	wakes int
}

func (p *post) Enqueue(_ context.Context, _ outbox.Tx, msgs ...*messaging.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.errs) > 0 {
		err := p.errs[0]
		p.errs = p.errs[1:]
		return err
	}
	p.sent = append(p.sent, msgs...)
	return nil
}

func (p *post) Wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wakes++
}

// last returns the last message and how many there were.
func (p *post) last() (*messaging.Message, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sent) == 0 {
		return nil, 0
	}
	return p.sent[len(p.sent)-1], len(p.sent)
}

type answer struct {
	OK   bool
	Text string
}

func judge(d *data, r answer) error {
	d.Log = append(d.Log, r.Text)
	if !r.OK {
		return saga.Refuse(r.Text)
	}
	return nil
}

func command(topic string) func(context.Context, saga.Attempt, *data) (*messaging.Message, error) {
	return func(_ context.Context, a saga.Attempt, d *data) (*messaging.Message, error) {
		return &messaging.Message{Topic: topic, Body: []byte(strings.Join(d.Log, ","))}, nil
	}
}

// reply answers the last command through the engine's handler.
func (w *world) reply(p *post, v answer) error {
	w.Helper()
	m, _ := p.last()
	r, err := saga.Reply(m, v)
	if err != nil {
		w.Fatalf("Reply = %v", err)
	}
	if r.Topic != "replies" || r.Validate() != nil {
		w.Errorf("the reply is %+v (%v)", r, r.Validate())
	}
	return w.engine.Replies().Handle(w.Context(), &messaging.Delivery{Message: r})
}

func (w *world) deliver(id, step string, v any, want bool) {
	w.Helper()
	first, err := w.engine.Deliver(w.Context(), nil, id, step, v)
	if err != nil || first != want {
		w.Errorf("Deliver = %v, %v, want %v", first, err, want)
	}
}

// waiting checks what the saga waits for.
func (w *world) waiting(id string, want ...string) {
	w.Helper()
	synctest.Wait()
	if in := w.get(id); !slices.Equal(in.Waits, want) || in.Owner != "" {
		w.Errorf("%s waits for %q with owner %q, want %q and none", id, in.Waits, in.Owner, want)
	}
}

func newPost(w *world) *post {
	p := &post{}
	w.cfg.Outbox, w.cfg.ReplyTo = p, "replies"
	return p
}

func TestSend(t *testing.T) {
	define := func(w *world, opts ...saga.Option[data]) *saga.Definition[data] {
		opts = append([]saga.Option[data]{saga.UndoSend(command("undo"), judge)}, opts...)
		d := saga.Must(saga.New("x", 1, w.step("a"), saga.Send("b", command("do"), judge, opts...), saga.Pivot(saga.Call("c", w.fn()))))
		w.defs = []saga.Registered{d}
		return d
	}
	t.Run("goes through the outbox with key and topic of the reply, and its reply is done", func(t *testing.T) {
		w := newWorld(t)
		p := newPost(w)
		d := define(w)
		w.run(func() {
			w.start(d, "s", data{})
			w.waiting("s", "b")
			m, n := p.last()
			if n != 1 || m.Topic != "do" || m.Header[saga.HeaderKey] != "s/b/do" || m.Header[saga.HeaderReplyTo] != "replies" || string(m.Body) != "a/do" || p.wakes != 1 {
				t.Fatalf("%d messages, woken %d times, the last %+v", n, p.wakes, m)
			}
			time.Sleep(24 * time.Hour) // as long as it takes
			for range 2 {              // a duplicate is ignored
				if err := w.reply(p, answer{true, "yes"}); err != nil {
					t.Errorf("Replies = %v, want nil", err)
				}
			}
			in := w.end("s", saga.Completed)
			if err := w.reply(p, answer{false, "late"}); err != nil { // nor does a late one matter
				t.Errorf("Replies = %v, want nil", err)
			}
			if v, _ := d.Data(in); !slices.Equal(v.Log, []string{"a/do", "yes", "c/do"}) {
				t.Errorf("data = %v", v.Log)
			}
			w.same("history", w.history("s"), []string{"a/do done", "b/do waiting", "b/do done", "c/do done"})
		})
	})
	t.Run("a refusing reply compensates, and the undo waits for its reply", func(t *testing.T) {
		w := newWorld(t)
		p := newPost(w)
		d := define(w)
		w.run(func() {
			w.start(d, "s", data{})
			w.waiting("s", "b")
			_ = w.reply(p, answer{false, "sold out"})
			w.waiting("s", "b")
			m, n := p.last()
			if n != 2 || m.Topic != "undo" || m.Header[saga.HeaderKey] != "s/b/undo" {
				t.Fatalf("%d messages, the last %+v", n, m)
			}
			_ = w.reply(p, answer{true, "undone"})
			in := w.end("s", saga.Compensated)
			w.noted("a/do", "a/undo")
			if in.Cause != saga.CauseRefused || in.Reason != "sold out" || len(in.Waits) > 0 {
				t.Errorf("the saga is %+v", in)
			}
		})
	})
	t.Run("without a reply in time the command is sent again, until the attempts are used up", func(t *testing.T) {
		w := newWorld(t)
		p := newPost(w)
		d := define(w, saga.Timeout[data](time.Minute), saga.Retry[data](saga.Backoff{Attempts: 3}))
		w.run(func() {
			w.start(d, "s", data{})
			begin := time.Now()
			for { // answer the undo only
				time.Sleep(time.Second)
				if m, n := p.last(); n > 0 && m.Topic == "undo" {
					if took := time.Since(begin); n != 4 || took < 3*time.Minute || took > 4*time.Minute {
						t.Errorf("%d messages after %v, want 3 and an undo after 3m", n, took)
					}
					break
				}
			}
			_ = w.reply(p, answer{true, "undone"})
			if in := w.end("s", saga.Compensated); in.Cause != saga.CauseFailed || in.Reason != "gave up after 3 attempts: no reply within 1m0s" {
				t.Errorf("cause %v, reason %q", in.Cause, in.Reason)
			}
		})
	})
	t.Run("is cancelled while it waits, and a late reply changes nothing", func(t *testing.T) {
		w := newWorld(t)
		p := newPost(w)
		d := define(w)
		w.run(func() {
			w.start(d, "s", data{})
			w.waiting("s", "b")
			do, _ := p.last()
			if err := w.engine.Cancel(t.Context(), "s", byAnn); err != nil {
				t.Fatal(err)
			}
			w.waiting("s", "b")
			r, _ := saga.Reply(do, answer{true, "late"})
			_ = w.engine.Replies().Handle(t.Context(), &messaging.Delivery{Message: r})
			w.waiting("s", "b")
			_ = w.reply(p, answer{true, "undone"})
			w.end("s", saga.Compensated)
			w.noted("a/do", "a/undo")
		})
	})
	t.Run("a failing outbox is a failed attempt", func(t *testing.T) {
		w := newWorld(t)
		p := newPost(w)
		p.errs = []error{errOops, errOops}
		d := define(w)
		w.run(func() {
			w.start(d, "s", data{})
			time.Sleep(time.Minute)
			w.waiting("s", "b")
			if _, n := p.last(); n != 1 {
				t.Errorf("%d messages, want 1", n)
			}
			_ = w.reply(p, answer{true, "yes"})
			w.end("s", saga.Completed)
		})
	})
	t.Run("what is no reply is rejected", func(t *testing.T) {
		w := newWorld(t)
		newPost(w)
		define(w)
		w.run(func() {
			for key, body := range map[string]string{"": "{}", "a/b": "{}", "a/b/end": "{}", "s/b/do": "no json", "%zz/b/do": "{}"} {
				m := &messaging.Message{ID: "1", Header: messaging.Header{saga.HeaderKey: key}, Body: []byte(body)}
				if err := w.engine.Replies().Handle(t.Context(), &messaging.Delivery{Message: m}); err == nil {
					t.Errorf("Replies with key %q and body %q = nil, want an error", key, body)
				}
			}
			if _, err := saga.Reply(&messaging.Message{}, 1); err == nil {
				t.Errorf("Reply to what is no command = nil, want an error")
			}
		})
	})
	t.Run("a reply that cannot be decoded parks the saga", func(t *testing.T) {
		w := newWorld(t)
		newPost(w)
		d := define(w)
		w.run(func() {
			w.start(d, "s", data{})
			w.waiting("s", "b")
			w.deliver("s", "b", []int{1}, true)
			if in := w.end("s", saga.Running); !strings.Contains(in.Stuck, "what was delivered") {
				t.Errorf("stuck = %q", in.Stuck)
			}
		})
	})
}

func TestAwait(t *testing.T) {
	define := func(w *world, opts ...saga.Option[data]) *saga.Definition[data] {
		d := saga.Must(saga.New("x", 1, w.step("a"), saga.Await("b", judge, opts...), saga.Pivot(saga.Call("c", w.fn()))))
		w.defs = []saga.Registered{d}
		return d
	}
	for _, early := range []string{"before the saga exists", "before it waits", "while it waits"} {
		t.Run("an event that comes "+early+" is not lost, and the first decides", func(t *testing.T) {
			w := newWorld(t)
			d := define(w)
			w.run(func() {
				if early == "before the saga exists" {
					w.deliver("s", "b", answer{true, "yes"}, true)
					w.deliver("s", "b", answer{false, "no"}, false)
				}
				if err := saga.Start(w.Context(), w.engine, nil, d, "s", data{}); err != nil {
					t.Fatal(err)
				}
				if early == "before it waits" {
					w.deliver("s", "b", answer{true, "yes"}, true)
				}
				w.engine.Wake()
				if early == "while it waits" {
					w.waiting("s", "b")
					w.deliver("s", "b", answer{true, "yes"}, true)
				}
				in := w.end("s", saga.Completed)
				if v, _ := d.Data(in); !slices.Equal(v.Log, []string{"a/do", "yes", "c/do"}) {
					t.Errorf("data = %v", v.Log)
				}
				w.deliver("s", "b", answer{false, "no"}, false)
			})
		})
	}
	t.Run("an event between the look and the wait is not lost", func(t *testing.T) {
		w := newWorld(t)
		cut := &cutStore{Store: w.store}
		w.store = cut
		d := define(w)
		w.run(func() {
			n := 0
			cut.set(func(call string) error {
				if call == "Save" {
					if n++; n == 2 { // the write that begins to wait
						if _, err := cut.Store.Deliver(t.Context(), nil, saga.Signal{Saga: "s", Step: "b", Op: saga.OpDo, Data: []byte(`{"OK":true}`)}); err != nil {
							t.Error(err)
						}
					}
				}
				return nil
			}, nil)
			w.start(d, "s", data{})
			begin := time.Now()
			w.end("s", saga.Completed)
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("took %v, want the next poll", took)
			}
		})
	})
	t.Run("refused", func(t *testing.T) {
		w := newWorld(t)
		d := define(w)
		w.run(func() {
			w.start(d, "s", data{})
			w.deliver("s", "b", answer{false, "boss says no"}, true)
			if in := w.end("s", saga.Compensated); in.Reason != "boss says no" {
				t.Errorf("reason = %q", in.Reason)
			}
			w.noted("a/do", "a/undo")
		})
	})
	t.Run("in vain", func(t *testing.T) {
		w := newWorld(t)
		d := define(w, saga.Timeout[data](time.Hour))
		w.run(func() {
			w.start(d, "s", data{})
			begin := time.Now()
			in := w.end("s", saga.Compensated)
			if took := time.Since(begin); took < time.Hour || took > time.Hour+2*time.Second || in.Cause != saga.CauseDeadline || !strings.Contains(in.Reason, "nothing came within 1h") {
				t.Errorf("after %v: %v, %q", took, in.Cause, in.Reason)
			}
		})
	})
	t.Run("in vain, and goes on", func(t *testing.T) {
		w := newWorld(t)
		d := define(w, saga.Timeout[data](time.Hour), saga.OnTimeout(func(d *data) error { d.Log = append(d.Log, "default"); return nil }))
		w.run(func() {
			w.start(d, "s", data{})
			in := w.end("s", saga.Completed)
			if v, _ := d.Data(in); !slices.Equal(v.Log, []string{"a/do", "default", "c/do"}) {
				t.Errorf("data = %v", v.Log)
			}
		})
	})
	t.Run("waits no longer than the saga's deadline", func(t *testing.T) {
		w := newWorld(t)
		d := define(w).Deadline(time.Minute)
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			begin := time.Now()
			in := w.end("s", saga.Compensated)
			if took := time.Since(begin); took < time.Minute || took > time.Minute+2*time.Second || in.Cause != saga.CauseDeadline {
				t.Errorf("after %v: %v", took, in.Cause)
			}
		})
	})
}

func TestSleep(t *testing.T) {
	w := newWorld(t)
	d := saga.Must(saga.New("x", 1, w.step("a"),
		saga.Sleep("nap", func(*data) time.Duration { return time.Hour }),
		saga.Sleep("none", func(*data) time.Duration { return 0 }), w.step("b")))
	w.defs = []saga.Registered{d}
	w.run(func() {
		w.start(d, "s", data{})
		begin := time.Now()
		w.waiting("s", "nap")
		w.deliver("s", "nap", 1, true) // whatever that is meant to be, it does not end the night
		w.waiting("s", "nap")
		w.end("s", saga.Completed)
		if took := time.Since(begin); took < time.Hour || took > time.Hour+2*time.Second {
			t.Errorf("took %v, want 1h", took)
		}
	})
	t.Run("goes on over a restart", func(t *testing.T) {
		w := newWorld(t)
		w.defs = []saga.Registered{d}
		synctest.Test(t, func(t *testing.T) {
			w.T = t
			w.engine = w.newEngine(w.store)
			stop := w.goRun(w.engine)
			w.start(d, "s", data{})
			begin := time.Now()
			w.waiting("s", "nap")
			stop()
			time.Sleep(time.Minute)
			w.engine = w.newEngine(w.store)
			stop = w.goRun(w.engine)
			w.end("s", saga.Completed)
			if took := time.Since(begin); took < time.Hour || took > time.Hour+3*time.Second {
				t.Errorf("took %v, want 1h", took)
			}
			stop()
		})
	})
}

func TestIf(t *testing.T) {
	for _, c := range []struct {
		log    []string
		refuse bool
		want   []string
	}{
		{[]string{"go"}, false, []string{"a/do", "yes/do", "inner/do", "z/do"}},
		{nil, false, []string{"a/do", "no/do", "no2/do", "z/do"}},
		{[]string{"go"}, true, []string{"a/do", "yes/do", "inner/do", "z/do", "z/undo", "inner/undo", "yes/undo", "a/undo"}},
		{nil, true, []string{"a/do", "no/do", "no2/do", "z/do", "z/undo", "no2/undo", "no/undo", "a/undo"}},
	} {
		t.Run(fmt.Sprintf("%v refused %v", c.log, c.refuse), func(t *testing.T) {
			w := newWorld(t)
			asked := 0
			var err error
			if c.refuse {
				err = saga.Refuse("no")
			}
			d := saga.Must(saga.New("x", 1, w.step("a"),
				saga.If("choice", func(d *data) bool { asked++; return d.Log[0] == "go" },
					w.step("yes"), saga.If("deeper", func(*data) bool { return true }, w.step("inner")), saga.Else(w.step("not inner"))),
				saga.Else(w.step("no"), w.step("no2")),
				w.step("z", err)))
			w.defs = []saga.Registered{d}
			w.run(func() {
				w.start(d, "s", data{Log: c.log})
				w.end("s", map[bool]saga.Status{false: saga.Completed, true: saga.Compensated}[c.refuse])
				w.noted(c.want...)
				if asked != 1 {
					t.Errorf("asked %d times, want once", asked)
				}
			})
		})
	}
	t.Run("a decision that panics is a failed attempt", func(t *testing.T) {
		w := newWorld(t)
		asked := 0
		d := saga.Must(saga.New("x", 1, saga.If("choice", func(*data) bool {
			if asked++; asked < 3 {
				panic("boom")
			}
			return false
		}, w.step("a"))))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			w.end("s", saga.Completed)
			w.noted()
			if asked != 3 {
				t.Errorf("asked %d times, want 3", asked)
			}
		})
	})
}

// wide has fields for steps in parallel.
type wide struct {
	A, B, C string
	List    []int
}

func set(field func(*wide) *string, v string, errs ...error) func(context.Context, saga.Attempt, *wide) error {
	return func(_ context.Context, _ saga.Attempt, d *wide) error {
		*field(d) = v
		if len(errs) > 0 {
			err := errs[0]
			errs = errs[1:]
			return err
		}
		return nil
	}
}

func TestParallel(t *testing.T) {
	fieldA, fieldB := func(d *wide) *string { return &d.A }, func(d *wide) *string { return &d.B }
	none := saga.NoUndo[wide]()
	runOne := func(t *testing.T, d *saga.Definition[wide], in wide, fn func(w *world)) {
		w := newWorld(t, d)
		newPost(w)
		w.run(func() {
			if err := saga.Start(w.Context(), w.engine, nil, d, "s", in); err != nil {
				w.Fatal(err)
			}
			w.engine.Wake()
			fn(w)
		})
	}
	t.Run("runs at the same time and puts the data together", func(t *testing.T) {
		slow := func(_ context.Context, _ saga.Attempt, d *wide) error {
			time.Sleep(10 * time.Second)
			d.A = "a"
			return nil
		}
		slower := func(_ context.Context, _ saga.Attempt, d *wide) error {
			time.Sleep(15 * time.Second)
			d.B = "b"
			return nil
		}
		d := saga.Must(saga.New("x", 1, saga.Parallel(saga.Call("a", slow, none), saga.Call("b", slower, none),
			saga.Await("c", func(d *wide, v string) error { d.C = v; return nil }))))
		runOne(t, d, wide{List: []int{1, 2}}, func(w *world) {
			begin := time.Now()
			w.deliver("s", "c", "c", true)
			in := w.end("s", saga.Completed)
			if took := time.Since(begin); took != 15*time.Second {
				t.Errorf("took %v, want 15s", took)
			}
			if v, _ := d.Data(in); v.A != "a" || v.B != "b" || v.C != "c" || len(v.List) != 2 {
				t.Errorf("data = %+v", v)
			}
		})
	})
	t.Run("what is done is not done again when another one fails", func(t *testing.T) {
		var mu sync.Mutex
		calls := map[string]int{}
		count := func(fn func(context.Context, saga.Attempt, *wide) error) func(context.Context, saga.Attempt, *wide) error {
			return func(ctx context.Context, a saga.Attempt, d *wide) error {
				mu.Lock()
				calls[a.Step]++
				mu.Unlock()
				return fn(ctx, a, d)
			}
		}
		d := saga.Must(saga.New("x", 1, saga.Parallel(saga.Call("a", count(set(fieldA, "a")), none), saga.Call("b", count(set(fieldB, "b", errOops, errOops)), none))))
		runOne(t, d, wide{}, func(w *world) {
			in := w.end("s", saga.Completed)
			if calls["a"] != 1 || calls["b"] != 3 {
				t.Errorf("calls = %v, want a once and b three times", calls)
			}
			if v, _ := d.Data(in); v.A != "a" || v.B != "b" {
				t.Errorf("data = %+v", v)
			}
		})
	})
	t.Run("a refusal undoes all of them, and what came before", func(t *testing.T) {
		w := newWorld(t)
		p := newPost(w)
		slow := func(_ context.Context, a saga.Attempt, _ *data) error {
			time.Sleep(time.Second)
			w.note("slow")
			return nil
		}
		d := saga.Must(saga.New("x", 1, w.step("first"), saga.Parallel(
			saga.Call("slow", slow, saga.Undo(w.fn())), w.step("no", saga.Refuse("no")), saga.Send("sent", command("do"), judge, saga.Undo(w.fn()))), w.step("last")))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			in := w.end("s", saga.Compensated)
			w.noted("first/do", "no/do", "slow", "sent/undo", "no/undo", "slow/undo", "first/undo")
			if in.Reason != "no" || len(in.Waits) != 0 {
				t.Errorf("the saga is %+v", in)
			}
			_ = p
		})
	})
	t.Run("waits for all replies", func(t *testing.T) {
		w := newWorld(t)
		p := newPost(w)
		keep := func(*data, answer) error { return nil }
		d := saga.Must(saga.New("x", 1, saga.Parallel(
			saga.Send("a", command("a"), keep, saga.NoUndo[data]()), saga.Send("b", command("b"), keep, saga.NoUndo[data]()),
			saga.Sleep("nap", func(*data) time.Duration { return time.Minute }))))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s", data{})
			w.waiting("s", "a", "b", "nap")
			w.deliver("s", "b", answer{true, "b"}, true)
			w.waiting("s", "a", "nap")
			time.Sleep(2 * time.Minute)
			w.waiting("s", "a")
			w.deliver("s", "a", answer{true, "a"}, true)
			w.end("s", saga.Completed)
			if _, n := p.last(); n != 2 {
				t.Errorf("%d messages, want 2", n)
			}
		})
	})
	t.Run("two that change one field park the saga", func(t *testing.T) {
		d := saga.Must(saga.New("x", 1, saga.Parallel(saga.Call("a", set(fieldA, "1"), none), saga.Call("b", set(fieldA, "2"), none))))
		runOne(t, d, wide{}, func(w *world) {
			if in := w.end("s", saga.Running); !strings.Contains(in.Stuck, `both changed the field "A"`) {
				t.Errorf("stuck = %q", in.Stuck)
			}
		})
	})
	t.Run("no more of them at once than sagas", func(t *testing.T) {
		var mu sync.Mutex
		now, most := 0, 0
		busy := func(context.Context, saga.Attempt, *wide) error {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now--
			mu.Unlock()
			return nil
		}
		var steps []saga.Step[wide]
		for i := range 10 {
			steps = append(steps, saga.Call(fmt.Sprint("s", i), busy, none))
		}
		d := saga.Must(saga.New("x", 1, saga.Parallel(steps...)))
		w := newWorld(t, d)
		w.cfg.Concurrency = 3
		w.run(func() {
			for i := range 3 {
				if err := saga.Start(w.Context(), w.engine, nil, d, fmt.Sprint(i), wide{}); err != nil {
					t.Fatal(err)
				}
			}
			w.engine.Wake()
			for i := range 3 {
				w.end(fmt.Sprint(i), saga.Completed)
			}
			if most != 3 {
				t.Errorf("%d at once, want 3", most)
			}
		})
	})
}

func TestChild(t *testing.T) {
	begin := func(d *data) data { return data{Log: []string{"from parent"}} }
	done := func(d *data, c data) error { d.Log = append(d.Log, strings.Join(c.Log, "+")); return nil }
	t.Run("its end is the step's, with its data", func(t *testing.T) {
		w := newWorld(t)
		child := saga.Must(saga.New("child", 1, w.step("c1"), saga.Sleep("nap", func(*data) time.Duration { return time.Hour }), w.step("c2")))
		parent := saga.Must(saga.New("parent", 1, w.step("a"), saga.Child("sub", child, begin, done), w.step("b")))
		w.defs = []saga.Registered{child, parent}
		w.run(func() {
			w.start(parent, "s", data{})
			time.Sleep(time.Second)
			w.waiting("s", "sub")
			if in := w.get("s/sub"); in.Parent != "s" || !slices.Equal(in.Waits, []string{"nap"}) {
				t.Errorf("the child is %+v", in)
			}
			in := w.end("s", saga.Completed)
			w.noted("a/do", "c1/do", "c2/do", "b/do")
			if v, _ := parent.Data(in); !slices.Equal(v.Log, []string{"a/do", "from parent+c1/do+c2/do", "b/do"}) {
				t.Errorf("data = %v", v.Log)
			}
		})
	})
	t.Run("its refusal is the step's", func(t *testing.T) {
		w := newWorld(t)
		child := saga.Must(saga.New("child", 1, w.step("c1"), w.step("c2", saga.Refuse("no c2"))))
		parent := saga.Must(saga.New("parent", 1, w.step("a"), saga.Child("sub", child, begin, done), w.step("b")))
		w.defs = []saga.Registered{child, parent}
		w.run(func() {
			w.start(parent, "s", data{})
			if in := w.end("s", saga.Compensated); in.Reason != "no c2" || in.Cause != saga.CauseRefused {
				t.Errorf("the saga is %+v", in)
			}
			w.noted("a/do", "c1/do", "c2/do", "c2/undo", "c1/undo", "a/undo")
		})
	})
	t.Run("a completed child is undone with its parent, and calls its OnEnd again", func(t *testing.T) {
		w := newWorld(t)
		child := saga.Must(saga.New("child", 1, w.step("c1"), w.step("c2"))).OnEnd(func(_ context.Context, _ *sql.Tx, end saga.End, _ *data) error {
			w.note(fmt.Sprint("child ", end.Status, " ", end.Cause))
			return nil
		})
		parent := saga.Must(saga.New("parent", 1, w.step("a"), saga.Child("sub", child, begin, done), w.step("b", saga.Refuse("no b"))))
		w.defs = []saga.Registered{child, parent}
		w.run(func() {
			w.start(parent, "s", data{})
			w.end("s", saga.Compensated)
			w.noted("a/do", "c1/do", "c2/do", "child completed none", "b/do", "b/undo", "c2/undo", "c1/undo", "child compensated cancelled", "a/undo")
			if in := w.get("s/sub"); in.Status != saga.Compensated || in.Reason != "saga s compensates: no b" {
				t.Errorf("the child is %+v", in)
			}
		})
	})
	t.Run("a cancelled parent cancels a running child and waits for its end", func(t *testing.T) {
		w := newWorld(t)
		child := saga.Must(saga.New("child", 1, w.step("c1"), saga.Await("event", judge), w.step("c2")))
		parent := saga.Must(saga.New("parent", 1, w.step("a"), saga.Child("sub", child, begin, done), w.step("b")))
		w.defs = []saga.Registered{child, parent}
		w.run(func() {
			w.start(parent, "s", data{})
			time.Sleep(time.Second)
			w.waiting("s/sub", "event")
			if err := w.engine.Cancel(t.Context(), "s", byAnn); err != nil {
				t.Fatal(err)
			}
			w.end("s", saga.Compensated)
			w.noted("a/do", "c1/do", "c1/undo", "a/undo")
		})
	})
	t.Run("children in parallel: the refusal of one undoes the other", func(t *testing.T) {
		w := newWorld(t)
		good := saga.Must(saga.New("good", 1, w.step("g")))
		bad := saga.Must(saga.New("bad", 1, w.step("b", saga.Refuse("bad"))))
		keep := func(*data, data) error { return nil }
		parent := saga.Must(saga.New("parent", 1, saga.Parallel(saga.Child("one", good, begin, keep), saga.Child("two", bad, begin, keep))))
		w.defs = []saga.Registered{good, bad, parent}
		w.run(func() {
			w.start(parent, "s", data{})
			w.end("s", saga.Compensated)
			for _, id := range []string{"s/one", "s/two"} {
				if in := w.get(id); in.Status != saga.Compensated {
					t.Errorf("%s is %v, want compensated", id, in.Status)
				}
			}
		})
	})
	t.Run("the engine must know it", func(t *testing.T) {
		w := newWorld(t)
		child := saga.Must(saga.New("child", 1, w.step("c1")))
		parent := saga.Must(saga.New("parent", 1, saga.Child("sub", child, begin, done)))
		if _, err := saga.NewEngine(w.store, w.cfg, parent); err == nil || !strings.Contains(err.Error(), "definition child version 1 is missing") {
			t.Errorf("NewEngine = %v", err)
		}
	})
}

func TestLock(t *testing.T) {
	key := func(*data) string { return "account 7" }
	hold := saga.Sleep("hold", func(*data) time.Duration { return time.Minute })
	t.Run("the second saga waits for the end of the first", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, saga.Lock("lock", key), w.step("a"), hold, w.step("b")))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s1", data{})
			w.waiting("s1", "hold")
			w.start(d, "s2", data{})
			w.waiting("s2", "lock")
			w.noted("a/do")
			w.end("s1", saga.Completed)
			begin := time.Now()
			w.waiting("s2", "hold")
			if took := time.Since(begin); took != 0 {
				t.Errorf("the second got the lock after %v, want at once", took)
			}
			w.end("s2", saga.Completed)
			w.noted("b/do", "a/do", "b/do")
			w.same("history", w.history("s2"), []string{"lock/do waiting", "lock/do done", "a/do done", "hold/do waiting", "hold/do done", "b/do done", "/end done"})
		})
	})
	t.Run("or is refused at once", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, w.step("a"), saga.TryLock("lock", key), hold))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s1", data{})
			w.waiting("s1", "hold")
			w.start(d, "s2", data{})
			if in := w.end("s2", saga.Compensated); in.Reason != "account 7 is in use by saga s1" || in.Cause != saga.CauseRefused {
				t.Errorf("cause %v, reason %q", in.Cause, in.Reason)
			}
			w.end("s1", saga.Completed)
		})
	})
	t.Run("or after its timeout", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, saga.Lock("lock", key, saga.Timeout[data](10*time.Second)), hold))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s1", data{})
			w.waiting("s1", "hold")
			begin := time.Now()
			w.start(d, "s2", data{})
			in := w.end("s2", saga.Compensated)
			if took := time.Since(begin); in.Cause != saga.CauseDeadline || took < 10*time.Second || took > 12*time.Second {
				t.Errorf("after %v: %v, %q", took, in.Cause, in.Reason)
			}
			w.end("s1", saga.Completed)
		})
	})
	t.Run("a cancelled holder frees it", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, saga.Lock("lock", key), w.step("a"), hold))
		w.defs = []saga.Registered{d}
		w.run(func() {
			w.start(d, "s1", data{})
			w.waiting("s1", "hold")
			w.start(d, "s2", data{})
			w.waiting("s2", "lock")
			_ = w.engine.Cancel(t.Context(), "s1", byAnn)
			w.end("s1", saga.Compensated)
			w.waiting("s2", "hold")
			w.end("s2", saga.Completed)
			w.start(d, "s3", data{})
			w.waiting("s3", "hold")
			w.end("s3", saga.Completed)
		})
	})
}

func TestNewRejectsWrongArrangements(t *testing.T) {
	w := newWorld(t)
	when := func(*data) bool { return true }
	key := func(*data) string { return "k" }
	pivot := saga.Pivot(saga.Call("p", w.fn()))
	after := saga.Timeout[data](time.Second)
	decided := saga.Must(saga.New("decided", 1, saga.Pivot(saga.Call("p", w.fn()))))
	keep := func(*data, data) error { return nil }
	begin := func(*data) data { return data{} }
	many := make([]saga.Step[data], 65)
	for i := range many {
		many[i] = w.step(fmt.Sprint("s", i))
	}
	for _, c := range []struct {
		want  string
		steps []saga.Step[data]
	}{
		{"an Else is not behind an If", []saga.Step[data]{saga.Else(w.step("a"))}},
		{"an Else is not behind an If", []saga.Step[data]{w.step("a"), saga.Else(w.step("b"))}},
		{`step "i": no steps in it`, []saga.Step[data]{saga.If("i", when)}},
		{`step "i": its function is nil`, []saga.Step[data]{saga.If("i", nil, w.step("a"))}},
		{`step "p": the pivot is in an If`, []saga.Step[data]{saga.If("i", when, pivot)}},
		{`two steps are named "a"`, []saga.Step[data]{saga.If("i", when, w.step("a")), saga.Else(w.step("a"))}},
		{"a Parallel has 1 steps, want 2 to 16", []saga.Step[data]{saga.Parallel(w.step("a"))}},
		{`the pivot is in a Parallel`, []saga.Step[data]{saga.Parallel(w.step("a"), pivot)}},
		{`a Parallel is the pivot`, []saga.Step[data]{saga.Pivot(saga.Parallel(w.step("a"), w.step("b")))}},
		{`step "l": is of kind local and in a Parallel`, []saga.Step[data]{saga.Parallel(w.step("a"), saga.Local("l", w.localFn(), saga.NoUndo[data]()))}},
		{"more than 64 steps", many},
		{`step "k": is a lock behind the pivot "p"`, []saga.Step[data]{pivot, saga.Lock("k", key)}},
		{`step "w": has a Timeout where there is no way back`, []saga.Step[data]{pivot, saga.Await("w", judge, after)}},
		{`step "w": has an OnTimeout`, []saga.Step[data]{saga.Await("w", judge, saga.OnTimeout(func(*data) error { return nil }))}},
		{`step "w": has an undo, yet it only waits`, []saga.Step[data]{saga.Await("w", judge, saga.NoUndo[data]())}},
		{`step "z": is the pivot and of kind sleep`, []saga.Step[data]{saga.Pivot(saga.Sleep("z", func(*data) time.Duration { return 1 }))}},
		{`step "c": its saga decided has a pivot`, []saga.Step[data]{saga.Child("c", decided, begin, keep)}},
		{`step "c": its definition is nil`, []saga.Step[data]{saga.Child[data, data]("c", nil, begin, keep)}},
		{`step "c": has a Timeout; give the child's definition a Deadline`, []saga.Step[data]{saga.Pivot(saga.Child("c", decided, begin, keep, after))}},
		{`step "s": has no undo`, []saga.Step[data]{saga.Send("s", command("x"), judge)}},
		{`step "s": its undo is nil`, []saga.Step[data]{saga.Send("s", command("x"), judge, saga.UndoSend[data, answer](nil, judge))}},
		{`step "s": its function is nil`, []saga.Step[data]{saga.Send[data, answer]("s", nil, judge)}},
	} {
		if _, err := saga.New("x", 1, c.steps...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("New = %v, want an error with %q", err, c.want)
		}
	}
	if _, err := saga.NewEngine(w.store, w.cfg, saga.Must(saga.New("x", 1, saga.Send("s", command("x"), judge, saga.NoUndo[data]())))); err == nil || !strings.Contains(err.Error(), "Config.Outbox is nil") {
		t.Errorf("NewEngine without an outbox = %v", err)
	}
}

func ExampleIf() {
	d := saga.Must(saga.New("loan", 1,
		saga.Lock("customer", func(*data) string { return "customer 7" }),
		saga.If("large", func(d *data) bool { return len(d.Log) > 3 },
			saga.Await("approval", judge, saga.Timeout[data](48*time.Hour))),
		saga.Else(saga.Call("score", call, saga.NoUndo[data]())),
		saga.Parallel(
			saga.Call("reserve", call, saga.Undo(call)),
			saga.Send("insure", command("insurance"), judge, saga.UndoSend(command("insurance.cancel"), judge))),
		saga.Pivot(saga.Call("pay out", call)),
	))
	fmt.Print(d.Mermaid())
	// Output:
	// flowchart TD
	//   start([start])
	//   s1("customer")
	//   start --> s1
	//   s2{"large"}
	//   s1 --> s2
	//   s3("approval")
	//   s2 -- yes --> s3
	//   s4["score"]
	//   s2 -- no --> s4
	//   s5["reserve"]
	//   s3 --> s5
	//   s4 --> s5
	//   s6>"insure"]
	//   s3 --> s6
	//   s4 --> s6
	//   s7{{"pay out"}}
	//   s5 --> s7
	//   s6 --> s7
	//   completed([completed])
	//   s7 --> completed
	//   u6["undo insure"]
	//   s5 -. refused .-> u6
	//   s6 -. refused .-> u6
	//   s7 -. refused .-> u6
	//   u5["undo reserve"]
	//   u6 --> u5
	//   compensated([compensated])
	//   u5 --> compensated
	//   s1 -. refused .-> compensated
	//   s3 -. refused .-> compensated
	//   s4 -. refused .-> compensated
}

func TestParallelStepsOfAMapAddAndRemoveKeys(t *testing.T) {
	w := newWorld(t)
	type dict = map[string]int
	d := saga.Must(saga.New("x", 1, saga.Parallel(
		saga.Call("a", func(_ context.Context, _ saga.Attempt, d *dict) error { delete(*d, "gone"); return nil }, saga.NoUndo[dict]()),
		saga.Call("b", func(_ context.Context, _ saga.Attempt, d *dict) error { (*d)["new"] = 2; return nil }, saga.NoUndo[dict]()),
	)))
	w.defs = []saga.Registered{d}
	w.run(func() {
		if err := saga.Start(w.Context(), w.engine, nil, d, "s", dict{"gone": 1, "stays": 1}); err != nil {
			t.Fatalf("Start = %v", err)
		}
		if v, err := d.Data(w.end("s", saga.Completed)); err != nil || !maps.Equal(v, dict{"new": 2, "stays": 1}) {
			t.Errorf("data = %v, %v, want what both have changed", v, err)
		}
	})
}

func TestAChildThatNeverBeganIsUndone(t *testing.T) {
	w := newWorld(t)
	child := saga.Must(saga.New("child", 1, w.step("c")))
	d := saga.Must(saga.New("x", 1, w.step("a"), saga.Child("b", child, func(*data) data { panic("oops") }, func(*data, data) error { return nil })))
	w.defs = []saga.Registered{d, child}
	w.run(func() {
		w.start(d, "s", data{})
		time.Sleep(time.Minute)
		if err := w.engine.Cancel(w.Context(), "s", byAnn); err != nil {
			t.Errorf("Cancel = %v", err)
		}
		w.end("s", saga.Compensated)
		w.noted("a/do", "a/undo")
	})
}
