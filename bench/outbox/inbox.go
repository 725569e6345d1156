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
	fmt.Fprint(b.w, "### Inbox: effects that happen once\n\nEach message inserts a row and its mark in one transaction; commits wait for the disk. "+
		"A BatchConsumer's handler inserts the rows one by one, a BulkConsumer's by one statement. Goroutines that hand out messages stand for a subscription's Concurrency: 128, with four batches at a time 512.\n\n"+
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
	bulk := func(ctx context.Context, tx *sql.Tx, ds []*messaging.Delivery) error {
		keys, bodies := make([]string, len(ds)), make([][]byte, len(ds))
		for i, d := range ds {
			keys[i], bodies[i] = d.Message.Key, d.Message.Body
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO bench_order (customer, body) SELECT * FROM unnest($1::text[], $2::bytea[])", keys, bodies)
		return err
	}
	const parallel = 4
	one, err := messaging.Batch(messaging.BatchConfig{}, idempotency.BatchConsumer(b.db, store, effect))
	if err != nil {
		return err
	}
	several, err := messaging.Batch(messaging.BatchConfig{Parallel: parallel}, idempotency.BatchConsumer(b.db, store, effect))
	if err != nil {
		return err
	}
	together, err := messaging.Batch(messaging.BatchConfig{}, idempotency.BulkConsumer(b.db, store, bulk))
	if err != nil {
		return err
	}
	cases := []struct {
		name    string
		n       int
		workers int
		handler messaging.Handler
		why     string // a goal is missed
	}{
		{"one transaction per message, 16 workers", 3000, 16, idempotency.Consumer(b.db, store, effect), ""},
		{"BatchConsumer, batches of up to 100, one at a time", 10_000, 128, one,
			"each effect is a round trip, and one connection makes them one after the other: it waits for each answer while the sixteen workers keep both cores busy"},
		{"BatchConsumer, batches of up to 100, Parallel 4", 20_000, parallel * 128, several, "each effect is a round trip still"},
		{"BulkConsumer, batches of up to 100, one at a time", 20_000, 128, together, ""},
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
		b.goal(c.name+": at least 3 times one transaction per message", ratio, ratio >= 3, c.why)
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
