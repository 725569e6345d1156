// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

func (r *runner) confirmOnAck() {
	if !r.h.ConfirmOnAck {
		r.t.Skip("Harness.ConfirmOnAck is false")
	}
	o := Options{ConfirmOnAck: true}

	r.sentence("Publish returns when every group has finished the message, retries included", o, func(e *env) {
		quick, slow := e.sub("quick", "t"), e.sub("slow", "t")
		e.declare(quick, slow)
		var got tape
		release := make(chan struct{})
		e.subscribe(quick, got.handle)
		e.subscribe(slow, func(ctx context.Context, d *messaging.Delivery) error {
			got.add(d)
			select {
			case <-release:
			case <-ctx.Done():
			}
			if d.Attempt < 3 {
				return errTest
			}
			return nil
		})
		done := make(chan error, 1)
		go func() { done <- e.Publish(e.Context(), msg("t", ""), msg("t", "")) }()
		e.eventually(func() bool { return got.len() == 4 }, "both messages are with both groups")
		e.quiet()
		select {
		case err := <-done:
			e.Fatalf("Publish = %v while a handler runs", err)
		default:
		}
		close(release)
		if err := <-done; err != nil {
			e.Errorf("Publish = %v, want nil", err)
		}
		if n := got.len(); n != 2+2*3 {
			e.Errorf("Publish returned after %d deliveries, want 8", n)
		}
	})

	for name, end := range map[string]func(error) error{"dead-lettered": messaging.Reject, "dropped": messaging.Drop} {
		r.sentence("a message that is "+name+" is finished", o, func(e *env) {
			s := e.sub("g", "t")
			e.declare(s)
			e.subscribe(s, func(context.Context, *messaging.Delivery) error { return end(errTest) })
			e.publishAll(msg("t", ""))
		})
	}

	r.sentence("the end of the publisher's context leaves the outcome unknown and the message there", o, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		m := msg("t", "")
		ctx, cancel := context.WithTimeout(e.Context(), 3*e.unit)
		defer cancel()
		err := e.Publish(ctx, m)
		f := e.failures(err)[0]
		if !errors.Is(f.Err, messaging.ErrUnknown) || !errors.Is(err, context.DeadlineExceeded) || !fault.IsUnknown(err) {
			e.Errorf("Publish = %v, want ErrUnknown and context.DeadlineExceeded, unknown to package fault", err)
		}
		var got tape
		e.subscribe(s, got.handle)
		e.eventually(func() bool { return got.len() > 0 }, "the message is delivered")
	})

	r.sentence("publishing a message again, whose outcome was unknown, ends in a confirmation", o, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		m := msg("t", "")
		for range 3 {
			ctx, cancel := context.WithTimeout(e.Context(), 3*e.unit)
			if err := e.Publish(ctx, m); !errors.Is(err, messaging.ErrUnknown) {
				e.Errorf("Publish = %v, want ErrUnknown", err)
			}
			cancel()
		}
		var got tape
		e.subscribe(s, got.handle)
		e.publishAll(m)
		if len(got.of(m)) == 0 {
			e.Error("Publish = nil before the message was handled")
		}
	})
}

func (r *runner) capacity() {
	if !r.h.Capacity {
		r.t.Skip("Harness.Capacity is false")
	}
	// fill publishes until the broker blocks, and returns what it took.
	fill := func(e *env) (taken []*messaging.Message) {
		e.Helper()
		for range 1000 {
			m := msg("t", "")
			ctx, cancel := context.WithTimeout(e.Context(), 3*e.unit)
			err := e.Publish(ctx, m)
			cancel()
			if err == nil {
				taken = append(taken, m)
				continue
			}
			if f := e.failures(err)[0]; !errors.Is(f.Err, messaging.ErrBlocked) || !errors.Is(err, context.DeadlineExceeded) {
				e.Fatalf("Publish = %v, want ErrBlocked and context.DeadlineExceeded", err)
			}
			return taken
		}
		e.Fatal("the broker never blocked")
		return nil
	}
	o := Options{Capacity: 5}

	r.sentence("a full broker blocks Publish until its context ends, and has not taken the message", o, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		taken := fill(e)
		var got tape
		e.subscribe(s, got.handle)
		e.wantOnce(&got, taken...)
	})

	r.sentence("blocked publishers go on when there is room again", o, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		all := fill(e)
		var wg sync.WaitGroup
		for range 20 {
			m := msg("t", "")
			all = append(all, m)
			wg.Go(func() {
				if err := e.Publish(e.Context(), m); err != nil {
					e.Errorf("Publish = %v, want nil", err)
				}
			})
		}
		e.quiet()
		var got tape
		e.subscribe(s, got.handle)
		wg.Wait()
		e.wantOnce(&got, all...)
	})
}

