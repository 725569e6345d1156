// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package modeltest runs random sequences of operations against a subject and its naive
// reference model, and shrinks a sequence that shows a difference.
package modeltest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
)

// Run makes rounds sequences of steps operations with gen and hands each to run, under
// virtual time; run returns an error where subject and model differ. The seed is logged; set
// DOVETAIL_SEED to repeat it. A failing sequence is reported in its shortest form.
func Run[Op any](t *testing.T, rounds, steps int, gen func(*rand.Rand) Op, run func(t *testing.T, ops []Op) error) {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("DOVETAIL_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("DOVETAIL_SEED is %q, want a number", s)
		}
		seed = n
	}
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	try := func(ops []Op) (err error) {
		synctest.Test(t, func(t *testing.T) { err = run(t, ops) })
		return err
	}
	for range rounds {
		ops := make([]Op, steps)
		for i := range ops {
			ops[i] = gen(rng)
		}
		if err := try(ops); err != nil {
			ops, err = Shrink(ops, err, try)
			var b strings.Builder
			for _, op := range ops {
				fmt.Fprintf(&b, "\n  %+v", op)
			}
			t.Fatalf("%v, after%s", err, &b)
		}
	}
}

// Shrink returns the shortest sequence that it finds, by leaving out ever smaller parts, for
// which try still fails, and its error.
func Shrink[Op any](ops []Op, err error, try func([]Op) error) ([]Op, error) {
	for size := len(ops) / 2; size > 0; {
		smaller := false
		for at := 0; at+size <= len(ops); {
			rest := append(append([]Op(nil), ops[:at]...), ops[at+size:]...)
			if e := try(rest); e != nil {
				ops, err, smaller = rest, e, true
			} else {
				at += size
			}
		}
		if !smaller {
			size /= 2
		}
	}
	return ops, err
}
