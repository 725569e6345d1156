// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/ratelimit"
)

// RateSpec is the rate limiter to make.
type RateSpec struct {
	Rate  int // events a second
	Burst int // events at once after a pause
}

// RateLimiter bounds the events in a time.
type RateLimiter interface {
	// Allow takes a token if there is one.
	Allow() bool
	// Wait takes n tokens as soon as there are so many, or returns an error. Limiters that cannot
	// wait return ErrUnsupported.
	Wait(ctx context.Context, n int) error
}

// OpenRate makes a rate limiter.
type OpenRate = func(RateSpec) (RateLimiter, error)

// RunRateLimit holds rate limiters to their promises.
func RunRateLimit(t *testing.T, open OpenRate) { run(t, ratePromises, open) }

func openRate(t *testing.T, open OpenRate, rate, burst int) RateLimiter {
	t.Helper()
	l, err := open(RateSpec{rate, burst})
	return made(t, l, err)
}

// openWait is openRate for limiters that can wait.
func openWait(t *testing.T, open OpenRate, rate, burst int) RateLimiter {
	t.Helper()
	if err := openRate(t, open, rate, burst).Wait(t.Context(), 1); errors.Is(err, ErrUnsupported) {
		t.Skip("not supported")
	}
	return openRate(t, open, rate, burst)
}

func allowed(allow func() bool, n int) (ok int) {
	for range n {
		if allow() {
			ok++
		}
	}
	return ok
}

// turn is a Wait in a goroutine of its own.
type turn struct {
	err    error
	took   time.Duration
	done   chan struct{}
	cancel func()
}

func wait(t *testing.T, l RateLimiter, n int) *turn {
	ctx, cancel := context.WithCancel(t.Context())
	w := &turn{done: make(chan struct{}), cancel: cancel}
	t.Cleanup(func() { cancel(); <-w.done })
	begun := time.Now()
	go func() {
		defer close(w.done)
		w.err = l.Wait(ctx, n)
		w.took = time.Since(begun)
	}()
	synctest.Wait()
	return w
}

// slack is how much a limiter may round.
const slack = 10 * time.Millisecond

func (w *turn) want(t *testing.T, after time.Duration) {
	t.Helper()
	<-w.done
	if d := w.took - after; w.err != nil || d < -slack || d > slack {
		t.Errorf("Wait = %v after %v, want nil after %v", w.err, w.took, after)
	}
}

var ratePromises = []promise[OpenRate]{
	{"admits the burst at once, then the rate", virtual(func(t *testing.T, open OpenRate) {
		l := openRate(t, open, 10, 5)
		if n := allowed(l.Allow, 50); n != 5 {
			t.Errorf("%d at once, want 5", n)
		}
		n := 0
		for range 10_000 {
			time.Sleep(time.Millisecond)
			n += allowed(l.Allow, 2)
		}
		if n < 99 || n > 100 {
			t.Errorf("%d in 10s, want 100", n)
		}
	})},
	{"a pause does not save up more than the burst", virtual(func(t *testing.T, open OpenRate) {
		l := openRate(t, open, 10, 5)
		time.Sleep(1000 * time.Hour)
		if n := allowed(l.Allow, 50); n != 5 {
			t.Errorf("%d at once, want 5", n)
		}
	})},
	{"many goroutines get no more than there is, and no less", virtual(func(t *testing.T, open OpenRate) {
		l := openRate(t, open, 1, 500)
		var n atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { n.Add(int64(allowed(l.Allow, 200))) })
		}
		wg.Wait()
		if n.Load() != 500 {
			t.Errorf("%d admitted, want 500", n.Load())
		}
	})},
	{"Wait takes its turn, in order", virtual(func(t *testing.T, open OpenRate) {
		l := openWait(t, open, 1, 1)
		var turns []*turn
		for range 4 {
			turns = append(turns, wait(t, l, 1))
		}
		for i, w := range turns {
			w.want(t, time.Duration(i)*time.Second)
		}
	})},
	{"Wait fails at once and takes nothing when its turn is after the deadline", virtual(func(t *testing.T, open OpenRate) {
		l := openWait(t, open, 1, 1)
		l.Allow()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		begun := time.Now()
		if err := l.Wait(ctx, 1); err == nil || time.Since(begun) != 0 {
			t.Errorf("Wait = %v after %v, want an error at once", err, time.Since(begun))
		}
		time.Sleep(time.Second + slack)
		if !l.Allow() {
			t.Error("the Wait that failed took a token")
		}
	})},
	{"a cancelled Wait gives its tokens back", virtual(func(t *testing.T, open OpenRate) {
		l := openWait(t, open, 1, 5)
		_ = l.Wait(t.Context(), 5)
		w := wait(t, l, 5)
		w.cancel()
		<-w.done
		time.Sleep(time.Second + slack)
		if !l.Allow() {
			t.Error("the tokens are lost")
		}
	})},
	{"behind a cancelled Wait the others move up", virtual(func(t *testing.T, open OpenRate) {
		l := openWait(t, open, 1, 3)
		_ = l.Wait(t.Context(), 3)
		first, second := wait(t, l, 3), wait(t, l, 1)
		first.cancel()
		second.want(t, time.Second)
	})},
	{"more than the burst is an error, not a wait without end", virtual(func(t *testing.T, open OpenRate) {
		l := openWait(t, open, 10, 5)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		begun := time.Now()
		if err := l.Wait(ctx, 6); err == nil || time.Since(begun) != 0 {
			t.Errorf("Wait = %v after %v, want an error at once", err, time.Since(begun))
		}
	})},
	{"a success allocates nothing", func(t *testing.T, open OpenRate) {
		l := openRate(t, open, 1_000_000, 1_000_000)
		noAllocations(t, func() { l.Allow() })
	}},
}

