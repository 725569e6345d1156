// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Postgres is a private PostgreSQL.
type Postgres struct {
	Server
	// DSN is a URL of the superuser's database, for pgx and its database/sql driver.
	DSN string
	// Addr is the host:port in it, for a proxy.
	Addr string
}

// StartPostgres makes an empty cluster and starts a server on it. The settings are
// its own, given as -c does: "max_connections=20". Commits are synchronous.
func StartPostgres(t testing.TB, settings ...string) *Postgres {
	t.Helper()
	const packaged = "/usr/lib/postgresql/*/bin"
	initdb, postgres := need(t, "postgres", "initdb", packaged), need(t, "postgres", "postgres", packaged)
	a := accountOf(t, "postgres")
	dir := a.dir(t)
	data, secret, p := filepath.Join(dir, "data"), password(), port(t)
	a.write(t, filepath.Join(dir, "password"), secret)
	do(t, a.command(dir, initdb, "--pgdata="+data, "--username=postgres", "--auth=scram-sha-256",
		"--pwfile="+filepath.Join(dir, "password"), "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"))

	s := &Postgres{
		Server: Server{t: t, name: "postgres", stop: syscall.SIGINT}, // "fast": does not wait for clients
		Addr:   fmt.Sprint("127.0.0.1:", p),
		DSN:    fmt.Sprintf("postgres://postgres:%s@127.0.0.1:%d/postgres?sslmode=disable", secret, p),
	}
	// After SIGKILL and a reused process number it would believe that it runs already.
	s.before = func() { _ = os.Remove(filepath.Join(data, "postmaster.pid")) }
	s.ready = func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, s.DSN)
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	}
	args := []string{"-D", data, "-p", fmt.Sprint(p)}
	for _, c := range append([]string{
		"listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200", "shared_buffers=64MB", "max_wal_size=512MB",
	}, settings...) {
		name, _, ok := strings.Cut(c, "=")
		if !ok || name == "" {
			t.Fatalf("server: setting %q, want name=value", c)
		}
		args = append(args, "-c", c)
	}
	s.run(func() *exec.Cmd { return a.command(dir, postgres, args...) })
	return s
}

// StopImmediate ends the server as PostgreSQL's own "immediate" mode does: clients
// are cut off, nothing is flushed, and the next start recovers.
func (s *Postgres) StopImmediate() {
	s.t.Helper()
	s.process.Stop(syscall.SIGQUIT)
}
