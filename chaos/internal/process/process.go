// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package process starts processes that a test may kill, stop for a while and
// start again: servers, and the test's own binary in another role.
//
//	func TestMain(m *testing.M) {
//		process.Main(m, map[string]func(args []string) error{"worker": work})
//	}
//
//	func Test(t *testing.T) {
//		w := process.Role(t, "worker", "some", "arguments")
//		w.Kill()
//		w.Restart()
//	}
package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// role names what a process of the test binary is to do instead of running tests.
const role = "DOVETAIL_CHAOS_ROLE"

// Main runs the tests, or the role that this process was started for by [Role].
// It does not return. A role that returns an error exits with status 1.
func Main(m *testing.M, roles map[string]func(args []string) error) {
	name, ok := os.LookupEnv(role)
	if !ok {
		os.Exit(m.Run())
	}
	work, ok := roles[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "process: %s is %q, which TestMain does not know\n", role, name)
		os.Exit(2)
	}
	if err := work(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A Process is a started program with all its descendants. Its methods are for the
// test's own goroutine: they end the test when they fail. At the end of the test it
// is killed, and its output is shown if the test has failed.
type Process struct {
	t    testing.TB
	name string
	make func() *exec.Cmd

	cmd    *exec.Cmd
	exited chan struct{}
	paused bool
	output *tail
}

// Start runs the command that command makes, and makes again for every restart.
// The child is killed when this process ends, however it ends.
func Start(t testing.TB, name string, command func() *exec.Cmd) *Process {
	t.Helper()
	p := &Process{t: t, name: name, make: command, output: new(tail)}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s wrote last:\n%s", name, p.Output())
		}
	})
	p.start()
	return p
}

// Role starts the test binary in one of the roles of [Main], with these arguments.
func Role(t testing.TB, name string, args ...string) *Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Start(t, name, func() *exec.Cmd {
		cmd := exec.Command(self, args...) //nolint:noctx // it outlives the test's context and ends in the clean-up
		cmd.Env = append(os.Environ(), role+"="+name)
		return cmd
	})
}

func (p *Process) start() {
	p.t.Helper()
	p.cmd = p.make()
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	// Without this a process that keeps the pipe open would let Wait hang.
	p.cmd.WaitDelay = time.Second
	if p.cmd.SysProcAttr == nil {
		p.cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	p.cmd.SysProcAttr.Setpgid = true              // a Ctrl-C is for the test, which ends its children itself
	p.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // a test that dies of its time limit runs no clean-up
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("process: start %s: %v", p.name, err)
	}
	exited := make(chan struct{})
	p.exited, p.paused = exited, false
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait()
		close(exited)
	}(p.cmd)
}

// Running reports whether the process has not exited; a paused one has not.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Output is the end of what the process has written, of all its lives.
func (p *Process) Output() string { return p.output.String() }

// Kill ends the process and its descendants with SIGKILL and waits until they are
// gone. A process that is gone already is left alone.
func (p *Process) Kill() {
	p.t.Helper()
	if !p.Running() {
		return
	}
	pid := p.cmd.Process.Pid
	_ = syscall.Kill(pid, syscall.SIGSTOP) // it starts no more while we look
	tree := append(descendants(pid), pid)
	for _, pid := range tree {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.exited
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		alive := 0
		for _, pid := range tree {
			if s, _, ok := stat(pid); ok && s != 'Z' && s != 'X' {
				alive++
			}
		}
		if alive == 0 {
			return
		}
		if time.Now().After(deadline) {
			p.t.Errorf("process: %d processes of %s outlive SIGKILL", alive, p.name)
			return
		}
	}
}

// Pause stops the process and its descendants with SIGSTOP: they keep their
// connections and leases and do nothing.
func (p *Process) Pause() {
	p.t.Helper()
	p.signalTree(syscall.SIGSTOP)
	p.paused = true
}

// Resume continues what [Process.Pause] has stopped.
func (p *Process) Resume() {
	p.t.Helper()
	p.signalTree(syscall.SIGCONT)
	p.paused = false
}

// signalTree starts with the root, which then starts no more while we look.
func (p *Process) signalTree(s syscall.Signal) {
	if !p.Running() {
		return
	}
	pid := p.cmd.Process.Pid
	_ = syscall.Kill(pid, s)
	for _, pid := range descendants(pid) {
		_ = syscall.Kill(pid, s)
	}
}

// Stop sends the signal to the process alone and waits until it has exited, which
// has to happen within a minute.
func (p *Process) Stop(s syscall.Signal) {
	p.t.Helper()
	if !p.Running() {
		return
	}
	if p.paused {
		p.Resume()
	}
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("process: %v to %s: %v", s, p.name, err)
	}
	select {
	case <-p.exited:
	case <-time.After(time.Minute):
		p.Kill()
		p.t.Fatalf("process: %s has not exited a minute after %v", p.name, s)
	}
}

// Restart starts the process again, after Kill if it still runs.
func (p *Process) Restart() {
	p.t.Helper()
	p.Kill()
	p.start()
}

// descendants lists the processes below pid. Servers put theirs into groups and
// sessions of their own (PostgreSQL does), so that a signal to a group misses them.
func descendants(pid int) []int {
	children := map[int][]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil {
			if _, parent, ok := stat(id); ok {
				children[parent] = append(children[parent], id)
			}
		}
	}
	var all []int
	for next := children[pid]; len(next) > 0; {
		id := next[0]
		all = append(all, id)
		next = append(next[1:], children[id]...)
	}
	return all
}

// stat reads a process's state and parent from /proc.
func stat(pid int) (state byte, parent int, ok bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, false
	}
	// "pid (name) S parent ...", where the name may hold anything, brackets too.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 2 {
		return 0, 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return fields[0][0], parent, err == nil
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (w *tail) Write(b []byte) (int, error) {
	const limit = 16 << 10
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b = append(w.b, b...)
	if over := len(w.b) - limit; over > limit {
		w.b = append(w.b[:0], w.b[over:]...)
	}
	return len(b), nil
}

func (w *tail) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.b)
}
