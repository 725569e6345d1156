// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/messaging"
)

// Log says how much of what was published is kept. Either of MaxAge and MaxBytes turns it on.
//
// The broker removes whole files, and never the one that it writes: a message may stay
// longer than both bounds, by up to SegmentBytes of later ones. When a file is full it removes
// the oldest ones that do not fit MaxBytes: a file that is larger goes as well, even with what
// was published last. A file may be larger than SegmentBytes by what is written at once, such as
// a call of Publish.
type Log struct {
	// MaxAge is for how long a message is kept, in whole seconds. Zero means no bound by age.
	MaxAge time.Duration
	// MaxBytes is the size beyond which the oldest messages go, at least twice SegmentBytes.
	// Zero means no bound by size.
	MaxBytes int64
	// SegmentBytes is the size of one file, at most 3 GB. Zero means 64 MiB, or half of MaxBytes
	// if that is less.
	SegmentBytes int64
}

const (
	defaultSegment = 64 << 20
	maxSegment     = 3_000_000_000
)

// segment is the size of one file.
func (l Log) segment() int64 {
	switch {
	case l.SegmentBytes > 0:
		return l.SegmentBytes
	case l.MaxBytes > 0:
		return min(defaultSegment, max(1, l.MaxBytes/2))
	}
	return defaultSegment
}

// args are those of the stream.
func (l Log) args() amqp.Table {
	args := amqp.Table{"x-queue-type": "stream", "x-stream-max-segment-size-bytes": l.segment()}
	if l.MaxAge > 0 {
		args["x-max-age"] = fmt.Sprintf("%ds", int64(l.MaxAge/time.Second))
	}
	if l.MaxBytes > 0 {
		args["x-max-length-bytes"] = l.MaxBytes
	}
	return args
}

// A stream knows nothing of groups, at least not over AMQP 0-9-1: whoever consumes it says
// from where, and every consumer gets everything. So the position of a group is a message,
// in a queue of its own with a single active consumer. Who is given the position holds
// it, unacknowledged, for as long as it reads: if its process dies, the broker gives the
// position to the next. To move it, the reader publishes the new one and acknowledges the
// old one when it has been given the new. If it dies in between there are two: the larger
// counts, as positions only grow.

// position is the body of such a message.
type position struct {
	// Next is the offset of the first message that is not done.
	Next int64 `json:"next"`
	// Time, if not zero, is where to begin; then nothing was read yet.
	Time time.Time `json:"time,omitzero"`
	// Read says that Next is where a reader had come to, and not what was asked for.
	Read bool `json:"read,omitempty"`
}

// before reports whether p is overtaken by q.
func (p position) before(q position) bool {
	if p.Time.IsZero() != q.Time.IsZero() {
		return q.Time.IsZero()
	}
	return p.Next < q.Next
}

// spec is the x-stream-offset to begin at.
func (p position) spec() any {
	if !p.Time.IsZero() {
		return p.Time // AMQP knows seconds only, and cuts: rather too early than too late
	}
	return p.Next
}

func (p position) publishing() (amqp.Publishing, error) {
	body, err := json.Marshal(p)
	return amqp.Publishing{DeliveryMode: amqp.Persistent, ContentType: "application/json", MessageId: messaging.NewID(), Body: body}, err
}

const (
	// saveEvery is how much of its work a reader that dies repeats at least.
	saveEvery = 250 * time.Millisecond
	// keepEvery renews a position that does not move, long before the broker's
	// consumer_timeout: 30 minutes without an acknowledgement end a channel.
	keepEvery = 5 * time.Minute
	// lookAgain is after how long without a message a reader attaches again, at first; the
	// time doubles, up to mostAgain, as long as nothing comes. See [tenure.attach].
	lookAgain = 30 * time.Second
	mostAgain = 5 * time.Minute
)

// declarePosition makes the queue for the position of a group, with the first position in it.
func (c *Client) declarePosition(ch *amqp.Channel, s messaging.Subscription) error {
	args := amqp.Table{"x-single-active-consumer": true}
	if s.Temporary {
		args["x-queue-type"] = "classic"
		args["x-expires"] = temporaryExpiry.Milliseconds()
	} else {
		args["x-queue-type"] = "quorum"
		// Each holder that dies is a delivery; some versions of the broker give up after 20.
		args["x-delivery-limit"] = int64(math.MaxInt32)
	}
	name := c.positionQueue(s.Group)
	q, err := ch.QueueDeclare(name, true, false, false, false, args)
	if err != nil {
		return declareError(err, "queue", name)
	}
	if q.Messages > 0 || q.Consumers > 0 {
		return nil
	}
	// It is new, or whoever made it did not come to this. If two do it at once there are two
	// of the same: that does no harm.
	p, err := position{Next: s.From.Offset, Time: s.From.Time}.publishing()
	if err != nil {
		return err
	}
	if err := ch.Confirm(false); err != nil {
		return err
	}
	confirmation, err := ch.PublishWithDeferredConfirm("", name, true, false, p)
	if err != nil {
		return err
	}
	if !confirmation.Wait() {
		return fmt.Errorf("rabbitkit: queue %q: no position confirmed", name)
	}
	return nil
}

