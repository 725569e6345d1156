// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagatest

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagamem"
)

// Play runs one saga of a definition on an engine in memory, under virtual time: what
// lasts a week takes no time, and nothing happens while the test looks. Its methods return
// the Player, so that a test reads as a story:
//
//	sagatest.Play(t, booking, trip{Seats: 2}, func(p *sagatest.Player[trip]) {
//		p.Waits("approval").After(48 * time.Hour).Waits("approval")
//		p.Deliver("approval", true).Ends(saga.Completed)
//		p.Did("hotel/do", "approval/do", "car/do")
//	})
//
// The functions of the steps are the user's own, and must not leave virtual time: a real
// network would stop the clock. A local step gets a nil *sql.Tx. Children are the
// definitions that it has as steps, if any.
func Play[T any](t *testing.T, def *saga.Definition[T], data T, story func(p *Player[T]), children ...saga.Registered) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &Player[T]{T: t, def: def}
		var err error
		p.Engine, err = saga.NewEngine(sagamem.New(), saga.Config{
			Outbox: p, ReplyTo: "replies", Logger: slog.New(slog.DiscardHandler),
		}, append(slices.Clone(children), def)...)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Engine.Run(ctx) }()
		defer func() {
			cancel()
			<-ended
		}()
		if err := saga.Start(ctx, p.Engine, nil, def, playID, data); err != nil {
			t.Fatal(err)
		}
		p.settle()
		story(p)
	})
}

const playID = "saga"

// Player is a saga in play. A method that finds something else than it is told fails the
// test and goes on.
type Player[T any] struct {
	*testing.T
	// Engine runs the saga, whose ID is "saga".
	Engine *saga.Engine
	def    *saga.Definition[T]

	mu   sync.Mutex
	sent []*messaging.Message
}

// Enqueue implements saga.Outbox.
func (p *Player[T]) Enqueue(_ context.Context, _ outbox.Tx, msgs ...*messaging.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = append(p.sent, msgs...)
	return nil
}

// Wake implements saga.Outbox.
func (p *Player[T]) Wake() {}

// settle lets the engine do what it can do now.
func (p *Player[T]) settle() {
	p.Engine.Wake()
	synctest.Wait()
}

// After lets d pass.
func (p *Player[T]) After(d time.Duration) *Player[T] {
	time.Sleep(d)
	p.settle()
	return p
}

// Instance returns the saga as it stands.
func (p *Player[T]) Instance() saga.Instance {
	p.Helper()
	in, err := p.Engine.Get(p.Context(), playID)
	if err != nil {
		p.Fatal(err)
	}
	return in
}

// Data returns the saga's data.
func (p *Player[T]) Data() T {
	p.Helper()
	v, err := p.def.Data(p.Instance())
	if err != nil {
		p.Fatal(err)
	}
	return v
}

// Waits expects the saga to wait for just these steps.
func (p *Player[T]) Waits(steps ...string) *Player[T] {
	p.Helper()
	if in := p.Instance(); !slices.Equal(in.Waits, steps) {
		p.Errorf("the saga is %v at %q and waits for %q, want it to wait for %q", in.Status, in.Step, in.Waits, steps)
	}
	return p
}

// Sent expects the last message to be of this topic and returns it.
func (p *Player[T]) Sent(topic string) *messaging.Message {
	p.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sent) == 0 || p.sent[len(p.sent)-1].Topic != topic {
		p.Fatalf("no message of topic %q was sent last, of %d", topic, len(p.sent))
	}
	return p.sent[len(p.sent)-1]
}

// Reply answers the last message of a topic, as its participant would.
func (p *Player[T]) Reply(topic string, value any) *Player[T] {
	p.Helper()
	p.mu.Lock()
	var command *messaging.Message
	for _, m := range p.sent {
		if m.Topic == topic {
			command = m
		}
	}
	p.mu.Unlock()
	if command == nil {
		p.Fatalf("no message of topic %q was sent", topic)
	}
	reply, err := saga.Reply(command, value)
	if err == nil {
		err = p.Engine.Replies().Handle(p.Context(), &messaging.Delivery{Message: reply})
	}
	if err != nil {
		p.Error(err)
	}
	p.settle()
	return p
}

// Deliver brings what an Await step waits for.
func (p *Player[T]) Deliver(step string, value any) *Player[T] {
	p.Helper()
	if _, err := p.Engine.Deliver(p.Context(), nil, playID, step, value); err != nil {
		p.Error(err)
	}
	p.settle()
	return p
}

// Cancel asks the engine to cancel the saga, and expects it to agree.
func (p *Player[T]) Cancel(by saga.By) *Player[T] {
	p.Helper()
	if err := p.Engine.Cancel(p.Context(), playID, by); err != nil {
		p.Error(err)
	}
	p.settle()
	return p
}

// Ends lets at most a day pass until the saga has ended, and expects it to end so.
func (p *Player[T]) Ends(want saga.Status) *Player[T] {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), 24*time.Hour)
	defer cancel()
	in, err := p.Engine.Wait(ctx, playID)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		p.Fatal(err)
	}
	if in.Status != want {
		p.Errorf("the saga is %v at %q after a day (waits for %q, stuck: %q, cause %v, reason %q), want %v", in.Status, in.Step, in.Waits, in.Stuck, in.Cause, in.Reason, want)
	}
	return p
}

// Did expects these operations to be recorded as done since the start, in this order,
// each as "step/do" or "step/undo".
func (p *Player[T]) Did(want ...string) *Player[T] {
	p.Helper()
	entries, err := p.Engine.History(p.Context(), playID)
	if err != nil {
		p.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		if e.Outcome == "done" && e.Op != saga.OpEnd {
			got = append(got, e.Step+"/"+e.Op)
		}
	}
	if !slices.Equal(got, want) {
		p.Errorf("the saga did\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	return p
}
