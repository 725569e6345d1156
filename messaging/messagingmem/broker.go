// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingmem

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// Config configures a Broker. The zero value is a broker that confirms a message when it
// is queued and keeps dead letters in memory.
type Config struct {
	// ConfirmOnAck makes Publish return only when every bound group has acknowledged,
	// dead-lettered or dropped the message, so that whoever publishes again after a crash,
	// such as an outbox relay, loses nothing with this process. Publishing an ID again
	// that is not finished yet then joins the message that is there, instead of adding
	// another. False confirms as soon as the message is queued in memory.
	ConfirmOnAck bool
	// DeadLetter puts a dead letter away, durably if that is wanted. The message is done
	// only when it has returned nil; until then it stays and is tried again on the
	// schedule of its subscription. Its context ends after 30 seconds. Nil keeps dead
	// letters in memory, for DeadLetters, Replay and Discard.
	DeadLetter func(ctx context.Context, dl messaging.DeadLetter) error
	// MaxDeadLetters bounds the dead letters that a group keeps in memory. When it is
	// reached, further ones stay in the group's queue and are tried again. Zero means 10,000.
	MaxDeadLetters int
	// Capacity bounds the messages that a group holds, in handlers and waiting. While one
	// of a message's groups is full, Publish blocks until its context ends. Zero means 10,000.
	Capacity int
	// Retain is how many messages, of all topics together, are remembered for groups that
	// begin in the past (Subscription.From). Zero means none: such groups are refused with
	// messaging.ErrUnsupported.
	Retain int
	// DropUnroutable confirms messages for topics that no group is bound to, and forgets
	// them. False answers messaging.ErrUnroutable.
	DropUnroutable bool
	// Hooks tell what happens.
	Hooks messaging.Hooks
	// Logger is told of panics, dead letters, and dead letters that could not be put away.
	// Nil means slog.Default() at the time.
	Logger *slog.Logger
}

const (
	defaultCapacity = 10_000
	// deadLetterTimeout bounds one call of Config.DeadLetter, so that a drain ends.
	deadLetterTimeout = 30 * time.Second
	// maxRoutes bounds the cache from topics to groups: topics may come from outside.
	maxRoutes = 4096
)

// Broker is a message broker inside this process. It is a [messaging.Publisher],
// [messaging.Subscriber] and [messaging.Declarer], for use by many goroutines.
type Broker struct {
	cfg    Config
	closed chan struct{} // closed by Close

	// One lock for everything: a message is taken by all its groups at once or by none,
	// in one order. It is held for a few list operations at a time, never over a call of
	// the user's code.
	mu      sync.Mutex
	groups  map[string]*group
	routes  map[string][]*group // the groups of a topic, by name; a cache
	flights map[string]*flight  // by message ID, if ConfirmOnAck
	log     []retained          // a ring of the last Retain messages
	taken   int64               // how many messages were ever taken; the offset of the last one
}

// retained is a message in the log.
type retained struct {
	msg    *messaging.Message
	offset int64
	at     time.Time
}

// flight is a message that was published and is not finished by all its groups.
type flight struct {
	left int           // groups that have not finished; guarded by Broker.mu
	done chan struct{} // closed at zero
}

// New returns an empty Broker. It needs no closing to be collected, only its subscribers
// to be stopped.
func New(cfg Config) (*Broker, error) {
	for _, f := range [...]struct {
		name  string
		value int
	}{{"MaxDeadLetters", cfg.MaxDeadLetters}, {"Capacity", cfg.Capacity}, {"Retain", cfg.Retain}} {
		if f.value < 0 {
			return nil, fmt.Errorf("messagingmem: Config.%s is %d, want 0 or more", f.name, f.value)
		}
	}
	cfg.MaxDeadLetters = cmp.Or(cfg.MaxDeadLetters, defaultCapacity)
	cfg.Capacity = cmp.Or(cfg.Capacity, defaultCapacity)
	return &Broker{
		cfg:     cfg,
		closed:  make(chan struct{}),
		groups:  make(map[string]*group),
		routes:  make(map[string][]*group),
		flights: make(map[string]*flight),
	}, nil
}

