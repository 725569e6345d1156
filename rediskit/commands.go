// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rediskit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/idempotency"
)

// Commands remembers commands and their results in Redis. It implements
// [idempotency.Store] and is safe for concurrent use. It is no [idempotency.TxStore]: Redis cannot
// take part in the transaction of an effect, so a crash between the effect and Complete runs the command
// again after its lease.
type Commands struct {
	client redis.Scripter
	keys   keyspace
}

var _ idempotency.Store = (*Commands)(nil)

// NewCommands returns the commands in the client's database.
func NewCommands(client redis.Scripter, cfg Config) (*Commands, error) {
	keys, err := newKeyspace(client, cfg, "command")
	if err != nil {
		return nil, err
	}
	return &Commands{client, keys}, nil
}

// A command is a hash: print is its fingerprint, token the claim's, until and keep the times in
// microseconds when its lease and its retention end, and result is there when it is done. The
// key lives until keep, and while its claim is kept alive.
var (
	begin = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local c = redis.call('HMGET', KEYS[1], 'print', 'until', 'result', 'token')
if c[1] then
  if c[1] ~= ARGV[1] then return {'mismatch'} end
  if c[3] then return {'done', c[3]} end
  -- Its own token is there when the client sends the command again, not having heard the answer.
  if c[4] ~= ARGV[2] and now < tonumber(c[2]) then return {'busy', string.format('%.0f', tonumber(c[2]) - now)} end
end
redis.call('HSET', KEYS[1], 'print', ARGV[1], 'token', ARGV[2],
  'until', string.format('%.0f', now + ARGV[3]), 'keep', string.format('%.0f', now + ARGV[4]))
redis.call('PEXPIRE', KEYS[1], math.ceil(math.max(ARGV[3], ARGV[4]) / 1000))
return {'claimed'}
`)
	extend = redis.NewScript(`
local c = redis.call('HMGET', KEYS[1], 'token', 'result')
if c[1] ~= ARGV[1] or c[2] then return 0 end
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], 'until', string.format('%.0f', t[1] * 1000000 + t[2] + ARGV[2]))
if redis.call('PTTL', KEYS[1]) < ARGV[2] / 1000 then redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[2] / 1000)) end
return 1
`)
	complete = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
if redis.call('HSETNX', KEYS[1], 'result', ARGV[2]) == 1 then
  redis.call('PEXPIREAT', KEYS[1], math.ceil(redis.call('HGET', KEYS[1], 'keep') / 1000))
end
return 1
`)
	release = redis.NewScript(`
local c = redis.call('HMGET', KEYS[1], 'token', 'result')
if c[1] == ARGV[1] and not c[2] then redis.call('DEL', KEYS[1]) end
return 1
`)
)

func (s *Commands) key(k idempotency.Key) []string { return []string{s.keys.key(k.Scope, k.ID)} }

// Begin implements [idempotency.Store].
func (s *Commands) Begin(ctx context.Context, cmd idempotency.Command) (idempotency.Claim, error) {
	if err := cmd.Validate(); err != nil {
		return idempotency.Claim{}, err
	}
	if cmd.Lease == 0 {
		cmd.Lease = idempotency.DefaultLease
	}
	if cmd.Retention == 0 {
		cmd.Retention = idempotency.DefaultRetention
	}
	claim := idempotency.Claim{Key: cmd.Key, Lease: cmd.Lease, Token: rand.Text()}
	answer, err := begin.Run(ctx, s.client, s.key(cmd.Key), string(cmd.Fingerprint), claim.Token,
		cmd.Lease.Microseconds(), cmd.Retention.Microseconds()).StringSlice()
	if err != nil {
		return idempotency.Claim{}, fmt.Errorf("rediskit: begin: %w", err)
	}
	switch {
	case len(answer) == 1 && answer[0] == "claimed":
		return claim, nil
	case len(answer) == 1 && answer[0] == "mismatch":
		return idempotency.Claim{}, idempotency.ErrMismatch
	case len(answer) == 2 && answer[0] == "busy":
		return idempotency.Claim{}, idempotency.ErrInProgress
	case len(answer) == 2 && answer[0] == "done":
		return idempotency.Claim{Key: cmd.Key, Lease: cmd.Lease, Done: true, Result: []byte(answer[1])}, nil
	}
	return idempotency.Claim{}, fmt.Errorf("rediskit: begin: the script answered %d strings, want a known answer", len(answer))
}

// Extend implements [idempotency.Store].
func (s *Commands) Extend(ctx context.Context, c idempotency.Claim) error {
	return s.owned(ctx, "extend", extend, c, c.Lease.Microseconds())
}

// Complete implements [idempotency.Store].
func (s *Commands) Complete(ctx context.Context, c idempotency.Claim, result []byte) error {
	return s.owned(ctx, "complete", complete, c, result)
}

// Release implements [idempotency.Store].
func (s *Commands) Release(ctx context.Context, c idempotency.Claim) error {
	return s.owned(ctx, "release", release, c)
}

// owned runs a script that answers 1 if the claim is still its owner's.
func (s *Commands) owned(ctx context.Context, name string, script *redis.Script, c idempotency.Claim, args ...any) error {
	if c.Token == "" {
		return fault.Permanent(errors.New("rediskit: " + name + ": Claim.Token is empty, want the claim that Begin returned"))
	}
	owned, err := script.Run(ctx, s.client, s.key(c.Key), append([]any{c.Token}, args...)...).Int()
	if err != nil {
		return fmt.Errorf("rediskit: %s: %w", name, err)
	}
	if owned == 0 {
		return idempotency.ErrLeaseLost
	}
	return nil
}
