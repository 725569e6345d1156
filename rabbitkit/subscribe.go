// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// errDrained is the cause of the end of a handler's context.
var errDrained = errors.New("rabbitkit: the subscription's drain timeout is over")

// subscription is one call of Subscribe. It outlives the sessions that it gets its
// messages from.
type subscription struct {
	c    *Client
	s    messaging.Subscription
	h    messaging.Handler
	hctx context.Context // of the handlers
	done chan struct{}   // closed when the last worker has ended

	mu       sync.Mutex
	wake     *sync.Cond
	ready    []*entry
	stopping bool
	workers  int
	lanes    map[string]*lane       // by key, if Ordered: keys with a message in hand
	waiting  map[*entry]*time.Timer // for a retry in this process
	attempts map[string]int         // of messages whose wait was ended by a lost session
}

// entry is a message in hand.
type entry struct {
	received
	ses  *session
	tag  uint64
	lane *lane // nil if its order does not matter
	lost int   // how many times its dead letter could not be put away
}

// source is where a subscription gets its messages from until it is lost.
type source interface {
	// receive takes messages in. It returns true when ctx or the client has ended, false
	// when the source is lost.
	receive(ctx context.Context) (ended bool)
	// lose ends a source that is lost, and returns why it was.
	lose() error
	// owns reports whether the tags of a session are the source's.
	owns(ses *session) bool
	// release gives others, at once, what no handler has begun, if that is allowed.
	release(unbegun []*entry)
	// end ends a source in order: acknowledgements first, then what is left goes back.
	end()
}

// lane is a key whose messages are handled one after another.
type lane struct {
	key   string
	queue []*entry // behind the one that is ready, handled, or waiting for its retry
}

// Subscribe calls h for the messages of the group until ctx ends; see
// [messaging.Subscriber].
func (c *Client) Subscribe(ctx context.Context, s messaging.Subscription, h messaging.Handler) error {
	if h == nil {
		return errors.New("rabbitkit: Subscribe: handler is nil, want a handler")
	}
	if err := c.validate([]messaging.Subscription{s}); err != nil {
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
		lanes: make(map[string]*lane), waiting: make(map[*entry]*time.Timer), attempts: make(map[string]int),
	}
	sub.wake = sync.NewCond(&sub.mu)
	for range s.Concurrency {
		go sub.work()
	}
	src, err := sub.serve(ctx)
	sub.drain(src, cancel)
	return err
}

// serve receives, source after source, until ctx ends or there is no point in going on.
// It returns the source that is still open, if any.
func (sub *subscription) serve(ctx context.Context) (source, error) {
	c := sub.c
	for failures := 0; ; {
		src, err := sub.open(ctx)
		if err == nil {
			failures = 0
			if ended := src.receive(ctx); ended {
				if ctx.Err() == nil {
					return src, messaging.ErrClosed
				}
				return src, nil
			}
			err = src.lose()
			sub.purge(src)
		}
		switch {
		case ctx.Err() != nil:
			return nil, nil //nolint:nilerr // the end of ctx is what was asked for
		case c.ctx.Err() != nil:
			return nil, messaging.ErrClosed
		case fault.IsPermanent(err):
			return nil, err
		}
		c.logger().LogAttrs(ctx, slog.LevelWarn, "subscription interrupted", slog.String("group", sub.s.Group), slog.Any("error", err))
		_ = sleep(ctx, c.backoff(failures))
		failures++
	}
}

// drain lets handlers finish, acknowledges what they did, and only then gives back the
// rest by closing the channel.
func (sub *subscription) drain(src source, cancel context.CancelCauseFunc) {
	sub.mu.Lock()
	sub.stopping = true
	unbegun := sub.ready
	sub.ready = nil
	for e, t := range sub.waiting {
		t.Stop()
		delete(sub.waiting, e)
	}
	sub.wake.Broadcast()
	sub.mu.Unlock()
	if src != nil {
		src.release(unbegun)
	}
	t := time.NewTimer(sub.s.DrainTimeout)
	defer t.Stop()
	select {
	case <-sub.done:
	case <-t.C:
		cancel(errDrained)
		<-sub.done
	}
	if src != nil {
		src.end()
	}
}

