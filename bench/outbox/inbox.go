// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
	"github.com/dovetail-go/dovetail/messaging"
)

// inbox compares one transaction per message with batches.
func (b *bench) inbox() error {
	fmt.Fprint(b.w, "### Inbox: effects that happen once\n\nEach message inserts a row and its mark in one transaction; commits wait for the disk.\n\n"+
		"| | messages | msg/s | lowest to highest | CPU µs/msg |\n| --- | ---: | ---: | ---: | ---: |\n")
	store, err := b.marks("")
	if err != nil {
		return err
	}
	if err := b.orders(b.db); err != nil {
		return err
	}
	effect := func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO bench_order (customer, body) VALUES ($1, $2)", d.Message.Key, d.Message.Body)
		return err
	}
	const lanes = 4
	batched := make([]messaging.Handler, lanes)
	for i := range batched {
		if batched[i], err = messaging.Batch(messaging.BatchConfig{}, idempotency.BatchConsumer(b.db, store, effect)); err != nil {
			return err
		}
	}
	var turn atomic.Int64
	four := messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
		return batched[turn.Add(1)%lanes].Handle(ctx, d)
	})
	cases := []struct {
		name    string
		n       int
		workers int
		handler messaging.Handler
	}{
		{"one transaction per message, 16 workers", 3000, 16, idempotency.Consumer(b.db, store, effect)},
		{"batches of up to 100, one at a time", 10_000, 128, batched[0]},
		{"batches of up to 100, four at a time", 20_000, lanes * 128, four},
	}
	rates, cpus := make([]measure, len(cases)), make([]measure, len(cases))
	for range b.rounds {
		for k, c := range cases {
			wall, cpu, err := timed(func() error { return b.consume(c.handler, c.n, c.workers) })
			if err != nil {
				return err
			}
			rates[k].add(float64(c.n) / wall.Seconds())
			cpus[k].add(float64(cpu.Microseconds()) / float64(c.n))
			b.log("inbox", c.name, c.n, float64(wall.Nanoseconds())/float64(c.n), "ns/op", float64(cpu.Nanoseconds())/float64(c.n), "cpu-ns/op")
		}
	}
	for k, c := range cases {
		fmt.Fprintf(b.w, "| %s | %d | %.0f | %s | %s |\n", c.name, c.n, rates[k].median(), rates[k].spread(), figure(cpus[k].median()))
	}
	fmt.Fprintln(b.w)
	for k, c := range cases[1:] {
		ratio := rates[k+1].over(&rates[0])
		b.goal(c.name+": at least 3 times one transaction per message", ratio, ratio >= 3,
			"each effect is a round trip, and one connection makes them one after the other: where the cores are contended, it gets one share and the workers sixteen")
	}
	fmt.Fprintln(b.w)
	return nil
}

func (b *bench) marks(prefix string) (*idempotencysql.Store, error) {
	store, err := idempotencysql.New(b.db, idempotencysql.Postgres, idempotencysql.Config{Prefix: prefix})
	if err != nil {
		return nil, err
	}
	if err := store.Migrate(b.ctx); err != nil {
		return nil, err
	}
	return store, nil
}

// consume hands n new messages to the handler from so many goroutines.
func (b *bench) consume(h messaging.Handler, n, workers int) error {
	var next atomic.Int64
	var failed atomic.Pointer[error]
	text := body(time.Now())
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n) && failed.Load() == nil; i = next.Add(1) {
				m := &messaging.Message{ID: messaging.NewID(), Topic: topic, Key: fmt.Sprint("order-", i%100), Time: time.Now(), Body: text}
				if err := h.Handle(b.ctx, &messaging.Delivery{Message: m, Group: "bench", Attempt: 1}); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	wg.Wait()
	if e := failed.Load(); e != nil {
		return *e
	}
	return nil
}
