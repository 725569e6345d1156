// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
)

// Config tunes an [Engine]. The zero value is a sound default.
type Config struct {
	// Node is a name for this process in owners and histories, at most 100 bytes. It need not
	// be unique: a random suffix is added. Empty means the suffix alone.
	Node string
	// Concurrency is how many sagas are worked on at once. Zero means 16.
	Concurrency int
	// Lease is how long after a node's death its sagas are taken over. The heartbeat
	// runs three times as often. Zero means 10 s; the least is 1 s.
	Lease time.Duration
	// Poll is how often an idle engine looks for due sagas: how late a saga can be when
	// nobody calls Wake. Zero means 1.5 s; the least is 10 ms.
	Poll time.Duration
	// Timeout bounds one attempt at a step that has no Timeout of its own. Zero means 30 s.
	Timeout time.Duration
	// Backoff is the schedule of attempts where a step has none: Base zero means 100 ms,
	// Max zero means 30 s. Attempts must be zero.
	Backoff Backoff
	// StuckAfter is how many attempts at one operation may fail before the saga is reported
	// as stuck, though it is still tried. Zero means 10, negative never.
	StuckAfter int
	// MaxTakeovers is how many nodes in a row may die over one step before the saga is
	// parked. Zero means 10, negative no limit.
	MaxTakeovers int
	// Drain is how long Run waits, when its context has ended, for steps in progress
	// before it cancels them. Zero means 10 s, negative not at all.
	Drain time.Duration
	// Writers is how many transactions may record progress at once, one connection each, and
	// how many may start sagas where [Start] is given no transaction. While all are busy, more
	// gathers and commits together. Zero means 2.
	Writers int
	// Archive is how long sagas that have ended stay among those at work. Then they are moved
	// to an archive, with their history: Get, History and Wait still find them, List where
	// Filter.Archived is set, and to start one again is still a no-op or a conflict. What was
	// delivered to them is dropped. Zero means that they stay, or until somebody calls Archive.
	Archive time.Duration
	// Retain is how long sagas are kept when they have ended, with their history, archived or
	// not. Zero means for ever, or until somebody calls Prune.
	Retain time.Duration
	// Outbox takes the commands of [Send] steps: an *outbox.Outbox on the same database.
	// Required if a definition has such a step.
	Outbox Outbox
	// Notifier wakes engines in other processes, as the one of an outbox does: in PostgreSQL a
	// pgxkit.Listener, with a channel that no outbox uses. Polling remains the guarantee. Nil
	// leaves the others to it.
	Notifier outbox.Notifier
	// ReplyTo is the topic for the replies to commands whose messages name none in
	// [HeaderReplyTo].
	ReplyTo string
	// Hooks observe the engine.
	Hooks Hooks
	// Logger receives what nobody else hears of. Nil means slog.Default().
	Logger *slog.Logger
}

// Outbox sends messages as a part of a transaction. An *outbox.Outbox is one.
type Outbox interface {
	// Enqueue writes messages that are sent if and only if tx commits.
	Enqueue(ctx context.Context, tx outbox.Tx, msgs ...*messaging.Message) error
	// Wake is called after the commit.
	Wake()
}

// Engine runs sagas. It is safe for concurrent use. Several engines, in as many
// processes, may share one store; each saga is worked on by one of them at a time.
type Engine struct {
	store Store
	cfg   Config
	defs  map[DefinitionKey]*definition
	keys  []DefinitionKey
	wake  chan struct{}
	woken atomic.Uint64 // counts the calls of Wake
	stats counters

	waiters waiters
	running atomic.Bool
	starts  *committer[Beginning, Begun]
	active  atomic.Pointer[run] // the Run that takes up sagas now
}

