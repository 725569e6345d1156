// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/internal/sqldialect"
	"github.com/dovetail-go/dovetail/messaging"
)

// ProjectorConfig configures a [Projector]. The zero value is a sound default.
type ProjectorConfig struct {
	// Batch is the largest number of events in one transaction. Zero means 500.
	Batch int
	// Poll is the longest time after which an idle shard looks for events without being
	// woken. Zero means the log's.
	Poll time.Duration
	// Lease is how long a shard stays with a projector that is not heard of, and so the
	// time until another takes over. A batch should take less. Zero means 10 seconds; at
	// least 100 ms.
	Lease time.Duration
	// MaxAttempts is how often a single event is tried before its shard is parked. Failures
	// of the database itself do not count. Zero means 5, negative means for ever.
	MaxAttempts int
	// Backoff is the pause after a failure. Zero fields mean 100 ms for Base and 10 seconds
	// for Max.
	Backoff messaging.Backoff
	// Manual leaves it to [Projector.Activate] to let a revision serve. Otherwise one that
	// is newer than what serves does so when all its shards have come to where the end of the
	// log was at the start of Run, and as far as the shards of what serves.
	Manual bool
	// Logger gets what an operator should know. Nil means slog.Default() at use.
	Logger *slog.Logger
	// Hooks are for metrics and traces.
	Hooks ProjectorHooks
}

// Projector builds a read model and keeps it up to date. Any number of processes run one for
// the same projection and share its shards.
type Projector[T ModelTx] struct {
	log        *Log
	models     Models[T]
	projection Projection[T]
	cfg        ProjectorConfig
	nudge      chan struct{}

	mu      sync.Mutex
	running bool
}

