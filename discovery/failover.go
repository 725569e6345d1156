// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"
)

// FailoverConfig configures a [Failover]. The zero FailoverConfig is a sound default.
type FailoverConfig struct {
	// Patience is how long a resolver may say nothing, or errors only, before the next
	// one takes its place. Zero means 3 seconds, negative none.
	Patience time.Duration
}

// Failover is a resolver that follows the first healthy one of several, in order of
// preference. An empty set is an answer, and not a reason to ask the next. When none is
// healthy, it yields the first set that one of them still remembers, stale, with all
// their errors.
type Failover struct {
	resolvers []Resolver
	patience  time.Duration
}

var _ Resolver = (*Failover)(nil)

// NewFailover returns a resolver over the given ones, the most preferred first.
func NewFailover(resolvers []Resolver, cfg FailoverConfig) (*Failover, error) {
	if len(resolvers) == 0 {
		return nil, errors.New("discovery: resolvers is empty, want at least one")
	}
	for i, r := range resolvers {
		if r == nil {
			return nil, fmt.Errorf("discovery: resolvers[%d] is nil, want a resolver", i)
		}
	}
	if cfg.Patience == 0 {
		cfg.Patience = 3 * time.Second
	}
	return &Failover{append([]Resolver(nil), resolvers...), max(cfg.Patience, 0)}, nil
}

// candidate is the last word of one of the resolvers.
type candidate struct {
	set  Set
	err  error
	said bool
	// silent is since when it has not answered.
	silent time.Time
}

func (c *candidate) healthy() bool { return c.said && c.err == nil }

// Watch implements [Resolver].
func (f *Failover) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		feed := NewFeed(yield)
		if service == "" {
			feed.refuse(ctx, errNoService)
			return
		}
		type word struct {
			from int
			set  Set
			err  error
		}
		words := make(chan word)
		var watches sync.WaitGroup
		defer watches.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for i, r := range f.resolvers {
			watches.Go(func() {
				for set, err := range r.Watch(ctx, service) {
					select {
					case words <- word{i, set, err}:
					case <-ctx.Done():
						return
					}
				}
			})
		}

		candidates := make([]candidate, len(f.resolvers))
		for i := range candidates {
			candidates[i].silent = time.Now()
		}
		timer := time.NewTimer(f.patience)
		defer timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case got := <-words:
				c := &candidates[got.from]
				if got.err != nil && c.healthy() {
					c.silent = time.Now()
				}
				c.set, c.err, c.said = got.set, got.err, true
			case <-timer.C:
			}
			best, wait, err := f.choose(candidates)
			if wait > 0 {
				timer.Reset(wait)
				continue
			}
			goOn := false
			if err == nil {
				goOn = feed.Set(best)
			} else {
				goOn = feed.stale(best, err)
			}
			if !goOn {
				return
			}
		}
	}
}

// choose returns the set to follow, with an error if it is stale or none; or how long to wait for
// a better one before that is decided.
func (f *Failover) choose(candidates []candidate) (best Set, wait time.Duration, err error) {
	hope := false // is there any point in waiting?
	for i := range candidates {
		hope = hope || !candidates[i].said || candidates[i].healthy()
	}
	var errs []error
	for i := range candidates {
		c := &candidates[i]
		if c.healthy() {
			return c.set, 0, nil
		}
		if left := f.patience - time.Since(c.silent); hope && left > 0 {
			return Set{}, left, nil
		}
		if c.err != nil {
			errs = append(errs, c.err)
		} else {
			errs = append(errs, fmt.Errorf("discovery: resolver %d of %d has not answered", i+1, len(candidates)))
		}
		if best.Service == "" {
			best = c.set
		}
	}
	return best, 0, errors.Join(errs...)
}
