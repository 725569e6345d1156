// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/internal/sqldialect"
	"github.com/dovetail-go/dovetail/messaging"
)

// Decider is the logic of one kind of stream: three pure functions, instead of a type to
// embed. S is the state, C a command, E what the events have in common, often an interface.
//
// Source: Chassaing, "Functional Event Sourcing Decider", 2021.
type Decider[S, C, E any] struct {
	// Zero returns the state before the first event.
	Zero func() S
	// Decide returns the events that a command leads to, none if there is nothing to do, or
	// the error with which it is refused. It does not change the state.
	Decide func(S, C) ([]E, error)
	// Evolve returns the state after an event. It refuses nothing: it happened.
	Evolve func(S, E) S
}

// Transaction is one that a [Repository] begins and ends. A [*sql.Tx] fits.
type Transaction interface {
	Tx
	// Commit makes everything last that was done in it.
	Commit() error
	// Rollback undoes it. After Commit it does nothing but return an error.
	Rollback() error
}

// RepositoryConfig configures a [Repository]. The zero value is a sound default.
type RepositoryConfig struct {
	// Attempts is how often Do decides anew after it lost a race, the first time included.
	// Zero means 16.
	Attempts int
	// Backoff is the pause before the next attempt, with full jitter. Zero fields mean 5 ms
	// for Base and 250 ms for Max.
	Backoff messaging.Backoff
	// SnapshotEvery is after how many events of a stream its state is stored. Zero means
	// never. Reading is quick; begin to think of it at some hundred events in a stream.
	SnapshotEvery int
	// SnapshotName tells this decider's states from those of others over the same streams.
	// Empty means "state".
	SnapshotName string
	// SnapshotSchema names the encoding of S. Change it whenever S or the meaning of an
	// event changes: snapshots of another schema are not used. Empty means "1".
	SnapshotSchema string
}

// Repository loads, decides and appends. It may be used from many goroutines.
type Repository[S, C, E any] struct {
	log     *Log
	begin   func(context.Context) (Transaction, error)
	codec   *Codec
	decider Decider[S, C, E]
	cfg     RepositoryConfig
}

// NewRepository returns a repository of the streams that a decider is for. begin begins a
// transaction, such as
//
//	func(ctx context.Context) (eventsource.Transaction, error) { return db.BeginTx(ctx, nil) }
func NewRepository[S, C, E any](log *Log, begin func(context.Context) (Transaction, error), codec *Codec, d Decider[S, C, E], cfg RepositoryConfig) (*Repository[S, C, E], error) {
	switch {
	case log == nil:
		return nil, errors.New("eventsource: Log is nil, want one from New")
	case begin == nil:
		return nil, errors.New("eventsource: begin is nil, want a function that begins a transaction")
	case codec == nil:
		return nil, errors.New("eventsource: Codec is nil, want one from NewCodec")
	case d.Zero == nil, d.Decide == nil, d.Evolve == nil:
		return nil, errors.New("eventsource: Decider lacks Zero, Decide or Evolve, want all three")
	case cfg.Attempts < 0:
		return nil, fmt.Errorf("eventsource: RepositoryConfig.Attempts is %d, want 0 or more", cfg.Attempts)
	case cfg.SnapshotEvery < 0:
		return nil, fmt.Errorf("eventsource: RepositoryConfig.SnapshotEvery is %d, want 0 or more", cfg.SnapshotEvery)
	case cfg.Backoff.Base < 0, cfg.Backoff.Max < 0:
		return nil, fmt.Errorf("eventsource: RepositoryConfig.Backoff is %v, want 0 or more", cfg.Backoff)
	}
	if cfg.Attempts == 0 {
		cfg.Attempts = 16
	}
	if cfg.Backoff.Base == 0 {
		cfg.Backoff.Base = 5 * time.Millisecond
	}
	if cfg.Backoff.Max == 0 {
		cfg.Backoff.Max = max(250*time.Millisecond, cfg.Backoff.Base)
	}
	if cfg.SnapshotName == "" {
		cfg.SnapshotName = "state"
	}
	if cfg.SnapshotSchema == "" {
		cfg.SnapshotSchema = "1"
	}
	for field, name := range map[string]string{"SnapshotName": cfg.SnapshotName, "SnapshotSchema": cfg.SnapshotSchema} {
		if err := checkText("RepositoryConfig."+field, name); err != nil {
			return nil, fmt.Errorf("eventsource: %w", err)
		}
	}
	return &Repository[S, C, E]{log: log, begin: begin, codec: codec, decider: d, cfg: cfg}, nil
}

