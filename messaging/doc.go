// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package messaging defines messages, and what it means to publish, to receive, to retry
// and to give up on them, the same for every broker.
//
//	mails := messaging.Subscription{Group: "mails", Topics: []string{"order.*"}}
//	g.Go(func() error {
//		return broker.Subscribe(ctx, mails, messaging.Typed(messaging.JSON, sendMail))
//	})
//	m, err := messaging.Encode(messaging.JSON, messaging.Message{Topic: "order.placed", Key: order.ID}, order)
//	err = broker.Publish(ctx, m)
//
// The broker is [github.com/dovetail-go/dovetail/messaging/messagingmem] in one process,
// or a kit for RabbitMQ or Kafka; all pass the suite of
// [github.com/dovetail-go/dovetail/messaging/messagingtest].
//
// # Routing
//
// A publisher names a topic and knows no receivers. A [Subscription] binds a consumer
// group to patterns of topics: an exact one (direct), or with * and # (topic). Every
// group bound to a topic receives each of its messages (fanout); within a group the
// subscribers share them (work queue).
//
// # Handling
//
// A [Handler] answers with an error, and [Decide] turns it into what becomes of the
// message: acknowledged, retried by the schedule of the subscription, set aside as a
// [DeadLetter] with the reason, or dropped. Wrap handlers by [Chain] in [Timeout],
// [Logging], [Guard] (a breaker, a bulkhead) and your own [Middleware]. [Typed] decodes
// bodies, [Batch] gathers deliveries for one transaction.
//
// # Replay
//
// A group begins with what is published from now on, or in the past where the broker keeps a
// log: Subscription.From names the first message, an offset or a time. To handle everything
// once more, subscribe a group of a new name, with effects of its own. A message that was
// set aside goes back to its group by the broker's Replay.
//
// # Guarantees
//
// Delivery is at least once. What Publish has confirmed is handled by every bound group
// until the handler acknowledges, rejects or drops it or MaxDeliveries are used up;
// nothing is dropped silently. A message that was not confirmed is named, with an error
// that tells not taken from unknown.
//
// A message may come more than once: after a lost confirmation, when a consumer dies
// before its acknowledgement arrives, or by a replay. It has the same ID each time. Make
// the effect happen once by an inbox in its own transaction, see
// [github.com/dovetail-go/dovetail/idempotency].
//
// With Subscription.Ordered the messages of one key are handled one after another in the
// order of publication. A key that is retried holds back itself and no other. Without
// Ordered there is no order.
//
// Retries wait in the broker: a message that waits blocks no other. The end of a
// subscriber's context is a drain: handlers finish, and what they had not begun is as if
// never delivered.
//
// # Caveats
//
// Order is by the calls of Publish: two messages of one key that are published at the
// same time have none. A message whose outcome is unknown and that is published again
// may end up behind a later one; keep at most one of a key in flight, as the outbox does.
//
// A dead letter lets its key go on: an ordered consumer sees a gap where it was. To stop
// instead, set MaxDeliveries to -1.
//
// A replayed dead letter comes after what is queued by then, out of its old order.
//
// # Not here
//
// No request and reply, no transactions over several messages, no schema registry. A
// change that must commit together with its message belongs in
// [github.com/dovetail-go/dovetail/outbox].
package messaging
