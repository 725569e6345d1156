// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencetest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/bulkhead"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience/resiliencetest"
)

// broken has guards for each suite as one might write them on a first day: one that does too
// little and one that does too much. Each promise is broken by one of them.
var broken = map[string]map[string]func(*testing.T){
	"retry": {
		"stingy": func(t *testing.T) {
			resiliencetest.RunRetry(t, func(s resiliencetest.RetrySpec) (resiliencetest.Guard, error) {
				return &stingyRetry{left: s.Attempts - 2}, nil
			})
		},
		"eager": func(t *testing.T) {
			resiliencetest.RunRetry(t, func(s resiliencetest.RetrySpec) (resiliencetest.Guard, error) { return eagerRetry{s}, nil })
		},
	},
	"breaker": {
		"transparent": func(t *testing.T) {
			resiliencetest.RunBreaker(t, func(resiliencetest.BreakerSpec) (resiliencetest.Guard, error) { return &transparent{}, nil })
		},
		"sticky": func(t *testing.T) {
			resiliencetest.RunBreaker(t, func(s resiliencetest.BreakerSpec) (resiliencetest.Guard, error) {
				return &stickyBreaker{BreakerSpec: s}, nil
			})
		},
	},
	"bulkhead": {
		"transparent": func(t *testing.T) {
			resiliencetest.RunBulkhead(t, func(resiliencetest.BulkheadSpec) (resiliencetest.Guard, error) { return &transparent{}, nil })
		},
		"leaky": func(t *testing.T) {
			resiliencetest.RunBulkhead(t, func(s resiliencetest.BulkheadSpec) (resiliencetest.Guard, error) {
				return leakyBulkhead{s, make(chan struct{}, s.Max)}, nil
			})
		},
		"unfair": func(t *testing.T) {
			resiliencetest.RunBulkhead(t, func(s resiliencetest.BulkheadSpec) (resiliencetest.Guard, error) {
				return bulkhead.New(s.Max, bulkhead.Config{Queue: s.Queue, Wait: s.Wait, LIFO: true})
			})
		},
	},
	"ratelimit": {
		"every other": func(t *testing.T) {
			resiliencetest.RunRateLimit(t, func(resiliencetest.RateSpec) (resiliencetest.RateLimiter, error) { return &everyOther{}, nil })
		},
	},
	"keyed": {
		"every other": func(t *testing.T) {
			resiliencetest.RunKeyed(t, func(resiliencetest.KeyedSpec) (resiliencetest.KeyedLimiter, error) {
				return everyOtherKeyed{&everyOther{}}, nil
			})
		},
		"forgetful": func(t *testing.T) {
			resiliencetest.RunKeyed(t, func(s resiliencetest.KeyedSpec) (resiliencetest.KeyedLimiter, error) {
				return &forgetful{KeyedSpec: s, used: map[string]int{}}, nil
			})
		},
	},
	"transport": {
		"wild": func(t *testing.T) {
			resiliencetest.RunTransport(t, func(b http.RoundTripper) (http.RoundTripper, error) { return wildTransport{b}, nil })
		},
	},
	"store": {
		"empty": func(t *testing.T) {
			resiliencetest.RunStore(t, func(*testing.T) ratelimit.Store { return emptyStore{} })
		},
	},
}

var (
	errBroken = errors.New("broken")
	sink      []byte // what is stored here is allocated
)

// stingyRetry has one count of attempts for all callers, and swallows panics.
type stingyRetry struct{ left int }

func (r *stingyRetry) Do(ctx context.Context, fn func(context.Context) error) (err error) {
	sink = make([]byte, 16)
	defer func() {
		if recover() != nil {
			err = errBroken
		}
	}()
	for {
		if err := fn(ctx); err == nil || r.left <= 0 {
			return err
		}
		r.left--
	}
}

