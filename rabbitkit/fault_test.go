// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingtest"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

var quick = rabbitkit.Config{Heartbeat: 2 * time.Second, MaxReconnectDelay: 200 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)}

// group returns a subscription of group g to topic t.
func group() messaging.Subscription {
	return messaging.Subscription{Group: "g", Topics: []string{"t"}, Backoff: messaging.Backoff{Base: 10 * time.Millisecond, Max: 10 * time.Millisecond}}
}

func (s *setup) declare(t testing.TB, subs ...messaging.Subscription) {
	t.Helper()
	if err := s.Declare(context.Background(), subs...); err != nil {
		t.Fatalf("Declare = %v, want nil", err)
	}
}

func (s *setup) publish(t testing.TB, ms ...*messaging.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Publish(ctx, ms...); err != nil {
		t.Fatalf("Publish = %v, want nil", err)
	}
}

// subscribe subscribes until stop, or the end of the test.
func (s *setup) subscribe(t testing.TB, sub messaging.Subscription, h messaging.HandlerFunc) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Subscribe(ctx, sub, h) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Subscribe = %v, want nil at the end of its context", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// counts counts deliveries by ID.
type counts struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counts) add(d *messaging.Delivery) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = make(map[string]int)
	}
	c.n[d.Message.ID]++
	return c.n[d.Message.ID]
}

func (c *counts) of(m *messaging.Message) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[m.ID]
}

// Trap: the broker counts delivery tags from 1 again on each channel. An acknowledgement
// that comes late must not acknowledge another message of the next channel.
func TestAnAckNeverCrossesASession(t *testing.T) {
	s := open(t, quick)
	sub := group()
	sub.Concurrency, sub.Prefetch = 2, 10
	s.declare(t, sub)
	a, b, c := msg("t", ""), msg("t", ""), msg("t", "")
	s.publish(t, a, b, c)
	var got counts
	started, release, again := make(chan struct{}), make(chan struct{}), make(chan struct{})
	s.subscribe(t, sub, func(_ context.Context, d *messaging.Delivery) error {
		n := got.add(d)
		switch {
		case d.Message.ID == b.ID && n == 1: // holds tag 2 of the first session
			close(started)
			<-release
		case d.Message.ID == c.ID && n == 1:
			<-started
			<-again // tag 2 or 3 of the second session is not acknowledged yet, nor handled to the end
		}
		return nil
	})
	<-started
	eventually(t, func() bool { return got.of(a) == 1 && got.of(c) == 1 && s.Stats().Acked == 1 }, "a is done, b and c are handled")
	before := s.Stats().StaleAcks
	s.proxy.Cut()
	eventually(t, func() bool { return s.Stats().Reconnects > 0 && s.Stats().Consuming }, "the client is connected again")
	close(release)
	close(again)
	eventually(t, func() bool { return got.of(b) >= 2 && got.of(c) >= 2 }, "b and c are delivered again, as neither was acknowledged")
	eventually(t, func() bool { return s.Stats().StaleAcks >= before+2 }, "two acknowledgements are counted as stale")
}

// Trap: I/O of amqp091 ignores contexts, and so does its Close.
func TestAStalledBroker(t *testing.T) {
	s := open(t, rabbitkit.Config{Window: 50})
	s.declare(t, group())
	s.publish(t, msg("t", ""))
	s.proxy.Stall(messagingtest.Both)
	var wg sync.WaitGroup
	var blocked, unknown atomic.Int64
	for range 100 {
		wg.Go(func() {
			m := msg("t", "")
			m.Body = make([]byte, 256<<10) // more than the sockets on the way hold
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			defer cancel()
			err := s.Publish(ctx, m)
			switch {
			case errors.Is(err, messaging.ErrBlocked):
				blocked.Add(1)
			case errors.Is(err, messaging.ErrUnknown):
				unknown.Add(1)
			default:
				t.Errorf("Publish = %v, want ErrBlocked or ErrUnknown", err)
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Publish = %v, want it to wrap context.DeadlineExceeded", err)
			}
		})
	}
	returned := make(chan struct{})
	go func() { wg.Wait(); close(returned) }()
	select {
	case <-returned:
	case <-time.After(9 * time.Second): // less than Config.Timeout
		t.Fatal("Publish does not honour its context while the broker is stalled")
	}
	if blocked.Load() < 50 || unknown.Load() == 0 {
		t.Errorf("%d blocked, %d unknown, want those beyond the window blocked, and some unknown", blocked.Load(), unknown.Load())
	}
	closed := make(chan struct{})
	go func() { _ = s.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(9 * time.Second):
		t.Fatal("Close hangs while the broker is stalled")
	}
}