// tenure is a subscription's candidacy to be the reader of its group, and its reading from
// when it is given the position. It is a [source].
type tenure struct {
	sub    *subscription
	cn     *conn
	ch     *amqp.Channel // of the position
	name   string        // of its consumer
	closed chan *amqp.Error
	given  <-chan amqp.Delivery // positions

	// Of the goroutine that receives, and then ends.
	held   position
	tag    uint64   // of held; 0 if none was given yet
	log    *session // nil if none was given yet
	queue  *session // for retries and replays
	expect position // the next offset
	last   uint64   // the log's tag that was read last
	gone   *session // the one that was lost, if not the position's channel
	err    error    // why it could not begin to read

	halt    context.CancelFunc
	stopped chan struct{} // closed when save has ended

	mu      sync.Mutex
	offsets []int64  // of the log's tags from first on
	first   uint64   // the first tag that is not finished
	done    position // what is before it is done
}

// apply asks for the position of the group.
func (sub *subscription) apply(cn *conn) (*tenure, error) {
	t := &tenure{sub: sub, cn: cn, name: sub.c.cfg.Name + "-" + messaging.NewID(), first: 1, stopped: make(chan struct{})}
	var err error
	if t.ch, err = cn.Channel(); err != nil {
		return nil, err
	}
	t.closed = t.ch.NotifyClose(make(chan *amqp.Error, 1))
	if err := t.ch.Qos(1000, 0, false); err != nil {
		return nil, err
	}
	queue := sub.c.positionQueue(sub.s.Group)
	if t.given, err = t.ch.Consume(queue, t.name, false, false, false, false, nil); err != nil {
		return nil, consumeError(err, queue)
	}
	return t, nil
}

func (t *tenure) receive(ctx context.Context) bool {
	var fromLog, fromQueue <-chan amqp.Delivery
	wait := t.sub.c.lookAgain
	look := time.NewTimer(jittered(wait))
	defer look.Stop()
	for {
		select {
		case d, ok := <-t.given:
			if !ok {
				return false
			}
			t.hold(&d)
			if t.log == nil {
				if t.err = t.begin(); t.err != nil {
					return false
				}
				fromLog, fromQueue = t.log.deliveries, t.queue.deliveries
			}
		case d, ok := <-fromLog:
			if !ok {
				t.gone = t.log
				return false
			}
			t.read(&d)
			wait = t.sub.c.lookAgain
			look.Reset(jittered(wait))
		case <-look.C:
			if t.log != nil && t.log.inHand(t.last) < t.sub.s.Prefetch {
				if t.attach() != nil {
					t.gone = t.log
					return false
				}
				fromLog = t.log.deliveries
				wait = min(2*wait, mostAgain)
			}
			look.Reset(jittered(wait))
		case d, ok := <-fromQueue:
			if !ok {
				t.gone = t.queue
				return false
			}
			t.sub.offer(&entry{received: decode(&d), ses: t.queue, tag: d.DeliveryTag})
		case <-ctx.Done():
			return true
		case <-t.sub.c.ctx.Done():
			return true
		}
	}
}

// hold keeps the newer of the position in d and the one that is held, and removes the other.
func (t *tenure) hold(d *amqp.Delivery) {
	var p position
	if err := json.Unmarshal(d.Body, &p); err != nil {
		// Not ours. Rather everything once more than nothing any more.
		t.sub.c.logger().LogAttrs(t.sub.hctx, slog.LevelError, "a position is not readable, taken for the first",
			slog.String("group", t.sub.s.Group), slog.Any("error", err))
		p = position{}
	}
	if t.tag != 0 {
		if p.before(t.held) {
			_ = t.ch.Ack(d.DeliveryTag, false)
			return
		}
		_ = t.ch.Ack(t.tag, false)
	}
	t.held, t.tag = p, d.DeliveryTag
}

// begin reads from the position that was given.
func (t *tenure) begin() error {
	c := t.sub.c
	t.done, t.expect = t.held, t.held
	return t.cn.guard(c.ctx, c.cfg.Timeout, func() error {
		log, err := t.sub.consume(t.cn, c.logQueue(), t.moved, amqp.Table{"x-stream-offset": t.held.spec()})
		if err != nil {
			return err
		}
		queue, err := t.sub.consume(t.cn, c.groupQueue(t.sub.s.Group), nil, nil)
		if err != nil {
			log.shut()
			return errors.Join(err, log.ch.Close())
		}
		var ctx context.Context
		ctx, t.halt = context.WithCancel(c.ctx)
		t.log, t.queue = log, queue
		go t.save(ctx, t.held)
		return nil
	})
}

// inHand returns how many messages up to the tag last are not finished.
func (ses *session) inHand(last uint64) int {
	ses.mu.Lock()
	defer ses.mu.Unlock()
	return int(last-ses.low) - len(ses.done) - len(ses.finished)
}

