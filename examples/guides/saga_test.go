// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/barrier"
	"github.com/dovetail-go/dovetail/saga/sagasql"
	"github.com/dovetail-go/dovetail/saga/sagatest"
)

type Order struct {
	ID     string
	Amount int
}

// services are the other services, behind clients with guards.
type services interface {
	Reserve(ctx context.Context, key, order string) error
	Release(ctx context.Context, key, order string) error
	Pay(ctx context.Context, key string, amount int) error
}

func oldPlace(ctx context.Context, db *sql.DB, s services, o Order) error {
	// snippet: saga/before
	if err := s.Reserve(ctx, o.ID, o.ID); err != nil {
		return err
	}
	if err := s.Pay(ctx, o.ID, o.Amount); err != nil { // a timeout: paid or not?
		return errors.Join(err, s.Release(ctx, o.ID, o.ID)) // and if this fails too?
	}
	// A crash here has taken the money and knows of no order.
	_, err := db.ExecContext(ctx, "UPDATE orders SET state = 'confirmed' WHERE id = $1", o.ID)
	return err
	// end
}

// snippet: saga/after
func placeOrder(s services) (*saga.Definition[Order], error) {
	def, err := saga.New("place-order", 1,
		saga.Call("reserve",
			func(ctx context.Context, a saga.Attempt, o *Order) error { return s.Reserve(ctx, a.Key(), o.ID) },
			saga.Undo(func(ctx context.Context, a saga.Attempt, o *Order) error { return s.Release(ctx, a.Key(), o.ID) }),
		),
		saga.Pivot(saga.Call("pay", // decides: nothing is undone after it
			func(ctx context.Context, a saga.Attempt, o *Order) error { return s.Pay(ctx, a.Key(), o.Amount) },
			saga.Timeout[Order](5*time.Second),
		)),
	)
	if err != nil {
		return nil, err
	}
	// The order's own row becomes final in the transaction that ends the saga.
	return def.OnEnd(func(ctx context.Context, tx *sql.Tx, end saga.End, o *Order) error {
		state := map[saga.Status]string{saga.Completed: "confirmed", saga.Compensated: "rejected"}[end.Status]
		_, err := tx.ExecContext(ctx, "UPDATE orders SET state = $1, reason = $2 WHERE id = $3", state, end.Reason, o.ID)
		return err
	}), nil
}

// end

// snippet: saga/start
func openSagas(ctx context.Context, db *sql.DB, dialect sagasql.Dialect, def *saga.Definition[Order]) (*saga.Engine, error) {
	store, err := sagasql.New(db, dialect, sagasql.Config{})
	if err != nil {
		return nil, err
	}
	if err := store.Migrate(ctx); err != nil {
		return nil, err
	}
	return saga.NewEngine(store, saga.Config{Node: "order-1", Retain: 30 * 24 * time.Hour}, def)
}

func place(ctx context.Context, db *sql.DB, engine *saga.Engine, def *saga.Definition[Order], o Order) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, "INSERT INTO orders (id, state, reason) VALUES ($1, 'pending', '')", o.ID); err != nil {
		return err
	}
	if err := saga.Start(ctx, engine, tx, def, o.ID, o); err != nil { // exists if and only if the order does
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	engine.Wake()
	return nil // 202: the answer comes later
}

// end

// snippet: saga/errors
// callError says what a participant's answer means to the saga.
func callError(status int, reason string) error {
	err := errors.New(reason)
	switch {
	case status < 400:
		return nil
	case status == http.StatusConflict || status == http.StatusUnprocessableEntity:
		return saga.Refuse(reason) // the business says no: undo what was done
	case status < 500 && status != http.StatusTooManyRequests:
		return fault.Permanent(err) // we are wrong: trying again cannot help
	}
	return err // tried again, with the same key
}

// end

// snippet: saga/participant
// reserve is the other side: the request may come twice, late, and after its own undo.
func reserve(ctx context.Context, db *sql.DB, guard *barrier.Barrier, header http.Header, order string) error {
	key, err := barrier.KeyFromHeader(header) // Saga-Key, which carries Attempt.Key
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	_, err = guard.Do(ctx, tx, key, func() error {
		_, err := tx.ExecContext(ctx, "INSERT INTO reservations VALUES ($1)", order)
		return err
	})
	if err != nil {
		return err // barrier.ErrCompensated: answer 409
	}
	return tx.Commit()
}

// end

type someServices struct {
	decline bool
	said    []string
}

func (s *someServices) Reserve(_ context.Context, key, _ string) error {
	s.said = append(s.said, "reserve "+key)
	return nil
}

func (s *someServices) Release(_ context.Context, key, _ string) error {
	s.said = append(s.said, "release "+key)
	return nil
}

func (s *someServices) Pay(_ context.Context, key string, _ int) error {
	s.said = append(s.said, "pay "+key)
	if s.decline {
		return callError(http.StatusUnprocessableEntity, "card declined")
	}
	return nil
}

// snippet: saga/test
func TestWhateverHappensToPlaceOrder(t *testing.T) {
	def, err := placeOrder(&someServices{})
	if err != nil {
		t.Fatal(err)
	}
	// Crashes between any two writes, repeated and late requests, two nodes at once:
	// every state that they can lead to is visited.
	sagatest.Explore(t, def, sagatest.Bounds{})
}

func TestADeclinedCardReleasesTheStock(t *testing.T) {
	db := openDB(t, "CREATE TABLE orders (id TEXT PRIMARY KEY, state TEXT, reason TEXT)")
	participants := &someServices{decline: true}
	def, err := placeOrder(participants)
	if err != nil {
		t.Fatal(err)
	}
	engine, err := openSagas(t.Context(), db, sagasql.SQLite, def)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()

	if err := place(ctx, db, engine, def, Order{ID: "7", Amount: 42}); err != nil {
		t.Fatal(err)
	}
	in, err := engine.Wait(ctx, "7")
	if err != nil || in.Status != saga.Compensated || in.Reason != "card declined" {
		t.Errorf("the saga ended %v, %q, %v", in.Status, in.Reason, err)
	}
	if n := count(t, db, "SELECT COUNT(*) FROM orders WHERE state = 'rejected' AND reason = 'card declined'"); n != 1 {
		t.Error("the order's row does not say that it was rejected")
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// end

func TestSagaGuide(t *testing.T) {
	db := openDB(t, "CREATE TABLE orders (id TEXT PRIMARY KEY, state TEXT, reason TEXT)", "CREATE TABLE reservations (order_id TEXT)")
	if err := oldPlace(t.Context(), db, &someServices{}, Order{ID: "7"}); err != nil {
		t.Error(err)
	}
	for status, refused := range map[int]bool{200: false, 404: false, 409: true, 503: false} {
		err := callError(status, "so")
		if errors.Is(err, saga.ErrRefused) != refused || (err == nil) != (status == 200) || fault.IsPermanent(err) && status != 404 {
			t.Errorf("%d is %v", status, err)
		}
	}
	guard, err := barrier.New(barrier.SQLite, barrier.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := guard.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	header := http.Header{}
	barrier.KeyOf("7", "reserve", "do").SetHeader(header)
	for range 2 {
		if err := reserve(t.Context(), db, guard, header, "7"); err != nil {
			t.Error(err)
		}
	}
	if n := count(t, db, "SELECT COUNT(*) FROM reservations"); n != 1 {
		t.Errorf("%d reservations of a request that came twice", n)
	}
}
