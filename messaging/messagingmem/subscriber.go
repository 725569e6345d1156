// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingmem

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// errDrained is the cause of the end of a handler's context.
var errDrained = errors.New("messagingmem: the subscription's drain timeout is over")

// subscriber is one call of Subscribe.
type subscriber struct {
	g    *group
	s    messaging.Subscription
	h    messaging.Handler
	done chan struct{} // closed when the last worker has ended

	// Guarded by Broker.mu.
	workers  int
	stopping bool
}

// worker is one of a subscriber's goroutines.
type worker struct {
	sub *subscriber
	in  chan *entry // has room for one; closed to end an idle worker
}

// Subscribe calls h for the messages of the group until ctx ends; see
// [messaging.Subscriber]. Prefetch means nothing here beyond being checked: a message
// is either in the queue or in a handler.
func (b *Broker) Subscribe(ctx context.Context, s messaging.Subscription, h messaging.Handler) error {
	if h == nil {
		return errors.New("messagingmem: Subscribe: handler is nil, want a handler")
	}
	if ctx.Err() != nil {
		return nil
	}
	// The values of ctx, but an end of its own: the handlers outlive the start of a drain.
	hctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	sub, err := b.subscribe(hctx, s, h)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-b.closed:
		err = messaging.ErrClosed
	}
	b.mu.Lock()
	sub.stop()
	b.mu.Unlock()

	drain := time.NewTimer(sub.s.DrainTimeout)
	defer drain.Stop()
	select {
	case <-sub.done:
	case <-drain.C:
		cancel(errDrained)
		<-sub.done
	}
	b.mu.Lock()
	sub.leave()
	b.mu.Unlock()
	return err
}

// subscribe declares the group and starts the workers.
func (b *Broker) subscribe(hctx context.Context, s messaging.Subscription, h messaging.Handler) (*subscriber, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.declare([]messaging.Subscription{s}); err != nil {
		return nil, err
	}
	s = s.WithDefaults()
	sub := &subscriber{g: b.groups[s.Group], s: s, h: h, done: make(chan struct{}), workers: s.Concurrency}
	sub.g.subs[sub] = struct{}{}
	for range s.Concurrency {
		go sub.work(hctx, &worker{sub: sub, in: make(chan *entry, 1)})
	}
	return sub, nil
}

// stop lets the workers end when they have finished what they do. The broker is locked.
func (s *subscriber) stop() {
	if s.stopping {
		return
	}
	s.stopping = true
	s.g.idle = slices.DeleteFunc(s.g.idle, func(w *worker) bool {
		if w.sub != s {
			return false
		}
		close(w.in)
		return true
	})
}

// leave takes the subscriber, whose workers have ended, out of its group. The broker is locked.
func (s *subscriber) leave() {
	delete(s.g.subs, s)
	if s.g.temporary && len(s.g.subs) == 0 {
		s.g.remove()
	}
}

// work handles entries until the subscriber stops.
func (s *subscriber) work(ctx context.Context, w *worker) {
	ended := false
	defer func() {
		if !ended {
			// A handler called runtime.Goexit, which cannot be undone.
			go s.work(ctx, w)
		}
	}()
	for e := w.next(); e != nil; e = w.next() {
		s.handle(ctx, e)
	}
	ended = true
	s.g.b.mu.Lock()
	defer s.g.b.mu.Unlock()
	if s.workers--; s.workers == 0 {
		close(s.done)
	}
}

// next returns the next entry to handle, or nil at the end.
func (w *worker) next() *entry {
	g := w.sub.g
	g.b.mu.Lock()
	if w.sub.stopping {
		g.b.mu.Unlock()
		return nil
	}
	if e := g.ready.pop(); e != nil {
		g.b.mu.Unlock()
		return e
	}
	g.idle = append(g.idle, w)
	g.b.mu.Unlock()
	return <-w.in
}

