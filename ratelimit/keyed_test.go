// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package ratelimit_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/internal/modeltest"
	"github.com/dovetail-go/dovetail/ratelimit"
)

func newKeyed[K comparable](t testing.TB, limit ratelimit.Limit, keys int) *ratelimit.Keyed[K] {
	t.Helper()
	k, err := ratelimit.NewKeyed[K](limit, keys)
	if err != nil {
		t.Fatalf("NewKeyed = %v, want nil", err)
	}
	return k
}

func TestKeyed(t *testing.T) {
	t.Run("keys do not share their tokens", func(t *testing.T) {
		k := newKeyed[string](t, ratelimit.PerHour(3), 0)
		for _, key := range []string{"", "a", "b"} {
			if n := admitted(func() ratelimit.Result { return k.Allow(key) }, 10); n != 3 {
				t.Errorf("%q: %d admitted, want 3", key, n)
			}
		}
		if r := k.AllowN("c", 4); r.OK || r.RetryAfter >= 0 {
			t.Errorf("AllowN = %+v, want never", r)
		}
	})
	t.Run("memory is bounded", func(t *testing.T) {
		for _, keys := range []int{1, 7, 10_000} {
			k := newKeyed[int](t, ratelimit.PerHour(1), keys)
			for i := range 5*keys + 100 {
				k.Allow(i)
			}
			if s := k.Stats(); s.Keys > keys || s.Keys < keys*9/10 {
				t.Errorf("%d keys in memory, want %d", s.Keys, keys)
			}
		}
	})
	t.Run("an attacker with many keys gets no fresh burst, neither for them nor for a known one", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := newKeyed[int](t, ratelimit.PerHour(3), 100)
			for i := range 100 {
				k.AllowN(i, 3)
			}
			admitted := 0
			for i := range 100_000 {
				if k.Allow(1000 + i).OK {
					admitted++
				}
			}
			if admitted != 3 {
				t.Errorf("%d admitted of 100000 new keys, want 3: one burst for all", admitted)
			}
			for i := range 100 {
				if k.Allow(i).OK {
					t.Errorf("key %d got a fresh burst", i)
				}
			}
			if s := k.Stats(); s.Spilled != 100_000 {
				t.Errorf("Stats = %+v, want 100000 spilled", s)
			}
		})
	})
	t.Run("a full bucket makes room", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := newKeyed[int](t, ratelimit.PerSecond(3), 20)
			for i := range 20 {
				k.Allow(i)
			}
			time.Sleep(time.Second)
			for i := range 20 {
				if r := k.AllowN(100+i, 3); !r.OK {
					t.Errorf("key %d = %+v, want its own full burst", 100+i, r)
				}
			}
			if s := k.Stats(); s.Spilled != 0 || s.Keys != 20 {
				t.Errorf("Stats = %+v, want 20 keys, none spilled", s)
			}
		})
	})
	t.Run("Reconfigure keeps what is used up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k := newKeyed[int](t, ratelimit.PerHour(10), 5000)
			for i := range 3000 {
				k.AllowN(i, 4)
			}
			if err := k.Reconfigure(ratelimit.Limit{Rate: 1, Burst: 10}); err != nil {
				t.Fatal(err)
			}
			for i := range 3000 {
				if r := k.Allow(i); r.Remaining != 5 {
					t.Fatalf("key %d = %+v, want 5 remaining", i, r)
				}
			}
			if err := k.Reconfigure(ratelimit.Limit{}); err == nil {
				t.Error("Reconfigure = nil, want an error")
			}
		})
	})
	t.Run("is safe for concurrent use", func(t *testing.T) {
		k := newKeyed[int](t, ratelimit.PerHour(100), 3000)
		var wg sync.WaitGroup
		var mu sync.Mutex
		total := map[int]int{}
		for range 8 {
			wg.Go(func() {
				own := map[int]int{}
				for range 5000 {
					if i := rand.IntN(20); k.Allow(i).OK {
						own[i]++
					}
				}
				mu.Lock()
				defer mu.Unlock()
				for i, n := range own {
					total[i] += n
				}
			})
		}
		wg.Wait()
		for i, n := range total {
			if n != 100 {
				t.Errorf("key %d: %d admitted, want 100", i, n)
			}
		}
	})
}

type op struct {
	Kind string
	N    int
	D    time.Duration
}

