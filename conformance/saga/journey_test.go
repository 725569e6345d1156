// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/conformance/internal/testdb"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/barrier"
)

// journey books trips by a saga with every kind of step. What each step does goes into a
// ledger behind a barrier; commands go through the outbox in the same database, and a
// courier brings them to the participant and its replies back, each of them twice.
type journey struct {
	db      *sql.DB
	dialect string
	bank    *bank // its tables and helpers
	outbox  *outbox.Outbox
	seats   *saga.Definition[seat]
	trips   *saga.Definition[trip]
}

type trip struct {
	Car, Hotel, Insurance string
	Far                   bool
	Refuse                string // the step that says no
}

type seat struct{ Refuse string }

func openJourney(t testing.TB, db *sql.DB, dialect string) *journey {
	t.Helper()
	b, err := openBank(db, dialect)
	if err != nil {
		t.Fatal(err)
	}
	j := &journey{db: db, dialect: dialect, bank: b}
	store, err := outboxsql.New(db, dialects[dialect], outboxsql.Config{})
	if err == nil {
		err = errors.Join(b.create(t.Context()), store.Migrate(t.Context()))
	}
	if err == nil {
		j.outbox, err = outbox.New(store, outbox.Config{})
	}
	if err != nil {
		t.Fatal(err)
	}
	j.seats = saga.Must(saga.New("seats", 1,
		saga.Call("out", doing(j, func(d *seat) string { return d.Refuse }), saga.Undo(doing(j, func(*seat) string { return "" }))),
		saga.Call("back", doing(j, func(d *seat) string { return d.Refuse }), saga.Undo(doing(j, func(*seat) string { return "" }))),
	))
	refuse := func(d *trip) string { return d.Refuse }
	never := func(*trip) string { return "" }
	set := func(field func(*trip) *string) func(*trip, string) error {
		return func(d *trip, reply string) error {
			*field(d) = reply
			if reply == "refused" {
				return saga.Refuse("the participant says no")
			}
			return nil
		}
	}
	ignore := func(*trip, string) error { return nil }
	j.trips = saga.Must(saga.New("trip", 1,
		saga.Lock("customer", func(*trip) string { return "customer 1" }),
		saga.If("far", func(d *trip) bool { return d.Far },
			saga.Child("flight", j.seats, func(d *trip) seat { return seat{d.Refuse} }, func(*trip, seat) error { return nil })),
		saga.Else(saga.Call("train", doing(j, refuse), saga.Undo(doing(j, never)))),
		saga.Parallel(
			saga.Send("hotel", command(refuse), set(func(d *trip) *string { return &d.Hotel }), saga.UndoSend(command(never), ignore)),
			saga.Send("car", command(refuse), set(func(d *trip) *string { return &d.Car }), saga.UndoSend(command(never), ignore)),
		),
		saga.Await("approval", func(d *trip, ok bool) error {
			if !ok {
				return saga.Refuse("not approved")
			}
			return nil
		}),
		saga.Pivot(saga.Call("pay", doing(j, refuse))),
		saga.Sleep("pause", func(*trip) time.Duration { return time.Millisecond }),
		saga.Send("insurance", command(never), set(func(d *trip) *string { return &d.Insurance })),
	)).OnEnd(func(ctx context.Context, tx *sql.Tx, end saga.End, _ *trip) error {
		_, err := tx.ExecContext(ctx, b.bind("UPDATE transfer SET status = ?, ends = ends + 1 WHERE id = ?"), end.Status.String(), end.Saga)
		return err
	})
	return j
}

