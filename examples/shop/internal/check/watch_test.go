// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// What waits for its turn is no violation, however long; what nobody has any more is one.
func TestLateIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := true
		w := NewWatch(nil, func(time.Duration) bool { return true }, func(context.Context) bool { return late })
		unfinished := []Invariant{{unfinished: []string{"event e-1 is not applied by notification"}}}
		for range 10 {
			time.Sleep(settling)
			if w.settled(unfinished, w.held(t.Context())) {
				t.Fatal("at rest while a message waits")
			}
		}
		late = false
		if w.settled(unfinished, w.held(t.Context())) {
			t.Error("at rest as soon as no message waits: it may have been lost a moment ago")
		}
		time.Sleep(settling)
		if !w.settled(unfinished, w.held(t.Context())) {
			t.Errorf("not at rest %v after anything waited", settling)
		}
	})
}
