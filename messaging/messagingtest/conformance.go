// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// Harness tells Run how to reach a broker and what it can do.
type Harness struct {
	// Open returns a client of a broker without groups or messages: a fresh one, or a
	// part of one that is this test's own. What it opens it closes by t.Cleanup. Required.
	Open func(t *testing.T, o Options) *Client
	// Virtual runs each subtest in a testing/synctest bubble: for clients that do all
	// their work in this process.
	Virtual bool
	// Parallel runs the subtests in parallel. It excludes Virtual.
	Parallel bool
	// Unit is longer than any single step of the broker takes, such as a confirmation or
	// a redelivery that is due. Zero means 200 ms. The delays in the subtests are
	// multiples of it.
	Unit time.Duration

	// Ordered says that Subscription.Ordered is kept.
	Ordered bool
	// Log says that Subscription.From is kept.
	Log bool
	// TimeStep is how exact a time in Subscription.From is: a group may also get what was
	// published less than so long before. Zero means exactly.
	TimeStep time.Duration
	// Partitioned says that the subscribers of a group share partitions, not messages: what
	// one of them has not come to yet stays behind what it has. Then Prefetch bounds what a
	// subscriber holds, but sends nothing to the others.
	Partitioned bool
	// Temporary says that Subscription.Temporary is kept.
	Temporary bool
	// Unroutable says that a topic without a group is answered with ErrUnroutable.
	Unroutable bool
	// ConfirmOnAck says that Options.ConfirmOnAck is kept.
	ConfirmOnAck bool
	// Capacity says that Options.Capacity is kept.
	Capacity bool
}

// Options ask for a broker of a special kind. A harness gets only what it declares.
type Options struct {
	// ConfirmOnAck asks for Publish to return when the groups have finished the message.
	ConfirmOnAck bool
	// Capacity, if not zero, asks for a broker that takes about so many messages in, and
	// then blocks publishers.
	Capacity int
	// Log asks for the last 100 messages at least to be kept for groups that begin in the past.
	Log bool
}

// Client is the broker's client under test.
type Client struct {
	messaging.Publisher
	messaging.Subscriber
	messaging.Declarer
	// DeadLetters returns the dead letters of a group, oldest first. Required.
	DeadLetters func(ctx context.Context, group string) ([]messaging.DeadLetter, error)
	// Replay gives dead letters back to their groups. Nil if the client cannot.
	Replay func(ctx context.Context, dead ...messaging.DeadLetter) error
	// RefuseDeadLetters makes the place for dead letters refuse them, or no longer. Nil
	// if that cannot be arranged.
	RefuseDeadLetters func(refuse bool)
	// Restart restarts the broker, which keeps what it has confirmed. Nil if it does not.
	Restart func(ctx context.Context) error
	// Proxy is between client and broker. Nil if there is no connection to break.
	Proxy *Proxy
}

// Run tests the broker's client that h opens.
func Run(t *testing.T, h Harness) {
	if h.Open == nil {
		t.Fatal("messagingtest: Harness.Open is nil, want a function that opens a client")
	}
	if h.Virtual && h.Parallel {
		t.Fatal("messagingtest: Harness.Virtual and Harness.Parallel are both true, want one at most")
	}
	h.Unit = cmp.Or(h.Unit, 200*time.Millisecond)
	for _, part := range []struct {
		name string
		run  func(*runner)
	}{
		{"Publish", (*runner).publish},
		{"Groups", (*runner).groups},
		{"Handlers", (*runner).handlers},
		{"DeadLetters", (*runner).deadLetters},
		{"Concurrency", (*runner).concurrency},
		{"Ordered", (*runner).ordered},
		{"Drain", (*runner).drain},
		{"ConfirmOnAck", (*runner).confirmOnAck},
		{"Capacity", (*runner).capacity},
		{"Log", (*runner).log},
		{"Faults", (*runner).faults},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(&runner{t, h}) })
	}
}

// runner runs the subtests of one part.
type runner struct {
	t *testing.T
	h Harness
}

