// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotencytest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/messaging"
)

// RunConsumer checks that [idempotency.Consumer], [idempotency.BatchConsumer] and
// [idempotency.BulkConsumer] keep their promises on an inbox and its database, on top of
// [RunInbox]. open returns both, empty.
func RunConsumer(t *testing.T, open func(t *testing.T) (*sql.DB, idempotency.Inbox)) {
	run := func(name string, fn func(t *testing.T, w *world)) {
		t.Run(name, func(t *testing.T) {
			w := &world{runs: map[string]int{}}
			w.db, w.inbox = open(t)
			fn(t, w)
		})
	}

	run("a message takes effect once, however often it is delivered", func(t *testing.T, w *world) {
		for range 3 {
			w.deliver(t, "mail", "m1", nil)
		}
		w.wantEffects(t, "mail", "m1")
		w.wantRuns(t, 1, "m1")
	})
	run("every group handles the message", func(t *testing.T, w *world) {
		w.deliver(t, "mail", "m1", nil)
		w.deliver(t, "stock", "m1", nil)
		w.wantEffects(t, "mail", "m1")
		w.wantEffects(t, "stock", "m1")
	})
	for name, fail := range map[string]error{
		"error": errors.New("no"), "rejection": messaging.Reject(errors.New("no")), "statement": errStatement,
	} {
		run("a handler that returns an error leaves nothing and is called again: "+name, func(t *testing.T, w *world) {
			w.deliver(t, "mail", "m1", fail)
			w.wantEffects(t, "mail")
			w.deliver(t, "mail", "m1", nil)
			w.wantEffects(t, "mail", "m1")
		})
	}
	run("a handler that panics leaves nothing, and the panic goes on", func(t *testing.T, w *world) {
		h := idempotency.Consumer(w.db, w.inbox, w.handler(map[string]error{"m1": errPanic}))
		func() {
			defer func() {
				if v := recover(); v != any(errPanic) {
					t.Errorf("recover = %v, want %v", v, errPanic)
				}
			}()
			_ = h.Handle(t.Context(), delivery("mail", "m1"))
		}()
		w.wantEffects(t, "mail")
		w.deliver(t, "mail", "m1", nil)
		w.wantEffects(t, "mail", "m1")
	})
	run("a handler that exits its goroutine leaves nothing", func(t *testing.T, w *world) {
		h := idempotency.Consumer(w.db, w.inbox, func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
			if err := w.handler(nil)(ctx, tx, d); err != nil {
				return err
			}
			runtime.Goexit()
			return nil
		})
		var wg sync.WaitGroup
		wg.Go(func() { _ = h.Handle(t.Context(), delivery("mail", "m1")) })
		wg.Wait()
		w.wantEffects(t, "mail")
		w.deliver(t, "mail", "m1", nil)
	})
	run("a message that cannot be told from others is refused for good", func(t *testing.T, w *world) {
		h := idempotency.Consumer(w.db, w.inbox, w.handler(nil))
		for _, d := range []*messaging.Delivery{delivery("mail", ""), delivery("", "m1"), delivery("mail", strings.Repeat("x", 256))} {
			if err := h.Handle(t.Context(), d); !fault.IsPermanent(err) {
				t.Errorf("Handle(%q, %.10q) = %v, want a permanent error", d.Group, d.Message.ID, err)
			}
		}
	})
	run("a commit that fails is an unknown outcome, and the next delivery finds out", func(t *testing.T, w *world) {
		h := idempotency.Consumer(w.db, w.inbox, func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
			return errors.Join(w.handler(nil)(ctx, tx, d), tx.Rollback())
		})
		if err := h.Handle(t.Context(), delivery("mail", "m1")); !fault.IsUnknown(err) {
			t.Errorf("Handle = %v, want an unknown outcome", err)
		}
		w.deliver(t, "mail", "m1", nil)
		w.wantEffects(t, "mail", "m1")
	})
	run("a message that is delivered many times at once takes effect once", func(t *testing.T, w *world) {
		h := idempotency.Consumer(w.db, w.inbox, w.handler(nil))
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for end := time.Now().Add(patience); ; {
					err := h.Handle(t.Context(), delivery("mail", "m1"))
					if err == nil {
						return
					}
					if fault.IsPermanent(err) || time.Now().After(end) {
						t.Errorf("Handle among many = %v", err)
						return
					}
				}
			})
		}
		wg.Wait()
		w.wantEffects(t, "mail", "m1")
	})

	batched := func(name string, fn func(t *testing.T, w *world)) {
		run(name, fn)
		run(name+", in bulk", func(t *testing.T, w *world) {
			w.bulk = true
			fn(t, w)
		})
	}
	batched("a batch takes effect once, however often it is delivered", func(t *testing.T, w *world) {
		for range 2 {
			w.batch(t, []string{"m1", "m2", "m3"}, nil)
		}
		w.wantEffects(t, "mail", "m1", "m2", "m3")
		w.wantRuns(t, 1, "m1", "m2", "m3")
	})
	batched("a batch is handled in its order", func(t *testing.T, w *world) {
		w.batch(t, []string{"m3", "m1", "m2"}, nil)
		if got, want := fmt.Sprint(w.order), "[m3 m1 m2]"; got != want {
			t.Errorf("order = %v, want %v", got, want)
		}
	})
	batched("a batch of nothing, or of one, is a batch", func(t *testing.T, w *world) {
		w.batch(t, nil, nil)
		w.batch(t, []string{"m1"}, nil)
		w.batch(t, []string{"m1"}, nil)
		w.wantEffects(t, "mail", "m1")
	})
	batched("what a batch has twice, or was handled before, is not handled again", func(t *testing.T, w *world) {
		w.deliver(t, "mail", "m2", nil)
		w.batch(t, []string{"m1", "m2", "m3", "m1"}, nil)
		w.wantEffects(t, "mail", "m1", "m2", "m3")
	})
	batched("what a batch has twice, and fails, has failed twice", func(t *testing.T, w *world) {
		// The first may be of a connection that is lost: if the second were done, so were the message.
		fail := errors.New("no")
		w.batch(t, []string{"m1", "m2", "m1"}, map[string]error{"m1": fail})
		w.wantEffects(t, "mail", "m2")
		w.batch(t, []string{"m1"}, nil)
		w.wantEffects(t, "mail", "m1", "m2")
	})
	for name, fail := range map[string]error{
		"error": errors.New("no"), "rejection": messaging.Reject(errors.New("no")), "statement": errStatement, "panic": errPanic, "lost transaction": errLost,
	} {
		batched("a failing message does not take its neighbours along: "+name, func(t *testing.T, w *world) {
			all := []string{"m1", "m2", "m3", "m4", "m5"}
			w.batch(t, all, map[string]error{"m2": fail, "m4": fail})
			w.wantEffects(t, "mail", "m1", "m3", "m5")
			w.batch(t, all, nil)
			w.wantEffects(t, "mail", all...)
		})
	}
	batched("a batch whose messages all fail leaves nothing", func(t *testing.T, w *world) {
		fail := errors.New("no")
		w.batch(t, []string{"m1", "m2"}, map[string]error{"m1": fail, "m2": fail})
		w.wantEffects(t, "mail")
		w.batch(t, []string{"m1", "m2"}, nil)
		w.wantEffects(t, "mail", "m1", "m2")
	})
	batched("a message that has failed before is expected to, and its neighbours run once", func(t *testing.T, w *world) {
		ds := []*messaging.Delivery{delivery("mail", "m1"), delivery("mail", "m2"), delivery("mail", "m3")}
		ds[1].Attempt = 2
		errs := w.batches(map[string]error{"m2": errStatement})(t.Context(), ds)
		if errs[0] != nil || !errors.Is(errs[1], errStatement) || errs[2] != nil {
			t.Errorf("errors = %v, want one for m2", errs)
		}
		w.wantEffects(t, "mail", "m1", "m3")
		if !w.bulk { // in which nobody knows who has failed
			w.wantRuns(t, 1, "m1", "m2", "m3")
		}
	})
	batched("a message that cannot be told from others does not take its neighbours along", func(t *testing.T, w *world) {
		errs := w.batches(nil)(t.Context(), []*messaging.Delivery{
			delivery("mail", "m1"), delivery("mail", ""), delivery("stock", "m2"), delivery("mail", "m3"),
		})
		if errs[0] != nil || !fault.IsPermanent(errs[1]) || errs[2] == nil || errs[3] != nil {
			t.Errorf("errors = %v, want them for the one without ID and the one of another group", errs)
		}
		w.wantEffects(t, "mail", "m1", "m3")
		w.wantEffects(t, "stock")
	})
	batched("of many overlapping batches each message takes effect once", func(t *testing.T, w *world) {
		all := ids("m", 40)
		h := w.batches(nil)
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				var ds []*messaging.Delivery
				for k := range all {
					ds = append(ds, delivery("mail", all[(k*(2*i+1)+i)%len(all)]))
				}
				for end := time.Now().Add(patience); len(ds) > 0 && !t.Failed(); {
					var again []*messaging.Delivery
					for k, err := range h(t.Context(), ds) {
						if fault.IsPermanent(err) || err != nil && time.Now().After(end) {
							t.Errorf("%q in a batch among many = %v", ds[k].Message.ID, err)
							return
						}
						if err != nil {
							again = append(again, ds[k])
						}
					}
					ds = again
				}
			})
		}
		wg.Wait()
		w.wantEffects(t, "mail", all...)
	})
	run("a bulk is what a batch has that is new, in its order", func(t *testing.T, w *world) {
		w.deliver(t, "mail", "m2", nil)
		var got []string
		errs := idempotency.BulkConsumer(w.db, w.inbox, func(_ context.Context, _ *sql.Tx, ds []*messaging.Delivery) error {
			for _, d := range ds {
				got = append(got, d.Message.ID)
			}
			return nil
		})(t.Context(), []*messaging.Delivery{delivery("mail", "m3"), delivery("mail", "m2"), delivery("mail", "m1"), delivery("mail", "m3")})
		if want := []string{"m3", "m1"}; !slices.Equal(got, want) || errors.Join(errs...) != nil {
			t.Errorf("the handler got %v with errors %v, want %v in one call and none", got, errs, want)
		}
	})
	run("when the context has ended there are errors and no effects", func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := idempotency.Consumer(w.db, w.inbox, w.handler(nil)).Handle(ctx, delivery("mail", "m1")); err == nil {
			t.Error("Handle = nil")
		}
		for i, err := range idempotency.BatchConsumer(w.db, w.inbox, w.handler(nil))(ctx, []*messaging.Delivery{delivery("mail", "m1"), delivery("mail", "m2")}) {
			if err == nil {
				t.Errorf("error %d of the batch is nil", i)
			}
		}
		w.wantEffects(t, "mail")
	})
}