// State is the state of a stream at a version.
type State[S any] struct {
	Stream string
	// Version is that of the last event in it, zero if the stream has none.
	Version int64
	Value   S
}

// Load returns the state of a stream as it is committed, from the last snapshot on. A
// stream without events has the decider's Zero.
func (r *Repository[S, C, E]) Load(ctx context.Context, stream string) (State[S], error) {
	start := time.Now()
	st, snapshot := r.restore(ctx, stream)
	st, _, err := r.catchUp(ctx, st)
	if err == nil && r.log.cfg.Hooks.Loaded != nil {
		r.log.cfg.Hooks.Loaded(Loaded{Stream: stream, Version: st.Version, Snapshot: snapshot, Took: time.Since(start)})
	}
	return st, err
}

// restore returns the state to begin from and the version of its snapshot.
func (r *Repository[S, C, E]) restore(ctx context.Context, stream string) (State[S], int64) {
	zero := State[S]{Stream: stream, Value: r.decider.Zero()}
	if r.cfg.SnapshotEvery == 0 {
		return zero, 0
	}
	snap, ok, err := r.log.store.Snapshot(ctx, stream, r.cfg.SnapshotName)
	switch {
	case err != nil:
		r.snapshotFailed(stream, err)
		return zero, 0
	case !ok || snap.Schema != r.cfg.SnapshotSchema:
		return zero, 0
	}
	st := State[S]{Stream: stream, Version: snap.Version, Value: r.decider.Zero()}
	if err := r.codec.unmarshal(ctx, snap.State, &st.Value); err != nil {
		r.snapshotFailed(stream, fmt.Errorf("eventsource: snapshot of %q at %d does not decode: %w", stream, snap.Version, err))
		return State[S]{Stream: stream, Value: r.decider.Zero()}, 0
	}
	return st, snap.Version
}

func (r *Repository[S, C, E]) snapshotFailed(stream string, err error) {
	if r.log.cfg.Hooks.SnapshotFailed != nil {
		r.log.cfg.Hooks.SnapshotFailed(SnapshotFailed{Stream: stream, Err: err})
	}
}

// catchUp evolves a state by the events after it, and returns the ID of the first of them.
func (r *Repository[S, C, E]) catchUp(ctx context.Context, st State[S]) (_ State[S], first string, err error) {
	for e, err := range r.log.Read(ctx, st.Stream, st.Version) {
		if err != nil {
			return st, first, err
		}
		if e.Version != st.Version+1 {
			return st, first, fmt.Errorf("eventsource: stream %q goes on with version %d after %d, want no gap", st.Stream, e.Version, st.Version)
		}
		values, err := r.codec.Decode(ctx, e.Event)
		if err != nil {
			return st, first, fmt.Errorf("eventsource: stream %q, version %d: %w", st.Stream, e.Version, err)
		}
		for _, v := range values {
			event, ok := v.(E)
			if !ok {
				return st, first, fmt.Errorf("eventsource: stream %q, version %d is a %T, want one that is %T", st.Stream, e.Version, v, *new(E))
			}
			st.Value = r.decider.Evolve(st.Value, event)
		}
		if first == "" {
			first = e.ID
		}
		st.Version = e.Version
	}
	return st, first, nil
}

// Plan is a decision that is ready to be appended.
type Plan[S any] struct {
	// Before is the state on which it was decided.
	Before State[S]
	// Events are what to append, none if there is nothing to do.
	Events []Event

	log   *Log
	after func() State[S]
}

// Append appends the plan's events in a transaction of the caller's, and expects the stream
// where it was loaded. After a [*VersionError] roll back and plan again.
func (p *Plan[S]) Append(ctx context.Context, tx Tx) error {
	return p.log.Append(ctx, tx, p.Before.Stream, At(p.Before.Version), p.Events...)
}

// After returns the state after the events. It may use up Before's Value.
func (p *Plan[S]) After() State[S] { return p.after() }

// Plan loads a stream and decides, without a transaction: the caller appends the plan in
// one of its own, next to other changes. The command's refusal is returned as it is.
func (r *Repository[S, C, E]) Plan(ctx context.Context, stream string, command C) (*Plan[S], error) {
	st, err := r.Load(ctx, stream)
	if err != nil {
		return nil, err
	}
	return r.plan(ctx, st, command)
}