// NewEngine returns an engine for the given definitions. Nothing runs before
// [Engine.Run].
func NewEngine(store Store, cfg Config, defs ...Registered) (*Engine, error) {
	if store == nil {
		return nil, errors.New("saga: store is nil")
	}
	e := &Engine{store: store, defs: map[DefinitionKey]*definition{}, wake: make(chan struct{}, 1)}
	for i, d := range defs {
		if d == nil || d.definition() == nil {
			return nil, fmt.Errorf("saga: definition %d is nil", i+1)
		}
		key := DefinitionKey{d.Name(), d.Version()}
		if e.defs[key] != nil {
			return nil, fmt.Errorf("saga: definition %s version %d is given twice", key.Name, key.Version)
		}
		e.defs[key] = d.definition()
		e.keys = append(e.keys, key)
	}
	for _, d := range e.defs {
		if err := e.checkNeeds(d, cfg); err != nil {
			return nil, err
		}
	}
	var err error
	if e.cfg, err = cfg.withDefaults(); err != nil {
		return nil, err
	}
	e.starts = newCommitter(e.cfg.Writers, store.Begin)
	return e, nil
}

// checkNeeds returns what a definition lacks.
func (e *Engine) checkNeeds(d *definition, cfg Config) error {
	for _, s := range d.steps {
		switch {
		case (s.Kind == KindSend || s.Undo == KindSend) && cfg.Outbox == nil:
			return fmt.Errorf("saga: Config.Outbox is nil, want one for step %q of %s", s.Name, d.name)
		case s.Kind == KindChild && e.defs[DefinitionKey{s.child.name, s.child.version}] == nil:
			return fmt.Errorf("saga: definition %s version %d is missing, want it for step %q of %s", s.child.name, s.child.version, s.Name, d.name)
		}
	}
	return nil
}

func (c Config) withDefaults() (Config, error) {
	c.Concurrency = or(c.Concurrency, 16)
	c.Lease = or(c.Lease, 10*time.Second)
	c.Poll = or(c.Poll, 1500*time.Millisecond)
	c.Timeout = or(c.Timeout, 30*time.Second)
	c.Backoff.Base = or(c.Backoff.Base, 100*time.Millisecond)
	c.Backoff.Max = or(c.Backoff.Max, 30*time.Second)
	c.StuckAfter = max(or(c.StuckAfter, 10), 0)
	c.MaxTakeovers = max(or(c.MaxTakeovers, 10), 0)
	c.Writers = or(c.Writers, 2)
	c.Drain = max(or(c.Drain, 10*time.Second), 0)
	if c.Node != "" {
		if problem := checkName(c.Node); problem != "" {
			return c, fmt.Errorf("saga: Config.Node %s", problem)
		}
	}
	if c.Concurrency < 1 {
		return c, fmt.Errorf("saga: Config.Concurrency is %d, want at least 1", c.Concurrency)
	}
	if c.Writers < 1 {
		return c, fmt.Errorf("saga: Config.Writers is %d, want at least 1", c.Writers)
	}
	if c.Lease < time.Second {
		return c, fmt.Errorf("saga: Config.Lease is %v, want at least 1s", c.Lease)
	}
	if c.Poll < 10*time.Millisecond {
		return c, fmt.Errorf("saga: Config.Poll is %v, want at least 10ms", c.Poll)
	}
	if c.Timeout < 0 {
		return c, fmt.Errorf("saga: Config.Timeout is %v, want more than 0", c.Timeout)
	}
	if c.Archive < 0 {
		return c, fmt.Errorf("saga: Config.Archive is %v, want 0 or more", c.Archive)
	}
	if c.Retain < 0 {
		return c, fmt.Errorf("saga: Config.Retain is %v, want 0 or more", c.Retain)
	}
	if c.Retain > 0 && c.Archive >= c.Retain {
		return c, fmt.Errorf("saga: Config.Archive is %v, want less than Config.Retain, which is %v", c.Archive, c.Retain)
	}
	if c.Backoff.Base < 0 || c.Backoff.Max < 0 || c.Backoff.Attempts != 0 {
		return c, fmt.Errorf("saga: Config.Backoff is %+v, want nothing negative and no Attempts", c.Backoff)
	}
	return c, nil
}