// eagerRetry repeats everything once too often, and sleeps whatever happens.
type eagerRetry struct{ resiliencetest.RetrySpec }

func (r eagerRetry) Permanent(err error) error                 { return err }
func (r eagerRetry) After(err error, _ time.Duration) error    { return err }
func (r eagerRetry) Rejected(err error, _ time.Duration) error { return err }

func (r eagerRetry) Do(ctx context.Context, fn func(context.Context) error) error {
	for range r.Attempts + 1 {
		_ = fn(ctx)
		time.Sleep(r.Base)
	}
	return errBroken
}

// transparent calls, and that is all.
type transparent struct{}

func (*transparent) Do(ctx context.Context, fn func(context.Context) error) error {
	sink = make([]byte, 16)
	return fn(ctx)
}

// stickyBreaker counts everything that is not a success, opens too early, stays open, calls
// its hook with the lock held, and does not outlive its panic.
type stickyBreaker struct {
	resiliencetest.BreakerSpec
	mu    sync.Mutex
	fails int
}

func (b *stickyBreaker) Do(ctx context.Context, fn func(context.Context) error) error {
	b.mu.Lock()
	fails := b.fails
	b.mu.Unlock()
	if b.Consecutive > 0 && fails >= b.Consecutive || b.FailureRate > 0 && fails > 5 {
		return errBroken
	}
	returned := false
	note := func() {
		b.mu.Lock()
		if b.fails++; b.fails == b.Consecutive && b.OnChange != nil {
			b.OnChange()
		}
		b.mu.Unlock()
	}
	defer func() {
		if !returned {
			note()
		}
	}()
	err := fn(ctx)
	if returned = true; err != nil {
		note()
	}
	return err
}

// leakyBulkhead gives no permit back when a call panics, lets everybody wait for ever, and
// loses the permit of who gives up.
type leakyBulkhead struct {
	resiliencetest.BulkheadSpec
	places chan struct{}
}

func (b leakyBulkhead) Do(ctx context.Context, fn func(context.Context) error) error {
	b.places <- struct{}{}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err := fn(ctx)
	<-b.places
	return err
}

// everyOther admits every other call, whoever makes it, and waits for nobody's end.
type everyOther struct {
	mu sync.Mutex
	n  int
}

func (l *everyOther) Allow() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	sink = make([]byte, 16)
	l.n++
	return l.n%2 == 0
}

func (l *everyOther) Wait(context.Context, int) error { time.Sleep(3 * time.Hour); return nil }

type everyOtherKeyed struct{ *everyOther }

func (l everyOtherKeyed) Allow(string) bool { return l.everyOther.Allow() }

// forgetful makes room by forgetting everybody.
type forgetful struct {
	resiliencetest.KeyedSpec
	mu   sync.Mutex
	used map[string]int
}

func (l *forgetful) Allow(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.used) > l.Keys {
		clear(l.used)
	}
	l.used[key]++
	return l.used[key] <= l.Burst
}

// wildTransport repeats everything, sends half a body, changes the request, and reads nothing.
type wildTransport struct{ base http.RoundTripper }

func (b wildTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	var resp *http.Response
	var err error
	for i := range 4 {
		ctx, cancel := context.WithCancel(r.Context())
		again := r.WithContext(ctx)
		again.Body = io.NopCloser(bytes.NewReader(body[:len(body)*i/4]))
		r.Header.Set("Attempt", strconv.Itoa(i))
		resp, err = b.base.RoundTrip(again)
		cancel()
		if err == nil {
			wait := time.Minute
			if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
				wait = time.Duration(seconds%1e6) * time.Hour
			}
			time.Sleep(wait)
		}
	}
	return resp, err
}

// emptyStore gives out nothing, and says that it did.
type emptyStore struct{}

func (emptyStore) Take(context.Context, string, int, int, ratelimit.Limit) (int, ratelimit.Result, error) {
	return 0, ratelimit.Result{OK: true}, nil
}