// NewProjector returns a projector of events in log into models.
func NewProjector[T ModelTx](log *Log, models Models[T], p Projection[T], cfg ProjectorConfig) (*Projector[T], error) {
	if log == nil {
		return nil, errors.New("eventsource: Log is nil, want one from New")
	}
	if models == nil {
		return nil, errors.New("eventsource: Models is nil, want one such as eventsourcesql's")
	}
	if err := checkText("Projection.Name", p.Name); err != nil {
		return nil, fmt.Errorf("eventsource: %w", err)
	}
	if p.Handle == nil {
		return nil, errors.New("eventsource: Projection.Handle is nil, want a function")
	}
	if p.Filter.Shard != 0 || p.Filter.Shards != 0 {
		return nil, errors.New("eventsource: Projection.Filter has Shard or Shards, want Projection.Shards")
	}
	numbers := []struct {
		name              string
		value             *int
		zero, least, most int
	}{
		{"Projection.Revision", &p.Revision, 1, 0, 1 << 30},
		{"Projection.Shards", &p.Shards, 1, 0, Buckets},
		{"ProjectorConfig.Batch", &cfg.Batch, 500, 0, 1 << 20},
		{"ProjectorConfig.MaxAttempts", &cfg.MaxAttempts, 5, -1 << 30, 1 << 30},
	}
	for _, n := range numbers {
		if *n.value < n.least || *n.value > n.most {
			return nil, fmt.Errorf("eventsource: %s is %d, want %d to %d", n.name, *n.value, n.least, n.most)
		}
		if *n.value == 0 {
			*n.value = n.zero
		}
	}
	durations := []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{
		{"Poll", &cfg.Poll, log.cfg.Poll},
		{"Lease", &cfg.Lease, 10 * time.Second},
		{"Backoff.Base", &cfg.Backoff.Base, 100 * time.Millisecond},
		{"Backoff.Max", &cfg.Backoff.Max, max(10*time.Second, cfg.Backoff.Base)},
	}
	for _, d := range durations {
		if *d.value < 0 {
			return nil, fmt.Errorf("eventsource: ProjectorConfig.%s is %v, want 0 or more", d.name, *d.value)
		}
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	if cfg.Lease < 100*time.Millisecond {
		return nil, fmt.Errorf("eventsource: ProjectorConfig.Lease is %v, want at least 100ms", cfg.Lease)
	}
	return &Projector[T]{log: log, models: models, projection: p, cfg: cfg, nudge: make(chan struct{}, 1)}, nil
}

// ID returns the projection's name and revision.
func (p *Projector[T]) ID() ProjectionID {
	return ProjectionID{Name: p.projection.Name, Revision: p.projection.Revision}
}

func (p *Projector[T]) logger() *slog.Logger {
	if p.cfg.Logger != nil {
		return p.cfg.Logger
	}
	return slog.Default()
}

// Run takes shards and applies their events until ctx ends, then finishes the batches at
// hand, gives the shards back and returns nil. It survives failures of both databases. Only
// one Run of a projector may go on at a time.
func (p *Projector[T]) Run(ctx context.Context) error {
	p.mu.Lock()
	if p.running {
		p.mu.Unlock()
		return fmt.Errorf("eventsource: projector %v is running already", p.ID())
	}
	p.running = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.running = false
		p.mu.Unlock()
	}()
	r := &projectorRun[T]{Projector: p, owner: messaging.NewID(), workers: make(map[int]*worker)}
	defer r.leave(context.WithoutCancel(ctx))
	tick := time.NewTicker(p.cfg.Lease / 3)
	defer tick.Stop()
	for {
		if err := r.beat(ctx); err != nil && ctx.Err() == nil {
			p.logger().LogAttrs(ctx, slog.LevelWarn, "eventsource: heartbeat failed", slog.String("projection", p.ID().String()), slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.nudge:
		}
	}
}

// projectorRun is one Run.
type projectorRun[T ModelTx] struct {
	*Projector[T]
	owner   string
	workers map[int]*worker
	drop    []int
	// target is the end of the log at the start, which a new revision must reach to serve.
	target    Cursor
	aimed     bool
	activated bool
}

// worker applies the events of one shard.
type worker struct {
	epoch int64
	stop  context.CancelFunc
	done  chan struct{}
}

func (w *worker) running() bool {
	select {
	case <-w.done:
		return false
	default:
		return true
	}
}

// beat renews the leases and has a worker for each shard that is held.
func (r *projectorRun[T]) beat(ctx context.Context) error {
	request := ProjectionLease{ID: r.ID(), Shards: r.projection.Shards, Owner: r.owner, TTL: r.cfg.Lease, Drop: r.drop}
	view, err := r.models.Lease(ctx, request)
	if err != nil {
		return err
	}
	r.drop = nil
	share := (r.projection.Shards + view.Owners - 1) / max(view.Owners, 1)
	if take := min(share-len(view.Held), view.Free); take > 0 {
		request.Drop, request.Take = nil, take
		if view, err = r.models.Lease(ctx, request); err != nil {
			return err
		}
	}
	held := make(map[int]bool, len(view.Held))
	for i, s := range view.Held {
		if i >= share {
			// Another projector has come: the shard is given up when its worker has stopped.
			r.drop = append(r.drop, s.Shard)
			continue
		}
		held[s.Shard] = true
		w := r.workers[s.Shard]
		if w != nil && w.epoch != s.Epoch {
			r.end(ctx, s.Shard)
			w = nil
		}
		if w == nil && r.cfg.Hooks.Leased != nil {
			r.cfg.Hooks.Leased(Leased{ID: r.ID(), Shard: s.Shard, Held: true})
		}
		if (w == nil || !w.running()) && s.Parked == nil {
			r.workers[s.Shard] = r.start(ctx, s)
		} else if w == nil {
			w = &worker{epoch: s.Epoch, stop: func() {}, done: make(chan struct{})}
			close(w.done)
			r.workers[s.Shard] = w
		}
	}
	for shard := range r.workers {
		if !held[shard] {
			r.end(ctx, shard)
		}
	}
	if len(r.drop) > 0 {
		signal(r.nudge)
	}
	return r.activate(ctx)
}

func (r *projectorRun[T]) start(ctx context.Context, s ProjectionShard) *worker {
	// The worker finishes its batch after the end of ctx, with a time limit of its own.
	stop := make(chan struct{})
	w := &worker{epoch: s.Epoch, stop: sync.OnceFunc(func() { close(stop) }), done: make(chan struct{})}
	go func() {
		defer signal(r.nudge)
		defer close(w.done)
		work, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		ending := context.AfterFunc(ctx, w.stop)
		defer ending()
		finish := make(chan struct{})
		defer close(finish)
		go func() {
			select {
			case <-finish:
				return
			case <-stop:
			}
			t := time.NewTimer(r.cfg.Lease)
			defer t.Stop()
			select {
			case <-finish:
			case <-t.C:
				cancel()
			}
		}()
		r.work(work, stop, s)
	}()
	return w
}

func (r *projectorRun[T]) end(_ context.Context, shard int) {
	w := r.workers[shard]
	w.stop()
	<-w.done
	delete(r.workers, shard)
	if r.cfg.Hooks.Leased != nil {
		r.cfg.Hooks.Leased(Leased{ID: r.ID(), Shard: shard})
	}
}

func (r *projectorRun[T]) leave(ctx context.Context) {
	for _, w := range r.workers {
		w.stop()
	}
	for shard := range r.workers {
		r.end(ctx, shard)
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Lease)
	defer cancel()
	if _, err := r.models.Lease(ctx, ProjectionLease{ID: r.ID(), Shards: r.projection.Shards, Owner: r.owner, TTL: r.cfg.Lease, Leave: true}); err != nil {
		r.logger().LogAttrs(ctx, slog.LevelWarn, "eventsource: leases not given back, they run out", slog.String("projection", r.ID().String()), slog.Any("error", err))
	}
}

// activate lets this revision serve when it is as far as the end of the log was at the start,
// and as the revision that serves.
func (r *projectorRun[T]) activate(ctx context.Context) error {
	if r.cfg.Manual || r.activated {
		return nil
	}
	if !r.aimed {
		h, err := r.log.Horizon(ctx)
		if err != nil {
			return err
		}
		r.target, r.aimed = h.Cursor, true
	}
	active, err := r.models.Active(ctx, r.ID().Name)
	if err != nil {
		return err
	}
	if active >= r.ID().Revision {
		r.activated = true
		return nil
	}
	target := r.target
	if active > 0 {
		// Looked at first: meanwhile both go on.
		old, err := r.models.Shards(ctx, ProjectionID{Name: r.ID().Name, Revision: active})
		if err != nil {
			return err
		}
		for _, s := range old {
			target = max(target, s.Cursor)
		}
	}
	shards, err := r.models.Shards(ctx, r.ID())
	if err != nil {
		return err
	}
	for _, s := range shards {
		if s.Cursor < target || s.Parked != nil {
			return nil
		}
	}
	changed, err := r.models.Activate(ctx, r.ID(), false)
	if err != nil {
		return err
	}
	r.activated = true
	if changed && active > 0 {
		r.logger().LogAttrs(ctx, slog.LevelInfo, "eventsource: a new revision serves", slog.String("projection", r.ID().String()), slog.Int("before", active))
	}
	return nil
}

// work applies the events of a shard until stop is closed, the lease is lost or the shard is parked.
func (r *projectorRun[T]) work(ctx context.Context, stop <-chan struct{}, s ProjectionShard) {
	wakes, unsubscribe := r.log.subscribe()
	defer unsubscribe()
	idle, end := stopping(ctx, stop)
	defer end()
	filter := r.projection.Filter
	if r.projection.Shards > 1 {
		filter.Shard, filter.Shards = s.Shard, r.projection.Shards
	}
	wait := waiter{poll: r.cfg.Poll}
	limit, attempts, troubles, caught := r.cfg.Batch, 0, 0, false
	for idle.Err() == nil {
		page, err := r.log.page(idle, s.Cursor, filter, limit)
		if err != nil {
			if idle.Err() != nil {
				return
			}
			troubles++
			r.trouble(ctx, s.Shard, "eventsource: events cannot be read", err)
			_ = pause(idle, r.cfg.Backoff.Delay(troubles))
			continue
		}
		if page.Next > s.Cursor {
			wait.reset()
			failed, err := r.apply(ctx, s, page)
			switch {
			case err == nil:
				s.Cursor = page.Next
				limit, attempts, troubles = min(2*limit, r.cfg.Batch), 0, 0
			case errors.Is(err, errLost):
				return
			default:
				if idle.Err() != nil {
					return
				}
				n := len(page.Events)
				troubles++
				delay := r.cfg.Backoff.Delay(troubles)
				counts := failed && !sqldialect.IsContention(err)
				if counts && n == 1 {
					// While the database does not answer, no event is to blame.
					if _, down := r.models.Shards(ctx, r.ID()); down != nil {
						counts = false
					}
				}
				if r.cfg.Hooks.Failed != nil {
					f := ApplyFailed{ID: r.ID(), Shard: s.Shard, Events: n, Err: err}
					if counts && n == 1 {
						f.Attempt = attempts + 1
					}
					r.cfg.Hooks.Failed(f)
				}
				switch {
				case counts && n > 1:
					// One of them: the good ones before it are applied in smaller batches.
					limit = n / 2
					continue
				case counts:
					attempts++
					verdict := fault.Judge(ctx, err)
					if fault.IsPermanent(err) || r.cfg.MaxAttempts > 0 && attempts >= r.cfg.MaxAttempts {
						if r.park(ctx, s, page.Events[0], err, attempts) {
							return
						}
					}
					delay = max(delay, verdict.After)
				default:
					r.trouble(ctx, s.Shard, "eventsource: batch cannot be applied", err)
				}
				_ = pause(idle, delay)
				continue
			}
		}
		if !page.More {
			if !caught {
				caught = true
				signal(r.nudge) // perhaps this revision can serve now
			}
			wait.sleep(idle, wakes, page.Waiting)
		}
	}
}

// stopping returns a context that ends with ctx or stop.
func stopping(ctx context.Context, stop <-chan struct{}) (context.Context, func()) {
	c, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-stop:
			cancel()
		case <-c.Done():
		}
	})
	return c, func() { cancel(); wg.Wait() }
}

