// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package idempotencytest holds implementations of [idempotency.Inbox] and
// [idempotency.Store] to their contracts, one subtest per sentence.
//
//	func TestStore(t *testing.T) {
//		idempotencytest.RunStore(t, func(t *testing.T) idempotency.Store { return open(t) })
//	}
//
// Each subtest opens its own. Leases and retentions are tested with a few hundred
// milliseconds of the store's clock, so a run takes some seconds.
package idempotencytest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/idempotency"
)

// patience is how long the suites wait for what must happen.
const patience = 30 * time.Second

// Tx is a transaction that its owner ends: a [*sql.Tx], or an adapter.
type Tx interface {
	idempotency.Tx
	// Commit makes what was done in the transaction visible to all others.
	Commit() error
	// Rollback undoes it. After a Commit it does nothing but return an error.
	Rollback() error
}

// Begin begins a transaction on the database of an inbox or a store. It waits no longer
// than ctx.
type Begin func(ctx context.Context) (Tx, error)

// begin begins a transaction that is rolled back at the latest when the test ends.
func begin(t *testing.T, b Begin) Tx {
	t.Helper()
	tx, err := b(t.Context())
	if err != nil {
		t.Fatalf("begin: %v", err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

func commit(t *testing.T, tx Tx) {
	t.Helper()
	if err := tx.Commit(); err != nil {
		t.Fatalf("commit: %v", err)
	}
}

func rollback(t *testing.T, tx Tx) {
	t.Helper()
	if err := tx.Rollback(); err != nil {
		t.Fatalf("rollback: %v", err)
	}
}

// inTx runs fn in transactions of its own until one commits. Databases may refuse a
// transaction because of another one; its owner repeats it.
func inTx(ctx context.Context, b Begin, fn func(tx Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := tryTx(ctx, b, fn)
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

func tryTx(ctx context.Context, b Begin, fn func(tx Tx) error) error {
	tx, err := b(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // does nothing after a commit
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// eventually polls until fn reports true.
func eventually(t *testing.T, what string, fn func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !fn(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// wantErr checks that err is target.
func wantErr(t *testing.T, what string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("%s = %v, want %v", what, err, target)
	}
}

// ids returns n different message IDs.
func ids(prefix string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%s-%06d", prefix, i)
	}
	return list
}
