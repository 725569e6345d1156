// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

var errTest = errors.New("the test says no")

func (r *runner) handlers() {
	r.sentence("nil acknowledges: never again, not to a later subscriber either", Options{}, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		all := msgs(10)
		e.publishAll(all...)
		var got tape
		first := e.subscribe(s, got.handle)
		e.wantOnce(&got, all...)
		first.stop()
		e.subscribe(s, got.handle)
		e.wantOnce(&got, all...)
	})

	r.sentence("an error delivers again: redelivered, with the next attempt, the same message", Options{}, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		m := msg("t", "k")
		m.Header = messaging.Header{"a": "1"}
		e.publishAll(m)
		var got tape
		e.subscribe(s, func(_ context.Context, d *messaging.Delivery) error {
			got.add(d)
			if d.Attempt < 4 {
				return errTest
			}
			return nil
		})
		e.eventually(func() bool { return got.len() >= 4 }, "the message is delivered 4 times")
		e.quiet()
		for i, d := range got.deliveries() {
			if d.Attempt != i+1 || i > 0 && !d.Redelivered {
				e.Errorf("delivery %d = {Attempt: %d, Redelivered: %t}, want attempt %d, redelivered after the first", i+1, d.Attempt, d.Redelivered, i+1)
			}
			if diff := differs(d.Message, m); diff != "" {
				e.Errorf("delivery %d: %s", i+1, diff)
			}
		}
		if n := got.len(); n != 4 {
			e.Errorf("delivered %d times, want 4", n)
		}
	})

	r.sentence("RetryAfter waits that long at least", Options{}, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		e.publishAll(msg("t", ""))
		wait := 3 * e.unit
		var got tape
		e.subscribe(s, func(_ context.Context, d *messaging.Delivery) error {
			got.add(d)
			if d.Attempt == 1 {
				return fault.RetryAfter(errTest, wait)
			}
			return nil
		})
		e.eventually(func() bool { return got.len() == 2 }, "the message is delivered again")
		// A broker's clock may tick in milliseconds.
		if took := got.at[1].Sub(got.at[0]); took < wait-time.Millisecond {
			e.Errorf("delivered again after %v, want at least %v", took, wait)
		}
	})

	r.sentence("a message that waits for its retry blocks no other", Options{}, func(e *env) {
		s := e.sub("g", "t")
		s.Concurrency, s.Prefetch = 1, 2
		e.declare(s)
		bad := msgs(5)
		good := msgs(20)
		failing := make(map[string]bool)
		for _, m := range bad {
			failing[m.ID] = true
		}
		e.publishAll(bad...)
		e.publishAll(good...)
		var got tape
		start := time.Now()
		e.subscribe(s, func(_ context.Context, d *messaging.Delivery) error {
			got.add(d)
			if failing[d.Message.ID] && d.Attempt == 1 {
				return fault.RetryAfter(errTest, 10*e.unit)
			}
			return nil
		})
		for _, m := range good {
			e.eventually(func() bool { return len(got.of(m)) == 1 }, "message %s is delivered", m.ID)
		}
		if took := time.Since(start); took >= 10*e.unit {
			e.Errorf("the others came after %v, so they waited for the retry", took)
		}
		for _, m := range bad {
			e.eventually(func() bool { return len(got.of(m)) == 2 }, "message %s is delivered again", m.ID)
		}
	})

	r.sentence("a refusal by a guard delivers again and uses up no attempt", Options{}, func(e *env) {
		s := e.sub("g", "t")
		s.MaxDeliveries = 2
		e.declare(s)
		e.publishAll(msg("t", ""))
		var got tape
		e.subscribe(s, func(_ context.Context, d *messaging.Delivery) error {
			got.add(d)
			if got.len() <= 5 {
				return &fault.Rejection{By: "breaker", Err: errTest, RetryAfter: e.unit / 20}
			}
			return nil
		})
		e.eventually(func() bool { return got.len() >= 6 }, "the message is delivered 6 times")
		for i, d := range got.deliveries() {
			if d.Attempt != 1 {
				e.Errorf("delivery %d: Attempt = %d, want 1", i+1, d.Attempt)
			}
		}
		if n := len(e.deadOf("g")); n != 0 {
			e.Errorf("%d dead letters, want 0", n)
		}
	})

	r.sentence("Drop ends it: neither again nor a dead letter", Options{}, func(e *env) {
		s := e.sub("g", "t")
		e.declare(s)
		m := msg("t", "")
		e.publishAll(m)
		var got tape
		e.subscribe(s, func(_ context.Context, d *messaging.Delivery) error {
			got.add(d)
			return messaging.Drop(errTest)
		})
		e.wantOnce(&got, m)
		if n := len(e.deadOf("g")); n != 0 {
			e.Errorf("%d dead letters, want 0", n)
		}
	})

	for name, end := range map[string]func(){
		"a panic":        func() { panic(errTest) },
		"runtime.Goexit": runtime.Goexit,
	} {
		r.sentence(name+" is a failure: delivered again, and the subscriber goes on", Options{}, func(e *env) {
			s := e.sub("g", "t")
			s.Concurrency, s.Prefetch = 1, 1
			e.declare(s)
			all := msgs(3)
			e.publishAll(all...)
			var got tape
			e.subscribe(s, func(_ context.Context, d *messaging.Delivery) error {
				got.add(d)
				if d.Attempt == 1 {
					end()
				}
				return nil
			})
			for _, m := range all {
				e.eventually(func() bool { return len(got.of(m)) == 2 }, "message %s is delivered again", m.ID)
			}
		})
	}

	r.sentence("no limit of deliveries if MaxDeliveries is negative", Options{}, func(e *env) {
		s := e.sub("g", "t")
		s.MaxDeliveries = -1
		e.declare(s)
		e.publishAll(msg("t", ""))
		var got tape
		e.subscribe(s, func(_ context.Context, d *messaging.Delivery) error {
			got.add(d)
			if d.Attempt < 25 {
				return errTest
			}
			return nil
		})
		e.eventually(func() bool { return got.len() == 25 }, "the message is delivered 25 times")
	})
}

