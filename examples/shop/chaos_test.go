// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/procfs"

	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
	"github.com/dovetail-go/dovetail/examples/shop/internal/check"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/load"
)

// forLong is how long a fault lasts that a test ends itself.
const forLong = 300

// harm begins a fault that lasts until end is called.
func (a *api) harm(kind, service string, amount int) (end func()) {
	a.t.Helper()
	var fault chaos.Fault
	a.want(http.StatusCreated, a.send("POST", "/ops/api/chaos", nil, chaos.Request{Kind: kind, Service: service, Amount: amount, Seconds: forLong}), &fault)
	return func() {
		a.t.Helper()
		a.want(http.StatusNoContent, a.send("DELETE", "/ops/api/chaos/"+fault.ID, nil, nil), nil)
	}
}

func (a *api) faults() []chaos.Fault {
	a.t.Helper()
	var list struct{ Faults []chaos.Fault }
	a.want(http.StatusOK, a.send("GET", "/ops/api/chaos", nil, nil), &list)
	return list.Faults
}

// hangs reports whether a request gets no answer for a while.
func (a *api) hangs(path string) bool {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), 500*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url+path, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		_ = resp.Body.Close()
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// TestFaults brings about each kind of fault in the embedded shop, sees what it does while an order is placed, and
// that the order ends as it should when the fault does. In the end the books balance.
func TestFaults(t *testing.T) {
	data := t.TempDir()
	shop := openShopWith(t, embedded.Config{Data: data, Packing: 200 * time.Millisecond}).stocked()
	operator := shop.as("operator@shop.example", "dovetail-operator")
	buyer := shop.newcomer()
	var ordered []string
	buy := func(t *testing.T) (id string) {
		t.Helper()
		id = buyer.seenBy(t).place("pm_visa", lineItem{"product_id": "p-060", "quantity": 1})
		ordered = append(ordered, id)
		return id
	}
	status := func(t *testing.T, id string) string {
		t.Helper()
		var page orderPage
		a := buyer.seenBy(t)
		a.want(http.StatusOK, a.send("GET", "/api/orders/"+id, nil, nil), &page)
		return page.Status
	}

	t.Run("latency: every request waits", func(t *testing.T) {
		end := operator.seenBy(t).harm(chaos.Latency, "notification", 700)
		start := time.Now()
		a := buyer.seenBy(t)
		a.want(http.StatusOK, a.send("GET", "/api/me/mails", nil, nil), nil)
		if took := time.Since(start); took < 700*time.Millisecond {
			t.Errorf("answered after %v, want 700ms or more", took)
		}
		end()
	})
	t.Run("errors: requests fail, and those that change something may have been served", func(t *testing.T) {
		end := operator.seenBy(t).harm(chaos.Errors, "inventory", 100)
		id := buy(t)
		a := buyer.seenBy(t)
		eventually(t, func() error {
			if got := a.send("GET", "/api/products/p-060/stock", nil, nil); got.status != http.StatusServiceUnavailable {
				return fmt.Errorf("stock = %d, want 503", got.status)
			}
			return nil
		})
		if s := status(t, id); s != "pending" {
			t.Errorf("order is %s, want it pending", s)
		}
		eventually(t, func() error { // the customer hears that it is tried again, and nothing of our addresses and guards
			var history struct {
				Items []struct{ What, Detail string }
			}
			a.want(http.StatusOK, a.send("GET", "/api/orders/"+id+"/events", nil, nil), &history)
			for _, m := range history.Items {
				if m.What == "reserve-stock failed" {
					if m.Detail != "" {
						t.Errorf("the customer is told %q", m.Detail)
					}
					return nil
				}
			}
			return fmt.Errorf("the history is %v, want an attempt that failed", history.Items)
		})
		end()
		a.ends(id, "confirmed")
	})
	t.Run("pause: requests hang and nothing is done", func(t *testing.T) {
		operator := operator.seenBy(t)
		end := operator.harm(chaos.Pause, "notification", 0)
		if !buyer.seenBy(t).hangs("/api/me/mails") {
			t.Error("a paused service answers, want it to hang")
		}
		end()
		end = operator.harm(chaos.Pause, "inventory", 0)
		id := buy(t)
		eventually(t, func() error {
			if !serviceNotReady(operator, "inventory") {
				return errors.New("inventory is ready, want it to stand still")
			}
			return nil
		})
		if s := status(t, id); s != "pending" {
			t.Errorf("order is %s, want it pending", s)
		}
		end()
		buyer.seenBy(t).ends(id, "confirmed")
	})
	t.Run("kill: the service is gone, and comes back on its database", func(t *testing.T) {
		operator := operator.seenBy(t)
		for _, service := range []string{"payment", "order", "notification", "reporting", "customer", "provider", "catalog"} {
			id := buy(t)
			end := operator.harm(chaos.Kill, service, 0)
			eventually(t, func() error {
				if !serviceNotReady(operator, service) {
					return fmt.Errorf("%s is ready, want it gone", service)
				}
				return nil
			})
			end()
			buyer.seenBy(t).ends(id, "confirmed")
			eventually(t, func() error {
				if serviceNotReady(operator, service) {
					return fmt.Errorf("%s is not ready, want it back", service)
				}
				return nil
			})
		}
	})
	t.Run("kill: the gateway keeps its address", func(t *testing.T) {
		operator, a := operator.seenBy(t), buyer.seenBy(t)
		end := operator.harm(chaos.ProviderDown, "", 0)
		id := buy(t)
		stream := a.watch(id) // goes on as long as the order is pending
		operator.want(http.StatusCreated, operator.send("POST", "/ops/api/chaos", nil, chaos.Request{Kind: chaos.Kill, Service: "gateway", Seconds: 0.5}), nil)
		if _, err := io.Copy(io.Discard, stream); err == nil {
			t.Error("the stream ended as if all were well, want its connection cut")
		}
		http.DefaultClient.CloseIdleConnections() // those that the dead one did not close
		eventually(t, func() error {
			resp, err := http.Get(operator.url + "/readyz")
			if err != nil {
				return err
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("the gateway says %s", resp.Status)
			}
			return nil
		})
		end()
		a.ends(id, "confirmed")
	})
	t.Run("broker-cut: events wait, and arrive when it is over", func(t *testing.T) {
		operator := operator.seenBy(t)
		for _, service := range []string{"order", "shipping", "notification"} { // who tells, and who hears
			end := operator.harm(chaos.BrokerCut, service, 0)
			id := buy(t)
			buyer.seenBy(t).ends(id, "confirmed")
			if s := status(t, id); s != "confirmed" && service == "order" {
				t.Errorf("order is %s while nobody can hear of it, want it confirmed", s)
			}
			end()
			buyer.seenBy(t).ends(id, "dispatched")
		}
	})
	t.Run("duplicate and reorder: nobody notices", func(t *testing.T) {
		operator := operator.seenBy(t)
		var ends []func()
		for _, service := range []string{"order", "shipping", "notification", "reporting", "catalog", "inventory"} {
			ends = append(ends, operator.harm(chaos.Duplicate, service, 100), operator.harm(chaos.Reorder, service, 50))
		}
		if got := operator.faults(); len(got) != len(ends) {
			t.Errorf("%d faults in force, want %d at once", len(got), len(ends))
		}
		var ids []string
		for range 5 {
			ids = append(ids, buy(t))
		}
		for _, id := range ids {
			buyer.seenBy(t).ends(id, "dispatched")
		}
		for _, end := range ends {
			end()
		}
	})
	t.Run("provider-slow: the payment takes longer", func(t *testing.T) {
		end := operator.seenBy(t).harm(chaos.ProviderSlow, "", 1000)
		start := time.Now()
		buyer.seenBy(t).ends(buy(t), "confirmed")
		if took := time.Since(start); took < time.Second {
			t.Errorf("confirmed after %v, want a second or more", took)
		}
		end()
	})
	t.Run("a fault ends by itself", func(t *testing.T) {
		operator := operator.seenBy(t)
		operator.want(http.StatusCreated, operator.send("POST", "/ops/api/chaos", nil, chaos.Request{Kind: chaos.Pause, Service: "shipping", Seconds: 0.3}), nil)
		eventually(t, func() error {
			if got := operator.faults(); len(got) != 0 {
				return fmt.Errorf("%v are in force, want none", got)
			}
			return nil
		})
		buyer.seenBy(t).ends(buy(t), "dispatched")
	})
	t.Run("all end at once", func(t *testing.T) {
		operator := operator.seenBy(t)
		operator.harm(chaos.Pause, "reporting", 0)
		operator.harm(chaos.Latency, "shipping-1", 0)
		operator.want(http.StatusNoContent, operator.send("DELETE", "/ops/api/chaos", nil, nil), nil)
		if got := operator.faults(); len(got) != 0 {
			t.Errorf("%v are in force, want none", got)
		}
	})
	t.Run("what makes no sense is refused", func(t *testing.T) {
		operator := operator.seenBy(t)
		for _, tt := range []struct {
			field string
			in    map[string]any
		}{
			{"kind", map[string]any{"kind": "fire"}},
			{"service", map[string]any{"kind": "kill", "service": "till"}},
			{"service", map[string]any{"kind": "kill", "service": "order-7"}},
			{"service", map[string]any{"kind": "kill"}},
			{"service", map[string]any{"kind": "provider-down", "service": "order"}},
			{"service", map[string]any{"kind": "broker-cut", "service": "provider"}},
			{"amount", map[string]any{"kind": "errors", "service": "order", "amount": 101}},
			{"amount", map[string]any{"kind": "latency", "service": "order", "amount": -1}},
			{"amount", map[string]any{"kind": "kill", "service": "order", "amount": 1}},
			{"seconds", map[string]any{"kind": "kill", "service": "order", "seconds": -1}},
			{"seconds", map[string]any{"kind": "kill", "service": "order", "seconds": 1e9}},
		} {
			operator.wantProblem(422, "invalid-input", tt.field, operator.send("POST", "/ops/api/chaos", nil, tt.in))
		}
		a := buyer.seenBy(t)
		a.wantProblem(403, "forbidden", "", a.send("POST", "/ops/api/chaos", nil, map[string]any{"kind": "kill", "service": "order"}))
	})
	t.Run("the invariants are green", func(t *testing.T) {
		operator := operator.seenBy(t)
		eventually(t, func() error {
			var state check.State
			operator.want(http.StatusOK, operator.send("GET", "/ops/api/invariants", nil, nil), &state)
			for _, i := range state.Items {
				if !i.OK {
					t.Fatalf("invariant %d: %v", i.Number, i.Violations)
				}
			}
			if !state.Resting || len(state.Items) != 8 {
				return fmt.Errorf("resting %v with %d invariants, want the shop at rest and 8", state.Resting, len(state.Items))
			}
			return nil
		})
	})
	verifyWithin(t, check.Files(data), ordered, 2*time.Minute)
}

