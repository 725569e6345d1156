// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v7"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/retry"
)

var errBusy = errors.New("busy")

// snippet: backoff/before
func getByBackoff(ctx context.Context, get load, id string) (*User, error) {
	b := backoff.NewExponentialBackOff() // one for each call: it has state
	b.InitialInterval, b.MaxInterval = 100*time.Millisecond, 5*time.Second
	return backoff.Retry(ctx, func() (*User, error) {
		user, err := get(ctx, id)
		switch {
		case errors.Is(err, errNoUser):
			return nil, backoff.Permanent(err)
		case errors.Is(err, errBusy):
			return nil, backoff.RetryAfter(3*time.Second, err)
		}
		return user, err
	}, backoff.WithBackOff(b), backoff.WithMaxTries(5), backoff.WithMaxElapsedTime(time.Minute))
}

// end

// snippet: backoff/after
func newRetrier() (*retry.Retrier, error) { // one for all calls
	return retry.New(retry.Config{
		Name: "users", Attempts: 5, Base: 100 * time.Millisecond, Max: 5 * time.Second, Elapsed: time.Minute,
	})
}

func getByRetry(ctx context.Context, r *retry.Retrier, get load, id string) (*User, error) {
	return retry.Do(ctx, r, func(ctx context.Context) (*User, error) {
		user, err := get(ctx, id)
		switch {
		case errors.Is(err, errNoUser):
			return nil, fault.Permanent(err)
		case errors.Is(err, errBusy):
			return nil, fault.RetryAfter(err, 3*time.Second)
		}
		return user, err
	})
}

// end

func TestBackoffAndRetryDoTheSame(t *testing.T) {
	r, err := newRetrier()
	if err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func(context.Context, load) (*User, error){
		"backoff":  func(ctx context.Context, fn load) (*User, error) { return getByBackoff(ctx, fn, "7") },
		"dovetail": func(ctx context.Context, fn load) (*User, error) { return getByRetry(ctx, r, fn, "7") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls, start := 0, time.Now()
				user, err := do(t.Context(), func(context.Context, string) (*User, error) {
					if calls++; calls == 1 {
						return nil, errBusy
					}
					return &User{"ada"}, nil
				})
				if err != nil || user.Name != "ada" || time.Since(start) < 3*time.Second {
					t.Errorf("%v, %v after %v, want ada after 3s or more", user, err, time.Since(start))
				}
				calls = 0
				_, err = do(t.Context(), func(context.Context, string) (*User, error) { calls++; return nil, errNoUser })
				if !errors.Is(err, errNoUser) || calls != 1 {
					t.Errorf("a permanent error: %v after %d calls", err, calls)
				}
				calls = 0
				_, err = do(t.Context(), func(context.Context, string) (*User, error) { calls++; return nil, errors.New("out") })
				if err == nil || calls != 5 {
					t.Errorf("all attempts fail: %v after %d calls", err, calls)
				}
			})
		})
	}
}

// What the guide says of the ends: with a deadline that the next delay would cross, backoff waits
// for it, retry returns at once; both name the last error and the deadline.
func TestBackoffAndRetryAtTheDeadline(t *testing.T) {
	for name, want := range map[string]time.Duration{"backoff": 2 * time.Second, "dovetail": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				start, busy := time.Now(), func(context.Context, string) (*User, error) { return nil, errBusy }
				var err error
				if name == "backoff" {
					_, err = getByBackoff(ctx, busy, "7")
				} else {
					r, newErr := newRetrier()
					if newErr != nil {
						t.Fatal(newErr)
					}
					_, err = getByRetry(ctx, r, busy, "7")
				}
				if !errors.Is(err, errBusy) || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != want {
					t.Errorf("%v after %v, want both errors after %v", err, time.Since(start), want)
				}
			})
		})
	}
}
