// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// SettingConfig configures a [Setting]. The zero SettingConfig is a sound default.
type SettingConfig[T any] struct {
	// Decode turns the key's value into a T. Nil means JSON in which every field must be
	// known, so that a misspelt one is noticed.
	Decode func([]byte) (T, error)
	// Default is applied when the key is deleted. Nil means that the value applied last
	// stays in force.
	Default *T
	// Wait is the longest time that one query waits for a change. Zero means 1 minute.
	Wait time.Duration
	// Logger receives changes, and refused values with the reason. Nil means slog.Default().
	Logger *slog.Logger
}

// Setting keeps a part of a running program at the value of a key. A value is decoded, asked to
// Validate itself if T has that method (Validate() error), and applied; what fails at
// one of these steps is refused: it is logged, and the value before it stays in force.
//
// While Consul is away, and while the key does not exist, everything stays as it is.
type Setting[T any] struct {
	client *Client
	key    string
	apply  func(T) error
	cfg    SettingConfig[T]

	read chan struct{}
	once sync.Once

	mu    sync.Mutex
	value T
	state SettingState
}

// SettingState tells where a [Setting] stands.
type SettingState struct {
	// Applied is the key's ModifyIndex whose value is in force, zero if none.
	Applied uint64
	// Refused is why the key's present value is not in force, nil if it is.
	Refused error
	// Unreachable is why the key cannot be read at present, nil if it can.
	Unreachable error
}

// NewSetting returns a setting that calls apply with each new value of the key. Apply is called from
// Run, one call at a time; its error refuses the value, and then it must have changed nothing,
// like breaker.Reconfigure.
func NewSetting[T any](c *Client, key string, apply func(T) error, cfg SettingConfig[T]) (*Setting[T], error) {
	if c == nil {
		return nil, errors.New("consulkit: client is nil, want one")
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if apply == nil {
		return nil, errors.New("consulkit: apply is nil, want a func")
	}
	if err := checkWait("SettingConfig.Wait", cfg.Wait); err != nil {
		return nil, err
	}
	cfg.Wait = cmp.Or(cfg.Wait, time.Minute)
	if cfg.Decode == nil {
		cfg.Decode = decodeJSON[T]
	}
	return &Setting[T]{client: c, key: key, apply: apply, cfg: cfg, read: make(chan struct{})}, nil
}

func checkKey(key string) error {
	if key == "" || strings.HasPrefix(key, "/") {
		return fmt.Errorf("consulkit: key is %q, want a path without a slash at its start", key)
	}
	return nil
}

func decodeJSON[T any](data []byte) (value T, err error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&value); err != nil {
		return value, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return value, errors.New("text after the end of the JSON value")
	}
	return value, nil
}

// Run follows the key until ctx is done, then it returns nil.
func (s *Setting[T]) Run(ctx context.Context) error {
	var (
		queries poll
		pair    *api.KVPair
		seen    uint64 // the ModifyIndex looked at last
		exists  bool
	)
	ask := func(opts *api.QueryOptions) (meta *api.QueryMeta, err error) {
		pair, meta, err = s.client.api.KV().Get(s.key, opts)
		return meta, err
	}
	for {
		_, err := queries.next(ctx, s.cfg.Wait, api.QueryOptions{}, ask)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // its end was asked for
		}
		s.reachable(err)
		switch {
		case err != nil:
			continue
		case pair == nil:
			if exists {
				s.deleted()
			}
			seen, exists = 0, false
		case !exists || pair.ModifyIndex != seen:
			seen, exists = pair.ModifyIndex, true
			s.take(pair)
		}
		s.once.Do(func() { close(s.read) })
	}
}

// Read is closed when the key has been read for the first time, and its value applied or
// refused.
func (s *Setting[T]) Read() <-chan struct{} { return s.read }

// Value returns the value in force, and false if none has been applied yet.
func (s *Setting[T]) Value() (value T, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.value, s.state.Applied > 0
}

// State returns where the setting stands.
func (s *Setting[T]) State() SettingState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func (s *Setting[T]) reachable(err error) {
	s.mu.Lock()
	before := s.state.Unreachable
	s.state.Unreachable = err
	s.mu.Unlock()
	if err != nil && before == nil {
		s.log().Warn("setting not readable, the old value stays", "key", s.key, "error", err)
	}
}

// take applies the key's value, or refuses it.
func (s *Setting[T]) take(pair *api.KVPair) {
	value, err := s.cfg.Decode(pair.Value)
	if err == nil {
		if v, ok := any(&value).(interface{ Validate() error }); ok {
			err = v.Validate()
		}
	}
	if err == nil {
		err = s.apply(value)
	}
	s.mu.Lock()
	s.state.Refused = err
	if err == nil {
		s.value, s.state.Applied = value, pair.ModifyIndex
	}
	s.mu.Unlock()
	if err != nil {
		s.log().Error("setting refused, the old value stays", "key", s.key, "index", pair.ModifyIndex, "error", err)
		return
	}
	s.log().Info("setting applied", "key", s.key, "index", pair.ModifyIndex)
}

// deleted goes back to the default, if there is one.
func (s *Setting[T]) deleted() {
	if s.cfg.Default == nil {
		s.log().Warn("setting deleted, the old value stays", "key", s.key)
		return
	}
	err := s.apply(*s.cfg.Default)
	s.mu.Lock()
	s.state.Refused = err
	if err == nil {
		s.value = *s.cfg.Default
	}
	s.mu.Unlock()
	if err != nil {
		s.log().Error("default refused, the old value stays", "key", s.key, "error", err)
		return
	}
	s.log().Info("setting deleted, the default applies", "key", s.key)
}

func (s *Setting[T]) log() *slog.Logger { return cmp.Or(s.cfg.Logger, slog.Default()) }
