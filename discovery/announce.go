// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// AnnounceConfig configures an [Announcement]. The zero AnnounceConfig is a sound default.
type AnnounceConfig struct {
	// Every is the time between two renewals, and between two attempts to register. It is
	// also how soon the instance is back in a registry that lost its state. Keep it under
	// a third of the registry's time to live. Zero means 1 second.
	Every time.Duration
	// Timeout bounds one request to the registry. Zero means 5 seconds.
	Timeout time.Duration
	// Health is asked before each renewal; it should answer at once. Nil means passing.
	Health func(context.Context) Health
	// Logger receives losses and failures. Nil means slog.Default().
	Logger *slog.Logger
}

// Announcement keeps one instance registered: it registers, renews, registers again as soon as
// the registration is lost, and takes it back at the end.
type Announcement struct {
	registry Registry
	instance Instance
	cfg      AnnounceConfig

	known chan struct{} // closed at the first registration
	once  sync.Once

	mu          sync.Mutex // held during requests too: one at a time
	lease       Lease      // nil while not registered
	maintenance bool
	reason      string
	told        bool // the registry knows about the maintenance
}

// NewAnnouncement returns an announcement of the instance. It does nothing until Run runs.
func NewAnnouncement(r Registry, in Instance, cfg AnnounceConfig) (*Announcement, error) {
	if r == nil {
		return nil, errors.New("discovery: registry is nil, want one")
	}
	in.ID = cmp.Or(in.ID, in.Addr)
	if err := in.Validate(); err != nil {
		return nil, err
	}
	if cfg.Every < 0 {
		return nil, fmt.Errorf("discovery: AnnounceConfig.Every is %v, want 0 or more", cfg.Every)
	}
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("discovery: AnnounceConfig.Timeout is %v, want 0 or more", cfg.Timeout)
	}
	if cfg.Every == 0 {
		cfg.Every = time.Second
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	return &Announcement{registry: r, instance: in, cfg: cfg, known: make(chan struct{})}, nil
}

// Run keeps the instance registered until ctx is done, then deregisters it, within
// AnnounceConfig.Timeout. The error is that of the deregistration.
func (a *Announcement) Run(ctx context.Context) error {
	failing := false
	for ctx.Err() == nil {
		lost, err := a.renew(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil && !failing:
			a.log().Warn("instance not registered", "service", a.instance.Service, "instance", a.instance.ID, "error", err)
		case err == nil && failing:
			a.log().Info("instance registered", "service", a.instance.Service, "instance", a.instance.ID)
		}
		failing = err != nil
		if lost {
			continue // and register at once
		}
		select {
		case <-ctx.Done():
		case <-time.After(a.cfg.Every):
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lease == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.Timeout)
	defer cancel()
	if err := a.lease.Deregister(ctx); err != nil {
		return fmt.Errorf("discovery: deregister %s: %w", a.instance.ID, err)
	}
	a.lease = nil
	return nil
}

// Registered is closed when the registry has taken the instance for the first time.
func (a *Announcement) Registered() <-chan struct{} { return a.known }

// Maintenance takes the instance out of the sets that callers see (on), or back in. It is
// remembered over a new registration. The error tells that the registry does not know
// it yet; Run goes on trying.
func (a *Announcement) Maintenance(ctx context.Context, on bool, reason string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.maintenance, a.reason, a.told = on, reason, false
	if a.lease == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	if err := a.lease.Maintenance(ctx, on, reason); err != nil {
		return fmt.Errorf("discovery: maintenance of %s: %w", a.instance.ID, err)
	}
	a.told = true
	return nil
}

// renew makes the registry know the present state. It reports lost when an old
// registration turned out to be lost, so that the next step should not wait.
func (a *Announcement) renew(ctx context.Context) (lost bool, err error) {
	var health Health
	if a.cfg.Health != nil {
		health = a.cfg.Health(ctx)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.lease != nil
	if err := a.report(ctx, health); err != nil {
		if errors.Is(err, ErrLeaseLost) {
			a.lease = nil
			return old, err
		}
		return false, err
	}
	a.once.Do(func() { close(a.known) })
	return false, nil
}

func (a *Announcement) report(ctx context.Context, health Health) error {
	if a.lease == nil {
		// Not interrupted by the end of Run: a registration of which we never heard could not be taken back.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.Timeout)
		defer cancel()
		lease, err := a.registry.Register(ctx, a.instance)
		if err != nil {
			return err
		}
		a.lease, a.told = lease, !a.maintenance
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	if !a.told {
		if err := a.lease.Maintenance(ctx, a.maintenance, a.reason); err != nil {
			return err
		}
		a.told = true
	}
	return a.lease.Renew(ctx, health)
}

func (a *Announcement) log() *slog.Logger { return cmp.Or(a.cfg.Logger, slog.Default()) }
