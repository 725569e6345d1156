// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// Traffic is what one instance of a service has done since it started. All numbers only grow, so that
// whoever asks twice knows what happened in between, however long that was.
type Traffic struct {
	Service  string    `json:"service"`
	Instance string    `json:"instance"`
	Started  time.Time `json:"started"`
	// Requests are those that people and other services made. What operators ask, and streams that
	// last as long as somebody watches, are not among them.
	Requests Tally `json:"requests"`
	// Calls are those to other services, refused ones included.
	Calls []Calls `json:"calls"`
	// Published and Consumed count messages by topic, Consumed by group too.
	Published []Messages `json:"published"`
	Consumed  []Messages `json:"consumed"`
	// Groups are the service's consumers.
	Groups []GroupState `json:"groups"`
	// Readers read streams of events. All instances tell of the same.
	Readers []Reader `json:"readers,omitempty"`
	// Outbox is nil for a service that says nothing.
	Outbox *OutboxState `json:"outbox,omitempty"`
	// Gauges are what the service has to say of itself by name, such as how many sagas are under way.
	Gauges map[string]float64 `json:"gauges,omitempty"`
}

// Tally counts and times what ended.
type Tally struct {
	Count  uint64 `json:"count"`
	Errors uint64 `json:"errors"`
	// Took is a histogram: how many took as long as the bucket of this number says. See [Quantile].
	Took map[int]uint64 `json:"took"`
}

// Calls are those to one other service, with the breaker that guards them.
type Calls struct {
	To string `json:"to"`
	Tally
	Breaker BreakerState `json:"breaker"`
}

// BreakerState is the state of a breaker and what is in its window; Opened and Refused count from the start.
type BreakerState struct {
	State    string `json:"state"`
	Calls    int64  `json:"calls"`
	Failures int64  `json:"failures"`
	Opened   uint64 `json:"opened"`
	Refused  uint64 `json:"refused"`
}

// Messages counts those of one topic.
type Messages struct {
	Topic  string `json:"topic"`
	Group  string `json:"group,omitempty"`
	Count  uint64 `json:"count"`
	Failed uint64 `json:"failed,omitempty"`
}

// OutboxState is how much waits in an outbox, and among dead letters.
type OutboxState struct {
	Waiting       int64   `json:"waiting"`
	Parked        int64   `json:"parked"`
	OldestSeconds float64 `json:"oldest_seconds"`
	DeadLetters   int64   `json:"dead_letters"`
}

// The buckets of a Tally grow by a fifth from 10 microseconds on, so a quantile is wrong by a tenth at most.
const (
	shortest = 10 * time.Microsecond
	growth   = 1.2
	buckets  = 90 // up to more than a minute
)

func bucketOf(d time.Duration) int {
	if d <= shortest {
		return 0
	}
	return min(int(math.Ceil(math.Log(float64(d)/float64(shortest))/math.Log(growth))), buckets-1)
}

// Quantile returns how long the slowest of the fastest q of all took, such as 0.99. It is zero if there
// are none.
func Quantile(took map[int]uint64, q float64) time.Duration {
	var all uint64
	for _, n := range took {
		all += n
	}
	want := max(uint64(math.Ceil(q*float64(all))), 1)
	for b, sum := 0, uint64(0); b < buckets; b++ {
		if sum += took[b]; sum >= want {
			return time.Duration(float64(shortest) * math.Pow(growth, float64(b)-0.5))
		}
	}
	return 0
}

func (t *Tally) add(took time.Duration, failed bool) {
	t.Count++
	if failed {
		t.Errors++
	}
	if t.Took == nil {
		t.Took = map[int]uint64{}
	}
	t.Took[bucketOf(took)]++
}

func (t Tally) clone() Tally {
	took := make(map[int]uint64, len(t.Took))
	for b, n := range t.Took {
		took[b] = n
	}
	t.Took = took
	return t
}

// tallies are Tallys by name. The zero value is ready, and a nil one counts nothing.
type tallies struct {
	mu     sync.Mutex
	byName map[string]*Tally
}

func (t *tallies) add(name string, took time.Duration, failed bool) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byName == nil {
		t.byName = map[string]*Tally{}
	}
	if t.byName[name] == nil {
		t.byName[name] = &Tally{}
	}
	t.byName[name].add(took, failed)
}

func (t *tallies) get(name string) Tally {
	t.mu.Lock()
	defer t.mu.Unlock()
	if one := t.byName[name]; one != nil {
		return one.clone()
	}
	return Tally{Took: map[int]uint64{}}
}

// RoundTrip implements [http.RoundTripper] and counts: the answer's head ends a call.
func (g *Guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	start := time.Now()
	resp, err := g.Transport.RoundTrip(r)
	if !strings.HasPrefix(r.URL.Path, "/ops/") && r.URL.Path != "/readyz" { // the console itself
		g.calls.add(r.URL.Host, time.Since(start), err != nil && r.Context().Err() == nil || err == nil && resp.StatusCode >= http.StatusInternalServerError)
	}
	return resp, err
}