// Publish hands msgs to every group bound to their topics; see [messaging.Publisher].
//
// Each message is taken by all its groups or by none. If a group is full, Publish waits
// for room, and gives up with [messaging.ErrBlocked] when ctx ends. With
// Config.ConfirmOnAck it then waits for the groups to finish the messages; if ctx ends
// before that, the error is [messaging.ErrUnknown] and the messages stay.
func (b *Broker) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	start := time.Now()
	if err := messaging.Invalid(msgs); err != nil {
		b.published(start, msgs, err)
		return err
	}
	var failed []messaging.Failed
	var flights []*flight
	if b.cfg.ConfirmOnAck {
		flights = make([]*flight, len(msgs))
	}
	for i, m := range msgs {
		f, err := b.take(ctx, m)
		if err != nil {
			failed = append(failed, messaging.Failed{Index: i, ID: m.ID, Err: err})
		} else if flights != nil {
			flights[i] = f
		}
	}
	failed = b.await(ctx, msgs, flights, failed)
	var err error
	if len(failed) > 0 {
		err = &messaging.PublishError{Failed: failed}
	}
	b.published(start, msgs, err)
	return err
}

// take puts m into the queues of its groups, waiting for room. The flight is nil if there
// is nothing more to wait for.
func (b *Broker) take(ctx context.Context, m *messaging.Message) (*flight, error) {
	if ctx.Err() != nil {
		return nil, blocked(ctx)
	}
	m = m.Clone() // the publisher may reuse its message
	b.mu.Lock()
	defer b.mu.Unlock()
	// The group that woke us. Whether we use its room or not, there may be some left.
	var woken *group
	defer func() { woken.wakePublisher() }()
	for {
		if b.isClosed() {
			return nil, fmt.Errorf("%w: %w", messaging.ErrRefused, messaging.ErrClosed)
		}
		if f := b.flights[m.ID]; f != nil {
			return f, nil
		}
		groups := b.route(m.Topic)
		if len(groups) == 0 {
			if b.cfg.DropUnroutable {
				return nil, nil
			}
			return nil, fmt.Errorf("%w: %q", messaging.ErrUnroutable, m.Topic)
		}
		full := slices.IndexFunc(groups, func(g *group) bool { return g.held >= b.cfg.Capacity })
		if full < 0 {
			return b.enqueue(m, groups), nil
		}
		woken.wakePublisher()
		woken = groups[full]
		if err := woken.waitRoom(ctx); err != nil {
			return nil, err
		}
	}
}

func blocked(ctx context.Context) error {
	return fmt.Errorf("%w: %w", messaging.ErrBlocked, context.Cause(ctx))
}

// enqueue gives m to groups. The broker is locked.
func (b *Broker) enqueue(m *messaging.Message, groups []*group) *flight {
	var f *flight
	if b.cfg.ConfirmOnAck {
		f = &flight{left: len(groups), done: make(chan struct{})}
		b.flights[m.ID] = f
	}
	b.taken++
	offset := int64(0)
	if b.cfg.Retain > 0 {
		offset = b.taken
		b.retain(retained{m, offset, time.Now()})
	}
	for _, g := range groups {
		g.add(&entry{msg: m, offset: offset, attempt: 1, flight: f})
	}
	return f
}

// land tells the publisher of e, if it waits, that one of the groups is done with it. The
// broker is locked.
func (b *Broker) land(e *entry) {
	f := e.flight
	if f == nil {
		return
	}
	if f.left--; f.left > 0 {
		return
	}
	close(f.done)
	if b.flights[e.msg.ID] == f {
		delete(b.flights, e.msg.ID)
	}
}

// await waits for flights, adds those that ctx or Close cut short to failed, and returns
// it in the order of msgs.
func (b *Broker) await(ctx context.Context, msgs []*messaging.Message, flights []*flight, failed []messaging.Failed) []messaging.Failed {
	taken := len(failed)
	for i, f := range flights {
		if f == nil {
			continue
		}
		var cause error
		select {
		case <-f.done:
			continue
		default:
		}
		select {
		case <-f.done:
			continue
		case <-ctx.Done():
			cause = context.Cause(ctx)
		case <-b.closed:
			cause = messaging.ErrClosed
		}
		failed = append(failed, messaging.Failed{Index: i, ID: msgs[i].ID, Err: fmt.Errorf("%w: %w", messaging.ErrUnknown, cause)})
	}
	if taken > 0 {
		slices.SortFunc(failed, func(x, y messaging.Failed) int { return cmp.Compare(x.Index, y.Index) })
	}
	return failed
}

// published calls the hook for every message of a Publish that returns err.
func (b *Broker) published(start time.Time, msgs []*messaging.Message, err error) {
	hook := b.cfg.Hooks.Published
	if hook == nil {
		return
	}
	var failed []messaging.Failed
	if pe := (*messaging.PublishError)(nil); errors.As(err, &pe) {
		failed = pe.Failed
	}
	took := time.Since(start)
	for i, m := range msgs {
		p := messaging.Published{Message: m, Took: took}
		if len(failed) > 0 && failed[0].Index == i {
			p.Err, failed = failed[0].Err, failed[1:]
		}
		if m != nil {
			hook(p)
		}
	}
}

