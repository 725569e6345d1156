// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"sync"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/otelkit"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
	"github.com/dovetail-go/dovetail/promkit"
	"github.com/dovetail-go/dovetail/saga/barrier"
)

// Broker is what a service needs from the message broker.
type Broker interface {
	messaging.Publisher
	messaging.Subscriber
	messaging.Declarer
}

// Bus is how a service speaks and listens: what it tells leaves through an outbox in
// its own database, what it hears is applied once by an inbox there.
type Bus struct {
	service string
	db      *sql.DB
	log     *slog.Logger
	outbox  *outbox.Outbox
	relay   *outbox.Relay
	// handlers are those of On, by group; atOnce is how many messages each of them has in hand.
	mu       sync.Mutex
	handlers map[string]messaging.Handler
	atOnce   int
	// Inbox remembers the messages that were applied, and the answers to HTTP requests that
	// carried an Idempotency-Key.
	Inbox *idempotencysql.Store
	// Barrier guards this service's part in sagas.
	Barrier *barrier.Barrier

	tracing             *otelkit.Kit
	metrics             busMetrics
	published, consumed messageCounts
	hands               hands
}

// NewBus creates the tables of outbox, inbox and barrier in the service's database.
func NewBus(ctx context.Context, env Env) (*Bus, error) {
	dialect := DialectOf(env.DB)
	store, err := outboxsql.New(env.DB, dialect, outboxsql.Config{Archive: true})
	if err != nil {
		return nil, err
	}
	if err := store.Migrate(ctx); err != nil {
		return nil, err
	}
	inbox, err := idempotencysql.New(env.DB, dialect, idempotencysql.Config{})
	if err != nil {
		return nil, err
	}
	if err := inbox.Migrate(ctx); err != nil {
		return nil, err
	}
	box, err := outbox.New(store, outbox.Config{Inject: env.Tracing().Inject})
	if err != nil {
		return nil, err
	}
	guard, err := barrier.New(dialect, barrier.Config{Logger: env.Log})
	if err != nil {
		return nil, err
	}
	if err := guard.Migrate(ctx, env.DB); err != nil {
		return nil, err
	}
	if err := CreateTables(ctx, env.DB, deadLetterSchema+appliedSchema); err != nil {
		return nil, err
	}
	b := &Bus{
		service: env.Name, db: env.DB, log: env.Log, outbox: box, Inbox: inbox, Barrier: guard,
		tracing: env.Tracing(), metrics: newBusMetrics(promkit.NewInbox(inbox)),
		handlers: map[string]messaging.Handler{}, atOnce: 2,
	}
	if dialect == Postgres {
		b.atOnce = PostgresConns / 2
	}
	b.relay, err = outbox.NewRelay(box, env.Broker, outbox.RelayConfig{
		DrainTimeout: env.Flush, Lease: env.Lease, Logger: env.Log,
		Hooks: env.Tracing().Relay(outbox.Hooks{Confirmed: func(c outbox.Confirmed) { b.published.add(c.Message.Topic, "", false) }}),
	})
	return b, err
}

// Emit enqueues events in the caller's transaction: they are published if and only if it
// commits. Call Wake after the commit to have them on their way at once.
func (b *Bus) Emit(ctx context.Context, tx *sql.Tx, events ...kernel.Event) error {
	if len(events) == 0 {
		return nil
	}
	msgs := make([]*messaging.Message, len(events))
	for i, e := range events {
		m, err := kernel.NewMessage(b.service, e)
		if err != nil {
			return err
		}
		msgs[i] = m
	}
	return b.outbox.Enqueue(ctx, tx, msgs...)
}

// Recorded returns an event of the service's own log as the message that tells others of it.
func (b *Bus) Recorded(topic, key string, e eventsource.Event) *messaging.Message {
	m := eventsource.Message(topic, key, e)
	if err := kernel.CloudEvent(m, b.service); err != nil {
		panic(err) // all that it is made of is of this program's own making
	}
	return m
}

// Outbox returns the outbox itself, for a block that enqueues by itself.
func (b *Bus) Outbox() *outbox.Outbox { return b.outbox }

// Wake tells the relay that a transaction with events has committed.
func (b *Bus) Wake() { b.outbox.Wake() }

// InTx runs fn in a transaction of the service's database and wakes the relay after it
// committed.
func (b *Bus) InTx(ctx context.Context, fn func(tx *sql.Tx) error) error {
	if err := InTx(ctx, b.db, fn); err != nil {
		return err
	}
	b.Wake()
	return nil
}

// Stats tells how much waits to be published and for how long.
func (b *Bus) Stats(ctx context.Context) (outbox.Stats, error) { return b.outbox.Stats(ctx) }

// Run publishes, and forgets what is too old to come again, until ctx ends.
func (b *Bus) Run(ctx context.Context) error {
	return RunAll(ctx, b.relay.Run, b.Inbox.Run, func(ctx context.Context) error { return b.Barrier.Run(ctx, b.db) }, b.forget)
}

// Consumer is a subscription with the handler that serves it.
type Consumer struct {
	Subscription messaging.Subscription
	Handler      messaging.Handler
}

type appliedKey struct{}

// On returns a consumer that applies each message of the topics exactly once, in order
// per key: apply runs in the transaction that also remembers the message.
func (b *Bus) On(group string, topics []string, apply func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error) Consumer {
	handler := idempotency.Consumer(b.db, b.tracing.Inbox(b.metrics.inbox), func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
		if err := apply(ctx, tx, d); err != nil {
			return fmt.Errorf("%s: %s: %w", b.service, d.Message.Type, err)
		}
		if err := b.Applied(ctx, tx, d); err != nil {
			return err
		}
		if applied, ok := ctx.Value(appliedKey{}).(*bool); ok {
			*applied = true
		}
		return nil
	})
	once := messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
		applied := new(bool) // a duplicate is not
		err := handler.Handle(context.WithValue(ctx, appliedKey{}, applied), d)
		if err != nil {
			return err
		}
		if *applied {
			b.Delayed(group, d.Message)
			b.Wake() // apply may have emitted
		}
		return nil
	})
	b.mu.Lock()
	b.handlers[group] = once
	b.mu.Unlock()
	b.metrics.delays.WithLabelValues(group) // from the first scrape on: a rate needs two
	subscription := Group(group, topics...)
	// More handlers at once would only queue for the database's connections, and hold up the
	// relay's lease in that queue.
	subscription.Concurrency = b.atOnce
	return Consumer{Subscription: subscription, Handler: once}
}

// Group is the subscription of one of the shop's consumers: in order per key.
func Group(name string, topics ...string) messaging.Subscription {
	// Messages that wait for a retry, and so hold up their keys, count among the prefetched.
	return messaging.Subscription{Group: name, Topics: topics, Ordered: true, Prefetch: 64}
}