func (r *Repository[S, C, E]) plan(ctx context.Context, st State[S], command C) (*Plan[S], error) {
	decided, err := r.decider.Decide(st.Value, command)
	if err != nil {
		return nil, err
	}
	p := &Plan[S]{Before: st, Events: make([]Event, len(decided)), log: r.log}
	for i, e := range decided {
		if p.Events[i], err = r.codec.Encode(ctx, e); err != nil {
			return nil, err
		}
		p.Events[i].ID = messaging.NewID()
	}
	p.after = func() State[S] {
		for _, e := range decided {
			st.Value = r.decider.Evolve(st.Value, e)
		}
		st.Version += int64(len(decided))
		decided = nil
		return st
	}
	return p, nil
}

// Do loads a stream, decides, appends and commits, and starts again after a lost race, on
// the state as it is then. The functions in also run in the same transaction after the
// append, for what must commit with it. It returns the state after the events.
//
// A refusal by Decide, and an error of one of the functions, are returned as they are and
// nothing is committed. After the last attempt the error is the [*VersionError]. When the
// outcome of the commit is not known, Do looks for its own events; if that fails too the
// error is one that [fault.IsUnknown] recognises.
func (r *Repository[S, C, E]) Do(ctx context.Context, stream string, command C, also ...func(ctx context.Context, tx Tx) error) (State[S], error) {
	st, err := r.Load(ctx, stream)
	if err != nil {
		return st, err
	}
	for attempt := 1; ; attempt++ {
		p, err := r.plan(ctx, st, command)
		if err != nil || len(p.Events) == 0 && len(also) == 0 {
			return st, err
		}
		maybe, err := r.commit(ctx, p, also)
		if err == nil {
			r.log.Wake()
			before := st.Version
			st = p.After()
			r.snapshot(ctx, st, before)
			return st, nil
		}
		conflict := errors.Is(err, ErrVersion) || sqldialect.IsContention(err)
		if !conflict && !maybe || ctx.Err() != nil {
			if maybe {
				err = fault.Unknown(err)
			}
			return st, err
		}
		if !maybe {
			if attempt == r.cfg.Attempts {
				return st, err
			}
			if err := pause(ctx, r.cfg.Backoff.Delay(attempt)); err != nil {
				return st, err
			}
		}
		cause, version := err, st.Version
		var first string
		if st, first, err = r.catchUp(ctx, st); err != nil {
			return st, errors.Join(cause, err)
		}
		if maybe {
			switch {
			case len(p.Events) > 0 && first == p.Events[0].ID: // it was ours
				r.log.Wake()
				r.snapshot(ctx, st, version)
				return st, nil
			case !conflict && (first == "" || len(p.Events) == 0):
				return st, fault.Unknown(fmt.Errorf("eventsource: commit of %q is not to be seen, and may still come: %w", stream, cause))
			case attempt == r.cfg.Attempts:
				return st, &VersionError{Stream: stream, Want: At(version), Err: cause}
			}
		}
	}
}

// commit appends a plan in a transaction. maybe says that it failed at the commit, so that
// it may have happened.
func (r *Repository[S, C, E]) commit(ctx context.Context, p *Plan[S], also []func(context.Context, Tx) error) (maybe bool, err error) {
	tx, err := r.begin(ctx)
	if err != nil {
		return false, fmt.Errorf("eventsource: begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := p.Append(ctx, tx); err != nil {
		return false, err
	}
	for _, f := range also {
		if err := f(ctx, tx); err != nil {
			return false, err
		}
	}
	if err := tx.Commit(); err != nil {
		return !errors.Is(err, ErrVersion), fmt.Errorf("eventsource: commit: %w", err)
	}
	return false, nil
}

// snapshot stores the state if it has passed a multiple of SnapshotEvery.
func (r *Repository[S, C, E]) snapshot(ctx context.Context, st State[S], before int64) {
	every := int64(r.cfg.SnapshotEvery)
	if every == 0 || st.Version/every == before/every {
		return
	}
	state, err := r.codec.marshal(ctx, &st.Value)
	if err == nil {
		err = r.log.store.SaveSnapshot(ctx, Snapshot{
			Stream: st.Stream, Name: r.cfg.SnapshotName, Schema: r.cfg.SnapshotSchema, Version: st.Version, State: state,
		})
	}
	if err != nil {
		r.snapshotFailed(st.Stream, err)
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
