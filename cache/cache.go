// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// ErrNotFound is what a load returns, alone or wrapped, where there is no such thing. The cache
// remembers that too, for NegativeTTL. It is permanent to package fault: trying again cannot help.
var ErrNotFound = fault.Permanent(errors.New("cache: not found"))

// Load gets the value of key from where it lives. Its context carries the values of the caller
// whose Get began the load, but not its end: it ends after Config.LoadTimeout. All who ask for the key
// share the result, so it must depend on the key alone, and nobody may change it.
type Load[T any] func(ctx context.Context, key string) (T, error)

// Config configures a [Cache]. The zero value is a sound default for a cache in one process.
type Config[T any] struct {
	// TTL is how long a value is fresh. Zero means 1 minute.
	TTL time.Duration
	// Jitter is the most of TTL that is taken off at random, as a share, so that what was loaded
	// together does not expire together. Zero means 0.1, negative none; at most 1.
	Jitter float64
	// NegativeTTL is how long [ErrNotFound] is remembered. Zero means 10 s, or TTL where that
	// is less; negative means not at all.
	NegativeTTL time.Duration
	// StaleFor is for how much longer than TTL a value is served where a load fails, other
	// than with a permanent error, or where another process is loading it. Zero means as long as
	// TTL, negative not at all. What was invalidated is never served.
	StaleFor time.Duration
	// Backoff is how long, after a load has failed, a value is served without another attempt.
	// Zero means 1 s.
	Backoff time.Duration
	// LoadTimeout ends a load. A load that ignores the end of its context goes on, but nobody waits
	// for it any more. Zero means 5 s.
	LoadTimeout time.Duration
	// Early says how eagerly a value is refreshed before it expires; see the package comment.
	// Zero means 1, more is earlier, negative means never.
	Early float64

	// Size bounds the values in this process: their number or, with Cost, the sum of their
	// costs. Zero means 10,000 values, or 64 MiB with Cost.
	Size int64
	// Cost is what one value costs, such as its bytes in memory. It is called once for each
	// value, and anything below 1 counts as 1. Nil means 1 for each.
	Cost func(key string, v T) int64

	// Store is the tier that is shared with other processes. Nil means none.
	Store Store
	// Codec encodes values for Store. Nil means messaging.JSON. A value that does not
	// decode, such as one of an older version of T, is loaded anew.
	Codec messaging.Codec
	// LocalTTL is how long this process serves what it has without asking Store: it bounds
	// how old a value can get here if the message that invalidates it is lost. Zero means as long
	// as the value is fresh.
	LocalTTL time.Duration
	// StoreTimeout bounds one round trip to Store. Zero means 100 ms.
	StoreTimeout time.Duration
	// Breaker guards Store. Nil means one of its own, which opens after three failures in a row.
	Breaker *breaker.Breaker

	// Hooks observe.
	Hooks Hooks
}

func (c Config[T]) complete(name string) (Config[T], error) {
	for _, f := range []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{
		{"TTL", &c.TTL, time.Minute}, {"Backoff", &c.Backoff, time.Second}, {"LoadTimeout", &c.LoadTimeout, 5 * time.Second},
		{"LocalTTL", &c.LocalTTL, math.MaxInt64}, {"StoreTimeout", &c.StoreTimeout, 100 * time.Millisecond},
	} {
		if *f.value < 0 {
			return c, fmt.Errorf("cache: Config.%s is %v, want 0 or more", f.name, *f.value)
		}
		if *f.value == 0 {
			*f.value = f.zero
		}
	}
	if c.Jitter > 1 || c.Jitter != c.Jitter {
		return c, fmt.Errorf("cache: Config.Jitter is %v, want at most 1", c.Jitter)
	}
	if c.Early != c.Early || math.IsInf(c.Early, 0) {
		return c, fmt.Errorf("cache: Config.Early is %v, want a number", c.Early)
	}
	if c.Size < 0 {
		return c, fmt.Errorf("cache: Config.Size is %d, want 0 or more", c.Size)
	}
	if name == "" || strings.ContainsRune(name, ':') {
		return c, fmt.Errorf("cache: name is %q, want a text without a colon", name)
	}
	switch {
	case c.Jitter == 0:
		c.Jitter = 0.1
	case c.Jitter < 0:
		c.Jitter = 0
	}
	switch {
	case c.NegativeTTL == 0:
		c.NegativeTTL = min(10*time.Second, c.TTL)
	case c.NegativeTTL < 0:
		c.NegativeTTL = 0
	}
	switch {
	case c.StaleFor == 0:
		c.StaleFor = c.TTL
	case c.StaleFor < 0:
		c.StaleFor = 0
	}
	if c.Early == 0 {
		c.Early = 1
	}
	if c.Size == 0 {
		c.Size = 10_000
		if c.Cost != nil {
			c.Size = 64 << 20
		}
	}
	if c.Codec == nil {
		c.Codec = messaging.JSON
	}
	return c, nil
}

