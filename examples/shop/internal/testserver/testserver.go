// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

// Package testserver runs servers that the shared ones cannot stand for, those that speak TLS and nothing else, a
// database with a standby and an emulator of Amazon Cognito, each for one test: on a free port of 127.0.0.1, with its data
// in a folder of its own, gone when the test ends.
package testserver

import (
	"crypto/rand"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/examples/shop/internal/testca"
)

// RabbitMQ starts an empty node with a port mapper of its own, and returns its URL, amqps://.
func RabbitMQ(t testing.TB, ca *testca.CA) (url string) {
	t.Helper()
	program, epmd := need(t, "rabbitmq", "/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server"), need(t, "rabbitmq", "epmd")
	s := home(t, "rabbitmq")
	p, mapper, dist, secret := port(t), port(t), port(t), rand.Text()
	cert, key := ca.Issue(t, "rabbitmq", "127.0.0.1")
	s.write(t, ".erlang.cookie", "COOKIE"+rand.Text(), 0o400)
	const loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
	env := []string{
		fmt.Sprintf("RABBITMQ_NODENAME=tls%d@localhost", p),
		"RABBITMQ_CONF_ENV_FILE=" + s.write(t, "rabbitmq-env.conf", "", 0o600),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + s.write(t, "advanced.config", "[].\n", 0o600),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + s.write(t, "enabled_plugins", "[].\n", 0o600),
		"RABBITMQ_CONFIG_FILE=" + s.write(t, "rabbitmq.conf", fmt.Sprintf(`listeners.tcp = none
listeners.ssl.default = 127.0.0.1:%d
ssl_options.cacertfile = %s
ssl_options.certfile = %s
ssl_options.keyfile = %s
ssl_options.verify = verify_none
default_vhost = shop
default_user = shop
default_pass = %s
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 100MB
raft.wal_max_size_bytes = 33554432
log.console.level = warning
`, p, s.copy(t, ca.File), s.copy(t, cert), s.copy(t, key), secret), 0o600),
		"RABBITMQ_MNESIA_BASE=" + filepath.Join(s.dir, "mnesia"),
		"RABBITMQ_LOG_BASE=" + filepath.Join(s.dir, "log"),
		"RABBITMQ_LOGS=-",
		"RABBITMQ_PID_FILE=" + filepath.Join(s.dir, "pid"),
		fmt.Sprint("RABBITMQ_DIST_PORT=", dist),
		fmt.Sprint("ERL_EPMD_PORT=", mapper),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=" + loopback,
		"RUNNING_UNDER_SYSTEMD=1", // the script becomes the Erlang machine instead of watching over it
	}
	s.start(t, epmd, []string{"ERL_EPMD_ADDRESS=127.0.0.1"}, "-port", fmt.Sprint(mapper))
	ended, _ := s.start(t, program, env)
	url = fmt.Sprintf("amqps://shop:%s@127.0.0.1:%d/shop", secret, p)
	await(t, "rabbitmq", ended, func() error {
		conn, err := amqp091.DialConfig(url, amqp091.Config{TLSClientConfig: ca.Client()})
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return url
}

// Consul starts an agent that is its own server, and returns its address, https://.
func Consul(t testing.TB, ca *testca.CA) (addr string) {
	t.Helper()
	program := need(t, "consul", os.Getenv("DOVETAIL_CONSUL_BINARY"), "consul")
	s := home(t, "")
	p := port(t)
	cert, key := ca.Issue(t, "consul", "127.0.0.1")
	config := s.write(t, "consul.hcl", fmt.Sprintf(`server = true
bootstrap_expect = 1
node_name = "shop"
data_dir = %q
bind_addr = "127.0.0.1"
client_addr = "127.0.0.1"
ports { http = -1, https = %d, dns = -1, serf_lan = %d, server = %d, serf_wan = -1, grpc = -1, grpc_tls = -1 }
tls { https { ca_file = %q, cert_file = %q, key_file = %q } }
performance { raft_multiplier = 1 }
disable_update_check = true
`, filepath.Join(s.dir, "data"), p, port(t), port(t), ca.File, cert, key), 0o600)
	ended, _ := s.start(t, program, nil, "agent", "-config-file="+config)
	addr = fmt.Sprint("https://127.0.0.1:", p)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.Client()}, Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	await(t, "consul", ended, func() error {
		resp, err := client.Get(addr + "/v1/status/leader") //nolint:noctx // the client has its own limit
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		leader, err := io.ReadAll(resp.Body)
		if err == nil && !strings.Contains(string(leader), ":") {
			err = fmt.Errorf("the leader is %s", leader)
		}
		return err
	})
	return addr
}

// need finds a program by its name or by a pattern of its path, or skips the test: fails it where the servers have to
// be there.
func need(t testing.TB, service string, programs ...string) string {
	t.Helper()
	for _, program := range programs {
		if found, _ := filepath.Glob(program); filepath.IsAbs(program) && len(found) > 0 {
			return found[len(found)-1]
		}
		if found, err := exec.LookPath(program); err == nil {
			return found
		}
	}
	Missing(t, "no %v found: scripts/services up %s installs it", programs, service)
	return ""
}

// server is what a server's processes have in common: a folder, and who they are.
type server struct {
	dir string
	as  *syscall.Credential // nil for ourselves
}

// home makes a server's folder, where its account can reach it: for root that is the one that its package has made, if
// it has made one.
func home(t testing.TB, account string) server {
	t.Helper()
	dir, err := os.MkdirTemp("", "shop-") //nolint:usetesting // t.TempDir is closed to other accounts
	if err != nil {
		t.Fatal(err)
	}
	s := server{dir: dir}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if account != "" && os.Getuid() == 0 {
		u, err := user.Lookup(account)
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		s.own(t, dir)
	}
	return s
}

func (s server) own(t testing.TB, path string) {
	t.Helper()
	if s.as == nil {
		return
	}
	if err := os.Chown(path, int(s.as.Uid), int(s.as.Gid)); err != nil {
		t.Fatal(err)
	}
}

// write makes a file of the server's own.
func (s server) write(t testing.TB, name, text string, mode os.FileMode) (path string) {
	t.Helper()
	path = filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	s.own(t, path)
	return path
}

// copy makes a file of the server's own of another.
func (s server) copy(t testing.TB, file string) (path string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return s.write(t, filepath.Base(file), string(text), 0o600)
}

// start runs a program until the test ends, or kills it before. The channel is closed when it has ended.
func (s server) start(t testing.TB, program string, env []string, args ...string) (ended <-chan struct{}, kill func()) {
	t.Helper()
	cmd := s.command(program, env, args...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	go func() {
		defer close(end)
		_ = cmd.Wait()
	}()
	kill = sync.OnceFunc(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // with its children; nobody needs its data
		<-end
	})
	t.Cleanup(kill)
	return end, kill
}

// command is a program as the server's account runs it, with nothing in its environment that leads to another server.
func (s server) command(program string, env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...) //nolint:noctx // it ends in the clean-up
	cmd.Dir = s.dir
	cmd.Env = append([]string{"HOME=" + s.dir, "LANG=C.UTF-8", "PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as, Setpgid: true}
	return cmd
}

// await waits until a server answers, on a machine that may be very busy.
func await(t testing.TB, name string, ended <-chan struct{}, answers func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); {
		if err = answers(); err == nil {
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s has ended; %v", name, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatalf("%s does not answer: %v", name, err)
}

// port finds a free port below those that Linux gives to outgoing connections, one of which could otherwise take it
// before the server does.
func port(t testing.TB) int {
	t.Helper()
	for range 1000 {
		p := 10000 + mathrand.IntN(20000)
		ln, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", p)) //nolint:noctx // at once
		if err == nil {
			_ = ln.Close()
			return p
		}
	}
	t.Fatal("no free port found")
	return 0
}
