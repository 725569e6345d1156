// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/dovetail-go/dovetail/messaging"
)

// Config configures a [Log]. The zero value is a sound default.
type Config struct {
	// MaxData is the largest Event.Data that Append takes, in bytes. Zero means 1 MiB,
	// negative no limit.
	MaxData int
	// Page is how many events are read at a time. Zero means 500.
	Page int
	// Poll is the longest time after which a reader that waits for new events looks again
	// without being woken. Zero means 500 ms.
	Poll time.Duration
	// Inject writes the metadata of ctx into the header of an event that is being
	// appended: trace context, correlation, actor. Nil injects nothing.
	Inject func(ctx context.Context, h messaging.Header)
	// Within is called in the transaction of each Append after the events are written; its
	// error is Append's. It is the place for the bridge to the outbox ([Publish]). Nil
	// means nothing.
	Within func(ctx context.Context, tx Tx, stream string, events []Event) error
	// Notifier wakes readers in other processes. Nil leaves those to their polling.
	Notifier Notifier
	// Hooks are for metrics and traces.
	Hooks Hooks
}

const (
	defaultMaxData = 1 << 20
	defaultPage    = 500
	defaultPoll    = 500 * time.Millisecond
)

// Notifier passes wake-ups between processes. It only makes readers quicker: it may lose
// and repeat wake-ups. pgxkit's Listener is one.
type Notifier interface {
	// Notify tells the subscribers in all processes that there may be new events. It
	// never blocks, and many calls within a short time may be passed on as one. It must
	// not take part in any transaction.
	Notify()
	// Subscribe has wake called for the notifications that arrive, until cancel is
	// called. wake never blocks.
	Subscribe(wake func()) (cancel func())
}

// Log is a set of streams and the order of all their events. It may be used from many
// goroutines.
type Log struct {
	store Store
	cfg   Config

	mu      sync.Mutex
	readers map[chan struct{}]struct{}
}

// New returns a log on a store.
func New(store Store, cfg Config) (*Log, error) {
	if store == nil {
		return nil, errors.New("eventsource: Store is nil, want a store such as eventsourcesql's")
	}
	if cfg.MaxData == 0 {
		cfg.MaxData = defaultMaxData
	}
	if cfg.Page < 0 {
		return nil, fmt.Errorf("eventsource: Config.Page is %d, want 0 or more", cfg.Page)
	}
	if cfg.Page == 0 {
		cfg.Page = defaultPage
	}
	if cfg.Poll < 0 {
		return nil, fmt.Errorf("eventsource: Config.Poll is %v, want 0 or more", cfg.Poll)
	}
	if cfg.Poll == 0 {
		cfg.Poll = defaultPoll
	}
	return &Log{store: store, cfg: cfg, readers: make(map[chan struct{}]struct{})}, nil
}

// Append adds events to a stream in the caller's transaction: they happened if and only if
// it commits. It sets an empty ID and a zero Time in the slice that it is given, and
// returns a [*VersionError] if the stream is not as want says or another transaction was
// first; then the caller rolls back.
//
// An event that cannot be stored is an error that names its position, field and value; then
// nothing is written, and the transaction is still good. No events are no error.
//
// Call [Log.Wake] after the commit.
func (l *Log) Append(ctx context.Context, tx Tx, stream string, want Expect, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	if tx == nil {
		return errors.New("eventsource: Tx is nil, want the transaction of the change")
	}
	if err := checkText("stream", stream); err != nil {
		return fmt.Errorf("eventsource: %w", err)
	}
	if want.kind == expectAt && want.version < 0 {
		return fmt.Errorf("eventsource: expected version is %d, want 0 or more", want.version)
	}
	start := time.Now()
	for i := range events {
		e := &events[i]
		if e.ID == "" {
			e.ID = messaging.NewID()
		}
		if e.Time.IsZero() {
			e.Time = start
		}
		if l.cfg.Inject != nil {
			// A copy, because the caller may share one header among events.
			e.Header = maps.Clone(e.Header)
			if e.Header == nil {
				e.Header = make(messaging.Header)
			}
			l.cfg.Inject(ctx, e.Header)
		}
		if err := l.check(e); err != nil {
			return fmt.Errorf("eventsource: event %d: %w", i, err)
		}
	}
	if err := l.store.Append(ctx, tx, stream, want, events); err != nil {
		if errors.Is(err, ErrVersion) {
			if l.cfg.Hooks.Conflicted != nil {
				l.cfg.Hooks.Conflicted(Conflicted{Stream: stream, Want: want})
			}
			return err
		}
		return fmt.Errorf("eventsource: append to %q: %w", stream, err)
	}
	if l.cfg.Within != nil {
		if err := l.cfg.Within(ctx, tx, stream, events); err != nil {
			return fmt.Errorf("eventsource: within the append to %q: %w", stream, err)
		}
	}
	if l.cfg.Hooks.Appended != nil {
		l.cfg.Hooks.Appended(Appended{Stream: stream, Events: events, Took: time.Since(start)})
	}
	return nil
}

func (l *Log) check(e *Event) error {
	if err := checkText("Event.ID", e.ID); err != nil {
		return err
	}
	if err := checkText("Event.Type", e.Type); err != nil {
		return err
	}
	if l.cfg.MaxData >= 0 && len(e.Data) > l.cfg.MaxData {
		return fmt.Errorf("Event.Data has %d bytes, want at most Config.MaxData, which is %d", len(e.Data), l.cfg.MaxData)
	}
	// Stores keep the time as nanoseconds since 1970 in 64 bits.
	if y := e.Time.UTC().Year(); y < 1678 || y > 2261 {
		return fmt.Errorf("Event.Time is in the year %d, want 1678 to 2261", y)
	}
	for name, value := range e.Header {
		if err := checkText("Event.Header name", name); err != nil {
			return err
		}
		if !utf8.ValidString(value) {
			return fmt.Errorf("Event.Header[%q] is %.40q, want UTF-8 text", name, value)
		}
	}
	return nil
}

