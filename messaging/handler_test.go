// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/dovetail-go/dovetail/fault"
)

var errTest = errors.New("no")

func TestDecide(t *testing.T) {
	live := t.Context()
	ended, cancel := context.WithCancelCause(context.Background())
	errStop := errors.New("stop")
	cancel(errStop)
	base := time.Second
	s := Subscription{MaxDeliveries: 3, Backoff: Backoff{Base: base, Max: time.Minute}}
	unlimited := s
	unlimited.MaxDeliveries = -1
	rejection := func(after time.Duration) error {
		return fmt.Errorf("wrapped: %w", &fault.Rejection{By: "breaker", RetryAfter: after, Err: errTest})
	}
	const scheduled = -1 // any delay of the schedule
	for _, c := range []struct {
		name    string
		ctx     context.Context
		err     error
		attempt int
		s       Subscription
		action  Action
		delay   time.Duration
		next    int
	}{
		{"nil", live, nil, 1, s, Acked, 0, 0},
		{"nil after a drain", ended, nil, 1, s, Acked, 0, 0},
		{"plain", live, errTest, 1, s, Retried, scheduled, 2},
		{"plain, second", live, errTest, 2, s, Retried, scheduled, 3},
		{"plain, last", live, errTest, 3, s, DeadLettered, 0, 0},
		{"plain, beyond the last", live, errTest, 9, s, DeadLettered, 0, 0},
		{"plain, no limit", live, errTest, 1000, unlimited, Retried, scheduled, 1001},
		{"plain, default limit not reached", live, errTest, 15, Subscription{}, Retried, scheduled, 16},
		{"plain, default limit", live, errTest, 16, Subscription{}, DeadLettered, 0, 0},
		{"retry after", live, fault.RetryAfter(errTest, time.Hour), 1, s, Retried, time.Hour, 2},
		{"retry after, last", live, fault.RetryAfter(errTest, time.Hour), 3, s, DeadLettered, 0, 0},
		{"unknown", live, fault.Unknown(errTest), 1, s, Retried, scheduled, 2},
		{"own timeout", live, context.DeadlineExceeded, 1, s, Retried, scheduled, 2},
		{"somebody else's cancel", live, context.Canceled, 1, s, Retried, scheduled, 2},
		{"permanent", live, fault.Permanent(errTest), 1, s, DeadLettered, 0, 0},
		{"reject", live, Reject(errTest), 1, s, DeadLettered, 0, 0},
		{"reject, wrapped", live, fmt.Errorf("x: %w", Reject(errTest)), 1, s, DeadLettered, 0, 0},
		{"reject in retry after", live, fault.RetryAfter(Reject(errTest), time.Hour), 1, s, DeadLettered, 0, 0},
		{"drop", live, Drop(errTest), 1, s, Dropped, 0, 0},
		{"drop of a rejected", live, Drop(Reject(errTest)), 1, s, Dropped, 0, 0},
		{"panic", live, &PanicError{Value: errTest}, 1, s, Retried, scheduled, 2},
		{"panic with a verb", live, &PanicError{Value: Drop(errTest)}, 1, s, Retried, scheduled, 2},
		{"panic with a verdict", live, &PanicError{Value: fault.Permanent(errTest)}, 3, s, DeadLettered, 0, 0},
		{"rejected panic", live, Reject(&PanicError{Value: errTest}), 1, s, DeadLettered, 0, 0},
		{"guard", live, rejection(time.Hour), 3, s, Retried, time.Hour, 3},
		{"guard without a time", live, rejection(0), 3, s, Retried, scheduled, 3},
		{"guard for good", live, rejection(-1), 1, s, DeadLettered, 0, 0},
		{"unroutable uses attempts", live, ErrUnroutable, 3, s, DeadLettered, 0, 0},
		{"drained, context error", ended, context.Canceled, 3, s, Retried, 0, 3},
		{"drained, cause", ended, errStop, 3, s, Retried, 0, 3},
		{"drained, plain", ended, errTest, 3, s, Retried, 0, 3},
		{"drained, retry after", ended, fault.RetryAfter(errTest, time.Hour), 3, s, Retried, 0, 3},
		{"drained, permanent context error", ended, fault.Permanent(context.Canceled), 1, s, Retried, 0, 1},
		{"drained, permanent", ended, fault.Permanent(errTest), 1, s, DeadLettered, 0, 0},
		{"drained, reject", ended, Reject(errTest), 1, s, DeadLettered, 0, 0},
		{"drained, drop", ended, Drop(context.Canceled), 1, s, Dropped, 0, 0},
	} {
		d := Decide(c.ctx, c.err, c.attempt, c.s)
		if d.Action != c.action || d.Attempt != c.next {
			t.Errorf("%s: Decide = %v, attempt %d, want %v, attempt %d", c.name, d.Action, d.Attempt, c.action, c.next)
		}
		if longest := c.s.Backoff.Longest(c.attempt); c.delay == scheduled && (d.Delay < 0 || d.Delay > longest) || c.delay != scheduled && d.Delay != c.delay {
			t.Errorf("%s: Delay = %v, want %v (-1: at most %v)", c.name, d.Delay, c.delay, longest)
		}
		if (d.Reason == "") != (c.err == nil) || !errors.Is(d.Err, c.err) {
			t.Errorf("%s: Reason = %q, Err = %v, want those of %v", c.name, d.Reason, d.Err, c.err)
		}
	}

	if d := Decide(live, errTest, 3, s); d.Reason != "gave up after 3 deliveries: no" {
		t.Errorf("Reason = %q, want the number of deliveries and the error", d.Reason)
	}
	if d := Decide(live, errors.New(strings.Repeat("ä", 5000)+"\xff"), 1, s); len(d.Reason) > maxReason+3 || !utf8.ValidString(d.Reason) || !strings.HasSuffix(d.Reason, "ä...") {
		t.Errorf("a long reason has %d bytes and ends with %q, want it cut at a character", len(d.Reason), d.Reason[len(d.Reason)-10:])
	}
}