// KeyedSpec is the keyed limiter to make.
type KeyedSpec struct {
	RateSpec
	Keys int // buckets in memory at most
}

// KeyedLimiter bounds the events of each key.
type KeyedLimiter interface {
	// Allow takes one of key's tokens if there is one.
	Allow(key string) bool
}

// OpenKeyed makes a keyed limiter. One whose memory is not bounded returns ErrUnsupported.
type OpenKeyed = func(KeyedSpec) (KeyedLimiter, error)

// RunKeyed holds keyed limiters to their promises.
func RunKeyed(t *testing.T, open OpenKeyed) { run(t, keyedPromises, open) }

func openKeyed(t *testing.T, open OpenKeyed, keys int) KeyedLimiter {
	t.Helper()
	l, err := open(KeyedSpec{RateSpec{Rate: 1, Burst: 3}, keys})
	return made(t, l, err)
}

var keyedPromises = []promise[OpenKeyed]{
	{"keys do not share their tokens", virtual(func(t *testing.T, open OpenKeyed) {
		l := openKeyed(t, open, 100)
		for _, key := range []string{"a", "b", ""} {
			if n := allowed(func() bool { return l.Allow(key) }, 10); n != 3 {
				t.Errorf("%q: %d admitted, want 3", key, n)
			}
		}
	})},
	{"many goroutines on one key get no more than there is", virtual(func(t *testing.T, open OpenKeyed) {
		l := openKeyed(t, open, 100)
		var n atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { n.Add(int64(allowed(func() bool { return l.Allow("a") }, 20))) })
		}
		wg.Wait()
		if n.Load() != 3 {
			t.Errorf("%d admitted, want 3", n.Load())
		}
	})},
	{"an attacker with many keys gets no fresh burst for a key that is used up", virtual(func(t *testing.T, open OpenKeyed) {
		l := openKeyed(t, open, 100)
		if n := allowed(func() bool { return l.Allow("attacker") }, 10); n != 3 {
			t.Fatalf("%d admitted, want 3", n)
		}
		for i := range 10_000 {
			l.Allow(fmt.Sprint("other ", i))
		}
		if n := allowed(func() bool { return l.Allow("attacker") }, 10); n != 0 {
			t.Errorf("%d more admitted, want none", n)
		}
	})},
	{"an attacker with many keys has no more than the known buckets and one burst", virtual(func(t *testing.T, open OpenKeyed) {
		l := openKeyed(t, open, 100)
		n := 0
		for i := range 10_000 {
			n += allowed(func() bool { return l.Allow(fmt.Sprint("key ", i)) }, 5)
		}
		if n > 101*3 {
			t.Errorf("%d admitted, want at most %d", n, 101*3)
		}
	})},
	{"a success on a known key allocates nothing", func(t *testing.T, open OpenKeyed) {
		l, err := open(KeyedSpec{RateSpec{Rate: 1_000_000, Burst: 1_000_000}, 100})
		l = made(t, l, err)
		noAllocations(t, func() { l.Allow("key") })
	}},
}

// OpenStore returns an empty store, or one in which the keys are free.
type OpenStore = func(t *testing.T) ratelimit.Store

// RunStore holds the stores of distributed limiters to the contract of ratelimit.Store. Their clocks
// are their own, so it runs in real time.
func RunStore(t *testing.T, open OpenStore) { run(t, storePromises, open) }

var hourly = must(ratelimit.Limit{Rate: 10, Per: time.Hour, Burst: 10}.Complete())

func must(l ratelimit.Limit, err error) ratelimit.Limit {
	if err != nil {
		panic(err)
	}
	return l
}

