// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/cache/cachetest"
	"github.com/dovetail-go/dovetail/messaging"
)

// processes returns caches that share a store, as in so many processes.
func processes(t *testing.T, n int, cfg cache.Config[int]) ([]*cache.Cache[int], *cachetest.Store) {
	t.Helper()
	s := cachetest.NewStore()
	cfg.Store = s
	cs := make([]*cache.Cache[int], n)
	for i := range cs {
		cs[i] = newCache(t, cfg)
	}
	return cs, s
}

func TestSharedStore(t *testing.T) {
	t.Run("what one process has loaded the others find", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cs, _ := processes(t, 2, plain())
			o := &origin{takes: time.Second}
			want(t, cs[0], o, 1, cache.Origin)
			time.Sleep(10 * time.Second)
			if r, err := cs[1].Fetch(t.Context(), "k", o.load); err != nil || r != (cache.Result[int]{Value: 1, Source: cache.Remote, Age: 10 * time.Second}) {
				t.Errorf("Fetch = %+v, %v, want 1, 10 s old, from remote", r, err)
			}
			want(t, cs[1], o, 1, cache.Local)
			time.Sleep(50*time.Second - 1)
			want(t, cs[1], o, 1, cache.Local) // its time goes on from when it was loaded
			time.Sleep(time.Nanosecond)
			want(t, cs[1], o, 2, cache.Origin)
		})
	})
	t.Run("four processes with many readers make one load of a cold and of an expiring key", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cfg := plain()
			cfg.StaleFor = -1 // so that all have to wait
			cs, _ := processes(t, 4, cfg)
			o := &origin{takes: time.Second}
			for round := range 5 {
				var wg sync.WaitGroup
				for _, c := range cs {
					for range 250 {
						wg.Go(func() {
							if v, err := c.Get(t.Context(), "k", o.load); v != round+1 || err != nil {
								t.Errorf("Get = %v, %v, want %d", v, err, round+1)
							}
						})
					}
				}
				wg.Wait()
				if n := o.loads.Load(); n != int64(round+1) {
					t.Fatalf("%d loads in round %d, want one in each", n, round+1)
				}
				time.Sleep(2 * time.Minute)
			}
		})
	})
	t.Run("and with early refresh", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cs, _ := processes(t, 4, cache.Config[int]{Jitter: -1})
			o := &origin{takes: 500 * time.Millisecond}
			var wg sync.WaitGroup
			for _, c := range cs {
				for range 20 {
					wg.Go(func() {
						for i := range 5 * 60 * 20 {
							began := time.Now()
							if _, err := c.Get(t.Context(), "k", o.load); err != nil {
								t.Errorf("Get = %v, want nil", err)
							}
							if waited := time.Since(began); waited != 0 && i > 0 {
								t.Errorf("a reader of a hot key waited %v", waited)
							}
							time.Sleep(50 * time.Millisecond)
						}
					})
				}
			}
			wg.Wait()
			if n := o.loads.Load(); n < 5 || n > 6 {
				t.Errorf("%d loads in five minutes, want 5 or 6", n)
			}
		})
	})
	t.Run("while another process loads, an old value is served rather than waited for", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cs, _ := processes(t, 2, plain())
			o := &origin{takes: time.Second}
			want(t, cs[0], o, 1, cache.Origin)
			time.Sleep(time.Minute)
			go want(t, cs[0], o, 2, cache.Origin)
			synctest.Wait()
			want(t, cs[1], o, 1, cache.Expired)
			time.Sleep(2 * time.Second)
			want(t, cs[1], o, 2, cache.Remote)
		})
	})
	t.Run("a process that dies while it loads holds the others up for one lease", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cs, s := processes(t, 1, plain())
			o := &origin{}
			if h, err := s.Take(t.Context(), "test:k", cache.Ask{Lease: 3 * time.Second}); h.Token == "" || err != nil {
				t.Fatalf("Take = %+v, %v, want the lease", h, err)
			}
			began := time.Now()
			want(t, cs[0], o, 1, cache.Origin)
			if waited := time.Since(began); waited < 3*time.Second || waited > 3200*time.Millisecond {
				t.Errorf("waited %v, want 3s and little more", waited)
			}
		})
	})
	t.Run("and leases of others that never end hold nobody up for ever", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cs, s := processes(t, 1, plain())
			o := &origin{}
			if _, err := s.Take(t.Context(), "test:k", cache.Ask{Lease: 24 * time.Hour}); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			want(t, cs[0], o, 1, cache.Origin)
			if waited := time.Since(began); waited > 6*time.Second {
				t.Errorf("waited %v, want about LoadTimeout", waited)
			}
		})
	})
	t.Run("a load that fails lets the next process try at once", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cs, _ := processes(t, 2, plain())
			o := &origin{takes: time.Second}
			o.fail(errors.New("down"))
			go func() { _, _ = cs[0].Get(t.Context(), "k", o.load) }()
			synctest.Wait()
			time.AfterFunc(1500*time.Millisecond, func() { o.fail(nil) })
			began := time.Now()
			want(t, cs[1], o, 2, cache.Origin)
			if waited := time.Since(began); waited > 2200*time.Millisecond {
				t.Errorf("waited %v, want two loads' time", waited)
			}
		})
	})
	t.Run("an old value of the store covers up a failing load of a process that never had it", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cs, _ := processes(t, 2, plain())
			o := &origin{}
			want(t, cs[0], o, 1, cache.Origin)
			time.Sleep(time.Minute)
			o.fail(errors.New("down"))
			want(t, cs[1], o, 1, cache.Expired)
			want(t, cs[1], o, 1, cache.Expired)
			if n := o.loads.Load(); n != 2 {
				t.Errorf("%d loads, want 2: the backoff counts", n)
			}
		})
	})
	t.Run("negative answers are shared", func(t *testing.T) {
		cs, _ := processes(t, 2, plain())
		o := &origin{}
		o.fail(cache.ErrNotFound)
		for _, c := range cs {
			if _, err := c.Get(t.Context(), "k", o.load); !errors.Is(err, cache.ErrNotFound) {
				t.Errorf("Get = %v, want ErrNotFound", err)
			}
		}
		if n := o.loads.Load(); n != 1 {
			t.Errorf("%d loads, want 1", n)
		}
	})
	t.Run("a negative answer that is not to be remembered removes the value", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cfg := plain()
			cfg.NegativeTTL = -1
			cs, _ := processes(t, 2, cfg)
			o := &origin{}
			want(t, cs[0], o, 1, cache.Origin)
			time.Sleep(time.Minute)
			o.fail(cache.ErrNotFound)
			_, _ = cs[0].Get(t.Context(), "k", o.load)
			o.fail(errors.New("down"))
			if v, err := cs[1].Get(t.Context(), "k", o.load); err == nil {
				t.Errorf("Get = %v, want an error", v)
			}
		})
	})
	t.Run("a value that does not decode is loaded anew", func(t *testing.T) {
		s := cachetest.NewStore()
		words := newCache(t, cache.Config[string]{Store: s})
		if _, err := words.Get(t.Context(), "k", func(context.Context, string) (string, error) { return "word", nil }); err != nil {
			t.Fatal(err)
		}
		numbers, o := newCache(t, cache.Config[int]{Store: s}), &origin{}
		want(t, numbers, o, 1, cache.Origin)
		want(t, newCache(t, cache.Config[int]{Store: s}), o, 1, cache.Remote)
		if n := numbers.Stats().StoreErrors; n != 1 {
			t.Errorf("StoreErrors = %d, want 1", n)
		}
	})
	t.Run("LocalTTL is how long the store is not asked", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cfg := plain()
			cfg.LocalTTL = time.Second
			cs, s := processes(t, 1, cfg)
			o := &origin{}
			want(t, cs[0], o, 1, cache.Origin)
			time.Sleep(time.Second - 1)
			want(t, cs[0], o, 1, cache.Local)
			time.Sleep(time.Nanosecond)
			want(t, cs[0], o, 1, cache.Remote)
			time.Sleep(time.Second)
			s.Fail(errors.New("down")) // better a fresh value than a load
			want(t, cs[0], o, 1, cache.Local)
			s.Fail(nil)
			_ = s.Delete(t.Context(), "", "test:k")
			time.Sleep(time.Second)
			want(t, cs[0], o, 2, cache.Origin)
		})
	})
}

