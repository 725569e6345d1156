// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/saga"
)

// Start without a transaction.
func TestBegin(t *testing.T) {
	t.Run("goes on at once, without a claim, a wake-up or a look by Wait", func(t *testing.T) {
		w := newWorld(t)
		cut := &cutStore{Store: w.store}
		w.store = cut
		d := saga.Must(saga.New("x", 1, w.step("a"), w.step("b"), w.step("c")))
		w.defs = []saga.Registered{d}
		w.run(func() {
			time.Sleep(time.Second)
			before, begin := cut.count(), time.Now()
			if err := saga.Start(w.Context(), w.engine, nil, d, "s", data{}); err != nil {
				t.Fatal(err)
			}
			w.end("s", saga.Completed)
			if n, took := cut.count()-before, time.Since(begin); n > 5 || took > 0 {
				t.Errorf("three steps took %d calls of the store and %v, want one for the start, one for each step, and at most a look by Wait", n, took)
			}
			synctest.Wait() // the worker is at its end
			if st := w.engine.Stats(); st.Claimed != 1 || st.Active != 0 {
				t.Errorf("Stats = %+v, want one saga taken up, none active", st)
			}
		})
	})
	t.Run("that many make at once is one transaction", func(t *testing.T) {
		w := newWorld(t)
		cut := &cutStore{Store: w.store}
		w.store = cut
		w.cfg.Writers = 1
		var mu sync.Mutex
		begins := 0
		cut.set(func(call string) error {
			if call == "Begin" {
				mu.Lock()
				begins++
				mu.Unlock()
				time.Sleep(time.Millisecond)
			}
			return nil
		}, nil)
		d := saga.Must(saga.New("x", 1, w.step("a")))
		w.defs = []saga.Registered{d}
		w.run(func() {
			var wg sync.WaitGroup
			for i := range 100 {
				wg.Go(func() {
					if err := saga.Start(w.Context(), w.engine, nil, d, fmt.Sprint("s", i), data{}); err != nil {
						t.Errorf("Start = %v", err)
					}
				})
			}
			wg.Wait()
			for i := range 100 {
				w.end(fmt.Sprint("s", i), saga.Completed)
			}
			mu.Lock()
			defer mu.Unlock()
			if begins > 50 {
				t.Errorf("100 starts took %d transactions, want few", begins)
			}
		})
	})
	t.Run("whose answer is lost is found by the node that owns it", func(t *testing.T) {
		w := newWorld(t)
		cut := &cutStore{Store: w.store}
		w.store = cut
		d := saga.Must(saga.New("x", 1, w.step("a")))
		w.defs = []saga.Registered{d}
		w.run(func() {
			synctest.Wait()
			cut.set(nil, failing("Begin", 1))
			begin := time.Now()
			if err := saga.Start(w.Context(), w.engine, nil, d, "s", data{}); err == nil {
				t.Errorf("Start = nil, want the store's error")
			}
			w.end("s", saga.Completed)
			if took := time.Since(begin); took > time.Second {
				t.Errorf("it was found after %v, want at once", took)
			}
			w.noted("a/do")
			if st := w.engine.Stats(); st.Takeovers != 0 || st.Lost != 0 {
				t.Errorf("Stats = %+v, want no takeover", st)
			}
		})
	})
	t.Run("leaves a saga for which there is no hand free to whoever has one, in order", func(t *testing.T) {
		w := newWorld(t)
		w.cfg.Concurrency = 1
		d := saga.Must(saga.New("x", 1, saga.Call("a", func(_ context.Context, a saga.Attempt, _ *data) error {
			time.Sleep(time.Second)
			w.note(a.Saga)
			return nil
		}, saga.NoUndo[data]())))
		w.defs = []saga.Registered{d}
		w.run(func() {
			synctest.Wait()
			for i := range 4 {
				if err := saga.Start(w.Context(), w.engine, nil, d, fmt.Sprint("s", i), data{}); err != nil {
					t.Fatal(err)
				}
				if in := w.get(fmt.Sprint("s", i)); (in.Owner == "") != (i > 0) {
					t.Errorf("%s has the owner %q, want one for the first only", in.ID, in.Owner)
				}
				time.Sleep(time.Millisecond)
			}
			for i := range 4 {
				w.end(fmt.Sprint("s", i), saga.Completed)
			}
			w.noted("s0", "s1", "s2", "s3")
		})
	})
	t.Run("without a running engine waits for one", func(t *testing.T) {
		w := newWorld(t)
		d := saga.Must(saga.New("x", 1, w.step("a")))
		w.defs = []saga.Registered{d}
		w.run(func() {
			synctest.Wait()
			if err := saga.Start(w.Context(), w.newEngine(w.store), nil, d, "s", data{}); err != nil {
				t.Fatal(err)
			}
			if in := w.get("s"); in.Owner != "" {
				t.Errorf("the owner is %q, want none", in.Owner)
			}
			w.end("s", saga.Completed)
		})
	})
	t.Run("ends with its context, and goes on nevertheless", func(t *testing.T) {
		w := newWorld(t)
		cut := &cutStore{Store: w.store}
		w.store = cut
		d := saga.Must(saga.New("x", 1, w.step("a")))
		w.defs = []saga.Registered{d}
		w.run(func() {
			synctest.Wait()
			cut.set(func(call string) error {
				if call == "Begin" {
					time.Sleep(10 * time.Second)
				}
				return nil
			}, nil)
			ctx, cancel := context.WithTimeout(w.Context(), time.Second)
			defer cancel()
			if err := saga.Start(ctx, w.engine, nil, d, "s", data{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Start = %v, want the context's error", err)
			}
			if err := saga.Start(ctx, w.engine, nil, d, "s2", data{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Start = %v, want the context's error", err)
			}
			time.Sleep(time.Minute)
			w.end("s", saga.Completed)
			if _, err := w.engine.Get(w.Context(), "s2"); !errors.Is(err, saga.ErrNotFound) {
				t.Errorf("Get = %v, want ErrNotFound for what began too late", err)
			}
		})
	})
}