// patience bounds the wait for something that must happen.
const patience = 60 * time.Second

// sentence runs one subtest, named by the sentence that it proves.
func (r *runner) sentence(name string, o Options, test func(e *env)) {
	r.t.Run(name, func(t *testing.T) {
		if r.h.Parallel {
			t.Parallel()
		}
		body := func(t *testing.T) {
			test(&env{T: t, Client: r.h.Open(t, o), unit: r.h.Unit})
		}
		if !r.h.Virtual {
			body(t)
			return
		}
		skipped := false
		synctest.Test(t, func(t *testing.T) {
			defer func() { skipped = t.Skipped() }()
			body(t)
		})
		if skipped { // what a bubble skips passes otherwise
			t.SkipNow()
		}
	})
}

// env is what a subtest works with.
type env struct {
	*testing.T
	*Client
	unit time.Duration
}

// sub returns a subscription with a short, regular retry schedule.
func (e *env) sub(group string, topics ...string) messaging.Subscription {
	return messaging.Subscription{
		Group: group, Topics: topics, Concurrency: 4,
		Backoff: messaging.Backoff{Base: e.unit / 20, Max: e.unit / 20},
	}
}

func (e *env) declare(s ...messaging.Subscription) {
	e.Helper()
	if err := e.Declare(e.Context(), s...); err != nil {
		e.Fatalf("Declare = %v, want nil", err)
	}
}

// msg returns a new message; its body is its ID.
func msg(topic, key string) *messaging.Message {
	id := messaging.NewID()
	return &messaging.Message{ID: id, Topic: topic, Key: key, Type: topic + ".v1", Time: time.Now(), Body: []byte(id)}
}

// msgs returns n new messages of topic t without a key.
func msgs(n int) []*messaging.Message {
	all := make([]*messaging.Message, n)
	for i := range all {
		all[i] = msg("t", "")
	}
	return all
}

func (e *env) publishAll(ms ...*messaging.Message) {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), patience)
	defer cancel()
	if err := e.Publish(ctx, ms...); err != nil {
		e.Fatalf("Publish = %v, want nil", err)
	}
}

// failures returns what a PublishError says of each message, by index.
func (e *env) failures(err error) map[int]messaging.Failed {
	e.Helper()
	pe, ok := err.(*messaging.PublishError) //nolint:errorlint // the contract says exactly this type
	if !ok || len(pe.Failed) == 0 {
		e.Fatalf("Publish = %T %v, want a *PublishError that names messages", err, err)
	}
	all := make(map[int]messaging.Failed)
	for _, f := range pe.Failed {
		all[f.Index] = f
	}
	return all
}

// running is a call of Subscribe.
type running struct {
	e      *env
	group  string
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// subscribe subscribes until the end of the subtest, or stop.
func (e *env) subscribe(s messaging.Subscription, h messaging.HandlerFunc) *running {
	ctx, cancel := context.WithCancel(e.Context())
	r := &running{e: e, group: s.Group, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = e.Client.Subscribe(ctx, s, h)
	}()
	e.Cleanup(r.stop)
	return r
}

// subscribeErr subscribes where an error should come at once.
func (e *env) subscribeErr(s messaging.Subscription, h messaging.Handler) error {
	ctx, cancel := context.WithTimeout(e.Context(), 5*e.unit)
	defer cancel()
	return e.Subscribe(ctx, s, h)
}

// stop ends the subscription and waits for its drain.
func (r *running) stop() {
	r.e.Helper()
	r.cancel()
	r.wait()
}

func (r *running) wait() {
	r.e.Helper()
	select {
	case <-r.done:
		if r.err != nil {
			r.e.Errorf("Subscribe(%s) = %v, want nil at the end of its context", r.group, r.err)
		}
	case <-time.After(patience):
		r.e.Errorf("Subscribe(%s) did not return within %v of its context's end", r.group, patience)
	}
}

// eventually waits for cond, which must come true.
func (e *env) eventually(cond func() bool, format string, args ...any) {
	e.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			e.Fatalf("waited in vain until "+format, args...)
		}
	}
}

