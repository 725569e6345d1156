// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/saga/sagasql"
)

// Item is an invariant as it is at a moment.
type Item struct {
	Number     int      `json:"number"`
	Name       string   `json:"name"`
	OK         bool     `json:"ok"`
	Checked    string   `json:"checked"`
	Violations []string `json:"violations"`
}

// Item returns the invariant as programs read it.
func (i Invariant) Item() Item {
	return Item{Number: i.Number, Name: i.Name, OK: i.OK(), Checked: i.Checked, Violations: append([]string{}, i.Violations...)}
}

// State is what is true of a shop at a moment.
type State struct {
	At time.Time `json:"at"`
	// Resting is false while orders are under way or messages wait, and while a fault may hold something up: what is not
	// finished then is no violation.
	Resting bool   `json:"resting"`
	Items   []Item `json:"items"`
}

// Watch looks at the invariants of a running shop. It is for use by many goroutines.
type Watch struct {
	open  func(service string) (*sql.DB, error)
	quiet func(d time.Duration) bool
	late  func(ctx context.Context) bool

	turn  chan struct{} // held by who checks
	state State
	next  time.Time            // when to look again
	since map[string]time.Time // when what is not finished was first seen so
}

// NewWatch returns a Watch over the databases that open opens. Quiet reports whether nothing has
// been harmed on purpose for that long. Late reports whether a message may wait for somebody who hears it, with the broker or
// to be tried again: then what is not finished is not lost. Nil is for a broker that confirms what all have handled, so that
// who published it knows.
func NewWatch(open func(service string) (*sql.DB, error), quiet func(d time.Duration) bool, late func(ctx context.Context) bool) *Watch {
	if late == nil {
		late = func(context.Context) bool { return false }
	}
	return &Watch{open: open, quiet: quiet, late: late, turn: make(chan struct{}, 1)}
}

const (
	// shortestWatch is how old an answer may be. One that took long may be older: at most a fifth of
	// the time is spent with checking.
	shortestWatch = 2 * time.Second
	// settling is how long what is not finished must stay exactly as it is before it counts as lost, with
	// nothing under way: a message may be between the broker and who hears it.
	settling = 15 * time.Second
	// longestLook bounds one check.
	longestLook = time.Minute
)

// Get returns the state of the shop, some seconds old at most as a rule. Only one check runs at a time: who
// asks meanwhile waits for it.
func (w *Watch) Get(ctx context.Context) (State, error) {
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done():
		return State{}, ctx.Err()
	}
	defer func() { <-w.turn }()
	if time.Now().Before(w.next) {
		return w.state, nil
	}
	// The next who asks has use for the answer if this one is gone.
	look, cancel := context.WithTimeout(context.WithoutCancel(ctx), longestLook)
	defer cancel()
	start := time.Now()
	state, err := w.look(look)
	if err != nil {
		return State{}, err
	}
	w.state, w.next = state, time.Now().Add(max(shortestWatch, 4*time.Since(start)))
	return state, nil
}

func (w *Watch) look(ctx context.Context) (State, error) {
	c, err := newChecker(w.open)
	if err != nil {
		return State{}, err
	}
	defer c.close()
	before, err := c.busy(ctx)
	if err != nil {
		return State{}, fmt.Errorf("check: %w", err)
	}
	invariants, err := c.check(ctx, nil)
	if err != nil {
		return State{}, fmt.Errorf("check: %w", err)
	}
	after, err := c.busy(ctx)
	if err != nil {
		return State{}, fmt.Errorf("check: %w", err)
	}
	resting := w.settled(invariants, before || after || w.held(ctx))
	state := State{At: time.Now().UTC(), Resting: resting, Items: make([]Item, len(invariants))}
	for n, i := range invariants {
		if resting {
			i = i.atRest()
		}
		state.Items[n] = i.Item()
	}
	return state, nil
}

// held reports whether something may hold up what is under way.
func (w *Watch) held(ctx context.Context) bool { return !w.quiet(settling) || w.late(ctx) }

// settled reports whether the shop is at rest: nothing is unfinished, or nothing is under way and what
// is unfinished has been so for long.
func (w *Watch) settled(invariants []Invariant, busy bool) bool {
	now := time.Now()
	since := map[string]time.Time{}
	settled := true
	for _, i := range invariants {
		for _, what := range i.unfinished {
			at, known := w.since[what]
			if !known || busy {
				at = now
			}
			since[what] = at
			settled = settled && now.Sub(at) >= settling
		}
	}
	w.since = since
	return settled && (!busy || len(since) == 0)
}

// busy reports whether an order or a saga is under way, or an event waits to be published.
func (c *checker) busy(ctx context.Context) (bool, error) {
	db := c.db["order"]
	pending, err := collect(ctx, db, `SELECT COUNT(*) FROM orders WHERE status = 'pending'`, func(n *int) []any { return []any{n} })
	if err != nil || pending[0] > 0 {
		return true, err
	}
	store, err := sagasql.New(db, platform.DialectOf(db), sagasql.Config{})
	if err != nil {
		return true, err
	}
	sagas, err := store.Count(ctx)
	if err != nil || sagas.Running+sagas.Compensating > 0 {
		return true, err
	}
	i, err := c.messages(ctx, nil)
	return len(i.unfinished) > 0, err
}
