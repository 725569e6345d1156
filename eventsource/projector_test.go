// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcemem"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

type memTx = *eventsourcemem.ModelTx

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// world is a log, a read model that lists the types of the events, and what may go wrong.
type world struct {
	store  *eventsourcemem.Store
	log    *eventsource.Log
	models *eventsourcemem.Models

	mu   sync.Mutex
	list []string
	bad  map[string]error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{store: eventsourcemem.New(), models: eventsourcemem.NewModels(), bad: make(map[string]error)}
	w.log = newLog(t, w.store, eventsource.Config{Poll: time.Second})
	return w
}

func (w *world) projection(shards int) eventsource.Projection[memTx] {
	return eventsource.Projection[memTx]{Name: "list", Shards: shards, Handle: func(_ context.Context, tx memTx, batch []eventsource.Recorded) error {
		for _, e := range batch {
			w.mu.Lock()
			err := w.bad[e.Type]
			w.mu.Unlock()
			if err != nil {
				if strings.Contains(err.Error(), "panic") {
					panic(err)
				}
				return err
			}
			tx.OnCommit(func() {
				w.mu.Lock()
				w.list = append(w.list, e.Type)
				w.mu.Unlock()
			})
		}
		return nil
	}}
}

func (w *world) fail(name string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bad[name] = err
}

func (w *world) seen() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.list, " ")
}

func (w *world) projector(t *testing.T, p eventsource.Projection[memTx], cfg eventsource.ProjectorConfig) *eventsource.Projector[memTx] {
	t.Helper()
	cfg.Logger = quiet
	projector, err := eventsource.NewProjector(w.log, w.models, p, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return projector
}

// start runs a projector until stop is called.
func start(t *testing.T, p *eventsource.Projector[memTx]) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	}
}

func TestNewProjector(t *testing.T) {
	w := newWorld(t)
	for want, change := range map[string]func(*eventsource.Projection[memTx], *eventsource.ProjectorConfig){
		"Projection.Name is empty":     func(p *eventsource.Projection[memTx], _ *eventsource.ProjectorConfig) { p.Name = "" },
		"Projection.Handle is nil":     func(p *eventsource.Projection[memTx], _ *eventsource.ProjectorConfig) { p.Handle = nil },
		"Projection.Revision is -1":    func(p *eventsource.Projection[memTx], _ *eventsource.ProjectorConfig) { p.Revision = -1 },
		"Projection.Shards is 1025":    func(p *eventsource.Projection[memTx], _ *eventsource.ProjectorConfig) { p.Shards = 1025 },
		"Filter has Shard":             func(p *eventsource.Projection[memTx], _ *eventsource.ProjectorConfig) { p.Filter.Shards = 2 },
		"ProjectorConfig.Batch is -1":  func(_ *eventsource.Projection[memTx], c *eventsource.ProjectorConfig) { c.Batch = -1 },
		"ProjectorConfig.Lease is 1ms": func(_ *eventsource.Projection[memTx], c *eventsource.ProjectorConfig) { c.Lease = time.Millisecond },
	} {
		p, cfg := w.projection(1), eventsource.ProjectorConfig{}
		change(&p, &cfg)
		if _, err := eventsource.NewProjector(w.log, w.models, p, cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewProjector = %v, want an error with %q", err, want)
		}
	}
}

func TestProjectorAppliesWhatComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		put(t, w.log, w.store, "a", "1", "2", "3")
		var applied []eventsource.Applied
		p := w.projector(t, w.projection(1), eventsource.ProjectorConfig{Batch: 2, Hooks: eventsource.ProjectorHooks{
			Applied: func(a eventsource.Applied) { applied = append(applied, a) },
		}})
		stop := start(t, p)
		synctest.Wait()
		if got := w.seen(); got != "1 2 3" {
			t.Fatalf("at first = %q, want what was there", got)
		}
		put(t, w.log, w.store, "b", "4")
		w.log.Wake()
		synctest.Wait()
		if got := w.seen(); got != "1 2 3 4" {
			t.Errorf("after Wake = %q, want 4 at once", got)
		}
		put(t, w.log, w.store, "b", "5")
		time.Sleep(time.Second + time.Millisecond)
		if got := w.seen(); got != "1 2 3 4 5" {
			t.Errorf("after a poll = %q, want 5", got)
		}
		if err := p.Run(t.Context()); err == nil {
			t.Error("a second Run = nil, want an error")
		}
		stop()
		stop = start(t, p) // and again
		put(t, w.log, w.store, "b", "6")
		time.Sleep(2 * time.Second)
		stop()
		if got := w.seen(); got != "1 2 3 4 5 6" {
			t.Errorf("after another Run = %q, want each event once", got)
		}
		if len(applied) != 5 || applied[0].Events != 2 || applied[4].Cursor != 6 {
			t.Errorf("Applied = %+v, want batches of 2, 1, 1, 1, 1", applied)
		}
		st, err := p.Stats(t.Context())
		if err != nil || !st.Serves || st.Cursor != 6 || st.Head != 6 || st.Behind != 0 || len(st.Shards) != 1 || st.Shards[0].Owner != "" {
			t.Errorf("Stats = %+v, %v, want all applied and nobody running", st, err)
		}
	})
}

func TestBadEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		bad := errors.New("cannot be applied")
		w.fail("3", bad)
		w.fail("5", errors.New("panic"))
		put(t, w.log, w.store, "a", "1", "2", "3", "4", "5", "6")
		var parked []eventsource.Parked
		attempts := 0
		p := w.projector(t, w.projection(1), eventsource.ProjectorConfig{MaxAttempts: 3, Hooks: eventsource.ProjectorHooks{
			Parked: func(p eventsource.Parked) { parked = append(parked, p) },
			Failed: func(f eventsource.ApplyFailed) { attempts = max(attempts, f.Attempt) },
		}})
		stop := start(t, p)
		defer stop()
		time.Sleep(time.Minute)
		if got := w.seen(); got != "1 2" {
			t.Fatalf("before the bad event = %q, want 1 2", got)
		}
		list, err := p.Parked(t.Context())
		if err != nil || len(list) != 1 || list[0].At != 3 || list[0].Stream != "a" || list[0].Reason != bad.Error() || list[0].Attempts != 3 || attempts != 3 || len(parked) != 1 {
			t.Fatalf("Parked = %+v, %v, want event 3 after 3 attempts, told once", list, err)
		}
		if st, err := p.Stats(t.Context()); err != nil || st.Parked != 1 || st.Cursor != 2 || st.Behind < time.Minute {
			t.Errorf("Stats = %+v, %v, want one parked, a minute behind", st, err)
		}
		if n, err := w.models.Active(t.Context(), "list"); err != nil || n != 0 {
			t.Errorf("Active = %d, %v, want none: it has not caught up", n, err)
		}
		for what, err := range map[string]error{"Retry": p.Retry(t.Context(), 4), "Skip": p.Skip(t.Context(), 4, "why")} {
			if !errors.Is(err, eventsource.ErrNotParked) {
				t.Errorf("%s elsewhere = %v, want ErrNotParked", what, err)
			}
		}
		if err := p.Skip(t.Context(), 3, ""); err == nil {
			t.Error("Skip without a reason = nil, want an error")
		}
		w.fail("3", nil)
		if err := p.Retry(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := w.seen(); got != "1 2 3 4" {
			t.Fatalf("after Retry = %q, want it to go on to the next bad event, which panics", got)
		}
		if list, _ := p.Parked(t.Context()); len(list) != 1 || list[0].At != 5 || !strings.Contains(list[0].Reason, "panic") {
			t.Fatalf("Parked = %+v, want event 5", list)
		}
		if err := p.Skip(t.Context(), 5, "it is of no use"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := w.seen(); got != "1 2 3 4 6" {
			t.Errorf("after Skip = %q, want 5 left out", got)
		}
		if list, err := p.Skipped(t.Context()); err != nil || len(list) != 1 || list[0].At != 5 || list[0].Because != "it is of no use" {
			t.Errorf("Skipped = %+v, %v, want event 5 with the reason", list, err)
		}
	})
}

func TestPermanentErrorParksAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fail("1", fault.Permanent(errors.New("never")))
		put(t, w.log, w.store, "a", "1")
		p := w.projector(t, w.projection(1), eventsource.ProjectorConfig{MaxAttempts: -1})
		stop := start(t, p)
		defer stop()
		synctest.Wait()
		if list, _ := p.Parked(t.Context()); len(list) != 1 || list[0].Attempts != 1 {
			t.Errorf("Parked = %+v, want it after one attempt", list)
		}
	})
}

// flaky are models whose database is down for a while.
type flaky struct {
	*eventsourcemem.Models
	mu   sync.Mutex
	down bool
}

func (f *flaky) set(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

func (f *flaky) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return errDown
	}
	return nil
}

