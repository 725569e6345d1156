// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingmem_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
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
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

var errTest = errors.New("the test says no")

func open(t testing.TB, cfg messagingmem.Config) *messagingmem.Broker {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = quiet
	}
	b, err := messagingmem.New(cfg)
	if err != nil {
		t.Fatalf("New = %v, want nil", err)
	}
	return b
}

func msg(topic, key string) *messaging.Message {
	return &messaging.Message{ID: messaging.NewID(), Topic: topic, Key: key}
}

func declare(t *testing.T, b *messagingmem.Broker, s ...messaging.Subscription) {
	t.Helper()
	if err := b.Declare(t.Context(), s...); err != nil {
		t.Fatalf("Declare = %v, want nil", err)
	}
}

func publish(t *testing.T, b *messagingmem.Broker, ms ...*messaging.Message) {
	t.Helper()
	if err := b.Publish(t.Context(), ms...); err != nil {
		t.Fatalf("Publish = %v, want nil", err)
	}
}

// subscribe subscribes in the background and returns a function that ends it.
func subscribe(t *testing.T, b *messagingmem.Broker, s messaging.Subscription, h messaging.HandlerFunc) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := b.Subscribe(ctx, s, h); err != nil {
			t.Errorf("Subscribe = %v, want nil", err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

func TestConfig(t *testing.T) {
	for field, cfg := range map[string]messagingmem.Config{
		"MaxDeadLetters": {MaxDeadLetters: -1},
		"Capacity":       {Capacity: -1},
		"Retain":         {Retain: -1},
	} {
		if _, err := messagingmem.New(cfg); err == nil || !strings.Contains(err.Error(), "Config."+field+" is -1, want") {
			t.Errorf("New with %s -1 = %v, want an error that names it", field, err)
		}
	}
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, messagingmem.Config{ConfirmOnAck: true, Capacity: 1})
		s := messaging.Subscription{Group: "g", Topics: []string{"t"}, Concurrency: 1}
		declare(t, b, s)
		started, release := make(chan struct{}), make(chan struct{})
		subscribed := make(chan error, 1)
		go func() {
			subscribed <- b.Subscribe(t.Context(), s, messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error {
				close(started)
				<-release
				return errTest
			}))
		}()
		published, blocked := make(chan error, 1), make(chan error, 1)
		go func() { published <- b.Publish(t.Context(), msg("t", "")) }()
		<-started
		go func() { blocked <- b.Publish(t.Context(), msg("t", "")) }()
		synctest.Wait()

		for range 2 {
			if err := b.Close(); err != nil {
				t.Errorf("Close = %v, want nil", err)
			}
		}
		if err := <-published; !errors.Is(err, messaging.ErrUnknown) || !errors.Is(err, messaging.ErrClosed) {
			t.Errorf("Publish that waited for its group = %v, want ErrUnknown, ErrClosed", err)
		}
		if err := <-blocked; !errors.Is(err, messaging.ErrRefused) || !errors.Is(err, messaging.ErrClosed) {
			t.Errorf("Publish that waited for room = %v, want ErrRefused, ErrClosed", err)
		}
		synctest.Wait()
		select {
		case err := <-subscribed:
			t.Errorf("Subscribe = %v while its handler runs", err)
		default:
		}
		close(release)
		if err := <-subscribed; !errors.Is(err, messaging.ErrClosed) {
			t.Errorf("Subscribe = %v, want ErrClosed", err)
		}
		for name, err := range map[string]error{
			"Publish":   b.Publish(t.Context(), msg("t", "")),
			"Declare":   b.Declare(t.Context(), s),
			"Subscribe": b.Subscribe(t.Context(), s, messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { return nil })),
			"Replay":    b.Replay(t.Context(), messaging.DeadLetter{Delivery: messaging.Delivery{Message: msg("t", ""), Group: "g"}}),
		} {
			if !errors.Is(err, messaging.ErrClosed) {
				t.Errorf("%s after Close = %v, want ErrClosed", name, err)
			}
		}
	})
}

func TestPublishAgainJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, messagingmem.Config{ConfirmOnAck: true})
		s := messaging.Subscription{Group: "g", Topics: []string{"t"}}
		declare(t, b, s)
		m := msg("t", "")
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := b.Publish(ctx, m); !errors.Is(err, messaging.ErrUnknown) {
				t.Errorf("Publish = %v, want ErrUnknown", err)
			}
			cancel()
		}
		var calls atomic.Int64
		subscribe(t, b, s, func(context.Context, *messaging.Delivery) error { calls.Add(1); return nil })
		synctest.Wait()
		if n := calls.Load(); n != 1 {
			t.Errorf("the handler ran %d times for one message published 3 times, want once", n)
		}
		publish(t, b, m)
		if n := calls.Load(); n != 2 {
			t.Errorf("the handler ran %d times, want 2: a finished message that is published again is new", n)
		}
	})
}

// A publisher that is woken but cannot use the room must pass it on.
func TestCapacityPassesRoomOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, messagingmem.Config{Capacity: 1})
		a := messaging.Subscription{Group: "a", Topics: []string{"a", "both"}, Concurrency: 1}
		z := messaging.Subscription{Group: "z", Topics: []string{"z", "both"}, Concurrency: 1}
		declare(t, b, a, z)
		publish(t, b, msg("a", ""), msg("z", "")) // both full

		done := make(chan string, 3)
		go func() { _ = b.Publish(t.Context(), msg("both", "")); done <- "both" }()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = b.Publish(ctx, msg("a", "")); done <- "cancelled" }()
		synctest.Wait()
		go func() { _ = b.Publish(t.Context(), msg("a", "")); done <- "a" }()
		synctest.Wait()
		if s := b.Stats(); s.Groups[0].Publishers != 3 || s.Groups[1].Publishers != 0 {
			t.Errorf("publishers waiting = %+v, want 3 at a", s.Groups)
		}
		cancel()
		if who := <-done; who != "cancelled" {
			t.Errorf("%s went on, want the cancelled one", who)
		}

		// Room in a wakes "both", which then waits for z: its room goes to "a".
		stop := subscribe(t, b, a, func(context.Context, *messaging.Delivery) error { return nil })
		synctest.Wait()
		if who := <-done; who != "a" {
			t.Errorf("%s went on, want a", who)
		}
		stop()
		if s := b.Stats(); s.Groups[0].Publishers != 0 || s.Groups[1].Publishers != 1 {
			t.Errorf("publishers waiting = %+v, want 1 at z", s.Groups)
		}
		subscribe(t, b, a, func(context.Context, *messaging.Delivery) error { return nil })
		subscribe(t, b, z, func(context.Context, *messaging.Delivery) error { return nil })
		if who := <-done; who != "both" {
			t.Errorf("%s went on, want both", who)
		}
	})
}

// So must one that is woken and finds its message there already.
func TestCapacityPassesRoomOnByJoining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, messagingmem.Config{Capacity: 2, ConfirmOnAck: true})
		s := messaging.Subscription{Group: "g", Topics: []string{"t"}, Concurrency: 1}
		declare(t, b, s)
		var publishers sync.WaitGroup
		for _, id := range []string{"a", "b", "x", "x", "y"} {
			publishers.Go(func() { publish(t, b, &messaging.Message{ID: id, Topic: "t"}) })
			synctest.Wait()
		}
		release := make(chan struct{})
		subscribe(t, b, s, func(_ context.Context, d *messaging.Delivery) error {
			if d.Message.ID == "x" {
				<-release
			}
			return nil
		})
		synctest.Wait()
		if g := b.Stats().Groups[0]; g.Publishers != 0 || g.Ready != 1 || g.InFlight != 1 {
			t.Errorf("Stats = %+v, want x with its handler, y ready and no publisher waiting", g)
		}
		close(release)
		publishers.Wait()
	})
}

func TestRetriesComeInTheOrderOfTheirTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, messagingmem.Config{})
		s := messaging.Subscription{Group: "g", Topics: []string{"t"}, Concurrency: 1}
		declare(t, b, s)
		delays := map[string]time.Duration{"hour": time.Hour, "minute": time.Minute, "second": time.Second, "day": 24 * time.Hour}
		for _, id := range []string{"hour", "minute", "second", "day"} {
			publish(t, b, &messaging.Message{ID: id, Topic: "t"})
		}
		start := time.Now()
		got := make(map[string]time.Duration)
		subscribe(t, b, s, func(_ context.Context, d *messaging.Delivery) error {
			if d.Attempt == 1 {
				return fault.RetryAfter(errTest, delays[d.Message.ID])
			}
			got[d.Message.ID] = time.Since(start)
			return nil
		})
		time.Sleep(48 * time.Hour)
		synctest.Wait()
		if !maps.Equal(got, delays) {
			t.Errorf("delivered again after %v, want %v", got, delays)
		}
	})
}

