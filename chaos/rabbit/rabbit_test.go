// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package rabbit_test breaks a RabbitMQ of its own under rabbitkit, and accounts for every
// message afterwards.
package rabbit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/chaos/internal/server"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingtest"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

const (
	publishers = 8
	batch      = 16 // messages of one call of Publish, each with a key of its own
)

// size returns how many messages a run moves at least, and how long a publisher rests
// between two calls. DOVETAIL_CHAOS=long asks for 200,000 without rest, a number for so many.
func size() (messages int64, rest time.Duration) {
	asked := os.Getenv("DOVETAIL_CHAOS")
	if n, err := strconv.ParseInt(asked, 10, 64); err == nil {
		return n, 0
	}
	if asked == "long" {
		return 200_000, 0
	}
	return 5_000, 100 * time.Millisecond
}

var logs = rabbitkit.Log{MaxAge: time.Hour}

// peer is a client behind a proxy of its own.
type peer struct {
	*rabbitkit.Client
	proxy *messagingtest.Proxy
}

// patience bounds every wait for something that must happen.
const patience = 3 * time.Minute

func eventually(t *testing.T, cond func() bool, what string) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			var stacks strings.Builder
			_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1)
			t.Fatalf("waited in vain until %s; goroutines:\n%s", what, stacks.String())
		}
	}
}

