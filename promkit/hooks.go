// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package promkit

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/saga"
)

// buckets are for servers that do not take native histograms, in seconds.
var buckets = []float64{.001, .005, .025, .1, .5, 2.5, 10}

func histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: buckets, NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100,
		NativeHistogramMinResetDuration: time.Hour,
	}, labels)
}

// Messages counts and times what clients of message brokers do, of any broker: it is a
// collector, and its Hooks are for their configuration. One serves all clients of a process.
type Messages struct {
	group
	published, handled *prometheus.HistogramVec
}

// NewMessages returns Messages that have seen nothing yet.
func NewMessages() *Messages {
	m := &Messages{
		published: histogram("dovetail_publish_seconds", "Time until the outcome of a message is known, by outcome.", "outcome"),
		handled:   histogram("dovetail_handle_seconds", "Time in a handler, by consumer group and what became of the message.", "group", "action"),
	}
	m.group = group{m.published, m.handled}
	return m
}

// Hooks returns the hooks that count.
func (m *Messages) Hooks() messaging.Hooks {
	return messaging.Hooks{
		Published: func(p messaging.Published) { m.published.WithLabelValues(outcome(p.Err)).Observe(p.Took.Seconds()) },
		Settled: func(s messaging.Settled) {
			m.handled.WithLabelValues(s.Delivery.Group, s.Decision.Action.String()).Observe(s.Took.Seconds())
		},
	}
}

// outcome is how publishing ended, as a label.
func outcome(err error) string {
	switch {
	case err == nil:
		return "confirmed"
	case errors.Is(err, messaging.ErrUnroutable):
		return "unroutable"
	case errors.Is(err, messaging.ErrBlocked):
		return "blocked"
	case errors.Is(err, messaging.ErrRefused):
		return "refused"
	case fault.IsUnknown(err):
		return "unknown"
	}
	return "failed"
}

// Inbox counts what an inbox says of messages, by consumer: it is a collector, and the inbox to give to
// the consumers.
type Inbox struct {
	idempotency.Inbox
	*prometheus.CounterVec
}

// NewInbox returns an inbox that counts what another one says. What a transaction asked that was rolled back
// afterwards is counted too, and again when the message comes back.
func NewInbox(inbox idempotency.Inbox) *Inbox {
	return &Inbox{inbox, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "dovetail_inbox_messages_total", Help: "Answers of the inbox, by whether the message was new, known already, or the database did not answer.",
	}, []string{"consumer", "answer"})}
}

// Once implements [idempotency.Inbox].
func (i *Inbox) Once(ctx context.Context, tx idempotency.Tx, consumer, id string) (bool, error) {
	first, err := i.Inbox.Once(ctx, tx, consumer, id)
	i.count(consumer, first, err)
	return first, err
}

// OnceMany implements [idempotency.Inbox].
func (i *Inbox) OnceMany(ctx context.Context, tx idempotency.Tx, consumer string, ids []string) ([]bool, error) {
	all, err := i.Inbox.OnceMany(ctx, tx, consumer, ids)
	if err != nil {
		i.count(consumer, false, err)
	}
	for _, first := range all {
		i.count(consumer, first, nil)
	}
	return all, err
}

func (i *Inbox) count(consumer string, first bool, err error) {
	answer := "duplicate"
	switch {
	case err != nil:
		answer = "failed"
	case first:
		answer = "new"
	}
	i.WithLabelValues(consumer, answer).Inc()
}

// Requests counts the requests with an Idempotency-Key by what was done with them: it is a collector, and its
// Hook is [idempotency.HTTPHooks.Request].
type Requests struct {
	*prometheus.CounterVec
}

// NewRequests returns Requests that have seen nothing yet.
func NewRequests() *Requests {
	r := &Requests{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "dovetail_idempotency_requests_total", Help: "Requests with an Idempotency-Key, by what was done with them.",
	}, []string{"outcome"})}
	for _, o := range []idempotency.HTTPOutcome{idempotency.Stored, idempotency.Released, idempotency.Replayed, idempotency.Refused, idempotency.Lost} {
		r.WithLabelValues(string(o))
	}
	return r
}

// Hook counts one request.
func (r *Requests) Hook(h idempotency.HTTPRequest) { r.WithLabelValues(string(h.Outcome)).Inc() }

// Steps times the attempts at steps of sagas: it is a collector, and its Hook is [saga.Hooks.StepEnd].
// Labels are the names of definitions and steps.
type Steps struct {
	*prometheus.HistogramVec
}

// NewSteps returns Steps that have seen nothing yet.
func NewSteps() *Steps {
	return &Steps{histogram("dovetail_saga_step_seconds", "Time of an attempt at a step, by outcome.", "saga", "step", "op", "outcome")}
}

// Hook observes one attempt.
func (s *Steps) Hook(_ context.Context, e saga.StepEnd) {
	s.WithLabelValues(e.Name, e.Step, e.Op, e.Outcome).Observe(e.Took.Seconds())
}
