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
// # Replay
//
// With Config.Log a stream, EXCHANGE.log, is bound to the exchange and keeps everything that
// is published, within its bounds of age and size. A new group whose Subscription.From is
// in the past reads that stream instead of a queue of its own, from there on and for ever;
// Delivery.Offset is the offset in it.
//
// One subscription of such a group reads at a time; the others wait to take over. The
// position of the group is a message in EXCHANGE.position.NAME, which the broker gives to one
// of them: it moves behind the oldest message that is not finished, every 250 ms and at the
// end of a drain. A drain repeats nothing; what was handled after the last save of a process
// that was killed is delivered again, with the same ID and offset, and in its order. When a
// reader is cut off from the broker, the next one may begin while a handler of the first
// still runs, as in an ordered group.
//
// A stream takes nothing back and has no dead letters of its own. A message that fails is
// copied, confirmed, to the retry queues and the dead letters of the group like any other, and the
// position moves on over it: it blocks nothing, and what is replayed goes to this group alone.
// Only an ordered or temporary group keeps it in the process, and with it the position.
//
// # Guarantees
//
// Publish returns nil when every queue bound to the topic has the message on a majority of
// its nodes. It is one of many callers of one pipeline: the messages on their way are bounded
// by Config.Window, and go over Config.Channels channels of one connection. Messages of one
// key keep the order of their calls, those of one call that have no key keep that of the call,
// and what is published after another call has returned comes after it. What a context's end leaves unsent is messaging.ErrBlocked, what may have been
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
// RabbitMQ 3.10 ends a channel that publishes to a queue or stream at the very moment of its
// making or its end: what is on its way is messaging.ErrUnknown then. And it saves the name of a
// new quorum queue half a second late: one that is declared right before the broker is killed
// stays unavailable afterwards. Declare at deployment, not under load.
//
// A queue that has lost its majority confirms nothing. What waits for it keeps its place in the
// Window, also when its caller has gone, for a minute (six times Config.Timeout). Then the
// connection is given up, and with it all that is in flight is messaging.ErrUnknown.
//
// RabbitMQ may leave a reader of a stream standing still for ever, as 3.10 was seen to do, and 4.0
// is written alike. When retention has removed the file that the reader comes to next, and the
// stream's new beginning is not noted yet, the broker takes that for the end of the stream, and
// tells the reader of nothing that follows (what https://github.com/rabbitmq/osiris/pull/24 left
// open). So a reader that has room and to which nothing comes for 30 to 45 s leaves the stream and
// comes back to where it was, which in a quiet stream is two small requests; as long as nothing
// comes it does so again after twice as long, and in the end every 5 to 7.5 minutes.
//
// What retention removes before a group has read it is lost to that group; it is logged as an
// error with the offsets. A time in Subscription.From is rounded down to the second, and to the
// beginning of what the broker wrote at once: a few earlier messages may come too. With a log
// no topic is unroutable, as the log takes them all. In a group that reads the log the
// patterns are those of the subscription that reads; each reader is sent the whole log, and
// passes over the rest. Replayed messages are as old as the log: keep the inbox that recognises
// duplicates for as long, or give the new group effects of its own.
//
// # Not here
//
// Offsets kept by the broker, super streams and filters belong to RabbitMQ's stream protocol,
// which this package does not speak. Priorities, request and reply are left to amqp091-go
// itself.
package rabbitkit