func TestVerbs(t *testing.T) {
	if Reject(nil) != nil || Drop(nil) != nil {
		t.Error("Reject(nil) or Drop(nil) is not nil")
	}
	for _, err := range []error{Reject(errTest), Drop(errTest)} {
		if !errors.Is(err, errTest) || err.Error() != "no" || !fault.IsPermanent(err) {
			t.Errorf("%v does not wrap its cause permanently", err)
		}
		if v := fault.Judge(t.Context(), err); v.Outcome != fault.Neutral {
			t.Errorf("Judge = %+v, want neutral: it is the message that is wrong", v)
		}
	}
	for a, want := range map[Action]string{Acked: "acked", Retried: "retried", DeadLettered: "dead-lettered", Dropped: "dropped", 9: "messaging.Action(9)"} {
		if got := a.String(); got != want {
			t.Errorf("String = %q, want %q", got, want)
		}
	}
}

func TestChain(t *testing.T) {
	var order []string
	mark := func(name string) Middleware {
		return func(next Handler) Handler {
			return HandlerFunc(func(ctx context.Context, d *Delivery) error {
				order = append(order, name)
				return next.Handle(ctx, d)
			})
		}
	}
	h := Chain(HandlerFunc(func(context.Context, *Delivery) error { order = append(order, "handler"); return nil }), mark("outer"), mark("inner"))
	if err := h.Handle(t.Context(), &Delivery{}); err != nil || strings.Join(order, " ") != "outer inner handler" {
		t.Errorf("Handle = %v, order %v, want outer inner handler", err, order)
	}
}

func TestInvoke(t *testing.T) {
	for name, c := range map[string]struct {
		fn    func() error
		check func(err error) bool
		exits bool
	}{
		"error":     {func() error { return errTest }, func(err error) bool { return errors.Is(err, errTest) }, false},
		"nil":       {func() error { return nil }, func(err error) bool { return err == nil }, false},
		"panic":     {func() error { panic("boom") }, isPanic("boom"), false},
		"panic nil": {func() error { panic(map[string]any{}["none"]) }, func(err error) bool { _, ok := panicValue(err).(*runtime.PanicNilError); return ok }, false},
		"panic err": {func() error { panic(errTest) }, isPanic(errTest), false},
		"Goexit":    {func() error { runtime.Goexit(); return nil }, isPanic(nil), true},
	} {
		calls, returned := 0, false
		var got error
		finished := make(chan struct{})
		go func() {
			defer close(finished)
			Invoke(t.Context(), HandlerFunc(func(context.Context, *Delivery) error { return c.fn() }), nil, func(err error) { calls++; got = err })
			returned = true
		}()
		<-finished
		if calls != 1 || !c.check(got) || returned == c.exits {
			t.Errorf("%s: done called %d times with %v, returned %t, want once, and return %t", name, calls, got, returned, !c.exits)
		}
		var p *PanicError
		if errors.As(got, &p) && (!strings.Contains(string(p.Stack), "TestInvoke") || p.Error() == "") {
			t.Errorf("%s: stack %q without the handler", name, p.Stack)
		}
	}
}

func isPanic(value any) func(error) bool {
	return func(err error) bool { return panicValue(err) == value }
}

