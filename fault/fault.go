// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package fault judges how a call ended and what to do next.
//
// It is the ground floor of dovetail: retry, the breaker, message
// redelivery, the outbox and sagas read the same [Verdict], so that an error is
// classified once, where it is best understood, and means the same everywhere.
//
//	return fault.Permanent(err)                  // trying again cannot help
//	return fault.RetryAfter(err, 2*time.Second)  // not before two seconds from now
//	return fault.Unknown(err)                    // it may or may not have happened
//
// Nothing here needs to be called for the defaults to be right: a plain error
// is a failure that may be tried again, and the end of the caller's own context
// says nothing about the callee.
//
// A refusal by a guard (an open breaker, a full bulkhead, an exhausted limiter)
// is always a [*Rejection]. It never reached the callee, so it is neutral to
// every other guard.
package fault

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Outcome is what one call says about the health of its callee.
type Outcome uint8

const (
	// Success means that the callee did its work.
	Success Outcome = iota
	// Failure means that the callee did not do its work: an error, a timeout, a panic.
	Failure
	// Neutral says nothing about the callee: the caller gave up, a guard of our
	// own refused, or the request itself was wrong.
	Neutral
)

// String returns "success", "failure" or "neutral".
func (o Outcome) String() string {
	switch o {
	case Success:
		return "success"
	case Failure:
		return "failure"
	case Neutral:
		return "neutral"
	}
	return fmt.Sprintf("fault.Outcome(%d)", uint8(o))
}

// Verdict is the judgement of one finished call.
type Verdict struct {
	// Outcome is what the call says about the callee's health.
	Outcome Outcome
	// Retry tells whether trying again may help.
	Retry bool
	// After is the least time to wait before trying again. Zero leaves the delay
	// to the caller's own schedule.
	After time.Duration
	// Unknown is true when the effect may or may not have happened, as after the
	// timeout of a remote write. Only an idempotent call may then be repeated.
	Unknown bool
}

// Judge returns the verdict on err, the result of a call that was made with
// ctx. The context is the caller's, not a shorter one made for the attempt: only
// the end of the caller's own context is neutral, whatever the error's text says.
//
//   - nil is a success.
//   - A context error while ctx is done is neutral, and not retried: the caller gave up,
//     and whether the effect happened is unknown.
//   - A [*Rejection] is neutral, retried after its RetryAfter; not if that is negative.
//   - An error given a verdict by [Permanent], [RetryAfter], [Unknown] or [Judged] has
//     that verdict; where several wrap one another the outermost decides.
//   - context.DeadlineExceeded while ctx is alive is a failure with unknown effect.
//   - Anything else is a failure that may be retried.
//
// Nothing is retried once ctx is done.
func Judge(ctx context.Context, err error) Verdict {
	if err == nil {
		return Verdict{Outcome: Success}
	}
	ended := ctx.Err() != nil
	if ended && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Cause(ctx))) {
		return Verdict{Outcome: Neutral, Unknown: true}
	}
	v := judge(err)
	if ended {
		v.Retry = false
	}
	return v
}

func judge(err error) Verdict {
	var j *judged
	var r *Rejection
	isJudged, isRejection := errors.As(err, &j), errors.As(err, &r)
	switch {
	case isJudged && isRejection && errors.Is(r.Err, j):
		// The verdict lies inside the refusal's cause: the refusal is what happened.
		return r.verdict()
	case isJudged:
		return j.verdict
	case isRejection:
		return r.verdict()
	case errors.Is(err, context.DeadlineExceeded):
		return Verdict{Outcome: Failure, Retry: true, Unknown: true}
	}
	return Verdict{Outcome: Failure, Retry: true}
}

// Ended returns how ctx ended: its error, with its cause where that says more, so that
// errors.Is finds both. It is nil while ctx is alive.
func Ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if cause != nil && cause != err {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// judged carries an explicit verdict on the error that it wraps.
type judged struct {
	err     error
	verdict Verdict
}

func (j *judged) Error() string { return j.err.Error() }
func (j *judged) Unwrap() error { return j.err }

// Judged returns err with an explicit verdict, for errors that their maker
// understands better than any rule does. A nil err returns nil.
func Judged(err error, v Verdict) error {
	if err == nil {
		return nil
	}
	return &judged{err, v}
}

// Permanent returns err marked as not worth trying again: the request is wrong, not
// the callee, so the outcome is neutral. A nil err returns nil.
func Permanent(err error) error {
	return Judged(err, Verdict{Outcome: Neutral})
}

// RetryAfter returns err marked as a failure worth trying again, but not before d
// has passed. A d of zero or less leaves the delay to the caller's schedule. A nil
// err returns nil.
func RetryAfter(err error, d time.Duration) error {
	return Judged(err, Verdict{Outcome: Failure, Retry: true, After: max(d, 0)})
}

// Unknown returns err marked as an unknown outcome: the effect may or may not have
// happened, so only an idempotent call may be repeated. A nil err returns nil.
func Unknown(err error) error {
	return Judged(err, Verdict{Outcome: Failure, Retry: true, Unknown: true})
}

// IsPermanent reports whether err was judged as not worth trying again.
func IsPermanent(err error) bool { return err != nil && !judge(err).Retry }

// IsUnknown reports whether the effect of the call that returned err may or may not
// have happened.
func IsUnknown(err error) bool { return err != nil && judge(err).Unknown }

// Rejection is the error of every refusal by a guard: the call was not made.
// It unwraps to the guard's sentinel, such as breaker.ErrOpen.
type Rejection struct {
	// By is the kind of guard, such as "breaker".
	By string
	// Name is the configured name of the guard, possibly empty.
	Name string
	// RetryAfter is when the guard may admit a call again. Zero means that it is not
	// known; negative that this call will never be admitted.
	RetryAfter time.Duration
	// Err is the guard's sentinel error.
	Err error
}

// Error returns the guard's kind and name, its reason, and about when to come back.
func (r *Rejection) Error() string {
	s := r.By
	if r.Name != "" {
		s += " " + r.Name
	}
	if r.Err != nil {
		s += ": " + r.Err.Error()
	}
	if r.RetryAfter > 0 {
		s += " (retry after " + rounded(r.RetryAfter).String() + ")"
	}
	return s
}

// rounded is a duration as people say it: no guard is more exact than that.
func rounded(d time.Duration) time.Duration {
	switch {
	case d >= time.Second:
		return d.Round(100 * time.Millisecond)
	case d >= time.Millisecond:
		return d.Round(time.Millisecond)
	}
	return d
}

// Unwrap returns the guard's sentinel error.
func (r *Rejection) Unwrap() error { return r.Err }

func (r *Rejection) verdict() Verdict {
	return Verdict{Outcome: Neutral, Retry: r.RetryAfter >= 0, After: max(r.RetryAfter, 0)}
}