func TestDeadLetters(t *testing.T) {
	reject := func(context.Context, *messaging.Delivery) error { return messaging.Reject(errTest) }
	s := messaging.Subscription{Group: "g", Topics: []string{"t"}}

	t.Run("in memory they are bounded, and what does not fit stays in the queue", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := open(t, messagingmem.Config{MaxDeadLetters: 2})
			declare(t, b, s)
			publish(t, b, msg("t", ""), msg("t", ""), msg("t", ""))
			var calls atomic.Int64
			subscribe(t, b, s, func(ctx context.Context, d *messaging.Delivery) error { calls.Add(1); return reject(ctx, d) })
			time.Sleep(time.Hour)
			if g := b.Stats().Groups[0]; g.Dead != 2 || g.Ready+g.Delayed+g.InFlight != 1 || g.DeadLettered != 2 || calls.Load() != 3 {
				t.Errorf("Stats = %+v after %d calls, want 2 dead and 1 waiting after 3 calls", g, calls.Load())
			}
			if n := b.Discard(b.DeadLetters()[0]); n != 1 {
				t.Errorf("Discard = %d, want 1", n)
			}
			time.Sleep(time.Hour)
			if g := b.Stats().Groups[0]; g.Dead != 2 || g.Delayed != 0 || calls.Load() != 3 {
				t.Errorf("Stats = %+v after %d calls, want the third put away without another call", g, calls.Load())
			}
			dead := b.DeadLetters()
			if n := b.Discard(append(dead, messaging.DeadLetter{}, dead[0])...); n != 2 {
				t.Errorf("Discard = %d, want 2", n)
			}
		})
	})

	t.Run("a sink that fails, panics or exits is tried again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var tries atomic.Int64
			var got messaging.DeadLetter
			var logged bytes.Buffer
			b := open(t, messagingmem.Config{
				Logger: slog.New(slog.NewTextHandler(&logged, nil)),
				DeadLetter: func(ctx context.Context, dl messaging.DeadLetter) error {
					if _, ok := ctx.Deadline(); !ok {
						t.Error("the sink's context has no deadline")
					}
					switch tries.Add(1) {
					case 1:
						return errTest
					case 2:
						panic(errTest)
					case 3:
						runtime.Goexit()
					}
					got = dl
					return nil
				},
			})
			one := s
			one.Concurrency = 1
			declare(t, b, one)
			publish(t, b, msg("t", ""), msg("t", ""))
			var calls atomic.Int64
			subscribe(t, b, one, func(ctx context.Context, d *messaging.Delivery) error {
				if calls.Add(1) == 1 {
					return reject(ctx, d)
				}
				return nil
			})
			time.Sleep(time.Hour)
			synctest.Wait() // also for the race detector
			if tries.Load() != 4 || calls.Load() != 2 || got.Reason != errTest.Error() {
				t.Errorf("%d tries, %d handler calls, reason %q; want 4, 2, %q", tries.Load(), calls.Load(), got.Reason, errTest)
			}
			if n := strings.Count(logged.String(), `level=ERROR msg="dead letter not put away`); n != 3 {
				t.Errorf("logged %d failures, want 3:\n%s", n, logged.String())
			}
			if n := strings.Count(logged.String(), `level=WARN msg="message became a dead letter"`); n != 1 {
				t.Errorf("logged %d dead letters, want 1:\n%s", n, logged.String())
			}
		})
	})

	t.Run("Replay with ConfirmOnAck returns when the group has finished", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := open(t, messagingmem.Config{ConfirmOnAck: true})
			declare(t, b, s)
			stop := subscribe(t, b, s, reject)
			publish(t, b, msg("t", ""))
			stop()
			dead := b.DeadLetters()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := b.Replay(ctx, dead...); !errors.Is(err, messaging.ErrUnknown) {
				t.Errorf("Replay without subscriber = %v, want ErrUnknown", err)
			}
			var handled atomic.Bool
			subscribe(t, b, s, func(context.Context, *messaging.Delivery) error { handled.Store(true); return nil })
			if err := b.Replay(t.Context(), dead...); err != nil || !handled.Load() {
				t.Errorf("Replay = %v, handled %t, want nil, true", err, handled.Load())
			}
		})
	})

	t.Run("Replay names what it cannot replay", func(t *testing.T) {
		b := open(t, messagingmem.Config{})
		declare(t, b, s)
		m := msg("t", "")
		err := b.Replay(t.Context(),
			messaging.DeadLetter{Delivery: messaging.Delivery{Message: m, Group: "g"}},
			messaging.DeadLetter{Delivery: messaging.Delivery{Message: m, Group: "nobody"}})
		var pe *messaging.PublishError
		if !errors.As(err, &pe) || len(pe.Failed) != 1 || pe.Failed[0].Index != 1 || !errors.Is(err, messaging.ErrUnroutable) {
			t.Errorf("Replay = %v, want ErrUnroutable for the second", err)
		}
		if err := b.Replay(t.Context(), messaging.DeadLetter{}); !errors.Is(err, messaging.ErrRefused) {
			t.Errorf("Replay of nothing = %v, want ErrRefused", err)
		}
	})
}