func (r *projectorRun[T]) trouble(ctx context.Context, shard int, what string, err error) {
	r.logger().LogAttrs(ctx, slog.LevelWarn, what, slog.String("projection", r.ID().String()), slog.Int("shard", shard), slog.Any("error", err))
}

// errLost says that the checkpoint is not where this worker left it.
var errLost = errors.New("eventsource: the shard belongs to another")

// apply commits a page and the new checkpoint. failed says that the error is Handle's.
func (r *projectorRun[T]) apply(ctx context.Context, s ProjectionShard, page Page) (failed bool, err error) {
	start := time.Now()
	tx, err := r.models.Begin(ctx)
	if err != nil {
		return false, fmt.Errorf("eventsource: begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	// The checkpoint first: its row is locked, so that an owner of the past is told before
	// it has done anything, and one that is at work holds up its successor.
	ok, err := r.models.Advance(ctx, tx, r.ID(), s.Shard, s.Epoch, s.Cursor, page.Next)
	if err != nil {
		return false, fmt.Errorf("eventsource: advance: %w", err)
	}
	if !ok {
		return false, errLost
	}
	if len(page.Events) > 0 {
		if err := r.handle(ctx, tx, page.Events); err != nil {
			return true, err
		}
	}
	if err := tx.Commit(); err != nil {
		// Whether it has happened is seen at the checkpoint.
		r.trouble(ctx, s.Shard, "eventsource: commit failed", err)
		_ = pause(ctx, r.cfg.Backoff.Delay(1))
		return false, errLost
	}
	if r.cfg.Hooks.Applied != nil && len(page.Events) > 0 {
		last := page.Events[len(page.Events)-1]
		r.cfg.Hooks.Applied(Applied{
			ID: r.ID(), Shard: s.Shard, Events: len(page.Events), Cursor: page.Next,
			Lag: max(0, time.Since(last.Recorded)), Took: time.Since(start),
		})
	}
	return false, nil
}

// handle calls Handle; a panic is a failure.
func (r *projectorRun[T]) handle(ctx context.Context, tx T, events []Recorded) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("eventsource: Handle of %v panics: %v\n%s", r.ID(), v, debug.Stack())
		}
	}()
	return r.projection.Handle(ctx, tx, events)
}

