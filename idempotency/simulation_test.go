// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
	"github.com/dovetail-go/dovetail/messaging"
)

// The simulation plays a broker that repeats messages and loses acknowledgements, and the
// processes that consume them by Consumer, BatchConsumer and BulkConsumer, in virtual time. A
// process may crash before its transaction, in it, and between the commit and the
// acknowledgement; the database may learn of that late. It may stand still with its
// transaction open, while the broker gives the message to another; its handler may fail, panic
// or lose the transaction. Whatever happens, each group gets the effect of each message once.
//
// Each delivery has a random source of its own; of one message at most two are under way at the
// same time, and there is one batch at a time. So nothing is left to chance when several wait for
// one mark, and a seed takes one course.
//
//	DOVETAIL_SIM_SEEDS=100000 go test -run TestSimulation ./idempotency
//	DOVETAIL_SIM_SEED=4711 go test -v -run TestSimulation ./idempotency    replays one, with its trace
func TestSimulation(t *testing.T) {
	if seed, ok := number(t, "DOVETAIL_SIM_SEED"); ok {
		s := simulate(t, seed, nil)
		t.Logf("seed %d:\n%s", seed, strings.Join(s.trace, "\n"))
		for _, p := range s.problems {
			t.Errorf("seed %d: %s", seed, p)
		}
		return
	}
	seeds, ok := number(t, "DOVETAIL_SIM_SEEDS")
	if !ok {
		seeds = 2000
		if testing.Short() {
			seeds = 200
		}
	}
	var total tally
	for seed := range seeds {
		s := simulate(t, seed, nil)
		for _, p := range s.problems {
			t.Errorf("seed %d: %s", seed, p)
		}
		if t.Failed() {
			t.Fatalf("replay with DOVETAIL_SIM_SEED=%d", seed)
		}
		for event, n := range s.tally {
			total[event] += n
		}
	}
	t.Logf("%d seeds: %v", seeds, total)
	// A simulation in which nothing goes wrong proves nothing.
	for event, n := range total {
		if n == 0 {
			t.Errorf("no %s in %d seeds", events[event], seeds)
		}
	}
}

func number(t *testing.T, name string) (n uint64, ok bool) {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s is %q, want a number", name, v)
	}
	return n, true
}

func TestSimulationReplays(t *testing.T) {
	for seed := range uint64(50) {
		a, b := simulate(t, seed, nil), simulate(t, seed, nil)
		for i := range max(len(a.trace), len(b.trace)) {
			if i >= len(a.trace) || i >= len(b.trace) || a.trace[i] != b.trace[i] {
				t.Fatalf("seed %d takes two courses, from here on:\n%s\n\n%s", seed,
					strings.Join(a.trace[min(i, len(a.trace)):], "\n"), strings.Join(b.trace[min(i, len(b.trace)):], "\n"))
			}
		}
	}
}

// An inbox that is wrong is found out.
func TestSimulationFindsWhatIsWrong(t *testing.T) {
	for name, wrong := range map[string]func(in simInbox) idempotency.Inbox{
		"marks outside of the transaction": func(in simInbox) idempotency.Inbox { return outsideInbox{in} },
		"first for everybody":              func(in simInbox) idempotency.Inbox { return firstInbox{in} },
		"marks that are forgotten":         func(in simInbox) idempotency.Inbox { return forgetfulInbox{in} },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(50) {
				if len(simulate(t, seed, wrong).problems) > 0 {
					return
				}
			}
			t.Error("50 seeds found nothing")
		})
	}
}

type simInbox struct {
	*idempotencymem.Store
	db *sql.DB
}

// outsideInbox marks in a transaction of its own.
type outsideInbox struct{ simInbox }

func (in outsideInbox) Once(ctx context.Context, _ idempotency.Tx, consumer, id string) (bool, error) {
	return in.Store.Once(ctx, in.db, consumer, id)
}

func (in outsideInbox) OnceMany(ctx context.Context, _ idempotency.Tx, consumer string, ids []string) ([]bool, error) {
	return in.Store.OnceMany(ctx, in.db, consumer, ids)
}

// firstInbox has never seen a message.
type firstInbox struct{ simInbox }

func (in firstInbox) Once(context.Context, idempotency.Tx, string, string) (bool, error) {
	return true, nil
}

