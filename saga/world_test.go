// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagamem"
)

// world is a store and one engine on it, in virtual time.
type world struct {
	*testing.T
	store  saga.Store
	engine *saga.Engine
	cfg    saga.Config
	defs   []saga.Registered

	mu  sync.Mutex
	log []string
}

func newWorld(t *testing.T, defs ...saga.Registered) *world {
	w := &world{T: t, store: sagamem.New(), defs: defs}
	w.cfg.Logger = slog.New(slog.DiscardHandler)
	return w
}

// run calls fn in virtual time while the engine runs, then drains the engine.
func (w *world) run(fn func()) {
	w.Helper()
	synctest.Test(w.T, func(t *testing.T) {
		outer := w.T
		w.T = t
		defer func() { w.T = outer }()
		w.engine = w.newEngine(w.store)
		stop := w.goRun(w.engine)
		fn()
		stop()
	})
}

func (w *world) newEngine(store saga.Store) *saga.Engine {
	w.Helper()
	e, err := saga.NewEngine(store, w.cfg, w.defs...)
	if err != nil {
		w.Fatalf("NewEngine = %v", err)
	}
	return e
}

// goRun runs the engine until stop is called, which waits for its end.
func (w *world) goRun(e *saga.Engine) (stop func()) {
	ctx, cancel := context.WithCancel(w.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			w.Errorf("Run = %v, want nil", err)
		}
	}
}

func (w *world) start(d *saga.Definition[data], id string, v data) {
	w.Helper()
	if err := saga.Start(w.Context(), w.engine, nil, d, id, v); err != nil {
		w.Fatalf("Start %s = %v", id, err)
	}
	w.engine.Wake()
}

// end waits for the saga to end or be parked, and checks its status.
func (w *world) end(id string, want saga.Status) saga.Instance {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 24*time.Hour)
	defer cancel()
	in, err := w.engine.Wait(ctx, id)
	if err != nil {
		w.Fatalf("Wait %s = %v; the saga is %+v", id, err, in)
	}
	if in.Status != want {
		w.Errorf("%s is %v (reason %q, stuck %q), want %v", id, in.Status, in.Reason, in.Stuck, want)
	}
	return in
}

func (w *world) get(id string) saga.Instance {
	w.Helper()
	in, err := w.engine.Get(w.Context(), id)
	if err != nil {
		w.Fatalf("Get %s = %v", id, err)
	}
	return in
}

// history returns the entries in the form "step/op outcome text".
func (w *world) history(id string) []string {
	w.Helper()
	entries, err := w.engine.History(w.Context(), id)
	if err != nil {
		w.Fatalf("History = %v", err)
	}
	var lines []string
	for _, e := range entries[1:] {
		lines = append(lines, strings.TrimSpace(e.Step+"/"+e.Op+" "+e.Outcome+" "+e.Text))
	}
	return lines
}

func (w *world) note(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, line)
}

// notes returns what was noted since the last call.
func (w *world) notes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	log := w.log
	w.log = nil
	return log
}

// noted checks what was noted since the last call.
func (w *world) noted(want ...string) {
	w.Helper()
	w.same("the list of calls", w.notes(), want)
}

func (w *world) same(what string, got, want []string) {
	w.Helper()
	if !slices.Equal(got, want) {
		w.Errorf("%s is\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// fn returns a step that notes its call and appends to the data. It returns the
// given errors in turn, then nil.
func (w *world) fn(errs ...error) func(context.Context, saga.Attempt, *data) error {
	return func(_ context.Context, a saga.Attempt, d *data) error {
		w.note(a.Step + "/" + a.Op)
		d.Log = append(d.Log, a.Step+"/"+a.Op)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(errs) > 0 {
			err := errs[0]
			errs = errs[1:]
			return err
		}
		return nil
	}
}

func (w *world) localFn(errs ...error) func(context.Context, *sql.Tx, saga.Attempt, *data) error {
	fn := w.fn(errs...)
	return func(ctx context.Context, _ *sql.Tx, a saga.Attempt, d *data) error { return fn(ctx, a, d) }
}

func (w *world) step(name string, errs ...error) saga.Step[data] {
	return saga.Call(name, w.fn(errs...), saga.Undo(w.fn()))
}

// byAnn is an operator's verb in tests that do not care whose.
var byAnn = saga.By{Who: "ann", Why: "tired of it"}

var errOops = errors.New("oops")

// always is a list of errors that does not end in a test's lifetime.
func always(err error) []error { return slices.Repeat([]error{err}, 10000) }

// cutStore stands between an engine and the store that it shares with others.
type cutStore struct {
	saga.Store

	mu sync.Mutex
	// before is asked before a call; an error is returned in place of the call. After is
	// asked after it; an error takes the place of the answer.
	before, after func(call string) error
	calls         map[string]int
}

func (c *cutStore) around(call string, fn func() error) error {
	c.mu.Lock()
	if c.calls == nil {
		c.calls = map[string]int{}
	}
	c.calls[call]++
	before, after := c.before, c.after
	c.mu.Unlock()
	if before != nil {
		if err := before(call); err != nil {
			return err
		}
	}
	err := fn()
	if after != nil {
		if lost := after(call); lost != nil {
			return lost
		}
	}
	return err
}

func (c *cutStore) set(before, after func(call string) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before, c.after = before, after
}

func (c *cutStore) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, k := range c.calls {
		n += k
	}
	return n
}

func (c *cutStore) countOf(call string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[call]
}

func (c *cutStore) Beat(ctx context.Context, node string, lease time.Duration) error {
	return c.around("Beat", func() error { return c.Store.Beat(ctx, node, lease) })
}

func (c *cutStore) Leave(ctx context.Context, node string) error {
	return c.around("Leave", func() error { return c.Store.Leave(ctx, node) })
}

func (c *cutStore) Begin(ctx context.Context, list []saga.Beginning) (begun []saga.Begun, err error) {
	err = c.around("Begin", func() error { begun, err = c.Store.Begin(ctx, list); return err })
	if err != nil {
		begun = nil
	}
	return begun, err
}

func (c *cutStore) Claim(ctx context.Context, cl saga.Claim) (recs []saga.Record, err error) {
	err = c.around("Claim", func() error { recs, err = c.Store.Claim(ctx, cl); return err })
	if err != nil {
		recs = nil
	}
	return recs, err
}

func (c *cutStore) Save(ctx context.Context, changes []saga.Change) (lost []int, err error) {
	err = c.around("Save", func() error { lost, err = c.Store.Save(ctx, changes); return err })
	if err != nil {
		lost = nil
	}
	return lost, err
}

func (c *cutStore) SaveTx(ctx context.Context, fn func(context.Context, *sql.Tx) (saga.Change, error)) error {
	return c.around("SaveTx", func() error { return c.Store.SaveTx(ctx, fn) })
}

func (c *cutStore) Load(ctx context.Context, id string) (rec saga.Record, err error) {
	err = c.around("Load", func() error { rec, err = c.Store.Load(ctx, id); return err })
	return rec, err
}

// failing returns a hook that fails the first n calls of the given name.
func failing(call string, n int) func(string) error {
	var mu sync.Mutex
	return func(c string) error {
		mu.Lock()
		defer mu.Unlock()
		if c == call && n > 0 {
			n--
			return errors.New("connection reset")
		}
		return nil
	}
}
