// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package idempotency makes messages and commands that come twice count once.
//
// An [Inbox] remembers, in the transaction of a message's effect, that the message was
// handled. A [Store] remembers which commands were begun and what their answers were.
// Package idempotencysql implements both next to the data that they protect:
//
//	store, err := idempotencysql.New(db, idempotencysql.Postgres, idempotencysql.Config{})
//
//	// A consumer whose effect happens once, however often the message is delivered.
//	handler := idempotency.Consumer(db, store, func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
//		_, err := tx.ExecContext(ctx, "UPDATE stock ...")
//		return err
//	})
//	err = broker.Subscribe(ctx, messaging.Subscription{Group: "stock", Topics: []string{"order.confirmed"}}, handler)
//
//	// An HTTP API whose clients may repeat a request that they got no answer to.
//	protect, err := idempotency.HTTP(store, idempotency.HTTPConfig{Scope: customerOf, Required: true})
//	mux.Handle("POST /orders", protect(http.HandlerFunc(placeOrder)))
//
// # Which one
//
// For messages, [Consumer]; where they come by the hundreds a second, [BatchConsumer] on a
// subscription that hands out batches, or [BulkConsumer] if one statement can make the effects
// of many. For work that is none of a broker's messages,
// [Inbox].Once in a transaction of your own.
//
// For HTTP commands, [HTTP], and [Save] inside of it wherever the effect is in the
// database of the store. For everything else that has a result worth keeping, such as a
// job or a call by another protocol, [Do].
//
// For a saga's participants, package saga/barrier, which also knows compensations.
//
// # Guarantees
//
// With an inbox an effect that is made through the transaction happens exactly once for
// each pair of group and message ID, as long as the inbox keeps its mark: neither crashes,
// redeliveries, two consumers with one message at the same moment, nor a commit whose
// outcome is unknown can make it twice or lose it.
//
// With a store and [Save] the same is true of a command and its answer. Without Save,
// and with [Do], the handler runs once at a time for as long as its owner can extend the
// lease, and of its answers the first that is stored is the one that repetitions get; but a
// process that dies between its effect and storing the answer leaves a key whose next owner
// runs again when the lease is over, and one that was paused for longer than that may still run
// beside it.
//
// Every write of an owner is fenced by a token of its claim: a process that was paused
// past its lease cannot overwrite what its successor has done. Leases and retentions go
// by the clock of the store.
//
// Any number of processes may share a store. Order is not this package's business: it
// neither delays nor reorders messages.
//
// # Caveats
//
// What is forgotten may happen again. Keep marks longer than any message can take to come
// again: the broker's redelivery, a replay of its log, a dead letter that somebody sends
// back next month, a message that was parked in its outbox although the broker had taken it.
// Publish the retention of keys to your clients.
//
// What a handler does outside of its transaction is not covered, and is repeated: a mail,
// a call to another service. Put it behind an outbox, or pass the message's ID or the
// command's key on as an idempotency key.
//
// While a transaction with a mark is open, another with the same one waits, for a time
// that the inbox bounds: keep transactions short.
//
// A replay serves what was stored, to whoever the scope says the sender is: the scope
// must come from verified credentials, never from what the client merely claims. Stored
// answers are as secret as the first ones, cookies and tokens in them included.
//
// Two things this package does not do: it does not wait for a command that is in
// progress, its client does; and it does not find out that two different keys mean the
// same.
package idempotency
