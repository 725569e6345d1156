// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package promkit

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/saga"
)

// Relay shows an outbox, by asking its database, and a relay of it.
func Relay(name string, box *outbox.Outbox, relay *outbox.Relay) prometheus.Collector {
	return group{
		ask("outbox", name, []metric[outbox.Stats]{
			gauge("waiting", "Messages to be published.", func(s outbox.Stats) float64 { return float64(s.Depth) }),
			gauge("oldest_seconds", "Age of the oldest message to be published.", func(s outbox.Stats) float64 { return s.OldestAge.Seconds() }),
			gauge("parked", "Messages set aside after too many failures.", func(s outbox.Stats) float64 { return float64(s.Parked) }),
		}, box.Stats),
		one("relay", name, []metric[outbox.RelayStats]{
			gauge("shards", "Shards that it holds.", func(s outbox.RelayStats) float64 { return float64(s.Shards) }),
			gauge("in_flight", "Messages with the publisher.", func(s outbox.RelayStats) float64 { return float64(s.InFlight) }),
			gauge("oldest_in_flight_seconds", "For how long the first of them has been there.", func(s outbox.RelayStats) float64 { return s.OldestInFlight.Seconds() }),
			gauge("waiting", "Messages that wait to be tried again.", func(s outbox.RelayStats) float64 { return float64(s.Waiting) }),
			counter("confirmed", "Messages that were confirmed.", func(s outbox.RelayStats) float64 { return float64(s.Confirmed) }),
			counter("failed", "Attempts that failed, or whose outcome is unknown.", func(s outbox.RelayStats) float64 { return float64(s.Failed) }),
			counter("unknown", "Attempts whose outcome is unknown.", func(s outbox.RelayStats) float64 { return float64(s.Unknown) }),
			counter("parked", "Messages that it set aside.", func(s outbox.RelayStats) float64 { return float64(s.Parked) }),
			counter("store_errors", "Failed calls of the store.", func(s outbox.RelayStats) float64 { return float64(s.StoreErrors) }),
		}, relay.Stats),
	}
}

// Saga shows an engine, and the sagas in its database by asking that.
func Saga(name string, engine *saga.Engine) prometheus.Collector {
	return group{
		ask("sagas", name, []metric[saga.Counts]{
			gauge("running", "Sagas under way.", func(c saga.Counts) float64 { return float64(c.Running) }),
			gauge("compensating", "Sagas that are being undone.", func(c saga.Counts) float64 { return float64(c.Compensating) }),
			gauge("stuck", "Sagas that need an operator.", func(c saga.Counts) float64 { return float64(c.Stuck) }),
			gauge("oldest_seconds", "Age of the oldest saga that has not ended.", func(c saga.Counts) float64 { return c.Oldest.Seconds() }),
		}, engine.Count),
		one("saga_engine", name, []metric[saga.Stats]{
			gauge("active", "Sagas that it works on.", func(s saga.Stats) float64 { return float64(s.Active) }),
			counter("claimed", "Sagas that it took up.", func(s saga.Stats) float64 { return float64(s.Claimed) }),
			counter("takeovers", "Sagas that it took from dead nodes.", func(s saga.Stats) float64 { return float64(s.Takeovers) }),
			counter("attempts", "Attempts at steps.", func(s saga.Stats) float64 { return float64(s.Attempts) }),
			counter("failed_attempts", "Attempts that failed.", func(s saga.Stats) float64 { return float64(s.Failed) }),
			counter("refused_attempts", "Attempts that were refused.", func(s saga.Stats) float64 { return float64(s.Refused) }),
			counter("waits", "How often it put a saga away to wait for something.", func(s saga.Stats) float64 { return float64(s.Waiting) }),
			counter("pruned", "Ended sagas that it deleted for their age.", func(s saga.Stats) float64 { return float64(s.Pruned) }),
			counter("compensating", "Sagas that it turned back.", func(s saga.Stats) float64 { return float64(s.Compensating) }),
			counter("completed", "Sagas that it ended well.", func(s saga.Stats) float64 { return float64(s.Completed) }),
			counter("compensated", "Sagas that it ended undone.", func(s saga.Stats) float64 { return float64(s.Compensated) }),
			counter("stuck", "Sagas that it reported as stuck.", func(s saga.Stats) float64 { return float64(s.Stuck) }),
			counter("lost", "Writes that were refused because another node had the saga.", func(s saga.Stats) float64 { return float64(s.Lost) }),
			counter("polls", "Questions to the store for work.", func(s saga.Stats) float64 { return float64(s.Polls) }),
		}, engine.Stats),
	}
}

