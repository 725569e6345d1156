// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package promkit

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Patience is how long a database may take to answer a scrape's question.
const Patience = 2 * time.Second

// metric is one number of the stats S of a block.
type metric[S any] struct {
	name, help string
	kind       prometheus.ValueType
	value      func(S) float64
	// labels, if any, are constant ones beyond those of the collector.
	labels prometheus.Labels
}

func gauge[S any](name, help string, value func(S) float64) metric[S] {
	return metric[S]{name, help, prometheus.GaugeValue, value, nil}
}

func counter[S any](name, help string, value func(S) float64) metric[S] {
	return metric[S]{name + "_total", help, prometheus.CounterValue, value, nil}
}

// states is one series per state, of which one is 1 at a time.
func states[S any, T interface {
	comparable
	fmt.Stringer
}](name, help, label string, of func(S) T, all ...T) []metric[S] {
	out := make([]metric[S], len(all))
	for i, state := range all {
		out[i] = gauge(name, help, func(s S) float64 { return truth(of(s) == state) })
		out[i].labels = prometheus.Labels{label: state.String()}
	}
	return out
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// collector shows the stats of the members that each yields, by their labels.
type collector[S any] struct {
	metrics []metric[S]
	descs   []*prometheus.Desc
	each    func(yield func(s S, labels ...string))
	err     error
}

// collect makes a collector, whose series have the label name if that is not empty. What is wrong with
// names is in err, and the registry's to say: so that what cannot fail in practice needs no second result.
func collect[S any](prefix, name string, labels []string, metrics []metric[S], err error, each func(yield func(s S, labels ...string))) *collector[S] {
	c := &collector[S]{metrics: metrics, each: each, err: err}
	for _, m := range metrics {
		constant := prometheus.Labels{}
		maps.Copy(constant, m.labels)
		if name != "" {
			constant["name"] = name
		}
		c.descs = append(c.descs, prometheus.NewDesc("dovetail_"+prefix+"_"+m.name, m.help, labels, constant))
	}
	return c
}

// Describe implements [prometheus.Collector].
func (c *collector[S]) Describe(ch chan<- *prometheus.Desc) {
	if c.err != nil {
		ch <- prometheus.NewInvalidDesc(c.err)
		return
	}
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *collector[S]) Collect(ch chan<- prometheus.Metric) {
	c.each(func(s S, labels ...string) { c.show(ch, s, labels...) })
}

func (c *collector[S]) show(ch chan<- prometheus.Metric, s S, labels ...string) {
	for i, m := range c.metrics {
		ch <- prometheus.MustNewConstMetric(c.descs[i], m.kind, m.value(s), labels...)
	}
}

// distinct returns an error if a name is empty or given twice.
func distinct(what string, names ...string) error {
	seen := map[string]bool{}
	for i, name := range names {
		if name == "" {
			return fmt.Errorf("promkit: %s %d has no name, want one to tell it from others", what, i)
		}
		if seen[name] {
			return fmt.Errorf("promkit: two of %s are called %q, want each name once", what, name)
		}
		seen[name] = true
	}
	return nil
}

// named makes a collector of members whose stats carry their name.
func named[M any, S any](prefix string, members []M, stats func(M) S, name func(S) string, metrics []metric[S]) prometheus.Collector {
	all, names := make(group, len(members)), make([]string, len(members))
	for i, m := range members {
		names[i] = name(stats(m))
	}
	err := distinct(prefix, names...)
	for i, m := range members {
		all[i] = collect(prefix, names[i], nil, metrics, err, func(yield func(S, ...string)) { yield(stats(m)) })
	}
	return all
}

// one makes a collector of a single thing that does not know its name.
func one[S any](prefix, name string, metrics []metric[S], stats func() S) prometheus.Collector {
	return collect(prefix, name, nil, metrics, distinct(prefix, name), func(yield func(S, ...string)) { yield(stats()) })
}

// ask makes a collector of stats that a database has to be asked for, and of whether it answered.
func ask[S any](prefix, name string, metrics []metric[S], stats func(ctx context.Context) (S, error)) prometheus.Collector {
	up := collect(prefix, name, nil, []metric[bool]{gauge("up", "Whether the database answered when it was asked for the numbers beside this.", truth)}, distinct(prefix, name), nil)
	return &remote[S]{up, collect(prefix, name, nil, metrics, nil, nil), stats}
}

// remote is what ask makes. Its two collectors are given what they show, and ask for nothing.
type remote[S any] struct {
	up    *collector[bool]
	stats *collector[S]
	ask   func(ctx context.Context) (S, error)
}

// Describe implements [prometheus.Collector].
func (r *remote[S]) Describe(ch chan<- *prometheus.Desc) {
	r.up.Describe(ch)
	r.stats.Describe(ch)
}

// Collect implements [prometheus.Collector].
func (r *remote[S]) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	s, err := r.ask(ctx)
	r.up.show(ch, err == nil)
	if err == nil {
		r.stats.show(ch, s)
	}
}

// group is several collectors that are registered as one.
type group []prometheus.Collector

// Describe implements [prometheus.Collector].
func (g group) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range g {
		c.Describe(ch)
	}
}

// Collect implements [prometheus.Collector].
func (g group) Collect(ch chan<- prometheus.Metric) {
	for _, c := range g {
		c.Collect(ch)
	}
}
