// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/discovery/discoverymem"
	"github.com/dovetail-go/dovetail/fault"
)

const service = "order"

// run returns a balancer over the instances that runs until the test's end.
func run(t testing.TB, cfg balance.Config, instances ...discovery.Instance) *balance.Balancer {
	t.Helper()
	b, _ := runStatic(t, cfg, instances...)
	return b
}

// runStatic also returns the resolver, by which the instances can be changed.
func runStatic(t testing.TB, cfg balance.Config, instances ...discovery.Instance) (*balance.Balancer, *discovery.Static) {
	t.Helper()
	static, err := discovery.NewStatic(map[string][]discovery.Instance{service: instances})
	if err != nil {
		t.Fatal(err)
	}
	return runWith(t, static, cfg), static
}

func runWith(t testing.TB, r discovery.Resolver, cfg balance.Config) *balance.Balancer {
	t.Helper()
	b, err := balance.New(r, service, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	return b
}

// silent is a resolver that never says anything.
type silent struct{ watches atomic.Int64 }

func (s *silent) Watch(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
	return func(func(discovery.Set, error) bool) {
		s.watches.Add(1)
		defer s.watches.Add(-1)
		<-ctx.Done()
	}
}

func wantRejection(t *testing.T, err, want error, text string) {
	t.Helper()
	var r *fault.Rejection
	if !errors.As(err, &r) || !errors.Is(err, want) || r.By != "balance" || r.Name != service || !strings.Contains(err.Error(), text) {
		t.Errorf("Pick = %v, want a rejection by balance with %v and %q", err, want, text)
	}
}

func TestPickErrors(t *testing.T) {
	t.Parallel()
	bubble := func(name string, fn func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, fn) })
	}
	bubble("no instances is known at once", func(t *testing.T) {
		b := run(t, balance.Config{})
		start := time.Now()
		_, err := b.Pick(t.Context())
		wantRejection(t, err, balance.ErrNoInstances, "")
		if got := time.Since(start); got != 0 {
			t.Errorf("after %v, want at once", got)
		}
	})
	bubble("a registry that is away is another thing", func(t *testing.T) {
		registry, err := discoverymem.New(discoverymem.Config{})
		if err != nil {
			t.Fatal(err)
		}
		registry.SetOutage(errors.New("connection refused"))
		_, err = runWith(t, registry, balance.Config{}).Pick(t.Context())
		wantRejection(t, err, balance.ErrNotReady, "connection refused")
		if errors.Is(err, balance.ErrNoInstances) {
			t.Errorf("Pick = %v, want no ErrNoInstances", err)
		}
	})
	bubble("a silent resolver is waited for as long as Wait", func(t *testing.T) {
		start := time.Now()
		_, err := runWith(t, &silent{}, balance.Config{Wait: 2 * time.Second}).Pick(t.Context())
		wantRejection(t, err, balance.ErrNotReady, "the resolver has not answered")
		if got := time.Since(start); got != 2*time.Second {
			t.Errorf("after %v, want 2s", got)
		}
	})
	bubble("or as long as the caller's context", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := runWith(t, &silent{}, balance.Config{}).Pick(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "has not answered") {
			t.Errorf("Pick = %v, want the end of the context, and what was waited for", err)
		}
	})
	bubble("it is said when Run is not running", func(t *testing.T) {
		b, err := balance.New(&silent{}, service, balance.Config{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Pick(t.Context())
		wantRejection(t, err, balance.ErrNotReady, "Run is not running")
	})
	bubble("and when it has ended before anything was known", func(t *testing.T) {
		b, err := balance.New(&silent{}, service, balance.Config{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.Run(ctx); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		_, err = b.Pick(t.Context())
		wantRejection(t, err, balance.ErrNotReady, "Run has ended")
		if err := b.Run(ctx); err == nil {
			t.Error("Run again = nil, want an error")
		}
	})
}

func TestMembership(t *testing.T) {
	t.Parallel()
	bubble := func(name string, fn func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, fn) })
	}
	bubble("what is known of an instance survives changes of the others", func(t *testing.T) {
		b, static := runStatic(t, balance.Config{}, named("a", "b")...)
		for range 20 {
			call(t, b, 10*time.Millisecond, fault.Success)
		}
		held := pick(t, b)
		before := b.View().Instances
		if err := static.Set(service, named("a", "b", "c")...); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		after := b.View().Instances
		for i := range before {
			if after[i].Latency != before[i].Latency || after[i].Calls != before[i].Calls || after[i].InFlight != before[i].InFlight {
				t.Errorf("%s = %+v, want %+v", after[i].ID, after[i], before[i])
			}
		}
		held.Done(fault.Success)
	})
	bubble("so does its ejection", func(t *testing.T) {
		b, static := runStatic(t, balance.Config{Picker: balance.RoundRobin{}}, named("a", "b")...)
		for range 20 {
			lease := pick(t, b)
			lease.Done(map[string]fault.Outcome{"a:80": fault.Failure}[lease.Addr()])
			synctest.Wait()
		}
		if err := static.Set(service, named("a", "b", "c")...); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := shares(t, b, 100); got["a"] != 0 {
			t.Errorf("calls = %v, want none for the ejected instance", got)
		}
	})
	bubble("a new address under an old ID is a new instance", func(t *testing.T) {
		b, static := runStatic(t, balance.Config{}, named("a")...)
		call(t, b, 0, fault.Success)
		moved := named("a")
		moved[0].Addr = "elsewhere:80"
		if err := static.Set(service, moved...); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := b.View().Instances[0]; got.Addr != "elsewhere:80" || got.Calls != 0 {
			t.Errorf("instance = %+v, want one that is not known yet", got)
		}
	})
	bubble("new weights apply", func(t *testing.T) {
		b, static := runStatic(t, balance.Config{Picker: balance.Weighted{}}, named("a", "b")...)
		pickDone(t, b)
		heavy := named("a", "b")
		heavy[0].Weight = 9
		if err := static.Set(service, heavy...); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := shares(t, b, 100); got["a"] < 88 || got["a"] > 92 {
			t.Errorf("calls = %v, want 90 for a", got)
		}
	})
	bubble("an empty set is believed at once", func(t *testing.T) {
		b, static := runStatic(t, balance.Config{}, named("a")...)
		pickDone(t, b)
		if err := static.Set(service); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_, err := b.Pick(t.Context())
		wantRejection(t, err, balance.ErrNoInstances, "")
	})
	bubble("or after KeepOnEmpty", func(t *testing.T) {
		b, static := runStatic(t, balance.Config{KeepOnEmpty: time.Minute}, named("a")...)
		pickDone(t, b)
		if err := static.Set(service); err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Second)
		synctest.Wait()
		pickDone(t, b)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		_, err := b.Pick(t.Context())
		wantRejection(t, err, balance.ErrNoInstances, "")
	})
	bubble("not if the instances are back before that", func(t *testing.T) {
		b, static := runStatic(t, balance.Config{KeepOnEmpty: time.Minute}, named("a")...)
		pickDone(t, b)
		if err := errors.Join(static.Set(service), static.Set(service, named("a")...)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		pickDone(t, b)
	})
	bubble("the last known instances are used while the registry is away", func(t *testing.T) {
		registry, err := discoverymem.New(discoverymem.Config{TTL: -1})
		if err != nil {
			t.Fatal(err)
		}
		in := named("a")[0]
		in.Service = service
		if _, err := registry.Register(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		b := runWith(t, registry, balance.Config{})
		pickDone(t, b)
		registry.SetOutage(errors.New("connection refused"))
		time.Sleep(time.Hour)
		synctest.Wait()
		pickDone(t, b)
		if v := b.View(); !v.Stale || v.Error != "connection refused" || time.Since(v.At) < time.Hour {
			t.Errorf("View = %+v, want it stale for an hour, with the error", v)
		}
		registry.SetOutage(nil)
		synctest.Wait()
		if v := b.View(); v.Stale || v.Error != "" {
			t.Errorf("View = %+v, want it fresh", v)
		}
	})
	bubble("picks go on after Run has ended", func(t *testing.T) {
		static, err := discovery.NewStatic(map[string][]discovery.Instance{service: named("a")})
		if err != nil {
			t.Fatal(err)
		}
		b, err := balance.New(static, service, balance.Config{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			synctest.Wait()
			cancel()
		}()
		if err := b.Run(ctx); err != nil {
			t.Fatal(err)
		}
		pickDone(t, b)
	})
	bubble("Run leaves no watch and no goroutine behind", func(t *testing.T) {
		r := &silent{}
		b, err := balance.New(r, service, balance.Config{Probe: balance.Probe{Check: func(context.Context, discovery.Instance) error { return nil }}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := b.Run(ctx); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		if got := r.watches.Load(); got != 0 {
			t.Errorf("%d watches after Run, want 0", got)
		}
		// synctest.Test fails if a goroutine of the bubble is left.
	})
}

func pickDone(t testing.TB, b *balance.Balancer) {
	t.Helper()
	lease := pick(t, b)
	lease.Done(fault.Success)
}

func TestPreferences(t *testing.T) {
	t.Parallel()
	zoned := func(zones string) []discovery.Instance {
		var all []discovery.Instance
		for i, z := range strings.Split(zones, "") {
			id := fmt.Sprintf("%s%d", z, i)
			all = append(all, discovery.Instance{ID: id, Addr: id + ":80", Zone: z})
		}
		return all
	}
	// fill makes calls, with the named instances failing, and returns the share of the calls by the
	// first letter of the ID.
	fill := func(t *testing.T, b *balance.Balancer, failing ...string) map[string]float64 {
		got := map[string]float64{}
		const warmUp, calls = 2000, 4000
		for i := range warmUp + calls {
			lease := pick(t, b)
			id := lease.Instance().ID
			if i >= warmUp {
				got[id[:1]] += 1.0 / calls
			}
			if slices.Contains(failing, id) {
				lease.Done(fault.Failure)
				synctest.Wait()
			} else {
				lease.Done(fault.Success)
			}
		}
		return got
	}
	near := func(t *testing.T, what string, got, want float64) {
		t.Helper()
		if got < want-0.05 || got > want+0.05 {
			t.Errorf("share of %s = %.3f, want about %.2f", what, got, want)
		}
	}
	for _, tt := range []struct {
		name    string
		failing []string
		a, b    float64
	}{
		{"instances of the own zone get all calls", nil, 1, 0},
		{"also when a few of them fall ill", []string{"a0"}, 1, 0},
		{"half of them can carry 70 %, the rest spills over", []string{"a0", "a1"}, 0.7, 0.3},
		{"below the panic threshold the own zone keeps what it can carry", []string{"a0", "a1", "a2"}, 0.35, 0.65},
		{"when the whole zone is ill all calls go elsewhere", []string{"a0", "a1", "a2", "a3"}, 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := run(t, balance.Config{Picker: balance.RoundRobin{}, Zone: "a"}, zoned("aaaabbbb")...)
				got := fill(t, b, tt.failing...)
				near(t, "the own zone", got["a"], tt.a)
				near(t, "the other zone", got["b"], tt.b)
			})
		})
	}
	t.Run("the only instance of the own zone is left too when it is ill", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := run(t, balance.Config{Picker: balance.RoundRobin{}, Zone: "a"}, zoned("abb")...)
			near(t, "the own zone", fill(t, b)["a"], 1)
			near(t, "the own zone", fill(t, b, "a0")["a"], 0)
		})
	})
	t.Run("without a zone of one's own zones do not matter", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			got := fill(t, run(t, balance.Config{Picker: balance.RoundRobin{}}, zoned("aabb")...))
			near(t, "zone a", got["a"], 0.5)
		})
	})
	t.Run("a zone without instances spills over altogether", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			got := fill(t, run(t, balance.Config{Picker: balance.RoundRobin{}, Zone: "c"}, zoned("aabb")...))
			near(t, "zone a", got["a"], 0.5)
		})
	})
	t.Run("a higher priority number is used when the lower is ill", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			all := named("main0", "main1", "main2", "backup")
			all[3].Priority = 1
			b := run(t, balance.Config{Picker: balance.RoundRobin{}}, all...)
			near(t, "the backup", fill(t, b)["b"], 0)
			near(t, "the backup", fill(t, b, "main0", "main1", "main2")["b"], 1)
		})
	})
	t.Run("a subset is the same for the same client, and differs between clients", func(t *testing.T) {
		subset := func(client string, ids ...string) []string {
			b := run(t, balance.Config{Picker: balance.RoundRobin{}, Subset: 3, Client: client}, named(ids...)...)
			var got []string
			for id := range shares(t, b, 100) {
				got = append(got, id)
			}
			slices.Sort(got)
			return got
		}
		ids := strings.Split("abcdefghijklmnopqrst", "")
		all, union := map[string]bool{}, map[string]bool{}
		for i := range 30 {
			client := fmt.Sprintf("client-%d", i)
			got := subset(client, ids...)
			if len(got) != 3 || !slices.Equal(got, subset(client, ids...)) {
				t.Errorf("subset of %s = %v, want the same 3 each time", client, got)
			}
			all[strings.Join(got, "")] = true
			for _, id := range got {
				union[id] = true
			}
			// One instance less changes one member at most.
			kept := 0
			for _, id := range subset(client, slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == got[0] })...) {
				if slices.Contains(got, id) {
					kept++
				}
			}
			if kept != 2 {
				t.Errorf("%d of the subset of %s stayed when one member went, want the other 2", kept, client)
			}
		}
		if len(all) < 25 || len(union) < 18 {
			t.Errorf("30 clients have %d different subsets of %d of 20 instances, want nearly all", len(all), len(union))
		}
	})
}