// watch opens the live history of an order.
func (a *api) watch(order string) io.Reader {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), http.MethodGet, a.url+"/api/orders/"+order+"/events", nil)
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		a.t.Fatalf("the history of the order is answered %s", resp.Status)
	}
	return resp.Body
}

// serviceNotReady asks the gateway about a service. The gateway itself may be too busy to know.
func serviceNotReady(operator *api, service string) bool {
	operator.t.Helper()
	var list struct {
		Items []struct {
			Service string
			Ready   bool
		}
	}
	got := operator.send("GET", "/ops/api/services", nil, nil)
	operator.want(http.StatusOK, got, &list)
	return slices.ContainsFunc(list.Items, func(s struct {
		Service string
		Ready   bool
	},
	) bool {
		return s.Service == service && !s.Ready
	})
}

// stormLength is how long the storms of the tests are: SHOP_CHAOS_FOR, such as 3m. Without it there is none.
func stormLength(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("SHOP_CHAOS_FOR")
	if text == "" {
		t.Skip("SHOP_CHAOS_FOR is not set: run it with SHOP_CHAOS_FOR=3m")
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second {
		t.Fatalf("SHOP_CHAOS_FOR is %q, want a duration of 1s or more", text)
	}
	return d
}

// stormPatience is how long a shop may take to come to rest after all that was done to it, however busy the machine is.
const stormPatience = 5 * time.Minute

// TestStorm lets a random storm loose on the embedded shop while customers order: what was accepted ends, the books
// balance, and neither the lives that ended nor the orders leave anything running. It lasts a minute at most.
func TestStorm(t *testing.T) {
	length, data := min(stormLength(t), time.Minute), t.TempDir()
	shop := openShopWith(t, embedded.Config{Data: data, Packing: 200 * time.Millisecond}).stocked()
	drizzle(t, shop.url)
	before := runtime.NumGoroutine()
	accepted := weather(t, shop.url, length)
	shop.verifies(check.Files(data), accepted)
	after, most := 0, before+100
	deadline := time.Now().Add(stormPatience)
	for after = runtime.NumGoroutine(); after > most && time.Now().Before(deadline); after = runtime.NumGoroutine() {
		time.Sleep(time.Second)
	}
	t.Logf("%d goroutines before, %d after", before, after)
	if after > most {
		t.Errorf("%d goroutines, %d before the storm, want at most %d", after, before, most)
		_ = pprof.Lookup("goroutine").WriteTo(t.Output(), 1)
	}
}

// TestStackStorm is the same on real servers, with several instances of the services that a sale goes through.
func TestStackStorm(t *testing.T) {
	length := stormLength(t)
	shop := openStack(t, map[string]int{"gateway": 2, "order": 2, "inventory": 2, "payment": 2})
	shop.stocked()
	drizzle(t, shop.url)
	var before map[string]burden
	if _, err := procfs.Self(); err == nil {
		eventually(t, func() (err error) {
			before, err = shop.burdens(t.Context())
			return err
		})
	}
	accepted := weather(t, shop.url, length)
	t.Logf("%d processes were started again", shop.restarts.Load())
	shop.verifies(shop.look, accepted)
	if before != nil {
		shop.recovers(t, before)
	}
}

// drizzle is a few orders in good weather, so that everything in the shop has been used once.
func drizzle(t *testing.T, url string) {
	t.Helper()
	report, err := load.Run(t.Context(), load.Config{URL: url, Orders: 20, Concurrency: 4, Patience: stormPatience})
	if err != nil {
		t.Fatal(err)
	}
	if !report.OK() {
		t.Errorf("before the storm: unfinished %v, answered differently %v, want none", report.Unfinished, report.Mismatches)
	}
}

// weather lets a storm loose on a shop with customers in it, and returns the orders that were accepted. The seed of the
// storm is printed: DOVETAIL_SEED brings it again.
func weather(t *testing.T, url string, length time.Duration) (accepted []string) {
	t.Helper()
	seed := uint64(time.Now().UnixNano()) % (1 << 32)
	if text := os.Getenv("DOVETAIL_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("DOVETAIL_SEED is %q, want a number", text)
		}
	}
	t.Logf("seed %d", seed)
	var over atomic.Bool
	var reports []*load.Report
	loaded := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		var err error
		for err == nil && !over.Load() {
			var report *load.Report
			report, err = load.Run(ctx, load.Config{URL: url, Orders: 40, Concurrency: 4, Patience: stormPatience})
			reports = append(reports, report)
		}
		loaded <- err
	}()
	storm, err := chaos.Storm{URL: url, Email: "operator@shop.example", Passwords: []string{"dovetail-operator"}, For: length, Seed: seed}.Rage(t.Context())
	over.Store(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range storm.Strikes {
		t.Log(s)
	}
	if !storm.OK() {
		t.Errorf("left %v, want every fault to begin and to end", storm.Left)
	}
	for _, k := range chaos.Names() {
		if storm.Kinds[k] == 0 {
			t.Errorf("no %s in the storm, want each kind once at least", k)
		}
	}
	if err := <-loaded; err != nil {
		t.Fatal(err)
	}
	retries, ended, slowest := int64(0), map[string]int{}, load.Latency{}
	for _, r := range reports {
		if !r.OK() {
			t.Errorf("unfinished %v, answered differently %v, want none", r.Unfinished, r.Mismatches)
		}
		accepted, retries = append(accepted, r.Accepted...), retries+r.Retries
		for status, n := range r.Ended {
			ended[status] += n
		}
		slowest = load.Latency{P50: max(slowest.P50, r.Finish.P50), P99: max(slowest.P99, r.Finish.P99), Max: max(slowest.Max, r.Finish.Max)}
	}
	t.Logf("%d orders accepted in %d faults of %v, ended %v, %d requests made again", len(accepted), len(storm.Strikes), length, ended, retries)
	t.Logf("faults %v", storm.Kinds)
	t.Logf("until an order ended, in the worst of %d loads: p50 %v, p99 %v, max %v", len(reports), slowest.P50, slowest.P99, slowest.Max)
	return accepted
}
