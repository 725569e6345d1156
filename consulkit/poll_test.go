// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/consulkit"
	"github.com/dovetail-go/dovetail/discovery"
)

// fake is an agent in virtual time. Its answers are what a test needs Consul to do, which the
// real one does rarely.
type fake struct {
	answer func(q query) answer

	mu      sync.Mutex
	queries []query
}

type query struct {
	n     int // from 0
	at    time.Time
	index uint64
	wait  time.Duration
}

type answer struct {
	index   uint64
	after   time.Duration
	entries []*api.ServiceEntry
	err     error
	never   bool
}

func (f *fake) RoundTrip(r *http.Request) (*http.Response, error) {
	index, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64)
	wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	f.mu.Lock()
	q := query{len(f.queries), time.Now(), index, wait}
	f.queries = append(f.queries, q)
	f.mu.Unlock()
	a := f.answer(q)
	if a.never {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	select {
	case <-time.After(a.after):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if a.err != nil {
		return nil, a.err
	}
	body, err := json.Marshal(a.entries)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"X-Consul-Index": {strconv.FormatUint(a.index, 10)}},
		Body: io.NopCloser(bytes.NewReader(body)), Request: r,
	}, nil
}

func (f *fake) asked() []query {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.queries)
}

func entry(id string, port int) *api.ServiceEntry {
	return &api.ServiceEntry{
		Node:    &api.Node{Node: "n", Address: "10.0.0.1"},
		Service: &api.AgentService{ID: id, Service: "order", Port: port, Weights: api.AgentWeights{Passing: 1, Warning: 1}},
	}
}

type word struct {
	at  time.Time
	set discovery.Set
	err error
}

// watchFake watches for so long, and returns what was yielded.
func watchFake(t *testing.T, f *fake, cfg consulkit.ResolverConfig, d time.Duration) (words []word) {
	t.Helper()
	c := must[*consulkit.Client](t)(consulkit.New(&api.Config{HttpClient: &http.Client{Transport: f}}))
	r := must[*consulkit.Resolver](t)(consulkit.NewResolver(c, cfg))
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	for set, err := range r.Watch(ctx, "order") {
		words = append(words, word{time.Now(), set, err})
	}
	return words
}

func ids(set discovery.Set) string {
	var all []string
	for _, in := range set.Instances {
		all = append(all, strings.TrimPrefix(in.ID, "n/"))
	}
	return strings.Join(all, " ")
}

// blocking answers as an agent on which nothing happens.
func blocking(q query, index uint64, entries ...*api.ServiceEntry) answer {
	a := answer{index: index, entries: entries}
	if q.index >= index {
		a.after = q.wait
	}
	return a
}

