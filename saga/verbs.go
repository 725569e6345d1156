// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/saga/internal/core"
)

// Get returns the saga, or [ErrNotFound].
func (e *Engine) Get(ctx context.Context, id string) (Instance, error) {
	rec, err := e.store.Load(ctx, id)
	if err != nil {
		return Instance{}, fmt.Errorf("saga %s: %w", id, err)
	}
	return reveal(rec), nil
}

// List returns the sagas that f selects, newest first.
func (e *Engine) List(ctx context.Context, f Filter) ([]Instance, error) {
	if f.Limit <= 0 {
		f.Limit = 100
	}
	f.Limit = min(f.Limit, 1000)
	recs, err := e.store.List(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("saga: list: %w", err)
	}
	list := make([]Instance, len(recs))
	for i, rec := range recs {
		list[i] = reveal(rec)
	}
	return list, nil
}

// History returns what happened to the saga, oldest first, or [ErrNotFound].
func (e *Engine) History(ctx context.Context, id string) ([]Entry, error) {
	rec, err := e.store.Load(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("saga %s: %w", id, err)
	}
	entries, err := e.store.History(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("saga %s: history: %w", id, err)
	}
	start := Entry{At: rec.Created, Op: "start", Outcome: "accepted"}
	return append([]Entry{start}, entries...), nil
}

// By says who uses one of an operator's verbs, and why. The saga's history keeps both.
type By struct {
	// Who is the person or the program that decides, such as the subject of its token: 1 to
	// 200 bytes.
	Who string
	// Why is the reason, for those who read the history later. Not empty; what is longer than
	// 2,000 bytes is cut.
	Why string
}

const maxWho = 200

// Validate returns what the verbs do not accept: an error that names the field.
func (b By) Validate() error {
	switch {
	case strings.TrimSpace(b.Who) == "":
		return errors.New("By.Who is empty, want who decides")
	case strings.TrimSpace(b.Why) == "":
		return errors.New("By.Why is empty, want the reason")
	case len(b.Who) > maxWho:
		return fmt.Errorf("By.Who has %d bytes, want at most %d", len(b.Who), maxWho)
	}
	if problem := checkText(b.Who); problem != "" {
		return fmt.Errorf("By.Who %s", problem)
	}
	return nil
}

// Cancel makes a saga compensate that has not begun its pivot, and returns
// [ErrPastPivot] for one that has: when it returns nil the saga is certain to end
// compensated. An attempt in progress finishes first. For a saga that compensates
// already it does nothing. By.Why becomes the reason why the saga compensates.
func (e *Engine) Cancel(ctx context.Context, id string, by By) error {
	return e.verb(ctx, id, core.Cancel, "cancel", by)
}

// Retry makes a stuck saga go on with its current step at once, with its attempts
// counted afresh. [ErrNotStuck] is returned for any other saga.
func (e *Engine) Retry(ctx context.Context, id string, by By) error {
	return e.verb(ctx, id, core.Retry, "retry", by)
}

// Skip declares the current operation of a stuck saga done, because somebody has done
// it by hand or can do without, and lets the saga go on. [ErrNotStuck] is returned
// for any other saga.
func (e *Engine) Skip(ctx context.Context, id string, by By) error {
	return e.verb(ctx, id, core.Skip, "skip", by)
}

func (e *Engine) verb(ctx context.Context, id string, kind core.Kind, verb string, by By) error {
	if err := by.Validate(); err != nil {
		return fmt.Errorf("saga %s: %s: %w", id, verb, err)
	}
	return e.intervene(ctx, id, kind, verb, by)
}

// Count counts the sagas of the store that have not ended. It is cheap as long as these
// are few; what has ended costs nothing.
func (e *Engine) Count(ctx context.Context) (Counts, error) {
	c, err := e.store.Count(ctx)
	if err != nil {
		return c, fmt.Errorf("saga: count: %w", err)
	}
	return c, nil
}

