// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package ratelimit

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/internal/keyed"
)

// Store holds the buckets that many processes share, such as in Redis.
type Store interface {
	// Take takes between need and want tokens of key's bucket, as many as there are, in one
	// atomic step, or none if there are fewer than need. It returns how many it took and the bucket's
	// answer to need tokens. A key that is new has limit's full burst. The store's own
	// clock counts. limit is complete and need is at most its burst.
	Take(ctx context.Context, key string, need, want int, limit Limit) (taken int, r Result, err error)
}

// Fallback says what a [Leased] limiter does while its store cannot be reached.
type Fallback uint8

const (
	// FallbackSplit limits each process to its share, limit/Replicas, so that all together
	// stay within the limit.
	FallbackSplit Fallback = iota
	// FallbackDeny refuses.
	FallbackDeny
	// FallbackAllow admits without a limit.
	FallbackAllow
)

// String returns "split", "deny" or "allow".
func (f Fallback) String() string {
	switch f {
	case FallbackSplit:
		return "split"
	case FallbackDeny:
		return "deny"
	case FallbackAllow:
		return "allow"
	}
	return fmt.Sprintf("ratelimit.Fallback(%d)", uint8(f))
}

// LeasedConfig configures a [Leased] limiter. The zero value is a sound default for one
// process.
type LeasedConfig struct {
	// Name appears in refusals. It may be empty.
	Name string
	// Replicas is how many processes share the limit. Zero means 1.
	Replicas int
	// Lease is the most tokens that a process takes in advance for one key. Zero means a
	// quarter of the process's share of the burst, at least 1; 1 means none in advance.
	Lease int
	// LeaseFor is how long tokens taken in advance may be used; then they are lost.
	// Zero means 1 s.
	LeaseFor time.Duration
	// Keys bounds the keys in memory. Zero means 65536.
	Keys int
	// Timeout bounds one round trip to the store. Zero means 100 ms.
	Timeout time.Duration
	// Fallback is what to do while the store cannot be reached. Zero means FallbackSplit.
	Fallback Fallback
	// Breaker guards the store. Nil means one of its own, which opens after three failures
	// in a row.
	Breaker *breaker.Breaker
}

// Leased is a rate limiter whose limit many processes share through a [Store]. For busy
// keys it takes tokens in advance, so that most decisions need no round trip: a lease
// starts at one token, doubles each time it is used up in time, and halves when it is not.
//
// The store never gives out more than the limit. What the lease loosens is the time
// of use: in any time t at most Burst + Rate*(t+LeaseFor) events are admitted, and at
// no moment are more than Replicas*Lease tokens taken but unused.
//
// While the store cannot be reached, leases are used up and then Fallback decides; the
// shares of FallbackSplit begin with their burst. It is safe for concurrent use.
type Leased struct {
	store   Store
	cfg     LeasedConfig
	limit   *gcra
	base    time.Time
	leases  *keyed.Map[string, *lease]
	split   *Keyed[string]
	breaker *breaker.Breaker

	local, remote, fallback atomic.Uint64
}

// lease is what a process knows of one key.
type lease struct {
	mu      sync.Mutex
	tokens  int           // taken in advance
	until   int64         // when they are lost
	quiet   int64         // until then the store is known to have none
	size    int           // how many to take next time
	last    Result        // the store's last answer
	at      int64         // and its time
	pending chan struct{} // closed when the round trip under way has ended
}

