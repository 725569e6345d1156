// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/dovetail-go/dovetail/saga"
)

// Saga makes a span of each attempt at a step, "place-order/reserve-stock" or "place-order/undo
// reserve-stock", and measures steps and sagas. An attempt is a child of the request that started the saga: its trace and
// baggage are stored with the saga, so the trace goes on after a crash and on another node, and it ends when the
// saga does. A step that was refused is an answer, and no error of its span.
func (k *Kit) Saga(also ...saga.Hooks) saga.Hooks {
	return saga.Hooks{
		Starting: func(ctx context.Context, s saga.Starting) {
			k.Inject(ctx, s.Header)
			k.sagaStarted.Add(ctx, 1, metric.WithAttributes(keySaga.String(s.Name)))
			trace.SpanFromContext(ctx).SetAttributes(keySaga.String(s.Name), keySagaID.String(s.Saga))
			for _, h := range also {
				if h.Starting != nil {
					h.Starting(ctx, s)
				}
			}
		},
		StepStart: func(ctx context.Context, s saga.StepStart) context.Context {
			ctx = k.startStep(ctx, s)
			for _, h := range also {
				if h.StepStart != nil {
					ctx = h.StepStart(ctx, s) //nolint:fatcontext // one after the other is meant
				}
			}
			return ctx
		},
		StepEnd: func(ctx context.Context, e saga.StepEnd) {
			k.endStep(ctx, e)
			for _, h := range also {
				if h.StepEnd != nil {
					h.StepEnd(ctx, e)
				}
			}
		},
		TakenOver: join(func(t saga.TakenOver) {
			k.sagaTaken.Add(context.Background(), 1, metric.WithAttributes(keySaga.String(t.Name)))
		}, also, func(h saga.Hooks) func(saga.TakenOver) { return h.TakenOver }),
		Compensating: join(func(t saga.Turned) {
			k.sagaTurned.Add(context.Background(), 1, metric.WithAttributes(keySaga.String(t.Name), keyCause.String(t.Cause.String())))
		}, also, func(h saga.Hooks) func(saga.Turned) { return h.Compensating }),
		Ended: join(func(e saga.Ended) {
			k.sagaEnded.Add(context.Background(), 1, metric.WithAttributes(keySaga.String(e.Name), keyStatus.String(e.Status.String())))
		}, also, func(h saga.Hooks) func(saga.Ended) { return h.Ended }),
		Stuck: join(func(s saga.Stuck) {
			k.sagaStuck.Add(context.Background(), 1, metric.WithAttributes(keySaga.String(s.Name), keyStep.String(s.Step)))
		}, also, func(h saga.Hooks) func(saga.Stuck) { return h.Stuck }),
	}
}

// stepKey holds the span of an attempt: the context that comes back may have another one on top.
type stepKey struct{}

// step is an attempt under way.
type step struct {
	span trace.Span
	stop func() bool
}

func (k *Kit) startStep(attempt context.Context, s saga.StepStart) context.Context {
	name := s.Step
	switch s.Op {
	case saga.OpUndo:
		name = "undo " + name
	case saga.OpEnd:
		name = "end"
	}
	ctx, span := k.tracer.Start(k.Extract(attempt, s.Header), s.Name+"/"+name, trace.WithAttributes( //nolint:spancheck // endStep ends it
		keySaga.String(s.Name), keySagaID.String(s.Saga), keySagaVersion.Int(s.Version),
		keyStep.String(s.Step), keyOp.String(s.Op), keyAttempt.Int(s.Number)))
	// An attempt that the end of the engine cut short has no StepEnd, but its context ends. One that
	// has run out of time has both, and its outcome is still to come.
	stop := context.AfterFunc(attempt, func() {
		if errors.Is(attempt.Err(), context.Canceled) {
			span.SetStatus(codes.Error, "abandoned")
			span.End()
		}
	})
	return context.WithValue(ctx, stepKey{}, &step{span, stop}) //nolint:spancheck // endStep ends it
}

func (k *Kit) endStep(ctx context.Context, e saga.StepEnd) {
	k.stepDuration.Record(ctx, e.Took.Seconds(), metric.WithAttributes(
		keySaga.String(e.Name), keyStep.String(e.Step), keyOp.String(e.Op), keyOutcome.String(e.Outcome)))
	s, ok := ctx.Value(stepKey{}).(*step)
	if !ok {
		return
	}
	s.stop()
	s.span.SetAttributes(keyOutcome.String(e.Outcome))
	if e.Outcome == "failed" && e.Err != nil {
		fail(s.span, e.Err)
	}
	s.span.End()
}
