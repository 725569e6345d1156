// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// conn is one connection of a link. It is never revived: a tag or a confirmation of a lost
// connection means nothing on the next one.
type conn struct {
	*amqp.Connection
	sock *sock

	mu      sync.Mutex
	free    chan struct{} // closed while the broker takes messages in
	blocked bool

	preparing sync.Mutex
	prepared  atomic.Bool // what is published to is there
}

// watch follows whether the broker takes messages in, until the connection's end.
func (c *conn) watch() {
	blocks := c.NotifyBlocked(make(chan amqp.Blocking, 8))
	go func() {
		for b := range blocks { // closed with the connection
			c.setBlocked(b.Active)
		}
	}()
}

func (c *conn) setBlocked(blocked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case blocked && !c.blocked:
		c.blocked, c.free = true, make(chan struct{})
	case !blocked && c.blocked:
		c.blocked = false
		close(c.free)
	}
}

// room returns a channel that is closed while the broker takes messages in.
func (c *conn) room() (free <-chan struct{}, blocked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.free, c.blocked
}

// end closes the connection, politely if the broker answers within a moment.
func (c *conn) end() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.CloseDeadline(time.Now().Add(closeTimeout))
	}()
	t := time.NewTimer(closeTimeout)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
	_ = c.sock.Close()
}

// guard runs calls that wait for the broker, and cuts the connection if they do not end
// in time: amqp091 itself knows no other way to end them.
func (c *conn) guard(ctx context.Context, timeout time.Duration, fn func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.sock.Close() })
	err := fn()
	if !stop() && err != nil {
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return err
}

// sock is the socket of a connection. No write lasts longer than its timeout: a broker
// that has stopped reading would hold the writer for ever. While it is corked, writes
// are gathered, so that a burst of small frames is one system call.
type sock struct {
	net.Conn
	timeout time.Duration

	mu    sync.Mutex
	holds int // how many corks hold it
	buf   []byte
}

const corkSize = 64 << 10

func (s *sock) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds > 0 && len(s.buf)+len(p) <= corkSize {
		s.buf = append(s.buf, p...)
		return len(p), nil
	}
	if err := s.flush(); err != nil {
		return 0, err
	}
	if s.holds > 0 && len(p) <= corkSize {
		s.buf = append(s.buf, p...)
		return len(p), nil
	}
	return s.write(p)
}

func (s *sock) flush() error {
	if len(s.buf) == 0 {
		return nil
	}
	_, err := s.write(s.buf)
	s.buf = s.buf[:0]
	return err
}

func (s *sock) write(p []byte) (int, error) {
	if err := s.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil {
		return 0, err
	}
	return s.Conn.Write(p)
}

// cork is what one of those who write in bursts holds a sock by.
type cork struct {
	s    *sock
	held bool
}

// cork returns a cork that is held.
func (s *sock) cork() *cork {
	c := &cork{s: s}
	c.hold()
	return c
}

// hold has writes gathered until every cork is released.
func (c *cork) hold() {
	if c.held {
		return
	}
	c.held = true
	c.s.mu.Lock()
	c.s.holds++
	c.s.mu.Unlock()
}

// release writes what was gathered, or leaves it to those who hold the sock still. If that
// fails the connection is of no more use.
func (c *cork) release() {
	if !c.held {
		return
	}
	c.held = false
	var err error
	c.s.mu.Lock()
	if c.s.holds--; c.s.holds == 0 {
		err = c.s.flush()
	}
	c.s.mu.Unlock()
	if err != nil {
		_ = c.s.Conn.Close()
	}
}

// link is a connection that is made anew when it is lost, on demand.
type link struct {
	c    *Client
	name string

	turn chan struct{} // holds one token: who has it may dial
	// Guarded by turn.
	failures int
	next     time.Time

	mu   sync.Mutex
	cur  *conn
	last error // of the last attempt to connect
	was  bool  // it was connected before
}

func newLink(c *Client, name string) *link {
	return &link{c: c, name: name, turn: make(chan struct{}, 1)}
}

// current returns the connection, nil if there is none at the moment.
func (l *link) current() *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cur == nil || l.cur.IsClosed() {
		return nil
	}
	return l.cur
}