func TestSlowStart(t *testing.T) {
	t.Parallel()
	for _, picker := range []balance.Picker{balance.RoundRobin{}, balance.Weighted{}, balance.LeastRequests{}} {
		t.Run(fmt.Sprintf("%T: a new instance grows into its share", picker), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, static := runStatic(t, balance.Config{Picker: picker, SlowStart: time.Minute}, named("a", "b", "c")...)
				pickDone(t, b)
				if err := static.Set(service, named("a", "b", "c", "new")...); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				var held []balance.Lease
				last := 0.0
				for _, at := range []time.Duration{0, 30 * time.Second, 30 * time.Second, time.Minute} {
					time.Sleep(at)
					synctest.Wait()
					got := 0
					for range 400 {
						lease := pick(t, b)
						if lease.Addr() == "new:80" {
							got++
						}
						held = append(held, lease) // so that LeastRequests sees load
					}
					for i := range held {
						held[i].Done(fault.Success)
					}
					held = held[:0]
					share := float64(got) / 400
					if share <= last*0.9 {
						t.Errorf("share = %.3f after %.3f, want it to grow", share, last)
					}
					if at == 0 && share > 0.08 {
						t.Errorf("share at first = %.3f, want about 0.03", share)
					}
					last = share
				}
				if last < 0.2 {
					t.Errorf("share at last = %.3f, want about 0.25", last)
				}
			})
		})
	}
	t.Run("the first set is warm", func(t *testing.T) {
		b := run(t, balance.Config{SlowStart: time.Hour}, named("a", "b")...)
		pickDone(t, b)
		if got := b.View().Instances[0].Warm; got != 1 {
			t.Errorf("Warm = %v, want 1", got)
		}
	})
}

func TestProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var ill atomic.Bool
		check := func(ctx context.Context, in discovery.Instance) error {
			if in.ID == "a" && ill.Load() {
				<-ctx.Done() // hangs
				return ctx.Err()
			}
			return nil
		}
		b := run(t, balance.Config{Picker: balance.RoundRobin{}, Probe: balance.Probe{Check: check}}, named("a", "b", "c")...)
		if got := shares(t, b, 30); got["a"] != 10 {
			t.Errorf("calls = %v, want 10 each", got)
		}
		ill.Store(true)
		time.Sleep(15 * time.Second) // two probes of 5 s, and their timeouts
		synctest.Wait()
		if got := shares(t, b, 30); got["a"] != 0 {
			t.Errorf("calls = %v, want none for the instance that fails its probes", got)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if v := b.View().Instances[0]; !v.Ejected || v.Suspect != "probe" || v.For != 0 {
			t.Errorf("instance = %+v, want it out until a probe passes", v)
		}
		ill.Store(false)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if got := shares(t, b, 30); got["a"] != 10 {
			t.Errorf("calls = %v, want 10 each again", got)
		}
	})
}

func TestHooksMayCallBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b *balance.Balancer
		var changes []string
		static, err := discovery.NewStatic(map[string][]discovery.Instance{service: named("a")})
		if err != nil {
			t.Fatal(err)
		}
		b, err = balance.New(static, service, balance.Config{Hooks: balance.Hooks{Change: func(c balance.Change) {
			changes = append(changes, fmt.Sprint(len(c.Set.Instances), c.Err, len(b.View().Instances)))
			pickDone(t, b)
		}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = b.Run(ctx) }()
		synctest.Wait()
		if err := static.Set(service, named("a", "b")...); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if want := []string{"1 <nil> 1", "2 <nil> 2"}; !slices.Equal(changes, want) {
			t.Errorf("changes = %v, want %v", changes, want)
		}
	})
}

