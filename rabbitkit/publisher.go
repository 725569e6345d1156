// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// publisher pipelines the messages of all callers over a few channels.
type publisher struct {
	c      *Client
	link   *link
	window chan struct{}
	pipes  []*pipe
	seed   maphash.Seed
	end    sync.Once
	ended  chan struct{} // closed when all pipes have ended
}

// pipe is what goes over one channel at a time: all messages of some of the keys.
//
// Every message holds a place in the window from before it is queued until its outcome is
// known, so the queue, which is as long, never blocks. One goroutine writes, and it alone
// waits for a stalled socket; callers wait for their outcome or their context.
type pipe struct {
	*publisher
	queue chan *flight
	start sync.Once
	done  chan struct{} // closed when run has ended
}

// flight is a message on its way.
type flight struct {
	pipe          *pipe
	exchange, key string
	pub           amqp.Publishing
	state         atomic.Int32
	call          *call       // of Publish
	done          func(error) // of PublishAsync
	unwatch       func() bool // ends what waits for the context of PublishAsync
	returned      bool        // by the broker, as unroutable; guarded by channel.mu
	err           error       // the outcome; written before state becomes flightOver
}

// The states of a flight. Whoever takes it from waiting to another state owns it.
const (
	flightWaiting   = iota
	flightSent      // perhaps only in part
	flightWithdrawn // by its caller, whose context ended; never sent
	flightAbandoned // sent, and by then nobody waited for its outcome any more
	flightOver
)

// call is one call of send.
type call struct {
	left atomic.Int64
	done chan struct{}
}

func (c *call) landed() {
	if c.left.Add(-1) == 0 {
		close(c.done)
	}
}

func newPublisher(c *Client) *publisher {
	p := &publisher{c: c, link: newLink(c, "publish"), seed: maphash.MakeSeed(), window: make(chan struct{}, c.cfg.Window), ended: make(chan struct{})}
	for range c.cfg.Channels {
		p.pipes = append(p.pipes, &pipe{publisher: p, queue: make(chan *flight, c.cfg.Window), done: make(chan struct{})})
	}
	return p
}

// pipe returns the pipe of a key, any if it is empty.
func (p *publisher) pipe(key string) *pipe {
	if key == "" {
		return p.pipes[rand.IntN(len(p.pipes))]
	}
	return p.pipes[maphash.String(p.seed, key)%uint64(len(p.pipes))]
}

// push queues f, which holds a place in the window.
func (p *pipe) push(f *flight) {
	p.start.Do(func() { go p.run() })
	p.queue <- f
}

// Publish sends msgs to the exchange and waits for their confirmations; see
// [messaging.Publisher]. Calls of many goroutines are pipelined. A message that a queue
// could not take is [messaging.ErrRefused], and may be tried again.
func (c *Client) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	start := time.Now()
	if err := messaging.Invalid(msgs); err != nil {
		c.published(start, msgs, err)
		return err
	}
	fs := make([]*flight, 0, len(msgs))
	index := make([]int, 0, len(msgs))
	var failed []messaging.Failed
	keyless := c.pub.pipe("")
	for i, m := range msgs {
		p, err := encode(m, maxHeaders)
		if err != nil {
			failed = append(failed, messaging.Failed{Index: i, ID: m.ID, Err: err})
			continue
		}
		p.Body = slices.Clone(p.Body)
		pipe := keyless
		if m.Key != "" {
			pipe = c.pub.pipe(m.Key)
		}
		fs = append(fs, &flight{pipe: pipe, exchange: c.cfg.Exchange, key: m.Topic, pub: p})
		index = append(index, i)
	}
	if len(failed) > 0 { // refuse before anything is sent
		for _, i := range index {
			failed = append(failed, messaging.Failed{Index: i, ID: msgs[i].ID, Err: fmt.Errorf("%w: not sent, because another message of the same call is too large", messaging.ErrRefused)})
		}
	} else if len(fs) > 0 {
		for j, err := range c.pub.send(ctx, fs) {
			if err != nil {
				failed = append(failed, messaging.Failed{Index: index[j], ID: msgs[index[j]].ID, Err: err})
			}
		}
	}
	var err error
	if len(failed) > 0 {
		err = &messaging.PublishError{Failed: failed}
	}
	c.published(start, msgs, err)
	return err
}

