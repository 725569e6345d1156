// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery_test

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/discoverymem"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// announced runs fn beside a running announcement, in virtual time.
func announced(t *testing.T, name string, cfg discovery.AnnounceConfig, fn func(t *testing.T, registry *discoverymem.Registry, a *discovery.Announcement, words <-chan word, stop func() error)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			registry, err := discoverymem.New(discoverymem.Config{TTL: 5 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			cfg := cfg
			cfg.Logger = quiet
			a, err := discovery.NewAnnouncement(registry, discovery.Instance{Service: service, Addr: "a:1"}, cfg)
			if err != nil {
				t.Fatal(err)
			}
			words := follow(t, registry)
			wantWord(t, words, "")
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- a.Run(ctx) }()
			fn(t, registry, a, words, func() error { cancel(); return <-ended })
			cancel()
		})
	})
}

func TestAnnouncement(t *testing.T) {
	t.Parallel()
	type registry = *discoverymem.Registry
	announced(t, "the instance is registered and stays so", discovery.AnnounceConfig{}, func(t *testing.T, _ registry, a *discovery.Announcement, words <-chan word, _ func() error) {
		wantWord(t, words, "a:1")
		<-a.Registered()
		time.Sleep(time.Hour)
		wantSilence(t, words)
	})
	announced(t, "it is deregistered at the end", discovery.AnnounceConfig{}, func(t *testing.T, _ registry, a *discovery.Announcement, words <-chan word, stop func() error) {
		wantWord(t, words, "a:1")
		<-a.Registered()
		go func() {
			if err := stop(); err != nil {
				t.Errorf("Run = %v, want nil", err)
			}
		}()
		wantWord(t, words, "")
	})
	announced(t, "it is back within Every after the registry lost its state", discovery.AnnounceConfig{}, func(t *testing.T, r registry, _ *discovery.Announcement, words <-chan word, _ func() error) {
		wantWord(t, words, "a:1")
		time.Sleep(10*time.Second + time.Millisecond)
		start := time.Now()
		r.Forget()
		wantWord(t, words, "")
		wantWord(t, words, "a:1")
		if got := time.Since(start); got > time.Second {
			t.Errorf("registered again after %v, want at most 1s", got)
		}
	})
	announced(t, "it is back within Every after an outage that outlived the lease", discovery.AnnounceConfig{}, func(t *testing.T, r registry, _ *discovery.Announcement, words <-chan word, _ func() error) {
		wantWord(t, words, "a:1")
		r.SetOutage(errAway)
		wantWord(t, words, "a:1 stale error")
		time.Sleep(time.Minute + time.Millisecond) // between two attempts, which are a second apart
		start := time.Now()
		r.SetOutage(nil)
		wantWord(t, words, "")
		wantWord(t, words, "a:1")
		if got := time.Since(start); got > time.Second {
			t.Errorf("registered again after %v, want at most 1s", got)
		}
	})
	announced(t, "maintenance outlives a lost registration", discovery.AnnounceConfig{}, func(t *testing.T, r registry, a *discovery.Announcement, words <-chan word, _ func() error) {
		wantWord(t, words, "a:1")
		<-a.Registered()
		if err := a.Maintenance(t.Context(), true, "upgrade"); err != nil {
			t.Fatal(err)
		}
		wantWord(t, words, "")
		r.Forget()
		time.Sleep(time.Minute)
		for range 2 { // visible for the moment between registration and maintenance, at most
			select {
			case <-words:
			default:
			}
		}
		synctest.Wait()
		if err := a.Maintenance(t.Context(), false, ""); err != nil {
			t.Fatal(err)
		}
		wantWord(t, words, "a:1")
	})
	announced(t, "the end during an outage is an error", discovery.AnnounceConfig{}, func(t *testing.T, r registry, a *discovery.Announcement, words <-chan word, stop func() error) {
		wantWord(t, words, "a:1")
		<-a.Registered()
		r.SetOutage(errAway)
		wantWord(t, words, "a:1 stale error")
		if err := stop(); err == nil {
			t.Error("Run = nil, want an error: the registration remains until its time is over")
		}
	})

	var failing atomic.Bool
	health := func(context.Context) discovery.Health { return discovery.Health{Failing: failing.Load()} }
	announced(t, "a failing instance is out until it passes again", discovery.AnnounceConfig{Health: health}, func(t *testing.T, _ registry, _ *discovery.Announcement, words <-chan word, _ func() error) {
		wantWord(t, words, "a:1")
		failing.Store(true)
		wantWord(t, words, "")
		failing.Store(false)
		wantWord(t, words, "a:1")
	})
}
