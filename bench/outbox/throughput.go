// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	wmsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"golang.org/x/sync/errgroup"

	"github.com/dovetail-go/dovetail/messaging"
	dovetail "github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

const (
	window = 512 // of the raw publisher, and what the relay gives to one topic by default
	topic  = "bench.order"
)

// throughput empties a full outbox into a quorum queue, every message confirmed.
func (b *bench) throughput() error {
	fmt.Fprintf(b.w, "### Relay: a full outbox into a quorum queue\n\nMessages of 1 KiB, every one confirmed by the broker and gone from the outbox at the end. "+
		"\"raw\" publishes as many from memory, pipelined by hand with amqp091-go over one channel in a window of %d, \"4 channels\" the same over four, and \"rabbitkit\" by as many goroutines. All run on the machine that PostgreSQL and RabbitMQ run on.\n\n"+
		"| | messages | msg/s | lowest to highest | CPU µs/msg |\n| --- | ---: | ---: | ---: | ---: |\n", window)
	cases := []struct {
		name string
		n    int
		run  func(n int) (time.Duration, time.Duration, error)
	}{
		{"raw", 40_000, b.raw(1)},
		{"raw, 4 channels", 40_000, b.raw(4)},
		{"rabbitkit, a Publish each", 40_000, b.publish},
		{"dovetail", 40_000, b.relay},
		{"watermill forwarder", 1_500, b.forwarder},
		{"river, a job publishes", 4_000, b.river},
	}
	rates, cpus := make([]measure, len(cases)), make([]measure, len(cases))
	for range b.rounds {
		for i, c := range cases {
			wall, cpu, err := c.run(c.n)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			rates[i].add(float64(c.n) / wall.Seconds())
			cpus[i].add(float64(cpu.Microseconds()) / float64(c.n))
			b.log("relay", c.name, c.n, float64(wall.Nanoseconds())/float64(c.n), "ns/op", float64(cpu.Nanoseconds())/float64(c.n), "cpu-ns/op")
		}
	}
	for i, c := range cases {
		fmt.Fprintf(b.w, "| %s | %d | %.0f | %s | %s |\n", c.name, c.n, rates[i].median(), rates[i].spread(), figure(cpus[i].median()))
	}
	raw, channels, forwarder := rates[3].over(&rates[0]), rates[3].over(&rates[1]), rates[3].over(&rates[4])
	fmt.Fprintln(b.w)
	b.goal("relay at least 0.9 of raw confirmed publishing", raw, raw >= 0.9, fmt.Sprintf("all share two cores, which are busy in both: for each message the relay's process needs %s µs of them more than raw's, and PostgreSQL its part for reading it and removing it; the broker gets what is left", figure(cpus[3].median()-cpus[0].median())))
	fmt.Fprintf(b.w, "- the same beside raw over four channels, as many as rabbitkit publishes over: %.2f\n", channels)
	b.goal("relay at least 4 times watermill's forwarder", forwarder, forwarder >= 4, "")
	fmt.Fprintln(b.w)
	return nil
}

// queue declares a quorum queue, which is deleted at the end.
func (b *bench) queue(name string) (*amqp.Channel, error) {
	ch, err := b.conn.Channel()
	if err != nil {
		return nil, err
	}
	if _, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
		return nil, err
	}
	b.cleanups = append(b.cleanups, func() {
		if ch, err := b.conn.Channel(); err == nil {
			_, _ = ch.QueueDelete(name, false, false, false)
		}
	})
	return ch, nil
}

// raw is what an expert writes by hand for this one purpose: the same messages to the same
// exchange and queue, in a window, from one goroutine for each channel.
func (b *bench) raw(channels int) func(n int) (wall, cpu time.Duration, err error) {
	return func(n int) (wall, cpu time.Duration, err error) {
		_, queue, err := b.client()
		if err != nil {
			return 0, 0, err
		}
		all := make([]*amqp.Channel, channels)
		for i := range all {
			if all[i], err = b.conn.Channel(); err != nil {
				return 0, 0, err
			}
			defer all[i].Close()
			if err := all[i].Confirm(false); err != nil {
				return 0, 0, err
			}
		}
		wall, cpu, err = timed(func() error {
			var g errgroup.Group
			for _, ch := range all {
				g.Go(func() error { return b.pipeline(ch, n/channels, window/channels) })
			}
			return g.Wait()
		})
		return wall, cpu, errors.Join(err, b.purge(queue))
	}
}

