// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package ratelimit

import (
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// A goroutine that waits may run late: its turn has passed, others were admitted since, and only
// then it finds that its caller has gone.
func TestCancelLongAfterTheTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := New(Limit{Rate: 1, Burst: 1}, Config{})
		if err != nil {
			t.Fatal(err)
		}
		l.Allow()
		w, _ := l.reserve(1, math.MaxInt64)
		time.Sleep(2 * time.Second)
		if !l.Allow().OK {
			t.Fatal("Allow = false one second after the turn, want true")
		}
		l.cancel(w)
		if l.Allow().OK {
			t.Error("two events at once with a burst of one")
		}
	})
}
