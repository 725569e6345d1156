// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencetest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

// BreakerSpec is the breaker to make.
type BreakerSpec struct {
	Consecutive int           // failures in a row that open it
	FailureRate float64       // or the share of MinCalls calls in ten seconds; zero for none
	MinCalls    int           // with FailureRate
	OpenFor     time.Duration // at the first time; up to twice as long counts as that
	Probes      int           // calls at a time in half-open, and successes that close it
	OnChange    func()        // called at each change of state, if not nil
}

// OpenBreaker makes a breaker. An adapter that cannot call OnChange returns ErrUnsupported when it is
// not nil.
type OpenBreaker = func(BreakerSpec) (Guard, error)

// RunBreaker holds circuit breakers to their promises.
func RunBreaker(t *testing.T, open OpenBreaker) { run(t, breakerPromises, open) }

// openFor is the open time in all specs, and reopened enough to be half-open again.
const (
	openFor  = 10 * time.Second
	reopened = 2*openFor + time.Second
)

func openBreaker(t *testing.T, open OpenBreaker, spec BreakerSpec) Guard {
	t.Helper()
	if spec.Consecutive == 0 && spec.FailureRate == 0 {
		spec.Consecutive = 3
	}
	if spec.Probes == 0 {
		spec.Probes = 1
	}
	spec.OpenFor = openFor
	g, err := open(spec)
	return made(t, g, err)
}

// trip makes g fail until it refuses.
func trip(t *testing.T, g Guard) {
	t.Helper()
	for range 3 {
		_ = g.Do(t.Context(), fail)
	}
	if called, _ := try(t.Context(), g, fail); called {
		t.Fatal("the breaker is closed after 3 failures in a row")
	}
}

// wantCalled checks whether g lets a call through.
func wantCalled(t *testing.T, g Guard, want bool, fn func(context.Context) error) {
	t.Helper()
	if called, err := try(t.Context(), g, fn); called != want {
		t.Errorf("Do calls: %v (%v), want %v", called, err, want)
	}
}

// hanging starts a call that does not heed its context and ends when end is called.
func hanging(t *testing.T, g Guard, err error) (end func()) {
	release, done := make(chan struct{}), make(chan struct{})
	ctx := t.Context()
	go func() {
		defer close(done)
		_ = g.Do(ctx, func(context.Context) error { <-release; return err })
	}()
	synctest.Wait()
	end = sync.OnceFunc(func() { close(release); <-done })
	t.Cleanup(end)
	return end
}

