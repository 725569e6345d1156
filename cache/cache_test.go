// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// plain is a configuration without chance: no jitter, no early refresh.
func plain() cache.Config[int] {
	return cache.Config[int]{Jitter: -1, Early: -1}
}

// virtual runs test under virtual time, and lets the refreshes end that it began.
func virtual(t *testing.T, test func(*testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(t)
		time.Sleep(time.Hour)
	})
}

func newCache[T any](t *testing.T, cfg cache.Config[T]) *cache.Cache[T] {
	t.Helper()
	c, err := cache.New("test", cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// origin is where values live: each load gets the next number, after a while.
type origin struct {
	takes time.Duration
	loads atomic.Int64
	err   atomic.Pointer[error]
}

func (o *origin) load(ctx context.Context, _ string) (int, error) {
	n := o.loads.Add(1)
	select {
	case <-time.After(o.takes):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err := o.err.Load(); err != nil && *err != nil {
		return 0, *err
	}
	return int(n), nil
}

func (o *origin) fail(err error) { o.err.Store(&err) }

func want(t *testing.T, c *cache.Cache[int], o *origin, value int, source cache.Source) {
	t.Helper()
	r, err := c.Fetch(t.Context(), "k", o.load)
	if err != nil || r.Value != value || r.Source != source {
		t.Errorf("Fetch = %+v, %v, want %d from %v", r, err, value, source)
	}
}

func TestGet(t *testing.T) {
	t.Run("a value is loaded once and served until its time is over", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			c, o := newCache(t, plain()), &origin{takes: time.Second}
			want(t, c, o, 1, cache.Origin)
			time.Sleep(time.Minute - 1)
			want(t, c, o, 1, cache.Local)
			time.Sleep(time.Nanosecond)
			want(t, c, o, 2, cache.Origin)
		})
	})
	t.Run("a thousand readers of a cold key make one load", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			c, o := newCache(t, cache.Config[int]{}), &origin{takes: time.Second}
			var wg sync.WaitGroup
			for range 1000 {
				wg.Go(func() {
					if v, err := c.Get(t.Context(), "k", o.load); v != 1 || err != nil {
						t.Errorf("Get = %v, %v, want 1", v, err)
					}
				})
			}
			wg.Wait()
			if n := o.loads.Load(); n != 1 {
				t.Errorf("%d loads, want 1", n)
			}
			if s := c.Stats(); s.Shared != 999 || s.Loads != 1 || s.Flights != 0 || s.Entries != 1 {
				t.Errorf("Stats = %+v, want 999 shared, 1 load, no flight, 1 entry", s)
			}
		})
	})
	t.Run("a leader that gives up leaves the load to those who wait", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			c, o := newCache(t, cache.Config[int]{}), &origin{takes: 200 * time.Millisecond}
			leader, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			var wg sync.WaitGroup
			wg.Go(func() {
				began := time.Now()
				_, err := c.Get(leader, "k", o.load)
				if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != 20*time.Millisecond {
					t.Errorf("Get of the leader = %v after %v, want its deadline after 20ms", err, took)
				}
			})
			synctest.Wait()
			for range 99 {
				wg.Go(func() {
					if v, err := c.Get(t.Context(), "k", o.load); v != 1 || err != nil {
						t.Errorf("Get = %v, %v, want 1", v, err)
					}
				})
			}
			wg.Wait()
			if n := o.loads.Load(); n != 1 {
				t.Errorf("%d loads, want 1", n)
			}
		})
	})
	t.Run("one who waits leaves when his own time is over", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			c, o := newCache(t, cache.Config[int]{}), &origin{takes: 200 * time.Millisecond}
			go func() { _, _ = c.Get(context.Background(), "k", o.load) }()
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			began := time.Now()
			_, err := c.Get(ctx, "k", o.load)
			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != 30*time.Millisecond {
				t.Errorf("Get = %v after %v, want the deadline after 30ms", err, took)
			}
			if v := fault.Judge(ctx, err); v.Outcome != fault.Neutral {
				t.Errorf("Judge = %+v, want neutral: the caller gave up", v)
			}
			time.Sleep(time.Second)
			want(t, c, o, 1, cache.Local)
		})
	})
	t.Run("one who has gone already begins no load", func(t *testing.T) {
		c, o := newCache(t, cache.Config[int]{}), &origin{}
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("shutting down")
		cancel(cause)
		if _, err := c.Get(ctx, "k", o.load); !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || o.loads.Load() != 0 {
			t.Errorf("Get = %v with %d loads, want the cause and none", err, o.loads.Load())
		}
	})
	t.Run("a load sees the caller's values and its own end", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			type name struct{}
			c := newCache(t, cache.Config[int]{LoadTimeout: time.Second})
			ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), name{}, 7), time.Minute)
			defer cancel()
			v, err := c.Get(ctx, "k", func(ctx context.Context, key string) (int, error) {
				if d, ok := ctx.Deadline(); !ok || time.Until(d) != time.Second || key != "k" {
					t.Errorf("load(%q) with the deadline %v, want in 1s", key, time.Until(d))
				}
				return ctx.Value(name{}).(int), nil
			})
			if v != 7 || err != nil {
				t.Errorf("Get = %v, %v, want 7", v, err)
			}
		})
	})
	t.Run("a load that hangs and does not listen is left behind", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			c, o := newCache(t, cache.Config[int]{LoadTimeout: time.Second}), &origin{}
			hang := make(chan struct{})
			_, err := c.Get(t.Context(), "k", func(context.Context, string) (int, error) { <-hang; return -1, nil })
			var load *cache.LoadError
			if !errors.As(err, &load) || !errors.Is(err, context.DeadlineExceeded) || load.Key != "k" || !strings.Contains(err.Error(), "LoadTimeout, 1s") {
				t.Errorf("Get = %v, want a LoadError of the timeout", err)
			}
			want(t, c, o, 1, cache.Origin)
			close(hang)
			synctest.Wait()
			want(t, c, o, 1, cache.Local) // not the late one
			if s := c.Stats(); s.Flights != 0 {
				t.Errorf("Stats.Flights = %d, want 0", s.Flights)
			}
		})
	})
	t.Run("an error is for those who waited and is not remembered", func(t *testing.T) {
		c, o := newCache(t, plain()), &origin{}
		down := errors.New("down")
		o.fail(down)
		for range 2 {
			if _, err := c.Get(t.Context(), "k", o.load); !errors.Is(err, down) || err.Error() != `cache test: load "k": down` {
				t.Errorf("Get = %v, want the load's error", err)
			}
		}
		o.fail(nil)
		want(t, c, o, 3, cache.Origin)
	})
	t.Run("keys do not share", func(t *testing.T) {
		c, o := newCache(t, cache.Config[int]{}), &origin{}
		for i := range 100 {
			if v, err := c.Get(t.Context(), fmt.Sprint(i), o.load); v != i+1 || err != nil {
				t.Errorf("Get(%d) = %v, %v, want %d", i, v, err, i+1)
			}
		}
	})
	t.Run("a hit allocates nothing", func(t *testing.T) {
		c, o := newCache(t, cache.Config[int]{}), &origin{}
		load := o.load
		ctx := t.Context()
		_, _ = c.Get(ctx, "k", load)
		if n := testing.AllocsPerRun(100, func() { _, _ = c.Get(ctx, "k", load) }); n != 0 {
			t.Errorf("%v allocations, want 0", n)
		}
	})
}