// EventLog shows how far readers of a log of events can see, by asking its database.
func EventLog(name string, log *eventsource.Log) prometheus.Collector {
	return ask("eventlog", name, []metric[eventsource.Horizon]{
		gauge("open_appends", "Transactions with an append that are open.", func(h eventsource.Horizon) float64 { return float64(h.Open) }),
		gauge("horizon_seconds", "How long the oldest of them has held up readers.", func(h eventsource.Horizon) float64 { return h.Age.Seconds() }),
		gauge("head", "The end of the log.", func(h eventsource.Horizon) float64 { return float64(h.Head) }),
	}, log.Horizon)
}

// Projector shows a projection, by asking the databases of its events and of its read model.
func Projector[T eventsource.ModelTx](projector *eventsource.Projector[T]) prometheus.Collector {
	return ask("projection", projector.ID().String(), []metric[eventsource.ProjectorStats]{
		gauge("serves", "Whether it is what readers are given.", func(s eventsource.ProjectorStats) float64 { return truth(s.Serves) }),
		gauge("behind_seconds", "How long ago the first event was recorded that is not applied.", func(s eventsource.ProjectorStats) float64 { return s.Behind.Seconds() }),
		gauge("parked", "Shards that have stopped at a bad event.", func(s eventsource.ProjectorStats) float64 { return float64(s.Parked) }),
	}, projector.Stats)
}

// Caches shows caches, of whatever values, by their names.
func Caches(caches ...interface{ Stats() cache.Stats }) prometheus.Collector {
	return named("cache", caches, func(c interface{ Stats() cache.Stats }) cache.Stats { return c.Stats() }, func(s cache.Stats) string { return s.Name }, append(
		states("store_state", "1 for the state of the store's breaker.", "state", func(s cache.Stats) breaker.State { return s.Store },
			breaker.Closed, breaker.Open, breaker.HalfOpen),
		counter("hits", "Answers from memory with a value.", func(s cache.Stats) float64 { return float64(s.Hits) }),
		counter("negative_hits", "Answers from memory that there is none.", func(s cache.Stats) float64 { return float64(s.Negative) }),
		counter("shared", "Callers that waited for another's load.", func(s cache.Stats) float64 { return float64(s.Shared) }),
		counter("remote", "Answers from the store.", func(s cache.Stats) float64 { return float64(s.Remote) }),
		counter("loads", "Loads.", func(s cache.Stats) float64 { return float64(s.Loads) }),
		counter("early_loads", "Loads while the value was still fresh.", func(s cache.Stats) float64 { return float64(s.Early) }),
		counter("failed_loads", "Loads that failed.", func(s cache.Stats) float64 { return float64(s.Failures) }),
		counter("stale", "Answers with a value past its time.", func(s cache.Stats) float64 { return float64(s.Stale) }),
		counter("fenced", "Loads that an invalidation overtook.", func(s cache.Stats) float64 { return float64(s.Fenced) }),
		counter("store_errors", "Operations on the store that failed or were refused.", func(s cache.Stats) float64 { return float64(s.StoreErrors) }),
		counter("evictions", "Values that made room.", func(s cache.Stats) float64 { return float64(s.Evictions) }),
		gauge("entries", "Values in memory.", func(s cache.Stats) float64 { return float64(s.Entries) }),
		gauge("size", "What the values in memory weigh.", func(s cache.Stats) float64 { return float64(s.Size) }),
		gauge("flights", "Loads under way.", func(s cache.Stats) float64 { return float64(s.Flights) }),
	))
}

// Balancing shows the views of balancers: give it [balance.Transport.View], or a function that
// collects those of several balancers. Instances are labels by their IDs, for as long as they are known. The labels
// are upstream and id, because service and instance are mostly taken by whoever is asked.
func Balancing(views func() []balance.View) prometheus.Collector {
	return group{
		collect("upstream", "", []string{"upstream"}, []metric[balance.View]{
			gauge("instances", "Instances that are known.", func(v balance.View) float64 { return float64(len(v.Instances)) }),
			gauge("in_flight", "Calls under way.", func(v balance.View) float64 { return float64(v.InFlight) }),
			gauge("stale", "Whether the registry cannot be asked.", func(v balance.View) float64 { return truth(v.Stale) }),
			gauge("panic", "Whether so many instances fail that none is left out.", func(v balance.View) float64 { return truth(v.Panic) }),
		}, nil, func(yield func(balance.View, ...string)) {
			for _, v := range views() {
				yield(v, v.Service)
			}
		}),
		collect("upstream_instance", "", []string{"upstream", "id"}, []metric[balance.InstanceView]{
			gauge("in_flight", "Calls under way.", func(i balance.InstanceView) float64 { return float64(i.InFlight) }),
			gauge("ejected", "Whether it is left out.", func(i balance.InstanceView) float64 { return truth(i.Ejected) }),
			gauge("latency_seconds", "The present estimate of its latency.", func(i balance.InstanceView) float64 { return i.Latency.Seconds() }),
			counter("calls", "Calls that have ended.", func(i balance.InstanceView) float64 { return float64(i.Calls) }),
			counter("failures", "Calls that failed.", func(i balance.InstanceView) float64 { return float64(i.Failures) }),
		}, nil, func(yield func(balance.InstanceView, ...string)) {
			for _, v := range views() {
				for _, i := range v.Instances {
					yield(i, v.Service, i.ID)
				}
			}
		}),
	}
}

