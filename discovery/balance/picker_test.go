// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/fault"
)

// named returns one instance per ID.
func named(ids ...string) []discovery.Instance {
	all := make([]discovery.Instance, len(ids))
	for i, id := range ids {
		all[i] = discovery.Instance{ID: id, Addr: id + ":80"}
	}
	return all
}

func pick(t testing.TB, b *balance.Balancer) balance.Lease {
	t.Helper()
	return pickKey(t, b, "")
}

func pickKey(t testing.TB, b *balance.Balancer, key string) balance.Lease {
	t.Helper()
	lease, err := b.PickFor(t.Context(), balance.Hint{Key: key})
	if err != nil {
		t.Fatalf("Pick = %v", err)
	}
	return lease
}

// call makes one call of the given duration, and returns the ID of the instance that took it.
func call(t testing.TB, b *balance.Balancer, took time.Duration, o fault.Outcome) string {
	t.Helper()
	lease := pick(t, b)
	time.Sleep(took)
	id := lease.Instance().ID
	lease.Done(o)
	return id
}

// shares makes n calls, one after the other, and counts who took them.
func shares(t testing.TB, b *balance.Balancer, n int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range n {
		got[call(t, b, 0, fault.Success)]++
	}
	return got
}

func TestRoundRobin(t *testing.T) {
	t.Parallel()
	t.Run("every instance takes its turn", func(t *testing.T) {
		got := shares(t, run(t, balance.Config{Picker: balance.RoundRobin{}}, named("a", "b", "c")...), 300)
		for _, id := range []string{"a", "b", "c"} {
			if got[id] != 100 {
				t.Errorf("calls = %v, want 100 each", got)
			}
		}
	})
	t.Run("balancers do not all start with the same instance", func(t *testing.T) {
		first := map[string]bool{}
		for range 100 {
			lease := pick(t, run(t, balance.Config{Picker: balance.RoundRobin{}}, named("a", "b", "c")...))
			first[lease.Addr()] = true
			lease.Done(fault.Success)
		}
		if len(first) != 3 {
			t.Errorf("first picks = %v, want all three over 100 balancers", first)
		}
	})
}

func TestWeighted(t *testing.T) {
	t.Parallel()
	weights := func(w ...int) []discovery.Instance {
		all := make([]discovery.Instance, len(w))
		for i := range w {
			all[i] = discovery.Instance{ID: fmt.Sprint(i), Addr: fmt.Sprintf("h%d:80", i), Weight: w[i]}
		}
		return all
	}
	for _, tt := range [][]int{{1}, {1, 1}, {1, 2, 3}, {1, 99}, {5, 1, 1, 1, 1, 1}, {1000, 1, 1}} {
		t.Run(fmt.Sprintf("shares follow the weights %v within a few calls", tt), func(t *testing.T) {
			sum := 0
			for _, w := range tt {
				sum += w
			}
			const calls = 500
			got := shares(t, run(t, balance.Config{Picker: balance.Weighted{}}, weights(tt...)...), calls)
			for i, w := range tt {
				want := float64(calls*w) / float64(sum)
				// Random picks would be off by about √want, 13 of 250.
				if diff := math.Abs(float64(got[fmt.Sprint(i)]) - want); diff > 6 {
					t.Errorf("instance %d of weight %d: %d calls, want %.1f", i, w, got[fmt.Sprint(i)], want)
				}
			}
		})
	}
}

