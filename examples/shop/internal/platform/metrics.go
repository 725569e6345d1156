// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"cmp"
	"context"
	"iter"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/promkit"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
)

// Histogram returns a histogram of durations in seconds. The buckets are for servers that do not take native
// histograms; objectives stand at bounds of theirs.
func Histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60},
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
	}, labels)
}

// metrics are what every service shows. Which service and instance it is, Prometheus knows from where it asks.
type metrics struct {
	*prometheus.Registry
	requests *prometheus.HistogramVec
	traffic  tallies
}

// call counts and times calls by gRPC, by method and code. Only methods that exist come here.
func (m *metrics) call(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	start := time.Now()
	out, err := handler(ctx, req)
	m.requests.WithLabelValues(info.FullMethod, status.Code(err).String()).Observe(time.Since(start).Seconds())
	m.traffic.servedRPC(status.Code(err), time.Since(start))
	return out, err
}

func newMetrics(env Env, s Service) *metrics {
	m := &metrics{Registry: prometheus.NewRegistry(), requests: Histogram("shop_http_request_duration_seconds", "Time to answer a request.", "route", "status")}
	m.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector(), m.requests,
	)
	if env.DB != nil {
		m.MustRegister(collectors.NewDBStatsCollector(env.DB, env.Name))
	}
	m.MustRegister(env.Caller.collectors()...)
	m.MustRegister(env.Collectors...)
	if bus := busOf(s); bus != nil {
		m.MustRegister(bus.collectors()...)
	}
	if shows, ok := s.(interface{ Collectors() []prometheus.Collector }); ok {
		m.MustRegister(shows.Collectors()...)
	}
	return m
}

// shown bounds how many services a service shows its guards of: more than the shop has.
const shown = 50

// collectors show the guards of the calls to other services, and what is known of their instances.
func (c *Caller) collectors() []prometheus.Collector {
	all := []prometheus.Collector{promkit.Policies("grpc", shown, c.RPC.policies())}
	if c.Guards != nil {
		all = append(all, promkit.Policies("http", shown, c.Guards.policies()))
	}
	if c.Instances != nil {
		all = append(all, promkit.Balancing(c.Instances))
	}
	return all
}

// policies are the guards by service.
func (g *Guarded) policies() iter.Seq2[string, *resilience.Policy] {
	return func(yield func(string, *resilience.Policy) bool) {
		for service, guards := range g.Hosts() {
			if !yield(service, guards.Policy) {
				return
			}
		}
	}
}

// QuotaCollectors show quotas by their names, each as a whole: whose turns they are is never told.
func QuotaCollectors(quotas map[string]Quota) (all []prometheus.Collector) {
	for name, q := range quotas {
		if told, ok := q.(*toldQuota); ok {
			q = told.Quota
		}
		switch q := q.(type) {
		case ownQuota:
			all = append(all, promkit.KeyedRateLimit(name, q.keyed))
		case *ratelimit.Leased:
			all = append(all, promkit.SharedRateLimits(q))
		}
	}
	return all
}

// busMetrics are what a service shows of what it says and hears.
type busMetrics struct {
	inbox    *promkit.Inbox
	messages *promkit.Messages
	delays   *prometheus.HistogramVec
}

func newBusMetrics(inbox *promkit.Inbox) busMetrics {
	return busMetrics{inbox, promkit.NewMessages(), Histogram("shop_event_delay_seconds", "Time from an event to the commit of what a consumer made of it.", "consumer")}
}

// collectors show the outbox and its relay, the inbox, the consumers and their dead letters.
func (b *Bus) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		promkit.Relay(b.service, b.outbox, b.relay), b.metrics.inbox, b.metrics.messages, b.metrics.delays,
		&deadLetterCollector{b, prometheus.NewDesc("shop_dead_letters", "Messages that wait for an operator.", []string{"consumer"}, nil)},
	}
}

// Delayed counts an event that a consumer has just dealt with.
func (b *Bus) Delayed(consumer string, m *messaging.Message) {
	delay := max(time.Since(m.Time), 0)
	b.metrics.delays.WithLabelValues(consumer).Observe(delay.Seconds())
	b.hands.delayed(consumer, delay)
	b.consumed.add(m.Topic, consumer, false)
}

// watched is the handler of a consumer, timed and counted by what becomes of the message.
func (b *Bus) watched(c Consumer) messaging.Handler {
	settled, group := b.metrics.messages.Hooks().Settled, c.Subscription.Group
	handler := messaging.Chain(c.Handler, messaging.Observe(func(ctx context.Context, h messaging.Handled) {
		if h.Err != nil {
			b.consumed.add(h.Delivery.Message.Topic, group, true)
		}
		decision := messaging.Decide(ctx, h.Err, h.Delivery.Attempt, c.Subscription)
		b.hands.settle(group, h.Delivery.Message, decision)
		settled(messaging.Settled{Delivery: h.Delivery, Decision: decision, Took: h.Took})
	}))
	return messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
		b.hands.take(group, d.Message)
		return handler.Handle(ctx, d)
	})
}

// deadLetterCollector counts the dead letters of each consumer.
type deadLetterCollector struct {
	bus  *Bus
	desc *prometheus.Desc
}

// Describe implements [prometheus.Collector].
func (c *deadLetterCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements [prometheus.Collector]. A database that does not answer shows at the outbox, which is asked
// beside this.
func (c *deadLetterCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), promkit.Patience)
	defer cancel()
	type count struct {
		consumer string
		letters  int
	}
	counts, err := Collect(ctx, c.bus.db, func(row interface{ Scan(dest ...any) error }) (n count, err error) {
		err = row.Scan(&n.consumer, &n.letters)
		return n, err
	}, `SELECT consumer, COUNT(*) FROM dead_letters GROUP BY consumer`)
	if err != nil {
		return
	}
	letters := map[string]int{}
	c.bus.mu.Lock()
	for consumer := range c.bus.handlers {
		letters[consumer] = 0
	}
	c.bus.mu.Unlock()
	for _, n := range counts {
		letters[n.consumer] = n.letters
	}
	for consumer, n := range letters {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), consumer)
	}
}

type routeKey struct{}

// routing returns r for a handler, and what tells afterwards by which pattern the handler has routed it.
func routing(r *http.Request) (*http.Request, func() string) {
	pattern := new(string)
	r = r.WithContext(context.WithValue(r.Context(), routeKey{}, pattern))
	return r, func() string { return cmp.Or(*pattern, r.Pattern, "unmatched") }
}

// Routed is a handler of a [http.ServeMux] which is not the outermost handler of a service: what stands before it may pass
// on a copy of the request, so that nobody outside sees the pattern there.
func Routed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if pattern, ok := r.Context().Value(routeKey{}).(*string); ok {
			*pattern = r.Pattern
		}
		next.ServeHTTP(w, r)
	})
}