func TestPanic(t *testing.T) {
	for name, load := range map[string]cache.Load[int]{
		"panic":  func(context.Context, string) (int, error) { time.Sleep(time.Second); panic("boom") },
		"goexit": func(context.Context, string) (int, error) { time.Sleep(time.Second); runtime.Goexit(); return 0, nil },
		"nil":    nil,
	} {
		t.Run(name, func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				c, o := newCache(t, cache.Config[int]{}), &origin{}
				var wg sync.WaitGroup
				for range 10 {
					wg.Go(func() {
						_, err := c.Get(t.Context(), "k", load)
						var p *cache.PanicError
						if !errors.As(err, &p) || len(p.Stack) == 0 || name == "panic" && p.Value != "boom" || name == "goexit" && p.Value != nil {
							t.Errorf("Get = %v, want a PanicError", err)
						}
					})
				}
				wg.Wait()
				if s := c.Stats(); s.Flights != 0 || s.Failures == 0 {
					t.Errorf("Stats = %+v, want a failure and no flight", s)
				}
				want(t, c, o, 1, cache.Origin)
			})
		})
	}
}

func TestNegative(t *testing.T) {
	gone := fmt.Errorf("product 7: %w", cache.ErrNotFound)
	t.Run("what is not there is remembered for its own time", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			c, o := newCache(t, plain()), &origin{}
			o.fail(gone)
			for range 10 {
				if _, err := c.Get(t.Context(), "k", o.load); !errors.Is(err, cache.ErrNotFound) || err.Error() != gone.Error() {
					t.Errorf("Get = %v, want %v", err, gone)
				}
				time.Sleep(time.Second - 1)
			}
			if n := o.loads.Load(); n != 1 {
				t.Errorf("%d loads, want 1", n)
			}
			if s := c.Stats(); s.Negative != 9 || s.Hits != 0 || s.Failures != 0 {
				t.Errorf("Stats = %+v, want 9 negative", s)
			}
			o.fail(nil)
			time.Sleep(time.Second)
			want(t, c, o, 2, cache.Origin)
		})
	})
	t.Run("or not at all", func(t *testing.T) {
		cfg := plain()
		cfg.NegativeTTL = -1
		c, o := newCache(t, cfg), &origin{}
		o.fail(gone)
		for range 3 {
			_, _ = c.Get(t.Context(), "k", o.load)
		}
		if n := o.loads.Load(); n != 3 {
			t.Errorf("%d loads, want 3", n)
		}
	})
	t.Run("it takes the place of a value, which is never served again", func(t *testing.T) {
		for _, ttl := range []time.Duration{0, -1} {
			virtual(t, func(t *testing.T) {
				cfg := plain()
				cfg.NegativeTTL = ttl
				c, o := newCache(t, cfg), &origin{}
				want(t, c, o, 1, cache.Origin)
				time.Sleep(time.Minute)
				o.fail(gone)
				if _, err := c.Get(t.Context(), "k", o.load); !errors.Is(err, cache.ErrNotFound) {
					t.Errorf("Get = %v, want ErrNotFound", err)
				}
				time.Sleep(11 * time.Second)
				o.fail(errors.New("down"))
				if v, err := c.Get(t.Context(), "k", o.load); err == nil {
					t.Errorf("Get = %v, want an error", v)
				}
			})
		}
	})
	t.Run("to package fault it is permanent", func(t *testing.T) {
		if !fault.IsPermanent(gone) {
			t.Error("IsPermanent = false, want true")
		}
	})
}

