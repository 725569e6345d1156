// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest

import (
	"context"
	"slices"

	"github.com/dovetail-go/dovetail/messaging"
)

func (r *runner) drain() {
	// blocking returns a handler that records, tells that it runs, waits, and then returns
	// the state of its context.
	blocking := func(got *tape) (h messaging.HandlerFunc, started, release chan struct{}) {
		started, release = make(chan struct{}), make(chan struct{})
		return func(ctx context.Context, d *messaging.Delivery) error {
			got.add(d)
			close(started)
			<-release
			return ctx.Err()
		}, started, release
	}

	r.sentence("Subscribe waits for its handlers, whose context stays alive, and returns nil", Options{}, func(e *env) {
		s := e.sub("g", "t")
		s.Concurrency = 1
		e.declare(s)
		m := msg("t", "")
		e.publishAll(m)
		var got tape
		h, started, release := blocking(&got)
		sub := e.subscribe(s, h)
		e.until(started, "the handler runs")
		sub.cancel()
		e.quiet()
		select {
		case <-sub.done:
			e.Errorf("Subscribe returned %v while a handler runs", sub.err)
		default:
		}
		close(release)
		sub.wait()
		// It was alive, so the message is acknowledged.
		e.subscribe(s, got.handle)
		e.wantOnce(&got, m)
	})

	r.sentence("after the end of its context no handler begins, and the messages go to the next as if never delivered", Options{}, func(e *env) {
		s := e.sub("g", "t")
		s.Concurrency = 1
		e.declare(s)
		all := msgs(6)
		e.publishAll(all...)
		var got, rest tape
		h, started, release := blocking(&got)
		sub := e.subscribe(s, h)
		e.until(started, "the handler runs")
		sub.cancel()
		e.quiet()
		close(release)
		sub.wait()
		if n := got.len(); n != 1 {
			e.Errorf("%d handlers ran, want 1", n)
		}
		e.subscribe(s, rest.handle)
		left := slices.DeleteFunc(all, func(m *messaging.Message) bool { return len(got.of(m)) > 0 })
		e.wantOnce(&rest, left...)
		for _, d := range rest.deliveries() {
			if d.Attempt != 1 {
				e.Errorf("Attempt = %d, want 1", d.Attempt)
			}
		}
	})

	r.sentence("after DrainTimeout the handler's context ends, and its error uses up no attempt", Options{}, func(e *env) {
		s := e.sub("g", "t")
		s.DrainTimeout, s.MaxDeliveries = e.unit, 1
		e.declare(s)
		m := msg("t", "")
		e.publishAll(m)
		started := make(chan struct{})
		sub := e.subscribe(s, func(ctx context.Context, _ *messaging.Delivery) error {
			close(started)
			<-ctx.Done()
			return errTest // as of a client that does not wrap the context's error
		})
		e.until(started, "the handler runs")
		sub.stop()
		var got tape
		e.subscribe(s, got.handle)
		e.wantOnce(&got, m)
		if d := got.deliveries()[0]; d.Attempt != 1 {
			e.Errorf("Attempt = %d, want 1", d.Attempt)
		}
	})

	r.sentence("with an ended context Subscribe returns nil and handles nothing", Options{}, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		e.publishAll(msg("t", ""))
		ctx, cancel := context.WithCancel(e.Context())
		cancel()
		var got tape
		if err := e.Subscribe(ctx, s, messaging.HandlerFunc(got.handle)); err != nil {
			e.Errorf("Subscribe = %v, want nil", err)
		}
		if n := got.len(); n != 0 {
			e.Errorf("%d messages handled, want 0", n)
		}
	})

	r.sentence("the handler's context has the values of the subscriber's", Options{}, func(e *env) {
		type key struct{}
		s := e.sub("g", "t")
		e.declare(s)
		e.publishAll(msg("t", ""))
		ctx, cancel := context.WithCancel(context.WithValue(e.Context(), key{}, "value"))
		seen := make(chan any, 1)
		err := e.Subscribe(ctx, s, messaging.HandlerFunc(func(ctx context.Context, _ *messaging.Delivery) error {
			seen <- ctx.Value(key{})
			cancel()
			return nil
		}))
		if got := <-seen; got != "value" || err != nil {
			e.Errorf("Value = %v, Subscribe = %v, want value, nil", got, err)
		}
	})
}
