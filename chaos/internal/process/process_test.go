// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package process_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/chaos/internal/process"
)

func TestMain(m *testing.M) {
	process.Main(m, map[string]func([]string) error{
		"count": func(args []string) error { // writes one byte after the other
			file, err := os.OpenFile(args[0], os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			for {
				if _, err := file.WriteString("."); err != nil {
					return err
				}
				time.Sleep(time.Millisecond)
			}
		},
		"fail": func([]string) error { return errors.New("as told") },
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestRole(t *testing.T) {
	name := t.TempDir() + "/count"
	size := func() int64 {
		info, err := os.Stat(name)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	grows := func() { t.Helper(); n := size(); eventually(t, "it counts", func() bool { return size() > n }) }
	rests := func() {
		t.Helper()
		n := size()
		time.Sleep(20 * time.Millisecond)
		if m := size(); m > n+1 { // a write may have been under way
			t.Errorf("it counts from %d to %d", n, m)
		}
	}
	p := process.Role(t, "count", name)
	grows()
	p.Pause()
	rests()
	p.Resume()
	grows()
	p.Kill()
	rests()
	p.Restart()
	grows()
	p.Pause()
	p.Stop(syscall.SIGTERM)
	if p.Running() {
		t.Error("it runs after Stop")
	}
}

func TestRoleFails(t *testing.T) {
	p := process.Role(t, "fail")
	eventually(t, "it exits", func() bool { return !p.Running() })
	if got := p.Output(); !strings.Contains(got, "fail: as told") {
		t.Errorf("Output = %q, want the error", got)
	}
}

// Servers put their children into sessions of their own.
func TestKillReachesDescendants(t *testing.T) {
	name := t.TempDir() + "/pid"
	p := process.Start(t, "sh", func() *exec.Cmd {
		return exec.CommandContext(t.Context(), "sh", "-c", "setsid sleep 1000 & echo $! >"+name+"; wait")
	})
	pid := 0
	eventually(t, "the child runs", func() bool {
		text, _ := os.ReadFile(name)
		n, _ := fmt.Sscan(string(text), &pid)
		return n == 1
	})
	p.Kill()
	eventually(t, "the child is gone", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(text), ") Z ")
	})
}
