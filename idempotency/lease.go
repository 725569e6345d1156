// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// storeTimeout bounds what is asked of the store although the caller has gone.
	storeTimeout = 5 * time.Second
	// completePause is the time between two attempts to store a result.
	completePause = 100 * time.Millisecond
)

// begin does not end with its caller: a Begin that was given up may have claimed the key
// for nobody, until the end of the lease.
func begin(ctx context.Context, store Store, cmd Command) (Claim, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	return store.Begin(ctx, cmd)
}

// hold keeps the claim, which was begun at the given time, by extending it every third
// of its lease. The returned context ends with ErrLeaseLost as its cause when the claim
// was lost, or may have been because no renewal came through for a whole lease. It does
// not end so while held reports that something else holds the key. stop ends the
// renewals and the context; it must be called.
func hold(ctx context.Context, store Store, claim Claim, begun time.Time, held func() bool) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	// The claim is needed as long as its owner runs, although the owner's caller has gone.
	renewing, end := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := renew(renewing, store, claim, begun, held); err != nil {
			cancel(err)
		}
	}()
	return ctx, func() {
		end()
		<-done
		cancel(nil)
	}
}

// renew returns an error when the claim is lost, and nil when ctx ends.
func renew(ctx context.Context, store Store, claim Claim, renewed time.Time, held func() bool) error {
	ticker := time.NewTicker(max(claim.Lease/3, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		start := time.Now()
		err := extend(ctx, store, claim)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			renewed = start
		case held():
		case errors.Is(err, ErrLeaseLost):
			return err
		case time.Since(renewed) >= claim.Lease:
			return fmt.Errorf("%w: could not be extended for %v: %w", ErrLeaseLost, claim.Lease, err)
		}
	}
}

// extend gives up in time for another attempt before the lease has passed.
func extend(ctx context.Context, store Store, claim Claim) error {
	ctx, cancel := context.WithTimeout(ctx, claim.Lease/3)
	defer cancel()
	return store.Extend(ctx, claim)
}

// complete stores result. It tries for a while, because the command would run again if
// it cannot.
func complete(ctx context.Context, store Store, claim Claim, result []byte) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	for {
		err := store.Complete(ctx, claim, result)
		if err == nil || errors.Is(err, ErrLeaseLost) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(completePause):
		}
	}
}

// release frees the claim's key. If it cannot, the lease will.
func release(ctx context.Context, store Store, claim Claim) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	return store.Release(ctx, claim)
}
