// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"sync"
	"time"
)

// Wait returns the saga once it has ended or is parked. It learns of that at once when
// this engine does the work, else by asking the store every Config.Poll.
func (e *Engine) Wait(ctx context.Context, id string) (Instance, error) {
	news, forget := e.waiters.add(id)
	defer forget()
	t := time.NewTicker(e.cfg.Poll)
	defer t.Stop()
	var in Instance
	// While this engine works on the saga there is nothing to ask the store.
	known := false
	if r := e.active.Load(); r != nil {
		known = r.holds(id)
	}
	for {
		if !known {
			var err error
			if in, err = e.Get(ctx, id); err != nil || in.Status.Ended() || in.Parked {
				return in, err
			}
		}
		known = false
		select {
		case <-ctx.Done():
			return in, ctx.Err()
		case in := <-news:
			if in.ID != "" {
				return in, nil
			}
		case <-t.C:
		}
	}
}

// waiters are the calls of Wait, by saga.
type waiters struct {
	mu sync.Mutex
	by map[string]map[chan Instance]bool
}

func (w *waiters) add(id string) (news <-chan Instance, forget func()) {
	c := make(chan Instance, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by == nil {
		w.by = map[string]map[chan Instance]bool{}
	}
	if w.by[id] == nil {
		w.by[id] = map[chan Instance]bool{}
	}
	w.by[id][c] = true
	return c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if delete(w.by[id], c); len(w.by[id]) == 0 {
			delete(w.by, id)
		}
	}
}

// put tells those who wait that the engine has put the saga away, however it stands: they
// should look themselves, unless they were told already.
func (w *waiters) put(id string) { w.send(id, Instance{}) }

// tell gives those who wait the saga as it has ended or was parked.
func (w *waiters) tell(in Instance) { w.send(in.ID, in) }

func (w *waiters) send(id string, in Instance) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.by[id] {
		select {
		case c <- in:
		default:
		}
	}
}