func (r *runner) deadLetters() {
	r.sentence("Reject makes a dead letter at once, with the reason and the message as it was", Options{}, func(e *env) {
		for _, wrap := range []func(error) error{messaging.Reject, fault.Permanent} {
			s := e.sub("g", "t")
			e.declare(s)
			m := msg("t", "k")
			m.Header = messaging.Header{"a": "ä"}
			before := len(e.deadOf("g"))
			e.publishAll(m)
			var got tape
			sub := e.subscribe(s, func(_ context.Context, d *messaging.Delivery) error {
				got.add(d)
				return wrap(errTest)
			})
			e.wantOnce(&got, m)
			dl := e.wantDead("g", before+1)[before]
			if dl.Reason != errTest.Error() || dl.Attempt != 1 || dl.Group != "g" || dl.Stack != nil || dl.At.IsZero() {
				e.Errorf("dead letter = {Group: %q, Attempt: %d, Reason: %q, At: %v, Stack: %q}, want g, 1, %q, a time, no stack",
					dl.Group, dl.Attempt, dl.Reason, dl.At, dl.Stack, errTest)
			}
			if diff := differs(dl.Message, m); diff != "" {
				e.Errorf("dead letter: %s", diff)
			}
			sub.stop()
		}
	})

	r.sentence("after MaxDeliveries a message is a dead letter, with the last error in the reason", Options{}, func(e *env) {
		s := e.sub("g", "t")
		s.MaxDeliveries = 3
		e.declare(s)
		m := msg("t", "")
		e.publishAll(m)
		var got tape
		e.subscribe(s, func(_ context.Context, d *messaging.Delivery) error {
			got.add(d)
			return errTest
		})
		dl := e.wantDead("g", 1)[0]
		if n := got.len(); n != 3 || dl.Attempt != 3 || !strings.Contains(dl.Reason, errTest.Error()) {
			e.Errorf("after %d deliveries: dead letter {Attempt: %d, Reason: %q}, want 3, 3, containing %q", n, dl.Attempt, dl.Reason, errTest)
		}
	})

	r.sentence("a dead letter of a panic has its value and its stack", Options{}, func(e *env) {
		s := e.sub("g", "t")
		s.MaxDeliveries = 2
		e.declare(s)
		e.publishAll(msg("t", ""))
		e.subscribe(s, func(context.Context, *messaging.Delivery) error { return panicInTest() })
		dl := e.wantDead("g", 1)[0]
		if !strings.Contains(dl.Reason, errTest.Error()) || !strings.Contains(string(dl.Stack), "panicInTest") {
			e.Errorf("dead letter = {Reason: %q, Stack: %q}, want the panic's value and stack", dl.Reason, dl.Stack)
		}
	})

	r.sentence("one group's dead letter is no other group's matter", Options{}, func(e *env) {
		bad, good := e.sub("bad", "t"), e.sub("good", "t")
		e.declare(bad, good)
		m := msg("t", "")
		e.publishAll(m)
		var got tape
		e.subscribe(bad, func(context.Context, *messaging.Delivery) error { return messaging.Reject(errTest) })
		e.subscribe(good, got.handle)
		e.wantDead("bad", 1)
		e.wantOnce(&got, m)
		if n := len(e.deadOf("good")); n != 0 {
			e.Errorf("%d dead letters in the other group, want 0", n)
		}
	})

	r.sentence("a message is acknowledged only when its dead letter is confirmed", Options{}, func(e *env) {
		if e.RefuseDeadLetters == nil {
			e.Skip("Client.RefuseDeadLetters is nil")
		}
		s := e.sub("g", "t")
		s.Concurrency, s.Prefetch = 1, 1
		e.declare(s)
		e.RefuseDeadLetters(true)
		m, other := msg("t", ""), msg("t", "")
		e.publishAll(m, other)
		var got tape
		handle := func(_ context.Context, d *messaging.Delivery) error {
			got.add(d)
			if d.Message.ID == m.ID {
				return messaging.Reject(errTest)
			}
			return nil
		}
		first := e.subscribe(s, handle)
		e.eventually(func() bool { return len(got.of(m)) > 0 && len(got.of(other)) > 0 }, "both messages are delivered")
		e.quiet()
		if n := len(e.deadOf("g")); n != 0 {
			e.Errorf("%d dead letters while they are refused, want 0", n)
		}
		first.stop()
		e.RefuseDeadLetters(false)
		e.subscribe(s, handle)
		if dl := e.wantDead("g", 1)[0]; dl.Message.ID != m.ID || dl.Reason != errTest.Error() {
			e.Errorf("dead letter = {ID: %q, Reason: %q}, want %q, %q", dl.Message.ID, dl.Reason, m.ID, errTest)
		}
	})

	r.sentence("a dead letter can be replayed to its group alone, its attempts counted anew", Options{}, func(e *env) {
		if e.Replay == nil {
			e.Skip("Client.Replay is nil")
		}
		s, other := e.sub("g", "t"), e.sub("other", "t")
		e.declare(s, other)
		all := []*messaging.Message{msg("t", ""), msg("t", "")}
		e.publishAll(all...)
		var bad, good, elsewhere tape
		e.subscribe(other, elsewhere.handle)
		first := e.subscribe(s, func(_ context.Context, d *messaging.Delivery) error {
			bad.add(d)
			return messaging.Reject(errTest)
		})
		dead := e.wantDead("g", 2)
		first.stop()
		e.subscribe(s, good.handle)
		if err := e.Replay(e.Context(), dead[0]); err != nil {
			e.Fatalf("Replay = %v, want nil", err)
		}
		e.eventually(func() bool { return good.len() == 1 }, "the message is delivered")
		e.quiet()
		d := good.deliveries()[0]
		if d.Attempt != 1 || !d.Redelivered || good.len() != 1 {
			e.Errorf("after Replay: %d deliveries, {Attempt: %d, Redelivered: %t}, want 1, 1, true", good.len(), d.Attempt, d.Redelivered)
		}
		if diff := differs(d.Message, dead[0].Message); diff != "" {
			e.Errorf("after Replay: %s", diff)
		}
		if left := e.deadOf("g"); len(left) != 1 || left[0].Message.ID != dead[1].Message.ID {
			e.Errorf("after Replay: dead letters %v, want only the one that was not replayed", left)
		}
		e.wantOnce(&elsewhere, all...)
	})
}

// panicInTest has a name to look for in a stack.
func panicInTest() error { panic(errTest) }
