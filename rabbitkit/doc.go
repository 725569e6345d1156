// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package rabbitkit is messaging on RabbitMQ, from version 3.10 on, through amqp091-go.
//
//	client, err := rabbitkit.New("amqps://shop:secret@rabbit.example/shop", rabbitkit.Config{Exchange: "shop"})
//	...
//	defer client.Close()
//	err = client.Declare(ctx, mails)
//	g.Go(func() error { return client.Subscribe(ctx, mails, handler) })
//	err = client.Publish(ctx, msg)
//
// # Topology
//
// There is one durable topic exchange, named by Config.Exchange. A consumer group is a
// quorum queue bound to it by the patterns of its subscriptions: direct, fanout, topic and
// work queue all follow from that. Beside it a group has a quorum queue for its dead
// letters, and queues for retries, each made when it is first needed. The queue of a group
// EXCHANGE.group.NAME has these neighbours: EXCHANGE.dead.NAME and EXCHANGE.retry0.NAME to
// EXCHANGE.retry12.NAME. [Client.Remove] deletes them all.
//
// Everything is declared when it is first used, and again after a reconnect. What exists and
// was declared otherwise is messaging.ErrMismatch.
//
// # Guarantees
//
// Publish returns nil when every queue bound to the topic has the message on a majority of
// its nodes. It is one of many callers of one pipeline: the messages on their way are bounded
// by Config.Window. Messages of one call, and of calls that follow one another, keep their
// order. What a context's end leaves unsent is messaging.ErrBlocked, what may have been
// taken messaging.ErrUnknown: also when the broker has raised an alarm, stalls, or is gone.
//
// An acknowledgement goes to the session that delivered the message, or nowhere: delivery
// tags begin at 1 again after a reconnect, so a late one could remove another message.
// Stats.StaleAcks counts those.
//
// A message that is retried or becomes a dead letter is acknowledged only when the broker
// has confirmed it in its new place. Nothing else but an acknowledgement removes a message:
// what is delivered without any answer Config.DeliveryLimit times becomes a dead letter by the
// broker's own hand, also confirmed.
//
// Retries wait in the broker, at least for their delay. They may wait longer, as a message
// leaves a queue for retries only at its head: up to four times the delay, or 400 ms.
//
// In an ordered group one subscription at a time is active, by the queue's
// single-active-consumer, which Ordered sets; in it keys run concurrently, each of them in
// order. Another process takes over when it ends or is lost.
//
// A drain stops the intake, lets handlers finish, sends their acknowledgements, and only
// then gives back the rest.
//
// # Caveats
//
// Ordered and Temporary groups keep a message that waits for its retry in the process,
// unacknowledged, and so within Prefetch: when as many wait, the others wait too. Choose a
// Prefetch well above the number of keys that may fail at the same time, and delays below the
// broker's consumer_timeout, which is 30 minutes by default: a handler or delay that takes
// longer loses its session, and the message comes again. The attempts of such a message are
// counted in the process: another one that takes over begins at 1.
//
// When an ordered subscription is cut off from the broker, another one may be given a
// message whose handler still runs in the first. Guard effects by an inbox, as with every
// duplicate.
//
// A user or password that is refused on the first connection is an error at once. Later it is
// taken for a broker that is starting: subscribers and publishers go on trying, and say so
// in the log.
//
// Headers that mean something to the broker, such as CC or x-death, and those that begin with
// x-dovetail-, travel under another name and arrive as they were. Headers of other
// producers that are not text become text. All headers together may have 96 KiB, a body
// 128 MiB, RabbitMQ's default limits.
//
// A temporary group's queue is not replicated. It outlives a reconnect, for five minutes. Its
// dead letters go to a durable queue, to be removed by hand.
//
// # Not here
//
// A group cannot begin in the past: Subscription.From is messaging.ErrUnsupported. Use a log
// for that. Streams, priorities, request and reply are left to amqp091-go itself.
package rabbitkit
