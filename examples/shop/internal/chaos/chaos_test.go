// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"errors"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// world remembers what it suffers.
type world struct {
	mu     sync.Mutex
	faults []Fault
}

func (*world) Services() []string  { return []string{"order", "provider", "gateway"} }
func (*world) Instances() []string { return []string{"order-1", "order-2", "provider-1", "gateway-1"} }

func (w *world) Suffer(faults []Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = faults
}

// suffers returns what the world suffers at present.
func (w *world) suffers() []Fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faults
}

func TestControl(t *testing.T) {
	begin := func(t *testing.T, c *Control, r Request) Fault {
		t.Helper()
		f, err := c.Begin(r)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	t.Run("each fault ends by itself, and the others stay", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := new(world)
			c := New(w)
			defer c.Close()
			short := begin(t, c, Request{Kind: Kill, Service: "order", Seconds: 2})
			long := begin(t, c, Request{Kind: Latency, Service: "order-2", Seconds: 5})
			if short.EndsAt.Sub(short.StartedAt) != 2*time.Second || long.Amount != 500 {
				t.Errorf("faults = %+v, %+v; want 2s, and the default amount of 500", short, long)
			}
			if !reflect.DeepEqual(w.suffers(), []Fault{short, long}) {
				t.Errorf("the world suffers %v, want both", w.suffers())
			}
			time.Sleep(3 * time.Second)
			synctest.Wait()
			if !reflect.DeepEqual(w.suffers(), []Fault{long}) || !reflect.DeepEqual(c.Faults(), []Fault{long}) {
				t.Errorf("the world suffers %v, want the longer one", w.suffers())
			}
			time.Sleep(3 * time.Second)
			synctest.Wait()
			if len(w.suffers()) != 0 || c.Quiet(2*time.Second) || !c.Quiet(time.Second) {
				t.Errorf("the world suffers %v, quiet for 2s %v, for 1s %v; want nothing, false, true", w.suffers(), c.Quiet(2*time.Second), c.Quiet(time.Second))
			}
		})
	})
	t.Run("a fault can be ended early, once", func(t *testing.T) {
		w := new(world)
		c := New(w)
		f := begin(t, c, Request{Kind: ProviderDown})
		if !c.End(f.ID) || c.End(f.ID) || len(w.suffers()) != 0 {
			t.Error("End does not say true once, or the world suffers still")
		}
	})
	t.Run("asked for twice with one ID it begins once, also after its end", func(t *testing.T) {
		w := new(world)
		c := New(w)
		r := Request{ID: "01234567", Kind: Kill, Service: "gateway"}
		first := begin(t, c, r)
		if again := begin(t, c, r); again != first || len(w.suffers()) != 1 {
			t.Errorf("again = %+v with %d faults, want %+v and 1", again, len(w.suffers()), first)
		}
		c.End(first.ID)
		if again := begin(t, c, r); again != first || len(w.suffers()) != 0 {
			t.Errorf("again = %+v with %d faults, want %+v and none", again, len(w.suffers()), first)
		}
	})
	t.Run("a closed one begins nothing", func(t *testing.T) {
		w := new(world)
		c := New(w)
		begin(t, c, Request{Kind: Pause, Service: "order"})
		c.Close()
		if _, err := c.Begin(Request{Kind: Pause, Service: "order"}); !errors.Is(err, ErrClosed) || len(w.suffers()) != 0 {
			t.Errorf("Begin = %v with %v suffered, want ErrClosed and nothing", err, w.suffers())
		}
	})
}

func TestHarm(t *testing.T) {
	faults := []Fault{
		{Kind: Latency, Service: "order", Amount: 100},
		{Kind: Latency, Service: "order-2", Amount: 50},
		{Kind: Errors, Service: "order", Amount: 10},
		{Kind: Errors, Service: "order", Amount: 5},
		{Kind: Kill, Service: "order-1"},
		{Kind: ProviderSlow, Amount: 70},
	}
	for _, tt := range []struct {
		service, instance string
		want              platform.Harm
		dead              bool
	}{
		{"order", "order-1", platform.Harm{Latency: 100 * time.Millisecond, Errors: 10}, true},
		{"order", "order-2", platform.Harm{Latency: 150 * time.Millisecond, Errors: 10}, false},
		{"provider", "provider-1", platform.Harm{Delay: 70 * time.Millisecond}, false},
		{"gateway", "gateway-1", platform.Harm{}, false},
	} {
		if got, dead := Harm(faults, tt.service, tt.instance); got != tt.want || dead != tt.dead {
			t.Errorf("Harm of %s = %+v, dead %v; want %+v, %v", tt.instance, got, dead, tt.want, tt.dead)
		}
	}
}

func TestPlan(t *testing.T) {
	w := new(world)
	c := New(w)
	for _, length := range []time.Duration{time.Second, 10 * time.Second, time.Minute, 20 * time.Minute} {
		strikes := plan(42, length, c.Kinds(), w.Instances())
		if !reflect.DeepEqual(strikes, plan(42, length, c.Kinds(), w.Instances())) {
			t.Errorf("%v: the same seed plans otherwise", length)
		}
		if reflect.DeepEqual(strikes, plan(43, length, c.Kinds(), w.Instances())) {
			t.Errorf("%v: another seed plans the same", length)
		}
		for _, kind := range Names() {
			if !slices.ContainsFunc(strikes, func(s Strike) bool { return s.Kind == kind }) {
				t.Errorf("%v: no %s in %d faults, want each kind once at least", length, kind, len(strikes))
			}
		}
		for _, s := range strikes {
			if s.At+s.Seconds > length.Seconds() {
				t.Errorf("%v: %v is not over in time", length, s)
			}
			if _, err := c.Begin(s.Request); err != nil {
				t.Errorf("%v: %v", s, err)
			}
		}
		c.EndAll()
	}
}
