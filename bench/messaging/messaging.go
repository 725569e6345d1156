// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package messaging measures rabbitkit beside its peers on one RabbitMQ: publishing with
// confirmations to a quorum queue, and consuming from one.
package messaging

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"
	wagslane "github.com/wagslane/go-rabbitmq"
	"golang.org/x/sync/errgroup"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

// Peers are the modules that are compared with.
var Peers = []string{
	"github.com/rabbitmq/amqp091-go", "github.com/ThreeDotsLabs/watermill-amqp/v3", "github.com/wagslane/go-rabbitmq",
}

const (
	publishers = 100 // goroutines that publish, each one message at a time
	size       = 1024
	prefetch   = 200
	exchange   = "bench"
)

// queues has a queue of the same kind for everybody.
var queues = map[string]string{
	"dovetail": exchange + ".group.g", "amqp091": exchange + ".amqp091", "watermill": exchange + ".watermill", "go-rabbitmq": exchange + ".wagslane",
}

// table is one comparison.
type table struct {
	name, title string
	cases       []contender
	goals       []goal
}

// contender moves messages for about d, and returns how many.
type contender struct {
	name string
	note string
	// prepare is not measured.
	prepare func() error
	run     func(d time.Duration) (int, error)
}

// goal is the least share of another's rate.
type goal struct {
	what, ours, theirs string
	least              float64
}

type sample struct{ rate, cpu float64 } // messages a second, microseconds a message

