// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rediskit

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dovetail-go/dovetail/ratelimit"
)

// Buckets holds the buckets of rate limits in Redis. It implements [ratelimit.Store] and is
// safe for concurrent use. Use it through [ratelimit.NewLeased], which takes tokens of busy keys in
// advance and knows what to do while Redis is away.
type Buckets struct {
	client redis.Scripter
	keys   keyspace
}

var _ ratelimit.Store = (*Buckets)(nil)

// NewBuckets returns the buckets in the client's database.
func NewBuckets(client redis.Scripter, cfg Config) (*Buckets, error) {
	keys, err := newKeyspace(client, cfg, "bucket")
	if err != nil {
		return nil, err
	}
	return &Buckets{client, keys}, nil
}

// maxExact is what a Lua number, a float64, can count to without gaps.
const maxExact = 1 << 53

// A bucket is its level and the time of it in microseconds. Level counts parts of tokens, as
// many to one token as Per has microseconds, so that Rate parts flow in each microsecond: whole
// numbers throughout. A bucket that is not there is full.
var take = redis.NewScript(`
local burst, rate, per = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local need, want = tonumber(ARGV[4]), tonumber(ARGV[5])
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local full = burst * per
local level = full
local value = redis.call('GET', KEYS[1])
if value then
  local l, at = string.match(value, '^(%d+) (%d+)$')
  -- A clock that was set back lets nothing flow in until it is past that time again.
  level = math.min(full, tonumber(l) + math.max(0, now - tonumber(at)) * rate)
  now = math.max(now, tonumber(at))
end
local taken = math.floor(level / per)
if taken < need then
  taken = 0
else
  taken = math.min(want, taken)
  level = level - taken * per
  local reset = math.ceil((full - level) / rate)
  if reset > 0 then
    redis.call('SET', KEYS[1], string.format('%.0f %.0f', level, now), 'PX', math.ceil(reset / 1000) + 1)
  end
end
local retry = 0
if taken == 0 and need > 0 then retry = math.max(1, math.ceil((need * per - level) / rate)) end
return {taken, math.floor(level / per), retry, math.ceil((full - level) / rate)}
`)

// Take implements [ratelimit.Store]: one round trip. Limits are kept to the microsecond; a limit
// whose Per is not a whole number of them, or whose full bucket has more than 2^53 microseconds times
// tokens, is an error.
func (b *Buckets) Take(ctx context.Context, key string, need, want int, limit ratelimit.Limit) (taken int, r ratelimit.Result, err error) {
	per := limit.Per.Microseconds()
	if per == 0 || limit.Per%time.Microsecond != 0 {
		return 0, r, fmt.Errorf("rediskit: Limit.Per is %v, want whole microseconds", limit.Per)
	}
	if int64(limit.Burst) >= maxExact/per || int64(limit.Rate) >= maxExact/per {
		return 0, r, fmt.Errorf("rediskit: Limit.Burst is %d and Rate %d in %v, want less than %d", limit.Burst, limit.Rate, limit.Per, maxExact/per)
	}
	answer, err := take.Run(ctx, b.client, []string{b.keys.key(key)}, limit.Burst, limit.Rate, per, need, max(need, want)).Int64Slice()
	if err != nil {
		return 0, r, fmt.Errorf("rediskit: take: %w", err)
	}
	if len(answer) != 4 {
		return 0, r, fmt.Errorf("rediskit: take: the script answered %d numbers, want 4", len(answer))
	}
	taken = int(answer[0])
	return taken, ratelimit.Result{
		OK: taken >= need, Limit: limit.Burst, Remaining: int(answer[1]),
		RetryAfter: time.Duration(answer[2]) * time.Microsecond, ResetAfter: time.Duration(answer[3]) * time.Microsecond,
	}, nil
}
