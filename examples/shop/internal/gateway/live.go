// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// How often the services are asked what they have done, while somebody watches and while nobody does, and how
// much of it is remembered for who opens the console later.
const (
	watchedEvery   = time.Second
	unwatchedEvery = 5 * time.Second
	remembered     = 300
	lookBudget     = time.Second
	streamKeep     = 15 * time.Second
)

// sample is what happened in the shop between two looks at it.
type sample struct {
	At       time.Time      `json:"at"`
	Seconds  float64        `json:"seconds"` // since the look before
	Services []serviceState `json:"services"`
	Calls    []callState    `json:"calls"`
	Flows    []flow         `json:"flows"`
	Totals   totals         `json:"totals"`
}

// rate is how much was done per second, how much of it failed, and how long it took.
type rate struct {
	Rate   float64 `json:"rate"`
	Errors float64 `json:"errors"`
	P50    float64 `json:"p50_seconds"`
	P99    float64 `json:"p99_seconds"`
}

type serviceState struct {
	Service string `json:"service"`
	rate
	Instances []instanceState       `json:"instances"`
	Outbox    *platform.OutboxState `json:"outbox,omitempty"`
}

type instanceState struct {
	Instance string `json:"instance"`
	Addr     string `json:"addr,omitempty"`
	Up       bool   `json:"up"`
	rate
}

// callState is what one service asks of another. The breaker is the worst of all instances'.
type callState struct {
	From string `json:"from"`
	To   string `json:"to"`
	rate
	Breaker platform.BreakerState `json:"breaker"`
}

// flow is how many messages of a topic a service publishes or consumes per second.
type flow struct {
	Service  string  `json:"service"`
	Topic    string  `json:"topic"`
	Group    string  `json:"group,omitempty"` // empty for publishing
	Rate     float64 `json:"rate"`
	Failed   float64 `json:"failed"`
	Messages uint64  `json:"messages"` // since the start
}

// totals are what the charts show.
type totals struct {
	rate                  // of the gateway
	Placed        float64 `json:"placed"` // orders per second
	Confirmed     float64 `json:"confirmed"`
	OutboxSeconds float64 `json:"outbox_seconds"` // the age of the oldest message that waits anywhere
	OutboxWaiting int64   `json:"outbox_waiting"`
	Parked        int64   `json:"parked"`
	DeadLetters   int64   `json:"dead_letters"`
	Sagas         float64 `json:"sagas"` // under way
	Stuck         float64 `json:"stuck"`
}

// moment is a sample without its parts, for the charts.
type moment struct {
	At     time.Time `json:"at"`
	Totals totals    `json:"totals"`
}

// console asks every instance of every service what it has done, once for all who watch.
type console struct {
	caller   *platform.Caller
	services []string

	mu       sync.Mutex
	past     []moment
	last     sample
	watchers map[chan struct{}]bool // each has something in it when there is a new sample
	begun    chan struct{}          // has something in it when the first watcher came

	before map[string]seen // by instance; the goroutine of run has it alone
	looked time.Time
}

// seen is what an instance said when it last answered.
type seen struct {
	platform.Traffic
	at time.Time
}

func newConsole(env platform.Env, services []string) *console {
	return &console{
		caller: env.Caller, services: append([]string{env.Name}, services...),
		watchers: map[chan struct{}]bool{}, begun: make(chan struct{}, 1), before: map[string]seen{},
	}
}

// run looks until ctx ends.
func (c *console) run(ctx context.Context) error {
	for {
		c.publish(c.look(ctx))
		c.mu.Lock()
		pause := unwatchedEvery
		if len(c.watchers) > 0 {
			pause = watchedEvery
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchedEvery): // what happened in less says little
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.begun:
		case <-time.After(pause - watchedEvery):
		}
	}
}

func (c *console) publish(s sample) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = s
	c.past = append(c.past, moment{s.At, s.Totals})
	if over := len(c.past) - remembered; over > 0 {
		c.past = append(c.past[:0], c.past[over:]...)
	}
	for w := range c.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

func (c *console) watch() (news chan struct{}, stop func()) {
	news = make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchers[news] = true
	select {
	case c.begun <- struct{}{}:
	default:
	}
	return news, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, news)
	}
}

// latest returns the last sample and what the charts show of those before.
func (c *console) latest() (sample, []moment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last, slices.Clone(c.past)
}

// ownName is what an instance calls itself, in the name by which it is found: shops that share a registry put their own
// name before it.
func ownName(service, id string) string {
	if at := strings.LastIndex(id, service+"-"); at > 0 {
		return id[at:]
	}
	return id
}

