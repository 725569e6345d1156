// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

func (r *runner) concurrency() {
	r.sentence("Concurrency handlers run at the same time, and no more", Options{}, func(e *env) {
		const n = 5
		s := e.sub("g", "t")
		s.Concurrency = n
		e.declare(s)
		all := msgs(4 * n)
		e.publishAll(all...)
		var got tape
		var now, most atomic.Int64
		release := make(chan struct{})
		e.subscribe(s, func(ctx context.Context, d *messaging.Delivery) error {
			got.add(d)
			for c := now.Add(1); ; {
				m := most.Load()
				if c <= m || most.CompareAndSwap(m, c) {
					break
				}
			}
			defer now.Add(-1)
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil
		})
		e.eventually(func() bool { return now.Load() == n }, "%d handlers run", n)
		e.quiet()
		close(release)
		e.wantOnce(&got, all...)
		if m := most.Load(); m != n {
			e.Errorf("%d handlers ran at the same time, want %d", m, n)
		}
	})

	r.sentence("a subscription holds no more than Prefetch messages from the others", Options{}, func(e *env) {
		if r.h.Partitioned {
			e.Skip("Harness.Partitioned is true")
		}
		s := e.sub("g", "t")
		s.Concurrency, s.Prefetch = 1, 3
		e.declare(s)
		all := msgs(12)
		var stuck, free tape
		release := make(chan struct{})
		e.subscribe(s, func(ctx context.Context, d *messaging.Delivery) error {
			stuck.add(d)
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil
		})
		e.publishAll(all...)
		e.eventually(func() bool { return stuck.len() == 1 }, "the first subscriber is busy")
		e.subscribe(s, free.handle)
		e.eventually(func() bool { return free.len() >= len(all)-s.Prefetch }, "the others go to the second subscriber")
		close(release)
		e.eventually(func() bool { return free.len()+stuck.len() == len(all) }, "all messages are handled")
	})
}

