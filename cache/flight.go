// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

// LoadError is the error of a Get whose load failed where no value could be served instead. It
// unwraps to the load's own error, or to context.DeadlineExceeded after Config.LoadTimeout.
type LoadError struct {
	Cache, Key string
	// Age is that of the last value known here, which is too old to be served; zero
	// if there is none.
	Age time.Duration
	Err error
}

// Error returns the cause, and why no old value was served.
func (e *LoadError) Error() string {
	s := fmt.Sprintf("cache %s: load %q: %v", e.Cache, e.Key, e.Err)
	if e.Age > 0 {
		s += fmt.Sprintf(" (the last value is %v old, too old to be served)", e.Age)
	}
	return s
}

// Unwrap returns the cause.
func (e *LoadError) Unwrap() error { return e.Err }

// PanicError is the failure of a load that panicked or called runtime.Goexit. All who wait
// for the load get it; the process goes on. It does not unwrap to the panic's value, so that an
// error that means something when it is returned is only a failure when it is thrown.
type PanicError struct {
	// Value is what was given to panic, nil after runtime.Goexit.
	Value any
	// Stack is the stack of the load's goroutine.
	Stack []byte
}

// Error returns the value of the panic, without the stack.
func (e *PanicError) Error() string {
	if e.Value == nil {
		return "cache: load called runtime.Goexit"
	}
	return fmt.Sprintf("cache: load panicked: %v", e.Value)
}

// flight is one attempt to get a new value of a key, in a goroutine of its own that no
// caller's end can end. What follows done is set before done is closed and then fixed.
type flight[T any] struct {
	key  string
	hash uint64
	load Load[T]
	// early is how long the present value was still fresh when the flight began, zero if it was
	// not.
	early time.Duration

	ended    bool // guarded by the shard's lock
	detached bool // by the shard's lock: invalidated, so that its result is for those who wait already

	done   chan struct{}
	result Result[T]
	err    error
	why    error // why the result is stale
}

// detach takes key's flight, if there is one, off the key: what it brings is not kept, and who comes
// from now on begins another. mu is held.
func (s *shard[T]) detach(key string) {
	if f := s.flights[key]; f != nil {
		f.detached = true
		delete(s.flights, key)
	}
}

// wait joins the flight of key, or begins it, and waits for its end or that of ctx.
func (c *Cache[T]) wait(ctx context.Context, s *shard[T], hash uint64, key string, load Load[T]) (Result[T], error) {
	if ctx.Err() != nil {
		return Result[T]{}, c.gone(ctx, key)
	}
	s.mu.Lock()
	if e := s.entries[key]; e != nil {
		now := c.now()
		if now < e.local { // somebody was quicker
			s.mu.Unlock()
			return s.hit(e, now)
		}
		if now >= e.fresh && now < e.stale && now < e.retry.Load() {
			s.mu.Unlock()
			age := time.Duration(now - e.made)
			c.tellStale(s, key, age, errBackoff)
			return Result[T]{e.value, Expired, age}, nil
		}
	}
	f := s.flights[key]
	if f == nil {
		f = c.begin(ctx, s, &flight[T]{key: key, hash: hash, load: load})
	} else {
		c.shared.Add(1)
	}
	s.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		select {
		case <-f.done: // what is there is given, however late
		default:
			return Result[T]{}, c.gone(ctx, key)
		}
	}
	if f.err == nil && f.result.Source == Expired {
		c.tellStale(s, key, f.result.Age, f.why)
	}
	return f.result, f.err
}

// errBackoff is why a stale value is served without an attempt to load a newer one.
var errBackoff = errors.New("cache: the last load failed a moment ago")

func (c *Cache[T]) gone(ctx context.Context, key string) error {
	return fmt.Errorf("cache %s: wait for %q: %w", c.name, key, fault.Ended(ctx))
}

// refresh begins a flight for e, which is fresh, if none is under way. Nobody waits for it.
func (c *Cache[T]) refresh(ctx context.Context, s *shard[T], hash uint64, e *entry[T], load Load[T]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flights[e.key] == nil && s.entries[e.key] == e {
		c.begin(ctx, s, &flight[T]{key: e.key, hash: hash, load: load, early: time.Duration(e.fresh - c.now())})
	}
}

// begin starts f. The shard's lock is held.
func (c *Cache[T]) begin(ctx context.Context, s *shard[T], f *flight[T]) *flight[T] {
	f.done = make(chan struct{})
	s.flights[f.key] = f
	c.flying.Add(1)
	go c.fly(context.WithoutCancel(ctx), s, f)
	return f
}

