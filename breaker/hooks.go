// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package breaker

import (
	"context"
	"time"
)

// Hooks are called outside locks; each may be nil, may call the breaker, and may panic.
type Hooks struct {
	// Change is called after each change of state or mode, in order.
	Change func(Change)
	// Reject is called for each refusal.
	Reject func(Rejected)
}

// Change is a change of state or mode.
type Change struct {
	Name     string
	From, To State
	Mode     Mode          // after the change
	Reason   string        // such as "failure rate", for people
	OpenFor  time.Duration // with To Open: how long; zero when forced
}

// Rejected is a refusal. In Shadow mode the call was let through.
type Rejected struct {
	Context    context.Context
	Name       string
	State      State
	Mode       Mode
	RetryAfter time.Duration
}

// deliver calls the hook for each queued change, in order. One goroutine delivers at a time:
// another one, or the hook itself, leaves its changes to it.
func (b *Breaker) deliver() {
	for {
		b.mu.Lock()
		if b.delivering || len(b.changes) == 0 {
			b.mu.Unlock()
			return
		}
		c, hook := b.changes[0], b.view.Load().cfg.Hooks.Change
		b.changes = b.changes[1:]
		b.delivering = true
		b.mu.Unlock()
		b.report(hook, c)
	}
}

func (b *Breaker) report(hook func(Change), c Change) {
	returned := false
	defer func() {
		b.mu.Lock()
		b.delivering = false
		b.mu.Unlock()
		if !returned {
			b.deliver() // the hook panics; the changes behind this one must not wait for another
		}
	}()
	if hook != nil {
		hook(c)
	}
	returned = true
}
