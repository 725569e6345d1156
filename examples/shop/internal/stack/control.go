// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
	"github.com/dovetail-go/dovetail/examples/shop/internal/check"
	loadgen "github.com/dovetail-go/dovetail/examples/shop/internal/load"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// What Up tells the gateways of: where they find who runs the shop as a whole, and the secret that
// opens it.
const (
	controlURLVar   = "SHOP_CONTROL_URL"
	controlTokenVar = "SHOP_CONTROL_TOKEN"
)

// control serves the desk on loopback, for our own gateways only, until the returned function is called.
func (u *up) control(ctx context.Context, settings Settings) (stop func(), err error) {
	u.desk.Control = chaos.New(processes{u})
	u.desk.Invariants = check.NewWatch(settings.Look, u.desk.Control.Quiet, func(ctx context.Context) bool { return u.late(ctx, settings) })
	if u.desk.Load, err = loadgen.NewGenerator(u.local, u.Log); err != nil {
		return nil, err
	}
	u.desk.Load.UseTLS(settings.ownGateway())
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	u.controlURL, u.controlToken = "http://"+ln.Addr().String(), rand.Text()+rand.Text()
	server := &http.Server{Handler: onlyWith(u.controlToken, u.desk.Handler()), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(ln) }() // until Close
	return func() { _ = server.Close() }, nil
}

// late reports whether messages wait for anybody, or nobody can tell. What one of our gateways has last seen is a few
// seconds old; the Watch looks several times before it takes something for lost.
func (u *up) late(ctx context.Context, settings Settings) bool {
	caller := settings.toGateway()
	defer caller.Client.CloseIdleConnections()
	var seen struct {
		Groups []struct {
			Known  bool
			Behind int64
		}
	}
	if err := caller.Do(ctx, http.MethodGet, u.local+"/ops/api/traffic", nil, nil, &seen); err != nil || len(seen.Groups) == 0 {
		return true
	}
	for _, g := range seen.Groups {
		if !g.Known || g.Behind > 0 {
			return true
		}
	}
	return false
}

// onlyWith lets those in who know the token.
func onlyWith(token string, next http.Handler) http.Handler {
	want := []byte("Bearer " + token)
	return platform.Handle(func(w http.ResponseWriter, r *http.Request) error {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), want) != 1 {
			return &platform.Error{Status: http.StatusUnauthorized, Code: "bad-token", Detail: "this is for the shop's own gateways"}
		}
		next.ServeHTTP(w, r)
		return nil
	})
}

// controlled is the gateway's way to the control of the stack that it belongs to. Nil if it belongs to none.
func (s Settings) controlled() (http.Handler, error) {
	if s.ControlURL == "" {
		return nil, nil
	}
	to, err := url.Parse(s.ControlURL)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", controlURLVar, err)
	}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Header.Set("Authorization", "Bearer "+s.ControlToken)
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			platform.WriteProblem(w, &platform.Error{Status: http.StatusServiceUnavailable, Code: "unavailable", Detail: "who runs the shop does not answer", RetryAfter: time.Second, Err: err})
		},
	}, nil
}

// processes are the world that faults happen to.
type processes struct{ up *up }

// Services implements [chaos.World].
func (processes) Services() []string {
	return append(slices.Clone(assembly.Backends), assembly.Gateway)
}

// Instances implements [chaos.World].
func (p processes) Instances() []string {
	u := p.up
	u.mu.Lock()
	defer u.mu.Unlock()
	names := make([]string, 0, len(u.states))
	for name := range u.states {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Suffer implements [chaos.World]: pauses and kills are signals to the processes, what else there is they do to
// themselves when they are told.
func (p processes) Suffer(faults []chaos.Fault) {
	u := p.up
	u.mu.Lock()
	defer u.mu.Unlock()
	for name, s := range u.states {
		harm, dead := chaos.Harm(faults, s.Service, name)
		if harm == s.harm && dead == s.dead {
			continue
		}
		s.harm, s.dead = harm, dead
		close(s.changed)
		s.changed = make(chan struct{})
		u.obey(s)
	}
}

// obey makes the process of an instance what it is to be. Up is locked.
func (u *up) obey(s *state) {
	if s.process == nil {
		return
	}
	var err error
	switch {
	case s.dead:
		s.killed = true
		err = s.process.Kill()
	case s.harm.Paused != s.stopped:
		s.stopped = s.harm.Paused
		err = signalStop(s.process, s.stopped)
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		u.Log.Warn("a fault did not come about", "instance", s.Instance.Instance, "error", err)
	}
}

// started notes the process that an instance now is, which must be as it is to be from the beginning.
func (u *up) started(name string, p *os.Process) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.states[name]
	s.process, s.stopped, s.killed = p, false, false
	u.obey(s)
}

// ended notes that an instance has no process, and reports whether it was killed on purpose.
func (u *up) ended(name string) (killed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.states[name]
	s.process = nil
	return s.killed
}

// mayLive waits until an instance may be started. It returns false if ctx ends first.
func (u *up) mayLive(ctx context.Context, name string) bool {
	for {
		u.mu.Lock()
		dead, changed := u.states[name].dead, u.states[name].changed
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

// tell keeps a process informed of what it is to do to itself until ctx ends or it listens no more.
func (u *up) tell(ctx context.Context, name string, w io.Writer) {
	out := json.NewEncoder(w)
	var told platform.Harm
	for {
		u.mu.Lock()
		harm, changed := u.states[name].harm, u.states[name].changed
		u.mu.Unlock()
		harm.Paused = false // which is done to it
		if harm != told && out.Encode(harm) != nil {
			return
		}
		told = harm
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Obey does to the gate what Up says on standard input, and returns when that ends: whoever started this process
// is gone.
func Obey(in io.Reader, gate *platform.Gate) error {
	for lines := bufio.NewScanner(in); ; {
		if !lines.Scan() {
			return lines.Err()
		}
		var harm platform.Harm
		if err := json.Unmarshal(lines.Bytes(), &harm); err != nil {
			return errors.Join(errors.New("standard input: want a line of JSON for each change"), err)
		}
		gate.Set(harm)
	}
}
