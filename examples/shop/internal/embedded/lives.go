// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// unit is one service, through all its lives: it begins a new one on the same database whenever it was
// killed on purpose.
type unit struct {
	name string
	addr string   // where it listens in all its lives
	file *os.File // the listener that all lives accept from; nil if each has its own at addr
	// telemetry is that of all its lives.
	telemetry *platform.Telemetry

	// Of the present life; used by the unit's own goroutine.
	env      platform.Env
	service  platform.Service
	listener net.Listener
	closers  []func() error

	mu      sync.Mutex
	bus     *platform.Bus // who keeps its dead letters; nil for one that hears nothing
	gate    *platform.Gate
	harm    platform.Harm
	dead    bool
	changed chan struct{} // closed when dead changes
}

func newUnit(name string) *unit {
	return &unit{name: name, addr: "127.0.0.1:0", changed: make(chan struct{})}
}

// suffer is told what is done to the service from now on.
func (u *unit) suffer(h platform.Harm, dead bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.harm = h
	if u.dead != dead {
		u.dead = dead
		close(u.changed)
		u.changed = make(chan struct{})
	}
	u.obey()
}

// obey makes the present gate what it is to be. The unit is locked.
func (u *unit) obey() {
	if u.gate == nil {
		return
	}
	u.gate.Set(u.harm)
	if u.dead {
		u.gate.Kill()
	}
}

// newGate begins a life.
func (u *unit) newGate() *platform.Gate {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.gate = platform.NewGate()
	u.obey()
	return u.gate
}

// resurrected waits until the service may live. It returns false if ctx ends first.
func (u *unit) resurrected(ctx context.Context) bool {
	for {
		u.mu.Lock()
		dead, changed := u.dead, u.changed
		u.mu.Unlock()
		if !dead {
			return ctx.Err() == nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err() == nil
		}
	}
}

// bury closes what the present life leaves behind.
func (u *unit) bury() error {
	var errs []error
	if u.listener != nil {
		_ = u.listener.Close() // one that was served is closed already
	}
	for i := len(u.closers) - 1; i >= 0; i-- {
		errs = append(errs, u.closers[i]())
	}
	u.listener, u.closers = nil, nil
	return errors.Join(errs...)
}

// begin builds the service on its database and its listener.
func (s *shop) begin(ctx context.Context, u *unit) (err error) {
	concurrent := callsAtOnce
	if u.name == assembly.Gateway {
		concurrent = 0 // what it passes on is bounded where it arrives
	}
	env, err := s.env(u, concurrent)
	if err != nil {
		return err
	}
	if u.name == assembly.Gateway {
		env.Control, env.Certificates = s.desk.Handler(), s.front
	} else if err := u.openDatabases(&env, s.data); err != nil {
		return err
	}
	service, err := assembly.New(ctx, env, s.assembly)
	if err != nil {
		return err
	}
	if err := assembly.Verify(u.name, service.Consumers()); err != nil {
		return err
	}
	if u.listener, err = u.listen(ctx); err != nil {
		return err
	}
	u.env, u.service = env, service
	if speaker, ok := service.(interface{ Bus() *platform.Bus }); ok {
		u.mu.Lock()
		u.bus = speaker.Bus()
		u.mu.Unlock()
	}
	return s.resolver.Set(u.name, discovery.Instance{ID: u.name + "-1", Service: u.name, Addr: u.addr})
}

func (u *unit) openDatabases(env *platform.Env, data string) (err error) {
	path := filepath.Join(data, u.name+".db")
	if env.DB, err = platform.OpenSQLiteBehind(path, env.Gate); err != nil {
		return err
	}
	u.closers = append(u.closers, env.DB.Close)
	if u.name != "catalog" {
		return nil
	}
	// Its readers need not queue for the one connection that writes.
	if env.Replica, err = platform.OpenSQLiteReadOnlyBehind(path, env.Gate); err != nil {
		return err
	}
	env.Replica.SetMaxOpenConns(4)
	u.closers = append(u.closers, env.Replica.Close)
	return nil
}

// listen returns the listener of a new life, at the address of the first one.
func (u *unit) listen(ctx context.Context) (net.Listener, error) {
	if u.file != nil {
		return net.FileListener(u.file)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", u.addr)
	if err == nil {
		u.addr = ln.Addr().String()
	}
	return ln, err
}

// again is how long the shop waits before it tries once more to bring a service back.
const again = 500 * time.Millisecond

// live serves a unit until ctx ends, one life after the other.
func (s *shop) live(ctx context.Context, u *unit) error {
	for {
		err := platform.Serve(ctx, u.env, u.service, u.listener)
		if !errors.Is(err, platform.ErrKilled) {
			return err
		}
		s.log.Warn("a service was killed on purpose", "service", u.name)
		if err := u.bury(); err != nil {
			s.log.Warn("a dead service was not buried well", "service", u.name, "error", err)
		}
		for {
			if !u.resurrected(ctx) {
				return nil
			}
			err := s.begin(ctx, u)
			if err == nil {
				break
			}
			err = errors.Join(err, u.bury())
			s.log.Warn("a service does not come back yet", "service", u.name, "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(again):
			}
		}
		s.log.Info("a service that was killed is back", "service", u.name)
	}
}

// Services implements [chaos.World].
func (s *shop) Services() []string {
	names := make([]string, len(s.units))
	for i, u := range s.units {
		names[i] = u.name
	}
	return names
}

// Instances implements [chaos.World].
func (s *shop) Instances() []string {
	names := s.Services()
	for i := range names {
		names[i] += "-1"
	}
	return names
}

// Suffer implements [chaos.World].
func (s *shop) Suffer(faults []chaos.Fault) {
	for _, u := range s.units {
		u.suffer(chaos.Harm(faults, u.name, u.name+"-1"))
	}
}

// busOf returns who keeps the dead letters of a service.
func (s *shop) busOf(service string) (*platform.Bus, error) {
	for _, u := range s.units {
		if u.name != service {
			continue
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.bus != nil {
			return u.bus, nil
		}
	}
	return nil, fmt.Errorf("no service keeps the dead letters of %q", service)
}
