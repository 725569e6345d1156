// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
)

// link passes connections on to a server until it is cut, and again after it has been mended.
type link struct {
	net.Listener
	cut  atomic.Bool
	mu   sync.Mutex
	open []net.Conn
}

func linkTo(t *testing.T, server string) *link {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{Listener: ln}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { l.pass(in, server) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		l.sever()
		all.Wait()
	})
	return l
}

func (l *link) pass(in net.Conn, server string) {
	defer func() { _ = in.Close() }()
	out, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", server)
	if err != nil {
		return
	}
	defer func() { _ = out.Close() }()
	l.mu.Lock()
	l.open = append(l.open, in, out)
	gone := l.cut.Load()
	l.mu.Unlock()
	if gone {
		return
	}
	go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
	_, _ = io.Copy(in, out)
}

// sever ends all connections, and those that follow.
func (l *link) sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut.Store(true)
	for _, c := range l.open {
		_ = c.Close()
	}
	l.open = nil
}

// TestWithoutTheAgentsLook runs a service beside a Consul that does not look at it, as one in a container: the registry hears
// from the service itself that its database is gone, and lets go of it when it dies.
func TestWithoutTheAgentsLook(t *testing.T) {
	t.Parallel()
	settings := stackSettings(t)
	settings[stack.PublicURLVar], settings[stack.ConsulLooksVar] = "http://shop.example", "off"
	at, err := url.Parse(settings[stack.PostgresVar])
	if err != nil {
		t.Fatal(err)
	}
	database := linkTo(t, at.Host)
	at.Host = database.Addr().String()
	cmd := exec.CommandContext(t.Context(), buildShop(t), "run", "provider", "--instance", "provider-1")
	for name, value := range settings {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Env = append(cmd.Env, stack.PostgresVar+"="+at.String())
	out := tells(t, cmd)
	dead := sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	t.Cleanup(dead)
	var said stack.Instance
	if err := out.Decode(&said); err != nil {
		t.Fatal(err)
	}
	consul, err := consulapi.NewClient(&consulapi.Config{Address: settings[stack.ConsulVar]})
	if err != nil {
		t.Fatal(err)
	}
	name := settings[stack.NameVar] + "-provider"
	t.Cleanup(func() { // which an agent does by itself after ten minutes
		_ = consul.Agent().ServiceDeregister(name + ":" + settings[stack.NameVar] + "-provider-1")
	})
	// seen waits until the instance is found by others, or is not, and its only check says why.
	seen := func(want bool, why string) {
		t.Helper()
		eventuallyWithin(t, atLast, func() error {
			passing, _, err := consul.Health().Service(name, "", true, nil)
			if err != nil {
				return err
			}
			checks, _, err := consul.Health().Checks(name, nil)
			if err != nil {
				return err
			}
			if len(checks) != 1 || (len(passing) == 1) != want || !strings.Contains(checks[0].Output, why) {
				return fmt.Errorf("%d instances pass, checks %+v; want it found: %v (%s)", len(passing), checks, want, why)
			}
			return nil
		})
	}
	seen(true, "")
	database.sever()
	seen(false, "the database does not answer")
	database.cut.Store(false)
	seen(true, "")
	dead()
	seen(false, "TTL expired")
}
