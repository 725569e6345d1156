// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

type order struct {
	ID    string
	Total int
}

func Example() {
	// A broker that answers Publish when the groups are done: handy in an example.
	broker, err := messagingmem.New(messagingmem.Config{ConfirmOnAck: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	mails := messaging.Subscription{Group: "mails", Topics: []string{"order.*"}}
	if err := broker.Declare(ctx, mails); err != nil {
		fmt.Println(err)
	}

	var consumer sync.WaitGroup
	consumer.Go(func() {
		err := broker.Subscribe(ctx, mails, messaging.Typed(messaging.JSON,
			func(_ context.Context, o order, d *messaging.Delivery) error {
				fmt.Printf("%s: order %s for %d\n", d.Message.Topic, o.ID, o.Total)
				return nil
			}))
		fmt.Println("drained:", err)
	})

	m, err := messaging.Encode(messaging.JSON, messaging.Message{Topic: "order.placed", Key: "A7"}, order{"A7", 1200})
	if err != nil {
		fmt.Println(err)
	}
	fmt.Println("published:", broker.Publish(ctx, m))
	cancel()
	consumer.Wait()
	// Output:
	// order.placed: order A7 for 1200
	// published: <nil>
	// drained: <nil>
}

func ExampleDecide() {
	ctx := context.Background()
	s := messaging.Subscription{MaxDeliveries: 3}
	for _, err := range []error{
		nil,
		fault.RetryAfter(errors.New("card service busy"), 2*time.Second),
		&fault.Rejection{By: "breaker", RetryAfter: time.Minute, Err: errors.New("open")},
		messaging.Reject(errors.New("no such customer")),
		messaging.Drop(errors.New("too late to matter")),
	} {
		d := messaging.Decide(ctx, err, 1, s)
		fmt.Printf("%v %v %d %q\n", d.Action, d.Delay, d.Attempt, d.Reason)
	}
	fmt.Println(messaging.Decide(ctx, errors.New("still down"), 3, s).Reason)
	// Output:
	// acked 0s 0 ""
	// retried 2s 2 "card service busy"
	// retried 1m0s 1 "breaker: open (retry after 1m0s)"
	// dead-lettered 0s 0 "no such customer"
	// dropped 0s 0 "too late to matter"
	// gave up after 3 deliveries: still down
}

func ExampleChain() {
	handler := messaging.HandlerFunc(func(ctx context.Context, _ *messaging.Delivery) error {
		_, ok := ctx.Deadline()
		fmt.Println("has a deadline:", ok)
		panic("boom")
	})
	h := messaging.Chain(handler,
		messaging.Logging(slog.New(slog.DiscardHandler)), // sees the panic as an error
		messaging.Timeout(time.Minute),
		messaging.Recover(),
	)
	fmt.Println(h.Handle(context.Background(), &messaging.Delivery{Message: &messaging.Message{}}))
	// Output:
	// has a deadline: true
	// messaging: handler panicked: boom
}

// limit stands for any guard: a breaker, a bulkhead, a policy.
type limit struct{ open bool }

func (l *limit) Do(ctx context.Context, fn func(context.Context) error) error {
	if !l.open {
		return &fault.Rejection{By: "limit", RetryAfter: time.Second, Err: errors.New("closed")}
	}
	return fn(ctx)
}

func ExampleGuard() {
	guard := &limit{}
	h := messaging.Chain(messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error {
		fmt.Println("handled")
		return nil
	}), messaging.Guard(guard))

	ctx, d := context.Background(), &messaging.Delivery{}
	dec := messaging.Decide(ctx, h.Handle(ctx, d), 1, messaging.Subscription{})
	fmt.Println(dec.Action, "in", dec.Delay, "as attempt", dec.Attempt)
	guard.open = true
	fmt.Println(h.Handle(ctx, d))
	// Output:
	// retried in 1s as attempt 1
	// handled
	// <nil>
}

func ExampleBatch() {
	h, err := messaging.Batch(messaging.BatchConfig{Size: 3, Linger: time.Minute},
		func(_ context.Context, ds []*messaging.Delivery) []error {
			fmt.Println("one transaction for", len(ds))
			errs := make([]error, len(ds)) // or nil, when all went well
			for i, d := range ds {
				if d.Message.ID == "2" {
					errs[i] = messaging.Reject(errors.New("no such order"))
				}
			}
			return errs
		})
	if err != nil {
		fmt.Println(err)
		return
	}
	// A subscription with a Concurrency of 3 calls the handler so:
	results := make([]error, 3)
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() {
			results[i] = h.Handle(context.Background(), &messaging.Delivery{Message: &messaging.Message{ID: fmt.Sprint(i + 1)}})
		})
	}
	wg.Wait()
	fmt.Println(results)
	// Output:
	// one transaction for 3
	// [<nil> no such order <nil>]
}