// offer takes a message in.
func (sub *subscription) offer(e *entry) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	if sub.stopping || sub.s.Ordered && e.ses.isOver() { // it comes again, behind what failed meanwhile
		return
	}
	if n, ok := sub.attempts[e.msg.ID]; ok {
		e.attempt, e.again = max(n, e.attempt), true
		delete(sub.attempts, e.msg.ID)
	}
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
	sub.ready = append(sub.ready, e)
	sub.wake.Signal()
}

// release lets the key of a finished message go on. The subscription is locked.
func (sub *subscription) release(l *lane) {
	if l == nil {
		return
	}
	if len(l.queue) == 0 {
		delete(sub.lanes, l.key)
		return
	}
	sub.ready = append(sub.ready, l.queue[0])
	l.queue = l.queue[1:]
	sub.wake.Signal()
}

// purge forgets what a lost source delivered and no handler has begun: it comes again.
func (sub *subscription) purge(src source) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	mine := func(e *entry) bool { return src.owns(e.ses) }
	for _, l := range sub.lanes {
		l.queue = slices.DeleteFunc(l.queue, mine)
	}
	var freed []*lane
	for _, e := range sub.ready {
		if mine(e) {
			freed = append(freed, e.lane)
		}
	}
	sub.ready = slices.DeleteFunc(sub.ready, mine)
	if len(sub.attempts) > maxPrefetch {
		clear(sub.attempts) // of messages that others handle by now
	}
	for e, t := range sub.waiting {
		if mine(e) {
			t.Stop()
			delete(sub.waiting, e)
			sub.attempts[e.msg.ID] = e.attempt
			freed = append(freed, e.lane)
		}
	}
	for _, l := range freed {
		sub.release(l)
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
		sub.wake.Wait()
	}
	if sub.stopping {
		return nil
	}
	e := sub.ready[0]
	sub.ready[0] = nil
	sub.ready = sub.ready[1:]
	return e
}

// handle runs the handler and does what it decided.
func (sub *subscription) handle(e *entry) {
	c := sub.c
	d := &messaging.Delivery{Message: e.msg, Group: sub.s.Group, Attempt: e.attempt, Redelivered: e.again, Offset: e.offset}
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
	return []slog.Attr{slog.String("group", sub.s.Group), slog.String("topic", e.msg.Topic),
		slog.String("message_id", e.msg.ID), slog.Int("attempt", e.attempt)}
}

// settle carries a decision out, and returns what came of it.
func (sub *subscription) settle(e *entry, d *messaging.Delivery, dec messaging.Decision) messaging.Decision {
	c := sub.c
	if dec.Action == messaging.DeadLettered {
		err := c.bury(sub.hctx, sub.s, messaging.NewDeadLetter(d, dec))
		if err == nil {
			c.logger().LogAttrs(sub.hctx, slog.LevelWarn, "message became a dead letter", append(sub.about(e), slog.String("reason", dec.Reason))...)
		} else {
			c.logger().LogAttrs(sub.hctx, slog.LevelError, "dead letter not put away, will try again", append(sub.about(e), slog.String("reason", dec.Reason), slog.Any("error", err))...)
			e.lost++
			dec = messaging.Decision{Action: messaging.Retried, Delay: sub.s.Backoff.Delay(e.lost), Attempt: e.attempt,
				Reason: "dead letter not put away: " + err.Error(), Err: err}
		}
	}
	if dec.Action == messaging.Retried {
		sub.retry(e, dec)
		c.retried.Add(1)
		return dec
	}
	switch dec.Action {
	case messaging.Acked:
		c.acked.Add(1)
	case messaging.DeadLettered:
		c.dead.Add(1)
	case messaging.Dropped:
		c.dropped.Add(1)
	}
	e.ses.ack(e.tag)
	sub.mu.Lock()
	sub.release(e.lane)
	sub.mu.Unlock()
	return dec
}