// park stops the shard before an event and returns whether this worker is to end.
func (r *projectorRun[T]) park(ctx context.Context, s ProjectionShard, e Recorded, cause error, attempts int) bool {
	p := Parked{ID: r.ID(), Shard: s.Shard, At: e.Cursor, Event: e.ID, Stream: e.Stream, Reason: cause.Error(), Attempts: attempts, Since: time.Now()}
	ok, err := r.models.Park(ctx, s.Epoch, s.Cursor, p)
	if err != nil {
		r.trouble(ctx, s.Shard, "eventsource: shard cannot be parked", err)
		return false
	}
	if ok {
		r.logger().LogAttrs(ctx, slog.LevelError, "eventsource: projection stopped at an event that cannot be applied",
			slog.String("projection", r.ID().String()), slog.Int("shard", s.Shard), slog.String("stream", e.Stream),
			slog.Int64("cursor", int64(e.Cursor)), slog.String("event_id", e.ID), slog.Any("error", cause))
		if r.cfg.Hooks.Parked != nil {
			r.cfg.Hooks.Parked(p)
		}
	}
	return true
}

// Parked returns the shards that have stopped at an event that cannot be applied. Each
// waits for [Projector.Retry] or [Projector.Skip].
func (p *Projector[T]) Parked(ctx context.Context) ([]Parked, error) {
	shards, err := p.models.Shards(ctx, p.ID())
	if err != nil {
		return nil, fmt.Errorf("eventsource: parked: %w", err)
	}
	var list []Parked
	for _, s := range shards {
		if s.Parked != nil {
			list = append(list, *s.Parked)
		}
	}
	return list, nil
}

