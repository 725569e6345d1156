// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package discoverytest checks implementations of discovery.Resolver and
// discovery.Registry against the sentences of their contracts, one subtest each.
//
//	func TestResolver(t *testing.T) {
//		discoverytest.Resolver(t, func(t *testing.T) discoverytest.Source { … })
//	}
package discoverytest

import (
	"context"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
)

// Source is a resolver under test together with what it resolves from.
type Source struct {
	// Resolver is under test.
	Resolver discovery.Resolver
	// Put gives the service exactly these instances in the source. Only Addr is set.
	Put func(t *testing.T, service string, instances ...discovery.Instance)
	// Outage makes the source unreachable, or reachable again. Nil where that cannot be
	// done: its subtests are skipped.
	Outage func(t *testing.T, on bool)
	// CloseIdle closes the connections that a client keeps for later, which are no leak. Nil
	// where there are none.
	CloseIdle func()
	// Within is how long a change may take to arrive. Zero means 5 seconds.
	Within time.Duration
}

// Resolver runs the suite. Each subtest opens a source of its own.
func Resolver(t *testing.T, open func(t *testing.T) Source) {
	const service = "order"
	a := discovery.Instance{Addr: "10.0.0.1:80"}
	b := discovery.Instance{Addr: "10.0.0.2:80"}
	start := func(t *testing.T) (Source, *watch) {
		s := open(t)
		s.Within = withDefault(s.Within)
		return s, newWatch(t, s.Resolver, service, s.Within)
	}

	t.Run("the present set is yielded without waiting for a change", func(t *testing.T) {
		s := open(t)
		s.Put(t, service, a, b)
		w := newWatch(t, s.Resolver, service, withDefault(s.Within))
		w.wantAddrs(a.Addr, b.Addr)
	})
	t.Run("a service without instances is an empty set and no error", func(t *testing.T) {
		_, w := start(t)
		if got := w.next(); got.err != nil || got.set.Service != service || len(got.set.Instances) != 0 || got.set.Stale {
			t.Errorf("first word = %+v, %v, want an empty set of %s", got.set, got.err, service)
		}
	})
	t.Run("every instance has its service and an ID, and they are sorted by ID", func(t *testing.T) {
		s, w := start(t)
		s.Put(t, service, b, a)
		set := w.wantAddrs(a.Addr, b.Addr)
		for _, in := range set.Instances {
			if err := in.Validate(); err != nil || in.Service != service || in.ID == "" {
				t.Errorf("instance = %+v (%v), want a valid one of %s with an ID", in, err, service)
			}
		}
		if !slices.IsSortedFunc(set.Instances, func(x, y discovery.Instance) int {
			if x.ID < y.ID {
				return -1
			}
			return 1
		}) {
			t.Errorf("instances = %+v, want them sorted by ID", set.Instances)
		}
	})
	t.Run("a change is yielded, under a higher revision", func(t *testing.T) {
		s, w := start(t)
		s.Put(t, service, a)
		before := w.wantAddrs(a.Addr)
		s.Put(t, service, a, b)
		after := w.wantAddrs(a.Addr, b.Addr)
		if after.Revision <= before.Revision {
			t.Errorf("revisions = %d, then %d, want growth", before.Revision, after.Revision)
		}
	})
	t.Run("the end of the last instance is an empty set", func(t *testing.T) {
		s, w := start(t)
		s.Put(t, service, a)
		w.wantAddrs(a.Addr)
		s.Put(t, service)
		w.wantAddrs()
	})
	t.Run("only changes are yielded", func(t *testing.T) {
		s, w := start(t)
		s.Put(t, service, a)
		w.wantAddrs(a.Addr)
		s.Put(t, service, a)
		s.Put(t, "other", b)
		s.Put(t, service, a, b)
		if got := w.next(); got.err != nil || !slices.Equal(addrs(got.set), []string{a.Addr, b.Addr}) {
			t.Errorf("next word = %v, %v, want the next change", addrs(got.set), got.err)
		}
	})
	t.Run("a set that was yielded never changes", func(t *testing.T) {
		s, w := start(t)
		s.Put(t, service, a, b)
		set := w.wantAddrs(a.Addr, b.Addr)
		before := slices.Clone(set.Instances)
		s.Put(t, service, b)
		w.wantAddrs(b.Addr)
		if !reflect.DeepEqual(set.Instances, before) {
			t.Errorf("the old set reads %+v after a change, want %+v", set.Instances, before)
		}
	})
	t.Run("the watch ends with its context", func(t *testing.T) {
		_, w := start(t)
		w.next()
		w.cancel()
		w.wantEnd()
	})
	t.Run("nothing is yielded for a context that has ended", func(t *testing.T) {
		s := open(t)
		s.Put(t, service, a)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for set, err := range s.Resolver.Watch(ctx, service) {
			t.Errorf("Watch yields %+v, %v, want nothing", set, err)
		}
	})
	t.Run("the watch ends when the loop is left", func(t *testing.T) {
		s := open(t)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for range s.Resolver.Watch(t.Context(), service) {
				break
			}
		}()
		select {
		case <-ended:
		case <-time.After(withDefault(s.Within)):
			t.Error("Watch has not returned after break")
		}
	})
	t.Run("a watch leaves no goroutine behind", func(t *testing.T) {
		s := open(t)
		within := withDefault(s.Within)
		newWatch(t, s.Resolver, service, within).next() // one, so that lasting parts of a client exist
		const watches = 20
		before := runtime.NumGoroutine()
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		var all sync.WaitGroup
		for i := range watches {
			all.Go(func() {
				for range s.Resolver.Watch(ctx, service) {
					if i%2 == 0 {
						return
					}
					cancel()
				}
			})
		}
		all.Wait()
		deadline := time.Now().Add(within)
		for runtime.NumGoroutine() >= before+watches/2 {
			if time.Now().After(deadline) {
				t.Fatalf("%d goroutines after %d watches, want about %d as before", runtime.NumGoroutine(), watches, before)
			}
			if s.CloseIdle != nil {
				s.CloseIdle()
			}
			runtime.Gosched()
		}
	})
	t.Run("each use of the sequence is a watch of its own", func(t *testing.T) {
		s := open(t)
		s.Put(t, service, a)
		ctx, cancel := context.WithTimeout(t.Context(), withDefault(s.Within))
		defer cancel()
		seq := s.Resolver.Watch(ctx, service)
		for range 2 {
			seen := false
			for set, err := range seq {
				seen = err == nil && slices.Equal(addrs(set), []string{a.Addr})
				if seen {
					break
				}
			}
			if !seen {
				t.Error("a use of the sequence has not yielded the present set")
			}
		}
	})
	t.Run("many goroutines watch at once", func(t *testing.T) {
		s := open(t)
		s.Put(t, service, a)
		var watches []*watch
		for range 8 {
			watches = append(watches, newWatch(t, s.Resolver, service, withDefault(s.Within)))
		}
		s.Put(t, service, b)
		for _, w := range watches {
			w.wantAddrs(b.Addr)
		}
	})
	t.Run("an empty service name is an error", func(t *testing.T) {
		s := open(t)
		w := newWatch(t, s.Resolver, "", withDefault(s.Within))
		if got := w.next(); got.err == nil {
			t.Errorf("first word = %+v, want an error", got.set)
		}
	})

	outage := func(t *testing.T) (Source, *watch) {
		s := open(t)
		if s.Outage == nil {
			t.Skip("the source has no outages")
		}
		s.Within = withDefault(s.Within)
		s.Put(t, service, a)
		w := newWatch(t, s.Resolver, service, s.Within)
		w.wantAddrs(a.Addr)
		return s, w
	}
	t.Run("an unreachable source is an error beside the last set, stale", func(t *testing.T) {
		s, w := outage(t)
		before := time.Now()
		s.Outage(t, true)
		got := w.next()
		if got.err == nil {
			t.Fatalf("word during the outage = %v and no error, want an error", addrs(got.set))
		}
		if !slices.Equal(addrs(got.set), []string{a.Addr}) || !got.set.Stale {
			t.Errorf("set beside the error = %v, stale %v, want the last one, stale", addrs(got.set), got.set.Stale)
		}
		if got.set.At.After(time.Now()) || before.Sub(got.set.At) > 2*s.Within {
			t.Errorf("set beside the error is of %v, want about the start of the outage, %v", got.set.At, before)
		}
	})
	t.Run("the zero Set is beside the error of a watch that knows nothing", func(t *testing.T) {
		s := open(t)
		if s.Outage == nil {
			t.Skip("the source has no outages")
		}
		s.Outage(t, true)
		w := newWatch(t, s.Resolver, service, withDefault(s.Within))
		if got := w.next(); got.err == nil || got.set.Service != "" || got.set.Instances != nil {
			t.Errorf("first word = %+v, %v, want the zero Set and an error", got.set, got.err)
		}
	})
	t.Run("the watch goes on after an outage", func(t *testing.T) {
		s, w := outage(t)
		s.Outage(t, true)
		if got := w.next(); got.err == nil {
			t.Fatal("no error during the outage")
		}
		s.Outage(t, false)
		set := w.wantAddrs(a.Addr)
		if set.Stale {
			t.Error("the set after the outage is stale")
		}
		s.Put(t, service, a, b)
		w.wantAddrs(a.Addr, b.Addr)
	})
}

