// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rediskit_test

import (
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/rediskit"
)

func buckets(t *testing.T) *rediskit.Buckets {
	t.Helper()
	c, cfg := client(t)
	b, err := rediskit.NewBuckets(c, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func complete(t *testing.T, l ratelimit.Limit) ratelimit.Limit {
	t.Helper()
	l, err := l.Complete()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestTake(t *testing.T) {
	// Slow enough that nothing flows in during the test.
	slow := complete(t, ratelimit.Limit{Rate: 1, Per: time.Hour, Burst: 10})

	t.Run("a new key has the full burst", func(t *testing.T) {
		b := buckets(t)
		taken, r, err := b.Take(t.Context(), "k", 1, 1, slow)
		if err != nil || taken != 1 || !r.OK || r.Limit != 10 || r.Remaining != 9 || r.RetryAfter != 0 {
			t.Errorf("Take = %d, %+v, %v, want 1 of 10 taken, 9 left", taken, r, err)
		}
		if r.ResetAfter <= 59*time.Minute || r.ResetAfter > time.Hour {
			t.Errorf("ResetAfter = %v, want the hour of one token", r.ResetAfter)
		}
	})
	t.Run("as many as there are, up to want", func(t *testing.T) {
		b := buckets(t)
		for _, want := range []int{7, 3} {
			if taken, _, err := b.Take(t.Context(), "k", 1, 7, slow); err != nil || taken != want {
				t.Errorf("Take = %d, %v, want %d", taken, err, want)
			}
		}
	})
	t.Run("fewer than need takes none and says when", func(t *testing.T) {
		b := buckets(t)
		if _, _, err := b.Take(t.Context(), "k", 8, 8, slow); err != nil {
			t.Fatal(err)
		}
		taken, r, err := b.Take(t.Context(), "k", 3, 5, slow)
		if err != nil || taken != 0 || r.OK || r.Remaining != 2 || r.RetryAfter <= 59*time.Minute || r.RetryAfter > time.Hour {
			t.Errorf("Take = %d, %+v, %v, want none, 2 left, one more in an hour", taken, r, err)
		}
		if taken, _, err := b.Take(t.Context(), "k", 2, 2, slow); err != nil || taken != 2 {
			t.Errorf("Take = %d, %v, want the 2 that are left", taken, err)
		}
	})
	t.Run("keys and limiters are apart", func(t *testing.T) {
		b := buckets(t)
		for _, key := range []string{"a", "b", "a/b", "a}", "{a", "", "ä", strings.Repeat("x", 1000)} {
			if taken, _, err := b.Take(t.Context(), key, 10, 10, slow); err != nil || taken != 10 {
				t.Errorf("Take of %q = %d, %v, want its full burst", key, taken, err)
			}
		}
	})
	t.Run("what flows in is admitted, not a token more", func(t *testing.T) {
		b := buckets(t)
		fast := complete(t, ratelimit.Limit{Rate: 300, Burst: 5})
		start := time.Now()
		var total int
		for time.Since(start) < 500*time.Millisecond {
			taken, _, err := b.Take(t.Context(), "k", 1, 1+rand.IntN(5), fast)
			if err != nil {
				t.Fatal(err)
			}
			total += taken
		}
		if most := 5 + int(time.Since(start).Seconds()*300) + 1; total > most || total < most/2 {
			t.Errorf("%d tokens in %v, want at most %d", total, time.Since(start), most)
		}
	})
	t.Run("a smaller burst is obeyed at once", func(t *testing.T) {
		b := buckets(t)
		if _, _, err := b.Take(t.Context(), "k", 1, 1, slow); err != nil {
			t.Fatal(err)
		}
		smaller := slow
		smaller.Burst = 2
		if taken, _, err := b.Take(t.Context(), "k", 1, 10, smaller); err != nil || taken != 2 {
			t.Errorf("Take = %d, %v, want 2", taken, err)
		}
	})
	t.Run("a full bucket is not kept", func(t *testing.T) {
		c, cfg := client(t)
		b, err := rediskit.NewBuckets(c, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.Take(t.Context(), "k", 1, 1, complete(t, ratelimit.PerSecond(1000))); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(10 * time.Second)
		for {
			keys, err := c.Keys(t.Context(), cfg.Prefix+"*").Result()
			if err != nil {
				t.Fatal(err)
			}
			if len(keys) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("keys = %v, want them expired", keys)
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	t.Run("many at once take no more than there is", func(t *testing.T) {
		b := buckets(t)
		limit := complete(t, ratelimit.Limit{Rate: 1, Per: time.Hour, Burst: 100})
		var total atomic.Int64
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() {
				for range 20 {
					taken, _, err := b.Take(t.Context(), "k", 1, 1, limit)
					if err != nil {
						t.Error(err)
						return
					}
					total.Add(int64(taken))
				}
			})
		}
		all.Wait()
		if total.Load() != 100 {
			t.Errorf("%d tokens taken, want 100", total.Load())
		}
	})
	t.Run("a limit that cannot be counted exactly is an error", func(t *testing.T) {
		b := buckets(t)
		for _, l := range []ratelimit.Limit{
			{Rate: 1, Per: 1500 * time.Nanosecond, Burst: 1},
			{Rate: 1, Per: 24 * time.Hour, Burst: 1 << 30},
		} {
			if _, _, err := b.Take(t.Context(), "k", 1, 1, l); err == nil || !strings.Contains(err.Error(), "Limit.") {
				t.Errorf("Take with %+v = %v, want an error that names the field", l, err)
			}
		}
	})
}

// TestLeasedThroughAnOutage shares a limit among four processes' worth of limiters while Redis is
// killed and started again: the limit holds throughout.
func TestLeasedThroughAnOutage(t *testing.T) {
	const replicas, rate, burst = 4, 400, 40
	srv := newServer(t)
	limit := ratelimit.Limit{Rate: rate, Burst: burst}
	leaseFor := 200 * time.Millisecond
	var limiters []*ratelimit.Leased
	for range replicas {
		b, err := rediskit.NewBuckets(srv.client(), rediskit.Config{})
		if err != nil {
			t.Fatal(err)
		}
		l, err := ratelimit.NewLeased(b, limit, ratelimit.LeasedConfig{Replicas: replicas, LeaseFor: leaseFor, Timeout: 500 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		limiters = append(limiters, l)
	}

	var admitted atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	start := time.Now()
	for i := range 2 * replicas {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if r := limiters[i%replicas].Allow(t.Context(), "hot"); r.OK {
					admitted.Add(1)
				} else {
					time.Sleep(min(r.RetryAfter, 5*time.Millisecond))
				}
			}
		})
	}
	fallbacks := func() (n uint64) {
		for _, l := range limiters {
			n += l.Stats().Fallback
		}
		return n
	}
	wait := func(what string, ok func() bool) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for !ok() {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain: %s", what)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	wait("tokens from Redis", func() bool { return admitted.Load() > burst+rate/2 })
	srv.kill()
	before := admitted.Load()
	wait("the fallback admits", func() bool { return fallbacks() > 0 && admitted.Load() > before+rate/4 })
	back := time.Now()
	srv.start()
	wait("every limiter asks Redis again", func() bool {
		n := 0
		for _, l := range limiters {
			s := l.Stats()
			if s.Remote > 0 && s.Store.String() == "closed" {
				n++
			}
		}
		return n == replicas
	})
	// Meanwhile some take from the store and others still from their shares.
	both := time.Since(back)
	after := admitted.Load()
	wait("tokens from Redis again", func() bool { return admitted.Load() > after+rate/2 })
	close(stop)
	clients.Wait()

	// The store's bucket, and each process's share of it for the outage, may be full at its beginning.
	took := time.Since(start) + leaseFor
	most := int64(2*burst) + int64((took+both).Seconds()*rate)
	t.Logf("%d admitted in %v, at most %d", admitted.Load(), time.Since(start).Round(time.Millisecond), most)
	if admitted.Load() > most {
		t.Errorf("%d admitted, want at most %d", admitted.Load(), most)
	}
	for _, l := range limiters {
		t.Logf("%+v", l.Stats())
	}
}

// TestHotKeyNeedsFewRoundTrips counts what the leases are for.
func TestHotKeyNeedsFewRoundTrips(t *testing.T) {
	l, err := ratelimit.NewLeased(buckets(t), ratelimit.PerSecond(100_000), ratelimit.LeasedConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for range 20_000 {
		l.Allow(t.Context(), "hot")
	}
	s := l.Stats()
	t.Logf("%+v", s)
	if local := float64(s.Local) / float64(s.Local+s.Remote+s.Fallback); local < 0.95 {
		t.Errorf("%.1f %% of decisions without a round trip, want at least 95 %%", 100*local)
	}
}

func TestConfig(t *testing.T) {
	if _, err := rediskit.NewBuckets(nil, rediskit.Config{}); err == nil {
		t.Error("NewBuckets(nil) = nil, want an error")
	}
	c, _ := client(t)
	if _, err := rediskit.NewCommands(c, rediskit.Config{Prefix: "a{b"}); err == nil || !strings.Contains(err.Error(), "Config.Prefix") {
		t.Errorf("NewCommands = %v, want an error that names Config.Prefix", err)
	}
}