// Cache is a cache-aside of values of one type. It is safe for concurrent use. It starts no
// goroutine but those of loads.
type Cache[T any] struct {
	name    string
	cfg     Config[T]
	base    time.Time
	seed    maphash.Seed
	shards  []shard[T]
	mask    uint64
	breaker *breaker.Breaker

	loads, failures, early, shared, remote, fenced, storeErrors atomic.Uint64
	flying                                                      atomic.Int64
}

// New returns an empty cache, or an error that names the wrong field. The name is part of the keys
// in the store: caches of the same name share their values, so change it with the meaning of T.
func New[T any](name string, cfg Config[T]) (*Cache[T], error) {
	cfg, err := cfg.complete(name)
	if err != nil {
		return nil, err
	}
	c := &Cache[T]{name: name, cfg: cfg, base: time.Now(), seed: maphash.MakeSeed(), breaker: cfg.Breaker}
	if cfg.Store != nil && c.breaker == nil {
		if c.breaker, err = breaker.New(breaker.Config{Name: name, Consecutive: 3}); err != nil {
			return nil, err
		}
	}
	n := shards(cfg.Size, cfg.Cost != nil)
	c.shards, c.mask = make([]shard[T], n), uint64(n-1)
	for i := range c.shards {
		most := cfg.Size / int64(n)
		if int64(i) < cfg.Size%int64(n) {
			most++
		}
		c.shards[i].init(most)
	}
	return c, nil
}

// shards returns how many parts the local tier has: a power of two, some for each
// processor, but none so small that chance fills one while the others are empty.
func shards(size int64, weighed bool) int {
	least := int64(256)
	if weighed {
		least = 1 << 20
	}
	most := max(1, size/least)
	n := min(int64(8*runtime.GOMAXPROCS(0)), 256, most)
	return 1 << (bits.Len64(uint64(n)) - 1)
}

func (c *Cache[T]) now() int64 { return int64(time.Since(c.base)) }

func (c *Cache[T]) shard(key string) (*shard[T], uint64) {
	h := maphash.String(c.seed, key)
	return &c.shards[h&c.mask], h
}

// Source is where a value came from.
type Source uint8

const (
	// Local is this process's memory.
	Local Source = iota
	// Remote is the store.
	Remote
	// Origin is a load, one's own or another caller's that one waited for.
	Origin
	// Expired is a value past its time, for want of a newer one.
	Expired
)

// String returns "local", "remote", "origin" or "expired".
func (s Source) String() string {
	switch s {
	case Local:
		return "local"
	case Remote:
		return "remote"
	case Origin:
		return "origin"
	case Expired:
		return "expired"
	}
	return fmt.Sprintf("cache.Source(%d)", uint8(s))
}

// Result is a value and what is known of it.
type Result[T any] struct {
	Value  T
	Source Source
	// Age is how long ago it was loaded.
	Age time.Duration
}

// Get returns the value of key: the one that is there, or what load returns.
//
// It waits no longer than ctx, and its end harms nobody else who waits for the same load. Its
// error is that of ctx, or it wraps [ErrNotFound], or it is a [*LoadError]; then no value is
// returned.
func (c *Cache[T]) Get(ctx context.Context, key string, load Load[T]) (T, error) {
	r, err := c.Fetch(ctx, key, load)
	return r.Value, err
}

// Fetch is [Cache.Get] for those who want to know where the value came from and how old it is.
func (c *Cache[T]) Fetch(ctx context.Context, key string, load Load[T]) (Result[T], error) {
	s, h := c.shard(key)
	e := s.get(key)
	if e == nil {
		return c.wait(ctx, s, h, key, load)
	}
	now := c.now()
	if now >= e.local {
		return c.wait(ctx, s, h, key, load)
	}
	if c.due(e, now) {
		c.refresh(ctx, s, h, e, load)
	}
	return s.hit(e, now)
}

// hit returns the fresh value or the negative answer of e.
func (s *shard[T]) hit(e *entry[T], now int64) (Result[T], error) {
	if e.err != nil {
		s.negative.Add(1)
		return Result[T]{}, e.err
	}
	s.hits.Add(1)
	return Result[T]{e.value, Local, time.Duration(now - e.made)}, nil
}

// mostDraw is a draw that an exponential distribution of mean 1 practically never reaches.
const mostDraw = 32

