// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/ratelimit"
)

var errStore = errors.New("connection refused")

// memory is a Store in this process, with a network in front of it.
type memory struct {
	latency time.Duration

	mu    sync.Mutex
	tat   map[string]time.Time
	calls int
	taken int
	down  bool
	hangs bool
}

func newMemory() *memory { return &memory{tat: map[string]time.Time{}} }

func (m *memory) Take(ctx context.Context, key string, need, want int, limit ratelimit.Limit) (int, ratelimit.Result, error) {
	select {
	case <-time.After(m.latency):
	case <-ctx.Done():
		return 0, ratelimit.Result{}, ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.hangs {
		m.mu.Unlock()
		<-ctx.Done()
		m.mu.Lock()
		return 0, ratelimit.Result{}, ctx.Err()
	}
	if m.down {
		return 0, ratelimit.Result{}, errStore
	}
	now := time.Now()
	tat := m.tat[key]
	if tat.Before(now) {
		tat = now
	}
	room := limit.Interval()*time.Duration(limit.Burst) - tat.Sub(now)
	r := ratelimit.Result{Limit: limit.Burst}
	taken := min(want, int(room/limit.Interval()))
	if taken < need {
		taken = 0
		r.RetryAfter = limit.Interval()*time.Duration(need) - room
	}
	tat = tat.Add(time.Duration(taken) * limit.Interval())
	m.tat[key] = tat
	m.taken += taken
	r.OK = taken >= need
	r.Remaining = int(room/limit.Interval()) - taken
	r.ResetAfter = tat.Sub(now)
	return taken, r, nil
}

func (m *memory) set(down, hangs bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down, m.hangs = down, hangs
}

func newLeased(t testing.TB, s ratelimit.Store, limit ratelimit.Limit, cfg ratelimit.LeasedConfig) *ratelimit.Leased {
	t.Helper()
	l, err := ratelimit.NewLeased(s, limit, cfg)
	if err != nil {
		t.Fatalf("NewLeased = %v, want nil", err)
	}
	return l
}

func TestNewLeasedNamesTheWrongField(t *testing.T) {
	for want, cfg := range map[string]ratelimit.LeasedConfig{
		"LeasedConfig.Replicas is -1, want 0 or more":                         {Replicas: -1},
		"LeasedConfig.LeaseFor is -1ns, want 0 or more":                       {LeaseFor: -1},
		"LeasedConfig.Timeout is -1ns, want 0 or more":                        {Timeout: -1},
		"LeasedConfig.Lease is 11, want at most the burst, 10":                {Lease: 11},
		"LeasedConfig.Fallback is ratelimit.Fallback(7), want FallbackSplit,": {Fallback: 7},
	} {
		if _, err := ratelimit.NewLeased(newMemory(), ratelimit.PerSecond(10), cfg); err == nil || !strings.HasPrefix(err.Error(), "ratelimit: "+want) {
			t.Errorf("NewLeased = %v, want %q", err, want)
		}
	}
	if _, err := ratelimit.NewLeased(nil, ratelimit.PerSecond(10), ratelimit.LeasedConfig{}); err == nil {
		t.Error("NewLeased(nil) = nil, want an error")
	}
	if _, err := ratelimit.NewLeased(newMemory(), ratelimit.Limit{}, ratelimit.LeasedConfig{}); err == nil {
		t.Error("NewLeased without a limit = nil, want an error")
	}
}

func TestLeased(t *testing.T) {
	t.Run("a lease of one asks the store each time and is exact", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			l := newLeased(t, m, ratelimit.Limit{Rate: 1, Burst: 3}, ratelimit.LeasedConfig{Lease: 1})
			for _, want := range []ratelimit.Result{
				{OK: true, Limit: 3, Remaining: 2, ResetAfter: 1 * time.Second},
				{OK: true, Limit: 3, Remaining: 1, ResetAfter: 2 * time.Second},
				{OK: true, Limit: 3, Remaining: 0, ResetAfter: 3 * time.Second},
				{OK: false, Limit: 3, Remaining: 0, ResetAfter: 3 * time.Second, RetryAfter: time.Second},
			} {
				if got := l.Allow(t.Context(), "a"); got != want {
					t.Errorf("Allow = %+v, want %+v", got, want)
				}
			}
			time.Sleep(time.Second)
			if got := l.Allow(t.Context(), "a"); !got.OK {
				t.Errorf("Allow = %+v after RetryAfter, want OK", got)
			}
		})
	})
	t.Run("a refusal is remembered until RetryAfter without asking again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			l := newLeased(t, m, ratelimit.PerMinute(1), ratelimit.LeasedConfig{})
			for range 100 {
				l.Allow(t.Context(), "a")
			}
			if m.calls != 2 {
				t.Errorf("%d round trips, want 2", m.calls)
			}
			time.Sleep(20 * time.Second)
			if r := l.Allow(t.Context(), "a"); r.OK || r.RetryAfter != 40*time.Second {
				t.Errorf("Allow = %+v, want RetryAfter 40s", r)
			}
		})
	})
	t.Run("more than the burst is an error and no round trip", func(t *testing.T) {
		m := newMemory()
		l := newLeased(t, m, ratelimit.PerMinute(3), ratelimit.LeasedConfig{})
		if r := l.AllowN(t.Context(), "a", 4); !errors.Is(r.Err(), ratelimit.ErrBurst) || m.calls != 0 {
			t.Errorf("AllowN = %+v after %d round trips, want ErrBurst after none", r, m.calls)
		}
	})
	t.Run("tokens of a lease are not lost when more are needed than are left", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			l := newLeased(t, m, ratelimit.Limit{Rate: 1, Per: time.Hour, Burst: 10}, ratelimit.LeasedConfig{Lease: 4})
			total := 0
			for _, n := range []int{1, 1, 3, 2, 3, 3, 2, 1, 1} {
				if l.AllowN(t.Context(), "a", n).OK {
					total += n
				}
				time.Sleep(150 * time.Millisecond)
			}
			if total != 10 {
				t.Errorf("%d admitted, want the burst of 10", total)
			}
		})
	})
	t.Run("tokens of a lease are kept when the store cannot add enough", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLeased(t, newMemory(), ratelimit.Limit{Rate: 1, Per: time.Hour, Burst: 4}, ratelimit.LeasedConfig{Lease: 2})
			for _, step := range []struct {
				n  int
				ok bool
			}{{1, true}, {1, true}, {3, false}, {1, true}} { // the second leases two, so one is at hand
				if r := l.AllowN(t.Context(), "a", step.n); r.OK != step.ok {
					t.Errorf("AllowN(%d) = %+v, want OK %v", step.n, r, step.ok)
				}
			}
		})
	})
	t.Run("waiters on one key share a round trip, and the leader's end does not spoil it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			m.latency = 50 * time.Millisecond
			l := newLeased(t, m, ratelimit.PerMinute(1), ratelimit.LeasedConfig{})
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			ok := make(chan bool, 100)
			wg.Go(func() { ok <- l.Allow(ctx, "a").OK })
			synctest.Wait()
			for range 99 {
				wg.Go(func() { ok <- l.Allow(t.Context(), "a").OK })
			}
			synctest.Wait()
			cancel()
			wg.Wait()
			close(ok)
			n := 0
			for yes := range ok {
				if yes {
					n++
				}
			}
			if n != 1 || m.calls > 2 {
				t.Errorf("%d admitted in %d round trips, want 1 in at most 2", n, m.calls)
			}
		})
	})
	t.Run("a waiter whose caller goes away returns at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			m.latency = 80 * time.Millisecond
			l := newLeased(t, m, ratelimit.PerMinute(1), ratelimit.LeasedConfig{})
			go l.Allow(t.Context(), "a")
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			start := time.Now()
			if r := l.Allow(ctx, "a"); r.OK || time.Since(start) != 10*time.Millisecond {
				t.Errorf("Allow = %+v after %v, want a refusal after 10ms", r, time.Since(start))
			}
			time.Sleep(time.Second)
		})
	})
	t.Run("a store that panics leaves nobody waiting", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := newLeased(t, panicStore{}, ratelimit.PerMinute(1), ratelimit.LeasedConfig{})
			for range 5 {
				func() {
					defer func() { recover() }()
					l.Allow(t.Context(), "a")
				}()
			}
		})
	})
}

