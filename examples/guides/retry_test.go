// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/retry"
)

type User struct{ Name string }

type userClient interface {
	User(ctx context.Context, id string) (*User, error)
}

func oldUser(ctx context.Context, client userClient, id string) (user *User, err error) {
	// snippet: retry/before
	for range 3 {
		if user, err = client.User(ctx, id); err == nil {
			return user, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, err
	// end
}

// snippet: retry/after
type Users struct {
	client userClient
	retry  *retry.Retrier // one for the dependency, shared by all calls
}

func (u *Users) User(ctx context.Context, id string) (*User, error) {
	return retry.Do(ctx, u.retry, func(ctx context.Context) (*User, error) {
		return u.client.User(ctx, id)
	})
}

// end

// snippet: retry/judge
func judge(status int, after time.Duration) error {
	err := fmt.Errorf("users answered %d", status)
	switch {
	case status == 429 || status == 503:
		return fault.RetryAfter(err, after) // not before that
	case status >= 400 && status < 500:
		return fault.Permanent(err) // an answer: the same question gets the same one
	case status == 504:
		return fault.Unknown(err) // it may have happened
	}
	return err // passing, perhaps
}

// end

func transfers() (*retry.Retrier, error) {
	// snippet: retry/write
	// A write without an idempotency key: repeated when it certainly did not happen
	// (a refusal, no connection), never when nobody knows.
	return retry.New(retry.Config{Name: "transfers", NonIdempotent: true})
	// end
}

type flakyUsers struct {
	errs  []error
	calls int
}

func (f *flakyUsers) User(context.Context, string) (*User, error) {
	f.calls++
	if f.calls <= len(f.errs) {
		return nil, f.errs[f.calls-1]
	}
	return &User{Name: "Ada"}, nil
}

// snippet: retry/test
func TestUsersAreAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := retry.New(retry.Config{})
		if err != nil {
			t.Fatal(err)
		}
		client := &flakyUsers{errs: []error{judge(500, 0), judge(503, time.Second)}}
		users := &Users{client: client, retry: r}

		start := time.Now()
		user, err := users.User(t.Context(), "17")
		if err != nil || user.Name != "Ada" || client.calls != 3 {
			t.Errorf("User = %v, %v after %d calls, want Ada after 3", user, err, client.calls)
		}
		if took := time.Since(start); took < time.Second {
			t.Errorf("came back after %v, asked for 1s", took)
		}

		client = &flakyUsers{errs: []error{judge(404, 0)}}
		users = &Users{client: client, retry: r}
		if _, err := users.User(t.Context(), "18"); err == nil || client.calls != 1 {
			t.Errorf("User = %v after %d calls, want the 404 after 1", err, client.calls)
		}
	})
}

// end

func TestRetryGuide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := &flakyUsers{errs: []error{errors.New("out")}}
		if user, err := oldUser(t.Context(), client, "17"); err != nil || user.Name != "Ada" {
			t.Errorf("User = %v, %v", user, err)
		}
		r, err := transfers()
		if err != nil {
			t.Fatal(err)
		}
		calls := 0
		err = r.Do(t.Context(), func(context.Context) error { calls++; return judge(504, 0) })
		if !errors.Is(err, retry.ErrUnknown) || calls != 1 {
			t.Errorf("Do = %v after %d calls, want ErrUnknown after 1", err, calls)
		}
	})
}
