// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package pgxkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
)

// ListenerConfig configures a [Listener]. The zero value is a sound default.
type ListenerConfig struct {
	// Channel is the name of the notification channel, 1 to 63 bytes. All processes of one
	// outbox use the same. Empty means "dovetail_outbox".
	Channel string
	// Interval is the shortest time between two notifications that are sent. Zero means 5
	// milliseconds.
	Interval time.Duration
	// Check is how long nothing may be heard before the connection is tested, in case the
	// network has swallowed it. Zero means 30 seconds.
	Check time.Duration
	// Backoff is the delay before a lost connection is made again. Zero fields mean 100 ms
	// for Base and 10 seconds for Max.
	Backoff messaging.Backoff
	// Logger gets what an operator should know. Nil means slog.Default() at use.
	Logger *slog.Logger
}

// answer is how long the server may take to answer a statement of ours.
const answer = 5 * time.Second

// Listener passes wake-ups between processes through PostgreSQL: it is the Notifier of an
// outbox's Config. It has one connection while somebody is subscribed, and one more
// from the first Notify on.
//
// What is notified through a listener does not come back to its own subscribers: an outbox
// wakes its own relays by itself, and others that share the listener would look at their tables
// for nothing. So a process uses one outbox.Outbox for a store. Two, of which one enqueues and the
// other has the relay, need a listener each, or the relay finds the messages by its polling.
type Listener struct {
	conn *pgx.ConnConfig
	cfg  ListenerConfig
	// id marks our own notifications, which we do not need to hear.
	id     string
	notify chan struct{}
	change chan struct{}

	mu      sync.Mutex
	running bool
	wakes   map[*func()]struct{}
}

var _ outbox.Notifier = (*Listener)(nil)

// NewListener returns a listener that connects as conn says, which [pgx.ParseConfig] makes
// and a pool has in its Config().ConnConfig. It does nothing until [Listener.Run].
func NewListener(conn *pgx.ConnConfig, cfg ListenerConfig) (*Listener, error) {
	if conn == nil {
		return nil, errors.New("pgxkit: ConnConfig is nil, want one from pgx.ParseConfig")
	}
	if cfg.Channel == "" {
		cfg.Channel = "dovetail_outbox"
	}
	if len(cfg.Channel) > 63 {
		return nil, fmt.Errorf("pgxkit: ListenerConfig.Channel is %q, want at most 63 bytes", cfg.Channel)
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{
		{"Interval", &cfg.Interval, 5 * time.Millisecond},
		{"Check", &cfg.Check, 30 * time.Second},
		{"Backoff.Base", &cfg.Backoff.Base, 100 * time.Millisecond},
		{"Backoff.Max", &cfg.Backoff.Max, 10 * time.Second},
	} {
		if *d.value < 0 {
			return nil, fmt.Errorf("pgxkit: ListenerConfig.%s is %v, want 0 or more", d.name, *d.value)
		}
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	return &Listener{
		conn: conn.Copy(), cfg: cfg, id: messaging.NewID(),
		notify: make(chan struct{}, 1), change: make(chan struct{}, 1), wakes: make(map[*func()]struct{}),
	}, nil
}

// Notify implements [outbox.Notifier]: it wakes the subscribers of all other listeners.
func (l *Listener) Notify() { signal(l.notify) }

// Subscribe implements [outbox.Notifier].
func (l *Listener) Subscribe(wake func()) (cancel func()) {
	key := &wake
	l.mu.Lock()
	l.wakes[key] = struct{}{}
	l.mu.Unlock()
	signal(l.change)
	return func() {
		l.mu.Lock()
		delete(l.wakes, key)
		l.mu.Unlock()
		signal(l.change)
	}
}

// signal makes a receive succeed, now or later; one that is pending already is enough.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run listens and sends until ctx ends, then returns nil. It survives the loss of its
// connections. Only one Run of a listener may go on at a time; another returns an error.
func (l *Listener) Run(ctx context.Context) error {
	l.mu.Lock()
	if l.running {
		l.mu.Unlock()
		return errors.New("pgxkit: the listener is running already")
	}
	l.running = true
	l.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { l.send(ctx) })
	wg.Go(func() { l.listen(ctx) })
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running = false
	return nil
}

// send passes on the calls of Notify, at most one per Interval.
func (l *Listener) send(ctx context.Context) {
	for receive(ctx, l.notify) {
		l.keep(ctx, func(ctx context.Context, conn *pgx.Conn, up func()) error {
			for {
				if err := exec(ctx, conn, "SELECT pg_notify($1, $2)", l.cfg.Channel, l.id); err != nil {
					return err
				}
				up()
				pause(ctx, l.cfg.Interval)
				if !receive(ctx, l.notify) {
					return nil
				}
			}
		})
	}
}

// listen wakes the subscribers, while there are any.
func (l *Listener) listen(ctx context.Context) {
	for receive(ctx, l.change) {
		if l.subscribers() == 0 {
			continue
		}
		// The connection is given up when the last one has gone.
		session, end := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer end()
			for receive(session, l.change) && l.subscribers() > 0 {
			}
		})
		l.keep(session, func(ctx context.Context, conn *pgx.Conn, up func()) error {
			if err := exec(ctx, conn, "LISTEN "+pgx.Identifier{l.cfg.Channel}.Sanitize()); err != nil {
				return err
			}
			up()
			l.wake() // for what was missed until now
			return l.receiveAll(ctx, conn)
		})
		end()
		wg.Wait()
		if l.subscribers() > 0 {
			signal(l.change) // one came while we were leaving
		}
	}
}