var breakerPromises = []promise[OpenBreaker]{
	{"opens after failures in a row and then refuses without calling", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		for range 3 {
			wantCalled(t, g, true, fail)
		}
		called, err := try(t.Context(), g, succeed)
		if called || err == nil {
			t.Errorf("Do = %v, called %v, want a refusal", err, called)
		}
	})},
	{"a success in between starts the count again", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		for _, fn := range []func(context.Context) error{fail, fail, succeed, fail, fail} {
			wantCalled(t, g, true, fn)
		}
		wantCalled(t, g, true, succeed)
	})},
	{"a failure rate is not rounded", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{FailureRate: 0.5, MinCalls: 200})
		for range 99 {
			wantCalled(t, g, true, fail)
		}
		for range 101 {
			wantCalled(t, g, true, succeed)
		}
		wantCalled(t, g, true, succeed) // 99 of 200 is less than half
	})},
	{"results older than the window do not count", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{FailureRate: 0.5, MinCalls: 10})
		for range 5 {
			for range 9 {
				wantCalled(t, g, true, fail)
			}
			time.Sleep(21 * time.Second)
		}
		wantCalled(t, g, true, succeed)
	})},
	{"after the open time a probe that succeeds closes it", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		trip(t, g)
		time.Sleep(openFor / 2)
		wantCalled(t, g, false, succeed)
		time.Sleep(reopened)
		wantCalled(t, g, true, succeed)
		for range 2 {
			wantCalled(t, g, true, fail)
		}
	})},
	{"a probe that fails opens it again", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		trip(t, g)
		time.Sleep(reopened)
		wantCalled(t, g, true, fail)
		wantCalled(t, g, false, succeed)
	})},
	{"half-open admits no more than Probes, whoever races", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{Probes: 3})
		trip(t, g)
		time.Sleep(reopened)
		var admitted atomic.Int64
		release := make(chan struct{})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				_ = g.Do(t.Context(), func(context.Context) error { admitted.Add(1); <-release; return nil })
			})
		}
		synctest.Wait()
		if n := admitted.Load(); n < 1 || n > 3 {
			t.Errorf("%d calls admitted, want 1 to 3", n)
		}
		close(release)
		wg.Wait()
	})},
	{"a probe that hangs gives way to another within an hour", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		trip(t, g)
		time.Sleep(reopened)
		hanging(t, g, nil)
		wantCalled(t, g, false, succeed)
		time.Sleep(time.Hour)
		wantCalled(t, g, true, succeed)
	})},
	{"a probe whose caller cancels gives its place back", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		trip(t, g)
		time.Sleep(reopened)
		ctx, cancel := context.WithCancel(t.Context())
		_ = g.Do(ctx, func(ctx context.Context) error { cancel(); return ctx.Err() })
		wantCalled(t, g, true, succeed)
	})},
	{"late successes from before it opened do not close it", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		var late []func()
		for range 10 {
			late = append(late, hanging(t, g, nil))
		}
		trip(t, g)
		time.Sleep(reopened)
		probe := hanging(t, g, errDown)
		for _, end := range late {
			end()
		}
		wantCalled(t, g, false, succeed) // the one probe is still out
		probe()
		wantCalled(t, g, false, succeed)
	})},
	{"late failures from before it closed again do not open it", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		var late []func()
		for range 10 {
			late = append(late, hanging(t, g, errDown))
		}
		trip(t, g)
		time.Sleep(reopened)
		wantCalled(t, g, true, succeed)
		for _, end := range late {
			end()
		}
		wantCalled(t, g, true, succeed)
	})},
	{"a panic in the call is a failure and comes through", crashOpens("panic")},
	{"Goexit in the call is a failure and comes through", crashOpens("Goexit")},
	{"a panic in a probe gives its place back", crashFrees("panic")},
	{"Goexit in a probe gives its place back", crashFrees("Goexit")},
	{"the caller's cancellation opens nothing", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		for range 10 {
			ctx, cancel := context.WithCancel(t.Context())
			_ = g.Do(ctx, func(ctx context.Context) error { cancel(); return ctx.Err() })
		}
		wantCalled(t, g, true, succeed)
	})},
	{"Canceled from the callee, while the caller waits, is a failure", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		for range 3 {
			_ = g.Do(t.Context(), failing(context.Canceled))
		}
		wantCalled(t, g, false, succeed)
	})},
	{"a callee that hangs opens it although only the callers have deadlines", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		for range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_ = g.Do(ctx, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
			cancel()
		}
		wantCalled(t, g, false, succeed)
	})},
	{"another guard's refusal is no failure", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		for range 10 {
			_ = g.Do(t.Context(), failing(&fault.Rejection{By: "bulkhead", Err: errDown}))
		}
		wantCalled(t, g, true, succeed)
	})},
	{"a refusal says when to come back", virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		trip(t, g)
		var r *fault.Rejection
		if err := g.Do(t.Context(), succeed); !errors.As(err, &r) || r.RetryAfter < openFor || r.RetryAfter > 2*openFor {
			t.Errorf("Do = %v, want a *fault.Rejection with the open time", err)
		}
	})},
	{"many breakers do not probe together", virtual(func(t *testing.T, open OpenBreaker) {
		var all []Guard
		for range 50 {
			g := openBreaker(t, open, BreakerSpec{})
			trip(t, g)
			all = append(all, g)
		}
		most := 0
		for range 30 {
			probes := 0
			for _, g := range all {
				if called, _ := try(t.Context(), g, fail); called {
					probes++
				}
			}
			most = max(most, probes)
			time.Sleep(time.Second)
		}
		if most > 40 {
			t.Errorf("%d of 50 probe in the same second", most)
		}
	})},
	{"a hook may call the breaker", func(t *testing.T, open OpenBreaker) {
		var g Guard
		g = openBreaker(t, open, BreakerSpec{OnChange: func() {
			if g != nil {
				_ = g.Do(context.Background(), succeed)
			}
		}})
		if !inTime(func() {
			for range 3 {
				_ = g.Do(context.Background(), fail)
			}
		}) {
			t.Error("the breaker is locked up")
		}
	}},
	{"a hook may panic and the breaker goes on", func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{OnChange: func() { panic("hook") }})
		inTime(func() {
			for range 3 {
				_ = g.Do(context.Background(), fail)
			}
		})
		if !inTime(func() { _ = g.Do(context.Background(), succeed) }) {
			t.Error("the breaker is locked up")
		}
	}},
	{"a success allocates nothing", func(t *testing.T, open OpenBreaker) {
		g, ctx := openBreaker(t, open, BreakerSpec{}), t.Context()
		noAllocations(t, func() { _ = g.Do(ctx, succeed) })
	}},
}

func crashOpens(how string) func(*testing.T, OpenBreaker) {
	return virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		for range 3 {
			if !crash(t.Context(), g, how) {
				t.Fatalf("the %s did not come through", how)
			}
		}
		wantCalled(t, g, false, succeed)
	})
}

func crashFrees(how string) func(*testing.T, OpenBreaker) {
	return virtual(func(t *testing.T, open OpenBreaker) {
		g := openBreaker(t, open, BreakerSpec{})
		trip(t, g)
		time.Sleep(reopened)
		crash(t.Context(), g, how)
		time.Sleep(24 * time.Hour)
		wantCalled(t, g, true, succeed)
	})
}