func TestStale(t *testing.T) {
	down := errors.New("down")
	t.Run("a value is served while loads fail, within its limit, and then a clear error", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cfg := plain()
			cfg.StaleFor = 5 * time.Minute
			var told []cache.Stale
			cfg.Hooks.Stale = func(s cache.Stale) { told = append(told, s) }
			c, o := newCache(t, cfg), &origin{}
			want(t, c, o, 1, cache.Origin)
			o.fail(down)
			time.Sleep(time.Minute)
			want(t, c, o, 1, cache.Expired)
			if len(told) != 1 || told[0].Age != time.Minute || !errors.Is(told[0].Err, down) {
				t.Errorf("told %+v, want the age and the reason", told)
			}
			time.Sleep(5*time.Minute - 1)
			want(t, c, o, 1, cache.Expired)
			time.Sleep(time.Nanosecond)
			_, err := c.Get(t.Context(), "k", o.load)
			var load *cache.LoadError
			if !errors.As(err, &load) || load.Age != 6*time.Minute || !errors.Is(err, down) {
				t.Errorf("Get = %#v, want a LoadError with the age 6m", err)
			}
			if text := `cache test: load "k": down (the last value is 6m0s old, too old to be served)`; err.Error() != text {
				t.Errorf("Error = %q, want %q", err, text)
			}
			o.fail(nil)
			want(t, c, o, int(o.loads.Load()+1), cache.Origin)
		})
	})
	t.Run("a load that failed is not tried again at once", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			c, o := newCache(t, plain()), &origin{}
			want(t, c, o, 1, cache.Origin)
			o.fail(down)
			time.Sleep(time.Minute)
			for range 100 { // one second
				want(t, c, o, 1, cache.Expired)
				time.Sleep(10 * time.Millisecond)
			}
			if n := o.loads.Load(); n != 2 {
				t.Errorf("%d loads, want 2", n)
			}
			want(t, c, o, 1, cache.Expired)
			if n := o.loads.Load(); n != 3 {
				t.Errorf("%d loads, want 3", n)
			}
		})
	})
	t.Run("a permanent error is not covered up", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			c, o := newCache(t, plain()), &origin{}
			want(t, c, o, 1, cache.Origin)
			o.fail(fault.Permanent(down))
			time.Sleep(time.Minute)
			if _, err := c.Get(t.Context(), "k", o.load); !errors.Is(err, down) {
				t.Errorf("Get = %v, want the load's error", err)
			}
		})
	})
	t.Run("or never, where it is switched off", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cfg := plain()
			cfg.StaleFor = -1
			c, o := newCache(t, cfg), &origin{}
			want(t, c, o, 1, cache.Origin)
			o.fail(down)
			time.Sleep(time.Minute)
			if _, err := c.Get(t.Context(), "k", o.load); !errors.Is(err, down) {
				t.Errorf("Get = %v, want the load's error", err)
			}
		})
	})
}