func ExampleObserve() {
	count := make(map[bool]int)
	metrics := messaging.Observe(func(_ context.Context, h messaging.Handled) { count[h.Err == nil]++ })
	h := metrics(messaging.HandlerFunc(func(_ context.Context, d *messaging.Delivery) error {
		if d.Attempt == 1 {
			return errors.New("not yet")
		}
		return nil
	}))
	for attempt := range 3 {
		_ = h.Handle(context.Background(), &messaging.Delivery{Attempt: attempt + 1})
	}
	fmt.Println("handled:", count[true], "failed:", count[false])
	// Output:
	// handled: 2 failed: 1
}

func ExamplePublishError() {
	broker, _ := messagingmem.New(messagingmem.Config{})
	ctx := context.Background()
	_ = broker.Declare(ctx, messaging.Subscription{Group: "mails", Topics: []string{"order.placed"}})

	err := broker.Publish(ctx,
		&messaging.Message{ID: "1", Topic: "order.placed"},
		&messaging.Message{ID: "2", Topic: "nobody.listens"})
	var pe *messaging.PublishError
	if errors.As(err, &pe) {
		for _, f := range pe.Failed {
			switch {
			case errors.Is(f.Err, messaging.ErrUnroutable):
				fmt.Println(f.ID, "has no group")
			case errors.Is(f.Err, messaging.ErrUnknown):
				fmt.Println(f.ID, "may have been taken: publish it again")
			}
		}
	}
	// Output:
	// 2 has no group
}

func ExampleMatch() {
	for _, pattern := range []string{"order.placed", "order.*", "order.#", "#.eu"} {
		fmt.Println(pattern, messaging.Match(pattern, "order.placed"), messaging.Match(pattern, "order.placed.eu"))
	}
	// Output:
	// order.placed true false
	// order.* true false
	// order.# true true
	// #.eu false true
}

func ExampleTraceFrom() {
	in := messaging.Header{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	out := messaging.Header{}
	if tc, ok := messaging.TraceFrom(in); ok {
		tc.Child().Inject(out) // the same trace, a span of our own
		fmt.Println(tc.TraceID)
	}
	fmt.Println(in["traceparent"] != out["traceparent"], in["traceparent"][:35] == out["traceparent"][:35])
	// Output:
	// 0af7651916cd43dd8448eb211c80319c
	// true true
}

func ExampleDeadLetter_Encode() {
	dl := messaging.DeadLetter{
		Delivery: messaging.Delivery{Group: "mails", Attempt: 16, Message: &messaging.Message{ID: "1", Topic: "order.placed"}},
		Reason:   "gave up after 16 deliveries: smtp: 550",
		At:       time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	m := dl.Encode() // to a queue or a table
	for _, name := range m.Header.Keys() {
		fmt.Printf("%s: %s\n", name, m.Header[name])
	}
	back, err := messaging.DecodeDeadLetter(m)
	fmt.Println(back.Group, back.Message.ID, len(back.Message.Header), err)
	// Output:
	// dead-letter-attempts: 16
	// dead-letter-group: mails
	// dead-letter-reason: gave up after 16 deliveries: smtp: 550
	// dead-letter-time: 2026-01-02T03:04:05Z
	// mails 1 0 <nil>
}
