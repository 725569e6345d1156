// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package fault_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

var errCall = errors.New("call failed")

func TestJudge(t *testing.T) {
	t.Parallel()
	alive := t.Context()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancelExpired := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancelExpired()
	errShutdown := errors.New("shutting down")
	withCause, cancelCause := context.WithCancelCause(t.Context())
	cancelCause(errShutdown)
	rejection := &fault.Rejection{By: "breaker", Name: "users", RetryAfter: time.Second, Err: errCall}

	for _, tt := range []struct {
		name string
		ctx  context.Context
		err  error
		want fault.Verdict
	}{
		{"nil is a success", alive, nil, fault.Verdict{Outcome: fault.Success}},
		{"nil is a success even when the caller has gone", cancelled, nil, fault.Verdict{Outcome: fault.Success}},
		{"a plain error may be tried again", alive, errCall, fault.Verdict{Outcome: fault.Failure, Retry: true}},
		{"a plain error after the caller gave up is a failure, not retried", cancelled, errCall, fault.Verdict{Outcome: fault.Failure}},
		{"the caller's cancellation is neutral", cancelled, context.Canceled, fault.Verdict{Outcome: fault.Neutral, Unknown: true}},
		{"the caller's cancellation, wrapped", cancelled, fmt.Errorf("get: %w", context.Canceled), fault.Verdict{Outcome: fault.Neutral, Unknown: true}},
		{"the caller's cause is neutral", withCause, errShutdown, fault.Verdict{Outcome: fault.Neutral, Unknown: true}},
		{"the caller's deadline is neutral", expired, context.DeadlineExceeded, fault.Verdict{Outcome: fault.Neutral, Unknown: true}},
		{"Canceled while the caller waits comes from the callee", alive, context.Canceled, fault.Verdict{Outcome: fault.Failure, Retry: true}},
		{"an attempt's own deadline leaves the effect unknown", alive, context.DeadlineExceeded, fault.Verdict{Outcome: fault.Failure, Retry: true, Unknown: true}},
		{"permanent", alive, fault.Permanent(errCall), fault.Verdict{Outcome: fault.Neutral}},
		{"permanent, wrapped", alive, fmt.Errorf("get: %w", fault.Permanent(errCall)), fault.Verdict{Outcome: fault.Neutral}},
		{"retry after", alive, fault.RetryAfter(errCall, time.Minute), fault.Verdict{Outcome: fault.Failure, Retry: true, After: time.Minute}},
		{"negative retry after is none", alive, fault.RetryAfter(errCall, -1), fault.Verdict{Outcome: fault.Failure, Retry: true}},
		{"unknown", alive, fault.Unknown(errCall), fault.Verdict{Outcome: fault.Failure, Retry: true, Unknown: true}},
		{"the outermost verdict decides", alive, fault.Permanent(fault.RetryAfter(errCall, 1)), fault.Verdict{Outcome: fault.Neutral}},
		{"a rejection is neutral and carries its hint", alive, rejection, fault.Verdict{Outcome: fault.Neutral, Retry: true, After: time.Second}},
		{"a rejection that will never pass", alive, &fault.Rejection{By: "ratelimit", RetryAfter: -1}, fault.Verdict{Outcome: fault.Neutral}},
		{"a verdict around a rejection", alive, fault.Permanent(rejection), fault.Verdict{Outcome: fault.Neutral}},
		{"a verdict inside a rejection", alive, &fault.Rejection{By: "breaker", Err: fault.Permanent(errCall)}, fault.Verdict{Outcome: fault.Neutral, Retry: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := fault.Judge(tt.ctx, tt.err); got != tt.want {
				t.Errorf("Judge(%v) = %+v, want %+v", tt.err, got, tt.want)
			}
		})
	}
}

func TestMarksKeepTheError(t *testing.T) {
	t.Parallel()
	for name, mark := range map[string]func(error) error{
		"Permanent":  fault.Permanent,
		"Unknown":    fault.Unknown,
		"RetryAfter": func(err error) error { return fault.RetryAfter(err, time.Second) },
		"Judged":     func(err error) error { return fault.Judged(err, fault.Verdict{}) },
	} {
		if got := mark(nil); got != nil {
			t.Errorf("%s(nil) = %v, want nil", name, got)
		}
		got := mark(errCall)
		if !errors.Is(got, errCall) || got.Error() != errCall.Error() {
			t.Errorf("%s(err) = %v, want the error itself reachable and its text kept", name, got)
		}
	}
	if fault.IsPermanent(nil) || fault.IsUnknown(nil) {
		t.Error("nil is neither permanent nor unknown")
	}
}

func TestEnded(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	if err := fault.Ended(ctx); err != nil {
		t.Errorf("Ended of a context that is alive = %v, want nil", err)
	}
	cancel(errCall)
	if err := fault.Ended(ctx); !errors.Is(err, context.Canceled) || !errors.Is(err, errCall) {
		t.Errorf("Ended = %v, want both Canceled and the cause", err)
	}
	plain, stop := context.WithCancel(t.Context())
	stop()
	if err := fault.Ended(plain); err != context.Canceled {
		t.Errorf("Ended without a cause = %v, want Canceled itself", err)
	}
}

func TestRejectionError(t *testing.T) {
	t.Parallel()
	for want, r := range map[string]*fault.Rejection{
		"breaker users: call failed (retry after 1s)": {By: "breaker", Name: "users", RetryAfter: time.Second, Err: errCall},
		"breaker (retry after 2.6s)":                  {By: "breaker", RetryAfter: 2578552724},
		"breaker (retry after 1m0s)":                  {By: "breaker", RetryAfter: time.Minute + time.Millisecond},
		"ratelimit (retry after 53ms)":                {By: "ratelimit", RetryAfter: 52578 * time.Microsecond},
		"ratelimit (retry after 578ns)":               {By: "ratelimit", RetryAfter: 578},
		"bulkhead: call failed":                       {By: "bulkhead", Err: errCall},
		"ratelimit":                                   {By: "ratelimit", RetryAfter: -1},
	} {
		if got := r.Error(); got != want {
			t.Errorf("Error() = %q, want %q", got, want)
		}
	}
	if !errors.Is(&fault.Rejection{By: "breaker", Err: errCall}, errCall) {
		t.Error("a rejection does not unwrap to its sentinel")
	}
}

func TestJudgeDoesNotAllocateOnSuccess(t *testing.T) {
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() { fault.Judge(ctx, nil) }); n != 0 {
		t.Errorf("Judge(nil) allocates %v times, want 0", n)
	}
}