func TestEarlyRefresh(t *testing.T) {
	// Fifty readers look every 20 ms, so each value is read 150,000 times in its minute.
	read := func(t *testing.T, c *cache.Cache[int], o *origin, d time.Duration) {
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
					began := time.Now()
					if _, err := c.Get(t.Context(), "k", o.load); err != nil {
						t.Errorf("Get = %v, want nil", err)
					}
					if waited := time.Since(began); waited != 0 {
						t.Errorf("a reader of a hot key waited %v", waited)
					}
				}
			})
		}
		wg.Wait()
	}
	t.Run("a hot key is refreshed before it expires, by one load, and nobody waits", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			c, o := newCache(t, cache.Config[int]{Jitter: -1}), &origin{takes: 500 * time.Millisecond}
			want(t, c, o, 1, cache.Origin)
			read(t, c, o, 5*time.Minute)
			time.Sleep(o.takes) // a refresh that has begun ends
			// A seventh would mean that each began 10 s early, which is 20 times the load.
			if n := o.loads.Load(); n < 5 || n > 6 {
				t.Errorf("%d loads in five minutes, want 5 or 6", n)
			}
			if s := c.Stats(); s.Early != s.Loads-1 {
				t.Errorf("Stats = %+v, want all loads but the first early", s)
			}
		})
	})
	t.Run("a refresh that fails is tried again after the backoff", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			c, o := newCache(t, cache.Config[int]{Jitter: -1, Early: 20}), &origin{takes: 100 * time.Millisecond}
			want(t, c, o, 1, cache.Origin)
			o.fail(errors.New("down"))
			read(t, c, o, 59*time.Second)
			if n := o.loads.Load(); n < 3 || n > 60 {
				t.Errorf("%d loads, want some but not more than one a second", n)
			}
			want(t, c, o, 1, cache.Local)
		})
	})
	t.Run("a cold key is not refreshed", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			c, o := newCache(t, cache.Config[int]{}), &origin{takes: time.Second}
			want(t, c, o, 1, cache.Origin)
			time.Sleep(time.Hour)
			if n := o.loads.Load(); n != 1 {
				t.Errorf("%d loads, want 1", n)
			}
		})
	})
}

