// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"
)

// Stage is a part of a process that starts and stops in its turn. Name is required, and one of
// the funcs.
type Stage struct {
	// Name appears in errors and logs.
	Name string
	// Start returns when the stage is ready for the next one to start. Nil means at once.
	Start func(context.Context) error
	// Run does the stage's work until its context is done. An error before that ends the
	// whole process; nil is taken for work that is complete. The context is not that of
	// Lifecycle.Run: it ends in the stage's turn.
	Run func(context.Context) error
	// Stop ends the stage's work gracefully. Where there is Run, its context is done after
	// Stop, and its return is waited for.
	Stop func(context.Context) error
	// Announce marks a stage that brings work to the process, such as a registration: it
	// is stopped before the settle time, so that callers go elsewhere while the rest
	// still works.
	Announce bool
	// StartTimeout bounds Start. Zero means 1 minute.
	StartTimeout time.Duration
	// StopTimeout bounds Stop and the return of Run together, with a second more for what
	// gives up when it has passed. Zero means 10 seconds.
	StopTimeout time.Duration
}

// LifecycleConfig configures a [Lifecycle]. The zero LifecycleConfig is a sound default.
type LifecycleConfig struct {
	// Checks become ready when all stages have started, and not ready when the drain
	// begins. It may be nil.
	Checks *Checks
	// Settle is the time between the failure of readiness and the end of intake: load
	// balancers, resolvers and callers need it to notice. Zero means 5 seconds, negative
	// none.
	Settle time.Duration
	// Logger receives the steps. Nil means slog.Default().
	Logger *slog.Logger
}

// Lifecycle starts the stages of a process in order, and drains them.
type Lifecycle struct {
	cfg    LifecycleConfig
	stages []Stage
}

// NewLifecycle returns a lifecycle of the stages, in the order of their start: what others
// need comes first.
func NewLifecycle(cfg LifecycleConfig, stages ...Stage) (*Lifecycle, error) {
	stages = slices.Clone(stages)
	for i := range stages {
		s := &stages[i]
		switch {
		case s.Name == "":
			return nil, fmt.Errorf("health: stages[%d].Name is empty, want a name", i)
		case s.Start == nil && s.Run == nil && s.Stop == nil:
			return nil, fmt.Errorf("health: stage %q has no func, want Start, Run or Stop", s.Name)
		case s.StartTimeout < 0:
			return nil, fmt.Errorf("health: StartTimeout of stage %q is %v, want 0 or more", s.Name, s.StartTimeout)
		case s.StopTimeout < 0:
			return nil, fmt.Errorf("health: StopTimeout of stage %q is %v, want 0 or more", s.Name, s.StopTimeout)
		}
		s.StartTimeout = cmp.Or(s.StartTimeout, time.Minute)
		s.StopTimeout = cmp.Or(s.StopTimeout, 10*time.Second)
	}
	cfg.Settle = max(cmp.Or(cfg.Settle, 5*time.Second), 0)
	if cfg.Checks != nil {
		cfg.Checks.SetReady(fmt.Errorf("%w: starting", ErrNotReady))
	}
	return &Lifecycle{cfg, stages}, nil
}

// started is a stage that has started.
type started struct {
	Stage
	cancel context.CancelFunc
	ended  chan error // of Run; nil without
}

// Run starts the stages, waits until ctx is done or a stage fails, and drains. It returns the
// errors of all stages, joined. If a start fails, or ctx ends before all have started, those that
// have are stopped at once, without the settle time: no work has come yet.
func (l *Lifecycle) Run(ctx context.Context) error {
	var running []*started
	outer := context.WithoutCancel(ctx)
	alive, fail := context.WithCancelCause(ctx) // ends with ctx, and with the failure of a stage
	defer fail(nil)
	for _, s := range l.stages {
		if err := l.start(alive, s); err != nil {
			if alive.Err() != nil {
				err = nil // not the stage's fault; a failure of another comes with its stop
			}
			return errors.Join(err, l.stop(outer, running))
		}
		run := &started{Stage: s, cancel: func() {}}
		if s.Run != nil {
			var inner context.Context
			inner, run.cancel = context.WithCancel(outer)
			run.ended = make(chan error, 1)
			go func() {
				err := s.Run(inner)
				run.ended <- err
				if err != nil {
					fail(err)
				}
			}()
		}
		running = append(running, run)
	}
	l.ready(nil)
	l.log().Info("started", "stages", len(running))
	<-alive.Done()
	if ctx.Err() != nil {
		l.log().Info("draining", "settle", l.cfg.Settle)
	} else {
		l.log().Error("draining after a failure", "settle", l.cfg.Settle, "error", context.Cause(alive))
	}

	l.ready(fmt.Errorf("%w: draining", ErrNotReady))
	var announcing, others []*started
	for _, run := range running {
		if run.Announce {
			announcing = append(announcing, run)
		} else {
			others = append(others, run)
		}
	}
	err := l.stop(outer, announcing)
	time.Sleep(l.cfg.Settle)
	return errors.Join(err, l.stop(outer, others))
}

func (l *Lifecycle) start(ctx context.Context, s Stage) error {
	if s.Start == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, s.StartTimeout)
	defer cancel()
	if err := s.Start(ctx); err != nil {
		return fmt.Errorf("health: start %s: %w", s.Name, err)
	}
	return nil
}

// stop stops the stages in reverse order.
func (l *Lifecycle) stop(ctx context.Context, stages []*started) error {
	var errs []error
	for _, s := range slices.Backward(stages) {
		start := time.Now()
		err := s.stop(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("health: stop %s: %w", s.Name, err))
			l.log().Error("stage not stopped", "stage", s.Name, "took", time.Since(start), "error", err)
		} else {
			l.log().Info("stage stopped", "stage", s.Name, "took", time.Since(start))
		}
	}
	return errors.Join(errs...)
}

// stop stops the stage: Stop, then the end of Run's context, then Run's return.
func (s *started) stop(ctx context.Context) error {
	defer s.cancel()
	ctx, cancel := context.WithTimeout(ctx, s.StopTimeout)
	defer cancel()
	late := time.NewTimer(s.StopTimeout + time.Second)
	defer late.Stop()
	stopped := make(chan error, 1)
	go func() {
		var err error
		if s.Stop != nil {
			err = s.Stop(ctx)
		}
		s.cancel()
		if s.ended != nil {
			err = errors.Join(err, <-s.ended)
		}
		stopped <- err
	}()
	context.AfterFunc(ctx, s.cancel) // a Run whose Stop hangs has to end nevertheless
	select {
	case err := <-stopped:
		return err
	case <-late.C:
		return fmt.Errorf("still going after %v", s.StopTimeout)
	}
}

func (l *Lifecycle) ready(reason error) {
	if l.cfg.Checks != nil {
		l.cfg.Checks.SetReady(reason)
	}
}

func (l *Lifecycle) log() *slog.Logger { return cmp.Or(l.cfg.Logger, slog.Default()) }

// Server is the stage of an HTTP server: it takes no more connections, finishes what is under way, and
// closes what is not finished by its StopTimeout, which is an error.
func Server(name string, server *http.Server, listener net.Listener) Stage {
	return Stage{
		Name: name,
		Run: func(context.Context) error {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
		Stop: func(ctx context.Context) error {
			err := server.Shutdown(ctx)
			if err != nil {
				err = errors.Join(err, server.Close())
			}
			return err
		},
	}
}