// answer is what an instance said when it was asked.
type answer struct {
	service string
	instanceState
	traffic *platform.Traffic // nil if it did not answer
}

// look asks everybody at once.
func (c *console) look(ctx context.Context) sample {
	known := map[string][]instanceState{}
	if c.caller.Instances != nil {
		for _, view := range c.caller.Instances() {
			for _, in := range view.Instances {
				known[view.Service] = append(known[view.Service], instanceState{Instance: ownName(view.Service, in.ID), Addr: in.Addr})
			}
		}
	}
	var answers []*answer
	for _, service := range c.services {
		instances := known[service]
		if len(instances) == 0 {
			instances = []instanceState{{}} // any that there is
		}
		for _, in := range instances {
			answers = append(answers, &answer{service: service, instanceState: in})
		}
	}
	ctx, cancel := context.WithTimeout(ctx, lookBudget)
	defer cancel()
	var asking sync.WaitGroup
	for _, a := range answers {
		asking.Go(func() {
			t := new(platform.Traffic)
			if err := c.caller.Ask(ctx, a.service, a.Addr, "/ops/traffic", t); err == nil {
				a.traffic, a.Up = t, true
				a.Instance = t.Instance
			}
		})
	}
	asking.Wait()
	now := time.Now().UTC()
	s := sample{At: now, Seconds: watchedEvery.Seconds(), Services: []serviceState{}, Calls: []callState{}, Flows: []flow{}}
	if !c.looked.IsZero() {
		s.Seconds = max(now.Sub(c.looked).Seconds(), 0.001)
	}
	c.looked = now
	c.sum(&s, answers)
	return s
}

// sum puts the answers together: what each instance has done since it answered before. One that does not answer is
// still known to do what it did, at a rate of nothing.
func (c *console) sum(s *sample, answers []*answer) {
	all := sums{services: map[string]*serviceState{}, took: map[string]map[int]uint64{}, calls: map[[2]string]*callState{}, flows: map[flow]*flow{}}
	for _, service := range c.services {
		all.services[service] = &serviceState{Service: service, Instances: []instanceState{}}
	}
	before := map[string]seen{}
	for _, a := range answers {
		key := a.service + " " + a.Instance
		was, known := c.before[key]
		switch {
		case a.traffic == nil && known:
			before[key] = was
			all.add(a, &was.Traffic, was.Traffic, 1)
		case a.traffic != nil:
			before[key] = seen{*a.traffic, s.At}
			since := was.Traffic
			seconds := s.At.Sub(was.at).Seconds()
			if !known || !was.Started.Equal(a.traffic.Started) { // a new one
				since, seconds = platform.Traffic{}, s.Seconds
				if len(c.before) == 0 {
					since = *a.traffic // the first look of all says what is, not what happened just now
				}
			}
			all.add(a, a.traffic, since, max(seconds, 0.001))
			s.Totals.Sagas = max(s.Totals.Sagas, a.traffic.Gauges["sagas"]) // all instances count the same sagas
			s.Totals.Stuck = max(s.Totals.Stuck, a.traffic.Gauges["stuck"])
		}
		state := all.services[a.service]
		state.Instances = append(state.Instances, a.instanceState)
	}
	c.before = before

	for _, service := range c.services {
		state := all.services[service]
		slices.SortFunc(state.Instances, func(a, b instanceState) int { return cmp.Compare(a.Instance, b.Instance) })
		s.Services = append(s.Services, *state)
		if box := state.Outbox; box != nil {
			s.Totals.OutboxSeconds = max(s.Totals.OutboxSeconds, box.OldestSeconds)
			s.Totals.OutboxWaiting += box.Waiting
			s.Totals.Parked += box.Parked
			s.Totals.DeadLetters += box.DeadLetters
		}
	}
	for _, call := range all.calls {
		s.Calls = append(s.Calls, *call)
	}
	slices.SortFunc(s.Calls, func(a, b callState) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	for _, f := range all.flows {
		s.Flows = append(s.Flows, *f)
		switch {
		case f.Group == "" && f.Topic == "order.placed":
			s.Totals.Placed = f.Rate
		case f.Group == "" && f.Topic == "order.confirmed":
			s.Totals.Confirmed = f.Rate
		}
	}
	slices.SortFunc(s.Flows, func(a, b flow) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Group, b.Group))
	})
	s.Totals.rate = all.services[c.services[0]].rate
}

// sums are those over all instances.
type sums struct {
	services map[string]*serviceState
	took     map[string]map[int]uint64 // by what it is of
	calls    map[[2]string]*callState
	flows    map[flow]*flow
}

