// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// BatchHandler handles several deliveries at once, such as in one transaction. It
// returns nil if all of them are done, or one error for each, nil where done; each error
// decides about its own message, as a [Handler]'s does.
type BatchHandler func(ctx context.Context, ds []*Delivery) []error

// BatchConfig says how [Batch] gathers deliveries.
type BatchConfig struct {
	// Size is the largest batch. Zero means 100.
	Size int
	// Linger is how long a batch that is not full waits for more. Zero means not at all:
	// batches then form from what arrives while the ones before are being handled.
	Linger time.Duration
	// Parallel is how many batches may be handled at the same time. Several keep a database
	// busy while each waits for its answers; but two that change the same rows wait for each
	// other, and in different orders they deadlock. Zero means 1.
	Parallel int
}

// Batch returns a handler that gathers the deliveries of its concurrent calls and gives
// them to fn, in the order of their arrival, at most Parallel batches at a time.
//
// It works with every broker. A subscription hands out as many messages as its
// Concurrency says, so that bounds the batches too: set it to Size times Parallel or somewhat
// more. With Ordered, no two messages that are being handled have the same key. A batch
// runs with the context of its first delivery; a panic of fn is a failure of them all.
func Batch(cfg BatchConfig, fn BatchHandler) (Handler, error) {
	if cfg.Size < 0 {
		return nil, fmt.Errorf("messaging: BatchConfig.Size is %d, want 0 or more", cfg.Size)
	}
	if cfg.Linger < 0 {
		return nil, fmt.Errorf("messaging: BatchConfig.Linger is %v, want 0 or more", cfg.Linger)
	}
	if cfg.Parallel < 0 {
		return nil, fmt.Errorf("messaging: BatchConfig.Parallel is %d, want 0 or more", cfg.Parallel)
	}
	if cfg.Size == 0 {
		cfg.Size = 100
	}
	return &batcher{size: cfg.Size, wait: cfg.Linger, parallel: max(cfg.Parallel, 1), fn: fn, full: make(chan struct{}, 1)}, nil
}

// batcher lets one of its callers lead: it gathers a batch and runs it for the others in its
// own goroutine. The next leader is the first who waits, as soon as another batch may run.
type batcher struct {
	size, parallel int
	wait           time.Duration
	fn             BatchHandler
	full           chan struct{} // tells a lingering leader that its batch is full

	mu      sync.Mutex
	led     bool // somebody leads and has not begun; the first who waits
	running int  // batches
	waiting []*batched
}

type batched struct {
	d    *Delivery
	wake chan struct{}
	done bool // when woken: err is set; otherwise it is our turn to lead
	err  error
}

func (b *batcher) Handle(ctx context.Context, d *Delivery) error {
	it := &batched{d: d, wake: make(chan struct{}, 1)}
	b.mu.Lock()
	b.waiting = append(b.waiting, it)
	lead := !b.led && b.running < b.parallel
	b.led = b.led || lead
	if len(b.waiting) >= b.size {
		b.signalFull()
	}
	b.mu.Unlock()
	if !lead {
		<-it.wake
		if it.done {
			return it.err
		}
	}
	b.linger(ctx)
	b.lead(ctx)
	return it.err
}

// lead runs the first waiting deliveries as one batch. The leader's own is ahead of them all.
func (b *batcher) lead(ctx context.Context) {
	b.mu.Lock()
	n := min(len(b.waiting), b.size)
	batch := slices.Clone(b.waiting[:n])
	b.waiting = slices.Delete(b.waiting, 0, n)
	b.running++
	b.passOn()
	b.mu.Unlock()

	ds := make([]*Delivery, n)
	for i, it := range batch {
		ds[i] = it.d
	}
	var errs []error
	call := HandlerFunc(func(ctx context.Context, _ *Delivery) error {
		errs = b.fn(ctx, ds)
		if len(errs) != 0 && len(errs) != n {
			return fmt.Errorf("messaging: batch handler returned %d errors for %d deliveries, want none or one for each", len(errs), n)
		}
		return nil
	})
	Invoke(ctx, call, nil, func(err error) {
		for i, it := range batch {
			switch {
			case err != nil:
				it.err = err
			case len(errs) != 0:
				it.err = errs[i]
			}
			it.done = true
			it.wake <- struct{}{} // has room: the leader's own, never received, too
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.running--
		if !b.led {
			b.passOn()
		}
	})
}

// passOn makes the first who waits the next leader, if another batch may run.
func (b *batcher) passOn() {
	b.led = len(b.waiting) > 0 && b.running < b.parallel
	if b.led {
		b.waiting[0].wake <- struct{}{}
	}
}

// linger waits until the batch is full, its time is over, or the subscription ends.
func (b *batcher) linger(ctx context.Context) {
	if b.wait == 0 {
		return
	}
	b.mu.Lock()
	select {
	case <-b.full: // a signal to an earlier leader
	default:
	}
	if len(b.waiting) >= b.size {
		b.signalFull()
	}
	b.mu.Unlock()
	t := time.NewTimer(b.wait)
	defer t.Stop()
	select {
	case <-b.full:
	case <-t.C:
	case <-ctx.Done():
	}
}

func (b *batcher) signalFull() {
	select {
	case b.full <- struct{}{}:
	default:
	}
}