func (f *flaky) Shards(ctx context.Context, id eventsource.ProjectionID) ([]eventsource.ProjectionShard, error) {
	if err := f.err(); err != nil {
		return nil, err
	}
	return f.Models.Shards(ctx, id)
}

func (f *flaky) Lease(ctx context.Context, r eventsource.ProjectionLease) (eventsource.ProjectionView, error) {
	if err := f.err(); err != nil {
		return eventsource.ProjectionView{}, err
	}
	return f.Models.Lease(ctx, r)
}

// An outage blames no event, however long it lasts: here Handle cannot reach the database.
func TestOutageParksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		put(t, w.log, w.store, "a", "1")
		models := &flaky{Models: w.models}
		p, err := eventsource.NewProjector(w.log, models, w.projection(1), eventsource.ProjectorConfig{Logger: quiet, Lease: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		stop := start(t, p)
		synctest.Wait()
		models.set(true)
		w.fail("2", errDown)
		put(t, w.log, w.store, "a", "2", "3")
		time.Sleep(time.Hour)
		models.set(false)
		w.fail("2", nil)
		time.Sleep(time.Minute)
		stop()
		if got := w.seen(); got != "1 2 3" {
			t.Errorf("after the outage = %q, want 1 2 3", got)
		}
	})
}

func TestReplicasShareTheShards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := eventsource.ProjectorConfig{Lease: 9 * time.Second}
		var stops []func()
		for range 3 {
			stops = append(stops, start(t, w.projector(t, w.projection(6), cfg)))
			time.Sleep(20 * time.Second)
		}
		id := eventsource.ProjectionID{Name: "list", Revision: 1}
		owners := func() (n []int) {
			shards, err := w.models.Shards(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			count := map[string]int{}
			for _, s := range shards {
				count[s.Owner]++
			}
			for _, c := range count {
				n = append(n, c)
			}
			slices.Sort(n)
			return n
		}
		if got := owners(); fmt.Sprint(got) != "[2 2 2]" {
			t.Errorf("shards of three replicas = %v, want two each", got)
		}
		for i := range 30 {
			put(t, w.log, w.store, fmt.Sprint("s", i), fmt.Sprint(i))
		}
		stops[0]() // leaves in order
		time.Sleep(20 * time.Second)
		if got := owners(); fmt.Sprint(got) != "[3 3]" {
			t.Errorf("shards of two replicas = %v, want three each", got)
		}
		for i := range 30 {
			put(t, w.log, w.store, fmt.Sprint("s", i), fmt.Sprint(30+i))
		}
		time.Sleep(2 * time.Second)
		stops[1]()
		stops[2]()
		got := strings.Fields(w.seen())
		index := make(map[string]int)
		for i, name := range got {
			index[name] = i
		}
		if len(got) != 60 || len(index) != 60 {
			t.Fatalf("%d events applied, %d different, want 60 once", len(got), len(index))
		}
		for i := range 30 {
			if index[fmt.Sprint(i)] > index[fmt.Sprint(30+i)] {
				t.Errorf("stream s%d was applied out of order", i)
			}
		}
	})
}

// A projector that stands still for longer than its lease and goes on applies nothing twice.
func TestZombie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := eventsource.ProjectorConfig{Logger: quiet, Lease: time.Second, Backoff: messaging.Backoff{Base: time.Millisecond}}
		frozen, thawed := make(chan struct{}), make(chan struct{})
		p := w.projection(1)
		handle := p.Handle
		var once sync.Once
		models := &slow{Models: w.models}
		p.Handle = func(ctx context.Context, tx memTx, batch []eventsource.Recorded) error {
			once.Do(func() {
				models.freeze(true)
				close(frozen)
				<-thawed
				models.freeze(false)
			})
			return handle(ctx, tx, batch)
		}
		put(t, w.log, w.store, "a", "1", "2")
		first, err := eventsource.NewProjector(w.log, models, p, cfg)
		if err != nil {
			t.Fatal(err)
		}
		stopFirst := start(t, first)
		<-frozen
		// The first holds the memory's only transaction, so its successor cannot begin
		// before it has ended; it has the lease already.
		stopSecond := start(t, w.projector(t, w.projection(1), cfg))
		time.Sleep(10 * time.Second)
		put(t, w.log, w.store, "a", "3")
		close(thawed)
		time.Sleep(10 * time.Second)
		stopFirst()
		stopSecond()
		if got := w.seen(); got != "1 2 3" {
			t.Errorf("applied %q, want each event once and in order", got)
		}
	})
}

