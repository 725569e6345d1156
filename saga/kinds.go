// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
)

// Send returns a step that sends a command and waits for the reply. The command goes
// through Config.Outbox in the transaction that records that the saga waits, so it
// is sent if and only if the saga has come here. The engine adds the headers
// [HeaderKey] and [HeaderReplyTo], and an ID and a time if they are empty; the
// participant answers with [Reply], and [Engine.Replies] or [Engine.Deliver] bring
// the answer back.
//
// On judges the reply, which it gets decoded from JSON: nil means done, a refusal
// ([Refuse]) compensates. What on changes in *d is stored when it returns nil. The
// first reply counts; a repeated one, and one that comes when the saga no longer
// waits, is kept and ignored.
//
// With [Timeout], a missing reply is a failed attempt: the command is sent again with the
// same key, as often as [Retry] allows. As with [Call], the participant must recognise
// the key and answer again.
func Send[T, R any](name string, cmd func(ctx context.Context, a Attempt, d *T) (*messaging.Message, error), on func(d *T, reply R) error, opts ...Option[T]) Step[T] {
	return newStep(&step[T]{name: name, kind: KindSend, send: cmd, on: decoding(on)}, opts)
}

// UndoSend gives a step a compensation by a command, under the rules of [Send] and
// [Undo]: the saga goes on undoing when the reply says that it is undone.
func UndoSend[T, R any](cmd func(ctx context.Context, a Attempt, d *T) (*messaging.Message, error), on func(d *T, reply R) error) Option[T] {
	return Option[T]{func(s *step[T]) { s.undoSend, s.undoOn, s.undos = cmd, decoding(on), s.undos+1 }}
}

// Await returns a step that waits for what [Engine.Deliver] brings under its name: an
// event from outside, or the decision of a person. It may come before the saga waits,
// even before the saga exists. On judges it as in [Send].
//
// With [Timeout], the saga compensates when nothing came in time, or goes on as
// [OnTimeout] says. From the pivot on, where there is no way back, a Timeout needs an
// OnTimeout.
func Await[T, E any](name string, on func(d *T, event E) error, opts ...Option[T]) Step[T] {
	return newStep(&step[T]{name: name, kind: KindAwait, on: decoding(on)}, opts)
}

// OnTimeout makes an [Await] call fn when its [Timeout] has passed: nil goes on with what
// fn changed in *d, a refusal compensates.
func OnTimeout[T any](fn func(d *T) error) Option[T] {
	return Option[T]{func(s *step[T]) { s.onTimeout = fn }}
}

// Sleep returns a step that waits for as long as d says, by the store's clock and over
// restarts. How long is decided when the step begins.
func Sleep[T any](name string, d func(d *T) time.Duration) Step[T] {
	return newStep(&step[T]{name: name, kind: KindSleep, sleep: d}, nil)
}

// Lock returns a step that makes the saga the only one to hold a business key, such as
// "account 7", until it ends (a semantic lock: Garcia-Molina and Salem, Sagas, 1987;
// Richardson, Microservices Patterns, 4.3). It waits while another saga holds the key;
// with [Timeout] it waits so long and is refused then. The key is freed in the
// transaction that ends the saga.
//
// It keeps out other sagas of the same store that lock the same key, nothing else: what
// other code may do meanwhile is for a status in the business row to say. Take
// several locks in one order, or set a Timeout, lest two sagas wait for each other.
// Those that wait are not served in strict order. It must stand before the pivot.
func Lock[T any](name string, key func(d *T) string, opts ...Option[T]) Step[T] {
	return newStep(&step[T]{name: name, kind: KindLock, key: key}, opts)
}

// TryLock is [Lock] that is refused at once where Lock would wait. The reason names the
// saga that holds the key.
func TryLock[T any](name string, key func(d *T) string) Step[T] {
	return newStep(&step[T]{name: name, kind: KindLock, key: key, try: true}, nil)
}

// If returns a step that decides whether the given steps take place. When is asked once
// and its answer recorded, so the way back is the way forward, whatever became of
// the data. It must look at nothing but *d, and change nothing.
func If[T any](name string, when func(d *T) bool, steps ...Step[T]) Step[T] {
	return Step[T]{&step[T]{name: name, kind: KindIf, when: when, body: steps}}
}

// Else returns steps that take place when the [If] right before it has decided against
// its own.
func Else[T any](steps ...Step[T]) Step[T] {
	return Step[T]{&step[T]{name: "else", kind: kindElse, body: steps}}
}

// Parallel returns steps that run at the same time: [Call], [Send], [Child], [Await] and
// [Sleep], two to 16 of them. The saga goes on when all are done. When one of them
// is refused, those in progress finish first, and then all of them are undone, one
// after the other from the last, whether they were done or not.
//
// Each works on its own copy of the data, and each must change other fields of T, which
// must be a struct or a map: what they changed is put together. Attempts of [Retry]
// count the failures of all of them.
func Parallel[T any](steps ...Step[T]) Step[T] {
	return Step[T]{&step[T]{name: "parallel", kind: kindParallel, body: steps}}
}

// Child returns a step that is a saga itself. Begin returns its data, done takes the data
// that it ended with, and judges it as in [Send]. Its ID is that of this saga, a slash
// and the name of the step. A child that ends compensated is a refusal of the step.
//
// Undoing the step is built in: a running child is cancelled, a completed one is undone
// step by step, and this saga goes on undoing when the child has ended. So in front of
// the pivot the child must not have a pivot itself, and its OnEnd may be called twice.
// The engine must know the child's definition, too.
func Child[T, C any](name string, def *Definition[C], begin func(d *T) C, done func(d *T, child C) error, opts ...Option[T]) Step[T] {
	s := &step[T]{name: name, kind: KindChild}
	if def != nil {
		s.child = def.d
	}
	if begin != nil {
		s.begin = func(d *T) any { return begin(d) }
	}
	if done != nil {
		s.on = func(payload []byte, d *T) error {
			var end childEnd
			if err := json.Unmarshal(payload, &end); err != nil {
				return &dataError{err}
			}
			if end.Status != Completed {
				return Refuse(end.Reason)
			}
			return decoding(done)(end.Data, d)
		}
	}
	return newStep(s, opts)
}

// childEnd is what a child tells its parent.
type childEnd struct {
	Status Status          `json:"status"`
	Reason string          `json:"reason,omitempty"`
	Data   json.RawMessage `json:"data"`
}

// decoding returns fn for a value as it is stored.
func decoding[T, R any](fn func(d *T, v R) error) func(payload []byte, d *T) error {
	if fn == nil {
		return nil
	}
	return func(payload []byte, d *T) error {
		var v R
		if err := json.Unmarshal(payload, &v); err != nil {
			return &dataError{fmt.Errorf("what was delivered: %w", err)}
		}
		return fn(d, v)
	}
}
