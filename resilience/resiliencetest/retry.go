// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencetest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// RetrySpec is the retry to make.
type RetrySpec struct {
	Attempts  int           // tries in all
	Base, Max time.Duration // of the delays
	NoJitter  bool          // delays are Base, 2*Base, ... Max exactly
	NoBudget  bool          // no bound over all calls
}

// A retry may have these methods too; what is missing is not checked.
type (
	permanenter interface{ Permanent(err error) error } // not to be repeated
	afterer     interface {
		After(err error, d time.Duration) error
	} // not before d
	rejecter interface {
		Rejected(err error, after time.Duration) error
	} // by another guard, admitting again after that
)

// OpenRetry makes a retry.
type OpenRetry = func(RetrySpec) (Guard, error)

// RunRetry holds retries to their promises.
func RunRetry(t *testing.T, open OpenRetry) { run(t, retryPromises, open) }

// plain is a spec whose delays are one second each.
func plain(attempts int) RetrySpec {
	return RetrySpec{Attempts: attempts, Base: time.Second, Max: time.Second, NoJitter: true, NoBudget: true}
}

func openRetry(t *testing.T, open OpenRetry, spec RetrySpec) Guard {
	t.Helper()
	g, err := open(spec)
	return made(t, g, err)
}

// counting returns a function that counts its calls and fails with err.
func counting(n *int, err error) func(context.Context) error {
	return func(context.Context) error { *n++; return err }
}

