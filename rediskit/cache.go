// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rediskit

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dovetail-go/dovetail/cache"
)

// Cache is the tier of caches that processes share, in Redis. It implements [cache.Store] and is
// safe for concurrent use. Use it through [cache.New], which keeps hot keys in memory and knows what to
// do while Redis is away.
type Cache struct {
	client redis.UniversalClient
	keys   keyspace
}

var _ cache.Store = (*Cache)(nil)

// NewCache returns the values in the client's database. A server of its own may evict keys by any
// policy: a value or a lease that is evicted is loaded anew.
func NewCache(client redis.UniversalClient, cfg Config) (*Cache, error) {
	if client == nil {
		return nil, fmt.Errorf("rediskit: client is nil, want a go-redis client")
	}
	keys, err := newKeyspace(client, cfg, "cache")
	if err != nil {
		return nil, err
	}
	return &Cache{client, keys}, nil
}

// A value is a hash. v is the value, absent where the item is negative, put the time when it
// was put, fresh and stale how long it is, took how long its load took, by the name of the call
// that put it. token is the lease's and until its end. event is that of the last delete. All times are
// microseconds of the server's clock. Where there is no put there is no value.
//
// A key lives as long as what is in it: a value until it is no longer stale, a lease for a minute longer
// than it lasts, so that an owner who is a little late may still put, an event for a minute.
var (
	takeValue = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local lease, early = tonumber(ARGV[2]), tonumber(ARGV[3])
local c = redis.call('HMGET', KEYS[1], 'v', 'put', 'fresh', 'stale', 'took', 'until', 'token')
local found, age, fresh = 0, 0, 0
if c[2] then
  -- A clock that was set back makes nothing younger than new.
  age = math.max(0, now - tonumber(c[2]))
  fresh = tonumber(c[3]) - age
  if fresh + tonumber(c[4]) > 0 then found = 1 end
end
local answer = {found, age, fresh, found == 1 and tonumber(c[4]) or 0, found == 1 and tonumber(c[5]) or 0, 0, 0, found == 1 and c[1]}
if found == 1 and fresh > early then return answer end
-- Its own token is there when the client sends the command again, not having heard the answer.
if c[6] and c[7] ~= ARGV[1] and now < tonumber(c[6]) then
  answer[7] = tonumber(c[6]) - now
  return answer
end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'until', string.format('%.0f', now + lease))
local least = math.ceil(lease / 1000) + 60000
if redis.call('PTTL', KEYS[1]) < least then redis.call('PEXPIRE', KEYS[1], least) end
answer[6] = 1
return answer
`)
	putValue = redis.NewScript(`
local c = redis.call('HMGET', KEYS[1], 'token', 'by')
if c[1] ~= ARGV[1] then return c[2] == ARGV[5] and 1 or 0 end
local t = redis.call('TIME')
redis.call('HDEL', KEYS[1], 'token', 'until', 'v')
redis.call('HSET', KEYS[1], 'put', string.format('%.0f', t[1] * 1000000 + t[2]), 'fresh', ARGV[2], 'stale', ARGV[3], 'took', ARGV[4], 'by', ARGV[5])
if ARGV[6] then redis.call('HSET', KEYS[1], 'v', ARGV[6]) end
local ms = math.ceil((ARGV[2] + ARGV[3]) / 1000)
if redis.call('HEXISTS', KEYS[1], 'event') == 1 then ms = math.max(ms, 60000) end
redis.call('PEXPIRE', KEYS[1], ms)
return 1
`)
	releaseValue = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then redis.call('HDEL', KEYS[1], 'token', 'until') end
return 1
`)
	deleteValue = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'event') == ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'event', ARGV[1])
redis.call('PEXPIRE', KEYS[1], 60000)
return 1
`)
)

// Take implements [cache.Store]: one round trip.
func (s *Cache) Take(ctx context.Context, key string, ask cache.Ask) (cache.Held, error) {
	token := rand.Text()
	// Beyond this a Lua number has gaps, and nothing is fresh for so long.
	early := min(ask.Early.Microseconds(), maxExact)
	answer, err := takeValue.Run(ctx, s.client, []string{s.keys.key(key)}, token, micros(ask.Lease), early).Slice()
	if err != nil {
		return cache.Held{}, fmt.Errorf("rediskit: take: %w", err)
	}
	if len(answer) != 8 {
		return cache.Held{}, fmt.Errorf("rediskit: take: the script answered %d values, want 8", len(answer))
	}
	var n [7]int64
	for i := range n {
		n[i], _ = answer[i].(int64)
	}
	us := func(i int) time.Duration { return time.Duration(n[i]) * time.Microsecond }
	h := cache.Held{Found: n[0] == 1, Busy: us(6)}
	if h.Found {
		h.Age, h.Item = us(1), cache.Item{Fresh: us(2), Stale: us(3), Took: us(4)}
		v, ok := answer[7].(string)
		h.Value, h.Negative = []byte(v), !ok
	}
	if n[5] == 1 {
		h.Token = token
	}
	return h, nil
}

// Put implements [cache.Store]: one round trip. Times are kept to the microsecond, rounded up.
func (s *Cache) Put(ctx context.Context, key, token string, it cache.Item) (stored bool, err error) {
	// The last is this call's name, by which the client's own repetition of it is recognised.
	args := []any{token, micros(it.Fresh), micros(it.Stale), micros(it.Took), rand.Text()}
	if !it.Negative {
		args = append(args, it.Value)
	}
	n, err := putValue.Run(ctx, s.client, []string{s.keys.key(key)}, args...).Int()
	if err != nil {
		return false, fmt.Errorf("rediskit: put: %w", err)
	}
	return n == 1, nil
}

// micros returns d in whole microseconds, rounded up, as a script reads it.
func micros(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Microsecond-1)/time.Microsecond), 10)
}

// Release implements [cache.Store]: one round trip.
func (s *Cache) Release(ctx context.Context, key, token string) error {
	if err := releaseValue.Run(ctx, s.client, []string{s.keys.key(key)}, token).Err(); err != nil {
		return fmt.Errorf("rediskit: release: %w", err)
	}
	return nil
}

// Delete implements [cache.Store]: one round trip for one key, one pipeline for many. Every key is
// tried, whatever becomes of the others.
func (s *Cache) Delete(ctx context.Context, event string, keys ...string) error {
	if event == "" {
		event = rand.Text() // the same as no other
	}
	if len(keys) == 1 {
		if err := deleteValue.Run(ctx, s.client, []string{s.keys.key(keys[0])}, event).Err(); err != nil {
			return fmt.Errorf("rediskit: delete: %w", err)
		}
		return nil
	}
	// A script that the server does not know would fail in the pipeline, so the text goes along.
	_, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, k := range keys {
			deleteValue.Eval(ctx, p, []string{s.keys.key(k)}, event)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("rediskit: delete: %w", err)
	}
	return nil
}