// get returns the connection and makes it if need be. After a failure it waits before it
// tries again. An error that is [fault.IsPermanent] is the broker's no to a link that
// never was; a broker that once let us in may be starting, so its no is not final.
func (l *link) get(ctx context.Context) (*conn, error) {
	if c := l.current(); c != nil {
		return c, nil
	}
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if c := l.current(); c != nil {
		return c, nil
	}
	if err := sleep(ctx, time.Until(l.next)); err != nil {
		return nil, err
	}
	cn, err := l.c.dial(ctx, l.name)
	l.mu.Lock()
	if err != nil && l.was && fault.IsPermanent(err) {
		err = errors.New(err.Error())
	}
	l.last = err
	again := l.was
	if err == nil {
		l.cur, l.was = cn, true
	}
	l.mu.Unlock()
	if err != nil {
		l.next = time.Now().Add(l.c.backoff(l.failures))
		l.failures++
		return nil, err
	}
	if again {
		l.c.reconnects.Add(1)
	}
	l.failures, l.next = 0, time.Now().Add(l.c.backoff(0)) // one that is cut at once must not spin
	return cn, nil
}

// end closes the connection that there is.
func (l *link) end() {
	if c := l.current(); c != nil {
		c.end()
	}
}

// backoff returns how long to wait after n failures.
func (c *Client) backoff(n int) time.Duration {
	d := min(100*time.Millisecond<<min(n, 16), c.cfg.MaxReconnectDelay)
	return d/2 + rand.N(d/2+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// dial makes one connection.
func (c *Client) dial(ctx context.Context, name string) (*conn, error) {
	if c.ctx.Err() != nil {
		return nil, messaging.ErrClosed
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	stop := context.AfterFunc(c.ctx, cancel)
	defer stop()

	var s *sock
	cfg := amqp.Config{
		Vhost:           c.cfg.Vhost,
		Heartbeat:       c.cfg.Heartbeat,
		TLSClientConfig: c.cfg.TLS.Clone(), // amqp091 writes into it
		Properties:      amqp.NewConnectionProperties(),
		Dial: func(network, addr string) (net.Conn, error) {
			raw, err := c.cfg.Dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			s = &sock{Conn: raw, timeout: c.cfg.Timeout}
			deadline, _ := ctx.Deadline()
			return s, raw.SetDeadline(deadline)
		},
	}
	uri, err := amqp.ParseURI(c.url)
	if err != nil {
		return nil, err
	}
	cfg.SASL = saslOf(uri, cfg.Properties)
	cfg.Properties.SetClientConnectionName(c.cfg.Name + " " + name)
	var ended func() bool
	dialed := cfg.Dial
	cfg.Dial = func(network, addr string) (net.Conn, error) {
		nc, err := dialed(network, addr)
		if err == nil {
			ended = context.AfterFunc(ctx, func() { _ = nc.Close() })
		}
		return nc, err
	}
	ac, err := amqp.DialConfig(c.url, cfg)
	if ended != nil && !ended() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		if s != nil {
			_ = s.Close()
		}
		return nil, handshakeError(err)
	}
	cn := &conn{Connection: ac, sock: s, free: make(chan struct{})}
	close(cn.free)
	cn.watch()
	return cn, nil
}

// saslOf returns the ways to log in that the URL asks for.
func saslOf(uri amqp.URI, properties amqp.Table) []amqp.Authentication {
	names := uri.AuthMechanism
	if names == nil {
		names = []string{"PLAIN"}
	}
	var all []amqp.Authentication
	for _, name := range names {
		var a amqp.Authentication
		switch strings.ToUpper(name) {
		case "AMQPLAIN":
			a = uri.AMQPlainAuth()
		case "EXTERNAL":
			a = &amqp.ExternalAuth{}
		default:
			a = uri.PlainAuth()
		}
		all = append(all, askWhy{a, properties})
	}
	return all
}

// askWhy asks the broker to say so if it refuses the credentials. Otherwise it only closes
// the connection, seconds later, which looks like any connection that is cut. amqp091
// overwrites the capabilities of the properties just before it asks for the response.
type askWhy struct {
	amqp.Authentication
	properties amqp.Table
}

func (a askWhy) Response() string {
	if capabilities, ok := a.properties["capabilities"].(amqp.Table); ok {
		capabilities["authentication_failure_close"] = true
	}
	return a.Authentication.Response()
}

// handshakeError tells what the broker will always refuse from what may be mended by
// waiting. Only the broker's own word counts: amqp091 guesses at bad credentials, or a
// bad vhost, whenever the connection is lost at that step.
func handshakeError(err error) error {
	if ae := (*amqp.Error)(nil); errors.As(err, &ae) && ae.Server {
		switch ae.Code {
		case amqp.AccessRefused:
			return fmt.Errorf("%w: %w", ErrCredentials, err)
		case amqp.NotAllowed:
			return fmt.Errorf("%w: %w", ErrVhost, err)
		}
	}
	return fmt.Errorf("rabbitkit: no connection: %w", err)
}