// PublishAsync begins to send m to the exchange; see [messaging.AsyncPublisher]. It returns
// false if the window is full.
func (c *Client) PublishAsync(ctx context.Context, m *messaging.Message, done func(err error)) bool {
	if c.ctx.Err() != nil || m == nil || m.Validate() != nil {
		return false // Publish says what is wrong
	}
	pub, err := encode(m, maxHeaders)
	if err != nil {
		return false
	}
	p := c.pub
	select {
	case p.window <- struct{}{}:
	default:
		return false
	}
	start := time.Now()
	pipe := p.pipe(m.Key)
	f := &flight{pipe: pipe, exchange: c.cfg.Exchange, key: m.Topic, pub: pub, done: func(err error) {
		c.outcome(time.Since(start), m, err)
		done(err)
	}}
	f.unwatch = context.AfterFunc(ctx, func() { p.giveUp(ctx, f) })
	pipe.push(f)
	select {
	case <-pipe.done: // run may have looked at the queue for the last time
		f.unwatch()
		p.giveUp(ctx, f)
	default:
	}
	return true
}

// giveUp tells the caller of PublishAsync that its outcome is not waited for any more.
func (p *publisher) giveUp(ctx context.Context, f *flight) {
	switch {
	case f.state.CompareAndSwap(flightWaiting, flightWithdrawn):
		f.done(p.notSent(ctx))
	case f.state.CompareAndSwap(flightSent, flightAbandoned):
		f.done(unconfirmed(ctx))
	}
}

// published counts the outcomes and calls the hook.
func (c *Client) published(start time.Time, msgs []*messaging.Message, err error) {
	var failed map[int]error
	if pe := (*messaging.PublishError)(nil); errors.As(err, &pe) {
		failed = make(map[int]error, len(pe.Failed))
		for _, f := range pe.Failed {
			failed[f.Index] = f.Err
		}
	}
	took := time.Since(start)
	for i, m := range msgs {
		c.outcome(took, m, failed[i])
	}
}

func (c *Client) outcome(took time.Duration, m *messaging.Message, err error) {
	switch {
	case err == nil:
		c.confirmed.Add(1)
	case errors.Is(err, messaging.ErrUnroutable):
		c.unroutable.Add(1)
	case errors.Is(err, messaging.ErrUnknown):
		c.unknown.Add(1)
	case errors.Is(err, messaging.ErrBlocked):
		c.busy.Add(1)
	default:
		c.refused.Add(1)
	}
	if hook := c.cfg.Hooks.Published; hook != nil && m != nil {
		hook(messaging.Published{Message: m, Took: took, Err: err})
	}
}

// send sends fs and returns the outcome of each.
func (p *publisher) send(ctx context.Context, fs []*flight) []error {
	cl := &call{done: make(chan struct{})}
	cl.left.Store(int64(len(fs)))
	out := make([]error, len(fs))
	sent := 0
	for sent < len(fs) && ctx.Err() == nil && p.c.ctx.Err() == nil {
		f := fs[sent]
		f.call = cl
		select {
		case p.window <- struct{}{}:
			f.pipe.push(f)
			sent++
		case <-ctx.Done():
		case <-p.c.ctx.Done():
		}
	}
	for range len(fs) - sent {
		cl.landed()
	}
	if sent > 0 {
		select {
		case <-cl.done:
		case <-ctx.Done():
		case <-p.ended: // closed; what was in flight has its outcome
		}
	}
	for i, f := range fs {
		switch {
		case i >= sent, f.state.CompareAndSwap(flightWaiting, flightWithdrawn):
			out[i] = p.notSent(ctx)
		case f.state.Load() == flightOver:
			out[i] = f.err
		default:
			out[i] = unconfirmed(ctx)
		}
	}
	return out
}

// unconfirmed is the outcome of a message that was sent and is not waited for any more.
func unconfirmed(ctx context.Context) error {
	return fmt.Errorf("%w: no confirmation: %w", messaging.ErrUnknown, cause(ctx, messaging.ErrClosed))
}

