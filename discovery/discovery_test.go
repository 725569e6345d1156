// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/discoverytest"
)

const service = "order"

func at(addrs ...string) []discovery.Instance {
	all := make([]discovery.Instance, len(addrs))
	for i, addr := range addrs {
		all[i].Addr = addr
	}
	return all
}

// follow sends the words of a watch to a channel, until the test's end.
func follow(t *testing.T, r discovery.Resolver) <-chan word {
	words := make(chan word)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for set, err := range r.Watch(ctx, service) {
			select {
			case words <- word{set, err}:
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return words
}

type word struct {
	set discovery.Set
	err error
}

// String shows what matters: the addresses, whether they are stale, whether there was an error.
func (w word) String() string {
	var s strings.Builder
	for _, in := range w.set.Instances {
		s.WriteString(in.Addr + " ")
	}
	if w.set.Service == "" {
		s.WriteString("unknown ")
	}
	if w.set.Stale {
		s.WriteString("stale ")
	}
	if w.err != nil {
		s.WriteString("error ")
	}
	return strings.TrimSpace(s.String())
}

func wantWord(t *testing.T, words <-chan word, want string) word {
	t.Helper()
	got := <-words
	if got.String() != want {
		t.Errorf("word = %q (%v), want %q", got, got.err, want)
	}
	return got
}

func wantSilence(t *testing.T, words <-chan word) {
	t.Helper()
	synctest.Wait()
	select {
	case got := <-words:
		t.Errorf("word = %q (%v), want none", got, got.err)
	default:
	}
}

func newStatic(t testing.TB, addrs ...string) *discovery.Static {
	t.Helper()
	s, err := discovery.NewStatic(map[string][]discovery.Instance{service: at(addrs...)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStatic(t *testing.T) {
	t.Parallel()
	discoverytest.Resolver(t, func(t *testing.T) discoverytest.Source {
		s, err := discovery.NewStatic(nil)
		if err != nil {
			t.Fatal(err)
		}
		return discoverytest.Source{Resolver: s, Put: put(s)}
	})
	t.Run("a wrong list changes nothing", func(t *testing.T) {
		s := newStatic(t, "10.0.0.1:80")
		if err := s.Set(service, discovery.Instance{Addr: "10.0.0.2"}); err == nil {
			t.Error("Set = nil, want an error")
		}
		wantWord(t, follow(t, s), "10.0.0.1:80")
	})
}

func put(s *discovery.Static) func(t *testing.T, service string, instances ...discovery.Instance) {
	return func(t *testing.T, service string, instances ...discovery.Instance) {
		t.Helper()
		if err := s.Set(service, instances...); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNewSet(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		service   string
		instances []discovery.Instance
		want      string
	}{
		{"no service", "", nil, "service is empty"},
		{"another service", service, []discovery.Instance{{Service: "x", Addr: "h:1"}}, "Instance.Service"},
		{"no port", service, at("10.0.0.1"), "Instance.Addr"},
		{"no host", service, at(":80"), "Instance.Addr"},
		{"port zero", service, at("h:0"), "Instance.Addr"},
		{"port too large", service, at("h:65536"), "Instance.Addr"},
		{"port by name", service, at("h:http"), "Instance.Addr"},
		{"negative weight", service, []discovery.Instance{{Addr: "h:1", Weight: -1}}, "Instance.Weight"},
		{"negative priority", service, []discovery.Instance{{Addr: "h:1", Priority: -1}}, "Instance.Priority"},
		{"one ID twice", service, at("h:1", "h:1"), "two instances"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := discovery.NewSet(tt.service, tt.instances); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("NewSet = %v, want an error with %q", err, tt.want)
			}
		})
	}
	t.Run("the caller's slices and maps are copied", func(t *testing.T) {
		in := discovery.Instance{Addr: "h:1", Tags: []string{"a"}, Meta: map[string]string{"k": "v"}}
		set, err := discovery.NewSet(service, []discovery.Instance{in})
		if err != nil {
			t.Fatal(err)
		}
		in.Tags[0], in.Meta["k"] = "changed", "changed"
		if got := set.Instances[0]; got.Tags[0] != "a" || got.Meta["k"] != "v" {
			t.Errorf("instance = %+v, want it as it was given", got)
		}
	})
}

// scripted is a resolver that the test controls word by word.
type scripted struct{ words chan word }

func newScripted() *scripted { return &scripted{make(chan word)} }

func (s *scripted) Watch(ctx context.Context, _ string) iter.Seq2[discovery.Set, error] {
	return func(yield func(discovery.Set, error) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case w := <-s.words:
				if !yield(w.set, w.err) {
					return
				}
			}
		}
	}
}

func (s *scripted) say(addrs ...string) {
	set, err := discovery.NewSet(service, at(addrs...))
	s.words <- word{set, err}
}

func (s *scripted) fail(err error) { s.words <- word{err: err} }

var errAway = errors.New("registry away")

func TestFailover(t *testing.T) {
	t.Parallel()
	discoverytest.Resolver(t, func(t *testing.T) discoverytest.Source {
		s, err := discovery.NewStatic(nil)
		if err != nil {
			t.Fatal(err)
		}
		f, err := discovery.NewFailover([]discovery.Resolver{s, newScripted()}, discovery.FailoverConfig{})
		if err != nil {
			t.Fatal(err)
		}
		return discoverytest.Source{Resolver: f, Put: put(s)}
	})

	run := func(name string, fn func(t *testing.T, first, second *scripted, words <-chan word)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first, second := newScripted(), newScripted()
				f, err := discovery.NewFailover([]discovery.Resolver{first, second}, discovery.FailoverConfig{Patience: 3 * time.Second})
				if err != nil {
					t.Fatal(err)
				}
				fn(t, first, second, follow(t, f))
			})
		})
	}
	run("the first one that is healthy is followed", func(t *testing.T, first, second *scripted, words <-chan word) {
		second.say("second:1")
		wantSilence(t, words)
		first.say("first:1")
		wantWord(t, words, "first:1")
		second.say("second:2")
		wantSilence(t, words)
	})
	run("the next one takes over after the patience", func(t *testing.T, first, second *scripted, words <-chan word) {
		start := time.Now()
		second.say("second:1")
		wantWord(t, words, "second:1")
		if got := time.Since(start); got != 3*time.Second {
			t.Errorf("taken over after %v, want 3s", got)
		}
		first.say("first:1")
		wantWord(t, words, "first:1")
	})
	run("an outage shorter than the patience is not seen", func(t *testing.T, first, second *scripted, words <-chan word) {
		first.say("first:1")
		wantWord(t, words, "first:1")
		second.say("second:1")
		first.fail(errAway)
		time.Sleep(2 * time.Second)
		first.say("first:1")
		time.Sleep(time.Hour)
		wantSilence(t, words)
	})
	run("a longer one is", func(t *testing.T, first, second *scripted, words <-chan word) {
		first.say("first:1")
		wantWord(t, words, "first:1")
		second.say("second:1")
		first.fail(errAway)
		wantWord(t, words, "second:1")
	})
	run("an empty set is an answer", func(t *testing.T, first, second *scripted, words <-chan word) {
		second.say("second:1")
		first.say()
		wantWord(t, words, "")
		time.Sleep(time.Hour)
		wantSilence(t, words)
	})
	run("when all fail it is said at once, beside what one remembers", func(t *testing.T, first, second *scripted, words <-chan word) {
		start := time.Now()
		first.fail(errAway)
		set, _ := discovery.NewSet(service, at("second:1"))
		set.Stale = true
		second.words <- word{set, errors.New("second away")}
		got := wantWord(t, words, "second:1 stale error")
		if !errors.Is(got.err, errAway) || !strings.Contains(got.err.Error(), "second away") {
			t.Errorf("error = %v, want both causes", got.err)
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("said after %v, want at once", waited)
		}
	})
	run("one that has never answered is named", func(t *testing.T, first, second *scripted, words <-chan word) {
		first.fail(errAway)
		got := wantWord(t, words, "unknown error")
		if !strings.Contains(got.err.Error(), "resolver 2 of 2 has not answered") {
			t.Errorf("error = %v, want it to name the silent resolver", got.err)
		}
	})
}