func TestTemporaryGroupFreesItsPublishers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, messagingmem.Config{ConfirmOnAck: true, Capacity: 2})
		s := messaging.Subscription{Group: "g", Topics: []string{"t"}, Concurrency: 1, Temporary: true, Ordered: true, DrainTimeout: -1}
		declare(t, b, s)
		done := make(chan error, 3)
		started := make(chan struct{})
		stop := subscribe(t, b, s, func(ctx context.Context, _ *messaging.Delivery) error {
			close(started)
			<-ctx.Done()
			return ctx.Err()
		})
		for range 3 {
			go func() { done <- b.Publish(t.Context(), msg("t", "k")) }()
		}
		<-started
		synctest.Wait()
		stop()
		var confirmed, unroutable int
		for range 3 {
			switch err := <-done; {
			case err == nil:
				confirmed++
			case errors.Is(err, messaging.ErrUnroutable):
				unroutable++
			}
		}
		if confirmed != 2 || unroutable != 1 {
			t.Errorf("%d confirmed, %d unroutable, want 2 and 1", confirmed, unroutable)
		}
		if n := len(b.Stats().Groups); n != 0 {
			t.Errorf("%d groups are left, want 0", n)
		}
	})
}

func TestTemporaryGroupForgetsItsRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, messagingmem.Config{ConfirmOnAck: true})
		s := messaging.Subscription{Group: "g", Topics: []string{"t"}, Temporary: true}
		declare(t, b, s)
		stop := subscribe(t, b, s, func(context.Context, *messaging.Delivery) error { return fault.RetryAfter(errTest, time.Hour) })
		done := make(chan error, 1)
		go func() { done <- b.Publish(t.Context(), msg("t", "")) }()
		synctest.Wait()
		start := time.Now()
		stop()
		if err := <-done; err != nil || time.Since(start) != 0 {
			t.Errorf("Publish = %v after %v, want nil with the end of the group", err, time.Since(start))
		}
	})
}

func TestDropUnroutable(t *testing.T) {
	b := open(t, messagingmem.Config{DropUnroutable: true})
	if err := b.Publish(t.Context(), msg("nobody.listens", "")); err != nil {
		t.Errorf("Publish = %v, want nil", err)
	}
}

func TestRetainForgetsTheOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, messagingmem.Config{Retain: 3, DropUnroutable: true})
		s := messaging.Subscription{Group: "all", Topics: []string{"#"}}
		declare(t, b, s)
		var sent []string
		for range 8 {
			m := msg("t", "")
			sent = append(sent, m.ID)
			publish(t, b, m)
		}
		for i, c := range []struct {
			from messaging.Start
			want []string
		}{
			{messaging.FromFirst(), sent[5:]},
			{messaging.FromOffset(0), sent[5:]},
			{messaging.FromOffset(7), sent[6:]},
			{messaging.FromOffset(9), nil},
			{messaging.FromTime(time.Now().Add(time.Second)), nil},
			{messaging.Start{}, nil},
		} {
			s := messaging.Subscription{Group: fmt.Sprint("g", i), Topics: []string{"t"}, Concurrency: 1, From: c.from}
			var got []string
			stop := subscribe(t, b, s, func(_ context.Context, d *messaging.Delivery) error {
				got = append(got, d.Message.ID)
				return nil
			})
			synctest.Wait()
			stop()
			if !slices.Equal(got, c.want) {
				t.Errorf("from %+v: got %v, want %v", c.from, got, c.want)
			}
		}
	})
}

func TestStatsAndHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var events []string
		record := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, fmt.Sprintf(format, args...))
		}
		var b *messagingmem.Broker
		b = open(t, messagingmem.Config{Hooks: messaging.Hooks{
			Published: func(p messaging.Published) { b.Stats(); record("published %s %t", p.Message.ID, p.Err == nil) },
			Delivered: func(d messaging.Delivered) { b.Stats(); record("delivered %s", d.Delivery.Message.ID) },
			Settled: func(s messaging.Settled) {
				b.Stats()
				record("settled %s %v %v", s.Delivery.Message.ID, s.Decision.Action, s.Took)
			},
		}})
		s := messaging.Subscription{Group: "g", Topics: []string{"t"}, Concurrency: 1, Ordered: true}
		declare(t, b, s)
		byID := map[string]error{
			"1-ack":    nil,
			"2-retry":  fault.RetryAfter(errTest, time.Minute),
			"3-drop":   messaging.Drop(errTest),
			"4-reject": messaging.Reject(errTest),
			"5-held":   nil,
			"6-ready":  nil,
		}
		for _, id := range []string{"1-ack", "2-retry", "3-drop", "4-reject", "5-held"} {
			key := id
			if id == "5-held" {
				key = "2-retry"
			}
			publish(t, b, &messaging.Message{ID: id, Topic: "t", Key: key})
		}
		stop := subscribe(t, b, s, func(_ context.Context, d *messaging.Delivery) error {
			time.Sleep(time.Second)
			return byID[d.Message.ID]
		})
		time.Sleep(10 * time.Second)
		stop()
		publish(t, b, &messaging.Message{ID: "6-ready", Topic: "t"})
		_ = b.Publish(t.Context(), &messaging.Message{ID: "7-lost", Topic: "nobody"})
		want := messagingmem.GroupStats{Group: "g", Ready: 1, Held: 1, Delayed: 1, Dead: 1, Acked: 1, Retried: 1, Dropped: 1, DeadLettered: 1}
		if got := b.Stats().Groups; len(got) != 1 || got[0] != want {
			t.Errorf("Stats = %+v, want %+v", got, want)
		}
		wantEvents := []string{
			"published 1-ack true", "published 2-retry true", "published 3-drop true", "published 4-reject true", "published 5-held true",
			"delivered 1-ack", "settled 1-ack acked 1s", "delivered 2-retry", "settled 2-retry retried 1s",
			"delivered 3-drop", "settled 3-drop dropped 1s", "delivered 4-reject", "settled 4-reject dead-lettered 1s",
			"published 6-ready true", "published 7-lost false",
		}
		if !slices.Equal(events, wantEvents) {
			t.Errorf("events:\n%s\nwant:\n%s", strings.Join(events, "\n"), strings.Join(wantEvents, "\n"))
		}
	})
}

// TestRandom lets random handlers, drains and publishers work on random brokers, and
// checks from what the hooks tell that each group settled each message exactly once and
// in its order.
func TestRandom(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { random(t, rand.New(rand.NewPCG(uint64(seed), 1))) })
		})
	}
}

