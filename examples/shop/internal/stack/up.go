// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// UpConfig says what to run.
type UpConfig struct {
	// Listen is the address of the gateway. Port 0 takes a free one.
	Listen string
	// Instances is how many of a service, by name. A service that is not named has one.
	Instances map[string]int
	// Getenv reads the settings. PublicURLVar may be missing: it is then where the gateway listens.
	Getenv func(name string) string
	// Binary is the program that has the run command. Empty means this one.
	Binary string
	// Env is what the processes find in their environment beside the settings. Nil means what this
	// process has.
	Env []string
	// Output receives what the processes write to standard error. Nil means this process's.
	Output io.Writer
	// Log is nil for slog.Default().
	Log *slog.Logger
	// Started, if not nil, is called each time a process has started and says where it listens, with how many of all were
	// up at some time.
	Started func(i Instance, up, all int)
	// Ended, if not nil, is called each time a process has ended by itself, with why, and how long it will be until it is
	// started again. The instance is the one that was started, without an address if it never was up.
	Ended func(i Instance, err error, again time.Duration)
	// Ready, if not nil, is called with the shop's URL once every service answers.
	Ready func(url string)
}

// Instance is one process of the stack.
type Instance struct {
	Service  string `json:"service"`
	Instance string `json:"instance"`
	Addr     string `json:"addr"`
	PID      int    `json:"pid"`
}

const (
	// shortestPause and longestPause bound the growing pause before a process that died is started again;
	// one that lived for restartAfter begins with the shortest.
	shortestPause, longestPause = 200 * time.Millisecond, 10 * time.Second
	restartAfter                = 20 * time.Second
	// firstTries is how often a process may end before it was up for once.
	firstTries = 5
	// killAfter is how long a process may take to drain.
	killAfter = 45 * time.Second
)

// Up runs the stack until ctx ends: one process per service, or several, started again when they die.
// Then it drains them, the gateway first.
//
// All gateways accept from one listener, which is Up's own: a gateway that is started again refuses
// nobody. Each has an address of its own beside it, by which its metrics and its health are known.
func Up(ctx context.Context, cfg UpConfig) error {
	u := &up{UpConfig: cfg, states: map[string]*state{}}
	if u.Log == nil {
		u.Log = slog.Default()
	}
	if u.Output == nil {
		u.Output = os.Stderr
	}
	if u.Env == nil {
		u.Env = os.Environ()
	}
	if err := CheckInstances(cfg.Instances); err != nil {
		return err
	}
	if u.Binary == "" {
		var err error
		if u.Binary, err = os.Executable(); err != nil {
			return err
		}
	}
	front, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer func() { _ = front.Close() }()
	if u.front, err = front.(*net.TCPListener).File(); err != nil {
		return err
	}
	defer func() { _ = u.front.Close() }()
	addr := *front.Addr().(*net.TCPAddr)
	if addr.IP.IsUnspecified() {
		addr.IP = net.IPv4(127, 0, 0, 1) // from here it can be reached there
	}
	u.local = "http://" + addr.String()
	if cfg.Getenv(PublicTLSCertVar) != "" {
		u.local = "https://" + addr.String()
	}
	u.url = cfg.Getenv(PublicURLVar)
	if u.url == "" {
		u.url = u.local
	}
	settings, err := u.settings()
	if err != nil {
		return err
	}
	return u.run(ctx, settings)
}

// CheckService refuses the name of what is no service.
func CheckService(name string) error {
	if !slices.Contains(services(), name) {
		return fmt.Errorf("there is no service %q, want one of %s", name, strings.Join(services(), ", "))
	}
	return nil
}

// CheckInstances refuses numbers of processes that Up cannot start.
func CheckInstances(instances map[string]int) error {
	for service, n := range instances {
		if err := CheckService(service); err != nil {
			return fmt.Errorf("instances: %w", err)
		}
		if n < 1 || n > 20 {
			return fmt.Errorf("instances: %s=%d, want 1 to 20", service, n)
		}
	}
	return nil
}

// services are all of them, the gateway last.
func services() []string { return append(slices.Clone(assembly.Backends), assembly.Gateway) }

type up struct {
	UpConfig
	url   string   // as people see it
	local string   // as we do
	front *os.File // the gateway's listener
	desk  chaos.Desk

	controlURL, controlToken string

	mu     sync.Mutex
	states map[string]*state // by instance
}

// state is what is known of one instance: the process that it is now.
type state struct {
	Instance
	wasUp   bool
	process *os.Process // nil between two of them

	harm    platform.Harm
	dead    bool          // it must not run at present
	changed chan struct{} // closed when harm or dead changes
	stopped bool          // the process is, by us
	killed  bool          // the process was, by us
}

func (u *up) getenv(name string) string {
	switch name {
	case PublicURLVar:
		return u.url
	case controlURLVar:
		return u.controlURL
	case controlTokenVar:
		return u.controlToken
	}
	return u.Getenv(name)
}

// settings checks those of every service before anything is started.
func (u *up) settings() (Settings, error) {
	s, wrong := everything(u.getenv)
	return s, errors.Join(wrong...)
}

