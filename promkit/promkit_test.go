// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package promkit_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcemem"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxmem"
	"github.com/dovetail-go/dovetail/promkit"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagamem"
)

// must fails the test for what cannot be made.
func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// everything is one of each block, each with something to tell.
func everything(t *testing.T) map[string]prometheus.Collector {
	ctx := t.Context()
	failing := errors.New("failing")

	b := must[*breaker.Breaker](t)(breaker.New(breaker.Config{Name: "payments", FailureRate: 0.5}))
	_ = b.Do(ctx, func(context.Context) error { return failing })
	keyed := must[*breaker.Keyed[string]](t)(breaker.NewKeyed[string](breaker.Config{}, 10))
	_ = keyed.Get("host-1").Do(ctx, func(context.Context) error { return nil })
	r := must[*retry.Retrier](t)(retry.New(retry.Config{Name: "payments", Attempts: 2, Base: time.Microsecond}))
	_ = r.Do(ctx, func(context.Context) error { return failing })
	bulk := must[*bulkhead.Bulkhead](t)(bulkhead.New(3, bulkhead.Config{Name: "payments"}))
	limit := must[*ratelimit.Limiter](t)(ratelimit.New(ratelimit.PerMinute(120), ratelimit.Config{Name: "mails"}))
	limits := must[*ratelimit.Keyed[string]](t)(ratelimit.NewKeyed[string](ratelimit.PerSecond(5), 100))
	limits.Allow("ada")
	adaptive := must[*resilience.Adaptive](t)(resilience.NewAdaptive(resilience.AdaptiveConfig{Name: "gateway"}))
	hedge := must[*resilience.Hedge](t)(resilience.NewHedge(resilience.HedgeConfig{Name: "lookup"}))

	products := must[*cache.Cache[int]](t)(cache.New("products", cache.Config[int]{}))
	for range 3 {
		_, _ = products.Get(ctx, "p", func(context.Context, string) (int, error) { return 1, nil })
	}

	messages := promkit.NewMessages()
	broker := must[*messagingmem.Broker](t)(messagingmem.New(messagingmem.Config{Hooks: messages.Hooks()}))
	got := make(chan struct{}, 1)
	subscription := messaging.Subscription{Group: "mails", Topics: []string{"order.*"}}
	if err := broker.Declare(ctx, subscription); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = broker.Subscribe(ctx, subscription, messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { got <- struct{}{}; return nil }))
	}()
	if err := broker.Publish(ctx, &messaging.Message{ID: "m1", Topic: "order.placed"}); err != nil {
		t.Fatal(err)
	}
	_ = broker.Publish(ctx, &messaging.Message{ID: "m2", Topic: "nobody.listens"})
	<-got
	for end := time.Now().Add(30 * time.Second); broker.Stats().Groups[0].Acked == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the message is not acknowledged")
		}
	}

	box := must[*outbox.Outbox](t)(outbox.New(outboxmem.New(), outbox.Config{}))
	relay := must[*outbox.Relay](t)(outbox.NewRelay(box, broker, outbox.RelayConfig{}))

	type data struct{}
	steps := promkit.NewSteps()
	def := must[*saga.Definition[data]](t)(saga.New("place-order", 1, saga.Call("reserve", func(context.Context, saga.Attempt, *data) error { return nil }, saga.NoUndo[data]())))
	engine := must[*saga.Engine](t)(saga.NewEngine(sagamem.New(), saga.Config{Node: "n1", Hooks: saga.Hooks{StepEnd: steps.Hook}}, def))
	runSaga(t, engine, def)

	log := must[*eventsource.Log](t)(eventsource.New(eventsourcemem.New(), eventsource.Config{}))

	resolver := must[*discovery.Static](t)(discovery.NewStatic(map[string][]discovery.Instance{"order": {{ID: "order-1", Service: "order", Addr: "127.0.0.1:1"}}}))
	balancer := must[*balance.Balancer](t)(balance.New(resolver, "order", balance.Config{}))
	go func() { _ = balancer.Run(ctx) }()
	lease := must[balance.Lease](t)(balancer.Pick(ctx))
	lease.Done(fault.Success)

	inbox, requests := promkit.NewInbox(idempotencymem.New()), promkit.NewRequests()
	requests.Hook(idempotency.HTTPRequest{Outcome: idempotency.Replayed})
	policies := map[string]*resilience.Policy{"order": {Breaker: b, Retry: r, Bulkhead: bulk, RateLimit: limit, Adaptive: adaptive}, "stock": {}, "unset": nil}

	return map[string]prometheus.Collector{
		"policies": promkit.Policies("http", 10, maps.All(policies)), "inbox": inbox, "requests": requests,
		"client":  promkit.Client("orders", func() promkit.ClientStats { return promkit.ClientStats{Connected: true, Reconnects: 3} }),
		"breaker": promkit.Breakers(b), "keyed": promkit.KeyedBreakers("hosts", keyed, func(k string) string { return k }),
		"retry": promkit.Retries(r), "bulkhead": promkit.Bulkheads(bulk),
		"ratelimit": promkit.RateLimits(limit), "keyed limits": promkit.KeyedRateLimit("customers", limits),
		"adaptive": promkit.AdaptiveLimits(adaptive), "hedge": promkit.Hedges(hedge),
		"cache": promkit.Caches(products), "messages": messages, "broker": promkit.MemoryBroker(broker),
		"relay": promkit.Relay("orders", box, relay), "saga": promkit.Saga("orders", engine), "steps": steps,
		"log": promkit.EventLog("orders", log), "balance": promkit.Balancing(func() []balance.View { return []balance.View{balancer.View()} }),
	}
}