// handle runs the handler and does what it decided.
func (s *subscriber) handle(ctx context.Context, e *entry) {
	if e.dead != nil {
		s.putAway(ctx, e, 0)
		return
	}
	b := s.g.b
	d := &messaging.Delivery{Message: e.msg, Group: s.g.name, Attempt: e.attempt, Redelivered: e.redelivered, Offset: e.offset}
	if hook := b.cfg.Hooks.Delivered; hook != nil {
		hook(messaging.Delivered{Delivery: d})
	}
	var start time.Time
	if b.cfg.Hooks.Settled != nil {
		start = time.Now()
	}
	messaging.Invoke(ctx, s.h, d, func(err error) {
		var took time.Duration
		if b.cfg.Hooks.Settled != nil {
			took = time.Since(start)
		}
		s.logPanic(ctx, d, err)
		dec := messaging.Decide(ctx, err, e.attempt, s.s)
		switch dec.Action {
		case messaging.DeadLettered:
			dl := messaging.NewDeadLetter(d, dec)
			e.dead, e.cause = &dl, err
			s.putAway(ctx, e, took)
			return
		case messaging.Retried:
			b.mu.Lock()
			e.attempt = dec.Attempt
			s.g.retry(e, dec.Delay)
			b.mu.Unlock()
		default:
			b.mu.Lock()
			s.g.finish(e, dec.Action)
			b.mu.Unlock()
		}
		s.settled(d, dec, took)
	})
}

// putAway puts the dead letter of e away, and lets go of e only when that has succeeded.
// It goes on through a drain, with a time limit of its own.
func (s *subscriber) putAway(ctx context.Context, e *entry, took time.Duration) {
	dl := *e.dead
	sink := s.g.b.cfg.DeadLetter
	if sink == nil {
		s.buried(ctx, e, dl, nil, took)
		return
	}
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deadLetterTimeout)
	defer cancel()
	call := messaging.HandlerFunc(func(ctx context.Context, _ *messaging.Delivery) error { return sink(ctx, dl) })
	messaging.Invoke(sctx, call, nil, func(err error) { s.buried(ctx, e, dl, err, took) })
}

// buried ends an attempt to put a dead letter away, which was confirmed unless err is set.
func (s *subscriber) buried(ctx context.Context, e *entry, dl messaging.DeadLetter, err error, took time.Duration) {
	b := s.g.b
	dec := messaging.Decision{Action: messaging.DeadLettered, Reason: dl.Reason, Err: e.cause}
	b.mu.Lock()
	if err == nil && b.cfg.DeadLetter == nil && !s.g.bury(dl) {
		err = fmt.Errorf("messagingmem: group %q keeps %d dead letters already, as many as Config.MaxDeadLetters", s.g.name, b.cfg.MaxDeadLetters)
	}
	if err != nil {
		e.buried++
		dec = messaging.Decision{
			Action: messaging.Retried, Delay: s.s.Backoff.Delay(e.buried), Attempt: dl.Attempt,
			Reason: "dead letter not put away: " + err.Error(), Err: err,
		}
		s.g.retry(e, dec.Delay)
	} else {
		s.g.finish(e, messaging.DeadLettered)
	}
	b.mu.Unlock()

	attrs := append(make([]slog.Attr, 0, 6),
		slog.String("group", dl.Group), slog.String("topic", dl.Message.Topic), slog.String("message_id", dl.Message.ID),
		slog.Int("attempt", dl.Attempt), slog.String("reason", dl.Reason))
	if err != nil {
		b.logger().LogAttrs(ctx, slog.LevelError, "dead letter not put away, will try again", append(attrs, slog.Any("error", err))...)
	} else {
		b.logger().LogAttrs(ctx, slog.LevelWarn, "message became a dead letter", attrs...)
	}
	s.settled(&dl.Delivery, dec, took)
}

func (s *subscriber) logPanic(ctx context.Context, d *messaging.Delivery, err error) {
	var p *messaging.PanicError
	if !errors.As(err, &p) {
		return
	}
	s.g.b.logger().LogAttrs(ctx, slog.LevelError, "message handler panicked",
		slog.String("group", d.Group), slog.String("topic", d.Message.Topic), slog.String("message_id", d.Message.ID),
		slog.Int("attempt", d.Attempt), slog.Any("error", p), slog.String("stack", string(p.Stack)))
}

func (s *subscriber) settled(d *messaging.Delivery, dec messaging.Decision, took time.Duration) {
	if hook := s.g.b.cfg.Hooks.Settled; hook != nil {
		hook(messaging.Settled{Delivery: d, Decision: dec, Took: took})
	}
}
