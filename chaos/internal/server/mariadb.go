// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"database/sql"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql" // the driver "mysql"
)

// MariaDB is a private MariaDB.
type MariaDB struct {
	Server
	// DSN is an empty database of an account with all rights, for the driver "mysql".
	DSN string
	// Addr is the host:port in it, for a proxy.
	Addr string
}

// StartMariaDB makes an empty installation and starts a server on it. Commits are
// synchronous.
func StartMariaDB(t testing.TB) *MariaDB {
	t.Helper()
	install, mariadbd := need(t, "mariadb", "mariadb-install-db"), need(t, "mariadb", "mariadbd", "/usr/sbin")
	a := accountOf(t, "mysql")
	dir := a.dir(t)
	data, secret, p := filepath.Join(dir, "data"), password(), port(t)
	do(t, a.command(dir, install, "--no-defaults", "--datadir="+data, "--skip-test-db", "--auth-root-authentication-method=socket"))
	init, config := filepath.Join(dir, "init.sql"), filepath.Join(dir, "my.cnf")
	a.write(t, init, "CREATE DATABASE IF NOT EXISTS dovetail;\n"+
		"CREATE USER IF NOT EXISTS 'dovetail'@'127.0.0.1' IDENTIFIED BY '"+secret+"';\n"+
		"GRANT ALL PRIVILEGES ON *.* TO 'dovetail'@'127.0.0.1' WITH GRANT OPTION;\n")
	a.write(t, config, fmt.Sprintf(`[mariadbd]
datadir = %[1]s/data
socket = %[1]s/sock
pid-file = %[1]s/pid
bind-address = 127.0.0.1
port = %[2]d
init-file = %[1]s/init.sql
character-set-server = utf8mb4
skip-name-resolve
max-connections = 200
innodb-buffer-pool-size = 64M
innodb-log-file-size = 32M
`, dir, p))
	s := &MariaDB{
		Server: Server{t: t, name: "mariadb", stop: syscall.SIGTERM},
		Addr:   fmt.Sprint("127.0.0.1:", p),
		DSN:    fmt.Sprintf("dovetail:%s@tcp(127.0.0.1:%d)/dovetail?parseTime=true", secret, p),
	}
	s.ready = func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		db, err := sql.Open("mysql", s.DSN)
		if err != nil {
			return err
		}
		defer db.Close()
		return db.PingContext(ctx)
	}
	s.run(func() *exec.Cmd { return a.command(dir, mariadbd, "--defaults-file="+config) })
	return s
}
