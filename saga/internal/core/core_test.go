// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package core

import (
	"errors"
	"reflect"
	"testing"
)

// What the engine's tests and the search of sagatest do not tell apart.
func TestDecide(t *testing.T) {
	call, idle := Step{Undo: true}, Step{Local: true, Idle: true}
	pivot := Step{Pivot: true}
	group := []Step{{Undo: true, Group: 3}, call, call, call}
	parked := State{Status: Running, Step: 1, Attempt: 3, Stuck: "oops", Parked: true}
	for what, c := range map[string]struct {
		steps []Step
		state State
		event Event
		want  State
		err   error
	}{
		"a parked saga that is cancelled is taken up again": {
			[]Step{call, call}, parked, Event{Kind: Cancel, Text: "no"},
			State{Status: Running, Step: 1, Attempt: 3, Cancel: "no"}, nil,
		},
		"a cancellation is done with when the saga turns back": {
			[]Step{call, call}, State{Status: Running, Step: 1, Cancel: "no"}, Event{Kind: Look},
			State{Status: Compensating, Step: 1, Cause: Cancellation, Reason: "no"}, nil,
		},
		"a parked saga does not turn back by itself": {
			[]Step{call, call}, parked, Event{Kind: Look, Late: true}, parked, nil,
		},
		"to skip a group is to skip all of it": {
			group, State{Status: Running, Stuck: "oops", Finished: Set(0).With(1), Waiting: Set(0).With(0)}, Event{Kind: Skip},
			State{Status: Running, Step: 3}, nil,
		},
		"a completed saga that has decided is not undone for its parent": {
			[]Step{call, pivot}, State{Status: Completed, Step: 2}, Event{Kind: Revert, Text: "no"},
			State{Status: Completed, Step: 2}, ErrPastPivot,
		},
		"one that ends with a wait has not decided": {
			[]Step{call, idle}, State{Status: Completed, Step: 2}, Event{Kind: Revert, Text: "no"},
			State{Status: Compensating, Cause: Cancellation, Reason: "no"}, nil,
		},
		"a pivot of unknown outcome is neither done nor undone": {
			[]Step{call, pivot}, State{Status: Running, Step: 1}, Event{Kind: Hopeless, Text: "?"},
			State{Status: Running, Step: 1, Attempt: 1, Stuck: "failed for good where there is no way back: ?", Parked: true}, nil,
		},
		"a pivot that is done late is done": {
			[]Step{call, pivot, call}, State{Status: Running, Step: 1}, Event{Kind: Done, Late: true},
			State{Status: Running, Step: 2}, nil,
		},
		"a cancellation that came with a saga past its pivot is too late": {
			[]Step{call, pivot, call}, State{Status: Running, Step: 1, Cancel: "no"}, Event{Kind: Done},
			State{Status: Running, Step: 2, Cancel: "no"}, nil,
		},
	} {
		got, _, err := NewShape(c.steps).Decide(c.state, c.event)
		if !errors.Is(err, c.err) || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: Decide = %+v, %v, want %+v, %v", what, got, err, c.want, c.err)
		}
	}
}
