// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testca"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
)

var quiet = slog.New(slog.DiscardHandler)

// patience is for a machine that is very busy.
const patience = 2 * time.Minute

// tool finds a program of the servers that the tests use.
func tool(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if found, err := filepath.Glob(name); err == nil && len(found) > 0 {
			return found[len(found)-1]
		}
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	testserver.Missing(t, "%v is not installed: scripts/services up installs it", names)
	return ""
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// start runs a server until the test ends.
func start(t *testing.T, cmd *exec.Cmd, how syscall.Signal) {
	t.Helper()
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(how)
		_ = cmd.Wait()
	})
}

func eventually(t *testing.T, try func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestRedisByTLS(t *testing.T) {
	dir := t.TempDir()
	ca := testca.New(t, dir)
	cert, key := ca.Issue(t, "redis", "127.0.0.1")
	port := freePort(t)
	start(t, exec.Command(tool(t, "redis-server"), "--port", "0", "--tls-port", port, "--bind", "127.0.0.1", "--dir", dir, "--save", "",
		"--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", ca.File, "--tls-auth-clients", "no"), syscall.SIGTERM)
	s := Settings{Redis: "rediss://127.0.0.1:" + port + "/0", ServersCA: ca.File}
	eventually(t, func(ctx context.Context) error {
		client, err := s.redis(ctx, quiet)
		if err != nil {
			return err
		}
		defer func() { _ = client.Close() }()
		return client.Ping(ctx).Err()
	})
	s.ServersCA = testca.New(t, t.TempDir()).File
	client, err := s.redis(t.Context(), quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if err := client.Ping(t.Context()).Err(); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("Ping = %v, want that the authority is not known", err)
	}
}

func TestPostgresByTLS(t *testing.T) {
	bin := filepath.Dir(tool(t, "/usr/lib/postgresql/*/bin/initdb", "initdb"))
	dir, err := os.MkdirTemp("", "dovetail-tls") //nolint:usetesting // where another user may go, too
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ca := testca.New(t, dir)
	cert, key := ca.Issue(t, "postgres", "127.0.0.1")
	as := new(syscall.SysProcAttr)
	if os.Getuid() == 0 { // it refuses to run as root
		owner, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(owner.Uid)
		gid, _ := strconv.Atoi(owner.Gid)
		as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)} //nolint:gosec // they are small
		for _, path := range []string{dir, cert, key, ca.File} {
			if err := os.Chown(path, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "shop", "--auth=trust", "--no-sync", "--locale=C.UTF-8", "--encoding=UTF8")
	initdb.Dir, initdb.SysProcAttr = dir, as
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	port := freePort(t)
	// Nobody gets in without TLS.
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("hostssl all all 127.0.0.1/32 trust\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if as.Credential != nil {
		if err := os.Chown(filepath.Join(data, "pg_hba.conf"), int(as.Credential.Uid), int(as.Credential.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	postgres := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
		"-c", "fsync=off", "-c", "ssl=on", "-c", "ssl_cert_file="+cert, "-c", "ssl_key_file="+key)
	postgres.Dir, postgres.SysProcAttr = dir, as
	start(t, postgres, syscall.SIGINT)

	dsn := "postgres://shop@127.0.0.1:" + port + "/postgres?sslmode="
	s := Settings{Name: "shop", Postgres: dsn + "verify-full&sslrootcert=" + ca.File}
	eventually(t, func(ctx context.Context) error {
		db, err := s.database(ctx, "order")
		if err != nil {
			return err
		}
		defer func() { _ = db.Close() }()
		var version string
		if err := db.QueryRowContext(ctx, "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl").Scan(&version); err != nil {
			return err
		}
		if !strings.HasPrefix(version, "TLSv1.") {
			return fmt.Errorf("the connection is by %q, want TLS", version)
		}
		return nil
	})
	for what, bad := range map[string]string{
		"without TLS": dsn + "disable", "with another authority": dsn + "verify-full&sslrootcert=" + testca.New(t, t.TempDir()).File,
	} {
		s.Postgres = bad
		if db, err := s.database(t.Context(), "order"); err == nil {
			_ = db.Close()
			t.Errorf("%s it is let in", what)
		}
	}
}

// TestReplica: only the catalogue has a use for a copy of its database.
func TestReplica(t *testing.T) {
	s := Settings{Name: "shop", Replica: "postgres://shop@127.0.0.1:1/shop"} // opened when it is first asked
	for _, service := range assembly.Backends {
		db, err := s.replica(service)
		if err != nil {
			t.Fatal(err)
		}
		if (db != nil) != (service == "catalog") {
			t.Errorf("%s has a replica: %v", service, db != nil)
		}
		if db != nil {
			_ = db.Close()
		}
	}
	if db, err := (Settings{Name: "shop"}).replica("catalog"); db != nil || err != nil {
		t.Errorf("replica = %v, %v, want none where there is none", db, err)
	}
}

func TestLooks(t *testing.T) {
	for _, c := range []struct {
		service, want   string
		between, public string
	}{
		{"shop-order", "http://10.0.0.1:80/readyz", "", "cert"},
		{"shop-order", "https://10.0.0.1:80/readyz", "cert", ""},
		{"shop-gateway", "http://10.0.0.1:80/readyz", "cert", ""},
		{"shop-gateway", "https://10.0.0.1:80/readyz", "", "cert"},
	} {
		s := Settings{Name: "shop", TLSCert: c.between, PublicTLSCert: c.public}
		if got := s.looks(discovery.Instance{Service: c.service, Addr: "10.0.0.1:80"})[0]; got.HTTP != c.want {
			t.Errorf("the agent looks at %s, want %s", got.HTTP, c.want)
		}
	}
}

func TestTogether(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := map[string]string{
		PublicURLVar: "https://shop.example", ServiceTokenVar: strings.Repeat("x", 32), PostgresVar: "postgres://a@b/c",
		RabbitMQVar: "amqp://a:b@c/d", DiscoveryDNSVar: "{service}:8080",
	}
	load := func(more ...string) error {
		_, err := Load("order", func(name string) string {
			for i := 0; i < len(more); i += 2 {
				if more[i] == name {
					return more[i+1]
				}
			}
			return good[name]
		})
		return err
	}
	if err := load(TLSCertVar, file, TLSKeyVar, file, TLSCAVar, file); err != nil {
		t.Errorf("Load = %v, want nil", err)
	}
	for name, more := range map[string][]string{
		TLSCAVar:         {TLSCertVar, file, TLSKeyVar, file},
		PublicTLSKeyVar:  {PublicTLSCertVar, file},
		ServersCAVar:     {ServersCAVar, file + ".not"},
		DiscoveryDNSVar:  {DiscoveryDNSVar, "order:8080"},
		DiscoveryFileVar: {DiscoveryDNSVar, ""},
		ConsulLooksVar:   {ConsulLooksVar, "no"},
	} {
		if err := load(more...); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("with %q Load = %v, want an error that names %s", more, err, name)
		}
	}
}

func TestHostAddress(t *testing.T) {
	addr, err := hostAddress(t.Context())
	name, _ := os.Hostname()
	if err != nil && !strings.Contains(err.Error(), name) {
		t.Errorf("hostAddress = %v, want the machine's name in it", err)
	}
	if ip := net.ParseIP(addr); err == nil && (ip == nil || ip.IsLoopback()) {
		t.Errorf("hostAddress = %q, want an address that others can reach", addr)
	}
}