func TestLastKnown(t *testing.T) {
	t.Parallel()
	discoverytest.Resolver(t, func(t *testing.T) discoverytest.Source {
		s, err := discovery.NewStatic(nil)
		if err != nil {
			t.Fatal(err)
		}
		l, err := discovery.NewLastKnown(s, discovery.LastKnownConfig{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		return discoverytest.Source{Resolver: l, Put: put(s)}
	})
	lastKnown := func(t *testing.T, r discovery.Resolver, dir string) *discovery.LastKnown {
		t.Helper()
		l, err := discovery.NewLastKnown(r, discovery.LastKnownConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	t.Run("an outage leaves the last set, stale, with its age", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			source := newScripted()
			words := follow(t, lastKnown(t, source, ""))
			source.say("a:1")
			if got := wantWord(t, words, "a:1"); got.set.Age() != 0 {
				t.Errorf("Age = %v, want 0", got.set.Age())
			}
			time.Sleep(time.Hour)
			source.fail(errAway)
			got := wantWord(t, words, "a:1 stale error")
			time.Sleep(time.Minute)
			if got.set.Age() != time.Minute {
				t.Errorf("Age = %v, want the time since the outage began, 1m", got.set.Age())
			}
			source.say("a:1")
			if got := wantWord(t, words, "a:1"); got.set.Stale {
				t.Error("the set is still stale")
			}
		})
	})
	t.Run("a later watch knows what an earlier one heard", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			source := newScripted()
			l := lastKnown(t, source, "")
			for range l.Watch(sayOnce(t, source), service) {
				break
			}
			words := follow(t, l)
			source.fail(errAway)
			wantWord(t, words, "a:1 stale error")
		})
	})
	t.Run("so does the next process, as of the time of writing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			source := newScripted()
			for range lastKnown(t, source, dir).Watch(sayOnce(t, source), service) {
				break
			}
			time.Sleep(time.Hour)
			source = newScripted()
			words := follow(t, lastKnown(t, source, dir))
			source.fail(errAway)
			if got := wantWord(t, words, "a:1 stale error"); got.set.Age() != time.Hour {
				t.Errorf("Age = %v, want 1h", got.set.Age())
			}
		})
	})
	t.Run("nothing known is the zero Set", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			source := newScripted()
			words := follow(t, lastKnown(t, source, t.TempDir()))
			source.fail(errAway)
			wantWord(t, words, "unknown error")
		})
	})
}

