// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dovetail-go/dovetail/messaging"
)

// News is how an instance of a service tells the others at once that something has happened to what a key names, for
// those who watch that there. It promises nothing: what is told while PostgreSQL is away, or nobody listens, is
// lost. So who watches also looks by itself now and then. A nil News is that of a service with one instance.
type News struct {
	db      *sql.DB
	conn    *pgx.ConnConfig
	channel string
	// id marks what this instance tells, which it knows already.
	id  string
	log *slog.Logger

	mu   sync.Mutex
	told map[string]bool // and not sent yet
	some chan struct{}   // has something in it when told has
}

// NewNews returns the news on a channel of PostgreSQL's NOTIFY, sent through db and heard on one more connection to dsn.
func NewNews(db *sql.DB, dsn, channel string, log *slog.Logger) (*News, error) {
	conn, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	if channel == "" || len(channel) > 63 {
		return nil, fmt.Errorf("news: channel is %q, want 1 to 63 bytes", channel)
	}
	conn.RuntimeParams["application_name"] = channel
	return &News{db: db, conn: conn, channel: channel, id: messaging.NewID(), log: log, told: map[string]bool{}, some: make(chan struct{}, 1)}, nil
}

// Tell tells of a key, which has no line break. It does not wait: call it after the commit of what has happened.
func (n *News) Tell(key string) {
	if n == nil {
		return
	}
	n.mu.Lock()
	if len(n.told) < mostTold {
		n.told[key] = true
	}
	n.mu.Unlock()
	select {
	case n.some <- struct{}{}:
	default:
	}
}

// Run sends what is told here and calls heard with what is told elsewhere, until ctx ends.
func (n *News) Run(ctx context.Context, heard func(key string)) error {
	if n == nil {
		<-ctx.Done()
		return nil
	}
	return RunAll(ctx, n.send, func(ctx context.Context) error { return n.listen(ctx, heard) })
}

const (
	// mostTold bounds what waits to be sent.
	mostTold = 10_000
	// mostNews is less than what a notification may carry.
	mostNews = 7900
	// newsTimeout bounds a statement of ours.
	newsTimeout = 5 * time.Second
	// newsCheck is how long nothing may be heard before the connection is tried: the network may have swallowed it.
	newsCheck = 30 * time.Second
	// shortestAway and longestAway bound how long to be away from a server that has failed.
	shortestAway, longestAway = 100 * time.Millisecond, 10 * time.Second
)

// send sends what was told, in one notification whatever was told since the last: those who change much are
// not held up by each other's. Sent within the transaction of the change they would be, for PostgreSQL holds a lock over the
// whole server from a NOTIFY to the end of its commit.
func (n *News) send(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.some:
		}
		n.mu.Lock()
		keys := slices.Collect(maps.Keys(n.told))
		clear(n.told)
		n.mu.Unlock()
		for len(keys) > 0 {
			message := n.id
			for len(keys) > 0 && (message == n.id || len(message)+1+len(keys[0]) <= mostNews) {
				message, keys = message+"\n"+keys[0], keys[1:]
			}
			if err := n.notify(ctx, message); err != nil && ctx.Err() == nil {
				n.log.DebugContext(ctx, "the other instances are not told", "channel", n.channel, "error", err)
				keys = nil // nor of these: who watches will look
				away(ctx, shortestAway)
			}
		}
	}
}

// notify does not wait for the disk: there is nothing to lose.
func (n *News) notify(ctx context.Context, message string) error {
	ctx, cancel := context.WithTimeout(ctx, newsTimeout)
	defer cancel()
	_, err := n.db.ExecContext(ctx, `SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)`, n.channel, message)
	return err
}

// listen hears, on a new connection whenever the last has failed.
func (n *News) listen(ctx context.Context, heard func(key string)) error {
	for delay := shortestAway; ctx.Err() == nil; delay = min(2*delay, longestAway) {
		err := n.hear(ctx, func(key string) {
			delay = shortestAway
			heard(key)
		})
		if ctx.Err() == nil {
			n.log.WarnContext(ctx, "what other instances tell is not heard; streams are behind by a poll", "channel", n.channel, "error", err)
			away(ctx, delay/2+rand.N(delay/2))
		}
	}
	return nil
}

func (n *News) hear(ctx context.Context, heard func(key string)) error {
	dial, cancel := context.WithTimeout(ctx, newsTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(dial, n.conn.Copy())
	if err != nil {
		return err
	}
	defer func() {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(bye)
	}()
	if _, err := conn.Exec(dial, "LISTEN "+pgx.Identifier{n.channel}.Sanitize()); err != nil {
		return err
	}
	for {
		wait, cancel := context.WithTimeout(ctx, newsCheck)
		notification, err := conn.WaitForNotification(wait)
		silent := wait.Err() != nil
		cancel()
		if err == nil {
			keys := strings.Split(notification.Payload, "\n")
			if keys[0] == n.id {
				continue
			}
			for _, key := range keys[1:] {
				heard(key)
			}
			continue
		}
		if !silent || ctx.Err() != nil || conn.IsClosed() {
			return err
		}
		try, cancel := context.WithTimeout(ctx, newsTimeout)
		_, err = conn.Exec(try, "SELECT 1")
		cancel()
		if err != nil {
			return err
		}
	}
}

// away waits, but not longer than ctx lasts.
func away(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