type panicStore struct{}

func (panicStore) Take(context.Context, string, int, int, ratelimit.Limit) (int, ratelimit.Result, error) {
	panic("store")
}

// TestLeasedFleet runs several processes on one hot key at three times the limit.
func TestLeasedFleet(t *testing.T) {
	const nodes, rate, burst, seconds = 4, 1000, 1000, 20
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.latency = time.Millisecond
		var limiters []*ratelimit.Leased
		for range nodes {
			limiters = append(limiters, newLeased(t, m, ratelimit.Limit{Rate: rate, Burst: burst}, ratelimit.LeasedConfig{Replicas: nodes}))
		}
		start := time.Now()
		perSecond := make([]int, seconds+1)
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, l := range limiters {
			for range 3 { // callers a node
				wg.Go(func() {
					for time.Since(start) < seconds*time.Second {
						if l.Allow(t.Context(), "hot").OK {
							mu.Lock()
							perSecond[int(time.Since(start)/time.Second)]++
							mu.Unlock()
						}
						time.Sleep(4 * time.Millisecond) // 3000 a second in all
					}
				})
			}
		}
		wg.Wait()
		var s ratelimit.LeasedStats
		for _, l := range limiters {
			s.Local += l.Stats().Local
			s.Remote += l.Stats().Remote
			s.Fallback += l.Stats().Fallback
		}
		total := 0
		for _, n := range perSecond {
			total += n
		}
		share := float64(s.Local) / float64(s.Local+s.Remote+s.Fallback)
		t.Logf("%d decisions: %.1f%% without a round trip; %d admitted, the limit is %d in %d s: %v", s.Local+s.Remote, 100*share, total, burst+rate*seconds, seconds, perSecond)
		if s.Fallback != 0 || share < 0.95 {
			t.Errorf("%.1f%% of decisions without a round trip, %d by fallback, want 95%% and none", 100*share, s.Fallback)
		}
		if most := burst + rate*seconds; total > most || total < most*9/10 {
			t.Errorf("%d admitted, want close to and at most %d", total, most)
		}
		for i, n := range perSecond[1:] {
			if n > rate+rate { // Rate*(t+LeaseFor), the burst being spent
				t.Errorf("%d admitted in second %d, want at most %d", n, i+1, 2*rate)
			}
		}
	})
}