// act is the participant at work: behind its barrier, and a pivot remembers its refusal.
func (j *journey) act(ctx context.Context, key barrier.Key, refuse bool) error {
	err := j.bank.inTx(ctx, func(tx *sql.Tx) error {
		_, err := j.bank.guard.Do(ctx, tx, key, func() error {
			if refuse {
				return saga.Refuse("sold out")
			}
			return j.bank.move(ctx, tx, saga.Attempt{Saga: key.Saga, Step: key.Step, Op: key.Op}, 1, 0)
		})
		return err
	})
	switch {
	case errors.Is(err, barrier.ErrCompensated):
		return saga.Refuse("undone already")
	case errors.Is(err, saga.ErrRefused) && key.Step == "pay":
		if _, err := j.bank.guard.Bar(ctx, j.db, key); err != nil {
			return err
		}
	}
	return err
}

func doing[T any](j *journey, refuse func(d *T) string) func(context.Context, saga.Attempt, *T) error {
	return func(ctx context.Context, a saga.Attempt, d *T) error {
		return j.act(ctx, barrier.KeyOf(a.Parts()), refuse(d) == a.Step)
	}
}

func command(refuse func(d *trip) string) func(context.Context, saga.Attempt, *trip) (*messaging.Message, error) {
	return func(_ context.Context, a saga.Attempt, d *trip) (*messaging.Message, error) {
		m := &messaging.Message{Topic: "participant." + a.Step}
		if refuse(d) == a.Step {
			m.Body = []byte("refuse")
		}
		return m, nil
	}
}

// courier is a broker that delivers everything twice, and the participant behind it.
type courier struct {
	j       *journey
	replies messaging.Handler
}

