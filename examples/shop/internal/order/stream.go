// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package order

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcesql"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
)

// What happens to an order. An event carries the whole order as it is then, and is stored as it
// is told to others.
type (
	placed     kernel.OrderChanged
	confirmed  kernel.OrderChanged
	dispatched kernel.OrderChanged
	rejected   kernel.OrderChanged
	cancelled  kernel.OrderChanged
)

type event interface{ order() kernel.OrderChanged }

func (e placed) order() kernel.OrderChanged     { return kernel.OrderChanged(e) }
func (e confirmed) order() kernel.OrderChanged  { return kernel.OrderChanged(e) }
func (e dispatched) order() kernel.OrderChanged { return kernel.OrderChanged(e) }
func (e rejected) order() kernel.OrderChanged   { return kernel.OrderChanged(e) }
func (e cancelled) order() kernel.OrderChanged  { return kernel.OrderChanged(e) }

// What can be asked of an order.
type (
	place    struct{ order kernel.OrderChanged }
	confirm  struct{}
	dispatch struct{ tracking string }
	reject   struct{ reason string }
	cancel   struct{ reason string }
)

type command any

// state is what the events of an order add up to.
type state struct {
	status string // empty before the order is placed
	order  kernel.OrderChanged
}

// errNotNow says that an order is not in the state for a command. Whoever gave the command was
// wrong about the order, or late.
var errNotNow = errors.New("not in this state")

// decide returns what happens when a command is given. A command whose effect is there already
// changes nothing, so that it can be repeated.
func decide(s state, c command) ([]event, error) {
	next := s.order
	next.Reason, next.Tracking = "", ""
	switch c := c.(type) {
	case place:
		if s.status == "" {
			c.order.What = kernel.TopicOrderPlaced
			return []event{placed(c.order)}, nil
		}
	case confirm:
		switch s.status {
		case statusPending:
			next.What = kernel.TopicOrderConfirmed
			return []event{confirmed(next)}, nil
		case statusConfirmed, statusDispatched:
			return nil, nil
		}
	case dispatch:
		switch s.status {
		case statusConfirmed:
			next.What, next.Tracking = kernel.TopicOrderDispatched, c.tracking
			return []event{dispatched(next)}, nil
		case statusDispatched:
			return nil, nil
		}
	case reject:
		switch s.status {
		case statusPending:
			next.What, next.Reason = kernel.TopicOrderRejected, c.reason
			return []event{rejected(next)}, nil
		case statusRejected:
			return nil, nil
		}
	case cancel:
		switch s.status {
		case statusPending, statusConfirmed:
			next.What, next.Reason = kernel.TopicOrderCancelled, c.reason
			return []event{cancelled(next)}, nil
		case statusCancelled:
			return nil, nil
		}
	}
	return nil, fmt.Errorf("order %s is %q: %T: %w", s.order.OrderID, s.status, c, errNotNow)
}

// evolve returns the state after an event.
func evolve(_ state, e event) state {
	status := statusPending
	switch e.(type) {
	case confirmed:
		status = statusConfirmed
	case dispatched:
		status = statusDispatched
	case rejected:
		status = statusRejected
	case cancelled:
		status = statusCancelled
	}
	return state{status: status, order: e.order()}
}

// orders are the streams of all orders, one each, and beside them the row that says what its
// events add up to. The row is written in the transaction of the events, so it is what a snapshot
// would be, and what people are shown.
type orders struct {
	log   *eventsource.Log
	codec *eventsource.Codec
}