func TestLeasedFallback(t *testing.T) {
	const nodes, rate = 4, 100
	run := func(t *testing.T, fallback ratelimit.Fallback, break_ func(*memory), heal bool) (admitted []int, m *memory) {
		synctest.Test(t, func(t *testing.T) {
			m = newMemory()
			var limiters []*ratelimit.Leased
			for range nodes {
				limiters = append(limiters, newLeased(t, m, ratelimit.Limit{Rate: rate, Burst: rate}, ratelimit.LeasedConfig{Replicas: nodes, Fallback: fallback}))
			}
			break_(m)
			for second := range 8 {
				if second == 2 && heal { // the breaker probes again within three seconds
					m.set(false, false)
				}
				n, start := 0, time.Now()
				for time.Since(start) < time.Second {
					for _, l := range limiters {
						if l.Allow(t.Context(), "hot").OK {
							n++
						}
					}
					time.Sleep(2 * time.Millisecond)
				}
				admitted = append(admitted, n)
			}
		})
		return admitted, m
	}
	refuse := func(m *memory) { m.set(true, false) }
	hang := func(m *memory) { m.set(false, true) }
	for name, break_ := range map[string]func(*memory){"refuses": refuse, "hangs": hang} {
		t.Run("split keeps all processes together within the limit while the store "+name, func(t *testing.T) {
			admitted, m := run(t, ratelimit.FallbackSplit, break_, false)
			t.Logf("admitted %v in %d round trips", admitted, m.calls)
			total := 0
			for i, n := range admitted {
				if total += n; total > rate+rate*(i+1) {
					t.Errorf("%d admitted in %d s, want at most the burst and %d a second", total, i+1, rate)
				}
			}
			if admitted[7] < rate*9/10 {
				t.Errorf("%d admitted in the last second, want about %d", admitted[7], rate)
			}
			if m.calls > nodes*3+nodes*8 {
				t.Errorf("%d round trips to a dead store, want the breaker to keep most away", m.calls)
			}
		})
	}
	t.Run("deny refuses everything", func(t *testing.T) {
		if admitted, _ := run(t, ratelimit.FallbackDeny, refuse, false); fmt.Sprint(admitted) != "[0 0 0 0 0 0 0 0]" {
			t.Errorf("admitted %v, want none", admitted)
		}
	})
	t.Run("allow admits everything", func(t *testing.T) {
		if admitted, _ := run(t, ratelimit.FallbackAllow, refuse, false); admitted[7] != 2000 {
			t.Errorf("admitted %v, want 2000 a second", admitted)
		}
	})
	t.Run("the store is used again when it is back", func(t *testing.T) {
		admitted, m := run(t, ratelimit.FallbackDeny, refuse, true)
		if m.taken == 0 || admitted[7] < rate/2 || admitted[7] > 2*rate {
			t.Errorf("admitted %v, %d by the store, want its rate at the end", admitted, m.taken)
		}
	})
	t.Run("a refusal says when the store may be asked again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			m.set(true, false)
			b, err := breaker.New(breaker.Config{Consecutive: 1, OpenFor: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			l := newLeased(t, m, ratelimit.PerSecond(10), ratelimit.LeasedConfig{Name: "api", Fallback: ratelimit.FallbackDeny, Breaker: b})
			l.Allow(t.Context(), "a")
			if r := l.Allow(t.Context(), "a"); r.OK || r.RetryAfter < time.Minute || r.RetryAfter > 90*time.Second {
				t.Errorf("Allow = %+v, want RetryAfter 60s to 90s", r)
			}
			if s := l.Stats(); s.Name != "api" || s.Fallback != 2 || s.Store != breaker.Open {
				t.Errorf("Stats = %+v, want two fallbacks, the store's breaker open", s)
			}
		})
	})
	t.Run("more than a process's share is refused for now, not for ever", func(t *testing.T) {
		m := newMemory()
		m.set(true, false)
		l := newLeased(t, m, ratelimit.PerSecond(100), ratelimit.LeasedConfig{Replicas: 10})
		if r := l.AllowN(t.Context(), "a", 50); r.OK || r.RetryAfter <= 0 {
			t.Errorf("AllowN = %+v, want a finite RetryAfter", r)
		}
	})
	for want, f := range map[string]ratelimit.Fallback{"split": ratelimit.FallbackSplit, "deny": ratelimit.FallbackDeny, "allow": ratelimit.FallbackAllow, "ratelimit.Fallback(9)": 9} {
		if f.String() != want {
			t.Errorf("String = %q, want %q", f, want)
		}
	}
}