// What the handler of a world can be told to do besides returning an error.
var (
	errPanic     = errors.New("panic")
	errStatement = errors.New("a statement that fails")
	errLost      = errors.New("the transaction is lost")
)

// world is a service with one kind of effect: a mark of the message for the consumer
// "effect of <group>", which any inbox can make in the message's transaction and of which
// a second one is noticed.
type world struct {
	db    *sql.DB
	inbox idempotency.Inbox
	bulk  bool // batches are handled in bulk

	mu    sync.Mutex
	runs  map[string]int
	order []string
}

// handler makes the effect, and then fails as told.
func (w *world) handler(fail map[string]error) idempotency.TxHandler {
	return func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
		w.mu.Lock()
		w.runs[d.Message.ID]++
		w.order = append(w.order, d.Message.ID)
		w.mu.Unlock()
		first, err := w.inbox.Once(ctx, tx, "effect of "+d.Group, d.Message.ID)
		if err != nil {
			return err
		}
		if !first {
			return messaging.Reject(errors.New("effect twice"))
		}
		switch err := fail[d.Message.ID]; {
		case errors.Is(err, errPanic):
			panic(errPanic)
		case errors.Is(err, errStatement):
			// PostgreSQL takes no other statement until this one is rolled back.
			_, sqlErr := tx.ExecContext(ctx, "SELECT no_such_column FROM no_such_table")
			return errors.Join(err, sqlErr)
		case errors.Is(err, errLost):
			return errors.Join(err, tx.Rollback())
		default:
			return err
		}
	}
}

