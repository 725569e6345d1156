// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package server runs private servers that a test may kill, pause and restart:
// [Postgres], [MariaDB], [Rabbit] and [Redis], each on a free port of 127.0.0.1
// with its data in a directory of its own, gone when the test ends.
//
// They keep their data as in production: a restart, also after SIGKILL, finds what
// was committed or confirmed, at the same address and with the same account.
package server

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/chaos/internal/process"
)

// A Server is what all servers have in common. Its methods are for the test's own
// goroutine: they end the test when they fail.
type Server struct {
	t       testing.TB
	name    string
	process *process.Process
	stop    syscall.Signal // the graceful end
	before  func()         // on every restart
	ready   func() error
}

// run starts the command and waits until the server answers.
func (s *Server) run(command func() *exec.Cmd) {
	s.t.Helper()
	s.process = process.Start(s.t, s.name, command)
	s.await()
}

// Kill ends the server with all its processes by SIGKILL and waits until they are gone.
func (s *Server) Kill() {
	s.t.Helper()
	s.process.Kill()
}

// Pause stops the server's processes with SIGSTOP: connections stay open, new ones
// are accepted by the kernel, and nothing is answered.
func (s *Server) Pause() {
	s.t.Helper()
	s.process.Pause()
}

// Resume continues a paused server.
func (s *Server) Resume() {
	s.t.Helper()
	s.process.Resume()
}

// Stop ends the server gracefully: what its own stop command does, without waiting
// for clients to leave.
func (s *Server) Stop() {
	s.t.Helper()
	s.process.Stop(s.stop)
}

// Restart stops the server if it runs, starts it on the same data and address, and
// waits until it answers.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.Start()
}

// Start starts a server that was killed or stopped and waits until it answers.
func (s *Server) Start() {
	s.t.Helper()
	if s.process.Running() {
		return
	}
	if s.before != nil {
		s.before()
	}
	s.process.Restart()
	s.await()
}

// await waits until the server answers. One that ends at once is tried a few times
// more: what a killed predecessor held may take a moment to be free.
func (s *Server) await() {
	s.t.Helper()
	var err error
	attempts := 5
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if !s.process.Running() {
			if attempts--; attempts == 0 {
				s.t.Fatalf("server: %s does not start:\n%s", s.name, s.process.Output())
			}
			time.Sleep(200 * time.Millisecond)
			s.process.Restart()
		}
		if err = s.ready(); err == nil {
			return
		}
	}
	s.t.Fatalf("server: %s does not answer: %v\n%s", s.name, err, s.process.Output())
}

// need finds a program, or skips the test: fails it where the servers have to be there.
func need(t testing.TB, service, program string, patterns ...string) string {
	t.Helper()
	for _, p := range patterns {
		if found, _ := filepath.Glob(filepath.Join(p, program)); len(found) > 0 {
			return found[len(found)-1]
		}
	}
	if found, err := exec.LookPath(program); err == nil {
		return found
	}
	const how = "server: no %s found: scripts/services up %s installs it"
	if os.Getenv("DOVETAIL_REQUIRE_SERVICES") == "1" {
		t.Fatalf(how, program, service)
	}
	t.Skipf(how, program, service)
	return ""
}

// account is who a server runs as: PostgreSQL and MariaDB refuse root, so for root it
// is the account that the server's package made, and for everybody else themselves.
type account struct{ credential *syscall.Credential }

func accountOf(t testing.TB, name string) account {
	t.Helper()
	if os.Geteuid() != 0 {
		return account{}
	}
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("server: %v", err)
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	return account{&syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}

// dir makes a directory of the account, gone after the test. It is not t.TempDir,
// which is closed to other accounts and too long for the sockets in it.
func (a account) dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dovetail-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	a.own(t, dir)
	return dir
}

func (a account) own(t testing.TB, name string) {
	t.Helper()
	if a.credential == nil {
		return
	}
	if err := os.Chown(name, int(a.credential.Uid), int(a.credential.Gid)); err != nil {
		t.Fatal(err)
	}
}

// write makes a file that only the account can read.
func (a account) write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a.own(t, name)
}

// command is a program as the account runs it, with nothing in its environment that
// could point to another server.
func (a account) command(dir, program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...) //nolint:noctx // it ends in the clean-up
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + dir, "LANG=C.UTF-8", "PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: a.credential}
	return cmd
}

// do runs a command to its end.
func do(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("server: %v: %v\n%s", cmd.Args, err, out)
	}
}

// port finds a free port below those that Linux gives to outgoing connections, one
// of which could otherwise take it while the server is down.
func port(t testing.TB) int {
	t.Helper()
	for range 1000 {
		p := 10000 + mathrand.IntN(20000)
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", p)) //nolint:noctx // at once
		if err == nil {
			_ = l.Close()
			return p
		}
	}
	t.Fatal("server: no free port found")
	return 0
}

func password() string {
	b := make([]byte, 12)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}