// run keeps all processes running. The services outlive the gateway, so that what it accepted can
// still be answered.
func (u *up) run(ctx context.Context, settings Settings) error {
	stopControl, err := u.control(ctx, settings)
	if err != nil {
		return err
	}
	defer stopControl()
	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	// What is stopped or cut off could not drain.
	cut := context.AfterFunc(running, u.desk.Control.Close)
	defer cut()
	var driving sync.WaitGroup
	driving.Go(func() { _ = u.desk.Load.Run(running) }) // it fails only if it is run twice
	defer driving.Wait()
	behind, stopBehind := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBehind()
	var gateways, others errgroup.Group
	for _, service := range services() {
		for i := range max(u.Instances[service], 1) {
			group, life := &others, behind
			if service == assembly.Gateway {
				group, life = &gateways, running
			}
			name := fmt.Sprintf("%s-%d", service, i+1)
			u.mu.Lock()
			u.states[name] = &state{Instance: Instance{Service: service, Instance: name}, changed: make(chan struct{})}
			u.mu.Unlock()
			group.Go(func() error {
				err := u.keep(life, service, name)
				if err != nil {
					fail(err)
				}
				return err
			})
		}
	}
	if err := u.await(running, settings); err == nil && u.Ready != nil {
		u.Ready(u.url)
	}
	<-running.Done()
	err = gateways.Wait()
	stopBehind()
	err = errors.Join(err, others.Wait())
	if ctx.Err() == nil {
		return errors.Join(context.Cause(running), err)
	}
	return err
}

// keep runs one instance again and again until ctx ends.
func (u *up) keep(ctx context.Context, service, name string) error {
	pause, tries := shortestPause, 0
	for {
		if !u.mayLive(ctx, name) {
			return nil
		}
		began := time.Now()
		err := u.process(ctx, service, name)
		killed := u.ended(name)
		select {
		case <-ctx.Done(): // it was told to end
			if err != nil && !errors.Is(err, context.Canceled) { // which is how a good end is told
				u.Log.Warn("a process did not drain well", "instance", name, "error", err)
			}
			return nil
		default:
		}
		if killed {
			u.Log.Warn("a process was killed on purpose", "instance", name)
			continue
		}
		u.mu.Lock()
		was, wasUp := u.states[name].Instance, u.states[name].wasUp
		u.mu.Unlock()
		if tries++; !wasUp && tries >= firstTries {
			return fmt.Errorf("%s does not start: %w", name, err)
		}
		if time.Since(began) > restartAfter {
			pause = shortestPause
		}
		u.Log.Warn("a process ended and is started again", "instance", name, "error", err, "in", pause)
		if u.Ended != nil {
			u.Ended(was, err, pause)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, longestPause)
	}
}

// process runs one instance once. When ctx ends it is told to drain, and killed if that
// takes too long.
func (u *up) process(ctx context.Context, service, name string) error {
	args := []string{"run", service, "--instance", name, "--supervised"}
	cmd := exec.CommandContext(ctx, u.Binary, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = killAfter
	cmd.Env = u.Env
	for _, v := range variables {
		if value := u.getenv(v.name); value != "" && (v.name != controlTokenVar || service == assembly.Gateway) {
			cmd.Env = append(slices.Clip(cmd.Env), v.name+"="+value)
		}
	}
	cmd.Stderr = u.Output
	cmd.SysProcAttr = ownGroup() // Ctrl-C is for us: we decide who stops when
	if service == assembly.Gateway {
		cmd.Args = append(cmd.Args, "--listen", inheritedListener)
		cmd.ExtraFiles = []*os.File{u.front}
	}
	// A process whose standard input ends knows that we are gone.
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	u.started(name, cmd.Process)
	told, enough := context.WithCancel(context.Background())
	var telling sync.WaitGroup
	telling.Go(func() { u.tell(told, name, in) })
	defer telling.Wait()
	defer enough()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var said Instance
		if json.Unmarshal(lines.Bytes(), &said) != nil || said.Instance != name {
			continue
		}
		u.mu.Lock()
		u.states[name].Instance, u.states[name].wasUp = said, true
		up, all := 0, len(u.states)
		for _, s := range u.states {
			if s.wasUp {
				up++
			}
		}
		u.mu.Unlock()
		if u.Started != nil {
			u.Started(said, up, all)
		}
	}
	return cmd.Wait()
}

// await returns when every service answers through the gateway.
func (u *up) await(ctx context.Context, settings Settings) error {
	caller := settings.toGateway()
	defer caller.Client.CloseIdleConnections()
	for {
		if u.allUp() {
			var services struct {
				Items []struct {
					Service string
					Ready   bool
				}
			}
			err := caller.Do(ctx, http.MethodGet, u.local+"/ops/api/services", nil, nil, &services)
			ready := err == nil && len(services.Items) > 0
			for _, s := range services.Items {
				ready = ready && s.Ready
			}
			if ready {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// toGateway returns what asks the gateway of one's own stack.
func (s Settings) toGateway() *platform.Caller {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: s.ownGateway()}}
	return &platform.Caller{Client: client, Token: s.ServiceToken}
}

func (u *up) allUp() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range u.states {
		if !s.wasUp {
			return false
		}
	}
	return true
}

// inheritedListener, as an address to listen on, is the listener that Up has passed on.
const inheritedListener = "inherited"

// Listen returns the listener at addr. For the one that Up has passed on, which others accept from too, it is one of
// 127.0.0.1 at which this process alone is reached, and shared is the other.
func Listen(ctx context.Context, addr string) (own, shared net.Listener, err error) {
	if addr == inheritedListener {
		f := os.NewFile(3, "listener")
		defer func() { _ = f.Close() }()
		if shared, err = net.FileListener(f); err != nil {
			return nil, nil, err
		}
		addr = "127.0.0.1:0"
	}
	if own, err = (&net.ListenConfig{}).Listen(ctx, "tcp", addr); err != nil && shared != nil {
		_ = shared.Close()
	}
	return own, shared, err
}
