// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kafkakit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// errDrained is the cause of the end of a handler's context.
var errDrained = errors.New("kafkakit: the subscription's drain timeout is over")

// subscription is one call of Subscribe: a member of its Kafka group.
type subscription struct {
	c    *Client
	s    messaging.Subscription
	h    messaging.Handler
	kgo  *kgo.Client
	hctx context.Context // of the handlers
	done chan struct{}   // closed when the last worker has ended

	saving sync.Mutex // one commit at a time, so that a late one does not take another back

	mu       sync.Mutex
	change   *sync.Cond // of anything below
	parts    map[place]*part
	ready    []*entry
	lanes    map[string]*lane // by key, if Ordered: keys with a message in hand
	held     int              // entries that count for Prefetch
	parked   int              // entries that came from the retry topic and are not due
	stopping bool
	workers  int
	group    *group // with its patterns
}

// place is a partition of a topic.
type place struct {
	topic     string
	partition int32
}

// part is a partition while it is ours. Entries hold on to their part, so what is decided after the
// partition has gone to another subscription, or has come back, finds it closed.
type part struct {
	place
	slots   []*slot // from the oldest that is not finished, in order of offset
	running int     // handlers
	waiting map[*entry]*time.Timer
	closing bool           // no handler begins any more
	closed  bool           // it is another's, or will be
	next    int64          // what to commit, below which all is finished; -1 if nothing is
	epoch   int32          // of the leader that the last finished record came from
	dirty   bool           // there is something to commit
	skip    map[int64]bool // what members before us have finished and we have not come to
}

// slot is the place of one record in its partition.
type slot struct {
	offset   int64
	epoch    int32
	finished bool
}

// entry is a message in hand.
type entry struct {
	received
	part  *part
	slot  *slot
	lane  *lane // nil if its order does not matter
	began bool  // is or was in a handler, and so held
	lost  int   // how many times its dead letter could not be put away
}

// lane is a key whose messages are handled one after another.
type lane struct {
	key   string
	queue []*entry // behind the one that is ready, handled, or waiting for its retry
}

// Subscribe calls h for the messages of the group until ctx ends; see [messaging.Subscriber].
func (c *Client) Subscribe(ctx context.Context, s messaging.Subscription, h messaging.Handler) error {
	if h == nil {
		return errors.New("kafkakit: Subscribe: handler is nil, want a handler")
	}
	if err := s.Validate(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	s = s.WithDefaults()
	// The values of ctx, but an end of its own: the handlers outlive the start of a drain.
	hctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	sub := &subscription{
		c: c, s: s, h: h, hctx: hctx, done: make(chan struct{}), workers: s.Concurrency,
		parts: map[place]*part{}, lanes: map[string]*lane{},
	}
	sub.change = sync.NewCond(&sub.mu)

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	unhook := context.AfterFunc(c.ctx, stop)
	defer unhook()
	if err := sub.open(ctx); err != nil || sub.kgo == nil {
		if err == nil && c.ctx.Err() != nil {
			return messaging.ErrClosed
		}
		return err
	}
	for range s.Concurrency {
		go sub.work()
	}
	var saver sync.WaitGroup
	saver.Go(func() {
		for sleep(ctx, c.cfg.CommitEvery) == nil {
			sub.save(ctx)
		}
	})
	err := sub.poll(ctx)
	stop()
	sub.drain(cancel)
	saver.Wait()
	sctx, end := context.WithTimeout(context.Background(), c.cfg.Timeout)
	defer end()
	sub.save(sctx)
	sub.kgo.AllowRebalance()
	sub.kgo.CloseAllowingRebalance()
	if s.Temporary && c.ctx.Err() == nil {
		if rerr := c.remove(sctx, s.Group); rerr != nil {
			c.logger().LogAttrs(sctx, slog.LevelWarn, "temporary group left behind", slog.String("group", s.Group), slog.Any("error", rerr))
		}
	}
	if err == nil && c.ctx.Err() != nil {
		return messaging.ErrClosed
	}
	return err
}

// open declares the group and becomes a member of it. It returns nil without a member when ctx has
// ended.
func (sub *subscription) open(ctx context.Context) error {
	c := sub.c
	for failures := 0; ; failures++ {
		err := c.declare(ctx, sub.s)
		if err == nil {
			err = sub.learn(ctx)
		}
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the end of ctx is what was asked for
		}
		if fault.IsPermanent(err) {
			return err
		}
		c.logger().LogAttrs(ctx, slog.LevelWarn, "subscription waits for the broker", slog.String("group", sub.s.Group), slog.Any("error", err))
		_ = sleep(ctx, backoff(failures))
	}
	topics := []string{c.cfg.Topic}
	// A partition without a committed offset is younger than the group, unless a temporary group was
	// ended by another member at this moment.
	begin := kgo.NewOffset().AtStart()
	if sub.s.Temporary {
		begin = begin.AtEnd()
	} else {
		topics = append(topics, c.retryTopic(sub.s.Group))
	}
	var err error
	sub.kgo, err = c.connect(
		kgo.ConsumerGroup(c.consumerGroup(sub.s.Group)),
		kgo.ConsumeTopics(topics...),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(c.cfg.SessionTimeout), kgo.HeartbeatInterval(min(time.Second, c.cfg.SessionTimeout/10)), // members learn of a rebalance by it
		kgo.RebalanceTimeout(c.cfg.RebalanceTimeout+c.cfg.Timeout),
		// Where retention has taken what comes next, the oldest that is left comes next.
		kgo.ConsumeStartOffset(begin), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(),
		kgo.FetchMaxWait(500*time.Millisecond), // a topic that was paused joins with the next fetch
		kgo.OnPartitionsAssigned(func(ctx context.Context, _ *kgo.Client, m map[string][]int32) { sub.assigned(ctx, m) }),
		kgo.OnPartitionsRevoked(func(ctx context.Context, _ *kgo.Client, m map[string][]int32) { sub.revoked(ctx, m) }),
		kgo.OnPartitionsLost(func(ctx context.Context, _ *kgo.Client, m map[string][]int32) { sub.lost(ctx, m) }),
	)
	if err != nil {
		return fmt.Errorf("kafkakit: subscribe: %w", err)
	}
	return nil
}

