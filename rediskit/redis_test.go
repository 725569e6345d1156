// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rediskit_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dovetail-go/dovetail/rediskit"
)

// client returns a client of the server that DOVETAIL_REDIS_URL names, and a configuration that
// keeps this test's keys apart.
func client(t *testing.T) (*redis.Client, rediskit.Config) {
	t.Helper()
	url := os.Getenv("DOVETAIL_REDIS_URL")
	if url == "" {
		missing(t, "DOVETAIL_REDIS_URL is not set")
	}
	opts, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(opts)
	t.Cleanup(func() { _ = c.Close() })
	return c, rediskit.Config{Prefix: fmt.Sprintf("%s-%d", strings.ToLower(t.Name()), time.Now().UnixNano())}
}

// missing skips a test for want of a server, unless there must be one.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("DOVETAIL_REQUIRE_SERVICES") == "1" {
		t.Fatalf("%s, and DOVETAIL_REQUIRE_SERVICES=1", what)
	}
	t.Skipf(`%s; run: scripts/services up redis && eval "$(scripts/services env)"`, what)
}

// server is a Redis server of the test's own, which may be killed.
type server struct {
	t    *testing.T
	addr string
	dir  string
	cmd  *exec.Cmd
}

func newServer(t *testing.T) *server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		missing(t, "redis-server is not installed")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	s := &server{t: t, addr: addr, dir: t.TempDir()}
	t.Cleanup(s.kill)
	s.start()
	return s
}

// start starts the server and waits until it answers. What it had appended to its file before
// a kill is there again.
func (s *server) start() {
	s.t.Helper()
	_, port, _ := net.SplitHostPort(s.addr)
	s.cmd = exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--appendonly", "yes")
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	c := redis.NewClient(&redis.Options{Addr: s.addr})
	defer func() { _ = c.Close() }()
	deadline := time.Now().Add(20 * time.Second)
	for c.Ping(context.Background()).Err() != nil {
		if time.Now().After(deadline) {
			s.t.Fatal("redis-server does not answer")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *server) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

func (s *server) client() *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: s.addr, MaxRetries: -1, DialTimeout: time.Second})
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}