// ClientStats is what a client of a message broker tells of itself, whatever broker it is: fill in what the Stats of
// rabbitkit, kafkakit or your own client have, and leave zero what they do not.
type ClientStats struct {
	// Connected says that it can publish, Consuming that it can consume, Blocked that the broker has asked
	// publishers to stop.
	Connected, Consuming, Blocked bool
	// InFlight is how many messages are on their way to the broker, Handling how many are with a handler.
	InFlight, Handling int64
	// Delivered counts calls of handlers, Lost the messages that could not be acknowledged and come
	// again, Reconnects the connections after the first.
	Delivered, Lost, Reconnects int64
}

// Client shows a client of a message broker. [Messages] shows what becomes of its messages.
func Client(name string, stats func() ClientStats) prometheus.Collector {
	return one("client", name, []metric[ClientStats]{
		gauge("connected", "Whether it can publish.", func(s ClientStats) float64 { return truth(s.Connected) }),
		gauge("consuming", "Whether it can consume.", func(s ClientStats) float64 { return truth(s.Consuming) }),
		gauge("blocked", "Whether the broker has asked publishers to stop.", func(s ClientStats) float64 { return truth(s.Blocked) }),
		gauge("in_flight", "Messages on their way to the broker.", func(s ClientStats) float64 { return float64(s.InFlight) }),
		gauge("handling", "Messages with a handler.", func(s ClientStats) float64 { return float64(s.Handling) }),
		counter("delivered", "Calls of handlers.", func(s ClientStats) float64 { return float64(s.Delivered) }),
		counter("lost", "Messages that could not be acknowledged, and come again.", func(s ClientStats) float64 { return float64(s.Lost) }),
		counter("reconnects", "Connections after the first.", func(s ClientStats) float64 { return float64(s.Reconnects) }),
	}, stats)
}

// MemoryBroker shows the groups of a broker in memory.
func MemoryBroker(broker *messagingmem.Broker) prometheus.Collector {
	return collect("group", "", []string{"group"}, []metric[messagingmem.GroupStats]{
		gauge("ready", "Messages that wait for a handler.", func(g messagingmem.GroupStats) float64 { return float64(g.Ready) }),
		gauge("held", "Messages that wait for one of their key.", func(g messagingmem.GroupStats) float64 { return float64(g.Held) }),
		gauge("delayed", "Messages that wait for their next delivery.", func(g messagingmem.GroupStats) float64 { return float64(g.Delayed) }),
		gauge("in_flight", "Messages with a handler.", func(g messagingmem.GroupStats) float64 { return float64(g.InFlight) }),
		gauge("dead", "Dead letters in memory.", func(g messagingmem.GroupStats) float64 { return float64(g.Dead) }),
		gauge("publishers", "Publishers that wait for room.", func(g messagingmem.GroupStats) float64 { return float64(g.Publishers) }),
		gauge("subscribers", "Subscriptions that run.", func(g messagingmem.GroupStats) float64 { return float64(g.Subscribers) }),
		counter("acked", "Deliveries that were handled.", func(g messagingmem.GroupStats) float64 { return float64(g.Acked) }),
		counter("retried", "Deliveries that come again.", func(g messagingmem.GroupStats) float64 { return float64(g.Retried) }),
		counter("dead_lettered", "Deliveries that became dead letters.", func(g messagingmem.GroupStats) float64 { return float64(g.DeadLettered) }),
		counter("dropped", "Deliveries that were dropped on the handler's word.", func(g messagingmem.GroupStats) float64 { return float64(g.Dropped) }),
	}, nil, func(yield func(messagingmem.GroupStats, ...string)) {
		for _, g := range broker.Stats().Groups {
			yield(g, g.Group)
		}
	})
}
