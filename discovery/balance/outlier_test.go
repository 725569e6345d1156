// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/fault"
)

// cluster calls instances of which some fail, in virtual time.
type cluster struct {
	*balance.Balancer
	t      *testing.T
	failed map[string]bool
	events []string
}

// inCluster runs fn with a cluster of n instances called a, b, c, …
func inCluster(t *testing.T, name string, n int, cfg balance.Config, fn func(c *cluster)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := &cluster{t: t, failed: map[string]bool{}}
			cfg := cfg
			if cfg.Picker == nil {
				cfg.Picker = balance.RoundRobin{}
			}
			cfg.Hooks = balance.Hooks{
				Eject: func(e balance.Ejection) {
					c.events = append(c.events, fmt.Sprintf("eject %s %s", e.Instance.ID, e.Reason))
				},
				Return: func(e balance.Return) { c.events = append(c.events, "return "+e.Instance.ID) },
				Panic: func(e balance.Panic) {
					c.events = append(c.events, fmt.Sprintf("panic %v %d/%d", e.On, e.Suspects, e.Instances))
				},
			}
			ids := make([]string, n)
			for i := range ids {
				ids[i] = string(rune('a' + i))
			}
			c.Balancer = run(t, cfg, named(ids...)...)
			fn(c)
		})
	})
}

// calls makes n calls, each of a millisecond, and counts who took them.
func (c *cluster) calls(n int) map[string]int {
	c.t.Helper()
	got := map[string]int{}
	for range n {
		lease := pick(c.t, c.Balancer)
		id := lease.Instance().ID
		got[id]++
		time.Sleep(time.Millisecond)
		if c.failed[id] {
			lease.Done(fault.Failure)
		} else {
			lease.Done(fault.Success)
		}
		synctest.Wait() // Run has seen it
	}
	return got
}

func (c *cluster) fail(ids ...string) {
	for _, id := range ids {
		c.failed[id] = true
	}
}

func (c *cluster) heal() { clear(c.failed) }

func (c *cluster) ejected() []string {
	var ids []string
	for _, in := range c.View().Instances {
		if in.Ejected {
			ids = append(ids, in.ID)
		}
	}
	return ids
}

func (c *cluster) wantEjected(want ...string) {
	c.t.Helper()
	if got := c.ejected(); !slices.Equal(got, want) {
		c.t.Errorf("ejected = %v, want %v (events: %s)", got, want, strings.Join(c.events, ", "))
	}
}

