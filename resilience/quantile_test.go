// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	for bucket := range 61 * 8 {
		high := highest(bucket)
		if bucketOf(high) != bucket {
			t.Fatalf("bucketOf(highest(%d)) = %d", bucket, bucketOf(high))
		}
		if high+1 != 0 && bucketOf(high+1) != bucket+1 {
			t.Fatalf("bucketOf(highest(%d)+1) = %d", bucket, bucketOf(high+1))
		}
	}
	if b := bucketOf(math.MaxUint64); b >= len(quantile{}.counts) {
		t.Errorf("bucketOf(max) = %d, outside", b)
	}
}

func TestQuantile(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 100 {
		l := quantile{q: 0.5 + rng.Float64()*0.49}
		n := 16 + rng.IntN(60)*16 // fewer than fade
		scale := math.Pow(10, 3+rng.Float64()*7)
		var all []time.Duration
		for range n {
			d := time.Duration(rng.ExpFloat64() * scale)
			all = append(all, d)
			l.record(d)
		}
		slices.Sort(all)
		above := int(float64(n) * (1 - l.q))
		want := all[n-1-above]
		got, count := l.value()
		if int(count) != n || got < want || float64(got) > float64(want)*1.125+8 {
			t.Fatalf("quantile %.3f of %d = %v, want %v and up to an eighth more", l.q, n, got, want)
		}
	}
}
