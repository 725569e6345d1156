// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kafkakit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/kafkakit"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingtest"
)

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func msg(topic, key string) *messaging.Message {
	return &messaging.Message{ID: messaging.NewID(), Topic: topic, Key: key, Time: time.Now()}
}

func publish(t testing.TB, c *kafkakit.Client, msgs ...*messaging.Message) {
	t.Helper()
	if err := c.Publish(t.Context(), msgs...); err != nil {
		t.Fatalf("Publish = %v, want nil", err)
	}
}

// subscribe runs a subscription until stop is called, which waits for its end.
func subscribe(t testing.TB, c *kafkakit.Client, s messaging.Subscription, h messaging.HandlerFunc) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Subscribe(ctx, s, h) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Subscribe = %v, want nil", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// committed returns the offsets of a group in the log, by partition.
func committed(t testing.TB, k *kfake.Cluster, group string) map[int32]int64 {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	all, err := kadm.NewClient(cl).FetchOffsets(t.Context(), "test."+group)
	if err != nil {
		t.Fatal(err)
	}
	at := map[int32]int64{}
	for p, o := range all["test"] {
		at[p] = o.At
	}
	return at
}

// TestMembersComeAndGo has members of an ordered group start and stop in any order while messages are
// published. Nothing is lost, no key gets out of order, and as every start and stop is an orderly one
// nothing is handled twice. DOVETAIL_CHAOS is how many messages, "long" 50,000.
func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	messages := 1500
	if v := os.Getenv("DOVETAIL_CHAOS"); v == "long" {
		messages = 50_000
	} else if n, err := strconv.Atoi(v); err == nil {
		messages = n
	}
	k := fake(t)
	cfg := config()
	cfg.RebalanceTimeout, cfg.SessionTimeout, cfg.Timeout = time.Minute, 45*time.Second, 30*time.Second
	c := open(t, k, cfg)
	s := messaging.Subscription{Group: "g", Topics: []string{"t"}, Ordered: true, Concurrency: 4, Backoff: messaging.Backoff{Base: time.Millisecond}}
	if err := c.Declare(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	check := messagingtest.NewChecker(s)
	var busy sync.Map
	h := check.Handler(s, messaging.HandlerFunc(func(_ context.Context, d *messaging.Delivery) error {
		if _, twice := busy.LoadOrStore(d.Message.Key, true); twice {
			t.Errorf("two messages of %s are handled at the same time", d.Message.Key)
		}
		defer busy.Delete(d.Message.Key)
		time.Sleep(rand.N(3 * time.Millisecond))
		return nil
	}))
	over := make(chan struct{})
	var members, publishers sync.WaitGroup
	changes := atomic.Int64{}
	for i := range 3 {
		member := open(t, k, cfg)
		members.Go(func() {
			for {
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- member.Subscribe(ctx, s, h) }()
				last := false
				select {
				case <-time.After(300*time.Millisecond + rand.N(time.Second)):
				case <-over:
					last = true
				}
				if i == 0 && !last { // one always stays
					select {
					case <-over:
					case <-t.Context().Done():
					}
					last = true
				}
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Subscribe = %v, want nil", err)
				}
				changes.Add(1)
				if last {
					return
				}
			}
		})
	}
	pub := check.Publisher(c)
	const publisherCount = 4
	for p := range publisherCount {
		publishers.Go(func() {
			for i := range messages / publisherCount {
				if err := pub.Publish(t.Context(), msg("t", fmt.Sprintf("key-%d-%d", p, i%7))); err != nil {
					t.Errorf("Publish = %v, want nil", err)
				}
				time.Sleep(rand.N(4 * time.Millisecond))
			}
		})
	}
	publishers.Wait()
	eventually(t, "all are handled", check.Done)
	close(over)
	members.Wait()
	r := check.Report()
	t.Logf("%v; %d members ended", r, changes.Load())
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	if n := r.Groups[0].Duplicates; n != 0 {
		t.Errorf("%d duplicates, want none", n)
	}
}

// one returns a configuration with a single partition, and a subscription of several handlers.
func one() (kafkakit.Config, messaging.Subscription) {
	cfg := config()
	cfg.Partitions = 1
	return cfg, messaging.Subscription{Group: "g", Topics: []string{"t"}, Concurrency: 4, Prefetch: 20}
}

