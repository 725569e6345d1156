// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// TestHowFarGroupsAreBehind puts together what instances and brokers say.
func TestHowFarGroupsAreBehind(t *testing.T) {
	says := func(in int64, oldest float64) *platform.Traffic {
		return &platform.Traffic{Groups: []platform.GroupState{{Group: "mails.orders", InHand: in, OldestSeconds: oldest, DelaySeconds: 0.5}, {Group: "figures", InHand: 9}}}
	}
	for name, c := range map[string]struct {
		instances []*platform.Traffic // nil does not answer
		queues    []platform.Queue
		want      groupState
	}{
		"nothing to do": {
			[]*platform.Traffic{says(0, 0)}, []platform.Queue{{Group: "mails.orders", Consumers: 1}},
			groupState{Known: true, Consumers: 1, DelaySeconds: 0.5},
		},
		"a broker that knows what is in hand": {
			[]*platform.Traffic{says(2, 4)}, []platform.Queue{{Group: "mails.orders", Waiting: 10, InHand: 3, Consumers: 1}},
			groupState{Known: true, Behind: 13, OldestSeconds: 4, Consumers: 1, DelaySeconds: 0.5},
		},
		"a broker that does not": {
			[]*platform.Traffic{says(2, 4), says(1, 7)}, []platform.Queue{{Group: "mails.orders", Waiting: 10, Consumers: 2}},
			groupState{Known: true, Behind: 13, OldestSeconds: 7, Consumers: 2, DelaySeconds: 0.5},
		},
		"a service that is down": {
			[]*platform.Traffic{nil}, []platform.Queue{{Group: "mails.orders", Waiting: 5}},
			groupState{Known: true, Behind: 5},
		},
		"a broker that does not answer": {
			[]*platform.Traffic{says(2, 4)}, nil,
			groupState{Behind: 2, OldestSeconds: 4, DelaySeconds: 0.5},
		},
	} {
		t.Run(name, func(t *testing.T) {
			con := newConsole(platform.Env{Name: "gateway"}, []string{"mails"}, []string{"mails.orders"})
			var answers []*answer
			for _, in := range c.instances {
				answers = append(answers, &answer{service: "mails", traffic: in})
			}
			var s sample
			con.behind(&s, answers, c.queues)
			c.want.Service, c.want.Group = "mails", "mails.orders"
			if !slices.Equal(s.Groups, []groupState{c.want}) {
				t.Errorf("groups = %+v, want %+v", s.Groups, c.want)
			}
			if s.Totals.Behind != c.want.Behind || s.Totals.BehindSeconds != c.want.OldestSeconds {
				t.Errorf("totals = %d, %v s; want %d, %v s", s.Totals.Behind, s.Totals.BehindSeconds, c.want.Behind, c.want.OldestSeconds)
			}
		})
	}
}

// TestGroupThatFinishesNothing is as old as the console has seen it stand still, if nobody knows more.
func TestGroupThatFinishesNothing(t *testing.T) {
	con := newConsole(platform.Env{Name: "gateway"}, []string{"mails"}, []string{"mails"})
	start := time.Now()
	look := func(after time.Duration, waiting int64, handled uint64) float64 {
		s := sample{At: start.Add(after), Flows: []flow{{Service: "mails", Topic: "a", Group: "mails", Messages: handled}, {Service: "shop", Topic: "a", Messages: 1000 + uint64(after)}}}
		con.behind(&s, nil, []platform.Queue{{Group: "mails", Waiting: waiting}})
		return s.Groups[0].OldestSeconds
	}
	for i, c := range []struct {
		after   time.Duration
		waiting int64
		handled uint64
		want    float64
	}{
		{0, 5, 1, 0},
		{10 * time.Second, 5, 1, 10},
		{20 * time.Second, 50, 1, 20},
		{21 * time.Second, 49, 2, 0}, // it goes on
		{25 * time.Second, 49, 2, 4},
		{30 * time.Second, 0, 51, 0},
		{40 * time.Second, 3, 51, 0}, // these are new
	} {
		if got := look(c.after, c.waiting, c.handled); got != c.want {
			t.Errorf("look %d: the oldest is %v s old, want %v", i, got, c.want)
		}
	}
}