// route returns the groups bound to topic, by name. The broker is locked.
func (b *Broker) route(topic string) []*group {
	if groups, ok := b.routes[topic]; ok {
		return groups
	}
	var groups []*group
	for _, g := range b.groups {
		if g.matches(topic) {
			groups = append(groups, g)
		}
	}
	slices.SortFunc(groups, func(x, y *group) int { return cmp.Compare(x.name, y.name) })
	if len(b.routes) >= maxRoutes {
		clear(b.routes)
	}
	b.routes[topic] = groups
	return groups
}

// retain appends to the log. The broker is locked.
func (b *Broker) retain(r retained) {
	if len(b.log) < b.cfg.Retain {
		b.log = append(b.log, r)
		return
	}
	b.log[int((r.offset-1)%int64(b.cfg.Retain))] = r
}

// since calls fn for the messages in the log from start on, oldest first. The broker is locked.
func (b *Broker) since(start messaging.Start, fn func(retained)) {
	n := int64(len(b.log))
	for offset := b.taken - n + 1; offset <= b.taken; offset++ {
		r := b.log[(offset-1)%n]
		switch start.Kind {
		case messaging.StartFirst:
		case messaging.StartOffset:
			if r.offset < start.Offset {
				continue
			}
		case messaging.StartTime:
			if r.at.Before(start.Time) {
				continue
			}
		default:
			return
		}
		fn(r)
	}
}

// Declare binds the groups of s to their topics; see [messaging.Declarer]. Either all
// of them are bound or none.
func (b *Broker) Declare(ctx context.Context, s ...messaging.Subscription) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.declare(s)
}

// declare checks all of s, then binds. The broker is locked.
func (b *Broker) declare(s []messaging.Subscription) error {
	if b.isClosed() {
		return messaging.ErrClosed
	}
	kinds := make(map[string]messaging.Subscription, len(s))
	for _, sub := range s {
		if err := sub.Validate(); err != nil {
			return err
		}
		if sub.From.Kind != messaging.StartNext && b.cfg.Retain == 0 {
			return fmt.Errorf("%w: Subscription.From of group %q is in the past, and Config.Retain is 0", messaging.ErrUnsupported, sub.Group)
		}
		was, known := kinds[sub.Group]
		if g := b.groups[sub.Group]; g != nil && !known {
			was, known = messaging.Subscription{Ordered: g.ordered, Temporary: g.temporary}, true
		}
		if known && was.Ordered != sub.Ordered {
			return fmt.Errorf("%w: Subscription.Ordered of group %q is %t, and was %t", messaging.ErrMismatch, sub.Group, sub.Ordered, was.Ordered)
		}
		if known && was.Temporary != sub.Temporary {
			return fmt.Errorf("%w: Subscription.Temporary of group %q is %t, and was %t", messaging.ErrMismatch, sub.Group, sub.Temporary, was.Temporary)
		}
		kinds[sub.Group] = sub
	}
	for _, sub := range s {
		b.bind(sub)
	}
	return nil
}

// bind creates the group of s or adds to its topics. The broker is locked.
func (b *Broker) bind(s messaging.Subscription) {
	g, known := b.groups[s.Group]
	if !known {
		g = newGroup(b, s)
		b.groups[s.Group] = g
	}
	for _, p := range s.Topics {
		if !slices.Contains(g.patterns, p) {
			g.patterns = append(g.patterns, p)
			clear(b.routes)
		}
	}
	if !known {
		b.since(s.From, func(r retained) {
			if g.matches(r.msg.Topic) {
				g.add(&entry{msg: r.msg, offset: r.offset, attempt: 1})
			}
		})
	}
}

// Close refuses further calls with [messaging.ErrClosed] and lets every Subscribe drain
// and return. It does not wait for that. A Publish that waits for its groups returns
// [messaging.ErrUnknown]. What is queued is lost with the broker.
func (b *Broker) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.isClosed() {
		return nil
	}
	close(b.closed)
	for _, g := range b.groups {
		g.close()
	}
	return nil
}

func (b *Broker) isClosed() bool {
	select {
	case <-b.closed:
		return true
	default:
		return false
	}
}

// DeadLetters returns the dead letters kept in memory, oldest first.
func (b *Broker) DeadLetters() []messaging.DeadLetter {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []messaging.DeadLetter
	for _, g := range b.groups {
		all = append(all, g.dead...)
	}
	slices.SortStableFunc(all, func(x, y messaging.DeadLetter) int {
		return cmp.Or(x.At.Compare(y.At), cmp.Compare(x.Group, y.Group))
	})
	return all
}

