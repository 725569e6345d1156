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
	for {
		in, err := e.Get(ctx, id)
		if err != nil || in.Status.Ended() || in.Parked {
			return in, err
		}
		select {
		case <-ctx.Done():
			return in, ctx.Err()
		case <-news:
		case <-t.C:
		}
	}
}

// waiters are the calls of Wait, by saga.
type waiters struct {
	mu sync.Mutex
	by map[string]map[chan struct{}]bool
}

func (w *waiters) add(id string) (news <-chan struct{}, forget func()) {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by == nil {
		w.by = map[string]map[chan struct{}]bool{}
	}
	if w.by[id] == nil {
		w.by[id] = map[chan struct{}]bool{}
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

func (w *waiters) tell(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.by[id] {
		signal(c)
	}
}