func (r *runner) log() {
	if !r.h.Log {
		r.unsupported("From", func(s *messaging.Subscription) { s.From = messaging.FromFirst() })
		return
	}
	o := Options{Log: true}
	// record publishes n messages and returns them with the offsets that a group saw.
	record := func(e *env, n int) ([]*messaging.Message, []messaging.Delivery) {
		e.Helper()
		s := e.sub("recorder", "t")
		s.Concurrency = 1
		s.From = messaging.FromFirst() // a group that does not read the log need not know offsets
		e.declare(s)
		all := msgs(n)
		for _, m := range all {
			e.publishAll(m)
		}
		var got tape
		one := e.subscribe(s, got.handle)
		e.wantOnce(&got, all...)
		one.stop()
		ds := got.deliveries()
		return all, ds
	}

	r.sentence("offsets grow in the order of publication", o, func(e *env) {
		_, ds := record(e, 20)
		last := make(map[int32]int64)
		for _, d := range ds {
			if before, ok := last[d.Partition]; ok && d.Offset <= before {
				e.Errorf("Offset = %d after %d in partition %d, want it to grow", d.Offset, before, d.Partition)
			}
			last[d.Partition] = d.Offset
		}
	})

	r.sentence("a new group from the first begins with the oldest message there is", o, func(e *env) {
		all, _ := record(e, 20)
		s := e.sub("new", "t")
		s.From = messaging.FromFirst()
		var got tape
		e.subscribe(s, got.handle)
		e.eventually(func() bool { return got.len() == len(all) }, "the old messages are delivered")
		more := msg("t", "")
		e.publishAll(more)
		e.wantOnce(&got, append(all, more)...)
	})

	r.sentence("a new group from an offset begins with that message", o, func(e *env) {
		_, ds := record(e, 20)
		from := ds[7].Offset
		s := e.sub("new", "t")
		s.From = messaging.FromOffset(from)
		var want []*messaging.Message
		for _, d := range ds {
			if d.Offset >= from {
				want = append(want, d.Message)
			}
		}
		var got tape
		e.subscribe(s, got.handle)
		e.wantOnce(&got, want...)
	})

	r.sentence("a new group from a time begins with what was published then", o, func(e *env) {
		record(e, 5)
		time.Sleep(e.unit + r.h.TimeStep)
		middle := time.Now()
		time.Sleep(e.unit)
		later := msgs(5)
		e.publishAll(later...)
		s := e.sub("new", "t")
		s.From = messaging.FromTime(middle)
		var got tape
		e.subscribe(s, got.handle)
		e.wantOnce(&got, later...)
	})

	r.sentence("a group that exists goes on where it was", o, func(e *env) {
		record(e, 10)
		s := e.sub("recorder", "t")
		s.From = messaging.FromFirst()
		var got tape
		e.subscribe(s, got.handle)
		e.quiet()
		if n := got.len(); n != 0 {
			e.Errorf("%d messages were delivered again, want 0", n)
		}
		more := msg("t", "")
		e.publishAll(more)
		e.wantOnce(&got, more)
	})

	r.sentence("a group that exists stays what it is, whatever From says", o, func(e *env) {
		record(e, 5)
		live := e.sub("live", "t")
		e.declare(live)
		live.From = messaging.FromFirst()
		past := e.sub("past", "t")
		past.From = messaging.FromFirst()
		e.declare(past)
		past.From = messaging.Start{}
		var fromNow, fromFirst tape
		e.subscribe(live, fromNow.handle)
		e.subscribe(past, fromFirst.handle)
		m := msg("t", "")
		e.publishAll(m)
		e.eventually(func() bool { return fromFirst.len() == 6 }, "the group from the first has all messages")
		e.wantOnce(&fromNow, m)
	})

	r.sentence("a subscriber goes on where another of its group left off", o, func(e *env) {
		all, _ := record(e, 60)
		s := e.sub("new", "t")
		s.From = messaging.FromFirst()
		var got tape
		for left := len(all); left > 0; left -= 20 {
			enough := make(chan struct{}, len(all))
			one := e.subscribe(s, func(ctx context.Context, d *messaging.Delivery) error {
				err := got.handle(ctx, d)
				enough <- struct{}{}
				return err
			})
			for range 20 {
				if got.len() < len(all) {
					e.until(enough, "another message is delivered")
				}
			}
			one.stop()
		}
		e.subscribe(s, got.handle)
		e.wantOnce(&got, all...)
	})

	r.sentence("only what matches the topics is delivered", o, func(e *env) {
		s := e.sub("keep", "#")
		e.declare(s)
		a, b := msg("a.1", ""), msg("b.1", "")
		e.publishAll(a, b)
		s = e.sub("new", "a.*")
		s.From = messaging.FromFirst()
		var got tape
		e.subscribe(s, got.handle)
		a2, b2 := msg("a.2", ""), msg("b.2", "")
		e.publishAll(b2, a2)
		e.wantOnce(&got, a, a2)
	})

	r.sentence("what fails is retried and then set aside, the others go on, and a replay brings it back", o, func(e *env) {
		all, ds := record(e, 20)
		s := e.sub("new", "t")
		s.From = messaging.FromFirst()
		s.MaxDeliveries = 3
		bad, wrong := all[3], true
		offsets := make(map[string]int64)
		for _, d := range ds {
			offsets[d.Message.ID] = d.Offset
		}
		var got tape
		var mu sync.Mutex
		e.subscribe(s, func(ctx context.Context, d *messaging.Delivery) error {
			mu.Lock()
			defer mu.Unlock()
			got.add(d)
			if d.Message.ID == bad.ID && wrong {
				return errTest
			}
			return nil
		})
		dead := e.wantDead("new", 1)
		if dl := dead[0]; dl.Message.ID != bad.ID || dl.Attempt != 3 || dl.Reason == "" {
			e.Errorf("dead letter = %s after %d attempts (%q), want %s after 3, with a reason", dl.Message.ID, dl.Attempt, dl.Reason, bad.ID)
		}
		e.eventually(func() bool { return got.len() >= len(all)+2 }, "all other messages are delivered")
		for i, m := range all {
			tries := got.of(m)
			if want := map[bool]int{true: 3, false: 1}[m == bad]; len(tries) != want {
				e.Errorf("message %d was delivered %d times, want %d", i, len(tries), want)
			}
			for n, d := range tries {
				if d.Attempt != n+1 || d.Offset != offsets[m.ID] {
					e.Errorf("message %d: delivery %d has Attempt %d, Offset %d, want %d, %d", i, n, d.Attempt, d.Offset, n+1, offsets[m.ID])
				}
			}
		}
		if e.Replay == nil {
			return
		}
		mu.Lock()
		wrong = false
		mu.Unlock()
		if err := e.Replay(e.Context(), dead...); err != nil {
			e.Fatalf("Replay = %v, want nil", err)
		}
		e.eventually(func() bool { return len(got.of(bad)) == 4 }, "the replayed message is delivered")
	})

	if r.h.Ordered {
		r.sentence("an ordered group that begins in the past keeps the order of each key, retries included", o, func(e *env) {
			keep := e.sub("keep", "t")
			e.declare(keep)
			const keys, each = 4, 12
			for i := range keys * each {
				e.publishAll(msg("t", fmt.Sprintf("key-%d", i%keys)))
			}
			s := e.sub("new", "t")
			s.From, s.Ordered = messaging.FromFirst(), true
			var done tape
			e.subscribe(s, func(_ context.Context, d *messaging.Delivery) error {
				if d.Attempt == 1 && d.Offset%5 == 0 {
					return errTest
				}
				done.add(d)
				return nil
			})
			e.eventually(func() bool { return done.len() >= keys*each }, "all messages are done")
			last := make(map[string]int64)
			for _, d := range done.deliveries() {
				if before, ok := last[d.Message.Key]; ok && d.Offset <= before {
					e.Errorf("key %s: Offset %d after %d, want the order of publication", d.Message.Key, d.Offset, before)
				}
				last[d.Message.Key] = d.Offset
			}
		})
	}

	if r.h.Temporary {
		r.sentence("a temporary group may begin in the past, each time anew", o, func(e *env) {
			all, _ := record(e, 5)
			s := e.sub("new", "t")
			s.From, s.Temporary = messaging.FromFirst(), true
			for range 2 {
				var got tape
				one := e.subscribe(s, got.handle)
				e.wantOnce(&got, all...)
				one.stop()
			}
		})
	}
}