func take(t *testing.T, s ratelimit.Store, key string, need, want int, l ratelimit.Limit) (int, ratelimit.Result) {
	t.Helper()
	taken, r, err := s.Take(t.Context(), key, need, want, l)
	if err != nil {
		t.Fatalf("Take = %v, want nil", err)
	}
	if r.OK != (taken >= need) || r.Limit != l.Burst || r.Remaining < 0 || r.Remaining > l.Burst || r.ResetAfter < 0 || (r.RetryAfter == 0) != r.OK {
		t.Errorf("Take(%d to %d) = %d, %+v, which is no Result for a burst of %d", need, want, taken, r, l.Burst)
	}
	return taken, r
}

var storePromises = []promise[OpenStore]{
	{"a new key has the full burst", func(t *testing.T, open OpenStore) {
		if n, r := take(t, open(t), "a", 10, 10, hourly); n != 10 || r.Remaining != 0 {
			t.Errorf("Take = %d, %+v, want 10 and none remaining", n, r)
		}
	}},
	{"takes as many as there are between need and want", func(t *testing.T, open OpenStore) {
		s := open(t)
		for _, step := range []struct{ need, want, taken, remaining int }{{1, 4, 4, 6}, {2, 4, 4, 2}, {1, 4, 2, 0}, {1, 4, 0, 0}} {
			if n, r := take(t, s, "a", step.need, step.want, hourly); n != step.taken || r.Remaining != step.remaining {
				t.Errorf("Take(%d to %d) = %d, %d remaining, want %d and %d", step.need, step.want, n, r.Remaining, step.taken, step.remaining)
			}
		}
	}},
	{"takes nothing when there are fewer than need, and says when to come back", func(t *testing.T, open OpenStore) {
		s := open(t)
		take(t, s, "a", 8, 8, hourly)
		n, r := take(t, s, "a", 3, 5, hourly)
		if n != 0 || r.Remaining != 2 || r.RetryAfter < 5*time.Minute || r.RetryAfter > 6*time.Minute {
			t.Errorf("Take = %d, %+v, want none taken, 2 remaining, RetryAfter of one event", n, r)
		}
		if n, _ := take(t, s, "a", 2, 2, hourly); n != 2 {
			t.Errorf("Take = %d, want the 2 that remained", n)
		}
	}},
	{"says when the bucket is full again", func(t *testing.T, open OpenStore) {
		if _, r := take(t, open(t), "a", 5, 5, hourly); r.ResetAfter < 29*time.Minute || r.ResetAfter > 30*time.Minute {
			t.Errorf("ResetAfter = %v, want half an hour", r.ResetAfter)
		}
	}},
	{"keys do not share their tokens", func(t *testing.T, open OpenStore) {
		s := open(t)
		for _, key := range []string{"a", "b", "a:b", "{a}", "ключ \n"} {
			if n, _ := take(t, s, key, 10, 10, hourly); n != 10 {
				t.Errorf("%q: %d taken, want 10", key, n)
			}
		}
	}},
	{"many processes take no more than there is, and no less", func(t *testing.T, open OpenStore) {
		s := open(t)
		var total atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 25 {
					n, _, err := s.Take(t.Context(), "a", 1, 3, hourly)
					if err != nil {
						t.Errorf("Take = %v, want nil", err)
					}
					total.Add(int64(n))
				}
			})
		}
		wg.Wait()
		if total.Load() != 10 {
			t.Errorf("%d taken, want 10", total.Load())
		}
	}},
	{"tokens come back with time", func(t *testing.T, open OpenStore) {
		s := open(t)
		quick := must(ratelimit.Limit{Rate: 50, Burst: 2}.Complete())
		take(t, s, "a", 2, 2, quick)
		begun := time.Now()
		for n := 0; n == 0; {
			if time.Since(begun) > 10*time.Second {
				t.Fatal("no token came back in 10s, want one in 20ms")
			}
			n, _ = take(t, s, "a", 1, 1, quick)
		}
	}},
	{"a rate far above the burst works", func(t *testing.T, open OpenStore) {
		s := open(t)
		fast := must(ratelimit.Limit{Rate: 100_000, Burst: 40}.Complete())
		for range 3 { // a bucket that is full again at once
			if n, _ := take(t, s, "a", 1, 1, fast); n != 1 {
				t.Errorf("%d taken, want 1", n)
			}
		}
	}},
	{"a context that has ended is an error", func(t *testing.T, open OpenStore) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if n, _, err := open(t).Take(ctx, "a", 1, 1, hourly); err == nil {
			t.Errorf("Take = %d, nil, want an error", n)
		}
	}},
}