// Retry lets a shard that is parked try its event again: for use after the cause is mended. It
// returns [ErrNotParked] if there is none at this event.
func (p *Projector[T]) Retry(ctx context.Context, at Cursor) error {
	return p.settle("retry", at, func() (bool, error) { return p.models.Retry(ctx, p.ID(), at) })
}

// Skip lets a shard that is parked go on without its event. The reason, which must not be
// empty, stays on record. It returns [ErrNotParked] if there is none at this event.
func (p *Projector[T]) Skip(ctx context.Context, at Cursor, reason string) error {
	if reason == "" {
		return errors.New("eventsource: reason is empty, want why the event is skipped")
	}
	return p.settle("skip", at, func() (bool, error) { return p.models.Skip(ctx, p.ID(), at, reason) })
}

func (p *Projector[T]) settle(what string, at Cursor, do func() (bool, error)) error {
	switch ok, err := do(); {
	case err != nil:
		return fmt.Errorf("eventsource: %s %d of %v: %w", what, at, p.ID(), err)
	case !ok:
		return fmt.Errorf("%w: %d of %v", ErrNotParked, at, p.ID())
	}
	signal(p.nudge)
	return nil
}

// Skipped returns the events that operators gave up, in order.
func (p *Projector[T]) Skipped(ctx context.Context) ([]Skipped, error) {
	list, err := p.models.Skipped(ctx, p.ID())
	if err != nil {
		return nil, fmt.Errorf("eventsource: skipped: %w", err)
	}
	return list, nil
}

// Activate lets this revision serve at once, also if a newer one serves or it has not
// caught up. Stop the projectors of a newer one, or set their Manual: at their next start they
// would let it serve again.
func (p *Projector[T]) Activate(ctx context.Context) error {
	if _, err := p.models.Activate(ctx, p.ID(), true); err != nil {
		return fmt.Errorf("eventsource: activate %v: %w", p.ID(), err)
	}
	return nil
}

