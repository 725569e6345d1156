// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

func (r *runner) publish() {
	r.sentence("a confirmed message arrives with every field as it was", Options{}, func(e *env) {
		s := e.sub("g", "order.#")
		e.declare(s)
		full := msg("order.placed.eu", "customer-7/ä")
		full.Time = time.Date(2024, 2, 29, 23, 59, 59, 123456789, time.FixedZone("", 3600))
		full.Header = messaging.Header{"traceparent": "00-1", "ce-subject": "Grüße, \"%\"\n", "empty": "", "UPPER lower": "kept"}
		full.Body = []byte{0, 1, 0xff, '\n', 0x80}
		bare := &messaging.Message{ID: messaging.NewID(), Topic: "order"}
		large := msg("order.large", "")
		large.Body = []byte(strings.Repeat("0123456789abcdef", 1<<14))
		var got tape
		e.subscribe(s, got.handle)
		sent := []*messaging.Message{full, bare, large}
		e.publishAll(sent...)
		e.wantOnce(&got, sent...)
		for _, m := range sent {
			if diff := differs(got.of(m)[0].Message, m); diff != "" {
				e.Error(diff)
			}
		}
	})

	r.sentence("publishing nothing succeeds", Options{}, func(e *env) {
		if err := e.Publish(e.Context()); err != nil {
			e.Errorf("Publish() = %v, want nil", err)
		}
	})

	r.sentence("all messages of one call arrive", Options{}, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		all := msgs(300)
		var got tape
		e.subscribe(s, got.handle)
		e.publishAll(all...)
		e.wantOnce(&got, all...)
	})

	r.sentence("many goroutines may publish at once", Options{}, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		check := NewChecker(s)
		e.subscribe(s, check.Handler(s, messaging.HandlerFunc((&tape{}).handle)).Handle)
		pub := check.Publisher(e.Publisher)
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 20 {
					if err := pub.Publish(e.Context(), msg("t", "")); err != nil {
						e.Errorf("Publish = %v, want nil", err)
					}
				}
			})
		}
		wg.Wait()
		e.finished(check)
	})

	r.sentence("when Publish has returned the caller may change the message", Options{}, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		m := msg("t", "k")
		m.Header = messaging.Header{"a": "1"}
		want := m.Clone()
		e.publishAll(m)
		m.Topic, m.Key = "changed", "changed"
		m.Header["a"] = "changed"
		clear(m.Body)
		var got tape
		e.subscribe(s, got.handle)
		e.eventually(func() bool { return got.len() > 0 }, "the message is delivered")
		if diff := differs(got.deliveries()[0].Message, want); diff != "" {
			e.Error(diff)
		}
	})

	r.sentence("an invalid message is refused for good, by name, before anything is sent", Options{}, func(e *env) {
		s := e.sub("g", "#")
		e.declare(s)
		var got tape
		e.subscribe(s, got.handle)
		for field, bad := range map[string]*messaging.Message{
			"ID":     {Topic: "t"},
			"Topic":  {ID: messaging.NewID()},
			"Key":    {ID: messaging.NewID(), Topic: "t", Key: strings.Repeat("k", 300)},
			"Header": {ID: messaging.NewID(), Topic: "t", Header: messaging.Header{"": "x"}},
		} {
			good := msg("t", "")
			failed := e.failures(e.Publish(e.Context(), good, bad))
			if f := failed[1]; !errors.Is(f.Err, messaging.ErrRefused) || !fault.IsPermanent(f.Err) || f.ID != bad.ID ||
				!strings.Contains(fmt.Sprint(f.Err), "Message."+field) {
				e.Errorf("bad %s: Failed = %+v, want ErrRefused, permanent, naming Message.%s", field, f, field)
			}
			if f := failed[0]; !errors.Is(f.Err, messaging.ErrRefused) || fault.IsPermanent(f.Err) || f.ID != good.ID {
				e.Errorf("bad %s: its neighbour: Failed = %+v, want ErrRefused that may be tried again", field, f)
			}
		}
		if failed := e.failures(e.Publish(e.Context(), nil)); !errors.Is(failed[0].Err, messaging.ErrRefused) {
			e.Errorf("Publish(nil message) = %v, want ErrRefused", failed[0].Err)
		}
		e.quiet()
		if n := got.len(); n != 0 {
			e.Errorf("%d messages of refused calls were delivered, want 0", n)
		}
	})

	r.sentence("an ended context publishes nothing, and says so of each message", Options{}, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		var got tape
		e.subscribe(s, got.handle)
		ctx, cancel := context.WithCancel(e.Context())
		cancel()
		err := e.Publish(ctx, msg("t", ""), msg("t", ""))
		failed := e.failures(err)
		if len(failed) != 2 || !errors.Is(failed[0].Err, messaging.ErrBlocked) || !errors.Is(failed[1].Err, messaging.ErrBlocked) {
			e.Errorf("Publish = %v, want ErrBlocked for both messages", err)
		}
		if !errors.Is(err, context.Canceled) {
			e.Errorf("Publish = %v, want it to wrap context.Canceled", err)
		}
		e.quiet()
		if n := got.len(); n != 0 {
			e.Errorf("%d messages were delivered, want 0", n)
		}
	})

	if r.h.Unroutable {
		r.sentence("a topic without a group is unroutable, and the call's other messages are confirmed", Options{}, func(e *env) {
			s := e.sub("g", "known")
			e.declare(s)
			good, lost := msg("known", ""), msg("unknown", "")
			err := e.Publish(e.Context(), good, lost)
			failed := e.failures(err)
			if f := failed[1]; len(failed) != 1 || f.ID != lost.ID || !errors.Is(f.Err, messaging.ErrUnroutable) {
				e.Errorf("Publish = %v, want ErrUnroutable for message 1 alone", err)
			}
			if v := fault.Judge(e.Context(), err); v.Outcome != fault.Neutral || v.Unknown {
				e.Errorf("Judge = %+v, want neutral and not unknown", v)
			}
			var got tape
			e.subscribe(s, got.handle)
			e.wantOnce(&got, good)
		})
	}
}