func connect(t *testing.T, s *server.Rabbit, name string) *peer {
	t.Helper()
	proxy, err := messagingtest.StartProxy(s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = proxy.Addr()
	c, err := rabbitkit.New(u.String(), rabbitkit.Config{
		Exchange: "chaos", Name: name, Window: 500, Log: logs,
		Heartbeat: time.Second, Timeout: 5 * time.Second, MaxReconnectDelay: 500 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return &peer{c, proxy}
}

func (p *peer) close() {
	_ = p.Close()
	_ = p.proxy.Close()
}

// TestABrokenBroker lets 8 publishers and 8 subscriptions of three groups move messages
// while their broker is stopped and started, killed, paused for longer than a heartbeat,
// and while their connections are cut, stalled and half lost. Then nothing confirmed is
// lost, every duplicate is one by its ID, no message of a key has overtaken another, and
// nothing is left behind: goroutines, channels, memory.
func TestABrokenBroker(t *testing.T) {
	s := server.StartRabbit(t)
	t.Run("rights", func(t *testing.T) { rights(t, s) })
	t.Run("alarm", func(t *testing.T) { alarm(t, s) })
	t.Run("timeout", func(t *testing.T) { timeout(t, s) })
	t.Run("retention", func(t *testing.T) { retention(t, s) })
	t.Run("no confirmation", func(t *testing.T) { unconfirmed(t, s) })
	t.Run("storm", func(t *testing.T) { storm(t, s) })
}

// rights asks for what a user may not do. Each no is a typed error at once.
func rights(t *testing.T, s *server.Rabbit) {
	sub := messaging.Subscription{Group: "rights", Topics: []string{"rights"}}
	owner := connect(t, s, "owner")
	defer owner.close()
	if err := owner.Declare(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := owner.Remove(t.Context(), "rights"); err != nil {
			t.Errorf("Remove = %v, want nil", err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	check := func(c *rabbitkit.Client) error { return c.Check(ctx) }
	declare := func(c *rabbitkit.Client) error { return c.Declare(ctx, sub) }
	publish := func(c *rabbitkit.Client) error {
		return c.Publish(ctx, &messaging.Message{ID: messaging.NewID(), Topic: "rights"})
	}
	subscribe := func(c *rabbitkit.Client) error {
		return c.Subscribe(ctx, sub, messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { return nil }))
	}
	users := map[string][3]string{ // what they may configure, write and read
		"outsider": {"^$", "^$", "^$"}, "user": {"^$", ".*", ".*"}, "reader": {".*", "group|dead|log", ".*"}, "writer": {".*", ".*", "^chaos$|dead"},
	}
	var erlang strings.Builder // one rabbitmqctl takes seconds
	for name, may := range users {
		fmt.Fprintf(&erlang, "rabbit_auth_backend_internal:add_user(<<%q>>, <<%[1]q>>, <<%[1]q>>), ", name)
		if name != "outsider" {
			fmt.Fprintf(&erlang, "rabbit_auth_backend_internal:set_permissions(<<%q>>, <<\"dovetail\">>, <<%q>>, <<%q>>, <<%q>>, <<%[1]q>>), ", name, may[0], may[1], may[2])
		}
	}
	s.Ctl("eval", erlang.String()+"ok.")
	for _, c := range []struct {
		name, user string
		do         func(*rabbitkit.Client) error
		want       []error
	}{
		{"Check without any right in the vhost", "outsider", check, []error{rabbitkit.ErrVhost}},
		{"Declare without the right to configure", "user", declare, []error{rabbitkit.ErrAccess}},
		{"Publish without the right to configure", "user", publish, []error{rabbitkit.ErrAccess, messaging.ErrRefused}},
		{"Publish without the right to write", "reader", publish, []error{rabbitkit.ErrAccess, messaging.ErrUnknown}},
		{"Subscribe without the right to read", "writer", subscribe, []error{rabbitkit.ErrAccess}},
	} {
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword(c.user, c.user)
		client, err := rabbitkit.New(u.String(), rabbitkit.Config{Exchange: "chaos", Log: logs, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		err = c.do(client)
		_ = client.Close()
		for _, want := range c.want {
			if !errors.Is(err, want) {
				t.Errorf("%s = %v, want %v", c.name, err, want)
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("%s took too long, want its error at once", c.name)
		}
	}
}

// alarm lets the broker run out of the memory that it is allowed.
func alarm(t *testing.T, s *server.Rabbit) {
	p := connect(t, s, "alarm")
	defer p.close()
	ctx := t.Context()
	if err := p.Declare(ctx, messaging.Subscription{Group: "alarm", Topics: []string{"alarm"}}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Remove(ctx, "alarm"); err != nil {
			t.Errorf("Remove = %v, want nil", err)
		}
	}()
	msg := func() *messaging.Message { return &messaging.Message{ID: messaging.NewID(), Topic: "alarm"} }
	if err := p.Publish(ctx, msg()); err != nil {
		t.Fatalf("Publish = %v, want nil", err)
	}
	s.Ctl("set_vm_memory_high_watermark", "0.00001")
	// The broker tells a connection of the alarm only when it has published something.
	var blocked, unknown int
	eventually(t, func() bool {
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		switch err := p.Publish(short, msg()); {
		case errors.Is(err, messaging.ErrUnknown):
			unknown++
		case errors.Is(err, messaging.ErrBlocked):
			blocked++
		}
		return blocked >= 3
	}, "Publish is blocked")
	if unknown > 1 {
		t.Errorf("%d outcomes unknown, want at most the one message that met the alarm", unknown)
	}
	if !p.Stats().Blocked {
		t.Error("Stats().Blocked = false, want true")
	}
	if err := p.Check(ctx); !errors.Is(err, messaging.ErrBlocked) {
		t.Errorf("Check = %v, want ErrBlocked", err)
	}
	waits := make(chan error, 1)
	go func() { waits <- p.Publish(ctx, msg()) }()
	s.Ctl("set_vm_memory_high_watermark", "absolute", "1GB")
	if err := <-waits; err != nil {
		t.Errorf("Publish = %v, want nil when the alarm is over", err)
	}
	if err := p.Check(ctx); err != nil {
		t.Errorf("Check = %v, want nil when the alarm is over", err)
	}
}

// timeout lets a handler take longer than the broker's consumer_timeout, which ends its
// channel. The message comes again, and so does the position of a group that is idle.
func timeout(t *testing.T, s *server.Rabbit) {
	s.Ctl("eval", "application:set_env(rabbit, consumer_timeout, 1000), application:set_env(rabbit, channel_tick_interval, 300).")
	defer s.Ctl("eval", "application:set_env(rabbit, consumer_timeout, 1800000), application:set_env(rabbit, channel_tick_interval, 60000).")
	p := connect(t, s, "timeout")
	defer p.close()
	slow := messaging.Subscription{Group: "slow", Topics: []string{"timeout"}}
	idle := messaging.Subscription{Group: "idle", Topics: []string{"timeout"}, From: messaging.FromFirst()}
	if err := p.Declare(t.Context(), slow, idle); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		for _, group := range []string{"slow", "idle"} {
			if err := p.Remove(t.Context(), group); err != nil {
				t.Errorf("Remove(%s) = %v, want nil", group, err)
			}
		}
	}()
	var deliveries, read atomic.Int64
	released := make(chan struct{})
	handlers := map[string]messaging.HandlerFunc{
		"slow": func(_ context.Context, d *messaging.Delivery) error {
			if deliveries.Add(1) == 1 {
				<-released // the channel is gone by then, and this acknowledgement goes nowhere
			}
			return nil
		},
		"idle": func(context.Context, *messaging.Delivery) error { read.Add(1); return nil },
	}
	for _, sub := range []messaging.Subscription{slow, idle} {
		wg.Go(func() {
			if err := p.Subscribe(ctx, sub, handlers[sub.Group]); err != nil {
				t.Errorf("Subscribe(%s) = %v, want nil", sub.Group, err)
			}
		})
	}
	msg := func() *messaging.Message { return &messaging.Message{ID: messaging.NewID(), Topic: "timeout"} }
	if err := p.Publish(t.Context(), msg()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return deliveries.Load() == 2 && read.Load() > 0 }, "the message is delivered again")
	close(released)
	before := read.Load()
	if err := p.Publish(t.Context(), msg()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return deliveries.Load() == 3 && read.Load() > before }, "the next message is delivered")
	eventually(t, func() bool { return p.Stats().StaleAcks > 0 }, "the late acknowledgement is counted")
}

// unconfirmed stops a queue inside the broker, which goes on in all else. A message that
// waits for it must not hold its place for ever.
func unconfirmed(t *testing.T, s *server.Rabbit) {
	const group = "unconfirmed"
	owner := connect(t, s, "owner")
	defer owner.close()
	sub := messaging.Subscription{Group: group, Topics: []string{group}}
	if err := owner.Declare(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	c, err := rabbitkit.New(s.URL, rabbitkit.Config{
		Exchange: "chaos", Log: logs, Window: 1, Timeout: time.Second, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := &messaging.Message{ID: messaging.NewID(), Topic: group}
	if err := c.Publish(t.Context(), m); err != nil {
		t.Fatalf("Publish = %v, want nil", err)
	}
	queue := fmt.Sprintf("whereis(binary_to_atom(<<\"dovetail_chaos.group.%s\">>))", group)
	s.Ctl("eval", "sys:suspend("+queue+").")
	if err := c.Publish(t.Context(), m); !errors.Is(err, messaging.ErrUnknown) || !strings.Contains(err.Error(), "not confirmed") {
		t.Errorf("Publish = %v, want ErrUnknown although its context goes on", err)
	}
	s.Ctl("eval", "sys:resume("+queue+").")
	eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return c.Publish(ctx, m) == nil
	}, "the message is confirmed")
	if err := owner.Remove(t.Context(), group); err != nil {
		t.Errorf("Remove = %v, want nil", err)
	}
}

// retention removes what a group has not read, which the group is told. It is here because
// the stream must not be deleted: RabbitMQ 3.10 restarts the writers of all streams when one
// is deleted while its retention is looked at.
func retention(t *testing.T, s *server.Rabbit) {
	var out lockedBuffer
	c, err := rabbitkit.New(s.URL, rabbitkit.Config{
		Exchange: "retention", Log: rabbitkit.Log{MaxBytes: 2_000_000, SegmentBytes: 1_000_000},
		Logger: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	old := messaging.Subscription{Group: "old", Topics: []string{"t"}, From: messaging.FromFirst()}
	late := old
	late.Group = "late"
	if err := c.Declare(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	publish := func(n int) (last string) {
		all := make([]*messaging.Message, n)
		for i := range all {
			all[i] = &messaging.Message{ID: messaging.NewID(), Topic: "t", Body: make([]byte, 2000)}
		}
		if err := c.Publish(t.Context(), all...); err != nil {
			t.Fatal(err)
		}
		return all[n-1].ID
	}
	// read handles messages of a group until one has come, and returns how many there were.
	read := func(sub messaging.Subscription, last string) int {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		n := 0
		sub.Concurrency = 1
		err := c.Subscribe(ctx, sub, messaging.HandlerFunc(func(_ context.Context, d *messaging.Delivery) error {
			n++
			if d.Message.ID == last {
				cancel()
			}
			return nil
		}))
		if err != nil || context.Cause(ctx) != context.Canceled {
			t.Fatalf("Subscribe(%s) = %v, %v, want the last message", sub.Group, err, context.Cause(ctx))
		}
		return n
	}
	read(old, publish(1))
	// Far more than fits. A file takes several calls, so that retention has ended when the next
	// one begins: a file that begins while it looks lets it fail in RabbitMQ 3.10, which then
	// restarts the writers of all streams, and never confirms what they had in hand.
	const many = 3000
	for range many / 250 {
		publish(250)
	}
	// When the file that it writes is full the broker begins another with whatever comes next,
	// if only a reader, and then removes the oldest ones until MaxBytes holds the rest: a file
	// that is larger goes whole. So the message that must stay comes by itself, into a file that
	// is not full; and what will go has gone when retention has answered.
	last := publish(1)
	s.Ctl("eval", "sys:get_state(osiris_retention).")
	if n := read(late, last); n >= many {
		t.Errorf("a new group read %d messages, want fewer than %d", n, many)
	}
	if text := out.String(); text != "" {
		t.Errorf("logged %q, want nothing: a new group begins with what there is", text)
	}
	if n := read(old, last); n >= many {
		t.Errorf("the old group read %d messages, want fewer than %d", n, many)
	}
	if text := out.String(); !strings.Contains(text, "no longer holds") || !strings.Contains(text, "group=old") || !strings.Contains(text, "from=1") {
		t.Errorf("logged %q, want that the log no longer holds what the group has not read, from 1 on", text)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var errRandom = errors.New("a failure now and then")

func storm(t *testing.T, s *server.Rabbit) {
	atStart := runtime.NumGoroutine()
	schedule := messaging.Backoff{Base: 20 * time.Millisecond, Max: 50 * time.Millisecond}
	ordered := messaging.Subscription{Group: "ordered", Topics: []string{"order.*"}, Ordered: true, Prefetch: 200, MaxDeliveries: -1, Backoff: schedule}
	shared := messaging.Subscription{Group: "shared", Topics: []string{"#"}, Concurrency: 4, Prefetch: 50, MaxDeliveries: -1, Backoff: schedule}
	replayed := messaging.Subscription{Group: "replayed", Topics: []string{"order.#"}, Ordered: true, Prefetch: 200, MaxDeliveries: -1, Backoff: schedule, From: messaging.FromFirst()}
	check := messagingtest.NewChecker(ordered, shared, replayed)

	peers := []*peer{connect(t, s, "publisher 1"), connect(t, s, "publisher 2"), connect(t, s, "consumer 1"), connect(t, s, "consumer 2")}
	senders, receivers := peers[:2], peers[2:]
	admin := connect(t, s, "admin")
	if err := admin.Declare(t.Context(), ordered, shared, replayed); err != nil {
		t.Fatal(err)
	}
	subscribed, stopSubscribers := context.WithCancel(context.Background())
	defer stopSubscribers()
	var subscriptions, sending sync.WaitGroup
	deliveries := map[string]*atomic.Int64{ordered.Group: new(atomic.Int64), shared.Group: new(atomic.Int64), replayed.Group: new(atomic.Int64)}
	for _, r := range receivers {
		for _, sub := range []messaging.Subscription{ordered, shared, shared, replayed} {
			h := check.Handler(sub, messaging.HandlerFunc(func(_ context.Context, d *messaging.Delivery) error {
				deliveries[d.Group].Add(1)
				switch rand.IntN(100) {
				case 0: // holds its message over what comes
					time.Sleep(50 * time.Millisecond)
				case 1:
					if d.Attempt == 1 {
						return errRandom
					}
				}
				return nil
			}))
			subscriptions.Go(func() {
				if err := r.Subscribe(subscribed, sub, h); err != nil {
					t.Errorf("Subscribe(%s) = %v, want nil", sub.Group, err)
				}
			})
		}
	}

	stop := make(chan struct{})
	least, pause := size()
	var sent atomic.Int64
	outcomes := make(map[string]int)
	var mu sync.Mutex
	for n := range publishers {
		pub := check.Publisher(senders[n%len(senders)])
		sending.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				left := make([]*messaging.Message, batch)
				for i := range left {
					left[i] = &messaging.Message{ID: messaging.NewID(), Topic: "order.placed", Key: fmt.Sprintf("%d-%d", n, i), Time: time.Now(), Body: make([]byte, 200)}
				}
				// One message of a key in flight, until it is confirmed: so order is kept.
				for len(left) > 0 {
					ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
					err := pub.Publish(ctx, left...)
					cancel()
					var again []*messaging.Message
					if pe := (*messaging.PublishError)(nil); errors.As(err, &pe) {
						mu.Lock()
						for _, f := range pe.Failed {
							again = append(again, left[f.Index])
							for name, kind := range map[string]error{"unknown": messaging.ErrUnknown, "blocked": messaging.ErrBlocked, "refused": messaging.ErrRefused} {
								if errors.Is(f.Err, kind) {
									outcomes[name]++
								}
							}
						}
						mu.Unlock()
					}
					left = again
				}
				sent.Add(batch)
				time.Sleep(pause)
			}
		})
	}
	defer func() {
		select {
		case <-stop:
		default:
			close(stop)
		}
		sending.Wait()
	}()

	flows := func(what string) {
		t.Helper()
		const some = 2 * publishers * batch
		before := sent.Load()
		eventually(t, func() bool { return sent.Load() >= before+some }, "messages are confirmed "+what)
		for group, n := range deliveries {
			before := n.Load()
			eventually(t, func() bool { return n.Load() >= before+some }, "group "+group+" gets messages "+what)
		}
	}
	flows("at first")
	s.Restart() // what was declared is on disk now: see server.Rabbit
	flows("after the first restart")
	eventually(t, func() bool { return allConnected(senders, receivers) }, "all are connected")
	// What stands when all is connected is what may stand at the end.
	goroutines, channels, memory := 0, 0, heap()
	for range 10 {
		time.Sleep(200 * time.Millisecond)
		goroutines = max(goroutines, runtime.NumGoroutine())
	}
	channels = countChannels(s)

	all := func(do func(*peer)) func() {
		return func() {
			for _, p := range peers {
				do(p)
			}
		}
	}
	one := func(do func(*messagingtest.Proxy)) func() {
		return func() { do(peers[rand.IntN(len(peers))].proxy) }
	}
	heal := all(func(p *peer) { p.proxy.Heal() })
	faults := []fault{
		{"killed", s.Kill, s.Start, 0},
		{"cut", all(func(p *peer) { p.proxy.Cut() }), heal, 0},
		{"paused", s.Pause, s.Resume, 3 * time.Second},
		{"one cut in the middle of a frame", one(func(p *messagingtest.Proxy) { p.CutAfter(messagingtest.ToServer, 777) }), heal, time.Second},
		{"one half open", one(func(p *messagingtest.Proxy) { p.HalfOpen(messagingtest.ToServer) }), heal, 3 * time.Second},
		{"one stalled", one(func(p *messagingtest.Proxy) { p.Stall(messagingtest.Both) }), heal, 3 * time.Second},
		{"all down", all(func(p *peer) { p.proxy.Down() }), heal, time.Second},
	}
	if pause == 0 {
		faults = append(faults, fault{"stopped and started", s.Stop, s.Start, 0}) // the short run has had it above
	}
	started := time.Now()
	rounds := 0
	for ; rounds == 0 || sent.Load() < least; rounds++ {
		for _, f := range faults {
			f.begin()
			time.Sleep(f.lasts)
			f.end()
			flows("after: " + f.name)
		}
	}
	close(stop)
	sending.Wait()
	for end := time.Now().Add(patience); !check.Done() && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
	}
	report := check.Report()
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if report.Unknown+report.Refused > 0 {
		t.Errorf("%d messages unknown, %d refused, want all confirmed in the end", report.Unknown, report.Refused)
	}
	var stale, reconnects int64
	for _, p := range peers {
		st := p.Stats()
		stale += st.StaleAcks
		reconnects += st.Reconnects
		if st.Reconnects == 0 {
			t.Error("a client never had to reconnect, so nothing was proved")
		}
		if st.InFlight != 0 {
			t.Errorf("Stats().InFlight = %d, want 0 when all is done", st.InFlight)
		}
	}
	t.Logf("%d faults in %v: %d reconnects, %d stale acknowledgements refused, tries that failed %v\n%v",
		rounds*len(faults), time.Since(started).Round(time.Second), reconnects, stale, outcomes, report)

	eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines }, fmt.Sprintf("there are no more than the %d goroutines of the beginning", goroutines))
	eventually(t, func() bool { return countChannels(s) <= channels }, fmt.Sprintf("the broker has no more than the %d channels of the beginning", channels))
	// Duplicates included. The broker counts the messages of a quorum queue every few seconds.
	eventually(t, func() bool { return len(notEmpty(s)) == 0 }, "every queue is empty: all is handled and acknowledged")
	check, report = nil, messagingtest.Report{}
	stopSubscribers()
	subscriptions.Wait()
	grown := float64(heap()-memory) / (1 << 20)
	t.Logf("goroutines %d, channels %d, heap %+.1f MiB since all were connected", runtime.NumGoroutine(), channels, grown)
	if grown > 32 {
		t.Errorf("the heap has grown by %.1f MiB, want it flat", grown)
	}
	for _, p := range append(peers, admin) {
		p.close()
	}
	eventually(t, func() bool { return runtime.NumGoroutine() <= atStart }, "no goroutine is left of the clients")
}

// fault is something that happens to the broker or its connections for a while.
type fault struct {
	name       string
	begin, end func()
	lasts      time.Duration
}

func allConnected(senders, receivers []*peer) bool {
	for _, p := range senders {
		if !p.Stats().Connected {
			return false
		}
	}
	for _, p := range receivers {
		if st := p.Stats(); !st.Connected || !st.Consuming {
			return false
		}
	}
	return true
}

// notEmpty returns the queues with messages that should have gone.
func notEmpty(s *server.Rabbit) (names []string) {
	for line := range strings.Lines(s.Ctl("list_queues", "--no-table-headers", "-p", "dovetail", "name", "messages")) {
		name, n, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if n != "0" && !strings.HasSuffix(name, ".log") && !strings.Contains(name, ".position.") {
			names = append(names, name)
		}
	}
	return names
}

func countChannels(s *server.Rabbit) int {
	return strings.Count(s.Ctl("list_channels", "--no-table-headers", "pid"), "<")
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