// Report measures in so many interleaved rounds, ten times each long, and writes the tables to w.
func Report(ctx context.Context, stdout, w io.Writer, rounds int, each time.Duration) error {
	fmt.Fprint(w, "## Messaging, RabbitMQ\n\n")
	url := os.Getenv("DOVETAIL_RABBITMQ_URL")
	if url == "" {
		fmt.Fprint(w, "Not run: DOVETAIL_RABBITMQ_URL is not set.\n")
		return nil
	}
	b, err := open(ctx, url)
	if err != nil {
		return err
	}
	defer b.close()
	fmt.Fprintf(w, "Messages of 1 KiB, persistent, in quorum queues of one node. A row's rate is the clock's and its neighbours', the ratio is "+
		"the median of the ratios within each round.\n")
	for _, t := range b.tables() {
		if err := t.measure(stdout, w, rounds, 10*each); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

func (t table) measure(stdout, w io.Writer, rounds int, d time.Duration) error {
	samples := make(map[string][]sample)
	for range rounds {
		for _, c := range t.cases {
			if c.prepare != nil {
				if err := c.prepare(); err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
			}
			used, start := processorTime(), time.Now()
			n, err := c.run(d)
			took, cpu := time.Since(start), processorTime()-used
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			one := sample{float64(n) / took.Seconds(), float64(cpu.Microseconds()) / float64(n)}
			samples[c.name] = append(samples[c.name], one)
			fmt.Fprintf(stdout, "Benchmark%s/%s\t%d\t%.0f msg/s\t%.2f cpu-us/msg\n", t.name, c.name, n, one.rate, one.cpu)
		}
	}
	fmt.Fprintf(w, "\n### %s\n\n| | msg/s | CPU us/msg | of %s | |\n| --- | ---: | ---: | ---: | --- |\n", t.title, t.goals[0].theirs)
	for _, c := range t.cases {
		fmt.Fprintf(w, "| %s | %.0f | %.1f | %.2f | %s |\n", c.name,
			median(samples[c.name], func(s sample) float64 { return s.rate }), median(samples[c.name], func(s sample) float64 { return s.cpu }),
			ratio(samples[c.name], samples[t.goals[0].theirs]), c.note)
	}
	fmt.Fprint(w, "\n| goal | ratio | |\n| --- | ---: | --- |\n")
	for _, g := range t.goals {
		r, verdict := ratio(samples[g.ours], samples[g.theirs]), "reached"
		if r < g.least {
			verdict = "**missed**"
		}
		fmt.Fprintf(w, "| %s | %.2f | %s |\n", g.what, r, verdict)
	}
	return nil
}

func median(all []sample, of func(sample) float64) float64 {
	values := make([]float64, len(all))
	for i, s := range all {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// ratio is the median of the ratios of two contenders' rates, round by round.
func ratio(ours, theirs []sample) float64 {
	values := make([]float64, len(ours))
	for i := range ours {
		values[i] = ours[i].rate / theirs[i].rate
	}
	slices.SortFunc(values, cmp.Compare)
	return values[len(values)/2]
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// bench holds everybody's clients.
type bench struct {
	url    string
	ours   *rabbitkit.Client
	raw    *amqp.Connection
	conn   *wagslane.Conn
	pool   message.Publisher // watermill's, with a channel for each goroutine
	peer   *wagslane.Publisher
	closes []func() error
}

func open(ctx context.Context, url string) (*bench, error) {
	b := &bench{url: url}
	quiet := slog.New(slog.DiscardHandler)
	var err error
	if b.ours, err = rabbitkit.New(url, rabbitkit.Config{Exchange: exchange, Window: publishers, Logger: quiet}); err != nil {
		return nil, err
	}
	if b.raw, err = amqp.Dial(url); err != nil {
		return nil, err
	}
	b.closes = append(b.closes, b.raw.Close, b.ours.Close)
	if err := b.ours.Declare(ctx, messaging.Subscription{Group: "g", Topics: []string{"t"}}); err != nil {
		return nil, err
	}
	err = b.channel(func(ch *amqp.Channel) error {
		for who, name := range queues {
			if who == "dovetail" {
				continue
			}
			if _, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
				return err
			}
		}
		for who, name := range queues { // through one topic exchange all of them
			if who == "dovetail" {
				continue
			}
			if err := ch.QueueBind(name, who, exchange, false, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if b.pool, err = watermillamqp.NewPublisher(watermillConfig(url), watermill.NopLogger{}); err != nil {
		return nil, err
	}
	b.closes = append(b.closes, b.pool.Close)
	if b.conn, err = wagslane.NewConn(url, wagslane.WithConnectionOptionsLogger(silent{})); err != nil {
		return nil, err
	}
	if b.peer, err = wagslane.NewPublisher(b.conn, wagslane.WithPublisherOptionsConfirm, wagslane.WithPublisherOptionsLogger(silent{})); err != nil {
		return nil, err
	}
	b.closes = append(b.closes, func() error { b.peer.Close(); return b.conn.Close() })
	return b, nil
}

// watermillConfig asks for what the others do too: confirmations, and a prefetch.
func watermillConfig(url string) watermillamqp.Config {
	cfg := watermillamqp.NewDurableTopicConfig(url, exchange, queues["watermill"])
	cfg.Exchange.Durable = true
	cfg.Queue.Arguments = amqp.Table{"x-queue-type": "quorum"}
	cfg.Publish.ConfirmDelivery = true
	cfg.Publish.ChannelPoolSize = publishers
	cfg.Consume.Qos.PrefetchCount = prefetch
	return cfg
}

// silent is a logger of go-rabbitmq.
type silent struct{}

func (silent) Fatalf(string, ...any) {}
func (silent) Errorf(string, ...any) {}
func (silent) Warnf(string, ...any)  {}
func (silent) Infof(string, ...any)  {}
func (silent) Debugf(string, ...any) {}

func (b *bench) close() {
	_ = b.channel(func(ch *amqp.Channel) error {
		for _, name := range queues {
			_, _ = ch.QueueDelete(name, false, false, false)
		}
		return nil
	})
	_ = b.ours.Remove(context.Background(), "g")
	for _, f := range slices.Backward(b.closes) {
		_ = f()
	}
}

func (b *bench) channel(fn func(ch *amqp.Channel) error) error {
	ch, err := b.raw.Channel()
	if err != nil {
		return err
	}
	return errors.Join(fn(ch), ch.Close())
}

func (b *bench) purge(who string) func() error {
	return func() error {
		return b.channel(func(ch *amqp.Channel) error {
			_, err := ch.QueuePurge(queues[who], false)
			return err
		})
	}
}

func (b *bench) tables() []table {
	publish := table{
		name: "publish", title: fmt.Sprintf("Publish, confirmed, %d in flight", publishers),
		cases: []contender{
			{name: "amqp091", note: "pipelined by hand from one goroutine, over one channel", prepare: b.purge("amqp091"), run: b.publishRaw(1)},
			{name: "amqp091, 4 channels", note: "the same from four, a channel each", prepare: b.purge("amqp091"), run: b.publishRaw(4)},
			{name: "dovetail", note: fmt.Sprintf("a blocking Publish from %d goroutines", publishers), prepare: b.purge("dovetail"), run: b.publishOurs},
			{name: "go-rabbitmq", note: "the same with deferred confirmations", prepare: b.purge("go-rabbitmq"), run: b.publishWagslane},
			{name: "watermill", note: "the same with ConfirmDelivery and a channel for each goroutine", prepare: b.purge("watermill"), run: b.publishWatermill},
		},
		goals: []goal{
			{"dovetail publishes at 0.90 of the hand-made pipeline or more", "dovetail", "amqp091", 0.9},
			{"dovetail publishes more than watermill", "dovetail", "watermill", 1},
			{"dovetail publishes at 0.90 of go-rabbitmq or more", "dovetail", "go-rabbitmq", 0.9},
		},
	}
	const many, few = 10_000, 1_000
	trivial := table{
		name: "consume", title: "Consume, a handler that costs nothing",
		cases: []contender{
			{name: "amqp091", note: "one loop, an acknowledgement for each", prepare: b.fill("amqp091", many), run: b.consumeRaw(many, 1, 0)},
			{name: "dovetail", note: "8 handlers", prepare: b.fill("dovetail", many), run: b.consumeOurs(many, 8, 0)},
			{name: "go-rabbitmq", note: "8 handlers", prepare: b.fill("go-rabbitmq", many), run: b.consumeWagslane(many, 8, 0)},
			{name: "watermill", note: "one at a time, as ever", prepare: b.fill("watermill", many), run: b.consumeWatermill(many, 0)},
		},
		goals: []goal{
			{"dovetail consumes at 0.90 of the hand-made loop or more", "dovetail", "amqp091", 0.9},
			{"dovetail consumes at 0.90 of go-rabbitmq or more", "dovetail", "go-rabbitmq", 0.9},
		},
	}
	const busy = 5 * time.Millisecond
	slow := table{
		name: "consume_5ms", title: "Consume, a handler of 5 ms, 50 at a time",
		cases: []contender{
			{name: "amqp091", note: "50 goroutines on one channel", prepare: b.fill("amqp091", 2*few), run: b.consumeRaw(2*few, 50, busy)},
			{name: "dovetail", note: "Concurrency 50", prepare: b.fill("dovetail", 2*few), run: b.consumeOurs(2*few, 50, busy)},
			{name: "go-rabbitmq", note: "Concurrency 50", prepare: b.fill("go-rabbitmq", 2*few), run: b.consumeWagslane(2*few, 50, busy)},
			{name: "watermill", note: "one at a time: 50 would be 50 subscriptions", prepare: b.fill("watermill", few/10), run: b.consumeWatermill(few/10, busy)},
		},
		goals: []goal{
			{"dovetail consumes at 0.90 of the hand-made workers or more", "dovetail", "amqp091", 0.9},
			{"dovetail consumes at ten times watermill's rate or more", "dovetail", "watermill", 10},
		},
	}
	return []table{publish, trivial, slow}
}

// crowd runs one for d from every goroutine, and returns how often.
func crowd(d time.Duration, one func() error) (int, error) {
	var n atomic.Int64
	var failure atomic.Value
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	for range publishers {
		wg.Go(func() {
			for time.Now().Before(end) {
				if err := one(); err != nil {
					failure.Store(err)
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	if err, ok := failure.Load().(error); ok {
		return 0, err
	}
	return int(n.Load()), nil
}

var body = make([]byte, size)

func (b *bench) publishOurs(d time.Duration) (int, error) {
	return crowd(d, func() error {
		return b.ours.Publish(context.Background(), &messaging.Message{ID: messaging.NewID(), Topic: "t", Body: body})
	})
}

func (b *bench) publishWatermill(d time.Duration) (int, error) {
	return crowd(d, func() error {
		return b.pool.Publish("watermill", message.NewMessage(messaging.NewID(), body))
	})
}

func (b *bench) publishWagslane(d time.Duration) (int, error) {
	to := []string{"go-rabbitmq"}
	return crowd(d, func() error {
		confirmations, err := b.peer.PublishWithDeferredConfirmWithContext(context.Background(), body, to, wagslane.WithPublishOptionsExchange(exchange),
			wagslane.WithPublishOptionsPersistentDelivery, wagslane.WithPublishOptionsMandatory, wagslane.WithPublishOptionsMessageID(messaging.NewID()))
		if err != nil {
			return err
		}
		if ok, err := confirmations[0].WaitContext(context.Background()); err != nil || !ok {
			return errors.Join(errors.New("not confirmed"), err)
		}
		return nil
	})
}

// publishRaw is what one would write by hand: a window of deferred confirmations, on each of
// a few channels.
func (b *bench) publishRaw(channels int) func(d time.Duration) (int, error) {
	return func(d time.Duration) (int, error) {
		end := time.Now().Add(d)
		var all atomic.Int64
		var g errgroup.Group
		for range channels {
			g.Go(func() error {
				n, err := b.pipeline(exchange, "amqp091", publishers/channels, func(int) bool { return time.Now().Before(end) })
				all.Add(int64(n))
				return err
			})
		}
		err := g.Wait()
		return int(all.Load()), err
	}
}

func (b *bench) pipeline(exchange, key string, window int, more func(n int) bool) (n int, err error) {
	err = b.channel(func(ch *amqp.Channel) error {
		if err := ch.Confirm(false); err != nil {
			return err
		}
		flying := make([]*amqp.DeferredConfirmation, window)
		left := 0
		for i := 0; ; i++ {
			if c := flying[i%window]; c != nil {
				if !c.Wait() {
					return errors.New("not confirmed")
				}
				flying[i%window] = nil
				left--
			}
			if more(n) {
				c, err := ch.PublishWithDeferredConfirmWithContext(context.Background(), exchange, key, true, false, amqp.Publishing{
					DeliveryMode: amqp.Persistent, MessageId: messaging.NewID(), Body: body,
				})
				if err != nil {
					return err
				}
				flying[i%window] = c
				n++
				left++
			} else if left == 0 {
				return nil
			}
		}
	})
	return n, err
}

// fill puts n messages into an empty queue.
func (b *bench) fill(who string, n int) func() error {
	return func() error {
		if err := b.purge(who)(); err != nil {
			return err
		}
		_, err := b.pipeline("", queues[who], publishers, func(sent int) bool { return sent < n })
		return err
	}
}

// until counts to n and then closes done.
type until struct {
	left atomic.Int64
	done chan struct{}
}

func newUntil(n int) *until {
	u := &until{done: make(chan struct{})}
	u.left.Store(int64(n))
	return u
}

func (u *until) one(busy time.Duration) {
	if busy > 0 {
		time.Sleep(busy)
	}
	if u.left.Add(-1) == 0 {
		close(u.done)
	}
}

func (b *bench) consumeOurs(n, concurrency int, busy time.Duration) func(time.Duration) (int, error) {
	return func(time.Duration) (int, error) {
		u := newUntil(n)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() { <-u.done; cancel() }()
		s := messaging.Subscription{Group: "g", Topics: []string{"t"}, Concurrency: concurrency, Prefetch: prefetch}
		return n, b.ours.Subscribe(ctx, s, messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error {
			u.one(busy)
			return nil
		}))
	}
}

func (b *bench) consumeRaw(n, concurrency int, busy time.Duration) func(time.Duration) (int, error) {
	return func(time.Duration) (int, error) {
		return n, b.channel(func(ch *amqp.Channel) error {
			if err := ch.Qos(prefetch, 0, false); err != nil {
				return err
			}
			ds, err := ch.Consume(queues["amqp091"], "raw", false, false, false, false, nil)
			if err != nil {
				return err
			}
			u := newUntil(n)
			var wg sync.WaitGroup
			for range concurrency {
				wg.Go(func() {
					for d := range ds {
						u.one(busy)
						_ = d.Ack(false)
					}
				})
			}
			<-u.done
			err = ch.Cancel("raw", false)
			wg.Wait()
			return err
		})
	}
}

func (b *bench) consumeWagslane(n, concurrency int, busy time.Duration) func(time.Duration) (int, error) {
	return func(time.Duration) (int, error) {
		c, err := wagslane.NewConsumer(b.conn, queues["go-rabbitmq"], wagslane.WithConsumerOptionsQueueNoDeclare,
			wagslane.WithConsumerOptionsConcurrency(concurrency), wagslane.WithConsumerOptionsQOSPrefetch(prefetch), wagslane.WithConsumerOptionsLogger(silent{}))
		if err != nil {
			return 0, err
		}
		u := newUntil(n)
		go func() { <-u.done; c.Close() }()
		err = c.Run(func(wagslane.Delivery) wagslane.Action {
			u.one(busy)
			return wagslane.Ack
		})
		select {
		case <-u.done: // Run may say that it was closed
			return n, nil
		default:
			return 0, err
		}
	}
}

func (b *bench) consumeWatermill(n int, busy time.Duration) func(time.Duration) (int, error) {
	return func(time.Duration) (int, error) {
		s, err := watermillamqp.NewSubscriber(watermillConfig(b.url), watermill.NopLogger{})
		if err != nil {
			return 0, err
		}
		u := newUntil(n)
		msgs, err := s.Subscribe(context.Background(), "watermill")
		if err != nil {
			return 0, err
		}
		go func() {
			for m := range msgs {
				u.one(busy)
				m.Ack()
			}
		}()
		<-u.done
		return n, s.Close()
	}
}
