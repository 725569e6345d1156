// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/saga"
)

// bell is a Notifier within one process.
type bell struct {
	mu    sync.Mutex
	rings int
	wakes map[*func()]bool
}

func (b *bell) Notify() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rings++
	for wake := range b.wakes {
		(*wake)()
	}
}

func (b *bell) Subscribe(wake func()) (cancel func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wakes[&wake] = true
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.wakes, &wake)
	}
}

func TestNotifier(t *testing.T) {
	w := newWorld(t)
	b := &bell{wakes: map[*func()]bool{}}
	w.cfg.Notifier, w.cfg.Poll = b, time.Hour
	d := saga.Must(saga.New("x", 1, w.step("a"), saga.Await("event", judge), w.step("b")))
	w.defs = []saga.Registered{d}
	w.run(func() {
		other := w.newEngine(w.store) // another process, which does not run sagas itself
		synctest.Wait()
		begin := time.Now()
		if err := saga.Start(w.Context(), other, nil, d, "s", data{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.noted("a/do")
		if _, err := other.Deliver(w.Context(), nil, "s", "event", answer{OK: true}); err != nil {
			t.Fatal(err)
		}
		w.end("s", saga.Completed)
		w.noted("b/do")
		if took := time.Since(begin); took > 0 {
			t.Errorf("took %v of an hour's poll, want to be woken at once", took)
		}
		b.mu.Lock()
		rings := b.rings
		b.mu.Unlock()
		time.Sleep(time.Hour)
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.rings != rings {
			t.Errorf("an idle engine notified others %d times", b.rings-rings)
		}
	})
	if len(b.wakes) != 0 {
		t.Errorf("%d are subscribed after Run, want none", len(b.wakes))
	}
}