func TestStoreDown(t *testing.T) {
	down := errors.New("store is down")
	t.Run("each process loads for itself, and the store is not hammered", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cs, s := processes(t, 2, plain())
			o := &origin{}
			s.Fail(down)
			for i := range 10 {
				for _, c := range cs {
					if _, err := c.Get(t.Context(), fmt.Sprint(i), o.load); err != nil {
						t.Errorf("Get = %v, want nil", err)
					}
				}
			}
			if n := o.loads.Load(); n != 20 {
				t.Errorf("%d loads, want 20", n)
			}
			if st := cs[0].Stats(); st.Store != breaker.Open || st.StoreErrors != 10 {
				t.Errorf("Stats = %+v, want the breaker open", st)
			}
			s.Fail(nil)
			time.Sleep(time.Minute)
			want(t, cs[0], o, 21, cache.Origin)
			time.Sleep(time.Second)
			want(t, cs[1], o, 21, cache.Remote)
		})
	})
	t.Run("a store that hangs costs its timeout", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cfg := plain()
			cfg.Store = hanging{}
			c, o := newCache(t, cfg), &origin{}
			began := time.Now()
			want(t, c, o, 1, cache.Origin)
			if took := time.Since(began); took != 100*time.Millisecond {
				t.Errorf("took %v, want the StoreTimeout", took)
			}
		})
	})
	t.Run("Invalidate says that the store has not heard, and repeated it is made good", func(t *testing.T) {
		cs, s := processes(t, 2, plain())
		o := &origin{}
		want(t, cs[0], o, 1, cache.Origin)
		s.Fail(down)
		d := &messaging.Delivery{Message: &messaging.Message{ID: "1", Key: "k"}}
		h := cs[0].Handler(func(_ context.Context, d *messaging.Delivery) ([]string, error) { return []string{d.Message.Key}, nil })
		if err := h.Handle(t.Context(), d); !errors.Is(err, down) {
			t.Errorf("Handle = %v, want %v", err, down)
		}
		s.Fail(nil)
		if err := h.Handle(t.Context(), d); err != nil {
			t.Errorf("Handle = %v, want nil", err)
		}
		want(t, cs[1], o, 2, cache.Origin)
	})
}