func (r *runner) faults() {
	r.sentence("what was confirmed survives a restart of the broker", Options{}, func(e *env) {
		if e.Restart == nil {
			e.Skip("Client.Restart is nil")
		}
		s := e.sub("g", "t")
		e.declare(s)
		all := msgs(50)
		e.publishAll(all...)
		if err := e.Restart(e.Context()); err != nil {
			e.Fatalf("Restart = %v", err)
		}
		var got tape
		e.subscribe(s, got.handle)
		for _, m := range all {
			e.eventually(func() bool { return len(got.of(m)) > 0 }, "message %s is delivered", m.ID)
		}
	})

	r.sentence("nothing confirmed is lost and no key gets out of order, whatever the network does", Options{}, func(e *env) {
		if e.Proxy == nil {
			e.Skip("Client.Proxy is nil")
		}
		r.storm(e, e.sub("g", "t"))
	})

	if r.h.Log {
		r.sentence("nor is anything lost to a group that reads the log", Options{Log: true}, func(e *env) {
			if e.Proxy == nil {
				e.Skip("Client.Proxy is nil")
			}
			s := e.sub("g", "t")
			s.From = messaging.FromFirst()
			r.storm(e, s)
		})
	}
}

// storm publishes and consumes while the connections break in every way.
func (r *runner) storm(e *env, s messaging.Subscription) {
	const publishers, keys = 4, 5
	s.Ordered = r.h.Ordered
	s.MaxDeliveries = -1
	s.DrainTimeout = e.unit
	e.declare(s)
	check := NewChecker(s)
	pub := check.Publisher(e.Publisher)
	for range 2 {
		e.subscribe(s, check.Handler(s, messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { return nil })).Handle)
	}

	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	for p := range publishers {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				// Publishers have their own keys, so the order per key is theirs.
				m := msg("t", fmt.Sprintf("key-%d-%d", p, i%keys))
				for {
					ctx, cancel := context.WithTimeout(e.Context(), 5*e.unit)
					err := pub.Publish(ctx, m)
					cancel()
					if err == nil || e.Context().Err() != nil {
						break
					}
					time.Sleep(e.unit / 20)
				}
			}
		})
	}
	p := e.Proxy
	for _, f := range []struct {
		name  string
		begin func()
	}{
		{"nothing", func() {}},
		{"cut", p.Cut},
		{"cut while sending", func() { p.CutAfter(ToServer, 777) }},
		{"cut while receiving", func() { p.CutAfter(ToClient, 333) }},
		{"stall to the server", func() { p.Stall(ToServer) }},
		{"stall to the client", func() { p.Stall(ToClient) }},
		{"delay", func() { p.Delay(Both, e.unit/10) }},
		{"throttle", func() { p.Throttle(Both, 20_000) }},
		{"answers dropped", func() { p.Drop(ToClient) }},
		{"requests dropped", func() { p.Drop(ToServer) }},
		{"server's end lost", func() { p.HalfOpen(ToServer) }},
		{"client's end lost", func() { p.HalfOpen(ToClient) }},
		{"down", p.Down},
	} {
		f.begin()
		time.Sleep(2 * e.unit)
		if f.name == "answers dropped" || f.name == "requests dropped" {
			p.Cut() // streams with a hole are of no more use
		}
		p.Heal()
		// It heals: something published from now on is confirmed.
		before := check.Report().Confirmed
		e.eventually(func() bool { return check.Report().Confirmed > before+2*publishers }, "messages are confirmed after: %s", f.name)
	}
	close(stop)
	wg.Wait()
	e.finished(check)
}