func TestLeastRequests(t *testing.T) {
	t.Parallel()
	for _, picker := range []balance.Picker{balance.LeastRequests{}, balance.LeastRequests{All: true}} {
		t.Run(fmt.Sprintf("%+v: calls in flight are spread evenly", picker), func(t *testing.T) {
			b := run(t, balance.Config{Picker: picker}, named("a", "b")...)
			for range 100 {
				pick(t, b)
			}
			for _, in := range b.View().Instances {
				if in.InFlight != 50 {
					t.Errorf("%s: %d in flight, want 50", in.ID, in.InFlight)
				}
			}
		})
		t.Run(fmt.Sprintf("%+v: by weight", picker), func(t *testing.T) {
			heavy := discovery.Instance{ID: "heavy", Addr: "heavy:80", Weight: 3}
			b := run(t, balance.Config{Picker: picker}, append(named("light"), heavy)...)
			for range 100 {
				pick(t, b)
			}
			if got := b.View().Instances[0].InFlight; got < 73 || got > 77 {
				t.Errorf("heavy: %d of 100 in flight, want about 75", got)
			}
		})
	}
}

func TestPeakEWMA(t *testing.T) {
	t.Parallel()
	bubble := func(name string, fn func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, fn) })
	}
	// teach makes calls until every instance has a latency: 10 ms, slow 100 ms.
	teach := func(t *testing.T, b *balance.Balancer) {
		t.Helper()
		for range 50 {
			lease := pick(t, b)
			took := 10 * time.Millisecond
			if lease.Addr() == "slow:80" {
				took = 100 * time.Millisecond
			}
			time.Sleep(took)
			lease.Done(fault.Success)
		}
	}
	bubble("equal instances share a quiet client's calls", func(t *testing.T) {
		b := run(t, balance.Config{}, named("a", "b")...)
		got := map[string]int{}
		for i := range 400 {
			got[call(t, b, time.Millisecond+time.Duration(i%7)*50*time.Microsecond, fault.Success)]++
		}
		if got["a"] < 150 || got["b"] < 150 {
			t.Errorf("calls = %v, want about as many each", got)
		}
	})
	bubble("a slow instance is avoided", func(t *testing.T) {
		b := run(t, balance.Config{}, named("a", "b", "slow")...)
		teach(t, b)
		if got := shares(t, b, 1000); got["slow"] > 10 {
			t.Errorf("calls = %v, want next to none for the slow instance", got)
		}
	})
	bubble("it gets another chance after a while", func(t *testing.T) {
		b := run(t, balance.Config{}, named("a", "slow")...)
		teach(t, b)
		for range 600 {
			if call(t, b, 100*time.Millisecond, fault.Success) == "slow" {
				return // within a minute
			}
		}
		t.Error("the slow instance was never tried again")
	})
	bubble("an instance that does not answer is avoided by the age of its calls, however fast it was", func(t *testing.T) {
		b := run(t, balance.Config{}, named("a", "hangs")...)
		hanging := 0
		for i := range 1000 {
			lease := pick(t, b)
			switch {
			case lease.Addr() == "a:80":
				time.Sleep(100 * time.Millisecond)
			case i < 200:
				time.Sleep(time.Millisecond)
			default:
				hanging++ // and never done
				time.Sleep(10 * time.Millisecond)
				continue
			}
			lease.Done(fault.Success)
		}
		if hanging == 0 || hanging > 20 {
			t.Errorf("%d of 1000 calls went to the hanging instance, want a few", hanging)
		}
	})
	bubble("failing fast is not taken for speed", func(t *testing.T) {
		b := run(t, balance.Config{Outlier: balance.Outlier{Off: true}}, named("a", "b", "fails")...)
		teach(t, b)
		failed := 0
		for range 1000 {
			lease := pick(t, b)
			if lease.Addr() == "fails:80" {
				failed++
				lease.Done(fault.Failure)
				continue
			}
			time.Sleep(10 * time.Millisecond)
			lease.Done(fault.Success)
		}
		if failed > 50 {
			t.Errorf("%d of 1000 calls went to the failing instance, without ejection; want at most 50", failed)
		}
	})
	bubble("nor does it lower the latency", func(t *testing.T) {
		b := run(t, balance.Config{Outlier: balance.Outlier{Off: true}}, named("a")...)
		teach(t, b)
		before := b.View().Instances[0].Latency
		for range 1000 {
			call(t, b, time.Microsecond, fault.Failure)
		}
		if got := b.View().Instances[0].Latency; got < before {
			t.Errorf("latency = %v after fast failures, want %v as before", got, before)
		}
	})
	bubble("a newcomer is taken for an average instance", func(t *testing.T) {
		b, static := runStatic(t, balance.Config{}, named("a", "b")...)
		teach(t, b)
		if err := static.Set(service, named("a", "b", "new")...); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		got := map[string]int{}
		for range 30 { // all at once: nothing is learnt meanwhile
			lease := pick(t, b)
			got[lease.Addr()]++
		}
		if got["new:80"] > 15 {
			t.Errorf("calls = %v, want no stampede to the newcomer", got)
		}
	})
	bubble("the caller's giving up shows how slow an instance is at least", func(t *testing.T) {
		b := run(t, balance.Config{}, named("a", "b")...)
		lease := pick(t, b)
		gaveUp := lease.Instance().ID
		time.Sleep(time.Second)
		lease.Done(fault.Neutral)
		if got := shares(t, b, 100); got[gaveUp] > 5 {
			t.Errorf("calls = %v, want few for %s", got, gaveUp)
		}
	})
	bubble("a stream counts as in flight, and not as slow", func(t *testing.T) {
		b := run(t, balance.Config{}, named("a", "b")...)
		stream := pick(t, b)
		time.Sleep(10 * time.Millisecond)
		stream.Answered(fault.Success)
		time.Sleep(time.Hour)
		for _, in := range b.View().Instances {
			if in.Addr != stream.Addr() {
				continue
			}
			if in.InFlight != 1 || in.Waiting != 0 || in.Latency > 10*time.Millisecond {
				t.Errorf("instance with a stream = %+v, want 1 in flight, 0 waiting and at most 10ms", in)
			}
		}
		stream.Done(fault.Success)
	})
}

