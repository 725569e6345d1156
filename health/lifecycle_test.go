// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package health_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/health"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// diary notes what happens, and when.
type diary struct {
	mu    sync.Mutex
	start time.Time
	lines []string
}

func (d *diary) note(what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf("%v %s", time.Since(d.start).Round(time.Second), what))
}

func (d *diary) want(t *testing.T, want ...string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.lines, want) {
		t.Errorf("what happened:\n\t%s\nwant:\n\t%s", strings.Join(d.lines, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// stage notes its start, its run and its stop, each of which takes a second.
func (d *diary) stage(name string) health.Stage {
	second := func(what string) func(context.Context) error {
		return func(context.Context) error {
			d.note(what + " " + name)
			time.Sleep(time.Second)
			return nil
		}
	}
	return health.Stage{
		Name: name, Start: second("start"), Stop: second("stop"),
		Run: func(ctx context.Context) error {
			<-ctx.Done()
			d.note("end " + name)
			return nil
		},
	}
}

func TestLifecycle(t *testing.T) {
	t.Parallel()
	bubble := func(name string, fn func(t *testing.T, d *diary)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { fn(t, &diary{start: time.Now()}) })
		})
	}
	newLifecycle := func(t *testing.T, cfg health.LifecycleConfig, stages ...health.Stage) *health.Lifecycle {
		t.Helper()
		cfg.Logger = quiet
		l, err := health.NewLifecycle(cfg, stages...)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	bubble("stages start in order; readiness, announcement, settle time, and the rest in reverse", func(t *testing.T, d *diary) {
		checks := newChecks(t, health.Config{})
		ready := func() string {
			if _, err := checks.Ready(t.Context()); err != nil {
				return err.Error()
			}
			return "ready"
		}
		registration := d.stage("registration")
		registration.Announce = true
		l := newLifecycle(t, health.LifecycleConfig{Checks: checks}, d.stage("database"), registration, d.stage("http"))
		if got := ready(); got != "health: not ready: starting" {
			t.Errorf("before the start: %s, want starting", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Second, func() {
			d.note(ready())
			cancel()
			synctest.Wait()
			d.note(ready())
		})
		if err := l.Run(ctx); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		d.want(t, "0s start database", "1s start registration", "2s start http", "10s ready",
			"10s stop registration", "10s health: not ready: draining", "11s end registration",
			"16s stop http", "17s end http", "17s stop database", "18s end database")
	})
	bubble("a stage that fails ends the process, and its error is Run's", func(t *testing.T, d *diary) {
		broken := health.Stage{Name: "broken", Run: func(context.Context) error {
			time.Sleep(time.Minute)
			return errAway
		}}
		err := newLifecycle(t, health.LifecycleConfig{Settle: -1}, d.stage("database"), broken).Run(t.Context())
		if !errors.Is(err, errAway) || !strings.Contains(err.Error(), "broken") {
			t.Errorf("Run = %v, want %v with the stage's name", err, errAway)
		}
		d.want(t, "0s start database", "1m1s stop database", "1m2s end database")
	})
	bubble("work that is complete ends nothing", func(t *testing.T, d *diary) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		done := health.Stage{Name: "warm-up", Run: func(context.Context) error { return nil }}
		if err := newLifecycle(t, health.LifecycleConfig{}, done).Run(ctx); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		if got := time.Since(d.start); got < time.Hour {
			t.Errorf("ended after %v, want an hour", got)
		}
	})
	bubble("after a failed start only those that had started are stopped, at once", func(t *testing.T, d *diary) {
		broken := health.Stage{Name: "broken", Start: func(context.Context) error { return errAway }}
		err := newLifecycle(t, health.LifecycleConfig{}, d.stage("database"), broken, d.stage("http")).Run(t.Context())
		if !errors.Is(err, errAway) || !strings.Contains(err.Error(), "start broken") {
			t.Errorf("Run = %v, want %v with the stage's name", err, errAway)
		}
		d.want(t, "0s start database", "1s stop database", "2s end database")
	})
	bubble("a start that takes too long fails", func(t *testing.T, _ *diary) {
		slow := health.Stage{Name: "slow", Start: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, StartTimeout: time.Second}
		if err := newLifecycle(t, health.LifecycleConfig{}, slow).Run(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Run = %v, want %v", err, context.DeadlineExceeded)
		}
	})
	bubble("the end of the context during the start is no error", func(t *testing.T, d *diary) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if err := newLifecycle(t, health.LifecycleConfig{}, d.stage("database"), d.stage("http")).Run(ctx); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		d.want(t, "0s start database", "1s stop database", "2s end database")
	})
	bubble("a failure during the start of others ends the start", func(t *testing.T, d *diary) {
		broken := health.Stage{Name: "broken", Run: func(context.Context) error { return errAway }}
		slow := health.Stage{Name: "slow", Start: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		if err := newLifecycle(t, health.LifecycleConfig{}, broken, slow).Run(t.Context()); !errors.Is(err, errAway) {
			t.Errorf("Run = %v, want %v", err, errAway)
		}
		if got := time.Since(d.start); got != 0 {
			t.Errorf("ended after %v, want at once", got)
		}
	})
	bubble("a stage that does not stop does not keep the others from stopping", func(t *testing.T, d *diary) {
		release := make(chan struct{})
		hangs := health.Stage{Name: "hangs", StopTimeout: 3 * time.Second, Stop: func(context.Context) error { <-release; return nil }}
		fails := health.Stage{Name: "fails", Stop: func(context.Context) error { return errAway }}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		l := newLifecycle(t, health.LifecycleConfig{Settle: -1}, fails, hangs)
		if err := l.Run(ctx); err != nil {
			t.Errorf("Run = %v, want nil: nothing had started", err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := l.Run(ctx)
		if !errors.Is(err, errAway) || !strings.Contains(err.Error(), "stop hangs: still going after 3s") {
			t.Errorf("Run = %v, want both errors", err)
		}
		if got := time.Since(d.start); got != 5*time.Second {
			t.Errorf("ended after %v, want 5s: one of work, three and one more of waiting", got)
		}
		close(release)
	})
	bubble("a Run whose Stop hangs is ended nevertheless", func(t *testing.T, d *diary) {
		release := make(chan struct{})
		stage := health.Stage{
			Name: "x", StopTimeout: 3 * time.Second,
			Stop: func(context.Context) error { <-release; return nil },
			Run:  func(ctx context.Context) error { <-ctx.Done(); d.note("end"); return nil },
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := newLifecycle(t, health.LifecycleConfig{Settle: -1}, stage).Run(ctx); err == nil || !strings.Contains(err.Error(), "still going") {
			t.Errorf("Run = %v, want the stage that still goes", err)
		}
		d.want(t, "4s end")
		close(release)
	})
	t.Run("wrong stages are refused", func(t *testing.T) {
		nop := func(context.Context) error { return nil }
		for want, stage := range map[string]health.Stage{
			"health: stages[0].Name is empty":              {Stop: nop},
			`health: stage "x" has no func`:                {Name: "x"},
			`health: StartTimeout of stage "x" is -1ns`:    {Name: "x", Stop: nop, StartTimeout: -1},
			`health: StopTimeout of stage "x" is -1ns, wa`: {Name: "x", Stop: nop, StopTimeout: -1},
		} {
			if _, err := health.NewLifecycle(health.LifecycleConfig{}, stage); err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("NewLifecycle = %v, want %s…", err, want)
			}
		}
	})
}

func TestServer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	entered, release := make(chan struct{}), make(chan struct{})
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "finished")
	})}
	l, err := health.NewLifecycle(health.LifecycleConfig{Settle: -1, Logger: quiet}, health.Server("http", server, listener))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- l.Run(ctx) }()
	answer := make(chan string)
	go func() {
		resp, err := http.Get("http://" + listener.Addr().String())
		if err != nil {
			answer <- err.Error()
			return
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		answer <- string(body)
	}()
	<-entered
	cancel()
	close(release)
	if got := <-answer; got != "finished" {
		t.Errorf("answer = %q, want the request under way to finish", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	if conn, err := net.Dial("tcp", listener.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("the server takes connections after the end of Run")
	}
}

func ExampleLifecycle() {
	say := func(what string) func(context.Context) error {
		return func(context.Context) error { fmt.Println(what); return nil }
	}
	checks, err := health.New(health.Config{})
	if err != nil {
		panic(err)
	}
	process, err := health.NewLifecycle(health.LifecycleConfig{Checks: checks, Settle: time.Millisecond, Logger: quiet},
		health.Stage{Name: "database", Start: say("open the database"), Stop: say("close the database")},
		health.Stage{Name: "http", Start: say("listen"), Stop: say("finish requests")},
		health.Stage{Name: "registration", Start: say("register"), Stop: say("deregister"), Announce: true},
	)
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background()) // signal.NotifyContext in a program
	time.AfterFunc(20*time.Millisecond, stop)
	fmt.Println(process.Run(ctx))
	// Output:
	// open the database
	// listen
	// register
	// deregister
	// finish requests
	// close the database
	// <nil>
}