// counted counts the calls by gRPC to one service. What the service refused is an answer, no error.
func (t *tallies) counted(service string) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		start := time.Now()
		err := invoker(ctx, method, req, reply, cc, opts...)
		answer, answered := err.(*Error) //nolint:errorlint // understand returns it as it is
		t.add(service, time.Since(start), err != nil && (!answered || answer.Status >= http.StatusInternalServerError))
		return err
	}
}

// messageCounts counts messages. The zero value is ready.
type messageCounts struct {
	mu     sync.Mutex
	counts map[Messages]*Messages // by topic and group
}

func (c *messageCounts) add(topic, group string, failed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := Messages{Topic: topic, Group: group}
	if c.counts == nil {
		c.counts = map[Messages]*Messages{}
	}
	if c.counts[key] == nil {
		c.counts[key] = &Messages{Topic: topic, Group: group}
	}
	if failed {
		c.counts[key].Failed++
	} else {
		c.counts[key].Count++
	}
}

func (c *messageCounts) list() []Messages {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Messages, 0, len(c.counts))
	for _, m := range c.counts {
		out = append(out, *m)
	}
	slices.SortFunc(out, func(a, b Messages) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Group, b.Group))
	})
	return out
}

// state tells what waits. It asks the database, and says nothing if that does not answer.
func (b *Bus) state(ctx context.Context) *OutboxState {
	stats, err := b.outbox.Stats(ctx)
	if err != nil {
		return nil
	}
	s := &OutboxState{Waiting: int64(stats.Depth), Parked: int64(stats.Parked), OldestSeconds: stats.OldestAge.Seconds()}
	if err := b.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM dead_letters`).Scan(&s.DeadLetters); err != nil {
		return nil
	}
	return s
}

// showTraffic tells operators what the service has done.
func showTraffic(mux *http.ServeMux, requests *tallies, env Env, s Service) {
	started := time.Now().UTC()
	mux.Handle("GET /ops/traffic", env.Auth.Require(Handle(func(w http.ResponseWriter, r *http.Request) error {
		t := Traffic{
			Service: env.Name, Instance: env.Instance, Started: started,
			Requests: requests.get(""), Calls: env.Caller.traffic(), Published: []Messages{}, Consumed: []Messages{}, Groups: []GroupState{},
		}
		if bus := busOf(s); bus != nil {
			t.Published, t.Consumed, t.Outbox = bus.published.list(), bus.consumed.list(), bus.state(r.Context())
			t.Groups = bus.groups()
		}
		if reads, ok := s.(interface {
			Readers(ctx context.Context) ([]Reader, error)
		}); ok {
			var err error
			if t.Readers, err = reads.Readers(r.Context()); err != nil {
				return err
			}
		}
		if gauges, ok := s.(interface {
			Gauges(ctx context.Context) (map[string]float64, error)
		}); ok {
			var err error
			if t.Gauges, err = gauges.Gauges(r.Context()); err != nil {
				return err
			}
		}
		return WriteJSON(w, http.StatusOK, t)
	}), RoleOperator))
}

// served counts one request.
func (t *tallies) served(w *statusRecorder, r *http.Request, took time.Duration) {
	if strings.HasPrefix(r.URL.Path, "/ops") || strings.HasPrefix(r.URL.Path, "/assets/") || w.Header().Get("Content-Type") == "text/event-stream" {
		return
	}
	t.add("", took, w.Status() >= http.StatusInternalServerError)
}

// servedRPC counts one call by gRPC.
func (t *tallies) servedRPC(code codes.Code, took time.Duration) {
	switch code {
	case codes.Internal, codes.Unknown, codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		t.add("", took, true)
	default:
		t.add("", took, false)
	}
}

// traffic describes the calls to all services that were called so far.
func (c *Caller) traffic() []Calls {
	out := []Calls{}
	if c.Guards == nil {
		return out
	}
	for _, b := range c.breakers("") {
		t := Calls{To: b.To, Breaker: BreakerState{b.State, b.Calls, b.Failures, b.Opened, b.Refused}}
		t.Tally = c.Guards.calls.get(b.To)
		if c.RPC != nil && t.Count == 0 { // a service speaks one or the other
			t.Tally = c.RPC.calls.get(b.To)
		}
		if t.Count > 0 {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b Calls) int { return cmp.Compare(a.To, b.To) })
	return out
}

// Ask gets JSON from one instance of a service at its address, around all guards: who looks at what is broken must not
// be kept from it, nor count. With an empty address it takes the usual way to any instance.
func (c *Caller) Ask(ctx context.Context, service, addr, path string, out any) error {
	direct := *c
	if addr == "" || c.Below == nil {
		addr = service
	} else {
		ctx = context.WithValue(ctx, serviceKey{}, service)
		direct.Client = &http.Client{Transport: c.Below}
	}
	if err := direct.Do(ctx, http.MethodGet, "http://"+addr+path, nil, nil, out); err != nil {
		return fmt.Errorf("%s at %s: %w", service, addr, err)
	}
	return nil
}