func TestConsistentHash(t *testing.T) {
	t.Parallel()
	const keys = 2000
	where := func(t *testing.T, b *balance.Balancer) map[string]string {
		all := map[string]string{}
		for i := range keys {
			key := fmt.Sprintf("customer-%d", i)
			lease := pickKey(t, b, key)
			all[key] = lease.Instance().ID
			lease.Done(fault.Success)
		}
		return all
	}
	ids := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}
	b, static := runStatic(t, balance.Config{Picker: balance.ConsistentHash{}}, named(ids...)...)
	before := where(t, b)
	t.Run("the same key leads to the same instance in every process", func(t *testing.T) {
		other := run(t, balance.Config{Picker: balance.ConsistentHash{}}, named(ids...)...)
		for key, id := range where(t, other) {
			if before[key] != id {
				t.Fatalf("%s leads to %s, want %s", key, id, before[key])
			}
		}
	})
	t.Run("keys are spread", func(t *testing.T) {
		got := map[string]int{}
		for _, id := range before {
			got[id]++
		}
		for _, id := range ids {
			if got[id] < keys/10*6/10 || got[id] > keys/10*15/10 {
				t.Errorf("%s has %d of %d keys, want about a tenth: %v", id, got[id], keys, got)
			}
		}
	})
	t.Run("when an instance goes only its keys move, and they come back with it", func(t *testing.T) {
		if err := static.Set(service, named(ids[1:]...)...); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return len(b.View().Instances) == 9 })
		for key, id := range where(t, b) {
			if before[key] != id && before[key] != "a" {
				t.Fatalf("%s moved from %s to %s", key, before[key], id)
			}
			if id == "a" {
				t.Fatalf("%s leads to a, which has gone", key)
			}
		}
		if err := static.Set(service, named(ids...)...); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return len(b.View().Instances) == 10 })
		for key, id := range where(t, b) {
			if before[key] != id {
				t.Fatalf("%s leads to %s, want %s again", key, id, before[key])
			}
		}
	})
	t.Run("no instance is loaded above the bound", func(t *testing.T) {
		b := run(t, balance.Config{Picker: balance.ConsistentHash{Bound: 1.5}}, named(ids...)...)
		for range 100 {
			pickKey(t, b, "hot")
		}
		for _, in := range b.View().Instances {
			if in.InFlight > 16 { // ceil(1.5 × 101 / 10)
				t.Errorf("%s has %d calls in flight of 100, want at most 16", in.ID, in.InFlight)
			}
		}
	})
	t.Run("without a bound a hot key stays where it is", func(t *testing.T) {
		b := run(t, balance.Config{Picker: balance.ConsistentHash{Bound: -1}}, named(ids...)...)
		hot := pickKey(t, b, "hot")
		for range 99 {
			if lease := pickKey(t, b, "hot"); lease.Addr() != hot.Addr() {
				t.Fatalf("hot leads to %s, then to %s", hot.Addr(), lease.Addr())
			}
		}
	})
	t.Run("calls without a key go anywhere", func(t *testing.T) {
		if got := shares(t, run(t, balance.Config{Picker: balance.ConsistentHash{}}, named(ids...)...), 1000); len(got) != 10 {
			t.Errorf("calls = %v, want some for each", got)
		}
	})
}