// Replay puts dead letters back into the queues of their groups, and of no other, with
// their attempts counted anew; those kept in memory are kept no longer. In an ordered
// group they come after what waits for their key. It does not wait for room. With
// Config.ConfirmOnAck it returns when the groups have finished them. The error is a
// [*messaging.PublishError]; a group that does not exist is [messaging.ErrUnroutable].
func (b *Broker) Replay(ctx context.Context, dead ...messaging.DeadLetter) error {
	msgs := make([]*messaging.Message, len(dead))
	for i := range dead {
		msgs[i] = dead[i].Message
	}
	if err := messaging.Invalid(msgs); err != nil {
		return err
	}
	flights, failed := b.requeue(dead)
	if failed = b.await(ctx, msgs, flights, failed); len(failed) > 0 {
		return &messaging.PublishError{Failed: failed}
	}
	return nil
}

// requeue puts dead letters into the queues of their groups, and forgets them.
func (b *Broker) requeue(dead []messaging.DeadLetter) (flights []*flight, failed []messaging.Failed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	queued := make([]messaging.DeadLetter, 0, len(dead))
	for i, dl := range dead {
		g := b.groups[dl.Group]
		var err error
		switch {
		case b.isClosed():
			err = fmt.Errorf("%w: %w", messaging.ErrRefused, messaging.ErrClosed)
		case g == nil:
			err = fmt.Errorf("%w: there is no group %q", messaging.ErrUnroutable, dl.Group)
		}
		if err != nil {
			failed = append(failed, messaging.Failed{Index: i, ID: dl.Message.ID, Err: err})
			flights = append(flights, nil)
			continue
		}
		var f *flight
		if b.cfg.ConfirmOnAck {
			// Not in b.flights: publishing the ID again is for all groups, this is for one.
			f = &flight{left: 1, done: make(chan struct{})}
		}
		flights, queued = append(flights, f), append(queued, dl)
		g.add(&entry{msg: dl.Message.Clone(), offset: dl.Offset, attempt: 1, redelivered: true, flight: f})
	}
	b.forget(queued)
	return flights, failed
}

// Discard forgets dead letters that are kept in memory, and returns how many there were.
func (b *Broker) Discard(dead ...messaging.DeadLetter) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.forget(dead)
}

// forget removes dead letters from memory, in one pass however many there are, and
// returns how many there were. The broker is locked.
func (b *Broker) forget(dead []messaging.DeadLetter) int {
	type identity struct {
		group, id string
		at        int64
	}
	of := func(dl messaging.DeadLetter) identity { return identity{dl.Group, dl.Message.ID, dl.At.UnixNano()} }
	gone := make(map[identity]bool, len(dead))
	for _, dl := range dead {
		if dl.Message != nil {
			gone[of(dl)] = true
		}
	}
	n := 0
	for _, g := range b.groups {
		before := len(g.dead)
		g.dead = slices.DeleteFunc(g.dead, func(dl messaging.DeadLetter) bool { return gone[of(dl)] })
		n += before - len(g.dead)
	}
	return n
}

// Stats is a snapshot of the broker.
type Stats struct {
	// Groups are sorted by name.
	Groups []GroupStats
}

// GroupStats is a snapshot of one group. Ready, Held, Delayed and InFlight together are
// the messages that count against Config.Capacity.
type GroupStats struct {
	Group string
	// Ready messages wait for a free handler.
	Ready int
	// Held messages wait for one of their key that is ahead of them.
	Held int
	// Delayed messages failed and wait for their next delivery.
	Delayed int
	// InFlight messages are with a handler, or on their way to the dead letters.
	InFlight int
	// Dead letters are kept in memory.
	Dead int
	// Publishers wait for room in this group.
	Publishers int
	// Subscribers are the calls of Subscribe that run.
	Subscribers int
	// Acked, Retried, DeadLettered and Dropped count the deliveries that ended so.
	Acked, Retried, DeadLettered, Dropped int64
}

// Stats returns a snapshot of all groups.
func (b *Broker) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Stats{Groups: make([]GroupStats, 0, len(b.groups))}
	for _, g := range b.groups {
		s.Groups = append(s.Groups, g.stats())
	}
	slices.SortFunc(s.Groups, func(x, y GroupStats) int { return cmp.Compare(x.Group, y.Group) })
	return s
}

func (b *Broker) logger() *slog.Logger {
	if b.cfg.Logger != nil {
		return b.cfg.Logger
	}
	return slog.Default()
}
