// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"math/rand/v2"
	"time"
)

// Feed is the part of a watch that all resolvers share, for those who write one: it
// numbers the sets and passes on only what changed.
type Feed struct {
	yield func(Set, error) bool
	last  Set    // the set that was passed on last; zero before the first
	err   string // the error that was passed on last; empty once the source has answered
	said  bool
}

// NewFeed returns a feed into the yield function of one watch.
func NewFeed(yield func(Set, error) bool) *Feed { return &Feed{yield: yield} }

// Set passes on what the source holds now, and reports whether the watch goes on. The
// revision is filled in.
func (f *Feed) Set(s Set) bool {
	news := !s.Same(f.last)
	if f.said && f.err == "" && !news {
		return true
	}
	s.Revision, s.Stale = f.last.Revision, false
	if news {
		s.Revision++
	}
	f.last, f.err, f.said = s, "", true
	return f.yield(s, nil)
}

// Fail passes on that the source cannot be asked, beside the last set, and reports
// whether the watch goes on.
func (f *Feed) Fail(err error) bool { return f.stale(f.last, err) }

// stale is Fail with a set remembered elsewhere, or the zero Set.
func (f *Feed) stale(s Set, err error) bool {
	if s.Service == "" {
		s = f.last
	}
	known, news := s.Service != "", !s.Same(f.last)
	if f.said && f.err == err.Error() && !news {
		return true
	}
	s.Revision = f.last.Revision
	if known && news {
		s.Revision++
	}
	if known && !s.Stale {
		// Until just now the source vouched for it.
		s.Stale, s.At = true, time.Now()
	}
	f.last, f.err, f.said = s, err.Error(), true
	return f.yield(s, err)
}

// refuse passes on an error that no waiting can mend, and waits for the end of ctx.
func (f *Feed) refuse(ctx context.Context, err error) {
	if f.Fail(err) {
		<-ctx.Done()
	}
}

// sleep waits for about d, a tenth more or less so that many processes do not ask in step, and
// reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d - d/10 + rand.N(d/5+1))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
