// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcemem"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxmem"
)

func newLog(t *testing.T, store eventsource.Store, cfg eventsource.Config) *eventsource.Log {
	t.Helper()
	l, err := eventsource.New(store, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// put commits events of these types.
func put(t *testing.T, l *eventsource.Log, store *eventsourcemem.Store, stream string, types ...string) {
	t.Helper()
	tx := store.Begin()
	for _, name := range types {
		if err := l.Append(t.Context(), tx, stream, eventsource.Any, eventsource.Event{Type: name}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}

func TestNew(t *testing.T) {
	store := eventsourcemem.New()
	for want, open := range map[string]func() (*eventsource.Log, error){
		"Store is nil":         func() (*eventsource.Log, error) { return eventsource.New(nil, eventsource.Config{}) },
		"Config.Page is -1":    func() (*eventsource.Log, error) { return eventsource.New(store, eventsource.Config{Page: -1}) },
		"Config.Poll is -1ns,": func() (*eventsource.Log, error) { return eventsource.New(store, eventsource.Config{Poll: -1}) },
	} {
		if _, err := open(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, want an error with %q", err, want)
		}
	}
}

func TestAppend(t *testing.T) {
	store := eventsourcemem.New()
	var hooked []string
	l := newLog(t, store, eventsource.Config{
		MaxData: 8,
		Inject:  func(_ context.Context, h messaging.Header) { h[eventsource.HeaderActor] = "ada" },
		Hooks: eventsource.Hooks{
			Appended:   func(a eventsource.Appended) { hooked = append(hooked, fmt.Sprint("appended ", len(a.Events))) },
			Conflicted: func(c eventsource.Conflicted) { hooked = append(hooked, fmt.Sprint("conflicted ", c.Want)) },
		},
	})
	t.Run("what cannot be stored is named and nothing is written", func(t *testing.T) {
		good := eventsource.Event{Type: "t"}
		for want, e := range map[string]eventsource.Event{
			"event 1: Event.Type is empty":      {},
			"event 1: Event.Data has 9 bytes":   {Type: "t", Data: make([]byte, 9)},
			"Event.ID has 256 bytes":            {Type: "t", ID: strings.Repeat("x", 256)},
			"Event.Time is in the year 3000":    {Type: "t", Time: time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC)},
			"Event.Header[\"h\"] is":            {Type: "t", Header: messaging.Header{"h": "\xff"}},
			`Event.Type is "t\x00", want UTF-8`: {Type: "t\x00"},
		} {
			tx := store.Begin()
			if err := l.Append(t.Context(), tx, "s", eventsource.Any, good, e); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Append = %v, want an error with %q", err, want)
			}
			if err := tx.Commit(); err != nil {
				t.Errorf("Commit after it = %v, want nil", err)
			}
		}
		for want, stream := range map[string]string{"stream is empty": "", "no space at the end": "s "} {
			if err := l.Append(t.Context(), store.Begin(), stream, eventsource.Any, good); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Append to %q = %v, want an error with %q", stream, err, want)
			}
		}
		if err := l.Append(t.Context(), nil, "s", eventsource.Any, good); err == nil {
			t.Error("Append without a transaction = nil, want an error")
		}
		if err := l.Append(t.Context(), store.Begin(), "s", eventsource.At(-1), good); err == nil {
			t.Error("Append at -1 = nil, want an error")
		}
		if v, _, err := l.End(t.Context(), "s"); v != 0 || err != nil {
			t.Errorf("End = %d, %v, want 0", v, err)
		}
	})
	t.Run("ID, Time and metadata are set", func(t *testing.T) {
		shared := messaging.Header{"a": "b"}
		events := []eventsource.Event{{Type: "t", Header: shared}, {Type: "t", Header: shared, ID: "mine", Time: time.Unix(7, 0)}}
		tx := store.Begin()
		if err := errors.Join(l.Append(t.Context(), tx, "s", eventsource.None, events...), tx.Commit()); err != nil {
			t.Fatal(err)
		}
		if events[0].ID == "" || events[0].Time.IsZero() || events[1].ID != "mine" || events[1].Time.Unix() != 7 {
			t.Errorf("events = %+v, want IDs and times", events)
		}
		for e, err := range l.Read(t.Context(), "s", 0) {
			if err != nil || e.Header[eventsource.HeaderActor] != "ada" || e.Header["a"] != "b" {
				t.Errorf("Header = %v, %v, want what was injected beside what was there", e.Header, err)
			}
		}
		if len(shared) != 1 {
			t.Errorf("the caller's header = %v, want it unchanged", shared)
		}
	})
	err := l.Append(t.Context(), store.Begin(), "s", eventsource.None, eventsource.Event{Type: "t"})
	if v := new(eventsource.VersionError); !errors.As(err, &v) || !errors.Is(err, eventsource.ErrVersion) {
		t.Errorf("Append to what is there = %v, want a VersionError", err)
	}
	if want := []string{"appended 2", "conflicted none"}; !slices.Equal(hooked, want) {
		t.Errorf("hooks = %q, want %q", hooked, want)
	}
	if err := l.Append(t.Context(), store.Begin(), "s", eventsource.None); err != nil {
		t.Errorf("Append of nothing = %v, want nil", err)
	}
}

func TestReadsGoOnFromPageToPage(t *testing.T) {
	store := eventsourcemem.New()
	l := newLog(t, store, eventsource.Config{Page: 2})
	put(t, l, store, "a", "1", "2", "3", "4", "5")
	put(t, l, store, "b", "6")
	var got string
	for e, err := range l.Read(t.Context(), "a", 1) {
		got += fmt.Sprint(e.Type, err)
	}
	if want := "2<nil>3<nil>4<nil>5<nil>"; got != want {
		t.Errorf("Read = %s, want %s", got, want)
	}
	got = ""
	for e := range l.All(t.Context(), 1, eventsource.Filter{}) {
		if got += e.Type; e.Type == "4" {
			break
		}
	}
	if got != "234" {
		t.Errorf("All up to a break = %s, want 234", got)
	}
}

// failing is a store that cannot be read the next n times.
type failing struct {
	*eventsourcemem.Store
	left int
}

var errDown = errors.New("down")

func (f *failing) ReadAll(ctx context.Context, after eventsource.Cursor, filter eventsource.Filter, limit int) (eventsource.Page, error) {
	if f.left > 0 {
		f.left--
		return eventsource.Page{}, errDown
	}
	return f.Store.ReadAll(ctx, after, filter, limit)
}

func TestSubscribe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := eventsourcemem.New()
		l := newLog(t, &failing{store, 1}, eventsource.Config{Page: 2, Poll: time.Minute})
		put(t, l, store, "a", "1", "2", "3")
		ctx, cancel := context.WithCancel(t.Context())
		type one struct {
			name string
			at   time.Duration
		}
		start := time.Now()
		var got []one
		done := make(chan struct{})
		go func() {
			defer close(done)
			for e, err := range l.Subscribe(ctx, 0, eventsource.Filter{}) {
				name := e.Type
				if err != nil {
					name = "error"
				}
				got = append(got, one{name, time.Since(start)})
			}
		}()
		time.Sleep(61 * time.Second) // after the error it pauses for a poll
		put(t, l, store, "a", "4")
		l.Wake() // seen at once
		time.Sleep(time.Second)
		put(t, l, store, "a", "5") // seen by polling
		time.Sleep(2 * time.Minute)
		cancel()
		<-done
		want := []one{{"error", 0}, {"1", time.Minute}, {"2", time.Minute}, {"3", time.Minute}, {"4", 61 * time.Second}, {"5", 121 * time.Second}}
		if !slices.Equal(got, want) {
			t.Errorf("Subscribe = %v, want %v", got, want)
		}
	})
}