// panicValue returns the value of a PanicError, or the error itself.
func panicValue(err error) any {
	var p *PanicError
	if errors.As(err, &p) {
		return p.Value
	}
	return err
}

func TestSubscription(t *testing.T) {
	good := Subscription{Group: "g", Topics: []string{"a.*", "#"}}
	if err := good.Validate(); err != nil {
		t.Errorf("Validate = %v, want nil", err)
	}
	for _, c := range []struct {
		change func(*Subscription)
		want   string
	}{
		{func(s *Subscription) { s.Group = "" }, `Subscription.Group is ""`},
		{func(s *Subscription) { s.Group = strings.Repeat("g", 201) }, "Subscription.Group is"},
		{func(s *Subscription) { s.Group = "a\tb" }, "Subscription.Group is"},
		{func(s *Subscription) { s.Topics = nil }, "Subscription.Topics is empty"},
		{func(s *Subscription) { s.Topics = []string{"a", ""} }, `Subscription.Topics[1] is ""`},
		{func(s *Subscription) { s.Topics = []string{"a*"} }, `Subscription.Topics[0] is "a*"`},
		{func(s *Subscription) { s.Topics = []string{"##"} }, `Subscription.Topics[0] is "##"`},
		{func(s *Subscription) { s.Concurrency = -1 }, "Subscription.Concurrency is -1"},
		{func(s *Subscription) { s.Prefetch = -1 }, "Subscription.Prefetch is -1"},
		{func(s *Subscription) { s.Concurrency, s.Prefetch = 5, 4 }, "Subscription.Prefetch is 4, want at least Concurrency, which is 5"},
		{func(s *Subscription) { s.Prefetch = 1 }, "Subscription.Prefetch is 1, want at least Concurrency, which is 8"},
		{func(s *Subscription) { s.Backoff.Base = -1 }, "Subscription.Backoff.Base is -1ns"},
		{func(s *Subscription) { s.Backoff.Max = -1 }, "Subscription.Backoff.Max is -1ns"},
		{func(s *Subscription) { s.Backoff.Max = time.Millisecond }, "Subscription.Backoff.Max is 1ms"},
		{func(s *Subscription) { s.From.Kind = 9 }, "Subscription.From.Kind is 9"},
		{func(s *Subscription) { s.From = FromOffset(-1) }, "Subscription.From.Offset is -1"},
		{func(s *Subscription) { s.From = FromTime(time.Time{}) }, "Subscription.From.Time is zero"},
	} {
		s := good
		c.change(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), "messaging: "+c.want) {
			t.Errorf("Validate = %v, want %q", err, c.want)
		}
	}

	d := good.WithDefaults()
	if d.Concurrency != 8 || d.Prefetch != 16 || d.MaxDeliveries != 16 || d.DrainTimeout != 10*time.Second ||
		d.Backoff != (Backoff{500 * time.Millisecond, 5 * time.Minute}) {
		t.Errorf("WithDefaults = %+v, want 8, 16, 16, 10s, 500ms to 5m", d)
	}
	if d := (Subscription{MaxDeliveries: -1, DrainTimeout: -1, Concurrency: 3}).WithDefaults(); d.MaxDeliveries != -1 || d.DrainTimeout != -1 || d.Prefetch != 6 {
		t.Errorf("WithDefaults = %+v, want what was set kept", d)
	}
}

func TestBackoff(t *testing.T) {
	b := Backoff{Base: time.Second, Max: time.Minute}
	for attempt, want := range map[int]time.Duration{
		0: time.Second, 1: time.Second, 2: 2 * time.Second, 6: 32 * time.Second, 7: time.Minute, 100: time.Minute, 1 << 40: time.Minute,
	} {
		if got := b.Longest(attempt); got != want {
			t.Errorf("Longest(%d) = %v, want %v", attempt, got, want)
		}
	}
	if got := (Backoff{Base: 1 << 62, Max: 1<<63 - 1}).Longest(3); got != 1<<63-1 {
		t.Errorf("Longest = %v, want no overflow", got)
	}
	if got := (Backoff{Base: time.Hour}).Longest(5); got != time.Hour {
		t.Errorf("Longest = %v, want a Base above the default Max to be the Max", got)
	}
	var least, most time.Duration = time.Hour, 0
	for range 10000 {
		d := b.Delay(4)
		least, most = min(least, d), max(most, d)
	}
	if least < 0 || least > 200*time.Millisecond || most > 8*time.Second || most < 7*time.Second {
		t.Errorf("10,000 delays from %v to %v, want them spread over 0 to 8s", least, most)
	}
}