func cause(ctx context.Context, otherwise error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return otherwise
}

// notSent is the outcome of a message that never was on its way.
func (p *publisher) notSent(ctx context.Context) error {
	if ctx.Err() == nil {
		return fmt.Errorf("%w: %w", messaging.ErrRefused, messaging.ErrClosed)
	}
	if p.link.current() == nil {
		p.link.mu.Lock()
		last := p.link.last
		p.link.mu.Unlock()
		if last != nil {
			return fmt.Errorf("%w: %w: %w", messaging.ErrBlocked, context.Cause(ctx), last)
		}
	}
	return fmt.Errorf("%w: %w", messaging.ErrBlocked, context.Cause(ctx))
}

// over tells the caller of f its outcome, and frees its place.
func (p *publisher) over(f *flight, err error) {
	f.err = err
	abandoned := f.state.Swap(flightOver) == flightAbandoned
	<-p.window
	switch {
	case f.call != nil:
		f.call.landed()
	case !abandoned:
		f.unwatch()
		f.done(err)
	}
}

// take makes f the publisher's own. It returns false if its caller has withdrawn it.
func (p *publisher) take(f *flight) bool {
	if f.state.CompareAndSwap(flightWaiting, flightSent) {
		return true
	}
	<-p.window
	return false
}

// stopped waits until the pipes have ended, which Close has asked for.
func (p *publisher) stopped() {
	p.end.Do(func() {
		go func() {
			for _, pipe := range p.pipes {
				pipe.start.Do(func() { close(pipe.done) })
				<-pipe.done
			}
			close(p.ended)
		}()
	})
	t := time.NewTimer(closeTimeout)
	defer t.Stop()
	select {
	case <-p.ended:
	case <-t.C:
	}
}

// run publishes, session after session, until Close.
func (p *pipe) run() {
	ctx := p.c.ctx
	defer p.stop()
	var carry *flight // taken, but not sent when its session ended
	for failures := 0; ctx.Err() == nil; {
		s, err := p.open(ctx)
		if err == nil {
			failures = 0
			carry, err = p.pump(ctx, s, carry)
			if ctx.Err() == nil {
				p.c.logger().LogAttrs(ctx, slog.LevelWarn, "publishing interrupted", slog.Any("error", err))
			}
			continue
		}
		if ctx.Err() != nil {
			break
		}
		p.c.logger().LogAttrs(ctx, slog.LevelWarn, "cannot publish", slog.Any("error", err))
		timer := time.NewTimer(p.c.backoff(failures))
		failures++
		var queue chan *flight
		if fault.IsPermanent(err) { // waiting is of no use to those who wait
			queue = p.queue
			if carry != nil {
				p.over(carry, refuse(err))
				carry = nil
			}
		}
		for waiting := true; waiting; {
			select {
			case f := <-queue:
				if p.take(f) {
					p.over(f, refuse(err))
				}
			case <-timer.C:
				waiting = false
			case <-ctx.Done():
				waiting = false
			}
		}
		timer.Stop()
	}
	if carry != nil {
		p.over(carry, fmt.Errorf("%w: %w", messaging.ErrRefused, messaging.ErrClosed))
	}
}

// stop ends what is still queued. The callers of Publish see for themselves.
func (p *pipe) stop() {
	close(p.done)
	for {
		select {
		case f := <-p.queue:
			if f.done != nil {
				f.unwatch()
				p.giveUp(context.Background(), f)
			}
		default:
			return
		}
	}
}

// channel is one session of a pipe.
type channel struct {
	cn       *conn
	ch       *amqp.Channel
	confirms chan amqp.Confirmation
	returns  chan amqp.Return
	closed   chan *amqp.Error
	ended    chan struct{} // closed when every outcome of this session is known
	cause    error         // of the end; set before ended is closed

	mu      sync.Mutex
	next    uint64 // the tag of the next message
	pending map[uint64]*flight
	oldest  uint64    // in flight, when overdue looked
	since   time.Time // when it was first seen to be that
}

// confirmTimeouts is after how many of Config.Timeout a message is not confirmed any more.
const confirmTimeouts = 6

