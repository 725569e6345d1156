// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/consulkit"
)

// agent is a Consul server of the test's own, which it may kill.
type agent struct {
	http, dns int
	https     int // if it was started with tls
	// flags start it. One with -dev loses all state with its end, one with a data
	// directory nothing.
	flags   []string
	locked  bool // strangers may not ask who is healthy
	log     string
	process *os.Process
	exited  chan struct{}
}

// binary finds the consul program, or skips the test.
func binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("DOVETAIL_CONSUL_BINARY"); path != "" {
		return path
	}
	if path, err := exec.LookPath("consul"); err == nil {
		return path
	}
	const how = "no consul found; run: scripts/services up consul && eval \"$(scripts/services env)\""
	if os.Getenv("DOVETAIL_REQUIRE_SERVICES") == "1" {
		t.Fatal(how)
	}
	t.Skip(how)
	return ""
}

// startAgent starts an agent that ends with the test. extra is more configuration, in HCL.
func startAgent(t testing.TB, state bool, extra string) *agent {
	t.Helper()
	program := binary(t)
	dir := t.TempDir()
	ports := freePorts(t, 5)
	if !strings.Contains(extra, "tls {") {
		ports[4] = -1
	}
	config := fmt.Sprintf(`
		bind_addr = "127.0.0.1"
		client_addr = "127.0.0.1"
		node_name = "test"
		ports { http = %d, dns = %d, serf_lan = %d, server = %d, serf_wan = -1, grpc = -1, grpc_tls = -1, https = %d }
		performance { raft_multiplier = 1 }
		disable_update_check = true
		leave_on_terminate = false
		skip_leave_on_interrupt = true
		limits { http_max_conns_per_client = 1000 }
		%s`, ports[0], ports[1], ports[2], ports[3], ports[4], extra)
	a := &agent{http: ports[0], dns: ports[1], https: ports[4], log: filepath.Join(dir, "log"), locked: strings.Contains(extra, "acl {")}
	if state {
		config += fmt.Sprintf("\nserver = true\nbootstrap_expect = 1\ndata_dir = %q\n", filepath.Join(dir, "data"))
	}
	file := filepath.Join(dir, "consul.hcl")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	a.flags = []string{program, "agent", "-config-file=" + file}
	if !state {
		a.flags = append(a.flags, "-dev")
	}
	t.Cleanup(func() { a.kill(t) })
	a.start(t)
	return a
}

// freePorts returns ports that nobody uses at present, for TCP nor for UDP.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for tries := 0; len(ports) < n; tries++ {
		if tries > 100 {
			t.Fatal("no free ports")
		}
		var lc net.ListenConfig
		l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		u, err := lc.ListenPacket(context.Background(), "udp", l.Addr().String())
		if err != nil {
			continue
		}
		defer u.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

func (a *agent) addr() string { return fmt.Sprintf("127.0.0.1:%d", a.http) }

// start starts the agent and waits until its server has a leader and the node's own check passes.
func (a *agent) start(t testing.TB) {
	t.Helper()
	a.launch(t)
	client := a.client(t).API()
	deadline := time.Now().Add(time.Minute)
	for {
		leader, err := client.Status().Leader()
		if a.locked && err == nil && leader != "" {
			return
		}
		nodes, _, err := client.Health().Service("consul", "", true, nil)
		if err == nil && len(nodes) > 0 {
			return
		}
		ended := false
		select {
		case <-a.exited:
			ended = true
		default:
		}
		if ended || time.Now().After(deadline) {
			log, _ := os.ReadFile(a.log)
			t.Fatalf("the agent does not answer: %v\n%s", err, log)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// launch starts the agent and does not wait.
func (a *agent) launch(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(a.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(a.flags[0], a.flags[1:]...) //nolint:noctx // it ends in the clean-up
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	a.process, a.exited = cmd.Process, exited
	go func() {
		_ = cmd.Wait()
		_ = log.Close()
		close(exited)
	}()
}

// kill ends the agent by SIGKILL.
func (a *agent) kill(t testing.TB) {
	t.Helper()
	if a.process == nil {
		return
	}
	_ = a.process.Kill()
	<-a.exited
	a.process = nil
}

func (a *agent) client(t testing.TB) *consulkit.Client { return client(t, a.addr()) }

func client(t testing.TB, addr string) *consulkit.Client {
	t.Helper()
	c, err := consulkit.New(&api.Config{Address: addr})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// clear deregisters everything.
func (a *agent) clear(t testing.TB) {
	t.Helper()
	agent := a.client(t).API().Agent()
	services, err := agent.Services()
	if err != nil {
		t.Fatal(err)
	}
	for id := range services {
		if err := agent.ServiceDeregister(id); err != nil {
			t.Fatal(err)
		}
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
