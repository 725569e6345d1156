// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"iter"
	"sync"
	"time"
)

// Static is a resolver with lists given by the program, which may change them.
type Static struct {
	mu      sync.Mutex
	sets    map[string]Set
	changed chan struct{} // closed and replaced at each change
}

var _ Resolver = (*Static)(nil)

// NewStatic returns a resolver with the given instances by service. A service without
// an entry is known to have no instances.
func NewStatic(services map[string][]Instance) (*Static, error) {
	s := &Static{sets: make(map[string]Set, len(services)), changed: make(chan struct{})}
	for service, instances := range services {
		if err := s.Set(service, instances...); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Set replaces the instances of the service. Watches see it at once. After an error
// nothing has changed.
func (s *Static) Set(service string, instances ...Instance) error {
	set, err := NewSet(service, instances)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sets[service] = set
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

// Watch implements [Resolver].
func (s *Static) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		feed := NewFeed(yield)
		if service == "" {
			feed.refuse(ctx, errNoService)
			return
		}
		for ctx.Err() == nil {
			s.mu.Lock()
			set, ok := s.sets[service]
			changed := s.changed
			s.mu.Unlock()
			if !ok {
				set = Set{Service: service, At: time.Now()}
			}
			if !feed.Set(set) {
				return
			}
			select {
			case <-ctx.Done():
			case <-changed:
			}
		}
	}
}