// learn reads the patterns of the group.
func (sub *subscription) learn(ctx context.Context) error {
	all, err := sub.c.groups(ctx)
	if err != nil {
		return err
	}
	g := all[sub.s.Group]
	if g == nil {
		return fmt.Errorf("kafkakit: group %q is not in the log of groups", sub.s.Group)
	}
	sub.mu.Lock()
	sub.group = g
	sub.mu.Unlock()
	return nil
}

// poll takes messages in until ctx ends or there is no point in going on.
func (sub *subscription) poll(ctx context.Context) error {
	unhook := context.AfterFunc(ctx, func() {
		sub.mu.Lock()
		defer sub.mu.Unlock()
		sub.change.Broadcast()
	})
	defer unhook()
	paused := false
	for {
		sub.mu.Lock()
		for sub.held >= sub.s.Prefetch && ctx.Err() == nil {
			sub.change.Wait()
		}
		room := sub.s.Prefetch - sub.held
		full := sub.parked >= sub.c.cfg.Waiting
		sub.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
		if full != paused {
			if paused = full; paused {
				sub.kgo.PauseFetchTopics(sub.c.retryTopic(sub.s.Group))
			} else {
				sub.kgo.ResumeFetchTopics(sub.c.retryTopic(sub.s.Group))
			}
		}
		pctx, cancel := ctx, context.CancelFunc(func() {})
		if paused { // look again when some may be due
			pctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
		}
		fetches := sub.kgo.PollRecords(pctx, room)
		cancel()
		err := sub.takeIn(ctx, fetches)
		sub.kgo.AllowRebalance()
		if err != nil {
			return err
		}
	}
}

// takeIn takes in what a poll brought. Until it has returned no partition is given to another.
func (sub *subscription) takeIn(ctx context.Context, fetches kgo.Fetches) error {
	for _, fe := range fetches.Errors() {
		if ctx.Err() != nil || errors.Is(fe.Err, context.DeadlineExceeded) || errors.Is(fe.Err, context.Canceled) {
			continue
		}
		if err := judge(fe.Err); fault.IsPermanent(err) {
			return fmt.Errorf("kafkakit: group %q: %w", sub.s.Group, err)
		}
		sub.c.logger().LogAttrs(ctx, slog.LevelWarn, "subscription interrupted", slog.String("group", sub.s.Group), slog.Any("error", fe.Err))
	}
	var err error
	fetches.EachRecord(func(r *kgo.Record) {
		d := decode(r)
		if d.group == sub.s.Group && err == nil {
			// Behind this mark there may be messages of patterns that we do not know.
			for err = sub.learn(ctx); err != nil && ctx.Err() == nil && !fault.IsPermanent(err); err = sub.learn(ctx) {
				_ = sleep(ctx, 100*time.Millisecond)
			}
		}
		if err == nil {
			sub.offer(r, d)
		}
	})
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the end of ctx is what was asked for
	}
	return err
}

