// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// RelayConfig configures a [Relay]. The zero value is a sound default.
type RelayConfig struct {
	// Window is how many messages may be with the publisher at the same time. One topic
	// gets at most half of it, and half of what slower topics leave. Zero means 1024.
	Window int
	// Batch is how many rows of a shard are read at once. A shard has up to three batches in
	// memory. Zero means 200.
	Batch int
	// Poll is the longest time between two looks at the store while there is nothing to
	// do. Zero means 1 second.
	Poll time.Duration
	// Lease is how long a shard stays with a relay that gives no sign of life, and so
	// how long messages wait after a crash. A relay that is stopped for longer publishes
	// some messages twice. Renewed three times as often. Zero means 10 seconds.
	Lease time.Duration
	// Backoff is the delay before a message is tried again, a random one between half of
	// the schedule's and the whole. Zero fields mean 100 ms for Base and 30 seconds for Max.
	Backoff messaging.Backoff
	// MaxAttempts is how often a message may fail for reasons of its own before it is
	// parked. Refusals count, and errors of no particular kind while others get through;
	// unknown outcomes, a blocked broker and refusals by our own guards do not. Zero
	// means 20, about five minutes. Negative means no limit.
	MaxAttempts int
	// Free lets the later messages of a key pass a parked one. By default they wait for
	// an operator's decision, which keeps the order of the key.
	Free bool
	// PublishTimeout bounds one attempt, after which its outcome is unknown and it is
	// repeated. Zero leaves it to the publisher: where a confirmation waits for the
	// handlers, it may rightly take long.
	PublishTimeout time.Duration
	// DrainTimeout is how long Run waits for confirmations after its context has ended.
	// Zero means 5 seconds, negative not at all.
	DrainTimeout time.Duration
	// Logger gets what an operator should know. Nil means slog.Default() at use.
	Logger *slog.Logger
	// Hooks tell what the relay does.
	Hooks Hooks
}

func (c RelayConfig) withDefaults() (RelayConfig, error) {
	positive := func(name string, v *int, zero int) error {
		if *v < 0 {
			return fmt.Errorf("outbox: RelayConfig.%s is %d, want 0 or more", name, *v)
		}
		if *v == 0 {
			*v = zero
		}
		return nil
	}
	duration := func(name string, v *time.Duration, zero time.Duration) error {
		if *v < 0 {
			return fmt.Errorf("outbox: RelayConfig.%s is %v, want 0 or more", name, *v)
		}
		if *v == 0 {
			*v = zero
		}
		return nil
	}
	err := errors.Join(
		positive("Window", &c.Window, 1024),
		positive("Batch", &c.Batch, 200),
		duration("Poll", &c.Poll, time.Second),
		duration("Lease", &c.Lease, 10*time.Second),
		duration("Backoff.Base", &c.Backoff.Base, 100*time.Millisecond),
		duration("Backoff.Max", &c.Backoff.Max, max(30*time.Second, c.Backoff.Base)),
		duration("PublishTimeout", &c.PublishTimeout, 0),
	)
	if err != nil {
		return c, err
	}
	if c.Backoff.Max < c.Backoff.Base {
		return c, fmt.Errorf("outbox: RelayConfig.Backoff.Max is %v, want at least Base, which is %v", c.Backoff.Max, c.Backoff.Base)
	}
	// Less is eaten up by the round trips of the heartbeat.
	if c.Lease < 100*time.Millisecond {
		return c, fmt.Errorf("outbox: RelayConfig.Lease is %v, want at least 100ms", c.Lease)
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = 20
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 5 * time.Second
	}
	return c, nil
}

// Hooks tell what a relay does, for metrics and traces. Every field may be nil. They are
// called one after another and hold up the relay.
type Hooks struct {
	// Confirmed is called when a message has been published.
	Confirmed func(Confirmed)
	// Failed is called when an attempt has failed.
	Failed func(AttemptFailed)
	// Parked is called when a message has been set aside.
	Parked func(ParkedMessage)
	// Leased is called when the relay gets a shard or loses one.
	Leased func(Leased)
}