var retryPromises = []promise[OpenRetry]{
	{"a success is not repeated", virtual(func(t *testing.T, open OpenRetry) {
		n := 0
		if err := openRetry(t, open, plain(3)).Do(t.Context(), counting(&n, nil)); err != nil || n != 1 {
			t.Errorf("Do = %v after %d calls, want nil after 1", err, n)
		}
	})},
	{"a failure is repeated until it succeeds", virtual(func(t *testing.T, open OpenRetry) {
		n := 0
		err := openRetry(t, open, plain(5)).Do(t.Context(), func(context.Context) error {
			if n++; n < 3 {
				return errDown
			}
			return nil
		})
		if err != nil || n != 3 {
			t.Errorf("Do = %v after %d calls, want nil after 3", err, n)
		}
	})},
	{"after the last attempt it returns the last error without another wait", virtual(func(t *testing.T, open OpenRetry) {
		n, start := 0, time.Now()
		err := openRetry(t, open, plain(3)).Do(t.Context(), counting(&n, errDown))
		if !errors.Is(err, errDown) || n != 3 || time.Since(start) != 2*time.Second {
			t.Errorf("Do = %v after %d calls and %v, want the error after 3 and 2s", err, n, time.Since(start))
		}
	})},
	{"every caller has the same number of attempts", virtual(func(t *testing.T, open OpenRetry) {
		g := openRetry(t, open, plain(3))
		for i := range 5 {
			n := 0
			_ = g.Do(t.Context(), counting(&n, errDown))
			if n != 3 {
				t.Errorf("caller %d: %d calls, want 3", i, n)
			}
		}
	})},
	{"jitter spreads the delays of callers", virtual(func(t *testing.T, open OpenRetry) {
		g := openRetry(t, open, RetrySpec{Attempts: 2, Base: time.Minute, Max: time.Minute, NoBudget: true})
		seen := map[time.Duration]bool{}
		for range 50 {
			start := time.Now()
			_ = g.Do(t.Context(), fail)
			seen[time.Since(start)] = true
		}
		if len(seen) < 40 {
			t.Errorf("%d different delays of 50 callers", len(seen))
		}
	})},
	{"a permanent error is not repeated", virtual(func(t *testing.T, open OpenRetry) {
		g := openRetry(t, open, plain(3))
		p, ok := g.(permanenter)
		if !ok {
			t.Skip("not supported")
		}
		n := 0
		if err := g.Do(t.Context(), counting(&n, p.Permanent(errDown))); !errors.Is(err, errDown) || n != 1 {
			t.Errorf("Do = %v after %d calls, want the error after 1", err, n)
		}
	})},
	{"a cancel ends the wait at once", virtual(func(t *testing.T, open OpenRetry) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(500*time.Millisecond, cancel)
		start := time.Now()
		err := openRetry(t, open, plain(3)).Do(ctx, fail)
		if err == nil || time.Since(start) != 500*time.Millisecond {
			t.Errorf("Do = %v after %v, want an error after 500ms", err, time.Since(start))
		}
	})},
	{"a cancel during the wait leaves the last error and Canceled reachable", virtual(func(t *testing.T, open OpenRetry) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(500*time.Millisecond, cancel)
		if err := openRetry(t, open, plain(3)).Do(ctx, fail); !errors.Is(err, errDown) || !errors.Is(err, context.Canceled) {
			t.Errorf("Do = %v, want the call's error and Canceled", err)
		}
	})},
	{"a delay that would cross the deadline is not slept", virtual(func(t *testing.T, open OpenRetry) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		start := time.Now()
		if err := openRetry(t, open, plain(3)).Do(ctx, fail); err == nil || time.Since(start) != 0 {
			t.Errorf("Do = %v after %v, want an error at once", err, time.Since(start))
		}
	})},
	{"at the deadline the last error and DeadlineExceeded are reachable", virtual(func(t *testing.T, open OpenRetry) {
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		if err := openRetry(t, open, plain(9)).Do(ctx, fail); !errors.Is(err, errDown) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Do = %v, want the call's error and DeadlineExceeded", err)
		}
	})},
	{"nothing is repeated once the caller has gone", virtual(func(t *testing.T, open OpenRetry) {
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		_ = openRetry(t, open, plain(3)).Do(ctx, func(context.Context) error { n++; cancel(); return errDown })
		if n != 1 {
			t.Errorf("%d calls, want 1", n)
		}
	})},
	{"a wish to come later is not undercut", virtual(func(t *testing.T, open OpenRetry) {
		g := openRetry(t, open, plain(2))
		a, ok := g.(afterer)
		if !ok {
			t.Skip("not supported")
		}
		start := time.Now()
		_ = g.Do(t.Context(), failing(a.After(errDown, 10*time.Second)))
		if took := time.Since(start); took < 10*time.Second || took > 20*time.Second {
			t.Errorf("came back after %v, want 10s or a little more", took)
		}
	})},
	{"a refusal by a guard that stays closed for an hour is not waited for", virtual(func(t *testing.T, open OpenRetry) {
		g := openRetry(t, open, plain(3))
		r, ok := g.(rejecter)
		if !ok {
			t.Skip("not supported")
		}
		n, start := 0, time.Now()
		if err := g.Do(t.Context(), counting(&n, r.Rejected(errDown, time.Hour))); !errors.Is(err, errDown) || n != 1 || time.Since(start) != 0 {
			t.Errorf("Do = %v after %d calls and %v, want the refusal after 1, at once", err, n, time.Since(start))
		}
	})},
	{"nested retries do not multiply", virtual(func(t *testing.T, open OpenRetry) {
		outer, inner := openRetry(t, open, plain(3)), openRetry(t, open, plain(3))
		n := 0
		_ = outer.Do(t.Context(), func(ctx context.Context) error { return inner.Do(ctx, counting(&n, errDown)) })
		if n > 5 {
			t.Errorf("%d calls, want at most 5, not 9", n)
		}
	})},
	{"a full outage costs at most 1.2 times the load", virtual(func(t *testing.T, open OpenRetry) {
		g := openRetry(t, open, RetrySpec{Attempts: 3, Base: 50 * time.Millisecond, Max: 2 * time.Second})
		var n atomic.Int64
		var wg sync.WaitGroup
		const calls = 6000
		for range calls {
			wg.Go(func() { _ = g.Do(t.Context(), func(context.Context) error { n.Add(1); return errDown }) })
			time.Sleep(5 * time.Millisecond)
		}
		wg.Wait()
		if amplification := float64(n.Load()) / calls; amplification > 1.2 {
			t.Errorf("%.2f times the load, want at most 1.2", amplification)
		}
	})},
	{"a panic in the call comes through", virtual(func(t *testing.T, open OpenRetry) {
		if !crash(t.Context(), openRetry(t, open, plain(3)), "panic") {
			t.Error("the panic did not come through")
		}
	})},
	{"a success with the caller's own context allocates nothing", func(t *testing.T, open OpenRetry) {
		g, ctx := openRetry(t, open, plain(3)), t.Context()
		noAllocations(t, func() { _ = g.Do(ctx, succeed) })
	}},
}

func failing(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}