// hanging never answers.
type hanging struct{}

func (hanging) Take(ctx context.Context, _ string, _ cache.Ask) (cache.Held, error) {
	<-ctx.Done()
	return cache.Held{}, ctx.Err()
}
func (hanging) Put(ctx context.Context, _, _ string, _ cache.Item) (bool, error) {
	<-ctx.Done()
	return false, ctx.Err()
}
func (hanging) Release(ctx context.Context, _, _ string) error { <-ctx.Done(); return ctx.Err() }
func (hanging) Delete(ctx context.Context, _ string, _ ...string) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestInvalidateAcrossProcesses(t *testing.T) {
	t.Run("a load in another process that began before stores nothing", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cs, _ := processes(t, 2, plain())
			o := &origin{takes: time.Second}
			go want(t, cs[1], o, 1, cache.Origin)
			synctest.Wait()
			if err := cs[0].Invalidate(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			// Process 1 has not heard anything but from the store.
			want(t, cs[1], o, 2, cache.Origin)
			if n := cs[1].Stats().Fenced; n != 1 {
				t.Errorf("Fenced = %d, want 1", n)
			}
		})
	})
	t.Run("a message that every process handles costs one load", func(t *testing.T) {
		virtual(t, func(t *testing.T) {
			cs, _ := processes(t, 8, plain())
			o := &origin{}
			want(t, cs[0], o, 1, cache.Origin)
			for _, c := range cs {
				h := c.Handler(func(_ context.Context, d *messaging.Delivery) ([]string, error) { return []string{d.Message.Key}, nil })
				if err := h.Handle(t.Context(), &messaging.Delivery{Message: &messaging.Message{ID: "1", Key: "k"}}); err != nil {
					t.Fatal(err)
				}
				if v, err := c.Get(t.Context(), "k", o.load); v != 2 || err != nil {
					t.Errorf("Get = %v, %v, want 2", v, err)
				}
			}
			if n := o.loads.Load(); n != 2 {
				t.Errorf("%d loads, want 2", n)
			}
		})
	})
}