func (in firstInbox) OnceMany(_ context.Context, _ idempotency.Tx, _ string, ids []string) ([]bool, error) {
	first := make([]bool, len(ids))
	for i := range first {
		first[i] = true
	}
	return first, nil
}

// forgetfulInbox takes the marks of a batch back.
type forgetfulInbox struct{ simInbox }

func (in forgetfulInbox) OnceMany(ctx context.Context, tx idempotency.Tx, consumer string, ids []string) ([]bool, error) {
	first, err := in.Store.OnceMany(ctx, tx, consumer, ids)
	if err == nil {
		err = in.Forget(ctx, tx, consumer, ids...)
	}
	return first, err
}

// What a run went through.
const (
	deliveries = iota
	repetitions
	crashesBefore
	crashesWithin
	crashesAfter
	stalls
	takeovers
	twins
	failures
	panics
	unknowns
	batches
	lostAcks
	kinds
)

var events = [kinds]string{
	"deliveries", "repetitions", "crashes before the transaction", "crashes within it", "crashes after it", "stalls", "takeovers",
	"twins", "failures", "panics", "unknown outcomes", "batches", "lost acknowledgements",
}

type tally [kinds]int

func (t tally) String() string {
	var b strings.Builder
	for event, n := range t {
		fmt.Fprintf(&b, "%d %s, ", n, events[event])
	}
	return strings.TrimSuffix(b.String(), ", ")
}

const (
	simMessages  = 10
	simProcesses = 3                // that handle one by one
	simFaults    = 15 * time.Second // until then things go wrong
	simLimit     = 10 * time.Minute // until then all must be acknowledged
)

var simGroups = []string{"mail", "stock"}

type sim struct {
	seed  uint64
	start time.Time
	store *idempotencymem.Store
	work  sync.WaitGroup

	mu       sync.Mutex
	plans    map[*messaging.Delivery]*plan
	pending  []*parcel // for the process that handles batches
	open     int       // parcels that are not acknowledged
	problems []string
	trace    []string
	tally    tally
}

// parcel is a message on its way to a group, which the broker repeats until it is acknowledged.
type parcel struct {
	group, id string
	copy      int  // a producer's relay may publish a message more than once
	alone     bool // there is no other copy
	attempt   int
	taken     bool // by another process, while the first stands still
}

// plan is what is to happen to a delivery.
type plan struct {
	work     time.Duration
	stall    time.Duration // with the transaction open
	takeover time.Duration // after which the broker gives the message to another, if positive
	end      int
	late     time.Duration // until the database learns of a crash
	handled  bool
}

// How a delivery ends.
const (
	well = iota
	fails
	rejects
	panicking
	losesTransaction
	crashBefore
	crashWithin
	crashAfter
	losesAck
)

func simulate(t *testing.T, seed uint64, wrong func(simInbox) idempotency.Inbox) *sim {
	s := &sim{seed: seed, plans: map[*messaging.Delivery]*plan{}}
	synctest.Test(t, func(t *testing.T) { s.run(t, wrong) })
	slices.Sort(s.trace)
	return s
}

func (s *sim) run(t *testing.T, wrong func(simInbox) idempotency.Inbox) {
	s.start, s.store = time.Now(), idempotencymem.New()
	var handlers []messaging.Handler
	batch := make([]messaging.BatchHandler, 2)
	for i := range simProcesses + 1 {
		db := s.store.OpenDB()
		defer db.Close()
		var inbox idempotency.Inbox = s.store
		if wrong != nil {
			inbox = wrong(simInbox{s.store, db})
		}
		if i < simProcesses {
			handlers = append(handlers, idempotency.Consumer(distant{db}, inbox, s.handle))
			continue
		}
		batch[0] = idempotency.BatchConsumer(distant{db}, inbox, s.handle)
		batch[1] = idempotency.BulkConsumer(distant{db}, inbox, func(ctx context.Context, tx *sql.Tx, ds []*messaging.Delivery) error {
			for _, d := range ds {
				if err := s.handle(ctx, tx, d); err != nil {
					return err
				}
			}
			return nil
		})
	}
	r := rand.New(rand.NewPCG(s.seed, 0))
	var parcels []*parcel
	for i := range simMessages {
		copies := 1 + r.IntN(2)
		for _, group := range simGroups {
			for c := range copies {
				parcels = append(parcels, &parcel{group: group, id: fmt.Sprint("m", i), copy: c, alone: copies == 1})
			}
		}
	}
	s.open = len(parcels)
	for _, p := range parcels {
		s.after(upTo(r, 10*time.Second), func() { s.deliver(t.Context(), handlers, p) })
	}
	s.work.Go(func() { s.consumeBatches(t.Context(), batch) })
	s.work.Wait()
	s.check(t)
}