// sayOnce makes the source say a:1 to the next watch.
func sayOnce(t *testing.T, source *scripted) context.Context {
	go source.say("a:1")
	return t.Context()
}

func TestNewErrors(t *testing.T) {
	t.Parallel()
	static := newStatic(t)
	for want, err := range map[string]error{
		"resolvers is empty":       second(discovery.NewFailover(nil, discovery.FailoverConfig{})),
		"resolvers[0] is nil":      second(discovery.NewFailover([]discovery.Resolver{nil}, discovery.FailoverConfig{})),
		"resolver is nil":          second(discovery.NewLastKnown(nil, discovery.LastKnownConfig{})),
		"LastKnownConfig.Dir is":   second(discovery.NewLastKnown(static, discovery.LastKnownConfig{Dir: "/does/not/exist"})),
		"path is empty":            second(discovery.NewFile("", discovery.FileConfig{})),
		"FileConfig.Every is -1ns": second(discovery.NewFile("x", discovery.FileConfig{Every: -1})),
		"name is empty":            second(discovery.NewDNS("", discovery.DNSConfig{})),
		"DNSConfig.Port is 65536":  second(discovery.NewDNS("x", discovery.DNSConfig{Port: 65536})),
		"DNSConfig.Network is":     second(discovery.NewDNS("x", discovery.DNSConfig{Network: "udp"})),
		"DNSConfig.Every is -1ns":  second(discovery.NewDNS("x", discovery.DNSConfig{Every: -1})),
		"DNSConfig.Timeout is":     second(discovery.NewDNS("x", discovery.DNSConfig{Timeout: -1})),
		"registry is nil":          second(discovery.NewAnnouncement(nil, discovery.Instance{}, discovery.AnnounceConfig{})),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), "discovery: "+want) {
			t.Errorf("New = %v, want discovery: %s…", err, want)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func ExampleStatic() {
	static, err := discovery.NewStatic(map[string][]discovery.Instance{
		"order": {{ID: "order-1", Addr: "10.0.0.1:8080"}, {ID: "order-2", Addr: "10.0.0.2:8080", Weight: 2}},
	})
	if err != nil {
		panic(err)
	}
	for set, err := range static.Watch(context.Background(), "order") {
		for _, in := range set.Instances {
			fmt.Println(in.ID, in.Addr, in.Weight, err)
		}
		break // or go on, to see every change
	}
	// Output:
	// order-1 10.0.0.1:8080 0 <nil>
	// order-2 10.0.0.2:8080 2 <nil>
}

// Prefer the registry; while it is away go on with what it said last, or, in a process that
// has never reached it, with a file.
func ExampleFailover() {
	registry := newScripted() // stands for a registry that is away
	go registry.fail(errors.New("connection refused"))
	backup, err := discovery.NewStatic(map[string][]discovery.Instance{"order": {{Addr: "10.0.0.1:8080"}}})
	if err != nil {
		panic(err)
	}
	remembered, err := discovery.NewLastKnown(registry, discovery.LastKnownConfig{})
	if err != nil {
		panic(err)
	}
	resolver, err := discovery.NewFailover([]discovery.Resolver{remembered, backup}, discovery.FailoverConfig{Patience: time.Millisecond})
	if err != nil {
		panic(err)
	}
	for set, err := range resolver.Watch(context.Background(), "order") {
		if err != nil {
			continue // neither has an answer yet
		}
		fmt.Println(set.Instances[0].Addr)
		break
	}
	// Output: 10.0.0.1:8080
}