// waitFor waits until the condition holds.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("the condition did not come true within 10s")
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// canary sends every nth call to the instances with a tag, and balances either group by round
// robin.
type canary struct {
	tag   string
	every uint64
}

func (p canary) Build(candidates []balance.Candidate) func(balance.Hint) int {
	var groups [2][]int // indexes into candidates: the rest, the tagged
	for i := range candidates {
		if slices.Contains(candidates[i].Instance().Tags, p.tag) {
			groups[1] = append(groups[1], i)
		} else {
			groups[0] = append(groups[0], i)
		}
	}
	var next atomic.Uint64
	return func(balance.Hint) int {
		n := next.Add(1)
		group := groups[0]
		if len(group) == 0 || len(groups[1]) > 0 && n%p.every == 0 {
			group = groups[1]
		}
		return group[n%uint64(len(group))]
	}
}

// A way to choose of one's own: every tenth call for the canaries.
func ExamplePicker() {
	resolver, err := discovery.NewStatic(map[string][]discovery.Instance{"order": {
		{ID: "order-1", Addr: "10.0.0.1:80"}, {ID: "order-2", Addr: "10.0.0.2:80"}, {ID: "order-3", Addr: "10.0.0.3:80", Tags: []string{"canary"}},
	}})
	if err != nil {
		panic(err)
	}
	b, err := balance.New(resolver, "order", balance.Config{Picker: canary{tag: "canary", every: 10}})
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() { _ = b.Run(ctx) }()

	calls := map[string]int{}
	for range 100 {
		lease, err := b.Pick(ctx)
		if err != nil {
			panic(err)
		}
		calls[lease.Instance().ID]++
		lease.Done(fault.Success)
	}
	fmt.Println(calls["order-3"])
	// Output: 10
}

func TestCandidate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		seen := make(chan string, 1)
		b := run(t, balance.Config{Picker: looks(seen)}, discovery.Instance{ID: "a", Addr: "a:80", Weight: 3})
		for range 2 { // the first call pays for the connection
			call(t, b, 20*time.Millisecond, fault.Success)
			<-seen
		}
		held := pick(t, b)
		if got, want := <-seen, "a weight 3 warm 1 in flight 0 latency 20ms"; got != want {
			t.Errorf("candidate = %s, want %s", got, want)
		}
		held.Done(fault.Success)
	})
}

// looks is a picker that tells what it sees.
type looks chan<- string

func (l looks) Build(c []balance.Candidate) func(balance.Hint) int {
	return func(h balance.Hint) int {
		l <- fmt.Sprintf("%s weight %v warm %v in flight %d latency %v", c[0].Instance().ID, c[0].Weight, c[0].Warm, c[0].InFlight(), c[0].Latency(h))
		return 0
	}
}
