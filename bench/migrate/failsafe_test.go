// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/failsafe-go/failsafe-go"
	fsbulkhead "github.com/failsafe-go/failsafe-go/bulkhead"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/fallback"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	"github.com/failsafe-go/failsafe-go/timeout"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

// snippet: failsafe-go/before
func newFailsafe() failsafe.Executor[*User] {
	return failsafe.With[*User](
		fallback.NewWithResult(&User{Name: "somebody"}),
		timeout.New[*User](5*time.Second), // all attempts
		retrypolicy.NewBuilder[*User]().WithMaxAttempts(3).WithBackoff(50*time.Millisecond, 2*time.Second).WithJitterFactor(0.5).Build(),
		fsbulkhead.NewBuilder[*User](32).WithMaxWaitTime(time.Second).Build(),
		circuitbreaker.NewBuilder[*User]().WithFailureRateThreshold(0.5, 20, 10*time.Second).WithDelay(5*time.Second).Build(),
		timeout.New[*User](time.Second), // one attempt
	)
}

func getByFailsafe(ctx context.Context, executor failsafe.Executor[*User], get load, id string) (*User, error) {
	return executor.WithContext(ctx).GetWithExecution(func(e failsafe.Execution[*User]) (*User, error) {
		return get(e.Context(), id)
	})
}

// end

// snippet: failsafe-go/after
func newPolicy() (*resilience.Policy, error) {
	r, err1 := retry.New(retry.Config{Name: "users"}) // 3 attempts, 50 ms to 2 s, full jitter, a budget
	places, err2 := bulkhead.New(32, bulkhead.Config{Name: "users", Queue: 64, Wait: time.Second})
	b, err3 := breaker.New(breaker.Config{Name: "users", FailureRate: 0.5, OpenFor: 5 * time.Second})
	return &resilience.Policy{
		Total:    5 * time.Second,
		Retry:    r,
		Bulkhead: places,
		Breaker:  b,
		Attempt:  time.Second,
	}, errors.Join(err1, err2, err3)
}

func getByPolicy(ctx context.Context, p *resilience.Policy, get load, id string) (*User, error) {
	return resilience.Fallback(ctx, p,
		func(ctx context.Context) (*User, error) { return get(ctx, id) },
		func(context.Context, error) (*User, error) { return &User{Name: "somebody"}, nil })
}

// end

func TestFailsafeAndPolicyDoTheSame(t *testing.T) {
	for _, name := range []string{"failsafe-go", "dovetail"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var do func(fn load) (*User, error)
				if name == "dovetail" {
					p, err := newPolicy()
					if err != nil {
						t.Fatal(err)
					}
					do = func(fn load) (*User, error) { return getByPolicy(t.Context(), p, fn, "7") }
				} else {
					executor := newFailsafe()
					do = func(fn load) (*User, error) { return getByFailsafe(t.Context(), executor, fn, "7") }
				}
				calls := 0
				user, err := do(func(ctx context.Context, _ string) (*User, error) {
					if calls++; calls == 1 {
						<-ctx.Done() // hangs until its second is over
						return nil, ctx.Err()
					}
					return &User{"ada"}, nil
				})
				if err != nil || user.Name != "ada" || calls != 2 {
					t.Errorf("%v, %v after %d calls, want ada after 2", user, err, calls)
				}
				user, err = do(func(context.Context, string) (*User, error) { return nil, errors.New("out") })
				if err != nil || user.Name != "somebody" {
					t.Errorf("%v, %v, want the fallback", user, err)
				}
			})
		})
	}
}

// What the guide says of panics: a permit is given back, or lost.
func TestFailsafeLosesAPermitToAPanic(t *testing.T) {
	panics := func(do func()) {
		defer func() { _ = recover() }()
		do()
	}
	peer := fsbulkhead.New[int](1)
	panics(func() { _ = failsafe.With[int](peer).Run(func() error { panic("so") }) })
	if peer.TryAcquirePermit() {
		t.Error("failsafe-go gives the permit back by now: the guide has to say so")
	}
	ours, err := bulkhead.New(1, bulkhead.Config{})
	if err != nil {
		t.Fatal(err)
	}
	panics(func() { _ = ours.Do(t.Context(), func(context.Context) error { panic("so") }) })
	if _, ok := ours.TryAcquire(); !ok {
		t.Error("the permit is lost")
	}
}