// open begins a session: a channel with confirms, and the topology that it needs.
func (p *pipe) open(ctx context.Context) (*channel, error) {
	cn, err := p.link.get(ctx)
	if err != nil {
		return nil, err
	}
	s := &channel{
		cn: cn, next: 1, pending: make(map[uint64]*flight),
		ended: make(chan struct{}),
		// Nobody holds up the connection's reader: there are never more confirmations than
		// places in the window.
		confirms: make(chan amqp.Confirmation, p.c.cfg.Window),
		// Without a buffer a return is taken before the reader comes to the confirmation
		// that follows it.
		returns: make(chan amqp.Return),
	}
	err = cn.guard(ctx, p.c.cfg.Timeout, func() error {
		if err := p.c.prepare(cn); err != nil {
			return err
		}
		var err error
		if s.ch, err = cn.Channel(); err != nil {
			return err
		}
		s.closed = s.ch.NotifyClose(make(chan *amqp.Error, 1))
		s.ch.NotifyReturn(s.returns)
		s.ch.NotifyPublish(s.confirms)
		return s.ch.Confirm(false)
	})
	if err != nil {
		if s.ch != nil {
			go func() { // let the library close what it was told to notify
				_ = s.ch.Close()
			}()
		}
		return nil, err
	}
	go s.collect(p.publisher)
	return s, nil
}

// prepare makes what is published to, once for a connection, and again when a channel of it was
// lost, perhaps for want of that.
func (c *Client) prepare(cn *conn) error {
	if cn.prepared.Load() {
		return nil
	}
	cn.preparing.Lock()
	defer cn.preparing.Unlock()
	if cn.prepared.Load() {
		return nil
	}
	if err := c.onChannel(cn, c.declareExchange); err != nil {
		return err
	}
	c.redeclare(cn)
	cn.prepared.Store(true)
	return nil
}

// redeclare makes anew what Declare had made: the broker may have lost it.
func (c *Client) redeclare(cn *conn) {
	c.mu.Lock()
	subs := make([]messaging.Subscription, 0, len(c.declared))
	for _, s := range c.declared {
		subs = append(subs, s)
	}
	clear(c.rungs)
	c.mu.Unlock()
	for _, s := range subs {
		if _, err := c.declareGroup(cn, s); err != nil {
			c.logger().LogAttrs(c.ctx, slog.LevelWarn, "group not declared again", slog.String("group", s.Group), slog.Any("error", err))
		}
	}
}

// pump sends what is queued until the session ends. It returns a message that it had
// taken and certainly not sent.
func (p *pipe) pump(ctx context.Context, s *channel, carry *flight) (*flight, error) {
	cork := s.cn.sock.cork()
	defer cork.release()
	for {
		f := carry
		carry = nil
		if f == nil {
			if f = p.waiting(); f == nil {
				// Nothing to gather: let go what there is.
				cork.release()
				select {
				case f = <-p.queue:
				case <-s.ended:
					return nil, s.cause
				case <-ctx.Done():
					s.cn.end()
					<-s.ended
					return nil, s.cause
				}
				cork.hold()
			}
			if free, blocked := s.cn.room(); blocked {
				// What we wrote now would stay in the socket, neither sent nor ours.
				cork.release()
				select {
				case <-free:
				case <-s.ended:
				case <-ctx.Done():
				}
				cork.hold()
			}
			if !p.take(f) {
				continue
			}
		}
		if !s.cn.prepared.Load() { // without it the broker closes this channel, too
			cork.release() // what is asked now must not be held back
			_ = s.cn.guard(ctx, p.c.cfg.Timeout, func() error { return p.c.prepare(s.cn) })
			cork.hold()
		}
		if begun, err := s.send(f); err != nil {
			// Nothing more can be sent here. Of a channel that is closed the reader knows, of a
			// failed write it need not.
			if !errors.Is(err, amqp.ErrClosed) {
				_ = s.cn.sock.Close()
			}
			if !begun || errors.Is(err, amqp.ErrClosed) && s.forget(f) {
				carry = f
			}
			<-s.ended
			return carry, s.cause
		}
	}
}