func TestQueries(t *testing.T) {
	t.Parallel()
	bubble := func(name string, fn func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, fn) })
	}
	a, b, c := entry("a", 1), entry("b", 2), entry("c", 3)
	away := errors.New("connection refused")

	bubble("the first query does not wait, the next ones wait for the index after the last", func(t *testing.T) {
		f := &fake{answer: func(q query) answer { return blocking(q, 7, a) }}
		words := watchFake(t, f, consulkit.ResolverConfig{}, 10*time.Minute)
		if len(words) != 1 || words[0].err != nil || ids(words[0].set) != "a" {
			t.Errorf("words = %v, want one set of a", words)
		}
		queries := f.asked()
		if len(queries) > 12 || queries[0].index != 0 || queries[1].index != 7 || queries[1].wait != time.Minute {
			t.Errorf("queries = %v, want one that does not wait and then one a minute with index 7", queries)
		}
	})
	bubble("an index that goes backwards begins anew", func(t *testing.T) {
		f := &fake{answer: func(q query) answer {
			if q.n == 0 {
				return answer{index: 100, entries: []*api.ServiceEntry{a}}
			}
			return blocking(q, 5, a, b) // a restored server
		}}
		f.answer = func(inner func(query) answer) func(query) answer {
			return func(q query) answer {
				got := inner(q)
				if q.index == 100 {
					got.after = time.Second
				}
				return got
			}
		}(f.answer)
		words := watchFake(t, f, consulkit.ResolverConfig{}, time.Hour)
		if len(words) != 2 || ids(words[1].set) != "a b" {
			t.Errorf("words = %v, want a, then a b", words)
		}
		var indexes []uint64
		for _, q := range f.asked()[:4] {
			indexes = append(indexes, q.index)
		}
		if want := []uint64{0, 100, 0, 5}; !slices.Equal(indexes, want) {
			t.Errorf("indexes = %v, want %v", indexes, want)
		}
	})
	bubble("an index of zero does not become a query that does not wait", func(t *testing.T) {
		f := &fake{answer: func(q query) answer { return blocking(q, 0, a) }}
		watchFake(t, f, consulkit.ResolverConfig{}, 10*time.Minute)
		if queries := f.asked(); len(queries) > 12 || queries[1].index != 1 {
			t.Errorf("%d queries in 10 minutes, the second with index %d, want about ten with index 1", len(queries), queries[1].index)
		}
	})
	bubble("answers without news and without a wait are asked for in bursts only", func(t *testing.T) {
		f := &fake{answer: func(q query) answer { return answer{index: uint64(q.n + 1), entries: []*api.ServiceEntry{a}} }}
		words := watchFake(t, f, consulkit.ResolverConfig{}, time.Minute)
		if n := len(f.asked()); n < 500 || n > 650 {
			t.Errorf("%d queries in a minute, want about 600", n)
		}
		if len(words) != 1 {
			t.Errorf("%d words, want 1", len(words))
		}
	})
	bubble("a connection that died silently is given up, but not before the wait is over", func(t *testing.T) {
		f := &fake{answer: func(q query) answer {
			if q.n == 1 {
				return answer{never: true}
			}
			return blocking(q, 7, a)
		}}
		start := time.Now()
		words := watchFake(t, f, consulkit.ResolverConfig{Wait: 2 * time.Minute}, time.Hour)
		if len(words) != 3 || words[1].err == nil || !words[1].set.Stale || words[2].err != nil {
			t.Fatalf("words = %v, want a set, an error beside it, a set", words)
		}
		if d := words[1].at.Sub(start); d < 2*time.Minute+8*time.Second || d > 3*time.Minute {
			t.Errorf("given up after %v, want the wait of 2m, its sixteenth, and some", d)
		}
		if !strings.Contains(words[1].err.Error(), "no answer within 2m17.5s") {
			t.Errorf("error = %v, want it to say what was waited for", words[1].err)
		}
	})
	bubble("after an outage a query does not wait for an index that the servers may never reach", func(t *testing.T) {
		f := &fake{answer: func(q query) answer {
			if q.n == 1 {
				return answer{err: away, after: time.Second}
			}
			return blocking(q, 900, a)
		}}
		watchFake(t, f, consulkit.ResolverConfig{}, time.Minute)
		if got := f.asked()[2].index; got != 0 {
			t.Errorf("index after the outage = %d, want none", got)
		}
	})
	bubble("failures are followed by ever longer pauses, up to 5 s", func(t *testing.T) {
		f := &fake{answer: func(query) answer { return answer{err: away} }}
		watchFake(t, f, consulkit.ResolverConfig{}, 10*time.Minute)
		if n := len(f.asked()); n < 150 || n > 300 {
			t.Errorf("%d queries in 10 minutes of outage, want about 200", n)
		}
	})
	bubble("processes that lost the agent together do not come back together", func(t *testing.T) {
		const processes, outage = 300, time.Minute
		back := time.Now().Add(time.Second + outage)
		f := &fake{answer: func(q query) answer {
			if q.at.Before(back) && q.at.After(back.Add(-outage)) {
				return answer{err: away}
			}
			got := blocking(q, 7, a)
			if q.at.Before(back) {
				got.after = min(got.after, back.Add(-outage).Sub(q.at))
				if got.after > 0 {
					got.err = away
				}
			}
			return got
		}}
		var all sync.WaitGroup
		for range processes {
			all.Go(func() { watchFake(t, f, consulkit.ResolverConfig{}, 2*time.Minute) })
		}
		all.Wait()
		buckets := map[int64]int{}
		after := 0
		for _, q := range f.asked() {
			if q.index == 0 && !q.at.Before(back) {
				buckets[int64(q.at.Sub(back)/(100*time.Millisecond))]++
				after++
			}
		}
		most := 0
		for _, n := range buckets {
			most = max(most, n)
		}
		t.Logf("%d processes, an outage of %v: %.1f queries each; %d came back, at most %d of them in the same 100 ms",
			processes, outage, float64(len(f.asked()))/processes, after, most)
		if after != processes || most > processes/10 {
			t.Errorf("%d came back, at most %d in 100 ms; want all %d, at most a tenth at a time", after, most, processes)
		}
	})
	bubble("for some time after an outage a set that lacks known instances is held back", func(t *testing.T) {
		start := time.Now()
		f := &fake{}
		f.answer = func(q query) answer {
			switch now := q.at.Sub(start); {
			case q.n == 0:
				return answer{index: 7, entries: []*api.ServiceEntry{a, b}}
			case q.n == 1:
				return answer{err: away}
			case now < 3*time.Second:
				return blocking(query{index: q.index, wait: min(q.wait, 3*time.Second-now)}, 1)
			case now < 6*time.Second:
				return blocking(query{index: q.index, wait: min(q.wait, 6*time.Second-now)}, 2, b, c)
			default:
				return blocking(q, 3, a, c)
			}
		}
		var got []string
		var at []time.Duration
		for _, w := range watchFake(t, f, consulkit.ResolverConfig{}, time.Minute) {
			got = append(got, fmt.Sprintf("%s stale=%v err=%v", ids(w.set), w.set.Stale, w.err != nil))
			at = append(at, w.at.Sub(start))
		}
		want := []string{"a b stale=false err=false", "a b stale=true err=true", "a c stale=false err=false"}
		if !slices.Equal(got, want) {
			t.Errorf("words = %q, want %q", got, want)
		} else if at[2] < 10*time.Second || at[2] > 12*time.Second {
			t.Errorf("the loss of b was believed after %v, want 10 s after the outage", at[2])
		}
	})
}

