// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

// This file is the smallest broker on a network that keeps the contract: lines of JSON
// in front of the in-memory broker. It shows that the suite runs in real time, and that
// its storm and the proxy do to a connection what they say.

// heartbeat is how often both ends say something. An end that hears nothing for four
// of them gives the connection up.
const heartbeat = 250 * time.Millisecond

// frame is one line.
type frame struct {
	N         int64                  `json:",omitzero"` // pairs an answer with its question
	Declare   messaging.Subscription `json:",omitzero"`
	Subscribe messaging.Subscription `json:",omitzero"`
	Publish   []*messaging.Message   `json:",omitempty"`
	Delivery  *messaging.Delivery    `json:",omitempty"`
	Done      *settlement            `json:",omitempty"`
	Results   []string               `json:",omitempty"` // of Publish: "" or a sentinel's text
	Err       string                 `json:",omitempty"`
	Stop      bool                   `json:",omitempty"` // deliver no more
	Stopped   bool                   `json:",omitempty"`
}

// settlement is what the client decided.
type settlement struct {
	Action messaging.Action
	Delay  time.Duration
	Free   bool // no attempt used up
	Reason string
	Stack  []byte
}

// err returns the error that makes the broker in the server do the same.
func (s *settlement) err() error {
	switch err := errors.New(s.Reason); {
	case s.Action == messaging.Acked:
		return nil
	case s.Action == messaging.Dropped:
		return messaging.Drop(err)
	case s.Action == messaging.DeadLettered && s.Stack != nil:
		return messaging.Reject(&withStack{err, &messaging.PanicError{Stack: s.Stack}})
	case s.Action == messaging.DeadLettered:
		return messaging.Reject(err)
	case s.Free:
		return &fault.Rejection{By: "client", RetryAfter: max(s.Delay, time.Nanosecond), Err: err}
	default:
		return fault.RetryAfter(err, max(s.Delay, time.Nanosecond))
	}
}

type withStack struct {
	error
	p *messaging.PanicError
}

func (w *withStack) Unwrap() error { return w.p }

// link is one connection, at either end.
type link struct {
	conn net.Conn
	in   *bufio.Reader

	mu   sync.Mutex
	gone chan struct{}
	once sync.Once
}

func newLink(c net.Conn) *link {
	l := &link{conn: c, in: bufio.NewReader(c), gone: make(chan struct{})}
	go func() {
		for l.send(frame{}) == nil {
			time.Sleep(heartbeat)
		}
	}()
	return l
}

func (l *link) close() {
	l.once.Do(func() {
		close(l.gone)
		_ = l.conn.Close()
	})
}

func (l *link) send(f frame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	line, err := json.Marshal(f)
	if err != nil {
		return err
	}
	_ = l.conn.SetWriteDeadline(time.Now().Add(4 * heartbeat))
	_, err = l.conn.Write(append(line, '\n'))
	if err != nil {
		l.close()
	}
	return err
}

// receive returns the next frame that is more than a heartbeat.
func (l *link) receive() (frame, error) {
	for {
		_ = l.conn.SetReadDeadline(time.Now().Add(4 * heartbeat))
		line, err := l.in.ReadBytes('\n')
		if err != nil {
			l.close()
			return frame{}, err
		}
		if string(line) == "{}\n" {
			continue
		}
		var f frame
		if err := json.Unmarshal(line, &f); err != nil {
			l.close()
			return frame{}, err
		}
		return f, nil
	}
}