// Confirmed is a published message.
type Confirmed struct {
	Message *messaging.Message
	// Lag is the time from Enqueue to the confirmation.
	Lag time.Duration
	// Took is how long the publisher took.
	Took time.Duration
}

// AttemptFailed is an attempt to publish that did not succeed for certain.
type AttemptFailed struct {
	Message *messaging.Message
	Err     error
	// RetryIn is the time to the next attempt, zero if the message will be parked.
	RetryIn time.Duration
}

// ParkedMessage is a message that was set aside.
type ParkedMessage struct {
	Message  *messaging.Message
	Reason   string
	Attempts int
}

// Leased is the gain or loss of a shard.
type Leased struct {
	Lease
	// Held is true for a gain.
	Held bool
	// Why is the cause of a loss: "dropped", "expired" or "fenced".
	Why string
}

// RelayStats is the state of a relay and what it did so far in its current or last run.
type RelayStats struct {
	// Shards is how many shards it holds.
	Shards int
	// InFlight is how many messages are with the publisher, and OldestInFlight for how long
	// the first of them has been there.
	InFlight       int
	OldestInFlight time.Duration
	// Waiting is how many messages wait to be tried again.
	Waiting int
	// Confirmed, Failed and Unknown count attempts, Parked messages. Unknown ones are among
	// the failed.
	Confirmed, Failed, Unknown, Parked uint64
	// StoreErrors counts failed calls of the store.
	StoreErrors uint64
}

// Relay publishes what is in an outbox. Any number of relays may run on one outbox: they
// share its shards.
type Relay struct {
	outbox *Outbox
	pub    messaging.Publisher
	cfg    RelayConfig

	mu      sync.Mutex
	running bool
	stats   RelayStats
	oldest  time.Time
}

// NewRelay returns a relay from an outbox to a publisher. It does nothing until
// [Relay.Run].
func NewRelay(o *Outbox, pub messaging.Publisher, cfg RelayConfig) (*Relay, error) {
	if o == nil {
		return nil, errors.New("outbox: Outbox is nil, want one from New")
	}
	if pub == nil {
		return nil, errors.New("outbox: Publisher is nil, want one such as messagingmem's Broker")
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Relay{outbox: o, pub: pub, cfg: cfg}, nil
}

// Run publishes until ctx ends, then waits up to DrainTimeout for what is with the
// publisher, gives up its shards and returns nil. Trouble with the store or the broker
// does not end it. Only one Run of a relay may go on at a time; another returns an error.
func (r *Relay) Run(ctx context.Context) error {
	r.mu.Lock()
	if r.running {
		r.mu.Unlock()
		return errors.New("outbox: the relay is running already")
	}
	r.running, r.stats, r.oldest = true, RelayStats{}, time.Time{}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.running = false
	}()
	wakes, unsubscribe := r.outbox.subscribe()
	defer unsubscribe()
	// What is under way goes on after ctx has ended, until the drain has.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	run := &run{relay: r, ctx: work, news: make(chan struct{}, 1), rows: make(chan *row), ended: make(chan struct{})}
	run.async, _ = r.pub.(messaging.AsyncPublisher)
	defer close(run.ended)
	run.loop(ctx.Done(), wakes, newScheduler(r.cfg, r.outbox.store.Shards(), messaging.NewID(), rand.Uint64()))
	return nil
}

// Stats returns what the relay does and did.
func (r *Relay) Stats() RelayStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	if !r.oldest.IsZero() {
		s.OldestInFlight = time.Since(r.oldest)
	}
	return s
}

func (r *Relay) log() *slog.Logger {
	if r.cfg.Logger != nil {
		return r.cfg.Logger
	}
	return slog.Default()
}

