// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxmem"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// bench is an outbox with a relay on it, in virtual time.
type bench struct {
	*testing.T
	store *outboxmem.Store
	box   *outbox.Outbox

	mu        sync.Mutex
	publish   func(ctx context.Context, m *messaging.Message) error // nil takes everything
	published []string                                              // IDs, in the order of their confirmation
	attempts  []string
	inFlight  int
	most      int            // in flight at once
	keys      map[string]int // in flight by key
	when      map[string]time.Time
	async     bool // the publisher is an AsyncPublisher
}

// asyncBench is a bench that has room for two messages without a goroutine of the relay's.
type asyncBench struct {
	*bench
	room chan struct{}
}

// PublishAsync implements messaging.AsyncPublisher.
func (a *asyncBench) PublishAsync(ctx context.Context, m *messaging.Message, done func(error)) bool {
	select {
	case a.room <- struct{}{}:
	default:
		return false
	}
	go func() {
		err := errors.New("ended")
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panicked: %v", p)
			}
			<-a.room
			done(err)
		}()
		err = a.Publish(ctx, m)
	}()
	return true
}

func newBench(t *testing.T) *bench {
	store := outboxmem.New()
	return &bench{T: t, store: store, box: newBox(t, store, outbox.Config{}), keys: make(map[string]int), when: make(map[string]time.Time)}
}

// Publish implements messaging.Publisher.
func (b *bench) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	m := msgs[0]
	b.mu.Lock()
	publish := b.publish
	b.attempts = append(b.attempts, m.ID)
	b.inFlight++
	b.most = max(b.most, b.inFlight)
	b.keys[m.Key]++
	if m.Key != "" && b.keys[m.Key] > 1 {
		b.Errorf("%d messages of key %s in flight, want 1", b.keys[m.Key], m.Key)
	}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.inFlight--
		b.keys[m.Key]--
	}()
	if publish != nil {
		if err := publish(ctx, m); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.published = append(b.published, m.ID)
	b.when[m.ID] = time.Now()
	return nil
}

func (b *bench) setPublish(f func(ctx context.Context, m *messaging.Message) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.publish = f
}

// run starts a relay; the end of the test or a call of stop ends it.
func (b *bench) run(cfg outbox.RelayConfig) (r *outbox.Relay, stop func()) {
	b.Helper()
	return b.runOn(b.box, cfg)
}

func (b *bench) runOn(box *outbox.Outbox, cfg outbox.RelayConfig) (r *outbox.Relay, stop func()) {
	b.Helper()
	if cfg.Logger == nil {
		cfg.Logger = quiet
	}
	var pub messaging.Publisher = b
	if b.async {
		pub = &asyncBench{b, make(chan struct{}, 2)}
	}
	r, err := outbox.NewRelay(box, pub, cfg)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx); err != nil {
			b.Errorf("Run = %v, want nil", err)
		}
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	b.Cleanup(stop)
	synctest.Wait()
	return r, stop
}

// add commits a message.
func (b *bench) add(id, key, topic string) {
	b.Helper()
	tx := b.store.Begin()
	err := b.box.Enqueue(b.Context(), tx, &messaging.Message{ID: id, Key: key, Topic: topic})
	if err := errors.Join(err, tx.Commit()); err != nil {
		b.Fatal(err)
	}
}

// done returns what was published so far.
func (b *bench) done() []string {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.published)
}

func (b *bench) want(what string, got, want any) {
	b.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		b.Errorf("%s = %v, want %v", what, got, want)
	}
}