// Remove forgets the checkpoints of this revision, when nobody runs it any more and its
// tables are dropped. It refuses the revision that serves.
func (p *Projector[T]) Remove(ctx context.Context) error {
	active, err := p.models.Active(ctx, p.ID().Name)
	if err == nil && active == p.ID().Revision {
		return fmt.Errorf("eventsource: %v serves, want another revision active before it is removed", p.ID())
	}
	if err == nil {
		err = p.models.Remove(ctx, p.ID())
	}
	if err != nil {
		return fmt.Errorf("eventsource: remove %v: %w", p.ID(), err)
	}
	return nil
}

// ProjectorStats is the state of a projection.
type ProjectorStats struct {
	ID ProjectionID
	// Serves tells that this is the active revision.
	Serves bool
	Shards []ProjectionShard
	// Cursor is the least of the shards' checkpoints, Head the end of what could be
	// applied.
	Cursor, Head Cursor
	// Behind is how long ago the first event was recorded that is not applied, zero if all
	// are, by this machine's clock and the events' database's.
	Behind time.Duration
	// Parked is how many shards have stopped at a bad event.
	Parked int
}

// Stats returns how far the projection is.
func (p *Projector[T]) Stats(ctx context.Context) (ProjectorStats, error) {
	st := ProjectorStats{ID: p.ID()}
	fail := func(err error) (ProjectorStats, error) {
		return ProjectorStats{}, fmt.Errorf("eventsource: stats of %v: %w", p.ID(), err)
	}
	h, err := p.log.Horizon(ctx)
	if err != nil {
		return fail(err)
	}
	active, err := p.models.Active(ctx, st.ID.Name)
	if err != nil {
		return fail(err)
	}
	if st.Shards, err = p.models.Shards(ctx, st.ID); err != nil {
		return fail(err)
	}
	st.Serves, st.Head, st.Cursor = active == st.ID.Revision, h.Cursor, h.Cursor
	if len(st.Shards) == 0 {
		st.Cursor = 0
	}
	for _, s := range st.Shards {
		if s.Parked != nil {
			st.Parked++
		}
		st.Cursor = min(st.Cursor, s.Cursor)
	}
	if st.Cursor < st.Head {
		page, err := p.log.page(ctx, st.Cursor, p.projection.Filter, 1)
		if err != nil {
			return fail(err)
		}
		if len(page.Events) > 0 {
			st.Behind = max(0, time.Since(page.Events[0].Recorded))
		}
	}
	return st, nil
}

// StoppedError says that a projection does not come to an event because it is parked
// before it.
type StoppedError struct{ Parked Parked }

// Error names the projection and the event.
func (e *StoppedError) Error() string {
	return fmt.Sprintf("eventsource: projection %v is stopped before event %d: %s", e.Parked.ID, e.Parked.At, e.Parked.Reason)
}

// WaitFor waits until the revision of a projection that serves has applied everything up to a
// cursor, so that a command's author reads its own writes: the cursor is that of [Log.End]
// after the commit. It works from any process. It returns ctx's error when that ends
// first, and a [*StoppedError] if the projection is parked before the cursor.
func WaitFor[T ModelTx](ctx context.Context, m Models[T], name string, at Cursor) error {
	for delay := time.Millisecond; ; delay = min(2*delay, 100*time.Millisecond) {
		reached, err := reached(ctx, m, name, at)
		if err != nil {
			return fmt.Errorf("eventsource: wait for %q to reach %d: %w", name, at, err)
		}
		if reached {
			return nil
		}
		if err := pause(ctx, delay); err != nil {
			return fmt.Errorf("eventsource: wait for %q to reach %d: %w", name, at, err)
		}
	}
}

func reached[T ModelTx](ctx context.Context, m Models[T], name string, at Cursor) (bool, error) {
	revision, err := m.Active(ctx, name)
	if err != nil || revision == 0 {
		return false, err
	}
	shards, err := m.Shards(ctx, ProjectionID{Name: name, Revision: revision})
	if err != nil {
		return false, err
	}
	all := len(shards) > 0
	for _, s := range shards {
		if s.Cursor >= at || s.Parked != nil && s.Parked.At > at {
			continue // what it is parked at is the first that is not applied
		}
		all = false
		if s.Parked != nil {
			return false, &StoppedError{*s.Parked}
		}
	}
	return all, nil
}
