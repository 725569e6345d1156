// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
	// Queries that answer at once, again and again, are let through in bursts only: a query for a
	// service that does not exist is woken by every change of any other
	// (hashicorp/consul#3890).
	burst    = 10
	perQuery = 100 * time.Millisecond
	// What a request may take beyond the time that the agent was asked to wait.
	requestTimeout = 10 * time.Second
)

// poll is a sequence of blocking queries for one thing. See
// https://developer.hashicorp.com/consul/api-docs/features/blocking.
type poll struct {
	index    uint64 // zero for a query that does not wait
	failures int
	debt     time.Duration // of the pace, as of at
	at       time.Time
}

// next makes the next query by ask, when the pace allows it, with at most wait to wait for a change. It
// reports whether the index went backwards: the servers have lost state, or were restored.
// The error is that of ctx if it has ended.
func (p *poll) next(ctx context.Context, wait time.Duration, base api.QueryOptions, ask func(*api.QueryOptions) (*api.QueryMeta, error)) (reset bool, err error) {
	if err := p.pause(ctx); err != nil {
		return false, err
	}
	base.WaitIndex = p.index
	timeout := requestTimeout
	if p.index > 0 {
		base.WaitTime = wait
		timeout += wait + wait/16 // the agent itself adds up to a sixteenth, against herds
	}
	// Not to be too early is the point of it; it is here for connections that died silently.
	within, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	meta, err := ask(base.WithContext(within))
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case err != nil && within.Err() != nil:
		err = context.Cause(within)
		fallthrough
	case err != nil:
		p.failures++
		// Servers that lost their state begin at a low index, and let a query for a higher one
		// wait. So the first query after an outage does not wait for anything.
		p.index = 0
		return false, err
	}
	p.failures = 0
	index := max(meta.LastIndex, 1) // at zero the next query would not wait
	if reset = index < p.index; reset {
		index = 0
	}
	p.index = index
	return reset, nil
}

// pause waits after failures ever longer, and otherwise as long as the pace demands.
func (p *poll) pause(ctx context.Context) error {
	now := time.Now()
	p.debt = max(p.debt-now.Sub(p.at), 0)
	p.at = now
	wait := time.Duration(0)
	if p.failures > 0 {
		limit := min(firstRetry<<min(p.failures-1, 10), lastRetry)
		// From almost nothing to the limit: processes that lost the same agent at the same
		// moment must not come back at the same moment.
		wait = limit/10 + rand.N(limit)
	} else if p.debt >= burst*perQuery {
		wait = p.debt - (burst-1)*perQuery
	}
	p.debt += perQuery
	if wait > 0 {
		sleep(ctx, wait)
	}
	return ctx.Err()
}