// Read yields the events of a stream whose version is larger than after, in order, until
// the end of what is there. Its error is the last thing it yields.
//
// No connection is held while an event is being handled.
func (l *Log) Read(ctx context.Context, stream string, after int64) iter.Seq2[Recorded, error] {
	return func(yield func(Recorded, error) bool) {
		for {
			events, err := l.store.Read(ctx, stream, after, l.cfg.Page)
			if err != nil {
				yield(Recorded{}, fmt.Errorf("eventsource: read %q: %w", stream, err))
				return
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
				after = e.Version
			}
			if len(events) < l.cfg.Page {
				return
			}
		}
	}
}

// All yields the events of all streams after a cursor that the filter selects, in the order
// of the log, up to the horizon. Its error is the last thing it yields.
func (l *Log) All(ctx context.Context, after Cursor, f Filter) iter.Seq2[Recorded, error] {
	return func(yield func(Recorded, error) bool) {
		for {
			page, err := l.page(ctx, after, f, l.cfg.Page)
			if err != nil {
				yield(Recorded{}, err)
				return
			}
			for _, e := range page.Events {
				if !yield(e, nil) {
					return
				}
			}
			after = page.Next
			if !page.More {
				return
			}
		}
	}
}

// Subscribe yields what All does, and then each event as it comes, until ctx ends or the
// loop is left. It looks again when it is woken and at least every Config.Poll. A failed
// look is yielded as an error; a loop that goes on has it tried again after a pause.
//
// It remembers nothing: keep the Cursor of what was handled, or use a [Projector], which
// does it in one transaction with the effect.
func (l *Log) Subscribe(ctx context.Context, after Cursor, f Filter) iter.Seq2[Recorded, error] {
	return func(yield func(Recorded, error) bool) {
		wakes, cancel := l.subscribe()
		defer cancel()
		wait := waiter{poll: l.cfg.Poll}
		for ctx.Err() == nil {
			page, err := l.page(ctx, after, f, l.cfg.Page)
			if err != nil {
				if ctx.Err() != nil || !yield(Recorded{}, err) {
					return
				}
				wait.sleep(ctx, nil, false)
				continue
			}
			for _, e := range page.Events {
				if ctx.Err() != nil || !yield(e, nil) {
					return
				}
			}
			if page.Next > after {
				wait.reset()
			}
			after = page.Next
			if !page.More {
				wait.sleep(ctx, wakes, page.Waiting)
			}
		}
	}
}

func (l *Log) page(ctx context.Context, after Cursor, f Filter, limit int) (Page, error) {
	page, err := l.store.ReadAll(ctx, after, f, limit)
	if err != nil {
		return Page{}, fmt.Errorf("eventsource: read all after %d: %w", after, err)
	}
	return page, nil
}

// waiter is the pause between two looks.
type waiter struct {
	poll, next time.Duration
}

// soon is the first pause where an open append is expected to end.
const soon = 2 * time.Millisecond

func (w *waiter) reset() { w.next = 0 }

// sleep waits to be woken, at most until the next poll. While appends are open the pause
// begins short, because no wake-up tells of an append that is rolled back.
func (w *waiter) sleep(ctx context.Context, wakes <-chan struct{}, open bool) {
	d := w.poll
	if open {
		w.next = max(soon, 2*w.next)
		d = min(w.next, w.poll)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-wakes:
		w.reset()
	case <-t.C:
	}
}

// Wake tells the readers that there may be new events: those of this process at once,
// others through the Notifier. Call it after the commit; it never blocks. What a lost
// Wake was about is found by polling.
func (l *Log) Wake() {
	l.wakeHere()
	if l.cfg.Notifier != nil {
		l.cfg.Notifier.Notify()
	}
}

func (l *Log) wakeHere() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.readers {
		signal(c)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // one is pending already
	}
}

// subscribe returns a channel that receives after a Wake, from here or elsewhere.
func (l *Log) subscribe() (wakes <-chan struct{}, cancel func()) {
	c := make(chan struct{}, 1)
	l.mu.Lock()
	l.readers[c] = struct{}{}
	l.mu.Unlock()
	unsubscribe := func() {}
	if l.cfg.Notifier != nil {
		unsubscribe = l.cfg.Notifier.Subscribe(func() { signal(c) })
	}
	return c, func() {
		unsubscribe()
		l.mu.Lock()
		delete(l.readers, c)
		l.mu.Unlock()
	}
}

// End returns the version and the cursor of a stream's last committed event, zeros if there is
// none. After one's own commit the cursor is what to give to [WaitFor].
func (l *Log) End(ctx context.Context, stream string) (version int64, at Cursor, err error) {
	version, at, err = l.store.End(ctx, stream)
	if err != nil {
		return 0, 0, fmt.Errorf("eventsource: end of %q: %w", stream, err)
	}
	return version, at, nil
}

// Horizon tells how far readers can see, and how long they have been waiting for an open
// append.
func (l *Log) Horizon(ctx context.Context) (Horizon, error) {
	h, err := l.store.Horizon(ctx)
	if err != nil {
		return Horizon{}, fmt.Errorf("eventsource: horizon: %w", err)
	}
	return h, nil
}
