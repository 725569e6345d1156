// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"fmt"
	"time"
)

func (c *Cache[T]) storeKey(key string) string { return c.name + ":" + key }

// take asks the store. It reports false if the store cannot be asked.
func (c *Cache[T]) take(ctx context.Context, key string, ask Ask) (held Held, ok bool) {
	return held, c.ask(ctx, key, "take", func(ctx context.Context) (err error) {
		held, err = c.cfg.Store.Take(ctx, c.storeKey(key), ask)
		return err
	})
}

// put gives the result of a load to the store, if token is a lease. Where the store has taken the
// lease away, because the key was invalidated or because the load took too long, the result is not to
// be kept here either.
func (c *Cache[T]) put(ctx context.Context, s *shard[T], f *flight[T], token string, it Item) {
	if token == "" {
		return
	}
	s.mu.RLock()
	over := f.detached || f.ended // ended by LoadTimeout: nobody waits, and somebody else may be loading it
	s.mu.RUnlock()
	switch {
	case over:
		c.release(ctx, f.key, token)
	case it.Fresh == 0: // a negative answer that is not to be remembered
		c.ask(ctx, f.key, "delete", func(ctx context.Context) error { return c.cfg.Store.Delete(ctx, "", c.storeKey(f.key)) })
	default:
		stored := true
		c.ask(ctx, f.key, "put", func(ctx context.Context) (err error) {
			stored, err = c.cfg.Store.Put(ctx, c.storeKey(f.key), token, it)
			stored = stored || err != nil
			return err
		})
		if !stored {
			s.mu.Lock()
			f.detached = true
			if s.flights[f.key] == f {
				delete(s.flights, f.key)
			}
			s.mu.Unlock()
		}
	}
}

// release gives a lease back, if token is one. Where that fails it runs out by itself.
func (c *Cache[T]) release(ctx context.Context, key, token string) {
	if token != "" {
		c.ask(ctx, key, "release", func(ctx context.Context) error { return c.cfg.Store.Release(ctx, c.storeKey(key), token) })
	}
}

// ask does one operation on the store, within its time and behind its breaker.
func (c *Cache[T]) ask(ctx context.Context, key, op string, fn func(ctx context.Context) error) bool {
	err := c.breaker.Do(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, c.cfg.StoreTimeout)
		defer cancel()
		return fn(ctx)
	})
	if err != nil {
		c.storeFailed(key, op, err)
	}
	return err == nil
}

// decode makes an entry of what the store holds. A codec that panics on a value cannot read it.
func (c *Cache[T]) decode(f *flight[T], held Held) (e *entry[T], err error) {
	defer func() {
		if r := recover(); r != nil {
			e, err = nil, fmt.Errorf("cache %s: the codec panicked on what the store has of %q: %v", c.name, f.key, r)
		}
	}()
	now := c.now()
	e = &entry[T]{key: f.key, hash: f.hash, took: int64(held.Took), made: now - int64(held.Age)}
	e.fresh = sum(now, held.Fresh)
	e.stale = sum(e.fresh, held.Stale)
	e.local = min(e.fresh, sum(now, c.cfg.LocalTTL))
	if held.Negative {
		e.err = ErrNotFound
	} else if err := c.cfg.Codec.Unmarshal(held.Value, &e.value); err != nil {
		return nil, fmt.Errorf("cache %s: what the store has of %q does not decode: %w", c.name, f.key, err)
	}
	e.weight = c.weight(e)
	return e, nil
}

func (c *Cache[T]) storeFailed(key, op string, err error) {
	c.storeErrors.Add(1)
	if c.cfg.Hooks.StoreFailed != nil {
		c.cfg.Hooks.StoreFailed(StoreFailed{c.name, key, op, err})
	}
}

func (c *Cache[T]) tellFenced(key string) {
	c.fenced.Add(1)
	if c.cfg.Hooks.Fenced != nil {
		c.cfg.Hooks.Fenced(Fenced{c.name, key})
	}
}

func (c *Cache[T]) tellStale(s *shard[T], key string, age time.Duration, why error) {
	s.stale.Add(1)
	if c.cfg.Hooks.Stale != nil {
		c.cfg.Hooks.Stale(Stale{c.name, key, age, why})
	}
}