// receiveAll waits for notifications until the connection fails or ctx ends.
func (l *Listener) receiveAll(ctx context.Context, conn *pgx.Conn) error {
	for {
		wait, cancel := context.WithTimeout(ctx, l.cfg.Check)
		n, err := conn.WaitForNotification(wait)
		silent := wait.Err() != nil
		cancel()
		if err == nil {
			if n.Payload != l.id {
				l.wake()
			}
			continue
		}
		if silent && ctx.Err() == nil && !conn.IsClosed() {
			err = exec(ctx, conn, "SELECT 1")
		}
		if err != nil {
			return err // also at the end of ctx, which keep sees
		}
	}
}

func (l *Listener) subscribers() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.wakes)
}

func (l *Listener) wake() {
	l.mu.Lock()
	wakes := make([]func(), 0, len(l.wakes))
	for w := range l.wakes {
		wakes = append(wakes, *w)
	}
	l.mu.Unlock()
	for _, w := range wakes {
		w()
	}
}

// keep runs session on a connection, and again on a new one whenever it returns an error, until
// ctx ends or it returns nil. A session calls up when it works.
func (l *Listener) keep(ctx context.Context, session func(ctx context.Context, conn *pgx.Conn, up func()) error) {
	for failures := 0; ctx.Err() == nil; {
		err := l.once(ctx, func(conn *pgx.Conn) error {
			return session(ctx, conn, func() { failures = 0 })
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		failures++
		longest := l.cfg.Backoff.Longest(failures)
		delay := longest - time.Duration(rand.Int64N(int64(longest)/2+1))
		log := l.cfg.Logger
		if log == nil {
			log = slog.Default()
		}
		log.LogAttrs(ctx, slog.LevelWarn, "pgxkit: connection lost, relays poll meanwhile",
			slog.String("channel", l.cfg.Channel), slog.Duration("retry_in", delay), slog.Any("error", err))
		pause(ctx, delay)
	}
}

func (l *Listener) once(ctx context.Context, session func(conn *pgx.Conn) error) error {
	dial, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	conn, err := pgx.ConnectConfig(dial, l.conn.Copy())
	if err != nil {
		return err
	}
	defer func() {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(bye)
	}()
	return session(conn)
}

func exec(ctx context.Context, conn *pgx.Conn, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	_, err := conn.Exec(ctx, sql, args...)
	return err
}

// receive waits for a signal and reports whether it came before the end of ctx.
func receive(ctx context.Context, c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
