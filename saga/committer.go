// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"context"
	"sync"
)

// committer writes what many callers want written in few transactions: while all its
// writers are busy, more gathers and goes out together. Each caller still waits until its
// own is durable.
type committer[In, Out any] struct {
	// write returns an outcome for each, or an error for all.
	write   func(ctx context.Context, batch []In) ([]Out, error)
	writers chan struct{}

	mu    sync.Mutex
	queue []*pending[In, Out]
}

// maxBatch bounds one transaction.
const maxBatch = 128

type pending[In, Out any] struct {
	in In
	// alone keeps it out of batches: one before it failed, perhaps because of it.
	alone bool
	taken bool // by a writer
	done  chan struct{}
	out   Out
	err   error
}

func newCommitter[In, Out any](writers int, write func(context.Context, []In) ([]Out, error)) *committer[In, Out] {
	return &committer[In, Out]{write: write, writers: make(chan struct{}, writers)}
}

// commit writes in, and perhaps what others want written, in which case ctx is that of
// one of them.
func (c *committer[In, Out]) commit(ctx context.Context, in In, alone bool) (Out, error) {
	p := &pending[In, Out]{in: in, alone: alone, done: make(chan struct{})}
	c.mu.Lock()
	c.queue = append(c.queue, p)
	c.mu.Unlock()
	for !c.isTaken(p) {
		select {
		case <-p.done:
		case c.writers <- struct{}{}:
			c.writeNext(ctx)
			<-c.writers
		}
	}
	<-p.done
	return p.out, p.err
}

func (c *committer[In, Out]) isTaken(p *pending[In, Out]) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return p.taken
}

// writeNext writes what has gathered, which may be only what others want.
func (c *committer[In, Out]) writeNext(ctx context.Context) {
	batch := c.next()
	if len(batch) == 0 {
		return
	}
	defer func() {
		for _, p := range batch {
			close(p.done)
		}
	}()
	list := make([]In, len(batch))
	for i, p := range batch {
		list[i] = p.in
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	outs, err := c.write(ctx, list)
	for i, p := range batch {
		if p.err = err; err == nil {
			p.out = outs[i]
		}
	}
}

func (c *committer[In, Out]) next() []*pending[In, Out] {
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