func TestJitterSpreadsWhatWasLoadedTogether(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c, o := newCache(t, cache.Config[int]{TTL: 100 * time.Second, Jitter: 0.5, Early: -1}), &origin{}
		const n = 1000
		all := func() {
			for i := range n {
				_, _ = c.Get(t.Context(), fmt.Sprint(i), o.load)
			}
		}
		all()
		time.Sleep(50 * time.Second)
		all()
		if l := o.loads.Load(); l != n {
			t.Errorf("%d expired in the first half, want none", l-n)
		}
		time.Sleep(25 * time.Second)
		all()
		if l := o.loads.Load(); l < n+n/3 || l > n+2*n/3 {
			t.Errorf("%d of %d expired in the third quarter, want about half", l-n, n)
		}
		time.Sleep(25*time.Second - 1)
		all()
		if l := o.loads.Load(); l < 2*n-10 || l > 2*n {
			t.Errorf("%d of %d expired before the end, want all", l-n, n)
		}
	})
}

func TestSize(t *testing.T) {
	t.Run("in values", func(t *testing.T) {
		c, o := newCache(t, cache.Config[int]{Size: 100}), &origin{}
		for i := range 1000 {
			_, _ = c.Get(t.Context(), fmt.Sprint(i), o.load)
		}
		if s := c.Stats(); s.Entries != 100 || s.Size != 100 || s.Evictions != 900 {
			t.Errorf("Stats = %+v, want 100 entries and 900 evictions", s)
		}
	})
	t.Run("in bytes", func(t *testing.T) {
		c := newCache(t, cache.Config[string]{Size: 1000, Cost: func(key, v string) int64 { return int64(len(key) + len(v)) }})
		for i := range 1000 {
			key := fmt.Sprint(i)
			v, err := c.Get(t.Context(), key, func(context.Context, string) (string, error) { return strings.Repeat("x", i), nil })
			if len(v) != i || err != nil {
				t.Errorf("Get = %d bytes, %v, want %d", len(v), err, i)
			}
			if s := c.Stats(); s.Size > 1000 {
				t.Fatalf("Stats = %+v, want a size of at most 1000", s)
			}
		}
		if s := c.Stats(); s.Entries == 0 {
			t.Errorf("Stats = %+v, want some entries", s)
		}
	})
}

