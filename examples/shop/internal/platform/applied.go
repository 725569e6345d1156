// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// What a service's consumers have applied is on record, each message of a key at the next position of that
// key, so that it can be compared with what was published: all of it, once, and in order. The inbox could
// not tell: its marks are there to refuse a second time, and have no order.
//
// The position also keeps two messages of one key from being applied at once, whatever the broker does: the
// second of them waits for the first one's transaction, and is then delivered again.
const appliedSchema = `
CREATE TABLE IF NOT EXISTS applied (
	consumer TEXT NOT NULL,
	message_key TEXT NOT NULL,
	position BIGINT NOT NULL,
	message_id TEXT NOT NULL,
	topic TEXT NOT NULL,
	replayed BIGINT NOT NULL,
	at BIGINT NOT NULL,
	PRIMARY KEY (consumer, message_key, position)
);
CREATE TABLE IF NOT EXISTS hears (
	consumer TEXT NOT NULL,
	topic TEXT NOT NULL,
	since BIGINT NOT NULL,
	PRIMARY KEY (consumer, topic)
);`

const (
	// PublishedFor is how long what a service has published stays in its outbox's archive.
	PublishedFor = 7 * 24 * time.Hour
	// appliedFor is how long what was applied is on record: as long as the inbox's marks, and much longer than
	// what it is compared with.
	appliedFor = 30 * 24 * time.Hour
	// forgetEvery is how often both are looked through.
	forgetEvery = time.Hour
)

// replayKey marks the context of what an operator has replayed: it comes when it comes, and not in order.
type replayKey struct{}

// Applied puts on record that a message was applied, in the transaction that did it. [Bus.On] does so by
// itself.
func (b *Bus) Applied(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	replayed := 0
	if ctx.Value(replayKey{}) != nil {
		replayed = 1
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO applied (consumer, message_key, position, message_id, topic, replayed, at)
		SELECT $1, $2, COALESCE(MAX(position), 0) + 1, $3, $4, CAST($5 AS BIGINT), CAST($6 AS BIGINT) FROM applied WHERE consumer = $1 AND message_key = $2`,
		d.Group, d.Message.Key, d.Message.ID, d.Message.Topic, replayed, time.Now().UnixMicro()); err != nil {
		return fmt.Errorf("%s: put on record what was applied: %w", b.service, err)
	}
	return nil
}

// skew is how much the clocks of two services may differ.
const skew = time.Minute

// hear puts on record since when the service's groups hear their topics: what was told before a new version of the
// service wanted to know is not to be expected here. A new database is to have everything from the beginning, and so is
// a group of before there was this record.
func (b *Bus) hear(ctx context.Context, consumers []Consumer) error {
	if err := Exclusively(ctx, b.db, func(tx *sql.Tx) error {
		var used bool
		if err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM applied)`).Scan(&used); err != nil {
			return err
		}
		var now int64
		if used {
			now = time.Now().Add(skew).UnixMicro()
		}
		for _, c := range consumers {
			for _, topic := range c.Subscription.Topics {
				if _, err := tx.ExecContext(ctx, `INSERT INTO hears (consumer, topic, since)
					SELECT $1, $2, CASE WHEN EXISTS (SELECT 1 FROM applied WHERE consumer = $1 AND topic = $2) THEN 0 ELSE CAST($3 AS BIGINT) END
					WHERE NOT EXISTS (SELECT 1 FROM hears WHERE consumer = $1 AND topic = $2)`, c.Subscription.Group, topic, now); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("%s: put on record since when topics are heard: %w", b.service, err)
	}
	return nil
}

// forget takes what is too old from the record until ctx ends.
func (b *Bus) forget(ctx context.Context) error {
	tick := time.NewTicker(forgetEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := b.prune(ctx, PublishedFor, appliedFor); err != nil && ctx.Err() == nil {
			b.log.WarnContext(ctx, "old messages stay on record", "error", err)
		}
	}
}

func (b *Bus) prune(ctx context.Context, published, applied time.Duration) error {
	if _, err := b.outbox.Prune(ctx, published); err != nil {
		return err
	}
	// No index leads there: one look at all rows in an hour is cheaper than a second index on each.
	_, err := b.db.ExecContext(ctx, `DELETE FROM applied WHERE at < $1`, time.Now().Add(-applied).UnixMicro())
	return err
}
