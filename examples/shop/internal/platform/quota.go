// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"

	"github.com/dovetail-go/dovetail/ratelimit"
)

// Quota bounds how often each key may do something.
type Quota interface {
	// Allow takes one of the key's turns, if there is one left.
	Allow(ctx context.Context, key string) ratelimit.Result
}

// remembered bounds how many keys a quota keeps in a process's memory.
const remembered = 100_000

// Quota returns the quota of that name, unique in the shop: shared by all instances of the
// service where its surroundings have a place for that, and else this process's own.
func (e Env) Quota(name string, limit ratelimit.Limit) (Quota, error) {
	told := &toldQuota{name: name, hooks: e.Tracing().RateLimit()}
	var err error
	if e.Quotas != nil {
		told.Quota, err = e.Quotas(name, limit)
		return told, err
	}
	keyed, err := ratelimit.NewKeyed[string](limit, remembered)
	told.Quota = ownQuota{keyed}
	return told, err
}

// toldQuota tells of refusals, and never whose they were.
type toldQuota struct {
	Quota
	name  string
	hooks ratelimit.Hooks
}

func (q *toldQuota) Allow(ctx context.Context, key string) ratelimit.Result {
	result := q.Quota.Allow(ctx, key)
	if !result.OK {
		q.hooks.Reject(ratelimit.Rejected{Context: ctx, Name: q.name, Result: result})
	}
	return result
}

// ownQuota is the quota of a single process.
type ownQuota struct{ keyed *ratelimit.Keyed[string] }

func (q ownQuota) Allow(_ context.Context, key string) ratelimit.Result { return q.keyed.Allow(key) }