// finished waits until the checker has seen all that was confirmed, and wants its account
// to be right.
func (e *env) finished(c *Checker) {
	e.Helper()
	for end := time.Now().Add(patience); !c.Done() && time.Now().Before(end); {
		time.Sleep(e.unit / 20)
	}
	r := c.Report()
	if err := r.Err(); err != nil {
		e.Error(err)
	}
	e.Logf("%v", r)
}

// quiet gives something that must not happen the time to happen.
func (e *env) quiet() { time.Sleep(2 * e.unit) }

// until waits for something that the test itself makes happen, or gives up.
func (e *env) until(ch <-chan struct{}, what string) {
	e.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		e.Fatalf("waited in vain until %s", what)
	}
}

// tape records deliveries.
type tape struct {
	mu  sync.Mutex
	all []messaging.Delivery
	at  []time.Time
}

func (l *tape) add(d *messaging.Delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, *d)
	l.at = append(l.at, time.Now())
}

// handle records a delivery and acks it.
func (l *tape) handle(_ context.Context, d *messaging.Delivery) error {
	l.add(d)
	return nil
}

func (l *tape) deliveries() []messaging.Delivery {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

func (l *tape) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all)
}

// of returns the deliveries of one message.
func (l *tape) of(m *messaging.Message) []messaging.Delivery {
	return slices.DeleteFunc(l.deliveries(), func(d messaging.Delivery) bool { return d.Message.ID != m.ID })
}

// ids returns the IDs in the order of delivery.
func (l *tape) ids() []string {
	var ids []string
	for _, d := range l.deliveries() {
		ids = append(ids, d.Message.ID)
	}
	return ids
}

func idsOf(ms []*messaging.Message) []string {
	ids := make([]string, len(ms))
	for i, m := range ms {
		ids[i] = m.ID
	}
	return ids
}

// wantOnce wants each of ms to be recorded exactly once, and nothing else.
func (e *env) wantOnce(l *tape, ms ...*messaging.Message) {
	e.Helper()
	e.eventually(func() bool { return l.len() >= len(ms) }, "%d messages are delivered", len(ms))
	e.quiet()
	got, want := l.ids(), idsOf(ms)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		e.Errorf("delivered %d messages %v, want %d: each of %v once", len(got), got, len(want), want)
	}
}

// deadOf returns the dead letters of a group.
func (e *env) deadOf(group string) []messaging.DeadLetter {
	e.Helper()
	dls, err := e.DeadLetters(e.Context(), group)
	if err != nil {
		e.Fatalf("DeadLetters(%q) = %v, want nil", group, err)
	}
	return dls
}

// wantDead waits for exactly n dead letters of a group.
func (e *env) wantDead(group string, n int) []messaging.DeadLetter {
	e.Helper()
	e.eventually(func() bool { return len(e.deadOf(group)) >= n }, "group %q has %d dead letters", group, n)
	e.quiet()
	dls := e.deadOf(group)
	if len(dls) != n {
		e.Fatalf("group %q has %d dead letters, want %d", group, len(dls), n)
	}
	return dls
}

// differs returns where a message is not what it should be, or "".
func differs(got, want *messaging.Message) string {
	for _, f := range [...]struct{ name, got, want string }{
		{"ID", got.ID, want.ID},
		{"Topic", got.Topic, want.Topic},
		{"Key", got.Key, want.Key},
		{"Type", got.Type, want.Type},
		{"Time", got.Time.UTC().String(), want.Time.UTC().Round(0).String()},
		{"Header", fmt.Sprintf("%q", got.Header), fmt.Sprintf("%q", want.Header)},
		{"Body", string(got.Body), string(want.Body)},
	} {
		if f.got != f.want {
			return fmt.Sprintf("%s = %q, want %q", f.name, f.got, f.want)
		}
	}
	return ""
}