func TestInstances(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		warning := func(e *api.ServiceEntry) *api.ServiceEntry {
			e.Checks = api.HealthChecks{{Status: api.HealthPassing}, {Status: api.HealthWarning}}
			e.Service.Weights = api.AgentWeights{Passing: 10, Warning: 2}
			return e
		}
		critical := entry("critical", 9)
		critical.Checks = api.HealthChecks{{Status: api.HealthCritical}}
		other := entry("web", 3) // the same ID on another node, which is usual in Consul
		other.Node = &api.Node{Node: "m", Address: "fd00::1", Locality: &api.Locality{Zone: "z"}}
		own := entry("order:x", 4)
		own.Service.Address = "10.9.9.9"
		own.Service.Meta = map[string]string{"dovetail-id": "x", "zone": "a", "version": "v2", "dovetail-priority": "1", "team": "blue"}
		again := entry("order:x", 5)
		again.Node = other.Node
		again.Service.Meta = map[string]string{"dovetail-id": "x"}
		f := &fake{answer: func(q query) answer {
			return blocking(q, 7, entry("web", 1), entry("portless", 0), warning(entry("warn", 2)), critical, other, own, again)
		}}
		for _, tt := range []struct {
			cfg  consulkit.ResolverConfig
			want string
		}{
			{consulkit.ResolverConfig{Logger: quiet}, "m/order:x@[fd00::1]:5/z/1 m/web@[fd00::1]:3/z/1 n/web@10.0.0.1:1//1 x@10.9.9.9:4/a/1"},
			{consulkit.ResolverConfig{Logger: quiet, Warning: true}, "m/order:x@[fd00::1]:5/z/1 m/web@[fd00::1]:3/z/1 n/warn@10.0.0.1:2//2 n/web@10.0.0.1:1//1 x@10.9.9.9:4/a/1"},
		} {
			words := watchFake(t, f, tt.cfg, time.Second)
			if len(words) != 1 {
				t.Fatalf("words = %v, want one", words)
			}
			var got []string
			for _, in := range words[0].set.Instances {
				got = append(got, fmt.Sprintf("%s@%s/%s/%d", in.ID, in.Addr, in.Zone, in.Weight))
				if in.ID == "x" && (in.Version != "v2" || in.Priority != 1 || len(in.Meta) != 1 || in.Meta["team"] != "blue") {
					t.Errorf("instance = %+v, want version v2, priority 1, and the team alone as metadata", in)
				}
			}
			if text := strings.Join(got, " "); text != tt.want {
				t.Errorf("instances = %s, want %s", text, tt.want)
			}
		}
	})
}