// TestNothingOldAfterInvalidate runs writers, readers, slow loads, early refreshes, evictions and
// a store that comes and goes in one world of virtual time. A row has a version. Whoever
// changes it tells every process, by the message's ID, until each of them has heard. From
// then on no process may answer with an older one. DOVETAIL_SIM_SEEDS is how many worlds there are.
func TestNothingOldAfterInvalidate(t *testing.T) {
	seeds := uint64(24)
	if n, err := strconv.ParseUint(os.Getenv("DOVETAIL_SIM_SEEDS"), 10, 64); err == nil {
		seeds = n
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				var mu sync.Mutex
				rnd := rand.New(rand.NewPCG(seed, 2))
				chance := func(n int) int { mu.Lock(); defer mu.Unlock(); return rnd.IntN(n) }
				pause := func(most time.Duration) { time.Sleep(time.Duration(chance(int(most)))) }

				const keys, nodes = 4, 3
				inner := cachetest.NewStore()
				cfg := cache.Config[int]{
					TTL: time.Second, StaleFor: 2 * time.Second, Early: 3, Size: 3, LoadTimeout: 200 * time.Millisecond,
					Store: slow{inner, pause}, Backoff: 10 * time.Millisecond,
				}
				if seed%3 == 0 {
					cfg.LocalTTL = 100 * time.Millisecond
				}
				cs := make([]*cache.Cache[int], nodes)
				for i := range cs {
					cs[i] = newCache(t, cfg)
				}
				var row, told [keys]atomic.Int64 // the version, and the least that may be answered
				load := func(_ context.Context, key string) (int, error) {
					pause(20 * time.Millisecond)
					v := row[key[0]-'0'].Load()
					pause(150 * time.Millisecond)
					if chance(10) == 0 {
						return 0, errors.New("down")
					}
					return int(v), nil
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				var wg sync.WaitGroup
				for range 2 * nodes {
					for _, c := range cs {
						wg.Go(func() {
							for ctx.Err() == nil {
								k := chance(keys)
								least := told[k].Load()
								if v, err := c.Get(context.WithoutCancel(ctx), fmt.Sprint(k), load); err == nil && int64(v) < least {
									t.Errorf("Get(%d) = %d, want at least %d", k, v, least)
								}
								pause(20 * time.Millisecond)
							}
						})
					}
				}
				for k := range keys {
					wg.Go(func() {
						for ctx.Err() == nil {
							pause(time.Second)
							v := row[k].Add(1)
							d := &messaging.Delivery{Message: &messaging.Message{ID: fmt.Sprint(k, "/", v), Key: fmt.Sprint(k)}}
							var heard sync.WaitGroup
							for _, c := range cs {
								h := c.Handler(func(_ context.Context, d *messaging.Delivery) ([]string, error) { return []string{d.Message.Key}, nil })
								heard.Go(func() {
									pause(50 * time.Millisecond)
									for h.Handle(context.WithoutCancel(ctx), d) != nil || chance(4) == 0 { // also repeated
										pause(50 * time.Millisecond)
									}
								})
							}
							heard.Wait()
							told[k].Store(v)
						}
					})
				}
				if seed%2 == 0 {
					wg.Go(func() {
						for ctx.Err() == nil {
							pause(3 * time.Second)
							inner.Fail(errors.New("down"))
							pause(time.Second)
							inner.Fail(nil)
						}
					})
				}
				wg.Wait()
				var s cache.Stats
				for _, c := range cs {
					one := c.Stats()
					s.Loads, s.Fenced, s.Hits, s.Remote, s.Stale = s.Loads+one.Loads, s.Fenced+one.Fenced, s.Hits+one.Hits, s.Remote+one.Remote, s.Stale+one.Stale
				}
				if s.Loads == 0 || s.Fenced == 0 || s.Hits == 0 || s.Remote == 0 {
					t.Errorf("Stats = %+v, want some of everything: this world is too quiet", s)
				}
				time.Sleep(time.Minute) // the last flights land
			})
		})
	}
}

// slow takes its time before and after each step.
type slow struct {
	*cachetest.Store
	pause func(time.Duration)
}

func (s slow) Take(ctx context.Context, key string, ask cache.Ask) (cache.Held, error) {
	s.pause(5 * time.Millisecond)
	defer s.pause(5 * time.Millisecond)
	return s.Store.Take(ctx, key, ask)
}

func (s slow) Put(ctx context.Context, key, token string, it cache.Item) (bool, error) {
	s.pause(5 * time.Millisecond)
	defer s.pause(5 * time.Millisecond)
	return s.Store.Put(ctx, key, token, it)
}

func (s slow) Delete(ctx context.Context, event string, keys ...string) error {
	s.pause(5 * time.Millisecond)
	defer s.pause(5 * time.Millisecond)
	return s.Store.Delete(ctx, event, keys...)
}
