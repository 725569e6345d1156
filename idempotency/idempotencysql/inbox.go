// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotencysql

import (
	"context"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"

	"github.com/dovetail-go/dovetail/idempotency"
)

// Once implements [idempotency.Inbox].
func (s *Store) Once(ctx context.Context, tx idempotency.Tx, consumer, id string) (first bool, err error) {
	if err := idempotency.ValidateMark(consumer, id); err != nil {
		return false, err
	}
	bounded, cancel := s.wait(ctx)
	defer cancel()
	n, err := affected(bounded, tx, s.sql.mark[0], consumer, id, 0)
	if err != nil {
		return false, fmt.Errorf("idempotencysql: mark message %q: %w", id, contended(err))
	}
	return n == 1, nil
}

// OnceMany implements [idempotency.Inbox]. It is one statement for up to 256 messages
// that are all new or all known, and a few more where they are mixed.
func (s *Store) OnceMany(ctx context.Context, tx idempotency.Tx, consumer string, ids []string) (first []bool, err error) {
	for _, id := range ids {
		if err := idempotency.ValidateMark(consumer, id); err != nil {
			return nil, err
		}
	}
	// Each once, and in one order for all, or two batches would deadlock on each other's rows.
	unique := slices.Clone(ids)
	slices.Sort(unique)
	unique = slices.Compact(unique)

	b := batch{store: s, tx: tx, consumer: consumer, number: 1 + rand.Int64N(1<<62), mine: make(map[string]bool, len(unique))}
	for part := range slices.Chunk(unique, 1<<maxShift) {
		if err := b.mark(ctx, part); err != nil {
			return nil, fmt.Errorf("idempotencysql: mark %d messages: %w", len(ids), err)
		}
	}
	first = make([]bool, len(ids))
	for i, id := range ids {
		first[i] = b.mine[id]
		delete(b.mine, id) // only the first occurrence is first
	}
	return first, nil
}

// batch is one call of OnceMany.
type batch struct {
	store    *Store
	tx       idempotency.Tx
	consumer string
	number   int64 // random, and in every row that this call inserts
	mine     map[string]bool
}

// mark inserts the marks of ids and finds out which are new.
func (b *batch) mark(ctx context.Context, ids []string) error {
	bounded, cancel := b.store.wait(ctx)
	defer cancel()
	shift := shiftOf(len(ids))
	args := make([]any, 0, 3<<shift)
	for i := range 1 << shift {
		args = append(args, b.consumer, ids[min(i, len(ids)-1)], b.number)
	}
	n, err := affected(bounded, b.tx, b.store.sql.mark[shift], args...)
	if err != nil {
		return contended(err)
	}
	return b.find(ctx, ids, int(n))
}

// find notes which of ids were inserted by this call, n of them. A transaction can only
// be asked how many rows a statement changed, so it halves: duplicates are rare, and
// those of a batch that was interrupted lie side by side.
func (b *batch) find(ctx context.Context, ids []string, n int) error {
	switch {
	case n < 0 || n > len(ids):
		return fmt.Errorf("the driver says that %d of %d rows are new", n, len(ids))
	case n == 0:
		return nil
	case n == len(ids):
		for _, id := range ids {
			b.mine[id] = true
		}
		return nil
	}
	left, right := ids[:len(ids)/2], ids[len(ids)/2:]
	shift := shiftOf(len(left))
	m, err := affected(ctx, b.tx, b.store.sql.count[shift], append(idArgs(b.consumer, left), b.number)...)
	if err != nil {
		return err
	}
	if err := b.find(ctx, left, int(m)); err != nil {
		return err
	}
	return b.find(ctx, right, n-int(m))
}

// Forget implements [idempotency.Inbox].
func (s *Store) Forget(ctx context.Context, tx idempotency.Tx, consumer string, ids ...string) error {
	for part := range slices.Chunk(ids, 1<<maxShift) {
		if err := s.forget(ctx, tx, consumer, part); err != nil {
			return fmt.Errorf("idempotencysql: forget %d messages: %w", len(ids), err)
		}
	}
	return nil
}

func (s *Store) forget(ctx context.Context, tx idempotency.Tx, consumer string, ids []string) error {
	bounded, cancel := s.wait(ctx)
	defer cancel()
	_, err := tx.ExecContext(bounded, s.sql.drop[shiftOf(len(ids))], idArgs(consumer, ids)...)
	return contended(err)
}

// shiftOf returns the smallest shift with n <= 1<<shift. Statements come in these sizes
// only, so that a driver's cache of prepared ones holds them all; the last message
// fills the rest, which changes nothing.
func shiftOf(n int) int { return bits.Len(uint(n - 1)) }

func idArgs(consumer string, ids []string) []any {
	size := 1 << shiftOf(len(ids))
	args := make([]any, 0, size+2)
	args = append(args, consumer)
	for i := range size {
		args = append(args, ids[min(i, len(ids)-1)])
	}
	return args
}
