// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
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
	checkedEvery   = 5 * time.Second // a check of the invariants is a look at every database
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
	Groups   []groupState   `json:"groups"`
	Readers  []readerState  `json:"readers"`
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

// groupState is how far a group of consumers is behind what it was told.
type groupState struct {
	Service string `json:"service"`
	Group   string `json:"group"`
	// Known tells that the broker was asked, and has answered. Otherwise Behind is what instances have in hand.
	Known bool `json:"known"`
	// Behind is how many messages the group has not finished, those included that it has begun.
	Behind int64 `json:"behind"`
	// OldestSeconds is the age of the oldest of them that an instance has begun, or for how long none has been
	// finished, if that is longer: nobody knows the age of what nobody takes.
	OldestSeconds float64 `json:"oldest_seconds"`
	// DelaySeconds is the time from the last event to the commit of what was made of it, the longest of all instances.
	DelaySeconds float64 `json:"delay_seconds"`
	Consumers    int     `json:"consumers"`
}

// readerState is how far a reader of a service is in a stream of events.
type readerState struct {
	Service string `json:"service"`
	platform.Reader
}

// totals are what the charts show.
type totals struct {
	rate                  // of the gateway
	Placed        float64 `json:"placed"` // orders per second
	Confirmed     float64 `json:"confirmed"`
	OutboxSeconds float64 `json:"outbox_seconds"` // the age of the oldest message that waits anywhere
	OutboxWaiting int64   `json:"outbox_waiting"`
	Behind        int64   `json:"behind"`         // of all groups together
	BehindSeconds float64 `json:"behind_seconds"` // the age of the oldest
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

// console asks every instance of every service what it has done, the broker what waits, and whoever controls the shop
// what goes on there: once for all who watch.
type console struct {
	caller   *platform.Caller
	queues   platform.Queues // nil if the broker cannot tell
	services []string
	groups   []string
	control  http.Handler // nil if nobody controls the whole shop

	mu       sync.Mutex
	past     []moment
	last     sample
	told     map[string]news        // the newest of each kind, by name
	n        uint64                 // of the last news
	watchers map[chan struct{}]bool // each has something in it when there is news
	begun    chan struct{}          // has something in it when the first watcher came

	// The goroutine of run has these alone.
	before map[string]seen // by instance
	looked time.Time
	stands map[string]stand // by group
}

// news is what watchers are told of one kind.
type news struct {
	n    uint64
	data []byte // JSON, on one line
}

// The kinds of news, in the order in which they are told.
const (
	kindTraffic    = "traffic"
	kindChanged    = "changed" // what is not in the stream may be another than it was
	kindFaults     = "faults"
	kindLoad       = "load"
	kindInvariants = "invariants"
)

var kinds = []string{kindTraffic, kindChanged, kindFaults, kindLoad, kindInvariants}

// stand is since when a group that has something to do has finished nothing.
type stand struct {
	handled uint64
	since   time.Time
}

// seen is what an instance said when it last answered.
type seen struct {
	platform.Traffic
	at time.Time
}

func newConsole(env platform.Env, services, groups []string) *console {
	queues, _ := env.Broker.(platform.Queues)
	return &console{
		caller: env.Caller, queues: queues, services: append([]string{env.Name}, services...), groups: groups, control: env.Control,
		told: map[string]news{}, watchers: map[chan struct{}]bool{}, begun: make(chan struct{}, 1), before: map[string]seen{}, stands: map[string]stand{},
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
	changed := s.busy() || c.last.busy() || s.differs(c.last)
	c.last = s
	c.past = append(c.past, moment{s.At, s.Totals})
	if over := len(c.past) - remembered; over > 0 {
		c.past = append(c.past[:0], c.past[over:]...)
	}
	c.tell(kindTraffic, s)
	if changed {
		c.tell(kindChanged, map[string]time.Time{"at": s.At})
	}
}

// busy tells that something is under way: whatever shows it may be another the next time.
func (s sample) busy() bool {
	return s.Totals.Sagas > s.Totals.Stuck || s.Totals.OutboxWaiting > 0 || s.Totals.Behind > 0 ||
		slices.ContainsFunc(s.Flows, func(f flow) bool { return f.Rate > 0 || f.Failed > 0 }) ||
		slices.ContainsFunc(s.Readers, func(r readerState) bool { return r.Status == "building" })
}

// differs tells that something was decided or given up since another sample.
func (s sample) differs(o sample) bool {
	a, b := s.Totals, o.Totals
	return a.Sagas != b.Sagas || a.Stuck != b.Stuck || a.Parked != b.Parked || a.DeadLetters != b.DeadLetters
}

// tell has watchers told of what is new. The console is locked.
func (c *console) tell(kind string, v any) {
	data, err := json.Marshal(v)
	if err != nil || bytes.Equal(data, c.told[kind].data) {
		return
	}
	c.n++
	c.told[kind] = news{c.n, data}
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

// since returns the news of a kind that are newer than number n.
func (c *console) since(kind string, n uint64) (news, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	told := c.told[kind]
	return told, told.n > n
}

// desk asks, while somebody watches, what goes on where the whole shop is controlled, until ctx ends.
func (c *console) desk(ctx context.Context) error {
	return platform.RunAll(ctx,
		func(ctx context.Context) error { return c.relay(ctx, kindFaults, "/ops/api/chaos", watchedEvery) },
		func(ctx context.Context) error { return c.relay(ctx, kindLoad, "/ops/api/load", watchedEvery) },
		func(ctx context.Context) error {
			return c.relay(ctx, kindInvariants, "/ops/api/invariants", checkedEvery)
		},
	)
}

// relay tells watchers what control says at a path. What it does not say they hear the next time.
func (c *console) relay(ctx context.Context, kind, path string, every time.Duration) error {
	for {
		c.mu.Lock()
		watched := len(c.watchers) > 0
		if !watched {
			delete(c.told, kind) // who comes next is not told what was
		}
		c.mu.Unlock()
		pause := watchedEvery
		if watched {
			pause = every
			asking, cancel := context.WithTimeout(ctx, checkTimeout)
			answer, err := asked(asking, c.control, path)
			cancel()
			if err == nil {
				c.mu.Lock()
				c.tell(kind, json.RawMessage(answer))
				c.mu.Unlock()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// latest returns the last sample.
func (c *console) latest() sample {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// pastNow returns what the charts show of the past, and the number of the last news.
func (c *console) pastNow() ([]moment, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]moment{}, c.past...), c.n // not null, even before the first look
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
	known := c.caller.Known()
	var answers []*answer
	for _, service := range c.services {
		if len(known[service]) == 0 {
			answers = append(answers, &answer{service: service}) // any that there is
		}
		for _, in := range known[service] {
			answers = append(answers, &answer{service: service, instanceState: instanceState{Instance: ownName(service, in.ID), Addr: in.Addr}})
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
	var queues []platform.Queue // none if the broker cannot tell, or does not answer
	if c.queues != nil && len(c.groups) > 0 {
		asking.Go(func() { queues, _ = c.queues.Queues(ctx, c.groups...) })
	}
	asking.Wait()
	now := time.Now().UTC()
	s := sample{
		At: now, Seconds: watchedEvery.Seconds(), Services: []serviceState{}, Calls: []callState{}, Flows: []flow{}, Groups: []groupState{}, Readers: []readerState{},
	}
	if !c.looked.IsZero() {
		s.Seconds = max(now.Sub(c.looked).Seconds(), 0.001)
	}
	c.looked = now
	c.sum(&s, answers)
	c.behind(&s, answers, queues)
	return s
}

// behind puts together how far the groups are behind, and the readers of streams.
func (c *console) behind(s *sample, answers []*answer, queues []platform.Queue) {
	groups := map[string]*groupState{}
	for _, name := range c.groups {
		groups[name] = &groupState{Service: serviceOf(name), Group: name}
	}
	readers, answered := map[string][]platform.Reader{}, map[string]bool{}
	for _, a := range answers {
		if a.traffic == nil {
			continue
		}
		answered[a.service] = true
		readers[a.service] = a.traffic.Readers
		for _, in := range a.traffic.Groups {
			g := groups[in.Group]
			if g == nil { // it reads a stream
				continue
			}
			g.Behind += in.InHand
			g.OldestSeconds = max(g.OldestSeconds, in.OldestSeconds)
			g.DelaySeconds = max(g.DelaySeconds, in.DelaySeconds)
		}
	}
	for _, q := range queues {
		if g := groups[q.Group]; g != nil {
			g.Known, g.Behind, g.Consumers = true, q.Waiting+max(q.InHand, g.Behind), q.Consumers
		}
	}
	handled := map[string]uint64{}
	for _, f := range s.Flows {
		handled[f.Group] += f.Messages
	}
	for _, name := range c.groups {
		g := groups[name]
		stood, standing := c.stands[name]
		switch {
		case g.Behind == 0:
			delete(c.stands, name)
		case !standing || stood.handled != handled[name]:
			c.stands[name] = stand{handled[name], s.At}
		default:
			g.OldestSeconds = max(g.OldestSeconds, s.At.Sub(stood.since).Seconds())
		}
		s.Totals.Behind += g.Behind
		s.Totals.BehindSeconds = max(s.Totals.BehindSeconds, g.OldestSeconds)
		s.Groups = append(s.Groups, *g)
	}
	for _, service := range c.services {
		for _, r := range readers[service] {
			s.Readers = append(s.Readers, readerState{service, r})
		}
		for _, r := range c.last.Readers {
			if r.Service == service && !answered[service] { // it is where it was
				s.Readers = append(s.Readers, r)
			}
		}
	}
}

// serviceOf is whose a group is: it is named after its service, and a part of it after a dot.
func serviceOf(group string) string {
	service, _, _ := strings.Cut(group, ".")
	return service
}

// sum puts the answers together: what each instance has done since it answered before. One that does not answer is
// still known to do what it did, at a rate of nothing.
func (c *console) sum(s *sample, answers []*answer) {
	all := sums{services: map[string]*serviceState{}, took: map[string]map[int]uint64{}, calls: map[[2]string]*callState{}, flows: map[flow]*flow{}}
	for _, service := range c.services {
		all.services[service] = &serviceState{Service: service, Instances: []instanceState{}}
	}
	before := map[string]seen{}
	counted := false // somebody has told how many sagas there are
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
			if g := a.traffic.Gauges; g != nil {
				counted = true
				s.Totals.Sagas, s.Totals.Stuck = max(s.Totals.Sagas, g["sagas"]), max(s.Totals.Stuck, g["stuck"]) // all instances count the same sagas
			}
		}
		state := all.services[a.service]
		state.Instances = append(state.Instances, a.instanceState)
	}
	c.before = before
	if !counted { // as many as before: that there are none would be news
		s.Totals.Sagas, s.Totals.Stuck = c.last.Totals.Sagas, c.last.Totals.Stuck
	}

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
	return platform.WriteJSON(w, http.StatusOK, c.latest())
}

// live streams what is new to one who watches: first what the charts show of the past, then the newest of each kind,
// then each as it comes. Who reads too slowly misses what was replaced meanwhile, and nothing else.
func (c *console) live(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	news, stop := c.watch()
	defer stop()
	keep := time.NewTicker(streamKeep)
	defer keep.Stop()

	// The stream has begun: from here on its end is the only answer left.
	past, last := c.pastNow()
	if send(w, "past", past) != nil {
		return nil
	}
	heard := map[string]uint64{kindChanged: last} // the page that opens has just looked
	for {
		for _, kind := range kinds {
			if told, ok := c.since(kind, heard[kind]); ok {
				heard[kind] = told.n
				if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, told.data); err != nil {
					return nil
				}
			}
		}
		if control.Flush() != nil {
			return nil
		}
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
