// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	var none Tally
	if got := Quantile(none.Took, 0.5); got != 0 {
		t.Errorf("Quantile of nothing = %v, want 0", got)
	}
	var tally Tally
	for ms := 1; ms <= 1000; ms++ {
		tally.add(time.Duration(ms)*time.Millisecond, ms%10 == 0)
	}
	if tally.Count != 1000 || tally.Errors != 100 {
		t.Errorf("Tally counts %d, %d errors; want 1000, 100", tally.Count, tally.Errors)
	}
	for q, want := range map[float64]time.Duration{0: time.Millisecond, 0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond, 1: time.Second} {
		if got := Quantile(tally.Took, q); got < want*88/100 || got > want*112/100 {
			t.Errorf("Quantile(%v) = %v, want %v within a tenth", q, got, want)
		}
	}
	tally.add(time.Hour, false)
	if got := Quantile(tally.Took, 1); got < time.Minute {
		t.Errorf("Quantile(1) with an hour in it = %v, want more than a minute", got)
	}
}