// retry lets e be delivered again.
func (sub *subscription) retry(e *entry, dec messaging.Decision) {
	if sub.hctx.Err() != nil {
		// We stopped the handler. In an ordered group the end of the channel gives the
		// message back, in its place; its key stays where it is until then.
		if !sub.s.Ordered {
			e.ses.giveBack(e.tag)
		}
		return
	}
	if sub.s.Ordered || sub.s.Temporary {
		sub.retryHere(e, dec)
		return
	}
	for n := 0; ; n++ {
		err := sub.c.retryLater(sub.hctx, sub.s.Group, &e.received, dec)
		if err == nil {
			e.ses.ack(e.tag)
			return
		}
		if e.ses.isOver() || sub.hctx.Err() != nil {
			e.ses.giveBack(e.tag)
			return
		}
		sub.c.logger().LogAttrs(sub.hctx, slog.LevelWarn, "retry not scheduled, will try again", append(sub.about(e), slog.Any("error", err))...)
		_ = sleep(sub.hctx, sub.c.backoff(n))
		if fault.IsPermanent(err) && e.ses.moved != nil {
			sub.retryHere(e, dec) // a log takes nothing back
			return
		}
		if fault.IsPermanent(err) {
			// It will never go there. The broker counts these deliveries, up to its limit.
			e.ses.giveBack(e.tag)
			return
		}
	}
}

// retryHere keeps e, unacknowledged, until its time has come: where it holds its place
// in the order of its key.
func (sub *subscription) retryHere(e *entry, dec messaging.Decision) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	e.attempt, e.again = dec.Attempt, true
	if sub.stopping {
		return // the end of the channel gives it back
	}
	if e.ses.isOver() {
		sub.attempts[e.msg.ID] = e.attempt
		if e.lane != nil { // purge may not have been here yet: what follows comes again, behind this
			e.lane.queue = slices.DeleteFunc(e.lane.queue, func(e *entry) bool { return e.ses.isOver() })
		}
		sub.release(e.lane)
		return
	}
	sub.waiting[e] = time.AfterFunc(dec.Delay, func() {
		sub.mu.Lock()
		defer sub.mu.Unlock()
		if _, ok := sub.waiting[e]; !ok {
			return
		}
		delete(sub.waiting, e)
		sub.ready = append(sub.ready, e)
		sub.wake.Signal()
	})
}

// retryLater puts r on the ladder, from where the broker gives it back to the group's queue.
func (c *Client) retryLater(ctx context.Context, group string, r *received, dec messaging.Decision) error {
	n := rung(dec.Delay)
	for again := false; ; again = true {
		if err := c.declareRung(ctx, group, n); err != nil {
			return err
		}
		p, err := encode(r.msg, maxAgain)
		if err != nil {
			return err
		}
		p.Headers[headerTopic] = r.msg.Topic
		p.Headers[headerAttempt] = strconv.Itoa(dec.Attempt)
		p.Headers[headerAgain] = true
		if r.offset != 0 {
			p.Headers[headerOffset] = r.offset
		}
		// Rounded up, and a little longer: the broker's clock ticks in milliseconds.
		p.Expiration = strconv.FormatInt(int64(dec.Delay/time.Millisecond)+2, 10)
		err = c.toQueue(ctx, c.retryQueue(group, n), p)
		if errors.Is(err, messaging.ErrUnroutable) && !again {
			c.forgetRung(group, n) // somebody has deleted it
			continue
		}
		return err
	}
}

// toQueue publishes p to one queue.
func (c *Client) toQueue(ctx context.Context, queue string, p amqp.Publishing) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	return c.pub.send(ctx, []*flight{{pipe: c.pub.pipe(""), key: queue, pub: p}})[0]
}

