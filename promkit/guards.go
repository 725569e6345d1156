// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package promkit

import (
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
	"github.com/dovetail-go/dovetail/retry"
)

var retryMetrics = []metric[retry.Stats]{
	counter("retries", "Attempts after the first.", func(s retry.Stats) float64 { return float64(s.Retries) }),
	counter("gave_up", "Calls that failed after their last attempt.", func(s retry.Stats) float64 { return float64(s.GaveUp) }),
	gauge("budget_retries", "Retries that the budget would allow now.", func(s retry.Stats) float64 { return s.Budget }),
}

// Retries shows retriers, by their Config.Name.
func Retries(retriers ...*retry.Retrier) prometheus.Collector {
	return named("retry", retriers, (*retry.Retrier).Stats, func(s retry.Stats) string { return s.Name }, retryMetrics)
}

var breakerMetrics = append(append(
	states("state", "1 for what the breaker does with a call.", "state", func(s breaker.Stats) breaker.State { return s.State },
		breaker.Closed, breaker.Open, breaker.HalfOpen),
	states("mode", "1 for what an operator has ordered.", "mode", func(s breaker.Stats) breaker.Mode { return s.Mode },
		breaker.Auto, breaker.ForcedOpen, breaker.Disabled, breaker.Shadow)...),
	gauge("failures_in_a_row", "Failures since the last success.", func(s breaker.Stats) float64 { return float64(s.Consecutive) }),
	gauge("window_calls", "Calls in the rolling window.", func(s breaker.Stats) float64 { return float64(s.Calls) }),
	gauge("window_failures", "Failed calls in the rolling window.", func(s breaker.Stats) float64 { return float64(s.Failures) }),
	gauge("window_slow", "Slow calls in the rolling window.", func(s breaker.Stats) float64 { return float64(s.Slow) }),
	gauge("probes", "Probes on their way.", func(s breaker.Stats) float64 { return float64(s.Probes) }),
	gauge("retry_after_seconds", "The rest of the open time.", func(s breaker.Stats) float64 { return s.RetryAfter.Seconds() }),
	counter("opened", "How often it has opened.", func(s breaker.Stats) float64 { return float64(s.Opened) }),
	counter("rejected", "Calls that it refused.", func(s breaker.Stats) float64 { return float64(s.Rejected) }),
)

// Breakers shows breakers, by their Config.Name.
func Breakers(breakers ...*breaker.Breaker) prometheus.Collector {
	return named("breaker", breakers, (*breaker.Breaker).Stats, func(s breaker.Stats) string { return s.Name }, breakerMetrics)
}

// KeyedBreakers shows a set of breakers, by the key that label makes readable. The set's limit bounds the
// number of series, but not how fast they change: it is for hosts, not for users.
func KeyedBreakers[K comparable](name string, set *breaker.Keyed[K], label func(K) string) prometheus.Collector {
	return collect("keyed_breaker", name, []string{"key"}, breakerMetrics, distinct("keyed_breaker", name), func(yield func(breaker.Stats, ...string)) {
		seen := map[string]bool{}
		for k, b := range set.All() {
			if key := label(k); !seen[key] { // two keys that read alike would spoil the whole scrape
				seen[key] = true
				yield(b.Stats(), key)
			}
		}
	})
}

var bulkheadMetrics = []metric[bulkhead.Stats]{
	gauge("max", "Calls that it lets through at once.", func(s bulkhead.Stats) float64 { return float64(s.Max) }),
	gauge("in_flight", "Calls under way.", func(s bulkhead.Stats) float64 { return float64(s.InFlight) }),
	gauge("waiting", "Calls in the queue.", func(s bulkhead.Stats) float64 { return float64(s.Waiting) }),
	counter("rejected", "Calls that it refused.", func(s bulkhead.Stats) float64 { return float64(s.Rejected) }),
}

