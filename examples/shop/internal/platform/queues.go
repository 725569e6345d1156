// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// Queue is what a broker knows of a group.
type Queue struct {
	Group string
	// Waiting messages are with no consumer yet. InHand ones are, and not finished; a broker that cannot tell
	// leaves it at zero.
	Waiting, InHand int64
	// Consumers is how many subscriptions there are.
	Consumers int
}

// Queues is a broker that can tell how much waits for its groups.
type Queues interface {
	// Queues returns the state of each group, in their order.
	Queues(ctx context.Context, groups ...string) ([]Queue, error)
}

// Queues implements [Queues] where the broker behind does: who looks at what is cut off must not be.
func (b *gatedBroker) Queues(ctx context.Context, groups ...string) ([]Queue, error) {
	if q, ok := b.Broker.(Queues); ok {
		return q.Queues(ctx, groups...)
	}
	return nil, errors.ErrUnsupported
}

// Remover is a broker that can be rid of a group.
type Remover interface {
	// Remove deletes a group with all that it has left: its subscribers have ended. One that there is not is no error.
	Remove(ctx context.Context, group string) error
}

// Remove implements [Remover] where the broker behind does.
func (b *gatedBroker) Remove(ctx context.Context, group string) error {
	r, ok := b.Broker.(Remover)
	if !ok {
		return errors.ErrUnsupported
	}
	if b.inProcess {
		if err := b.gate.wait(ctx, cut); err != nil {
			return err
		}
	}
	return r.Remove(ctx, group)
}

// GroupState is what one instance has in hand of a group.
type GroupState struct {
	Group string `json:"group"`
	// InHand messages have been begun and are not finished, those included that wait to be tried again. What the
	// broker has sent ahead, for when a handler is free, is not among them.
	InHand int64 `json:"in_hand"`
	// OldestSeconds is the age of the oldest of them, zero if there is none.
	OldestSeconds float64 `json:"oldest_seconds"`
	// DelaySeconds is the time from the last event to the commit of what was made of it.
	DelaySeconds float64 `json:"delay_seconds"`
}

// hands are the messages that the consumers of a service have begun and not finished. The zero value is ready.
type hands struct {
	mu     sync.Mutex
	held   map[heldKey]held
	delays map[string]time.Duration // of the last message, by group
}

type heldKey struct{ group, id string }

type held struct {
	since time.Time // of the event
	// forget is when a message that is to come again has not, as when another process has it by now. Zero while a
	// handler has it.
	forget time.Time
}

// late is how long after its time a message comes again at most; the broker's own factor is 4.
const late = 30 * time.Second

func (h *hands) take(group string, m *messaging.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held == nil {
		h.held = map[heldKey]held{}
	}
	h.held[heldKey{group, m.ID}] = held{since: m.Time}
}

func (h *hands) settle(group string, m *messaging.Message, d messaging.Decision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.Action == messaging.Retried {
		h.held[heldKey{group, m.ID}] = held{since: m.Time, forget: time.Now().Add(4*d.Delay + late)}
		return
	}
	delete(h.held, heldKey{group, m.ID})
}

func (h *hands) delayed(group string, delay time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.delays == nil {
		h.delays = map[string]time.Duration{}
	}
	h.delays[group] = delay
}

// list returns the state of the groups, and of those that have a delay.
func (h *hands) list(groups []string) []GroupState {
	h.mu.Lock()
	defer h.mu.Unlock()
	for group := range h.delays {
		groups = append(groups, group)
	}
	slices.Sort(groups)
	groups = slices.Compact(groups)
	now := time.Now()
	out := make([]GroupState, len(groups))
	for i, group := range groups {
		out[i] = GroupState{Group: group, DelaySeconds: h.delays[group].Seconds()}
		for key, m := range h.held {
			if key.group != group {
				continue
			}
			if !m.forget.IsZero() && now.After(m.forget) {
				delete(h.held, key)
				continue
			}
			out[i].InHand++
			out[i].OldestSeconds = max(out[i].OldestSeconds, now.Sub(m.since).Seconds())
		}
	}
	return out
}

// groups tells what this instance has in hand.
func (b *Bus) groups() []GroupState {
	b.mu.Lock()
	names := make([]string, 0, len(b.handlers))
	for group := range b.handlers {
		names = append(names, group)
	}
	b.mu.Unlock()
	return b.hands.list(names)
}

// Reader is how far somebody is who reads a stream of events from its beginning.
type Reader struct {
	// Stream says whose events, Reader who reads them.
	Stream string `json:"stream"`
	Reader string `json:"reader"`
	// Status is serving, building, stopped at an event that it cannot take, or whatever else has become of it.
	Status string `json:"status"`
	// Position is how far in the stream it is. End is how far the stream is, zero if that is not known.
	Position int64 `json:"position"`
	End      int64 `json:"end,omitempty"`
	// Applied is how many events it has taken in, zero if that is not counted.
	Applied int64 `json:"applied,omitempty"`
	// BehindSeconds is how long the first event has waited that it has not taken in.
	BehindSeconds float64 `json:"behind_seconds"`
	Note          string  `json:"note,omitempty"`
}