// TestWhoDoesNotAnswerIsWhereItWas has services that are asked twice and answer once: what the console says of sagas and readers is
// not that there are none.
func TestWhoDoesNotAnswerIsWhereItWas(t *testing.T) {
	con := newConsole(platform.Env{Name: "gateway"}, []string{"order", "reporting"}, nil)
	if past, _ := con.pastNow(); past == nil {
		t.Error("before the first look the past is nil, which is null to a page; want it empty")
	}
	look := func(answering bool) sample {
		order, reporting := &answer{service: "order"}, &answer{service: "reporting"}
		if answering {
			order.traffic = &platform.Traffic{Service: "order", Gauges: map[string]float64{"sagas": 7, "stuck": 2}}
			reporting.traffic = &platform.Traffic{Service: "reporting", Readers: []platform.Reader{{Reader: "figures", Status: "serving", Position: 9}}}
		}
		var s sample
		con.sum(&s, []*answer{order, reporting})
		con.behind(&s, []*answer{order, reporting}, nil)
		con.publish(s)
		return s
	}
	want := []readerState{{"reporting", platform.Reader{Reader: "figures", Status: "serving", Position: 9}}}
	for i, answering := range []bool{true, false, false, true} {
		if s := look(answering); s.Totals.Sagas != 7 || s.Totals.Stuck != 2 || !slices.Equal(s.Readers, want) {
			t.Errorf("look %d: %v sagas, %v stuck, readers %+v; want 7, 2, %+v", i, s.Totals.Sagas, s.Totals.Stuck, s.Readers, want)
		}
	}
}

func TestWhenPagesReadAgain(t *testing.T) {
	with := func(change func(s *sample)) sample {
		s := sample{Totals: totals{Sagas: 1, Stuck: 1}, Flows: []flow{{Topic: "order.placed", Messages: 5}}, Readers: []readerState{{"reporting", platform.Reader{Status: "serving"}}}}
		if change != nil {
			change(&s)
		}
		return s
	}
	quiet := with(nil)
	if quiet.busy() || quiet.differs(with(func(s *sample) { s.Totals.OutboxSeconds, s.Totals.Rate = 1, 2 })) {
		t.Error("a shop in which nothing happens is said to have changed")
	}
	for name, change := range map[string]func(s *sample){
		"a saga runs":         func(s *sample) { s.Totals.Sagas++ },
		"an outbox is full":   func(s *sample) { s.Totals.OutboxWaiting = 1 },
		"a group is behind":   func(s *sample) { s.Totals.Behind = 1 },
		"an event is told":    func(s *sample) { s.Flows[0].Rate = 0.1 },
		"a consumer fails":    func(s *sample) { s.Flows[0].Failed = 0.1 },
		"figures are rebuilt": func(s *sample) { s.Readers[0].Status = "building" },
	} {
		if !with(change).busy() {
			t.Errorf("%s, and the shop is not said to be busy", name)
		}
	}
	for name, change := range map[string]func(s *sample){
		"a saga is stuck":        func(s *sample) { s.Totals.Sagas, s.Totals.Stuck = 2, 2 },
		"a stuck saga is over":   func(s *sample) { s.Totals.Sagas, s.Totals.Stuck = 0, 0 },
		"a message is parked":    func(s *sample) { s.Totals.Parked = 1 },
		"a letter is dead":       func(s *sample) { s.Totals.DeadLetters = 1 },
		"a letter is dead again": func(s *sample) { s.Totals.DeadLetters = 2 },
	} {
		if s := with(change); s.busy() || !s.differs(quiet) || !quiet.differs(s) {
			t.Errorf("%s, and the shop is not said to have changed", name)
		}
	}
}

