// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package otelkit

import (
	"errors"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/semconv/v1.43.0/dbconv"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"
)

// instruments are all metrics. Those of the semantic conventions have their names; the others begin
// with "dovetail.".
type instruments struct {
	callDuration metric.Float64Histogram

	retries, gaveUp                 metric.Int64Counter
	breakerChanges, breakerRejects  metric.Int64Counter
	bulkheadRejects, limiterRejects metric.Int64Counter
	hedges, lostPanics              metric.Int64Counter
	shed                            metric.Int64Counter
	adaptiveLimit                   metric.Int64Gauge

	sent       messagingconv.ClientSentMessages
	consumed   messagingconv.ClientConsumedMessages
	operations messagingconv.ClientOperationDuration
	process    messagingconv.ProcessDuration
	settled    metric.Int64Counter

	relayLag               metric.Float64Histogram
	relayFailed, relayPark metric.Int64Counter
	relayLeases            metric.Int64Counter
	inbox, replayed        metric.Int64Counter

	sagaStarted, sagaEnded, sagaTurned, sagaTaken, sagaStuck metric.Int64Counter
	stepDuration                                             metric.Float64Histogram

	database                        dbconv.ClientOperationDuration
	appended, conflicts, snapshots  metric.Int64Counter
	applied, applyFailed, applyPark metric.Int64Counter
	applyLag, applyDuration         metric.Float64Histogram

	loadDuration                      metric.Float64Histogram
	stale, fenced, cacheStoreFailures metric.Int64Counter

	resolutions, ejections, returns, panics metric.Int64Counter
	instances                               metric.Int64Gauge
}

// seconds are the boundaries that the semantic conventions advise for durations of HTTP and messaging.
var seconds = metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10)