// pipeline publishes n messages, so many of them at a time without a confirmation.
func (b *bench) pipeline(ch *amqp.Channel, n, window int) error {
	text := body(time.Now())
	pending := make([]*amqp.DeferredConfirmation, 0, n)
	for i := range n {
		if i >= window && !pending[i-window].Wait() {
			return errors.New("refused")
		}
		c, err := ch.PublishWithDeferredConfirmWithContext(b.ctx, b.schema, topic, true, false, amqp.Publishing{
			DeliveryMode: amqp.Persistent, MessageId: messaging.NewID(), Timestamp: time.Now(),
			Headers: amqp.Table{"key": fmt.Sprint("order-", i%1000)}, Body: text,
		})
		if err != nil {
			return err
		}
		pending = append(pending, c)
	}
	for _, c := range pending[max(0, n-window):] {
		if !c.Wait() {
			return errors.New("refused")
		}
	}
	return nil
}

// publish is the way from memory to the broker that the relay takes.
func (b *bench) publish(n int) (wall, cpu time.Duration, err error) {
	client, queue, err := b.client()
	if err != nil {
		return 0, 0, err
	}
	text := body(time.Now())
	wall, cpu, err = timed(func() error {
		var next atomic.Int64
		var g errgroup.Group
		for range window {
			g.Go(func() error {
				for i := next.Add(1); i <= int64(n); i = next.Add(1) {
					m := &messaging.Message{ID: messaging.NewID(), Topic: topic, Key: fmt.Sprint("order-", i%1000), Time: time.Now(), Body: text}
					if err := client.Publish(b.ctx, m); err != nil {
						return err
					}
				}
				return nil
			})
		}
		return g.Wait()
	})
	return wall, cpu, errors.Join(err, b.purge(queue))
}

// client returns our publisher, connected, and the quorum queue of the one group that is bound.
func (b *bench) client() (*rabbitkit.Client, string, error) {
	const group = "bench"
	queue := b.schema + ".group." + group
	if b.publisher != nil {
		return b.publisher, queue, nil
	}
	client, err := rabbitkit.New(b.broker, rabbitkit.Config{Exchange: b.schema, Logger: quiet})
	if err != nil {
		return nil, "", err
	}
	b.cleanups = append(b.cleanups, func() {
		_ = client.Remove(b.ctx, group)
		_ = client.Close()
		if ch, err := b.conn.Channel(); err == nil {
			_ = ch.ExchangeDelete(b.schema, false, false)
		}
	})
	b.publisher = client
	if err := client.Declare(b.ctx, messaging.Subscription{Group: group, Topics: []string{"bench.#"}}); err != nil {
		return nil, "", err
	}
	if err := client.Check(b.ctx); err != nil {
		return nil, "", err
	}
	return client, queue, nil
}

func (b *bench) purge(queue string) error {
	ch, err := b.conn.Channel()
	if err != nil {
		return err
	}
	defer ch.Close()
	_, err = ch.QueuePurge(queue, false)
	return err
}

// fill enqueues n messages of n/20 keys.
func (b *bench) fill(box *dovetail.Outbox, n int) error {
	text := body(time.Now())
	msgs := make([]*messaging.Message, 0, 500)
	for i := range n {
		msgs = append(msgs, &messaging.Message{Topic: topic, Key: fmt.Sprint("order-", i%max(1, n/20)), Body: text})
		if len(msgs) == cap(msgs) || i == n-1 {
			if err := box.Enqueue(b.ctx, b.db, msgs...); err != nil {
				return err
			}
			msgs = msgs[:0]
		}
	}
	return nil
}