func TestWhatBlocksDoIsShown(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	for name, c := range everything(t) {
		if err := registry.Register(c); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		problems, err := testutil.CollectAndLint(c)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s: %s", name, p.Metric, p.Text)
		}
	}
	text := scrape(t, registry)
	for _, want := range []string{
		`dovetail_breaker_state{name="payments",state="closed"} 1`,
		`dovetail_breaker_state{name="payments",state="open"} 0`,
		`dovetail_breaker_window_failures{name="payments"} 1`,
		`dovetail_keyed_breaker_state{key="host-1",name="hosts",state="closed"} 1`,
		`dovetail_retry_retries_total{name="payments"} 1`,
		`dovetail_policy_breaker_state{key="order",name="http",state="closed"} 1`,
		`dovetail_policy_retry_retries_total{key="order",name="http"} 1`,
		`dovetail_policy_bulkhead_max{key="order",name="http"} 3`,
		`dovetail_policy_ratelimit_per_second{key="order",name="http"} 2`,
		`dovetail_policy_adaptive_in_flight{key="order",name="http"} 0`,
		`dovetail_policies_hidden{name="http"} 0`,
		`dovetail_client_connected{name="orders"} 1`,
		`dovetail_client_reconnects_total{name="orders"} 3`,
		`dovetail_idempotency_requests_total{outcome="replayed"} 1`,
		`dovetail_idempotency_requests_total{outcome="lost"} 0`,
		`dovetail_retry_gave_up_total{name="payments"} 1`,
		`dovetail_bulkhead_max{name="payments"} 3`,
		`dovetail_ratelimit_per_second{name="mails"} 2`,
		`dovetail_keyed_ratelimit_keys{name="customers"} 1`,
		`dovetail_cache_hits_total{name="products"} 2`,
		`dovetail_cache_loads_total{name="products"} 1`,
		`dovetail_group_acked_total{group="mails"} 1`,
		`dovetail_publish_seconds_count{outcome="confirmed"} 1`,
		`dovetail_publish_seconds_count{outcome="unroutable"} 1`,
		`dovetail_handle_seconds_count{action="acked",group="mails"} 1`,
		`dovetail_outbox_waiting{name="orders"} 0`,
		`dovetail_outbox_up{name="orders"} 1`,
		`dovetail_relay_confirmed_total{name="orders"} 0`,
		`dovetail_saga_engine_completed_total{name="orders"} 1`,
		`dovetail_sagas_running{name="orders"} 0`,
		`dovetail_saga_step_seconds_count{op="do",outcome="done",saga="place-order",step="reserve"} 1`,
		`dovetail_eventlog_head{name="orders"} 0`,
		`dovetail_upstream_instances{upstream="order"} 1`,
		`dovetail_upstream_instance_calls_total{id="order-1",upstream="order"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("the scrape lacks %q; it has:\n%s", want, like(text, want))
		}
	}
}

// like returns the lines of text about the same metric.
func like(text, want string) string {
	name, _, _ := strings.Cut(want, "{")
	return strings.Join(regexp.MustCompile(`(?m)^`+name+`\{.*$`).FindAllString(text, -1), "\n")
}

func TestNamesMustTellApart(t *testing.T) {
	first, second := must[*breaker.Breaker](t)(breaker.New(breaker.Config{Name: "a"})), must[*breaker.Breaker](t)(breaker.New(breaker.Config{Name: "a"}))
	nameless := must[*breaker.Breaker](t)(breaker.New(breaker.Config{}))
	for name, c := range map[string]prometheus.Collector{"twice": promkit.Breakers(first, second), "nameless": promkit.Breakers(nameless)} {
		if err := prometheus.NewRegistry().Register(c); err == nil || !strings.Contains(err.Error(), "promkit") {
			t.Errorf("%s: Register = %v, want promkit's error", name, err)
		}
	}
	set := must[*breaker.Keyed[int]](t)(breaker.NewKeyed[int](breaker.Config{}, 10))
	set.Get(1)
	set.Get(2)
	if n := testutil.CollectAndCount(promkit.KeyedBreakers("set", set, func(int) string { return "same" }), "dovetail_keyed_breaker_opened_total"); n != 1 {
		t.Errorf("keys that read alike make %d series, want 1", n)
	}
}

// Engines, outboxes and guards of one program can be shown where they are made, and not all in one place.
func TestARegistryTakesEachName(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	for _, name := range []string{"a", "b"} {
		box := must[*outbox.Outbox](t)(outbox.New(outboxmem.New(), outbox.Config{}))
		relay := must[*outbox.Relay](t)(outbox.NewRelay(box, must[*messagingmem.Broker](t)(messagingmem.New(messagingmem.Config{})), outbox.RelayConfig{}))
		for _, c := range []prometheus.Collector{
			promkit.Breakers(must[*breaker.Breaker](t)(breaker.New(breaker.Config{Name: name}))), promkit.Relay(name, box, relay),
		} {
			if err := registry.Register(c); err != nil {
				t.Errorf("%s: Register = %v, want nil", name, err)
			}
			if err := registry.Register(c); err == nil {
				t.Errorf("%s, a second time: Register = nil, want an error", name)
			}
		}
	}
	text := scrape(t, registry)
	for _, want := range []string{`dovetail_breaker_opened_total{name="a"} 0`, `dovetail_breaker_opened_total{name="b"} 0`, `dovetail_outbox_up{name="a"} 1`, `dovetail_outbox_up{name="b"} 1`} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("the scrape lacks %q", want)
		}
	}
}

func TestPoliciesAreBounded(t *testing.T) {
	var all iter.Seq2[string, *resilience.Policy] = func(yield func(string, *resilience.Policy) bool) {
		for i := range 100_000 {
			if !yield(fmt.Sprintf("host-%06d", 99_999-i), &resilience.Policy{Breaker: must[*breaker.Breaker](t)(breaker.New(breaker.Config{}))}) {
				return
			}
		}
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(promkit.Policies("http", 3, all))
	text := scrape(t, registry)
	if n := strings.Count(text, "dovetail_policy_breaker_opened_total"); n != 3 {
		t.Errorf("100,000 hosts make %d series of a counter, want 3", n)
	}
	for _, want := range []string{`dovetail_policy_breaker_opened_total{key="host-000002",name="http"} 0`, `dovetail_policies_hidden{name="http"} 99997`} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("the scrape lacks %q", want)
		}
	}
	if err := prometheus.NewRegistry().Register(promkit.Policies("http", 0, all)); err == nil || !strings.Contains(err.Error(), `"http" are to be 0 at most`) {
		t.Errorf("Register of at most 0 = %v, want promkit's error", err)
	}
}

func TestAnInboxIsCounted(t *testing.T) {
	store := idempotencymem.New()
	db := store.OpenDB()
	t.Cleanup(func() { _ = db.Close() })
	inbox := promkit.NewInbox(store)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(inbox)

	handler := idempotency.Consumer(db, inbox, func(context.Context, *sql.Tx, *messaging.Delivery) error { return nil })
	for range 3 { // once, and twice more
		if err := handler.Handle(t.Context(), &messaging.Delivery{Group: "mails", Message: &messaging.Message{ID: "m1", Topic: "order.placed"}}); err != nil {
			t.Fatal(err)
		}
	}
	tx := must[*sql.Tx](t)(db.Begin())
	if first, err := inbox.OnceMany(t.Context(), tx, "figures", []string{"m1", "m2", "m1"}); err != nil || !first[0] || !first[1] || first[2] {
		t.Errorf("OnceMany = %v, %v, want true, true, false as the inbox says", first, err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if _, err := inbox.OnceMany(t.Context(), tx, "figures", []string{"m3"}); err == nil {
		t.Error("OnceMany in a transaction that is over = nil, want its error")
	}
	text := scrape(t, registry)
	for _, want := range []string{
		`dovetail_inbox_messages_total{answer="new",consumer="mails"} 1`, `dovetail_inbox_messages_total{answer="duplicate",consumer="mails"} 2`,
		`dovetail_inbox_messages_total{answer="new",consumer="figures"} 2`, `dovetail_inbox_messages_total{answer="duplicate",consumer="figures"} 1`,
		`dovetail_inbox_messages_total{answer="failed",consumer="figures"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("the scrape lacks %q; it has:\n%s", want, text)
		}
	}
}