// add adds what an instance has done in these seconds.
func (all *sums) add(a *answer, t *platform.Traffic, was platform.Traffic, seconds float64) {
	own := minus(t.Requests, was.Requests)
	a.rate = rateOf(own, seconds)
	service := all.services[a.service]
	all.plus(&service.rate, a.service, own, seconds)
	if t.Outbox != nil { // all instances have the same database
		service.Outbox = t.Outbox
	}
	for _, call := range t.Calls {
		var past platform.Tally
		for _, w := range was.Calls {
			if w.To == call.To {
				past = w.Tally
			}
		}
		key := [2]string{t.Service, call.To}
		if all.calls[key] == nil {
			all.calls[key] = &callState{From: t.Service, To: call.To}
		}
		sum := all.calls[key]
		all.plus(&sum.rate, t.Service+" "+call.To, minus(call.Tally, past), seconds)
		sum.Breaker = worse(sum.Breaker, call.Breaker)
	}
	count := func(list, past []platform.Messages) {
		for _, m := range list {
			key := flow{Service: t.Service, Topic: m.Topic, Group: m.Group}
			if all.flows[key] == nil {
				f := key
				all.flows[key] = &f
			}
			f := all.flows[key]
			f.Messages += m.Count
			for _, w := range past {
				if w.Topic == m.Topic && w.Group == m.Group {
					m.Count, m.Failed = m.Count-min(w.Count, m.Count), m.Failed-min(w.Failed, m.Failed)
				}
			}
			f.Rate += float64(m.Count) / seconds
			f.Failed += float64(m.Failed) / seconds
		}
	}
	count(t.Published, was.Published)
	count(t.Consumed, was.Consumed)
}

// plus adds a tally to a rate: rates add up, quantiles come from all durations together.
func (all *sums) plus(sum *rate, of string, t platform.Tally, seconds float64) {
	if all.took[of] == nil {
		all.took[of] = map[int]uint64{}
	}
	took := all.took[of]
	for b, n := range t.Took {
		took[b] += n
	}
	more := rateOf(platform.Tally{Count: t.Count, Errors: t.Errors, Took: took}, seconds)
	more.Rate += sum.Rate
	more.Errors += sum.Errors
	*sum = more
}

// minus is what a tally has more than an earlier one of the same instance.
func minus(t, was platform.Tally) platform.Tally {
	if t.Count < was.Count {
		return t
	}
	out := platform.Tally{Count: t.Count - was.Count, Errors: t.Errors - was.Errors, Took: maps.Clone(t.Took)}
	for b, n := range was.Took {
		out.Took[b] -= min(n, out.Took[b])
	}
	return out
}

func rateOf(t platform.Tally, seconds float64) rate {
	return rate{
		Rate: float64(t.Count) / seconds, Errors: float64(t.Errors) / seconds,
		P50: platform.Quantile(t.Took, 0.5).Seconds(), P99: platform.Quantile(t.Took, 0.99).Seconds(),
	}
}

// worse is the state of two instances' breakers to the same service, as one.
func worse(a, b platform.BreakerState) platform.BreakerState {
	rank := func(state string) int { return slices.Index([]string{"", "closed", "half-open", "open"}, state) }
	if rank(b.State) > rank(a.State) {
		a.State = b.State
	}
	a.Calls += b.Calls
	a.Failures += b.Failures
	a.Opened += b.Opened
	a.Refused += b.Refused
	return a
}

// now answers with the last sample.
func (c *console) now(w http.ResponseWriter, _ *http.Request) error {
	s, _ := c.latest()
	w.Header().Set("Cache-Control", "no-store")
	return platform.WriteJSON(w, http.StatusOK, s)
}

// live streams the samples to one who watches: first what the charts show of the past, then each as it comes.
func (c *console) live(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	news, stop := c.watch()
	defer stop()
	keep := time.NewTicker(streamKeep)
	defer keep.Stop()

	// The stream has begun: from here on its end is the only answer left.
	s, past := c.latest()
	if send(w, "past", past) != nil || send(w, "traffic", s) != nil || control.Flush() != nil {
		return nil
	}
	for {
		select {
		case <-r.Context().Done():
			return nil
		case <-platform.Draining(r.Context()):
			return nil
		case <-keep.C:
			if _, err := fmt.Fprint(w, ": still here\n\n"); err != nil {
				return nil
			}
		case <-news:
			s, _ := c.latest()
			if send(w, "traffic", s) != nil {
				return nil
			}
		}
		if control.Flush() != nil {
			return nil
		}
	}
}

func send(w http.ResponseWriter, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, data)
	return err
}