func (b *bench) relay(n int) (wall, cpu time.Duration, err error) {
	client, queue, err := b.client()
	if err != nil {
		return 0, 0, err
	}
	wall, cpu, err = b.drain(client, n, "relay_")
	return wall, cpu, errors.Join(err, b.purge(queue))
}

// drain measures how a relay empties an outbox of n messages: from its start until it has
// stopped, before which it removes what was confirmed.
func (b *bench) drain(pub messaging.Publisher, n int, prefix string) (wall, cpu time.Duration, err error) {
	box, err := b.store(b.db, prefix, dovetail.Config{})
	if err != nil {
		return 0, 0, err
	}
	if err := b.fill(box, n); err != nil {
		return 0, 0, err
	}
	wall, cpu, err = b.confirmed(box, pub, n, true)
	if err != nil {
		return 0, 0, err
	}
	st, err := box.Stats(b.ctx)
	if err == nil && st.Depth > 0 {
		err = fmt.Errorf("%d messages are left in the outbox", st.Depth)
	}
	return wall, cpu, err
}

// confirmed runs a relay until it has published n messages and, if these are all, has stopped.
func (b *bench) confirmed(box *dovetail.Outbox, pub messaging.Publisher, n int, all bool) (wall, cpu time.Duration, err error) {
	var confirmed atomic.Int64
	done := make(chan struct{})
	r, err := dovetail.NewRelay(box, pub, dovetail.RelayConfig{Logger: quiet, Hooks: dovetail.Hooks{Confirmed: func(dovetail.Confirmed) {
		if confirmed.Add(1) == int64(n) {
			close(done)
		}
	}}})
	if err != nil {
		return 0, 0, err
	}
	stop := func() error { return nil }
	wall, cpu, err = timed(func() error {
		stop = b.background(r.Run)
		<-done
		if all {
			return stop()
		}
		return nil
	})
	return wall, cpu, errors.Join(err, stop())
}

// ---- watermill

func (b *bench) forwarderOf(queue string) (*forwarder.Forwarder, error) {
	log := watermill.NopLogger{}
	sub, err := wmsql.NewSubscriber(wmsql.BeginnerFromStdSQL(b.db), wmsql.SubscriberConfig{
		ConsumerGroup: "bench", SchemaAdapter: wmsql.DefaultPostgreSQLSchema{}, OffsetsAdapter: wmsql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true,
	}, log)
	if err != nil {
		return nil, err
	}
	if err := sub.SubscribeInitialize(queue); err != nil {
		return nil, err
	}
	cfg := wmamqp.NewDurableQueueConfig(b.broker)
	cfg.Publish.ConfirmDelivery, cfg.Publish.ChannelPoolSize = true, 10
	cfg.Queue.Arguments = amqp.Table{"x-queue-type": "quorum"}
	pub, err := wmamqp.NewPublisher(cfg, log)
	if err != nil {
		return nil, err
	}
	return forwarder.NewForwarder(sub, pub, log, forwarder.Config{ForwarderTopic: queue})
}

