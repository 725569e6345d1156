// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
)

// burden is what one process of the shop holds: what must not grow with all that it has been through.
type burden struct {
	instance   string
	goroutines int
	files      int            // open, sockets included
	memory     int            // resident, in MiB
	conns      map[string]int // to each server, by its name
	cpu        float64        // seconds used since its start
}

func (b burden) String() string {
	out := fmt.Sprintf("%-14s %4d goroutines, %3d files, %3d MiB", b.instance, b.goroutines, b.files, b.memory)
	for _, server := range slices.Sorted(maps.Keys(b.conns)) {
		out += fmt.Sprintf(", %d to %s", b.conns[server], server)
	}
	return out
}

// within says what is more than it may be of a process that held before when the shop was new. The bounds are wide: of
// one goroutine, file or connection lost for each order, or for each message, a storm would make hundreds. Pools may be
// as full as they were in the worst of it.
func (b burden) within(before burden) error {
	type bound struct {
		what      string
		now, most int
	}
	for _, of := range []bound{
		{"goroutines", b.goroutines, before.goroutines + 50},
		{"open files", b.files, before.files + 40},
		{"MiB of memory", b.memory, before.memory + 100},
		{"connections to PostgreSQL", b.conns["PostgreSQL"], platform.PostgresConns},
		{"connections to RabbitMQ", b.conns["RabbitMQ"], 2},                    // one to publish, one to consume
		{"connections to Redis", b.conns["Redis"], 10 * runtime.GOMAXPROCS(0)}, // the pool's own bound
	} {
		if of.now > of.most {
			return fmt.Errorf("%s has %d %s, want at most %d", b.instance, of.now, of.what, of.most)
		}
	}
	return nil
}

// burdens looks at every process of the shop, as Linux knows it.
func (s *stackShop) burdens(ctx context.Context) (map[string]burden, error) {
	s.mu.Lock()
	processes := maps.Clone(s.processes)
	s.mu.Unlock()
	sockets, err := s.sockets()
	if err != nil {
		return nil, err
	}
	out := map[string]burden{}
	for name, process := range processes {
		b, err := weigh(ctx, process, sockets)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[name] = b
	}
	return out, nil
}

func weigh(ctx context.Context, process stack.Instance, sockets map[string]string) (burden, error) {
	b := burden{instance: process.Instance, conns: map[string]int{}}
	p, err := procfs.NewProc(process.PID)
	if err != nil {
		return b, err
	}
	stat, err := p.Stat()
	if err != nil {
		return b, err
	}
	files, err := p.FileDescriptorTargets()
	if err != nil {
		return b, err
	}
	b.memory, b.cpu, b.files = stat.ResidentMemory()>>20, stat.CPUTime(), len(files)
	for _, file := range files {
		if server := sockets[file]; server != "" {
			b.conns[server]++
		}
	}
	// All gateways are at one address, where any of them answers.
	b.goroutines, err = goroutines(ctx, "http://"+process.Addr+"/metrics")
	return b, err
}

// goroutines asks a process how many it has, over a connection of its own.
func goroutines(ctx context.Context, metrics string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, metrics, nil)
	if err != nil {
		return 0, err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if n, ok := strings.CutPrefix(lines.Text(), "go_goroutines "); ok {
			return strconv.Atoi(n)
		}
	}
	return 0, fmt.Errorf("%s: %s without go_goroutines", metrics, resp.Status)
}

// sockets returns the connections of this machine to the servers of the stack: the server's name by what a process has
// open.
func (s *stackShop) sockets() (map[string]string, error) {
	servers := map[string]string{} // by port, as the table has it
	for variable, server := range map[string]string{stack.PostgresVar: "PostgreSQL", stack.RabbitMQVar: "RabbitMQ", stack.RedisVar: "Redis"} {
		u, err := url.Parse(s.settings[variable])
		if err != nil {
			return nil, err
		}
		port, err := strconv.Atoi(u.Port())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", variable, err)
		}
		servers[fmt.Sprintf("%04X", port)] = server
	}
	sockets := map[string]string{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a machine without IPv6
			return nil, err
		}
		for line := range bytes.Lines(text) {
			const remote, state, inode, established = 2, 3, 9, "01"
			fields := strings.Fields(string(line))
			if len(fields) <= inode || fields[state] != established {
				continue
			}
			_, port, _ := strings.Cut(fields[remote], ":")
			if server := servers[port]; server != "" {
				sockets["socket:["+fields[inode]+"]"] = server
			}
		}
	}
	return sockets, nil
}

// recovers waits until every process holds about what it held before, and tells what each holds.
func (s *stackShop) recovers(t *testing.T, before map[string]burden) {
	t.Helper()
	var after map[string]burden
	look := func() (err error) {
		if after, err = s.burdens(t.Context()); err != nil {
			return err
		}
		for name, b := range after {
			err = errors.Join(err, b.within(before[name]))
		}
		return err
	}
	err := look()
	for deadline := time.Now().Add(stormPatience); err != nil && time.Now().Before(deadline); err = look() {
		time.Sleep(2 * time.Second) // connections that nobody uses close after a minute and a half
	}
	if err != nil {
		t.Errorf("the shop does not recover: %v", err)
	}
	begin := time.Now()
	time.Sleep(5 * time.Second)
	later, err := s.burdens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		idle := 100 * (later[name].cpu - after[name].cpu) / time.Since(begin).Seconds()
		t.Logf("before %v", before[name])
		t.Logf("after  %v, %.1f %% of a core when idle", after[name], idle)
	}
}