func TestNotifier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := eventsourcemem.New()
		n := &notifier{}
		here := newLog(t, store, eventsource.Config{Notifier: n})
		there := newLog(t, store, eventsource.Config{Notifier: n, Poll: time.Hour})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		seen := make(chan string, 1)
		go func() {
			for e := range there.Subscribe(ctx, 0, eventsource.Filter{}) {
				seen <- e.Type
			}
		}()
		synctest.Wait()
		put(t, here, store, "a", "1")
		here.Wake()
		select {
		case <-seen:
		case <-time.After(time.Minute):
			t.Error("a wake-up in another process is not passed on")
		}
		cancel()
		synctest.Wait()
		if n.wake != nil {
			t.Error("the subscription was not cancelled")
		}
	})
}

type notifier struct{ wake func() }

func (n *notifier) Notify() {
	if n.wake != nil {
		n.wake()
	}
}

func (n *notifier) Subscribe(wake func()) func() {
	n.wake = wake
	return func() { n.wake = nil }
}

func TestAudit(t *testing.T) {
	store := eventsourcemem.New()
	l := newLog(t, store, eventsource.Config{})
	tx := store.Begin()
	trace := messaging.NewTrace()
	for i, actor := range []string{"ada", "bob", "ada"} {
		h := messaging.Header{eventsource.HeaderActor: actor, eventsource.HeaderCorrelation: "op-1", eventsource.HeaderCausation: fmt.Sprint("m-", i)}
		trace.Inject(h)
		if err := l.Append(t.Context(), tx, fmt.Sprint("s-", i), eventsource.None, eventsource.Event{Type: fmt.Sprint("t", i), Header: h, Data: []byte("secret")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	var last time.Time
	for e := range l.Audit(t.Context(), eventsource.AuditQuery{}) {
		last = e.Recorded
	}
	for _, c := range []struct {
		q    eventsource.AuditQuery
		want string
	}{
		{eventsource.AuditQuery{Stream: "s-2", Since: last}, "t2 "},
		{eventsource.AuditQuery{Stream: "s-2", Until: last}, ""}, // which is outside
		{eventsource.AuditQuery{}, "t0 t1 t2 "},
		{eventsource.AuditQuery{Actor: "ada"}, "t0 t2 "},
		{eventsource.AuditQuery{Actor: "ada", After: 1}, "t2 "},
		{eventsource.AuditQuery{Stream: "s-1", Types: []string{"t1"}}, "t1 "},
		{eventsource.AuditQuery{Stream: "s-1", Types: []string{"t2"}}, ""},
		{eventsource.AuditQuery{Correlation: "op-1", Causation: "m-1"}, "t1 "},
		{eventsource.AuditQuery{Since: time.Now().Add(time.Hour)}, ""},
		{eventsource.AuditQuery{Until: time.Now().Add(-time.Hour)}, ""},
		{eventsource.AuditQuery{Types: []string{"t0", "t1"}, Until: time.Now().Add(time.Hour)}, "t0 t1 "},
	} {
		var got string
		for e, err := range l.Audit(t.Context(), c.q) {
			if err != nil || e.Trace != trace.TraceID.String() || e.Version != 1 || e.Recorded.IsZero() || e.ID == "" {
				t.Errorf("Audit = %+v, %v", e, err)
			}
			got += e.Type + " "
		}
		if got != c.want {
			t.Errorf("Audit(%+v) = %q, want %q", c.q, got, c.want)
		}
	}
}

// both is a transaction of two stores, as one of a database is.
type both struct {
	*eventsourcemem.Tx
	messages *outboxmem.Tx
}

// split hands each store its part of the transaction.
type split struct{ *eventsourcemem.Store }

func (s split) Append(ctx context.Context, tx eventsource.Tx, stream string, want eventsource.Expect, events []eventsource.Event) error {
	return s.Store.Append(ctx, tx.(both).Tx, stream, want, events)
}

func TestPublish(t *testing.T) {
	store, messages := eventsourcemem.New(), outboxmem.New()
	box, err := outbox.New(messages, outbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	bridge := eventsource.Publish(box, func(stream string, e eventsource.Event) *messaging.Message {
		if e.Type == "private" {
			return nil
		}
		return eventsource.Message("order.placed", stream, e)
	})
	l := newLog(t, split{store}, eventsource.Config{Within: func(ctx context.Context, tx eventsource.Tx, stream string, events []eventsource.Event) error {
		return bridge(ctx, tx.(both).messages, stream, events)
	}})
	for _, commit := range []bool{false, true} {
		tx := both{store.Begin(), messages.Begin()}
		if err := l.Append(t.Context(), tx, "order-1", eventsource.None, eventsource.Event{Type: "placed.v1", Data: []byte("d")}, eventsource.Event{Type: "private"}); err != nil {
			t.Fatal(err)
		}
		if commit {
			if err := errors.Join(tx.Commit(), tx.messages.Commit()); err != nil {
				t.Fatal(err)
			}
		}
	}
	var rows []outbox.Row
	for shard := range messages.Shards() {
		some, err := messages.Read(t.Context(), []outbox.Read{{Shard: shard, Limit: 10}})
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, some...)
	}
	events, _ := store.Read(t.Context(), "order-1", 0, 1)
	if len(rows) != 1 {
		t.Fatalf("%d messages, want one", len(rows))
	}
	if m := rows[0].Message; m.Topic != "order.placed" || m.Key != "order-1" || m.Type != "placed.v1" || m.ID != events[0].ID || string(m.Body) != "d" {
		t.Errorf("message = %+v, want the event's", m)
	}
}

// ahead is a store that reads on over events that are not selected, as one does that knows how far
// it may go.
type ahead struct {
	*eventsourcemem.Store
	reads int
}

func (a *ahead) ReadAll(_ context.Context, after eventsource.Cursor, _ eventsource.Filter, _ int) (eventsource.Page, error) {
	if a.reads++; a.reads > 10 {
		return eventsource.Page{}, errDown
	}
	return eventsource.Page{Next: after + 10, More: after < 50}, nil
}

func TestAllGoesOnBehindWhatIsNotSelected(t *testing.T) {
	store := &ahead{Store: eventsourcemem.New()}
	for e, err := range newLog(t, store, eventsource.Config{}).All(t.Context(), 0, eventsource.Filter{}) {
		t.Errorf("All = %+v, %v, want nothing", e, err)
	}
	if store.reads != 6 {
		t.Errorf("All read %d times, want 6", store.reads)
	}
	if eventsource.At(0) != eventsource.None {
		t.Errorf("At(0) = %v, want it to be None", eventsource.At(0))
	}
}
