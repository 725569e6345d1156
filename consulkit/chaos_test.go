// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/consulkit"
	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
)

// The tests of this file stop and kill real processes under load. DOVETAIL_CHAOS=long lets them go on
// for minutes instead of seconds.
var patient = os.Getenv("DOVETAIL_CHAOS") == "long"

func either[T any](long, short T) T {
	if patient {
		return long
	}
	return short
}

// caller calls a service and counts what becomes of it.
type caller struct {
	client    *http.Client
	transport *balance.Transport

	calls, retries atomic.Int64
	flying, peak   atomic.Int64 // calls on their way, and the most there were at once
	mu             sync.Mutex
	failures       map[string]int // by method
	served         map[string]int // by instance
	last           error
}

func newCaller(t *testing.T, resolver discovery.Resolver) *caller {
	t.Helper()
	c := &caller{failures: map[string]int{}, served: map[string]int{}}
	c.transport = must[*balance.Transport](t)(balance.NewTransport(resolver, balance.TransportConfig{OnRetry: func(balance.Retry) { c.retries.Add(1) }}))
	c.client = &http.Client{Transport: c.transport, Timeout: 30 * time.Second}
	background(t, c.transport.Run)
	return c
}

// call makes one call: a GET, which may be repeated, and every other time a POST, which may not.
func (c *caller) call() {
	method := http.MethodGet
	if c.calls.Add(1)%2 == 0 {
		method = http.MethodPost
	}
	req, err := http.NewRequest(method, "http://order/echo", strings.NewReader("hello")) //nolint:noctx // the client has a timeout
	if err != nil {
		panic(err)
	}
	for now := c.flying.Add(1); ; {
		if peak := c.peak.Load(); now <= peak || c.peak.CompareAndSwap(peak, now) {
			break
		}
	}
	defer c.flying.Add(-1)
	resp, err := c.client.Do(req)
	id := ""
	if err == nil {
		var body []byte
		body, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		id = resp.Header.Get("Instance")
		if err == nil && string(body) != "hello" {
			err = fmt.Errorf("answer %q (%s)", body, resp.Status)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failures[method]++
		c.last = err
		return
	}
	c.served[id]++
}

// load calls at a rate, whether or not the answers keep up, until stop.
func (c *caller) load(t *testing.T, perSecond int) (stop func()) {
	return background(t, func(ctx context.Context) error {
		var calls sync.WaitGroup
		defer calls.Wait()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		start, made := time.Now(), 0
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			// What a slow machine could not do in time it does not do all at once.
			for due := int(time.Since(start).Seconds() * float64(perSecond)); made < due; made++ {
				if due-made > perSecond/10 {
					made = due - perSecond/10
				}
				calls.Go(c.call)
			}
		}
	})
}

// more waits until n more calls have ended.
func (c *caller) more(t *testing.T, n int) {
	t.Helper()
	before := c.ended()
	eventually(t, fmt.Sprintf("%d more calls", n), func() bool { return c.ended() >= before+n })
}

// ended is how many calls have ended.
func (c *caller) ended() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.failures {
		n += k
	}
	for _, k := range c.served {
		n += k
	}
	return n
}

// by is how many calls an instance has served.
func (c *caller) by(id string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.served[id]
}

// failed is how many calls of the method have failed.
func (c *caller) failed(method string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failures[method]
}

func (c *caller) wantNoFailure(t *testing.T, when string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for method, n := range c.failures {
		t.Errorf("%s: %d %s failed, want none; the last: %v", when, n, method, c.last)
	}
}

func resolver(t *testing.T, c *consulkit.Client) *consulkit.Resolver {
	t.Helper()
	return must[*consulkit.Resolver](t)(consulkit.NewResolver(c, consulkit.ResolverConfig{}))
}

