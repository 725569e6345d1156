// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package journal gives a broker without a memory one: a durable log of everything that was
// published, from which a new consumer group can read from the beginning. The embedded shop
// has it in front of its broker in memory; the stack has streams of RabbitMQ for the same purpose.
package journal

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
)

// Log is a [platform.Broker] that keeps what it is given and passes it on. A subscription that
// says where to begin reads the log, any other is the next broker's.
//
// Delivery from the log is at least once and in the order of the log per key. A message
// that fails is retried by its subscription's schedule and holds up the group meanwhile,
// as in any log. The log keeps everything.
type Log struct {
	db   *sql.DB
	next platform.Broker
	dead func(context.Context, messaging.DeadLetter) error

	mu   sync.Mutex
	news chan struct{} // closed when there is more
}

var _ platform.Broker = (*Log)(nil)

const schema = `
CREATE TABLE IF NOT EXISTS messages (
	position INTEGER PRIMARY KEY AUTOINCREMENT,
	id TEXT NOT NULL UNIQUE,
	topic TEXT NOT NULL,
	message TEXT NOT NULL,
	at BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS readers (
	name TEXT PRIMARY KEY,
	position BIGINT NOT NULL
);`

// Open returns the log in db, an SQLite database that nothing else writes to. Dead is called
// with what a group that reads the log has given up, before it goes on.
func Open(ctx context.Context, db *sql.DB, next platform.Broker, dead func(context.Context, messaging.DeadLetter) error) (*Log, error) {
	if err := platform.CreateTables(ctx, db, schema); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return &Log{db: db, next: next, dead: dead, news: make(chan struct{})}, nil
}