// due draws whether to refresh e before it expires: for each reader with a chance that grows towards
// its end, and the earlier the longer a load takes, so that many readers together make about one
// load.
//
// Source: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention",
// VLDB 2015. Their -log(rand()) is an exponential distribution.
func (c *Cache[T]) due(e *entry[T], now int64) bool {
	lead := float64(e.took) * c.cfg.Early
	left := float64(e.fresh - now)
	return lead > 0 && left < lead*mostDraw && left <= lead*rand.ExpFloat64() && e.err == nil && now >= e.retry.Load()
}

// Invalidate makes the cache forget the keys, in this process and in the store. A Get that begins
// after Invalidate has returned nil gets nothing that was loaded before it began, from this
// process; loads under way are not stored, there or here. Other processes serve what they
// have in memory until they invalidate too: see [Cache.Handler].
//
// Call it after the change has been committed. An error means that the store could not be told: call
// it again, the store may otherwise go on to serve the old value until it expires.
func (c *Cache[T]) Invalidate(ctx context.Context, keys ...string) error {
	return c.invalidate(ctx, "", keys)
}

func (c *Cache[T]) invalidate(ctx context.Context, event string, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	// First the store, then here: whoever reads the store in between is forgotten with the rest.
	var err error
	if c.cfg.Store != nil {
		names := make([]string, len(keys))
		for i, k := range keys {
			names[i] = c.storeKey(k)
		}
		err = c.cfg.Store.Delete(ctx, event, names...)
	}
	for _, k := range keys {
		s, _ := c.shard(k)
		s.mu.Lock()
		if e := s.entries[k]; e != nil {
			s.drop(e)
		}
		s.detach(k)
		s.mu.Unlock()
	}
	if err != nil {
		c.storeFailed(keys[0], "delete", err)
		return fmt.Errorf("cache %s: invalidate: %w", c.name, err)
	}
	return nil
}

// Clear makes this process forget everything, as after a time in which messages that
// invalidate may have been lost. The store keeps what it has.
func (c *Cache[T]) Clear() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for k := range s.flights {
			s.detach(k)
		}
		s.init(s.max)
		s.mu.Unlock()
	}
}

// Handler returns a handler that invalidates the keys which a message is about; keys may return none.
//
// Subscribe it in every process in a group of its own, such as one that is Temporary and has the
// process in its name. All of them together remove a key from the store once for each message, by its ID. An
// error of the store is the handler's, so the message comes again until the store has heard.
func (c *Cache[T]) Handler(keys func(ctx context.Context, d *messaging.Delivery) ([]string, error)) messaging.Handler {
	return messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
		ks, err := keys(ctx, d)
		if err != nil {
			return err
		}
		return c.invalidate(ctx, d.Message.ID, ks)
	})
}

// Stats is a snapshot of a [Cache]. The counts are since New.
type Stats struct {
	Name string
	// Hits were answered from memory with a value, Negative with ErrNotFound.
	Hits, Negative uint64
	// Shared waited for a flight that another had begun.
	Shared uint64
	// Remote were answered from the store; Hits that followed are not among them.
	Remote uint64
	// Loads were begun, Early of them while the value was still fresh; Failures failed.
	Loads, Early, Failures uint64
	// Stale were answered with a value past its time.
	Stale uint64
	// Fenced loads were not stored, because their key was invalidated meanwhile.
	Fenced uint64
	// StoreErrors are operations on the store that failed or that its breaker refused.
	StoreErrors uint64
	// Evictions made room in memory.
	Evictions uint64
	// Entries are in memory now, expired ones included, and weigh Size together.
	Entries int
	Size    int64
	// Flights are under way.
	Flights int
	// Store is the state of the store's breaker.
	Store breaker.State
}

// Stats returns a snapshot.
func (c *Cache[T]) Stats() Stats {
	st := Stats{
		Name: c.name, Shared: c.shared.Load(), Remote: c.remote.Load(), Loads: c.loads.Load(), Early: c.early.Load(),
		Failures: c.failures.Load(), Fenced: c.fenced.Load(), StoreErrors: c.storeErrors.Load(), Flights: int(c.flying.Load()),
	}
	for i := range c.shards {
		s := &c.shards[i]
		st.Hits += s.hits.Load()
		st.Negative += s.negative.Load()
		st.Stale += s.stale.Load()
		st.Evictions += s.evictions.Load()
		s.mu.RLock()
		st.Entries += len(s.entries)
		st.Size += s.weight()
		s.mu.RUnlock()
	}
	if c.breaker != nil {
		st.Store = c.breaker.State()
	}
	return st
}