func TestOutlier(t *testing.T) {
	t.Parallel()
	inCluster(t, "consecutive failures eject", 4, balance.Config{}, func(c *cluster) {
		c.fail("a")
		if got := c.calls(100); got["a"] != 5 {
			t.Errorf("calls = %v, want 5 for the failing instance", got)
		}
		c.wantEjected("a")
		if want := []string{"eject a consecutive failures"}; !slices.Equal(c.events, want) {
			t.Errorf("events = %v, want %v", c.events, want)
		}
	})
	inCluster(t, "a success in between begins the count anew", 4, balance.Config{Outlier: balance.Outlier{SuccessGap: -1}}, func(c *cluster) {
		for range 20 {
			c.fail("a")
			c.calls(16) // four each
			c.heal()
			c.calls(4)
		}
		c.wantEjected()
	})
	inCluster(t, "an ejected instance is back after its time, and one failure is then enough", 4, balance.Config{}, func(c *cluster) {
		c.fail("a")
		c.calls(40)
		c.wantEjected("a")
		time.Sleep(34 * time.Second) // 30 s and up to a tenth
		synctest.Wait()
		c.wantEjected()
		if got := c.calls(40); got["a"] != 1 {
			t.Errorf("calls = %v, want 1 for the instance that still fails", got)
		}
		c.wantEjected("a")
	})
	inCluster(t, "each time soon after is twice as long", 4, balance.Config{}, func(c *cluster) {
		c.fail("a")
		for _, want := range []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 5 * time.Minute, 5 * time.Minute} {
			for len(c.ejected()) == 0 {
				c.calls(1)
			}
			start := time.Now()
			for len(c.ejected()) > 0 {
				time.Sleep(100 * time.Millisecond)
			}
			if got := time.Since(start); got < want-time.Second || got > want*11/10+time.Second {
				t.Errorf("ejected for %v, want %v and up to a tenth", got, want)
			}
		}
	})
	inCluster(t, "an instance that is well again works on", 4, balance.Config{}, func(c *cluster) {
		c.fail("a")
		c.calls(40)
		c.heal()
		time.Sleep(34 * time.Second)
		if got := c.calls(400); got["a"] != 100 {
			t.Errorf("calls = %v, want its turns", got)
		}
		c.wantEjected()
	})
	inCluster(t, "results of calls from before the ejection do not count after it", 2, balance.Config{}, func(c *cluster) {
		late := []balance.Lease{pick(c.t, c.Balancer), pick(c.t, c.Balancer)}
		c.fail("a")
		c.calls(20)
		c.wantEjected("a")
		time.Sleep(34 * time.Second)
		for i := range late {
			late[i].Done(fault.Failure)
		}
		synctest.Wait()
		c.wantEjected()
	})
	inCluster(t, "neutral outcomes do not count", 2, balance.Config{}, func(c *cluster) {
		for range 100 {
			lease := pick(c.t, c.Balancer)
			lease.Done(fault.Neutral)
		}
		synctest.Wait()
		c.wantEjected()
	})
	inCluster(t, "a higher share of failures than that of the others ejects", 2, balance.Config{}, func(c *cluster) {
		for range 6000 { // 12 s
			lease := pick(c.t, c.Balancer)
			time.Sleep(2 * time.Millisecond)
			if lease.Instance().ID == "a" && time.Now().UnixMilli()%8 < 4 {
				lease.Done(fault.Failure)
			} else {
				lease.Done(fault.Success)
			}
		}
		synctest.Wait()
		c.wantEjected("a")
		if want := "eject a success rate"; c.events[0] != want {
			t.Errorf("events = %v, want %s", c.events, want)
		}
	})
	inCluster(t, "a share of failures that all have ejects nobody", 4, balance.Config{}, func(c *cluster) {
		for i := range 6000 {
			lease := pick(c.t, c.Balancer)
			time.Sleep(2 * time.Millisecond)
			lease.Done([]fault.Outcome{fault.Success, fault.Failure}[i/4%2])
		}
		synctest.Wait()
		c.wantEjected()
	})
	inCluster(t, "no more than the maximum share is ejected", 10, balance.Config{Outlier: balance.Outlier{MaxShare: 0.2}}, func(c *cluster) {
		c.fail("a", "b", "c", "d")
		c.calls(200)
		if got := c.ejected(); len(got) != 2 {
			t.Errorf("ejected = %v, want 2 of 10", got)
		}
	})
	inCluster(t, "the only instance is not ejected", 1, balance.Config{}, func(c *cluster) {
		c.fail("a")
		c.calls(100)
		c.wantEjected()
	})
	inCluster(t, "one of two is", 2, balance.Config{}, func(c *cluster) {
		c.fail("a")
		c.calls(100)
		c.wantEjected("a")
	})
	inCluster(t, "when everybody fails nobody is ejected", 10, balance.Config{}, func(c *cluster) {
		c.fail("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")
		c.calls(200)
		c.wantEjected()
		if !c.View().Panic {
			t.Error("View().Panic = false, want true")
		}
		if got := c.calls(100); len(got) != 10 {
			t.Errorf("calls = %v, want all instances to take part", got)
		}
		c.heal()
		c.calls(100)
		c.wantEjected()
		if c.View().Panic {
			t.Error("View().Panic = true after all are well, want false")
		}
		if got := c.calls(100); got["a"] != 10 {
			t.Errorf("calls = %v, want 10 each", got)
		}
	})
	inCluster(t, "the panic ends when enough are well, and the rest are ejected", 10, balance.Config{}, func(c *cluster) {
		c.fail("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")
		c.calls(200)
		c.heal()
		c.fail("a", "b")
		c.calls(200)
		c.wantEjected("a", "b")
		if got := c.events[len(c.events)-3:]; !slices.ContainsFunc(got, func(e string) bool { return strings.HasPrefix(e, "panic false") }) {
			t.Errorf("last events = %v, want the end of the panic among them", got)
		}
	})
	inCluster(t, "off is off", 4, balance.Config{Outlier: balance.Outlier{Off: true}}, func(c *cluster) {
		c.fail("a")
		c.calls(1000)
		c.wantEjected()
	})
}

func TestNewErrors(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]balance.Config{
		"Config.SlowStart is -1ns":          {SlowStart: -1},
		"Config.Wait is -1ns":               {Wait: -1},
		"Config.KeepOnEmpty is -1ns":        {KeepOnEmpty: -1},
		"Config.Probe.Every is -1ns":        {Probe: balance.Probe{Every: -1}},
		"Config.Subset is -1":               {Subset: -1},
		"Config.Client is empty":            {Subset: 3},
		"PeakEWMA.Decay is -1ns":            {Picker: balance.PeakEWMA{Decay: -1}},
		"ConsistentHash.Bound is 0.5":       {Picker: balance.ConsistentHash{Bound: 0.5}},
		"ConsistentHash.Points is -1":       {Picker: balance.ConsistentHash{Points: -1}},
		"Outlier.MinCalls is -1":            {Outlier: balance.Outlier{MinCalls: -1}},
		"Outlier.Interval is -1ns":          {Outlier: balance.Outlier{Interval: -1}},
		"Outlier.Eject is -1ns":             {Outlier: balance.Outlier{Eject: -1}},
		"Outlier.MaxEject is -1ns":          {Outlier: balance.Outlier{MaxEject: -1}},
		"Outlier.SuccessGap is 1, want les": {Outlier: balance.Outlier{SuccessGap: 1}},
		"Outlier.MaxShare is 1.1":           {Outlier: balance.Outlier{MaxShare: 1.1}},
		"Outlier.PanicShare is -1":          {Outlier: balance.Outlier{PanicShare: -1}},
	} {
		if _, err := balance.New(&silent{}, service, cfg); err == nil || !strings.HasPrefix(err.Error(), "balance: "+want) {
			t.Errorf("New = %v, want balance: %s…", err, want)
		}
	}
	if _, err := balance.New(nil, service, balance.Config{}); err == nil {
		t.Error("New without a resolver = nil, want an error")
	}
	if _, err := balance.New(&silent{}, "", balance.Config{}); err == nil {
		t.Error("New without a service = nil, want an error")
	}
}