// forward enqueues messages for watermill's forwarder in the caller's transaction.
func forward(tx *sql.Tx, queue string, bodies ...[]byte) error {
	pub, err := wmsql.NewPublisher(wmsql.TxFromStdSQL(tx), wmsql.PublisherConfig{SchemaAdapter: wmsql.DefaultPostgreSQLSchema{}}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	msgs := make([]*message.Message, len(bodies))
	for i, text := range bodies {
		msgs[i] = message.NewMessage(watermill.NewUUID(), text)
	}
	return forwarder.NewPublisher(pub, forwarder.PublisherConfig{ForwarderTopic: queue}).Publish(queue, msgs...)
}

func (b *bench) forwarder(n int) (wall, cpu time.Duration, err error) {
	queue := b.schema + "_wm"
	ch, err := b.queue(queue)
	if err != nil {
		return 0, 0, err
	}
	defer ch.Close()
	f, err := b.forwarderOf(queue)
	if err != nil {
		return 0, 0, err
	}
	text := body(time.Now())
	for range n / 100 {
		tx, err := b.db.BeginTx(b.ctx, nil)
		if err != nil {
			return 0, 0, err
		}
		bodies := make([][]byte, 100)
		for i := range bodies {
			bodies[i] = text
		}
		if err := errors.Join(forward(tx, queue, bodies...), tx.Commit()); err != nil {
			return 0, 0, err
		}
	}
	if err := ch.Confirm(false); err != nil {
		return 0, 0, err
	}
	wall, cpu, err = timed(func() error {
		stop := b.background(f.Run)
		err := b.until(5*time.Millisecond, func() (bool, error) {
			// Acknowledged means confirmed by the broker: the offset moves with it.
			var left int
			err := b.db.QueryRowContext(b.ctx, `SELECT count(*) FROM "watermill_`+queue+`" m WHERE m."offset" > `+
				`COALESCE((SELECT offset_acked FROM "watermill_offsets_`+queue+`" WHERE consumer_group = 'bench'), 0)`).Scan(&left)
			return left == 0, err
		})
		_ = f.Close() // it may give up waiting for its own poll
		return errors.Join(err, stop())
	})
	_, purge := ch.QueuePurge(queue, false)
	_, truncate := b.db.ExecContext(b.ctx, `DELETE FROM "watermill_`+queue+`"`)
	return wall, cpu, errors.Join(err, purge, truncate)
}

// ---- river

// publishArgs is a job that publishes a message: a queue in the database as an outbox.
type publishArgs struct {
	ID   string `json:"id"`
	Key  string `json:"key"`
	Body []byte `json:"body"`
}

// Kind implements river.JobArgs.
func (publishArgs) Kind() string { return "publish" }

func (b *bench) river(n int) (wall, cpu time.Duration, err error) {
	pub, queue, err := b.client()
	if err != nil {
		return 0, 0, err
	}
	driver := riverpgxv5.New(b.pool)
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: quiet})
	if err != nil {
		return 0, 0, err
	}
	if _, err := migrator.Migrate(b.ctx, rivermigrate.DirectionUp, nil); err != nil {
		return 0, 0, err
	}
	var confirmed atomic.Int64
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(func(ctx context.Context, job *river.Job[publishArgs]) error {
		if err := pub.Publish(ctx, &messaging.Message{ID: job.Args.ID, Topic: topic, Key: job.Args.Key, Time: time.Now(), Body: job.Args.Body}); err != nil {
			return err
		}
		confirmed.Add(1)
		return nil
	}))
	client, err := river.NewClient(driver, &river.Config{
		Logger: quiet, Workers: workers, Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: window}},
	})
	if err != nil {
		return 0, 0, err
	}
	text := body(time.Now())
	for range n / 500 {
		jobs := make([]river.InsertManyParams, 500)
		for i := range jobs {
			jobs[i].Args = publishArgs{ID: messaging.NewID(), Key: fmt.Sprint("order-", i%200), Body: text}
		}
		if err := pgx.BeginFunc(b.ctx, b.pool, func(tx pgx.Tx) error {
			_, err := client.InsertManyTx(b.ctx, tx, jobs)
			return err
		}); err != nil {
			return 0, 0, err
		}
	}
	wall, cpu, err = timed(func() error {
		if err := client.Start(b.ctx); err != nil {
			return err
		}
		err := b.until(time.Millisecond, func() (bool, error) {
			if confirmed.Load() < int64(n) {
				return false, nil
			}
			left := 0
			err := b.pool.QueryRow(b.ctx, "SELECT count(*) FROM river_job WHERE state <> 'completed'").Scan(&left)
			return left == 0, err
		})
		return errors.Join(err, client.Stop(b.ctx))
	})
	_, truncate := b.pool.Exec(b.ctx, "TRUNCATE river_job")
	return wall, cpu, errors.Join(err, truncate, b.purge(queue))
}