// slow are models whose heartbeats hang while it is frozen.
type slow struct {
	*eventsourcemem.Models
	mu     sync.Mutex
	frozen bool
}

func (s *slow) freeze(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = on
}

func (s *slow) Lease(ctx context.Context, r eventsource.ProjectionLease) (eventsource.ProjectionView, error) {
	for {
		s.mu.Lock()
		frozen := s.frozen
		s.mu.Unlock()
		if !frozen {
			return s.Models.Lease(ctx, r)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestRevisions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		put(t, w.log, w.store, "a", "1", "2")
		old := w.projector(t, w.projection(1), eventsource.ProjectorConfig{})
		stopOld := start(t, old)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := eventsource.WaitFor(ctx, w.models, "list", 2); err != nil {
			t.Fatalf("WaitFor = %v", err)
		}
		next := newWorld(t)
		p := next.projection(2)
		p.Revision = 2
		next.log, next.models = w.log, w.models
		next.fail("2", errors.New("a mistake in the new revision"))
		second := next.projector(t, p, eventsource.ProjectorConfig{})
		stopSecond := start(t, second)
		time.Sleep(2 * time.Minute)
		if n, err := w.models.Active(t.Context(), "list"); err != nil || n != 1 {
			t.Errorf("Active = %d, %v, want 1 while 2 is stopped", n, err)
		}
		if err := eventsource.WaitFor(ctx, w.models, "list", 2); err != nil {
			t.Errorf("WaitFor meanwhile = %v, want the old revision to serve", err)
		}
		next.fail("2", nil)
		list, _ := second.Parked(t.Context())
		if len(list) != 1 {
			t.Fatalf("Parked = %+v, want one", list)
		}
		if err := second.Retry(t.Context(), list[0].At); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n, _ := w.models.Active(t.Context(), "list"); n != 2 || next.seen() != w.seen() {
			t.Errorf("Active = %d with %q, want 2 with %q", n, next.seen(), w.seen())
		}
		if err := second.Remove(t.Context()); err == nil {
			t.Error("Remove of what serves = nil, want an error")
		}
		stopOld()
		if err := old.Remove(t.Context()); err != nil {
			t.Errorf("Remove = %v, want nil", err)
		}
		if err := old.Activate(t.Context()); err != nil {
			t.Errorf("Activate = %v, want nil", err)
		}
		if n, _ := w.models.Active(t.Context(), "list"); n != 1 {
			t.Errorf("Active = %d, want 1 as told", n)
		}
		stopSecond()
	})
}

// Who has read from the old revision must not see less in the new one.
func TestANewRevisionIsAsFarAsTheOldOneBeforeItServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		put(t, w.log, w.store, "a", "1", "2")
		// The old one is at event 5, which the new one cannot know when it starts.
		old := eventsource.ProjectionID{Name: "list", Revision: 1}
		v, err := w.models.Lease(t.Context(), eventsource.ProjectionLease{ID: old, Shards: 1, Owner: "old", TTL: time.Hour, Take: 1})
		if err != nil {
			t.Fatal(err)
		}
		tx, err := w.models.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := w.models.Advance(t.Context(), tx, old, 0, v.Held[0].Epoch, 0, 5); !ok || err != nil {
			t.Fatalf("Advance = %v, %v", ok, err)
		}
		_, err = w.models.Activate(t.Context(), old, false)
		if err := errors.Join(err, tx.Commit()); err != nil {
			t.Fatal(err)
		}
		p := w.projection(1)
		p.Revision = 2
		stop := start(t, w.projector(t, p, eventsource.ProjectorConfig{}))
		for _, c := range []struct {
			event, seen string
			active      int
		}{{"3", "1 2 3", 1}, {"4", "1 2 3 4", 1}, {"5", "1 2 3 4 5", 2}} {
			put(t, w.log, w.store, "a", c.event)
			time.Sleep(time.Minute)
			if n, err := w.models.Active(t.Context(), "list"); err != nil || n != c.active || w.seen() != c.seen {
				t.Errorf("Active = %d, %v with %q, want %d with %q", n, err, w.seen(), c.active, c.seen)
			}
		}
		stop()
	})
}

