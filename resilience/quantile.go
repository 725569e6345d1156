// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"math/bits"
	"sync"
	"time"
)

// quantile keeps one quantile of the recent latencies in a histogram of eight buckets per
// power of two, so it is at most an eighth too high and never too low. Old latencies fade:
// every fadeEvery-th record halves all counts.
type quantile struct {
	q float64

	mu     sync.Mutex
	counts [64 * 8]uint32
	total  uint32
	until  uint32 // the next fading
	cached time.Duration
	stale  int // records since cached was computed
}

const (
	fadeEvery    = 1024
	computeEvery = 16
)

func (l *quantile) record(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[bucketOf(uint64(max(d, 0)))]++
	l.total++
	if l.until++; l.until == fadeEvery {
		l.until, l.total = 0, 0
		for i := range l.counts {
			l.counts[i] /= 2
			l.total += l.counts[i]
		}
	}
	if l.stale++; l.stale >= computeEvery || l.total <= minLatencies {
		l.stale, l.cached = 0, l.compute()
	}
}

// value returns the quantile and of how many latencies.
func (l *quantile) value() (time.Duration, uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cached, l.total
}

func (l *quantile) compute() time.Duration {
	above := uint32(float64(l.total) * (1 - l.q)) // this many may be higher
	for i := len(l.counts) - 1; i >= 0; i-- {
		if l.counts[i] > above {
			return time.Duration(highest(i))
		}
		above -= l.counts[i]
	}
	return 0
}

// bucketOf returns the bucket of v: below 8 v itself, then its power of two and the three bits
// below the leading one.
func bucketOf(v uint64) int {
	if v < 8 {
		return int(v)
	}
	shift := bits.Len64(v) - 4
	return (shift+1)*8 + int(v>>shift&7)
}

// highest returns the highest value of a bucket.
func highest(bucket int) uint64 {
	if bucket < 8 {
		return uint64(bucket)
	}
	shift := bucket/8 - 1
	return (uint64(bucket%8)+9)<<shift - 1
}