func TestLeaseDone(t *testing.T) {
	t.Parallel()
	b := run(t, balance.Config{}, named("a")...)
	lease := pick(t, b)
	lease.Answered(fault.Success)
	lease.Answered(fault.Success)
	lease.Done(fault.Success)
	lease.Done(fault.Success)
	lease.Answered(fault.Success)
	if got := b.View().Instances[0]; got.InFlight != 0 || got.Waiting != 0 || got.Calls != 1 {
		t.Errorf("instance = %+v, want one call, none in flight", got)
	}
}

func TestHintSkip(t *testing.T) {
	instances := make([]discovery.Instance, 20)
	for i := range instances {
		instances[i] = discovery.Instance{Addr: fmt.Sprintf("10.0.0.%d:80", i), Weight: 1 + i%3}
	}
	for _, picker := range []balance.Picker{
		balance.PeakEWMA{}, balance.LeastRequests{}, balance.RoundRobin{}, balance.Weighted{}, balance.ConsistentHash{},
	} {
		t.Run(fmt.Sprintf("%T", picker), func(t *testing.T) {
			b := run(t, balance.Config{Picker: picker}, instances...)
			for n := range 200 {
				only := instances[n%len(instances)].Addr
				lease, err := b.PickFor(t.Context(), balance.Hint{Key: fmt.Sprint(n), Skip: func(addr string) bool { return addr != only }})
				if err != nil || lease.Addr() != only {
					t.Fatalf("PickFor = %v, %v; want %s", lease.Addr(), err, only)
				}
				lease.Done(fault.Success)
			}
			lease, err := b.PickFor(t.Context(), balance.Hint{Skip: func(string) bool { return true }})
			if err != nil || lease.Addr() == "" {
				t.Errorf("PickFor with all to be skipped = %v, want some instance", err)
			}
		})
	}
}