// waiting returns a queued message, if there is one. Before it says no it lets others run:
// callers that were told an outcome just now may have the next message ready, and what is
// written together is one system call.
func (p *pipe) waiting() *flight {
	for yielded := false; ; yielded = true {
		select {
		case f := <-p.queue:
			return f
		default:
		}
		if yielded {
			return nil
		}
		runtime.Gosched()
	}
}

// send writes f. What it returns amqp.ErrClosed for was not sent, or without its end. It
// has not begun if the session has ended: then nobody else knows of f.
func (s *channel) send(f *flight) (begun bool, err error) {
	s.mu.Lock()
	if s.pending == nil {
		s.mu.Unlock()
		return false, amqp.ErrClosed
	}
	s.pending[s.next] = f
	s.next++
	s.mu.Unlock()
	_, err = s.ch.PublishWithDeferredConfirm(f.exchange, f.key, true, false, f.pub)
	return true, err
}

// forget takes the last message back, and reports whether its outcome was still open.
func (s *channel) forget(f *flight) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending[s.next-1] != f {
		return false
	}
	delete(s.pending, s.next-1)
	return true
}

// collect reads confirmations and returns, and tells the callers, until the session ends.
func (s *channel) collect(p *publisher) {
	returns := s.returns
	look := time.NewTicker(p.c.cfg.Timeout)
	defer look.Stop()
	var stuck error
	for open := true; open; {
		select {
		case now := <-look.C:
			if stuck == nil && s.overdue(now, confirmTimeouts*p.c.cfg.Timeout) {
				stuck = errors.New("rabbitkit: the broker has not confirmed a message for too long")
				_ = s.cn.sock.Close()
			}
		case r, ok := <-returns:
			if !ok {
				returns = nil
				continue
			}
			s.comeBack(r)
		case c, ok := <-s.confirms:
			if !ok {
				open = false
				continue
			}
			s.mu.Lock()
			f := s.pending[c.DeliveryTag]
			delete(s.pending, c.DeliveryTag)
			s.mu.Unlock()
			switch {
			case f == nil:
			case f.returned:
				p.over(f, fmt.Errorf("%w: %q", messaging.ErrUnroutable, f.key))
			case c.Ack:
				p.over(f, nil)
			default:
				p.over(f, fmt.Errorf("%w: a queue could not take it", messaging.ErrRefused))
			}
		}
	}
	s.cause = errors.New("rabbitkit: the connection was closed")
	select {
	case err := <-s.closed:
		switch {
		case stuck != nil:
			s.cause = stuck
		case err == nil:
		case err.Server && err.Code == amqp.AccessRefused: // to write to the exchange
			s.cause = fmt.Errorf("%w: %w", ErrAccess, err)
		default:
			s.cause = fmt.Errorf("rabbitkit: connection lost: %w", err)
		}
	default:
	}
	s.cn.prepared.Store(false)
	s.mu.Lock()
	left := s.pending
	s.pending = nil
	s.next = 0
	s.mu.Unlock()
	close(s.ended)
	for _, f := range left {
		p.over(f, fmt.Errorf("%w: %w", messaging.ErrUnknown, s.cause))
	}
}

// overdue reports whether the oldest message in flight waits for its confirmation for too
// long, although the broker takes messages in. A queue may lose one for good, when it or a
// part of it is restarted inside the broker; then nothing but the end of the channel frees
// the places of the window.
func (s *channel) overdue(now time.Time, most time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := uint64(0)
	for tag := range s.pending {
		if oldest == 0 || tag < oldest {
			oldest = tag
		}
	}
	if _, blocked := s.cn.room(); blocked || oldest != s.oldest {
		s.oldest, s.since = oldest, now
	}
	return oldest != 0 && now.Sub(s.since) >= most
}

// comeBack notes that a message was returned: the oldest one with this ID that was not
// yet, as the broker returns them in order, each before its confirmation.
func (s *channel) comeBack(r amqp.Return) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest *flight
	at := uint64(0)
	for tag, f := range s.pending {
		if !f.returned && f.pub.MessageId == r.MessageId && f.key == r.RoutingKey && f.exchange == r.Exchange && (oldest == nil || tag < at) {
			oldest, at = f, tag
		}
	}
	if oldest != nil {
		oldest.returned = true
	}
}