// newOrders makes the tables. Each event is told to others in the transaction that stores it.
func newOrders(ctx context.Context, env platform.Env, bus *platform.Bus) (*orders, error) {
	store, err := eventsourcesql.New(env.DB, platform.DialectOf(env.DB), eventsourcesql.Config{})
	if err != nil {
		return nil, err
	}
	if err := store.Migrate(ctx); err != nil {
		return nil, err
	}
	codec, err := eventsource.NewCodec(
		eventsource.Type[placed](kernel.TopicOrderPlaced+".v1"),
		eventsource.Type[confirmed](kernel.TopicOrderConfirmed+".v1"),
		eventsource.Type[dispatched](kernel.TopicOrderDispatched+".v1"),
		eventsource.Type[rejected](kernel.TopicOrderRejected+".v1"),
		eventsource.Type[cancelled](kernel.TopicOrderCancelled+".v1"),
	)
	if err != nil {
		return nil, err
	}
	log, err := eventsource.New(store, eventsource.Config{
		Inject: env.Tracing().Inject,
		Hooks:  env.Tracing().EventLog(),
		Within: eventsource.Publish(bus.Outbox(), func(stream string, e eventsource.Event) *messaging.Message {
			return bus.Recorded(topic(e.Type), strings.TrimPrefix(stream, streamPrefix), e)
		}),
	})
	if err != nil {
		return nil, err
	}
	return &orders{log: log, codec: codec}, nil
}

const streamPrefix = "order-"

// topic returns an event's type without the version of its schema.
func topic(name string) string {
	name, _, _ = strings.Cut(name, ".v")
	return name
}

// change gives a command to an order in the caller's transaction. A race for the same order is
// lost with an [*eventsource.VersionError].
func (o *orders) change(ctx context.Context, tx *sql.Tx, id string, c command) error {
	s, version, err := o.load(ctx, tx, id)
	if err != nil {
		return err
	}
	happened, err := decide(s, c)
	if err != nil || len(happened) == 0 {
		return err
	}
	stored := make([]eventsource.Event, len(happened))
	for i, e := range happened {
		if stored[i], err = o.codec.Encode(ctx, e); err != nil {
			return err
		}
		s = evolve(s, e)
	}
	if err := o.log.Append(ctx, tx, streamPrefix+id, eventsource.At(version), stored...); err != nil {
		return err
	}
	return save(ctx, tx, s, version+int64(len(happened)))
}

// load returns what an order's events add up to, and how many they are.
func (o *orders) load(ctx context.Context, tx *sql.Tx, id string) (s state, version int64, err error) {
	var lines string
	err = tx.QueryRowContext(ctx, `SELECT customer_id, status, reason, total, method, lines, version FROM orders WHERE id = $1`, id).
		Scan(&s.order.CustomerID, &s.status, &s.order.Reason, &s.order.Total, &s.order.Method, &lines, &version)
	if errors.Is(err, sql.ErrNoRows) {
		return state{}, 0, nil
	}
	if err != nil {
		return s, 0, err
	}
	s.order.OrderID, s.order.Currency = id, kernel.Currency
	return s, version, json.Unmarshal([]byte(lines), &s.order.Lines)
}

func save(ctx context.Context, tx *sql.Tx, s state, version int64) error {
	lines, err := json.Marshal(s.order.Lines)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO orders (id, customer_id, status, reason, total, method, lines, version, created_at, updated_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
		ON CONFLICT (id) DO UPDATE SET status = excluded.status, reason = excluded.reason, version = excluded.version, updated_at = excluded.updated_at`,
		s.order.OrderID, s.order.CustomerID, s.status, s.order.Reason, s.order.Total, s.order.Method, string(lines), version, time.Now().UnixMicro())
	return err
}

// story returns an order's events as its customer reads them.
func (o *orders) story(ctx context.Context, id string) ([]moment, error) {
	var out []moment
	for recorded, err := range o.log.Read(ctx, streamPrefix+id, 0) {
		if err != nil {
			return nil, err
		}
		values, err := o.codec.Decode(ctx, recorded.Event)
		if err != nil {
			return nil, err
		}
		for _, v := range values {
			e := v.(event).order()
			out = append(out, moment{At: recorded.Time.UTC(), What: e.What, Detail: e.Reason + e.Tracking})
		}
	}
	return out, nil
}
