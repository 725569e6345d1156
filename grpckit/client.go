// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package grpckit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/resilience"
)

// ClientConfig configures the guards of the calls to one service. The zero ClientConfig guards
// nothing.
type ClientConfig struct {
	// Policy guards each call. Its Classify nil means [Judge]. Its Total, Retry and Attempt are for unary calls
	// only: a stream has no natural end, and cannot be repeated once something was sent. Nil
	// means no guards.
	Policy *resilience.Policy
	// Repeatable reports whether a call may be made again when it is not known whether the
	// first one had its effect. Nil means [Idempotent]. Calls that the server has not handled
	// for certain are repeated in any case.
	Repeatable func(ctx context.Context, method string) bool
	// Reserve is kept back of the caller's deadline, so that time is left to act on the answer. A call for
	// which nothing is left is not made. Zero means none.
	Reserve time.Duration
	// Propagate adds the attempt's number, the criticality, and the trace context that
	// [TraceOf] finds, to the metadata, which [ServerConfig].Propagated understands. Use it
	// among services of one owner.
	Propagate bool
}

// Client guards the calls to one service, by interceptors. It is safe for concurrent use.
type Client struct {
	cfg    ClientConfig
	unary  resilience.Policy
	stream resilience.Policy // without what is not for streams
}

// NewClient returns a client, or an error that names the wrong field.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.Reserve < 0 {
		return nil, fmt.Errorf("grpckit: ClientConfig.Reserve is %v, want 0 or more", cfg.Reserve)
	}
	if cfg.Repeatable == nil {
		cfg.Repeatable = Idempotent
	}
	c := &Client{cfg: cfg}
	if cfg.Policy != nil {
		c.unary = *cfg.Policy
	}
	if c.unary.Classify == nil {
		c.unary.Classify = Judge
	}
	c.stream = c.unary
	c.stream.Attempt = 0
	return c, nil
}

// DialOptions returns the options for [Dialer.Dial], or grpc.NewClient, that put the guards before
// every call.
func (c *Client) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(c.Unary), grpc.WithChainStreamInterceptor(c.Stream)}
}

// Idempotent reports whether a call may be repeated: its metadata has an [IdempotencyKey], or its
// definition has the option idempotency_level of NO_SIDE_EFFECTS or IDEMPOTENT. Definitions
// are known of services whose generated code is in the program.
func Idempotent(ctx context.Context, method string) bool {
	if md, ok := metadata.FromOutgoingContext(ctx); ok && len(md.Get(IdempotencyKey)) > 0 {
		return true
	}
	name := strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return false
	}
	options, ok := d.Options().(*descriptorpb.MethodOptions)
	return ok && options.GetIdempotencyLevel() != descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
}

// Unary is a grpc.UnaryClientInterceptor. The error of a call is a status, a guard's refusal
// Unavailable; errors.As finds the *fault.Rejection or *retry.Error in it, and package fault the
// verdict.
func (c *Client) Unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel, err := c.budget(ctx)
	if err != nil {
		return asCallError(err)
	}
	defer cancel()
	ctx, cancelTotal := resilience.WithTimeout(ctx, c.unary.Total)
	defer cancelTotal()
	once := func(ctx context.Context) (fault.Verdict, error) {
		return c.once(ctx, func(ctx context.Context, trailer *metadata.MD) error {
			return invoker(ctx, method, req, reply, cc, append(opts[:len(opts):len(opts)], grpc.Trailer(trailer))...)
		})
	}
	if c.unary.Retry == nil {
		_, err := once(ctx)
		return asCallError(err)
	}
	if ctx.Err() != nil {
		return asCallError(fault.Ended(ctx))
	}
	repeatable := c.cfg.Repeatable(ctx, method)
	call := c.unary.Retry.Begin(ctx)
	for {
		v, err := once(call.Context())
		if v.Unknown && !repeatable {
			v.Retry = false
		}
		again, err := call.NextJudged(v, err)
		if !again {
			return asCallError(err)
		}
	}
}

// budget returns ctx less the reserve.
func (c *Client) budget(ctx context.Context) (context.Context, context.CancelFunc, error) {
	deadline, ok := ctx.Deadline()
	if c.cfg.Reserve == 0 || !ok {
		return ctx, func() {}, nil
	}
	deadline = deadline.Add(-c.cfg.Reserve)
	if time.Until(deadline) <= 0 {
		return nil, nil, status.Error(codes.DeadlineExceeded, "grpckit: less time left than ClientConfig.Reserve")
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	return ctx, cancel, nil
}

// once makes one attempt through the guards.
func (c *Client) once(ctx context.Context, invoke func(context.Context, *metadata.MD) error) (v fault.Verdict, err error) {
	ticket, err := c.unary.Acquire(ctx)
	if err != nil {
		return fault.Judge(ctx, err), err
	}
	result := errPanicked
	defer func() { ticket.Done(result) }()
	out := ticket.Context()
	if c.cfg.Propagate {
		out = propagate(out)
	}
	var trailer metadata.MD
	err = invoke(out, &trailer)
	result = err
	if err == nil {
		return fault.Verdict{}, nil
	}
	v = withPushback(c.unary.Classify(ctx, err), trailer)
	return v, fault.Judged(err, v)
}

var errPanicked = errors.New("grpckit: the call panicked")

// Stream is a grpc.StreamClientInterceptor. The guards hear how the stream began: its first
// message, or the error that came instead. Its place in a bulkhead is free when it has ended,
// as gRPC sees it: at its status, or at the end of its context.
func (c *Client) Stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ticket, err := c.stream.Acquire(ctx)
	if err != nil {
		return nil, asCallError(err)
	}
	s := &guardedStream{judge: func(err error) fault.Verdict { return c.stream.Classify(ctx, err) }, ticket: ticket}
	opened := false
	defer func() {
		if !opened {
			s.end(errPanicked) // unless it ended otherwise
		}
	}()
	out := ticket.Context()
	if c.cfg.Propagate {
		out = propagate(out)
	}
	s.ClientStream, err = streamer(out, desc, cc, method, append(opts[:len(opts):len(opts)], grpc.OnFinish(s.end))...)
	if err != nil {
		s.end(err)
		return nil, s.judged(err)
	}
	opened = true
	return s, nil
}

// guardedStream is a stream that holds a place.
type guardedStream struct {
	grpc.ClientStream
	judge func(error) fault.Verdict

	mu       sync.Mutex
	ticket   resilience.Ticket
	settled  bool
	released bool
}

// settle tells the guards how the stream began.
func (s *guardedStream) settle(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.settled {
		s.settled = true
		s.ticket.Settle(err)
	}
}

// end gives the place back.
func (s *guardedStream) end(err error) {
	s.settle(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.released {
		s.released = true
		s.ticket.Release()
	}
}

func (s *guardedStream) judged(err error) error {
	return asCallError(fault.Judged(err, s.judge(err)))
}

// RecvMsg implements grpc.ClientStream.
func (s *guardedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	switch {
	case err == nil:
		s.settle(nil)
	case !errors.Is(err, io.EOF):
		err = s.judged(err)
	}
	return err
}