func TestInvalidate(t *testing.T) {
	t.Run("what was invalidated is loaded anew", func(t *testing.T) {
		c, o := newCache(t, cache.Config[int]{}), &origin{}
		want(t, c, o, 1, cache.Origin)
		if err := c.Invalidate(t.Context(), "other", "k"); err != nil {
			t.Fatalf("Invalidate = %v, want nil", err)
		}
		want(t, c, o, 2, cache.Origin)
	})
	t.Run("a load that began before stores nothing, and who comes after does not wait for it", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cfg := plain()
			var fenced atomic.Int64
			cfg.Hooks.Fenced = func(cache.Fenced) { fenced.Add(1) }
			c, o := newCache(t, cfg), &origin{takes: time.Second}
			go want(t, c, o, 1, cache.Origin) // waited already, so it gets the old one
			synctest.Wait()
			if err := c.Invalidate(t.Context(), "k"); err != nil {
				t.Fatalf("Invalidate = %v, want nil", err)
			}
			time.Sleep(500 * time.Millisecond)
			want(t, c, o, 2, cache.Origin)
			want(t, c, o, 2, cache.Local)
			synctest.Wait()
			if fenced.Load() != 1 || c.Stats().Fenced != 1 {
				t.Errorf("told %d times, Stats = %+v, want 1 fenced", fenced.Load(), c.Stats())
			}
		})
	})
	t.Run("what was invalidated is not served stale either", func(t *testing.T) {
		c, o := newCache(t, cache.Config[int]{}), &origin{}
		want(t, c, o, 1, cache.Origin)
		_ = c.Invalidate(t.Context(), "k")
		o.fail(errors.New("down"))
		if v, err := c.Get(t.Context(), "k", o.load); err == nil {
			t.Errorf("Get = %v, want an error", v)
		}
	})
	t.Run("Clear invalidates all in this process", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			c, o, slow := newCache(t, plain()), &origin{}, &origin{takes: time.Second}
			want(t, c, o, 1, cache.Origin)
			go func() { _, _ = c.Get(t.Context(), "slow", slow.load) }()
			synctest.Wait()
			c.Clear()
			if s := c.Stats(); s.Entries != 0 || s.Size != 0 {
				t.Errorf("Stats = %+v, want it empty", s)
			}
			want(t, c, o, 2, cache.Origin)
			time.Sleep(2 * time.Second)
			if s := c.Stats(); s.Entries != 1 || s.Size != 1 {
				t.Errorf("Stats = %+v, want what was loaded since", s)
			}
		})
	})
	t.Run("Handler invalidates what a message is about", func(t *testing.T) {
		c, o := newCache(t, cache.Config[int]{}), &origin{}
		want(t, c, o, 1, cache.Origin)
		bad := errors.New("no such message")
		h := c.Handler(func(_ context.Context, d *messaging.Delivery) ([]string, error) {
			if d.Message.Key == "" {
				return nil, bad
			}
			return []string{d.Message.Key}, nil
		})
		if err := h.Handle(t.Context(), &messaging.Delivery{Message: &messaging.Message{ID: "1"}}); !errors.Is(err, bad) {
			t.Errorf("Handle = %v, want %v", err, bad)
		}
		want(t, c, o, 1, cache.Local)
		if err := h.Handle(t.Context(), &messaging.Delivery{Message: &messaging.Message{ID: "2", Key: "k"}}); err != nil {
			t.Errorf("Handle = %v, want nil", err)
		}
		want(t, c, o, 2, cache.Origin)
	})
}

func TestHooks(t *testing.T) {
	virtual(t, func(t *testing.T) {
		var c *cache.Cache[int]
		var loaded []cache.Loaded
		cfg := plain()
		cfg.Hooks.Loaded = func(l cache.Loaded) {
			loaded = append(loaded, l)
			_ = c.Stats() // may call back
		}
		c = newCache(t, cfg)
		o := &origin{takes: time.Second}
		want(t, c, o, 1, cache.Origin)
		if len(loaded) != 1 || loaded[0] != (cache.Loaded{Cache: "test", Key: "k", Took: time.Second}) {
			t.Errorf("told %+v, want one load of 1s", loaded)
		}
	})
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  cache.Config[int]
		want string
	}{
		{"", cache.Config[int]{}, `cache: name is "", want a text without a colon`},
		{"a:b", cache.Config[int]{}, `cache: name is "a:b", want a text without a colon`},
		{"c", cache.Config[int]{TTL: -1}, "cache: Config.TTL is -1ns, want 0 or more"},
		{"c", cache.Config[int]{LoadTimeout: -1}, "cache: Config.LoadTimeout is -1ns, want 0 or more"},
		{"c", cache.Config[int]{Jitter: 1.5}, "cache: Config.Jitter is 1.5, want at most 1"},
		{"c", cache.Config[int]{Size: -1}, "cache: Config.Size is -1, want 0 or more"},
	} {
		if _, err := cache.New(c.name, c.cfg); err == nil || err.Error() != c.want {
			t.Errorf("New = %v, want %s", err, c.want)
		}
	}
	for s, text := range map[fmt.Stringer]string{cache.Local: "local", cache.Remote: "remote", cache.Origin: "origin", cache.Expired: "expired", cache.Source(9): "cache.Source(9)"} {
		if s.String() != text {
			t.Errorf("String = %q, want %q", s, text)
		}
	}
}
