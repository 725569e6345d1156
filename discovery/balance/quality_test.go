// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/fault"
)

// world is ten instances, each with four workers and a queue, under 1500 calls per second that
// come whether or not the earlier ones have ended. A call takes 5 to 15 ms.
type world struct {
	name string
	// took is how long a call takes at an instance, and failed whether it fails.
	took   func(id string, healthy time.Duration) time.Duration
	failed func(id string) bool
}

type quality struct {
	errors   float64 // share
	p50, p99 time.Duration
	worst    float64 // share of the calls that the first instance, the bad one, got
	ejected  int     // at the end
}

func (w world) run(t *testing.T, cfg balance.Config) (q quality) {
	const calls, rate, bad = 15_000, 1500, "i0"
	synctest.Test(t, func(t *testing.T) {
		ids := make([]string, 10)
		workers := map[string]chan struct{}{}
		for i := range ids {
			ids[i] = fmt.Sprintf("i%d", i)
			workers[ids[i]] = make(chan struct{}, 4)
		}
		b := run(t, cfg, named(ids...)...)
		var mu sync.Mutex
		var latencies []time.Duration
		failures, worst := 0, 0
		var all sync.WaitGroup
		for range calls {
			all.Go(func() {
				start := time.Now()
				lease := pick(t, b)
				id := lease.Instance().ID
				workers[id] <- struct{}{}
				time.Sleep(w.took(id, 5*time.Millisecond+rand.N(10*time.Millisecond)))
				<-workers[id]
				outcome := fault.Success
				if w.failed(id) {
					outcome = fault.Failure
				}
				lease.Done(outcome)
				mu.Lock()
				defer mu.Unlock()
				latencies = append(latencies, time.Since(start))
				if outcome == fault.Failure {
					failures++
				}
				if id == bad {
					worst++
				}
			})
			time.Sleep(time.Second / rate)
		}
		for _, in := range b.View().Instances {
			if in.Ejected {
				q.ejected++
			}
		}
		all.Wait()
		slices.Sort(latencies)
		q.errors, q.worst = float64(failures)/calls, float64(worst)/calls
		q.p50, q.p99 = latencies[calls/2], latencies[calls*99/100]
	})
	return q
}

// TestQuality is the reason for this package: what callers feel when one of ten instances is ill.
func TestQuality(t *testing.T) {
	if testing.Short() {
		t.Skip("a simulation of some seconds; run it without -short")
	}
	const bad = "i0"
	as := func(_ string, d time.Duration) time.Duration { return d }
	never := func(string) bool { return false }
	healthy := world{"all well", as, never}
	slow := world{"one 10x slow", func(id string, d time.Duration) time.Duration {
		if id == bad {
			return 10 * d
		}
		return d
	}, never}
	fast := world{"one fails fast", func(id string, d time.Duration) time.Duration {
		if id == bad {
			return d / 50
		}
		return d
	}, func(id string) bool { return id == bad }}
	down := world{"all fail", as, func(string) bool { return true }}

	off := balance.Outlier{Off: true}
	configs := []struct {
		name string
		cfg  balance.Config
	}{
		{"default (PeakEWMA, ejection)", balance.Config{}},
		{"LeastRequests, ejection", balance.Config{Picker: balance.LeastRequests{}}},
		{"RoundRobin, ejection", balance.Config{Picker: balance.RoundRobin{}}},
		{"PeakEWMA alone", balance.Config{Outlier: off}},
		{"LeastRequests alone", balance.Config{Picker: balance.LeastRequests{}, Outlier: off}},
		{"RoundRobin alone", balance.Config{Picker: balance.RoundRobin{}, Outlier: off}},
	}
	results := map[string]quality{}
	for _, w := range []world{healthy, slow, fast, down} {
		for _, c := range configs {
			q := w.run(t, c.cfg)
			results[w.name+c.name] = q
			t.Logf("%-15s %-29s errors %6.2f %%  p50 %8v  p99 %8v  the ill one's share %5.2f %%  ejected %d",
				w.name, c.name, 100*q.errors, q.p50.Round(100*time.Microsecond), q.p99.Round(100*time.Microsecond), 100*q.worst, q.ejected)
		}
	}
	def := configs[0].name
	if got := results[fast.name+def].errors; got > 0.005 {
		t.Errorf("one of ten fails fast: %.2f %% errors, want at most 0.5 %%", 100*got)
	}
	if got, well := results[slow.name+def].p99, results[healthy.name+def].p99; got > well*3/2 {
		t.Errorf("one of ten is 10x slow: p99 %v, want within 1.5x of the healthy %v", got, well)
	}
	for _, c := range configs[:3] {
		if got := results[down.name+c.name].ejected; got != 0 {
			t.Errorf("%s, all fail: %d ejected, want 0", c.name, got)
		}
		if got := results[fast.name+c.name].errors; got > 0.005 {
			t.Errorf("%s, one of ten fails fast: %.2f %% errors, want at most 0.5 %%", c.name, 100*got)
		}
	}
}
