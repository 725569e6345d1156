// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package grpckit

import (
	"context"
	"errors"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/idempotency"
)

// What an ErrorInfo says when a guard of the server refused: the handler was not called.
const (
	errorDomain   = "grpckit.dovetail-go"
	reasonRefused = "NOT_HANDLED"
)

// pushback is the trailer by which a server says when to come back, or not to (gRFC A6).
const pushback = "grpc-retry-pushback-ms"

// Judge is fault.Judge for errors of calls. Use it as Classify wherever a guard sees them. Which
// calls may be repeated when the outcome is unknown is [ClientConfig].Repeatable's to say.
//
//   - Unavailable, Internal and Unknown are failures, to be tried again, with unknown effect
//     unless the server says that it has not handled the call.
//   - ResourceExhausted is neutral, and tried again only where the server says when: the same code
//     says that a message is too large.
//   - Canceled and DeadlineExceeded are neutral if ctx has ended, or failures with unknown
//     effect.
//   - DataLoss is a failure that is not tried again.
//   - Everything else is an answer; repeating cannot help.
//
// A RetryInfo in the status is the least time to wait.
func Judge(ctx context.Context, err error) fault.Verdict {
	s, ok := statusIn(err)
	if _, judged := errors.AsType[*callError](err); !ok || judged {
		return fault.Judge(ctx, err)
	}
	var v fault.Verdict
	after, refused := details(s)
	switch s.Code() {
	case codes.Unavailable, codes.Internal, codes.Unknown:
		v = fault.Verdict{Outcome: fault.Failure, Retry: true, After: after, Unknown: !refused}
	case codes.ResourceExhausted:
		v = fault.Verdict{Outcome: fault.Neutral, Retry: after > 0, After: after}
	case codes.DeadlineExceeded, codes.Canceled:
		if ctx.Err() != nil {
			return fault.Verdict{Outcome: fault.Neutral, Unknown: true}
		}
		v = fault.Verdict{Outcome: fault.Failure, Retry: true, Unknown: true}
	case codes.DataLoss:
		v = fault.Verdict{Outcome: fault.Failure, Unknown: true}
	case codes.Aborted: // as for a command that is in progress
		v = fault.Verdict{Outcome: fault.Success, Retry: after > 0, After: after}
	default:
		v = fault.Verdict{Outcome: fault.Success}
	}
	if ctx.Err() != nil {
		v.Retry = false
	}
	return v
}

// withPushback adds what the trailer says.
func withPushback(v fault.Verdict, trailer metadata.MD) fault.Verdict {
	values := trailer.Get(pushback)
	if len(values) == 0 || !v.Retry {
		return v
	}
	ms, err := strconv.ParseInt(values[0], 10, 32)
	if err != nil || ms < 0 || len(values) > 1 {
		v.Retry = false
		return v
	}
	v.After = max(v.After, time.Duration(ms)*time.Millisecond)
	return v
}

// details returns what a status says beside its code.
func details(s *status.Status) (after time.Duration, refused bool) {
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.RetryInfo:
			if delay := d.GetRetryDelay(); delay.IsValid() {
				after = max(delay.AsDuration(), 0)
			}
		case *errdetails.ErrorInfo:
			refused = refused || d.GetDomain() == errorDomain && d.GetReason() == reasonRefused
		}
	}
	return after, refused
}

// Status returns the status to answer err with:
//
//   - the status that err has, if it has one;
//   - ResourceExhausted for a rate limit's fault.Rejection, and Unavailable for any other;
//   - Aborted for idempotency.ErrInProgress, FailedPrecondition for idempotency.ErrMismatch;
//   - Canceled and DeadlineExceeded for the errors of a context;
//   - Unavailable for what says when to come back (fault.RetryAfter);
//   - Unknown with the error's text for everything else, as gRPC does.
//
// When to come back is in a RetryInfo.
func Status(err error) *status.Status {
	if err == nil {
		return status.New(codes.OK, "")
	}
	if s, ok := statusIn(err); ok {
		return s
	}
	v := fault.Judge(context.Background(), err)
	var r *fault.Rejection
	switch {
	case errors.As(err, &r) && r.By == "ratelimit":
		return withDetails(status.New(codes.ResourceExhausted, "too many calls"), v.After, false)
	case r != nil:
		return withDetails(status.New(codes.Unavailable, "not available at present"), v.After, false)
	case errors.Is(err, idempotency.ErrInProgress):
		return withDetails(status.New(codes.Aborted, idempotency.ErrInProgress.Error()), v.After, false)
	case errors.Is(err, idempotency.ErrMismatch):
		return status.New(codes.FailedPrecondition, idempotency.ErrMismatch.Error())
	case errors.Is(err, context.Canceled):
		return status.New(codes.Canceled, context.Canceled.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, context.DeadlineExceeded.Error())
	case v.After > 0:
		return withDetails(status.New(codes.Unavailable, err.Error()), v.After, false)
	}
	return status.New(codes.Unknown, err.Error())
}

// refusal is the status of a call that a guard of the server did not let through to its handler.
func refusal(err error) *status.Status {
	s := Status(err)
	after, _ := details(s)
	return withDetails(status.New(s.Code(), s.Message()), after, true)
}

// withDetails returns s with when to come back, and that it was not handled.
func withDetails(s *status.Status, after time.Duration, refused bool) *status.Status {
	var add []protoadapt.MessageV1
	if after > 0 {
		add = append(add, &errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
	}
	if refused {
		add = append(add, &errdetails.ErrorInfo{Domain: errorDomain, Reason: reasonRefused})
	}
	if len(add) == 0 {
		return s
	}
	with, err := s.WithDetails(add...)
	if err != nil {
		return s // only for OK
	}
	return with
}

// handled returns the status that a handler's error becomes. What a service further down refused to
// handle, this one has begun to: the mark must not be passed on.
func handled(err error) error {
	if err == nil {
		return nil
	}
	s := Status(err)
	after, refused := details(s)
	if refused {
		s = withDetails(status.New(s.Code(), s.Message()), after, false)
	}
	return s.Err()
}

// statusIn returns the status that err or what it wraps has.
func statusIn(err error) (*status.Status, bool) {
	has, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err)
	if !ok {
		return nil, false
	}
	s := has.GRPCStatus()
	return s, s != nil
}

func codeOf(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	return Status(err).Code()
}

// callError is the error of a call through guards: a status to gRPC's eyes, with the server's code and
// message, and a verdict to those of package fault.
type callError struct {
	error
	status *status.Status
}

// GRPCStatus is for package status.
func (e *callError) GRPCStatus() *status.Status { return e.status }

func (e *callError) Unwrap() error { return e.error }

// asCallError returns err in that form.
func asCallError(err error) error {
	if err == nil {
		return nil
	}
	return &callError{err, Status(err)}
}