// TestModel compares the limiter, alone and keyed, with a token bucket that is computed the
// plain way, in tokens. The reference counts in nanotokens, so that both are exact.
func TestModel(t *testing.T) {
	random := func(r *rand.Rand) op {
		switch n := r.IntN(100); {
		case n < 60:
			return op{Kind: "allow", N: r.IntN(8)}
		case n < 97:
			return op{Kind: "sleep", D: time.Duration(r.Int64N(int64(2*time.Second) >> r.IntN(12)))}
		}
		return op{Kind: "reconfigure", N: r.IntN(4)}
	}
	limits := []ratelimit.Limit{{Rate: 10, Burst: 5}, {Rate: 1, Burst: 1}, {Rate: 1000, Burst: 3}, {Rate: 5, Per: 10 * time.Second, Burst: 6}}
	modeltest.Run(t, 400, 300, random, func(t *testing.T, ops []op) error {
		limiter, keyed := newLimiter(t, limits[0], ratelimit.Config{}), newKeyed[string](t, limits[0], 4)
		limit := limits[0]
		per := func() int64 { return int64(max(limit.Per, 0)) }
		limit, _ = limit.Complete()
		missing := int64(0) // nanoseconds until full; an event is an interval of them
		last := time.Now()
		for i, o := range ops {
			missing = max(0, missing-int64(time.Since(last)))
			last = time.Now()
			interval := per() / int64(limit.Rate)
			switch o.Kind {
			case "sleep":
				time.Sleep(o.D)
			case "reconfigure":
				if err := limiter.Reconfigure(limits[o.N]); err != nil {
					return err
				}
				if err := keyed.Reconfigure(limits[o.N]); err != nil {
					return err
				}
				limit, _ = limits[o.N].Complete()
				missing = int64(float64(missing) / float64(interval) * float64(per()/int64(limit.Rate)))
			case "allow":
				want := ratelimit.Result{Limit: limit.Burst}
				cost, room := int64(o.N)*interval, int64(limit.Burst)*interval-missing
				switch {
				case o.N > limit.Burst:
					want.RetryAfter = -1
				case cost <= room:
					want.OK = true
					missing += cost
				default:
					want.RetryAfter = time.Duration(cost - room)
				}
				want.Remaining = max(0, int((int64(limit.Burst)*interval-missing)/interval))
				want.ResetAfter = time.Duration(missing)
				if got := limiter.AllowN(o.N); got != want {
					return fmt.Errorf("step %d: AllowN(%d) = %+v, want %+v", i, o.N, got, want)
				}
				if got := keyed.AllowN("key", o.N); got != want {
					return fmt.Errorf("step %d: keyed AllowN(%d) = %+v, want %+v", i, o.N, got, want)
				}
			}
		}
		return nil
	})
}

// TestWaitModel runs random Waits and cancellations and checks the promise itself: in no
// time t were more than Burst + t*Rate admitted, and nobody waited without need.
func TestWaitModel(t *testing.T) {
	random := func(r *rand.Rand) op {
		return op{Kind: []string{"wait", "wait", "cancel", "allow"}[r.IntN(4)], N: 1 + r.IntN(3), D: time.Duration(r.Int64N(int64(300 * time.Millisecond)))}
	}
	const rate, burst = 10, 3
	modeltest.Run(t, 200, 100, random, func(t *testing.T, ops []op) error {
		l := newLimiter(t, ratelimit.Limit{Rate: rate, Burst: burst}, ratelimit.Config{})
		start := time.Now()
		type event struct {
			at time.Duration
			n  int
		}
		var mu sync.Mutex
		var events []event
		note := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, event{time.Since(start), n})
		}
		var waits []*waiting
		for _, o := range ops {
			switch o.Kind {
			case "wait":
				w := startWait(t, l, o.N)
				waits = append(waits, w)
				go func() {
					if <-w.done; w.err == nil {
						note(o.N)
					}
				}()
			case "allow":
				if l.AllowN(o.N).OK {
					note(o.N)
				}
			case "cancel":
				if len(waits) > 0 {
					waits[len(waits)*o.N/4].cancel()
				}
			}
			time.Sleep(o.D)
		}
		for _, w := range waits {
			<-w.done
		}
		synctest.Wait()
		if s := l.Stats(); s.Waiting != 0 {
			return fmt.Errorf("Stats = %+v, want nobody waiting", s)
		}
		mu.Lock()
		defer mu.Unlock()
		for i := range events {
			n := 0
			for _, e := range events[i:] {
				n += e.n
				if most := burst + rate*(e.at-events[i].at).Seconds(); float64(n) > most+1e-6 {
					return fmt.Errorf("%d events from %v to %v, want at most %.2f", n, events[i].at, e.at, most)
				}
			}
		}
		return nil
	})
}