// Bulkheads shows bulkheads, by their Config.Name.
func Bulkheads(bulkheads ...*bulkhead.Bulkhead) prometheus.Collector {
	return named("bulkhead", bulkheads, (*bulkhead.Bulkhead).Stats, func(s bulkhead.Stats) string { return s.Name }, bulkheadMetrics)
}

var rateMetrics = []metric[ratelimit.Stats]{
	gauge("per_second", "Calls a second that it lets through in the long run.", func(s ratelimit.Stats) float64 { return perSecond(s.Limit) }),
	gauge("burst", "Calls that it lets through at once.", func(s ratelimit.Stats) float64 { return float64(max(s.Limit.Burst, 1)) }),
	gauge("remaining", "Calls that it would let through now.", func(s ratelimit.Stats) float64 { return float64(s.Remaining) }),
	gauge("waiting", "Calls that wait.", func(s ratelimit.Stats) float64 { return float64(s.Waiting) }),
	counter("rejected", "Calls that it refused.", func(s ratelimit.Stats) float64 { return float64(s.Rejected) }),
}

// RateLimits shows limiters of this process, by their Config.Name.
func RateLimits(limiters ...*ratelimit.Limiter) prometheus.Collector {
	return named("ratelimit", limiters, (*ratelimit.Limiter).Stats, func(s ratelimit.Stats) string { return s.Name }, rateMetrics)
}

// KeyedRateLimit shows a set of limiters as a whole: keys are never labels.
func KeyedRateLimit[K comparable](name string, set *ratelimit.Keyed[K]) prometheus.Collector {
	return one("keyed_ratelimit", name, []metric[ratelimit.KeyedStats]{
		gauge("per_second", "Calls a second and key in the long run.", func(s ratelimit.KeyedStats) float64 { return perSecond(s.Limit) }),
		gauge("keys", "Keys in memory.", func(s ratelimit.KeyedStats) float64 { return float64(s.Keys) }),
		counter("spilled", "Decisions for keys that found no room.", func(s ratelimit.KeyedStats) float64 { return float64(s.Spilled) }),
	}, set.Stats)
}

// SharedRateLimits shows limiters that processes share, by their Config.Name.
func SharedRateLimits(limiters ...*ratelimit.Leased) prometheus.Collector {
	return named("shared_ratelimit", limiters, (*ratelimit.Leased).Stats, func(s ratelimit.LeasedStats) string { return s.Name }, append(
		states("store_state", "1 for the state of the store's breaker.", "state", func(s ratelimit.LeasedStats) breaker.State { return s.Store },
			breaker.Closed, breaker.Open, breaker.HalfOpen),
		counter("local", "Decisions without a round trip.", func(s ratelimit.LeasedStats) float64 { return float64(s.Local) }),
		counter("remote", "Decisions by a round trip.", func(s ratelimit.LeasedStats) float64 { return float64(s.Remote) }),
		counter("fallback", "Decisions while the store could not be reached.", func(s ratelimit.LeasedStats) float64 { return float64(s.Fallback) }),
	))
}

var adaptiveMetrics = []metric[resilience.AdaptiveStats]{
	gauge("limit", "Calls that it lets through at once.", func(s resilience.AdaptiveStats) float64 { return float64(s.Limit) }),
	gauge("in_flight", "Calls under way.", func(s resilience.AdaptiveStats) float64 { return float64(s.InFlight) }),
	gauge("baseline_seconds", "Latency without load, as far as known.", func(s resilience.AdaptiveStats) float64 { return s.Baseline.Seconds() }),
	counter("rejected", "Calls that it refused.", func(s resilience.AdaptiveStats) float64 { return float64(s.Rejected) }),
}

// AdaptiveLimits shows limits that adapt to latency, by their Config.Name.
func AdaptiveLimits(limits ...*resilience.Adaptive) prometheus.Collector {
	return named("adaptive", limits, (*resilience.Adaptive).Stats, func(s resilience.AdaptiveStats) string { return s.Name }, adaptiveMetrics)
}

