// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagatest_test

import (
	"context"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagatest"
)

type trip struct{ Room string }

func defineTrip() *saga.Definition[trip] {
	ok := func(context.Context, saga.Attempt, *trip) error { return nil }
	command := func(topic string) func(context.Context, saga.Attempt, *trip) (*messaging.Message, error) {
		return func(context.Context, saga.Attempt, *trip) (*messaging.Message, error) {
			return &messaging.Message{Topic: topic}, nil
		}
	}
	return saga.Must(saga.New("trip", 1,
		saga.Call("flight", ok, saga.Undo(ok)),
		saga.Send("hotel", command("hotel.book"), func(d *trip, room string) error {
			if room == "" {
				return saga.Refuse("full")
			}
			d.Room = room
			return nil
		}, saga.UndoSend(command("hotel.cancel"), func(*trip, string) error { return nil })),
		saga.Await("approval", func(_ *trip, yes bool) error {
			if !yes {
				return saga.Refuse("too dear")
			}
			return nil
		}, saga.Timeout[trip](72*time.Hour)),
		saga.Pivot(saga.Call("pay", ok)),
	))
}

func TestPlay(t *testing.T) {
	t.Run("approved", func(t *testing.T) {
		sagatest.Play(t, defineTrip(), trip{}, func(p *sagatest.Player[trip]) {
			p.Waits("hotel").Reply("hotel.book", "room 7")
			p.Waits("approval").After(71*time.Hour).Waits("approval").Deliver("approval", true)
			p.Ends(saga.Completed).Did("flight/do", "hotel/do", "approval/do", "pay/do")
			if d := p.Data(); d.Room != "room 7" {
				t.Errorf("data = %+v", d)
			}
		})
	})
	t.Run("nobody approves", func(t *testing.T) {
		sagatest.Play(t, defineTrip(), trip{}, func(p *sagatest.Player[trip]) {
			p.Reply("hotel.book", "room 7").After(73 * time.Hour)
			p.Waits("hotel").Sent("hotel.cancel")
			p.Reply("hotel.cancel", "ok").Ends(saga.Compensated).Did("flight/do", "hotel/do", "hotel/undo", "flight/undo")
			if in := p.Instance(); in.Cause != saga.CauseDeadline {
				t.Errorf("cause = %v", in.Cause)
			}
		})
	})
	t.Run("cancelled", func(t *testing.T) {
		sagatest.Play(t, defineTrip(), trip{}, func(p *sagatest.Player[trip]) {
			p.Cancel(saga.By{Who: "ann", Why: "changed her mind"}).Reply("hotel.cancel", "ok").Ends(saga.Compensated)
		})
	})
}
