// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// ErrNotParked means that no parked message has the given ID.
var ErrNotParked = errors.New("outbox: no such parked message")

// Tx is the caller's transaction: a [*sql.Tx], or whatever else can execute a statement
// in one. A [*sql.DB] fits too, for a message without a change to go with it.
type Tx interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Config configures an [Outbox]. The zero value is a sound default.
type Config struct {
	// MaxBody is the largest body that Enqueue takes, in bytes. Zero means 1 MiB, negative
	// no limit. A relay holds up to a few hundred messages per shard in memory.
	MaxBody int
	// Inject writes the trace context of ctx into the headers of a message that is being
	// enqueued, such as with OpenTelemetry's propagator. Nil injects nothing.
	Inject func(ctx context.Context, h messaging.Header)
	// Notifier wakes relays in other processes. Nil leaves those to their polling.
	Notifier Notifier
}

const defaultMaxBody = 1 << 20

// Notifier passes wake-ups between processes. It only makes relays quicker: it may lose
// and repeat wake-ups.
type Notifier interface {
	// Notify tells the subscribers in all other processes that there may be new messages. It
	// never blocks, and many calls within a short time may be passed on as one. It must
	// not take part in any transaction.
	Notify()
	// Subscribe has wake called for the notifications that arrive, until cancel is
	// called. wake never blocks.
	Subscribe(wake func()) (cancel func())
}

// Outbox writes messages into a [Store] in the caller's transaction, for a [Relay] to
// publish, and lets an operator see and settle what could not be published. It may be
// used from many goroutines.
type Outbox struct {
	store Store
	cfg   Config

	mu     sync.Mutex
	relays map[chan struct{}]struct{}
}

// New returns an outbox on a store.
func New(store Store, cfg Config) (*Outbox, error) {
	if store == nil {
		return nil, errors.New("outbox: Store is nil, want a store such as outboxsql's")
	}
	if n := store.Shards(); n < 1 {
		return nil, fmt.Errorf("outbox: Store has %d shards, want at least 1", n)
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = defaultMaxBody
	}
	return &Outbox{store: store, cfg: cfg, relays: make(map[chan struct{}]struct{})}, nil
}

// Enqueue stores msgs in the caller's transaction: they are published if and only if it
// commits. It sets an empty ID to [messaging.NewID] and a zero Time to now, in the
// messages themselves. Messages of one Key are published in the order of the arguments,
// and in the order of the commits if Enqueue follows the lock on what the key stands
// for (see the package comment).
//
// A message that no broker would take is an error that names its position, field and
// value; then nothing is written, and the transaction is still good.
//
// Call [Outbox.Wake] after the commit.
func (o *Outbox) Enqueue(ctx context.Context, tx Tx, msgs ...*messaging.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	if tx == nil {
		return errors.New("outbox: Tx is nil, want the transaction of the change")
	}
	rows := make([]Row, len(msgs))
	for i, m := range msgs {
		if m != nil {
			if m.ID == "" {
				m.ID = messaging.NewID()
			}
			if m.Time.IsZero() {
				m.Time = time.Now()
			}
		}
		if err := o.check(m); err != nil {
			return fmt.Errorf("outbox: message %d: %w", i, err)
		}
		if o.cfg.Inject != nil {
			// A copy, because the caller may share one header among messages.
			m = &messaging.Message{ID: m.ID, Topic: m.Topic, Key: m.Key, Type: m.Type, Time: m.Time, Header: maps.Clone(m.Header), Body: m.Body}
			if m.Header == nil {
				m.Header = make(messaging.Header)
			}
			o.cfg.Inject(ctx, m.Header)
		}
		rows[i] = Row{Shard: shardOf(m, o.store.Shards()), Message: m}
	}
	if err := o.store.Insert(ctx, tx, rows); err != nil {
		return fmt.Errorf("outbox: enqueue: %w", err)
	}
	return nil
}

func (o *Outbox) check(m *messaging.Message) error {
	if err := m.Validate(); err != nil {
		return err
	}
	if o.cfg.MaxBody >= 0 && len(m.Body) > o.cfg.MaxBody {
		return fmt.Errorf("Message.Body has %d bytes, want at most Config.MaxBody, which is %d", len(m.Body), o.cfg.MaxBody)
	}
	// Stores keep the time as nanoseconds since 1970 in 64 bits.
	if y := m.Time.UTC().Year(); y < 1678 || y > 2261 {
		return fmt.Errorf("Message.Time is in the year %d, want 1678 to 2261", y)
	}
	return nil
}

// shardOf spreads keys over shards. It never changes: two versions of a service that
// disagreed would publish one key from two shards, in no order.
func shardOf(m *messaging.Message, shards int) int {
	key := m.Key
	if key == "" {
		key = m.ID // no order to keep, so anywhere
	}
	f := fnv.New64a()
	f.Write([]byte(key))
	// FNV alone puts short keys that differ in a digit into few shards. This is the
	// finalizer of MurmurHash3 (Appleby, public domain).
	h := f.Sum64()
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return int(h % uint64(shards))
}