// The pauses between two looks at a value that another process is loading.
const (
	firstPause = 2 * time.Millisecond
	mostPause  = 100 * time.Millisecond
)

// fly gets the value: from the store, from another process through the store, or by a load. Without a
// store, and while it cannot be reached, by a load.
func (c *Cache[T]) fly(ctx context.Context, s *shard[T], f *flight[T]) {
	defer c.flying.Add(-1)
	if c.cfg.Store == nil {
		c.fetch(ctx, s, f, nil, "")
		return
	}
	lease := c.cfg.LoadTimeout + 2*c.cfg.StoreTimeout
	ask := Ask{Lease: lease}
	if f.early > 0 {
		// The store counts from when the value was put, a moment after we did. A value that another
		// process has refreshed meanwhile is fresh for much longer.
		ask.Early = f.early + min(c.cfg.StoreTimeout, c.cfg.TTL/4)
	}
	began, pause := c.now(), firstPause
	for {
		held, ok := c.take(ctx, f.key, ask)
		if !ok {
			if !c.without(s, f) {
				c.fetch(ctx, s, f, nil, "")
			}
			return
		}
		var e *entry[T]
		if held.Found {
			var err error
			if e, err = c.decode(f, held); err != nil && ask.Early < math.MaxInt64 {
				// Whoever put it saw it otherwise. Ask for the lease although it is fresh.
				c.storeFailed(f.key, "take", err)
				c.release(ctx, f.key, held.Token)
				ask.Early = math.MaxInt64
				continue
			}
		}
		now := c.now()
		switch {
		case held.Token != "":
			c.fetch(ctx, s, f, e, held.Token)
			return
		case e != nil && now < e.fresh:
			c.remote.Add(1)
			if f.early > 0 && held.Busy > 0 { // another process refreshes it: its readers' turn to look again
				e.retry.Store(now + int64(min(held.Busy, mostPause)))
			}
			c.end(s, f, e, Remote)
			return
		case e != nil && now < e.stale:
			s.mu.Lock()
			s.answer(f, Result[T]{e.value, Expired, time.Duration(now - e.made)}, nil, nil)
			s.mu.Unlock()
			return
		case time.Duration(now-began) > lease:
			// Its owner did not bring it in time, nor did the next. Better twice than never.
			c.fetch(ctx, s, f, nil, "")
			return
		}
		time.Sleep(min(pause/2+rand.N(pause/2+1), max(held.Busy, time.Millisecond)))
		pause = min(2*pause, mostPause)
	}
}

// without ends f while the store cannot be asked, if what is here is still fresh.
func (c *Cache[T]) without(s *shard[T], f *flight[T]) bool {
	s.mu.RLock()
	e := s.entries[f.key]
	s.mu.RUnlock()
	now := c.now()
	if e == nil || now >= e.fresh || f.early > 0 {
		return false
	}
	again := &entry[T]{key: e.key, hash: e.hash, value: e.value, err: e.err, made: e.made, fresh: e.fresh, stale: e.stale, took: e.took, weight: e.weight}
	again.local = min(e.fresh, sum(now, c.cfg.LocalTTL))
	c.end(s, f, again, Local)
	return true
}

// fetch loads the value, and puts it in the store where token is a lease. old is what the
// store had, or nil.
func (c *Cache[T]) fetch(ctx context.Context, s *shard[T], f *flight[T], old *entry[T], token string) {
	c.loads.Add(1)
	if f.early > 0 {
		c.early.Add(1)
	}
	lctx, cancel := context.WithTimeout(ctx, c.cfg.LoadTimeout)
	stop := context.AfterFunc(lctx, func() {
		c.fail(s, f, old, fmt.Errorf("no answer within LoadTimeout, %v: %w", c.cfg.LoadTimeout, context.DeadlineExceeded))
	})
	began := c.now()
	e := &entry[T]{key: f.key, hash: f.hash}
	var data []byte
	invoke(func() (err error) {
		if e.value, err = f.load(lctx, f.key); err != nil {
			return err
		}
		e.weight = c.weight(e)
		if token != "" {
			data, err = c.cfg.Codec.Marshal(e.value)
		}
		return err
	}, func(err error) {
		stop()
		cancel()
		e.made = c.now()
		e.took = e.made - began
		if c.cfg.Hooks.Loaded != nil {
			c.cfg.Hooks.Loaded(Loaded{c.name, f.key, f.early > 0, time.Duration(e.took), err})
		}
		ttl, more := c.ttl(), c.cfg.StaleFor
		if errors.Is(err, ErrNotFound) {
			var none T
			e.value, e.err, e.weight = none, err, c.weight(e)
			ttl, more, data, err = c.cfg.NegativeTTL, 0, nil, nil
		}
		if err != nil {
			c.release(ctx, f.key, token)
			c.fail(s, f, old, err)
			return
		}
		e.fresh = sum(e.made, ttl)
		e.stale = sum(e.fresh, more)
		e.local = min(e.fresh, sum(e.made, c.cfg.LocalTTL))
		it := Item{Value: data, Negative: e.err != nil, Took: time.Duration(e.took), Fresh: ttl, Stale: more}
		c.put(ctx, s, f, token, it)
		c.end(s, f, e, Origin)
	})
}

