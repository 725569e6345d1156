// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingmem_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
	"github.com/dovetail-go/dovetail/messaging/messagingtest"
)

var quiet = slog.New(slog.DiscardHandler)

// harness returns the harness of a broker that keeps its dead letters in memory, or
// gives them to a sink.
func harness(sunk bool) messagingtest.Harness {
	return messagingtest.Harness{
		Open: func(t *testing.T, o messagingtest.Options) *messagingtest.Client {
			cfg := messagingmem.Config{ConfirmOnAck: o.ConfirmOnAck, Capacity: o.Capacity, Logger: quiet}
			if o.Log {
				cfg.Retain = 100
			}
			var s *sink
			if sunk {
				s = &sink{}
				cfg.DeadLetter = s.put
			}
			b, err := messagingmem.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			c := &messagingtest.Client{Publisher: b, Subscriber: b, Declarer: b}
			if sunk {
				c.DeadLetters, c.RefuseDeadLetters = s.of, s.setRefuse
				c.Replay = func(ctx context.Context, dead ...messaging.DeadLetter) error {
					if err := b.Replay(ctx, dead...); err != nil {
						return err
					}
					s.remove(dead)
					return nil
				}
			} else {
				c.Replay = b.Replay
				c.DeadLetters = func(_ context.Context, group string) ([]messaging.DeadLetter, error) {
					return slices.DeleteFunc(b.DeadLetters(), func(dl messaging.DeadLetter) bool { return dl.Group != group }), nil
				}
			}
			return c
		},
		Virtual:      true,
		Ordered:      true,
		Log:          true,
		Temporary:    true,
		Unroutable:   true,
		ConfirmOnAck: true,
		Capacity:     true,
	}
}

// sink is a place for dead letters outside of the broker.
type sink struct {
	mu     sync.Mutex
	refuse bool
	kept   []messaging.DeadLetter
}

func (s *sink) put(_ context.Context, dl messaging.DeadLetter) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse {
		return errors.New("the sink is closed")
	}
	s.kept = append(s.kept, dl)
	return nil
}

func (s *sink) setRefuse(refuse bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = refuse
}

func (s *sink) of(_ context.Context, group string) ([]messaging.DeadLetter, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.kept), func(dl messaging.DeadLetter) bool { return dl.Group != group }), nil
}

func (s *sink) remove(dead []messaging.DeadLetter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = slices.DeleteFunc(s.kept, func(dl messaging.DeadLetter) bool {
		return slices.ContainsFunc(dead, func(d messaging.DeadLetter) bool { return d.Message.ID == dl.Message.ID && d.Group == dl.Group })
	})
}

func TestConformance(t *testing.T) {
	t.Run("dead letters in memory", func(t *testing.T) { messagingtest.Run(t, harness(false)) })
	t.Run("dead letters to a sink", func(t *testing.T) { messagingtest.Run(t, harness(true)) })
}