// attach leaves the log and comes back to where it was. It is for a reader to which nothing
// has come for a while: there may be nothing, or it stands still. The broker keeps a reader
// at the end of a file waiting if retention has just removed the next one, and does not yet
// know the new beginning of the log. It then asks to be told of an offset that has long been
// written, once, and if it finds no file then either, of nothing ever again. A consumer that
// is new is told.
func (t *tenure) attach() error {
	c := t.sub.c
	return t.cn.guard(c.ctx, c.cfg.Timeout, func() error {
		if err := t.log.ch.Cancel(t.log.name, false); err != nil {
			return err
		}
		for d := range t.log.deliveries { // what was on its way
			t.read(&d)
		}
		// A new name: what is in hand gives its credit back to the old one, which is gone.
		t.log.name = c.cfg.Name + "-" + messaging.NewID()
		var err error
		t.log.deliveries, err = t.log.ch.Consume(t.log.queue, t.log.name, false, false, false, false, amqp.Table{"x-stream-offset": t.expect.spec()})
		return err
	})
}

// jittered returns d and up to a half more, so that many readers do not attach at once.
func jittered(d time.Duration) time.Duration { return d + rand.N(d/2+1) }

// read takes a message of the log in, or passes over it.
func (t *tenure) read(d *amqp.Delivery) {
	r := decode(d)
	r.again = true // perhaps: the broker does not know what the reader before us was given
	r.offset, _ = d.Headers["x-stream-offset"].(int64)
	t.last = d.DeliveryTag
	// One offset is missing where a new file begins: the broker's own note.
	if t.expect.Read && r.offset > t.expect.Next+1 {
		t.sub.c.logger().LogAttrs(t.sub.hctx, slog.LevelError, "the log no longer holds what the group has not read",
			slog.String("group", t.sub.s.Group), slog.Int64("from", t.expect.Next), slog.Int64("to", r.offset))
	}
	t.mu.Lock()
	t.offsets = append(t.offsets, r.offset)
	t.mu.Unlock()
	mine := r.offset >= t.expect.Next && slices.ContainsFunc(t.sub.s.Topics, func(p string) bool { return messaging.Match(p, r.msg.Topic) })
	t.expect = position{Next: max(t.expect.Next, r.offset+1), Read: true}
	if !mine {
		t.log.ack(d.DeliveryTag)
		return
	}
	t.sub.offer(&entry{received: r, ses: t.log, tag: d.DeliveryTag})
}

// moved notes that all tags up to low are finished.
func (t *tenure) moved(low uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if low < t.first {
		return
	}
	n := int(low - t.first + 1)
	if p := (position{Next: t.offsets[n-1] + 1, Read: true}); t.done.before(p) {
		t.done = p
	}
	t.offsets, t.first = t.offsets[n:], low+1
}

func (t *tenure) position() position {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.done
}

// save publishes the position as it moves. What it publishes is given to this tenure.
func (t *tenure) save(ctx context.Context, saved position) {
	defer close(t.stopped)
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for at := time.Now(); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		p := t.position()
		if !saved.before(p) && time.Since(at) < keepEvery {
			continue
		}
		if err := t.publish(ctx, p); err == nil {
			saved, at = p, time.Now()
		}
	}
}

func (t *tenure) publish(ctx context.Context, p position) error {
	pub, err := p.publishing()
	if err != nil {
		return err
	}
	return t.sub.c.toQueue(ctx, t.sub.c.positionQueue(t.sub.s.Group), pub)
}

func (t *tenure) owns(ses *session) bool { return ses == t.log || ses == t.queue }

func (t *tenure) lose() error {
	err := lost(t.cn, t.ch, t.closed)
	if t.err != nil {
		return t.err
	}
	if t.log == nil {
		return err
	}
	t.halt()
	<-t.stopped
	for _, ses := range []*session{t.log, t.queue} {
		if why := ses.lose(); ses == t.gone {
			err = why
		}
	}
	return err
}

// release does nothing: the position goes to another subscriber only when what is in hand
// is done with.
func (t *tenure) release([]*entry) {}

func (t *tenure) end() {
	c := t.sub.c
	if t.log != nil {
		t.halt()
		<-t.stopped
		t.log.end()
		t.queue.end()
		if p := t.position(); t.held.before(p) && t.publish(c.ctx, p) == nil {
			t.settle(p)
		}
	}
	_ = t.cn.guard(c.ctx, c.cfg.Timeout, func() error {
		if t.sub.s.Temporary {
			_ = t.ch.Cancel(t.name, false)
			if _, err := t.ch.QueueDelete(c.positionQueue(t.sub.s.Group), true, false, false); err != nil {
				return err // others are there
			}
		}
		return t.ch.Close()
	})
}

// settle takes back the positions up to p, so that only p is left for who comes next.
func (t *tenure) settle(p position) {
	timer := time.NewTimer(t.sub.c.cfg.Timeout)
	defer timer.Stop()
	for t.held.before(p) {
		select {
		case d, ok := <-t.given:
			if !ok {
				return
			}
			t.hold(&d)
		case <-timer.C:
			return
		}
	}
}
