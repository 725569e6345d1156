// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package messagingmem is a message broker inside one process, for tests and for
// programs that start without a broker of their own. It keeps the whole contract of
// package messaging, so the same handlers run on a real one later.
//
//	b, err := messagingmem.New(messagingmem.Config{})
//	err = b.Declare(ctx, mails)
//	g.Go(func() error { return b.Subscribe(ctx, mails, handler) })
//	err = b.Publish(ctx, msg)
//
// # Guarantees
//
// A message is taken by all the groups bound to its topic or by none of them.
//
// Each group handles each of its messages until it is acknowledged, dropped, or put
// away as a dead letter. With Config.DeadLetter that last step is confirmed before the
// message is let go.
//
// In an ordered group at most one message of a key is out of the queue, and its retries
// hold back no other key. Messages of one Publish, and of Publish calls that follow one
// another, keep their order.
//
// Memory is bounded: by Config.Capacity for each group, by Config.MaxDeadLetters for
// its dead letters, and by Config.Retain.
//
// # Caveats
//
// What is queued dies with the process. With Config.ConfirmOnAck a publisher that
// publishes again what was not confirmed, such as an outbox relay, loses nothing by
// that: a message is confirmed only when its groups are done with it. Then
//
//   - a message that is retried holds up its publisher: let it give up waiting by a
//     timeout and publish again later, which joins the message that is still there;
//   - a message that one group had finished when the process died is delivered to it
//     again: consumers recognise duplicates by the ID, as with every broker;
//   - a handler that publishes to its own broker waits for the groups of that message,
//     and must not be what these wait for. An outbox between them avoids it.
//
// A group without subscribers fills up to its Capacity, and then blocks the publishers of
// all its topics. Declare only groups that somebody consumes, or make them Temporary.
//
// Capacity bounds messages, not bytes.
package messagingmem
