// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cachetest

import (
	"bytes"
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/cache"
)

// Store is a [cache.Store] in memory, in virtual time too where a test has it. It never forgets
// a key, so it is for tests only. It is safe for concurrent use.
type Store struct {
	mu     sync.Mutex
	rows   map[string]*row
	leases int
	err    error
}

var _ cache.Store = (*Store)(nil)

type row struct {
	item  cache.Item
	found bool
	put   time.Time
	token string
	until time.Time
	event string
}

// NewStore returns an empty store.
func NewStore() *Store { return &Store{rows: map[string]*row{}} }

// Fail makes every operation return err until Fail(nil), as if the store were down.
func (s *Store) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *Store) row(key string) *row {
	if s.rows[key] == nil {
		s.rows[key] = &row{}
	}
	return s.rows[key]
}

// Take implements [cache.Store].
func (s *Store) Take(_ context.Context, key string, ask cache.Ask) (cache.Held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return cache.Held{}, s.err
	}
	r, now := s.row(key), time.Now()
	var h cache.Held
	age := now.Sub(r.put)
	if r.found && age < r.item.Fresh+r.item.Stale {
		h = cache.Held{Item: r.item, Found: true, Age: age}
		h.Value = bytes.Clone(r.item.Value)
		h.Fresh -= age
	}
	if h.Found && h.Fresh > ask.Early {
		return h, nil
	}
	if r.token != "" && now.Before(r.until) {
		h.Busy = r.until.Sub(now)
		return h, nil
	}
	s.leases++
	h.Token = strconv.Itoa(s.leases)
	r.token, r.until = h.Token, now.Add(ask.Lease)
	return h, nil
}

// Put implements [cache.Store].
func (s *Store) Put(_ context.Context, key, token string, it cache.Item) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return false, s.err
	}
	r := s.row(key)
	if token == "" || r.token != token {
		return false, nil
	}
	it.Value = bytes.Clone(it.Value)
	r.item, r.found, r.put, r.token = it, true, time.Now(), ""
	return true, nil
}

// Release implements [cache.Store].
func (s *Store) Release(_ context.Context, key, token string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if r := s.row(key); r.token == token {
		r.token = ""
	}
	return nil
}

// Delete implements [cache.Store].
func (s *Store) Delete(_ context.Context, event string, keys ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	for _, k := range keys {
		if r := s.row(k); event == "" || r.event != event {
			*r = row{event: event}
		}
	}
	return nil
}