// TestUnderLoad is what callers see of three instances, of which one is slow, one is drained and
// one is killed, and of a rolling restart of all.
func TestUnderLoad(t *testing.T) {
	t.Parallel()
	a := startAgent(t, false, "")
	instances := map[string]*process{}
	start := func(id string) { instances[id] = startProcess(t, "instance", a.addr(), "order", id) }
	for _, id := range []string{"order-0", "order-1", "order-2"} {
		start(id)
	}
	c := newCaller(t, resolver(t, a.client(t)))
	const perSecond = 500
	stop := c.load(t, perSecond)
	c.more(t, perSecond)

	// A rolling restart.
	before, at := c.ended(), time.Now()
	for range either(20, 1) {
		for id, p := range instances {
			p.drain(t)
			start(id)
			c.more(t, perSecond/5)
		}
	}
	c.wantNoFailure(t, "rolling restart")
	t.Logf("rolling restart of three: %d calls in %v, none failed", c.ended()-before, time.Since(at).Round(time.Second/10))

	// One becomes slow.
	slow := func(by string) {
		resp, err := http.Post("http://"+instances["order-0"].first+"/slow?by="+by, "", nil) //nolint:noctx // it is short
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	share := func(calls int) float64 {
		served, ended := c.by("order-0"), c.ended()
		c.more(t, calls)
		return float64(c.by("order-0")-served) / float64(c.ended()-ended)
	}
	healthy := share(either(5000, 1000))
	slow("100ms")
	share(perSecond / 2) // those who have to find out
	ill := share(either(5000, 1000))
	t.Logf("one of three 100 ms slow: its share of the calls fell from %.1f %% to %.1f %%", 100*healthy, 100*ill)
	if ill > healthy/2 {
		t.Errorf("the slow instance's share went from %.3f to %.3f, want less than half", healthy, ill)
	}
	slow("0s")
	c.wantNoFailure(t, "one slow")

	// One is drained.
	before = c.ended()
	instances["order-0"].drain(t)
	c.more(t, perSecond/2)
	c.wantNoFailure(t, "one drained")
	t.Logf("one drained: %d calls, none failed", c.ended()-before)

	// One is killed.
	before, retries := c.ended(), c.retries.Load()
	if err := instances["order-1"].Kill(); err != nil {
		t.Fatal(err)
	}
	c.more(t, 2*perSecond)
	stop()
	gets, posts := c.failed(http.MethodGet), c.failed(http.MethodPost)
	t.Logf("one of two killed: of %d calls failed %d GET and %d POST, %d were repeated elsewhere; at most %d calls were on their way at once",
		c.ended()-before, gets, posts, c.retries.Load()-retries, c.peak.Load())
	if gets > 0 {
		t.Errorf("%d GET failed after the kill, want none: each may be repeated elsewhere; the last: %v", gets, c.last)
	}
	// A POST that may have arrived is not repeated.
	if posts > int(c.peak.Load()) {
		t.Errorf("%d POST failed after the kill, want at most those on their way, %d; the last: %v", posts, c.peak.Load(), c.last)
	}
}

// counting counts the requests by the millisecond in which they began.
type counting struct {
	mu    sync.Mutex
	times []time.Time
}

func (c *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	c.times = append(c.times, time.Now())
	c.mu.Unlock()
	return http.DefaultTransport.RoundTrip(r)
}

// between returns how many requests began between the two moments.
func (c *counting) between(from, to time.Time) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, at := range c.times {
		if !at.Before(from) && at.Before(to) {
			n++
		}
	}
	return n
}

// busiest returns the highest number of requests within d from the given moment on.
func (c *counting) busiest(from time.Time, d time.Duration) (most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, at := range c.times {
		if at.Before(from) {
			continue
		}
		j := i
		for j < len(c.times) && c.times[j].Sub(at) < d {
			j++
		}
		most = max(most, j-i)
	}
	return most
}

// TestOutage kills the agent under load, and starts it again with its state and without.
func TestOutage(t *testing.T) {
	for name, keeps := range map[string]bool{"with its state": true, "without its state": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testOutage(t, keeps)
		})
	}
}

