// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package shred

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Memory is [Keys] in memory, for tests and examples.
type Memory struct {
	mu        sync.Mutex
	keys      map[string]Key
	forgotten []Forgotten
}

var _ Keys = (*Memory)(nil)

// NewMemory returns a Memory without keys.
func NewMemory() *Memory { return &Memory{keys: make(map[string]Key)} }

// Create implements [Keys].
func (m *Memory) Create(_ context.Context, k Key) (Key, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.keys[k.Subject]; ok {
		return old, nil
	}
	m.keys[k.Subject] = k
	return k, nil
}

// Find implements [Keys].
func (m *Memory) Find(_ context.Context, subject string) (Key, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k, ok := m.keys[subject]
	return k, ok, nil
}

// Forget implements [Keys].
func (m *Memory) Forget(_ context.Context, subject, reason string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k, ok := m.keys[subject]
	if ok {
		delete(m.keys, subject)
		m.forgotten = append(m.forgotten, Forgotten{Subject: subject, ID: k.ID, Reason: reason, At: time.Now().UTC()})
	}
	return ok, nil
}

// Forgotten implements [Keys].
func (m *Memory) Forgotten(context.Context) ([]Forgotten, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.forgotten), nil
}
