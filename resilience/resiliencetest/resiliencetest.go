// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencetest

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// ErrUnsupported is returned by an adapter for what its implementation does not have.
var ErrUnsupported = errors.New("resiliencetest: not supported")

// Guard is what all guards have in common.
type Guard interface {
	// Do calls fn under the guard, or returns an error without calling it.
	Do(ctx context.Context, fn func(context.Context) error) error
}

// Promise is one sentence of a suite.
type Promise struct {
	Suite string // "retry", "breaker", "bulkhead", "ratelimit", "keyed", "transport" or "store"
	Text  string // also the name of the subtest, where spaces are underscores
}

// Promises returns everything that the suites check.
func Promises() []Promise {
	var all []Promise
	all = list(all, "retry", retryPromises)
	all = list(all, "breaker", breakerPromises)
	all = list(all, "bulkhead", bulkheadPromises)
	all = list(all, "ratelimit", ratePromises)
	all = list(all, "keyed", keyedPromises)
	all = list(all, "transport", transportPromises)
	return list(all, "store", storePromises)
}

// promise is a sentence and its check. Open is the function that makes the guard.
type promise[Open any] struct {
	text  string
	check func(t *testing.T, open Open)
}

func list[Open any](all []Promise, suite string, promises []promise[Open]) []Promise {
	for _, p := range promises {
		all = append(all, Promise{suite, p.text})
	}
	return all
}

func run[Open any](t *testing.T, promises []promise[Open], open Open) {
	t.Helper()
	for _, p := range promises {
		t.Run(p.text, func(t *testing.T) { p.check(t, open) })
	}
}

// virtual runs a check in virtual time.
func virtual[Open any](check func(t *testing.T, open Open)) func(*testing.T, Open) {
	return func(t *testing.T, open Open) {
		synctest.Test(t, func(t *testing.T) { check(t, open) })
	}
}

// made returns g, or ends the test: skipped if g is not supported, else failed.
func made[G any](t *testing.T, g G, err error) G {
	t.Helper()
	switch {
	case errors.Is(err, ErrUnsupported):
		t.Skip("not supported")
	case err != nil:
		t.Fatalf("open = %v, want nil", err)
	}
	return g
}

var errDown = errors.New("the callee is down")

func succeed(context.Context) error { return nil }
func fail(context.Context) error    { return errDown }

// try calls g and reports whether fn was called.
func try(ctx context.Context, g Guard, fn func(context.Context) error) (called bool, err error) {
	err = g.Do(ctx, func(ctx context.Context) error {
		called = true
		return fn(ctx)
	})
	return called, err
}

// crash calls g with a function that panics or calls runtime.Goexit, in a goroutine of its own,
// and reports whether that came through to the caller.
func crash(ctx context.Context, g Guard, how string) (cameThrough bool) {
	done := make(chan bool)
	go func() {
		returned := false
		defer func() {
			p := recover()
			done <- !returned && (how == "Goexit" || p == "boom")
		}()
		_ = g.Do(ctx, func(context.Context) error {
			if how == "Goexit" {
				runtime.Goexit()
			}
			panic("boom")
		})
		returned = true
	}()
	return <-done
}

// inTime runs f in real time and reports whether it ended, for what may block on a mutex.
func inTime(f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }()
		f()
	}()
	select {
	case <-done:
		return true
	case <-time.After(5 * time.Second):
		return false
	}
}

// noAllocations checks f, which is a success.
func noAllocations(t *testing.T, f func()) {
	t.Helper()
	f()
	if n := testing.AllocsPerRun(500, f); n != 0 {
		t.Errorf("a success allocates %v times, want 0", n)
	}
}