func TestOnlyAFinishedPrefixIsCommitted(t *testing.T) {
	t.Parallel()
	k := fake(t)
	cfg, s := one()
	c := open(t, k, cfg)
	if err := c.Declare(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	var all []*messaging.Message
	for range 10 {
		all = append(all, msg("t", ""))
	}
	publish(t, c, all...)
	release := make(chan struct{})
	var handled atomic.Int64
	subscribe(t, c, s, func(ctx context.Context, d *messaging.Delivery) error {
		if d.Message.ID == all[3].ID {
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		handled.Add(1)
		return nil
	})
	eventually(t, "nine are handled", func() bool { return handled.Load() == 9 })
	eventually(t, "three are committed", func() bool { return committed(t, k, "g")[0] == 3 })
	time.Sleep(5 * cfg.CommitEvery)
	if at := committed(t, k, "g")[0]; at != 3 {
		t.Errorf("committed %d while message 3 is in a handler, want 3", at)
	}
	close(release)
	eventually(t, "all are committed", func() bool { return committed(t, k, "g")[0] == 10 })
}

func TestAHandlerThatOutlivesItsPartitionAcknowledgesNothing(t *testing.T) {
	t.Parallel()
	k := fake(t)
	cfg, s := one()
	s.Ordered = true
	first, second := open(t, k, cfg), open(t, k, cfg)
	if err := first.Declare(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	m, next := msg("t", "key"), msg("t", "key")
	publish(t, first, m, next)
	var calls sync.Map // by message
	count := func(m *messaging.Message) int64 {
		n, _ := calls.LoadOrStore(m.ID, new(atomic.Int64))
		return n.(*atomic.Int64).Load()
	}
	handle := func(d *messaging.Delivery) int64 {
		n, _ := calls.LoadOrStore(d.Message.ID, new(atomic.Int64))
		return n.(*atomic.Int64).Add(1)
	}
	began, release := make(chan struct{}), make(chan struct{})
	stop := subscribe(t, first, s, func(_ context.Context, d *messaging.Delivery) error {
		if handle(d) == 1 && d.Message.ID == m.ID {
			close(began)
			<-release
		}
		return nil
	})
	<-began
	expel(t, k, "test.g")
	subscribe(t, second, s, func(_ context.Context, d *messaging.Delivery) error {
		handle(d)
		return nil
	})
	// It joins again, and may even be given the same partition: as another one.
	eventually(t, "the first member knows", func() bool { return first.Stats().Partitions < 2 })
	if n := count(next); n != 0 && count(m) < 2 {
		t.Errorf("the next message of the key was handled before the one ahead of it")
	}
	close(release)
	eventually(t, "the message is handled again, and the next one", func() bool { return count(m) == 2 && count(next) == 1 })
	eventually(t, "both are committed", func() bool { return committed(t, k, "g")[0] == 2 })
	stop()
	if n := first.Stats().Late; n != 1 {
		t.Errorf("Stats.Late = %d, want 1", n)
	}
}

// expel removes all members from a group, as the broker does when their sessions end.
func expel(t *testing.T, k *kfake.Cluster, group string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	d, err := adm.DescribeGroups(t.Context(), group)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range d[group].Members {
		if err := leaveGroup(t.Context(), cl, group, m.MemberID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestManyDeclareAtOnce(t *testing.T) {
	t.Parallel()
	k := fake(t)
	cfg := config()
	s := messaging.Subscription{Group: "g", Topics: []string{"t"}}
	var clients []*kafkakit.Client
	for range 6 {
		clients = append(clients, open(t, k, cfg))
	}
	want := sync.Map{}
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			time.Sleep(rand.N(time.Duration(i+1) * 2 * time.Millisecond))
			if err := c.Declare(t.Context(), s); err != nil {
				t.Errorf("Declare = %v, want nil", err)
				return
			}
			for range 20 {
				m := msg("t", "")
				publish(t, c, m)
				want.Store(m.ID, true)
			}
		})
	}
	wg.Wait()
	subscribe(t, clients[0], s, func(_ context.Context, d *messaging.Delivery) error {
		want.Delete(d.Message.ID)
		return nil
	})
	eventually(t, "everything published after a Declare is delivered", func() bool {
		left := 0
		want.Range(func(any, any) bool { left++; return true })
		return left == 0
	})
}

func TestARunningGroupLearnsPatterns(t *testing.T) {
	t.Parallel()
	k := fake(t)
	a, b := open(t, k, config()), open(t, k, config())
	s := messaging.Subscription{Group: "g", Topics: []string{"a"}}
	var got sync.Map
	if err := a.Declare(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	subscribe(t, a, s, func(_ context.Context, d *messaging.Delivery) error {
		got.Store(d.Message.ID, true)
		return nil
	})
	for i := range 20 {
		topic := fmt.Sprint("more.", i)
		s.Topics = []string{topic}
		if err := b.Declare(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		m := msg(topic, fmt.Sprint(i))
		publish(t, b, m)
		eventually(t, "the message of "+topic+" is delivered", func() bool { _, ok := got.Load(m.ID); return ok })
	}
}

func TestRetriesThatCannotBePublishedWaitInTheProcess(t *testing.T) {
	t.Parallel()
	k := fake(t)
	cfg, s := one()
	s.Backoff = messaging.Backoff{Base: 10 * time.Millisecond, Max: 10 * time.Millisecond}
	c := open(t, k, cfg)
	if err := c.Declare(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	fault := k.Fault(refuse("test.retry.g"))
	m := msg("t", "")
	publish(t, c, m)
	var attempts atomic.Int64
	subscribe(t, c, s, func(_ context.Context, d *messaging.Delivery) error {
		if n := attempts.Add(1); int(n) != d.Attempt {
			t.Errorf("Attempt = %d, want %d", d.Attempt, n)
		}
		if d.Attempt < 4 {
			return errors.New("not yet")
		}
		return nil
	})
	eventually(t, "it is handled", func() bool { return attempts.Load() == 4 })
	if fault.Hits() == 0 {
		t.Error("the retry topic was never tried")
	}
	eventually(t, "it is committed", func() bool { return committed(t, k, "g")[0] == 1 })
}

func TestWaitingIsBounded(t *testing.T) {
	t.Parallel()
	k := fake(t)
	cfg, s := one()
	cfg.Waiting = 10
	c := open(t, k, cfg)
	if err := c.Declare(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	const n = 60
	var again, good sync.Map
	subscribe(t, c, s, func(_ context.Context, d *messaging.Delivery) error {
		if w := c.Stats().Waiting; w > int64(cfg.Waiting+s.Prefetch) {
			t.Errorf("%d messages wait in memory, want about %d", w, cfg.Waiting)
		}
		if d.Message.Type == "good" {
			good.Store(d.Message.ID, true)
			return nil
		}
		if d.Attempt == 1 {
			return fault.RetryAfter(errors.New("later"), 300*time.Millisecond)
		}
		again.Store(d.Message.ID, true)
		return nil
	})
	for range n {
		publish(t, c, msg("t", ""))
	}
	size := func(m *sync.Map) (n int) { m.Range(func(any, any) bool { n++; return true }); return n }
	m := msg("t", "")
	m.Type = "good"
	publish(t, c, m)
	eventually(t, "the good one is delivered", func() bool { return size(&good) == 1 })
	eventually(t, "all come again", func() bool { return size(&again) == n })
}

func TestDiscard(t *testing.T) {
	t.Parallel()
	k := fake(t)
	cfg, s := one()
	c := open(t, k, cfg)
	if err := c.Declare(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	subscribe(t, c, s, func(context.Context, *messaging.Delivery) error { return messaging.Reject(errors.New("no")) })
	var all []*messaging.Message
	for i := range 5 {
		m := msg("t", fmt.Sprint("key ", i))
		all = append(all, m)
		publish(t, c, m)
	}
	var dead []messaging.DeadLetter
	eventually(t, "there are five", func() bool {
		var err error
		if dead, err = c.DeadLetters(t.Context(), "g", 0); err != nil {
			t.Fatal(err)
		}
		return len(dead) == 5
	})
	byID := map[string]messaging.DeadLetter{}
	for _, dl := range dead {
		byID[dl.Message.ID] = dl
	}
	for i, m := range all {
		if dl := byID[m.ID]; dl.Message == nil || dl.Message.Key != m.Key || dl.Offset != int64(i) {
			t.Errorf("dead letter %d = %+v, want key %q, offset %d", i, dl, m.Key, i)
		}
	}
	if err := c.Discard(t.Context(), dead[0], dead[2]); err != nil {
		t.Fatal(err)
	}
	left, err := c.DeadLetters(t.Context(), "g", 2)
	if err != nil || len(left) != 2 || left[0].Message.ID != dead[1].Message.ID || left[1].Message.ID != dead[3].Message.ID {
		t.Errorf("DeadLetters = %+v, %v, want the second and the fourth", left, err)
	}
	if none, err := c.DeadLetters(t.Context(), "unknown", 0); err != nil || len(none) != 0 {
		t.Errorf("DeadLetters of an unknown group = %v, %v, want none", none, err)
	}
	if err := c.Replay(t.Context(), messaging.DeadLetter{}); err == nil {
		t.Error("Replay of nothing = nil, want an error")
	}
}

// TestForeignRecords are those of other producers, with headers of any kind.
func TestForeignRecords(t *testing.T) {
	t.Parallel()
	k := fake(t)
	cfg, s := one()
	s.Topics = []string{"#"}
	c := open(t, k, cfg)
	if err := c.Declare(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	r := &kgo.Record{Topic: "test", Key: []byte("k\xff"), Value: nil, Headers: []kgo.RecordHeader{
		{Key: "n", Value: []byte{0xff, 'a'}}, {Key: "dovetail-attempt", Value: []byte("many")}, {Key: "dovetail-due", Value: []byte("soon")}, {Key: "dovetail-from", Value: []byte("here")},
	}}
	if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
		t.Fatal(err)
	}
	got := make(chan *messaging.Delivery, 1)
	subscribe(t, c, s, func(_ context.Context, d *messaging.Delivery) error {
		got <- d
		return nil
	})
	d := <-got
	if m := d.Message; m.ID != "test/0/0" || m.Topic != "test" || m.Key != "k\uFFFD" || m.Header["n"] != "\uFFFDa" || d.Attempt != 1 || m.Validate() != nil {
		t.Errorf("Delivery = %+v, Message = %+v (%v), want what there is", d, m, m.Validate())
	}
}