// offer takes one record in.
func (sub *subscription) offer(r *kgo.Record, d received) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	p := sub.parts[place{r.Topic, r.Partition}]
	if p == nil || p.closing || sub.stopping {
		return // it comes again, here or elsewhere
	}
	e := &entry{received: d, part: p, slot: &slot{offset: r.Offset, epoch: r.LeaderEpoch}}
	p.slots = append(p.slots, e.slot)
	done := p.skip[r.Offset]
	delete(p.skip, r.Offset)
	if done || d.group != "" || r.Topic == sub.c.cfg.Topic && !sub.group.match(d.msg.Topic) {
		sub.finish(e)
		return
	}
	if wait := time.Until(d.due); !d.due.IsZero() && wait > 0 {
		sub.parked++
		sub.wait(e, wait)
		return
	}
	sub.enqueue(e)
}

// wait lets e be handled after a delay. The subscription is locked.
func (sub *subscription) wait(e *entry, delay time.Duration) {
	sub.c.waiting.Add(1)
	p := e.part
	p.waiting[e] = time.AfterFunc(delay, func() {
		sub.mu.Lock()
		defer sub.mu.Unlock()
		if _, ok := p.waiting[e]; !ok {
			return // its part was closed in the meantime
		}
		delete(p.waiting, e)
		sub.c.waiting.Add(-1)
		if e.began {
			sub.push(e)
		} else {
			sub.parked--
			sub.enqueue(e)
		}
	})
}

// purge forgets what of p no handler has begun or is waiting for its retry: as if never delivered. The
// subscription is locked.
func (sub *subscription) purge(p *part) {
	p.closing = true
	var freed []*entry
	for e, t := range p.waiting {
		t.Stop()
		sub.c.waiting.Add(-1)
		if !e.began {
			sub.parked--
			continue
		}
		sub.held--
		freed = append(freed, e)
	}
	clear(p.waiting)
	mine := func(e *entry) bool {
		if e.part != p {
			return false
		}
		sub.held--
		return true
	}
	for _, l := range sub.lanes {
		l.queue = slices.DeleteFunc(l.queue, mine)
	}
	for _, e := range sub.ready {
		if e.part == p {
			freed = append(freed, e)
		}
	}
	sub.ready = slices.DeleteFunc(sub.ready, mine)
	for _, e := range freed {
		sub.release(e)
	}
	sub.change.Broadcast()
}

// enqueue puts e where its turn will come. The subscription is locked.
func (sub *subscription) enqueue(e *entry) {
	sub.held++
	if sub.s.Ordered && e.msg.Key != "" {
		l := sub.lanes[e.msg.Key]
		if l != nil {
			e.lane = l
			l.queue = append(l.queue, e)
			return
		}
		e.lane = &lane{key: e.msg.Key}
		sub.lanes[e.msg.Key] = e.lane
	}
	sub.push(e)
}

// push lets a worker have e. The subscription is locked.
func (sub *subscription) push(e *entry) {
	sub.ready = append(sub.ready, e)
	sub.change.Broadcast()
}

// release lets the key of e, which is over, go on. The subscription is locked.
func (sub *subscription) release(e *entry) {
	l := e.lane
	if l == nil {
		return
	}
	if len(l.queue) == 0 {
		delete(sub.lanes, l.key)
		return
	}
	next := l.queue[0]
	l.queue = l.queue[1:]
	sub.push(next)
}

// finish marks e as done with, and moves what can be committed over all that is done with from the
// oldest on. The subscription is locked.
func (sub *subscription) finish(e *entry) {
	p := e.part
	e.slot.finished = true
	p.dirty = true
	for len(p.slots) > 0 && p.slots[0].finished {
		p.next, p.epoch = p.slots[0].offset+1, p.slots[0].epoch
		p.slots = p.slots[1:]
	}
}