// Hedges shows hedges, by their Config.Name.
func Hedges(hedges ...*resilience.Hedge) prometheus.Collector {
	return named("hedge", hedges, (*resilience.Hedge).Stats, func(s resilience.HedgeStats) string { return s.Name }, []metric[resilience.HedgeStats]{
		gauge("delay_seconds", "How long the next call waits for its hedge.", func(s resilience.HedgeStats) float64 { return s.Delay.Seconds() }),
		counter("started", "Further calls.", func(s resilience.HedgeStats) float64 { return float64(s.Started) }),
		counter("won", "Further calls that answered first.", func(s resilience.HedgeStats) float64 { return float64(s.Won) }),
	})
}

// perSecond is a limit in Prometheus' base unit.
func perSecond(l ratelimit.Limit) float64 { return 1 / l.Interval().Seconds() }

// Policies shows policies that come and go, such as those of the hosts of a [github.com/dovetail-go/dovetail/resilience/resiliencehttp.Transport], by
// their keys: the retries, breaker, limits and bulkhead of each, where it has them. Of more than most policies
// those whose keys come first are shown, and dovetail_policies_hidden tells how many are not.
func Policies(name string, most int, all iter.Seq2[string, *resilience.Policy]) prometheus.Collector {
	p := &policies{most: most, all: all}
	err := distinct("policies", name)
	if most < 1 {
		err = fmt.Errorf("promkit: policies %q are to be %d at most, want at least 1", name, most)
	}
	labels := []string{"key"}
	p.hidden = collect("policies", name, nil, []metric[int]{gauge("hidden", "Policies beyond the most that are shown.", func(n int) float64 { return float64(n) })}, err, nil)
	p.retry = collect("policy_retry", name, labels, retryMetrics, nil, nil)
	p.breaker = collect("policy_breaker", name, labels, breakerMetrics, nil, nil)
	p.rate = collect("policy_ratelimit", name, labels, rateMetrics, nil, nil)
	p.adaptive = collect("policy_adaptive", name, labels, adaptiveMetrics, nil, nil)
	p.bulkhead = collect("policy_bulkhead", name, labels, bulkheadMetrics, nil, nil)
	return p
}

// policies are given what they show, and ask the set once a scrape.
type policies struct {
	most     int
	all      iter.Seq2[string, *resilience.Policy]
	hidden   *collector[int]
	retry    *collector[retry.Stats]
	breaker  *collector[breaker.Stats]
	rate     *collector[ratelimit.Stats]
	adaptive *collector[resilience.AdaptiveStats]
	bulkhead *collector[bulkhead.Stats]
}

// Describe implements [prometheus.Collector].
func (p *policies) Describe(ch chan<- *prometheus.Desc) {
	group{p.hidden, p.retry, p.breaker, p.rate, p.adaptive, p.bulkhead}.Describe(ch)
}

// Collect implements [prometheus.Collector].
func (p *policies) Collect(ch chan<- prometheus.Metric) {
	now := maps.Collect(p.all)
	keys := slices.Sorted(maps.Keys(now))
	p.hidden.show(ch, max(len(keys)-p.most, 0))
	for _, key := range keys[:min(len(keys), p.most)] {
		policy := now[key]
		if policy == nil {
			continue
		}
		if policy.Retry != nil {
			p.retry.show(ch, policy.Retry.Stats(), key)
		}
		if policy.Breaker != nil {
			p.breaker.show(ch, policy.Breaker.Stats(), key)
		}
		if policy.RateLimit != nil {
			p.rate.show(ch, policy.RateLimit.Stats(), key)
		}
		if policy.Adaptive != nil {
			p.adaptive.show(ch, policy.Adaptive.Stats(), key)
		}
		if policy.Bulkhead != nil {
			p.bulkhead.show(ch, policy.Bulkhead.Stats(), key)
		}
	}
}