// Wake tells the relays that there may be new messages: those of this process at once,
// others through the Notifier. Call it after the commit; it never blocks. A message whose
// Wake is lost is found by polling.
func (o *Outbox) Wake() {
	o.wakeHere()
	if o.cfg.Notifier != nil {
		o.cfg.Notifier.Notify()
	}
}

func (o *Outbox) wakeHere() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.relays {
		select {
		case c <- struct{}{}:
		default: // one is pending already
		}
	}
}

// subscribe returns a channel that receives after a Wake, from here or elsewhere.
func (o *Outbox) subscribe() (wakes <-chan struct{}, cancel func()) {
	c := make(chan struct{}, 1)
	o.mu.Lock()
	o.relays[c] = struct{}{}
	o.mu.Unlock()
	unsubscribe := func() {}
	if o.cfg.Notifier != nil {
		unsubscribe = o.cfg.Notifier.Subscribe(func() {
			select {
			case c <- struct{}{}:
			default:
			}
		})
	}
	return c, func() {
		unsubscribe()
		o.mu.Lock()
		delete(o.relays, c)
		o.mu.Unlock()
	}
}

// maxListed bounds what Parked and Discarded return.
const maxListed = 1000

// Parked returns the messages that were set aside because they could not be published,
// the oldest first, at most 1,000. Each waits for [Outbox.Retry] or [Outbox.Discard].
func (o *Outbox) Parked(ctx context.Context) ([]Parked, error) {
	list, err := o.store.Parked(ctx, false, maxListed)
	if err != nil {
		return nil, fmt.Errorf("outbox: list parked messages: %w", err)
	}
	return list, nil
}

// Retry puts a parked message back to its place before the later ones of its key, and
// wakes the relays. If the key was freed, later messages have been published already, so
// this one comes out of order. It returns [ErrNotParked] if there is none.
func (o *Outbox) Retry(ctx context.Context, id string) error {
	if id == "" { // which means all to a store
		return fmt.Errorf("%w: %q", ErrNotParked, id)
	}
	n, err := o.store.Retry(ctx, id)
	if err != nil {
		return fmt.Errorf("outbox: retry %q: %w", id, err)
	}
	if n == 0 {
		return fmt.Errorf("%w: %q", ErrNotParked, id)
	}
	o.Wake()
	return nil
}

// RetryAll puts all parked messages back and returns how many: for use after the cause
// of a mass failure is mended.
func (o *Outbox) RetryAll(ctx context.Context) (int, error) {
	n, err := o.store.Retry(ctx, "")
	if err != nil {
		return 0, fmt.Errorf("outbox: retry all: %w", err)
	}
	if n > 0 {
		o.Wake()
	}
	return n, nil
}

// Discard gives a parked message up: it will never be published, and its key goes on. The
// message stays on record with the reason, which must not be empty, until
// [Outbox.Prune]. It returns [ErrNotParked] if there is none.
func (o *Outbox) Discard(ctx context.Context, id, reason string) error {
	if reason == "" {
		return errors.New("outbox: reason is empty, want why the message is discarded")
	}
	n, err := o.store.Discard(ctx, id, reason)
	if err != nil {
		return fmt.Errorf("outbox: discard %q: %w", id, err)
	}
	if n == 0 {
		return fmt.Errorf("%w: %q", ErrNotParked, id)
	}
	o.Wake()
	return nil
}

// Discarded returns the messages given up by [Outbox.Discard], the oldest first, at most
// 1,000.
func (o *Outbox) Discarded(ctx context.Context) ([]Parked, error) {
	list, err := o.store.Parked(ctx, true, maxListed)
	if err != nil {
		return nil, fmt.Errorf("outbox: list discarded messages: %w", err)
	}
	return list, nil
}

// Prune forgets the messages that were discarded longer than age ago, and those published
// longer than that ago where the store keeps them, and returns how many. Parked messages are
// never forgotten. Nothing calls it by itself.
func (o *Outbox) Prune(ctx context.Context, age time.Duration) (int, error) {
	if age < 0 {
		return 0, fmt.Errorf("outbox: age is %v, want 0 or more", age)
	}
	n, err := o.store.Prune(ctx, age)
	if err != nil {
		return 0, fmt.Errorf("outbox: prune: %w", err)
	}
	return n, nil
}

// Stats returns what waits in the outbox. It costs a count of the rows, up to a million.
func (o *Outbox) Stats(ctx context.Context) (Stats, error) {
	s, err := o.store.Stats(ctx)
	if err != nil {
		return Stats{}, fmt.Errorf("outbox: stats: %w", err)
	}
	return s, nil
}