func TestTheNextAttemptIsNotBeforeWhatTheErrorAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fail("1", fault.RetryAfter(errDown, time.Hour))
		put(t, w.log, w.store, "a", "1")
		stop := start(t, w.projector(t, w.projection(1), eventsource.ProjectorConfig{}))
		synctest.Wait()
		w.fail("1", nil)
		for _, c := range []struct {
			after time.Duration
			want  string
		}{{59 * time.Minute, ""}, {time.Minute, "1"}} {
			time.Sleep(c.after)
			synctest.Wait()
			if got := w.seen(); got != c.want {
				t.Errorf("applied %q after %v more, want %q", got, c.after, c.want)
			}
		}
		stop()
	})
}

func TestStatsAreOfTheShardThatIsLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		streams := map[int]string{}
		for i := range 100 {
			name := fmt.Sprint("s", i)
			streams[eventsource.Bucket(name)%2] = name
		}
		w.fail("bad", fault.Permanent(errDown))
		put(t, w.log, w.store, streams[1], "1")
		put(t, w.log, w.store, streams[0], "bad")
		put(t, w.log, w.store, streams[1], "2")
		p := w.projector(t, w.projection(2), eventsource.ProjectorConfig{})
		stop := start(t, p)
		time.Sleep(time.Minute)
		if st, err := p.Stats(t.Context()); err != nil || st.Cursor >= 2 || st.Head != 3 || st.Parked != 1 {
			t.Errorf("Stats = %+v, %v, want it before event 2, where a shard is stopped", st, err)
		}
		stop()
	})
}

func TestContentionParksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fail("1", errors.New("database is locked"))
		put(t, w.log, w.store, "a", "1")
		p := w.projector(t, w.projection(1), eventsource.ProjectorConfig{MaxAttempts: 2})
		stop := start(t, p)
		time.Sleep(time.Hour)
		if list, err := p.Parked(t.Context()); err != nil || len(list) > 0 {
			t.Errorf("Parked = %+v, %v, want none", list, err)
		}
		stop()
	})
}

func TestAttemptsAreOfOneEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		put(t, w.log, w.store, "a", "1", "2", "3")
		left := map[string]int{"1": 4, "2": 4, "3": 4}
		p := w.projection(1)
		handle := p.Handle
		p.Handle = func(ctx context.Context, tx memTx, batch []eventsource.Recorded) error {
			if first := batch[0].Type; left[first] > 0 {
				left[first]--
				return errDown
			}
			return handle(ctx, tx, batch)
		}
		stop := start(t, w.projector(t, p, eventsource.ProjectorConfig{MaxAttempts: 5, Batch: 1}))
		time.Sleep(time.Hour)
		if got := w.seen(); got != "1 2 3" {
			t.Errorf("applied %q, want all: none was tried five times", got)
		}
		stop()
	})
}

func TestWaitFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		put(t, w.log, w.store, "a", "1")
		stop := start(t, w.projector(t, w.projection(1), eventsource.ProjectorConfig{}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := eventsource.WaitFor(ctx, w.models, "list", 2); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WaitFor of what does not come = %v, want the deadline", err)
		}
		w.fail("2", fault.Permanent(errDown))
		put(t, w.log, w.store, "a", "2")
		var stopped *eventsource.StoppedError
		if err := eventsource.WaitFor(t.Context(), w.models, "list", 2); !errors.As(err, &stopped) || stopped.Parked.At != 2 {
			t.Errorf("WaitFor behind a bad event = %v, want a StoppedError", err)
		}
		stop()
		// A bad event says nothing about those before it, also if they are not for the projection.
		other := w.projection(1)
		other.Name, other.Filter.Types = "other", []string{"1", "4"}
		w.fail("4", fault.Permanent(errDown))
		put(t, w.log, w.store, "a", "3", "4")
		p := w.projector(t, other, eventsource.ProjectorConfig{})
		stop = start(t, p)
		time.Sleep(time.Minute)
		if err := p.Activate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := eventsource.WaitFor(ctx, w.models, "other", 3); err != nil {
			t.Errorf("WaitFor before a bad event = %v, want nil", err)
		}
		if err := eventsource.WaitFor(ctx, w.models, "other", 4); !errors.As(err, &stopped) {
			t.Errorf("WaitFor at a bad event = %v, want a StoppedError", err)
		}
		stop()
		if _, err := w.models.Activate(t.Context(), eventsource.ProjectionID{Name: "none", Revision: 1}, true); err != nil {
			t.Fatal(err)
		}
		short, end := context.WithTimeout(t.Context(), time.Minute)
		defer end()
		if err := eventsource.WaitFor(short, w.models, "none", 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WaitFor a projection that nobody runs = %v, want the deadline", err)
		}
	})
}