func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// Start starts a saga as a part of the caller's transaction: it exists if and only if
// tx commits. The same ID with the same data is a no-op, whatever has become of the
// saga; with other data, or under another definition, it returns [ErrConflict].
//
// Call [Engine.Wake] after the commit; without it the saga waits for the next poll.
//
// If tx is nil, the saga is started in a transaction of the engine's own, together with
// others that are started at the same moment; it exists when Start returns nil, and a running
// engine begins with it at once. After any error but ErrConflict it is unknown whether it
// exists, and Start may be called again.
func Start[T any](ctx context.Context, e *Engine, tx Tx, def *Definition[T], id string, data T) error {
	if id == "" || len(id) > maxID {
		return fmt.Errorf("saga: id has %d bytes, want 1 to %d", len(id), maxID)
	}
	if problem := checkText(id); problem != "" {
		return fmt.Errorf("saga: id %s", problem)
	}
	d := def.d
	if e.defs[DefinitionKey{d.name, d.version}] == nil {
		return fmt.Errorf("saga %s: start: definition %s version %d is not registered with the engine", id, d.name, d.version)
	}
	encoded, err := encode(data)
	if err != nil {
		return fmt.Errorf("saga %s: start: data: %w", id, err)
	}
	b := d.beginning(id, encoded)
	if h := e.cfg.Hooks.Starting; h != nil {
		b.Header = messaging.Header{}
		h(ctx, Starting{Saga: id, Name: d.name, Version: d.version, Header: b.Header})
	}
	if tx == nil {
		err = e.begin(ctx, b)
	} else {
		err = e.store.Start(ctx, tx, b)
	}
	if err != nil {
		return fmt.Errorf("saga %s: start: %w", id, err)
	}
	return nil
}

// begin starts a saga in a transaction of the engine's own. If there is a hand free, the
// saga belongs to this node from the start, and needs no claim.
func (e *Engine) begin(ctx context.Context, b Beginning) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := e.active.Load()
	mine := r != nil && !b.Waits && r.reserve(b.ID)
	if mine {
		b.Owner = r.node
	}
	ended := make(chan error, 1)
	go func() {
		begun, err := e.starts.commit(context.WithoutCancel(ctx), b, false)
		if mine {
			if err != nil {
				r.doubt.Store(true)
			}
			r.begun(b.ID, begun.Record)
		}
		if !mine || err != nil {
			e.Wake()
		}
		ended <- cmp.Or(err, begun.Err)
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

const maxID = 200

func (d *definition) beginning(id string, data []byte) Beginning {
	sum := sha256.Sum256(data)
	return Beginning{
		ID: id, Name: d.name, Version: d.version, Step: d.steps[0].Name, Data: data,
		Input: base64.RawURLEncoding.EncodeToString(sum[:]), Deadline: d.deadline,
		Waits: slices.ContainsFunc(d.steps, func(s erased) bool { return s.Kind.waits() || s.Undo.waits() }),
	}
}

// Wake makes a running engine look for due sagas now, and others through Config.Notifier. It
// never blocks.
func (e *Engine) Wake() {
	e.wakeHere()
	if e.cfg.Notifier != nil {
		e.cfg.Notifier.Notify()
	}
}

func (e *Engine) wakeHere() {
	e.woken.Add(1)
	signal(e.wake)
}

func (e *Engine) newNode() string {
	var b [6]byte
	_, _ = rand.Read(b[:])
	suffix := hex.EncodeToString(b[:])
	if e.cfg.Node == "" {
		return suffix
	}
	return e.cfg.Node + "-" + suffix
}

func (e *Engine) log() *slog.Logger {
	if e.cfg.Logger != nil {
		return e.cfg.Logger
	}
	return slog.Default()
}

// Run works on sagas until ctx ends, then drains: it takes up no further step, gives
// the steps in progress Config.Drain to finish, and leaves the rest to be
// resumed by another engine or the next Run. It returns nil after a drain. One Run
// of an engine may be active at a time.
func (e *Engine) Run(ctx context.Context) error {
	if !e.running.CompareAndSwap(false, true) {
		return errors.New("saga: the engine is running already")
	}
	defer e.running.Store(false)
	return newRun(ctx, e).run(ctx)
}
