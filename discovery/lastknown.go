// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"iter"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
)

// LastKnownConfig configures a [LastKnown]. The zero LastKnownConfig remembers in
// memory only.
type LastKnownConfig struct {
	// Dir is an existing directory for one file per service, so that a process that starts
	// during an outage knows the instances too. Empty means memory only. Several
	// processes may share it.
	Dir string
	// Logger receives what goes wrong with the files. Nil means slog.Default().
	Logger *slog.Logger
}

// LastKnown is a resolver that remembers what another one said last, for every watch of this
// process and, in files, for the next process. While the other one yields errors, the
// set beside them is the remembered one: Set.Stale is true, and Set.Age tells since when
// nobody has vouched for it.
type LastKnown struct {
	resolver Resolver
	cfg      LastKnownConfig
	mu       sync.Mutex
	sets     map[string]Set
}

var _ Resolver = (*LastKnown)(nil)

// NewLastKnown returns a resolver that remembers what r says.
func NewLastKnown(r Resolver, cfg LastKnownConfig) (*LastKnown, error) {
	if r == nil {
		return nil, errors.New("discovery: resolver is nil, want one")
	}
	if cfg.Dir != "" {
		if info, err := os.Stat(cfg.Dir); err != nil || !info.IsDir() {
			return nil, errors.New("discovery: LastKnownConfig.Dir is " + cfg.Dir + ", want an existing directory")
		}
	}
	return &LastKnown{resolver: r, cfg: cfg, sets: map[string]Set{}}, nil
}

// Watch implements [Resolver].
func (l *LastKnown) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		feed := NewFeed(yield)
		for set, err := range l.resolver.Watch(ctx, service) {
			goOn := false
			if err == nil {
				l.remember(set)
				goOn = feed.Set(set)
			} else {
				goOn = feed.stale(l.recall(service, set), err)
			}
			if !goOn {
				return
			}
		}
	}
}

func (l *LastKnown) remember(set Set) {
	l.mu.Lock()
	old := l.sets[set.Service]
	l.sets[set.Service] = set
	l.mu.Unlock()
	if l.cfg.Dir == "" || set.Same(old) {
		return
	}
	if err := l.write(set); err != nil {
		cmp.Or(l.cfg.Logger, slog.Default()).Warn("last known instances not written", "service", set.Service, "error", err)
	}
}

// recall returns the last known set of the service, as of the time when it was known.
func (l *LastKnown) recall(service string, beside Set) Set {
	if beside.Service != "" {
		return beside
	}
	l.mu.Lock()
	set, ok := l.sets[service]
	l.mu.Unlock()
	if ok || l.cfg.Dir == "" {
		return set
	}
	set, err := l.read(service)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			cmp.Or(l.cfg.Logger, slog.Default()).Warn("last known instances not read", "service", service, "error", err)
		}
		return Set{}
	}
	set.Stale = true
	return set
}

func (l *LastKnown) path(service string) string {
	// Escaped, a name cannot leave the directory: it has no slash and is longer than "..".
	return filepath.Join(l.cfg.Dir, url.PathEscape(service)+".json")
}

func (l *LastKnown) write(set Set) (err error) {
	data, err := json.MarshalIndent(fileContent{At: set.At, Services: map[string][]Instance{set.Service: set.Instances}}, "", "\t")
	if err != nil {
		return err
	}
	// Rename replaces at one stroke: a reader, and a crash, sees the old or the new.
	f, err := os.CreateTemp(l.cfg.Dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), l.path(set.Service))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func (l *LastKnown) read(service string) (Set, error) {
	data, err := os.ReadFile(l.path(service))
	if err != nil {
		return Set{}, err
	}
	content, err := parseFile(data)
	if err != nil {
		return Set{}, err
	}
	set, err := NewSet(service, content.Services[service])
	set.At = content.At
	return set, err
}
