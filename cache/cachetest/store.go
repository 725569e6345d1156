// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cachetest

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/cache"
)

// RunStore holds a [cache.Store] to its contract, one subtest for each sentence. open returns an
// empty store. It uses keys of its own and leaves them behind.
func RunStore(t *testing.T, open func(t *testing.T) cache.Store) {
	for _, c := range []struct {
		name string
		run  func(s suite)
	}{
		{"a new key is not found and gives the lease", suite.newKey},
		{"of many callers at once one gets the lease", suite.one},
		{"while one has the lease others are told how long at most", suite.busy},
		{"a released lease is given again", suite.released},
		{"who has no lease releases none", suite.foreignRelease},
		{"what was put is found by everybody as it was", suite.found},
		{"a negative item is found as one", suite.negative},
		{"a fresh value gives no lease", suite.fresh},
		{"a fresh value gives the lease to one who asks early enough", suite.early},
		{"an expired value is found and gives the lease", suite.expired},
		{"a value is gone after its stale time", suite.gone},
		{"without the lease nothing is put", suite.foreignPut},
		{"a lease is for one put", suite.twice},
		{"a lease that ran out is given to another, and its first owner puts nothing", suite.ranOut},
		{"what is deleted is gone", suite.deleted},
		{"a load that began before a delete puts nothing", suite.fenced},
		{"a second delete for the same event leaves what was loaded since", suite.sameEvent},
		{"a delete for another event deletes", suite.otherEvent},
		{"keys are apart", suite.apart},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(suite{t, open(t)}) })
	}
}

type suite struct {
	*testing.T
	s cache.Store
}

const key = "products:42"

func (s suite) take(key string, early time.Duration) cache.Held {
	s.Helper()
	h, err := s.s.Take(s.Context(), key, cache.Ask{Lease: time.Minute, Early: early})
	if err != nil {
		s.Fatalf("Take = %v, want nil", err)
	}
	return h
}

// lease takes the lease of key, which must be free.
func (s suite) lease(key string) string {
	s.Helper()
	h := s.take(key, 0)
	if h.Token == "" {
		s.Fatalf("Take = %+v, want the lease", h)
	}
	return h.Token
}

func (s suite) put(key, token string, it cache.Item, want bool) {
	s.Helper()
	stored, err := s.s.Put(s.Context(), key, token, it)
	if err != nil || stored != want {
		s.Fatalf("Put = %v, %v, want %v", stored, err, want)
	}
}

func (s suite) remove(event string, keys ...string) {
	s.Helper()
	if err := s.s.Delete(s.Context(), event, keys...); err != nil {
		s.Fatalf("Delete = %v, want nil", err)
	}
}

func (s suite) want(key, value string) {
	s.Helper()
	if h := s.take(key, 0); !h.Found || string(h.Value) != value {
		s.Errorf("Take = %+v, want the value %q", h, value)
	}
}

func (s suite) wantNone(key string) cache.Held {
	s.Helper()
	h := s.take(key, 0)
	if h.Found {
		s.Errorf("Take = %+v, want nothing found", h)
	}
	return h
}

// eventually polls until ok.
func (s suite) eventually(what string, ok func() bool) {
	s.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("not in 30 s: %s", what)
		}
	}
}

func item(value string) cache.Item {
	return cache.Item{Value: []byte(value), Fresh: time.Hour, Stale: time.Hour, Took: 3 * time.Millisecond}
}

func (s suite) newKey() {
	if h := s.wantNone(key); h.Token == "" || h.Busy != 0 {
		s.Errorf("Take = %+v, want the lease", h)
	}
}

func (s suite) one() {
	var wg sync.WaitGroup
	tokens := make(chan string, 50)
	for range cap(tokens) {
		wg.Go(func() {
			h, err := s.s.Take(s.Context(), key, cache.Ask{Lease: time.Minute})
			if err != nil {
				s.Errorf("Take = %v, want nil", err)
			}
			if h.Token != "" {
				tokens <- h.Token
			}
		})
	}
	wg.Wait()
	if len(tokens) != 1 {
		s.Errorf("%d leases, want 1", len(tokens))
	}
}

func (s suite) busy() {
	s.lease(key)
	if h := s.take(key, 0); h.Token != "" || h.Busy <= 0 || h.Busy > time.Minute {
		s.Errorf("Take = %+v, want it busy for up to a minute", h)
	}
}

func (s suite) released() {
	if err := s.s.Release(s.Context(), key, s.lease(key)); err != nil {
		s.Fatalf("Release = %v, want nil", err)
	}
	s.lease(key)
}

func (s suite) foreignRelease() {
	token := s.lease(key)
	for _, foreign := range []string{"", "foreign"} {
		if err := s.s.Release(s.Context(), key, foreign); err != nil {
			s.Fatalf("Release = %v, want nil", err)
		}
	}
	if h := s.take(key, 0); h.Token != "" {
		s.Errorf("Take = %+v, want it busy", h)
	}
	s.put(key, token, item("v"), true)
}