func newInstruments(m metric.Meter) (i instruments, err error) {
	counter := func(into *metric.Int64Counter, name, unit, text string) {
		c, e := m.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(text))
		*into, err = c, errors.Join(err, e)
	}
	histogram := func(into *metric.Float64Histogram, name, text string) {
		h, e := m.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(text), seconds)
		*into, err = h, errors.Join(err, e)
	}
	gauge := func(into *metric.Int64Gauge, name, unit, text string) {
		g, e := m.Int64Gauge(name, metric.WithUnit(unit), metric.WithDescription(text))
		*into, err = g, errors.Join(err, e)
	}
	histogram(&i.callDuration, "dovetail.call.duration", "Time of a call, by outcome.")

	counter(&i.retries, "dovetail.retry.retries", "{retry}", "Attempts after the first.")
	counter(&i.gaveUp, "dovetail.retry.given_up", "{call}", "Calls that failed after their last attempt.")
	counter(&i.breakerChanges, "dovetail.breaker.changes", "{change}", "Changes of state, by the new one.")
	counter(&i.breakerRejects, "dovetail.breaker.rejected", "{call}", "Calls that a breaker refused.")
	counter(&i.bulkheadRejects, "dovetail.bulkhead.rejected", "{call}", "Calls that a bulkhead refused, by reason.")
	counter(&i.limiterRejects, "dovetail.ratelimit.rejected", "{call}", "Calls that a rate limiter refused.")
	counter(&i.hedges, "dovetail.hedge.started", "{call}", "Further calls that were started because one was late.")
	counter(&i.lostPanics, "dovetail.hedge.lost_panics", "{panic}", "Panics of calls whose race was decided.")
	counter(&i.shed, "dovetail.adaptive.rejected", "{call}", "Calls that were shed, by criticality.")
	gauge(&i.adaptiveLimit, "dovetail.adaptive.limit", "{call}", "The present limit of calls in flight.")

	var e [4]error
	i.sent, e[0] = messagingconv.NewClientSentMessages(m)
	i.consumed, e[1] = messagingconv.NewClientConsumedMessages(m)
	i.operations, e[2] = messagingconv.NewClientOperationDuration(m, seconds)
	i.process, e[3] = messagingconv.NewProcessDuration(m, seconds)
	err = errors.Join(err, errors.Join(e[:]...))
	counter(&i.settled, "dovetail.messaging.settled", "{message}", "Deliveries, by what became of them.")

	histogram(&i.relayLag, "dovetail.outbox.lag", "Time from Enqueue to the broker's confirmation.")
	counter(&i.relayFailed, "dovetail.outbox.failed", "{attempt}", "Attempts to publish that failed.")
	counter(&i.relayPark, "dovetail.outbox.parked", "{message}", "Messages that were set aside.")
	counter(&i.relayLeases, "dovetail.outbox.leases", "{lease}", "Shards gained and lost.")
	counter(&i.inbox, "dovetail.inbox.messages", "{message}", "Messages that came to an inbox, by whether they were there before.")
	counter(&i.replayed, "dovetail.idempotency.replayed", "{request}", "Requests that were answered with a stored answer.")

	counter(&i.sagaStarted, "dovetail.saga.started", "{saga}", "Starts of sagas, repeated and rolled back ones included.")
	counter(&i.sagaEnded, "dovetail.saga.ended", "{saga}", "Sagas that ended, by how.")
	counter(&i.sagaTurned, "dovetail.saga.compensating", "{saga}", "Sagas that turned back, by cause.")
	counter(&i.sagaTaken, "dovetail.saga.taken_over", "{saga}", "Sagas that were taken from a dead node.")
	counter(&i.sagaStuck, "dovetail.saga.stuck", "{saga}", "Sagas that got stuck.")
	histogram(&i.stepDuration, "dovetail.saga.step.duration", "Time of an attempt at a step, by outcome.")

	var dbErr error
	i.database, dbErr = dbconv.NewClientOperationDuration(m, metric.WithExplicitBucketBoundaries(.001, .005, .01, .05, .1, .5, 1, 5, 10))
	err = errors.Join(err, dbErr)
	counter(&i.appended, "dovetail.eventsource.appended", "{event}", "Events that were written.")
	counter(&i.conflicts, "dovetail.eventsource.conflicts", "{append}", "Appends that lost their race.")
	counter(&i.snapshots, "dovetail.eventsource.snapshot_failures", "{snapshot}", "Snapshots that could not be written or read.")
	counter(&i.applied, "dovetail.projection.applied", "{event}", "Events that were applied to a read model.")
	counter(&i.applyFailed, "dovetail.projection.failed", "{batch}", "Batches that were rolled back.")
	counter(&i.applyPark, "dovetail.projection.parked", "{shard}", "Shards that stopped at an event.")
	histogram(&i.applyLag, "dovetail.projection.lag", "Age of the last event of a batch when it is committed.")
	histogram(&i.applyDuration, "dovetail.projection.batch.duration", "Time to apply a batch.")

	histogram(&i.loadDuration, "dovetail.cache.load.duration", "Time of a load.")
	counter(&i.stale, "dovetail.cache.stale", "{answer}", "Answers with a value past its time.")
	counter(&i.fenced, "dovetail.cache.fenced", "{load}", "Loads that an invalidation overtook.")
	counter(&i.cacheStoreFailures, "dovetail.cache.store_failures", "{operation}", "Operations on the store that failed.")

	counter(&i.resolutions, "dovetail.balance.resolutions", "{answer}", "Words of a resolver, by whether it could be asked.")
	counter(&i.ejections, "dovetail.balance.ejections", "{ejection}", "Instances that were left out, by reason.")
	counter(&i.returns, "dovetail.balance.returns", "{return}", "Instances that came back.")
	counter(&i.panics, "dovetail.balance.panics", "{panic}", "How often so many failed that none was left out.")
	gauge(&i.instances, "dovetail.balance.instances", "{instance}", "Instances that are known.")
	return i, err
}
