// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package modeltest_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/internal/modeltest"
)

func TestRunUsesVirtualTime(t *testing.T) {
	rounds := 0
	modeltest.Run(t, 3, 10, func(r *rand.Rand) int { return r.IntN(5) }, func(t *testing.T, ops []int) error {
		rounds++
		time.Sleep(time.Hour)
		if len(ops) != 10 {
			return errors.New("wrong length")
		}
		return nil
	})
	if rounds != 3 {
		t.Errorf("%d rounds, want 3", rounds)
	}
}

func TestShrinkFindsTheCore(t *testing.T) {
	bad := func(ops []int) error { // 3, and later 7
		if at := slices.Index(ops, 3); at >= 0 && slices.Contains(ops[at:], 7) {
			return errors.New("found")
		}
		return nil
	}
	ops := []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 3, 7, 1}
	got, err := modeltest.Shrink(ops, bad(ops), bad)
	if !slices.Equal(got, []int{3, 7}) || err == nil {
		t.Errorf("Shrink = %v, %v, want [3 7] and its error", got, err)
	}
}
