// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package promkit

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/saga"
)

// buckets are for servers that do not take native histograms, in seconds.
var buckets = []float64{.001, .005, .025, .1, .5, 2.5, 10}

func histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: buckets, NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100,
	}, labels)
}

// Messages counts and times what clients of message brokers do, of any broker: it is a
// collector, and its Hooks are for their configuration. One serves all clients of a process.
type Messages struct {
	both
	published, handled *prometheus.HistogramVec
}

// NewMessages returns Messages that have seen nothing yet.
func NewMessages() *Messages {
	m := &Messages{
		published: histogram("dovetail_publish_seconds", "Time until the outcome of a message is known, by outcome.", "outcome"),
		handled:   histogram("dovetail_handle_seconds", "Time in a handler, by consumer group and what became of the message.", "group", "action"),
	}
	m.both = both{m.published, m.handled}
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
