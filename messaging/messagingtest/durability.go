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
		e.declare(s)
		all := msgs(n)
		for _, m := range all {
			e.publishAll(m)
		}
		var got tape
		e.subscribe(s, got.handle)
		e.wantOnce(&got, all...)
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
		time.Sleep(e.unit)
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
	})
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
		r.storm(e)
	})
}

// storm publishes and consumes while the connections break in every way.
func (r *runner) storm(e *env) {
	const publishers, keys = 4, 5
	s := e.sub("g", "t")
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