// distant is a database that takes a moment to begin a transaction. So what waits for a mark has it
// before a batch that tries again asks for it.
type distant struct{ *sql.DB }

func (d distant) BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error) {
	time.Sleep(time.Millisecond)
	return d.DB.BeginTx(ctx, opts)
}

func (s *sim) after(d time.Duration, do func()) {
	s.work.Go(func() {
		time.Sleep(d)
		do()
	})
}

func upTo(r *rand.Rand, d time.Duration) time.Duration { return 1 + time.Duration(r.Int64N(int64(d))) }

func (s *sim) faults() bool { return time.Since(s.start) < simFaults }

// note adds a line to the trace, and counts.
func (s *sim) note(event int, p *parcel, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if event >= 0 {
		s.tally[event]++
	}
	s.trace = append(s.trace, fmt.Sprintf("%13.9f %s/%s.%d.%d %s", time.Since(s.start).Seconds(), p.group, p.id, p.copy, p.attempt, fmt.Sprintf(format, args...)))
}

func (s *sim) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

// deliver gives a message to a process, or hands it over for a batch.
func (s *sim) deliver(ctx context.Context, handlers []messaging.Handler, p *parcel) {
	if time.Since(s.start) > simLimit {
		s.fail("%s of %s is not acknowledged after %v", p.id, p.group, simLimit)
		return
	}
	p.attempt++
	r := s.rand(p)
	if p.copy == 0 && r.IntN(3) == 0 {
		s.mu.Lock()
		s.pending = append(s.pending, p)
		s.mu.Unlock()
		return // consumeBatches delivers it again until it is acknowledged, or not in batches
	}
	d, plan := s.prepare(r, p)
	again := func() { s.after(upTo(r, 3*time.Second), func() { s.deliver(ctx, handlers, p) }) }
	if plan.takeover > 0 {
		// The connection to the broker is lost, that to the database is not.
		next := *p
		next.taken = true
		p.taken = true
		s.after(plan.takeover, func() {
			s.note(takeovers, p, "is given to another")
			s.deliver(ctx, handlers, &next)
		})
		again = func() {} // what becomes of this delivery does not matter any more
	}
	if plan.end == crashBefore {
		s.note(crashesBefore, p, "crashes before the transaction")
		again()
		return
	}
	err, crashed := s.invoke(func() error { return handlers[r.IntN(len(handlers))].Handle(ctx, d) })
	if s.settled(p, plan, err, crashed) && plan.takeover == 0 {
		s.acknowledge(p)
		return
	}
	again()
}

// rand is the random source of a delivery.
func (s *sim) rand(p *parcel) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprint(h, p.group, p.id, p.copy, p.attempt, p.taken)
	return rand.New(rand.NewPCG(s.seed, h.Sum64()))
}