// run is one Run: it carries out what the scheduler decides, in the background, and tells
// it the results, one at a time.
type run struct {
	relay *Relay
	ctx   context.Context          //nolint:containedctx // the context of the run, which ends with it
	async messaging.AsyncPublisher // nil if the publisher is not one

	mu      sync.Mutex
	results []result
	news    chan struct{} // tells that there are results
	// rows are for goroutines that have published before and wait for more: a new one would
	// have to grow its stack each time.
	rows  chan *row
	ended chan struct{}
}

// result is that of an attempt to publish row or, if row is nil, of a call of the store.
type result struct {
	row  *row
	err  error
	call func(now time.Time)
}

func (r *run) loop(done, wakes <-chan struct{}, s *scheduler) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var results []result
	for {
		commands, next := s.step(time.Now())
		for _, c := range commands {
			r.start(s, c)
		}
		r.report(s)
		if s.finished {
			return
		}
		timer.Reset(time.Until(next))
		select {
		case <-r.news:
		case <-wakes:
			s.wake()
		case <-timer.C:
		case <-done:
			s.stop(time.Now())
			done = nil
		}
		// Results come in bursts. What has arrived is one decision's worth.
		r.mu.Lock()
		results, r.results = r.results, results[:0]
		r.mu.Unlock()
		for _, result := range results {
			if result.row != nil {
				s.published(time.Now(), result.row, result.err)
			} else {
				result.call(time.Now())
			}
		}
		clear(results)
	}
}

// start carries out a command in the background.
func (r *run) start(s *scheduler, c command) {
	store, ttl := r.relay.outbox.store, r.relay.cfg.Lease
	// A call that takes longer than the lease is of no use to anybody.
	limited := func(call func(ctx context.Context) func(now time.Time)) {
		go func() {
			ctx, cancel := context.WithTimeout(r.ctx, ttl)
			defer cancel()
			r.tell(result{call: call(ctx)})
		}()
	}
	switch c := c.(type) {
	case *leaseCommand:
		limited(func(ctx context.Context) func(time.Time) {
			view, err := store.Lease(ctx, c.request)
			return func(now time.Time) { s.leased(now, c, view, err) }
		})
	case *readCommand:
		limited(func(ctx context.Context) func(time.Time) {
			rows, err := store.Read(ctx, c.reads)
			return func(now time.Time) { s.read(now, c, rows, err) }
		})
	case *settleCommand:
		limited(func(ctx context.Context) func(time.Time) {
			lost, err := store.Settle(ctx, c.settlements)
			return func(now time.Time) { s.settled(now, c, lost, err) }
		})
	case *parkCommand:
		limited(func(ctx context.Context) func(time.Time) {
			lost, err := store.Park(ctx, c.lease, c.parking)
			return func(now time.Time) { s.parked(now, c, lost, err) }
		})
	case *publishCommand:
		sh := c.row.shard
		if sh.ctx == nil {
			sh.ctx, sh.cancel = context.WithCancel(r.ctx)
		}
		switch {
		case r.begin(c.row):
		case r.handOver(c.row):
		default:
			go r.publisher(c.row)
		}
	}
}

// begin has a publisher that needs no goroutine publish a row. It returns false if there
// is none, or it would have to wait.
func (r *run) begin(row *row) (begun bool) {
	if r.async == nil {
		return false
	}
	ctx, cancel := r.limit(row.shard.ctx)
	var told atomic.Bool
	done := func(err error) {
		if told.CompareAndSwap(false, true) {
			cancel()
			r.tell(result{row: row, err: err})
		}
	}
	defer func() {
		if p := recover(); p != nil {
			done(panicked(p))
			begun = true
		}
	}()
	if begun = r.async.PublishAsync(ctx, row.Message, done); !begun {
		cancel()
	}
	return begun
}

// limit bounds an attempt.
func (r *run) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if t := r.relay.cfg.PublishTimeout; t > 0 {
		return context.WithTimeout(ctx, t)
	}
	return ctx, func() {}
}

