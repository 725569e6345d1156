// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

func TestHandsKnowWhatIsBegunAndNotFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h hands
		old := &messaging.Message{ID: "old", Time: time.Now().Add(-time.Minute)}
		young := &messaging.Message{ID: "young", Time: time.Now()}
		is := func(what string, want ...GroupState) {
			t.Helper()
			if got := h.list([]string{"mails", "parcels"}); !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
		idle := GroupState{Group: "parcels"}
		is("at first", GroupState{Group: "mails"}, idle)

		h.take("mails", old)
		h.take("mails", young)
		is("both begun", GroupState{Group: "mails", InHand: 2, OldestSeconds: 60}, idle)
		h.settle("mails", young, messaging.Decision{Action: messaging.Acked})
		h.delayed("mails", 2*time.Second)
		h.settle("mails", old, messaging.Decision{Action: messaging.Retried, Delay: time.Second})
		is("one is to come again", GroupState{Group: "mails", InHand: 1, OldestSeconds: 60, DelaySeconds: 2}, idle)

		time.Sleep(time.Second)
		h.take("mails", old) // again, and for long
		time.Sleep(time.Hour)
		is("an hour at it", GroupState{Group: "mails", InHand: 1, OldestSeconds: 3661, DelaySeconds: 2}, idle)
		h.settle("mails", old, messaging.Decision{Action: messaging.Retried, Delay: time.Second})
		time.Sleep(4*time.Second + late)
		is("it comes late", GroupState{Group: "mails", InHand: 1, OldestSeconds: 3695, DelaySeconds: 2}, idle)
		time.Sleep(time.Millisecond)
		is("another process has it", GroupState{Group: "mails", DelaySeconds: 2}, idle)

		h.take("mails", young)
		h.settle("mails", young, messaging.Decision{Action: messaging.DeadLettered})
		h.delayed("figures", time.Second) // of no group that is asked for
		if got, want := h.list([]string{"mails"}), (GroupState{Group: "figures", DelaySeconds: 1}); len(got) != 2 || got[0] != want {
			t.Errorf("groups = %v, want %v among them", got, want)
		}
	})
}

// fullBroker has so much to do in every group.
type fullBroker struct {
	Broker
	waiting int64
}

func (b fullBroker) Queues(_ context.Context, groups ...string) ([]Queue, error) {
	out := make([]Queue, len(groups))
	for i, g := range groups {
		out[i] = Queue{Group: g, Waiting: b.waiting}
	}
	return out, nil
}

func TestGateShowsQueuesWhateverItDoes(t *testing.T) {
	gate := NewGate()
	gate.Set(Harm{Cut: true, Paused: true})
	queues, ok := gate.Broker(fullBroker{waiting: 7}, true).(Queues)
	if !ok {
		t.Fatal("a broker behind a gate cannot tell its queues")
	}
	if got, err := queues.Queues(t.Context(), "a", "b"); err != nil || !slices.Equal(got, []Queue{{Group: "a", Waiting: 7}, {Group: "b", Waiting: 7}}) {
		t.Errorf("Queues = %v, %v", got, err)
	}
	mute := gate.Broker(struct{ Broker }{}, true).(Queues)
	if got, err := mute.Queues(t.Context(), "a"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Queues of a broker that cannot tell = %v, %v; want errors.ErrUnsupported", got, err)
	}
}