func delivery(group, id string) *messaging.Delivery {
	return &messaging.Delivery{Message: &messaging.Message{ID: id, Topic: "test"}, Group: group, Attempt: 1}
}

// deliver hands one message to a Consumer whose handler fails as told.
func (w *world) deliver(t *testing.T, group, id string, fail error) {
	t.Helper()
	h := idempotency.Consumer(w.db, w.inbox, w.handler(map[string]error{id: fail}))
	if err := h.Handle(t.Context(), delivery(group, id)); !errors.Is(err, fail) {
		t.Fatalf("Handle(%q, %q) = %v, want %v", group, id, err, fail)
	}
}

// batches returns a BatchConsumer, or a BulkConsumer, whose handler fails as told.
func (w *world) batches(fail map[string]error) messaging.BatchHandler {
	one := w.handler(fail)
	if !w.bulk {
		return idempotency.BatchConsumer(w.db, w.inbox, one)
	}
	return idempotency.BulkConsumer(w.db, w.inbox, func(ctx context.Context, tx *sql.Tx, ds []*messaging.Delivery) error {
		for _, d := range ds {
			if err := one(ctx, tx, d); err != nil {
				return err
			}
		}
		return nil
	})
}

// batch hands messages to batches.
func (w *world) batch(t *testing.T, list []string, fail map[string]error) {
	t.Helper()
	ds := make([]*messaging.Delivery, len(list))
	for i, id := range list {
		ds[i] = delivery("mail", id)
	}
	errs := w.batches(fail)(t.Context(), ds)
	if len(errs) != len(ds) {
		t.Fatalf("batch of %d has %d errors", len(ds), len(errs))
	}
	for i, id := range list {
		if !failedBy(errs[i], fail[id]) {
			t.Fatalf("batch: %q = %v, want %v", id, errs[i], fail[id])
		}
	}
}

// failedBy reports whether err is what became of a handler that was told to fail by want.
func failedBy(err, want error) bool {
	var p *messaging.PanicError
	if errors.As(err, &p) {
		return p.Value == any(want)
	}
	return errors.Is(err, want)
}

// wantEffects checks that exactly these messages of m1 to m5, or of all given, have had
// their effect on the group.
func (w *world) wantEffects(t *testing.T, group string, want ...string) {
	t.Helper()
	for _, id := range slices.Concat(want, []string{"m1", "m2", "m3", "m4", "m5"}) {
		tx, err := w.db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		first, err := w.inbox.Once(t.Context(), tx, "effect of "+group, id)
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		if has, wants := !first, slices.Contains(want, id); has != wants {
			t.Errorf("%q has its effect on %q: %v, want %v", id, group, has, wants)
		}
	}
}

func (w *world) wantRuns(t *testing.T, want int, list ...string) {
	t.Helper()
	for _, id := range list {
		if got := w.runs[id]; got != want {
			t.Errorf("%q was handled %d times, want %d", id, got, want)
		}
	}
}