func withDefault(d time.Duration) time.Duration {
	if d == 0 {
		return 5 * time.Second
	}
	return d
}

func addrs(set discovery.Set) []string {
	all := make([]string, len(set.Instances))
	for i, in := range set.Instances {
		all[i] = in.Addr
	}
	slices.Sort(all)
	return all
}

type word struct {
	set discovery.Set
	err error
}

// watch is a watch in a goroutine of its own.
type watch struct {
	t      *testing.T
	within time.Duration
	cancel context.CancelFunc
	words  chan word // closed at the end of the watch
}

func newWatch(t *testing.T, r discovery.Resolver, service string, within time.Duration) *watch {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watch{t, within, cancel, make(chan word)}
	var ended sync.WaitGroup
	ended.Go(func() {
		defer close(w.words)
		for set, err := range r.Watch(ctx, service) {
			select {
			case w.words <- word{set, err}:
			case <-ctx.Done():
			}
		}
	})
	t.Cleanup(func() { cancel(); ended.Wait() })
	return w
}

// next returns the next word of the watch.
func (w *watch) next() word {
	w.t.Helper()
	select {
	case got, ok := <-w.words:
		if !ok {
			w.t.Fatal("the watch has ended, want it to go on")
		}
		return got
	case <-time.After(w.within):
		w.t.Fatalf("nothing was yielded within %v", w.within)
	}
	return word{}
}

// wantAddrs waits for a fresh set with these addresses.
func (w *watch) wantAddrs(want ...string) discovery.Set {
	w.t.Helper()
	if want == nil {
		want = []string{}
	}
	slices.Sort(want)
	deadline := time.After(w.within)
	var last word
	for {
		select {
		case got, ok := <-w.words:
			if !ok {
				w.t.Fatal("the watch has ended, want it to go on")
			}
			if last = got; got.err == nil && slices.Equal(addrs(got.set), want) {
				return got.set
			}
		case <-deadline:
			w.t.Fatalf("last word within %v = %v, %v, want %v", w.within, addrs(last.set), last.err, want)
		}
	}
}

// wantEnd waits for the end of the watch.
func (w *watch) wantEnd() {
	w.t.Helper()
	deadline := time.After(w.within)
	for {
		select {
		case _, ok := <-w.words:
			if !ok {
				return
			}
		case <-deadline:
			w.t.Fatalf("the watch has not ended within %v", w.within)
		}
	}
}