// work handles messages until the subscription stops.
func (sub *subscription) work() {
	ended := false
	defer func() {
		if !ended {
			go sub.work() // a handler called runtime.Goexit, which cannot be undone
		}
	}()
	for e := sub.next(); e != nil; e = sub.next() {
		sub.handle(e)
	}
	ended = true
	sub.mu.Lock()
	defer sub.mu.Unlock()
	if sub.workers--; sub.workers == 0 {
		close(sub.done)
	}
}

func (sub *subscription) next() *entry {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	for !sub.stopping && len(sub.ready) == 0 {
		sub.change.Wait()
	}
	if sub.stopping {
		return nil
	}
	e := sub.ready[0]
	sub.ready[0] = nil
	sub.ready = sub.ready[1:]
	e.part.running++
	e.began = true
	return e
}

// handle runs the handler and does what it decided.
func (sub *subscription) handle(e *entry) {
	c := sub.c
	d := &messaging.Delivery{Message: e.msg, Group: sub.s.Group, Attempt: e.attempt, Redelivered: e.again, Partition: e.partition, Offset: e.offset}
	c.delivered.Add(1)
	c.handling.Add(1)
	if hook := c.cfg.Hooks.Delivered; hook != nil {
		hook(messaging.Delivered{Delivery: d})
	}
	start := time.Now()
	messaging.Invoke(sub.hctx, sub.h, d, func(err error) {
		took := time.Since(start)
		c.handling.Add(-1)
		if p := (*messaging.PanicError)(nil); errors.As(err, &p) {
			c.logger().LogAttrs(sub.hctx, slog.LevelError, "message handler panicked", append(sub.about(e), slog.Any("error", p), slog.String("stack", string(p.Stack)))...)
		}
		dec := sub.settle(e, d, messaging.Decide(sub.hctx, err, e.attempt, sub.s))
		if hook := c.cfg.Hooks.Settled; hook != nil {
			hook(messaging.Settled{Delivery: d, Decision: dec, Took: took})
		}
	})
}

func (sub *subscription) about(e *entry) []slog.Attr {
	return []slog.Attr{
		slog.String("group", sub.s.Group), slog.String("topic", e.msg.Topic),
		slog.String("message_id", e.msg.ID), slog.Int("attempt", e.attempt),
	}
}

// settle carries a decision out, and returns what came of it.
func (sub *subscription) settle(e *entry, d *messaging.Delivery, dec messaging.Decision) messaging.Decision {
	c := sub.c
	if dec.Action == messaging.DeadLettered {
		err := c.bury(sub.hctx, messaging.NewDeadLetter(d, dec))
		if err == nil {
			c.logger().LogAttrs(sub.hctx, slog.LevelWarn, "message became a dead letter", append(sub.about(e), slog.String("reason", dec.Reason))...)
		} else {
			c.logger().LogAttrs(sub.hctx, slog.LevelError, "dead letter not put away, will try again", append(sub.about(e), slog.String("reason", dec.Reason), slog.Any("error", err))...)
			e.lost++
			dec = messaging.Decision{
				Action: messaging.Retried, Delay: sub.s.Backoff.Delay(e.lost), Attempt: e.attempt,
				Reason: "dead letter not put away: " + err.Error(), Err: err,
			}
		}
	}
	over := dec.Action != messaging.Retried
	switch dec.Action {
	case messaging.Acked:
		c.acked.Add(1)
	case messaging.DeadLettered:
		c.dead.Add(1)
	case messaging.Dropped:
		c.dropped.Add(1)
	case messaging.Retried:
		c.retried.Add(1)
		if !sub.s.Ordered && !sub.s.Temporary && sub.hctx.Err() == nil {
			due := time.Now().Add(dec.Delay)
			err := c.put(sub.hctx, again(c.retryTopic(sub.s.Group), d, dec.Attempt, due))
			if over = err == nil; !over {
				c.logger().LogAttrs(sub.hctx, slog.LevelWarn, "retry not published, will wait in this process", append(sub.about(e), slog.Any("error", err))...)
			}
		}
	}
	sub.mu.Lock()
	defer sub.mu.Unlock()
	p := e.part
	p.running--
	sub.change.Broadcast()
	switch {
	case p.closed || over:
		if p.closed {
			c.late.Add(1)
		} else {
			sub.finish(e)
		}
		sub.held--
		sub.release(e)
	case sub.stopping || p.closing:
		// As if never delivered: neither finished nor begun again here.
		sub.held--
		sub.release(e)
	default:
		e.attempt, e.again = dec.Attempt, true
		sub.wait(e, dec.Delay)
	}
	return dec
}