func (s suite) found() {
	for i, value := range []string{"value", "", "\x00\xff binary \r\n"} {
		k := fmt.Sprint(key, i)
		s.put(k, s.lease(k), item(value), true)
		h := s.take(k, 0)
		if !h.Found || h.Negative || !bytes.Equal(h.Value, []byte(value)) || h.Took != 3*time.Millisecond {
			s.Errorf("Take = %+v, want %q, which took 3ms", h, value)
		}
		if h.Fresh <= 0 || h.Fresh > time.Hour || h.Stale != time.Hour || h.Age < 0 || h.Fresh+h.Age < time.Hour-time.Millisecond {
			s.Errorf("Take = %+v, want it fresh for the rest of an hour and stale for another", h)
		}
	}
}

func (s suite) negative() {
	s.put(key, s.lease(key), cache.Item{Negative: true, Fresh: time.Hour}, true)
	if h := s.take(key, 0); !h.Found || !h.Negative || len(h.Value) != 0 {
		s.Errorf("Take = %+v, want a negative item", h)
	}
}

func (s suite) fresh() {
	s.put(key, s.lease(key), item("v"), true)
	if h := s.take(key, time.Minute); h.Token != "" || h.Busy != 0 {
		s.Errorf("Take = %+v, want no lease", h)
	}
}

func (s suite) early() {
	s.put(key, s.lease(key), item("v"), true)
	h := s.take(key, time.Hour)
	if h.Token == "" || !h.Found || string(h.Value) != "v" || h.Fresh <= 0 {
		s.Fatalf("Take = %+v, want the lease and the value", h)
	}
	if o := s.take(key, time.Hour); o.Token != "" || o.Busy <= 0 || string(o.Value) != "v" {
		s.Errorf("Take = %+v, want the value and no second lease", o)
	}
	if o := s.take(key, 0); o.Token != "" || string(o.Value) != "v" {
		s.Errorf("Take = %+v, want the value", o)
	}
	s.put(key, h.Token, item("w"), true)
	s.want(key, "w")
}

func (s suite) expired() {
	it := item("v")
	it.Fresh = 2 * time.Millisecond
	s.put(key, s.lease(key), it, true)
	var h cache.Held
	s.eventually("the value expires", func() bool { h = s.take(key, 0); return h.Token != "" })
	if !h.Found || string(h.Value) != "v" || h.Fresh > 0 || h.Stale != time.Hour {
		s.Errorf("Take = %+v, want the value, no longer fresh", h)
	}
}

func (s suite) gone() {
	it := item("v")
	it.Fresh, it.Stale = time.Millisecond, time.Millisecond
	s.put(key, s.lease(key), it, true)
	s.eventually("the value is gone", func() bool { return !s.take(key, 0).Found })
}

func (s suite) foreignPut() {
	s.lease(key)
	s.put(key, "foreign", item("v"), false)
	s.put(key, "", item("v"), false)
	s.put("other", "foreign", item("v"), false)
	s.put("other", "", item("v"), false)
	s.wantNone(key)
	s.wantNone("other")
}

func (s suite) twice() {
	token := s.lease(key)
	s.put(key, token, item("v"), true)
	s.put(key, token, item("w"), false)
	s.want(key, "v")
}

func (s suite) ranOut() {
	first, err := s.s.Take(s.Context(), key, cache.Ask{Lease: 2 * time.Millisecond})
	if err != nil || first.Token == "" {
		s.Fatalf("Take = %+v, %v, want the lease", first, err)
	}
	var second cache.Held
	s.eventually("the lease runs out", func() bool { second = s.take(key, 0); return second.Token != "" })
	s.put(key, first.Token, item("late"), false)
	s.put(key, second.Token, item("v"), true)
	s.put(key, first.Token, item("later"), false)
	s.want(key, "v")
}

func (s suite) deleted() {
	s.put(key, s.lease(key), item("v"), true)
	s.put("other", s.lease("other"), item("v"), true)
	s.put("third", s.lease("third"), item("v"), true)
	s.remove("", key, "other", "never was")
	s.wantNone(key)
	s.wantNone("other")
	s.want("third", "v")
}

func (s suite) fenced() {
	token := s.lease(key)
	s.remove("", key)
	s.put(key, token, item("old"), false)
	next := s.lease(key)
	s.put(key, token, item("old"), false)
	s.put(key, next, item("new"), true)
	s.want(key, "new")
}

func (s suite) sameEvent() {
	s.put(key, s.lease(key), item("old"), true)
	s.remove("event-1", key)
	s.wantNone(key)
	s.remove("", key) // takes back the lease that wantNone got
	s.remove("event-1", key)
	s.put(key, s.lease(key), item("new"), true)
	s.remove("event-1", key)
	s.want(key, "new")
	lease := s.take(key, 2*time.Hour).Token
	s.remove("event-1", key)
	s.put(key, lease, item("newer"), true)
	s.want(key, "newer")
}

func (s suite) otherEvent() {
	s.remove("event-1", key)
	s.put(key, s.lease(key), item("old"), true)
	s.remove("event-2", key)
	token := s.wantNone(key).Token
	s.put(key, token, item("new"), true)
	s.remove("", key)
	s.wantNone(key)
}

func (s suite) apart() {
	keys := []string{"a:b", "a:b ", "a/b", "a%2Fb", "{a}b", "ä", "a:b:c", ""}
	for _, k := range keys {
		s.put(k, s.lease(k), item("value of "+k), true)
	}
	for _, k := range keys {
		s.want(k, "value of "+k)
	}
}
