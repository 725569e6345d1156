// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// Redis is a private Redis.
type Redis struct {
	Server
	// Addr is host:port.
	Addr string
	// Password of the default user.
	Password string
}

// StartRedis starts an empty server. It appends every command to a file before it
// answers, so that a killed one has what it has confirmed.
func StartRedis(t testing.TB) *Redis {
	t.Helper()
	program := need(t, "redis", "redis-server")
	a := accountOf(t, "redis")
	dir, p := a.dir(t), port(t)
	s := &Redis{Server: Server{t: t, name: "redis", stop: syscall.SIGTERM}, Addr: fmt.Sprint("127.0.0.1:", p), Password: password()}
	config := dir + "/redis.conf"
	a.write(t, config, fmt.Sprintf("bind 127.0.0.1\nport %d\ndir %s\nrequirepass %s\ndaemonize no\nsave \"\"\nappendonly yes\nappendfsync everysec\n", p, dir, s.Password))
	s.ready = func() error {
		conn, err := net.DialTimeout("tcp", s.Addr, 5*time.Second) //nolint:noctx // has its own limit
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := fmt.Fprintf(conn, "AUTH %s\r\nPING\r\n", s.Password); err != nil {
			return err
		}
		const want = "+OK\r\n+PONG\r\n"
		got := make([]byte, len(want))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
			return fmt.Errorf("answered %q, want %q: %w", got, want, err)
		}
		return nil
	}
	s.run(func() *exec.Cmd { return a.command(dir, program, config) })
	return s
}