// down is a store whose database does not answer.
type down struct{ outbox.Store }

func (down) Stats(ctx context.Context) (outbox.Stats, error) {
	<-ctx.Done()
	return outbox.Stats{}, ctx.Err()
}

func TestADatabaseThatIsDownDoesNotStopTheScrape(t *testing.T) {
	box := must[*outbox.Outbox](t)(outbox.New(down{outboxmem.New()}, outbox.Config{}))
	broker := must[*messagingmem.Broker](t)(messagingmem.New(messagingmem.Config{}))
	relay := must[*outbox.Relay](t)(outbox.NewRelay(box, broker, outbox.RelayConfig{}))
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(promkit.Relay("orders", box, relay))
	text := scrape(t, registry)
	if !strings.Contains(text, `dovetail_outbox_up{name="orders"} 0`) || strings.Contains(text, "dovetail_outbox_waiting") || !strings.Contains(text, "dovetail_relay_shards") {
		t.Errorf("scrape while the database is down:\n%s\nwant up 0, no numbers of the outbox, and those of the relay", text)
	}
}

func TestOutcomesOfPublishing(t *testing.T) {
	messages := promkit.NewMessages()
	hook := messages.Hooks().Published
	for outcome, err := range map[string]error{
		"confirmed": nil, "unroutable": messaging.ErrUnroutable, "refused": messaging.ErrRefused, "blocked": messaging.ErrBlocked,
		"unknown": fault.Unknown(errors.New("cut off")), "failed": errors.New("other"),
	} {
		hook(messaging.Published{Err: err, Took: time.Millisecond})
		want := fmt.Sprintf("dovetail_publish_seconds_count{outcome=%q} 1\n", outcome)
		registry := prometheus.NewRegistry()
		registry.MustRegister(messages)
		if text := scrape(t, registry); !strings.Contains(text, want) {
			t.Errorf("after %v the scrape lacks %q", err, want)
		}
	}
}

// scrape returns what a registry has, as Prometheus reads it.
func scrape(t *testing.T, g prometheus.Gatherer) string {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			suffix, value := "", math.NaN()
			switch {
			case m.GetGauge() != nil:
				value = m.GetGauge().GetValue()
			case m.GetCounter() != nil:
				value = m.GetCounter().GetValue()
			case m.GetHistogram() != nil:
				suffix, value = "_count", float64(m.GetHistogram().GetSampleCount())
			}
			fmt.Fprintf(&b, "%s%s{%s} %v\n", f.GetName(), suffix, strings.Join(labels, ","), value)
		}
	}
	return b.String()
}

func runSaga[T any](t *testing.T, engine *saga.Engine, def *saga.Definition[T]) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()
	var zero T
	if err := saga.Start(ctx, engine, nil, def, "s1", zero); err != nil {
		t.Fatal(err)
	}
	engine.Wake()
	for end := time.Now().Add(30 * time.Second); engine.Stats().Completed == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the saga does not end")
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}
