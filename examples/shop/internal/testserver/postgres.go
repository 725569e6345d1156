// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package testserver

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
)

// Postgres starts an empty PostgreSQL and a hot standby that streams from it, and returns the URLs of both, and what kills
// the standby.
func Postgres(t testing.TB) (primary, standby string, kill func()) {
	t.Helper()
	const packaged = "/usr/lib/postgresql/*/bin/"
	initdb, postgres, backup := need(t, "postgres", packaged+"initdb", "initdb"), need(t, "postgres", packaged+"postgres", "postgres"),
		need(t, "postgres", packaged+"pg_basebackup", "pg_basebackup")
	s := home(t, "postgres")
	data, copied, secret := filepath.Join(s.dir, "primary"), filepath.Join(s.dir, "standby"), rand.Text()
	serve := func(data string) (url string, p int, kill func()) {
		p = port(t)
		url = fmt.Sprintf("postgres://postgres:%s@127.0.0.1:%d/postgres?sslmode=disable", secret, p)
		ended, kill := s.start(t, postgres, nil, "-D", data, "-p", fmt.Sprint(p), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
			"-c", "shared_buffers=32MB", "-c", "fsync=off", "-c", "log_min_messages=fatal")
		db, err := sql.Open("pgx", url)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		await(t, "postgres", ended, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			return db.PingContext(ctx)
		})
		return url, p, kill
	}
	s.do(t, initdb, nil, "--pgdata="+data, "--username=postgres", "--auth=scram-sha-256", "--pwfile="+s.write(t, "password", secret, 0o600),
		"--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
	primary, p, _ := serve(data)
	s.do(t, backup, []string{"PGPASSWORD=" + secret}, "--pgdata="+copied, "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync",
		"--host=127.0.0.1", fmt.Sprint("--port=", p), "--username=postgres", "--no-password")
	standby, _, kill = serve(copied)
	return primary, standby, kill
}

// do runs a program to its end.
func (s server) do(t testing.TB, program string, env []string, args ...string) {
	t.Helper()
	if out, err := s.command(program, env, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}