// serve is the server's end.
func serve(ctx context.Context, b *messagingmem.Broker, l *link) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer l.close()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // before the wait
	var mu sync.Mutex
	waiting := make(map[int64]chan *settlement)
	var tag int64
	sctx, stop := context.WithCancel(ctx)
	defer stop()
	for {
		f, err := l.receive()
		if err != nil {
			return
		}
		switch {
		case f.Declare.Group != "":
			err := b.Declare(ctx, f.Declare)
			_ = l.send(frame{N: f.N, Err: text(err)})
		case f.Publish != nil:
			wg.Go(func() {
				results := make([]string, len(f.Publish))
				if pe := (*messaging.PublishError)(nil); errors.As(b.Publish(ctx, f.Publish...), &pe) {
					for _, failed := range pe.Failed {
						results[failed.Index] = text(failed.Err)
					}
				}
				_ = l.send(frame{N: f.N, Results: results})
			})
		case f.Stop:
			stop()
		case f.Done != nil:
			mu.Lock()
			ch := waiting[f.N]
			delete(waiting, f.N)
			mu.Unlock()
			if ch != nil {
				ch <- f.Done
			}
		case f.Subscribe.Group != "":
			s := f.Subscribe
			s.MaxDeliveries, s.DrainTimeout = -1, time.Hour // both are the client's to see to
			wg.Go(func() {
				err := b.Subscribe(sctx, s, messaging.HandlerFunc(func(_ context.Context, d *messaging.Delivery) error {
					ch := make(chan *settlement, 1)
					mu.Lock()
					tag++
					n := tag
					waiting[n] = ch
					mu.Unlock()
					_ = l.send(frame{N: n, Delivery: d})
					select {
					case done := <-ch:
						return done.err()
					case <-l.gone:
						// Nobody knows what became of it: as if never delivered.
						return &fault.Rejection{By: "server", RetryAfter: time.Nanosecond, Err: net.ErrClosed}
					}
				}))
				_ = l.send(frame{Stopped: true, Err: text(err)})
			})
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// wire is the client.
type wire struct {
	addr string

	mu      sync.Mutex
	pub     *link // for questions with an answer
	n       int64
	pending map[int64]chan frame
}

func (w *wire) dial(ctx context.Context) (*link, error) {
	for {
		c, err := (&net.Dialer{Timeout: 4 * heartbeat}).DialContext(ctx, "tcp", w.addr)
		if err == nil {
			return newLink(c), nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(heartbeat):
		}
	}
}

// ask sends a question and waits for its answer. It reports whether it was sent at all.
func (w *wire) ask(ctx context.Context, f frame) (answer frame, sent bool, err error) {
	w.mu.Lock()
	if w.pub == nil {
		w.mu.Unlock()
		l, err := w.dial(ctx)
		if err != nil {
			return frame{}, false, err
		}
		w.mu.Lock()
		if w.pub == nil {
			w.pub, w.pending = l, make(map[int64]chan frame)
			go w.answers(l)
		} else {
			l.close()
		}
	}
	l := w.pub
	w.n++
	f.N = w.n
	ch := make(chan frame, 1)
	w.pending[f.N] = ch
	w.mu.Unlock()
	if err := l.send(f); err != nil {
		return frame{}, true, err // perhaps in part
	}
	select {
	case answer = <-ch:
		return answer, true, nil
	case <-l.gone:
		return frame{}, true, net.ErrClosed
	case <-ctx.Done():
		return frame{}, true, ctx.Err()
	}
}

func (w *wire) answers(l *link) {
	for {
		f, err := l.receive()
		w.mu.Lock()
		if err != nil {
			w.pub = nil
			w.mu.Unlock()
			return
		}
		ch := w.pending[f.N]
		delete(w.pending, f.N)
		w.mu.Unlock()
		if ch != nil {
			ch <- f
		}
	}
}

func (w *wire) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	if err := messaging.Invalid(msgs); err != nil || len(msgs) == 0 {
		return err
	}
	all := func(err error) error {
		failed := make([]messaging.Failed, len(msgs))
		for i, m := range msgs {
			failed[i] = messaging.Failed{Index: i, ID: m.ID, Err: err}
		}
		return &messaging.PublishError{Failed: failed}
	}
	if ctx.Err() != nil {
		return all(fmt.Errorf("%w: %w", messaging.ErrBlocked, ctx.Err()))
	}
	answer, sent, err := w.ask(ctx, frame{Publish: msgs})
	switch {
	case err != nil && sent:
		return all(fmt.Errorf("%w: %w", messaging.ErrUnknown, err))
	case err != nil:
		return all(fmt.Errorf("%w: %w", messaging.ErrBlocked, err))
	}
	var failed []messaging.Failed
	for i, s := range answer.Results {
		if s != "" {
			failed = append(failed, messaging.Failed{Index: i, ID: msgs[i].ID, Err: remote(s)})
		}
	}
	if failed != nil {
		return &messaging.PublishError{Failed: failed}
	}
	return nil
}

// remote returns the error that the server's text stands for.
func remote(s string) error {
	for _, sentinel := range []error{messaging.ErrUnroutable, messaging.ErrRefused, messaging.ErrBlocked, messaging.ErrMismatch, messaging.ErrUnsupported, messaging.ErrUnknown} {
		if len(s) >= len(sentinel.Error()) && s[:len(sentinel.Error())] == sentinel.Error() {
			return fmt.Errorf("%w (%s)", sentinel, s)
		}
	}
	if s != "" {
		return errors.New(s)
	}
	return nil
}

func (w *wire) Declare(ctx context.Context, subs ...messaging.Subscription) error {
	for _, s := range subs {
		if err := s.Validate(); err != nil {
			return err
		}
	}
	for _, s := range subs {
		for {
			answer, _, err := w.ask(ctx, frame{Declare: s})
			if err == nil {
				if err := remote(answer.Err); err != nil {
					return err
				}
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}

func (w *wire) Subscribe(ctx context.Context, s messaging.Subscription, h messaging.Handler) error {
	if h == nil {
		return errors.New("no handler")
	}
	if err := s.Validate(); err != nil {
		return err
	}
	s = s.WithDefaults()
	hctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	for ctx.Err() == nil {
		l, err := w.dial(ctx)
		if err != nil {
			break
		}
		stopped, err := w.session(ctx, hctx, cancel, l, s, h)
		l.close()
		if stopped {
			return err
		}
	}
	return nil
}

// session handles deliveries over one connection. What is decided after its end is
// decided for nobody: the next session has the message again.
func (w *wire) session(ctx, hctx context.Context, kill func(), l *link, s messaging.Subscription, h messaging.Handler) (stopped bool, err error) {
	unhook := context.AfterFunc(ctx, func() {
		_ = l.send(frame{Stop: true})
		time.AfterFunc(s.DrainTimeout, kill)
	})
	defer unhook()
	var wg sync.WaitGroup
	defer wg.Wait()
	if l.send(frame{Subscribe: s}) != nil {
		return false, nil
	}
	for {
		f, err := l.receive()
		switch {
		case err != nil:
			return false, nil
		case f.Stopped:
			return true, remote(f.Err)
		case f.Delivery == nil:
			continue
		}
		wg.Go(func() {
			messaging.Invoke(hctx, h, f.Delivery, func(err error) {
				dec := messaging.Decide(hctx, err, f.Delivery.Attempt, s)
				done := &settlement{Action: dec.Action, Delay: dec.Delay, Free: dec.Attempt == f.Delivery.Attempt, Reason: dec.Reason}
				if p := (*messaging.PanicError)(nil); errors.As(err, &p) {
					done.Stack = p.Stack
				}
				_ = l.send(frame{N: f.N, Done: done})
			})
		})
	}
}

// openWire starts a server, a proxy and a client.
func openWire(t *testing.T, o Options) *Client {
	cfg := messagingmem.Config{ConfirmOnAck: o.ConfirmOnAck, Capacity: o.Capacity, Logger: slog.New(slog.DiscardHandler)}
	if o.Log {
		cfg.Retain = 100
	}
	b, err := messagingmem.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var servers sync.WaitGroup
	servers.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			servers.Go(func() { serve(ctx, b, newLink(c)) })
		}
	})
	proxy, err := StartProxy(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = proxy.Close()
		_ = listener.Close()
		cancel()
		servers.Wait()
	})
	w := &wire{addr: proxy.Addr()}
	return &Client{
		Publisher: w, Subscriber: w, Declarer: w, Replay: b.Replay, Proxy: proxy,
		DeadLetters: func(_ context.Context, group string) ([]messaging.DeadLetter, error) {
			return slices.DeleteFunc(b.DeadLetters(), func(dl messaging.DeadLetter) bool { return dl.Group != group }), nil
		},
		// The queue outlives the connections: a restart as far as a client can tell.
		Restart: func(context.Context) error { proxy.Cut(); return nil },
	}
}

func TestSuiteOverTheWire(t *testing.T) {
	if testing.Short() {
		t.Skip("some 10 seconds of real time")
	}
	Run(t, Harness{
		Open: openWire, Parallel: true, Unit: 100 * time.Millisecond,
		Ordered: true, Log: true, Unroutable: true, Temporary: true, ConfirmOnAck: true,
	})
}
