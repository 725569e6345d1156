// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package breaker

import (
	"sync"
	"sync/atomic"
)

// window counts recent results. It is safe for concurrent use.
type window interface {
	add(now int64, failed, slow bool)
	sum(now int64) counts
	// take adds what old knows, if old is of the same kind. Nobody else uses the receiver yet.
	take(old window, now int64)
}

type counts struct{ calls, failures, slow int64 }

// newWindow returns nil when no rate is configured.
func newWindow(cfg *Config) window {
	switch {
	case cfg.FailureRate == 0 && cfg.SlowRate == 0:
		return nil
	case cfg.Calls > 0:
		return &callWindow{ring: make([]result, cfg.Calls)}
	}
	return &timeWindow{width: int64(cfg.Window) / buckets}
}

// buckets is the number of parts in which a window by time moves on.
const buckets = 10

// timeWindow counts in a ring of buckets. Results are added by atomic additions;
// the lock is for turning the ring only, ten times per window. A result that races with the
// turn may be counted in the wrong bucket, which no rate can tell.
type timeWindow struct {
	width int64 // of a bucket, in nanoseconds
	mu    sync.Mutex
	ring  [buckets]bucket
}

type bucket struct {
	tick                  atomic.Int64 // which width since the start, from 1; zero is empty
	calls, failures, slow atomic.Int64
}

func (w *timeWindow) add(now int64, failed, slow bool) {
	tick := now/w.width + 1
	b := &w.ring[tick%buckets]
	if b.tick.Load() != tick && !w.turn(b, tick) {
		return
	}
	b.calls.Add(1)
	if failed {
		b.failures.Add(1)
	}
	if slow {
		b.slow.Add(1)
	}
}

// turn empties b for tick. It returns false if b is in use for a later one: the result is
// a whole window old.
func (w *timeWindow) turn(b *bucket, tick int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b.tick.Load() >= tick {
		return b.tick.Load() == tick
	}
	b.calls.Store(0)
	b.failures.Store(0)
	b.slow.Store(0)
	b.tick.Store(tick)
	return true
}

func (w *timeWindow) sum(now int64) (c counts) {
	tick := now/w.width + 1
	for i := range w.ring {
		b := &w.ring[i]
		if t := b.tick.Load(); t > tick-buckets && t <= tick && t > 0 {
			c.calls += b.calls.Load()
			c.failures += b.failures.Load()
			c.slow += b.slow.Load()
		}
	}
	return c
}

func (w *timeWindow) take(old window, now int64) {
	o, ok := old.(*timeWindow)
	if !ok {
		return
	}
	tick, oldTick := now/w.width+1, now/o.width+1
	for i := range o.ring {
		from := &o.ring[i]
		t := from.tick.Load()
		if t <= oldTick-buckets || t > oldTick || t <= 0 {
			continue
		}
		// A wider bucket's results count as of its end, so that none leaves early.
		moved := min((t*o.width-1)/w.width+1, tick)
		if moved <= tick-buckets || moved <= 0 {
			continue
		}
		to := &w.ring[moved%buckets]
		to.tick.Store(moved)
		to.calls.Add(from.calls.Load())
		to.failures.Add(from.failures.Load())
		to.slow.Add(from.slow.Load())
	}
}

// callWindow keeps the results of the last calls.
type callWindow struct {
	mu   sync.Mutex
	ring []result
	next int
	n    int // results in ring
	counts
}

// result is a bit set.
type result uint8

const (
	resultFailed result = 1 << iota
	resultSlow
)

func (w *callWindow) add(_ int64, failed, slow bool) {
	var r result
	if failed {
		r |= resultFailed
	}
	if slow {
		r |= resultSlow
	}
	w.mu.Lock()
	w.push(r)
	w.mu.Unlock()
}

func (w *callWindow) push(r result) {
	if w.n == len(w.ring) {
		w.count(w.ring[w.next], -1)
	} else {
		w.n++
	}
	w.ring[w.next] = r
	w.count(r, 1)
	if w.next++; w.next == len(w.ring) {
		w.next = 0
	}
}

func (w *callWindow) count(r result, by int64) {
	w.calls += by
	if r&resultFailed != 0 {
		w.failures += by
	}
	if r&resultSlow != 0 {
		w.slow += by
	}
}

func (w *callWindow) sum(int64) counts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts
}

func (w *callWindow) take(old window, _ int64) {
	o, ok := old.(*callWindow)
	if !ok {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.n {
		w.push(o.ring[(o.next-o.n+i+len(o.ring))%len(o.ring)])
	}
}