func TestABlockedBroker(t *testing.T) {
	s := open(t, quick)
	s.declare(t, group())
	s.publish(t, msg("t", ""))
	if !s.SetBlocked(true) {
		t.Fatal("not connected")
	}
	if err := s.Check(t.Context()); !errors.Is(err, messaging.ErrBlocked) {
		t.Errorf("Check = %v, want ErrBlocked", err)
	}
	if !s.Stats().Blocked {
		t.Error("Stats().Blocked = false, want true")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Publish(ctx, msg("t", "")); !errors.Is(err, messaging.ErrBlocked) || errors.Is(err, messaging.ErrUnknown) {
		t.Errorf("Publish = %v, want ErrBlocked and not ErrUnknown: nothing is written to a blocked broker", err)
	}
	go func() { time.Sleep(50 * time.Millisecond); s.SetBlocked(false) }()
	s.publish(t, msg("t", ""))
	if n := s.Stats().InFlight; n != 0 {
		t.Errorf("Stats().InFlight = %d, want 0: withdrawn messages give their places back", n)
	}
}

func TestRefusedByTheBroker(t *testing.T) {
	u, err := url.Parse(broker(t))
	if err != nil {
		t.Fatal("DOVETAIL_RABBITMQ_URL is not a URL")
	}
	badVhost, badPassword := *u, *u
	badVhost.Path = "/no-such-vhost"
	badPassword.User = url.UserPassword(u.User.Username(), "wrong")
	for name, c := range map[string]struct {
		url  url.URL
		want error
	}{
		"a wrong vhost":   {badVhost, rabbitkit.ErrVhost},
		"bad credentials": {badPassword, rabbitkit.ErrCredentials},
	} {
		t.Run(name+" is a typed error at once, for good", func(t *testing.T) {
			t.Parallel()
			client, err := rabbitkit.New(c.url.String(), quick)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			check := func(what string, err error) {
				if !errors.Is(err, c.want) || !fault.IsPermanent(err) {
					t.Errorf("%s = %v, want %v, permanent", what, err, c.want)
				}
				if err != nil && strings.Contains(err.Error(), "wrong@") {
					t.Errorf("%s: the error has the password in it", what)
				}
			}
			var wg sync.WaitGroup
			wg.Go(func() { check("Check", client.Check(ctx)) })
			wg.Go(func() { check("Declare", client.Declare(ctx, group())) })
			wg.Go(func() {
				check("Subscribe", client.Subscribe(ctx, group(), messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { return nil })))
			})
			wg.Go(func() {
				err := client.Publish(ctx, msg("t", ""))
				check("Publish", err)
				if !errors.Is(err, messaging.ErrRefused) {
					t.Errorf("Publish = %v, want ErrRefused", err)
				}
			})
			wg.Wait()
		})
	}

	t.Run("Config.Vhost overrides the URL's", func(t *testing.T) {
		cfg := quick
		cfg.Vhost = "no-such-vhost"
		client, err := rabbitkit.New(u.String(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if err := client.Check(t.Context()); !errors.Is(err, rabbitkit.ErrVhost) {
			t.Errorf("Check = %v, want ErrVhost", err)
		}
	})

	t.Run("a queue or exchange declared otherwise is a mismatch", func(t *testing.T) {
		s := open(t, quick)
		s.note(group())
		s.raw(t, func(ch *amqp.Channel) {
			if _, err := ch.QueueDeclare(s.exchange+".group.g", true, false, false, false, nil); err != nil {
				t.Fatal(err)
			}
		})
		if err := s.Declare(t.Context(), group()); !errors.Is(err, messaging.ErrMismatch) || !fault.IsPermanent(err) {
			t.Errorf("Declare = %v, want ErrMismatch, permanent", err)
		}
		if err := s.Subscribe(t.Context(), group(), messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { return nil })); !errors.Is(err, messaging.ErrMismatch) {
			t.Errorf("Subscribe = %v, want ErrMismatch", err)
		}
		o := open(t, quick)
		o.raw(t, func(ch *amqp.Channel) {
			if err := ch.ExchangeDeclare(o.exchange, "direct", true, false, false, false, nil); err != nil {
				t.Fatal(err)
			}
		})
		if err := o.Publish(t.Context(), msg("t", "")); !errors.Is(err, messaging.ErrMismatch) || !errors.Is(err, messaging.ErrRefused) {
			t.Errorf("Publish = %v, want ErrRefused and ErrMismatch", err)
		}
	})
}

// Trap: a return names no tag, and two messages in flight may bear one ID.
func TestAReturnIsMatchedToItsMessage(t *testing.T) {
	s := open(t, quick)
	s.declare(t, group())
	var ms []*messaging.Message
	for i := range 200 {
		m := msg("t", "")
		if i%2 == 1 {
			m = ms[i-1].Clone()
			m.Topic = "nobody"
		}
		ms = append(ms, m)
	}
	var pe *messaging.PublishError
	if err := s.Publish(t.Context(), ms...); !errors.As(err, &pe) || len(pe.Failed) != 100 {
		t.Fatalf("Publish = %v, want 100 failures", err)
	}
	for _, f := range pe.Failed {
		if f.Index%2 != 1 || !errors.Is(f.Err, messaging.ErrUnroutable) {
			t.Errorf("Failed = %+v, want ErrUnroutable for odd indexes only", f)
		}
	}
	if st := s.Stats(); st.Confirmed != 100 || st.Unroutable != 100 {
		t.Errorf("Stats = %+v, want 100 confirmed, 100 unroutable", st)
	}
}

// Trap: a consumer that the broker cancels ends without an error.
func TestASubscriptionSurvivesItsQueue(t *testing.T) {
	s := open(t, quick)
	s.declare(t, group())
	var got counts
	s.subscribe(t, group(), func(_ context.Context, d *messaging.Delivery) error { got.add(d); return nil })
	m := msg("t", "")
	s.publish(t, m)
	eventually(t, func() bool { return got.of(m) == 1 }, "the first message is handled")
	s.raw(t, func(ch *amqp.Channel) { _, _ = ch.QueueDelete(s.exchange+".group.g", false, false, false) })
	eventually(t, func() bool {
		m = msg("t", "")
		return s.Publish(t.Context(), m) == nil
	}, "the queue is there again")
	eventually(t, func() bool { return got.of(m) == 1 }, "the next message is handled")
}

func TestDeclaredGroupsAreDeclaredAgain(t *testing.T) {
	s := open(t, quick)
	sub := group()
	s.declare(t, sub)
	sub.Topics = []string{"u"}
	s.declare(t, sub)
	s.publish(t, msg("t", ""))
	s.raw(t, func(ch *amqp.Channel) { _, _ = ch.QueueDelete(s.exchange+".group.g", false, false, false) })
	s.proxy.Cut()
	eventually(t, func() bool { return s.Stats().Reconnects > 0 }, "the client is connected again")
	s.publish(t, msg("t", ""), msg("u", ""))
}

// Trap: publishing to an exchange that is not there closes the channel, and with it the
// fate of all that is in flight on it.
func TestAnExchangeThatIsDeletedIsDeclaredAgain(t *testing.T) {
	s := open(t, quick)
	s.declare(t, group())
	for range 20 {
		s.publish(t, msg("t", ""))
	}
	s.raw(t, func(ch *amqp.Channel) { _ = ch.ExchangeDelete(s.exchange, false, false) })
	if err := s.Publish(t.Context(), msg("t", "")); !errors.Is(err, messaging.ErrUnknown) || !strings.Contains(err.Error(), "NOT_FOUND") {
		t.Errorf("Publish = %v, want ErrUnknown with what the broker says", err)
	}
	for range 20 { // over whatever channel
		s.publish(t, msg("t", ""))
	}
}

// What one channel finds lost, the others make anew before they publish.
func TestAllChannelsNoticeALostExchange(t *testing.T) {
	s := open(t, rabbitkit.Config{Channels: 2})
	s.declare(t, group())
	for i := range 20 {
		s.publish(t, msg("t", strconv.Itoa(i)))
	}
	s.raw(t, func(ch *amqp.Channel) { _ = ch.ExchangeDelete(s.exchange, false, false) })
	if !s.LoseTopology() {
		t.Fatal("not connected")
	}
	for i := range 20 {
		s.publish(t, msg("t", strconv.Itoa(i)))
	}
	if st := s.Stats(); st.Confirmed != 40 || st.Unknown != 0 || st.Reconnects != 0 {
		t.Errorf("Stats = %+v, want 40 confirmed by one connection", st)
	}
}

// Trap: a message that kills whoever handles it is never answered. The broker counts.
func TestDeliveryLimit(t *testing.T) {
	cfg := quick
	cfg.DeliveryLimit = 2
	s := open(t, cfg)
	s.declare(t, group())
	m := msg("t", "k")
	m.Header = messaging.Header{"a": "1"}
	s.publish(t, m)
	started, release := make(chan struct{}, 100), make(chan struct{})
	stop := s.subscribe(t, group(), func(_ context.Context, d *messaging.Delivery) error {
		started <- struct{}{}
		<-release // as of a process that has died
		return nil
	})
	for range 3 {
		<-started
		s.proxy.Cut()
	}
	var dead []messaging.DeadLetter
	eventually(t, func() bool {
		var err error
		if dead, err = s.other.DeadLetters(t.Context(), "g", 0); err != nil {
			t.Fatalf("DeadLetters = %v, want nil", err)
		}
		return len(dead) > 0
	}, "the message is a dead letter")
	if dl := dead[0]; dl.Message.ID != m.ID || dl.Message.Topic != "t" || dl.Message.Key != "k" || dl.Message.Header["a"] != "1" ||
		dl.Group != "g" || !strings.Contains(dl.Reason, "delivery_limit") || dl.At.IsZero() {
		t.Errorf("dead letter = %+v of %+v, want the message as it was, with the reason", dl, dl.Message)
	}
	close(release)
	stop()
	if err := s.Replay(t.Context(), dead...); err != nil {
		t.Fatalf("Replay = %v, want nil", err)
	}
	if err := s.Replay(t.Context(), dead...); err == nil {
		t.Error("Replay again = nil, want an error: it is not there any more")
	}
	var got counts
	s.subscribe(t, group(), func(_ context.Context, d *messaging.Delivery) error {
		if d.Message.Topic == "t" && d.Attempt == 1 && d.Redelivered {
			got.add(d)
		}
		return messaging.Reject(errors.New("still not"))
	})
	eventually(t, func() bool { return got.of(m) == 1 }, "the message is delivered as it was")
	eventually(t, func() bool {
		dead, _ = s.other.DeadLetters(t.Context(), "g", 0)
		return len(dead) == 1
	}, "it is a dead letter again")
	if err := s.Discard(t.Context(), dead...); err != nil {
		t.Errorf("Discard = %v, want nil", err)
	}
	if dead, err := s.DeadLetters(t.Context(), "g", 0); len(dead) != 0 || err != nil {
		t.Errorf("DeadLetters after Discard = %v, %v, want none", dead, err)
	}
}

// Trap: other producers send what they like.
func TestForeignMessages(t *testing.T) {
	s := open(t, quick)
	s.declare(t, group())
	s.raw(t, func(ch *amqp.Channel) {
		err := ch.PublishWithContext(t.Context(), s.exchange, "t", true, false, amqp.Publishing{
			ContentType: "text/plain", Body: []byte("hello"),
			Headers: amqp.Table{"int": int64(7), "bool": true, "nil": nil, "bytes": []byte("b"), "list": []any{"x", int32(1)}, "table": amqp.Table{"k": "v"}},
		})
		if err != nil {
			t.Fatal(err)
		}
	})
	seen := make(chan *messaging.Delivery, 2)
	s.subscribe(t, group(), func(_ context.Context, d *messaging.Delivery) error {
		seen <- d
		if d.Attempt == 1 {
			return errors.New("once more")
		}
		return nil
	})
	for attempt := 1; attempt <= 2; attempt++ {
		d := <-seen
		want := messaging.Header{"content-type": "text/plain", "int": "7", "bool": "true", "nil": "", "bytes": "b", "list": `["x",1]`, "table": `{"k":"v"}`}
		for name, v := range want {
			if got := d.Message.Header[name]; got != v {
				t.Errorf("attempt %d: Header[%q] = %q, want %q", attempt, name, got, v)
			}
		}
		if d.Attempt != attempt || string(d.Message.Body) != "hello" || d.Message.Topic != "t" || len(d.Message.Header) != len(want) {
			t.Errorf("attempt %d: Delivery = %+v of %+v, want the message as it was", attempt, d, d.Message)
		}
	}
}

func TestAnOrderedRetryKeepsItsAttemptsOverACut(t *testing.T) {
	s := open(t, quick)
	sub := group()
	sub.Ordered = true
	s.declare(t, sub)
	m := msg("t", "k")
	s.publish(t, m)
	attempts := make(chan int, 10)
	s.subscribe(t, sub, func(_ context.Context, d *messaging.Delivery) error {
		attempts <- d.Attempt
		if d.Attempt == 1 {
			return fault.RetryAfter(errors.New("later"), time.Hour)
		}
		return nil
	})
	if n := <-attempts; n != 1 {
		t.Errorf("Attempt = %d, want 1", n)
	}
	eventually(t, func() bool { return s.Stats().Retried == 1 }, "the retry waits")
	s.proxy.Cut()
	if n := <-attempts; n != 2 {
		t.Errorf("Attempt after the cut = %d, want 2", n)
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	broker(t)
	base := runtime.NumGoroutine()
	t.Run("client", func(t *testing.T) {
		s := open(t, quick)
		s.declare(t, group())
		var got counts
		stop := s.subscribe(t, group(), func(_ context.Context, d *messaging.Delivery) error { got.add(d); return nil })
		for range 5 {
			m := msg("t", "")
			eventually(t, func() bool { return s.Publish(t.Context(), m) == nil }, "a message is confirmed")
			eventually(t, func() bool { return got.of(m) > 0 }, "it is handled")
			s.proxy.Cut()
		}
		stop()
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
		if err := s.Publish(t.Context(), msg("t", "")); !errors.Is(err, messaging.ErrClosed) || !errors.Is(err, messaging.ErrRefused) {
			t.Errorf("Publish after Close = %v, want ErrRefused and ErrClosed", err)
		}
		if err := s.Check(t.Context()); !errors.Is(err, messaging.ErrClosed) {
			t.Errorf("Check after Close = %v, want ErrClosed", err)
		}
	})
	eventually(t, func() bool { return runtime.NumGoroutine() <= base }, "the goroutines are gone")
}

// A message that no handler can handle: retried on schedule, past it the others go on, then
// set aside with all that is known, and brought back when the handler is mended.
func TestAPoisonMessage(t *testing.T) {
	s := open(t, quick)
	sub := group()
	sub.MaxDeliveries = 4
	sub.Backoff = messaging.Backoff{Base: 50 * time.Millisecond, Max: 100 * time.Millisecond}
	other := group()
	other.Group = "other"
	s.declare(t, sub, other)
	poison := msg("t", "k")
	poison.Header = messaging.Header{"traceparent": messaging.NewTrace().String()}
	var good []*messaging.Message
	for range 50 {
		good = append(good, msg("t", "k"))
	}
	s.publish(t, append([]*messaging.Message{poison}, good...)...)

	var got, handled, elsewhere counts
	var mended atomic.Bool
	var attempts sync.Map
	s.subscribe(t, other, func(_ context.Context, d *messaging.Delivery) error { elsewhere.add(d); return nil })
	s.subscribe(t, sub, func(_ context.Context, d *messaging.Delivery) error {
		n := got.add(d)
		if d.Message.ID != poison.ID {
			return nil
		}
		if mended.Load() {
			handled.add(d)
			return nil
		}
		attempts.Store(d.Attempt, n)
		panic("cannot read the order")
	})
	for _, m := range good {
		eventually(t, func() bool { return got.of(m) == 1 }, "the others are handled")
	}
	var dead []messaging.DeadLetter
	eventually(t, func() bool {
		dead, _ = s.other.DeadLetters(t.Context(), "g", 0)
		return len(dead) == 1
	}, "the message is a dead letter")
	for n := 1; n <= 4; n++ {
		if was, ok := attempts.Load(n); !ok || was != n {
			t.Errorf("attempt %d was delivery %v, want each attempt once, in order", n, was)
		}
	}
	dl := dead[0]
	if dl.Message.ID != poison.ID || dl.Message.Topic != "t" || dl.Message.Key != "k" || string(dl.Message.Body) != poison.ID ||
		dl.Message.Header["traceparent"] != poison.Header["traceparent"] {
		t.Errorf("dead letter = %+v, want the message as it was published", dl.Message)
	}
	if dl.Group != "g" || dl.Attempt != 4 || !strings.Contains(dl.Reason, "gave up after 4 deliveries") ||
		!strings.Contains(dl.Reason, "cannot read the order") || !strings.Contains(string(dl.Stack), "TestAPoisonMessage") {
		t.Errorf("dead letter of group %q after %d attempts, reason %q, stack %.80q, want g, 4, why, and where", dl.Group, dl.Attempt, dl.Reason, dl.Stack)
	}
	if age := time.Since(dl.At); age < 0 || age > time.Hour {
		t.Errorf("dead letter of %v, want of now", dl.At)
	}
	if dead, err := s.other.DeadLetters(t.Context(), "other", 0); len(dead) != 0 || err != nil {
		t.Errorf("DeadLetters of the other group = %v, %v, want none", dead, err)
	}
	mended.Store(true)
	if err := s.other.Replay(t.Context(), dead...); err != nil {
		t.Fatalf("Replay = %v, want nil", err)
	}
	eventually(t, func() bool { return handled.of(poison) == 1 }, "the replayed message is handled")
	if dead, err := s.other.DeadLetters(t.Context(), "g", 0); len(dead) != 0 || err != nil {
		t.Errorf("DeadLetters after the replay = %v, %v, want none", dead, err)
	}
	if n := elsewhere.of(poison); n != 1 {
		t.Errorf("the other group had the message %d times, want once: a replay is for one group", n)
	}
}

// authority is a certificate authority made for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{}
	a.cert, a.key = issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	return a
}

// issue returns a certificate by an authority, or by itself.
func issue(t *testing.T, c *x509.Certificate, by *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if by == nil {
		by = &authority{c, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by.cert, &key.PublicKey, by.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// leaf returns a certificate for a server at 127.0.0.1, or for a client.
func (a *authority) leaf(t *testing.T, use x509.ExtKeyUsage) tls.Certificate {
	cert, key := issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "leaf"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use},
	}, a)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// TestTLS puts a terminator of TLS in front of the broker.
func TestTLS(t *testing.T) {
	u, err := url.Parse(broker(t))
	if err != nil {
		t.Fatal("DOVETAIL_RABBITMQ_URL is not a URL")
	}
	ours, others := newAuthority(t, "ours"), newAuthority(t, "others")
	server := ours.leaf(t, x509.ExtKeyUsageServerAuth)
	trust := &tls.Config{RootCAs: ours.pool()}
	withClient := trust.Clone()
	withClient.Certificates = []tls.Certificate{ours.leaf(t, x509.ExtKeyUsageClientAuth)}
	stranger := trust.Clone()
	stranger.Certificates = []tls.Certificate{others.leaf(t, x509.ExtKeyUsageClientAuth)}
	otherName := trust.Clone()
	otherName.ServerName = "rabbit.example"
	mutual := &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: ours.pool(), ClientAuth: tls.RequireAndVerifyClientCert}

	for _, c := range []struct {
		name   string
		server *tls.Config
		client *tls.Config
		want   string // in the error; empty: it works
	}{
		{"a known issuer", &tls.Config{Certificates: []tls.Certificate{server}}, trust, ""},
		{"an unknown issuer", &tls.Config{Certificates: []tls.Certificate{server}}, nil, "unknown authority"},
		{"a certificate for another name", &tls.Config{Certificates: []tls.Certificate{server}}, otherName, "rabbit.example"},
		{"a client's certificate", mutual, withClient, ""},
		{"no client's certificate where one is asked for", mutual, trust, "certificate required"},
		{"a client's certificate of an unknown issuer", mutual, stranger, "certificate required"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			at := *u
			at.Scheme, at.Host = "amqps", terminate(t, c.server, u.Host)
			cfg := quick
			cfg.TLS = c.client
			client, err := rabbitkit.New(at.String(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			err = client.Check(ctx)
			// The no to a client's certificate comes after TLS 1.3's handshake. Then amqp091 may be
			// about to write, and only say that it cannot.
			for err != nil && !strings.Contains(err.Error(), c.want) && ctx.Err() == nil {
				err = client.Check(ctx)
			}
			switch {
			case c.want == "" && err != nil:
				t.Errorf("Check = %v, want nil", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, rabbitkit.ErrCredentials)):
				t.Errorf("Check = %v, want an error that says %q and nothing of credentials", err, c.want)
			}
		})
	}
}

// terminate listens with TLS, passes on what it decrypts, and returns its address.
func terminate(t *testing.T, cfg *tls.Config, target string) string {
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				if in.(*tls.Conn).Handshake() != nil {
					return
				}
				out, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
				_, _ = io.Copy(out, in)
				_ = out.Close()
			}()
		}
	}()
	return ln.Addr().String()
}