// Publish implements [messaging.Publisher]: kept first, then passed on. What is published again
// because that was not confirmed is kept once.
func (l *Log) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	if err := messaging.Invalid(msgs); err != nil {
		return err
	}
	if err := platform.InTx(ctx, l.db, func(tx *sql.Tx) error {
		for _, m := range msgs {
			text, err := json.Marshal(m)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO messages (id, topic, message, at) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING`,
				m.ID, m.Topic, string(text), time.Now().UnixMicro()); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	l.mu.Lock()
	close(l.news)
	l.news = make(chan struct{})
	l.mu.Unlock()
	return l.next.Publish(ctx, msgs...)
}

// Declare implements [messaging.Declarer].
func (l *Log) Declare(ctx context.Context, subscriptions ...messaging.Subscription) error {
	for _, s := range subscriptions {
		if s.From == (messaging.Start{}) {
			if err := l.next.Declare(ctx, s); err != nil {
				return err
			}
			continue
		}
		if err := l.declare(ctx, s); err != nil {
			return fmt.Errorf("journal: group %s: %w", s.Group, err)
		}
	}
	return nil
}

// declare gives a new group its place in the log.
func (l *Log) declare(ctx context.Context, s messaging.Subscription) error {
	if err := s.Validate(); err != nil {
		return err
	}
	var before int64 // the last position that the group does not want
	switch s.From.Kind {
	case messaging.StartFirst:
	case messaging.StartOffset:
		before = s.From.Offset - 1
	case messaging.StartTime:
		if err := l.db.QueryRowContext(ctx, `SELECT COALESCE(MAX(position), 0) FROM messages WHERE at < $1`, s.From.Time.UnixMicro()).Scan(&before); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: Subscription.From.Kind is %d", messaging.ErrUnsupported, s.From.Kind)
	}
	_, err := l.db.ExecContext(ctx, `INSERT INTO readers (name, position) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING`, s.Group, before)
	return err
}

// poll is how often a reader looks without having been told: the guarantee behind the signal.
const poll = time.Second

// Subscribe implements [messaging.Subscriber]. A group that reads the log has one subscriber at a
// time; Concurrency is how many messages of different keys it handles at once.
func (l *Log) Subscribe(ctx context.Context, s messaging.Subscription, h messaging.Handler) error {
	if s.From == (messaging.Start{}) {
		return l.next.Subscribe(ctx, s, h)
	}
	if err := l.declare(ctx, s); err != nil {
		return fmt.Errorf("journal: group %s: %w", s.Group, err)
	}
	s = s.WithDefaults()
	for ctx.Err() == nil {
		l.mu.Lock()
		news := l.news
		l.mu.Unlock()
		n, err := l.read(ctx, s, h)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("journal: group %s: %w", s.Group, err)
		}
		if n > 0 {
			continue
		}
		select {
		case <-ctx.Done():
		case <-news:
		case <-time.After(poll):
		}
	}
	return nil
}

// read handles what comes next for a group and moves its place, and returns how far it got.
func (l *Log) read(ctx context.Context, s messaging.Subscription, h messaging.Handler) (n int64, err error) {
	var from int64
	if err := l.db.QueryRowContext(ctx, `SELECT position FROM readers WHERE name = $1`, s.Group).Scan(&from); err != nil {
		return 0, err
	}
	type entry struct {
		position int64
		text     string
	}
	page, err := platform.Collect(ctx, l.db, func(row interface{ Scan(dest ...any) error }) (e entry, err error) {
		err = row.Scan(&e.position, &e.text)
		return e, err
	}, `SELECT position, message FROM messages WHERE position > $1 ORDER BY position LIMIT $2`, from, s.Concurrency)
	if err != nil || len(page) == 0 {
		return 0, err
	}
	// One line per key, so that a key's messages stay in order; those without a key need none.
	lines := map[string][]*messaging.Delivery{}
	for _, e := range page {
		var m messaging.Message
		if err := json.Unmarshal([]byte(e.text), &m); err != nil {
			return 0, fmt.Errorf("position %d: %w", e.position, err)
		}
		if !matches(s, m.Topic) {
			continue
		}
		line := "key " + m.Key
		if m.Key == "" {
			line = "id " + m.ID
		}
		lines[line] = append(lines[line], &messaging.Delivery{Message: &m, Group: s.Group, Attempt: 1, Offset: e.position})
	}
	errs := make(chan error, len(lines))
	for _, line := range lines {
		go func() {
			var err error
			for _, d := range line {
				if err = l.deliver(ctx, s, h, d); err != nil {
					break
				}
			}
			errs <- err
		}()
	}
	for range lines {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		return 0, err
	}
	last := page[len(page)-1].position
	// What was handled is remembered although the reader is told to stop.
	_, err = l.db.ExecContext(context.WithoutCancel(ctx), `UPDATE readers SET position = $1 WHERE name = $2`, last, s.Group)
	return last - from, err
}

// Remove implements [platform.Remover] for groups that read the log: it forgets their place.
func (l *Log) Remove(ctx context.Context, group string) error {
	if _, err := l.db.ExecContext(ctx, `DELETE FROM readers WHERE name = $1`, group); err != nil {
		return fmt.Errorf("journal: group %s: %w", group, err)
	}
	return nil
}

// Queues implements [platform.Queues] where the next broker does. Groups that read the log have no queue.
func (l *Log) Queues(ctx context.Context, groups ...string) ([]platform.Queue, error) {
	if q, ok := l.next.(platform.Queues); ok {
		return q.Queues(ctx, groups...)
	}
	return nil, errors.ErrUnsupported
}

func matches(s messaging.Subscription, topic string) bool {
	for _, pattern := range s.Topics {
		if messaging.Match(pattern, topic) {
			return true
		}
	}
	return false
}

// deliver hands a message to its handler until that has decided.
func (l *Log) deliver(ctx context.Context, s messaging.Subscription, h messaging.Handler, d *messaging.Delivery) error {
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// A handler that has begun may finish.
		run, cancel := context.WithCancel(context.WithoutCancel(ctx))
		stop := context.AfterFunc(ctx, func() { time.AfterFunc(s.DrainTimeout, cancel) })
		decided := make(chan messaging.Decision, 1)
		go messaging.Invoke(run, h, d, func(err error) { decided <- messaging.Decide(run, err, d.Attempt, s) })
		decision := <-decided
		stop()
		cancel()
		switch decision.Action {
		case messaging.Retried:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(decision.Delay):
			}
			again := *d
			again.Attempt, again.Redelivered = decision.Attempt, true
			d = &again
		case messaging.DeadLettered:
			return l.dead(context.WithoutCancel(ctx), messaging.NewDeadLetter(d, decision))
		default: // acked, dropped
			return nil
		}
	}
}