// prepare makes a delivery and decides what is to happen to it.
func (s *sim) prepare(r *rand.Rand, p *parcel) (*messaging.Delivery, *plan) {
	pl := &plan{work: upTo(r, 20*time.Millisecond)}
	if s.faults() {
		if r.IntN(8) == 0 {
			pl.stall = upTo(r, 12*time.Second)
			if p.alone && !p.taken && r.IntN(2) == 0 {
				pl.takeover = upTo(r, pl.stall)
			}
		}
		if r.IntN(2) == 0 {
			pl.end = 1 + r.IntN(losesAck)
		}
		if r.IntN(2) == 0 {
			pl.late = upTo(r, 8*time.Second)
		}
	}
	d := &messaging.Delivery{Group: p.group, Message: &messaging.Message{ID: p.id}, Attempt: p.attempt, Redelivered: p.attempt > 1}
	s.note(deliveries, p, "is delivered, plan %+v", *pl)
	if p.attempt > 1 || p.copy > 0 {
		s.note(repetitions, p, "is a repetition")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plans[d] = pl
	return d, pl
}

// handle is the handler: the effect is a mark that only it makes.
func (s *sim) handle(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	s.mu.Lock()
	pl := s.plans[d]
	s.mu.Unlock()
	pl.handled = true
	time.Sleep(pl.work)
	first, err := s.store.Once(ctx, tx, "effect of "+d.Group, d.Message.ID)
	if err != nil {
		return err
	}
	if !first {
		s.fail("%s of %s has its effect again", d.Message.ID, d.Group)
	}
	time.Sleep(pl.stall)
	switch pl.end {
	case fails:
		return errors.New("no")
	case rejects:
		return messaging.Reject(errors.New("no"))
	case panicking:
		panic("boom")
	case losesTransaction:
		return tx.Rollback() // and the commit fails
	case crashWithin:
		time.Sleep(pl.late)
		runtime.Goexit()
	}
	return nil
}

// invoke runs a handler in a goroutine that may crash.
func (s *sim) invoke(call func() error) (err error, crashed bool) { //nolint:revive // the error is the main thing
	crashed = true
	var wg sync.WaitGroup
	wg.Go(func() {
		defer func() {
			if v := recover(); v != nil {
				err, crashed = fmt.Errorf("panic: %v", v), false
			}
		}()
		err = call()
		crashed = false
	})
	wg.Wait()
	return err, crashed
}

// settled reports whether the broker hears that a delivery was handled.
func (s *sim) settled(p *parcel, pl *plan, err error, crashed bool) bool {
	if pl.stall > 0 && pl.handled {
		s.note(stalls, p, "has stood still")
	}
	switch {
	case crashed:
		s.note(crashesWithin, p, "has crashed")
	case errors.Is(err, idempotency.ErrInProgress):
		s.note(twins, p, "has a twin: %v", err)
	case err != nil && pl.handled && pl.end == losesTransaction:
		s.note(unknowns, p, "has an unknown outcome: %v", err)
	case err != nil && pl.handled && pl.end == panicking:
		s.note(panics, p, "has panicked")
	case err != nil:
		s.note(failures, p, "has failed")
	case pl.end == crashAfter:
		s.note(crashesAfter, p, "crashes before it is acknowledged")
	case pl.end == losesAck:
		s.note(lostAcks, p, "is acknowledged in vain")
	default:
		return true
	}
	return false
}

func (s *sim) acknowledge(p *parcel) {
	s.note(-1, p, "is acknowledged")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
}

// consumeBatches is the process that handles batches, one after the other.
func (s *sim) consumeBatches(ctx context.Context, handlers []messaging.BatchHandler) {
	r := rand.New(rand.NewPCG(s.seed, 1))
	for number := 0; ; number++ {
		time.Sleep(upTo(r, time.Second))
		s.mu.Lock()
		open := s.open
		var batch []*parcel
		s.pending = slices.DeleteFunc(s.pending, func(p *parcel) bool {
			take := len(batch) < 6 && (len(batch) == 0 || p.group == batch[0].group)
			if take {
				batch = append(batch, p)
			}
			return take
		})
		s.mu.Unlock()
		if open == 0 {
			return
		}
		if time.Since(s.start) > simLimit {
			s.fail("%d messages are not acknowledged after %v", open, simLimit)
			return
		}
		if len(batch) == 0 {
			continue
		}
		s.note(batches, batch[0], "begins a batch of %d", len(batch))
		ds, plans := make([]*messaging.Delivery, len(batch)), make([]*plan, len(batch))
		for i, p := range batch {
			ds[i], plans[i] = s.prepare(r, p)
			plans[i].takeover = 0
		}
		var errs []error
		_, crashed := s.invoke(func() error {
			errs = handlers[number%len(handlers)](ctx, ds)
			return nil
		})
		for i, p := range batch {
			var err error
			if !crashed {
				err = errs[i]
			}
			if s.settled(p, plans[i], err, crashed) {
				s.acknowledge(p)
				continue
			}
			s.mu.Lock()
			p.attempt++
			s.pending = append(s.pending, p)
			s.mu.Unlock()
		}
	}
}

// check compares the database with what was published.
func (s *sim) check(t *testing.T) {
	db := s.store.OpenDB()
	defer db.Close()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	for _, group := range simGroups {
		for i := range simMessages {
			id := fmt.Sprint("m", i)
			if first, err := s.store.Once(t.Context(), tx, "effect of "+group, id); err != nil || first {
				s.fail("%s of %s has no effect: %v, %v", id, group, first, err)
			}
		}
	}
	if s.open != 0 {
		s.fail("%d messages are not acknowledged", s.open)
	}
}