func (c *courier) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	for _, m := range msgs {
		for range 2 {
			key, err := barrier.ParseKey(m.Header[saga.HeaderKey])
			if err != nil {
				return err
			}
			answer := "done"
			if err := c.j.act(ctx, key, string(m.Body) == "refuse"); errors.Is(err, saga.ErrRefused) {
				answer = "refused"
			} else if err != nil {
				return err
			}
			reply, err := saga.Reply(m, answer)
			if err != nil {
				return err
			}
			if err := c.replies.Handle(ctx, &messaging.Delivery{Message: reply}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (j *journey) engine(t testing.TB, store saga.Store) *saga.Engine {
	t.Helper()
	e, err := saga.NewEngine(store, saga.Config{
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Lease: time.Second, Poll: 20 * time.Millisecond, Drain: -1,
		Backoff: saga.Backoff{Base: time.Millisecond, Max: 20 * time.Millisecond}, StuckAfter: -1, MaxTakeovers: -1,
		Outbox: j.outbox, ReplyTo: "replies",
	}, j.trips, j.seats)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// run calls fn while the engine runs.
func run(t testing.TB, e *saga.Engine, fn func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	fn()
	cancel()
	// What is dead for the store takes a while to give up; nobody waits for that.
	select {
	case <-ended:
	case <-time.After(100 * time.Millisecond):
	}
}

// journeys are the trips by what is refused, and what they leave in the ledger.
var journeys = []struct {
	trip trip
	no   bool // not approved
	want string
}{
	{trip{}, false, "train hotel car pay insurance"},
	{trip{Far: true}, false, "out back hotel car pay insurance"},
	{trip{Refuse: "train"}, false, ""},
	{trip{Far: true, Refuse: "back"}, false, "out -out"},
	{trip{Refuse: "car"}, false, "train hotel -hotel -train"},
	{trip{Far: true, Refuse: "hotel"}, false, "out back car -car -back -out"},
	{trip{Far: true}, true, "out back hotel car -car -hotel -back -out"},
	{trip{Refuse: "pay"}, false, "train hotel car -car -hotel -train"},
}

// TestEveryKindOfStep kills the node at calls of the store one after the other, before
// and after the call, or loses the answer, for trips that are refused at each of their
// steps. DOVETAIL_SAGA_JOURNEYS=all cuts at every call, else at some of them.
func TestEveryKindOfStep(t *testing.T) {
	stride := stride(7)
	testdb.Each(t, func(t *testing.T, db *sql.DB, dialect string) {
		j := openJourney(t, db, dialect)
		second := j.engine(t, j.bank.store)
		relay, err := outbox.NewRelay(j.outbox, &courier{j, second.Replies()}, outbox.RelayConfig{
			Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Poll: 20 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = relay.Run(ctx) })
		defer wg.Wait()
		defer stop()
		want := map[string]string{}
		n := 0
		for kind, c := range journeys {
			for cut, reached := 1+kind%stride, true; reached; cut += stride {
				id := fmt.Sprintf("trip-%d", n)
				want[id] = c.want
				reached = j.cutAt(t, second, id, c.trip, !c.no, cut, when(n%3))
				if n++; t.Failed() {
					t.Fatalf("%s: %+v, cut %v call %d", id, c.trip, when((n-1)%3), cut)
				}
			}
		}
		did := map[string]string{}
		for id, steps := range ledger(t, db, "SELECT saga, step, op FROM ledger") {
			trip, _, _ := strings.Cut(id, "/")
			did[trip] += steps
		}
		for id, steps := range want {
			if !sameWords(withoutNullUndo(did[id]), withoutNullUndo(steps)) {
				t.Errorf("%s did %q, want %q", id, did[id], steps)
			}
		}
		var left int
		for _, table := range []string{"saga_lock", "saga_lock_wait"} {
			if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM "+table).Scan(&left); err != nil || left != 0 {
				t.Errorf("%d rows in %s (%v), want none", left, table, err)
			}
		}
		if err := db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM transfer WHERE ends <> 1").Scan(&left); err != nil || left != 0 {
			t.Errorf("%d trips were not ended exactly once (%v)", left, err)
		}
		t.Logf("%d trips", n)
	})
}

// withoutNullUndo leaves out the commands to hotel and car that were undone: when the one is
// refused, the undo of the other may overtake its command, which the barrier then bars.
func withoutNullUndo(did string) string {
	words := strings.Fields(did)
	for _, step := range []string{"hotel", "car"} {
		if slices.Contains(words, step) && slices.Contains(words, "-"+step) {
			words = slices.DeleteFunc(words, func(w string) bool { return w == step || w == "-"+step })
		}
	}
	return strings.Join(words, " ")
}

// cutAt runs a trip on a store that is cut at its nth call, and finishes it with the
// second engine. It returns false if there were fewer than n calls.
func (j *journey) cutAt(t *testing.T, second *saga.Engine, id string, d trip, approved bool, n int, w when) bool {
	t.Helper()
	f := newFaulty(j.bank.store, n, w)
	first := j.engine(t, f)
	err := j.bank.inTx(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(t.Context(), j.bank.bind("INSERT INTO transfer (id, status, ends) VALUES (?, 'pending', 0)"), id); err != nil {
			return err
		}
		if err := saga.Start(t.Context(), first, tx, j.trips, id, d); err != nil {
			return err
		}
		_, err := first.Deliver(t.Context(), tx, id, "approval", approved)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := func() bool {
		in, err := second.Get(t.Context(), id)
		if in.Parked {
			t.Errorf("%s is parked: %s", id, in.Stuck)
			return true
		}
		return err == nil && in.Status.Ended()
	}
	wait := func(what string, stop <-chan struct{}) {
		for deadline := time.Now().Add(60 * time.Second); !ended(); {
			if time.Now().After(deadline) {
				in, _ := second.Get(t.Context(), id)
				t.Fatalf("%s has not ended within 60s %s: %+v", id, what, in)
			}
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}
	run(t, first, func() { wait("on the first node", f.died) })
	f.mu.Lock()
	defer f.mu.Unlock()
	// Time passes for the store: the lease of the dead runs out.
	for node := range f.nodes {
		if err := j.bank.store.Beat(t.Context(), node, -time.Second); err != nil {
			t.Fatal(err)
		}
	}
	run(t, second, func() { wait("on the second node", nil) })
	return f.left <= 0
}
