// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"database/sql"
	"errors"
	"net/http"

	"github.com/dovetail-go/dovetail/saga/barrier"
)

// Participant is the handler of one saga step: it decodes the request, and runs fn
// behind the barrier in a local transaction. A repeated request changes nothing and is answered
// like the first; a request that comes after its own compensation is refused.
func Participant[T any](b *Bus, fn func(ctx context.Context, tx *sql.Tx, in T) error) http.Handler {
	return Handle(func(w http.ResponseWriter, r *http.Request) error {
		key, err := barrier.KeyFromHeader(r.Header)
		if err != nil {
			return &Error{Status: http.StatusBadRequest, Code: "no-saga-key", Detail: err.Error()}
		}
		var in T
		if err := Decode(w, r, &in); err != nil {
			return err
		}
		ctx := r.Context()
		if err := b.step(ctx, key, func(tx *sql.Tx) error { return fn(ctx, tx, in) }); err != nil {
			return err
		}
		return WriteJSON(w, http.StatusOK, struct{}{})
	})
}

// step runs fn behind the barrier in a local transaction.
func (b *Bus) step(ctx context.Context, key barrier.Key, fn func(tx *sql.Tx) error) error {
	err := b.InTx(ctx, func(tx *sql.Tx) error {
		_, err := b.Barrier.Do(ctx, tx, key, func() error { return fn(tx) })
		return err
	})
	if errors.Is(err, barrier.ErrCompensated) {
		return Refused("compensated", "this step was undone before it arrived")
	}
	return err
}
