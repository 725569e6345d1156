// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/fault"
)

type User struct{ Name string }

// load gets a user from somewhere.
type load func(ctx context.Context, id string) (*User, error)

var errNoUser = errors.New("no such user")

// snippet: gobreaker/before
func newGobreaker(changed func(name string, from, to string)) *gobreaker.CircuitBreaker[*User] {
	return gobreaker.NewCircuitBreaker[*User](gobreaker.Settings{
		Name:         "users",
		Interval:     10 * time.Second,
		BucketPeriod: time.Second,
		Timeout:      5 * time.Second,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return c.Requests >= 20 && float64(c.TotalFailures) >= 0.5*float64(c.Requests)
		},
		IsSuccessful:  func(err error) bool { return err == nil || errors.Is(err, errNoUser) },
		IsExcluded:    func(err error) bool { return errors.Is(err, context.Canceled) },
		OnStateChange: func(name string, from, to gobreaker.State) { changed(name, from.String(), to.String()) },
	})
}

func getByGobreaker(ctx context.Context, cb *gobreaker.CircuitBreaker[*User], get load, id string) (*User, error) {
	user, err := cb.Execute(func() (*User, error) { return get(ctx, id) })
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return &User{Name: "somebody"}, nil
	}
	return user, err
}

// end

// snippet: gobreaker/after
func newBreaker(changed func(name string, from, to string)) (*breaker.Breaker, error) {
	return breaker.New(breaker.Config{
		Name:        "users",
		FailureRate: 0.5, // of at least MinCalls, 20, in the Window, 10 s
		OpenFor:     5 * time.Second,
		Classify: func(ctx context.Context, err error) fault.Verdict {
			if errors.Is(err, errNoUser) {
				return fault.Verdict{Outcome: fault.Success}
			}
			return fault.Judge(ctx, err) // the caller's cancellation is neutral already
		},
		Hooks: breaker.Hooks{Change: func(c breaker.Change) { changed(c.Name, c.From.String(), c.To.String()) }},
	})
}

func get(ctx context.Context, b *breaker.Breaker, get load, id string) (*User, error) {
	user, err := breaker.Do(ctx, b, func(ctx context.Context) (*User, error) { return get(ctx, id) })
	if errors.Is(err, breaker.ErrOpen) { // half-open too, while the probes are out
		return &User{Name: "somebody"}, nil
	}
	return user, err
}

// end

func TestGobreakerAndBreakerDoTheSame(t *testing.T) {
	for name, open := range map[string]func(changed func(name, from, to string)) func(context.Context, load) (*User, error){
		"gobreaker": func(changed func(name, from, to string)) func(context.Context, load) (*User, error) {
			cb := newGobreaker(changed)
			return func(ctx context.Context, fn load) (*User, error) { return getByGobreaker(ctx, cb, fn, "7") }
		},
		"dovetail": func(changed func(name, from, to string)) func(context.Context, load) (*User, error) {
			b, err := newBreaker(changed)
			if err != nil {
				t.Fatal(err)
			}
			return func(ctx context.Context, fn load) (*User, error) { return get(ctx, b, fn, "7") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var changes []string
				call := open(func(_, from, to string) { changes = append(changes, from+" to "+to) })
				answer := func(user *User, err error) load {
					return func(context.Context, string) (*User, error) { return user, err }
				}
				cancelled, cancel := context.WithCancel(t.Context())
				cancel()
				for range 100 { // says nothing about the callee
					_, _ = call(cancelled, answer(nil, context.Canceled))
					if _, err := call(t.Context(), answer(nil, errNoUser)); !errors.Is(err, errNoUser) {
						t.Fatalf("an answer came back as %v", err)
					}
				}
				time.Sleep(time.Minute)
				for range 20 {
					_, _ = call(t.Context(), answer(nil, errors.New("out")))
				}
				if user, err := call(t.Context(), answer(&User{"ada"}, nil)); err != nil || user.Name != "somebody" {
					t.Errorf("open, it gives %v, %v", user, err)
				}
				time.Sleep(10 * time.Second)
				if user, err := call(t.Context(), answer(&User{"ada"}, nil)); err != nil || user.Name != "ada" {
					t.Errorf("the probe gives %v, %v", user, err)
				}
				if n := len(changes); n < 2 || changes[0] != "closed to open" || changes[n-1] != "half-open to closed" {
					t.Errorf("changes: %v", changes)
				}
			})
		})
	}
}