func TestPickDoesNotAllocate(t *testing.T) {
	for _, p := range pickers {
		b := run(t, balance.Config{Picker: p.picker}, many(100)...)
		pickDone(t, b)
		if got := testing.AllocsPerRun(1000, func() {
			lease, err := b.PickFor(context.Background(), balance.Hint{Key: "k"})
			if err != nil {
				t.Fatal(err)
			}
			lease.Done(fault.Success)
		}); got != 0 {
			t.Errorf("%s: %v allocations per call, want 0", p.name, got)
		}
	}
}

func TestHTTPCheck(t *testing.T) {
	t.Parallel()
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			t.Errorf("path = %s, want /readyz", r.URL.Path)
		}
		w.WriteHeader(status)
	}))
	check := balance.HTTPCheck(nil, "/readyz")
	in := discovery.Instance{Addr: server.Listener.Addr().String()}
	if err := check(t.Context(), in); err != nil {
		t.Errorf("check = %v, want nil", err)
	}
	status = http.StatusServiceUnavailable
	if err := check(t.Context(), in); err == nil || !strings.Contains(err.Error(), "status 503") {
		t.Errorf("check = %v, want the status", err)
	}
	server.Close()
	if err := check(t.Context(), in); err == nil {
		t.Error("check of a server that is down = nil, want an error")
	}
}
