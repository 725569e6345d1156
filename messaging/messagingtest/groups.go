// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest

import (
	"context"
	"errors"
	"strings"

	"github.com/dovetail-go/dovetail/messaging"
)

func (r *runner) groups() {
	r.sentence("what is published after Declare reaches the group although it subscribes later", Options{}, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		all := msgs(10)
		e.publishAll(all...)
		var got tape
		e.subscribe(s, got.handle)
		e.wantOnce(&got, all...)
		for _, d := range got.deliveries() {
			if d.Group != "g" || d.Attempt != 1 || d.Redelivered {
				e.Errorf("Delivery = {Group: %q, Attempt: %d, Redelivered: %t}, want g, 1, false", d.Group, d.Attempt, d.Redelivered)
			}
		}
	})

	r.sentence("Subscribe declares the group, which begins with what is published from then on", Options{}, func(e *env) {
		other := e.sub("other", "t")
		e.declare(other)
		early := msgs(3)
		e.publishAll(early...)
		var got, rest tape
		e.subscribe(e.sub("g", "t"), got.handle)
		// From some message on, the group gets them all.
		e.eventually(func() bool { e.publishAll(msg("t", "")); return got.len() > 0 }, "the group is bound")
		last := msgs(5)
		e.publishAll(last...)
		e.subscribe(other, rest.handle)
		for _, m := range last {
			e.eventually(func() bool { return len(got.of(m)) > 0 && len(rest.of(m)) > 0 }, "both groups got message %s", m.ID)
		}
		for _, m := range early {
			if n := len(got.of(m)); n != 0 {
				e.Errorf("a message from before the group was delivered to it, want none")
			}
		}
	})

	r.sentence("every group gets each message, the publisher not knowing of them", Options{}, func(e *env) {
		subs := []messaging.Subscription{e.sub("a", "t"), e.sub("b", "t"), e.sub("c", "t")}
		e.declare(subs...)
		all := msgs(20)
		e.publishAll(all...)
		got := make([]tape, len(subs))
		for i, s := range subs {
			e.subscribe(s, got[i].handle)
		}
		for i := range got {
			e.wantOnce(&got[i], all...)
		}
	})

	r.sentence("within a group each message goes to one of the subscribers, and all take part", Options{}, func(e *env) {
		s := e.sub("g", "t")
		s.Concurrency, s.Prefetch = 1, 1
		e.declare(s)
		var got, first, second tape
		both := make(chan struct{})
		handle := func(mine *tape) messaging.HandlerFunc {
			return func(ctx context.Context, d *messaging.Delivery) error {
				mine.add(d)
				got.add(d)
				if first.len() > 0 && second.len() > 0 && mine.len() == 1 {
					close(both)
				}
				select { // the first delivery of each waits for the other's
				case <-both:
				case <-ctx.Done():
				}
				return nil
			}
		}
		e.subscribe(s, handle(&first))
		e.eventually(func() bool {
			if first.len() == 0 {
				e.publishAll(msg("t", ""))
			}
			return first.len() > 0
		}, "the first subscriber has a message")
		e.subscribe(s, handle(&second))
		all := msgs(20)
		e.publishAll(all...)
		e.until(both, "both subscribers have a message")
		for _, m := range all {
			e.eventually(func() bool { return len(got.of(m)) > 0 }, "message %s is delivered", m.ID)
		}
		e.quiet()
		for _, m := range all {
			if n := len(got.of(m)); n != 1 {
				e.Errorf("a message was delivered %d times, want once", n)
			}
		}
	})

	r.sentence("patterns select by words: exact, * for one, # for any number", Options{}, func(e *env) {
		topics := []string{"order", "order.placed", "order.placed.eu", "payment.placed", "payment.placed.eu.retail"}
		patterns := []string{"order.placed", "order.*", "order.#", "*.placed", "#.eu.#", "#", "order.*.eu"}
		all := make([]*messaging.Message, len(topics))
		for i, t := range topics {
			all[i] = msg(t, "")
		}
		got := make([]tape, len(patterns))
		for i, p := range patterns {
			s := e.sub("g"+string(rune('a'+i)), p)
			e.declare(s)
			e.subscribe(s, got[i].handle)
		}
		e.publishAll(all...)
		for i, p := range patterns {
			var want []*messaging.Message
			for _, m := range all {
				if messaging.Match(p, m.Topic) {
					want = append(want, m)
				}
			}
			e.wantOnce(&got[i], want...)
		}
	})

	r.sentence("a message that several patterns of a group match is delivered once", Options{}, func(e *env) {
		s := e.sub("g", "order.placed", "order.*", "#", "order.placed")
		e.declare(s)
		m := msg("order.placed", "")
		e.publishAll(m)
		var got tape
		e.subscribe(s, got.handle)
		e.wantOnce(&got, m)
	})

	r.sentence("declaring a group again adds topics and takes nothing away", Options{}, func(e *env) {
		e.declare(e.sub("g", "a"))
		a := msg("a", "")
		e.publishAll(a)
		e.declare(e.sub("g", "b"))
		e.declare(e.sub("g", "b"))
		b, a2 := msg("b", ""), msg("a", "")
		e.publishAll(b, a2)
		var got tape
		e.subscribe(e.sub("g", "b"), got.handle)
		e.wantOnce(&got, a, b, a2)
	})

	r.sentence("an invalid subscription is refused by name, and none of its call is declared", Options{}, func(e *env) {
		good := e.sub("good", "t")
		for field, change := range map[string]func(*messaging.Subscription){
			"Group":        func(s *messaging.Subscription) { s.Group = "" },
			"Topics":       func(s *messaging.Subscription) { s.Topics = nil },
			"Topics[1]":    func(s *messaging.Subscription) { s.Topics = []string{"a", "b..c"} },
			"Concurrency":  func(s *messaging.Subscription) { s.Concurrency = -1 },
			"Prefetch":     func(s *messaging.Subscription) { s.Prefetch = 1 },
			"Backoff.Base": func(s *messaging.Subscription) { s.Backoff.Base = -1 },
		} {
			bad := e.sub("bad", "t")
			change(&bad)
			if err := e.Declare(e.Context(), good, bad); err == nil || !strings.Contains(err.Error(), "Subscription."+field) {
				e.Errorf("Declare with bad %s = %v, want an error that names Subscription.%s", field, err, field)
			}
			err := e.subscribeErr(bad, messaging.HandlerFunc((&tape{}).handle))
			if err == nil || !strings.Contains(err.Error(), "Subscription."+field) {
				e.Errorf("Subscribe with bad %s = %v, want an error that names Subscription.%s", field, err, field)
			}
		}
		if err := e.subscribeErr(good, nil); err == nil {
			e.Error("Subscribe without a handler = nil, want an error")
		}
		if r.h.Unroutable {
			if err := e.Publish(e.Context(), msg("t", "")); !errors.Is(err, messaging.ErrUnroutable) {
				e.Errorf("Publish after refused declarations = %v, want ErrUnroutable", err)
			}
		}
	})

	if r.h.Temporary {
		r.sentence("a temporary group ends with its last subscriber", Options{}, func(e *env) {
			keep, s := e.sub("keep", "t"), e.sub("temporary", "t")
			s.Temporary = true
			e.declare(keep, s)
			var got, after tape
			one, two := e.subscribe(s, got.handle), e.subscribe(s, got.handle)
			m := msg("t", "")
			e.publishAll(m)
			e.wantOnce(&got, m)
			one.stop()
			m2 := msg("t", "")
			e.publishAll(m2)
			e.wantOnce(&got, m, m2)
			two.stop()
			e.publishAll(msg("t", ""))
			e.subscribe(s, after.handle)
			e.quiet()
			if n := after.len(); n != 0 {
				e.Errorf("a message from between two lives of the group was delivered %d times, want 0", n)
			}
		})
		r.sentence("a group that is temporary for one and not for another is a mismatch", Options{}, func(e *env) {
			s := e.sub("g", "t")
			e.declare(s)
			s.Temporary = true
			if err := e.Declare(e.Context(), s); !errors.Is(err, messaging.ErrMismatch) {
				e.Errorf("Declare = %v, want ErrMismatch", err)
			}
		})
	} else {
		r.unsupported("Temporary", func(s *messaging.Subscription) { s.Temporary = true })
	}
}

// unsupported wants what the harness does not declare to be refused.
func (r *runner) unsupported(what string, ask func(*messaging.Subscription)) {
	r.sentence(what+" is refused as unsupported, not ignored", Options{}, func(e *env) {
		s := e.sub("g", "t")
		ask(&s)
		if err := e.Declare(e.Context(), s); !errors.Is(err, messaging.ErrUnsupported) {
			e.Errorf("Declare = %v, want ErrUnsupported", err)
		}
		if err := e.subscribeErr(s, messaging.HandlerFunc((&tape{}).handle)); !errors.Is(err, messaging.ErrUnsupported) {
			e.Errorf("Subscribe = %v, want ErrUnsupported", err)
		}
	})
}