// session is a channel of a subscription that consumes one queue. Its tags mean nothing to
// any other one, so every acknowledgement goes through the session that delivered the
// message.
type session struct {
	sub        *subscription
	cn         *conn
	ch         *amqp.Channel
	queue      string
	moved      func(low uint64) // of the log: all tags up to low are finished; else nil
	name       string           // of the consumer
	deliveries <-chan amqp.Delivery
	closed     chan *amqp.Error
	wake       chan struct{} // there is something to acknowledge
	stop       chan struct{} // closed to end the acknowledger
	stopped    chan struct{} // closed when it has ended

	mu       sync.Mutex
	over     bool
	finished []uint64            // not yet acknowledged
	done     map[uint64]struct{} // finished, beyond low
	low      uint64              // every tag up to it is finished
}

// open declares the group and begins to consume.
func (sub *subscription) open(ctx context.Context) (source, error) {
	c := sub.c
	cn, err := c.consume.get(ctx)
	if err != nil {
		return nil, err
	}
	var src source
	err = cn.guard(c.ctx, c.cfg.Timeout, func() error {
		fromLog, err := c.declareGroup(cn, sub.s)
		if err != nil {
			return err
		}
		if fromLog {
			src, err = sub.apply(cn)
		} else {
			src, err = sub.consume(cn, c.groupQueue(sub.s.Group), nil, nil)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return src, nil
}

// consume begins a session. Only one that reads the log has moved.
func (sub *subscription) consume(cn *conn, queue string, moved func(uint64), args amqp.Table) (*session, error) {
	ses := &session{
		sub: sub, cn: cn, queue: queue, moved: moved, name: sub.c.cfg.Name + "-" + messaging.NewID(), done: make(map[uint64]struct{}),
		wake: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	var err error
	if ses.ch, err = cn.Channel(); err != nil {
		return nil, err
	}
	ses.closed = ses.ch.NotifyClose(make(chan *amqp.Error, 1))
	if err := ses.ch.Qos(sub.s.Prefetch, 0, false); err != nil {
		return nil, err
	}
	if ses.deliveries, err = ses.ch.Consume(queue, ses.name, false, false, false, false, args); err != nil {
		return nil, consumeError(err, queue)
	}
	go ses.acknowledge()
	return ses, nil
}

func (ses *session) receive(ctx context.Context) bool {
	for {
		select {
		case d, ok := <-ses.deliveries:
			if !ok {
				return false
			}
			ses.sub.offer(&entry{received: decode(&d), ses: ses, tag: d.DeliveryTag})
		case <-ctx.Done():
			return true
		case <-ses.sub.c.ctx.Done():
			return true
		}
	}
}

func (ses *session) owns(other *session) bool { return ses == other }

func (ses *session) lose() error {
	ses.shut()
	return lost(ses.cn, ses.ch, ses.closed)
}

// lost closes a channel that delivers no more, and returns why it does not.
func lost(cn *conn, ch *amqp.Channel, closed <-chan *amqp.Error) error {
	if !ch.IsClosed() {
		_ = cn.guard(context.Background(), closeTimeout, ch.Close)
		return errors.New("rabbitkit: the broker cancelled the consumer, such as for a queue that was deleted")
	}
	select {
	case ae := <-closed:
		if ae != nil {
			return fmt.Errorf("rabbitkit: connection lost: %w", ae)
		}
	default:
	}
	return errors.New("rabbitkit: connection lost")
}

// release asks for no more messages and gives back those that no handler has begun. Not so
// in an ordered group: the end of this consumer makes another one active, which must not
// overtake what is in hand.
func (ses *session) release(unbegun []*entry) {
	if ses.sub.s.Ordered {
		return
	}
	_ = ses.cn.guard(ses.sub.c.ctx, ses.sub.c.cfg.Timeout, func() error { return ses.ch.Cancel(ses.name, true) })
	for _, e := range unbegun {
		ses.giveBack(e.tag)
	}
}

func (ses *session) end() {
	ses.shut()
	c := ses.sub.c
	_ = ses.cn.guard(c.ctx, c.cfg.Timeout, func() error {
		if ses.sub.s.Temporary && ses.moved == nil {
			// Whether there are other subscribers the broker knows: then it says no.
			_ = ses.ch.Cancel(ses.name, false)
			if _, err := ses.ch.QueueDelete(ses.queue, true, false, false); err != nil {
				return err
			}
		}
		return ses.ch.Close()
	})
}

// shut acknowledges what is finished and ends the session for what is not.
func (ses *session) shut() {
	close(ses.stop)
	<-ses.stopped
	ses.mu.Lock()
	ses.over = true
	ses.mu.Unlock()
}

func (ses *session) isOver() bool {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	return ses.over || ses.ch.IsClosed()
}

// ack notes that a message is finished. If its session is over that changes nothing: the
// message belongs to the broker again, and its tag to nobody.
func (ses *session) ack(tag uint64) {
	ses.mu.Lock()
	if ses.over || ses.ch.IsClosed() {
		ses.mu.Unlock()
		ses.sub.c.stale.Add(1)
		return
	}
	ses.finished = append(ses.finished, tag)
	ses.mu.Unlock()
	select {
	case ses.wake <- struct{}{}:
	default:
	}
}

// giveBack lets the broker deliver a message again, at once. Of a log the end of the session
// does so, as the group's position is not moved over the message.
func (ses *session) giveBack(tag uint64) {
	if ses.moved != nil {
		return
	}
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if ses.over || ses.ch.IsClosed() {
		return
	}
	ses.done[tag] = struct{}{}
	_ = ses.ch.Nack(tag, false, true)
}

// acknowledge sends acknowledgements until the session ends. While one is being written
// more gather, so that a busy session needs few.
func (ses *session) acknowledge() {
	defer close(ses.stopped)
	for {
		select {
		case <-ses.wake:
			ses.flush()
		case <-ses.stop:
			ses.flush()
			return
		}
	}
}

// flush acknowledges what is finished: all up to a tag at once where no tag before it is
// open, the others one by one.
func (ses *session) flush() {
	ses.mu.Lock()
	batch := ses.finished
	ses.finished = nil
	for _, tag := range batch {
		ses.done[tag] = struct{}{}
	}
	for {
		if _, ok := ses.done[ses.low+1]; !ok {
			break
		}
		ses.low++
		delete(ses.done, ses.low)
	}
	low := ses.low
	ses.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	if ses.moved != nil {
		ses.moved(low)
	}
	upTo, singles := prefix(batch, low)
	var err error
	if upTo > 0 {
		err = ses.ch.Ack(upTo, true)
	}
	for _, tag := range singles {
		if err == nil {
			err = ses.ch.Ack(tag, false)
		}
	}
	if err != nil {
		ses.sub.c.stale.Add(int64(len(batch)))
	}
}

// prefix splits finished tags into the largest one up to low, which may be acknowledged
// together with all before it, and those beyond low. It must be one of the batch: the
// broker closes a channel that acknowledges a tag a second time.
func prefix(batch []uint64, low uint64) (upTo uint64, singles []uint64) {
	for _, tag := range batch {
		if tag > low {
			singles = append(singles, tag)
		} else {
			upTo = max(upTo, tag)
		}
	}
	return upTo, singles
}

// bury puts a dead letter away, and returns nil when the broker has confirmed it.
func (c *Client) bury(ctx context.Context, s messaging.Subscription, dl messaging.DeadLetter) error {
	ctx = context.WithoutCancel(ctx) // a drain lets it finish, in the time of toQueue
	p, err := encode(dl.Encode(), maxAgain)
	if err != nil {
		return err
	}
	p.Headers[headerTopic] = dl.Message.Topic
	err = c.toQueue(ctx, c.deadQueue(s.Group), p)
	if !s.Temporary || !errors.Is(err, messaging.ErrUnroutable) {
		return err
	}
	// A temporary group has a queue for its dead letters only when it has one.
	if err := c.admin(ctx, func(cn *conn) error {
		return c.onChannel(cn, func(ch *amqp.Channel) error { return c.declareDead(ch, s.Group) })
	}); err != nil {
		return err
	}
	return c.toQueue(ctx, c.deadQueue(s.Group), p)
}
