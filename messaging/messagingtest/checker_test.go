// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/dovetail-go/dovetail/messaging"
)

type publisherFunc func(ctx context.Context, msgs ...*messaging.Message) error

func (f publisherFunc) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	return f(ctx, msgs...)
}

func TestChecker(t *testing.T) {
	s := messaging.Subscription{Group: "g", Topics: []string{"t"}, Ordered: true, MaxDeliveries: 2}
	send := func(c *Checker, err error, ids ...string) {
		for _, id := range ids {
			m := &messaging.Message{ID: id, Topic: "t", Key: "k"}
			_ = c.Publisher(publisherFunc(func(context.Context, ...*messaging.Message) error {
				if err == nil {
					return nil
				}
				return &messaging.PublishError{Failed: []messaging.Failed{{ID: id, Err: err}}}
			})).Publish(t.Context(), m)
		}
	}
	handle := func(c *Checker, err error, attempt int, ids ...string) {
		h := c.Handler(s, messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { return err }))
		for _, id := range ids {
			_ = h.Handle(t.Context(), &messaging.Delivery{Attempt: attempt, Group: "g", Message: &messaging.Message{ID: id, Topic: "t", Key: "k"}})
		}
	}
	for _, c := range []struct {
		name string
		run  func(c *Checker)
		want string // in Err, "" for none
		get  func(g GroupReport) any
		val  any
	}{
		{"all is well", func(c *Checker) { send(c, nil, "1", "2"); handle(c, nil, 1, "1", "2") }, "", func(g GroupReport) any { return g.Handled }, 2},
		{"a confirmed message that nobody handled is lost", func(c *Checker) { send(c, nil, "1", "2"); handle(c, nil, 1, "2") },
			"1 lost: 1", func(g GroupReport) any { return g.Lost }, []string{"1"}},
		{"a failure is not handled", func(c *Checker) { send(c, nil, "1"); handle(c, errTest, 1, "1") }, "1 lost: 1", nil, nil},
		{"given up is accounted for", func(c *Checker) { send(c, nil, "1"); handle(c, errTest, 2, "1") }, "", nil, nil},
		{"rejected and dropped are accounted for", func(c *Checker) {
			send(c, nil, "1", "2")
			handle(c, messaging.Reject(errTest), 1, "1")
			handle(c, messaging.Drop(errTest), 1, "2")
		}, "", nil, nil},
		{"a duplicate is counted and no error, though it is late", func(c *Checker) {
			send(c, nil, "1", "2")
			handle(c, nil, 1, "1", "2", "1", "2")
		}, "", func(g GroupReport) any { return g.Duplicates }, 2},
		{"an earlier message after a later one is an inversion", func(c *Checker) {
			send(c, nil, "1", "2", "3")
			handle(c, nil, 1, "1", "3", "2")
		}, "1 out of order: 2 (key \"k\": number 2 after number 3)", func(g GroupReport) any { return len(g.Inversions) }, 1},
		{"the order is that of the first try", func(c *Checker) {
			send(c, messaging.ErrUnknown, "1")
			send(c, nil, "2", "1")
			handle(c, nil, 1, "1", "2")
		}, "", nil, nil},
		{"an unknown outcome may be handled or not", func(c *Checker) { send(c, messaging.ErrUnknown, "1", "2"); handle(c, nil, 1, "1") }, "", nil, nil},
		{"a refused message that is handled is a ghost", func(c *Checker) { send(c, messaging.ErrBlocked, "1"); handle(c, nil, 1, "1") },
			"1 handled though refused: 1", func(g GroupReport) any { return g.Ghosts }, []string{"1"}},
		{"a refusal after an unknown outcome does not undo it", func(c *Checker) {
			send(c, messaging.ErrUnknown, "1")
			send(c, messaging.ErrBlocked, "1")
			handle(c, nil, 1, "1")
		}, "", nil, nil},
		{"what was never sent is a stranger", func(c *Checker) { handle(c, nil, 1, "1") },
			"1 never sent to it: 1", func(g GroupReport) any { return g.Strangers }, []string{"1"}},
		{"many names are cut short", func(c *Checker) { send(c, nil, "1", "2", "3", "4", "5", "6") }, "6 lost: 1, 2, 3, 4, 5, ...", nil, nil},
	} {
		check := NewChecker(s)
		c.run(check)
		r := check.Report()
		if err := r.Err(); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Err = %v, want %q", c.name, err, c.want)
		}
		if done := check.Done(); done != (len(r.Groups[0].Lost) == 0) {
			t.Errorf("%s: Done = %t with %d lost", c.name, done, len(r.Groups[0].Lost))
		}
		if c.get != nil && fmt.Sprint(c.get(r.Groups[0])) != fmt.Sprint(c.val) {
			t.Errorf("%s: report %+v, want %v", c.name, r.Groups[0], c.val)
		}
	}

	t.Run("a group gets only what matches, and unordered groups have no inversions", func(t *testing.T) {
		other := messaging.Subscription{Group: "other", Topics: []string{"x"}}
		loose := messaging.Subscription{Group: "loose", Topics: []string{"#"}}
		check := NewChecker(other, loose)
		send(check, nil, "1", "2")
		check.handled("loose", &messaging.Message{ID: "2"})
		check.handled("loose", &messaging.Message{ID: "1"})
		if err := check.Report().Err(); err != nil {
			t.Errorf("Err = %v, want nil", err)
		}
		check.handled("other", &messaging.Message{ID: "1"})
		if g := check.Report().Groups[0]; !slices.Equal(g.Strangers, []string{"1"}) {
			t.Errorf("Strangers = %v, want 1", g.Strangers)
		}
	})

	t.Run("an error that names nobody leaves all unknown", func(t *testing.T) {
		check := NewChecker(s)
		err := check.Publisher(publisherFunc(func(context.Context, ...*messaging.Message) error { return errTest })).
			Publish(t.Context(), msg("t", ""), msg("t", ""))
		if r := check.Report(); !errors.Is(err, errTest) || r.Unknown != 2 || r.Sent != 2 {
			t.Errorf("Publish = %v, report %+v, want the error and 2 unknown", err, r)
		}
	})

	t.Run("is for concurrent use", func(t *testing.T) {
		check := NewChecker(s)
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 100 {
					id := fmt.Sprint(g, "-", i)
					send(check, nil, id)
					handle(check, nil, 1, id)
					_ = check.Report().String()
				}
			})
		}
		wg.Wait()
		if r := check.Report(); r.Confirmed != 800 || len(r.Groups[0].Lost) != 0 {
			t.Errorf("report = %v, want 800 confirmed and none lost", r)
		}
	})
}