func (b *bench) stats() outbox.Stats {
	b.Helper()
	s, err := b.box.Stats(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func (b *bench) parked() []outbox.Parked {
	b.Helper()
	synctest.Wait()
	p, err := b.box.Parked(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// contract runs a subtest in virtual time, with a publisher of each kind.
func contract(t *testing.T, sentence string, test func(b *bench)) {
	for _, async := range []bool{false, true} {
		name := sentence
		if async {
			name += ", by an AsyncPublisher"
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.async = async
				test(b)
			})
		})
	}
}

func TestNewRelay(t *testing.T) {
	box := newBox(t, outboxmem.New(), outbox.Config{})
	pub := &bench{}
	for want, cfg := range map[string]outbox.RelayConfig{
		"RelayConfig.Window is -1":                  {Window: -1},
		"RelayConfig.Batch is -1":                   {Batch: -1},
		"RelayConfig.Poll is -1s":                   {Poll: -time.Second},
		"RelayConfig.Lease is 1ms":                  {Lease: time.Millisecond},
		"RelayConfig.Backoff.Base is -1s":           {Backoff: messaging.Backoff{Base: -time.Second}},
		"RelayConfig.Backoff.Max is 1ms, want at":   {Backoff: messaging.Backoff{Max: time.Millisecond}},
		"RelayConfig.PublishTimeout is -1s, want 0": {PublishTimeout: -time.Second},
	} {
		if _, err := outbox.NewRelay(box, pub, cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewRelay = %v, want an error with %q", err, want)
		}
	}
	if _, err := outbox.NewRelay(nil, pub, outbox.RelayConfig{}); err == nil {
		t.Error("NewRelay without an outbox = nil, want an error")
	}
	if _, err := outbox.NewRelay(box, nil, outbox.RelayConfig{}); err == nil {
		t.Error("NewRelay without a publisher = nil, want an error")
	}
}

func TestGoroutinesEndWithTheBurst(t *testing.T) {
	contract(t, "an idle relay has no goroutine for messages", func(b *bench) {
		b.setPublish(func(context.Context, *messaging.Message) error {
			time.Sleep(100 * time.Millisecond)
			return nil
		})
		b.run(outbox.RelayConfig{})
		before := runtime.NumGoroutine()
		for i := range 50 {
			b.add(fmt.Sprint(i), "", "t")
		}
		b.box.Wake()
		time.Sleep(time.Minute)
		b.want("published", len(b.done()), 50)
		// The test's own come and go.
		if n := runtime.NumGoroutine(); n > before+10 {
			b.Errorf("%d goroutines, want about %d as before", n, before)
		}
	})
}

func TestWaking(t *testing.T) {
	contract(t, "a wake publishes at once", func(b *bench) {
		b.run(outbox.RelayConfig{Poll: time.Hour})
		b.add("a", "", "t")
		b.want("published before Wake", b.done(), []string{})
		b.box.Wake()
		b.want("published after Wake", b.done(), []string{"a"})
		b.want("depth", b.stats().Depth, 0)
	})
	contract(t, "a wake while the store is being read is not lost", func(b *bench) {
		box := newBox(b.T, slowRead{b.store}, outbox.Config{})
		b.runOn(box, outbox.RelayConfig{Poll: time.Hour})
		time.Sleep(time.Second) // it has looked
		box.Wake()
		time.Sleep(readTakes / 2) // it has read, and does not know yet that there was nothing
		b.add("a", "", "t")
		box.Wake()
		time.Sleep(time.Second)
		b.want("published", b.done(), []string{"a"})
	})
	contract(t, "polling finds what nobody announced", func(b *bench) {
		b.run(outbox.RelayConfig{Poll: time.Second})
		b.add("a", "", "t")
		time.Sleep(time.Second)
		b.want("published after a poll", b.done(), []string{"a"})
	})
	contract(t, "a notifier carries wakes between processes", func(b *bench) {
		n := &notifier{}
		here, there := newBox(b.T, b.store, outbox.Config{Notifier: n}), newBox(b.T, b.store, outbox.Config{Notifier: n})
		_, stop := b.runOn(there, outbox.RelayConfig{Poll: time.Hour})
		b.add("a", "", "t")
		here.Wake()
		b.want("published", b.done(), []string{"a"})
		stop()
		b.want("subscribers after the end", len(n.wakes), 0)
	})
	contract(t, "an idle relay asks little", func(b *bench) {
		count := &counter{Store: b.store}
		b.runOn(newBox(b.T, count, outbox.Config{}), outbox.RelayConfig{})
		time.Sleep(100 * time.Second)
		synctest.Wait()
		// One read per poll for all shards together, three heartbeats per lease.
		if count.reads > 115 || count.leases > 33 || count.writes > 0 {
			b.Errorf("in 100 s: %d reads, %d heartbeats, %d writes; want about 105, 32 and none", count.reads, count.leases, count.writes)
		}
	})
}

type notifier struct{ wakes []func() }

func (n *notifier) Notify() {
	for _, w := range n.wakes {
		w()
	}
}

func (n *notifier) Subscribe(wake func()) (cancel func()) {
	n.wakes = append(n.wakes, wake)
	return func() { n.wakes = nil }
}

// slowRead takes some time to tell what it has read.
type slowRead struct{ outbox.Store }

const readTakes = 10 * time.Millisecond

func (s slowRead) Read(ctx context.Context, r []outbox.Read) ([]outbox.Row, error) {
	rows, err := s.Store.Read(ctx, r)
	time.Sleep(readTakes)
	return rows, err
}

// robbed gives the shards of a relay that asks to another, as if its lease had run out long ago.
type robbed struct {
	outbox.Store
	rob atomic.Bool
}

func (s *robbed) Lease(ctx context.Context, r outbox.LeaseRequest) (outbox.LeaseView, error) {
	if s.rob.CompareAndSwap(true, false) {
		_, gone := s.Store.Lease(ctx, outbox.LeaseRequest{Relay: r.Relay, Leave: true})
		_, taken := s.Store.Lease(ctx, outbox.LeaseRequest{Relay: "robber", TTL: time.Hour, Take: s.Shards()})
		if err := errors.Join(gone, taken); err != nil {
			return outbox.LeaseView{}, err
		}
	}
	return s.Store.Lease(ctx, r)
}

// slowPark takes some time to park a row, and may never park the first it is asked to.
type slowPark struct {
	outbox.Store
	never bool
	first int64
}

func (s *slowPark) Park(ctx context.Context, l outbox.Lease, p outbox.Parking) (bool, error) {
	time.Sleep(5 * time.Millisecond)
	if s.first == 0 {
		s.first = p.ID
	}
	if s.never && p.ID == s.first {
		return false, errors.New("no space left")
	}
	return s.Store.Park(ctx, l, p)
}

// counter counts the calls of a store and can fail them.
type counter struct {
	outbox.Store
	mu                    sync.Mutex
	reads, leases, writes int
	fail                  error
	keepLeases            bool // Leave does nothing, as after a crash
	hang                  bool
}

func (c *counter) count(n *int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	*n++
	return c.fail
}

func (c *counter) set(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = err
}

func (c *counter) Lease(ctx context.Context, r outbox.LeaseRequest) (outbox.LeaseView, error) {
	if err := c.count(&c.leases); err != nil {
		return outbox.LeaseView{}, err
	}
	c.mu.Lock()
	hang := c.hang
	c.mu.Unlock()
	if hang {
		<-ctx.Done()
		return outbox.LeaseView{}, ctx.Err()
	}
	if c.keepLeases && r.Leave {
		return outbox.LeaseView{}, nil
	}
	return c.Store.Lease(ctx, r)
}

func (c *counter) Read(ctx context.Context, r []outbox.Read) ([]outbox.Row, error) {
	if err := c.count(&c.reads); err != nil {
		return nil, err
	}
	return c.Store.Read(ctx, r)
}

func (c *counter) Settle(ctx context.Context, s []outbox.Settlement) ([]int, error) {
	if err := c.count(&c.writes); err != nil {
		return nil, err
	}
	return c.Store.Settle(ctx, s)
}

func TestOrder(t *testing.T) {
	contract(t, "a key has one message in flight, others flow", func(b *bench) {
		b.setPublish(func(_ context.Context, m *messaging.Message) error {
			if m.Key == "slow" {
				time.Sleep(time.Second)
			}
			return nil
		})
		for i := range 3 {
			b.add(fmt.Sprintf("slow%d", i), "slow", "t")
			b.add(fmt.Sprintf("fast%d", i), "fast", "t")
			b.add(fmt.Sprintf("free%d", i), "", "t")
		}
		b.run(outbox.RelayConfig{})
		if got := b.done(); len(got) != 6 || slices.ContainsFunc(got, func(id string) bool { return id[:4] == "slow" }) {
			b.Errorf("published at once = %v, want the fast and the free ones", got)
		}
		time.Sleep(3 * time.Second)
		var slow []string
		for _, id := range b.done() {
			if id[:4] == "slow" {
				slow = append(slow, id)
			}
		}
		b.want("the slow key", slow, []string{"slow0", "slow1", "slow2"})
	})
	contract(t, "a refused message holds back its key and no other", func(b *bench) {
		refused := true
		b.setPublish(func(_ context.Context, m *messaging.Message) error {
			if m.ID == "a0" && refused {
				return messaging.ErrRefused
			}
			return nil
		})
		for _, id := range []string{"a0", "b0", "a1", "b1"} {
			b.add(id, id[:1], "t")
		}
		b.run(outbox.RelayConfig{})
		b.want("published beside it", b.done(), []string{"b0", "b1"})
		time.Sleep(time.Minute)
		b.mu.Lock()
		refused = false
		b.mu.Unlock()
		time.Sleep(time.Minute)
		b.want("published in the end", b.done(), []string{"b0", "b1", "a0", "a1"})
	})
	contract(t, "an unknown outcome is published again with the same ID, before the next of the key", func(b *bench) {
		n := 0
		b.setPublish(func(context.Context, *messaging.Message) error {
			if n++; n == 1 {
				return messaging.ErrUnknown
			}
			return nil
		})
		b.add("a", "k", "t")
		b.add("b", "k", "t")
		r, _ := b.run(outbox.RelayConfig{})
		time.Sleep(time.Second)
		b.done()
		b.want("attempts", b.attempts, []string{"a", "a", "b"})
		b.want("unknown", r.Stats().Unknown, 1)
	})
	contract(t, "a long key does not fill the memory of its shard", func(b *bench) {
		b.setPublish(func(ctx context.Context, m *messaging.Message) error {
			if m.Key == "stuck" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		for i := range 500 {
			b.add(fmt.Sprintf("stuck%d", i), "stuck", "t")
		}
		// Keys of the same shard, behind it.
		shard := outbox.ShardOf(&messaging.Message{Key: "stuck"}, outboxmem.Shards)
		var want []string
		for i := 0; len(want) < 50; i++ {
			if key := fmt.Sprintf("k%d", i); outbox.ShardOf(&messaging.Message{Key: key}, outboxmem.Shards) == shard {
				b.add(key, key, "t")
				want = append(want, key)
			}
		}
		b.run(outbox.RelayConfig{Batch: 20})
		time.Sleep(10 * time.Second)
		got := b.done()
		slices.Sort(got)
		slices.Sort(want)
		b.want("published beside the stuck key", got, want)
	})
}

func TestParking(t *testing.T) {
	poison := func(err error) func(context.Context, *messaging.Message) error {
		return func(_ context.Context, m *messaging.Message) error {
			if strings.HasPrefix(m.ID, "bad") {
				return err
			}
			return nil
		}
	}
	contract(t, "a permanent error parks at once, with the reason, and blocks the key", func(b *bench) {
		b.setPublish(poison(fault.Permanent(errors.New("too large"))))
		b.add("bad", "k", "t")
		b.add("good", "k", "t")
		b.add("other", "o", "t")
		var told []outbox.ParkedMessage
		b.run(outbox.RelayConfig{Hooks: outbox.Hooks{Parked: func(p outbox.ParkedMessage) { told = append(told, p) }}})
		time.Sleep(time.Hour)
		b.want("published", b.done(), []string{"other"})
		p := b.parked()
		if len(p) != 1 || p[0].Message.ID != "bad" || p[0].Reason != "too large" || p[0].Attempts != 1 || !p[0].Blocks {
			b.Fatalf("Parked = %+v, want bad", p)
		}
		if len(told) != 1 || told[0].Message.ID != "bad" {
			b.Errorf("the hook was told %+v, want bad", told)
		}
		if st := b.stats(); st.Depth != 1 || st.Parked != 1 || st.OldestAge < time.Hour {
			b.Errorf("Stats = %+v, want one waiting for an hour and one parked", st)
		}

		b.setPublish(nil)
		if err := b.box.Retry(b.Context(), "bad"); err != nil {
			b.Fatalf("Retry = %v", err)
		}
		b.want("published after Retry", b.done(), []string{"other", "bad", "good"})
	})
	contract(t, "a burst of bad messages does not hold up good ones", func(b *bench) {
		const bad, good = 1500, 200
		b.setPublish(func(_ context.Context, m *messaging.Message) error {
			if m.Topic == "bad" {
				return fault.Permanent(errors.New("too large"))
			}
			return nil
		})
		for i := range bad {
			b.add(fmt.Sprint("bad", i), fmt.Sprint("bad", i), "bad")
		}
		for i := range good / 2 {
			b.add(fmt.Sprint("early", i), fmt.Sprint("good", i), "good")
		}
		box := newBox(b.T, &slowPark{Store: b.store}, outbox.Config{})
		b.runOn(box, outbox.RelayConfig{Lease: time.Hour})
		time.Sleep(time.Second)
		for i := range good / 2 {
			b.add(fmt.Sprint("late", i), fmt.Sprint("good", i), "good")
		}
		time.Sleep(2 * time.Second)
		b.want("good messages published while bad ones are being parked", len(b.done()), good)
		parked := b.stats().Parked
		if parked < 100 || parked >= bad {
			b.Fatalf("%d of %d bad messages are parked, want some and not all", parked, bad)
		}
		b.want("messages in the store, the good ones removed", b.stats().Depth, bad-parked)
		time.Sleep(time.Minute)
		b.want("parked in the end", b.stats().Parked, bad)
	})
	contract(t, "a message that cannot be parked holds up no other", func(b *bench) {
		b.setPublish(poison(fault.Permanent(errors.New("too large"))))
		box := newBox(b.T, &slowPark{Store: b.store, never: true}, outbox.Config{})
		b.add("bad", "k", "t")
		b.runOn(box, outbox.RelayConfig{Lease: time.Hour})
		b.add("bad too", "other", "t")
		for i := range 20 {
			time.Sleep(30 * time.Second)
			b.add(fmt.Sprint(i), fmt.Sprint("k", i), "t")
		}
		time.Sleep(30 * time.Second)
		b.want("published", len(b.done()), 20)
		b.want("messages in the store", b.stats().Depth, 1)
		b.want("parked", b.stats().Parked, 1)
	})
	contract(t, "discarding lets the key go on", func(b *bench) {
		b.setPublish(poison(fault.Permanent(errors.New("no"))))
		b.add("bad", "k", "t")
		b.add("good", "k", "t")
		b.run(outbox.RelayConfig{})
		b.parked()
		if err := b.box.Discard(b.Context(), "bad", "order was cancelled"); err != nil {
			b.Fatalf("Discard = %v", err)
		}
		b.want("published", b.done(), []string{"good"})
		d, err := b.box.Discarded(b.Context())
		if err != nil || len(d) != 1 || d[0].DiscardReason != "order was cancelled" {
			b.Errorf("Discarded = %+v, %v, want bad with its reason", d, err)
		}
		time.Sleep(time.Hour)
		if n, err := b.box.Prune(b.Context(), time.Minute); n != 1 || err != nil {
			b.Errorf("Prune = %d, %v, want 1, nil", n, err)
		}
	})
	contract(t, "a freed key goes on without the parked one", func(b *bench) {
		b.setPublish(poison(fault.Permanent(errors.New("no"))))
		b.add("bad", "k", "t")
		b.add("good", "k", "t")
		b.run(outbox.RelayConfig{Free: true})
		b.want("published", b.done(), []string{"good"})
		b.want("parked", len(b.parked()), 1)
	})
	for _, err := range []error{messaging.ErrRefused, messaging.ErrUnroutable, &messaging.PublishError{Failed: []messaging.Failed{{Err: messaging.ErrRefused}}}} {
		contract(t, fmt.Sprintf("refusals count: %v", err), func(b *bench) {
			b.setPublish(poison(err))
			b.add("bad", "", "t")
			b.run(outbox.RelayConfig{MaxAttempts: 5})
			time.Sleep(time.Hour)
			b.done()
			b.want("attempts", len(b.attempts), 5)
			b.want("Parked.Attempts", b.parked()[0].Attempts, 5)
		})
	}
	for _, err := range []error{
		messaging.ErrUnknown, messaging.ErrBlocked, messaging.ErrClosed, context.DeadlineExceeded,
		&fault.Rejection{By: "breaker", Err: errors.New("open")}, errors.New("connection refused"),
	} {
		contract(t, fmt.Sprintf("an outage parks nothing: %v", err), func(b *bench) {
			down := false
			b.setPublish(func(context.Context, *messaging.Message) error {
				b.mu.Lock()
				defer b.mu.Unlock()
				if down {
					return err
				}
				return nil
			})
			b.add("before", "", "t")
			b.run(outbox.RelayConfig{MaxAttempts: 1})
			b.want("published before the outage", b.done(), []string{"before"})
			b.mu.Lock()
			down = true
			b.mu.Unlock()
			for i := range 30 {
				b.add(fmt.Sprintf("m%d", i), "", "t")
			}
			time.Sleep(time.Hour)
			b.want("parked", len(b.parked()), 0)
			b.mu.Lock()
			if n := len(b.attempts); n > 30*600 {
				b.Errorf("%d attempts in an hour of outage, want them backed off", n)
			}
			down = false
			b.mu.Unlock()
			time.Sleep(10 * time.Second) // well below the longest delay
			b.want("published after the outage", len(b.done()), 31)
		})
	}
	contract(t, "an error without a reason counts while others get through", func(b *bench) {
		b.setPublish(poison(errors.New("cannot marshal")))
		b.add("bad", "", "t")
		b.run(outbox.RelayConfig{MaxAttempts: 3, Poll: 100 * time.Millisecond})
		for i := range 600 {
			b.add(fmt.Sprintf("m%d", i), "", "t")
			time.Sleep(100 * time.Millisecond)
		}
		b.want("parked", len(b.parked()), 1)
	})
	for _, err := range []error{messaging.ErrUnknown, messaging.ErrBlocked, messaging.ErrClosed, &fault.Rejection{By: "breaker", Err: errors.New("open")}} {
		contract(t, fmt.Sprintf("what is not the message's fault never counts, although others get through: %v", err), func(b *bench) {
			b.setPublish(poison(err))
			b.add("bad", "", "t")
			b.run(outbox.RelayConfig{MaxAttempts: 3, Poll: 100 * time.Millisecond})
			for i := range 100 {
				b.add(fmt.Sprintf("m%d", i), "", "t")
				time.Sleep(100 * time.Millisecond)
			}
			b.want("parked", len(b.parked()), 0)
			b.setPublish(nil)
			time.Sleep(time.Minute)
			b.want("published", len(b.done()), 101)
		})
	}
	contract(t, "without a limit nothing is parked but for permanent errors", func(b *bench) {
		b.setPublish(poison(messaging.ErrRefused))
		b.add("bad", "", "t")
		b.run(outbox.RelayConfig{MaxAttempts: -1})
		time.Sleep(24 * time.Hour)
		b.want("parked", len(b.parked()), 0)
	})
	contract(t, "a panic of the publisher is a failure", func(b *bench) {
		first := true
		b.setPublish(func(context.Context, *messaging.Message) error {
			if first {
				first = false
				panic("oops")
			}
			return nil
		})
		var failed []outbox.AttemptFailed
		b.add("a", "", "t")
		b.run(outbox.RelayConfig{Hooks: outbox.Hooks{Failed: func(f outbox.AttemptFailed) { failed = append(failed, f) }}})
		time.Sleep(time.Second)
		b.want("published", b.done(), []string{"a"})
		if len(failed) != 1 || !strings.Contains(failed[0].Err.Error(), "oops") {
			b.Errorf("failures = %+v, want the panic", failed)
		}
	})
	contract(t, "the end of the publisher's goroutine is a failure", func(b *bench) {
		first := true
		b.setPublish(func(context.Context, *messaging.Message) error {
			if first {
				first = false
				runtime.Goexit()
			}
			return nil
		})
		b.add("a", "k", "t")
		b.run(outbox.RelayConfig{})
		time.Sleep(time.Second)
		b.want("published", b.done(), []string{"a"})
	})
	contract(t, "RetryAll puts everything back", func(b *bench) {
		b.setPublish(poison(fault.Permanent(errors.New("misconfigured"))))
		for i := range 5 {
			b.add(fmt.Sprintf("bad%d", i), "", "t")
		}
		b.run(outbox.RelayConfig{})
		b.want("parked", len(b.parked()), 5)
		b.setPublish(nil)
		if n, err := b.box.RetryAll(b.Context()); n != 5 || err != nil {
			b.Errorf("RetryAll = %d, %v, want 5, nil", n, err)
		}
		b.want("published", len(b.done()), 5)
	})
}

func TestBackoff(t *testing.T) {
	contract(t, "delays grow to the cap", func(b *bench) {
		var at []time.Time
		b.setPublish(func(context.Context, *messaging.Message) error {
			at = append(at, time.Now())
			return messaging.ErrRefused
		})
		b.add("a", "", "t")
		b.run(outbox.RelayConfig{MaxAttempts: -1, Backoff: messaging.Backoff{Base: time.Second, Max: 8 * time.Second}})
		time.Sleep(time.Minute)
		b.done()
		for i, schedule := range []time.Duration{1, 2, 4, 8, 8, 8} {
			schedule *= time.Second
			if gap := at[i+1].Sub(at[i]); gap < schedule/2 || gap > schedule {
				b.Errorf("delay %d = %v, want %v to %v", i, gap, schedule/2, schedule)
			}
		}
	})
	contract(t, "an error's own delay is kept", func(b *bench) {
		first := true
		b.setPublish(func(context.Context, *messaging.Message) error {
			if first {
				first = false
				return fault.RetryAfter(messaging.ErrRefused, 40*time.Second)
			}
			return nil
		})
		begin := time.Now()
		b.add("a", "", "t")
		b.run(outbox.RelayConfig{})
		time.Sleep(time.Minute)
		b.done()
		b.want("published after", b.when["a"].Sub(begin), 40*time.Second)
	})
	contract(t, "an attempt that takes too long is unknown", func(b *bench) {
		first := true
		b.setPublish(func(ctx context.Context, _ *messaging.Message) error {
			if first {
				first = false
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		b.add("a", "", "t")
		r, _ := b.run(outbox.RelayConfig{PublishTimeout: time.Second})
		time.Sleep(5 * time.Second)
		b.want("published", b.done(), []string{"a"})
		b.want("unknown", r.Stats().Unknown, 1)
	})
}

func TestWindow(t *testing.T) {
	hang := func(ctx context.Context, m *messaging.Message) error {
		if strings.HasPrefix(m.Topic, "stuck") {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	contract(t, "bounds what is in flight", func(b *bench) {
		b.setPublish(func(context.Context, *messaging.Message) error { time.Sleep(time.Second); return nil })
		for i := range 100 {
			b.add(fmt.Sprintf("m%d", i), "", fmt.Sprintf("t%d", i%4))
		}
		b.run(outbox.RelayConfig{Window: 8})
		time.Sleep(time.Minute)
		b.want("published", len(b.done()), 100)
		b.want("most in flight", b.most, 7) // four topics: each leaves a share for one more
	})
	for _, stuck := range []int{1, 3} {
		contract(t, fmt.Sprintf("%d stuck topics do not stop another", stuck), func(b *bench) {
			b.setPublish(hang)
			for i := range 3000 {
				b.add(fmt.Sprintf("s%d", i), fmt.Sprintf("sk%d", i), fmt.Sprintf("stuck%d", i%stuck))
			}
			for i := range 200 {
				b.add(fmt.Sprintf("m%d", i), fmt.Sprintf("mk%d", i), "flows")
			}
			r, _ := b.run(outbox.RelayConfig{Window: 64, Batch: 10})
			time.Sleep(time.Minute)
			b.want("published beside them", len(b.done()), 200)
			st := r.Stats()
			if st.InFlight >= 64 || st.OldestInFlight < 50*time.Second {
				b.Errorf("Stats = %+v, want room in the window, and the age of what is stuck", st)
			}
			begin := time.Now()
			b.add("late", "late", "flows")
			b.box.Wake()
			time.Sleep(10 * time.Second)
			b.done()
			if took := b.when["late"].Sub(begin); took < 0 || took > 2*time.Second {
				b.Errorf("a message beside stuck topics took %v, want at most two polls", took)
			}
		})
	}
	contract(t, "a key that has a message of a stuck topic keeps its order", func(b *bench) {
		b.setPublish(hang)
		for i := range 200 {
			b.add(fmt.Sprintf("s%d", i), fmt.Sprintf("k%d", i), "stuck")
			b.add(fmt.Sprintf("m%d", i), fmt.Sprintf("k%d", i), "flows")
		}
		b.run(outbox.RelayConfig{Window: 64, Batch: 10})
		time.Sleep(time.Minute)
		b.want("published", b.done(), []string{})
		b.setPublish(nil)
	})
}

func TestLeases(t *testing.T) {
	contract(t, "relays share the shards, and one takes over at once from one that ends", func(b *bench) {
		cfg := outbox.RelayConfig{Lease: 10 * time.Second}
		one, _ := b.run(cfg)
		b.want("shards of the only relay", one.Stats().Shards, 16)
		two, stop := b.run(cfg)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		b.want("shards of two", []int{one.Stats().Shards, two.Stats().Shards}, []int{8, 8})
		three, _ := b.run(cfg)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		sum := one.Stats().Shards + two.Stats().Shards + three.Stats().Shards
		if sum != 16 || three.Stats().Shards < 4 {
			b.Errorf("shards of three = %d, %d, %d, want a fair share of 16", one.Stats().Shards, two.Stats().Shards, three.Stats().Shards)
		}
		stop()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		b.want("shards after one ended", one.Stats().Shards+three.Stats().Shards, 16)
	})
	contract(t, "a relay that was robbed while its clock stood still notices with the next heartbeat", func(b *bench) {
		store := &robbed{Store: b.store}
		var why []string
		r, _ := b.runOn(newBox(b.T, store, outbox.Config{}), outbox.RelayConfig{
			Lease: 9 * time.Second, Poll: time.Hour,
			Hooks: outbox.Hooks{Leased: func(l outbox.Leased) {
				if !l.Held {
					why = append(why, l.Why)
				}
			}},
		})
		b.want("shards before", r.Stats().Shards, 16)
		store.rob.Store(true)
		time.Sleep(4 * time.Second) // the heartbeat is once in three
		b.add("a", "k", "t")
		b.box.Wake()
		synctest.Wait()
		b.want("shards after", r.Stats().Shards, 0)
		b.want("causes of the losses", why, slices.Repeat([]string{"fenced"}, 16))
		b.want("attempts", len(b.attempts), 0)
	})
	contract(t, "what a dead relay held is taken over within one lease", func(b *bench) {
		const lease = 10 * time.Second
		dead := &counter{Store: b.store, keepLeases: true}
		_, kill := b.runOn(newBox(b.T, dead, outbox.Config{}), outbox.RelayConfig{Lease: lease})
		live, _ := b.run(outbox.RelayConfig{Lease: lease})
		time.Sleep(3 * lease)
		kill()
		died := time.Now()
		for i := range 100 {
			b.add(fmt.Sprintf("m%d", i), "", "t")
		}
		time.Sleep(lease + 100*time.Millisecond)
		b.want("published by the other", len(b.done()), 100)
		b.want("its shards", live.Stats().Shards, 16)
		for id, at := range b.when {
			if at.Sub(died) > lease+10*time.Millisecond {
				b.Errorf("%s waited %v, want at most one lease", id, at.Sub(died))
			}
		}
	})
	contract(t, "a relay that cannot reach the store stops publishing before its leases run out", func(b *bench) {
		const lease = 9 * time.Second
		c := &counter{Store: b.store}
		var lost []outbox.Leased
		r, _ := b.runOn(newBox(b.T, c, outbox.Config{}), outbox.RelayConfig{Lease: lease, Hooks: outbox.Hooks{Leased: func(l outbox.Leased) {
			if !l.Held {
				lost = append(lost, l)
			}
		}}})
		b.setPublish(func(ctx context.Context, _ *messaging.Message) error {
			<-ctx.Done() // until the lease is lost
			return ctx.Err()
		})
		b.add("a", "k", "t")
		b.box.Wake()
		time.Sleep(2 * time.Second)
		b.done()
		b.want("in flight", r.Stats().InFlight, 1)
		c.set(errors.New("no route to host"))
		time.Sleep(lease)
		synctest.Wait()
		b.want("in flight after the lease", r.Stats().InFlight, 0)
		b.want("shards after the lease", r.Stats().Shards, 0)
		if len(lost) != 16 || lost[0].Why != "expired" {
			b.Errorf("leases lost = %+v, want all 16 expired", lost)
		}
		c.set(nil)
		b.setPublish(nil)
		time.Sleep(lease)
		b.want("published when the store is back", b.done(), []string{"a"})
	})
}

func TestEnd(t *testing.T) {
	contract(t, "waits for confirmations and leaves nothing to publish twice", func(b *bench) {
		b.setPublish(func(context.Context, *messaging.Message) error { time.Sleep(2 * time.Second); return nil })
		for i := range 10 {
			b.add(fmt.Sprintf("m%d", i), "", "t")
		}
		_, stop := b.run(outbox.RelayConfig{})
		begin := time.Now()
		stop()
		b.want("published", len(b.done()), 10)
		b.want("left", b.stats().Depth, 0)
		if took := time.Since(begin); took > 2*time.Second {
			b.Errorf("the end took %v, want the time of the confirmations", took)
		}
		other, _ := b.run(outbox.RelayConfig{})
		b.want("shards of the next relay at once", other.Stats().Shards, 16)
	})
	contract(t, "waits for nothing that is not with the publisher", func(b *bench) {
		b.setPublish(func(_ context.Context, m *messaging.Message) error {
			if m.ID == "bad" {
				return fault.RetryAfter(messaging.ErrRefused, time.Hour)
			}
			time.Sleep(2 * time.Second)
			return nil
		})
		b.add("bad", "k", "t")
		b.add("behind", "k", "t")
		_, stop := b.run(outbox.RelayConfig{Window: 1})
		for i := range 10 {
			b.add(fmt.Sprintf("m%d", i), "", "t")
		}
		b.box.Wake()
		b.done()
		begin := time.Now()
		stop()
		b.want("published", len(b.done()), 1)
		b.want("left", b.stats().Depth, 11)
		if took := time.Since(begin); took > 2*time.Second {
			b.Errorf("the end took %v, want the time of the confirmation", took)
		}
	})
	contract(t, "takes no longer than DrainTimeout", func(b *bench) {
		b.setPublish(func(ctx context.Context, _ *messaging.Message) error { <-ctx.Done(); return ctx.Err() })
		b.add("a", "k", "t")
		_, stop := b.run(outbox.RelayConfig{DrainTimeout: 3 * time.Second})
		begin := time.Now()
		stop()
		b.want("the end took", time.Since(begin), 3*time.Second)
		b.want("left", b.stats().Depth, 1)
	})
	contract(t, "can be at once", func(b *bench) {
		b.setPublish(func(ctx context.Context, _ *messaging.Message) error { <-ctx.Done(); return ctx.Err() })
		b.add("a", "k", "t")
		_, stop := b.run(outbox.RelayConfig{DrainTimeout: -1})
		begin := time.Now()
		stop()
		b.want("the end took", time.Since(begin), time.Duration(0))
	})
	contract(t, "comes although the store is down", func(b *bench) {
		c := &counter{Store: b.store}
		_, stop := b.runOn(newBox(b.T, c, outbox.Config{}), outbox.RelayConfig{})
		b.add("a", "k", "t")
		c.set(errors.New("down"))
		b.box.Wake()
		time.Sleep(time.Second)
		begin := time.Now()
		stop()
		if took := time.Since(begin); took > 6*time.Second {
			b.Errorf("the end took %v, want at most DrainTimeout and a little", took)
		}
	})
	contract(t, "comes although the store does not answer", func(b *bench) {
		c := &counter{Store: b.store}
		_, stop := b.runOn(newBox(b.T, c, outbox.Config{}), outbox.RelayConfig{})
		b.done()
		c.mu.Lock()
		c.hang = true
		c.mu.Unlock()
		begin := time.Now()
		stop()
		if took := time.Since(begin); took > 7*time.Second {
			b.Errorf("the end took %v, want at most DrainTimeout and a little", took)
		}
	})
	contract(t, "Run runs once at a time, and again later", func(b *bench) {
		r, stop := b.run(outbox.RelayConfig{})
		if err := r.Run(b.Context()); err == nil {
			b.Error("a second Run = nil, want an error")
		}
		stop()
		ctx, cancel := context.WithCancel(b.Context())
		cancel()
		if err := r.Run(ctx); err != nil {
			b.Errorf("Run after the end = %v, want nil", err)
		}
	})
}

func TestTrouble(t *testing.T) {
	contract(t, "a store that fails is asked again", func(b *bench) {
		c := &counter{Store: b.store}
		r, _ := b.runOn(newBox(b.T, c, outbox.Config{}), outbox.RelayConfig{Lease: time.Hour})
		b.add("a", "k", "t")
		c.set(errors.New("down"))
		b.box.Wake()
		time.Sleep(time.Minute)
		b.want("published", b.done(), []string{})
		if n := r.Stats().StoreErrors; n < 5 || n > 100 {
			b.Errorf("%d failed calls in a minute, want a few", n)
		}
		c.set(nil)
		time.Sleep(6 * time.Second)
		b.want("published when it is back", b.done(), []string{"a"})
	})
	contract(t, "hooks and Stats tell what happened", func(b *bench) {
		n := 0
		b.setPublish(func(context.Context, *messaging.Message) error {
			time.Sleep(time.Second)
			if n++; n == 1 {
				return messaging.ErrRefused
			}
			return nil
		})
		b.add("a", "k", "t")
		time.Sleep(time.Minute)
		var confirmed []outbox.Confirmed
		var failed []outbox.AttemptFailed
		held := 0
		r, _ := b.run(outbox.RelayConfig{Hooks: outbox.Hooks{
			Confirmed: func(c outbox.Confirmed) { confirmed = append(confirmed, c) },
			Failed:    func(f outbox.AttemptFailed) { failed = append(failed, f) },
			Leased:    func(l outbox.Leased) { held++ },
		}})
		time.Sleep(10 * time.Second)
		b.done()
		if len(confirmed) != 1 || confirmed[0].Took != time.Second || confirmed[0].Lag < time.Minute+2*time.Second {
			b.Errorf("Confirmed = %+v, want one that took a second and lagged a minute", confirmed)
		}
		if len(failed) != 1 || !errors.Is(failed[0].Err, messaging.ErrRefused) || failed[0].RetryIn <= 0 {
			b.Errorf("Failed = %+v, want one refusal with its delay", failed)
		}
		b.want("leases", held, 16)
		st := r.Stats()
		b.want("Stats", fmt.Sprintf("%+v", st), fmt.Sprintf("%+v", outbox.RelayStats{Shards: 16, Confirmed: 1, Failed: 1}))
	})
}

// rude is a publisher that panics, once after it has told the outcome, and tells it twice.
type rude struct {
	*bench
	calls int
}

// PublishAsync implements messaging.AsyncPublisher.
func (r *rude) PublishAsync(ctx context.Context, m *messaging.Message, done func(error)) bool {
	switch r.calls++; r.calls {
	case 1:
		panic("before")
	case 2:
		done(errors.New("no"))
		panic("after")
	}
	done(r.Publish(ctx, m))
	done(errors.New("again"))
	return true
}

func TestARudeAsyncPublisher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		r, err := outbox.NewRelay(b.box, &rude{bench: b}, outbox.RelayConfig{Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		b.add("a", "k", "t")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		time.Sleep(time.Minute)
		b.want("published", b.done(), []string{"a"})
		st := r.Stats()
		cancel()
		b.want("Run", <-ended, nil)
		b.want("Stats", fmt.Sprintf("%+v", st), fmt.Sprintf("%+v", outbox.RelayStats{Shards: 16, Confirmed: 1, Failed: 2}))
	})
}