func (r *runner) ordered() {
	if !r.h.Ordered {
		r.unsupported("Ordered", func(s *messaging.Subscription) { s.Ordered = true })
		return
	}
	ordered := func(e *env) messaging.Subscription {
		s := e.sub("g", "t")
		s.Ordered, s.Prefetch = true, 100
		return s
	}

	r.sentence("messages of one key are handled one after another, as published", Options{}, func(e *env) {
		s := ordered(e)
		e.declare(s)
		const keys, each = 7, 20
		perKey := make(map[string][]string)
		var all []*messaging.Message
		for i := range keys * each {
			m := msg("t", fmt.Sprint("key-", i%keys))
			perKey[m.Key] = append(perKey[m.Key], m.ID)
			all = append(all, m)
		}
		// Two subscribers share the group.
		var got tape
		var mu sync.Mutex
		busy := make(map[string]bool)
		handle := func(_ context.Context, d *messaging.Delivery) error {
			mu.Lock()
			if busy[d.Message.Key] {
				e.Errorf("two messages of %s are handled at the same time", d.Message.Key)
			}
			busy[d.Message.Key] = true
			mu.Unlock()
			time.Sleep(time.Duration(rand.N(int64(2 * time.Millisecond))))
			got.add(d)
			mu.Lock()
			busy[d.Message.Key] = false
			mu.Unlock()
			return nil
		}
		e.subscribe(s, handle)
		e.subscribe(s, handle)
		for part := range slices.Chunk(all, 13) {
			e.publishAll(part...)
		}
		e.wantOnce(&got, all...)
		order := make(map[string][]string)
		for _, d := range got.deliveries() {
			order[d.Message.Key] = append(order[d.Message.Key], d.Message.ID)
		}
		for key, want := range perKey {
			if !slices.Equal(order[key], want) {
				e.Errorf("%s: handled %v, want %v", key, order[key], want)
			}
		}
	})

	r.sentence("other keys run at the same time", Options{}, func(e *env) {
		s := ordered(e)
		e.declare(s)
		var now atomic.Int64
		release := make(chan struct{})
		e.subscribe(s, func(ctx context.Context, _ *messaging.Delivery) error {
			now.Add(1)
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil
		})
		for i := range 16 {
			e.publishAll(msg("t", fmt.Sprint("key-", i)))
		}
		// A broker may map keys to fewer lanes, but not all of them to one.
		e.eventually(func() bool { return now.Load() >= 2 }, "handlers of two keys run")
		close(release)
	})

	r.sentence("a message that waits for its retry holds back its own key and no other", Options{}, func(e *env) {
		s := ordered(e)
		e.declare(s)
		a1, a2, a3 := msg("t", "a"), msg("t", "a"), msg("t", "a")
		others := []*messaging.Message{msg("t", "b"), msg("t", ""), msg("t", "b"), msg("t", "c"), msg("t", "")}
		var got tape
		e.subscribe(s, func(_ context.Context, d *messaging.Delivery) error {
			got.add(d)
			if d.Message.ID == a1.ID && d.Attempt <= 2 {
				return fault.RetryAfter(errTest, 5*e.unit)
			}
			return nil
		})
		e.publishAll(a1, a2, a3)
		e.eventually(func() bool { return got.len() == 1 }, "the first message is delivered")
		e.publishAll(others...)
		e.eventually(func() bool { return got.len() == 5+3+2 }, "all messages are delivered")
		ids := got.ids()
		want := []string{a1.ID, a1.ID, a1.ID, a2.ID, a3.ID}
		if inOrder := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return !slices.Contains(want, id) }); !slices.Equal(inOrder, want) {
			e.Errorf("key a was delivered as %v, want %v", inOrder, want)
		}
		for _, m := range others {
			if slices.Index(ids, m.ID) > 5 {
				e.Errorf("message %s of key %q waited for key a", m.ID, m.Key)
			}
		}
	})

	r.sentence("a message that ends as a dead letter, or dropped, lets its key go on", Options{}, func(e *env) {
		s := ordered(e)
		s.MaxDeliveries = 2
		e.declare(s)
		all := []*messaging.Message{msg("t", "a"), msg("t", "a"), msg("t", "a"), msg("t", "a")}
		e.publishAll(all...)
		var got tape
		e.subscribe(s, func(_ context.Context, d *messaging.Delivery) error {
			got.add(d)
			switch d.Message.ID {
			case all[0].ID:
				return messaging.Reject(errTest)
			case all[1].ID:
				return errTest
			case all[2].ID:
				return messaging.Drop(errTest)
			}
			return nil
		})
		want := []string{all[0].ID, all[1].ID, all[1].ID, all[2].ID, all[3].ID}
		e.eventually(func() bool { return got.len() >= len(want) }, "all messages are delivered")
		if ids := got.ids(); !slices.Equal(ids, want) {
			e.Errorf("delivered %v, want %v", ids, want)
		}
	})

	r.sentence("a message that a drain gave back stays ahead of its key", Options{}, func(e *env) {
		s := ordered(e)
		s.DrainTimeout = e.unit
		e.declare(s)
		all := []*messaging.Message{msg("t", "a"), msg("t", "a"), msg("t", "a")}
		e.publishAll(all...)
		var got tape
		started := make(chan struct{})
		first := e.subscribe(s, func(ctx context.Context, d *messaging.Delivery) error {
			close(started)
			<-ctx.Done()
			return ctx.Err()
		})
		e.until(started, "the first message is delivered")
		first.stop()
		e.subscribe(s, got.handle)
		e.wantOnce(&got, all...)
		if ids := got.ids(); !slices.Equal(ids, idsOf(all)) {
			e.Errorf("delivered %v, want %v", ids, idsOf(all))
		}
	})

	r.sentence("a group that is ordered for one and not for another is a mismatch", Options{}, func(e *env) {
		e.declare(e.sub("g", "t"))
		if err := e.Declare(e.Context(), ordered(e)); !errors.Is(err, messaging.ErrMismatch) {
			e.Errorf("Declare = %v, want ErrMismatch", err)
		}
		if err := e.subscribeErr(ordered(e), messaging.HandlerFunc((&tape{}).handle)); !errors.Is(err, messaging.ErrMismatch) {
			e.Errorf("Subscribe = %v, want ErrMismatch", err)
		}
	})
}
