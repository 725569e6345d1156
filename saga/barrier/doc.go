// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package barrier is the participant's side of a saga: it makes requests that may come
// twice, late, or in the wrong order take effect exactly once.
//
//	guard, err := barrier.New(barrier.Postgres, barrier.Config{})
//	err = guard.Migrate(ctx, db)
//	go guard.Run(ctx, db) // forgets what nobody can ask for any more
//
//	func reserve(w http.ResponseWriter, r *http.Request) {
//		key, err := barrier.KeyFromHeader(r.Header) // set by the orchestrator
//		tx, err := db.BeginTx(r.Context(), nil)
//		defer tx.Rollback()
//		_, err = guard.Do(r.Context(), tx, key, func() error { return takeStock(tx) })
//		if errors.Is(err, barrier.ErrCompensated) { ... 409 }
//		err = tx.Commit()
//	}
//
// It knows nothing of the orchestrator but the [Key]: saga, step, and "do" or "undo". So it
// serves participants of any orchestrator that can send one. (It keeps the shape of the
// barrier of dtm, whose key also depends on the order of calls: see dtm issue 559.)
//
// # Guarantees
//
// A do takes effect once, however often it comes. An undo takes effect once, and only if
// its do did. An undo without a do does nothing (a null compensation) and leaves a mark,
// so that the do that comes later is refused with [ErrCompensated] (a hanging request).
// Where do and undo come at once, the row of the do decides: one waits for the other's
// transaction. A transaction that is rolled back leaves no mark.
//
// All of it holds in one database, with the marks in the same transaction as the business.
// On PostgreSQL that is read committed or stricter; stricter levels give up one of two at
// once with a serialization error, to be repeated.
//
// # Caveats
//
// The transaction must be one: a *sql.DB commits each statement by itself. Whatever fn does
// outside it is not guarded.
//
// A repetition does not return what the first one answered; where that matters, read it from
// the business rows, or put an idempotency store in front.
//
// A business refusal is not remembered: roll back, and the same request may succeed later.
// For a step with an undo that does no harm, since the saga undoes a refused step too. For
// a pivot it does: call [Barrier.Bar] before the refusal is answered.
//
// Marks stay until [Barrier.Run] or [Barrier.Prune] removes them. A request that is repeated
// after that is taken for new, and an undo finds nothing to undo, so keep them for longer than
// any saga and any queue.
//
// Each business database needs its own barrier; the operations of one step must go to one
// database, and to barriers of one Config.Prefix.
//
// # What it does not do
//
// It does not retry, and does not call anybody. Nothing runs before [Barrier.Run]. It does not order different steps of a
// saga: that is the orchestrator's work.
package barrier