// watching reads the events of a live stream.
type watching struct {
	t    *testing.T
	body io.ReadCloser
	in   *bufio.Scanner
}

func watchLive(t *testing.T, url string) *watching {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // of a machine that is busy, not of the stream
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	in := bufio.NewScanner(resp.Body)
	return &watching{t, resp.Body, in}
}

// next returns the next event of this name, and the names of those before.
func (w *watching) next(name string) (data string, before []string) {
	w.t.Helper()
	for is := ""; w.in.Scan(); {
		if event, ok := strings.CutPrefix(w.in.Text(), "event: "); ok {
			is = event
		} else if data, ok := strings.CutPrefix(w.in.Text(), "data: "); ok {
			if is == name {
				return data, before
			}
			before = append(before, is)
		}
	}
	w.t.Fatalf("the stream ended before a %q: %v", name, w.in.Err())
	return "", nil
}

// TestLiveTellsWhatIsNew has the console tell of traffic, of changes, and of what is controlled.
func TestLiveTellsWhatIsNew(t *testing.T) {
	var load atomic.Value
	load.Store(`{ "rate": 1 }`)
	control := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ops/api/load":
			_, _ = io.WriteString(w, load.Load().(string)+"\n")
		case "/ops/api/chaos":
			_, _ = io.WriteString(w, "{\n\"faults\": []\n}")
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	con := newConsole(platform.Env{Name: "gateway", Control: control}, nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	desk := make(chan error, 1)
	go func() { desk <- con.desk(ctx) }()
	server := httptest.NewServer(platform.Handle(con.live))
	t.Cleanup(func() {
		server.CloseClientConnections() // the streams end
		server.Close()
		cancel()
		if err := <-desk; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("desk = %v", err)
		}
	})

	con.publish(sample{Totals: totals{Sagas: 1}})
	w := watchLive(t, server.URL)
	if past, before := w.next("past"); !strings.Contains(past, `"sagas":1`) || len(before) > 0 {
		t.Errorf("past = %s after %v", past, before)
	}
	if got, before := w.next("traffic"); !strings.Contains(got, `"sagas":1`) || len(before) > 0 {
		t.Errorf("traffic = %s after %v; a page that opens reads without being told", got, before)
	}
	if got, _ := w.next("faults"); got != `{"faults":[]}` {
		t.Errorf("faults = %s, want them on one line", got)
	}
	con.publish(sample{At: time.Unix(0, 0).UTC(), Totals: totals{Sagas: 2}})
	if _, before := w.next("changed"); slices.Contains(before, "invariants") {
		t.Errorf("before the change came %v; control does not know its invariants", before)
	}

	// What is told once is not told again, but to who comes later.
	load.Store(`{ "rate": 2 }`)
	later := watchLive(t, server.URL)
	for _, who := range []*watching{w, later} {
		for got := ""; got != `{"rate":2}`; {
			got, _ = who.next("load")
		}
	}
	con.publish(sample{At: time.Unix(1, 0).UTC()}) // quiet, after there was something
	if got, _ := later.next("changed"); got != `{"at":"1970-01-01T00:00:01Z"}` {
		t.Errorf("changed = %s", got)
	}
	con.publish(sample{At: time.Unix(2, 0).UTC()})
	if got, before := later.next("traffic"); !strings.Contains(got, "00:00:02Z") || slices.Contains(before, "changed") {
		t.Errorf("traffic = %s after %v, want no change in between", got, before)
	}

	// When nobody watches, what control said is forgotten: it would be old.
	_ = w.body.Close()
	_ = later.body.Close()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		con.mu.Lock()
		_, known := con.told[kindLoad]
		con.mu.Unlock()
		if !known {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the load is still told of when nobody watches")
		}
	}
}