func random(t *testing.T, rnd *rand.Rand) {
	const perKey, keys, topics = 15, 4, 3
	type result struct {
		ends  map[string]int      // final decisions, by message
		order map[string][]string // messages in the order of their end, by key
	}
	var mu sync.Mutex
	results := make(map[string]*result)
	ordered := make(map[string]bool)
	b := open(t, messagingmem.Config{
		ConfirmOnAck: rnd.IntN(2) == 0,
		Capacity:     1 + rnd.IntN(20),
		Hooks: messaging.Hooks{Settled: func(s messaging.Settled) {
			if s.Decision.Action == messaging.Retried {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			r, m := results[s.Delivery.Group], s.Delivery.Message
			r.ends[m.ID]++
			r.order[m.Key] = append(r.order[m.Key], m.ID)
		}},
	})
	var subs []messaging.Subscription
	for i := range 3 {
		s := messaging.Subscription{
			Group: fmt.Sprint("g", i), Topics: []string{"t.*"}, Concurrency: 1 + rnd.IntN(6), Ordered: rnd.IntN(2) == 0,
			MaxDeliveries: 1 + rnd.IntN(5), Backoff: messaging.Backoff{Base: time.Millisecond, Max: 10 * time.Millisecond},
			DrainTimeout: []time.Duration{-1, 5 * time.Millisecond, time.Second}[rnd.IntN(3)],
		}
		subs = append(subs, s)
		ordered[s.Group] = s.Ordered
		results[s.Group] = &result{make(map[string]int), make(map[string][]string)}
	}
	declare(t, b, subs...)

	handler := func(ctx context.Context, d *messaging.Delivery) error {
		select {
		case <-time.After(rand.N(3 * time.Millisecond)):
		case <-ctx.Done():
			return ctx.Err()
		}
		switch rand.IntN(12) {
		case 0:
			return errTest
		case 1:
			return fault.RetryAfter(errTest, rand.N(20*time.Millisecond))
		case 2:
			return messaging.Reject(errTest)
		case 3:
			return messaging.Drop(errTest)
		case 4:
			panic(errTest)
		case 5:
			runtime.Goexit()
		case 6:
			return &fault.Rejection{By: "test", Err: errTest}
		}
		return nil
	}
	// Subscribers come and go.
	stop := make(chan struct{})
	var consumers sync.WaitGroup
	for _, s := range subs {
		for range 2 {
			consumers.Go(func() {
				for {
					ctx, cancel := context.WithTimeout(t.Context(), rand.N(50*time.Millisecond))
					if err := b.Subscribe(ctx, s, messaging.HandlerFunc(handler)); err != nil {
						t.Errorf("Subscribe = %v, want nil", err)
					}
					cancel()
					select {
					case <-stop:
						return
					case <-time.After(rand.N(5 * time.Millisecond)):
					}
				}
			})
		}
	}
	sent := make(map[string][]string)
	var publishers sync.WaitGroup
	for k := range keys {
		publishers.Go(func() {
			key := fmt.Sprint("key-", k)
			for i := range perKey {
				m := &messaging.Message{ID: fmt.Sprintf("%s-%d", key, i), Topic: fmt.Sprint("t.", i%topics), Key: key}
				for {
					ctx, cancel := context.WithTimeout(t.Context(), rand.N(30*time.Millisecond))
					err := b.Publish(ctx, m)
					cancel()
					if err == nil || errors.Is(err, messaging.ErrUnknown) {
						break // it is there, and only one publisher has this key
					}
				}
				mu.Lock()
				sent[key] = append(sent[key], m.ID)
				mu.Unlock()
			}
		})
	}
	publishers.Wait()
	empty := func() bool {
		for _, g := range b.Stats().Groups {
			if g.Ready+g.Held+g.Delayed+g.InFlight+g.Publishers != 0 {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(time.Hour); !empty(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after an hour: %+v", b.Stats())
		}
	}
	close(stop)
	consumers.Wait()
	for group, r := range results {
		for key, ids := range sent {
			for _, id := range ids {
				if n := r.ends[id]; n != 1 {
					t.Errorf("group %s finished %s %d times, want once", group, id, n)
				}
			}
			if ordered[group] && !slices.Equal(r.order[key], ids) {
				t.Errorf("ordered group %s finished %v, want %v", group, r.order[key], ids)
			}
		}
	}
	for _, g := range b.Stats().Groups {
		if g.Subscribers != 0 || g.Acked+g.Dropped+g.DeadLettered != keys*perKey {
			t.Errorf("Stats = %+v, want %d finished and no subscribers", g, keys*perKey)
		}
	}
}

// Every way to leave a handler, a retry that waits, a publisher that gave up and one that
// waits: after Close all goroutines are gone.
func TestNoGoroutineIsLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	// The bubble itself would not end with a goroutine in it that waits for ever.
	synctest.Test(t, func(t *testing.T) {
		b := open(t, messagingmem.Config{
			Capacity: 20, ConfirmOnAck: true,
			DeadLetter: func(context.Context, messaging.DeadLetter) error { runtime.Goexit(); return nil },
		})
		s := messaging.Subscription{Group: "g", Topics: []string{"t"}, Concurrency: 30, DrainTimeout: -1}
		idle := messaging.Subscription{Group: "idle", Topics: []string{"t"}}
		declare(t, b, s, idle)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				_ = b.Subscribe(ctx, s, messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
					switch rand.IntN(6) {
					case 0:
						panic(errTest)
					case 1:
						runtime.Goexit()
					case 2:
						<-ctx.Done()
						return ctx.Err()
					case 3:
						return messaging.Reject(errTest)
					case 4:
						return fault.RetryAfter(errTest, time.Hour)
					}
					return nil
				}))
			})
		}
		for i := range 30 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Hour)
				defer cancel()
				_ = b.Publish(ctx, msg("t", ""))
			})
		}
		time.Sleep(10 * time.Hour)
		_ = b.Close()
		wg.Wait()
	})
	wantGoroutines(t, before)
}