// NewLeased returns a limiter on store, or an error that names the wrong field.
func NewLeased(store Store, limit Limit, cfg LeasedConfig) (*Leased, error) {
	if store == nil {
		return nil, fmt.Errorf("ratelimit: store is nil, want a Store")
	}
	g, err := newGCRA(limit)
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name  string
		value int
	}{{"Replicas", cfg.Replicas}, {"Lease", cfg.Lease}, {"Keys", cfg.Keys}} {
		if f.value < 0 {
			return nil, fmt.Errorf("ratelimit: LeasedConfig.%s is %d, want 0 or more", f.name, f.value)
		}
	}
	for _, f := range []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{{"LeaseFor", &cfg.LeaseFor, time.Second}, {"Timeout", &cfg.Timeout, 100 * time.Millisecond}} {
		if *f.value < 0 {
			return nil, fmt.Errorf("ratelimit: LeasedConfig.%s is %v, want 0 or more", f.name, *f.value)
		}
		if *f.value == 0 {
			*f.value = f.zero
		}
	}
	if cfg.Fallback > FallbackAllow {
		return nil, fmt.Errorf("ratelimit: LeasedConfig.Fallback is %v, want FallbackSplit, FallbackDeny or FallbackAllow", cfg.Fallback)
	}
	if cfg.Replicas == 0 {
		cfg.Replicas = 1
	}
	if cfg.Keys == 0 {
		cfg.Keys = 65536
	}
	if cfg.Lease == 0 {
		cfg.Lease = max(1, g.limit.Burst/cfg.Replicas/4)
	}
	if cfg.Lease > g.limit.Burst {
		return nil, fmt.Errorf("ratelimit: LeasedConfig.Lease is %d, want at most the burst, %d", cfg.Lease, g.limit.Burst)
	}
	l := &Leased{store: store, cfg: cfg, limit: g, base: time.Now(), breaker: cfg.Breaker}
	l.leases = keyed.New(cfg.Keys, func(string) *lease { return &lease{size: 1} }, l.idle)
	share := g.limit
	share.Per *= time.Duration(cfg.Replicas)
	share.Burst = max(1, share.Burst/cfg.Replicas)
	if l.split, err = NewKeyed[string](share, cfg.Keys); err != nil {
		return nil, err
	}
	if l.breaker == nil {
		if l.breaker, err = breaker.New(breaker.Config{Name: cfg.Name, Consecutive: 3}); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (l *Leased) now() int64 { return int64(time.Since(l.base)) }

// idle reports whether forgetting s loses neither tokens nor the knowledge that there are none.
func (l *Leased) idle(s *lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := l.now()
	return s.pending == nil && (s.tokens == 0 || now >= s.until) && now >= s.quiet
}

// Allow takes one of key's tokens if there is one.
func (l *Leased) Allow(ctx context.Context, key string) Result { return l.AllowN(ctx, key, 1) }

// AllowN takes n of key's tokens if there are so many, or none. It waits for the store at most, for
// Timeout or until ctx ends. It panics if n is negative.
func (l *Leased) AllowN(ctx context.Context, key string, n int) Result {
	if uint(n) > uint(l.limit.limit.Burst) {
		return l.limit.tooMany(n, 0, 0)
	}
	s := l.leases.Get(key)
	for {
		s.mu.Lock()
		now := l.now()
		switch {
		case s.tokens >= n && now < s.until:
			s.tokens -= n
			r := s.answer(now)
			s.mu.Unlock()
			l.local.Add(1)
			return r
		case now < s.quiet:
			r := s.answer(now)
			r.OK, r.Remaining, r.RetryAfter = false, 0, time.Duration(s.quiet-now)
			s.mu.Unlock()
			l.local.Add(1)
			return r
		case s.pending == nil:
			return l.renew(ctx, key, s, n, now) // unlocks
		}
		pending := s.pending
		s.mu.Unlock()
		select {
		case <-pending:
		case <-ctx.Done():
			return l.unavailable() // the caller has gone and will not listen
		}
	}
}

// answer describes the bucket as the store saw it last, with what is left of the lease.
func (s *lease) answer(now int64) Result {
	r := s.last
	r.OK, r.RetryAfter = true, 0
	r.Remaining = min(r.Limit, r.Remaining+s.tokens)
	r.ResetAfter = max(0, r.ResetAfter-time.Duration(now-s.at))
	return r
}

// renew takes n tokens, and some in advance, from the store. s is locked.
func (l *Leased) renew(ctx context.Context, key string, s *lease, n int, now int64) (r Result) {
	carry := 0
	switch {
	case s.until == 0: // the first lease
	case now < s.until: // used up in time
		s.size, carry = min(2*s.size, l.cfg.Lease), s.tokens
	case s.tokens > s.size/2:
		s.size = max(1, s.size/2)
	}
	need := n - carry
	want := min(need-1+s.size, l.limit.limit.Burst)
	pending := make(chan struct{})
	s.pending, s.tokens = pending, 0
	s.mu.Unlock()

	var taken int
	answered := false
	defer func() { // also when the store panics
		s.mu.Lock()
		if s.tokens = carry; answered {
			l.apply(s, need, want, taken, r)
		}
		s.pending = nil
		close(pending)
		s.mu.Unlock()
	}()
	// The answer is for all who wait on this key, so the leader's end must not spoil it.
	taken, r, err := l.take(context.WithoutCancel(ctx), key, need, want)
	if err != nil {
		return l.instead(key, n)
	}
	answered = true
	l.remote.Add(1)
	r.OK = taken >= need
	return r
}

func (l *Leased) take(ctx context.Context, key string, need, want int) (taken int, r Result, err error) {
	err = l.breaker.Do(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
		defer cancel()
		taken, r, err = l.store.Take(ctx, key, need, want, l.limit.limit)
		return err
	})
	return taken, r, err
}

// mostQuiet bounds how long a short answer of the store is trusted.
const mostQuiet = int64(100 * time.Millisecond)

// apply notes the store's answer, with s locked.
func (l *Leased) apply(s *lease, need, want, taken int, r Result) {
	now := l.now()
	s.last, s.at = r, now
	if taken >= need {
		s.tokens, s.until = taken-need, now+int64(l.cfg.LeaseFor)
	}
	if taken < want {
		// The bucket is empty. Tokens come one by one now; asking for each would be a round trip
		// per token, so let a few gather.
		gather := min(int64(want-need)*l.limit.interval, mostQuiet)
		s.quiet = now + max(gather, int64(r.RetryAfter))
	}
}

// instead decides without the store.
func (l *Leased) instead(key string, n int) Result {
	l.fallback.Add(1)
	switch l.cfg.Fallback {
	case FallbackAllow:
		return Result{OK: true, Limit: l.limit.limit.Burst, Remaining: l.limit.limit.Burst}
	case FallbackDeny:
		return l.unavailable()
	}
	r := l.split.AllowN(key, n)
	if r.RetryAfter < 0 { // more than this process's share: the store may admit it again
		return l.unavailable()
	}
	return r
}

// unavailable is a refusal until the store can be asked again.
func (l *Leased) unavailable() Result {
	return Result{Limit: l.limit.limit.Burst, RetryAfter: max(l.breaker.Stats().RetryAfter, time.Duration(l.limit.interval))}
}

// LeasedStats is a snapshot of a [Leased] limiter.
type LeasedStats struct {
	Name     string
	Limit    Limit
	Local    uint64 // decisions without a round trip, since NewLeased
	Remote   uint64 // decisions by a round trip
	Fallback uint64 // decisions while the store could not be reached
	Store    breaker.State
}

// Stats returns a snapshot.
func (l *Leased) Stats() LeasedStats {
	return LeasedStats{l.cfg.Name, l.limit.limit, l.local.Load(), l.remote.Load(), l.fallback.Load(), l.breaker.State()}
}
