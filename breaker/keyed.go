// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package breaker

import (
	"fmt"
	"iter"
	"sync/atomic"

	"github.com/dovetail-go/dovetail/internal/keyed"
)

// Keyed is a bounded set of breakers, one per key, such as one per host. It is safe
// for concurrent use.
type Keyed[K comparable] struct {
	cfg atomic.Pointer[Config]
	set *keyed.Map[K, *Breaker]
}

// NewKeyed returns a set of at most limit breakers of one configuration, which are made when
// they are first asked for. A limit of zero means 1024. A key's name is Config.Name and the key.
//
// A full set forgets a breaker that was not used recently, of those preferably one that is
// closed and has seen no failure.
func NewKeyed[K comparable](cfg Config, limit int) (*Keyed[K], error) {
	if _, err := cfg.complete(); err != nil {
		return nil, err
	}
	if limit < 0 {
		return nil, fmt.Errorf("breaker: NewKeyed limit is %d, want 0 or more", limit)
	}
	if limit == 0 {
		limit = 1024
	}
	k := new(Keyed[K])
	k.cfg.Store(&cfg)
	k.set = keyed.New(limit, k.make, (*Breaker).idle)
	return k, nil
}

// Get returns key's breaker.
func (k *Keyed[K]) Get(key K) *Breaker { return k.set.Get(key) }

// All iterates over a snapshot of the breakers.
func (k *Keyed[K]) All() iter.Seq2[K, *Breaker] { return k.set.All() }

// Reconfigure gives cfg to all breakers, present and future. See [Breaker.Reconfigure].
func (k *Keyed[K]) Reconfigure(cfg Config) error {
	if _, err := cfg.complete(); err != nil {
		return err
	}
	k.cfg.Store(&cfg)
	for key, b := range k.set.All() {
		if err := b.Reconfigure(named(cfg, key)); err != nil {
			return err
		}
	}
	return nil
}

func (k *Keyed[K]) make(key K) *Breaker {
	b, err := New(named(*k.cfg.Load(), key))
	if err != nil {
		panic(err) // the configuration was checked
	}
	return b
}

func named[K comparable](cfg Config, key K) Config {
	if cfg.Name == "" {
		cfg.Name = fmt.Sprint(key)
	} else {
		cfg.Name = fmt.Sprint(cfg.Name, " ", key)
	}
	return cfg
}

// idle reports whether forgetting b loses nothing that matters.
func (b *Breaker) idle() bool {
	v := b.view.Load()
	return v.admits && v.gen.fails.Load() == 0
}
