// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/chaos/internal/process"
)

// Rabbit is a private RabbitMQ node.
//
// RabbitMQ 3.10 saves the names of its quorum queues half a second late: one that is
// declared and used right before Kill stays unavailable after the restart. Stop and
// Start the node, or wait a second, between the declaration and the first Kill.
type Rabbit struct {
	Server
	// URL of an administrator's virtual host: amqp://...
	URL string
	// Addr is the host:port in it, for a proxy.
	Addr string

	ctl func(args ...string) *exec.Cmd
}

// StartRabbit starts an empty node of its own cluster, with its own port mapper.
func StartRabbit(t testing.TB) *Rabbit {
	t.Helper()
	const packaged = "/usr/lib/rabbitmq/bin"
	program, epmd := need(t, "rabbitmq", "rabbitmq-server", packaged), need(t, "rabbitmq", "epmd")
	a := accountOf(t, "rabbitmq")
	dir, p, mapper, dist, secret := a.dir(t), port(t), port(t), port(t), password()
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		a.write(t, name, text)
		return name
	}
	file(".erlang.cookie", "COOKIE"+password())
	if err := os.Chmod(filepath.Join(dir, ".erlang.cookie"), 0o400); err != nil {
		t.Fatal(err)
	}
	const loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
	env := []string{
		fmt.Sprintf("RABBITMQ_NODENAME=chaos%d@localhost", p),
		"RABBITMQ_CONF_ENV_FILE=" + file("rabbitmq-env.conf", ""),
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + file("advanced.config", "[].\n"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + file("enabled_plugins", "[].\n"),
		"RABBITMQ_CONFIG_FILE=" + file("rabbitmq.conf", fmt.Sprintf(`listeners.tcp.default = 127.0.0.1:%d
default_vhost = dovetail
default_user = dovetail
default_pass = %s
default_user_tags.administrator = true
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 100MB
raft.wal_max_size_bytes = 33554432
log.console.level = warning
`, p, secret)),
		"RABBITMQ_MNESIA_BASE=" + filepath.Join(dir, "mnesia"),
		"RABBITMQ_LOG_BASE=" + filepath.Join(dir, "log"),
		"RABBITMQ_LOGS=-",
		"RABBITMQ_PID_FILE=" + filepath.Join(dir, "pid"),
		fmt.Sprint("RABBITMQ_DIST_PORT=", dist),
		fmt.Sprint("ERL_EPMD_PORT=", mapper),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_CTL_ERL_ARGS=" + loopback,
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=" + loopback,
		"RUNNING_UNDER_SYSTEMD=1", // the script becomes the Erlang machine instead of watching over it
	}
	s := &Rabbit{
		Server: Server{t: t, name: "rabbitmq", stop: syscall.SIGTERM},
		Addr:   fmt.Sprint("127.0.0.1:", p),
		URL:    fmt.Sprintf("amqp://dovetail:%s@127.0.0.1:%d/dovetail", secret, p),
	}
	// Its own port mapper, which a kill of the node leaves alone.
	process.Start(t, "epmd", func() *exec.Cmd {
		cmd := a.command(dir, epmd, "-port", fmt.Sprint(mapper))
		cmd.Env = append(cmd.Env, "ERL_EPMD_ADDRESS=127.0.0.1")
		return cmd
	})
	s.ctl = func(args ...string) *exec.Cmd {
		cmd := a.command(dir, filepath.Join(filepath.Dir(program), "rabbitmqctl"), args...)
		cmd.Env = append(cmd.Env, env...)
		return cmd
	}
	s.ready = func() error {
		conn, err := amqp.DialConfig(s.URL, amqp.Config{Dial: func(network, addr string) (net.Conn, error) {
			return amqp.DefaultDial(5*time.Second)(network, addr)
		}})
		if err != nil {
			return err
		}
		return conn.Close()
	}
	s.run(func() *exec.Cmd {
		cmd := a.command(dir, program)
		cmd.Env = append(cmd.Env, env...)
		return cmd
	})
	return s
}

// Ctl runs rabbitmqctl against the node, which takes a second or two, and returns
// what it prints.
func (s *Rabbit) Ctl(args ...string) string {
	s.t.Helper()
	out, err := s.ctl(append([]string{"-q"}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("server: rabbitmqctl %v: %v\n%s", args, err, out)
	}
	return string(out)
}