// invoke calls fn and then done, exactly once, with its error, whatever fn does: a panic becomes a
// [*PanicError] and ends there; runtime.Goexit becomes one too, and then ends the goroutine.
func invoke(fn func() error, done func(err error)) {
	var err error
	returned := false
	defer func() {
		if !returned {
			err = &PanicError{Value: recover(), Stack: debug.Stack()}
		}
		done(err)
	}()
	err = fn()
	returned = true
}

// ttl returns the time to live of one value.
func (c *Cache[T]) ttl() time.Duration {
	return c.cfg.TTL - time.Duration(rand.Float64()*c.cfg.Jitter*float64(c.cfg.TTL))
}

// weight returns what e counts for in memory.
func (c *Cache[T]) weight(e *entry[T]) int64 {
	switch {
	case c.cfg.Cost == nil:
		return 1
	case e.err != nil:
		return int64(len(e.key)) + 1
	}
	return max(1, c.cfg.Cost(e.key, e.value))
}

// sum adds a duration to a time, to the end of time at most.
func sum(t int64, d time.Duration) int64 {
	if t > math.MaxInt64-int64(d) {
		return math.MaxInt64
	}
	return t + int64(d)
}

// end ends f with e, which is fresh, and keeps e unless the key was invalidated meanwhile.
func (c *Cache[T]) end(s *shard[T], f *flight[T], e *entry[T], from Source) {
	s.mu.Lock()
	fenced := f.detached
	if !fenced && !f.ended {
		if e.fresh > e.made {
			s.put(e)
		} else if old := s.entries[f.key]; old != nil {
			s.drop(old) // a negative answer that is not to be remembered
		}
	}
	s.answer(f, Result[T]{e.value, from, time.Duration(c.now() - e.made)}, e.err, nil)
	s.mu.Unlock()
	if fenced {
		c.tellFenced(f.key)
	}
}

// fail ends f, whose load failed, with the last value if that may still be served. remote is
// what the store had, or nil.
func (c *Cache[T]) fail(s *shard[T], f *flight[T], remote *entry[T], err error) {
	now := c.now()
	s.mu.Lock()
	if f.ended {
		s.mu.Unlock()
		return
	}
	old := s.entries[f.key]
	if f.detached {
		old, remote = nil, nil
	}
	if remote != nil && (old == nil || old.made < remote.made) {
		old = remote
		s.put(old) // where it can wait out the backoff
	}
	if old != nil {
		old.retry.Store(sum(now, c.cfg.Backoff))
	}
	known := old != nil && old.err == nil
	switch {
	case known && now < old.fresh:
		s.answer(f, Result[T]{old.value, Local, time.Duration(now - old.made)}, nil, nil)
	case known && now < old.stale && !fault.IsPermanent(err):
		s.answer(f, Result[T]{old.value, Expired, time.Duration(now - old.made)}, nil, err)
	default:
		e := &LoadError{Cache: c.name, Key: f.key, Err: err}
		if known {
			e.Age = time.Duration(now - old.made)
		}
		s.answer(f, Result[T]{}, e, nil)
	}
	s.mu.Unlock()
	c.failures.Add(1)
}

// answer ends f, once, for all who wait for it. why is what a stale value is served for. mu is
// held.
func (s *shard[T]) answer(f *flight[T], r Result[T], err, why error) {
	if f.ended {
		return
	}
	f.ended = true
	if s.flights[f.key] == f {
		delete(s.flights, f.key)
	}
	f.result, f.err, f.why = r, err, why
	close(f.done)
}