func testOutage(t *testing.T, keeps bool) {
	const watchers = 50
	a := startAgent(t, keeps, "")
	startProcess(t, "instance", a.addr(), "order", "order-0")
	startProcess(t, "instance", a.addr(), "order", "order-1")
	queries := new(counting)
	counted := must[*consulkit.Client](t)(consulkit.New(&api.Config{Address: a.addr(), HttpClient: &http.Client{Transport: queries}}))

	// A herd of processes that watch, and one that calls.
	var words [watchers]atomic.Pointer[discovery.Set]
	for i := range watchers {
		background(t, func(ctx context.Context) error {
			for set := range resolver(t, counted).Watch(ctx, "order") {
				words[i].Store(&set)
			}
			return nil
		})
	}
	all := func(n int, stale bool) func() bool {
		return func() bool {
			for i := range words {
				set := words[i].Load()
				if set == nil || len(set.Instances) != n || set.Stale != stale {
					return false
				}
			}
			return true
		}
	}
	eventually(t, "all watchers see two instances", all(2, false))
	c := newCaller(t, resolver(t, a.client(t)))
	stop := c.load(t, 100)
	c.more(t, 50)

	killed := time.Now()
	a.kill(t)
	eventually(t, "all watchers know of the outage, and keep the instances", all(2, true))
	// Instances go on being born. This one will be known when the agent is back.
	startProcess(t, "instance", a.addr(), "order", "order-2", "now")
	for time.Since(killed) < either(time.Minute, 3*time.Second) {
		c.more(t, 20)
	}
	during, outage := queries.between(killed, time.Now()), time.Since(killed)

	launched := time.Now()
	a.launch(t)
	eventually(t, "the agent answers", func() bool {
		_, _, err := a.client(t).API().Health().Service("order", "", false, nil)
		return err == nil
	})
	answers := time.Now()
	seen := func(n int) func() bool {
		return func() bool {
			entries, _, err := a.client(t).API().Health().Service("order", "", true, nil)
			return err == nil && len(entries) == n
		}
	}
	eventually(t, "all three are registered", seen(3))
	registered := time.Now()
	eventually(t, "all watchers see the new one", all(3, false))
	informed := time.Now()
	eventually(t, "calls reach the new one", func() bool { return c.by("order-2") > 0 })
	stop()
	c.wantNoFailure(t, "outage of the agent")

	perWatcher := float64(during) / watchers
	t.Logf("agent away for %v, back %v after its start: %d calls, none failed", outage.Round(time.Second/10), answers.Sub(launched).Round(time.Second/100), c.ended())
	t.Logf("  all registered %v after its first answer, all %d watchers told within %v",
		registered.Sub(answers).Round(time.Second/100), watchers, informed.Sub(answers).Round(time.Second/100))
	t.Logf("  %.1f queries per watcher during the outage; when it was back at most %d of the %d watchers' queries in 100 ms",
		perWatcher, queries.busiest(answers, 100*time.Millisecond), watchers)
	// 0.1, 0.2, 0.4, ... 5 s, each between a tenth and eleven tenths of it.
	if most := 8 + 2*outage.Seconds()/5*2; perWatcher > most {
		t.Errorf("%.1f queries per watcher in %v, want at most %.0f", perWatcher, outage, most)
	}
}

// TestTheLastInstance holds that an empty set is news like any other.
func TestTheLastInstance(t *testing.T) {
	t.Parallel()
	a := startAgent(t, false, "")
	p := startProcess(t, "instance", a.addr(), "order", "order-0")
	sets := make(chan discovery.Set, 100)
	background(t, func(ctx context.Context) error {
		for set, err := range resolver(t, a.client(t)).Watch(ctx, "order") {
			if err == nil {
				sets <- set
			}
		}
		return nil
	})
	if set := <-sets; len(set.Instances) != 1 {
		t.Fatalf("first set = %v, want one instance", set.Instances)
	}
	start := time.Now()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if set := <-sets; len(set.Instances) != 0 || set.Stale {
		t.Errorf("set after the end of the last one = %v, stale %v, want an empty one", set.Instances, set.Stale)
	}
	t.Logf("the empty set arrived %v after SIGTERM", time.Since(start).Round(time.Millisecond))
}

// TestStoppedLeader stops a leader for longer than its session lives. It wakes up believing that it
// leads, and writes.
func TestStoppedLeader(t *testing.T) {
	t.Parallel()
	a := startAgent(t, false, short)
	r := newResource()
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	candidates := map[string]*process{}
	for _, name := range []string{"a", "b"} {
		candidates[name] = startProcess(t, "candidate", a.addr(), "leader", name, server.URL)
	}
	for range either(20, 2) {
		var before resource
		eventually(t, "somebody leads and writes", func() bool {
			before = r.see()
			return before.accepted[before.holder] > 10
		})
		old := before.holder
		if err := candidates[old].Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		stopped := time.Now()
		var after resource
		eventually(t, "the other one leads and writes", func() bool {
			after = r.see()
			return after.holder != old && after.accepted[after.holder] > before.accepted[after.holder]+10
		})
		took := time.Since(stopped)
		if err := candidates[old].Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the old one's writes are refused, and it is deposed", func() bool {
			now := r.see()
			return now.refused[old] > before.refused[old]+10 && now.deposed[old] > before.deposed[old]
		})
		now := r.see()
		taken := now.accepted[old] - after.accepted[old]
		t.Logf("leader %s (token %d) stopped; %s leads under token %d after %v; of %s's writes after its waking %d were taken, %d refused",
			old, before.highest, after.holder, after.highest, took.Round(time.Second/10), old, taken, now.refused[old]-before.refused[old])
		if taken > 0 {
			t.Errorf("%d writes of the old leader were taken after another had begun, want none", taken)
		}
		if after.highest <= before.highest {
			t.Errorf("token %d after %d, want growth", after.highest, before.highest)
		}
		if now.holder != after.holder {
			t.Errorf("%s holds the newest token, want %s", now.holder, after.holder)
		}
	}
	for _, fault := range r.see().faults {
		t.Error(fault)
	}
}
