// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"sync"
)

// committer writes the progress of many sagas in few transactions: while all its
// writers are busy, further changes gather and go out together. Each caller still
// waits until its own change is durable.
type committer struct {
	store   Store
	writers chan struct{}

	mu    sync.Mutex
	queue []*pending
}

// maxBatch bounds one transaction.
const maxBatch = 128

type pending struct {
	change Change
	// alone keeps the change out of batches: one before it failed, perhaps because of it.
	alone bool
	taken bool // by a writer
	done  chan struct{}
	lost  bool
	err   error
}

func newCommitter(store Store, writers int) *committer {
	return &committer{store: store, writers: make(chan struct{}, writers)}
}

// save makes one change. Lost means that the saga is not as the change expects.
func (c *committer) save(ctx context.Context, change Change, alone bool) (lost bool, err error) {
	p := &pending{change: change, alone: alone, done: make(chan struct{})}
	c.mu.Lock()
	c.queue = append(c.queue, p)
	c.mu.Unlock()
	for !c.isTaken(p) {
		select {
		case <-p.done:
		case c.writers <- struct{}{}:
			c.write(ctx)
			<-c.writers
		}
	}
	<-p.done
	return p.lost, p.err
}

func (c *committer) isTaken(p *pending) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return p.taken
}

// write writes what has gathered, which may be the changes of others.
func (c *committer) write(ctx context.Context) {
	batch := c.next()
	if len(batch) == 0 {
		return
	}
	defer func() {
		for _, p := range batch {
			close(p.done)
		}
	}()
	changes := make([]Change, len(batch))
	for i, p := range batch {
		changes[i] = p.change
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	lost, err := c.store.Save(ctx, changes)
	for _, p := range batch {
		p.err = err
	}
	for _, i := range lost {
		batch[i].lost = true
	}
}

func (c *committer) next() []*pending {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for n < min(len(c.queue), maxBatch) && !c.queue[n].alone {
		n++
	}
	if n == 0 && len(c.queue) > 0 {
		n = 1
	}
	batch := c.queue[:n:n]
	c.queue = c.queue[n:]
	for _, p := range batch {
		p.taken = true
	}
	return batch
}