// wantGoroutines waits until there are no more goroutines than before.
func wantGoroutines(t *testing.T, before int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, want the %d from before", runtime.NumGoroutine(), before)
		}
	}
}

// Real time and real goroutines, for the race detector and the count of goroutines.
func TestStress(t *testing.T) {
	before := runtime.NumGoroutine()
	b := open(t, messagingmem.Config{Capacity: 10, ConfirmOnAck: true})
	var subs []messaging.Subscription
	for i := range 4 {
		subs = append(subs, messaging.Subscription{Group: fmt.Sprint("g", i), Topics: []string{fmt.Sprintf("t.%d", i%2), "all"}, Ordered: i%2 == 0})
	}
	declare(t, b, subs...)
	ctx, cancel := context.WithCancel(t.Context())
	var consumers, publishers sync.WaitGroup
	var handled atomic.Int64
	for _, s := range subs {
		consumers.Go(func() {
			if err := b.Subscribe(ctx, s, messaging.HandlerFunc(func(_ context.Context, d *messaging.Delivery) error {
				if d.Attempt == 1 && rand.IntN(50) == 0 {
					return fault.RetryAfter(errTest, time.Microsecond)
				}
				handled.Add(1)
				return nil
			})); err != nil {
				t.Errorf("Subscribe = %v, want nil", err)
			}
		})
	}
	const n = 500
	for p := range 8 {
		publishers.Go(func() {
			for i := range n {
				topic := []string{"t.0", "t.1", "all"}[i%3]
				if err := b.Publish(ctx, msg(topic, fmt.Sprint(p))); err != nil {
					t.Errorf("Publish = %v, want nil", err)
				}
			}
		})
	}
	publishers.Wait()
	want := int64(0)
	for i := range n {
		want += int64([]int{2, 2, 4}[i%3] * 8)
	}
	if got := handled.Load(); got != want {
		t.Errorf("handled %d, want %d", got, want)
	}
	cancel()
	consumers.Wait()
	wantGoroutines(t, before)
}

func BenchmarkPublish(b *testing.B) {
	for _, bc := range []struct {
		name         string
		groups       int
		confirmOnAck bool
		ordered      bool
	}{
		{"one group", 1, false, false},
		{"ten groups", 10, false, false},
		{"one group ordered", 1, false, true},
		{"one group confirmed on ack", 1, true, false},
	} {
		b.Run(bc.name, func(b *testing.B) {
			broker := open(b, messagingmem.Config{ConfirmOnAck: bc.confirmOnAck})
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			for i := range bc.groups {
				s := messaging.Subscription{Group: fmt.Sprint("g", i), Topics: []string{"order.*"}, Ordered: bc.ordered}
				if err := broker.Declare(ctx, s); err != nil {
					b.Fatal(err)
				}
				wg.Go(func() {
					_ = broker.Subscribe(ctx, s, messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { return nil }))
				})
			}
			m := &messaging.Message{ID: "a", Topic: "order.placed", Key: "k", Type: "order.placed.v1", Body: make([]byte, 256)}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				mine := *m
				mine.ID = messaging.NewID()
				for pb.Next() {
					if err := broker.Publish(ctx, &mine); err != nil {
						b.Error(err)
						return
					}
				}
			})
			cancel()
			wg.Wait()
		})
	}
}
