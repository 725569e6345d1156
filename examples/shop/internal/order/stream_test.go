// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package order

import (
	"errors"
	"fmt"
	"testing"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
)

// TestDecide gives every command in every state.
func TestDecide(t *testing.T) {
	in := map[string]state{"": {}}
	for _, s := range []string{statusPending, statusConfirmed, statusDispatched, statusRejected, statusCancelled} {
		in[s] = state{status: s, order: kernel.OrderChanged{OrderID: "o", Total: 5, Reason: "old", Tracking: "old"}}
	}
	const refused = "refused"
	for _, tt := range []struct {
		command command
		// What follows each state: the next one, or the same where nothing changes. All else is refused.
		want map[string]string
	}{
		{place{kernel.OrderChanged{OrderID: "o", Total: 5}}, map[string]string{"": statusPending}},
		{confirm{}, map[string]string{statusPending: statusConfirmed, statusConfirmed: statusConfirmed, statusDispatched: statusDispatched}},
		{dispatch{"T1"}, map[string]string{statusConfirmed: statusDispatched, statusDispatched: statusDispatched}},
		{reject{"why"}, map[string]string{statusPending: statusRejected, statusRejected: statusRejected}},
		{cancel{"why"}, map[string]string{statusPending: statusCancelled, statusConfirmed: statusCancelled, statusCancelled: statusCancelled}},
	} {
		for status, before := range in {
			t.Run(fmt.Sprintf("%T when %q", tt.command, status), func(t *testing.T) {
				want, ok := tt.want[status]
				if !ok {
					want = refused
				}
				got, err := decide(before, tt.command)
				if errors.Is(err, errNotNow) != (want == refused) {
					t.Fatalf("decide = %v, %v, want %s", got, err, want)
				}
				if want == refused {
					return
				}
				after := before
				for _, e := range got {
					after = evolve(after, e)
				}
				if after.status != want || (want == status) != (len(got) == 0) {
					t.Errorf("after %v the order is %q, want %q", got, after.status, want)
				}
				if len(got) == 1 && (after.order.Total != 5 || after.order.Reason == "old" || after.order.Tracking == "old") {
					t.Errorf("the event is %+v, want the whole order and nothing of an earlier event", after.order)
				}
			})
		}
	}
}