// Archive moves sagas that ended longer ago than age to the archive, with their history, in
// small transactions, and returns how many. It does once what [Config.Archive] does now and
// then. A child stays until the saga above it has ended, which might still undo it.
func (e *Engine) Archive(ctx context.Context, age time.Duration) (int, error) {
	return inBatches(ctx, "archive", age, e.store.Archive)
}

// Prune deletes sagas that ended longer ago than age, archived or not, with their history, in
// small transactions, and returns how many. A child stays as with [Engine.Archive]. A pruned
// ID can be started again.
func (e *Engine) Prune(ctx context.Context, age time.Duration) (int, error) {
	return inBatches(ctx, "prune", age, e.store.Prune)
}

func inBatches(ctx context.Context, what string, age time.Duration, fn func(context.Context, time.Duration, int) (int, error)) (int, error) {
	const batch = 500
	total := 0
	for {
		n, err := fn(ctx, age, batch)
		total += n
		if err != nil {
			return total, fmt.Errorf("saga: %s: %w", what, err)
		}
		if n < batch {
			return total, nil
		}
	}
}

// intervene applies an operator's verb against whatever the engines do meanwhile.
func (e *Engine) intervene(ctx context.Context, id string, kind core.Kind, verb string, by By) error {
	by.Why = clean(by.Why)
	for n := 1; ; n++ {
		done, err := e.tryVerb(ctx, id, kind, by)
		if err != nil {
			return fmt.Errorf("saga %s: %s: %w", id, verb, err)
		}
		if done {
			return nil
		}
		if !pause(ctx, delay(Backoff{Base: 2 * time.Millisecond, Max: 100 * time.Millisecond}, n)) {
			return fmt.Errorf("saga %s: %s: %w", id, verb, ctx.Err())
		}
	}
}

func (e *Engine) tryVerb(ctx context.Context, id string, kind core.Kind, by By) (done bool, err error) {
	rec, err := e.store.Load(ctx, id)
	if err != nil {
		return false, err
	}
	def := e.defs[DefinitionKey{rec.Name, rec.Version}]
	if def == nil {
		return false, fmt.Errorf("%w: %s version %d", ErrUnknownDefinition, rec.Name, rec.Version)
	}
	step, ok := def.index(rec.Instance)
	if !ok {
		return false, fmt.Errorf("%s version %d has no step %q", rec.Name, rec.Version, rec.Step)
	}
	noted, err := readNotes(rec.Notes)
	if err != nil {
		return false, fmt.Errorf("notes: %w", err)
	}
	before := def.stateOf(rec, noted, step)
	after, out, err := def.shape(0, noted.Parent != "").Decide(before, core.Event{Kind: kind, Text: by.Why})
	switch {
	case errors.Is(err, core.ErrPastPivot):
		return false, ErrPastPivot
	case errors.Is(err, core.ErrNotStuck):
		return false, ErrNotStuck
	case err != nil || out.Op == "":
		return true, err
	}
	c := changeTo(rec, after, def.notesOf(after, noted), def.stepName(after), rec.Data)
	c.Entries = []Entry{{Step: rec.Step, Op: out.Op, Outcome: out.Outcome, Text: by.Why, Who: by.Who, Node: e.cfg.Node}}
	c.Due = DueAfter
	if Status(after.Status).Ended() {
		c.Due, c.Release = DueNever, true
	}
	lost, err := e.store.Save(ctx, []Change{c})
	if err != nil || len(lost) > 0 {
		return false, err
	}
	rec.Status, rec.Stuck, rec.Step, rec.Reason, rec.Notes = c.Status, c.Stuck, c.Step, c.Reason, c.Notes
	if rec.Updated = rec.Now; c.Due == DueNever {
		rec.WakeAt, rec.Owner = time.Time{}, ""
	}
	e.announce(reveal(rec), before, e.waiters.tell)
	e.Wake()
	return true, nil
}