// TestLeasedRace is for the race detector; the store's count is exact.
func TestLeasedRace(t *testing.T) {
	t.Parallel()
	m := newMemory()
	var total sync.Map
	var wg sync.WaitGroup
	for range 2 {
		l := newLeased(t, m, ratelimit.Limit{Rate: 1, Per: time.Hour, Burst: 500}, ratelimit.LeasedConfig{Replicas: 2, Keys: 3, LeaseFor: time.Hour})
		for g := range 4 {
			wg.Go(func() {
				n := 0
				for range 300 {
					if l.Allow(t.Context(), fmt.Sprint(g%2)).OK {
						n++
					}
				}
				total.Store([2]any{l, g}, n)
			})
		}
	}
	wg.Wait()
	n := 0
	total.Range(func(_, v any) bool { n += v.(int); return true })
	if n > 1000 || n > m.taken {
		t.Errorf("%d admitted, %d taken, want at most 1000", n, m.taken)
	}
}

func BenchmarkLeased(b *testing.B) {
	l := newLeased(b, newMemory(), ratelimit.PerSecond(1e8), ratelimit.LeasedConfig{})
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		l.Allow(ctx, "hot")
	}
	s := l.Stats()
	b.ReportMetric(100*float64(s.Local)/float64(s.Local+s.Remote), "%local")
}