func panicked(p any) error {
	return fmt.Errorf("outbox: the publisher panicked: %v\n%s", p, debug.Stack())
}

// handOver gives a row to a goroutine that waits for one, if there is any.
func (r *run) handOver(row *row) bool {
	select {
	case r.rows <- row:
		return true
	default:
		return false
	}
}

// publisherIdle is how long a goroutine waits for another row to publish.
const publisherIdle = time.Second

// publisher publishes a row, and then others that come up, until none does for a while or
// the run ends.
func (r *run) publisher(next *row) {
	idle := time.NewTimer(publisherIdle)
	defer idle.Stop()
	for {
		r.attempt(next)
		idle.Reset(publisherIdle)
		select {
		case next = <-r.rows:
		case <-idle.C:
			return
		case <-r.ended:
			return
		}
	}
}

// attempt publishes a row once.
func (r *run) attempt(row *row) {
	err := errEnded
	defer func() {
		r.tell(result{row: row, err: err})
	}()
	err = r.publish(row.shard.ctx, row.Message)
}

// errEnded is the result of a publisher that called runtime.Goexit.
var errEnded = errors.New("outbox: the publisher ended its goroutine")

// tell hands a result to the loop. It never blocks; a loop that has ended does not look.
func (r *run) tell(result result) {
	r.mu.Lock()
	r.results = append(r.results, result)
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default: // it knows already
	}
}

// publish makes one attempt. The error is about this message alone.
func (r *run) publish(ctx context.Context, m *messaging.Message) (err error) {
	ctx, cancel := r.limit(ctx)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = panicked(p)
		}
	}()
	err = r.relay.pub.Publish(ctx, m)
	var failures *messaging.PublishError
	if errors.As(err, &failures) && len(failures.Failed) == 1 {
		return failures.Failed[0].Err
	}
	return err
}

// report passes on what the scheduler noted, to the hooks, the log and Stats.
func (r *run) report(s *scheduler) {
	hooks, log := r.relay.cfg.Hooks, r.relay.log()
	lost := 0
	for _, note := range s.notes {
		switch n := note.(type) {
		case Confirmed:
			if hooks.Confirmed != nil {
				hooks.Confirmed(n)
			}
		case AttemptFailed:
			log.LogAttrs(r.ctx, slog.LevelDebug, "outbox: attempt failed", slog.String("message_id", n.Message.ID),
				slog.String("topic", n.Message.Topic), slog.Duration("retry_in", n.RetryIn), slog.Any("error", n.Err))
			if hooks.Failed != nil {
				hooks.Failed(n)
			}
		case ParkedMessage:
			log.LogAttrs(r.ctx, slog.LevelError, "outbox: message parked", slog.String("message_id", n.Message.ID),
				slog.String("topic", n.Message.Topic), slog.String("key", n.Message.Key), slog.Int("attempts", n.Attempts), slog.String("reason", n.Reason))
			if hooks.Parked != nil {
				hooks.Parked(n)
			}
		case Leased:
			log.LogAttrs(r.ctx, slog.LevelDebug, "outbox: lease", slog.Int("shard", n.Shard), slog.Int64("epoch", n.Epoch),
				slog.Bool("held", n.Held), slog.String("why", n.Why))
			if n.Why == "expired" || n.Why == "fenced" {
				lost++
			}
			if hooks.Leased != nil {
				hooks.Leased(n)
			}
		case storeTrouble:
			log.LogAttrs(r.ctx, slog.LevelWarn, "outbox: store call failed", slog.String("call", n.call), slog.Any("error", n.err))
		}
	}
	if lost > 0 {
		log.LogAttrs(r.ctx, slog.LevelWarn, "outbox: leases lost", slog.Int("shards", lost))
	}
	clear(s.notes)
	s.notes = s.notes[:0]
	r.relay.mu.Lock()
	defer r.relay.mu.Unlock()
	r.relay.stats, r.relay.oldest = s.stats, s.oldestInFlight()
}
